"""Parts of the documentation that are sentences: templates whose numbers come from the committed tables.

    {{ row("behaviour", metric="acc_cot", split="in_domain", step="last") | percent }}

gives `88 % [85, 92]`. The words are written by hand, so they are read again whenever a table changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import jinja2
import pandas as pd

from interp.results.queries import pick, with_places
from interp.results.tables import read_table

from .tables import FIGURES, number

TEMPLATES = Path(__file__).parent / "templates"


@cache
def _table(name: str, study: str) -> pd.DataFrame:
    frame = read_table(FIGURES / study / "tables", name)[0]
    return with_places(frame) if name == "patching" else frame


def rows(table: str, study: str = "", **where: object) -> pd.DataFrame:
    """Rows of a committed table whose columns equal the values given.

    Args:
        table: name of the table.
        study: folder below `figures/` that it lies in; the main study's by default.
        where: value of each column; `step` may be "first" or "last" of the rows that the others leave.
    """
    step = where.pop("step", None)
    frame = pick(_table(table, study), **where)
    if step is None:
        return frame
    ends = {"first": frame["step"].min(), "last": frame["step"].max()}
    return frame[frame["step"] == ends.get(step, step)]


def row(table: str, study: str = "", **where: object) -> pd.Series:
    """The one row of a committed table with these values; ValueError where there is not exactly one."""
    frame = rows(table, study, **where)
    if len(frame) != 1:
        wanted = ", ".join(f"{column} = {value}" for column, value in where.items())
        place = f"{study or 'figures'}/{table}"
        raise ValueError(f"{len(frame)} rows of the table {place} have {wanted}, and a text needs one.")
    return frame.iloc[0]


def _between(estimate: pd.Series, write: Callable[[float], str]) -> str:
    return f"{write(estimate['value'])} [{write(estimate['low'])}, {write(estimate['high'])}]"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text[1:]


def percent(estimate: pd.Series | float) -> str:
    """`88 % [85, 92]`, or `88 %` of a bare number."""
    if not isinstance(estimate, pd.Series):
        return f"{100 * estimate:.0f} %"
    return f"{percent(estimate['value'])} [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"


def decimal(estimate: pd.Series | float) -> str:
    """`0.10 [0.06, 0.13]`, or `0.10` of a bare number."""
    return _between(estimate, number) if isinstance(estimate, pd.Series) else number(estimate)


def points(estimate: pd.Series) -> str:
    """A difference of two shares in percentage points: `+1.1 points [-0.2, +2.4]`."""
    value, low, high = (_signed(100 * estimate[name], 1) for name in ("value", "low", "high"))
    return f"{value} points [{low}, {high}]"


def thousandths(estimate: pd.Series) -> str:
    """A small difference with its sign: `+0.004 [-0.004, +0.011]`."""
    return _between(estimate, lambda value: _signed(value, 3))


def nats(estimate: pd.Series) -> str:
    """`26.8 nats`."""
    return f"{estimate['value']:.1f} nats".replace("-0.0", "0.0")


def text(name: str) -> str:
    """A template with its numbers filled in; raises where one of them is in no table."""
    made = jinja2.Environment(  # Markdown, not HTML: nothing is escaped
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, decimal=decimal, points=points, thousandths=thousandths, nats=nats)
    return made.get_template(f"{name}.md").render(row=row, rows=rows).strip()
