"""The generated parts of the README and of the documentation, from the committed tables.

A page marks a part with `<!-- NAME -->` and `<!-- end NAME -->`. NAME is a table of BLOCKS, or a text of `analyses/pages/NAME.md`: a
template of plain sentences whose numbers are looked up in the tables:

    {{ row("behaviour", metric="acc_cot", split="in_domain", step="last") | percent }}
"""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from pathlib import Path

import jinja2
import pandas as pd

from interp.results.arm_rows import paper_table
from interp.plots.captions_calibration import allowed
from interp.plots.calibration import AGENTS, INSTRUMENTS, grown, verdicts
from interp.results.queries import pick, with_places
from interp.results.tables import read_table
from interp.system.paths import ROOT

README, FIGURES = ROOT / "README.md", ROOT / "figures"
TABLES = FIGURES / "tables"
TEXTS = Path(__file__).parent / "pages"
STAGES = ("behaviour", "online", "probes", "transfer", "mdl", "patching", "reliance", "conflict", "early", "shares", "steering")
#: Works of the benchmark in reading order, and what the README calls them.
WORKS = {
    "layer sweep": "layer sweep of `resid_pre` at the boundary", "layer x position grid": "full layer x position grid",
    "boundary capture": "boundary capture, all layers", "episode": "a 10-step episode, captured at every step",
}


def times(tables: Path = TABLES) -> str:
    """Time of each stage: what its table took, with the stages of its own that an interrupted run had left on disk."""
    seconds = {}
    for name in STAGES:
        _, made = read_table(tables, name)
        seconds[name] = made["seconds"] + sum(s for kind, s in made["seconds_reused"].items() if kind != "decoded" or name == "behaviour")
    return ", ".join(f"{name} {s / 60:.0f} min" if s >= 90 else f"{name} {s:.0f} s" for name, s in seconds.items()) + "."


def architectures() -> str:
    """The table of `interp.models.architectures`, in Markdown."""
    from interp.models.architectures import table

    return _markdown(table())


def bench(tables: Path = TABLES) -> str:
    """Ratios and greatest differences of the benchmark, in Markdown, then the works that no other tool does."""
    frame = read_table(tables, "bench")[0]
    rivals = [tool for tool in dict.fromkeys(frame.tool[frame.work.isin(list(WORKS))]) if tool not in ("interp", "forward alone")]
    rows = []
    for work, name in WORKS.items():
        for tokens, group in frame[frame.work == work].groupby("tokens", sort=True):
            of = group.set_index("tool")
            times = {tool: f"{of.ratio[tool]:.{0 if of.ratio[tool] >= 10 else 1}f} x" if tool in of.index else "" for tool in rivals}
            rows.append({"work": name, "tokens": int(tokens), **times, "ours": f"{_short(of.seconds['interp'], 2)} s",
                         "in plain forwards": _short(of.plain_forwards["interp"], 3), "largest difference": f"{of.max_difference['interp']:.0e}"})
    alone = frame.set_index(["work", "tool"])
    pair = alone.loc["three sites, both directions, one pair", "interp"]
    captured = frame[(frame.work == "boundary capture") & (frame.tool == "forward alone")]
    memory = frame[frame.work == "memory of a boundary capture"].set_index("tool").peak_mb
    others = [
        "a capture takes " + ", ".join(f"{1 / row.ratio:.2f} x at {row.tokens:,} tokens" for row in captured.itertuples())
        + f" of the same batch's bare forward, and {memory['interp'] / memory['forward alone']:.2f} x of its memory",
        f"three sites x 30 layers at the boundary, both directions of one pair of {int(pair.tokens):,}-token prompts: {pair.plain_forwards:.1f} plain prompt forwards",
        f"probe sweep, 30 layers x 5 folds x 7 C: a loop over scikit-learn takes {alone.ratio['probe sweep', 'scikit-learn']:.1f} x our time",
        f"a checkpoint swapped in place: {1 / alone.ratio['swap a checkpoint', 'file read into memory']:.1f} x reading its file into memory, "
        f"{1 / alone.ratio['swap a checkpoint', 'file mapped and summed']:.1f} x mapping the file and touching every number",
    ]
    return _markdown(pd.DataFrame(rows)) + "\n\n" + "\n".join(f"- {line}" for line in others)


def _short(number: float, digits: int) -> str:
    return f"{float(f'{number:.{digits}g}'):,g}"


def calibration(tables: Path = TABLES) -> str:
    """Mean reading of each instrument on each organism over its seeds, beside what the construction allows, in Markdown."""
    frame, _ = grown(read_table(tables, "calibration")[0])
    rows = []
    for instrument, name in INSTRUMENTS.items():
        row = {"instrument": name}
        for agent, title in AGENTS.items():
            of = frame[(frame.instrument == instrument) & (frame.agent == agent)]
            misread = "**" if (verdicts(of) == "misread").any() else ""
            row[title] = f"{misread}{_number(of.value.mean())}{misread} ({allowed(of.iloc[0]) if of.truth_low.notna().all() else 'open'})" if len(of) else ""
        rows.append(row)
    return _markdown(pd.DataFrame(rows))


def splits(tables: Path = TABLES.parent / "environments" / "tables") -> str:
    """What each environment's splits hold, in Markdown."""
    frame = read_table(tables, "splits")[0]
    named = frame.rename(columns=dict(trained_on="trained on", holds="its decisions", task_types="task types"))
    return _markdown(named.map(lambda v: f"{v:,}" if isinstance(v, int) else v))


