"""Tables and their provenance: a CSV and a JSON of the same name, written together and checked when read.

>>> write_table("runs/quick/tables", "behaviour", frame, {"seed": 0})
>>> frame, provenance = read_table("runs/quick/tables", "behaviour")
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import lazy_loader as lazy

from interp.system.paths import PROGRAM

if TYPE_CHECKING:
    import pandas as pd
else:
    pd = lazy.load("pandas")  # half a second, which a bad flag need not wait for

#: Columns every measurement table ends with: estimate, 95 % interval, decisions (or games, or pairs),
#: clusters.
ESTIMATE_COLUMNS = ("value", "low", "high", "n", "n_groups")
#: Where a provenance keeps the table's name, the number of its rows and the hashes of its table and of
#: itself.
SEAL = "seal"
#: Texts that a spreadsheet would run as a formula, and such texts once they are quoted; a number is none.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_QUOTED = re.compile(r"'+[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
#: Columns by the names that they had in tables of the release before; `conflict` had another meaning of one.
_RENAMED = {"reader": "predictor", "arm": "condition"}
_RENAMED_IN_CONFLICT = _RENAMED | {"arm": "inserted_trace"}


def inside(folder: str | Path, name: str) -> Path:
    """The path of a file of this name in or below `folder`; raises ValueError for a name that leads out."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or not name.isprintable():
        raise ValueError(
            f"{name!r} is no name of a file in {folder}: it may hold no '..', no leading '/' and no control "
            "characters."
        )
    return Path(folder) / name


