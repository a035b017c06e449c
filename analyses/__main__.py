"""The command line: `python -m analyses` lists what there is, `python -m analyses NAME --help` says how."""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import subprocess
import sys

#: `all` runs the chains side by side, each in its order: small models gain more from two processes than from two threads.
CHAINS = (("behaviour", "probes", "transfer", "mdl", "conflict"), ("online", "patching", "reliance", "early", "shares"))
ANALYSES = tuple(name for chain in CHAINS for name in chain)
OTHER = {"record": "play the corpus of episodes in the engine", "series": "train the base and the checkpoint series",
         "smollm2": "fine-tune a real pretrained chat model on ALFWorld episodes, or prepare the shipped adapters",
         "steering": "add directions to the residual stream and watch the action (METHODS 7); takes long, so `all` leaves it out",
         "reinforce": "go on from a checkpoint by reinforcement learning in live games",
         "calibration": "what each instrument reads on agents whose answer is known",
         "organisms": "grow those agents from their recipes, as they are shipped",
         "environments": "put studies of several environments side by side, with the splits of each",
         "coverage": "how often the probes' intervals cover chance on data without signal: a simulation, no model",
         "pace": "time training against a bare PyTorch loop on the same batches",
         "masking": "train arms whose action tokens are partly unsupervised, or take one's own, and compare them over games and seeds (METHODS 8)",
         "masking_power": "what those comparisons find of planted effects and planted nulls: a simulation, no model",
         "bench": "time the engine against other tools", "architectures": "say which architectures are exact, and on which path",
         "readme": "write the README's generated parts from the committed tables",
         "figures": "draw figures and index.html from tables", "all": "every analysis above, then the figures"}


def _module(name: str):
    return importlib.import_module(f"analyses.{name}")


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
    if name == "architectures":
        from interp.architectures import document

        page = document()
        if rest:
            pathlib.Path(rest[0]).write_text(page)
        print(page, end="")
        return 0
    if name == "readme":
        _module("readme").run()
        return 0
    import tyro

    if name == "all":
        return _all(rest)
    module = _module(name)
    module.run(tyro.cli(module.Config, args=rest, prog=f"python -m analyses {name}"))
    return 0


def _all(rest: list[str]) -> int:
    """Every analysis, the chains side by side in processes of their own, then the figures."""
    import tyro

    from analyses.study import All

    study = tyro.cli(All, args=rest, prog="python -m analyses all")
    study.check()
    left_out = set(study.skip)
    if (reason := study.env.unplayable()) and "online" not in left_out:
        print(f"online: left out, {reason}")
        left_out.add("online")
    jobs = 1 if study.on_gpu else min(len(CHAINS), os.cpu_count() or 1)
    chains = [[name for name in chain if name not in left_out] for chain in (CHAINS if jobs > 1 else [ANALYSES])]
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(os.cpu_count() // jobs))}
    commands = [json.dumps([[name, *study.arguments(_module(name).Config)] for name in names]) for names in chains if names]
    running = [subprocess.Popen([sys.executable, "-c", "import sys; from analyses.__main__ import chain; sys.exit(chain(sys.argv[1]))", command],
                                env={**os.environ, **threads, "TQDM_POSITION": str(position)}) for position, command in enumerate(commands)]
    try:
        statuses = [process.wait() for process in running]
    except KeyboardInterrupt:
        [process.wait() for process in running]  # they are told to stop as well, and end their stages as they can
        raise
    if any(statuses):
        return max(statuses)
    return _module("figures").main(["--tables", str(study.run / "tables"), "--out", str(study.run)])


def chain(commands: str) -> int:
    """Run command lines, a JSON list of lists of words, one after the other until one fails."""
    for command in json.loads(commands):
        sys.argv[1:] = command  # what the table's provenance says it was made by
        if status := main():
            return status
    return 0


def main() -> int:
    """Run, and turn what the user can mend into one sentence."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return run(sys.argv[1:])
    except (ValueError, OSError, KeyError, NotImplementedError, ImportError) as error:
        if os.environ.get("INTERP_DEBUG"):
            raise
        if getattr(error, "left_out", False):
            print(f"left out: {error}", file=sys.stderr)
            return 0
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; finished stages are kept, and the same command goes on from them", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
