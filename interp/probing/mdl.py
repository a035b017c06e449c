"""Description length of labels given activations, by online coding.

>>> result = mdl(acts, labels, episodes, prompts=texts)
>>> result.compression.value               # over the uniform code
>>> result.majority_bits / result.bits     # over a code that knows the frequencies

Not supported: variational coding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from threadpoolctl import threadpool_limits

from interp.probing.baselines import choose_layer
from interp.probing.inputs import Acts, Names, ProbeSet, checked_penalties, checked_set, numbers
from interp.probing.logistic import TEXT_C, Fitter, standardised, tfidf
from interp.probing.metrics import NESTED
from interp.results.shown import Plotted, counted
from interp.stats.intervals import Estimate, Groups, cluster_bootstrap, integer_codes
from interp.system.choices import SHARES, check_shares

#: Weight of the uniform code in every code, so that a class never seen costs bits, not infinity.
UNIFORM = 0.01


@dataclass(frozen=True, eq=False, repr=False)
class MDLResult(Plotted):
    """Codelengths in bits of all labels, and the blocks they were sent in."""

    picture: ClassVar[str] = "mdl"
    bits: float
    """With the activations."""
    majority_bits: float
    """With the class frequencies of the blocks before alone: the control without activations."""
    uniform_bits: float
    """With every class as likely: decisions times log2 of the classes."""
    compression: Estimate
    """uniform_bits / bits; the interval resamples episodes and holds fitted predictors and order fixed."""
    gain: Estimate
    """Bits for each decision that the activations save over the majority code, paired."""
    of_decision: dict[str, Float[np.ndarray, "decision"]]
    """Predictor (`probe`, `majority`, perhaps `tfidf`) to the bits of each decision, in the order given."""
    blocks: tuple[dict, ...]
    """n_known (decisions fitted on), n (decisions sent), bits, majority_bits, layer, C.

    layer is -1 for acts of one layer; layer and C are None in the first, uniform block.
    """
    n_classes: int
    n_unconverged: int
    seed: int

    def summary(self) -> str:
        decisions = f"{counted(len(self.of_decision['probe']), 'decision')}, {self.n_classes} classes"
        codes = f"{self.bits:.0f} bits, majority {self.majority_bits:.0f}, uniform {self.uniform_bits:.0f}"
        return f"{decisions}, {counted(len(self.blocks), 'block')}; {codes}"

    def to_frame(self) -> pd.DataFrame:
        """A row for each block, as in `blocks`."""
        return pd.DataFrame(self.blocks)


def mdl(
    acts: Acts,
    labels: Names,
    groups: Groups,
    *,
    prompts: Names | None = None,
    shares: Sequence[float] = SHARES,
    C: Sequence[float] = (0.01, 0.1, 1.0),
    seed: int = 0,
    draws: int = 1000,
    device: str = "cpu",
) -> MDLResult:
    """Bits that it takes to send `labels` to someone who has `acts`, in blocks.

    The first block is sent with the uniform code. Later ones are sent with a multinomial logistic probe,
    standardised on the blocks before, its C and its layer chosen by grouped folds of them, and mixed with the
    uniform code by UNIFORM.

    Args:
        acts: [decision, d_model] of one layer, or [decision, layer, d_model] of the layers to choose from.
        labels: the class of each decision, all classes known to sender and receiver.
        groups: its episode; episodes are sent in a random order, and a block ends with the one that reaches
            its share.
        prompts: texts, for a code by their TF-IDF.
        shares: where blocks end, rising to 1.
        C: inverse penalties.
        seed, draws, device: as in `ProbeOptions`; the order is drawn with `seed` too.

    Raises:
        ValueError: as `probe` does, and for shares that do not rise to 1 and a first block of one episode.

    Source: Voita & Titov 2020 (arXiv 2003.12298), online code.
    """
    values, layers = _layers(acts)
    data = checked_set("the set", values, labels, groups, prompts)
    classes, code = np.unique(data.labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"The labels hold only {classes.tolist()}: a code needs at least two classes.")
    check_shares(shares)
    grid = checked_penalties(C)
    group = integer_codes(data.groups.tolist())[0]
    block = _blocks(group, shares, seed)
    n_blocks, n_classes = int(block.max()) + 1, len(classes)
    jobs = [(np.flatnonzero(block < each), np.flatnonzero(block == each)) for each in range(1, n_blocks)]
    fitter = Fitter(code, group, n_classes, jobs, seed, device)
    bits = _bits(fitter, data, layers, grid, block)
    uniform = float(np.log2(n_classes))
    compression = cluster_bootstrap(bits["probe"], group, lambda mean: uniform / mean[..., 0], draws, seed)
    return MDLResult(
        bits=float(bits["probe"].sum()),
        majority_bits=float(bits["majority"].sum()),
        uniform_bits=len(code) * uniform,
        compression=compression,
        gain=cluster_bootstrap(bits["majority"] - bits["probe"], group, None, draws, seed),
        of_decision=bits,
        blocks=_block_rows(fitter, bits, block),
        n_classes=n_classes,
        n_unconverged=fitter.n_unconverged,
        seed=seed,
    )


def _layers(acts: Acts) -> tuple[Float[np.ndarray, "..."], list[int]]:
    """Activations with an axis for the layer, and the layers' numbers."""
    values = numbers(acts)
    if values.ndim == 2:
        return values[:, None], [NESTED]
    if values.ndim != 3:
        raise ValueError(
            f"acts must be [decision, d_model] or [decision, layer, d_model], not of shape {values.shape}."
        )
    return values, list(range(values.shape[1]))


