"""TransformerLens's view of a model: its TransformerBridge over the very same parameters."""

from __future__ import annotations

import copy
import tempfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from interp.models.hooked import HookedModel


def bridge_of(model: HookedModel) -> TransformerBridge:
    """A TransformerBridge that shares a model's parameters; nothing is read from a hub."""
    from transformer_lens.model_bridge import TransformerBridge

    shared = {id(p): p for p in model.hf.parameters()}
    twin = copy.deepcopy(model.hf, shared)  # the bridge rebuilds modules in place; parameters stay shared
    with tempfile.TemporaryDirectory() as folder:
        bridge: TransformerBridge = TransformerBridge.boot_transformers(
            model.hf.config.name_or_path or "local",
            hf_model=twin,
            tokenizer=_tokenizer(model.tokenizer, folder),
            dtype=model.dtype,
            device=model.device,
        )
    if model.tokenizer is None:
        bridge.tokenizer = None
    return bridge


def _tokenizer(tokenizer: Any, folder: str) -> Any:
    """A copy of a tokenizer for the bridge, which reads it again from where it says it is, and changes it.

    Where there is none a stand-in: without any, the bridge would look for one on a hub.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if tokenizer is None:
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