def masking(tables: Path = TABLES) -> str:
    """What each arm of the masking study reads, in Markdown."""
    table = paper_table(read_table(tables, "masking")[0].fillna({"arm": ""}))
    table.columns = [", ".join(part for part in column if part) for column in table.columns]
    return _markdown(table.rename_axis("arm").reset_index())


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


def commands() -> str:
    """What the command line lists, in Markdown, with what it cites of the methods as links."""
    from analyses.__main__ import run as command_line

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command_line(["--help"])
    listed = re.findall(r"^  (\w+) +(.+)$", printed.getvalue(), re.MULTILINE)
    cited = [(f"`{name}`", re.sub(r"docs/(methods)\.md ([\d.]*\d)", r"[\1 \2](\1.md#\2)", what)) for name, what in listed]
    return _markdown(pd.DataFrame(cited, columns=["command", "what it does"]))


BLOCKS = {"times": times, "bench": bench, "architectures": architectures, "calibration": calibration, "splits": splits,
          "masking": masking, "commands": commands}


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


@cache
def _table(name: str, study: str) -> pd.DataFrame:
    frame = read_table(FIGURES / study / "tables", name)[0]
    return with_places(frame) if name == "patching" else frame


def rows(table: str, study: str = "", **where) -> pd.DataFrame:
    """Rows of a committed table whose columns equal the values given.

    Args:
        table: name of the table.
        study: folder below `figures/` that it lies in; the main study's by default.
        where: value of each column; `step` may be "first" or "last", of the rows that the other columns leave.
    """
    frame, step = _table(table, study), where.pop("step", None)
    frame = pick(frame, **where)
    if step is None:
        return frame
    return frame[frame["step"] == {"first": frame["step"].min(), "last": frame["step"].max()}.get(step, step)]


def row(table: str, study: str = "", **where) -> pd.Series:
    """The one row of a committed table with these values; raises ValueError where there is none, or more than one."""
    frame = rows(table, study, **where)
    if len(frame) != 1:
        wanted = ", ".join(f"{column} = {value}" for column, value in where.items())
        raise ValueError(f"{len(frame)} rows of the table {study or 'figures'}/{table} have {wanted}, and a text needs one.")
    return frame.iloc[0]


def _signed(number: float, digits: int) -> str:
    text = f"{number:+.{digits}f}"
    return text.replace("-", "\u2212") if float(text) else text[1:]


def _between(estimate: pd.Series, write) -> str:
    return f"{write(estimate['value'])} [{write(estimate['low'])}, {write(estimate['high'])}]"


def percent(estimate: pd.Series | float) -> str:
    """`88 % [85, 92]`, or `88 %` of a bare number."""
    if not isinstance(estimate, pd.Series):
        return f"{100 * estimate:.0f} %"
    return f"{100 * estimate['value']:.0f} % [{100 * estimate['low']:.0f}, {100 * estimate['high']:.0f}]"


def points(estimate: pd.Series) -> str:
    """A difference of two shares in percentage points: `+1.1 points [-0.2, 2.4]`."""
    value, low, high = (_signed(100 * estimate[name], 1) for name in ("value", "low", "high"))
    return f"{value} points [{low}, {high}]"


def decimal(estimate: pd.Series | float) -> str:
    """`0.10 [0.06, 0.13]`, or `0.10` of a bare number."""
    return _between(estimate, _number) if isinstance(estimate, pd.Series) else _number(estimate)


def thousandths(estimate: pd.Series) -> str:
    """A small difference with three decimals and its sign."""
    return _between(estimate, lambda number: _signed(number, 3))


def nats(estimate: pd.Series) -> str:
    """`26.8 nats`."""
    return f"{estimate['value']:.1f} nats".replace("-0.0", "0.0")


def text(name: str) -> str:
    """A text of `analyses/pages` with its numbers filled in; raises where a number is not in the tables."""
    made = jinja2.Environment(undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(TEXTS), trim_blocks=True, lstrip_blocks=True)
    made.filters.update(percent=percent, points=points, decimal=decimal, thousandths=thousandths, nats=nats)
    return made.get_template(f"{name}.md").render(row=row, rows=rows, table=lambda block: BLOCKS[block]())


def pages() -> list[Path]:
    """The README and every page of the documentation."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


def filled(page: str) -> str:
    """A page with what stands between each pair of marks made anew.

    Raises ValueError for a mark that is not closed, or that names neither a block nor a text.
    """
    for name in re.findall(r"<!-- end ([\w-]+) -->", page):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(page):
            raise ValueError(f"A page ends the part {name!r} with <!-- end {name} --> and does not begin it with <!-- {name} -->.")
        if name not in BLOCKS and not (TEXTS / f"{name}.md").exists():
            raise ValueError(f"A page has a part {name!r}, which is none of {', '.join(BLOCKS)} and no file {TEXTS.name}/{name}.md.")
        made = BLOCKS[name]() if name in BLOCKS else text(name).strip()
        page = pattern.sub(lambda match, made=made: f"{match.group(1)}{made}\n{match.group(2)}", page)
    return page


def run() -> None:
    """Write the generated parts of every page."""
    for page in pages():
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
