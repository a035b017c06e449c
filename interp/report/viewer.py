"""The decision viewer: a page on which the decisions of a run are looked through one by one.

>>> page = save_viewer(rows, "runs/quick", made)       # rows as `interp.results.decisions` has them
>>> view("runs/quick")                                 # in a notebook, the page

What the page shows is data, escaped inside the page and put on it as text alone: no text of a prompt, a trace
or an action is ever read as HTML.
"""

from __future__ import annotations

import hashlib
import html
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from interp.results.names import DIAGNOSES, INSERTED_TRACES, LABELS, SPLITS
from interp.results.tables import written

PAGE = "decisions.html"
#: Bytes of a page that a notebook still holds whole; a longer one is framed from its file.
HELD = 4_000_000
#: Characters of what is shown of single decisions from which on it lies in files beside the page, and of such
#: a file.
WHOLE, SHARD = 64_000_000, 2_000_000
#: What the folders of those files begin with.
_SHARDS = "decisions-"
_COMPACT: dict[str, Any] = dict(separators=(",", ":"), allow_nan=False)
#: Columns of a row that are the same in all rows of its decision.
_ABOUT = (
    "decision", "episode", "step", "split", "task", "task_type", "reference", "n_admissible", "twin",
)  # fmt: skip
_ELSEWHERE = {*_ABOUT, "checkpoint", "mode", "prompt", "spans", "actions_differ", "flipped"}
#: Flags of a decision at a checkpoint, each a bit: decoded, the actions differ, the CoT action is wrong, the
#: prompt action is, flipped by a conflicting trace, one of the actions did not parse, it has a twin.
_FLAGS = {
    name: 1 << bit
    for bit, name in enumerate(
        ("decoded", "differ", "wrong", "prompt_wrong", "flipped", "unparsed", "paired")
    )
}
#: Places of patching in reading order, and the splits', inserted traces' and labels' names on the page.
_NAMES = dict(
    splits=SPLITS,
    inserted=INSERTED_TRACES,
    labels=LABELS,
    diagnoses=DIAGNOSES,
    places=dict(
        boundary="boundary", observation="observation", history="history", task="task",
        template="template", action_tag="action tag", prompt="whole prompt",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Viewer:
    """A run's page of decisions, which a notebook shows."""

    path: Path
    """The page, to be opened in a browser."""

    def _repr_html_(self) -> str:
        size = self.path.stat().st_size
        if size <= HELD:
            source = f'srcdoc="{html.escape(self.path.read_text(encoding="utf-8"))}"'
        else:
            source = f'src="{html.escape(Path(os.path.relpath(self.path)).as_posix())}"'
        return (
            f'<iframe {source} sandbox="allow-scripts" title="Decisions" '
            'style="width: 100%; height: 820px; border: 1px solid #888"></iframe>'
            f"<div>{html.escape(str(self.path))}</div>"
        )


def view(run: str | Path) -> Viewer:
    """The page of a run's decisions; a notebook shows it, and elsewhere its `path` is opened in a browser.

    Args:
        run: folder of the run.

    Raises:
        FileNotFoundError: the run has no such page.
    """
    path = Path(run) / PAGE
    if not path.exists():
        raise FileNotFoundError(
            f"{run} has no {PAGE}: make it with `python -m analyses decisions --run {run}`, and the options "
            "that the run was made with."
        )
    return Viewer(path)


def save_viewer(rows: Iterable[Mapping[str, Any]], out: str | Path, made: Mapping[str, Any]) -> Path:
    """Write `<out>/decisions.html`.

    Args:
        rows: columns of `interp.results.decisions.COLUMNS` by name, those of a decision next to one another.
        out: folder to write to.
        made: the table's provenance, of which the page shows the command and the series.
    """
    with Page(out) as page:
        for _, each in groupby(rows, key=lambda row: row["decision"]):
            page.add(list(each))
        return page.save(made)


class Page:
    """A page that is given its decisions one after another, of which it holds what the list shows.

    >>> with Page("runs/quick") as page:
    ...     for _, each in groupby(rows, key=lambda row: row["decision"]):
    ...         page.add(list(each))
    ...     path = page.save(made)

    What is shown of a chosen decision waits in a file. It becomes part of the page, or where all of it has
    more than WHOLE characters, files beside the page that it loads as they are asked for.
    """

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.rows = 0
        self._index: list[dict] = []
        self._lengths: list[int] = []
        self._checkpoints: set[int] = set()

    def __enter__(self) -> Page:
        self.out.mkdir(parents=True, exist_ok=True)
        self._details = tempfile.TemporaryFile("w+", encoding="utf-8", dir=self.out)
        return self

    def __exit__(self, *_: object) -> None:
        self._details.close()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of one decision."""
        self.rows += len(rows)
        self._checkpoints |= {row["checkpoint"] for row in rows}
        self._index.append(dict(_about(rows), at=_summaries(rows)))
        text = str(htmlsafe_json_dumps(_detail(rows), **_COMPACT))
        self._lengths.append(len(text))
        self._details.write(text + "\n")

    def save(self, made: Mapping[str, Any]) -> Path:
        """Write the page, and its files where it has some; made: as of `save_viewer`."""
        self._details.seek(0)
        texts: Iterable[str] = (Markup(line.rstrip("\n")) for line in self._details)
        path, folder = self.out / PAGE, ""
        firsts: list[int] = []
        if sum(self._lengths) > WHOLE:
            folder, firsts = self._save_shards(texts)
            texts = ()
        index = dict(
            checkpoints=sorted(self._checkpoints),
            decisions=self._index,
            flags=_FLAGS,
            names=_NAMES,
            folder=folder,
            firsts=firsts,
        )
        environment = Environment(
            loader=PackageLoader("interp.report"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        # without spaces; what is no number is null before
        environment.policies["json.dumps_kwargs"] = _COMPACT
        parts = environment.get_template("viewer.html").generate(
            index=index,
            details=texts,
            sharded=bool(folder),
            command=made.get("command", ""),
            run=self.out.name,
        )
        with written(path) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            stream.writelines(parts)
        for old in self.out.glob(f"{_SHARDS}*/"):
            if old.name != folder and re.fullmatch(rf"{_SHARDS}[0-9a-f]{{16}}", old.name):
                shutil.rmtree(old)
        return path

    def _save_shards(self, texts: Iterable[str]) -> tuple[str, list[int]]:
        """Write the details as scripts; the name of their folder, and the first decision of each."""
        digest, number = hashlib.sha256(), 0
        firsts: list[int] = []
        scratch = self.out / f".{_SHARDS}{os.getpid()}"
        scratch.mkdir()
        try:
            waiting, size = [], 0
            for text, length in zip(texts, self._lengths, strict=True):
                waiting.append(text)
                size += length
                number += 1
                if size < SHARD and number < len(self._lengths):
                    continue
                shard = f"decisionShard({len(firsts)},[{','.join(waiting)}])\n"
                digest.update(shard.encode())
                (scratch / f"{len(firsts)}.js").write_text(shard, encoding="utf-8")
                firsts.append(number - len(waiting))
                waiting, size = [], 0
            folder = f"{_SHARDS}{digest.hexdigest()[:16]}"
            shutil.rmtree(self.out / folder, ignore_errors=True)
            os.replace(scratch, self.out / folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder, firsts


def _about(rows: Sequence[Mapping]) -> dict[str, Any]:
    """What holds at every checkpoint; the first value that a row has."""
    return {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in _ABOUT}


def _summaries(rows: Iterable[Mapping]) -> dict[int, list]:
    """Checkpoint -> the prompt and the CoT action, and the flags, which the list is made and filtered by."""
    return {step: _summary(list(each)) for step, each in groupby(rows, key=lambda row: row["checkpoint"])}


def _summary(rows: Sequence[Mapping]) -> list:
    by_mode = {row["mode"]: row for row in rows if row.get("parsed") is not None}
    prompt, cot = by_mode.get("prompt", {}), by_mode.get("cot", {})
    flags = dict(
        decoded=prompt or cot,
        differ=rows[0].get("actions_differ"),
        wrong=cot and not cot["is_correct"],
        prompt_wrong=prompt and not prompt["is_correct"],
        flipped=rows[0].get("flipped"),
        unparsed=any(not row["parsed"] for row in (prompt, cot) if row),
        paired=any(row.get("twin") is not None for row in rows),
    )
    bits = sum(_FLAGS[name] for name, is_on in flags.items() if is_on)
    return [prompt.get("action"), cot.get("action"), bits]


def _detail(rows: Sequence[Mapping]) -> dict[str, Any]:
    """What is shown of one decision: its prompt in pieces, and by checkpoint and mode what is on record."""
    text = rows[0]["prompt"]
    pieces = [[span["span"], text[span["start"] : span["end"]]] for span in rows[0]["spans"]]
    at: dict[int, dict[str, dict]] = {}
    for row in rows:
        kept = {name: _plain(value) for name, value in row.items() if name not in _ELSEWHERE}
        known = {name: value for name, value in kept.items() if value is not None}
        at.setdefault(row["checkpoint"], {})[row["mode"]] = known
    return dict(prompt=pieces, at=at)


def _plain(value: Any) -> Any:
    """A value with numbers of four digits; what is no finite number is None."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