@contextmanager
def written(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to write to, synced and moved over `path` at the end: readers see old or new.

    Raises OSError, naming `path`, where it cannot be written; then the old file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise type(error)(f"{path} cannot be written ({error.strerror or error}).") from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` so that a reader sees the old file or the new one, never half of either."""
    try:
        content = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path} cannot be written: {text[error.start]!r} is no character of UTF-8."
        ) from error
    with written(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def write_json(path: str | Path, value: object) -> Path:
    """Write `value` as indented JSON with sorted keys, atomically."""
    return write_text(path, _as_json(value))


def write_table(folder: str | Path, name: str, frame: pd.DataFrame, provenance: dict) -> Path:
    """Write `frame` to `<folder>/<name>.csv` and its sealed `provenance` beside it; returns the CSV's path.

    Floats keep six significant digits, so that equal runs give equal bytes. A cell that a spreadsheet would
    run as a formula is written with a quote before it, which `read_table` takes off. Raises ValueError for a
    name that leads out of the folder, and OSError, leaving the old table, where it cannot be written.
    """
    texts = _quoted(frame)
    split = any(isinstance(cell, str) and "\r" in cell for _, cells in _texts(texts) for cell in cells)
    # the minimum does not hold a lone carriage return together
    quoting = csv.QUOTE_ALL if split else csv.QUOTE_MINIMAL
    content = texts.to_csv(index=False, float_format="%.6g", quoting=quoting).encode()
    return write_sealed(
        inside(folder, f"{name}.csv"), content, provenance, len(frame), _as_text(texts, content)
    )


def write_sealed(
    path: Path, content: bytes | Path, provenance: dict, rows: int, texts: Sequence[str] = ()
) -> Path:
    """Write a table's bytes and its sealed provenance beside it, a JSON of the same name; returns `path`.

    Args:
        content: the bytes, or a file of them in the same folder, which is moved.
        texts: columns of a CSV that are read as text.
    """
    with written(path.with_suffix(".json")) as its_json, written(path) as its_table:
        if isinstance(content, Path):
            os.replace(content, its_table)
            content = its_table
        else:
            its_table.write_bytes(content)
        its_json.write_text(_as_json(_sealed(provenance, content, path.stem, rows, list(texts))))
    return path


def read_sealed(path: Path) -> tuple[bytes, dict]:
    """The bytes of a table that is no CSV, and its provenance.

    Raises FileNotFoundError where either is not there, and ValueError where either is not as it was written.
    """
    if not path.exists():
        raise FileNotFoundError(f"No table {path.name} in {path.parent}: run `{PROGRAM} {path.stem}` first.")
    content, provenance = path.read_bytes(), _read_provenance(path)
    seal = provenance.pop(SEAL, None)
    rows = seal.get("rows") if isinstance(seal, dict) else None
    if _sealed(provenance, content, path.stem, rows, [])[SEAL] != seal:
        raise ValueError(
            f"The table {path} or its provenance is not as it was written: {_remedy(path, provenance)}"
        )
    return content, provenance


def read_table(folder: str | Path, name: str, edited: bool = False) -> tuple[pd.DataFrame, dict]:
    """Read a table and its provenance, and check that both are as they were written.

    A provenance that names no release of this package, as one written by hand, and has no seal is not
    checked.

    Args:
        folder: of the tables.
        name: without suffix.
        edited: read the table as it is now, since it was edited by intent (`seal_table` says so for good).

    Raises:
        FileNotFoundError: the table is not there, with the analysis to run, or has no provenance beside it.
        ValueError: the table or its provenance is damaged, was edited or renamed, or has lost its seal.
    """
    path = inside(folder, f"{name}.csv")
    if not path.exists():
        raise FileNotFoundError(f"No table {name}.csv in {folder}: run `{PROGRAM} {name}` first.")
    content, provenance = path.read_bytes(), _read_provenance(path)
    seal = provenance.pop(SEAL, None)
    if not edited:
        _check(path, content, provenance, seal)
    try:
        frame = _unquoted(_parsed(content, seal))
    except ValueError as error:  # the parser's own errors, and bytes that are not UTF-8
        raise ValueError(
            f"The table {path} is damaged, it is no CSV ({str(error).strip()}): {_remedy(path, provenance)}"
        ) from error
    renamed = _RENAMED_IN_CONFLICT if path.stem == "conflict" else _RENAMED
    return frame.rename(columns={old: new for old, new in renamed.items() if new not in frame}), provenance


def seal_table(folder: str | Path, name: str) -> Path:
    """Seal an edited table (or one of an older release) as it is now; returns its provenance's path.

    Where it was sealed before and is not what it was, its provenance says from now on when it was found
    edited. Raises what `read_table` raises for a table that cannot be read.
    """
    path = inside(folder, f"{name}.csv")
    frame, provenance = read_table(folder, name, edited=True)
    content = path.read_bytes()
    if len(frame.columns) == 1 and (
        other := next((mark for mark in ";\t" if mark in str(frame.columns[0])), "")
    ):
        raise ValueError(f"The table {path} is separated by {other!r}: save it with commas, then seal it.")
    before = _read_provenance(path).get(SEAL)
    texts = _texts_of(before)
    if (
        before is not None
        and before != _sealed(provenance, content, _name_in(before, path), len(frame), texts)[SEAL]
    ):
        provenance["edited"] = time.strftime("%Y-%m-%d")
    return write_json(path.with_suffix(".json"), _sealed(provenance, content, path.stem, len(frame), texts))


def _as_json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def _sealed(
    provenance: dict, content: bytes | Path, name: str | None, rows: int | None, texts: list[str]
) -> dict:
    """A provenance with its seal: the table's name (None: an older seal), the number of its rows, the columns
    that are read as text, and the hashes of the table and of all this.
    """
    plain = json.loads(json.dumps(provenance))  # keys and lists as they will be read
    named = {} if name is None else dict(name=name)
    own = hashlib.sha256(
        json.dumps([plain, rows, texts, *named.values()], sort_keys=True).encode()
    ).hexdigest()
    return plain | {SEAL: dict(named, rows=rows, texts=texts, table=content_digest(content), provenance=own)}


def content_digest(content: bytes | Path) -> str:
    """SHA-256 of bytes, or of a file, which is read in pieces."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _name_in(seal: object, path: Path) -> str | None:
    """The name that a table at `path` is sealed with; None where its seal is an older one."""
    return path.stem if isinstance(seal, dict) and "name" in seal else None


def _texts_of(seal: object) -> list[str]:
    texts = seal.get("texts") if isinstance(seal, dict) else None
    return texts if isinstance(texts, list) and all(isinstance(name, str) for name in texts) else []


def _csv(content: bytes, **options: Any) -> pd.DataFrame:
    # a lone blank cell is a row too
    return pd.read_csv(io.BytesIO(content), skip_blank_lines=False, **options)


def _as_text(frame: pd.DataFrame, content: bytes) -> list[str]:
    """Columns of text that a CSV's parser would change: `007` reads as `7`, and `NA` as no value."""
    parsed = _csv(content) if len(frame.columns) else frame
    names = []
    for name, cells in _texts(frame):
        values = {cell for cell in cells if not pd.isna(cell) and cell != ""}
        if all(isinstance(value, str) for value in values) and len(values) > parsed[str(name)].nunique():
            names.append(str(name))
    return names


def _parsed(content: bytes, seal: object) -> pd.DataFrame:
    """A CSV's table; an empty cell is no value in any column."""
    frame, texts = _csv(content), _texts_of(seal)
    if not texts:
        return frame
    plain = _csv(
        content, usecols=lambda name: name in texts, dtype=str, keep_default_na=False, na_values=[""]
    )
    return frame.assign(**plain)


class _Shared(dict):
    """A part of a provenance, shared by its copies: pandas copies `attrs` to every frame made of a frame."""

    def __deepcopy__(self, memo: dict) -> _Shared:
        return self


def _read_provenance(table: Path) -> dict:
    path = table.with_suffix(".json")
    if not path.exists():
        raise FileNotFoundError(
            f"The table {table.name} in {path.parent} has no provenance {path.name} beside it: copy both, "
            "or make it again."
        )
    try:
        provenance = json.loads(path.read_bytes(), object_hook=_Shared)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"The provenance {path} is damaged, it is no JSON ({error}): make its table again."
        ) from error
    if not isinstance(provenance, dict):
        raise ValueError(f"The provenance {path} is damaged: it holds no JSON object. Make its table again.")
    return provenance


def _check(path: Path, content: bytes, provenance: dict, seal: object) -> None:
    """Raise ValueError where a table or its provenance is not what was sealed."""
    versions = provenance.get("versions")
    if seal is None and not (isinstance(versions, dict) and "interp" in versions):
        return
    rows = seal.get("rows") if isinstance(seal, dict) else None
    own = _sealed(provenance, content, _name_in(seal, path), rows, _texts_of(seal))[SEAL]
    if own == seal:
        return
    if seal is None:
        what = (
            f"The provenance {path.with_suffix('.json')} has lost its seal, the hashes that its table is "
            "checked with"
        )
    elif (
        isinstance(seal, dict)
        and _sealed(provenance, content, seal.get("name"), rows, _texts_of(seal))[SEAL] == seal
    ):
        what = f"The table {path} was written as {seal['name']!a}, not as {path.stem}"
    elif not isinstance(seal, dict) or seal.get("provenance") != own["provenance"]:
        what = f"The provenance {path.with_suffix('.json')} is not as it was written"
    else:
        what = (
            f"The table {path} is not the one that {path.stem}.json was written with ({_rows(content)} rows "
            f"now, {rows} then)"
        )
    try:
        _csv(content)
    except ValueError as error:  # sealing it would be refused as well
        raise ValueError(
            f"{what}, and cannot be read ({str(error).strip()}). If it was edited by intent, save it as CSV "
            f"in UTF-8; else it is damaged: {_remedy(path, provenance)}"
        ) from error
    raise ValueError(
        f"{what}. If it was edited by intent, say so with `{PROGRAM} seal --tables "
        f"{path.parent} --names {path.stem}`; else it is damaged: {_remedy(path, provenance)}"
    )


