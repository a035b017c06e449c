"""The Berkeley Function-Calling Leaderboard: its entries as decisions, its conversations as games.

The package is a test set. A split of our own is declared here for training, by a hash of ids: entries that
share their question or all their functions stay on one side, and so do the four variants of a conversation.
Long-context conversations are out of domain and never trained on. Numbers on this split are no leaderboard
numbers.

`bfcl_single` are the tested questions alone, with the curated ones in domain and the `live_*` ones, which
users wrote, out of domain: a split for models that were trained on neither side of ours.

>>> entry = entries("multi_turn_base")["multi_turn_base_0"]
>>> [d.reference for d in walk(entry)]  # '[]' ends a turn
['{"name": "cd", "arguments": {"folder": "document"}}', ..., '[]']
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from interp.environments.base import Environment, View
from interp.environments.bfcl.calls import NotCalls, parse
from interp.environments.bfcl.entries import INSTALL, MULTI, SINGLE, Entry, entries, groups
from interp.environments.bfcl.scoring import STEPS, checked, copies, execute, score_multi, score_single
from interp.tasks import actions
from interp.tasks.episodes import Decision


def gold(entry: Entry) -> list[tuple[str, dict]]:
    """The calls that answer a question: of each argument the first possible value ("" leaves it out)."""
    calls = []
    for ((name, arguments),) in (answer.items() for answer in entry.answers or ()):
        parameters = next(f for f in entry.functions if f["name"] == name)["parameters"]
        calls.append(
            (
                name,
                {
                    k: _first(v)
                    for k, v in arguments.items()
                    if k in parameters["required"]
                    or _given(v)
                    and (k in parameters["properties"] or "" not in v)
                },
            )
        )
    return calls


def _given(options: list) -> bool:
    return bool(options) and options[0] != ""


def _first(options: list) -> object:
    """The first possible value (of none: []); members of dicts are lists of possible values themselves."""
    value = next((o for o in options if o != ""), "" if options else [])
    if isinstance(value, dict):
        return _members(value)
    return [_members(v) if isinstance(v, dict) else v for v in value] if isinstance(value, list) else value


def _members(value: dict) -> dict:
    return {
        k: v[0] if isinstance(v, list) else v
        for k, v in value.items()
        if not isinstance(v, list) or _given(v)
    }


def action(calls: Sequence[tuple[str, dict]]) -> str:
    """Calls as an action's text."""
    return actions.canonical([dict(name=name, arguments=arguments) for name, arguments in calls])


def walk(entry: Entry) -> Iterator[Decision]:
    """An entry's decisions along its ground truth: one for a question, one per call of a conversation.

    Each turn of a conversation ends with `[]`.
    """
    messages: list[dict] = [dict(role="system", content=entry.system)]
    task = next(m["content"] for m in reversed(entry.asked(0)) if m["role"] == "user")

    def decision(calls: Sequence[tuple[str, dict]], step: int) -> Decision:
        return Decision(
            tuple(messages),
            action(calls),
            episode=entry.id,
            step=step,
            task=task,
            task_type=entry.category,
            split=entry.split,
        )

    if entry.category in SINGLE:
        messages += entry.asked(0)
        yield decision(gold(entry), 0)
        return
    step = 0
    state: dict = {}
    for turn, calls in enumerate(entry.calls):
        messages += entry.asked(turn)
        for call in (*calls, None):
            yield decision([call] if call else [], step)
            messages.append(dict(role="agent", trace=None, action=action([call] if call else [])))
            step += 1
            if call:
                messages.append(dict(role="tool", content=execute(entry, [call], state)[0]))


def recorded() -> Iterator[Decision]:
    """The decisions of every entry that has a split, but for `live_relevance`.

    Any call is right there, so there is no recorded one, which probes, pairs and forced choice need.
    """
    for category in SINGLE + MULTI:
        if category != "live_relevance":
            for entry in entries(category).values():
                if entry.split:
                    yield from walk(entry)


def questions() -> Iterator[Decision]:
    """The tested questions; those by users are out of domain, but for a few that resemble a curated one."""
    tested = [
        e
        for category in SINGLE
        if category != "live_relevance"
        for e in entries(category).values()
        if e.split == "test_in_domain"
    ]
    curated = {groups()[e.id] for e in tested if not e.category.startswith("live_")}
    for entry in tested:
        live = entry.category.startswith("live_")
        if not live or groups()[entry.id] not in curated:
            yield from (replace(d, split="test_out_of_domain") if live else d for d in walk(entry))


def right(decision: Decision, action: str) -> bool:
    """Whether an action is right: by the package's check of a question, by a conversation's ground truth."""
    if decision.task_type in MULTI:
        return action == decision.reference
    return score_single(entries(decision.task_type)[decision.episode], action).valid


class Conversation:
    """A conversation that is played: calls are answered by the backends, `[]` by the user's next turn.

    It ends with the last turn, or with more than STEPS actions in one; its score is the package's own check
    of all that was called. What is no call of a known function is answered by the reason and not called.
    """

    def reset(self, game: str) -> View:
        """Start the conversation of an id (`multi_turn_base_7`)."""
        self.entry = entries(game.rsplit("_", 1)[0])[game]
        self.state: dict = {}
        self.turn = self.asked = 0
        self.said: list[list[str]] = [[]]
        self.called: list[tuple[str, dict]] = []
        return View(self._user(), system=self.entry.system)

    def _user(self) -> str:
        return "\n\n".join(m["content"] for m in self.entry.asked(self.turn))

    def step(self, action: str) -> View:
        """Make the calls of an action, or end the turn."""
        self.asked += 1
        if self.asked > STEPS:
            return View("This takes too many steps.", done=True)
        try:
            calls = checked(action, self.entry.known(self.turn))
            copies([*self.called, *calls])
        except NotCalls as error:
            return View(json.dumps({"error": str(error)}), role="tool")
        if calls:
            self.called += calls
            self.said[-1].append(action)
            return View("\n".join(execute(self.entry, calls, self.state)), role="tool")
        if self.turn + 1 == len(self.entry.turns):
            return View(
                "The conversation is over.", done=True, score=float(score_multi(self.entry, self.said).valid)
            )
        self.turn, self.asked = self.turn + 1, 0
        self.said.append([])
        return View(self._user())


def games(split: str, n: int, seed: int) -> list[str]:
    """`n` conversations of a study's split that are tested on, in an order that the seed gives."""
    tested = [e.id for c in MULTI for e in entries(c).values() if e.split == f"test_{split}"]
    order = np.random.default_rng(seed).permutation(len(tested))
    return [tested[i] for i in order[:n]]


def called(action: str) -> str:
    """Whether an action calls anything: `call` or `none`."""
    return "none" if action == "[]" else "call"


BFCL = Environment(
    "bfcl",
    decisions=recorded,
    parse=parse,
    classes=dict(verb=actions.verb, call=called),
    is_correct=right,
    closed_actions=False,
    task=lambda text: text,
    live=Conversation,
    games=games,
    needs=("bfcl_eval", INSTALL),
)
BFCL_SINGLE = Environment(
    "bfcl_single",
    decisions=questions,
    parse=parse,
    classes=BFCL.classes,
    is_correct=right,
    closed_actions=False,
)
