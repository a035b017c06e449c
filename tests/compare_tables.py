"""Whether two runs have the same tables: rows by their keys, numbers to a tolerance.

python tests/compare_tables.py runs/before runs/after --tolerance 1e-6

Prints a line for each table, and exits with 1 where a table or a row is missing or a number differs.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

#: Columns that have another name in the second run: old name -> the names of today, of which a table has one.
RENAMED: dict[str, tuple[str, ...]] = {"reader": ("predictor",), "arm": ("inserted_trace", "condition")}
#: The first column of a measurement table that is no key.
ESTIMATE = "value"


@dataclass(frozen=True)
class Comparison:
    """What two tables of one name have in common."""

    compared: int
    """Rows that are in both."""
    missing: int
    """Rows, or columns in all of them, that only the first has."""
    new: int
    """Rows that only the second has."""
    difference: float
    """The largest, relative to the number where that is above 1; infinite where a text or a gap differs."""
    where: str
    """The column and the keys of the largest difference, empty where all numbers are the same."""


def compare(before: pd.DataFrame, after: pd.DataFrame) -> Comparison:
    """Compare two tables row by row.

    Keys are the columns before `value`, or, in a table without it, those that hold no fractions. Rows with
    the
    same keys are taken in their order.
    """
    names = {old: new for old, names in RENAMED.items() for new in names if new in after and old not in after}
    before = before.rename(columns=names)
    if lost := [name for name in before if name not in after]:
        return Comparison(0, len(before), len(after), np.inf, f"no column {', '.join(lost)}")
    columns = list(before)
    keys = columns[: columns.index(ESTIMATE)] if ESTIMATE in columns else _whole(before)
    first, second = (_by_keys(frame[columns], keys) for frame in (before, after))
    both = first.index.intersection(second.index, sort=False)
    largest, where = 0.0, ""
    for name in [name for name in columns if name not in keys]:
        differences = _differences(first.loc[both, name], second.loc[both, name])
        if len(both) and differences.max() > largest:
            largest = float(differences.max())
            where = f"{name} of {', '.join(map(str, both[differences.argmax()]))}"
    return Comparison(len(both), len(first) - len(both), len(second) - len(both), largest, where)


def _whole(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame if not pd.api.types.is_float_dtype(frame[name])]


def _by_keys(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The table under its keys as text, and a number that tells rows with the same keys apart."""
    texts = frame[keys].astype(str)
    repeat = frame.groupby(keys, dropna=False).cumcount() if keys else pd.Series(range(len(frame)))
    return frame.set_axis(pd.MultiIndex.from_frame(texts.assign(repeat=repeat.to_numpy())))


def _differences(before: pd.Series, after: pd.Series) -> np.ndarray:
    if not all(pd.api.types.is_numeric_dtype(column) for column in (before, after)):
        same = (before.astype(str) == after.astype(str)).to_numpy()
        return np.where(same, 0.0, np.inf)
    first, second = before.to_numpy(float), after.to_numpy(float)
    scale = np.fmax(1.0, np.fmax(np.abs(first), np.abs(second)))
    differences = np.abs(first - second) / scale
    equal = (first == second) | (np.isnan(first) & np.isnan(second))
    return np.where(equal, 0.0, np.where(np.isnan(differences), np.inf, differences))


def compare_runs(before: Path, after: Path) -> dict[str, Comparison]:
    """Compare the tables of two runs' folders, or of two folders of tables.

    Raises:
        FileNotFoundError: the first has no tables.
    """
    folders = [path / "tables" if (path / "tables").is_dir() else path for path in (before, after)]
    names = sorted({path.stem for path in folders[0].glob("*.csv")})
    if not names:
        raise FileNotFoundError(f"{folders[0]} has no tables: give the folder of a run.")
    comparisons = {}
    for name in names:
        first = pd.read_csv(folders[0] / f"{name}.csv")
        file = folders[1] / f"{name}.csv"
        lost = Comparison(0, len(first), 0, np.inf, "no such table")
        comparisons[name] = compare(first, pd.read_csv(file)) if file.exists() else lost
    return comparisons


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison of two runs; 0 where they are the same to the tolerance, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="folder of the first run")
    parser.add_argument("after", type=Path, help="folder of the second run")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    options = parser.parse_args(arguments)
    same = True
    print(f"{'table':20}{'compared':>10}{'missing':>9}{'new':>6}  largest difference")
    for name, found in compare_runs(options.before, options.after).items():
        same &= found.difference <= options.tolerance and not found.missing and not found.new
        line = f"{name:20}{found.compared:10}{found.missing:9}{found.new:6}  {found.difference:.3g}"
        print(f"{line} ({found.where})" if found.where else line)
    print(f"the same to {options.tolerance:g}" if same else f"not the same to {options.tolerance:g}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
