"""JSON files that a user brings, read strictly: each fault is a ValueError that names file, line and field.

UTF-8 (a byte order mark does no harm), each key once, every number finite, nested at most MAX_DEPTH deep,
and no larger than is stated. Pipes, devices and other kinds of file are told apart before they are opened.

>>> made = read_json("checkpoint-100/training.json")
>>> tools = read_json("tools.json", list, "the list of function signatures")
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Objects and lists within one another; a schema of a function's arguments has about ten.
MAX_DEPTH = 100
#: Bytes of one JSON file, unless its reader says otherwise.
MAX_JSON = 16 * 2**20
_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_WORDS = {
    dict: "one JSON object",
    list: "a JSON list",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def check_regular(path: Path) -> os.stat_result:
    """The status of a file, which is not opened.

    Raises FileNotFoundError, or ValueError for a folder, a pipe or a device.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {path}.") from None
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder, and should be a file.")
    for is_kind, name in _KINDS:
        if is_kind(status.st_mode):
            raise ValueError(f"{path} is {name}, and should be a file: write what it gives to a file first.")
    return status


def read_bytes(path: Path) -> bytes:
    """The content of a file; raises OSError that names it where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:  # of a file in /proc, say, that is open but not readable
        raise type(error)(f"{path} cannot be read ({error.strerror}).") from error


def decode_utf8(data: bytes, place: str) -> str:
    """Text of UTF-8 bytes, without a byte order mark; raises ValueError with the place of another byte."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise ValueError(
                f"{place}: the file is {name}, and should be UTF-8 (`iconv -f {name} -t UTF-8`)."
            )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + 3 * data.startswith(b"\xef\xbb\xbf")
        line = data.count(b"\n", 0, at) + 1
        column = at - data.rfind(b"\n", 0, at)
        where = f"byte {column}" if line == 1 else f"byte {column} of line {line}"
        raise ValueError(
            f"{place}: {where} is 0x{data[at]:02x}, which is not UTF-8: save the whole file as UTF-8."
        ) from None


def parse_json(text: str, nonfinite: bool = False) -> object:
    """The value of a JSON text.

    nonfinite: read NaN and infinite numbers, which Python's own json writes, as None. Raises
    json.JSONDecodeError where the text is no JSON, and ValueError, with the field, where a key is there
    twice, a number is not finite, a text holds half of a surrogate pair, or the value is nested more than
    MAX_DEPTH deep.
    """
    unfit: list[tuple[object, str]] = []

    def number(literal: str) -> float | None:
        value = float(literal)
        if not math.isfinite(value):
            if nonfinite:
                return None
            is_word = literal.lstrip("-").isalpha()  # NaN and Infinity
            reason = "is no JSON number" if is_word else "is larger than any number here"
            unfit.append((value, f"is at fault, {literal[:40]} {reason}: leave the field out"))
        return value

    def once(pairs: list[tuple[str, object]]) -> dict:
        value = dict(pairs)
        if len(value) < len(pairs):
            ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
            unfit.append((value, f"has the key {twice[:60]!r} twice: keep one of them"))
        return value

    try:
        value = json.loads(text, object_pairs_hook=once, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python reads whole numbers of at most 4,300 digits
        raise ValueError("there is a whole number of more than 4,300 digits") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _nested_too_deep(value):
        raise ValueError(_too_deep())
    if unfit:
        target, fault = unfit[-1]  # the outermost: none of those around it has dropped it
        path = next(path for path, child in _walk(value) if child is target)
        raise ValueError(f"{_name(path)} {fault}")
    if "\\ud" in text or "\\uD" in text:
        _check_surrogates(value)
    return value


def _too_deep() -> str:
    return f"the JSON is nested too deeply, and may be nested {MAX_DEPTH} deep"


def _nested_too_deep(value: object) -> bool:
    layer = [value]
    for _ in range(MAX_DEPTH):
        containers = (value for value in layer if isinstance(value, (dict, list)))
        children = (value.values() if isinstance(value, dict) else value for value in containers)
        layer = [child for group in children for child in group if isinstance(child, (dict, list))]
    return bool(layer)


def _walk(value: object) -> Iterator[tuple[list, object]]:
    """Each value within a JSON value, itself first, with the keys and indices that lead to it."""
    path: list = []
    levels: list[Iterator[tuple[object, object]]] = [iter([(None, value)])]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            if path:
                path.pop()
            continue
        key, child = entry
        path.append(key)
        yield path[1:], child
        if isinstance(child, dict):
            levels.append(iter(child.items()))
        elif isinstance(child, list):
            levels.append(iter(enumerate(child)))
        else:
            path.pop()


def _name(path: list) -> str:
    """Keys and indices as they are written: `messages[1].content`."""
    written = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")
    return repr(written[:100]) if written else "the JSON value"


def _check_surrogates(value: object) -> None:
    for path, child in _walk(value):
        for text in child if isinstance(child, dict) else [child]:
            surrogate = _SURROGATE.search(text) if isinstance(text, str) else None
            if surrogate:
                name = _name(path).encode("ascii", "backslashreplace").decode()
                raise ValueError(
                    f"{name} holds U+{ord(surrogate.group()):04X}, half of a surrogate pair: take it out"
                )


def read_json(
    path: str | Path, kind: type | tuple[type, ...] = dict, what: str = "", limit: int = MAX_JSON
) -> Any:
    """The value of a JSON file.

    kind: what it should be, a type or several. what: the same in words, for the sentence. limit: bytes that
    it may have. Raises FileNotFoundError, or ValueError with file, line and field.
    """
    path = Path(path)
    size = check_regular(path).st_size
    if size > limit:
        raise ValueError(f"{path} has {size / 2**20:,.0f} MiB, and may have {limit / 2**20:,.0f} MiB.")
    text = decode_utf8(read_bytes(path), str(path))
    if not text.strip():
        raise ValueError(f"{path} is empty, and should hold {what or 'JSON'}.")
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}, column {error.colno}"
        raise ValueError(f"{place}: this is no JSON ({error.msg}).") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from None
    if not isinstance(value, kind):
        should = what or " or ".join(_WORDS[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{path} holds {_shown(value)}, and should hold {should}.")
    return value


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return _WORDS[type(value)]
    return json.dumps(value)[:60]


def read_training(path: str | Path) -> dict:
    """What a trainer wrote beside weights, `training.json`; a `style` and a `system` in it are text."""
    made = read_json(path, dict)
    for field in ("style", "system"):
        if not isinstance(made.get(field, ""), str):
            raise ValueError(
                f"{path}: {field!r} is text, not {_shown(made[field])}: write it as text, or leave it out."
            )
    return made


def read_tools(path: str | Path) -> list[dict]:
    """The function signatures that a chat template is given: a JSON list of objects."""
    what = "the list of function signatures, a JSON list of objects"
    tools = read_json(path, list, what)
    for number, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise ValueError(f"{path}: function {number} is {_shown(tool)}, and the file should hold {what}.")
    return tools
