"""Captions of the patching figures: what the table says, in numbers, as HTML.

What the pair builder dropped is not in the table but in its provenance, which `analyses.figures` lays in `frame.attrs`.
"""

from __future__ import annotations

import pandas as pd

from interp.plots.captions import _estimate, _join, _paragraph, _size
from interp.plots.patching import PLACES
from interp.results.names import DIRECTIONS
from interp.results.queries import pick, with_places

_METRICS = {"logit_diff": "first differing tokens alone", "logp": "clean action alone", "kl": "KL"}


def patching(frame: pd.DataFrame, site: str = "resid_pre") -> str:
    """Layer with the largest effect at the first and last checkpoint, per direction, and the pairs dropped."""
    at_site = pick(with_places(frame), site=site, at="boundary", metric="difference").dropna(subset="value")
    rows, behind = pick(at_site, mode="prompt"), pick(at_site, mode="cot")
    lead = f"Effect of patching {site} (0 = nothing changes, 1 = the other run's action in full)."
    lines = []
    for direction, of in rows.groupby("direction", sort=True):
        parts = []
        for step in sorted({of["step"].min(), of["step"].max()}):
            at = pick(of, step=step)
            top = at.loc[at["value"].idxmax()]
            parts.append(f"{_estimate(top)} at layer {int(top['layer'])}, step {int(step)}")
        lines.append(f"Largest {direction} effect: {_join(parts, ' and ')}. {_size(of, 'pairs')}")
    if len(behind):
        last = pick(behind, step=behind["step"].max())
        tops = [last.loc[index] for index in last.groupby("direction", sort=True)["value"].idxmax()]
        parts = [f"{top['direction']} {_estimate(top)} at layer {int(top['layer'])}" for top in tops]
        lines.append(f"Action read behind the trace, largest effect at step {int(tops[0]['step'])}: {_join(parts)}.")
    if "n_dropped" in rows and len(rows):
        lines.append(f"Pairs dropped for a small denominator: {_range(rows['n_dropped'])} per checkpoint.")
    return _paragraph(lead, [*lines, *_not_paired(frame)])


def spans(frame: pd.DataFrame, site: str = "resid_pre") -> str:
    """Largest effect of each span at the first and last checkpoint, per direction; the other metrics there at the last; what was dropped."""
    lead = (f"Effect of patching {site} at all positions of a span together (0 = nothing changes, 1 = the other run's action in full), the action "
            "read right behind the boundary.")
    every = pick(with_places(frame), site=site, mode="prompt").dropna(subset="value")
    rows, lines = pick(every, metric="difference"), []
    rows = rows[rows["step"].isin(pick(rows, at="prompt")["step"])]
    ends = sorted({rows["step"].min(), rows["step"].max()})
    for direction in DIRECTIONS:
        for step in ends:
            parts = []
            for place, (name, *_) in PLACES.items():
                of = pick(rows, direction=direction, step=step, at=place)
                if len(of):
                    top = of.loc[of["value"].idxmax()]
                    parts.append(f"{name} {_estimate(top)} (layer {int(top['layer'])})")
            lines.append(f"Largest {direction} effects at step {int(step)}: {_join(parts)}. {_size(pick(rows, direction=direction, step=step), 'pairs')}")
    last = pick(rows, step=ends[-1], direction="denoise")
    last = last[last["at"] != "prompt"]
    if len(last):
        top = last.loc[last["value"].idxmax()]
        cell = pick(every, step=top["step"], direction="denoise", at=top["at"], layer=top["layer"])
        parts = [f"{word} {_estimate(of.iloc[0])} (n = {int(of['n'].iloc[0])})" for metric, word in _METRICS.items() if len(of := pick(cell, metric=metric))]
        lines += [f"Other metrics where a span denoises most ({PLACES[top['at']][0]}, layer {int(top['layer'])}, step {int(top['step'])}): {_join(parts)}."] if parts else []
    dropped = [f"{PLACES[place][0]} {_range(of['n_dropped'])}" for place in PLACES if len(of := pick(rows, at=place))]
    lines.append(f"Pairs dropped for a small denominator, or for want of the span, per checkpoint: {_join(dropped)}.")
    return _paragraph(lead, [*lines, *_not_paired(frame)])


def screen(frame: pd.DataFrame, site: str = "resid_pre") -> str:
    """Correlations of the first-order estimates with true patching at the first and last checkpoint, per mode and direction."""
    lead = (f"Attribution patching: first-order estimates (gradient x change of {site}) against true effects, means over pairs at each span and layer; "
            "dotted: equal. r is over single pairs' cells, the spans and the boundary, without the whole prompt.")
    rows, lines = pick(with_places(frame), site=site, layer=-1).dropna(subset="value"), []
    for mode, word in (("prompt", "Action read right behind the boundary"), ("cot", "Behind the trace")):
        of = pick(rows, mode=mode)
        if of.empty:
            continue
        for step in sorted({of["step"].min(), of["step"].max()}):
            parts = []
            for direction in DIRECTIONS:
                found = {kind: pick(of, step=step, direction=direction, metric=f"attribution_{kind}") for kind in ("pearson", "spearman")}
                parts += [f"{direction} {_join([f'{kind.capitalize()} {_estimate(f.iloc[0])}' for kind, f in found.items() if len(f)])}"]
            lines.append(f"{word}, step {int(step)}: {_join(parts, '; ')}. {_size(pick(of, step=step), 'pairs')}")
    return _paragraph(lead, [*lines, *_not_paired(frame)])


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low}" if low == high else f"{low} to {high}"


def _not_paired(frame: pd.DataFrame) -> list[str]:
    found = frame.attrs.get("not_paired")
    return [f"Decisions without a pair: {_join([f'{count} ({why})' for why, count in sorted(found.items())])}."] if found else []
