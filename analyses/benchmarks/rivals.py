"""Other tools doing the works of the benchmark, each the way its own documentation recommends for speed.

Every tool is `Tool(hf, tokenizer)` with the same four works on token ids; `Plain` is the reference. Batching
cells does not pay on a CPU (measured: the same seconds for each row), so every tool runs one forward for each
patched cell, with logits at the scored positions only (TransformerLens both so and as its tutorials have it).

>>> tools = [Tool(hf, tokenizer) for Tool in TOOLS if installed(Tool)]
>>> tools[0].layer_sweep(ids, donor, action)        # [layer]
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

#: Most tokens that one forward of a capture reads.
BATCH_TOKENS = 4096
Cell, Fit = tuple[int, int], tuple[int, int, float]


def installed(tool: type[Rival]) -> bool:
    """Whether the package of a tool is there."""
    return not tool.package or importlib.util.find_spec(tool.package) is not None


def twin(hf: PreTrainedModel) -> PreTrainedModel:
    """A module of its own over the same parameters, so that no tool runs through another one's hooks."""
    return copy.deepcopy(hf, {id(p): p for p in hf.parameters()})


def batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts of one length that are read together."""
    for length in sorted({len(p) for p in prompts}):
        group, size = [i for i, p in enumerate(prompts) if len(p) == length], max(1, BATCH_TOKENS // length)
        yield from (group[i : i + size] for i in range(0, len(group), size))


def log_probability(logits: torch.Tensor, action: Sequence[int]) -> torch.Tensor:
    """Summed log-probability of an action; logits: [token + 1, vocabulary] from the prompt's last token."""
    return logits[:-1].log_softmax(-1).gather(-1, torch.tensor(action)[:, None]).sum()


