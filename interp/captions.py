"""Captions: what each figure's table says, in numbers, as HTML.

>>> frame, _ = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame)
"""

from __future__ import annotations

import html

import pandas as pd

from interp.style import ALONG, ARMS, SHARES, SPANS, SPLITS, STEERED, STYLE, VERSIONS, pick, splits_of, with_mode

_INTERVALS = "Bands and whiskers: 95 % intervals, cluster bootstrap."
_ACCURACIES = {
    "acc_cot": "CoT action",
    "acc_prompt": "prompt action",
    "acc_empty_think": "empty-think action",
    "gap": "gap",
    "headroom_gap": "headroom gap",
}
#: Forced choice: metric in the table, word in the caption.
_CHOICES = {
    "choice_prompt_sum": "prompt action {} by sum",
    "choice_prompt_mean": "{} per token",
    "choice_cot_sum": "CoT action {} by sum",
    "choice_cot_mean": "{} per token",
}
#: Share of games ended by an action that did not parse, above which the caption says so.
_MANY_UNPARSED = 0.05


def behaviour(frame: pd.DataFrame) -> str:
    """Accuracy of both modes and the gaps at the first and last checkpoint, forced choice at the last, per split."""
    lead = "Accuracy against the reference action (top), and the gap between the modes (bottom)."
    lines = []
    for name, rows in _by_split(frame):
        changes = [_change(rows, metric, word) for metric, word in _ACCURACIES.items()]
        last = _last(rows, "mcnemar_p")
        test = f" McNemar's test at step {int(last['step'])}: p = {last['value']:.2g}." if last is not None else ""
        lines.append(f"{name}: {_join(changes)}; {_verdict(rows, 'gap')}.{test}{_forced(rows)} {_size(_decoded(rows))}")
    return _paragraph(lead, lines)


def parse(frame: pd.DataFrame) -> str:
    """Lowest parse rate of each mode and where it is reached."""
    lead = "Share of decisions whose decoded text parses to an action; where it is low, accuracy says little."
    lines = []
    for name, rows in _by_split(frame):
        lows = []
        for metric in ("parse_prompt", "parse_cot", "parse_empty_think"):
            of = pick(rows, metric=metric).dropna(subset="value")
            if len(of):
                worst = of.loc[of["value"].idxmin()]
                lows.append(f"{STYLE[metric][0]} {_estimate(worst)} at step {int(worst['step'])}")
        lines.append(f"{name}, lowest: {_join(lows)}. {_size(_decoded(rows))}")
    return _paragraph(lead, lines)


def revision(frame: pd.DataFrame) -> str:
    """Revision rate and its parts at the first and last checkpoint, and agreement."""
    lead = "How often the trace changes the action, split by effect (top); agreement of the two modes (bottom)."
    words = {"revision": "revision", "revision_helpful": "helpful", "revision_harmful": "harmful"}
    words |= {"revision_neutral": "neutral", "agreement": "agreement", "kappa": "Cohen's κ"}
    lines = [
        f"{name}: {_join([_change(rows, metric, word) for metric, word in words.items()])}. {_size(_decoded(rows))}"
        for name, rows in _by_split(frame)
    ]
    return _paragraph(lead + " Each whisker belongs to the part whose upper edge it stands on.", lines)


def online_official(frame: pd.DataFrame) -> str:
    """As `online`, in ALFWorld's own games."""
    return online(frame, "Success in ALFWorld's own games (valid_seen), both modes on the same games.")


def online(frame: pd.DataFrame, lead: str = "Success in the environment, both modes on the same games.") -> str:
    """Success per mode at the first and last checkpoint, per split, and how many games an unparsed action ended."""
    words = {"cot": "success with CoT", "prompt": "with the prompt action alone"}
    lines = []
    for name, rows in _by_split(frame):
        success = pick(rows, metric="success").assign(metric=lambda table: table["mode"])
        if success.empty:
            continue
        changes = [_change(success, mode, word) for mode, word in words.items()]
        ends = [_last(pick(rows, mode=mode), "unparsed") for mode in words]
        many = [end for end in ends if end is not None and end["value"] > _MANY_UNPARSED]
        parts = [f"{_estimate(end)} ({STYLE[end['mode']][0]})" for end in many]
        ended = f" Games ended by an unparsed action at step {int(many[0]['step'])}: {_join(parts)}." if many else ""
        lines.append(f"{name}: {_join(changes)}.{ended} {_size(success, 'games')}")
    return _paragraph(lead, lines)


def patching(frame: pd.DataFrame, site: str = "resid_pre") -> str:
    """Layer with the largest effect at the first and last checkpoint, per direction, and the pairs dropped."""
    at_site = pick(with_mode(frame), site=site).dropna(subset="value")
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
        low, high = int(rows["n_dropped"].min()), int(rows["n_dropped"].max())
        count = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"Pairs dropped for a small denominator: {count} per checkpoint.")
    return _paragraph(lead, lines)


