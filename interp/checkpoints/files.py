"""The small files beside weights, read within limits: each failure is a sentence that names the file and the
remedy.

>>> read_json(Path("runs/lora/checkpoint-100/adapter_config.json"))["r"]
"""

from __future__ import annotations

import json
from pathlib import Path

from interp.system.json_files import check_regular

#: Bytes of JSON or of a template that are read; the index of a model of 10,000 shards has less.
TEXT_LIMIT = 64 * 2**20
#: Bytes of a tokenizer's files (the largest known has 35 MB).
TOKENIZER_LIMIT = 256 * 2**20
#: The endings of a checkpoint's files that are opened by name.
OPENED = (".json", ".jinja", ".model", ".txt", ".py", ".safetensors", ".gguf")
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "merges.txt")


def check_size(path: Path, limit: int) -> None:
    """Raise OSError for a missing file or one of more than `limit` bytes, ValueError for no regular file."""
    size = check_regular(path).st_size
    if size > limit:
        raise OSError(
            f"{path} has {size:,} bytes, but at most {limit:,} are read of such a file: it is not "
            "what its name says, copy it again."
        )


def check_folder(folder: Path) -> None:
    """Raise ValueError where a file that may be opened is no regular file, OSError where it is too large."""
    for path in sorted(folder.iterdir()):
        if path.suffix not in OPENED or not path.exists():
            continue
        if path.suffix in (".safetensors", ".gguf"):
            check_regular(path)
        else:
            check_size(path, TOKENIZER_LIMIT if path.name in TOKENIZER_NAMES else TEXT_LIMIT)


def read_text(path: Path) -> str:
    """A text file in UTF-8, of at most TEXT_LIMIT bytes; raises ValueError or OSError naming the file."""
    check_size(path, TEXT_LIMIT)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is damaged, it is no text in UTF-8 ({error}): copy it again, or save it as UTF-8."
        ) from error


def read_json(path: Path) -> dict:
    """A JSON object; raises ValueError or OSError, naming the file, where it is none, or nested too deeply to
    be read."""
    text = read_text(path)
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged, it is nested too deeply to be read: copy it again.") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it is no JSON ({error}): copy it again.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object. Copy it again.")
    return value