def _blocks(
    group: Int[np.ndarray, "decision"], shares: Sequence[float], seed: int
) -> Int[np.ndarray, "decision"]:
    """The block in which each decision is sent."""
    n_groups = int(group.max()) + 1
    position = np.random.default_rng(seed).permutation(n_groups)[group]
    sent = np.cumsum(np.bincount(position))
    last_of_block = np.unique(np.searchsorted(sent, np.array(shares) * len(group) - 1e-9))
    if last_of_block[0] < 1:
        raise ValueError(
            f"The first block, {shares[0]:g} of {n_groups} episodes, holds only one, but C needs two: "
            "give larger shares."
        )
    return np.searchsorted(last_of_block, position)


def _bits(
    fitter: Fitter,
    data: ProbeSet,
    layers: Sequence[int],
    grid: Sequence[float],
    block: Int[np.ndarray, "decision"],
) -> dict[str, Float[np.ndarray, "decision"]]:
    """Bits of each decision by each code."""
    with threadpool_limits(1, "blas"):
        cells = [("probe", layer, standardised(data.acts[:, i])) for i, layer in enumerate(layers)]
        probe, _ = choose_layer(fitter, "probe", layers, fitter.nested(cells, grid))
        majority = fitter.count(np.zeros(len(block), dtype=int)).probability
        probability = {"probe": probe, "majority": majority}
        if data.prompts is not None:
            [text] = fitter.nested([("tfidf", NESTED, tfidf(data.prompts.tolist()))], TEXT_C)
            probability["tfidf"] = text.probability
    uniform = 1 / fitter.n_classes
    bits = {}
    for name, each in probability.items():
        each[block == 0] = uniform
        of_label = each[np.arange(len(block)), fitter.code]
        bits[name] = -np.log2((1 - UNIFORM) * of_label + UNIFORM / fitter.n_classes)
    return bits


def _block_rows(
    fitter: Fitter, bits: Mapping[str, Float[np.ndarray, "decision"]], block: Int[np.ndarray, "decision"]
) -> tuple[dict, ...]:
    chosen = [{}, *(row for row in fitter.chosen if row["predictor"] == "nested")]
    return tuple(
        {
            "n_known": int((block < i).sum()),
            "n": int((block == i).sum()),
            "bits": float(bits["probe"][block == i].sum()),
            "majority_bits": float(bits["majority"][block == i].sum()),
            "layer": row.get("layer"),
            "C": row.get("C"),
        }
        for i, row in enumerate(chosen)
    )
