"""A causal language model whose sites can be tapped, and what of it can be computed exactly in one packed forward pass.

>>> model = CheckpointSeries.discover("runs/quick/series").load(0)
>>> model.support                               # capture, trajectory, patch, mediation: "fast" or "plain loop", and why
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp import hooks
from interp.support import CHEAP, Crossing, Support, cross, named_lengths, steps
from interp.turns import Turns

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Hidden states and entries of the vocabulary that are unembedded at once.
ROWS, TILE = 512, 4096
#: Tokens before the first trial's branches.
BASE = 6
#: keys and values of each layer, [row, head, token, width]
Layers = list[tuple[torch.Tensor, torch.Tensor]]


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is the GPU where there is one; raises ValueError for a device this machine does not have."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"Device {name!r} was asked for, but torch sees no GPU on this machine: use --device cpu.")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"There is no device {name!r}: use auto, cpu, cuda or cuda:N.") from None


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
    """A cache layer that shows what it is given behind what it holds, and keeps only the former apart."""

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


class HookedModel:
    """A Hugging Face causal LM whose sites can be tapped; `bridge` is TransformerLens's view of the same weights.

    Raises NotImplementedError, naming the architecture and the property, where a measurement would not be exact.
    """

    def __init__(self, hf, tokenizer, step: int | None = None, weights_hash: str = ""):
        self.hf, self.tokenizer, self.step, self.weights_hash = hf.eval().requires_grad_(False), tokenizer, step, weights_hash
        self.architecture, config = type(hf).__name__, hf.config
        self.turns, self.wide, self._crossings, self._steps = Turns(), False, {}, {}
        if getattr(config, "is_encoder_decoder", False):
            raise NotImplementedError(f"{self.architecture} is not supported: an encoder reads the prompt, so there is no boundary in the decoder.")
        self.inner = hf.get_decoder() if hasattr(hf, "get_decoder") else hf.base_model
        depth = config.num_hidden_layers
        lists = [m for _, m in self.inner.named_children() if isinstance(m, torch.nn.ModuleList) and len(m) == depth]
        if len(lists) != 1:
            raise NotImplementedError(f"{self.architecture} is not supported: it has no one list of {depth} blocks.")
        self.blocks = lists[0]
        if len(set((getattr(hf, "hf_device_map", None) or {}).values())) > 1:  # accelerate's hooks: what comes out is where the ids were
            add_hook_to_module(self.inner, AlignDevicesHook(io_same_device=True), append=True)
        self.window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
        self.layer_types = list(getattr(config, "layer_types", None) or ["sliding_attention" if self.window else "full_attention"] * depth)
        self._start_frequencies_anew()
        self.keyless = self._why_keyless()
        self.places = hooks.find_places(self.blocks, self._probe, self.architecture)
        self._check_logits()

    def _probe(self, tokens: int = 6, **kwargs):
        ids = torch.arange(tokens, device=self.device)[None] % self.hf.config.vocab_size
        with torch.inference_mode():
            return self.inner(input_ids=ids, **{**self.uncached, **kwargs})

    @cached_property
    def cached(self) -> dict[str, bool]:
        """What asks for a cache, where the model knows one."""
        taken = inspect.signature(self.inner.forward).parameters
        return {"use_cache": True} if "use_cache" in taken or any(p.kind == p.VAR_KEYWORD for p in taken.values()) else {}

    @property
    def uncached(self) -> dict[str, bool]:
        """What asks for no cache."""
        return dict.fromkeys(self.cached, False)

    def whole(self, ids: torch.Tensor) -> torch.Tensor:
        """Final hidden states [row, token, d_model] of whole sequences [row, token], in a plain pass."""
        return self.inner(input_ids=ids, **self.uncached).last_hidden_state

    def _start_frequencies_anew(self) -> None:
        """Dynamic rotary frequencies remember the longest sequence seen, so that a pass depends on those before it: forget it before each."""
        def anew(module, *args):
            for name in [n for n in vars(module) if n.endswith("max_seq_len_cached")]:
                setattr(module, name, module.original_max_seq_len)
            for name, start in [(n, t) for n, t in module.named_buffers() if n.endswith("original_inv_freq")]:
                setattr(module, name.replace("original_inv_freq", "inv_freq"), start.clone())

        for module in self.inner.modules():
            if hasattr(module, "max_seq_len_cached") and "dynamic" in str(getattr(module, "rope_type", "")):
                module.register_forward_pre_hook(anew)

    def _why_keyless(self) -> str:
        """Why the model keeps no ordinary keys and values, which could be cut, swapped and shared (empty where it does)."""
        strange = [t for t in self.layer_types if t not in ("full_attention", "sliding_attention", "chunked_attention")]
        if strange:
            return f"it has layers of {strange[0]!r}, which do not keep keys and values of each token"
        if {"sliding_attention", "chunked_attention"} & set(self.layer_types) and not self.window:
            return "it has sliding layers, but its configuration names no sliding_window"
        cache = self.new_cache()
        try:
            self._probe(past_key_values=cache, use_cache=True)
            lengths = {layer.keys.shape[2] for layer in cache.layers if layer.keys is not None}
        except Exception as error:  # whatever a model makes of a cache that is not its own
            return f"it does not fill an ordinary cache ({type(error).__name__}: {error})"
        whole = lengths == {6} and len(cache.layers) == len(self.blocks)
        return "" if whole else "its layers do not keep keys and values of every token"

    def _check_logits(self) -> None:
        ids = torch.arange(6, device=self.device)[None] % self.hf.config.vocab_size
        with torch.inference_mode():
            whole, own = self.hf(input_ids=ids, use_cache=False).logits.float(), self.logits(self.inner(input_ids=ids, use_cache=False).last_hidden_state)
        if not torch.allclose(whole, own, rtol=1e-2, atol=1e-3 * max(1.0, whole.abs().max().item())):
            raise NotImplementedError(f"{self.architecture} is not supported: it does something to its logits beyond unembedding and soft-capping.")

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.hf.config.hidden_size

    @property
    def n_heads(self) -> int:
        return self.hf.config.num_attention_heads

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @cached_property
    def widths(self) -> dict[str, int]:
        """Numbers at each site of a token."""
        found: dict[str, int] = {}
        with hooks.only(self.blocks, 0, 0), self.taps({(site, 0): lambda tensor, site=site: found.__setitem__(site, tensor.shape[-1]) for site in self.places}):
            self._probe()
        return found

    def taps(self, edits: Mapping[tuple[str, int], hooks.Edit]):
        """Tap sites for one forward pass (see `interp.hooks.taps`); other threads wait for its end."""
        return self.turns.tapping(hooks.taps(self.blocks, self.places, edits))

    @property
    def context(self) -> int | None:
        """Tokens that the model reads at most (None: its configuration names no limit)."""
        most, rope = (getattr(self.hf.config, name, None) for name in ("max_position_embeddings", "rope_parameters"))
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

    @torch.inference_mode()
    def read(self, ids: Sequence[int], cache: DynamicCache | None = None) -> DynamicCache:
        """Keys and values of one sequence, or of what follows `cache` (extended in place); the pass ends as soon as they are there.

        Of a model without ordinary ones, the cache holds the `ids` alone, to be read again.
        """
        cache = self.new_cache() if cache is None else cache
        if len(ids):
            self.check_length(len(cache.ids) + len(ids))
            cache.ids += list(ids)
        if len(ids) and not self.keyless:
            cache.layers += [DynamicLayer() for _ in range(self.n_layers - len(cache.layers))]
            last = cache.layers[-1]
            last.__class__ = _Last
            try:
                self.inner(input_ids=torch.tensor([list(ids)], device=self.device), past_key_values=cache, use_cache=True)
            except _Enough:
                pass
            finally:
                last.__class__ = DynamicLayer
        return cache

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
            return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

        masks = {kind: additive(kind) for kind in dict.fromkeys(self.layer_types)}
        return masks if len(masks) > 1 else masks[self.layer_types[0]]

    def packed(self, prefix: Layers, ids: torch.Tensor, at: torch.Tensor, visible: torch.Tensor, keys_at: torch.Tensor,
               rows: int = 1) -> tuple[torch.Tensor, Layers]:
        """Final hidden states [row, slot, d_model] of packed tokens behind shared keys and values, and the slots' own.

        ids, at: token and position of each slot; visible: Bool[Tensor, "slot key"] over the prefix's keys, then the
        slots'; keys_at: positions of the prefix's keys; rows: copies of the slots. The prefix is not changed.
        """
        cache = DynamicCache()
        cache.layers = [_Behind(*(t.expand(rows, -1, -1, -1) for t in layer)) for layer in prefix]
        mask = self.mask(visible[None], at[None], torch.cat([keys_at, at])[None])
        hidden = self.inner(input_ids=ids.expand(rows, -1), position_ids=at.expand(rows, -1), attention_mask=mask, past_key_values=cache,
                            use_cache=True).last_hidden_state
        return hidden, [layer.new for layer in cache.layers]

    def empty(self) -> Layers:
        """A prefix of no tokens."""
        cache = self.new_cache()
        self._probe(1, past_key_values=cache, use_cache=True)
        return [(layer.keys[:, :, :0], layer.values[:, :, :0]) for layer in cache.layers]

    def _crossing(self, start: int) -> Crossing:
        if start not in self._crossings:
            with self.turns.trying():
                self._crossings[start] = cross(self, start)
        return self._crossings[start]

    def _crossed(self, tokens: int) -> list[Crossing]:
        """What came out across each named length below `tokens`; each is tried once, when a sequence is first that long."""
        return [self._crossing(max(BASE, length - 1)) for length in self.lengths if length < tokens]

    @cached_property
    def lengths(self) -> list[int]:
        """Lengths in tokens that the configuration names, at which a rule may change."""
        return named_lengths(self.inner.config)

    def stands_alone(self, tokens: int) -> bool:
        """Whether the states in a sequence of so many tokens are not those of its beginning: it is read whole, without padding."""
        return not all(c.causal for c in self._crossed(tokens))

    def rereads(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens cannot be gone on with from shared keys and values, and is read whole each time."""
        packed = self.support.patch == "fast"
        return bool(self.keyless) or not all(c.packed if packed else c.continued for c in self._crossed(tokens))

    def anew(self, known: int, tokens: int) -> bool:
        """Whether a sequence by itself must be read again to have `tokens` in place of `known`."""
        starts = {BASE, *(max(BASE, n - 1 if known <= n else n + 1) for n in self.lengths if n < tokens)}
        for start in starts - self._steps.keys():
            with self.turns.trying():
                self._steps[start] = steps(self, start)
        return not all(self._steps[start] for start in starts)

    def path(self, tokens: int) -> str:
        """Why the longest of some sequences, of so many tokens, is not packed (empty where it is)."""
        if self.support.patch != "fast":
            return f"plain loop: {self.support.reason}"
        if not self.rereads(tokens):
            return ""
        wrong = next(n for n in self.lengths if n < tokens and not self._crossing(max(BASE, n - 1)).packed)
        return f"plain loop: beyond {wrong} tokens, which its configuration names, a sequence is read whole"

    @cached_property
    def support(self) -> Support:
        """Which path is exact here, tried on a few tokens: two packed branches, and both joining in mid-model, against plain passes."""
        found = self._crossing(BASE)
        if not found.causal:
            raise NotImplementedError(f"{self.architecture} is not supported: a token's states change with the tokens behind it.")
        if self.keyless:
            return Support("fast", "plain loop", "plain loop", "refused", self.keyless)
        if not found.packed:
            reason = f"it does not take a mask and positions of one's own ({found.error})" if found.error else "packed tokens do not come out as in a plain pass"
            return Support("fast", "plain loop", "plain loop", "plain loop" if found.continued else "refused", reason)
        cost = 8 * sum(p.numel() for p in self.hf.parameters())
        most = min(CHEAP["cuda" if self.device.type == "cuda" else "cpu"] / cost, self.context or float("inf"))
        tried = tuple(n for n in self.lengths if n < most)
        wrong = [n for n in tried if not self._crossing(max(BASE, n - 1)).packed]
        reason = f"sequences of more than {wrong[0]} tokens, which its configuration names, are read whole" if wrong else ""
        return Support("fast", "fast", "fast", "fast", reason, tried)

    @property
    def tiling(self) -> tuple[int, int]:
        """Hidden states and entries of the vocabulary to unembed at once (the whole vocabulary where the head is no plain matrix)."""
        head = self.hf.get_output_embeddings()
        return (ROWS, TILE) if type(head) is torch.nn.Linear else (max(1, ROWS * TILE // head.weight.shape[0]), head.weight.shape[0])

    def logits(self, hidden: torch.Tensor, tokens: slice = slice(None)) -> torch.Tensor:
        """Unembed final hidden states [..., d_model], in float32; `tokens`: that part of the vocabulary only."""
        head = self.hf.get_output_embeddings()
        hidden = hidden.to(head.weight.device)  # another GPU's, where a device map laid it there
        if tokens == slice(None) or type(head) is not torch.nn.Linear:
            found = head(hidden).float()[..., tokens]
        else:
            found = torch.nn.functional.linear(hidden, head.weight[tokens], None if head.bias is None else head.bias[tokens]).float()
        found = found.to(self.device)
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        return (found / cap).tanh() * cap if cap else found

    def log_probability(self, hidden: torch.Tensor, row: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        """log p(token[i]) after the final hidden state hidden[row[i]], [i] in nats; hidden: [row, d_model].

        The vocabulary is unembedded in tiles, so that no row of it is ever held in full.
        """
        (step, tile), width = self.tiling, self.hf.get_output_embeddings().weight.shape[0]
        picked, norm = torch.empty(len(row), device=hidden.device), []
        for part in range(0, len(hidden), step):
            mine = (row >= part) & (row < part + step)
            sums = []
            for start in range(0, width, tile):
                logits = self.logits(hidden[part:part + step], slice(start, start + tile))
                here = mine & (token >= start) & (token < start + tile)
                picked[here] = logits[row[here] - part, token[here] - start]
                sums.append(logits.logsumexp(-1))
            norm.append(torch.stack(sums).logsumexp(0))
        return picked - torch.cat(norm)[row]

    @cached_property
    def bridge(self):
        """TransformerLens's TransformerBridge over the very same parameters (built on first use, eager attention)."""
        from transformer_lens.model_bridge import TransformerBridge

        shared = {id(p): p for p in self.hf.parameters()}
        twin = copy.deepcopy(self.hf, shared)  # the bridge rebuilds modules in place; parameters stay shared
        return TransformerBridge.boot_transformers(self.hf.config.name_or_path or "local", hf_model=twin,
                                                   tokenizer=self.tokenizer, dtype=self.dtype, device=self.device)


def random_twin(model: HookedModel, seed: int = 0) -> HookedModel:
    """A model of the same configuration and tokenizer with weights as its architecture draws them before training.

    seed: of the draw, which is made on the CPU in float32 and then moved, so that every device gets the same weights; torch's own
    generator is left as it was. `weights_hash` names configuration and seed.
    """
    config = copy.deepcopy(model.hf.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = type(model.hf)(config).to(device=model.device, dtype=model.dtype)
    settings = {name: str(value) for name, value in config.to_dict().items() if not name.startswith("_")}  # less where it was read from
    drawn = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return HookedModel(hf, model.tokenizer, weights_hash=f"random-{seed}-{drawn}")
