"""Lines of a file of decisions: one JSON object a line, and each fault a sentence that names its line.

>>> for place, row in lines(Path("decisions.jsonl")):
...     print(place, sorted(row))
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from interp.system.json_files import decode_utf8, parse_json
from interp.system.unpacking import VARIABLE, command_of, limit_bytes, read_unpacked
from interp.tasks.rows import MAX_ROWS

#: A line may have one in LINES of the bytes that a file may have: 16 MiB, some millions of tokens.
LINES = 16
_INK = re.compile(rb"\S")
_ROW = re.compile(rb"\S[^\n]*")
_ARRAY = (
    'python -c "import sys, json; [print(json.dumps(row)) for row in json.load(open(sys.argv[1], '
    "encoding='utf-8'))]\" "
    "{path} > {out}"
)


def lines(path: Path) -> Iterator[tuple[str, dict]]:
    """The place ("FILE, line N") and the JSON object of each line that is not blank.

    Raises FileNotFoundError, or ValueError for a file or a line that is not UTF-8, cut, too long, or no
    object, and for more than MAX_ROWS of them.
    """
    data, longest = read_unpacked(path), limit_bytes() // LINES
    if any(islice(_ROW.finditer(data), MAX_ROWS, None)):
        raise ValueError(
            f"{path} has more than {MAX_ROWS:,} lines, and may have {MAX_ROWS:,}: write those that are "
            "studied to a file of their own."
        )
    number, start = 1, 0
    while ink := _INK.search(data, start):  # past blank lines, of which there may be millions
        number += data.count(b"\n", start, ink.start())
        start = max(start, data.rfind(b"\n", start, ink.start()) + 1)
        end = data.find(b"\n", start) + 1 or len(data)
        place = f"{path}, line {number}"
        if end - start > longest:
            raise ValueError(
                f"{place}: the line has {(end - start) / 2**20:,.2f} MiB and may have {longest / 2**20:g}: "
                f"it should hold one decision or one episode ({VARIABLE} is {LINES} times the MiB of a line)."
            )
        yield place, _parsed(bytes(data[start:end]), path, place)
        number, start = number + 1, end


def _parsed(line: bytes, path: Path, place: str) -> dict:
    text = decode_utf8(line, place)
    if "\x00" in text:
        raise ValueError(f"{place}: there are NUL bytes in it, as UTF-16 has them: save the file as UTF-8.")
    try:
        row = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: {_no_json(text, error, path)}.") from None
    except ValueError as error:
        raise ValueError(f"{place}: {error}.") from None
    if isinstance(row, list):
        raise ValueError(
            f"{place}: there is a JSON list, and each line should be one JSON object, an episode or a "
            f"decision: `{command_of(_ARRAY, path)}` writes one a line."
        )
    if not isinstance(row, dict):
        raise ValueError(
            f"{place}: there is {json.dumps(row)[:60]}, and each line should be one JSON object, "
            "an episode or a decision."
        )
    return row


def _no_json(text: str, error: json.JSONDecodeError, path: Path) -> str:
    """What a line that is no JSON may be."""
    if text.strip() in ("[", "[{"):
        return (
            "a JSON value is spread over several lines, and each line should hold one whole decision: "
            f"`{command_of(_ARRAY, path)}` writes one a line"
        )
    if text.strip() == "{":
        return "a JSON value is spread over several lines, and each line should hold one whole decision"
    if error.msg == "Extra data" and text[error.pos] == "{":
        return f"a second JSON object begins at column {error.colno}, and each should have a line of its own"
    if text.lstrip()[0] not in "{[" and "," in text and not text.endswith(("}\n", "}")):
        return (
            "this looks like CSV, and each line should be a JSON object with 'messages' (a list) and a "
            "'reference'"
        )
    if not text.endswith("\n") and not text.rstrip().endswith(("}", "]")):
        return f"the last line is cut off in the middle ({error}): copy the file again, or delete the line"
    return f"this is no JSON ({error})"
