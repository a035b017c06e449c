"""The records of a log, one after another, so that a large file is never in memory as a whole.

>>> for place, record in records(Path("rollouts.parquet")):
...     print(place, sorted(record))

JSON lines, one JSON list or object, parquet, and inspect_ai's `.eval`. Faults are sentences that name file
and line. Limits are those of files of decisions (`interp.system.unpacking`).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from interp.system.json_files import decode_utf8, parse_json
from interp.system.unpacking import MAGIC, check_format, check_size, limit_bytes, read_unpacked
from interp.tasks.importers import inspect_logs
from interp.tasks.json_lines import LINES

#: Columns of a parquet file that are read, where it has them; scores are found by their type.
_COLUMNS = frozenset(
    "messages conversations conversation prompt completion input output system responses response reference "
    "tools id conversation_id episode uid uuid task_type data_source ability source".split()
)
#: Rows of a parquet file that are in memory at once.
_BATCH = 32
_BLANK = re.compile(r"\s*")


def records(path: Path) -> Iterator[tuple[str, object]]:
    """The place ("FILE, line N") and the value of each record of a log.

    Raises FileNotFoundError, ImportError where the package that reads it is missing, or ValueError for a file
    or a record that is damaged, too large, or of another format.
    """
    check_size(path)
    with path.open("rb") as stream:
        first = stream.read(16)
    if first.startswith(b"PAR1"):
        yield from _parquet(path)
    elif path.suffix == ".eval":
        yield from inspect_logs.samples(path)
    else:
        check_format(path, first)
        yield from _json(path, packed=first.startswith(MAGIC) or path.suffix == ".xz")


def _json(path: Path, packed: bool) -> Iterator[tuple[str, object]]:
    """Records of JSON lines, or of one JSON value over many lines."""
    with io.BytesIO(read_unpacked(path)) if packed else path.open("rb") as stream:
        first = stream.readline(limit_bytes() // LINES + 1).strip().removeprefix(b"\xef\xbb\xbf")
        stream.seek(0)
        listed = first.startswith(b"[") and ".jsonl" not in path.suffixes
        if listed or first == b"{" or path.suffix == ".json" and not first.endswith(b"}"):
            yield from _whole(path, decode_utf8(stream.read(), str(path)))
        else:
            yield from _lines(path, stream)


def _lines(path: Path, stream: BinaryIO) -> Iterator[tuple[str, object]]:
    longest, number = limit_bytes() // LINES, 0
    while line := stream.readline(longest + 1):
        number += 1
        place = f"{path}, line {number}"
        if len(line) > longest:
            raise ValueError(
                f"{place}: the line has more than {longest / 2**20:g} MiB, and may have no more."
            )
        if line.strip():
            yield place, _value(decode_utf8(line, place), place)


def _value(text: str, place: str) -> object:
    try:
        return parse_json(text, nonfinite=True)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: this is no JSON ({error.msg} at column {error.colno}).") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}.") from None


def _whole(path: Path, text: str) -> Iterator[tuple[str, object]]:
    """Records of a JSON list, or the one object that a file is; a list of messages is one record."""
    start = _past_blank(text, 0)
    if text[start : start + 1] != "[":
        _end(text, start, path)
        value = _value(text, str(path))
        if isinstance(value, dict) and {"eval", "samples"} <= set(value):  # inspect's older form
            yield from inspect_logs.samples(path)
        else:
            yield str(path), value
        return
    line, counted, number = 1, 0, 0
    position = _past_blank(text, start + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        number += 1
        place = f"{path}, record {number} (line {line})"
        end = _end(text, position, path)
        value = _value(text[position:end], place)
        if number == 1 and isinstance(value, dict) and ("role" in value or "from" in value):
            yield str(path), _value(text, str(path))
            return
        yield place, value
        position = _past_blank(text, end)
        if text[position : position + 1] == ",":
            position = _past_blank(text, position + 1)
        elif text[position : position + 1] != "]":
            raise ValueError(f"{place}: after this record there is neither a comma nor the end of the list.")


def _past_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position


def _end(text: str, position: int, path: Path) -> int:
    """Where the JSON value ends that begins at a position."""
    try:
        return json.JSONDecoder().raw_decode(text, position)[1]
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise ValueError(f"{place}: this is no JSON ({error.msg}).") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path}: a record cannot be read ({error}).") from None


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    """Rows of a parquet file; what is null in them is as if it were not there."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        numbers = [
            f.name for f in file.schema_arrow if pyarrow.types.is_floating(f.type) or _is_whole(f.type)
        ]
        columns = [name for name in file.schema_arrow.names if name in _COLUMNS or name in numbers]
        batches = file.iter_batches(batch_size=_BATCH, columns=columns)
        number = 0
        for batch in batches:
            if batch.nbytes > limit_bytes():
                raise ValueError(f"{path}: rows {number + 1} and after are larger than a file may be.")
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", _without_nulls(row)
    except (pyarrow.ArrowException, OSError) as error:
        what = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(f"{path} is a damaged parquet file, or not one that is read ({what}).") from None


def _is_whole(kind: object) -> bool:
    import pyarrow

    return pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind)


def _without_nulls(value: object) -> object:
    """A value without null fields: a table has every row's fields in each row."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
