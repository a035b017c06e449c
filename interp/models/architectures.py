"""Which architectures are exact, and on which path: tried on tiny random models, not looked up by name.

>>> print(table().to_string(index=False))       # also: python -m analyses architectures
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from interp.models.hooked import HookedModel
from interp.models.inner import LanguageModel, auto_class, in_dtype
from interp.models.site_names import SITES
from interp.system.sentences import first_line

#: Families shown in docs/engine.md, of every kind.
FAMILIES = (
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "qwen2",
    "olmo2",
    "phi3",
    "granite",
    "cohere2",
    "gpt_neo",
    "bloom",
    "mixtral",
    "mamba",
    "qwen3_next",
    "bart",
)
#: The tiny sizes, for every model type that has a number of the name. With few index heads several tokens'
#: scores are 0 alike, and which of them are attended to would be left to the order of a sort.
SIZES = dict(
    vocab_size=97,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    sliding_window=8,
    window_size=8,
    attention_window_size=8,
    num_local_experts=4,
    num_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=32,
    moe_num_experts=4,
    moe_k=2,
    top_k=2,
    expert_ffn_hidden_size=32,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_rope_head_dim=4,
    qk_nope_head_dim=4,
    v_head_dim=8,
    n_group=1,
    topk_group=1,
    d_kv=8,
    d_ff=64,
    ffn_dim=64,
    decoder_layers=4,
    decoder_ffn_dim=64,
    decoder_attention_heads=4,
    encoder_layers=1,
    encoder_ffn_dim=32,
    encoder_attention_heads=2,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    mamba_n_heads=4,
    mamba_d_head=16,
    mamba_d_ssm=64,
    mamba_n_groups=1,
    mamba_d_state=8,
    mamba_chunk_size=4,
    mamba_expand=2,
    index_n_heads=16,
    index_head_dim=8,
    index_topk=8,
    n_shared_experts=1,
    mamba_num_heads=4,
    mamba_head_dim=16,
    n_groups=1,
    ssm_state_size=8,
    state_size=8,
    num_heads=4,
    chunk_size=4,
)
_VISION = dict(image_size=28, patch_size=14, depth=1, embed_dim=32, out_hidden_size=32)
#: What a model type needs beside SIZES.
_GEMMA4 = dict(
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_kv_shared_layers=0,
    head_dim=8,
    global_head_dim=16,
    hidden_size_per_layer_input=0,
    vocab_size_per_layer_input=97,
)
OWN: dict[str, dict] = {
    "gpt_neo": dict(attention_types=[[["global", "local"], 2]]),
    "codegen": dict(rotary_dim=4),
    "gptj": dict(rotary_dim=4),
    "granite": dict(logits_scaling=8.0, residual_multiplier=0.22),
    "granitemoe": dict(logits_scaling=8.0, residual_multiplier=0.22),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "llama4_text": dict(intermediate_size_mlp=64),
    "gemma3n_text": dict(
        _GEMMA4,
        num_kv_shared_layers=2,
        hidden_size_per_layer_input=4,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 4,
    ),
    "lfm2": dict(layer_types=["conv", "full_attention"] * 2),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"] * 2),
    "mamba2": dict(head_dim=16),
    "zaya": dict(num_experts_per_tok=1),
    "xmod": dict(default_language="en_XX"),
    "longcat_flash": dict(head_dim=4, num_layers=2),
    "bamba": dict(attn_layer_indices=[1, 3]),
    "jamba": dict(attn_layer_offset=1, attn_layer_period=2, use_mamba_kernels=False),
    "granitemoehybrid": dict(
        logits_scaling=8.0, residual_multiplier=0.22, layer_types=["mamba", "attention"] * 2
    ),
    "zamba": dict(
        layers_block_type=["mamba", "hybrid"] * 2,
        attention_head_dim=16,
        num_key_value_heads=4,
        use_mamba_kernels=False,
    ),
    "zamba2": dict(layers_block_type=["mamba", "hybrid"] * 2, num_key_value_heads=4, mamba_ngroups=1),
    "qwen4_exp_text": dict(
        indexer_n_heads=16, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8, indexer_compress_ratio=4
    ),
    "cohere_compass_text": dict(
        rope_parameters={"full_attention": dict(rope_type="default", rope_theta=1e4)}
    ),
    "reformer": dict(axial_pos_embds=False, is_decoder=True),
    "xlnet": dict(d_head=8),
    "dbrx": dict(
        d_model=32,
        attn_config=dict(kv_n_heads=2, rope_theta=1e4, clip_qkv=8.0),
        ffn_config=dict(hidden_size=32, ffn_hidden_size=64),
    ),
    "dots3_note_vision_encoder": dict(mlp_layer_types=["dense"], adapter_in_dim=32, adapter_out_dim=32),
    "dots3_note_audio_encoder": dict(adapter_input_size=32, adapter_out_dim=32),
}
#: What is measured, in its own words on the page.
COLUMNS = {
    "capture": "activations at the boundary of each decision",
    "trajectory": "those of all decisions of an episode, of which each extends the one before, in one pass",
    "patch": "patching, one cell for each site, layer and position",
    "mediation": "prompt reliance by swapping keys and values",
}
#: How, likewise.
PATHS = {
    "fast": "many cells or decisions packed into one pass",
    "plain loop": "one pass for each cell or decision, as exact and slower",
    "refused": "said by name when it is asked for",
    "not built": "no tiny model of the family can be built here",
}


def _may_size(config: PreTrainedConfig, name: str) -> bool:
    """Whether a configuration has a number of that name, which may be set."""
    try:
        value = getattr(config, name)
    except Exception:  # not there, or different in every layer
        return False
    declared = getattr(type(config), name, None)
    fixed = isinstance(declared, property) and declared.fset is None
    number = value is None or (isinstance(value, int) and not isinstance(value, bool))
    return number and value != -1 and not fixed


def _layer_types(config: PreTrainedConfig, layers: int) -> list[str] | None:
    """Every kind of layer that the family has, in turn; None where it has one, or fixes them."""
    kinds = list(dict.fromkeys(getattr(config, "layer_types", None) or ()))
    mapped = (getattr(config, "attribute_map", None) or {}).get("layer_types", "layer_types")
    if len(kinds) < 2 or isinstance(getattr(type(config), mapped, None), property):
        return None
    return (kinds * layers)[:layers]


def _sized(config: PreTrainedConfig, layers: int = 4) -> dict[str, Any]:
    """SIZES for the numbers that a configuration has, and its sections; those but of text have one layer."""
    own: dict[str, Any] = {name: value for name, value in SIZES.items() if _may_size(config, name)}
    if getattr(config, "is_decoder", None) is False and not config.is_encoder_decoder:
        own["is_decoder"] = True  # of an encoder's family, the causal variant
    if "qk_rope_head_dim" in own:  # latent attention: every head has its own keys
        own.pop("head_dim", None)
        if "num_key_value_heads" in own:
            own["num_key_value_heads"] = SIZES["num_attention_heads"]
    if "num_hidden_layers" in own:
        own["num_hidden_layers"] = layers
    layer_types = _layer_types(config, layers)
    if layer_types is not None:
        own["layer_types"] = layer_types
    for section in getattr(type(config), "sub_configs", None) or ():
        part = getattr(config, section, None)
        if part is None or section in ("attn_config", "ffn_config"):
            continue
        text = section in ("text_config", "decoder")
        sizes = _sized(part, layers if text else 1) | OWN.get(part.model_type, {})
        if not text:
            sizes |= {name: value for name, value in _VISION.items() if hasattr(part, name)}
        own[section] = dict(model_type=part.model_type) | sizes
    return own


def tiny(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32, **extra: Any) -> LanguageModel:
    """A tiny random model of a model type in `dtype`, with weights large enough for its parts to matter."""
    sizes = _sized(AutoConfig.for_model(model_type)) | OWN.get(model_type, {}) | extra
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(seed)
    hf = auto_class(config).from_config(config, dtype=torch.float32)
    for parameter in hf.parameters():
        parameter.data.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return (hf if dtype == torch.float32 else in_dtype(hf, dtype)).eval()


def families() -> list[str]:
    """Every causal family of the installed transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _listed(layers: Sequence[int]) -> str:
    """`layer 0`, or `layers 0, 2`."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def _lacking(model: HookedModel) -> str:
    """The sites that could not be proven, in all layers or in some."""
    lacking = []
    for site in SITES:
        widths = model.widths.get(site, [None] * model.n_layers)
        layers = [layer for layer, width in enumerate(widths) if width is None]
        if layers:
            lacking.append(f"no {site}" + (f" in {_listed(layers)}" if len(layers) < model.n_layers else ""))
    return ", ".join(lacking)


def _row(model_type: str) -> dict[str, str]:
    architecture = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, ""))

    def row(path: str, reason: str) -> dict[str, str]:
        paths = dict.fromkeys(COLUMNS, path)
        return dict(family=model_type, architecture=architecture, **paths, reason=" ".join(reason.split()))

    try:
        if AutoConfig.for_model(model_type).is_encoder_decoder:
            return row("refused", "an encoder reads the prompt, so there is no boundary in the decoder")
        hf = tiny(model_type)
    except Exception as error:  # each family's own
        cause = error.__cause__ or error
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        return row("not built", f"no tiny model of it can be built here ({reason})")
    architecture = type(hf).__name__
    try:
        model = HookedModel(hf, None)
        support = model.support
    except NotImplementedError as error:
        return row("refused", str(error).split("not supported: ")[-1].rstrip("."))
    except ValueError as error:  # numbers that are not finite
        return row("refused", str(error))
    reasons = [reason for reason in (support.reason, _lacking(model)) if reason]
    return row("", "; ".join(reasons)) | {column: getattr(support, column) for column in COLUMNS}


def table(names: Iterable[str] = FAMILIES) -> pd.DataFrame:
    """A row for each family: its architecture, its path for each of COLUMNS (a key of PATHS), and why."""
    return pd.DataFrame([_row(name) for name in names])


def document() -> str:
    """The table of every causal family, as the Markdown page docs/architectures.md."""
    return page(table(families()))


def page(rows: pd.DataFrame) -> str:
    """The rows of `table` as a Markdown page, after what its words mean."""
    head = ["family", "architecture", *COLUMNS, "reason"]
    counts = {
        column: ", ".join(f"{n} {path}" for path in PATHS if (n := int((rows[column] == path).sum())))
        for column in COLUMNS
    }
    lines = [
        "# Architectures",
        "",
        f"Every causal family of transformers {transformers.__version__}, as a tiny random model of four",
        "layers, on every path, and why, with the sites that could not be proven.",
        "Written by `python -m analyses architectures docs/architectures.md`.",
        "",
        *(f"- `{path}`: {meaning}." for path, meaning in PATHS.items()),
        "",
        f"Of {len(rows)} families:",
        "",
        *(f"- {column} ({meaning}): {counts[column]}." for column, meaning in COLUMNS.items()),
        "",
        f"| {' | '.join(head)} |",
        f"|{' --- |' * len(head)}",
        *(
            f"| {' | '.join(str(row[c]).replace('|', '/') for c in head)} |"
            for row in rows.to_dict("records")
        ),
    ]
    return "\n".join(lines) + "\n"
