"""What must hold of a checkpoint before it is loaded, told from its small files and headers.

>>> config = configuration(checkpoint)
>>> check_weights(checkpoint, headers(checkpoint), blueprint(config))      # names, shapes, dtypes
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence, Set
from functools import lru_cache
from pathlib import Path

import psutil
import torch
import transformers
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from interp.checkpoints import adapters
from interp.checkpoints.contents import Checkpoint, tokenizer_files
from interp.checkpoints.differences import differing
from interp.checkpoints.files import read_json, read_text
from interp.checkpoints.headers import Header, gguf_header, hash_files
from interp.checkpoints.names import VALUE_HEADS, own_names, wrapping
from interp.checkpoints.quantised import check_leftover, check_quantised
from interp.checkpoints.weights import (
    adapter_misfits,
    complete,
    embedding_names,
    misfits,
    pretrained,
    read_configuration,
)
from interp.models.inner import auto_class
from interp.system.paths import PROGRAM
from interp.system.sentences import first_line

FLOATING = ("F64", "F32", "F16", "BF16")
#: Attention implementations that come with torch or transformers; any other name would fetch and run a
#: kernel.
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
#: The most layers that are read: a module of more takes minutes to be built before its weights are looked at.
LAYERS = 1_000
#: Heads of a model that scores texts and has no words to say.
SCORERS = re.compile(
    r".*(ForSequenceClassification|ForTokenClassification|ForQuestionAnswering"
    r"|RewardModel|ValueModel|ForReward)$"
)
#: Fields in which nearly all checkpoints differ from their base.
UNSAID = (
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "_name_or_path",
    "name_or_path",
    "architectures",
    "auto_map",
)
#: A text in which tokenizers differ that split words, digits, spaces or letters with accents in other ways.
SPLIT_TRIAL = (
    "You're in the hall,  it's 12:45.\n\n\tGo to door 123 \u00e9t\u00e9 \u4f60\u597d \U0001f600 (x_y) don't  "
)
#: The special tokens that templates and the end of decoding read.
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def configuration(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PretrainedConfig:
    """A checkpoint's configuration, as transformers reads it.

    Raises FileNotFoundError where there is none, ValueError where it is damaged, asks for code of its own, or
    says that the weights are quantised, NotImplementedError for what is no causal language model.
    """
    if checkpoint.embedded:
        return _gguf_configuration(checkpoint.path, checkpoint.path.stat().st_mtime_ns)
    file = checkpoint.home / "config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{checkpoint.home} has no config.json, so it is not a complete Hugging Face checkpoint."
        )
    raw = read_json(file)
    for other in (file, checkpoint.home / "tokenizer_config.json"):
        if not trust_remote_code and other.exists() and "auto_map" in read_json(other):
            raise ValueError(
                f"{other} has an auto_map: it asks to run Python code from its repository, which is not run "
                "unless trust_remote_code=True is given, by someone who has read that code."
            )
    _check_names(file, raw)
    check_quantised(file, raw.get("quantization_config"))
    if raw.get("is_encoder_decoder"):
        raise NotImplementedError(
            f"{file} describes an encoder-decoder ({raw.get('model_type')}), which is not supported: an "
            "encoder reads the prompt, so there is no boundary in the decoder."
        )
    try:
        config = read_configuration(checkpoint.home, trust_remote_code)
    except Exception as error:  # strict configurations raise their own kinds
        raise ValueError(
            f"{file} describes no model that transformers {transformers.__version__} knows "
            f"({first_line(error)})."
        ) from error
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if not isinstance(layers, int) or not 0 < layers <= LAYERS:
        raise ValueError(
            f"{file} is damaged: num_hidden_layers is {layers!r}, where 1 to {LAYERS:,} are read. Copy it "
            "again."
        )
    if not trust_remote_code and auto_class(config) is None:
        raise NotImplementedError(
            f"{file} describes no causal language model: its model_type is {config.model_type!r}."
        )
    return config


def quantisation(checkpoint: Checkpoint) -> object:
    """The quantization_config of a checkpoint's own weights, None where they are plain numbers."""
    file = checkpoint.home / "config.json"
    return read_json(file).get("quantization_config") if file.exists() and checkpoint.base is None else None


