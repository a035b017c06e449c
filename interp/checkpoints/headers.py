"""Headers of safetensors and GGUF files: names, dtypes and shapes from a few kilobytes; content hashes.

>>> shapes = headers(find("runs/lora/checkpoint-100"))      # name -> (dtype, shape)
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.checkpoints.contents import Checkpoint, shard_index
from interp.system.sentences import first_line

Header = dict[str, tuple[str, tuple[int, ...]]]
#: GGUF's plain value types: struct formats by number (8 is a string, 9 an array).
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    with open(path, "rb") as stream:
        if not path.stat().st_size:
            yield b""
        else:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                yield data


def damaged(path: Path, why: object) -> ValueError:
    """What is raised where weights cannot be read."""
    return ValueError(
        f"The weights {path} cannot be read ({why}): the file is truncated or damaged, copy or train it "
        "again."
    )


def header(path: Path) -> Header:
    """Names, dtypes and shapes of a safetensors file; raises ValueError where it is cut off."""
    # safetensors' own safe_open takes three times as long, and does not say how many bytes are missing
    size = path.stat().st_size
    try:
        with open(path, "rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0]
            if 8 + length > size:
                raise ValueError("it has no safetensors header")
            entries = json.loads(stream.read(length))
        entries.pop("__metadata__", None)
        end = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
        tensors = {name: (e["dtype"], tuple(e["shape"])) for name, e in entries.items()}
    except (struct.error, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, first_line(error) if size else "it is empty") from error
    if end != size:
        raise damaged(path, f"its header describes {end:,} bytes, it has {size:,}")
    return tensors


def gguf_header(path: Path) -> tuple[dict, Header]:
    """Metadata (arrays as their hash) and tensors of a GGUF file; raises ValueError where it is cut off."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    with _mapped(path) as data:
        at = 0

        def take(kind: str) -> Any:
            nonlocal at
            at += struct.calcsize(kind)
            return struct.unpack_from(f"<{kind}", data, at - struct.calcsize(kind))[0]

        def text() -> str:
            nonlocal at
            length = take("Q")
            at += length
            if at > len(data):
                raise ValueError("a text ends after the file")
            return bytes(data[at - length : at]).decode(errors="replace")

        def value(kind: int) -> object:
            nonlocal at
            if kind == 8:
                return text()
            if kind != 9:
                return take(SCALARS[kind])
            inner, count, start = take("I"), take("Q"), at
            if inner in SCALARS:
                at += count * struct.calcsize(SCALARS[inner])
            else:
                for _ in range(count):
                    text() if inner == 8 else value(inner)
            return hashlib.sha256(data[start:at]).hexdigest()[:16]

        try:
            if data[:4] != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            at = 8
            tensors, pairs = take("Q"), take("Q")
            metadata = {text(): value(take("I")) for _ in range(pairs)}
            entries, end = {}, 0
            for _ in range(tensors):
                name = text()
                shape = tuple(take("Q") for _ in range(take("I")))
                kind = GGMLQuantizationType(take("I"))
                block, width = GGML_QUANT_SIZES[kind]
                entries[name] = (kind.name, shape)
                end = max(end, take("Q") + math.prod(shape) // block * width)
        except (struct.error, ValueError, KeyError, OverflowError) as error:
            raise damaged(path, first_line(error) if len(data) else "it is empty") from error
        align = metadata.get("general.alignment", 32)
        if not isinstance(align, int) or align < 1:
            raise damaged(path, f"its general.alignment is {align!r}")
        end += -(-at // align) * align
        if end > len(data):
            raise damaged(path, f"its header describes {end:,} bytes, it has {len(data):,}")
    return metadata, entries


def headers(checkpoint: Checkpoint) -> Header:
    """Names, dtypes and shapes of a checkpoint's own tensors, from its files' headers alone."""
    if checkpoint.kind == "gguf":
        return gguf_header(checkpoint.path)[1]
    by_file = {file: header(file) for file in checkpoint.files if file.suffix == ".safetensors"}
    if checkpoint.kind == "sharded":
        index = checkpoint.path / "model.safetensors.index.json"
        for name, shard in shard_index(index).items():
            if name not in by_file[checkpoint.path / shard]:
                raise ValueError(
                    f"{index} says that {name!r} is in {shard}, but it is not: the index is not the one of "
                    "these shards."
                )
    return {name: entry for entries in by_file.values() for name, entry in entries.items()}


def stored(entries: Header) -> str:
    """The dtype that most of a checkpoint's numbers are kept in, as its header writes it."""
    counts: Counter = Counter()
    for kind, shape in entries.values():
        counts[kind] += math.prod(shape)
    return counts.most_common(1)[0][0] if counts else "none"


def hash_files(paths: Sequence[Path]) -> str:
    """Content hash of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        with _mapped(path) as data:
            digest.update(data)
    return digest.hexdigest()[:16]
