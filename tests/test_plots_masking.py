"""Figures, captions and the paper's table of the masking study, from synthetic tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ARMS = ("action_mask_0", "action_mask_0.1", "action_mask_0.3", "action_mask_0.5", "action_mask_0.7", "random_mask_0.3", "action_only")
SPLITS = ("in_domain", "out_of_domain")
STEPS = (0, 25, 60, 150, 350, 600)
PROVENANCE = {"verdict": "open", "selection": "k = 0 is chosen: no mask's acc_cot out of domain is better with an interval above 0", "model_hash": "0123" * 16}
#: Level of k = 0, what a share of 1 would add, and half an interval.
METRICS = {
    "acc_cot": (0.62, 0.05, 0.04), "acc_prompt": (0.5, -0.3, 0.05), "gap": (0.12, 0.35, 0.05), "parse_cot": (0.99, 0.0, 0.01), "parse_prompt": (0.97, -0.1, 0.02),
    "success_cot": (0.22, 0.05, 0.08), "success_prompt": (0.15, -0.05, 0.07), "prompt_reliance": (0.55, -0.35, 0.09), "follow": (0.6, 0.3, 0.08),
    "keep": (0.3, -0.2, 0.07), "probe_gain": (0.12, -0.1, 0.08), "patch_prompt": (0.7, -0.2, 0.1), "patch_boundary": (0.3, -0.1, 0.06),
}  # fmt: skip
INSTRUMENTS = ("prompt_reliance", "follow", "keep", "probe_gain", "patch_prompt", "patch_boundary")


def masking_table(arms=ARMS, splits=SPLITS, metrics=tuple(METRICS)) -> pd.DataFrame:
    """Table `masking` as the study writes it: every contrast that the arms allow, at the last step, reliance at all steps."""
    rng, rows = np.random.default_rng(0), []
    for metric in metrics:
        base, slope, half = METRICS[metric]
        for step in STEPS if metric == "prompt_reliance" else STEPS[-1:]:
            for split in splits:
                key = dict(step=step, split=split, metric=metric)

                def row(contrast, arm, value, width, seed=-1, seeds=3):
                    rows.append(key | dict(contrast=contrast, arm=arm, seed=seed, seeds=seeds, value=value, low=value - width, high=value + width,
                                           n=62 * seeds, n_groups=62))

                level = {}
                for arm in arms:
                    kind, _, share = arm.rpartition("_")
                    effect = 0.3 * slope if share == "only" else slope * float(share) * (0.3 if kind == "random_mask" else 1)
                    level[arm] = base - 0.1 * (split == "out_of_domain") * base + effect * step / STEPS[-1] + 0.01 * rng.standard_normal() * (step > 0)
                    n = 5 if arm in ("action_mask_0", "action_mask_0.3", "random_mask_0.3") else 3
                    for seed in range(n):
                        row("training", arm, level[arm] + 0.3 * half * rng.standard_normal(), 0.8 * half, seed, 1)
                    row("level", arm, level[arm], half, seeds=n)
                for arm in arms:
                    if arm != "action_mask_0" and "action_mask_0" in arms:
                        row("difference", arm, level[arm] - level["action_mask_0"], 0.9 * half)
                    if arm.startswith("random") and (masked := arm.replace("random", "action")) in arms:
                        row("control", masked, level[masked] - level[arm], 0.9 * half)
                if sum(arm.startswith("action_mask") for arm in arms) > 1:
                    row("slope", "", slope, 2 * half)
    return pd.DataFrame(rows)


def selection_table() -> pd.DataFrame:
    rows = [dict(step=600, split="out_of_domain", metric="acc_cot", arm=f"action_mask_{k:g}", seeds=3, share=k, value=v, low=v - w, high=v + w, n=186,
                 n_groups=62, chosen=k == 0.3) for k, v, w in ((0.0, 0.0, np.nan), (0.1, 0.01, 0.05), (0.3, 0.06, 0.05), (0.5, 0.07, 0.06), (0.7, 0.02, 0.07))]
    return pd.DataFrame(rows)
