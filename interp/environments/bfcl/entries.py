"""The entries of the Berkeley Function-Calling Leaderboard, from its package: questions and conversations."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from interp.environments.bfcl.calls import bind, read

INSTALL = "pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0"
SINGLE = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
MULTI = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
#: Percent of the entries, by hash, that are tested on.
TESTED = 40
_BACKENDS = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
_INSTRUCTION = """You can call these functions, each given as a JSON object in a line of its own:
<tools>
{tools}
</tools>
Your action is one call, {{"name": <function>, "arguments": {{<argument>: <value>}}}}, a JSON list of calls \
where several are needed at once, or [] where there is nothing to call: no function fits, something that it \
needs is missing, or all that was asked for is done."""
_MORE = "Some more functions can be called now:\n<tools>\n{tools}\n</tools>\nWhat about now?"
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


@dataclass(frozen=True)
class Entry:
    """One question, or one conversation.

    turns: the messages of each turn. functions: documentation of those that can be called from the start;
    more: turn -> of those that are added. answers: the possible answers of a question as the package writes
    them (None: nothing is to be called, or anything). calls: the ground truth of each turn of a conversation.
    setup: what its backends start from.
    """

    id: str
    category: str
    turns: tuple[tuple[dict, ...], ...]
    functions: tuple[dict, ...]
    more: dict[int, tuple[dict, ...]] = field(default_factory=dict)
    answers: list | None = None
    calls: tuple[tuple[tuple[str, dict], ...], ...] = ()
    setup: dict = field(default_factory=dict)

    def known(self, turn: int) -> tuple[dict, ...]:
        """Documentation of the functions that can be called in a turn."""
        return self.functions + tuple(f for t, added in self.more.items() if t <= turn for f in added)

    @property
    def split(self) -> str:
        """The split of an entry: `train`, `test_in_domain` or `test_out_of_domain`.

        It is "" for a long-context conversation whose variants are trained on, and for the one entry whose
        ground truth calls a function before it is there.
        """
        if any(
            name not in [f["name"] for f in self.known(turn)]
            for turn, calls in enumerate(self.calls)
            for name, _ in calls
        ):
            return ""
        key = self.id.rsplit("_", 1)[1] if self.category in MULTI else groups()[self.id]
        tested = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100 < TESTED
        if self.category.endswith("long_context"):
            return "test_out_of_domain" if tested else ""
        return "test_in_domain" if tested else "train"

    @property
    def system(self) -> str:
        """The system message: the documentation, how to call, and what the entry itself tells the system."""
        own = [m["content"] for m in self.turns[0] if m["role"] == "system"]
        return "\n\n".join([_INSTRUCTION.format(tools=_lines(self.functions)), *own])

    def asked(self, turn: int) -> tuple[dict, ...]:
        """The user's messages of a turn (in some entries with the agent's between them)."""
        if turn in self.more:
            return (dict(role="user", content=_MORE.format(tools=_lines(self.more[turn]))),)
        return tuple(
            dict(
                role="agent" if m["role"] == "assistant" else m["role"],
                content=_CONTROL.sub("", m["content"]),
            )
            for m in self.turns[turn]
            if m["role"] != "system"
        )


@cache
def groups() -> dict[str, str]:
    """id -> id of its group: questions that share their words, or all their functions, with another of it."""
    above: dict[str, str] = {}

    def top(name: str) -> str:
        while above.setdefault(name, name) != name:
            name = above[name]
        return name

    questions = [e for category in SINGLE for e in entries(category).values()]
    for entry in questions:
        for shared in (
            "asked: " + json.dumps(entry.asked(0)),
            "functions: " + " ".join(sorted(f["name"] for f in entry.functions)),
        ):
            above[top(shared)] = top(entry.id)
    return {entry.id: top(entry.id) for entry in questions}


def _lines(functions: Sequence[dict]) -> str:
    return "\n".join(json.dumps(f, ensure_ascii=False) for f in functions)


@cache
def _folder() -> Path:
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"The leaderboard's package is not installed ({INSTALL}).")
    return Path(spec.submodule_search_locations[0]) / "data"


def _rows(name: str) -> list[dict]:
    path = _folder() / name
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    )


@cache
def entries(category: str) -> dict[str, Entry]:
    """The entries of a category (of SINGLE or MULTI) by id.

    Raises ImportError where the package is not installed, and ValueError for a category that is none of them.
    """
    if category not in SINGLE + MULTI:
        raise ValueError(f"There is no category {category!r}: there are {', '.join(SINGLE + MULTI)}.")
    truth = {row["id"]: row["ground_truth"] for row in _rows(f"possible_answer/BFCL_v4_{category}.json")}
    return {
        row["id"]: (_conversation if category in MULTI else _question)(row, category, truth.get(row["id"]))
        for row in _rows(f"BFCL_v4_{category}.json")
    }


def _question(row: dict, category: str, truth: list | None) -> Entry:
    return Entry(
        row["id"], category, tuple(map(tuple, row["question"])), tuple(row["function"]), answers=truth
    )


def _conversation(row: dict, category: str, truth: list | None) -> Entry:
    held = {int(turn): names for turn, names in row.get("missed_function", {}).items()}
    docs = [f for c in row["involved_classes"] for f in _rows(f"multi_turn_func_doc/{_BACKENDS[c]}.json")]
    more = {turn: tuple(f for f in docs if f["name"] in names) for turn, names in held.items()}
    first = tuple(f for f in docs if not any(f["name"] in names for names in held.values()))
    calls = tuple(tuple(call for text in turn for call in bind(read(text), docs)) for turn in truth or ())
    setup = {k: row[k] for k in ("id", "initial_config", "involved_classes")}
    return Entry(
        row["id"], category, tuple(map(tuple, row["question"])), first, more, calls=calls, setup=setup
    )
