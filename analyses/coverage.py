"""How often intervals cover the truth where activations say nothing: a simulation (docs/methods.md 9.1)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from tqdm import tqdm

from interp.results.tables import ESTIMATE_COLUMNS, write_table
from interp.stats.intervals import cluster_bootstrap, wilson
from interp.system.limits import Count, Draws, Folder, Limits, Seed

from .provenance import made_by
from .registry import Instrument

COLUMNS = [
    "what",
    "predictor",
    "layer",
    "metric",
    *ESTIMATE_COLUMNS,
    "bias",
    "sd_ratio",
]
#: Predictors whose intervals are counted, beside the plain ones.
PREDICTORS = ("probe", "random_model", "selectivity", "majority")
WORDS = ("pan", "cup", "sink", "desk", "shelf")


@dataclass
class Config:
    """Data sets without signal, and how large they are."""

    run: Annotated[Path, Folder()] = Path("figures")
    """Folder whose `tables` the table goes to."""
    datasets: Count = 1000
    """Data sets of each kind."""
    decisions: Annotated[int, Limits(20, 1_000_000)] = 120
    """Decisions of a data set."""
    per_episode: Count = 4
    """Decisions of an episode."""
    classes: Annotated[int, Limits(2, 1000)] = 3
    """Classes, drawn evenly."""
    layers: Count = 2
    """Layers of activations."""
    width: Count = 8
    """Features of a layer."""
    draws: Draws = 1000
    """Bootstrap resamples."""
    clusters: Annotated[tuple[int, ...], Limits(2, 100_000)] = (10, 30, 100)
    """Clusters of the plain means."""
    seed: Seed = 0
    """Seed of everything drawn."""


def run(config: Config) -> None:
    """Simulate and write the table `coverage`."""
    started = time.time()
    frame = coverage(config)
    write_table(
        config.run / "tables",
        "coverage",
        frame,
        dict(made_by("coverage", config, started), seed=config.seed, device="cpu"),
    )
    print(frame.to_string(index=False))


def coverage(config: Config) -> pd.DataFrame:
    """Shares of data sets whose intervals cover chance, and of false alarms, each with its Wilson interval.

    Labels are drawn evenly and apart from activations, texts and previous actions, so that chance is 1 /
    classes in accuracy, 0.5 in AUROC and 0 in selectivity. Column `what`: `predictor`, intervals that cover
    chance, at the nested choice and at a layer named beforehand; `false_gain`, gains whose interval lies
    above 0, over the majority class alone (`over_majority`) and over the best of every control (`over_all`);
    `layer_p`, data sets in which some layer's corrected p-value is below .05; `mean`, intervals of the plain
    mean of clustered 0/1 data (4 in a cluster, correlation .3) that cover its rate; predictor names clusters
    and rate.

    Returns value, low, high, n (data sets), n_groups (the same), bias (mean estimate minus chance), and
    sd_ratio: the SD of the estimates over data sets, over the mean SD that the intervals stand for.
    """
    from interp.probing.metrics import NESTED

    intervals: dict[tuple, list[tuple]] = {}
    for dataset in tqdm(range(config.datasets), desc="coverage"):
        for key, each in _one(config, dataset):
            intervals.setdefault(key, []).append(each)
    n_groups = -(-config.decisions // config.per_episode)
    rows = [_row(key, each, n_groups) for key, each in intervals.items()]
    for clusters in config.clusters:
        for rate in (0.1, 0.5, 0.9):
            each = [
                ("cover", rate, _mean(config, clusters, rate, dataset)) for dataset in range(config.datasets)
            ]
            rows.append(_row(("mean", f"{clusters} clusters, rate {rate:g}", NESTED, "mean"), each, clusters))
    return pd.DataFrame(rows)[COLUMNS]


def _one(config: Config, dataset: int) -> Iterator[tuple[tuple, tuple]]:
    """(what, predictor, layer, metric) and (test, chance, row) of one data set's intervals."""
    from interp.probing.baselines import PLAIN
    from interp.probing.probes import NESTED, probe

    rng = np.random.default_rng([config.seed, dataset])
    n = config.decisions
    labels = [f"class {i}" for i in rng.integers(config.classes, size=n)]
    types = [f"type {i}" for i in rng.integers(n // 5, size=n)]
    acts, other = rng.normal(size=(2, n, config.layers, config.width))
    prompts, previous = (
        [" ".join(words) for words in rng.choice(WORDS, (n, 12))],
        [f"before {i}" for i in rng.integers(4, size=n)],
    )
    groups, options = np.arange(n) // config.per_episode, dict(seed=dataset, draws=config.draws)
    plain = probe(
        acts,
        labels,
        groups,
        types=types,
        random_acts=other,
        metrics=("accuracy", "auroc"),
        predictors=("logistic", *PLAIN),
        **options,
    )
    chance = {"accuracy": 1 / config.classes, "auroc": 0.5}
    for row in plain.rows:
        predictor, layer, metric = row["predictor"], row["layer"], row["metric"]
        counted = predictor in (*PREDICTORS, *PLAIN) and (predictor, metric) != ("majority", "auroc")
        if counted and layer in (NESTED, 0):
            truth = 0.0 if predictor == "selectivity" else chance[metric]
            yield ("predictor", predictor, layer, metric), ("cover", truth, row)
    controlled = probe(
        acts, labels, groups, prompts=prompts, previous=previous, metrics=("accuracy",), layers=[0], **options
    )
    for name, result in (("over_majority", plain), ("over_all", controlled)):
        for row in result.rows:
            if row["predictor"] == "gain" and row["layer"] in (NESTED, 0) and row["metric"] == "accuracy":
                yield ("false_gain", name, row["layer"], "accuracy"), ("above", 0.0, row)
        alarm = min(row["p"] for row in result.layer_p if row["metric"] == "accuracy")
        yield (
            ("layer_p", name, NESTED, "accuracy"),
            ("alarm", 0.05, dict(value=alarm, low=np.nan, high=np.nan)),
        )


def _mean(config: Config, clusters: int, rate: float, dataset: int) -> dict:
    rng = np.random.default_rng([config.seed, clusters, round(100 * rate), dataset])
    # 0/1 data of one cluster correlate by 1 / (1 + 7 / 3).
    rates = rng.beta(rate * 7 / 3, (1 - rate) * 7 / 3, clusters)
    right = (rng.random((clusters, 4)) < rates[:, None]).ravel()
    groups = np.repeat(np.arange(clusters), 4).tolist()
    return cluster_bootstrap(right, groups, draws=config.draws, seed=dataset).row()


def _row(key: tuple, each: list[tuple], n_groups: int) -> dict:
    import scipy.stats

    test, chance, rows = each[0][0], each[0][1], pd.DataFrame([row for *_, row in each])
    hit = {
        "cover": (rows.low <= chance) & (chance <= rows.high),
        "above": rows.low > chance,
        "alarm": rows.value < chance,
    }[test]
    low, high = wilson(int(hit.sum()), len(hit))
    spread = ((rows.high - rows.low) / 2 / scipy.stats.t.isf(0.025, n_groups - 1)).mean()
    has_bias = test != "alarm" and len(rows) > 1 and spread > 0
    return dict(
        zip(("what", "predictor", "layer", "metric"), key, strict=True),
        value=hit.mean(),
        low=low,
        high=high,
        n=len(hit),
        n_groups=len(hit),
        bias=rows.value.mean() - chance if has_bias else np.nan,
        sd_ratio=rows.value.std() / spread if has_bias else np.nan,
    )


INSTRUMENT = Instrument("coverage", Config, run)
