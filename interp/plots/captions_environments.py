"""Captions of the figure of several environments: each one's reading at its first and last checkpoint."""

from __future__ import annotations

import html

import pandas as pd

from interp.plots.captions import _change, _join, _paragraph, _size
from interp.plots.environments import ENVIRONMENTS
from interp.results.names import SPLITS
from interp.results.queries import pick

_WORDS = {"acc_cot": "CoT action", "acc_prompt": "prompt action", "success_cot": "games won with the trace", "success_prompt": "without it",
          "prompt_reliance": "prompt reliance", "follow": "follows another state's trace", "probe_gain": "probe's gain"}


def environments(frame: pd.DataFrame, split: str = "in_domain") -> str:
    """What each environment reads at the first and last checkpoint, in one split."""
    lead = (f"The same measurements in several environments, {SPLITS[split].lower()}. The probe's gain is about the eventual action's target, "
            "in BFCL about whether the recorded one calls a function.")
    lines = []
    for name, title in ENVIRONMENTS.items():
        rows = pick(frame, environment=name, split=split)
        if len(rows):
            changes = _join([_change(rows, metric, word) for metric, word in _WORDS.items()])
            lines.append(f"{title}: {changes}. Accuracies: {_size(pick(rows, metric='acc_cot'))}")
    return _paragraph(lead, lines)


def out_of_domain(frame: pd.DataFrame) -> str:
    """As `environments`, of the out-of-domain split."""
    return environments(frame, "out_of_domain")


def splits(frame: pd.DataFrame) -> str:
    """What is counted."""
    lead = "What each series was trained on, and what its in-domain and out-of-domain decisions are."
    return html.escape(f"{lead} Episodes and decisions are those that are recorded; studied: decisions that every checkpoint acted on.", quote=False)
