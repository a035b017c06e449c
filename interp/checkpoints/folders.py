"""The names that trainers give the folders of their checkpoints, and the step that each says.

>>> named_step("global_step100_hf")
100
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from interp.checkpoints.contents import NESTED, find

#: checkpoint-N (transformers, TRL, LLaMA-Factory), global_step_N (verl), global_stepN_hf (OpenRLHF), step_N,
#: epoch_N (torchtune, accelerate), iter_000N (Megatron), step=N (NeMo), each with what exporters append.
NAMED = re.compile(
    r"(?:.*[-_.=])?(?P<unit>checkpoint|ckpt|global[-_]?step|step|epoch|iter|iteration)[-_=]?"
    r"(?P<number>\d+(?:e\d+|k)?)"
    r"(?:[-_.](?:hf|huggingface|merged|full|model|last|safetensors|lora|adapter|bf16|fp16|fp32|16bit"
    r"|tokens\d+[bmt]))*",
    re.I,
)
#: What a checkpoint without a number is called.
UNNUMBERED = re.compile(
    r"(.*[-_.])?(checkpoint|ckpt|step|epoch|iter|final|best|last|latest)([-_.=].*)?", re.I
)
#: What a trainer has not finished writing.
UNFINISHED = re.compile(r"(tmp|\.).*", re.I)
EPOCHS = "epoch"
S = TypeVar("S")


def named_step(name: str) -> int | None:
    """The step in a folder's name (`checkpoint-1e3` and `step_1k` are 1,000); None where it names no step."""
    match = NAMED.fullmatch(name)
    return (
        int(float(match["number"].lower().replace("k", "e3")))
        if match and not UNFINISHED.fullmatch(name)
        else None
    )


def step_name(path: Path) -> str:
    """The part of a checkpoint's path that says its step, without inner folders or a GGUF's quantisation."""
    if path.suffix == ".gguf":
        return re.sub(r"[-_.](?:I?Q\d\w*|B?F16|F32)$", "", path.stem, flags=re.I)
    nested = max((n for n in NESTED if n and path.as_posix().endswith(f"/{n}")), key=len, default="")
    return path.parents[nested.count("/")].name if nested else path.name


def number(path: Path) -> int | None:
    """The step in a checkpoint's path, as a trainer writes it or at the end of its name; None without."""
    name = step_name(path)
    step, last = named_step(name), re.search(r"(\d+)$", name)
    if step is None and last:
        return int(last[1])
    return step


def numbers_of(paths: Sequence[Path]) -> list[int]:
    """The steps in checkpoints' names, or their positions where one has none.

    One path alone has the step of a name as trainers write it.
    """
    numbers = [step for path in paths if (step := number(path)) is not None]
    if len(paths) == 1:
        name = step_name(paths[0])
        if named_step(name) is None and not name.isdecimal():
            return [0]
    return numbers if len(numbers) == len(paths) else list(range(len(paths)))


def checkpoints_below(folder: Path, base: str | Path | None = None) -> list[tuple[int, Path]]:
    """The checkpoints' folders in a run's folder, with their steps.

    Of several of one step, the one that can be read is taken, where one can.

    Raises ValueError where some are named by epochs and others by steps, or several of one step can be read.
    """
    entries = sorted(folder.glob("*"))
    named = [
        (step, p)
        for p in entries
        if (step := named_step(p.name)) is not None and (p.is_dir() or p.is_symlink())
    ]
    if gone := [p for _, p in named if not p.exists()]:
        raise FileNotFoundError(
            f"{gone[0]} is a link to {gone[0].readlink()}, which is not there: put the "
            "checkpoint there, or remove the link."
        )
    if not named:
        named = [(int(p.name), p) for p in entries if p.name.isdecimal() and is_model(p)]
        return list(by_step(named).items())
    units = {}
    for _, path in named:
        if match := NAMED.fullmatch(path.name):
            units[match["unit"].lower() == EPOCHS] = path.name
    if len(units) > 1:
        raise ValueError(
            f"{folder} holds {units[True]} and {units[False]}, and epochs and steps cannot be put in one "
            "order: give the paths of one kind with their steps (CheckpointSeries.from_paths)."
        )
    groups: dict[int, list[Path]] = {}
    for step, path in named:
        groups.setdefault(step, []).append(path)
    return [(step, path) for step, paths in groups.items() for path in _readable(paths, base)]


def left_out(folder: Path, taken: Sequence[Path]) -> list[Path]:
    """Checkpoints in a run's folder whose names give no step (`checkpoint-final`), links left out."""
    resolved = {p.resolve() for p in taken}
    return [
        p
        for p in sorted(folder.glob("*"))
        if UNNUMBERED.fullmatch(p.name)
        and named_step(p.name) is None
        and not UNFINISHED.fullmatch(p.name)
        and is_model(p)
        and p.resolve() not in resolved
    ]


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model or an adapter, by its configuration."""
    return any(
        (folder / n / name).is_file() for n in NESTED for name in ("config.json", "adapter_config.json")
    )


def _readable(paths: Sequence[Path], base: str | Path | None) -> Sequence[Path]:
    """Of several folders of one step those that can be read (all, where there is one only, or none can)."""
    if len(paths) == 1:
        return paths
    readable = [p for p in paths if _reads(p, base)]
    return readable or paths[:1]


def _reads(path: Path, base: str | Path | None) -> bool:
    try:
        find(path, base)
    except (OSError, ValueError):
        return False
    return True


def by_step(pairs: Iterable[tuple[int, S]]) -> dict[int, S]:
    """step -> source; raises ValueError where two have one step."""
    sources: dict[int, S] = {}
    for step, source in pairs:
        if step in sources:
            raise ValueError(
                f"{sources[step]} and {source} are both checkpoint {step}: a series has one checkpoint of "
                "each step. Give the paths of those that you want (CheckpointSeries.from_paths)."
            )
        sources[step] = source
    return sources


def contents(folder: Path) -> str:
    """What a folder without checkpoints holds instead, in a few words."""
    names = [p.name for p in sorted(folder.iterdir())[:6]] if folder.is_dir() else []
    return f" (it holds {', '.join(names[:5])}{' and others' if len(names) > 5 else ''})" if names else ""


def further_down(folder: Path) -> str:
    """The folders below that can be given instead, in a sentence: runs with checkpoints, or single models."""
    below = [p for depth in ("*", "*/*", "*/*/*") for p in sorted(folder.glob(depth)) if p.is_dir()]
    runs = list(dict.fromkeys(p.parent for p in below if named_step(p.name) is not None))
    folders = runs or [p for p in below if is_model(p)]
    return f"checkpoints lie further down: give {' or '.join(map(str, folders[:3]))}" if folders else ""
