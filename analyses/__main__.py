"""The command line: `python -m analyses` lists what there is, `python -m analyses NAME --help` says how."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

#: In the order in which `all` runs them.
ANALYSES = ("behaviour", "online", "probes", "patching", "reliance", "conflict")
OTHER = {"record": "play the corpus of episodes in the engine", "series": "train the base and the checkpoint series",
         "bench": "time the engine against other tools", "architectures": "say which architectures are exact, and on which path",
         "figures": "draw figures and index.html from tables", "all": "every analysis above, then the figures"}


def _module(name: str):
    return importlib.import_module(f"analyses.{name}")


def _listing() -> str:
    import ast
    import pathlib

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
        from interp.architectures import table

        print(table().to_string(index=False))
        return 0
    import tyro

    if name != "all":
        module = _module(name)
        module.run(tyro.cli(module.Config, args=rest, prog=f"python -m analyses {name}"))
        return 0
    from analyses.study import Study

    study = tyro.cli(Study, args=rest, prog="python -m analyses all")
    shared = {k: v for k, v in vars(study).items() if not k.startswith("_")}
    for each in ANALYSES:
        if each == "online" and importlib.util.find_spec("alfworld") is None:
            print("online: left out, ALFWorld's engine is not installed (make figures without ENGINE=0 installs it)")
            continue
        module = _module(each)
        module.run(module.Config(**shared))
    return _module("figures").main(["--tables", str(study.run / "tables"), "--out", str(study.run)])


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
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; finished stages are kept, and the same command goes on from them", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
