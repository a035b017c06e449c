"""Captions: what each figure's table says, in numbers, as HTML.

>>> frame, _ = read_table("runs/quick/tables", "behaviour")
>>> behaviour(frame)
"""

from __future__ import annotations

import html
import math

import pandas as pd

from interp.results.names import SPLITS, STYLE
from interp.results.queries import pick, splits_of

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
#: Numbers that are 0 but for rounding.
_NOTHING = 1e-9
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


def side(row: pd.Series, of: float = 0.0) -> int:
    """1 where the interval lies above `of`, -1 where it lies below, 0 where it covers it or is unknown."""
    return int(row["low"] > of) - int(row["high"] < of)


def _estimate(row, signed=False) -> str:
    """Value with its interval: `0.42 [0.38, 0.46]`; with more digits where all of it would round to 0, or an end of a difference would."""
    numbers = [0.0 if abs(row[name]) < _NOTHING else row[name] for name in ("value", "low", "high")]
    largest, digits = max((abs(number) for number in numbers if pd.notna(number)), default=0.0), 2
    if 0 < largest < 0.005:
        digits = min(5, 1 - math.floor(math.log10(largest)))
    elif (signed or numbers[1] < 0) and any(0 < abs(end) < 0.005 for end in numbers[1:]):
        digits = 3
    value, low, high = (f"{number:{'+' if signed else 'z'}.{digits}f}".replace("-", "−") for number in numbers)
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
