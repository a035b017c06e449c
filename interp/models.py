"""A checkpoint as a hooked model, and the series it belongs to.

>>> series = CheckpointSeries.discover("runs/quick/series")
>>> model = series.load(0)
>>> series.swap(model, series.steps[-1])        # the next checkpoint's weights, in the same module
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from interp import hooks

SERIES = Path(__file__).parent / "data" / "series"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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


class HookedModel:
    """A Hugging Face causal LM on SDPA whose sites can be tapped; `bridge` is TransformerLens's view of the same weights."""

    def __init__(self, hf, tokenizer, step: int | None = None, weights_hash: str = ""):
        self.hf, self.tokenizer, self.step, self.weights_hash = hf.eval().requires_grad_(False), tokenizer, step, weights_hash
        self.inner = hf.get_decoder() if hasattr(hf, "get_decoder") else hf.base_model
        self.blocks = getattr(self.inner, "layers", ())
        architecture = type(hf).__name__
        if not len(self.blocks):
            raise NotImplementedError(f"{architecture} is not supported: it has no list of blocks at `layers`.")
        hooks.check_architecture(self.blocks, architecture)
        types = getattr(hf.config, "layer_types", None) or ["sliding_attention"]
        if getattr(hf.config, "sliding_window", None) and "sliding_attention" in types:
            raise NotImplementedError(f"{architecture} with a sliding window is not supported: shared prefixes are read with full attention.")
        scaled = [n for n in ("final_logit_softcapping", "logits_scaling", "logit_scale") if getattr(hf.config, n, None)]
        if scaled:
            raise NotImplementedError(f"{architecture} is not supported: it rescales its logits ({scaled[0]}).")

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def d_model(self) -> int:
        return self.hf.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    def taps(self, edits: Mapping[tuple[str, int], hooks.Edit]):
        """Tap sites for one forward pass (see `interp.hooks.taps`)."""
        return hooks.taps(self.blocks, edits)

    def check_length(self, tokens: int) -> None:
        """Raise ValueError where a sequence is longer than the model's context."""
        limit = getattr(self.hf.config, "max_position_embeddings", None)
        if limit and tokens > limit:
            raise ValueError(f"A sequence has {tokens} tokens, but this model reads at most {limit}.")

    def new_cache(self) -> DynamicCache:
        """An empty cache that keeps every key (a config-aware one drops those outside a sliding window)."""
        return DynamicCache()

    @torch.inference_mode()
    def read(self, ids: Sequence[int], cache: DynamicCache | None = None) -> DynamicCache:
        """Keys and values of one sequence, or of what follows `cache` (extended in place), without computing logits."""
        cache = self.new_cache() if cache is None else cache
        if len(ids):
            self.check_length(cache.get_seq_length() + len(ids))
            self.inner(input_ids=torch.tensor([list(ids)], device=self.device), past_key_values=cache, use_cache=True)
        return cache

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unembed final hidden states [..., d_model], in float32."""
        return self.hf.get_output_embeddings()(hidden).float()

    @cached_property
    def bridge(self):
        """TransformerLens's TransformerBridge over the very same parameters (built on first use, eager attention)."""
        from transformer_lens.model_bridge import TransformerBridge

        shared = {id(p): p for p in self.hf.parameters()}
        twin = copy.deepcopy(self.hf, shared)  # the bridge rebuilds modules in place; parameters stay shared
        return TransformerBridge.boot_transformers(self.hf.config.name_or_path or "local", hf_model=twin,
                                                   tokenizer=self.tokenizer, dtype=self.dtype, device=self.device)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder's safetensors, or a sentence."""
    index = path / "model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, torch.Tensor] = {}
    for name in names:
        if not (path / name).exists():
            pickled = list(path.glob("pytorch_model*.bin"))
            hint = " Only a pickle is there, which is never read: save it as safetensors." if pickled else ""
            raise FileNotFoundError(f"{path} has no {name}.{hint}")
        try:
            tensors.update(load_file(path / name))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"The weights {path / name} cannot be read ({error}): the file is truncated or damaged, "
                             "copy or train it again.") from error
    return tensors


def _hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}).") from error


def _architecture(path: Path) -> dict:
    """What of a checkpoint's configuration decides the computation."""
    volatile = ("dtype", "torch_dtype", "transformers_version", "use_cache", "_name_or_path", "name_or_path")
    return {k: v for k, v in _json(path / "config.json").items() if k not in volatile}


def _template(path: Path) -> str | None:
    """A checkpoint's chat template, from its own file or the tokenizer's configuration."""
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text()
    return _json(path / "tokenizer_config.json").get("chat_template") if (path / "tokenizer_config.json").exists() else None