class Rival:
    """The four works, one forward for each cell or batch; a tool has its own `patched` and `residuals`."""

    name = package = ""

    def patched(self, ids: torch.Tensor, cell: Cell, value: torch.Tensor, keep: int) -> torch.Tensor:
        """Logits [keep, vocabulary] of ids [1, token], with resid_pre at a cell replaced by `value`."""
        raise NotImplementedError

    def residuals(self, ids: torch.Tensor) -> torch.Tensor:
        """Every layer's resid_post at the last token: ids [prompt, token] -> [prompt, layer, d_model]."""
        raise NotImplementedError

    @torch.inference_mode()
    def grid(
        self, ids: Sequence[int], donor: torch.Tensor, action: Sequence[int], cells: Sequence[Cell]
    ) -> torch.Tensor:
        """Log-probability of `action` after `ids` with resid_pre patched at each (layer, position).

        donor: values [layer, position, d_model]. Returns [cell].
        """
        sequence = torch.tensor([[*ids, *action]])
        return torch.stack(
            [
                log_probability(self.patched(sequence, cell, donor[cell], len(action) + 1), action)
                for cell in cells
            ]
        )

    def layer_sweep(
        self, ids: Sequence[int], donor: torch.Tensor, action: Sequence[int], layers: Sequence[int] = ()
    ) -> torch.Tensor:
        """The same at the last prompt token of each layer, or of `layers`; donor: [layer, d_model]."""
        values = donor[:, None].expand(-1, len(ids), -1)
        return self.grid(
            ids, values, action, [(layer, len(ids) - 1) for layer in layers or range(len(donor))]
        )

    @torch.inference_mode()
    def capture(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Every layer's resid_post at the last token of each prompt: [prompt, layer, d_model]."""
        rows: dict[int, torch.Tensor] = {}
        for group in batches(prompts):
            rows.update(zip(group, self.residuals(torch.tensor([list(prompts[i]) for i in group]))))
        return torch.stack([rows[i] for i in range(len(prompts))])

    def episode(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same for prompts that extend one another."""
        return self.capture(prompts)


class Plain(Rival):
    """The bare Hugging Face module with PyTorch hooks: the slow reference."""

    name = "plain"

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.hf = twin(hf)

    def patched(
        self,
        ids: torch.Tensor,
        cell: Cell,
        value: torch.Tensor,
        keep: int,
        cache: DynamicCache | None = None,
    ) -> torch.Tensor:
        layer, position = cell

        def hook(module: torch.nn.Module, args: tuple) -> tuple:
            hidden = args[0].clone()
            hidden[:, position] = value
            return (hidden, *args[1:])

        handle = self.hf.model.layers[layer].register_forward_pre_hook(hook)
        try:
            return self.hf(
                ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep
            ).logits[0]
        finally:
            handle.remove()

    def residuals(self, ids: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        rows: list[torch.Tensor] = []
        handles = [
            block.register_forward_hook(lambda module, args, output: rows.append(output[:, -1].clone()))
            for block in self.hf.model.layers
        ]
        try:
            self.forward(ids, cache)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(rows, 1)

    @torch.inference_mode()
    def forward(self, ids: torch.Tensor, cache: DynamicCache | None = None) -> None:
        """One forward without the language-model head: the unit that every work is measured in."""
        self.hf.model(ids, past_key_values=cache, use_cache=cache is not None)

    def forwards(self, prompts: Sequence[Sequence[int]]) -> None:
        """The forwards of a capture, and nothing else."""
        for group in batches(prompts):
            self.forward(torch.tensor([list(prompts[i]) for i in group]))


class Cached(Plain):
    """What a careful user writes by hand: keys and values before the patched token are computed once."""

    name = "plain, cached prefix"

    @torch.inference_mode()
    def grid(
        self, ids: Sequence[int], donor: torch.Tensor, action: Sequence[int], cells: Sequence[Cell]
    ) -> torch.Tensor:
        sequence, cache, found = torch.tensor([[*ids, *action]]), DynamicCache(), []
        before = max(position for _, position in cells)
        if before:
            self.forward(sequence[:, :before], cache)
        for layer, position in cells:
            part = DynamicCache()
            for index, kept in enumerate(cache.layers if position else ()):
                part.update(kept.keys[:, :, :position], kept.values[:, :, :position], index)
            logits = self.patched(
                sequence[:, position:], (layer, 0), donor[layer, position], len(action) + 1, part
            )
            found.append(log_probability(logits, action))
        return torch.stack(found)

    @torch.inference_mode()
    def episode(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        cache, found, before = DynamicCache(), [], []
        for ids in prompts:
            if list(ids[: len(before)]) != before or len(ids) == len(before):
                raise ValueError("The prompts of an episode must extend one another.")
            found.append(self.residuals(torch.tensor([list(ids[len(before) :])]), cache))
            before = list(ids)
        return torch.cat(found)


class TransformerLens(Rival):
    """TransformerBridge (eager attention, its own choice), with `run_with_hooks` and `run_with_cache`."""

    name, package, scored_only = "TransformerLens", "transformer_lens", False

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(
            "local", hf_model=twin(hf), tokenizer=tokenizer, dtype=hf.dtype, device="cpu"
        )
        self.sites = [f"blocks.{layer}.hook_resid_post" for layer in range(hf.config.num_hidden_layers)]

    def patched(self, ids: torch.Tensor, cell: Cell, value: torch.Tensor, keep: int) -> torch.Tensor:
        layer, position = cell

        def hook(hidden: torch.Tensor, hook: object) -> torch.Tensor:
            hidden[:, position] = value
            return hidden

        hooks = [(f"blocks.{layer}.hook_resid_pre", hook)]
        few = dict(logits_to_keep=keep) if self.scored_only else {}
        return self.bridge.run_with_hooks(ids, fwd_hooks=hooks, use_cache=False, **few)[0, -keep:]

    def residuals(self, ids: torch.Tensor) -> torch.Tensor:
        few = dict(logits_to_keep=1) if self.scored_only else {}
        _, cache = self.bridge.run_with_cache(
            ids, names_filter=self.sites, pos_slice=-1, return_type=None, **few
        )
        return torch.stack([cache[site][:, -1] for site in self.sites], 1)


class TransformerLensScored(TransformerLens):
    """The same, unembedding only the scored positions: the bridge hands `logits_to_keep` on."""

    name, scored_only = "TransformerLens, logits_to_keep", True


class NNsight(Rival):
    """One `trace` for each cell; a capture is one trace that stops before the language-model head."""

    name, package = "nnsight", "nnsight"

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        import nnsight

        self.save, self.model = nnsight.save, nnsight.NNsight(twin(hf))

    def patched(self, ids: torch.Tensor, cell: Cell, value: torch.Tensor, keep: int) -> torch.Tensor:
        layer, position = cell
        with self.model.trace(ids, use_cache=False, logits_to_keep=keep):
            self.model.model.layers[layer].input[:, position] = value
            logits = self.save(self.model.output.logits)
        return logits[0]

    def residuals(self, ids: torch.Tensor) -> torch.Tensor:
        with self.model.trace(ids, use_cache=False) as tracer:
            rows = self.save([block.output[:, -1].clone() for block in self.model.model.layers])
            tracer.stop()
        return torch.stack(rows, 1)


class Pyvene(Rival):
    """A `VanillaIntervention` with a stored source for each layer; a `CollectIntervention` for captures."""

    name, package = "pyvene", "pyvene"

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        import pyvene

        def intervenable(
            module: torch.nn.Module, layers: Iterable[int], component: str, kind: type
        ) -> pyvene.IntervenableModel:
            sites = [
                pyvene.RepresentationConfig(layer, component, intervention_type=kind) for layer in layers
            ]
            return pyvene.IntervenableModel(pyvene.IntervenableConfig(sites), model=module)

        module, layers = twin(hf), range(hf.config.num_hidden_layers)
        self.layers = [
            intervenable(module, [layer], "block_input", pyvene.VanillaIntervention) for layer in layers
        ]
        self.reader = intervenable(module.model, layers, "block_output", pyvene.CollectIntervention)

    def patched(self, ids: torch.Tensor, cell: Cell, value: torch.Tensor, keep: int) -> torch.Tensor:
        layer, position = cell
        base = dict(input_ids=ids, logits_to_keep=keep)
        _, output = self.layers[layer](
            base=base,
            unit_locations={"base": position},
            source_representations=value[None, None],
            use_cache=False,
        )
        return output.logits[0]

    def residuals(self, ids: torch.Tensor) -> torch.Tensor:
        (_, rows), _ = self.reader(
            base=dict(input_ids=ids), unit_locations={"base": ids.shape[1] - 1}, use_cache=False
        )
        return torch.stack([row.reshape(len(ids), -1) for row in rows], 1)


TOOLS: tuple[type[Rival], ...] = (Plain, Cached, TransformerLens, TransformerLensScored, NNsight, Pyvene)


def sklearn_sweep(
    features: np.ndarray, label: np.ndarray, folds: Sequence, cells: Sequence[Fit]
) -> torch.Tensor:
    """Held-out probabilities of each (layer, fold, C).

    Args:
        features: [layer, decision, feature].
        label: the class of each decision.
        folds: indices of the decisions to train on and to hold out.
        cells: layer, index of the fold, inverse penalty.

    Returns:
        [cell, decision, class].
    """
    probabilities = []
    for layer, fold, c in cells:
        train, held_out = folds[fold]
        scale = StandardScaler().fit(features[layer][train])
        model = LogisticRegression(C=c, max_iter=1000).fit(
            scale.transform(features[layer][train]), label[train]
        )
        predicted = model.predict_proba(scale.transform(features[layer][held_out]))
        probabilities.append(torch.from_numpy(predicted))
    return torch.stack(probabilities)
