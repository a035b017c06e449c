"""Pictures of results: `result.plot(**options)` draws its frame with the function of its name here.

>>> sweep(result.to_frame(), direction="noise").show()      # as result.plot(direction="noise")
>>> plot(outcomes).show()                                   # several results of one type together

A band or a whisker is a 95 % interval that resamples pairs or decisions; `groups=` resamples episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plots import probes as probe_figures
from interp.plots.look import BOTTOM
from interp.plots.pictures import (
    COLOURS,
    DRAWS,
    MARKERS,
    band_line,
    diverging_scale,
    heatmap,
    kept_of,
    means,
    n_of,
    titled,
)
from interp.plots.sweeps import ablation as ablation
from interp.plots.sweeps import sweep as sweep
from interp.plots.theme import SEQUENTIAL, facets, layer_axis, plain, under, whisker
from interp.results.names import (
    ALONG,
    BLUE,
    CONTROLS,
    GREY,
    INSERTED_TRACES,
    ORANGE,
    SHARES,
    SPANS,
    SPLITS,
    STYLE,
    VERMILION,
)
from interp.results.queries import need, pick
from interp.results.shown import Plotted
from interp.results.wording import visible
from interp.stats.changes import part_share
from interp.stats.intervals import cluster_bootstrap


def plot(results: Plotted | Mapping[str, Plotted] | Sequence[Plotted], **options: object) -> go.Figure:
    """The picture of a result, or of several of one type together, such as `conflict` gives.

    Raises:
        ValueError: for none, for several types, and where nothing is left to draw.
    """
    if isinstance(results, Plotted):
        several: list[Plotted] = [results]
    else:
        several = list(results.values() if isinstance(results, Mapping) else results)
    kinds = {type(each).__name__ for each in several}
    if len(kinds) != 1 or not all(isinstance(each, Plotted) for each in several):
        raise ValueError(
            f"One picture shows results of one type, not {', '.join(sorted(kinds)) or 'none'}: "
            "plot each by itself."
        )
    frame = pd.concat([each.to_frame() for each in several], ignore_index=True)
    figure: go.Figure = globals()[several[0].picture](frame, **options)
    return figure


def reliance(frame: pd.DataFrame, *, groups: Sequence | None = None) -> go.Figure:
    """The effects of the prompt on the action, directly and via the trace, in nats, with a dot for each pair.

    Args:
        frame: of a `Reliance`.
        groups: the episode of each pair, for intervals.

    Raises:
        ValueError: for pairs that were all dropped.
    """
    names = ["direct", "via_cot", "via_text", "via_state", "interaction", "total"]
    return _effects(frame, names, ("via_text", "via_state", "interaction"), groups)


def own_traces(frame: pd.DataFrame, *, groups: Sequence | None = None) -> go.Figure:
    """The same of a model's own traces: direct and indirect effect.

    Args:
        frame: of an `OwnTraceEffects`.
        groups: the episode of each pair, for intervals.

    Raises:
        ValueError: for pairs that were all dropped.
    """
    return _effects(frame, ["direct", "indirect", "interaction", "total"], ("interaction",), groups)


def _effects(
    frame: pd.DataFrame, names: list[str], minor: Sequence[str], groups: Sequence | None
) -> go.Figure:
    """Bars of the means of effects, of which the first two make prompt reliance, with a dot for each pair."""
    kept, _ = kept_of(frame, "direct", "pair", "pairs")
    rows = means(frame.melt("pair", names, "effect", "nats"), ("effect",), "nats", "pair", groups)
    rows = rows.set_index("effect").loc[names].reset_index()
    fig = facets(1, 300, 0, [""])
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        _, colour, _, _ = STYLE[name]
        row = rows.iloc[[number]]
        label = STYLE[name][0].replace(": ", ":<br>")
        hover = f"{name}: %{{y:.3f}} nats<extra></extra>"
        fig.add_bar(
            x=[number],
            y=row["value"],
            marker=dict(
                color=colour, opacity=0.3 if name in minor else 0.6, line=dict(color=colour, width=1)
            ),
            error_y=whisker(row, "#222222"),
            hovertemplate=hover,
            showlegend=False,
            name=label,
        )
        fig.add_scatter(
            x=number + rng.uniform(-0.2, 0.2, len(frame)),
            y=frame[name],
            mode="markers",
            marker=dict(size=5, color="#333333", opacity=0.6),
            hovertemplate=hover,
            showlegend=False,
        )
    labels = [STYLE[name][0].replace(": ", ":<br>") for name in names]
    fig.update_xaxes(tickvals=list(range(len(names))), ticktext=labels, showgrid=False)
    fig.update_yaxes(title="effect on the action (nats)")
    fig.add_hline(y=0, line=dict(color="#555555", width=1.2))
    share = _share(frame, names[:2], groups)
    return titled(fig, f"Prompt reliance {share}, n = {kept} pairs")


def _share(frame: pd.DataFrame, parts: list[str], groups: Sequence | None) -> str:
    """Prompt reliance of the mean direct and indirect effects, with its interval."""
    clusters = frame["pair"].to_numpy()
    if groups is not None:
        clusters = np.asarray(groups, dtype=object)[clusters]
    estimate = cluster_bootstrap(frame[parts].to_numpy(), clusters, part_share, DRAWS)
    interval = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if np.isfinite(estimate.low) else ""
    return f"{estimate.value:.2f}{interval}" if np.isfinite(estimate.value) else "not defined"


def outcomes(frame: pd.DataFrame, *, groups: Sequence | None = None) -> go.Figure:
    """What was done after each inserted trace: shares that keep the own action, follow the trace, or neither.

    Args:
        frame: of one `Outcome`, or of several after each other.
        groups: the episode of each prompt, for intervals.

    Raises:
        ValueError: for no decisions.
    """
    kept_of(frame, "keep", "decision", "decisions")
    keep, follow, unparsed = (frame[name].astype(bool) for name in ("keep", "follow", "unparsed"))
    frame = frame.assign(keep=keep, follow=follow & ~keep, unparsed=unparsed)
    frame["other"] = ~(frame["keep"] | frame["follow"] | frame["unparsed"])
    kinds = [kind for kind in INSERTED_TRACES if (frame["inserted_trace"] == kind).any()][::-1]
    fig = facets(1, 44 * len(kinds) + 40, 0, [""])
    start = np.zeros(len(kinds))
    for name in ("keep", "follow", "other", "unparsed"):
        rows = means(frame, ("inserted_trace",), name, "decision", groups).set_index("inserted_trace")
        rows = rows.loc[kinds]
        label, colour, _, _ = STYLE[name]
        fig.add_bar(
            y=list(range(len(kinds))),
            x=rows["value"],
            base=start,
            orientation="h",
            name=label,
            marker=dict(color=colour, line=dict(color="white", width=1)),
            customdata=rows[["low", "high", "n"]],
            hovertemplate="%{customdata[2]} decisions: %{x:.2f}",
            text=[f"{value:.2f}" if value >= 0.06 else "" for value in rows["value"]],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
        )
        if name == "keep":  # its whisker lies below the bar, where no other part covers it
            fig.add_scatter(
                x=rows["value"],
                y=[place - 0.36 for place in range(len(kinds))],
                mode="markers",
                marker=dict(size=5, color=colour),
                error_x=whisker(rows, colour),
                hoverinfo="skip",
                showlegend=False,
            )
        start = start + rows["value"].to_numpy()
    counts = frame.groupby("inserted_trace").size()
    labels = [f"{INSERTED_TRACES[kind]} (n = {counts[kind]})" for kind in kinds]
    fig.update_yaxes(tickvals=list(range(len(kinds))), ticktext=labels, showgrid=False)
    fig.update_xaxes(title="share of decisions (whisker: 95 % interval of keep)", range=[0, 1.02])
    fig.update_layout(barmode="overlay", margin_l=170)
    return titled(fig, "The action after an inserted trace")


def early_answers(frame: pd.DataFrame, *, groups: Sequence | None = None) -> go.Figure:
    """How often the action after a part of the trace is the one after the whole, beside full stops.

    Args:
        frame: of an `EarlyAnswers`.
        groups: the episode of each prompt, for intervals.

    Raises:
        ValueError: for no decisions.
    """
    kept, _ = kept_of(frame, "same", "decision", "decisions")
    shares = np.linspace(0, 1, 5)
    at = [
        part.iloc[[int(np.flatnonzero(part["share"] <= share + 1e-9)[-1])]].assign(share=share)
        for _, part in frame.groupby("decision")
        for share in shares
    ]
    cells = pd.concat(at).assign(overlap=lambda rows: 1 - rows["distance"])
    lines = {
        "same": ("the trace's beginning", VERMILION, "solid", "circle"),
        "filler": ("full stops of equal length", GREY, "dot", "x"),
        "overlap": ("overlap of distributions over actions (1 − TV)", ORANGE, "dash", "triangle-up"),
    }
    fig = facets(1, 300, 0, [""])
    for name, look in lines.items():
        cells[name] = cells[name].astype(bool if name != "overlap" else float)
        rows = means(cells, ("share",), name, "decision", groups)
        band_line(fig, rows, "share", look, (1, 1), show=len(rows) > 0, thin=name != "same")
    fig.update_xaxes(title="share of the trace's sentences that is read", tickformat=".0%", tickvals=shares)
    fig.update_yaxes(title="same action as after the whole", range=[-0.03, 1.05])
    return titled(fig, f"Early answering, n = {kept} decisions")


def steering(frame: pd.DataFrame, *, groups: Sequence | None = None) -> go.Figure:
    """Flips, flips to the target and parsed actions against alpha, a line for each kind of direction.

    Args:
        frame: of a `Steering`.
        groups: the episode of each prompt, for intervals.

    Raises:
        ValueError: for no decisions.
    """
    kept, _ = kept_of(frame, "flip", "decision", "decisions")
    titles = {"flip": "flips", "to_target": "flips to target", "parsed": "actions that parse"}
    fig = facets(1, 280, 0, list(titles.values()))
    for col, metric in enumerate(titles, start=1):
        _against_alpha(fig, frame, metric, "decision", groups, col)
    fig.update_yaxes(range=[-0.03, 1.05])
    fig.update_yaxes(title="share of decisions", row=1, col=1)
    under(fig, "alpha (in norms of the residual)")
    where = ", ".join(f"{name} {frame[name].iloc[0]}" for name in ("position", "layer"))
    return titled(fig, f"Steering, {where}, n = {kept} decisions")


def steered_answers(frame: pd.DataFrame, *, groups: Sequence | None = None) -> go.Figure:
    """What steering does to the answers against alpha, in nats, a line for each kind of direction.

    Args:
        frame: of a `SteeredAnswers`.
        groups: the episode of each prompt, for intervals.

    Raises:
        ValueError: for no prompts.
    """
    kept, _ = kept_of(frame, "effect", "prompt", "prompts")
    fig = facets(1, 300, 0, [""])
    _against_alpha(fig, frame, "effect", "prompt", groups, 1)
    fig.add_hline(y=0, line=dict(color="#555555", width=1.2), layer="below")
    fig.update_yaxes(title="change of the answer (nats)")
    under(fig, "alpha (in norms of the residual)")
    return titled(fig, f"Steering layer {frame['layer'].iloc[0]}, n = {kept} prompts")


def _against_alpha(
    fig: go.Figure, frame: pd.DataFrame, metric: str, cluster: str, groups: Sequence | None, col: int
) -> None:
    """A panel of steering: the mean of a column against alpha, a line for each kind of direction."""
    kinds = list(dict.fromkeys([*(kind for kind in ALONG if (frame["kind"] == kind).any()), *frame["kind"]]))
    rows = means(frame, ("kind", "alpha"), metric, cluster, groups)
    for number, kind in enumerate(kinds):
        look = (str(plain(kind)), COLOURS[number % len(COLOURS)], "solid", MARKERS[number % len(MARKERS)])
        look = STYLE.get(f"along_{kind}", look)
        band_line(fig, pick(rows, kind=kind), "alpha", look, (1, col), show=col == 1, thin=number > 0)
    alphas = sorted(frame["alpha"].unique())
    fig.update_xaxes(tickvals=alphas, ticktext=[f"{alpha:g}" for alpha in alphas], row=1, col=col)


def probes(frame: pd.DataFrame, *, metric: str = "accuracy") -> go.Figure:
    """The probe by layer beside its controls, and at the right what all give at the nested layer.

    Args:
        frame: of a `ProbeResult`.
        metric: of those that were asked for.

    Raises:
        ValueError: for a metric that is not there.
    """
    chosen = pick(frame, metric=metric)
    if chosen.empty:
        raise ValueError(f"This result holds no metric {metric!r}: ask `probe` for it (metrics=).")
    layers = sorted(int(layer) for layer in chosen["layer"].unique() if layer >= 0)
    splits = [split for split in SPLITS if (chosen["split"] == split).any()]
    fig = facets(1, 340, 0, [SPLITS[split] for split in splits])
    by_layer = ("probe", "random_model", "control_task", "lda", "mean_difference")
    nested = len(layers) + 0.6
    for col, split in enumerate(splits, start=1):
        here = pick(chosen, split=split)
        drawn = [name for name in by_layer if (here["predictor"] == name).any()]
        drawn += [name for name in (*CONTROLS, "shuffled") if (here["predictor"] == name).any()]
        for number, name in enumerate(drawn):
            look = STYLE.get(name, (name.replace("_", " "), COLOURS[-1 - number], "dash", "x"))
            look = ("probe", *look[1:]) if name == "probe" else look
            rows = pick(here, predictor=name)
            curve = rows[rows["layer"] >= 0]
            curve = curve.assign(place=[layers.index(layer) for layer in curve["layer"]])
            band_line(fig, curve, "place", look, (1, col), show=col == 1, thin=name != "probe")
            last = pick(rows, layer=-1).assign(place=nested + 1.4 * number / max(1, len(drawn) - 1))
            if len(last):
                show = col == 1 and curve.empty
                band_line(fig, last, "place", look, (1, col), show=show, thin=name != "probe")
        layer_axis(fig, layers, None, 1, col, axis="x")
        ticks = fig.get_subplot(1, col).xaxis
        fig.update_xaxes(
            tickvals=[*ticks.tickvals, nested + 0.7],
            ticktext=[*ticks.ticktext, "nested"],
            range=[-0.4, nested + 1.8],
            row=1,
            col=col,
        )
        fig.add_vline(x=nested - 0.5, row=1, col=col, line=dict(color="#BBBBBB", width=1, dash="dot"))
    fig.update_yaxes(title=metric.replace("_", " "), row=1, col=1)
    under(fig, "layer (0 = first of the activations given)")
    sizes = ", ".join(f"{pick(chosen, split=split)['n'].max()} {SPLITS[split].lower()}" for split in splits)
    return titled(fig, f"Probe and controls, decisions: {sizes}")


def transfer(frame: pd.DataFrame) -> go.Figure:
    """Accuracy of each step's probe at each step; the study's figure.

    frame: of a `TransferResult`.
    """
    figure: go.Figure = probe_figures.transfer(frame.assign(label="label"))
    return figure


def mdl(frame: pd.DataFrame) -> go.Figure:
    """Bits for each decision of a block against the decisions sent before it, beside the class frequencies'.

    frame: of an `MDLResult`.
    """
    fig = facets(1, 280, 0, [""])
    lines = {
        "bits": ("with the activations", BLUE, "solid", "circle"),
        "majority_bits": ("with class frequencies alone", GREY, "dash", "square"),
    }
    for name, look in lines.items():
        rows = frame.assign(value=frame[name] / frame["n"], low=np.nan, high=np.nan, n_groups=np.nan)
        band_line(fig, rows, "n_known", look, (1, 1), show=True, thin=name != "bits")
    fig.update_xaxes(title="decisions already sent")
    fig.update_yaxes(title="bits per decision", rangemode="tozero")
    return titled(fig, f"Online code in {len(frame)} blocks, n = {frame['n'].sum()} decisions")


def shares(frame: pd.DataFrame, *, version: str = "sink_free") -> go.Figure:
    """Share of each span over its share of the tokens by layer, mean over decisions (log2; 0 = uniform).

    Args:
        frame: of a `Shares`.
        version: `all` tokens, or `sink_free`.

    Raises:
        ValueError: where there is nothing to share out.
    """
    chosen = pick(frame, version=version)
    kept, every = kept_of(chosen, "ratio", "decision", "decisions")
    means = chosen.groupby(["definition", "layer", "span"], sort=False)["ratio"].mean().reset_index()
    means = means.assign(log=np.log2(means["ratio"].where(means["ratio"] > 0)))
    spans = [span for span in SPANS if means.loc[means["span"] == span, "ratio"].notna().any()]
    layers = sorted(means["layer"].unique())
    fig = facets(1, max(180, 18 * len(layers)), 0, [SHARES[name] for name in SHARES], below=BOTTOM + 34)
    for col, definition in enumerate(SHARES, start=1):
        grid = pick(means, definition=definition).pivot(index="layer", columns="span", values="log")
        grid = grid.reindex(index=layers, columns=spans)
        heatmap(fig, grid, (1, col), None, "layer %{y}: 2^%{z:.2f} times its share of the tokens")
        layer_axis(fig, layers, "layer" if col == 1 else None, 1, col)
        fig.update_xaxes(
            tickvals=list(range(len(spans))),
            ticktext=[SPANS[span] for span in spans],
            tickangle=-40,
            showgrid=False,
            row=1,
            col=col,
        )
    diverging_scale(fig, means["log"], "log2(share / token share)")
    title = f"What the action attends to and depends on, {n_of(kept, every, 'decisions')}"
    return titled(fig, title)


def lens(frame: pd.DataFrame, *, read: str = "") -> go.Figure:
    """What each layer says next: the likeliest token, or the probability of the answers that were followed.

    Args:
        frame: of a `Lens`.
        read: `top` or `answer`; the answers where some were followed.

    Raises:
        ValueError: for what was not read.
    """
    read = read or ("answer" if (frame["read"] == "answer").any() else "top")
    chosen = need(frame, read=read)
    return _lens_answers(chosen) if read == "answer" else _lens_top(chosen)


def _lens_answers(frame: pd.DataFrame) -> go.Figure:
    """Lines by layer, mean over the tokens read."""
    layers = sorted(frame["layer"].unique())
    named = frame.assign(answer=frame["text"].map(visible))
    rows = means(named, ("answer", "layer"), "probability", "decision")
    fig = facets(1, 300, 0, [""])
    for number, answer in enumerate(rows["answer"].unique()[: len(COLOURS)]):
        look = (str(plain(answer)), COLOURS[number], "solid", MARKERS[number])
        curve = pick(rows, answer=answer).assign(place=lambda table: table["layer"] - layers[0])
        band_line(fig, curve, "place", look, (1, 1), show=True)
    layer_axis(fig, layers, "layer (−1 = embedding)", 1, 1, axis="x")
    fig.update_yaxes(title="probability of the next token", range=[-0.03, 1.05])
    return titled(fig, f"Logit lens, n = {frame['decision'].nunique()} prompts")


def _lens_top(frame: pd.DataFrame) -> go.Figure:
    """The likeliest next token of each layer (rows) at the first tokens that were read (columns)."""
    layers = sorted(frame["layer"].unique())
    places = ["decision", "position"]
    first = pick(frame, rank=0)
    columns = first[places].drop_duplicates().head(24)
    first = first.merge(columns)
    first = first.assign(column=first.groupby(places, sort=False).ngroup())
    grid = first.pivot(index="layer", columns="column", values="probability")
    texts = first.pivot(index="layer", columns="column", values="text").map(lambda text: plain(visible(text)))
    fig = facets(1, max(160, 24 * len(layers)), 0, [""], below=BOTTOM + 20)
    heatmap(fig, grid, (1, 1), texts.to_numpy(), "layer %{y}: %{customdata}, %{z:.3f}")
    fig.data[-1].update(text=texts.to_numpy(), texttemplate="%{text}", textfont_size=14)
    layer_axis(fig, layers, "layer (−1 = embedding)", 1, 1)
    labels = [f"{decision}:{position}" for decision, position in columns.itertuples(index=False)]
    fig.update_xaxes(tickvals=list(range(len(labels))), ticktext=labels, showgrid=False)
    fig.update_xaxes(title="prompt : token", range=[-0.5, len(labels) - 0.5])
    bar = dict(title=dict(text="probability", side="right", font_size=14), x=1.01, thickness=13)
    fig.update_layout(coloraxis=dict(cmin=0, cmax=1, colorscale=SEQUENTIAL, colorbar=bar), margin_r=96)
    return titled(fig, "Logit lens: the likeliest next token by layer")