def _check_names(file: Path, raw: Mapping, within: str = "") -> None:
    """Raise for an attention implementation that is not supported, or a model that only scores."""
    for field in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        value = raw.get(field)
        for name in value.values() if isinstance(value, Mapping) else [value]:
            if name not in ATTENTION:
                raise ValueError(
                    f"{file} names the attention implementation {name!r} in {within}{field}, which is not "
                    "read since it may fetch and run code: remove it, or take one of "
                    f"{', '.join(map(repr, ATTENTION[1:]))}."
                )
    scorers = [n for n in raw.get("architectures") or [] if isinstance(n, str) and SCORERS.match(n)]
    if scorers:
        raise NotImplementedError(
            f"{file} describes {scorers[0]}, a model of values, rewards or classes and no language model: "
            "give the policy's checkpoint."
        )
    for key, inner in raw.items():
        if isinstance(inner, Mapping) and key.endswith("_config") and key != "quantization_config":
            _check_names(file, {**inner, "architectures": None}, f"{within}{key}.")


@lru_cache(8)
def _gguf_configuration(path: Path, changed: int) -> PretrainedConfig:
    gguf_header(path)
    try:
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"transformers {transformers.__version__} cannot read the GGUF {path} ({first_line(error)})."
        ) from error


def check_architecture(
    checkpoint: Checkpoint, config: PretrainedConfig, first: Checkpoint, wanted: PretrainedConfig
) -> list[str]:
    """The fields in which two checkpoints' configurations differ without another computation, in words.

    Raises ValueError, naming the field and both values, where they do not describe the same computation.
    """
    differ = differing(config.to_dict(), wanted.to_dict())
    for field, own, other, inert in differ:
        if not inert:
            raise ValueError(
                f"The architecture of {checkpoint.path} is not the one of {first.path}: {field} is {own!r}, "
                f"not {other!r}."
            )
    return [f"{field} ({own!r}, not {other!r})" for field, own, other, _ in differ if field not in UNSAID]


def tokenizer_home(checkpoint: Checkpoint) -> Path | None:
    """The folder of a checkpoint's tokenizer (or its base's); None where a GGUF file brings it."""
    adapted = [c.path for c in reversed(adapters.lineage(checkpoint)) if c.base]
    for folder in (*adapted, checkpoint.home):
        if tokenizer_files(folder):
            return folder
    if adapters.lineage(checkpoint)[0].kind == "gguf":
        return None
    raise FileNotFoundError(
        f"{checkpoint.path} has no tokenizer.json, so it is not a complete Hugging Face checkpoint."
    )


def load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A checkpoint's tokenizer; raises ValueError, naming the file, where it is damaged."""
    folder, source = tokenizer_home(checkpoint), adapters.lineage(checkpoint)[0]
    options = dict(gguf_file=source.path.name) if folder is None else {}
    if folder is not None:
        for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
            if (folder / name).exists():
                read_json(folder / name)
        template(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder or source.path.parent,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **options,
        )
        if (
            folder
            and tokenizer.is_fast
            and not trust_remote_code
            and _splits_otherwise(tokenizer, folder / "tokenizer.json")
        ):
            warnings.warn(
                f"The tokenizer of {folder} is read as its tokenizer.json describes it: transformers' "
                f"{type(tokenizer).__name__}, which its model_type stands for, would split text otherwise.",
                stacklevel=2,
            )
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        if tokenizer.is_fast:  # a damaged one may be read once, and not be copied
            Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        return tokenizer
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        named = tokenizer_files(folder)[0] if folder else source.path
        raise ValueError(
            f"The tokenizer {named} cannot be read ({first_line(error)}): {named.name} is damaged, copy it "
            "again."
        ) from error


def _splits_otherwise(tokenizer: PreTrainedTokenizerBase, file: Path) -> bool:
    """Whether a tokenizer gives other ids than its tokenizer.json: some classes build their own parts."""
    if not file.exists():
        return False
    own = Tokenizer.from_file(str(file))
    return (
        tokenizer(SPLIT_TRIAL, add_special_tokens=False)["input_ids"]
        != own.encode(SPLIT_TRIAL, add_special_tokens=False).ids
    )


def tokenizer_id(checkpoint: Checkpoint) -> str:
    """Content hash of a checkpoint's tokenizer files (of what of a GGUF file makes its tokenizer)."""
    folder = tokenizer_home(checkpoint)
    if folder:
        return hash_files(tokenizer_files(folder))
    metadata = gguf_header(adapters.lineage(checkpoint)[0].path)[0]
    return json.dumps(
        {
            k: v
            for k, v in sorted(metadata.items())
            if k.startswith("tokenizer.") and k != "tokenizer.chat_template"
        }
    )


