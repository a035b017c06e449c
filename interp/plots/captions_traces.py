"""Captions of what traces do: conflicting traces, early answering, shares, steering; as `interp.plots.captions`.

>>> frame, _ = read_table("runs/quick/tables", "conflict")
>>> removal(frame)
"""

from __future__ import annotations

import pandas as pd

from interp.plots.captions import _by_split, _change, _estimate, _join, _last, _paragraph, _size
from interp.results.names import ALONG, ARMS, SHARES, SPANS, STEERED, STYLE, VERSIONS
from interp.results.queries import pick


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
        lines.append(f"{name}, step {int(rows['step'].max())}: {'; '.join(arms)}. {_size(rows[rows['metric'].isin(('keep', 'follow'))])}")
        words = {"logp_trace": "log-probability of the other state's trace", "logp_own": "of the own one there"}
        alien = _join([_change(pick(rows, arm="other_state"), metric, word) for metric, word in words.items()])
        lines += [f"{name}: {alien}, in nats per token."] if alien else []
    splice = pick(frame, arm="self_splice", metric="keep")["value"]
    if len(splice):
        failed = f"SELF-SPLICE CHECK FAILED: keep falls to {splice.min():.3f} where it must be 1, so the arms are not to be trusted."
        lines.append("Self-splice check passed: keep = 1 at every checkpoint." if (splice == 1).all() else failed)
    leak = pick(frame, metric="leak_rate").dropna(subset="value")
    if len(leak):
        worst = leak.loc[leak["value"].idxmax()]
        lines.append(f"Highest leak rate of action mentions: {_estimate(worst)} ({ARMS[worst['arm']]}).")
    return _paragraph(lead, lines)


def conflict_shift(frame: pd.DataFrame) -> str:
    """Distance that each arm moves the distribution at the last checkpoint, masses before and after another state's trace, follow by its likelihood."""
    lead = (
        "The distribution over the admissible actions (forced choice) behind an inserted trace against the one behind the own trace: total variation "
        "distance where the trace is another's, and where the own one is changed (top two); mass on the own action and on the one that another state's "
        "trace argues for, before it (behind the own trace) and after; following that trace where log p(trace | prompt) per token is at or above the "
        "checkpoint's median, and below it (bottom)."
    )
    masses = {"mass_own": "own action", "mass_argued": "argued one"}
    halves = {"follow_likely": "follow it in the likelier half", "follow_unlikely": "in the other half"}
    lines = []
    for name, rows in _by_split(frame):
        moved = pick(rows, metric="shift")
        ends = {arm: _last(pick(moved, arm=arm), "shift") for arm in ARMS}
        told = [f"{ARMS[arm]} {_estimate(row)}" for arm, row in ends.items() if row is not None]
        lines.append(f"{name}, distance at step {int(moved['step'].max())}: {_join(told)}. {_size(moved)}")
        other = pick(rows, arm="other_state")
        both = {metric: (_last(other, f"{metric}_before"), _last(other, metric)) for metric in masses}
        told = [f"{masses[m]} from {_estimate(a)} to {_estimate(b)}" for m, (a, b) in both.items() if a is not None and b is not None]
        lines += [f"{name}, mass moved by the other state's trace at step {int(other['step'].max())}: {_join(told)}."] if told else []
        told = _join([_change(other, metric, word) for metric, word in halves.items()])
        lines += [f"{name}: {told}. {_size(other[other['metric'].isin(halves)])}"] if told else []
    return _paragraph(lead, lines)


