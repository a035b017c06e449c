"""Adapters: which kinds are read, and how they are merged so that they compute as unmerged.

>>> state = merged(find("runs/lora/checkpoint-100"), torch.float32)      # name -> tensor

Everything that peft reads by name from a configuration is looked at first: a kind that opens files, builds
code, or matches expressions without a limit is refused or resolved here.
"""

from __future__ import annotations

import copy
import json
import re
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import regex
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig, PreTrainedModel

from interp.checkpoints import weights
from interp.checkpoints.contents import Checkpoint
from interp.checkpoints.files import read_json
from interp.checkpoints.headers import Header, header
from interp.checkpoints.names import in_adapter, in_base
from interp.system.sentences import first_line

#: Kinds whose merge by peft is exact (each is tried again as it is merged), and which open nothing but their
#: own two files.
MERGED = (
    "LORA",
    "ADALORA",
    "ADAMSS",
    "C3A",
    "DEFT",
    "DELORA",
    "FOURIERFT",
    "FROD",
    "GLORA",
    "GRALORA",
    "HIRA",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "MISS",
    "OFT",
    "OSF",
    "PEANUT",
    "PSOFT",
    "PVERA",
    "RANDLORA",
    "ROAD",
    "SHIRA",
    "SUPERTUNING",
    "TINYLORA",
    "TRAINABLE_TOKENS",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
)
#: Kinds that leave the weights alone, and put learned vectors before or beside each prompt's tokens.
PROMPTED = (
    "PROMPT_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "CPT",
    "CARTRIDGE",
    "ADAPTION_PROMPT",
)
#: Options of a low-rank adapter that are refused where they are set, and why.
REFUSED = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA) acts only after its invocation tokens, so "
    "that no one merged model is equal to it",
    "layer_replication": "it repeats layers of its base",
    "megatron_config": "it is one of Megatron's parallel layers",
    "arrow_config": "it routes between several adapters",
    "use_bdlora": "its blocks belong to a sharded model",
    "monteclora_config": "it draws its weights at random",
}
#: Ways to begin that change the base's weights as they cannot be repeated.
UNREPEATABLE = ("corda", "lora_ga", "loftq")
ELSEWHERE = (
    "Where peft can merge it, merge it with merge_and_unload(), save model and tokenizer with "
    "save_pretrained, and give that folder"
)
#: Fields that name modules of the base, and those of them in which one text is an expression.
NAMING = (
    "target_modules",
    "exclude_modules",
    "feedforward_modules",
    "modules_to_save",
    "layers_pattern",
    "target_parameters",
)
EXPRESSIONS = NAMING[:3]
#: Seconds that matching all expressions of a configuration against the names of a base's modules may take.
MATCHING = 1.0
PLAIN = re.compile(r"[\w.-]*")
#: By how much a merged model's logits may differ from the unmerged one's, of the largest.
TOLERANCE = 1e-4


def check(checkpoint: Checkpoint, modules: Iterable[str] = ()) -> None:
    """Raise NotImplementedError or ValueError, naming file and field, for an adapter that is not supported.

    modules: names in its base, which expressions of the configuration are matched against.
    """
    configuration(checkpoint, modules)


def lineage(checkpoint: Checkpoint) -> list[Checkpoint]:
    """A checkpoint's adapters in the order in which they were trained, after the base of all."""
    return [checkpoint] if checkpoint.base is None else [*lineage(checkpoint.base), checkpoint]


