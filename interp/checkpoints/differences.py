"""Whether two configurations describe the same computation: which fields change no forward pass, and why.

>>> first = dict(model_type="llama", attention_dropout=0.1)
>>> differing(first, dict(first, attention_dropout=0.0))
[('attention_dropout', 0.1, 0.0, True)]
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

#: Where a configuration comes from, what a tokenizer or a loss takes from it, and how weights were drawn or
#: kept.
INERT = frozenset(
    """
    dtype torch_dtype transformers_version use_cache _name_or_path name_or_path architectures auto_map
    model_name
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id
    forced_eos_token_id tokenizer_class prefix
    output_router_logits output_hidden_states output_attentions return_dict return_dict_in_generate
    output_scores
    router_aux_loss_coef router_z_loss_coef aux_loss_alpha aux_loss_coef seq_aux z_loss_coefficient
    load_balance_coeff
    initializer_range initializer_factor init_std initializer_cutoff_factor embedding_initializer_range
    problem_type id2label label2id num_labels finetuning_task task_specific_params summary_type
    summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout
    gradient_checkpointing use_reentrant use_gradient_checkpointing unsloth_version unsloth_fixed
    use_liger_kernel use_bfloat16
    attn_implementation _attn_implementation experts_implementation chunk_size_feed_forward pretraining_tp
    _commit_hash
    do_sample temperature top_k top_p typical_p num_beams max_length min_length max_new_tokens
    repetition_penalty length_penalty
    no_repeat_ngram_size early_stopping diversity_penalty num_beam_groups num_return_sequences bad_words_ids
    suppress_tokens
    begin_suppress_tokens encoder_no_repeat_ngram_size exponential_decay_length_penalty remove_invalid_values
""".split()
)
#: What may differ between the checkpoints of a series, and is looked at where weights are read.
OF_WEIGHTS = ("tie_word_embeddings", "vocab_size", "quantization_config")
#: What training alone drops.
DROPOUT = re.compile(r".*(dropout|_pdrop|layerdrop)(_prob|_rate|_p)?$")
#: Noise of routers that these models add in training alone (others in evaluation too).
NOISE = {"router_jitter_noise": ("mixtral", "minimax", "minimax_m2"), "moe_jitter_eps": ("dbrx",)}
#: What `layer_types` is made from, and what only its layers with a window read.
OF_LAYER_TYPES = ("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern")
OF_WINDOWS = ("sliding_window", "use_sliding_window")
#: The most tokens: inert where positions are rotary and their table does not depend on it.
LENGTHS = ("max_position_embeddings", "max_sequence_length", "seq_length", "model_max_length")
#: Kinds of rotary positions that read no length from there.
LENGTHLESS = ("default", "linear", "llama3", "proportional")
#: What a kind of rotary positions takes where its configuration does not say it.
ROPE_DEFAULTS = {"yarn": dict(beta_fast=32, beta_slow=1, truncate=True)}


def same(a: Any, b: Any) -> bool:
    """Whether two values of a configuration are the same number, text or mapping of them."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        a, b = _rope(a), _rope(b)
        return all(same(a.get(k), b.get(k)) for k in {*a, *b})
    if isinstance(a, str) and isinstance(b, str):
        return a == b or {a, b} == {"silu", "swish"}
    number = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in (a, b))
    return math.isclose(a, b, rel_tol=1e-6) if number else a == b


def _rope(value: Mapping) -> Mapping:
    """Parameters of rotary positions in the newest release's form, defaults filled in.

    Other mappings unchanged.
    """
    if not {"rope_type", "rope_theta"} & value.keys():
        return value
    kind = value.get("rope_type", value.get("type", "default"))
    given = {key: number for key, number in value.items() if key != "type" and number is not None}
    return {**ROPE_DEFAULTS.get(kind, {}), **given, "rope_type": kind}


def rotary(config: Mapping) -> bool:
    """Whether positions are rotary, of a kind whose table does not depend on the longest sequence."""
    ropes = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(ropes, Mapping):
        return False
    kinds = [ropes] if "rope_type" in ropes or "rope_theta" in ropes else list(ropes.values())
    return bool(kinds) and all(isinstance(k, Mapping) and _lengthless(k) for k in kinds)


def _lengthless(rope: Mapping) -> bool:
    kind = rope.get("rope_type", "default")
    return kind in LENGTHLESS or (
        kind == "yarn" and bool(rope.get("factor") and rope.get("original_max_position_embeddings"))
    )


def inert(field: str, config: Mapping) -> bool:
    """Whether another value of this field changes no forward pass in evaluation."""
    if field in INERT or DROPOUT.fullmatch(field):
        return True
    types = config.get("layer_types") or ()
    if field in OF_LAYER_TYPES or field in OF_WINDOWS:
        return bool(types) and (field in OF_LAYER_TYPES or set(types) == {"full_attention"})
    return config.get("model_type") in NOISE.get(field, ()) or (field in LENGTHS and rotary(config))


def differing(own: Mapping, other: Mapping, within: str = "") -> list[tuple[str, object, object, bool]]:
    """(field, own value, other value, whether it is inert) of fields with different values, nested too."""
    differences = []
    for key in ["model_type", *sorted((own.keys() & other.keys()) - {"model_type"})]:
        a, b = own.get(key), other.get(key)
        if key in OF_WEIGHTS:
            continue
        if key.endswith("_config") and isinstance(a, Mapping) and isinstance(b, Mapping):
            differences += differing(a, b, f"{within}{key}.")
        elif not same(a, b):
            differences.append((within + key, a, b, inert(key, own) and inert(key, other)))
    return differences
