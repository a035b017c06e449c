"""A study of some checkpoints adds its rows to a table that was made of others with the same settings.

>>> frame, provenance, sentence = added(folder, "behaviour", frame, provenance)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import lazy_loader as lazy

from interp.results.tables import read_table
from interp.results.wording import listed

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")  # which a bad flag need not wait for

#: Columns that hold a checkpoint.
STEPS = ("step", "train_step", "test_step")
#: Settings in which parts of a table may differ: where things are, and which checkpoints are read.
_FREE = ("run", "checkpoints", "series", "corpus", "base", "device", "dtype", "online_checkpoints", "workers")
_FREE += ("device_map", "processes", "part", "keep_activations", "activation_sites", "activation_layers")
_FREE += ("store_decoded",)
#: What else of their provenance has to be the same, as it is called.
_ALIKE = {
    "seed": "seed",
    "device": "device",
    "dtype": "dtype",
    "format": "prompt format",
    "corpus": "corpus",
    "environment": "environment",
    "judge": "judge",
}


def added(folder: Path, name: str, frame: pd.DataFrame, provenance: dict) -> tuple[pd.DataFrame, dict, str]:
    """Rows and provenance of a table with those that it had of other checkpoints, and a sentence on it.

    Rows of the checkpoints that were read now are replaced. A table that was made with other settings, or of
    other files, is replaced as a whole, which the sentence says.

    Args:
        folder: of the tables.
        name: of the table.
        frame: the new rows.
        provenance: theirs, with `config`, `weights` and `identity` of the checkpoints read.
    """
    try:
        before, made = read_table(folder, name)
    except (FileNotFoundError, ValueError):  # there is none, or it is damaged
        return frame, provenance, ""
    columns = [column for column in STEPS if column in frame and column in before]
    now = [int(step) for step in provenance["weights"]]
    kept = before[~before[columns].isin(now).all(axis=1)] if columns else before.iloc[:0]
    if kept.empty:
        return frame, provenance, ""
    steps = sorted({int(step) for column in columns for step in kept[column]} - set(now))
    which = f"{name}.csv held checkpoint{'s' * (len(steps) != 1)} {listed(map(str, steps))}"
    if differ := differences(made, provenance, now):
        why = f"made otherwise ({'; '.join(differ)}): it holds those of this run alone"
        return frame, provenance, f"{which}, {why}."
    both = pd.concat([kept, frame[frame.columns]], ignore_index=True)
    both = both.sort_values(columns, kind="stable", ignore_index=True)
    return both[frame.columns], _joined(made, provenance), f"{which} as well: their rows stay."


def differences(made: Mapping, now: Mapping, steps: list[int]) -> list[str]:
    """In what the provenance of two parts differs.

    steps: checkpoints of the second one, of which the first may have others' files.
    """
    old, new = made.get("config") or {}, now["config"]
    differ = [
        f"--{flag} was {old.get(flag)} and is {new[flag]}"
        for flag in new
        if flag not in _FREE and old.get(flag) != new[flag]
    ]
    differ += [f"the {word} is another" for key, word in _ALIKE.items() if made.get(key) != now.get(key)]
    release = "interp"
    if (made.get("versions") or {}).get(release) != now["versions"][release]:
        differ.append("the release of the toolkit is another")
    here = now["identity"]
    for step, identity in (made.get("identity") or {}).items():
        if step in here and int(step) in steps and identity != here[step]:
            differ.append(f"the files of checkpoint {step} are others")
    return differ


def _joined(made: Mapping, now: Mapping) -> dict:
    """One provenance of both: what is kept by checkpoint or reason together, the rest of the new part."""
    merged = _union(made, now)
    parts = made.get("parts") or [_part(made)]
    read = set(now["weights"])
    parts = [dict(part, checkpoints=[s for s in part["checkpoints"] if s not in read]) for part in parts]
    merged["parts"] = [part for part in parts if part["checkpoints"]] + [_part(now)]
    for key in ("weights", "identity"):
        merged[key] = dict(sorted(merged[key].items(), key=lambda item: int(item[0])))
    merged["config"] = dict(now["config"], checkpoints=[int(step) for step in merged["weights"]])
    return merged


def _part(made: Mapping) -> dict:
    """What is said of the run that made some of a table's checkpoints."""
    said = {key: made.get(key) for key in ("command", "written", "seconds", "threads", "versions")}
    return dict(said, checkpoints=list(made["weights"]))


def _union(old: object, new: object) -> dict:
    """Fields of both, the new value where they differ; mappings are joined in turn, lists without repeats."""
    assert isinstance(old, Mapping) and isinstance(new, Mapping)
    merged = dict(old)
    for key, value in new.items():
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key] = _union(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            merged[key] = [*before, *(each for each in value if each not in before)]
        else:
            merged[key] = value
    return merged