def removal(frame: pd.DataFrame) -> str:
    """Flip rates without the trace and under a wrong one, and their paired difference, at the first and last checkpoint."""
    lead = (
        "The own trace removed (nothing, or full stops of its length) against replaced by another state's, on the same decisions: how often the "
        "action is another than the own one, over all decisions (an action that does not parse is a flip) and over those that parse in both arms. "
        "2603.01437 reports 2-14 % for removal and 52-78 % for a wrong trace, in other models and tasks."
    )
    words = {"flip_removed": "removed", "flip_substituted": "wrong trace", "flip_difference": "wrong trace less removed"}
    lines = []
    for name, rows in _by_split(frame):
        for arm in ("filler", "empty"):
            of = pick(rows, arm=arm)
            parsed = of[of["metric"].isin([f"{metric}_parsed" for metric in words])]
            told = _join([f"{word} {_estimate(end)}" for metric, word in words.items() if (end := _last(of, metric)) is not None])
            both = _join([_change(of, f"{metric}_parsed", word) for metric, word in words.items()])
            lines += [f"{name}, {ARMS[arm]}, step {int(of['step'].max())}: {told}."] if told else []
            lines += [f"{name}, {ARMS[arm]}, both parsed: {both}. {_size(parsed)}"] if both else []
    return _paragraph(lead, lines)


def early(frame: pd.DataFrame) -> str:
    """Area over the curve and the rate of the same action without the trace, at the first and last checkpoint, per split."""
    lead = (
        "Early answering: the action after parts of the agent's own trace against the action after all of it; area over the "
        "curve (top; 0: the trace is not needed, 1: all of it is) and rate of the same action (bottom)."
    )
    words = {"area_action": "area for the action", "area_filler": "behind full stops of the same lengths"}
    words |= {"area_distribution": "for the distribution over admissible actions"}
    words |= {"same_0": "same action without the trace", "same_50": "after half of it"}
    lines = []
    for name, rows in _by_split(frame):
        read, chosen = (rows[(rows["metric"] == "area_distribution") == which] for which in (False, True))
        few = f" Of these, distribution: at most {int(chosen['n'].max())}." if len(chosen) and chosen["n"].max() < read["n"].max() else ""
        lines.append(f"{name}: {_join([_change(rows, metric, word) for metric, word in words.items()])}. {_size(read)}{few}")
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
    """Flips along the probe's direction per position, at the first and last checkpoint, where most decisions parse; baselines at the last; parse rates."""
    lead = (
        "A direction added to the residual stream while the action is decoded: share of decisions whose action changes (flips; an action that does not "
        "parse is one), of those that parse, changes to the class that the direction points to, and parse rate. Flips are less the alpha 0 resample "
        "rate; orthogonal: mean of the random directions. Below, at each position's largest alpha at which the probe's direction leaves at least half "
        "of the last checkpoint's decisions parsing, baselines at the last step."
    )
    lines, words = [], {"to_target": "probe's direction to target", "flip": "flips", "flip_parsed": "of parsed"}
    for position in (name for name in STEERED if (frame["position"] == name).any()):
        here = pick(frame, position=position)
        alpha = widest(here)
        at = pick(here, alpha=alpha)
        kinds = [_join([_change(pick(at, direction="probe"), metric, word) for metric, word in words.items()])]
        for kind in ALONG[1:]:
            told = [f"{word} {_estimate(end)}" for metric, word in {"to_target": "to target", "flip_parsed": "flips of parsed"}.items()
                    if (end := _last(pick(at, direction=kind), metric)) is not None]
            kinds += [f"{STYLE[f'along_{kind}'][0]} {_join(told)}"] if told else []
        lines.append(f"{STEERED[position][0].upper()}{STEERED[position][1:]}, alpha {alpha:g}: {_join(kinds, '; ')}.")
    parsed = pick(frame, metric="parse", direction="probe").dropna(subset="value")
    if len(parsed):
        worst = parsed.loc[parsed["value"].idxmin()]
        lines.append(
            f"Lowest parse rate along the probe's direction: {_estimate(worst)} ({STEERED[worst['position']]}, alpha {worst['alpha']:g}, "
            f"step {int(worst['step'])})."
        )
    return _paragraph(lead, [*lines, _size(pick(frame, metric="flip", direction="probe"))])


def widest(frame: pd.DataFrame) -> float:
    """The largest alpha at which the probe's direction leaves half of the last checkpoint's decisions parsing, of one position's rows; else the smallest."""
    parse = pick(frame, step=frame["step"].max(), direction="probe", metric="parse")
    return max(parse.loc[parse["value"] >= 0.5, "alpha"], default=parse["alpha"].min())