def configuration(checkpoint: Checkpoint, modules: Iterable[str] = ()) -> dict:
    """An adapter's configuration with its expressions resolved to names; raises what `check` raises."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    file = checkpoint.path / "adapter_config.json"
    raw = read_json(file)
    kind = raw.get("peft_type")
    if kind in PROMPTED:
        raise NotImplementedError(
            f"{checkpoint.path} is an adapter of kind {kind}, which adds no weights to merge and is not "
            "supported: it puts learned vectors before each prompt, which are no text. Give a checkpoint "
            "with weights, or a LoRA."
        )
    if kind not in MERGED:
        raise NotImplementedError(
            f"{checkpoint.path} is an adapter of kind {kind!r}, which is not supported. {ELSEWHERE}."
        )
    if refused := next((k for k in REFUSED if raw.get(k)), None):
        raise NotImplementedError(
            f"{file} sets {refused}, which is not supported: {REFUSED[refused]}. Give a checkpoint whose "
            "weights are merged, or an adapter without it."
        )
    start = str(raw.get("init_lora_weights", ""))
    if start in UNREPEATABLE or start.startswith("pissa_niter"):
        raise NotImplementedError(
            f"{file} says init_lora_weights {start!r}, which changed the base in a way that cannot be "
            "repeated. Save it with path_initial_model_for_weight_conversion, or merge it where it was "
            "trained."
        )
    fields = PEFT_TYPE_TO_CONFIG_MAPPING[kind].__dataclass_fields__
    if unknown := sorted(k for k, v in raw.items() if k not in fields and v):
        raise ValueError(
            f"{file} has the field {unknown[0]!r}, which peft {peft.__version__} does not know: update peft, "
            "or merge the adapter where it was trained."
        )
    kept = {k: v for k, v in raw.items() if k in fields and k not in ("auto_mapping", "peft_version")}
    return _resolved(file, kept, tuple(modules))


def _resolved(file: Path, config: dict, modules: tuple[str, ...]) -> dict:
    deadline = time.monotonic() + MATCHING
    for field, value in config.items():
        if field in EXPRESSIONS and isinstance(value, str) and value != "all-linear":
            config[field] = [m for m in modules if _matches(file, field, value, m, deadline)]
            if field == "target_modules" and modules and not config[field]:
                raise ValueError(
                    f"{file} has an expression in {field} that matches no module of the base: {value!r}."
                )
        elif field.endswith("_pattern") and isinstance(value, dict):
            config[field] = {
                name: number
                for key, number in value.items()
                for name in _names(file, field, key, modules, deadline)
            }
        elif field in NAMING:
            words = [value] if not isinstance(value, (list, type(None))) else value or []
            odd = [w for w in words if not isinstance(w, str) or not PLAIN.fullmatch(w)]
            if odd:
                raise ValueError(f"{file} has {odd[0]!r} in {field}, where only names of modules are read.")
    return config


def _names(file: Path, field: str, key: str, modules: tuple[str, ...], deadline: float) -> list[str]:
    if PLAIN.fullmatch(key):
        return [key]
    return [re.escape(m) for m in modules if _matches(file, field, rf"(.*\.)?({key})", m, deadline)]


def _matches(file: Path, field: str, pattern: str, name: str, deadline: float) -> bool:
    try:
        return bool(regex.fullmatch(pattern, name, timeout=max(1e-3, deadline - time.monotonic())))
    except TimeoutError as error:
        raise ValueError(
            f"{file} has an expression in {field} that takes more than {MATCHING} s to match the modules' "
            "names: list the names there instead."
        ) from error
    except regex.error as error:
        raise ValueError(f"{file} has an expression in {field} that cannot be read ({error}).") from error


def touches(entries: Header, modules: Iterable[str]) -> bool:
    """Whether an adapter's tensors change one of these modules of its base."""
    return any(in_base(name).startswith(f"{module}.") for name in entries for module in modules)


def merged(
    checkpoint: Checkpoint, dtype: torch.dtype, trust_remote_code: bool = False
) -> dict[str, torch.Tensor]:
    """The weights of an adapter's base with the adapter, or a chain of them, merged by peft.

    They are float32, also where `dtype` is narrower: rounded once, when they are read into a model, as any
    other checkpoint's. Merged in bfloat16, a small update would be lost in the weights' rounding.

    Raises ValueError, naming the adapter's file, where it does not fit the base, is not finite, or does not
    come out of the merge as it computes unmerged.
    """
    base, *adapters = lineage(checkpoint)
    hf = weights.module(base, torch.promote_types(dtype, torch.float32), trust_remote_code)
    for below, adapter in zip([base, *adapters], adapters):
        hf = _merge(hf, adapter, below.path)
    return hf.state_dict()


#: What peft raises where an adapter cannot be read or merged.
_FAILURES = (
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    NotImplementedError,
    SafetensorError,
)


def _merge(hf: PreTrainedModel, checkpoint: Checkpoint, base: Path) -> PreTrainedModel:
    """The base `hf` (read from `base`) with an adapter merged into it, tried on a few tokens."""
    import peft

    file = checkpoint.files[1]
    config = configuration(checkpoint, [name for name, _ in (*hf.named_modules(), *hf.named_parameters())])
    try:
        with weights.quiet(), tempfile.TemporaryDirectory() as plain:
            state = {in_adapter(name): tensor for name, tensor in load_file(file).items()}
            _resize(hf, {n: tuple(t.shape) for n, t in state.items()})
            folder = _plain_folder(Path(plain), checkpoint, config, state)
            settings = peft.PeftConfig.from_peft_type(**config)
            adapted = peft.PeftModel.from_pretrained(hf, str(folder), torch_device="cpu", config=settings)
            _check_names(adapted, set(state))
    except _FAILURES as error:
        sizes = [line.strip(" \t.") for line in str(error).splitlines() if "size mismatch" in line]
        reason = sizes[0] if sizes else first_line(error)
        raise ValueError(
            f"The adapter {file} cannot be merged into its base {base} ({reason}): it is "
            "damaged, or was trained on another base."
        ) from error
    ids = _trial(hf, config)
    try:
        with weights.quiet():
            wanted = _logits(adapted, ids)
            if not wanted.isfinite().all():
                raise ValueError("its numbers are not finite")
            untie(hf)
            whole = adapted.merge_and_unload(safe_merge=True)
            off = (_logits(whole, ids) - wanted).abs().max() / wanted.abs().max()
    except _FAILURES as error:
        raise ValueError(
            f"The adapter {file} cannot be merged into its base {base} ({first_line(error)}): leave this "
            "checkpoint out, or train one whose weights can be merged."
        ) from error
    if not off <= TOLERANCE:
        raise ValueError(
            f"The adapter {file} does not compute the same merged into its base {base} as it "
            f"does unmerged (logits differ by {off:.1e} of the largest): leave this checkpoint out."
        )
    return whole