def _canonical(path: Path) -> str:
    """A tokenizer.json as the library writes it, without how it pads and truncates, which a trainer sets."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # bare Exception
        raise ValueError(
            f"The tokenizer {path} cannot be read ({first_line(error)}): tokenizer.json is damaged, copy it "
            "again."
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer.to_str()


def check_tokenizer(checkpoint: Checkpoint, first: Checkpoint) -> bool:
    """Whether a checkpoint's tokenizer has tokens that another's lacks.

    Raises ValueError where the two differ in more than how they are written down, and tokens that one of them
    adds.
    """
    if tokenizer_id(checkpoint) == tokenizer_id(first):
        return False
    folders = [tokenizer_home(c) for c in (checkpoint, first)]
    files = [folder / "tokenizer.json" for folder in folders if folder]
    own: Set
    other: Set
    if len(files) == 2 and all(file.exists() for file in files):
        contents = [json.loads(_canonical(file)) for file in files]
        added = [{(t["content"], t["id"]): t for t in content.pop("added_tokens")} for content in contents]
        own, other = (tokens.keys() for tokens in added)
        same = contents[0] == contents[1] and all(added[0][key] == added[1][key] for key in own & other)
    else:
        own, other = (load_tokenizer(c).get_vocab().items() for c in (checkpoint, first))
        same = True
    if not same or not (own <= other or other <= own):
        raise ValueError(
            f"The tokenizer of {checkpoint.path} is not the one of {first.path}: a series has one tokenizer."
        )
    return not own <= other


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """The special tokens of a tokenizer that change prompts or where decoding ends."""
    return {name: getattr(tokenizer, name, None) for name in SPECIAL}


def check_vocabulary(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, rows: int) -> str:
    """A sentence where the model's `rows` embeddings lack the tokenizer's padding token alone, else "".

    Raises ValueError where it has others that are not embedded.
    """
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if any(token != tokenizer.pad_token for _, token in beyond):
        token = next(token for _, token in beyond if token != tokenizer.pad_token)
        raise ValueError(
            f"The tokenizer of {checkpoint.path} has {len(tokenizer)} entries, but the model embeds only "
            f"{rows}, and not {token!r}: they do not belong together, or the embeddings that were added were "
            "not saved (for an adapter, save_pretrained with save_embedding_layers=True)."
        )
    return (
        f"The padding token {beyond[0][1]!r} of {checkpoint.path} is not embedded, and never read."
        if beyond
        else ""
    )


def template(checkpoint: Checkpoint) -> tuple[str | None, Path]:
    """A checkpoint's chat template and its file: the tokenizer's own, its configuration, or a GGUF file."""
    folder, source = tokenizer_home(checkpoint), adapters.lineage(checkpoint)[0]
    if folder is None:
        return gguf_header(source.path)[0].get("tokenizer.chat_template"), source.path
    if (folder / "chat_template.jinja").exists():
        return read_text(folder / "chat_template.jinja"), folder / "chat_template.jinja"
    file = folder / "tokenizer_config.json"
    text = read_json(file).get("chat_template") if file.exists() else None
    return text if isinstance(text, str) else None, file


def stop_tokens(checkpoint: Checkpoint) -> int | list[int] | None:
    """The stop tokens in a checkpoint's (or its base's) generation_config.json; None where it has none."""
    for folder in dict.fromkeys(
        [checkpoint.path if checkpoint.kind == "adapter" else checkpoint.home, checkpoint.home]
    ):
        file = folder / "generation_config.json"
        if not file.exists():
            continue
        named = read_json(file).get("eos_token_id")
        each = named if isinstance(named, list) else [named]
        if named is not None and not all(type(i) is int and i >= 0 for i in each):
            raise ValueError(f"{file}: eos_token_id is a token id or a list of them, not {named!r}.")
        return named
    return None


def template_difference(own: str, other: str) -> str:
    """Where two chat templates first differ: the line, and what either has there."""
    a, b = own.splitlines(), other.splitlines()
    line = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    x, y = (lines[line] if line < len(lines) else "" for lines in (a, b))
    at = max(0, next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y))) - 20)
    return f"line {line + 1} is {x[at : at + 60]!r}, not {y[at : at + 60]!r}"


def blueprint(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of a configuration without any numbers, on the meta device."""
    try:
        with torch.device("meta"):
            return (auto_class(config) or AutoModelForCausalLM).from_config(
                config, trust_remote_code=trust_remote_code
            )
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"No model can be built from the configuration of {config.name_or_path or config.model_type} "
            f"({first_line(error)})."
        ) from error


def _hint(entries: Collection[str], misfit: Sequence[str], hf: PreTrainedModel) -> str:
    """What a misfit is known to come from, in a sentence; empty for any other."""
    if any(".lora_A." in n or ".base_layer." in n for n in entries):
        return (
            " They hold an adapter that is not merged: save it with merge_and_unload(), or the adapter alone "
            "with its save_pretrained."
        )
    if wrapper := wrapping(entries):
        return (
            f" Their names have {wrapper!r}, which a wrapper of the training run left there, and what "
            "remains is not this model."
        )
    head = embedding_names(hf)[1]
    scores = next((n for n in entries if VALUE_HEADS.match(n)), "")
    if scores and misfit[0] == f"'{head}.weight' is missing":
        return (
            f" They hold {scores!r}, a head of values or classes: this is no language model, give the "
            "policy's checkpoint."
        )
    if misfit[0] == f"'{head}.weight' is missing" and len(misfit) == 1:
        return (
            " If the model unembeds with its embedding, set tie_word_embeddings to true in its config.json."
        )
    return ""


