"""What a checkpoint is made of, as content hashes: two loadings with the same ones compute the same numbers.

>>> CheckpointSeries.discover("runs/quick/series").identity(0)["config"]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from transformers import PretrainedConfig

from interp.checkpoints import checks
from interp.checkpoints.contents import Checkpoint, tokenizer_files
from interp.checkpoints.files import read_json
from interp.checkpoints.headers import hash_files

#: What of a configuration says only where it was read from, and by which release.
ORIGIN = ("_name_or_path", "name_or_path", "transformers_version")
#: What lies beside a tokenizer's own files and decides how text becomes ids.
BESIDE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def hash_json(value: object) -> str:
    """Content hash of JSON, whatever the order of its keys; empty for None."""
    return "" if value is None else hash_text(json.dumps(value, sort_keys=True, default=str))


def hash_text(text: str | None) -> str:
    """Content hash of a text; empty for None."""
    return "" if text is None else hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def identity(checkpoint: Checkpoint, trust_remote_code: bool = False) -> dict[str, str]:
    """Content hashes of what lies beside a checkpoint's weights, as it is loaded; empty for what is not
    there.

    Names: config (as transformers reads it), generation_config, tokenizer (its files and special tokens),
    template (the checkpoint's own), adapter_config (of every adapter down to the base), code (Python files,
    where they may run).
    """
    hashes = dict(
        config=hash_config(checks.configuration(checkpoint, trust_remote_code)),
        generation_config=hash_json(_generation_config(checkpoint)),
        tokenizer=tokenizer_hash(checkpoint),
        template=hash_text(checks.template(checkpoint)[0]),
        adapter_config=hash_json(_adapter_configs(checkpoint) or None),
    )
    code = sorted({*checkpoint.home.glob("*.py"), *checkpoint.path.glob("*.py")}) if trust_remote_code else []
    return hashes | dict(code=hash_files(code) if code else "")


def _generation_config(checkpoint: Checkpoint) -> Mapping | None:
    file = checkpoint.home / "generation_config.json"
    config = read_json(file) if file.exists() else None
    return config and {k: v for k, v in config.items() if k not in ORIGIN}


def _adapter_configs(checkpoint: Checkpoint) -> list[Mapping]:
    if checkpoint.base is None:
        return []
    return [read_json(checkpoint.path / "adapter_config.json"), *_adapter_configs(checkpoint.base)]


def hash_config(config: PretrainedConfig) -> str:
    """Content hash of a configuration as transformers reads it, wherever it was read from."""
    return hash_json({k: v for k, v in config.to_dict().items() if k not in ORIGIN})


def tokenizer_hash(checkpoint: Checkpoint) -> str:
    """Content hash of a checkpoint's tokenizer, its special and added tokens counted in."""
    folder: Path | None = checks.tokenizer_home(checkpoint)
    if folder is None:
        return hash_text(checks.tokenizer_id(checkpoint))
    beside = {}
    for name in BESIDE_TOKENIZER:
        if (folder / name).exists():
            beside[name] = read_json(folder / name) | dict(chat_template=None)
    return hash_text(hash_files(tokenizer_files(folder)) + hash_json(beside))
