"""A causal language model with hook points, and what of it is exact in a packed pass.

>>> model = CheckpointSeries.discover("runs/quick/series").load(0)
>>> model.support     # capture, trajectory, patch, mediation: "fast" or "plain loop", and why
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.models import hooks, inner, texts
from interp.models.attention import passing, without_cudnn
from interp.models.bridge import bridge_of
from interp.models.caches import AppendingLayer, CacheFilled, LastLayer, Layers, PrefixCache, layers_of
from interp.models.devices import pick_device, pick_dtype, sent
from interp.models.finite import check_trial, not_finite
from interp.models.hooks import PassEdit
from interp.models.site_names import one_layer
from interp.models.sites import find_hook_points
from interp.models.support import (
    BASE,
    MOST,
    PACKED,
    Crossing,
    Support,
    cross,
    forget_lengths,
    judge,
    named_lengths,
    steps,
    why_keyless,
)
from interp.models.turns import turns_of
from interp.models.unembedding import Unembedding
from interp.prompts.text import Readable, text_ids

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["HookedModel", "Layers", "Support", "layers_of", "pick_device", "pick_dtype"]

#: The attention mask that a model takes: one for all layers, or one for each type of layer.
Mask = Tensor | dict[str, Tensor]


class HookedModel:
    """A Hugging Face causal LM with hook points; `bridge` is TransformerLens's view of the same weights.

    Args:
        hf: the model; an adapter, a trainer's wrapper or a compiled module around it does as well.
        tokenizer: None where no text is read.
        step: of the checkpoint.
        weights_hash: names the weights, for what is stored of them.

    Raises:
        NotImplementedError: a measurement would not be exact; names the architecture and the property.
    """

    #: Whether passes may use cuDNN's attention, which takes about 0.1 s for every new shape
    #: (see `interp.models.attention`).
    cudnn_attention = False

    @passing
    def __init__(self, hf: torch.nn.Module, tokenizer: Any, step: int | None = None, weights_hash: str = ""):
        module: inner.LanguageModel = inner.unwrapped(hf)
        inner.check_not_compiled(module)
        self.hf = module
        self.hf.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.step = step
        self.weights_hash = weights_hash
        self.architecture = type(module).__name__
        self.config = inner.text_config(module)
        self.inner, self.blocks = inner.decoder(module, self.config)
        self.turns = turns_of(module)
        self.wide = False  # in_float32 runs it
        self.unrecorded = ""  # why its steps of decoding cannot be a CUDA graph
        self._crossings: dict[int, Crossing] = {}
        self._steps: dict[int, bool] = {}
        self._empty: dict[tuple[torch.dtype, bool], Layers] = {}
        if len(set((getattr(module, "hf_device_map", None) or {}).values())) > 1:
            # accelerate's hooks: what comes out is where the ids were
            add_hook_to_module(self.inner, AlignDevicesHook(io_same_device=True), append=True)
        self.window = inner.largest(self.config, "sliding_window")
        self.window = self.window or inner.largest(self.config, "attention_chunk_size")
        kind = "sliding_attention" if self.window else "full_attention"
        self.layer_types = list(getattr(self.config, "layer_types", None) or [kind] * len(self.blocks))
        forget_lengths(self.inner)
        self.unembedding = inner.tried(module, lambda: Unembedding(module, self.inner, self._ids(6)))
        inner.tried(module, self.check_finite)
        self.keyless = why_keyless(self)
        self.hook_points, self.heads, self.layout = inner.tried(
            module, lambda: find_hook_points(self.blocks, self.config, self.probe)
        )
        inner.tried(module, self._check_causal)

    def __repr__(self) -> str:
        shape = f"{self.n_layers} layers, d_model {self.d_model}, {self.n_heads} heads"
        # A trial takes passes: what was not asked for yet is not tried for a line of text.
        patching = self.support.patch if "support" in vars(self) else "not tried yet"
        kind = f"{str(self.dtype).removeprefix('torch.')}, {self.device}"
        return f"HookedModel({self.architecture}, {shape}, {kind}; patching {patching})"

    def attending(self) -> AbstractContextManager[None]:
        """A context for the toolkit's passes: without cuDNN's attention, unless `cudnn_attention` is set."""
        return nullcontext() if self.cudnn_attention else without_cudnn()

    def _check_causal(self) -> None:
        if not self.crossing(BASE).causal:
            raise NotImplementedError(
                "a token's states depend on the tokens after it, so it is no causal language model"
            )

    @passing
    def check_finite(self, name: object = None) -> None:
        """Raise ValueError where numbers are not finite on a few tokens.

        name: of the checkpoint, for the sentence, which says the dtype and where they begin, too.
        """
        check_trial(self, name or self.hf.config.name_or_path or self.architecture)

    def check_ids(self, rows: Iterable[Sequence[int]]) -> None:
        """Raise ValueError for a token id that the model does not embed."""
        entries = self.config.vocab_size
        for row in rows:
            if len(row) and not 0 <= min(row) <= max(row) < entries:
                wrong = next(i for i in row if not 0 <= i < entries)
                raise ValueError(
                    f"Token id {wrong} is none of this model's, which are 0 to {entries - 1}: "
                    "the ids are another tokenizer's, or the embedding was not grown with the tokenizer."
                )

    def _ids(self, tokens: int) -> Int[Tensor, "1 token"]:
        return torch.arange(tokens, device=self.device)[None] % self.config.vocab_size

    def probe(self, tokens: int = 6, **kwargs: Any) -> Any:
        """What the decoder gives for a few tokens."""
        ids = self._ids(tokens)
        with torch.inference_mode():
            return self.inner(input_ids=ids, **{**self.uncached, **kwargs})

    @cached_property
    def cached(self) -> dict[str, bool]:
        """The argument that asks for a cache, where the model knows one."""
        parameters = inspect.signature(self.inner.forward).parameters
        takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
        return {"use_cache": True} if "use_cache" in parameters or takes_any else {}

    @property
    def uncached(self) -> dict[str, bool]:
        """The argument that asks for no cache, where the model knows one."""
        return dict.fromkeys(self.cached, False)

    @passing
    def whole(self, ids: Int[Tensor, "row token"]) -> Float[Tensor, "row token d_model"]:
        """Final hidden states of whole sequences, in a plain pass."""
        return self.inner(input_ids=ids, **self.uncached).last_hidden_state

    @property
    def n_layers(self) -> int:
        """Blocks of the decoder."""
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Numbers of a token's residual stream (of all its copies, where a model keeps several)."""
        stream, *_ = self.hook_points.get("resid_pre", (None,))
        return stream.width if stream else self.config.hidden_size

    @property
    def n_heads(self) -> int:
        """Attention heads of a layer, the most that any layer has (`heads` has each layer's)."""
        return max(self.heads) or inner.largest(self.config, "num_attention_heads") or 1

    @property
    def vocabulary(self) -> int:
        """Tokens that the model embeds."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """Where its first parameter is."""
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of its first parameter."""
        return next(self.hf.parameters()).dtype

    @cached_property
    def widths(self) -> dict[str, tuple[int | None, ...]]:
        """Numbers at each site of a token, in each layer (None where a layer does not have the site)."""
        return {
            site: tuple(None if point is None else point.width for point in points)
            for site, points in self.hook_points.items()
        }

    def width(self, site: str, layer: int) -> int:
        """Numbers at a site of one layer; raises NotImplementedError where the layer does not have it."""
        return hooks.hook_point(self.hook_points, site, layer).width

    def hooks(self, edits: Mapping, passes: Literal["one", "any"] = "one") -> AbstractContextManager[None]:
        """Hook sites, (site, layer) or "blocks.3.hook_resid_pre", while passes run; other threads wait.

        Args:
            edits: functions of the activation [row, token, width]; a tensor that one gives replaces it.
            passes: `one` is exactly one forward pass, and an edit that did not run is an error
                (`hooks.attached`); in `any` number of them an edit is also given `Where` its tokens are.
        """
        keyed = {one_layer(key): edit for key, edit in edits.items()}
        if passes == "any":
            return self.turns.hooking(hooks.attached_to_all(self.inner, self.blocks, self.hook_points, keyed))
        return self.turns.hooking(hooks.attached(self.blocks, self.hook_points, keyed))

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most (None: its configuration names no limit)."""
        names = ("max_position_embeddings", "max_target_positions")
        most = next((value for name in names if (value := getattr(self.config, name, None))), None)
        if not most:
            return None
        rope = getattr(self.config, "rope_parameters", None)
        if isinstance(rope, dict) and rope.get("rope_type") == "dynamic":
            return int(most * rope.get("factor", 1))
        return most

    def check_length(self, tokens: int) -> None:
        """Raise ValueError where a sequence is longer than the model's context."""
        if self.context and tokens > self.context:
            raise ValueError(f"A sequence has {tokens} tokens, but this model reads at most {self.context}.")

    def new_cache(self, layers: Layers = (), ids: Sequence[int] = ()) -> PrefixCache:
        """A cache that starts from `layers`, the keys and values of `ids`."""
        return PrefixCache(layers, ids)

    def fork(self, cache: PrefixCache) -> PrefixCache:
        """A cache that starts from what another holds, which is left as it is."""
        return PrefixCache(layers_of(cache), cache.ids)

    @passing
    @torch.inference_mode()
    def read(self, ids: Sequence[int], cache: PrefixCache | None = None) -> PrefixCache:
        """Keys and values of one sequence, or of what follows `cache` (extended in place).

        The pass ends as soon as they are there. Of a model without ordinary ones, the cache holds the `ids`
        alone.
        """
        cache = PrefixCache() if cache is None else cache
        if len(ids):
            self.check_length(len(cache.ids) + len(ids))
            self.check_ids([ids])
            cache.ids += list(ids)
        if len(ids) and not self.keyless:
            self.fill(cache, sent(torch.tensor([list(ids)]), self.device))
        return cache

    @passing
    @torch.inference_mode()
    def read_rows(self, ids: Int[Tensor, "row token"]) -> Layers:
        """Keys and values of sequences that are padded on the right, in one plain pass without a mask."""
        cache = PrefixCache()
        self.fill(cache, ids)
        return layers_of(cache)

    @passing
    def fill(self, cache: PrefixCache, ids: Int[Tensor, "row token"]) -> None:
        """Extend a cache by what follows it; the pass ends as soon as the last layer has filled its own."""
        cache.layers += [DynamicLayer() for _ in range(self.n_layers - len(cache.layers))]
        last = cache.layers[-1]
        last.__class__ = LastLayer
        try:
            self.inner(input_ids=ids, past_key_values=cache, use_cache=True)
        except CacheFilled:
            pass
        finally:
            last.__class__ = DynamicLayer

    def mask(
        self,
        visible: Bool[Tensor, "_ token key"],
        at: Int[Tensor, "_ token"],
        keys_at: Int[Tensor, "_ key"],
    ) -> Mask:
        """The attention mask to pass, for tokens at positions `at` that may see keys at positions `keys_at`.

        A sliding layer further sees only keys less than a window away. Additive, since a boolean mask is
        silently wrong under eager attention.
        """
        dtype = torch.float32 if self.wide else self.dtype

        def additive(kind: str) -> Float[Tensor, "row 1 token key"]:
            seen = self._near(kind, at[..., :, None], keys_at[..., None, :])
            seen = visible if seen is None else visible & seen
            zeros = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            return zeros.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

        masks = {kind: additive(kind) for kind in dict.fromkeys(self.layer_types)}
        return masks if len(masks) > 1 else masks[self.layer_types[0]]

    def _near(self, kind: str, at: Tensor, keys_at: Tensor) -> Bool[Tensor, "row token key"] | None:
        """Which keys a type of layer reaches (None: all); `keyless` tells where a window is missing."""
        if self.window and kind == "sliding_attention":
            return at - keys_at < self.window
        if self.window and kind == "chunked_attention":
            return at // self.window == keys_at // self.window
        return None

    @passing
    def packed(
        self,
        prefix: Layers,
        ids: Int[Tensor, "row slot"],
        at: Int[Tensor, "_ slot"],
        visible: Bool[Tensor, "_ slot key"],
        keys_at: Int[Tensor, "_ prefix_key"],
    ) -> tuple[Float[Tensor, "row slot d_model"], Layers]:
        """Final hidden states of packed tokens after keys and values, and the slots' own.

        Args:
            prefix: keys and values of each row, or of one for all; they are not changed.
            ids: token of each slot.
            at: position of each slot (of one row: the same in all, as in `visible` and `keys_at`).
            visible: the prefix's keys, then the slots', that each slot sees.
            keys_at: positions of the prefix's keys.
        """
        rows = len(ids)
        layers = [AppendingLayer(*(t.expand(rows, -1, -1, -1) for t in layer)) for layer in prefix]
        cache = DynamicCache()
        cache.layers = list(layers)
        each = max(len(at), len(keys_at))
        both = torch.cat([keys_at.expand(each, -1), at.expand(each, -1)], 1)
        hidden = self.inner(
            input_ids=ids,
            position_ids=at.expand(rows, -1),
            attention_mask=self.mask(visible, at, both),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden, [layer.new for layer in layers]

    @passing
    def empty(self) -> Layers:
        """A prefix of no tokens."""
        kind = (self.dtype, self.wide)
        if kind not in self._empty:
            cache = PrefixCache()
            self.probe(1, past_key_values=cache, use_cache=True)
            self._empty[kind] = [(k[:, :, :0].clone(), v[:, :, :0].clone()) for k, v in layers_of(cache)]
        return self._empty[kind]

    def crossing(self, start: int) -> Crossing:
        """What is exact for sequences that go from `start` tokens to three more; each is tried once."""
        start = max(BASE, start)
        if start not in self._crossings:
            with self.turns.trying(), self.attending():
                self._crossings[start] = cross(self, start)
        return self._crossings[start]

    @cached_property
    def lengths(self) -> list[int]:
        """Lengths in tokens that the configuration names, at which a rule may change."""
        return [n for n in named_lengths(self.config) if n < (self.context or n + 1)]

    def stands_alone(self, tokens: int) -> bool:
        """Whether states in a sequence of so many tokens depend on its length: it is read without padding."""
        return not all(self.crossing(n - 1).causal for n in self.lengths if n < tokens)

    def rereads(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens cannot go on from kept keys and values, and is read whole."""
        return bool(self.keyless) or not all(
            self.crossing(n - 1).continued for n in (BASE, *self.lengths) if n < tokens
        )

    def packs(self, tokens: int) -> bool:
        """Whether sequences of so many tokens may be packed, or padded, after shared keys and values."""
        return self.support.patch == "fast" and self._wrong_length(tokens) is None

    def _wrong_length(self, tokens: int) -> int | None:
        """The named length around which packs of sequences of at most so many tokens are not exact.

        A pack is longer than its sequences.
        """
        for n in self.lengths:
            if n < MOST * tokens + PACKED and not self.crossing(n - 4).packed:
                return n
            if n < tokens and not self.crossing(n - 1).packed:
                return n
        return None

    def anew(self, length: int, tokens: int) -> bool:
        """Whether a sequence by itself must be read again to grow from `length` to `tokens` tokens."""
        starts = {BASE, *(max(BASE, n - 1 if length <= n else n + 1) for n in self.lengths if n < tokens)}
        for start in starts - self._steps.keys():
            with self.turns.trying(), self.attending():
                self._steps[start] = steps(self, start)
        return not all(self._steps[start] for start in starts)

    def path(self, tokens: int) -> str:
        """Why sequences, the longest of so many tokens, are not packed (empty where they are)."""
        if {self.support.trajectory, self.support.patch} != {"fast"}:
            return f"plain loop: {self.support.reason}"
        wrong = self._wrong_length(tokens)
        if wrong is None:
            return ""
        return (
            f"plain loop: beyond {wrong} tokens, which its configuration names, packed tokens do not come "
            "out as in a plain pass"
        )

    @cached_property
    def support(self) -> Support:
        """Which path is exact here, tried on a few tokens (see `interp.models.support`)."""
        return judge(self)

    def logits(
        self, hidden: Float[Tensor, "*rows d_model"], tokens: slice = slice(None)
    ) -> Float[Tensor, "*rows vocabulary"]:
        """Unembed final hidden states, in float32; `tokens`: that part of the vocabulary only."""
        logits = self.unembedding(hidden, tokens).to(self.device)
        if self.dtype == torch.float16 and not logits.isfinite().all():
            raise ValueError(not_finite(f"The logits of {self.architecture}", self.dtype, "on these tokens"))
        return logits

    @cached_property
    def bridge(self) -> TransformerBridge:
        """TransformerLens's TransformerBridge over the very same parameters, built on first use."""
        return bridge_of(self)

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | dict | None = None,
        revision: str = "main",
    ) -> HookedModel:
        """The model in a folder or GGUF file, or of a hub's repository, which is fetched.

        Args:
            dtype: float32, float16 or bfloat16; `auto` is float32 on a CPU and bfloat16 on a GPU.
            device_map: lays a model over several GPUs (accelerate's device map); `device` is then not read.
            revision: of a repository.

        Raises:
            ValueError, FileNotFoundError: for what cannot be read (see `CheckpointSeries.load`).
        """
        # Checkpoints are a layer above models.
        series = importlib.import_module("interp.checkpoints.series").CheckpointSeries
        found = (
            series.from_paths([path_or_name], steps=[0])
            if Path(path_or_name).exists()
            else series.from_hub(str(path_or_name), [revision])
        )
        return found.load(found.steps[0], device, dtype, device_map)

    def tokens(self, text: str, prepend_bos: bool | None = None) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer puts before one.

        prepend_bos: whether the tokenizer's first token stands before it (None: as the tokenizer has it).
        """
        return text_ids(self.tokenizer, text, prepend_bos)

    @passing
    def __call__(self, text: Readable) -> Float[Tensor, "1 token vocabulary"]:
        """Logits at every token of a text, or of ids, in float32."""
        return texts.logits_of(self, text)

    @passing
    def run_with_cache(
        self, text: Readable, sites: Sequence[str] | None = None
    ) -> tuple[Float[Tensor, "1 token vocabulary"], texts.SiteCache]:
        """Logits at every token of a text, and activations at sites, by TransformerLens's names."""
        return texts.run_with_cache(self, text, sites)

    def generate(
        self,
        text: Readable,
        max_new_tokens: int = 32,
        hooks: Mapping[str | tuple[str, int], PassEdit] | None = None,
    ) -> str | list[int]:
        """What follows a text, greedily: as text, or as ids where the model has no tokenizer.

        hooks: run in each pass, as `model.hooks(..., passes="any")` has them.
        """
        ids = texts.generate(self, text, max_new_tokens, hooks)
        return ids if self.tokenizer is None else self.tokenizer.decode(ids, skip_special_tokens=True)
