"""How often the probes' intervals cover chance where labels have nothing to do with activations: a simulation, no model.

`python -m analyses.coverage` draws 1,000 data sets; the tests draw 40.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import tyro

from interp.probes import NESTED, probe
from interp.readers import PLAIN


def coverage(
    datasets: int = 1000, decisions: int = 120, per_episode: int = 4, classes: int = 3, layers: int = 2, width: int = 8,
    draws: int = 1000, seed: int = 0,
) -> pd.DataFrame:
    """Share of data sets whose 95 % interval covers chance, by reader and metric, at the nested choice of layer.

    Labels are drawn evenly and apart from the activations, so that chance is 1 / classes in accuracy, 0.5 in AUROC and 0 in
    selectivity for every reader but `majority`: with even classes, a training fold's majority runs against the held-out one, its
    accuracy is below chance, and gains over it alone lie above 0. Reader `layer_p` is the rate at which that raises an alarm: the
    share of data sets with some corrected p-value below .05.

    datasets: drawn one by one from `seed` on. decisions, per_episode, classes, layers, width: of each. draws: bootstrap resamples.
    Returns reader, metric, share, n (data sets).
    """
    hits: dict[tuple[str, str], list[bool]] = {}
    for dataset in range(datasets):
        rng = np.random.default_rng([seed, dataset])
        labels = [f"class {i}" for i in rng.integers(classes, size=decisions)]
        types = [f"type {i}" for i in rng.integers(decisions // 5, size=decisions)]
        acts, other = rng.normal(size=(2, decisions, layers, width))
        found = probe(acts, labels, np.arange(decisions) // per_episode, seed=dataset, draws=draws, types=types, random_acts=other,
                      metrics=("accuracy", "auroc"), readers=("logistic", *PLAIN))
        chance = {"accuracy": 1 / classes, "auroc": 0.5}
        for row in found.rows:
            if row["layer"] == NESTED and row["reader"] in ("probe", "random_model", "majority", "selectivity", *PLAIN):
                at = 0.0 if row["reader"] == "selectivity" else chance[row["metric"]]
                hits.setdefault((row["reader"], row["metric"]), []).append(row["low"] <= at <= row["high"])
        alarm = min(row["p"] for row in found.layer_p if row["metric"] == "accuracy") < 0.05
        hits.setdefault(("layer_p", "accuracy"), []).append(alarm)
    return pd.DataFrame([{"reader": key[0], "metric": key[1], "share": np.mean(each), "n": len(each)} for key, each in hits.items()])


if __name__ == "__main__":
    print(tyro.cli(coverage).to_string(index=False))
