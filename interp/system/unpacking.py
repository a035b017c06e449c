"""The bytes of a file of decisions, unpacked where it is .xz, within a limit; other formats are named.

>>> data = read_unpacked(Path("decisions.jsonl.xz"))
"""

from __future__ import annotations

import lzma
import os
import shlex
from pathlib import Path

from interp.system.json_files import check_regular, read_bytes
from interp.system.paths import PROGRAM

#: Environment variable with the MiB that a file of decisions may unpack to.
VARIABLE = "INTERP_MAX_FILE_MB"
LIMIT_MB = 256
#: Text packs 30 to 100 times; a file that packs more than RATIO times may unpack to an eighth of the limit.
RATIO = 1000
#: Memory that an .xz file may ask for: `xz -9` asks for 65 MiB.
MEMORY = 2**28
MAGIC = b"\xfd7zXZ\x00"
_CHUNK = 2**14
_PANDAS = (
    'python -c "import sys, pandas; pandas.{reader}(sys.argv[1])'
    ".to_json(sys.argv[2], orient='records', lines=True)\" {path} {out}"
)
_DATASETS = (
    'python -c "import sys, datasets; datasets.Dataset.from_file(sys.argv[1])'
    '.to_json(sys.argv[2])" {path} {out}'
)
#: (first bytes, name, command that makes a file that is read) of formats that decisions are also kept in.
FORMATS = (
    (b"\x1f\x8b", "gzip", "gzip -dc < {path} > {out}"),
    (b"BZh", "bzip2", "bzip2 -dc < {path} > {out}"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc < {path} > {out}"),
    (b"\x5d\x00\x00", "lzma", "xz --format=lzma -dc < {path} > {out}"),
    (b"PK\x03\x04", "zip", "unzip -p {path} > {out}"),
    (b"PAR1", "parquet", _PANDAS.replace("{reader}", "read_parquet")),
    (b"ARROW1", "arrow", _PANDAS.replace("{reader}", "read_feather")),
    (b"\xff\xff\xff\xff", "arrow", _DATASETS),
)
#: (first bytes, name) of formats that are not.
OTHERS = (
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x89PNG", "a picture"),
    (b"%PDF", "a PDF"),
    (b"GGUF", "a GGUF model"),
    (b"\x7fELF", "a program"),
    (b"\x80\x02", "a pickle"),
    (b"\x80\x03", "a pickle"),
    (b"\x80\x04", "a pickle"),
    (b"\x80\x05", "a pickle"),
)


def limit_bytes() -> int:
    """Bytes that a file of decisions may unpack to; raises ValueError where VARIABLE holds no number."""
    given = os.environ.get(VARIABLE, "")
    if not given:
        return LIMIT_MB * 2**20
    if not given.isascii() or not given.isdigit() or not 0 < int(given[:9]):
        raise ValueError(f"{VARIABLE} is a whole number of MiB from 1 on, not {given!r}.")
    return int(given[:9]) * 2**20


def check_size(path: Path) -> int:
    """Bytes of a file; raises FileNotFoundError, or ValueError for what is no file or too large."""
    limit, size = limit_bytes(), check_regular(path).st_size
    if size > limit:
        raise ValueError(f"{path} has {size / 2**20:,.2f} MiB, and may have {_too_large(limit)}")
    return size


def read_unpacked(path: Path) -> bytes | bytearray:
    """The bytes of a file, unpacked where its name or its first bytes say .xz.

    Raises FileNotFoundError, or ValueError for what is no file, another format, damaged or too large.
    """
    limit, size = limit_bytes(), check_size(path)
    packed = read_bytes(path)
    if not packed:
        return packed
    check_format(path, packed[:16])
    if path.suffix != ".xz" and not packed.startswith(MAGIC):
        return packed
    if not os.environ.get(VARIABLE):
        limit = min(limit, max(limit // 8, RATIO * size))
    return _unpack(path, packed, limit)


def command_of(template: str, path: Path) -> str:
    """A command that reads a file and writes another, whose longer name is never that of the file itself."""
    return template.format(
        path=shlex.quote(str(path)), out=shlex.quote(f"{path.name.split('.')[0]}-lines.jsonl")
    )


def _too_large(limit: int) -> str:
    return f"{limit / 2**20:,.2f} MiB: give fewer decisions, or set {VARIABLE} to the MiB that it may have."


def check_format(path: Path, first: bytes) -> None:
    """Raise ValueError where a file's first bytes are another format's, with the command that converts it."""
    for magic, name, command in FORMATS:
        if first.startswith(magic):
            raise ValueError(
                f"{path} is {name}, and should be .jsonl or .jsonl.xz: `{command_of(command, path)}` makes "
                "one."
            )
    for magic, name in OTHERS:
        if first.startswith(magic):
            raise ValueError(f"{path} is {name}, and should be a .jsonl or .jsonl.xz file of decisions.")


def _unpack(path: Path, packed: bytes, limit: int) -> bytearray:
    """All streams of an .xz file; what stands between or after them is refused, but for padding."""
    unpacked, position = bytearray(), 0
    while position < len(packed):
        decoder, start = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY), position
        try:
            while not decoder.eof:
                piece = packed[position : position + _CHUNK] if decoder.needs_input else b""
                if decoder.needs_input and not piece:
                    raise EOFError("it is cut off")
                position += len(piece)
                unpacked += decoder.decompress(piece, max_length=2**20)
                if len(unpacked) > limit:
                    raise ValueError(f"{path} unpacks to more than {_too_large(limit)}")
        except (lzma.LZMAError, EOFError) as error:
            if "Memory" in str(error):
                raise ValueError(
                    f"{path} asks for more than {MEMORY // 2**20} MiB of memory to be unpacked: "
                    "pack it again with `xz -9` or less."
                ) from None
            line = unpacked.count(b"\n")
            raise ValueError(
                f"{path} is damaged after line {line}, in the part of the archive that begins at byte "
                f"{start} ({str(error).rstrip('.')}): copy it again, or record it again with "
                f"`{PROGRAM} record`."
            ) from error
        position -= len(decoder.unused_data)
        while packed.startswith(b"\0\0\0\0", position):
            position += 4
    return unpacked
