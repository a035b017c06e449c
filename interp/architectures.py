"""Which architectures are exact, and on which path: tried on tiny random models, decided by what they do and not by name.

>>> print(table().to_string(index=False))       # also: python -m analyses architectures
"""

from __future__ import annotations

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from interp.models import HookedModel

#: Model types of transformers, and what their tiny configuration needs beside SIZES: those the tests hold to the plain loop,
#: then others, which show what becomes of an architecture that nobody thought of.
FAMILIES = {
    "llama": {}, "qwen3": {}, "mistral": dict(sliding_window=8), "gemma2": dict(sliding_window=8), "gemma3_text": dict(sliding_window=8),
    "gpt2": {}, "gpt_neox": {}, "qwen2": {}, "olmo2": {}, "phi3": {}, "granite": dict(logits_scaling=2.0), "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=8),
    "bloom": {}, "mixtral": dict(num_local_experts=4), "mamba": {}, "qwen3_next": dict(num_hidden_layers=4), "t5": dict(d_kv=8, d_ff=64),
}
SIZES = dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64,
             max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2)
COLUMNS = ("capture", "trajectory", "patch", "mediation")


def tiny(model_type: str, seed: int = 0, **extra):
    """A tiny random model of a transformers model type, with weights large enough for its parts to matter."""
    config = AutoConfig.for_model(model_type)
    own = {k: v for k, v in SIZES.items() if hasattr(config, k) and getattr(config, k) is not None or k in ("vocab_size", "pad_token_id")}
    own.pop("num_key_value_heads", None) if model_type in ("gpt_neox", "gpt2", "bloom", "gpt_neo") else None
    config = AutoConfig.for_model(model_type, **{**own, **extra})
    torch.manual_seed(seed)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    hf = kind.from_config(config, dtype=torch.float32)
    for parameter in hf.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return hf


def table(families=FAMILIES) -> pd.DataFrame:
    """Architecture x (capture, trajectory, patch, mediation): `fast`, `plain loop` or `refused`, and why."""
    rows = []
    for model_type, extra in families.items():
        hf = tiny(model_type, **extra)
        row = dict(architecture=type(hf).__name__)
        try:
            model = HookedModel(hf, None)
            found = model.support
            missing = [site for site in ("resid_mid", "z") if site not in model.places]
            reason = found.reason or (f"no {', no '.join(missing)}" if missing else "")
            rows.append(row | {c: getattr(found, c) for c in COLUMNS} | dict(reason=reason))
        except NotImplementedError as error:
            rows.append(row | dict.fromkeys(COLUMNS, "refused") | dict(reason=str(error).split("not supported: ")[-1].rstrip(".")))
    return pd.DataFrame(rows)
