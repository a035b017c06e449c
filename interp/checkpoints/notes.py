"""Remarks on a series, in sentences: how weights are kept and read, and in what checkpoints differ.

>>> of_series(CheckpointSeries.discover("runs/lora"))
['Checkpoint 100 is an adapter merged into ...base.']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from interp.checkpoints import adapters, checks
from interp.checkpoints.contents import Checkpoint
from interp.checkpoints.headers import Header, headers, stored
from interp.checkpoints.names import VALUE_HEADS, own_names, wrapping
from interp.checkpoints.quantised import DEQUANTISED, batch_dependent, method


class Series(Protocol):
    """What is read of a series (`interp.checkpoints.series.CheckpointSeries`)."""

    trust_remote_code: bool

    @property
    def local(self) -> Mapping[int, Checkpoint]:
        """The checkpoints on disk by step."""

    @property
    def tokenizers(self) -> Mapping[int, PreTrainedTokenizerBase]:
        """Those that there are, by step."""

    def tokenizer(self, step: int) -> PreTrainedTokenizerBase:
        """The one that a checkpoint is read with."""

    def configuration(self, step: int) -> PretrainedConfig:
        """A checkpoint's."""

    def blueprint(self, config: PretrainedConfig) -> PreTrainedModel:
        """A model without weights."""


def of_series(series: Series) -> list[str]:
    """Every remark on the checkpoints on disk, in their order, and on the series as a whole."""
    remarks: list[str] = []
    dtypes: dict[str, list[int]] = {}
    for step, checkpoint in series.local.items():
        entries = headers(checkpoint)
        kept = stored(entries)
        if checkpoint.kind == "gguf":
            remarks.append(f"Checkpoint {step} is dequantised from {kept} ({checkpoint.path.name}).")
        elif checkpoint.kind == "adapter":
            remarks.append(f"Checkpoint {step} is an adapter merged into {_bases(checkpoint)}.")
        else:
            dtypes.setdefault(kept, []).append(step)
            remarks += _of_names(series, step, entries)
        remarks += _of_configuration(series, step, checkpoint)
    if len(dtypes) > 1:
        kept = "; ".join(f"{k} ({', '.join(map(str, v))})" for k, v in dtypes.items())
        remarks.append(f"The checkpoints are kept in several dtypes: {kept}.")
    return [*remarks, *vocabulary(series), *special_tokens(series)]


def _bases(checkpoint: Checkpoint) -> str:
    """The base of a merge, and the adapters that are merged into it before."""
    base, *between = [c.path for c in adapters.lineage(checkpoint)[:-1]]
    return str(base) + "".join(f", after the adapter {path}" for path in between)


def _of_names(series: Series, step: int, entries: Header) -> list[str]:
    remarks = []
    parameters = dict(series.blueprint(series.configuration(step)).named_parameters())
    names = own_names(entries, parameters.keys())
    if any(name != own for name, own in names.items()):
        prefix = wrapping(entries) or next(iter(names)).removesuffix(next(iter(names.values())))
        remarks.append(
            f"The tensors of checkpoint {step} are named with {prefix!r}, which a wrapper of the training "
            "run left there and which is taken off."
        )
    if heads := [n for n, own in names.items() if own not in parameters and VALUE_HEADS.match(own)]:
        remarks.append(
            f"{heads[0]!r} of checkpoint {step} is a head of values, which the language model does not use."
        )
    return remarks


def _of_configuration(series: Series, step: int, checkpoint: Checkpoint) -> list[str]:
    first = series.local[next(iter(series.local))]
    remarks = []
    config = checks.configuration(checkpoint, series.trust_remote_code)
    if name := method(getattr(config, "quantization_config", None)):
        plain = "dequantised before the merge" if checkpoint.base else "dequantised as it is loaded"
        how = plain if checkpoint.base or name in DEQUANTISED else "loaded as transformers loads it"
        remarks.append(f"The weights of checkpoint {step} are quantised ({name}), {how}.")
        if not checkpoint.base and batch_dependent(config.quantization_config):
            remarks.append(
                f"What checkpoint {step} computes in 8 bits depends a little on what else is in the batch "
                "(measured on a small model: 0.2 %)."
            )
    wanted = checks.configuration(first, series.trust_remote_code)
    fields = checks.check_architecture(checkpoint, config, first, wanted)
    if fields:
        remarks.append(
            f"The configuration of checkpoint {step} differs from the first one's in what changes "
            f"no forward pass: {', '.join(fields)}."
        )
    return remarks


def vocabulary(series: Series) -> list[str]:
    """A sentence for each vocabulary with a padding token that is not embedded, or that grows in the series.

    Raises ValueError where a tokenizer has other tokens that its model does not embed.
    """
    rows = {step: series.configuration(step).get_text_config().vocab_size for step in series.local}
    remarks = [
        checks.check_vocabulary(series.local[step], tokenizer, rows[step])
        for step, tokenizer in series.tokenizers.items()
    ]
    sizes = ", ".join(f"{step}: {n}" for step, n in rows.items())
    tokens = max((len(tokenizer) for tokenizer in series.tokenizers.values()), default=0)
    if len(set(rows.values())) > 1 and tokens > min(rows.values()):
        remarks.append(
            f"The vocabulary grows in the series (embeddings of checkpoint {sizes}): the one with all tokens "
            "is used, and a checkpoint that does not embed a token of a prompt refuses that prompt."
        )
    elif len(set(rows.values())) > 1:
        remarks.append(
            f"The embeddings have different numbers of rows (checkpoint {sizes}), each of them all "
            f"{tokens} tokens of the tokenizer."
        )
    return [sentence for sentence in remarks if sentence]


def special_tokens(series: Series) -> list[str]:
    """A sentence for each tokenizer whose special tokens differ from the series' ones, which are used."""
    remarks = []
    if series.tokenizers:
        used = checks.special_tokens(series.tokenizer(next(iter(series.tokenizers))))
        for step, tokenizer in series.tokenizers.items():
            own = checks.special_tokens(tokenizer)
            differ = ", ".join(
                f"{name} is {own[name]!r}, not {used[name]!r}" for name in own if own[name] != used[name]
            )
            if differ:
                remarks.append(
                    f"The special tokens of {checks.tokenizer_home(series.local[step])} are not the ones of "
                    f"the series, which are used for all of its checkpoints: {differ}."
                )
    return remarks
