"""Description length of labels given activations, by online coding.

>>> result = mdl(acts, labels, episodes, prompts=texts)
>>> result.compression.value, result.majority_bits / result.bits      # over the uniform code, and over one that knows frequencies

Not supported: variational coding.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits

from interp.probing.baselines import choose_layer
from interp.probing.inputs import checked_set, numbers
from interp.probing.logistic import TEXT_C, Fitter, standardised, tfidf
from interp.probing.metrics import NESTED
from interp.stats.intervals import Estimate, cluster_bootstrap, integer_codes
from interp.system.choices import SHARES, check_shares

#: Weight of the uniform code in every code, so that a class never seen costs bits, not infinity.
UNIFORM = 0.01


@dataclass(frozen=True)
class MDLResult:
    """Codelengths in bits of all labels, and the blocks they were sent in."""

    bits: float
    """With the activations."""
    majority_bits: float
    """With the class frequencies of the blocks before alone: the control without activations."""
    uniform_bits: float
    """With every class as likely: decisions times log2 of the classes."""
    compression: Estimate
    """uniform_bits / bits; the interval resamples episodes and holds the fitted predictors and the order fixed."""
    gain: Estimate
    """Bits for each decision that the activations save over the majority code, paired."""
    of_decision: dict[str, Float[np.ndarray, "decision"]]
    """Predictor (`probe`, `majority`, perhaps `tfidf`) to the bits of each decision, in the order given."""
    blocks: tuple[dict, ...]
    """n_known (decisions fitted on), n (decisions sent), bits, majority_bits, layer (-1 for acts of one layer), C (None in the first, uniform block)."""
    n_classes: int
    n_unconverged: int
    seed: int


def mdl(
    acts: Float[np.ndarray, "decision d_model"] | Float[np.ndarray, "decision layer d_model"],
    labels: Sequence[str],
    groups: Sequence[Hashable],
    *,
    prompts: Sequence[str] | None = None,
    shares: Sequence[float] = SHARES,
    C: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
    draws: int = 1000,
    device: str = "cpu",
) -> MDLResult:
    """Bits that it takes to send `labels` to someone who has `acts`, block by block, each with a probe of the blocks before it.

    The first block is sent with the uniform code. Later ones are sent with a multinomial logistic probe, standardised on the
    blocks before, its C and its layer chosen by grouped folds of them, and mixed with the uniform code by UNIFORM.

    acts: activations of one layer, or of the layers to choose from. prompts: texts, for a code by their TF-IDF. labels: the class of
    each decision, all classes known to both sides. groups: its episode; episodes are sent in a random order, and a block ends with the
    episode that reaches its share. shares: where blocks end, rising to 1. C: inverse penalties.
    draws: bootstrap resamples. device: where the fits run. seed: of the order, the folds and the resamples.
    Raises ValueError for lengths or shapes that differ, activations that are not finite, a single class, shares that do not
    rise to 1, and a first block of fewer than two episodes. Source: Voita & Titov 2020 (arXiv 2003.12298), online code.
    """
    values = numbers(acts)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"acts must be [decision, d_model] or [decision, layer, d_model], not of shape {values.shape}."
        )
    layers = [NESTED] if values.ndim == 2 else list(range(values.shape[1]))
    data = checked_set("the set", values[:, None] if values.ndim == 2 else values, labels, groups, prompts)
    classes, code = np.unique(data["labels"], return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"The labels hold only {classes.tolist()}: a code needs at least two classes.")
    check_shares(shares)
    if not len(C) or min(C) <= 0:
        raise ValueError(f"C must hold positive inverse penalties, not {tuple(C)}.")
    group, names = integer_codes(data["groups"].tolist())
    place = np.random.default_rng(seed).permutation(len(names))[
        group
    ]  # the episode's place in the order of sending
    sent = np.cumsum(np.bincount(place))
    ends = np.unique(
        np.searchsorted(sent, np.array(shares) * len(code) - 1e-9)
    )  # the last episode of each block
    if ends[0] < 1:
        raise ValueError(
            f"The first block, {shares[0]:g} of {len(names)} episodes, holds only one, but C needs two: give larger shares."
        )
    block = np.searchsorted(ends, place)
    jobs = [(np.flatnonzero(block < each), np.flatnonzero(block == each)) for each in range(1, len(ends))]
    k = len(classes)
    with threadpool_limits(1, "blas"):
        fitter = Fitter(code, group, k, jobs, seed, device)
        cells = [("probe", layer, standardised(data["acts"][:, i])) for i, layer in enumerate(layers)]
        probe, _ = choose_layer(fitter, "probe", layers, fitter.nested(cells, sorted(float(c) for c in C)))
        probability = {"probe": probe, "majority": fitter.count(np.zeros(len(code), dtype=int))[0]}
        if prompts is not None:
            [(probability["tfidf"], _)] = fitter.nested(
                [("tfidf", NESTED, tfidf(data["prompts"].tolist()))], TEXT_C
            )
    for each in probability.values():
        each[block == 0] = 1 / k
    bits = {
        name: -np.log2((1 - UNIFORM) * each[np.arange(len(code)), code] + UNIFORM / k)
        for name, each in probability.items()
    }
    chosen = [{}, *(row for row in fitter.chosen if row["predictor"] == "nested")]
    whole = {name: each.sum() for name, each in bits.items()}
    return MDLResult(
        bits=float(whole["probe"]),
        majority_bits=float(whole["majority"]),
        uniform_bits=float(len(code) * np.log2(k)),
        compression=cluster_bootstrap(
            bits["probe"], group, lambda mean: np.log2(k) / mean[..., 0], draws, seed
        ),
        gain=cluster_bootstrap(bits["majority"] - bits["probe"], group, None, draws, seed),
        of_decision=bits,
        blocks=tuple(
            {
                "n_known": int((block < i).sum()),
                "n": int((block == i).sum()),
                "bits": float(bits["probe"][block == i].sum()),
                "majority_bits": float(bits["majority"][block == i].sum()),
                "layer": chosen[i].get("layer"),
                "C": chosen[i].get("C"),
            }
            for i in range(len(ends))
        ),
        n_classes=k,
        n_unconverged=fitter.n_unconverged,
        seed=seed,
    )