def check_weights(
    checkpoint: Checkpoint, entries: Header, hf: PreTrainedModel, trust_remote_code: bool = False
) -> None:
    """Raise ValueError where a checkpoint's headers do not list the tensors of `hf` (on the meta device)."""
    if checkpoint.kind == "gguf":
        return  # its names are known when transformers reads it
    if checkpoint.kind != "adapter" and getattr(hf.config, "quantization_config", None):
        if {kind for kind, _ in entries.values()} <= {*FLOATING} and not misfits(
            {n: s for n, (_, s) in entries.items()}, hf
        ):
            check_leftover(checkpoint.home / "config.json", hf.config.quantization_config)
        return
    whole = {n: tuple(t.shape) for n, t in hf.state_dict().items()}
    if checkpoint.kind == "adapter":
        _check_adapter(checkpoint, entries, hf, whole)
        return
    parameters = dict(hf.named_parameters())
    names = own_names(entries, parameters.keys())
    shapes = {names[name]: shape for name, (_, shape) in entries.items()}
    if odd := [n for n, (kind, _) in entries.items() if kind not in FLOATING and names[n] in whole]:
        raise ValueError(
            f"The weights of {checkpoint.path} are quantised: {odd[0]!r} is kept as {entries[odd[0]][0]}, "
            "which is no floating point. Save the model dequantised, or give the weights that it was "
            "quantised from."
        )
    misfitting = misfits(shapes, hf)
    if misfitting and any(n not in shapes for n in parameters):  # an older release's names, perhaps
        report = pretrained(
            checkpoint,
            torch.float32,
            trust_remote_code,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
        )[1]
        if complete(report, hf):
            return
    if misfitting:
        raise ValueError(
            f"The weights of {checkpoint.path} do not fit the model: {misfitting[0]} ({len(misfitting)} of "
            f"{len(whole)} tensors).{_hint(entries, misfitting, hf)}"
        )


def _check_adapter(
    checkpoint: Checkpoint, entries: Header, hf: PreTrainedModel, whole: dict[str, tuple[int, ...]]
) -> None:
    """Raise where an adapter's headers do not fit its base, whose tensors have the shapes `whole`."""
    adapters.check(checkpoint, [*(n for n, _ in hf.named_modules()), *(n for n, _ in hf.named_parameters())])
    if odd := [n for n, (kind, _) in entries.items() if kind not in FLOATING and ".lora_" in n]:
        raise ValueError(
            f"The weights of {checkpoint.path} are quantised: {odd[0]!r} is kept as {entries[odd[0]][0]}, "
            "which is no floating point. Save the adapter in floating point."
        )
    rows = adapters.vocabulary({n: shape for n, (_, shape) in entries.items()}, embedding_names(hf))
    if rows is not None:
        whole = whole | {
            n: (rows, *whole[n][1:])
            for end in embedding_names(hf)
            for n in (f"{end}.weight", f"{end}.bias")
            if n in whole
        }
    if misfitting := adapter_misfits(entries, whole):
        base = adapters.lineage(checkpoint)[-2]
        raise ValueError(
            f"The adapter {checkpoint.files[1]} does not fit its base {base.path}: {misfitting[0]}. "
            "It was trained on another base."
        )


def check_memory(
    path: object,
    parameters: int,
    device: torch.device,
    dtype: torch.dtype,
    copies: int = 1,
    merged: bool = False,
) -> None:
    """Raise ValueError where a device's free memory does not hold `copies` of so many parameters.

    merged: an adapter is merged there, which no narrower dtype makes smaller.
    """
    if device.type == "meta":
        return
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    needed = parameters * dtype.itemsize * copies
    if needed > free:
        twice = " (its copy while it is read counted in)" if copies > 1 else ""
        remedy = (
            "take a narrower dtype, a larger machine, or several GPUs (device_map='auto', on the command "
            "line --device_map auto)"
        )
        if merged:
            remedy = f"an adapter is merged in float32. Merge it on a larger machine (`{PROGRAM} merge`)"
        raise ValueError(
            f"{path} needs {needed / 2**30:.2f} GiB of memory in {str(dtype).removeprefix('torch.')}{twice}, "
            f"but {device} has {free / 2**30:.2f} GiB free: {remedy}."
        )
