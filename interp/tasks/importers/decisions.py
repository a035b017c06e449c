"""The decisions of a log: one for each turn of the agent, what is left out counted by reason.

>>> log = Importer(Path("rollouts.jsonl"))
>>> rows = [json.loads(line) for line in log.lines()]
>>> print(log.format, log.decisions, log.dropped.rows())

What the agent did is the decision's reference. Conversations that begin with the same messages (rollouts of
one prompt) are one episode, which intervals resample as a whole, and of decisions with the same messages the
first is kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from interp.system.json_files import parse_json
from interp.system.unpacking import VARIABLE, limit_bytes
from interp.tasks.importers.files import records
from interp.tasks.importers.formats import Conversation, Format, conversations, recognised
from interp.tasks.importers.turns import ROLE_NAMES, AgentTurn, Parser, Tally, Unfit, agent_turn, plain_turn
from interp.tasks.json_lines import LINES
from interp.tasks.rows import CONTROL, MAX_ROWS, decision_row


@dataclass
class Importer:
    """A log and how it is read; `lines` fills what comes after `at_least`."""

    path: Path
    """File of the log."""
    format: Format | None = None
    """Of the log; told from its first record where it is not given."""
    parse: Parser | None = None
    """Splits a turn's text in trace and action; None: at `<think>`, `<tool_call>` and `<action>`."""
    split: str = "in_domain"
    """Split that all decisions are of."""
    score: str = ""
    """Number of a record that says how well it went; "": all are taken."""
    at_least: float = 1.0
    """Least score of conversations that are taken."""
    decisions: int = 0
    """Decisions so far."""
    dropped: Tally = field(default_factory=Tally)
    """What was left out."""
    changed: Tally = field(default_factory=Tally)
    """What was taken otherwise than it stands there."""
    signatures: set[str] = field(default_factory=set)
    """JSON of each different list of function signatures that records bring along."""
    _episodes: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """Hash of the first messages -> the episode's name and its next step."""
    _names: dict[str, int] = field(default_factory=dict)
    """Name of an episode -> how many were to have it."""
    _seen: set[bytes] = field(default_factory=set)
    """Hashes of the messages of decisions."""

    @property
    def episodes(self) -> int:
        """Different first messages so far."""
        return len(self._episodes)

    def lines(self) -> Iterator[str]:
        """Each decision as JSON, as many as a file of decisions may hold.

        Raises what `records` raises, and ValueError where the format is not known.
        """
        room = limit_bytes()
        for place, record in records(self.path):
            if self.format is None:
                self.format = "inspect" if self.path.suffix == ".eval" else recognised(record, place)
            for line in self._of_record(place, record):
                room -= len(line.encode()) + 1
                if room < 0 or self.decisions == MAX_ROWS:
                    reason = (
                        f"all from here on: a file of decisions may hold {MAX_ROWS:,} of them and "
                        f"{limit_bytes() // 2**20} MiB ({VARIABLE} changes the latter)"
                    )
                    self.dropped.add(reason, place)
                    return
                self.decisions += 1
                yield line

    def _of_record(self, place: str, record: object) -> Iterator[str]:
        assert self.format is not None
        try:
            found = conversations(record, self.format)
            for conversation in found:
                self._check_score(conversation)
        except Unfit as unfit:
            self.dropped.add_unfit(unfit, place)
            return
        for conversation in found:
            if conversation.tools and len(self.signatures) < 2:
                self._add_signatures(conversation.tools, place)
            yield from self._of_conversation(place, conversation)

    def _check_score(self, conversation: Conversation) -> None:
        """Raise Unfit for a conversation that did not go well enough."""
        if not self.score:
            return
        value = conversation.scores.get(self.score)
        if value is None:
            has = ", ".join(conversation.scores) or "none"
            raise Unfit(f"a conversation without the score {self.score!r}", f"its numbers are {has}")
        if not value >= self.at_least:
            raise Unfit(f"a conversation whose {self.score} is below {self.at_least:g}", f"{value:g}")

    def _of_conversation(self, place: str, conversation: Conversation) -> Iterator[str]:
        history: list[dict] = []
        digest, opening = hashlib.sha256(), b""
        messages = conversation.messages
        for number, message in enumerate(messages):
            where = f"{place}, message {number}"
            try:
                turn, agent = self._turn(message, where)
            except Unfit as unfit:
                lost = sum(_role(each) == "agent" for each in messages[number:])
                self.dropped.add(f"a decision after {unfit.reason}", f"{where}: {unfit.detail}", max(1, lost))
                return
            if agent:
                opening = opening or digest.digest()
                try:
                    yield self._line(history, turn, agent, digest.digest(), opening, conversation, place)
                except Unfit as unfit:
                    self.dropped.add_unfit(unfit, where)
            history.append(turn)
            digest.update(json.dumps(turn, sort_keys=True).encode() + b"\n")
        if not opening:
            self.dropped.add("a conversation without a turn of the agent's", place)

    def _turn(self, message: object, where: str) -> tuple[dict, AgentTurn | None]:
        """A message as decisions have it, and what the agent said where it is the agent's."""
        role = _role(message)
        if role is None or not isinstance(message, dict):
            shown = message.get("role") if isinstance(message, dict) else message
            raise Unfit("a message whose role is not known", ascii(shown)[:80])
        agent = agent_turn(message, self.parse) if role == "agent" else None
        turn = agent.message if agent else plain_turn(message, role)
        clean = {
            name: CONTROL.sub("", text) if isinstance(text, str) else text for name, text in turn.items()
        }
        if clean != turn:
            self.changed.add("control characters were taken out of a message", where)
        return clean, agent

    def _line(
        self,
        history: list[dict],
        turn: dict,
        agent: AgentTurn,
        key: bytes,
        opening: bytes,
        conversation: Conversation,
        place: str,
    ) -> str:
        """The JSON of the decision that a turn of the agent's makes; raises Unfit where it makes none."""
        if agent.unfit:
            raise agent.unfit
        if not history or history[-1]["role"] not in ("user", "tool"):
            raise Unfit("a turn that answers neither the user nor a tool")
        if key in self._seen:
            raise Unfit("a decision with the same messages as an earlier one")
        name, step = self._episodes.get(opening) or (self._name(conversation, place), 0)
        row = dict(
            messages=history,
            reference=turn["action"],
            trace=turn["trace"] or "",
            episode=name,
            step=step,
            task_type=CONTROL.sub("", conversation.kind),
            split=self.split,
        )
        try:
            decision_row(row, place)
        except ValueError as error:
            raise Unfit("a decision that is refused", str(error)) from None
        line = json.dumps(row, ensure_ascii=False)
        if len(line.encode()) >= limit_bytes() // LINES:
            raise Unfit(f"a decision of more than {limit_bytes() / LINES / 2**20:g} MiB")
        self._seen.add(key)
        self._episodes[opening] = name, step + 1
        return line

    def _name(self, conversation: Conversation, place: str) -> str:
        """A name that no other episode has."""
        given = CONTROL.sub("", conversation.name) or f"{self.path.stem}, {place.rpartition(', ')[2]}"
        name = given
        while name in self._names:
            self._names[given] += 1
            name = f"{given} ({self._names[given]})"
        self._names[name] = 1
        return name

    def _add_signatures(self, tools: object, place: str) -> None:
        """Keep a list of function signatures, or the JSON text of one."""
        try:
            tools = parse_json(tools) if isinstance(tools, str) else tools
        except ValueError:
            tools = None
        if isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools):
            self.signatures.add(json.dumps(tools))
        else:
            self.changed.add("function signatures that are no JSON list were passed over", place)


def _role(message: object) -> str | None:
    """A message's role as decisions call it; None where it is none."""
    role = message.get("role") if isinstance(message, dict) else None
    return ROLE_NAMES.get(role) if isinstance(role, str) else None
