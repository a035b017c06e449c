"""Function calls as text: read as data by a parser, never run, and held to the functions that are documented.

>>> calls = read("[get_weather(city='Rome', days=2)]")  # or {"name": "get_weather", "arguments": {...}}
>>> bind(calls, functions)
[('get_weather', {'city': 'Rome', 'days': 2})]

What is no call of names with literal arguments raises `NotCalls`, whose text says why; `[]` is no call at
all.
"""

from __future__ import annotations

import ast
import io
import json
import math
import re
import tokenize
import warnings
from collections.abc import Sequence

from interp.tasks import actions

#: Longest text that is read, most calls in it, deepest nesting of an argument, and largest whole number.
CHARACTERS, CALLS, DEPTH, INTEGER = 20_000, 64, 16, 2**63
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class NotCalls(ValueError):
    """A text that is not what was asked for: calls of documented functions with literal arguments."""


def read(text: str) -> list[dict]:
    """The calls in a text, JSON or Python's syntax, each with `name`, `arguments` and perhaps `positional`.

    Raises NotCalls with the reason where it is anything else.
    """
    if len(text) > CHARACTERS:
        raise NotCalls(f"the text has {len(text)} characters, and at most {CHARACTERS} are read")
    if control := _CONTROL.search(text):
        raise NotCalls(f"there is the control character U+{ord(control.group()):04X}")
    calls = _json(text) if text.lstrip()[:1] in ("{", "[") else None
    calls = _python(text) if calls is None else calls
    if len(calls) > CALLS:
        raise NotCalls(f"there are {len(calls)} calls, and at most {CALLS} are read")
    for call in calls:
        _bounded([call["arguments"], call.get("positional", [])], 0)
    return calls


def parse(text: str) -> str | None:
    """The calls in a text in canonical form (`interp.tasks.actions`); None where it holds anything else."""
    try:
        return actions.canonical(read(text))
    except NotCalls:
        return None


def bind(calls: Sequence[dict], functions: Sequence[dict]) -> list[tuple[str, dict]]:
    """Name and arguments of each call, positional ones under their documented names.

    Raises NotCalls for a function or an argument that is not documented, or is given twice.
    """
    arguments_of = {f["name"]: list(f["parameters"]["properties"]) for f in functions}
    bound = []
    for call in calls:
        name, given = call["name"], call.get("positional", [])
        if name not in arguments_of:
            raise NotCalls(f"there is no function {name[:60]!r}: there are {', '.join(arguments_of)}")
        if len(given) > len(arguments_of[name]):
            raise NotCalls(f"{name} has {len(arguments_of[name])} arguments, not {len(given)}")
        for argument in call["arguments"]:
            if argument not in arguments_of[name]:
                raise NotCalls(
                    f"{name} has no argument {argument[:60]!r}: it has "
                    f"{', '.join(arguments_of[name]) or 'none'}"
                )
            if argument in arguments_of[name][: len(given)]:
                raise NotCalls(f"the argument {argument!r} of {name} is given twice")
        bound.append((name, {**dict(zip(arguments_of[name], given)), **call["arguments"]}))
    return bound


def written(name: str, arguments: dict) -> str:
    """A call in Python's syntax.

    No literal holds a bracket, since the package rewrites what stands before one.
    """
    return f"{name}({', '.join(f'{k}={v!r}'.replace('(', chr(92) + 'x28') for k, v in arguments.items())})"


def _json(text: str) -> list[dict] | None:
    """The calls of a JSON text, None where it is no JSON."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except NotCalls:
        raise
    except RecursionError:
        raise NotCalls("the JSON is nested too deeply") from None
    except ValueError:
        return None
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise NotCalls('a call in JSON is {"name": ..., "arguments": {...}}')
        given = {
            "arguments": call.get("arguments", call.get("parameters", {})),
            "positional": call.get("positional", []),
        }
        if set(call) - {"name", "parameters", *given} or {"arguments", "parameters"} <= set(call):
            raise NotCalls('a call in JSON has a "name" and "arguments", and nothing else')
        if not isinstance(given["arguments"], dict) or not isinstance(given["positional"], list):
            raise NotCalls('the "arguments" of a call are a JSON object')
        if not _NAME.fullmatch(call["name"]) and not re.fullmatch(r"[\w .-]{1,200}", call["name"], re.ASCII):
            raise NotCalls("a function's name is made of letters, digits and dots")
        calls.append({"name": call["name"], **{k: v for k, v in given.items() if v or k == "arguments"}})
    return calls


def _once(pairs: list[tuple]) -> dict:
    if len(value := dict(pairs)) < len(pairs):
        raise NotCalls("a name is given twice in a JSON object")
    return value


def _python(text: str) -> list[dict]:
    """The calls of a text in Python's syntax, one or a list of them."""
    text = text.strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in a literal
            if not text.isascii():  # the parser folds look-alike letters of names into plain ones
                for token in tokenize.generate_tokens(io.StringIO(text).readline):
                    if token.type not in (tokenize.STRING, tokenize.COMMENT) and not token.string.isascii():
                        raise NotCalls(f"there is {token.string[:20]!r} outside a string")
            body = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
        if isinstance(error, NotCalls):
            raise
        raise NotCalls(f"this is neither JSON nor a call ({type(error).__name__})") from None
    return [_call(node) for node in (body.elts if isinstance(body, (ast.List, ast.Tuple)) else [body])]


def _call(node: ast.AST) -> dict:
    if not isinstance(node, ast.Call):
        raise NotCalls(f"there is a {type(node).__name__} where a call should be")
    parts: list[str] = []
    at = node.func
    while isinstance(at, ast.Attribute) and len(parts) < DEPTH:
        parts, at = [at.attr, *parts], at.value
    if not isinstance(at, ast.Name):
        raise NotCalls("what is called is no plain name")
    if any(k.arg is None for k in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
        raise NotCalls("arguments are unpacked with a star")
    if len({k.arg for k in node.keywords}) < len(node.keywords):
        raise NotCalls("an argument is given twice")
    call = {
        "name": ".".join([at.id, *parts]),
        "arguments": {k.arg: _literal(k.value, 0) for k in node.keywords},
    }
    return {**call, "positional": [_literal(a, 0) for a in node.args]} if node.args else call


def _literal(node: ast.AST, depth: int) -> object:
    """The value of a literal; nothing is computed but a number's sign."""
    if depth > DEPTH:
        raise NotCalls("an argument is nested too deeply")
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, bool, int, float, type(None))):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        number = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(e, depth + 1) for e in node.elts]
    if isinstance(node, ast.Dict):
        keys = [k.value for k in node.keys if isinstance(k, ast.Constant) and isinstance(k.value, str)]
        if len(keys) == len(node.keys):
            if len(set(keys)) < len(keys):
                raise NotCalls("a name is given twice in a dict")
            return {key: _literal(value, depth + 1) for key, value in zip(keys, node.values)}
    raise NotCalls(f"an argument is a {type(node).__name__}, and should be a literal")


def _bounded(value: object, depth: int) -> None:
    """Raise NotCalls for a value that is too deep or too large, or text with control characters."""
    if depth > DEPTH:
        raise NotCalls("an argument is nested too deeply")
    if isinstance(value, str) and (control := _CONTROL.search(value)):
        raise NotCalls(f"a text holds the control character U+{ord(control.group()):04X}")
    if (
        isinstance(value, int)
        and abs(value) >= INTEGER
        or isinstance(value, float)
        and not math.isfinite(value)
    ):
        raise NotCalls("a number is too large")
    if isinstance(value, dict):
        for key in value:
            _bounded(key, depth + 1)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _bounded(item, depth + 1)
