"""Figures of the masking study: arms of training side by side, and where what they gain or lose lands.

>>> frame, provenance = read_table("figures/tables", "masking")
>>> success(frame, provenance).show()

Green is a mask of action tokens, orange and hollow the mask of as many other tokens, in every figure here (`interp.arm_rows.LOOKS`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.arm_rows import LOOKS, PREDICTED, Arm, arms_of, at_last, claimed, named, number, one, paper_table
from interp.style import BLACK, GREEN, GREY, ORANGE, SPLITS, STEP_TITLE, STYLE, TOP, draw_trace, meta, need, pick, splits_of, step_axis, steps_of, whisker, zero_line
from interp.tables import ESTIMATE_COLUMNS

ARM_TITLE = "arm of training (k: share of examples whose action is unsupervised)"
#: Metrics of the forest plot in reading order: their names in figures; every one is a share, so that differences share an axis.
MECHANISM = {
    "acc_cot": "CoT action right",
    "acc_prompt": "prompt action right",
    "gap": "gap (CoT − prompt)",
    "success_cot": "games won with CoT",
    "success_prompt": "games won without",
    "prompt_reliance": "prompt reliance",
    "follow": "follows another state's trace",
    "keep": "keeps its own action",
    "patch_prompt": "patching the whole prompt",
    "patch_boundary": "patching the boundary",
    "probe_gain": "boundary probe's gain",
    "parse_cot": "CoT action parses",
    "parse_prompt": "prompt action parses",
}
_BOTTOM = 84  # px: two lines of labels, and a title
_HOVER = "%{customdata[0]}<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]<br>n = %{customdata[4]} of %{customdata[5]} games, %{customdata[6]} seeds"


def success(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """The primary outcome by arm, and games won where they were played: means, intervals, and each training as a dot.

    Args:
        frame: table `masking` (step, split, metric, contrast, arm, seed, seeds, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    need(frame, "masking_success", metric="acc_cot", contrast="level")
    rows = {"acc_cot": ("accuracy of CoT action", 230)} | ({"success_cot": ("share of games won", 170)} if (frame["metric"] == "success_cot").any() else {})
    arms = arms_of(frame)
    fig = _arm_axis(_panels("masking_success", splits_of(frame), list(rows.values()), provenance), arms)
    for row, metric in enumerate(rows, start=1):
        _by_arm(fig, frame, arms, metric, "level", row)
    return fig


def gap(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """The gap between the modes by arm, above its differences to k = 0.

    Args:
        frame: table `masking`.
        provenance: kept in the figure's `layout.meta`.
    """
    need(frame, "masking_gap", metric="gap", contrast="level")
    rows = [("gap (CoT − prompt)", 210)] + [("gap less that of k = 0", 170)] * bool(len(pick(frame, metric="gap", contrast="difference")))
    arms = arms_of(frame)
    fig = _arm_axis(_panels("masking_gap", splits_of(frame), rows, provenance), arms)
    for row, contrast in enumerate(("level", "difference")[:len(rows)], start=1):
        _by_arm(fig, frame, arms, "gap", contrast, row)
        zero_line(fig, row)
    return fig


def dose(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Accuracy of both modes against the share k whose actions are masked; random masks are hollow, at their share.

    Args:
        frame: table `masking`.
        provenance: kept in the figure's `layout.meta`.
    """
    metrics = [metric for metric in ("acc_cot", "acc_prompt") if len(pick(frame, metric=metric, contrast="level"))]
    need(frame, "masking_dose", metric="acc_cot", contrast="level")
    arms = [arm for arm in arms_of(frame) if arm.kind != "only"]
    shares = sorted({arm.share for arm in arms if arm.kind != "random_mask"})
    if len(shares) < 2:
        raise ValueError("Figure masking_dose: a dose needs arms action_mask_K of at least two shares K.")
    fig = _panels("masking_dose", splits_of(frame), [("accuracy", 260)], provenance, bottom=62)
    for col, split in enumerate(splits_of(frame), start=1):
        for order, metric in enumerate(metrics):
            name, colour, dash, symbol = STYLE[metric]
            rows = at_last(frame, metric=metric, split=split, contrast="level")
            for random in (False, True):
                some = [arm for arm in arms if (arm.kind == "random_mask") == random and (rows["arm"] == arm.name).any()]
                found = rows.set_index("arm").loc[[arm.name for arm in some]].reset_index()
                if some:
                    fig.add_scatter(
                        x=[arm.share + 0.012 * (order - 0.5) + 0.03 * random for arm in some], y=found["value"], mode="markers" if random else "lines+markers",
                        line=dict(color=colour, dash=dash, width=2.2), cliponaxis=False, error_y=whisker(found, colour),
                        marker=dict(symbol=f"{symbol}-open" if random else symbol, size=9, color=colour, line=dict(color=colour, width=1.8)),
                        name=f"{name}, random mask" if random else name, legendgroup=f"{metric} {random}", showlegend=col == 1,
                        customdata=_numbers(found, [arm.title for arm in some]), hovertemplate=_HOVER, row=1, col=col,
                    )  # fmt: skip
        fig.update_xaxes(title="k: share of examples whose action is unsupervised", tickvals=shares, ticktext=[number(k) for k in shares], row=1, col=col)
    return fig


def reliance(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Prompt reliance over checkpoints, a column for each arm beside k = 0, which is drawn again in every panel.

    Args:
        frame: table `masking`.
        provenance: kept in the figure's `layout.meta`.
    """
    frame = need(frame, "masking_reliance", metric="prompt_reliance", contrast="level")
    steps, splits, arms = steps_of(frame), splits_of(frame), arms_of(frame)
    zero = next((arm for arm in arms if arm.kind == "zero"), None)
    others = [arm for arm in arms if arm != zero] or arms
    height, gap = 170 * len(splits) + 22 * (len(splits) - 1), 22
    fig = make_subplots(rows=len(splits), cols=len(others), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.014, vertical_spacing=gap / height,
                        column_titles=[arm.title for arm in others])
    fig.update_layout(template="interp", height=height + TOP + 62, meta=meta("masking_reliance", provenance), legend=dict(y=1 + 28 / height))
    low, high = min(0.0, frame["low"].min(), frame["value"].min()), max(1.0, frame["high"].max(), frame["value"].max())
    margin, seen = 0.03 * (high - low), set()
    for row, split in enumerate(splits, start=1):
        for col, arm in enumerate(others, start=1):
            for order, each in enumerate([zero, arm] if zero and arm != zero else [arm]):
                rows = pick(frame, split=split, arm=each.name).sort_values("step")
                shift = 0.1 * (order - 0.5) if len(steps) == 1 else 0.0
                draw_trace(fig, rows, [steps.index(s) + shift for s in rows["step"]], LOOKS[each.kind], row, col, "legend", each.kind not in seen, each == zero)
                seen |= {each.kind} if len(rows) else set()
            step_axis(fig, steps, row, col, title=False, room=3)
        fig.update_yaxes(title=f"prompt reliance,<br>{SPLITS[split].lower()}", row=row, col=1)
    fig.update_yaxes(range=[low - margin, high + margin])
    return _under(fig, STEP_TITLE, 30)


def mechanism(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Where a gain landed: the claimed arm's differences to k = 0 and to its random mask in every reading, a column for each split.

    Args:
        frame: table `masking`.
        provenance: kept in the figure's `layout.meta`.
    """
    arm = claimed(frame)
    rows = pick(frame, arm=arm.name if arm else "action_mask_0.3")
    rows = need(rows[rows["contrast"].isin(["difference", "control"]) & rows["metric"].isin(MECHANISM)], "masking_mechanism")
    shown, splits = [metric for metric in MECHANISM if (rows["metric"] == metric).any()], splits_of(rows)
    places = {metric: i for i, metric in enumerate(shown)}
    height = 32 * len(shown)
    fig = make_subplots(rows=1, cols=len(splits), shared_yaxes=True, horizontal_spacing=0.03, column_titles=[SPLITS[split] for split in splits])
    fig.update_layout(template="interp", height=height + TOP + 62, margin_l=222, meta=meta("masking_mechanism", provenance), legend=dict(y=1 + 28 / height))
    last = pd.concat([at_last(rows, metric=metric) for metric in shown])
    reach = min(1.0, max(0.05, float(np.nanmax(last[["value", "low", "high"]].abs()))) * 1.06)
    looks = {"difference": (f"{arm.title} less k = 0", GREEN, "circle"), "control": (f"{arm.title} less its random mask", ORANGE, "circle-open")}
    for col, split in enumerate(splits, start=1):
        sides = [(places[metric], PREDICTED[metric, split]) for metric in shown if (metric, split) in PREDICTED]
        fig.add_bar(orientation="h", y=[y for y, _ in sides], x=[side * reach for _, side in sides], width=0.84, marker=dict(color="#E3F1EC", line_width=0),
                    name="side that was predicted", legendgroup="predicted", showlegend=col == 1 and bool(sides), hoverinfo="skip", row=1, col=col)
        for order, (contrast, (name, colour, symbol)) in enumerate(looks.items()):
            found = pick(last, split=split, contrast=contrast)
            fig.add_scatter(
                x=found["value"], y=[places[metric] + 0.28 * (order - 0.5) for metric in found["metric"]], mode="markers", name=name, legendgroup=contrast,
                showlegend=col == 1 and bool(len(pick(last, contrast=contrast))), marker=dict(symbol=symbol, size=9, color=colour, line=dict(color=colour, width=1.8)),
                error_x=whisker(found, colour), customdata=_numbers(found, [MECHANISM[metric] for metric in found["metric"]]), hovertemplate=_HOVER, row=1, col=col,
            )  # fmt: skip
        fig.update_xaxes(range=[-reach, reach], zeroline=True, zerolinecolor="#555555", zerolinewidth=1.2, row=1, col=col)
    fig.update_yaxes(range=[len(shown) - 0.45, -0.55], tickvals=list(places.values()), ticktext=[MECHANISM[metric] for metric in shown], ticks="")
    return _under(fig, "difference, all readings being shares (1 = everything)", 30)


def power(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Shares of simulated studies in which a planted effect is found, above those in which something is found that is not there.

    Args:
        frame: table `masking_power` (world, effect, seeds, games, training_sd, contrast, what, value, low, high, n, n_groups).
        provenance: kept in the figure's `layout.meta`.
    """
    frame = frame.assign(world=frame["world"].fillna("null"))  # which is how the word is read from a CSV
    need(frame, "masking_power", world="action", contrast="difference", what="above")
    sizes = sorted(set(zip(frame["training_sd"], frame["games"])))
    effects = sorted(frame.loc[frame["world"] == "action", "effect"].unique(), reverse=True)
    dashes = dict(zip(effects, ("solid", "dash", "dot", "dashdot")))
    found = [(f"{name}, effect {number(effect)}", colour, dashes[effect], symbol, dict(world="action", effect=effect, contrast=contrast, what=what))
             for contrast, what, name, colour, symbol in (("difference", "above", "k = .3 > k = 0", GREEN, "circle"),
                                                          ("verdict", "supported", "supported", BLACK, "square")) for effect in effects]
    false = [("null: k = .3 > k = 0", GREEN, "solid", "circle", dict(world="null", contrast="difference", what="above")),
             ("any mask: k = .3 > random", ORANGE, "solid", "circle-open", dict(world="any_mask", effect=effects[0], contrast="control", what="above")),
             ("any mask: supported", BLACK, "solid", "square", dict(world="any_mask", effect=effects[0], contrast="verdict", what="supported")),
             ("null: over games alone", GREY, "dot", "x", dict(world="null", contrast="games_only", what="above"))]
    fig = _panels("masking_power", sizes, [("power", 210), ("false positives", 170)], provenance, gap=46, bottom=62,
                  titles=[f"{games} games, seed SD {number(sd)}" for sd, games in sizes])
    height = 210 + 170 + 46
    fig.update_layout(legend2=dict(y=(170 + 8) / height, x=0, orientation="h", font_size=14, yanchor="bottom"))
    for row, lines in enumerate((found, false), start=1):
        for order, (name, colour, dash, symbol, where) in enumerate(lines):
            for col, (sd, games) in enumerate(sizes, start=1):
                rows = pick(frame, training_sd=sd, games=games, **where).sort_values("seeds")
                fig.add_scatter(
                    x=rows["seeds"] + 0.1 * (order - 1.5), y=rows["value"], mode="lines+markers", error_y=whisker(rows, colour), name=name, legendgroup=name,
                    legend="legend" if row == 1 else "legend2", showlegend=col == 1, line=dict(color=colour, dash=dash, width=2),
                    marker=dict(symbol=symbol, size=8, color=colour, line=dict(color=colour, width=1.5)),
                    customdata=rows[["seeds", *ESTIMATE_COLUMNS]].to_numpy(dtype=float), hovertemplate=_POWER_HOVER, row=row, col=col,
                )  # fmt: skip
    seeds = sorted(frame["seeds"].unique())
    fig.update_xaxes(tickvals=seeds, range=[seeds[0] - 0.4, seeds[-1] + 0.4])
    fig.update_yaxes(range=[-0.03, 1.04], row=1)
    fig.update_yaxes(range=[-0.006, 1.1 * max(t.y[i] + t.error_y.array[i] for t in fig.data if t.legend == "legend2" for i in range(len(t.y)))], row=2)
    fig.add_hline(y=0.025, row=2, col="all", line=dict(color="#888888", width=1, dash="dot"), layer="below")
    return _under(fig, "seeds of each arm", 30)


def selection(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """Each share's difference to k = 0 with simultaneous intervals, the chosen one filled.

    Args:
        frame: table `masking_selection` (step, split, metric, arm, share, value, low, high, n, n_groups, seeds, chosen).
        provenance: kept in the figure's `layout.meta`.
    """
    frame = need(frame, "masking_selection").sort_values("share")
    split, metric = frame[["split", "metric"]].iloc[0]
    fig = _panels("masking_selection", [split], [(f"{STYLE[metric][0]} right, less k = 0", 230)], provenance, bottom=62)
    for chosen, name, symbol in ((True, "chosen", "circle"), (False, "not chosen", "circle-open")):
        rows = pick(frame, chosen=chosen)
        fig.add_scatter(x=rows["share"], y=rows["value"], mode="markers", name=name, error_y=whisker(rows, GREEN),
                        marker=dict(symbol=symbol, size=11, color=GREEN, line=dict(color=GREEN, width=1.8)),
                        customdata=_numbers(rows, [named(arm).title for arm in rows["arm"]]), hovertemplate=_HOVER, row=1, col=1)  # fmt: skip
    zero_line(fig, row=1)
    fig.update_xaxes(title="k: share of examples whose action is unsupervised", tickvals=frame["share"], ticktext=frame["share"].map(number))
    return fig


def table(frame: pd.DataFrame, provenance: dict | None = None) -> go.Figure:
    """What each arm reads, and the claimed arm's differences, as `interp.tex.masking_table` has it.

    Args:
        frame: table `masking`.
        provenance: kept in the figure's `layout.meta`.
    """
    shown = paper_table(frame)
    heads = ["arm", *("<br>".join(part for part in column if part) for column in shown.columns)]
    levels = ["#F3F3F3" if " less " in title else "white" for title in shown.index]
    fig = go.Figure(go.Table(
        columnwidth=[1.4, 0.5, *[1.12] * (len(heads) - 2)], header=dict(values=heads, align=["left", "right", "center"], fill_color="#EEEEEE", font_size=12),
        cells=dict(values=[shown.index, *(shown[column] for column in shown)], align=["left", "right", "center"], fill_color=[levels],
                   line_color="#CCCCCC", font_size=12, height=24)))
    return fig.update_layout(template="interp", height=72 + 24 * len(shown), margin=dict(l=8, r=8, t=8, b=8), meta=meta("masking_table", provenance))


def _panels(name, columns, rows, provenance, gap=30, top=TOP, bottom=_BOTTOM, titles=None):
    """Empty figure with a column for each split and a row for each (axis title, height in px)."""
    if not columns:
        raise ValueError(f"Figure {name}: the table has no rows with split in {list(SPLITS)}.")
    heights = [height for _, height in rows]
    total = sum(heights) + gap * (len(rows) - 1)
    fig = make_subplots(rows=len(rows), cols=len(columns), shared_xaxes=True, shared_yaxes=True, row_heights=heights, vertical_spacing=gap / total,
                        horizontal_spacing=0.03, column_titles=titles or [SPLITS[split] for split in columns])
    fig.update_layout(template="interp", height=total + top + bottom, margin=dict(t=top, b=bottom), legend=dict(y=1 + 28 / total), meta=meta(name, provenance))
    for row, (title, _) in enumerate(rows, start=1):
        fig.update_yaxes(title=title, row=row, col=1)
    return fig


def _by_arm(fig, frame, arms: list[Arm], metric, contrast, row):
    """Draw one contrast of every arm into every split's panel of one row: its interval, each training as a dot, k = 0 as a line."""
    places, seen, drawn = {arm.name: i for i, arm in enumerate(arms)}, set(), []
    for col, split in enumerate(splits_of(frame), start=1):
        rows = at_last(frame, metric=metric, split=split, contrast=contrast)
        dots = at_last(frame, metric=metric, split=split, contrast="training") if contrast == "level" else rows[:0]
        if len(dots):
            order = dots.groupby("arm")["seed"].rank().to_numpy() - 1
            fig.add_scatter(
                x=dots["arm"].map(places) + 0.2 + 0.06 * order, y=dots["value"], mode="markers", marker=dict(size=5, color="#555555", opacity=0.75),
                name="one training", legendgroup="training", showlegend=row == col == 1, legendrank=2000,
                customdata=_numbers(dots, [f"{named(arm).title}, seed {seed}" for arm, seed in zip(dots["arm"], dots["seed"])]), hovertemplate=_HOVER,
                row=row, col=col,
            )  # fmt: skip
        for kind, (name, colour, _, symbol) in LOOKS.items():
            found = rows[[named(arm).kind == kind for arm in rows["arm"]]]
            if len(found):
                fig.add_scatter(
                    x=found["arm"].map(places), y=found["value"], mode="markers", name=name, legendgroup=kind, showlegend=row == 1 and kind not in seen,
                    marker=dict(symbol=symbol, size=10, color=colour, line=dict(color=colour, width=1.8)), error_y=whisker(found, colour),
                    customdata=_numbers(found, [named(arm).title for arm in found["arm"]]), hovertemplate=_HOVER, row=row, col=col,
                )  # fmt: skip
                seen.add(kind)
        if (zero := one(rows, arm="action_mask_0")) is not None:
            fig.add_hline(y=zero["value"], row=row, col=col, line=dict(color=BLACK, width=1, dash="dot"), layer="below")
        drawn += [*rows[["value", "low", "high"]].to_numpy().ravel(), *dots["value"]]
    drawn += [0.0] * (contrast == "difference")
    low, high = np.nanmin(drawn), np.nanmax(drawn)
    margin = 0.06 * max(high - low, 0.02)
    fig.update_yaxes(range=[low - margin, high + margin], row=row)


def _arm_axis(fig, arms: list[Arm]):
    """Name the arms below the last row, and shade the controls: before anything is drawn, which then lies above."""
    fig.update_xaxes(range=[-0.6, len(arms) - 0.4], tickvals=list(range(len(arms))), ticktext=[arm.tick for arm in arms], tickangle=0, showgrid=False)
    masks = sum(arm.kind in ("zero", "action_mask") for arm in arms)
    if masks < len(arms):
        fig.add_vrect(x0=masks - 0.5, x1=len(arms) - 0.4, fillcolor="#F1F1F1", line_width=0, layer="below", row="all", col="all", exclude_empty_subplots=False)
    return _under(fig, ARM_TITLE, 48)


def _under(fig, title, below):
    """A title for all columns' axes, so many pixels below them."""
    return fig.add_annotation(text=title, xref="paper", yref="paper", x=0.5, y=0, yanchor="top", yshift=-below, showarrow=False, font_size=15)


def _numbers(rows: pd.DataFrame, titles) -> np.ndarray:
    """What a point tells on hover, in the order of `_HOVER`."""
    return np.column_stack([np.array(list(titles), dtype=object), rows[[*ESTIMATE_COLUMNS, "seeds"]].to_numpy(dtype=object)])


_POWER_HOVER = (
    "%{customdata[0]} seeds<br>%{customdata[1]:.3f} [%{customdata[2]:.3f}, %{customdata[3]:.3f}]<br>of %{customdata[4]} simulated studies"
)
