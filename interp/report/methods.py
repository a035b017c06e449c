"""What a run's provenance says of how its numbers were made, for the methods of a paper.

>>> made = methods(study)
>>> made.seeds
['0']
>>> made.sizes.heads
['table', 'seed', 'n', 'clusters', 'made']
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from interp.report.behaviour import Studied, studied
from interp.report.study import UNREADABLE, Read, Table
from interp.results.estimates import span

_CHECKPOINTS = "Checkpoints that were read: step, the tables that read it, and the hash of its weights."
_SIZES = (
    "Every table of the run: its seed, on how many decisions, games or pairs (n) and on how many clusters "
    "(episodes, or pairs) its estimates are, and when it was made."
)
_OPTIONS = "Options of the analyses; for an option that differs between them, each value with its tables."


@dataclass(frozen=True)
class Methods:
    """How a run was made; texts are plain, and lists without what no table says."""

    studied: Studied | None
    series: list[str]
    """Folders of the checkpoints."""
    environments: list[str]
    corpora: list[str]
    """Hashes of the recorded decisions."""
    formats: list[str]
    """Hashes of the prompts' format."""
    machines: list[str]
    """Device and type of numbers."""
    seeds: list[str]
    notes: list[str]
    """Of the series, and on what was truncated or left out."""
    versions: list[tuple[str, str]]
    checkpoints: Table
    sizes: Table
    options: Table
    commands: list[tuple[str, str]]
    """Table, and the command that made it."""


def methods(study: Read) -> Methods:
    """Read the provenance of every table of a study."""
    made = {name: dict(study.made(name)) for name in sorted(study.tables)}
    try:
        what = studied(study)
    except UNREADABLE:
        what = None
    return Methods(
        studied=what,
        series=_different(_config(each).get("series") for each in made.values()),
        environments=_different(_named(each.get("environment")) for each in made.values()),
        corpora=_different(each.get("corpus") for each in made.values()),
        formats=_different(each.get("format") for each in made.values()),
        machines=_different(
            f"{each['device']}, {each.get('dtype', 'dtype not kept')}"
            for each in made.values()
            if each.get("device")
        ),
        seeds=_different(seed for each in made.values() for seed in _seeds(each)),
        notes=_notes(made),
        versions=_versions(made.values()),
        checkpoints=Table("checkpoints", _CHECKPOINTS, ["checkpoint", "tables", "weights"], _weights(made)),
        sizes=Table(
            "sizes",
            _SIZES,
            ["table", "seed", "n", "clusters", "made"],
            [_size(name, study.tables[name], each) for name, each in made.items()],
        ),
        options=Table("options", _OPTIONS, ["option", "value", "tables"], _options(made)),
        commands=[(name, str(each["command"])) for name, each in made.items() if each.get("command")],
    )


def _different(values: Iterable[object]) -> list[str]:
    """The values that there are, each once, as text."""
    return list(dict.fromkeys(str(value) for value in values if value not in (None, "", [], {})))


def _config(made: Mapping) -> Mapping:
    config = made.get("config")
    return config if isinstance(config, Mapping) else {}


def _named(environment: object) -> str:
    if not isinstance(environment, Mapping):
        return ""
    source = environment.get("source")
    return f"{environment.get('name', '')}{f' ({source})' if source else ''}"


def _seeds(made: Mapping) -> list:
    seeds = made.get("seeds", made.get("seed"))
    return seeds if isinstance(seeds, list) else [] if seeds is None else [seeds]


def _notes(made: Mapping[str, Mapping]) -> list[str]:
    """Sentences of the series, on trainings of other studies, and counts of what was left out."""
    series = [note for each in made.values() for note in each.get("series_notes") or () if note]
    parts = []
    for name, each in made.items():
        if others := [step for step in _weights_of(each) if not step.isdigit()]:
            parts.append(f"{name} reads {len(others)} checkpoints of other trainings")
        for key in ("truncation", "skipped", "not_paired"):
            if counts := each.get(key):
                parts.append(f"{name}, {key.replace('_', ' ')}: {_counted(counts)}")
    return _different([*series, *parts])


def _counted(counts: object) -> str:
    """Counts by what was counted, as a sentence's part."""
    if not isinstance(counts, Mapping):
        return str(counts)
    return "; ".join(f"{what} {_counted(each)}" for what, each in counts.items())


def _versions(made: Iterable[Mapping]) -> list[tuple[str, str]]:
    found: dict[str, list[str]] = {}
    for each in made:
        versions = each.get("versions")
        for package, version in versions.items() if isinstance(versions, Mapping) else ():
            found.setdefault(str(package), []).append(str(version))
    return [(package, " and ".join(_different(several))) for package, several in sorted(found.items())]


def _weights_of(made: Mapping) -> dict[str, str]:
    weights = made.get("weights")
    items = weights.items() if isinstance(weights, Mapping) else ()
    return {str(step).removeprefix("checkpoint-"): str(digest) for step, digest in items}


def _weights(made: Mapping[str, Mapping]) -> list[list[str]]:
    """A row for each of the study's checkpoints and hashes, with the tables that have both."""
    by: dict[tuple[int, str], list[str]] = {}
    for name, each in made.items():
        for step, digest in _weights_of(each).items():
            if step.isdigit():
                by.setdefault((int(step), digest), []).append(name)
    everywhere = max((len(names) for names in by.values()), default=0)
    return [
        [f"{step:,}", "all" if len(names) == everywhere > 1 else ", ".join(names), digest]
        for (step, digest), names in sorted(by.items())
    ]


def _size(name: str, frame: pd.DataFrame, made: Mapping) -> list[str]:
    n, clusters = (
        span(pd.to_numeric(frame[column], errors="coerce")) if column in frame else "–"
        for column in ("n", "n_groups")
    )
    return [name, ", ".join(map(str, _seeds(made))) or "–", n, clusters, str(made.get("written", "–"))[:10]]


def _options(made: Mapping[str, Mapping]) -> list[list[str]]:
    """A row for each option and value; an option with one value is of all tables that have it."""
    by: dict[str, dict[str, list[str]]] = {}
    for name, each in made.items():
        for option, value in _config(each).items():
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            by.setdefault(str(option), {}).setdefault(shown or "none", []).append(name)
    return [
        [option, value, "all" if len(values) == 1 else ", ".join(names)]
        for option, values in sorted(by.items())
        for value, names in values.items()
    ]
