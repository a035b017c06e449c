"""A causal language model whose sites can be tapped, and what of it can be computed exactly in one packed forward pass.

>>> model = CheckpointSeries.discover("runs/quick/series").load(0)
>>> model.support                               # capture, trajectory, patch, mediation: "fast" or "plain loop", and why
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property, wraps

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.models import hooks, inner
from interp.models.attention import without_cudnn
from interp.models.finite import check_trial, not_finite
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
from interp.system.choices import check_device
from interp.system.sentences import first_line

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Hidden states and entries of the vocabulary that are unembedded at once.
ROWS, TILE = 512, 4096
#: Logits that are held at once on a GPU.
ON_GPU = 2**26
#: keys and values of each layer, [row, head, token, width]
Layers = list[tuple[torch.Tensor, torch.Tensor]]


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one; raises ValueError for a device this machine does not have."""
    check_device(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"Device {name!r} was asked for, but torch sees no GPU on this machine: use --device cpu."
        )
    device = torch.device(name)
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise ValueError(
            f"Device {name!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs, which are counted from 0."
        )
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on the CPU and bfloat16 on a GPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise ValueError(f"There is no dtype {name!r}: use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def layers_of(cache: DynamicCache) -> Layers:
    """The keys and values in a cache (no layers where it is empty)."""
    return [(layer.keys, layer.values) for layer in cache.layers]


class _Behind(DynamicLayer):
    """A cache layer that shows what it is given after what it holds, and keeps only the former apart."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.new = keys, values, None

    def update(self, key_states, value_states, *args, **kwargs):
        self.new = (key_states, value_states)
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)


class _Enough(Exception):
    """The last layer's keys and values are there, and nothing else of the pass is wanted."""


class _Last(DynamicLayer):
    """The last layer's cache in a pass that is run for its keys and values alone: it ends the pass."""

    def update(self, key_states, value_states, *args, **kwargs):
        super().update(key_states, value_states)
        raise _Enough


def passing(method: Callable) -> Callable:
    """A method of a HookedModel that runs passes (see `HookedModel.attending`)."""

    @wraps(method)
    def inside(model, *args, **kwargs):
        with model.attending():
            return method(model, *args, **kwargs)

    return inside


class HookedModel:
    """A Hugging Face causal LM whose sites can be tapped; `bridge` is TransformerLens's view of the same weights.

    Raises NotImplementedError, naming the architecture and the property, where a measurement would not be exact.
    """

    #: Whether its passes may use cuDNN's attention, which takes about 0.1 s for every new shape (see
    #: `interp.models.attention`).
    cudnn_attention = False

    @passing
    def __init__(self, hf, tokenizer, step: int | None = None, weights_hash: str = ""):
        hf = inner.unwrapped(hf)
        inner.check_not_compiled(hf)
        self.hf, self.tokenizer, self.step, self.weights_hash = (
            hf.eval().requires_grad_(False),
            tokenizer,
            step,
            weights_hash,
        )
        self.architecture, self.config = type(hf).__name__, inner.text_config(hf)
        self.inner, self.blocks = inner.decoder(hf, self.config)
        config, depth = self.config, len(self.blocks)
        self.turns, self.wide, self._crossings, self._steps = turns_of(hf), False, {}, {}
        if (
            len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1
        ):  # accelerate's hooks: what comes out is where the ids were
            add_hook_to_module(self.inner, AlignDevicesHook(io_same_device=True), append=True)
        self.window = inner.largest(config, "sliding_window") or inner.largest(config, "attention_chunk_size")
        self.layer_types = list(
            getattr(config, "layer_types", None)
            or ["sliding_attention" if self.window else "full_attention"] * depth
        )
        forget_lengths(self.inner)
        self._unembedding = self._trial(lambda: Unembedding(hf, self.inner, self._ids(6)))
        self._trial(self.check_finite)
        self.keyless = why_keyless(self)
        self.hook_points, self.heads, self.layout = self._trial(
            lambda: find_hook_points(self.blocks, config, self._probe)
        )
        self._trial(self._check_causal)

    def attending(self):
        """A context for passes of the toolkit's own: without cuDNN's attention, unless `cudnn_attention` is
        set.
        """
        return nullcontext() if self.cudnn_attention else without_cudnn()

    def _trial(self, run: Callable[[], object]):
        """What a trial gives; what a model's own code raises in it becomes a sentence with the architecture."""
        try:
            return run()
        except (NotImplementedError, ValueError) as error:
            if "not finite" in str(error) or str(error).startswith(self.architecture):
                raise
            raise NotImplementedError(f"{self.architecture} is not supported: {error}") from error
        except Exception as error:  # anything that a model's own code may raise
            reason = f"{type(error).__name__}: {first_line(error)}"
            kept = inner.kept_wide(self.hf, self.dtype)
            if narrow := [name for name, tensor in kept.items() if tensor.dtype != torch.float32]:
                dtype = str(self.dtype).removeprefix("torch.")
                raise ValueError(
                    f"{self.architecture} fails on a few tokens ({reason}): transformers keeps {narrow[0]!r} in float32, "
                    f"and here it is {dtype}. Load the model with from_pretrained(..., dtype=...) in place of hf.to(...), "
                    "which narrows every weight."
                ) from error
            raise NotImplementedError(
                f"{self.architecture} is not supported: a plain pass over a few tokens fails ({reason})."
            ) from error

    def _check_causal(self) -> None:
        if not self.crossing(BASE).causal:
            raise NotImplementedError(
                "a token's states depend on the tokens after it, so it is no causal language model"
            )

    @passing
    def check_finite(self, name: object = None) -> None:
        """Raise ValueError for numbers that are not finite on a few tokens: of which checkpoint, in which dtype, and where they begin."""
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

    def _ids(self, tokens: int) -> torch.Tensor:
        return torch.arange(tokens, device=self.device)[None] % self.config.vocab_size

    def _probe(self, tokens: int = 6, **kwargs):
        ids = self._ids(tokens)
        with torch.inference_mode():
            return self.inner(input_ids=ids, **{**self.uncached, **kwargs})

    @cached_property
    def cached(self) -> dict[str, bool]:
        """What asks for a cache, where the model knows one."""
        taken = inspect.signature(self.inner.forward).parameters
        return (
            {"use_cache": True}
            if "use_cache" in taken or any(p.kind == p.VAR_KEYWORD for p in taken.values())
            else {}
        )

    @property
    def uncached(self) -> dict[str, bool]:
        """What asks for no cache."""
        return dict.fromkeys(self.cached, False)

    @passing
    def whole(self, ids: torch.Tensor) -> torch.Tensor:
        """Final hidden states [row, token, d_model] of whole sequences [row, token], in a plain pass."""
        return self.inner(input_ids=ids, **self.uncached).last_hidden_state

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        """Numbers of a token's residual stream (of all its copies, where a model keeps several)."""
        stream = self.hook_points.get("resid_pre", (None,))[0]
        return stream.width if stream else self.config.hidden_size

    @property
    def n_heads(self) -> int:
        """Attention heads of a layer, the most that any layer has (`heads` has each layer's)."""
        return max(self.heads) or inner.largest(self.config, "num_attention_heads") or 1

    @property
    def vocabulary(self) -> int:
        """Entries that the model tells apart: tokens it embeds."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @cached_property
    def widths(self) -> dict[str, tuple[int | None, ...]]:
        """Numbers at each site of a token, in each layer (None where a layer does not have the site)."""
        return {site: tuple(place and place.width for place in row) for site, row in self.hook_points.items()}

    def width(self, site: str, layer: int) -> int:
        """Numbers at a site of one layer; raises NotImplementedError where the layer does not have it."""
        return hooks.hook_point(self.hook_points, site, layer).width

    def hooks(self, edits: Mapping[tuple[str, int], hooks.Edit]):
        """Hook sites for one forward pass (see `interp.models.hooks.attached`); other threads wait for its end."""
        return self.turns.hooking(hooks.attached(self.blocks, self.hook_points, edits))

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most (None: its configuration names no limit)."""
        names = ("max_position_embeddings", "max_target_positions")
        most = next((value for name in names if (value := getattr(self.config, name, None))), None)
        rope = getattr(self.config, "rope_parameters", None)
        grows = most and isinstance(rope, dict) and rope.get("rope_type") == "dynamic"
        return int(most * rope.get("factor", 1)) if grows else most or None

    def check_length(self, tokens: int) -> None:
        """Raise ValueError where a sequence is longer than the model's context."""
        if self.context and tokens > self.context:
            raise ValueError(f"A sequence has {tokens} tokens, but this model reads at most {self.context}.")

    def new_cache(self, layers: Layers = (), ids: Sequence[int] = ()) -> DynamicCache:
        """A cache that keeps every key (a config-aware one drops those outside a sliding window), and starts from `layers`, those of `ids`."""
        cache = DynamicCache()
        for index, layer in enumerate(layers):
            cache.update(*layer, index)
        cache.ids = list(ids)
        return cache

    def fork(self, cache: DynamicCache) -> DynamicCache:
        """A cache that starts from what another holds, which is left as it is."""
        return self.new_cache(layers_of(cache), cache.ids)

    @passing
    @torch.inference_mode()
    def read(self, ids: Sequence[int], cache: DynamicCache | None = None) -> DynamicCache:
        """Keys and values of one sequence, or of what follows `cache` (extended in place); the pass ends as soon as they are there.

        Of a model without ordinary ones, the cache holds the `ids` alone, to be read again.
        """
        cache = self.new_cache() if cache is None else cache
        if len(ids):
            self.check_length(len(cache.ids) + len(ids))
            self.check_ids([ids])
            cache.ids += list(ids)
        if len(ids) and not self.keyless:
            self._fill(cache, torch.tensor([list(ids)], device=self.device))
        return cache

    @passing
    @torch.inference_mode()
    def read_rows(self, ids: torch.Tensor) -> Layers:
        """Keys and values of sequences [row, token] that are padded on the right, in one plain pass without a
        mask of one's own.
        """
        cache = self.new_cache()
        self._fill(cache, ids)
        return layers_of(cache)

    def _fill(self, cache: DynamicCache, ids: torch.Tensor) -> None:
        """Extend a cache by what follows it [row, token]; the pass ends as soon as the last layer's keys and
        values are there.
        """
        cache.layers += [DynamicLayer() for _ in range(self.n_layers - len(cache.layers))]
        last = cache.layers[-1]
        last.__class__ = _Last
        try:
            self.inner(input_ids=ids, past_key_values=cache, use_cache=True)
        except _Enough:
            pass
        finally:
            last.__class__ = DynamicLayer

    def mask(self, visible: torch.Tensor, at: torch.Tensor, keys_at: torch.Tensor):
        """The attention mask to pass, for tokens at positions `at` [row, token] that may see keys at `keys_at` [row, key].

        visible: Bool[Tensor, "row token key"]. A sliding layer further sees only keys less than a window away. Additive,
        since a boolean mask is silently wrong under eager attention.
        """
        dtype = torch.float32 if self.wide else self.dtype

        def additive(kind):
            seen = visible
            if kind == "sliding_attention":
                seen = visible & (at[..., :, None] - keys_at[..., None, :] < self.window)
            if kind == "chunked_attention":
                seen = visible & (at[..., :, None] // self.window == keys_at[..., None, :] // self.window)
            return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(
                ~seen, torch.finfo(dtype).min
            )[:, None]

        masks = {kind: additive(kind) for kind in dict.fromkeys(self.layer_types)}
        return masks if len(masks) > 1 else masks[self.layer_types[0]]

    @passing
    def packed(
        self,
        prefix: Layers,
        ids: torch.Tensor,
        at: torch.Tensor,
        visible: torch.Tensor,
        keys_at: torch.Tensor,
        rows: int = 1,
    ) -> tuple[torch.Tensor, Layers]:
        """Final hidden states [row, slot, d_model] of packed tokens after shared keys and values, and the slots' own.

        ids, at: token and position of each slot; visible: Bool[Tensor, "slot key"] over the prefix's keys, then the
        slots'; keys_at: positions of the prefix's keys; rows: copies of the slots. The prefix is not changed.
        """
        cache = DynamicCache()
        cache.layers = [_Behind(*(t.expand(rows, -1, -1, -1) for t in layer)) for layer in prefix]
        mask = self.mask(visible[None], at[None], torch.cat([keys_at, at])[None])
        hidden = self.inner(
            input_ids=ids.expand(rows, -1),
            position_ids=at.expand(rows, -1),
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return hidden, [layer.new for layer in cache.layers]

    @passing
    def empty(self) -> Layers:
        """A prefix of no tokens."""
        cache = self.new_cache()
        self._probe(1, past_key_values=cache, use_cache=True)
        return [(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in cache.layers]

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
        """Whether the states in a sequence of so many tokens are not those of its beginning: it is read whole, without padding."""
        return not all(self.crossing(n - 1).causal for n in self.lengths if n < tokens)

    def rereads(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens cannot be gone on with from what was kept of its beginning, and is read whole each time."""
        return bool(self.keyless) or not all(
            self.crossing(n - 1).continued for n in (BASE, *self.lengths) if n < tokens
        )

    def packs(self, tokens: int) -> bool:
        """Whether sequences of at most so many tokens may lie side by side, or padded, after shared keys and values."""
        return self.support.patch == "fast" and self._wrong_length(tokens) is None

    def _wrong_length(self, tokens: int) -> int | None:
        """The named length around which packs of sequences of at most so many tokens are not exact; they are longer than those."""
        for n in self.lengths:
            if (
                n < MOST * tokens + PACKED
                and not self.crossing(n - 4).packed
                or n < tokens
                and not self.crossing(n - 1).packed
            ):
                return n
        return None

    def anew(self, known: int, tokens: int) -> bool:
        """Whether a sequence by itself must be read again to have `tokens` in place of `known`."""
        starts = {BASE, *(max(BASE, n - 1 if known <= n else n + 1) for n in self.lengths if n < tokens)}
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
        return f"plain loop: beyond {wrong} tokens, which its configuration names, packed tokens do not come out as in a plain pass"

    @cached_property
    def support(self) -> Support:
        """Which path is exact here, tried on a few tokens: two packed branches, and both joining in mid-model, against plain passes."""
        return judge(self)

    @property
    def tiling(self) -> tuple[int, int]:
        """Hidden states and entries of the vocabulary to unembed at once: the whole vocabulary on a GPU, and where the head is no
        plain matrix."""
        width = self._unembedding.width
        if self.device.type == "cuda":  # few launches count for more than what fits a cache
            return max(1, ON_GPU // width), width
        return (ROWS, TILE) if self._unembedding.plain else (max(1, ROWS * TILE // width), width)

    def logits(self, hidden: torch.Tensor, tokens: slice = slice(None)) -> torch.Tensor:
        """Unembed final hidden states [..., d_model], in float32; `tokens`: that part of the vocabulary only."""
        logits = self._unembedding(hidden, tokens).to(self.device)
        if self.dtype == torch.float16 and not logits.isfinite().all():
            raise ValueError(not_finite(f"The logits of {self.architecture}", self.dtype, "on these tokens"))
        return logits

    def log_probability(self, hidden: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """log p(token[i]) after the final hidden state hidden[row[i]], [i] in nats; hidden: [row, d_model].

        The vocabulary is unembedded in tiles, so that no row of it is ever held in full.
        """
        (step, tile), width = self.tiling, self._unembedding.width
        picked, norm = torch.zeros(len(row), device=hidden.device), []
        for part in range(0, len(hidden), step):
            mine = (row >= part) & (row < part + step)
            own, sums = (row - part).clamp(0, min(step, len(hidden) - part) - 1), []
            for start in range(0, width, tile):
                logits = self.logits(hidden[part : part + step], slice(start, start + tile))
                here = mine & (token >= start) & (token < start + tile)
                value = logits[own, (token - start).clamp(0, logits.shape[-1] - 1)]
                picked = torch.where(here, value, picked)  # no list of places, for which the CPU would wait
                sums.append(logits.logsumexp(-1))
            norm.append(torch.stack(sums).logsumexp(0))
        return picked - torch.cat(norm)[row]

    @cached_property
    def bridge(self):
        """TransformerLens's TransformerBridge over the very same parameters (built on first use, eager attention)."""
        from transformer_lens.model_bridge import TransformerBridge

        if self.tokenizer is None:
            raise ValueError(
                "TransformerLens's bridge needs a tokenizer, and this model has none: give HookedModel(hf, tokenizer)."
            )

        shared = {id(p): p for p in self.hf.parameters()}
        twin = copy.deepcopy(self.hf, shared)  # the bridge rebuilds modules in place; parameters stay shared
        return TransformerBridge.boot_transformers(
            self.hf.config.name_or_path or "local",
            hf_model=twin,
            tokenizer=self.tokenizer,
            dtype=self.dtype,
            device=self.device,
        )


def random_twin(model: HookedModel, seed: int = 0) -> HookedModel:
    """A model of the same configuration and tokenizer with weights as its architecture draws them before training.

    seed: of the draw, which is made on the CPU in float32 and then moved, so that every device gets the same weights; torch's own
    generator is left as it was. `weights_hash` names configuration and seed.
    """
    hf = (
        model.hf.get_base_model() if hasattr(model.hf, "get_base_model") else model.hf
    )  # an adapter draws nothing: it starts at 0
    kind, config = type(hf), copy.deepcopy(hf.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = inner.in_dtype(kind(config), model.dtype).to(model.device)
    settings = {
        name: str(value) for name, value in config.to_dict().items() if not name.startswith("_")
    }  # less where it was read from
    drawn = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return HookedModel(hf, model.tokenizer, weights_hash=f"random-{seed}-{drawn}")
