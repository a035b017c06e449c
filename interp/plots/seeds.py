"""The figure of several trainings of one recipe: each as a thin line under the mean with its band.

>>> frame, provenance = read_table("runs/seeds/tables", "seeds")
>>> seeds(frame, provenance).show()
"""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption, clause, only, value
from interp.plots.registry import figure
from interp.plots.theme import draw_trace, fit_values, note_n, panels, plain, zero_line
from interp.results.claims import READOUTS, STATISTICS
from interp.results.estimates import span
from interp.results.names import STYLE
from interp.results.queries import pick, splits_of, steps_of
from interp.results.trainings import MEAN
from interp.results.wording import WHERE, sentence
from interp.stats.trainings import BOTH

#: Statistics of both modes, as they are drawn, and in which row of panels.
_DRAWN = {"gain_cot": ("acc_cot", 1), "gain_prompt": ("acc_prompt", 1), "gap": ("gap", 2)}
#: What is told of the change since the base.
_CHANGES = {"gain_prompt": "the prompt action improves", "gap": "the gap does not widen"}
#: Statistics that the table below the figure has.
_TOLD = ("gain_prompt", "gain_cot", "gap", "revision_own", "revision_conflict", "follow", "prompt_reliance")


def _readout(frame: pd.DataFrame) -> str:
    """The first readout of both actions that the table has."""
    there = set(pick(frame, statistic="gap")["readout"])
    readout = next((name for name in READOUTS if name in there), "")
    if not readout:
        raise ValueError("the table has no gap of both actions.")
    return readout


def _levels(frame: pd.DataFrame) -> pd.DataFrame:
    rows = pick(frame, quantity="level", readout=_readout(frame))
    return only(rows, statistic=_DRAWN).dropna(subset="value")


def _last_changes(frame: pd.DataFrame) -> pd.DataFrame:
    rows = pick(frame, quantity="change", seed=MEAN)
    return rows[rows["step"] == rows["step"].max()]


def _message(frame: pd.DataFrame, readout: str) -> str:
    """What the verdicts on claims (a) and (b) are at the last checkpoint."""
    said = []
    for statistic, words in _CHANGES.items():
        rows = pick(_last_changes(frame), statistic=statistic, readout=readout)
        verdicts = dict(zip(rows["split"], rows["verdict"], strict=True))
        said += [f"{words}: {clause(verdicts)}"] if verdicts else []
    return sentence(f"By {READOUTS[readout]}, {'; '.join(said)}") if said else ""


def size(rows: pd.DataFrame) -> str:
    """What means over trainings rest on, and what their intervals are over."""
    mean = pick(rows, seed=MEAN)
    both = mean["interval"] == BOTH
    over = "episodes x seeds" if both.all() else "episodes alone: too few seeds"
    if both.any() and not both.all():
        over = "episodes x seeds, where seeds are too few over episodes alone"
    seeds = f"{span(mean['seeds'])} seed{'s' if mean['seeds'].max() > 1 else ''}"
    decisions = f"{span(mean['n'] // mean['seeds'])} decisions each"
    return f"n = {seeds}, {decisions}, {span(mean['n_groups'])} episodes; 95 % intervals over {over}."


def _caption(frame: pd.DataFrame) -> Caption:
    readout = _readout(frame)
    drawn = "Thin: each training; thick: their mean and its interval."
    return Caption(_message(frame, readout), drawn, size(_levels(frame)), _numbers(frame))


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Every statistic's change at the last checkpoint: the mean over trainings, and each training's."""
    last = frame[(frame["quantity"] == "change") & (frame["step"] == frame["step"].max())]
    rows = only(last, statistic=_TOLD).dropna(subset="value")
    cells = []
    for (statistic, readout, split), group in rows.groupby(["statistic", "readout", "split"], sort=False):
        mean, each = pick(group, seed=MEAN), group[group["seed"] != MEAN]
        if mean.empty:
            continue
        row = mean.iloc[0]
        cells.append(
            {
                "reading": STATISTICS[statistic],
                "readout": READOUTS.get(readout, readout.replace("_", " ")),
                "split": WHERE[split],
                "change": value(row, signed=True),
                "each seed": ", ".join(f"{number:+.2f}".replace("-", "−") for number in each["value"]),
                "verdict": "–" if pd.isna(row["verdict"]) or not row["verdict"] else row["verdict"],
                "seeds": str(int(row["seeds"])),
                "n": f"{int(row['n']):,}",
                "episodes": f"{int(row['n_groups']):,}",
            }
        )
    return pd.DataFrame(cells)


@figure("The trainings together", table="seeds", section="compared", caption=_caption)
def seeds(frame: pd.DataFrame) -> go.Figure:
    """Both actions' accuracy over checkpoints above the gap: each training under the mean of all."""
    rows = _levels(frame)
    if rows.empty:
        raise ValueError("the table has no level of both actions.")
    fig, steps = panels(rows, {"accuracy": 230, "gap": 190}), steps_of(rows)
    for col, split in enumerate(splits_of(rows), start=1):
        for statistic, (concept, row) in _DRAWN.items():
            here = pick(rows, split=split, statistic=statistic).sort_values("step", kind="stable")
            for name, each in here[here["seed"] != MEAN].groupby("seed", sort=False):
                _thin(fig, each, steps, concept, str(name), row, col)
            mean = pick(here, seed=MEAN)
            legend = "legend" if row == 1 else f"legend{row}"
            x = [steps.index(step) for step in mean["step"]]
            draw_trace(fig, mean, x, STYLE[concept], row, col, legend, col == 1)
    drawn = rows.assign(metric=rows["statistic"])
    fit_values(fig, drawn, ["gain_cot", "gain_prompt"], row=1)
    fit_values(fig, drawn, ["gap"], row=2)
    zero_line(fig, row=2)
    mean = pick(rows, seed=MEAN)
    decisions = f"{span(mean['n'] // mean['seeds'])} decisions of {span(mean['n_groups'])} episodes"
    size = f"{span(mean['seeds'])} trainings, {decisions} each"
    return note_n(fig, f"n = {size}, by {READOUTS[_readout(frame)]}")


def _thin(
    fig: go.Figure, rows: pd.DataFrame, steps: list[int], concept: str, seed: str, row: int, col: int
) -> None:
    """Draw one training's line."""
    name, colour, dash, _ = STYLE[concept]
    legend = "legend" if row == 1 else f"legend{row}"
    fig.add_scatter(
        x=[steps.index(step) for step in rows["step"]],
        y=rows["value"],
        mode="lines",
        name=f"{name}, seed {plain(seed)}",
        legendgroup=f"{legend} {name}",
        showlegend=False,
        opacity=0.55,
        line=dict(color=colour, dash=dash, width=0.9),
        customdata=rows[["step", "value"]].to_numpy(dtype=float),
        hovertemplate="step %{customdata[0]}<br>%{customdata[1]:.3f}",
        row=row,
        col=col,
    )