def reliance(frame: pd.DataFrame) -> str:
    """Prompt reliance and its parts at the first and last checkpoint, per split."""
    lead = (
        "Prompt reliance: the share of the effect on the action that goes directly from the prompt (top); the effects "
        "it is made of, as differences of summed log-probability in nats (bottom)."
    )
    words = {"prompt_reliance": "prompt reliance", "direct": "direct", "via_cot": "via CoT"}
    words |= {"via_text": "of that by the trace's text", "via_state": "by its hidden state"}
    words |= {"total": "total", "interaction": "interaction"}
    lines = [
        f"{name}: {_join([_change(rows, metric, word) for metric, word in words.items()])}; "
        f"{_overlap(rows, 'prompt_reliance')}. {_size(rows, 'pairs')}"
        for name, rows in _by_split(frame)
    ]
    return _paragraph(lead, lines)


def conflict(frame: pd.DataFrame) -> str:
    """Keep and follow per arm at the last checkpoint, per split, and whether self-splice reproduces every action."""
    lead = "The agent's own prompt with an inserted trace: keep, follow and other action per arm."
    lines = []
    for name, rows in _by_split(frame):
        arms = []
        for arm in ARMS:
            of = pick(rows, arm=arm)
            ends = {metric: _last(of, metric) for metric in ("keep", "follow")}
            words = [f"{metric} {_estimate(row)}" for metric, row in ends.items() if row is not None]
            if words:
                arms.append(f"{ARMS[arm]} {_join(words)}")
        lines.append(f"{name}, step {int(rows['step'].max())}: {'; '.join(arms)}. {_size(rows)}")
        alien = _change(pick(rows, arm="other_state"), "logp_trace", "log-probability of the other state's trace")
        lines += [f"{name}: {alien}, in nats per token."] if alien else []
    splice = pick(frame, arm="self_splice", metric="keep")["value"]
    if len(splice):
        failed = f"failed: keep falls to {splice.min():.3f}"
        verdict = "passed: keep = 1 at every checkpoint" if (splice == 1).all() else failed
        lines.append(f"Self-splice check {verdict}.")
    leak = pick(frame, metric="leak_rate").dropna(subset="value")
    if len(leak):
        worst = leak.loc[leak["value"].idxmax()]
        lines.append(f"Highest leak rate of action mentions: {_estimate(worst)} ({ARMS[worst['arm']]}).")
    return _paragraph(lead, lines)


def early(frame: pd.DataFrame) -> str:
    """Area over the curve and the rate of the same action without the trace, at the first and last checkpoint, per split."""
    lead = (
        "Early answering: the action after parts of the agent's own trace against the action after all of it; area over the "
        "curve (top; 0: the trace is not needed, 1: all of it is) and rate of the same action (bottom)."
    )
    words = {"area_action": "area for the action", "area_distribution": "for the distribution over admissible actions"}
    words |= {"same_0": "same action without the trace", "same_50": "after half of it"}
    lines = [f"{name}: {_join([_change(rows, metric, word) for metric, word in words.items()])}. {_size(rows)}" for name, rows in _by_split(frame)]
    return _paragraph(lead, lines)


def shares(frame: pd.DataFrame, version: str = "sink_free") -> str:
    """Ratio of share to token share of the CoT and of the prompt's spans at the first and last checkpoint, per split and definition."""
    lead = (
        "What the action's tokens attend to and depend on behind the agent's own trace: a span's share over its share of the "
        f"tokens, {VERSIONS[version]}, means over layers (1 = as a uniform reader)."
    )
    lines = []
    for name, rows in _by_split(pick(frame, version=version)):
        for definition, word in SHARES.items():
            of = pick(rows, definition=definition)
            ratios = pick(of, metric="ratio").assign(metric=lambda table: table["span"])
            changes = [_change(ratios, span, SPANS[span]) for span in ("task", "history", "observation", "cot")]
            if any(changes):
                shared = pick(of, span="cot").dropna(subset="value")
                parts = [_last(shared, metric) for metric in ("share", "token_share")]
                cot = ""
                if not any(part is None for part in parts):
                    of_tokens = f"{_estimate(parts[0])} of the total and {parts[1]['value']:.2f} of the tokens"
                    cot = f" At step {int(parts[0]['step'])} the CoT has {of_tokens}."
                lines.append(f"{name}, {word}: {_join(changes)}.{cot} {_size(ratios)}")
    return _paragraph(lead, lines)


