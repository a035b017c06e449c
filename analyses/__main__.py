"""The command line: `python -m analyses` lists what there is, `python -m analyses NAME --help` says how."""

from __future__ import annotations

import importlib
import contextlib
import json
import os
import pathlib
import signal
import sys
from collections.abc import Sequence

from analyses.command import configured, told
from interp.system.processes import end_with_parent, how_it_ended, leave, side_by_side, stop_on_signals

#: `all` runs the chains side by side, each in its order: small models gain more from two processes than from two threads.
CHAINS = (("behaviour", "probes", "transfer", "mdl", "conflict"), ("online", "patching", "reliance", "early", "shares"))
ANALYSES = tuple(name for chain in CHAINS for name in chain)
OTHER = {"record": "play the corpus of episodes in the engine", "series": "train the base and the checkpoint series",
         "smollm2": "fine-tune a real pretrained chat model on ALFWorld episodes, or prepare the shipped adapters",
         "steering": "add directions to the residual stream and watch the action (docs/methods.md 7); takes long, so `all` leaves it out",
         "reinforce": "go on from a checkpoint by reinforcement learning in live games",
         "calibration": "what each instrument reads on agents whose answer is known",
         "organisms": "grow those agents from their recipes, as they are shipped",
         "environments": "put studies of several environments side by side, with the splits of each",
         "coverage": "how often the probes' intervals cover chance on data without signal: a simulation, no model",
         "pace": "time training against a bare PyTorch loop on the same batches",
         "masking": "train arms whose action tokens are partly unsupervised, or take one's own, and compare them over games and seeds (docs/methods.md 8)",
         "masking_power": "what those comparisons find of planted effects and planted nulls: a simulation, no model",
         "bench": "time the engine against other tools", "architectures": "say which architectures are exact, and on which path",
         "readme": "write the generated parts of the README and of docs/ from the committed tables",
         "seal": "say that tables were edited by hand, so that they are read as they are now",
         "figures": "draw figures and index.html from tables", "all": "every analysis above, then the figures"}


#: Modules of analyses that are not called as the analysis is.
PLACES = {"bench": "benchmarks.bench", "pace": "benchmarks.pace", "masking": "masking.run", "masking_power": "masking.power",
          "organisms": "shipped.organisms", "record": "shipped.record", "series": "shipped.series", "smollm2": "shipped.smollm2"}


def _module(name: str):
    return importlib.import_module(f"analyses.{PLACES.get(name, name)}")


def _listing() -> str:
    import ast

    lines = ["usage: python -m analyses NAME [options]      (python -m analyses NAME --help)", ""]
    for name in ANALYSES:
        source = pathlib.Path(__file__).with_name(f"{name}.py").read_text()
        lines.append(f"  {name:<10} {ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    return "\n".join(lines + [f"  {name:<10} {what}" for name, what in OTHER.items()])


def run(argv: list[str]) -> int:
    """Run one analysis, or all; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_listing())
        return 0
    name, rest = argv[0], argv[1:]
    if name == "figures":
        return _module("figures").main(rest)
    if name not in (*ANALYSES, *OTHER):
        raise ValueError(f"There is no analysis {name!r}: there are {', '.join((*ANALYSES, *OTHER))}.")
    if name == "readme" and rest or name == "architectures" and (rest[1:] or rest and rest[0].startswith("-")):
        takes = "takes no options" if name == "readme" else "takes the file to write its page to, or nothing"
        raise ValueError(f"{name} {takes}, so not {rest[-1]}.")
    if name == "architectures":
        from interp.models.architectures import document

        page = document()
        if rest:
            pathlib.Path(rest[0]).write_text(page)
        print(page, end="")
        return 0
    if name == "readme":
        _module("readme").run()
        return 0
    if name == "all":
        return _all(rest)
    module = _module(name)
    config = configured(module.Config, rest, name)
    parts = getattr(config, "processes", 1)
    if parts > 1:
        alone = [name, *rest, "--processes", "1", "--part"]
        if status := _side_by_side([[[*alone, str(part), str(parts)]] for part in range(parts)]):
            return status
    module.run(config)
    return 0


def _all(rest: list[str]) -> int:
    """Every analysis, the chains side by side in processes of their own, then the figures."""
    from analyses.study import All

    study = configured(All, rest, "all")
    left_out = set(study.skip)
    if (reason := study.env.unplayable()) and "online" not in left_out:
        print(f"online: left out, {reason}")
        left_out.add("online")
    jobs = 1 if study.on_gpu else min(len(CHAINS), os.cpu_count() or 1)
    chains = [[name for name in chain if name not in left_out] for chain in (CHAINS if jobs > 1 else [ANALYSES])]
    commands = [[[name, *study.arguments(_module(name).Config)] for name in names] for names in chains if names]
    if status := _side_by_side(commands):
        return status
    return _module("figures").main(["--tables", str(study.run / "tables"), "--out", str(study.run)])


def _side_by_side(chains: Sequence[Sequence[Sequence[str]]]) -> int:
    """Run chains of command lines at the same time, each in a process that ends with this one; the exit status."""
    code = "import sys; from analyses.__main__ import chain, leave; leave(chain(sys.argv[1]))"
    environment = {"TQDM_POSITION": "{number}"}
    if len(chains) > 1:
        share = max(1, (os.cpu_count() or 1) // len(chains))
        environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
    statuses = side_by_side([[sys.executable, "-c", code, json.dumps(commands)] for commands in chains], environment)
    for commands, status in zip(chains, statuses, strict=True):
        if status < 0:
            names = ", ".join(command[0] for command in commands)
            print(f"error: the process of {names} {how_it_ended(status)}; finished stages are kept, and the same "
                  "command goes on from them.", file=sys.stderr)
    return max((128 - status if status < 0 else status for status in statuses), default=0)


def chain(commands: str) -> int:
    """Run command lines, a JSON list of lists of words, in order until one fails; ends when the parent does."""
    end_with_parent()
    for command in json.loads(commands):
        sys.argv[1:] = command  # what the table's provenance says it was made by
        if status := main():
            return status
    return 0


def main() -> int:
    """Run, and turn what goes wrong into one sentence; INTERP_DEBUG=1 shows where instead."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return run(sys.argv[1:])
    except KeyboardInterrupt as stop:
        with contextlib.suppress(OSError):  # a terminal that was closed
            print("\nstopped; finished stages are kept, and the same command goes on from them", file=sys.stderr)
        return getattr(stop, "status", 130)
    except BrokenPipeError:  # what reads the output has ended, as `head` does
        return 128 + signal.SIGPIPE
    except Exception as error:
        if os.environ.get("INTERP_DEBUG"):
            raise
        left_out = getattr(error, "left_out", False)
        print(f"{'left out' if left_out else 'error'}: {told(error, ' '.join(sys.argv[1:2]))}", file=sys.stderr)
        return 0 if left_out else 1


if __name__ == "__main__":
    stop_on_signals()
    leave(main())