class CheckpointSeries:
    """Ordered checkpoints of one training run: one architecture, one tokenizer."""

    def __init__(self, sources: Mapping[int, Path | tuple[str, str]]):
        if not sources:
            raise ValueError("A checkpoint series needs at least one checkpoint.")
        self.sources = dict(sorted(sources.items()))

    @classmethod
    def discover(cls, folder: str | Path = SERIES) -> "CheckpointSeries":
        """All `checkpoint-N` folders below `folder`.

        Raises FileNotFoundError where there is none, ValueError where their tokenizers or shapes differ.
        """
        folder = Path(folder)
        found = {int(m.group(1)): p for p in folder.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))}
        if not found:
            raise FileNotFoundError(f"No checkpoint-N folders in {folder}: give the folder that the trainer wrote, "
                                    "or train a series with `make series`.")
        series = cls(found)
        series.check()
        return series

    @classmethod
    def from_hub(cls, repository: str, revisions: Sequence[str]) -> "CheckpointSeries":
        """Revisions of one hub repository, keyed by the number in their name (needs the network when loaded)."""
        steps = [re.search(r"\d+", r) for r in revisions]
        return cls({int(m.group()) if m else i: (repository, r) for i, (m, r) in enumerate(zip(steps, revisions))})

    @property
    def steps(self) -> list[int]:
        return list(self.sources)

    def path(self, step: int) -> Path | tuple[str, str]:
        """Where a checkpoint is; raises KeyError naming those there are."""
        if step not in self.sources:
            raise KeyError(f"There is no checkpoint {step} in this series: it has {', '.join(map(str, self.steps))}.")
        return self.sources[step]

    def check(self) -> None:
        """Raise ValueError where a checkpoint's tokenizer or architecture differs from the first one's."""
        first = self.path(self.steps[0])
        for step in self.steps:
            path = self.path(step)
            for name in ("config.json", "tokenizer.json"):
                if not (path / name).exists():
                    raise FileNotFoundError(f"{path} has no {name}, so it is not a complete Hugging Face checkpoint.")
            if _hash_files([path / "tokenizer.json"]) != _hash_files([first / "tokenizer.json"]):
                raise ValueError(f"The tokenizer of {path} is not the one of {first}: a series has one tokenizer.")
            if _template(path) != _template(first):
                raise ValueError(f"The chat template of {path} is not the one of {first}: their prompts would differ.")
            own, other = _architecture(path), _architecture(first)
            differ = [k for k in sorted({*own, *other}) if own.get(k) != other.get(k)]
            if differ:
                raise ValueError(f"The architecture of {path} is not the one of {first}: {differ[0]} is {own.get(differ[0])!r}, "
                                 f"not {other.get(differ[0])!r}.")

    def weights_hash(self, step: int) -> str:
        """Content hash of a checkpoint's weight files (a hub checkpoint's repository and revision)."""
        path = self.path(step)
        if isinstance(path, tuple):
            return "@".join(path)
        return _hash_files(sorted(path.glob("*.safetensors")))

    def load(self, step: int, device: str = "auto", dtype: str = "auto") -> HookedModel:
        """Load one checkpoint.

        Raises KeyError for a step that is not there, ValueError or FileNotFoundError for weights that cannot be read.
        """
        path, where = self.path(step), pick_device(device)
        kind = pick_dtype(dtype, where)
        if isinstance(path, tuple):
            tokenizer = AutoTokenizer.from_pretrained(path[0], revision=path[1])
            hf = AutoModelForCausalLM.from_pretrained(path[0], revision=path[1], dtype=kind, attn_implementation="sdpa")
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(path)
            except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
                raise ValueError(f"The tokenizer of {path} cannot be read ({error}): tokenizer.json is damaged, copy it again.") from error
            hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=kind, attn_implementation="sdpa")
            hf.config.name_or_path = str(path)
            if len(tokenizer) > hf.config.vocab_size:
                raise ValueError(f"The tokenizer of {path} has {len(tokenizer)} entries, but the model embeds only "
                                 f"{hf.config.vocab_size}: they do not belong together.")
        model = HookedModel(hf.to(where), tokenizer)
        if isinstance(path, tuple):
            model.step, model.weights_hash = step, self.weights_hash(step)
        else:
            self.swap(model, step)
        return model

    def swap(self, model: HookedModel, step: int) -> HookedModel:
        """Put another checkpoint's weights into `model` in place; the model is left as it was when they cannot be read."""
        path = self.path(step)
        if isinstance(path, tuple):
            state = AutoModelForCausalLM.from_pretrained(path[0], revision=path[1]).state_dict()
        else:
            state = _tensors(path)
        own = dict(model.hf.named_parameters())
        wrong = [n for n, p in own.items() if n not in state or state[n].shape != p.shape]
        unknown = [n for n in state if n not in own and n not in model.hf.state_dict()]
        if wrong or unknown:
            raise ValueError(f"The weights of {path} do not fit the model: {(wrong + unknown)[0]!r} is missing, extra or of "
                             f"another shape ({len(wrong)} of {len(own)} parameters, {len(unknown)} extra).")
        bad = [n for n in own if not torch.isfinite(state[n]).all()]
        if bad:
            raise ValueError(f"The weights of {path} hold values that are not finite, first in {bad[0]!r}.")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])
        model.step, model.weights_hash = step, self.weights_hash(step)
        return model
