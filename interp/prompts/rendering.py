"""Chat templates rendered as transformers renders them, on a fixed date and within limits of size and time.

>>> template = compiled(source)
>>> template.render([dict(role="user", content="a")], True, None, dict(enable_thinking=False))
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, Undefined, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: The day that templates are told it is, since prompts must not change from one day to the next.
TODAY = "2024-07-26"
#: Characters that a rendered conversation, or any text on the way to it, may have.
LONGEST = 64_000_000
#: Seconds of one processor that rendering a conversation may take.
SECONDS = 2.0
#: A width in a format ("%99999999d") that no template has use for.
_WIDE = re.compile(r"\d{8,}|%\*")
_SIZED = (str, list, tuple)


class TooMuch(TemplateError):
    """A template that goes past a limit."""


def clock(today: str) -> Callable[[str], str]:
    """`strftime_now(format)` for templates, of one fixed day.

    Raises ValueError for a text that is no date.
    """
    try:
        day = datetime.fromisoformat(today)
    except (TypeError, ValueError):
        raise ValueError(
            f"The day that templates are told is a date such as {TODAY}, not {today!r}."
        ) from None
    return day.strftime


class _Generation(Extension):
    """The tag that trainers put around what an agent writes; it renders what it holds."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Watch(NodeTransformer):
    """Puts each loop, and each joining of texts, under the environment's eyes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "watched", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, "bounded", [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox in which transformers renders templates, with limits, and without a clock or chance.

    Jinja bounds `range` alone: loops in loops, recursion, or a text that is doubled again and again have no
    end there.
    """

    intercepted_binops = frozenset(("*", "**", "%", "+"))

    def __init__(self) -> None:
        self._render = threading.local()
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            finalize=self._written,
        )
        self.filters = {name: self._limited(name, filter) for name, filter in self.filters.items()}
        self.filters |= dict(tojson=_tojson, watched=self._watched, bounded=self._bounded, random=_chance)
        self.globals |= dict(raise_exception=_raise, lipsum=_chance, strftime_now=clock(TODAY))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Watch().visit(super()._parse(source, name, filename)).set_environment(self)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Count what one rendering takes."""
        self._render.until, self._render.ticks, self._render.written = time.thread_time() + SECONDS, 0, 0
        try:
            yield
        finally:
            self._render.until = None

    def tick(self) -> None:
        """One step of a template; raises TooMuch where they have taken too long."""
        if getattr(self._render, "until", None) is None:  # jinja works constants out while it compiles
            return
        self._render.ticks += 1
        if self._render.ticks % 64 == 0 and time.thread_time() > self._render.until:
            raise TooMuch(f"it takes more than {SECONDS:g} seconds: does it loop without end?")

    def _bounded(self, value: object) -> object:
        if isinstance(value, _SIZED) and len(value) > LONGEST:
            raise TooMuch(f"it makes a text or list of more than {LONGEST:,} characters or entries")
        return value

    def _reasonable(self, values: Iterable) -> None:
        if any(isinstance(value, int) and abs(value) > LONGEST for value in values):
            raise TooMuch(f"it asks for more than {LONGEST:,} of something")

    def _written(self, value: object) -> object:
        if callable(value) and not isinstance(value, Undefined):
            raise TemplateError("it writes a function, whose address changes with each process")
        if isinstance(value, str) and getattr(self._render, "until", None) is not None:
            self._render.written += len(value)
            if self._render.written > 4 * LONGEST:
                raise TooMuch(f"it writes more than {4 * LONGEST:,} characters")
        return value

    def _watched(self, values: Iterable) -> Iterator:
        for value in values:
            self.tick()
            yield value

    def _limited(self, name: str, filter: Callable) -> Callable:
        @functools.wraps(filter)  # jinja reads marks on the function
        def limited(*args: object, **kwargs: object) -> object:
            self.tick()
            self._reasonable([*args, *kwargs.values()])
            if name == "format" and _WIDE.search(str(args[0])):
                raise TooMuch("it formats to a width of eight digits or more")
            return self._bounded(filter(*args, **kwargs))

        return limited

    def call(self, context: Context, function: Callable, /, *args: object, **kwargs: object) -> object:
        """A call in a template."""
        self.tick()
        self._reasonable([*args, *kwargs.values()])
        method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str) and method.__name__.startswith("format") and _WIDE.search(owner):
            raise TooMuch("it formats to a width of eight digits or more")
        return self._bounded(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> object:
        """An operator that can make much of little."""
        self.tick()
        sizes = [len(operand) if isinstance(operand, _SIZED) else operand for operand in (left, right)]
        whole = all(isinstance(size, int) for size in sizes)
        if operator == "*" and whole and abs(sizes[0] * sizes[1]) > LONGEST:
            raise TooMuch(f"it asks for more than {LONGEST:,} of something")
        if operator == "**" and whole and sizes[0].bit_length() * abs(sizes[1]) > 64:
            raise TooMuch("it raises a number past 64 bits")
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise TooMuch("it formats to a width of eight digits or more")
        return self._bounded(super().call_binop(context, operator, left, right))


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _chance(*_: object, **__: object) -> NoReturn:
    raise TemplateError(
        "it draws something at random, and prompts must not change from one reading to the next"
    )


class Template:
    """One compiled chat template; `variables`: the names that it reads and does not set itself."""

    def __init__(self, source: str):
        self._environment = _Environment()
        read = find_undeclared_variables(self._environment.parse(source))
        self.variables = read - self._environment.globals.keys()
        self._template = self._environment.from_string(source)

    def render(
        self, turns: Sequence[Mapping], generation: bool, tools: Sequence[Mapping] | None, variables: Mapping
    ) -> str:
        """The text of a conversation.

        Raises jinja's errors, and TooMuch past LONGEST characters or SECONDS.
        """
        pieces, length = [], 0
        with self._environment.limited():
            written = self._template.generate(
                messages=[_message(t) for t in turns],
                tools=tools,
                documents=None,
                add_generation_prompt=generation,
                **variables,
            )
            for piece in written:
                self._environment.tick()
                pieces.append(piece)
                length += len(piece)
                if length > LONGEST:
                    raise TooMuch(f"it writes more than {LONGEST:,} characters")
        return "".join(pieces)


def _message(turn: Mapping) -> dict:
    """A turn as transformers gives it to a template: no empty fields, a thought under both its names."""
    given = {k: v for k, v in turn.items() if v is not None}
    thought = given.get("reasoning_content")
    return given if thought is None else {"thinking": thought, **given}


@functools.lru_cache(128)  # more than there are families of templates
def compiled(source: str) -> Template:
    """The template of a source, compiled once; raises jinja's errors."""
    return Template(source)
