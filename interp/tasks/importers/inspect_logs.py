"""Samples of inspect_ai's logs, read by its own package.

>>> for place, sample in samples(Path("2026-01-05T10-00-00_task_a1.eval")):
...     print(place, len(sample["messages"]), sample["scores"])
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.system.sentences import one_line
from interp.system.unpacking import VARIABLE, limit_bytes

#: What inspect writes for a score of its own scorers.
_GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}


def samples(path: Path) -> Iterator[tuple[str, dict]]:
    """The place and the record of each sample of a log: messages, name, task, tools and scores.

    Raises ImportError where the package is missing, ValueError for a log that it does not read.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise ImportError(
            f"{path} is a log of inspect, which is read by its own package: "
            "`pip install 'interp-agents[inspect]'`."
        ) from None
    if path.suffix == ".eval":
        _check_members(path)
    try:
        task = read_eval_log(str(path), header_only=True).eval.task
        for sample in _read(str(path)):
            yield f"{path}, sample {sample.id} epoch {sample.epoch}", _record(sample, task)
    except Exception as error:  # whatever it meets in a damaged log
        raise ValueError(_damaged(path, error)) from error


def _read(path: str) -> Iterator[Any]:
    """Each sample of a log, one after another where its form allows."""
    from inspect_ai.log import read_eval_log, read_eval_log_sample, read_eval_log_sample_summaries

    if not path.endswith(".eval"):
        yield from read_eval_log(path, resolve_attachments=True).samples or ()
        return
    for each in read_eval_log_sample_summaries(path):
        yield read_eval_log_sample(
            path, each.id, each.epoch, resolve_attachments=True, exclude_fields={"store", "events"}
        )


def _record(sample: Any, task: str) -> dict:
    scores = {name: _score(score.value) for name, score in (sample.scores or {}).items()}
    return dict(
        messages=[message.model_dump(exclude_none=True) for message in sample.messages],
        id=f"{task}/{sample.id}/{sample.epoch}",
        task_type=task,
        **{name: score for name, score in scores.items() if score is not None and name not in _RECORD},
    )


_RECORD = ("messages", "id", "task_type")


def _score(value: object) -> float | None:
    if isinstance(value, str):
        return _GRADES.get(value)
    if isinstance(value, Mapping):
        return None
    return float(value) if isinstance(value, (int, float)) else None


def _check_members(path: Path) -> None:
    """Raise ValueError for a log that is no archive, or whose parts are larger than a file may be."""
    try:
        with zipfile.ZipFile(path) as archive:
            largest = max(archive.infolist(), key=lambda each: each.file_size, default=None)
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(_damaged(path, error)) from error
    if largest and largest.file_size > limit_bytes():
        raise ValueError(
            f"{path}: its part {largest.filename!a} unpacks to {largest.file_size / 2**20:,.2f} MiB, and may "
            f"have {limit_bytes() / 2**20:,.2f} MiB: set {VARIABLE} to the MiB that it may have."
        )


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} cannot be read as a log of inspect ({type(error).__name__}: {one_line(error)})."
