"""Weights in formats that are never opened (pickles, shards of distributed runs): the command that makes
safetensors of them.

>>> conversion(Path("run/global_step_50"))     # " Only the shards of a distributed run ... `python -m ...`."
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

#: A trainer's own pickles, which hold no weights.
STATE = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state|extra_state|optim_).*")
MODEL_CODE = (
    "import sys; from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])"
)
TENSORS_CODE = (
    "import sys, torch, safetensors.torch as s; "
    "found = [torch.load(f, map_location='cpu', weights_only=True) for f in sys.argv[1:-1]]; "
    "found = [t.get('state_dict', t) for t in found]; "
    "s.save_file({k: v.clone() for t in found for k, v in t.items()}, sys.argv[-1], "
    "metadata={'format': 'pt'})"
)
BRIDGE_CODE = (
    "import sys; from megatron.bridge import AutoBridge as B; "
    "B.from_hf_pretrained(sys.argv[1]).export_ckpt(sys.argv[2], sys.argv[3])"
)
NEMO_CODE = (
    "import sys; from pathlib import Path as P; from nemo.collections import llm; "
    "llm.export_ckpt(path=P(sys.argv[1]), target='hf', output_path=P(sys.argv[2]))"
)
PICKLE = " Only a pickle is there, which is never read: if you trust the file, convert it with `{}`."
SHARDS = " Only the shards of {} are there, which are never read: {} `{}`."
BESIDE = ", and copy the base's config.json and tokenizer beside the weights"


def _command(*words: object) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)


def _python(code: str, *paths: object) -> str:
    return f'python -c "{code}" ' + _command(*paths)


def conversion(path: Path) -> str:
    """What a folder has in place of weights that are read, and the command that converts it, or ""."""
    kinds = (_verl, _megatron, _deepspeed, _distributed, _pickles)
    return next(filter(None, (kind(path) for kind in kinds)), "")


def _verl(path: Path) -> str:
    places = path / "actor", path, path.parent
    actor = next(
        (p for p in places if (p / "dist_ckpt").is_dir() or any(p.glob("model_world_size_*_rank_*.pt"))), None
    )
    if actor is None:
        return ""
    backend = "megatron" if (actor / "dist_ckpt").is_dir() else "fsdp"
    config = actor / "huggingface" / "config.json"
    tied = ["--tie-word-embedding"] if backend == "megatron" and config.is_file() and _ties(config) else []
    merge = _command(
        "python",
        "-m",
        "verl.model_merger",
        "merge",
        "--backend",
        backend,
        *tied,
        "--local_dir",
        actor,
        "--target_dir",
        actor / "huggingface",
    )
    return SHARDS.format(f"a distributed run (verl, {backend})", "merge them with", merge)


def _ties(config: Path) -> bool:
    try:
        return bool(json.loads(config.read_text()).get("tie_word_embeddings"))
    except (ValueError, AttributeError):
        return False


def _megatron(path: Path) -> str:
    nemo = next(
        (p for p in (path, path / "context") if (p / "model.yaml").exists() or (p / "io.json").exists()), None
    )
    if nemo is not None or any(path.glob("*.nemo")):
        return SHARDS.format("a NeMo run", "export them with", _python(NEMO_CODE, path, f"{path}-hf"))
    older = any(path.glob("mp_rank_*/model_optim_rng.pt"))
    if (
        older
        or (any(path.glob("*.distcp")) and (path / "common.pt").exists())
        or (path / "run_config.yaml").exists()
    ):
        command = _python(BRIDGE_CODE, "BASE", path, f"{path}-hf")
        return SHARDS.format(
            "a Megatron run",
            "export them (BASE: the model it was trained from, as Hugging Face files) with",
            command,
        )
    return ""


def _deepspeed(path: Path) -> str:
    script = path / "zero_to_fp32.py"
    if script.exists():
        return PICKLE.format(_command("python", script, path, path, "--safe_serialization"))
    if inner := sorted({p.parent for p in path.glob("global_step*/*_states.pt")}):
        command = _command(
            "python",
            "-m",
            "deepspeed.utils.zero_to_fp32",
            path,
            path,
            "--tag",
            inner[-1].name,
            "--safe_serialization",
        )
        return SHARDS.format("a DeepSpeed run", f"join them{BESIDE}, with", command)
    zero = any(path.glob("*zero_pp_rank_*_optim_states.pt")) or any(path.glob("mp_rank_*_model_states.pt"))
    if not zero:
        return ""
    beside = path.parent / "zero_to_fp32.py"
    module = [str(beside)] if beside.exists() else ["-m", "deepspeed.utils.zero_to_fp32"]
    command = _command(
        "python", *module, path.parent, f"{path}_hf", "--tag", path.name, "--safe_serialization"
    )
    return SHARDS.format("a DeepSpeed run", f"join them{BESIDE}, with", command)


def _distributed(path: Path) -> str:
    if sharded := sorted(path.glob("pytorch_model_fsdp_*")):
        return PICKLE.format(_command("accelerate", "merge-weights", sharded[0], path))
    if (path / "policy" / "weights").is_dir():
        command = _command(
            "uv",
            "run",
            "examples/converters/convert_dcp_to_hf.py",
            f"--config={path / 'config.yaml'}",
            f"--dcp-ckpt-path={path / 'policy' / 'weights'}",
            f"--hf-ckpt-path={path}_hf",
        )
        return SHARDS.format("a NeMo-RL run", "export them with", command)
    if shards := sorted({p.parent for depth in ("", "*/", "*/*/") for p in path.glob(f"{depth}*.distcp")}):
        module = "torch.distributed.checkpoint.format_utils"
        command = _command("python", "-m", module, "dcp_to_torch", shards[0], path / "model.pt")
        return SHARDS.format(
            "a distributed run (torch.distributed.checkpoint)",
            "join them, and follow what is then said of model.pt, with",
            command,
        )
    return ""


def _pickles(path: Path) -> str:
    endings = ("bin", "pt", "pth", "ckpt")
    files = sorted(
        p for folder in (path, path / "actor") for ending in endings for p in folder.glob(f"*.{ending}")
    )
    pickles = sorted((p for p in files if not STATE.match(p.name)), key=_preference)
    if not pickles:
        return ""
    first = pickles[0]
    if re.fullmatch(r"pytorch_model(-\d+-of-\d+)?\.bin", first.name):
        return PICKLE.format(_python(MODEL_CODE, path))
    name = "adapter_model" if first.name.startswith("adapter_model") else "model"
    parts = [p for p in pickles if _numberless(p) == _numberless(first)]
    return PICKLE.format(_python(TENSORS_CODE, *parts, path / f"{name}.safetensors"))


def _preference(path: Path) -> int:
    """Names by which transformers and peft find their files come first."""
    starts = ("pytorch_model", "adapter_model", "model", "")
    return next(i for i, start in enumerate(starts) if path.name.startswith(start))


def _numberless(path: Path) -> str:
    """A file's name without its numbers, which parts of one checkpoint have in common."""
    return re.sub(r"\d+", "", path.name)
