"""What becomes of a probe where a control cannot be had: the rest is kept, and which one is missing is said."""

import numpy as np

from analyses.probes import ALL, _no_control_task, _probed


def arguments(types, n=48):
    rng = np.random.default_rng(0)
    labels = ["a" if i % 2 else "b" for i in range(n)]
    acts = rng.normal(size=(n, 2, 4)) + np.array([[[x == "a"]] for x in labels]) * 2
    return dict(
        acts=acts,
        labels=labels,
        groups=[str(i // 4) for i in range(n)],
        prompts=[f"text {i % 3}" for i in range(n)],
        previous=["" for _ in range(n)],
        types=types,
        random_acts=rng.normal(size=(n, 2, 4)),
    )


def test_one_prompt_type_loses_the_control_task_and_nothing_else():
    single, several = arguments(["look"] * 48), arguments([f"look {i % 6}" for i in range(48)])
    reason = _no_control_task([single], 0)
    assert reason.startswith("1 prompt types are too few or too uneven for a control task")
    assert _no_control_task([several], 0) == "" == _no_control_task([arguments(None)], 0)
    options = dict(folds=2, seed=0, draws=20, **ALL)
    ids = [str(i) for i in range(48)]
    rows = {
        which: {row["predictor"] for row in _probed([given], ids, 0, "eventual_target", options)["rows"]}
        for which, given in (("several", several), ("single", single | dict(types=None)))
    }
    assert rows["several"] - rows["single"] == {"control_task", "selectivity"}
    assert {"probe", "random_model", "lda", "gain", "tfidf"} <= rows["single"]
