"""Episodes and decisions: what an agent saw, said and did, and what it had to decide next.

A decision is one step of one episode at which the agent must act. Any environment can be studied whose episodes or
decisions are written in this form; the shipped corpus was recorded in ALFWorld's engine.

>>> corpus = load_corpus()
>>> decisions = [d for e in corpus["test_in_domain"] for d in e.decisions()]
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from interp.actions import canonical

CORPUS = Path(__file__).parent / "data" / "alfworld.jsonl.xz"
SPLITS = {"in_domain": "test_in_domain", "out_of_domain": "test_out_of_domain"}


@dataclass(frozen=True)
class Step:
    """One move: the trace before it, the command, what came back; what was admissible and what the expert wanted."""

    trace: str
    action: str
    observation: str
    reference: str
    admissible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """One step of one episode at which the agent must act.

    `messages` are user, tool and system turns (`content`) and agent turns (`trace`, None where there was none, and `action`; or
    their whole text as `content`), ending with a user or tool turn; `reference` is the expert's action, `trace` the expert's,
    `task` a substring of a user turn.
    """

    messages: tuple[dict, ...]
    reference: str
    admissible: tuple[str, ...]
    episode: str
    step: int
    task: str
    task_type: str
    split: str
    trace: str = ""

    @property
    def id(self) -> str:
        return f"{self.episode}#{self.step}"

    @property
    def previous(self) -> str:
        """The action before this one ("" at the first step)."""
        last = next((m for m in reversed(self.messages) if m["role"] == "agent"), {})
        return last.get("action") or last.get("content", "")

    def decisions(self) -> list["Decision"]:
        """This decision alone, as an episode gives its own."""
        return [self]


@dataclass(frozen=True)
class Episode:
    """One game as it was played, start to end."""

    id: str
    split: str
    task_type: str
    scene: int
    task: str
    start: str
    steps: tuple[Step, ...]
    won: bool
    kind: str = "expert"

    def messages(self, upto: int | None = None, traces: bool | Sequence[bool] = True) -> tuple[dict, ...]:
        """The turns before step `upto` (None: all turns), with or without the traces (one flag, or one for each step)."""
        steps = self.steps if upto is None else self.steps[:upto]
        keep = [traces] * len(steps) if isinstance(traces, bool) else traces
        turns = [dict(role="user", content=self.start)]
        for step, with_trace in zip(steps, keep):
            turns.append(dict(role="agent", trace=step.trace if with_trace else None, action=step.action))
            turns.append(dict(role="user", content=step.observation))
        return tuple(turns)

    def decisions(self) -> list[Decision]:
        """One decision for each step, on the states this episode visited."""
        return [Decision(self.messages(i), s.reference, s.admissible, self.id, i, self.task, self.task_type, self.split, s.trace)
                for i, s in enumerate(self.steps)]


def save_episodes(path: str | Path, episodes: Iterable[Episode]) -> Path:
    """Write episodes as one JSON object a line, xz-compressed (equal episodes give equal bytes)."""
    lines = (json.dumps(asdict(e), sort_keys=True, separators=(",", ":")) for e in episodes)
    data = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return Path(path)


def _decision(row: dict, number: int) -> Decision:
    """A decision as a user writes it; what is left out gets the value that says the least."""
    unknown = sorted(row.keys() - Decision.__dataclass_fields__.keys())
    if unknown or "reference" not in row:
        raise ValueError(f"{unknown[0]!r} is no field of a decision" if unknown else "a decision needs its 'reference' action")
    messages = []
    for m in row["messages"]:
        m = {**m, "role": "agent" if m.get("role") == "assistant" else m.get("role")}
        if m["role"] not in ("system", "user", "tool", "agent") or not isinstance(m.get("content", m.get("action")), str):
            raise ValueError(f"a message has a role (system, user, tool, agent or assistant) and text, but one is {str(m)[:80]}")
        messages.append(m)
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise ValueError("the messages of a decision end with the user or tool turn that the agent answers")
    default = dict(episode=f"line {number}", step=sum(m["role"] == "agent" for m in messages), task="", task_type="", split="in_domain", trace="")
    found = {**default, **row, "messages": tuple(messages), "reference": canonical(row["reference"]),
             "admissible": tuple(canonical(a) for a in row.get("admissible", ()))}
    return Decision(**{**found, "split": SPLITS.get(found["split"], found["split"])})


def load_episodes(path: str | Path) -> list[Episode | Decision]:
    """Read episodes (rows with `steps`) and decisions (rows with `messages`) from `.jsonl` or `.jsonl.xz`.

    Raises FileNotFoundError, or ValueError naming the line that is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No episodes at {path}: record them with `python -m analyses record`.")
    with (lzma.open(path, "rt") if path.suffix == ".xz" else open(path)) as stream:
        found, number = [], 1
        try:
            for number, line in enumerate(stream, 1):
                row = json.loads(line)
                if "messages" in row:
                    found.append(_decision(row, number))
                    continue
                row["steps"] = tuple(Step(**{**s, "admissible": tuple(s["admissible"])}) for s in row["steps"])
                found.append(Episode(**row))
        except (lzma.LZMAError, EOFError) as error:
            raise ValueError(f"{path} is damaged ({error}): record it again with `python -m analyses record`.") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}, is neither an episode nor a decision: {error}.") from error
    return found


def load_corpus(path: str | Path = CORPUS) -> dict[str, list[Episode | Decision]]:
    """Read a corpus and group its episodes, or decisions, by split."""
    groups: dict[str, list[Episode | Decision]] = {}
    for episode in load_episodes(path):
        groups.setdefault(episode.split, []).append(episode)
    return groups


def sample_decisions(episodes: Sequence[Episode | Decision], n: int, seed: int = 0) -> list[Decision]:
    """Draw about equally many steps from each episode until `n` decisions are found, in episode order.

    Raises ValueError when there are fewer than `n`.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Decision]] = {}
    for episode in episodes:
        for decision in episode.decisions():
            groups.setdefault(decision.episode, []).append(decision)
    found = list(groups.values())
    pools = [[int(i) for i in rng.permutation(len(group))] for group in found]
    if sum(map(len, pools)) < n:
        raise ValueError(f"{n} decisions were asked for, but {len(found)} episodes hold only {sum(map(len, pools))}.")
    chosen: list[tuple[int, int]] = []
    while len(chosen) < n:
        chosen += [(i, pools[i].pop()) for i in rng.permutation(len(pools)) if pools[i]]
    return [found[i][s] for i, s in sorted(chosen[:n])]