def _plain_folder(folder: Path, checkpoint: Checkpoint, config: dict, state: dict[str, torch.Tensor]) -> Path:
    """The adapter's own folder, or a copy without what wrapped its names."""
    if state.keys() == header(checkpoint.files[1]).keys():
        return checkpoint.path
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _check_names(adapted: torch.nn.Module, names: set[str]) -> None:
    """Raise ValueError where an adapter's tensors are not those of the adapted model."""
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    in_model = {re.sub(r"\.default(?=\.|$)", "", name) for name in adapted.state_dict()}
    if odd := sorted(wanted - names) or sorted(names - wanted - in_model):
        raise ValueError(f"{odd[0]!r} is {'missing' if odd[0] in wanted else 'no part of it'}")


def adjusted(config: PretrainedConfig, checkpoint: Checkpoint, hf: PreTrainedModel) -> PretrainedConfig:
    """A base's configuration after an adapter's merge: vocabulary, and untied where one embedding changes.

    hf: the base on the meta device.
    """
    config = copy.deepcopy(config)
    ends = weights.embedding_names(hf)
    if getattr(config, "quantization_config", None):
        del config.quantization_config  # the base is dequantised before anything is merged into it
    text = config.get_text_config()
    for adapter in lineage(checkpoint)[1:]:
        entries = header(adapter.files[1])
        text.vocab_size = vocabulary({n: shape for n, (_, shape) in entries.items()}, ends) or text.vocab_size
        if touches(entries, ends):
            text.tie_word_embeddings = config.tie_word_embeddings = False
    return config


def _resize(hf: PreTrainedModel, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give a base the vocabulary that its adapter was trained with; shapes: of the adapter's tensors."""
    rows = vocabulary(shapes, weights.embedding_names(hf))
    own = weights.embedding_rows(hf)
    if rows is None or rows == own:
        return
    kept = {in_base(name) for name in shapes}
    embed, unembed = weights.embeddings(hf)
    tied = unembed.weight is embed.weight
    needed = [f"{name}.weight" for name in weights.embedding_names(hf)]
    if not any(n in kept for n in needed) or (not tied and not all(n in kept for n in needed)):
        raise ValueError(
            f"it was trained with {rows} rows of the vocabulary, its base has {own}, and the adapter does "
            f"not hold the embeddings {' and '.join(n for n in needed if n not in kept)}: save it with "
            "save_embedding_layers=True"
        )
    hf.resize_token_embeddings(rows, mean_resizing=False)


def vocabulary(shapes: dict[str, tuple[int, ...]], ends: Iterable[str]) -> int | None:
    """Rows of the embeddings (of these names) that an adapter was trained with; None where it has none."""
    for name, shape in shapes.items():
        if any(in_base(name) == f"{end}.weight" for end in ends):
            return shape[0]
    return None


def untie(hf: PreTrainedModel) -> None:
    """Give the output embedding a tensor of its own, so that one of the two can be changed alone."""
    embed, unembed = (_innermost(module) for module in weights.embeddings(hf))
    if embed.weight is unembed.weight:
        unembed.weight = torch.nn.Parameter(cast(torch.Tensor, embed.weight).detach().clone(), False)
        hf.config.get_text_config().tie_word_embeddings = hf.config.tie_word_embeddings = False


def _innermost(module: torch.nn.Module) -> torch.nn.Module:
    """The base's own module inside what peft wrapped around it."""
    for name in ("base_layer", "original_module", "token_adapter"):
        if (inner := dict(module.named_children()).get(name)) is not None:
            return _innermost(inner)
    return module


def _trial(hf: PreTrainedModel, config: dict) -> Int[torch.Tensor, "1 token"]:
    """Tokens that a merge is tried on: some of all the vocabulary, its last ones, and trained ones."""
    rows = weights.embedding_rows(hf)
    trained = config.get("trainable_token_indices") or config.get("token_indices") or []
    trained = [i for group in trained.values() for i in group] if isinstance(trained, dict) else trained
    return torch.tensor([[*(i * (rows - 1) // 15 for i in range(16)), *[i for i in trained if i < rows][:8]]])


@torch.inference_mode()
def _logits(
    hf: torch.nn.Module, ids: Int[torch.Tensor, "1 token"]
) -> Float[torch.Tensor, "1 token vocabulary"]:
    return hf.eval()(input_ids=ids, use_cache=False).logits.float()