def _remedy(path: Path, provenance: dict) -> str:
    command = provenance.get("command")
    return (
        "make it again with "
        f"`{command if isinstance(command, str) and command else f'{PROGRAM} {path.stem}'}`."
    )


def _rows(content: bytes) -> str:
    try:
        return str(len(_csv(content)))
    except ValueError:
        return "no readable"


def _texts(frame: pd.DataFrame) -> Iterable[tuple[str, pd.Series]]:
    """Names and cells of the columns that may hold text."""
    return frame.select_dtypes(exclude=["number", "bool"]).items()


def _quoted(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts and column names that a spreadsheet would run as formulas, with one more quote before them."""
    return _changed(
        frame, lambda text: _FORMULA.match(text) and not _NUMBER.fullmatch(text), lambda text: f"'{text}"
    )


def _unquoted(frame: pd.DataFrame) -> pd.DataFrame:
    """The same texts and names without it."""
    return _changed(frame, _QUOTED.match, lambda text: text[1:])


def _changed(frame: pd.DataFrame, which: Callable, change: Callable[[str], str]) -> pd.DataFrame:
    """Change texts and names for which `which` is true; other columns are written as they were."""
    columns = {}
    for name, cells in _texts(frame):
        chosen = [isinstance(cell, str) and bool(which(cell)) for cell in cells]
        if any(chosen):
            columns[name] = [change(cell) if one else cell for cell, one in zip(cells, chosen)]
    names = {name: change(name) for name in frame.columns if isinstance(name, str) and which(name)}
    return frame.assign(**columns).rename(columns=names)