def steering(frame: pd.DataFrame) -> str:
    """Flips along the probe's direction at the largest alpha, per position, at the first and last checkpoint; baselines at the last; parse rates."""
    lead = (
        "A direction added to the residual stream while the action is decoded: share of decisions whose action changes (flips), and changes to the "
        "class that the direction points to. Flips are less the alpha 0 resample rate; orthogonal: mean of the random "
        "directions; baselines at the last step."
    )
    alpha = frame["alpha"].max()
    top, lines = pick(frame, alpha=alpha), []
    for position in (name for name in STEERED if (frame["position"] == name).any()):
        along = pick(top, position=position, direction="probe")
        kinds = [_join([_change(along, metric, word) for metric, word in {"to_target": "probe's direction to target", "flip": "flips"}.items()])]
        for kind in ALONG[1:]:
            end = _last(pick(top, position=position, direction=kind), "to_target")
            kinds += [f"{STYLE[f'along_{kind}'][0]} to target {_estimate(end)}"] if end is not None else []
        lines.append(f"{STEERED[position][0].upper()}{STEERED[position][1:]}, alpha {alpha:g}: {_join(kinds, '; ')}.")
    parsed = pick(frame, metric="parse", direction="probe").dropna(subset="value")
    if len(parsed):
        worst = parsed.loc[parsed["value"].idxmin()]
        lines.append(
            f"Lowest parse rate along the probe's direction: {_estimate(worst)} ({STEERED[worst['position']]}, alpha {worst['alpha']:g}, "
            f"step {int(worst['step'])})."
        )
    return _paragraph(lead, [*lines, _size(pick(frame, metric="flip", direction="probe"))])


def _by_split(frame):
    return [(SPLITS[split], pick(frame, split=split)) for split in splits_of(frame)]


def _decoded(rows):
    """Rows of what was decoded: forced choice reads fewer decisions."""
    return rows[~rows["metric"].isin(_CHOICES)]


def _forced(rows) -> str:
    """Sentence on the accuracy of forced choice at the last checkpoint; empty where the table lacks it."""
    ends = {metric: _last(rows, metric) for metric in _CHOICES}
    ends = {metric: row for metric, row in ends.items() if row is not None}
    if not ends:
        return ""
    row = next(iter(ends.values()))
    words = [_CHOICES[metric].format(_estimate(row)) for metric, row in ends.items()]
    return f" Forced choice at step {int(row['step'])} (n = {int(row['n'])}): {_join(words)}."


def _ends(rows, metric):
    of = pick(rows, metric=metric).dropna(subset="value").sort_values("step")
    return of.iloc[[0, -1]] if len(of) else of


def _last(rows, metric):
    of = _ends(rows, metric)
    return of.iloc[-1] if len(of) else None


def _estimate(row, signed=False) -> str:
    """Value with its interval: `0.42 [0.38, 0.46]`."""
    form = "{:+.2f}" if signed else "{:.2f}"
    value, low, high = (form.format(row[name]).replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if pd.notna(row["low"]) and pd.notna(row["high"]) else f"{value} (no interval)"


def _change(rows, metric, word) -> str:
    """`word 0.2 [..] at step 0 to 0.5 [..] at step 800`; empty where the table lacks the metric."""
    of = _ends(rows, metric)
    if of.empty:
        return ""
    first, last = of.iloc[0], of.iloc[-1]
    if first["step"] == last["step"]:
        return f"{word} {_estimate(last)} at step {int(last['step'])}"
    return f"{word} {_estimate(first)} at step {int(first['step'])} to {_estimate(last)} at step {int(last['step'])}"


def _verdict(rows, metric) -> str:
    last = _last(rows, metric)
    if last is None or pd.isna(last["low"]):
        return "no interval for the last gap"
    covers = last["low"] <= 0 <= last["high"]
    return f"the last gap's interval {'covers' if covers else 'excludes'} 0"


def _overlap(rows, metric) -> str:
    of = _ends(rows, metric)
    if of.empty or of["step"].nunique() < 2 or of[["low", "high"]].isna().any(axis=None):
        return "no change to judge"
    apart = of["low"].max() > of["high"].min()
    return f"the intervals of the first and last prompt reliance {'do not overlap' if apart else 'overlap'}"


def _size(rows, unit="decisions") -> str:
    """`n = 400 decisions in 60 clusters per point`, as ranges where points differ."""
    spans = []
    for column in ("n", "n_groups"):
        low, high = rows[column].min(), rows[column].max()
        spans.append("?" if pd.isna(low) else f"{int(low)}" if low == high else f"{int(low)} to {int(high)}")
    return f"n = {spans[0]} {unit} in {spans[1]} {'clusters' if unit == 'pairs' else 'episodes'} per point."


def _join(words, by=", ") -> str:
    return by.join(word for word in words if word)


def _paragraph(lead, lines) -> str:
    return "<br>\n".join(html.escape(line, quote=False) for line in [lead, *lines, _INTERVALS])
