"""The calibration figure: how far each instrument is off on agents whose answer is known.

>>> frame, provenance = read_table("figures/tables", "calibration")
>>> calibration(frame, provenance).show()
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots.caption import Caption
from interp.plots.registry import figure
from interp.plots.series import ROW, draw_estimates, fit_estimates
from interp.plots.theme import facets, note_n
from interp.results.estimates import estimate, span
from interp.results.names import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION
from interp.results.queries import need, pick

#: A reading counts as right within this distance of what the construction allows.
NEAR = 0.1
#: Instruments in reading order, and agents: their names in figures.
INSTRUMENTS = {
    "prompt_reliance": "prompt reliance",
    "state_share": "via-CoT: share of its hidden state",
    "own_direct": "own traces: direct effect / largest",
    "own_indirect": "own traces: indirect effect / largest",
    "own_reliance": "own traces: prompt reliance",
    "prompt_patch": "patching the whole prompt",
    "boundary_patch": "patching the boundary",
    "keep": "conflicting trace: keep",
    "follow": "conflicting trace: follow",
    "early_area": "early answering: area over the curve",
    "agreement": "agreement of prompt and CoT action",
    "auroc": "boundary probe: AUROC",
    "gain": "boundary probe: gain over controls",
    "steering": "steering the boundary: excess flips",
    "attention_prompt": "attention share of the prompt",
    "gradient_prompt": "gradient share of the prompt",
}
AGENTS = {
    "post_hoc": "post-hoc",
    "mixture_75": "mixture, .75",
    "mixture_50": "mixture, .50",
    "mixture_25": "mixture, .25",
    "reasoner": "reasoner",
    "hidden_carry": "hidden carry",
    "overridable": "overridable",
}


def grown(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the agents that learned their construction, and competence rows of those that did not."""
    failed = frame[(frame["instrument"] == "competence") & (frame["value"] < 1 - NEAR)]
    out = pd.MultiIndex.from_frame(frame[["agent", "seed"]]).isin(
        pd.MultiIndex.from_frame(failed[["agent", "seed"]])
    )
    return frame[~out], failed


def verdicts(frame: pd.DataFrame) -> pd.Series:
    """`right`, `misread` (more than NEAR from what is allowed) or `open` (nothing is decided) by row."""
    off = np.maximum(frame["truth_low"] - frame["value"], frame["value"] - frame["truth_high"])
    return pd.Series(np.select([off.isna(), off > NEAR], ["open", "misread"], "right"), index=frame.index)


#: Exact checks on these agents and every checkpoint of the series, and how the worst of them is written.
EXACT = {
    "self_splice": ("own trace spliced back: share of actions reproduced, at worst", "{:.6g}"),
    "self_patch": ("a run patched with itself: largest change in nats", "{:.1g}"),
    "patch_everything": ("everything patched: largest distance from the other run in nats", "{:.1g}"),
}


def allowed(row: pd.Series) -> str:
    """What the construction allows, in words: one number, or a range."""
    low, high = f"{row['truth_low']:.2f}", f"{row['truth_high']:.2f}"
    return low if low == high else f"{low} to {high}"


def _caption(frame: pd.DataFrame) -> Caption:
    every, failed = grown(frame)
    rows = every[every["agent"].isin(AGENTS) & every["instrument"].isin(INSTRUMENTS)]
    verdict = verdicts(rows)
    decided, wrong = rows[verdict != "open"], rows[verdict == "misread"]
    means = wrong.groupby(["instrument", "agent"])[["value", "truth_low", "truth_high"]].mean()
    table = [
        {
            "misread": f"{INSTRUMENTS[i]}, {AGENTS[a]}",
            "reading": f"{means.loc[(i, a), 'value']:.2f}",
            "allowed": allowed(means.loc[(i, a)]),
        }
        for i in INSTRUMENTS
        for a in AGENTS
        if (i, a) in means.index
    ]
    table += [
        {
            "misread": f"left out, did not learn to be: {AGENTS[row['agent']]}, seed {row['seed']}",
            "reading": estimate(row),
            "allowed": "1.00",
        }
        for _, row in failed.iterrows()
    ]
    for name, (words, digits) in EXACT.items():
        values = pick(every, instrument=name)["value"]
        if len(values):
            worst = values.min() if name == "self_splice" else values.max()
            table.append(
                {
                    "misread": f"exact check, {words}",
                    "reading": digits.format(worst),
                    "allowed": "1" if name == "self_splice" else "0",
                }
            )
    message = (
        f"{len(decided) - len(wrong)} of {len(decided)} readings whose answer the construction "
        f"decides lie within {NEAR:g} of it"
    )
    message += (
        f"; {wrong['instrument'].nunique()} of {decided['instrument'].nunique()} instruments misread some."
        if len(wrong)
        else "."
    )
    message += (
        f" Left out: {len(failed)} agent{'s' * (len(failed) > 1)} that did not learn the construction."
        if len(failed)
        else ""
    )
    drawn = f"Distance of each reading from what the agent's construction allows; shaded: within {NEAR:g}."
    size = f"{_counted(rows)}; 95 % intervals."
    return Caption(
        message,
        drawn,
        size,
        pd.DataFrame(table).rename(columns={"misread": "misread on average, and checks"}),
    )


def _counted(rows: pd.DataFrame) -> str:
    """How much the readings rest on."""
    seeds = rows["seed"].nunique()
    return f"n = {span(rows['n'])} decisions or pairs, {seeds} training seed{'s' * (seeds > 1)}"


@figure("Readings of agents whose answer is known", table="calibration", section="trusted", caption=_caption)
def calibration(frame: pd.DataFrame) -> go.Figure:
    """How far every instrument's reading of every organism lies from what its construction allows.

    0 is within what is allowed; shaded is what counts as right. Readings of which the construction decides
    nothing are left to the table, and organisms that did not learn it are left out.
    """
    frame, _ = grown(frame)
    rows = frame[frame["agent"].isin(AGENTS) & frame["instrument"].isin(INSTRUMENTS)]
    rows = need(rows).dropna(subset=["truth_low", "truth_high"])
    allowed_value = need(rows)["value"].clip(rows["truth_low"], rows["truth_high"])
    errors = rows.assign(**{name: rows[name] - allowed_value for name in ("value", "low", "high")})
    order = {name: title for name, title in INSTRUMENTS.items() if (rows["instrument"] == name).any()}
    looks = {agent: (title, *_LOOKS[agent]) for agent, title in AGENTS.items()}
    fig = facets(1, 2 * ROW * len(order), 20, [""])
    draw_estimates(fig, errors, looks, by="agent", panels=[{}], along="instrument", order=order)
    fit_estimates(fig, errors, (-2 * NEAR, 2 * NEAR))
    fig.add_vrect(x0=-NEAR, x1=NEAR, fillcolor="#EEEEEE", line_width=0, layer="below")
    fig.update_xaxes(title="reading − allowed value")
    return note_n(fig, _counted(rows))


#: How each agent is drawn: colour, dash, marker.
_LOOKS = {
    "post_hoc": (BLUE, "solid", "square"),
    "mixture_75": (SKY, "solid", "diamond"),
    "mixture_50": (GREEN, "solid", "diamond"),
    "mixture_25": (ORANGE, "solid", "diamond"),
    "reasoner": (VERMILION, "solid", "circle"),
    "hidden_carry": (PURPLE, "solid", "triangle-up"),
    "overridable": (BLACK, "solid", "x"),
}
