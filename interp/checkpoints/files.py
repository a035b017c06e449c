"""The small files beside weights, read within limits: each failure is a sentence that names the file and the
remedy.

>>> read_json(Path("runs/lora/checkpoint-100/adapter_config.json"))["r"]
"""

from __future__ import annotations

import json
from pathlib import Path

#: Bytes of JSON or of a template that are read; the index of a model of 10,000 shards has less.
TEXT_LIMIT = 64 * 2**20
#: Bytes of a tokenizer's files (the largest known has 35 MB).
TOKENIZER_LIMIT = 256 * 2**20
#: The endings of a checkpoint's files that are opened by name.
OPENED = (".json", ".jinja", ".model", ".txt", ".py", ".safetensors", ".gguf")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt")


def check_regular(path: Path, limit: int | None = None) -> None:
    """Raise OSError where something that is no regular file (a folder, a pipe, a device) has a file's name,
    or it exceeds `limit` bytes."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file (a folder, a pipe or a device): put the file itself "
                      "there, or remove it.")
    if limit is not None and path.exists() and path.stat().st_size > limit:
        raise OSError(f"{path} has {path.stat().st_size:,} bytes, but at most {limit:,} are read of such a "
                      "file: it is not what its "
                      "name says, copy it again.")


def check_folder(folder: Path) -> None:
    """Raise OSError where a file that a reading of the folder may open is no regular file, or larger than any
    of its kind."""
    for path in sorted(folder.iterdir()):
        if path.suffix in OPENED:
            weights = path.suffix in (".safetensors", ".gguf")
            limit = TOKENIZER_LIMIT if path.name in TOKENIZER_NAMES else TEXT_LIMIT
            check_regular(path, None if weights else limit)


def read_text(path: Path) -> str:
    """A text file in UTF-8, of at most TEXT_LIMIT bytes; raises ValueError or OSError naming the file."""
    check_regular(path, TEXT_LIMIT)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged, it is no text in UTF-8 ({error}): copy it again, or save it "
                         f"as UTF-8.") from error


def read_json(path: Path) -> dict:
    """A JSON object; raises ValueError or OSError, naming the file, where it is none, or nested too deeply to
    be read."""
    text = read_text(path)
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged, it is nested too deeply to be read: copy it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}): copy it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object. Copy it again.")
    return found
