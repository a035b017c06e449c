"""Episodes and decisions: what an agent saw, said and did, and what it had to decide next.

A decision is one step of one episode at which the agent must act. Any environment can be studied whose
episodes or decisions are written in this form (`interp.tasks.rows` says what is refused); the shipped corpus
was recorded in ALFWorld's engine.

>>> corpus = load_corpus()
>>> decisions = [d for e in corpus["test_in_domain"] for d in e.decisions()]
>>> Decision([dict(role="user", content="You see a drawer.")], "open drawer 1", episode="game 7")
Decision('game 7#0', 1 message, reference 'open drawer 1')
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from interp.system.paths import DATA, PROGRAM
from interp.system.unpacking import limit_bytes
from interp.tasks.json_lines import lines
from interp.tasks.rows import decision_row, episode_row

CORPUS = DATA / "alfworld.jsonl.xz"
#: What a study calls a split -> what recorded episodes call it; those of TRAINING are never studied.
SPLITS = {"in_domain": "test_in_domain", "out_of_domain": "test_out_of_domain"}
TRAINING = ("base", "base_aimless", "train")


@dataclass(frozen=True)
class Step:
    """One move: trace, action and observation, with the admissible actions and the expert's."""

    trace: str
    action: str
    observation: str
    reference: str
    admissible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """One step of one episode at which the agent must act.

    `messages` are user, tool and system turns (`content`) and agent turns (`trace`, None where there was
    none, and `action`; or their whole text as `content`), ending with a user or tool turn; `reference` is the
    expert's action, `trace` the expert's, `task` a substring of a user turn.

    Messages and reference are enough. Decisions of one game need its name as `episode`: folds and intervals
    keep an episode together. One without is an episode of its own, named by its content.
    """

    messages: Sequence[dict]
    """A tuple once the decision is made, from whatever sequence it is given, as are `admissible`."""
    reference: str
    admissible: Sequence[str] = ()
    episode: str = ""
    step: int = None  # type: ignore[assignment]
    """The agent's turns so far, where it is not given."""
    task: str = ""
    task_type: str = ""
    split: str = "in_domain"
    trace: str = ""

    def __post_init__(self) -> None:
        # What is of a wrong type stays, and is said where decisions are checked (`checked`).
        if isinstance(self.messages, list | tuple):
            object.__setattr__(self, "messages", _turns(self.messages))
            if self.step is None:
                object.__setattr__(self, "step", sum(_role(m) == "agent" for m in self.messages))
        if isinstance(self.admissible, list):
            object.__setattr__(self, "admissible", tuple(self.admissible))
        if self.episode == "":
            object.__setattr__(self, "episode", f"decision-{self._content_hash()}")

    def _content_hash(self) -> str:
        content = [self.messages, self.reference, self.admissible, self.task, self.task_type, self.trace]
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        messages = f"{len(self.messages)} message{'s' * (len(self.messages) != 1)}"
        return f"Decision({self.id[:60]!r}, {messages}, reference {self.reference[:60]!r})"

    @property
    def id(self) -> str:
        return f"{self.episode}#{self.step}"

    @property
    def previous(self) -> str:
        """The action before this one ("" at the first step)."""
        last: Mapping = next((m for m in reversed(self.messages) if m["role"] == "agent"), {})
        return last.get("action") or last.get("content", "")

    @property
    def references(self) -> tuple[str, ...]:
        """The reference action of each of `decisions`."""
        return (self.reference,)

    def decisions(self) -> list["Decision"]:
        """This decision alone, as an episode gives its own."""
        return [self]


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def _turns(messages: Sequence[dict]) -> tuple[dict, ...]:
    """Messages as a tuple, in which the agent is called so."""
    if any(_role(m) == "assistant" for m in messages):
        messages = [{**m, "role": "agent"} if _role(m) == "assistant" else m for m in messages]
    return tuple(messages)


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

    def __repr__(self) -> str:
        steps = f"{len(self.steps)} step{'s' * (len(self.steps) != 1)}"
        return f"Episode({self.id[:60]!r}, {steps}, {'won' if self.won else 'not won'}, {self.split})"

    def messages(self, upto: int | None = None, traces: bool | Sequence[bool] = True) -> tuple[dict, ...]:
        """The turns before step `upto` (None: all), with traces or without (one flag, or one each)."""
        steps = self.steps if upto is None else self.steps[:upto]
        keep = [traces] * len(steps) if isinstance(traces, bool) else traces
        turns: list[dict] = [dict(role="user", content=self.start)]
        for step, with_trace in zip(steps, keep):
            turns.append(dict(role="agent", trace=step.trace if with_trace else None, action=step.action))
            turns.append(dict(role="user", content=step.observation))
        return tuple(turns)

    @property
    def references(self) -> tuple[str, ...]:
        """The reference action of each of `decisions`, which take longer to make."""
        return tuple(step.reference for step in self.steps)

    def decisions(self) -> list[Decision]:
        """One decision for each step, on the states this episode visited."""
        turns = self.messages()  # made once: thousands of steps share their earlier turns
        return [
            Decision(
                turns[: 2 * i + 1],
                s.reference,
                admissible=s.admissible,
                episode=self.id,
                step=i,
                task=self.task,
                task_type=self.task_type,
                split=self.split,
                trace=s.trace,
            )
            for i, s in enumerate(self.steps)
        ]


def save_episodes(path: str | Path, episodes: Iterable[Episode]) -> Path:
    """Write episodes as one JSON object a line, xz-compressed (equal episodes give equal bytes)."""
    lines = (json.dumps(asdict(e), sort_keys=True, separators=(",", ":")) for e in episodes)
    data = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)
    return Path(path)


def _read(rows: Iterable[tuple[str, Mapping]], splits: Mapping[str, str]) -> list[Episode | Decision]:
    """Episodes and decisions from (place, row), checked against one another."""
    splits_allowed = {*TRAINING, *splits, *splits.values()}
    items: list[Episode | Decision] = []
    # episode -> where it was last met, its step (None: a whole episode), its split
    seen: dict[str, tuple[str, int | None, str]] = {}
    for place, row in rows:
        try:
            item: Episode | Decision
            step: int | None = None  # of a decision
            if "messages" in row:
                item = Decision(**decision_row(row, place.rsplit(", ")[-1]))
                name, step = item.episode, item.step
            else:
                fields = episode_row(row)
                item = Episode(**{**fields, "steps": tuple(Step(**s) for s in fields["steps"])})
                name = item.id
            if item.split not in splits_allowed:
                raise ValueError(
                    f"there is no split {item.split!r}: there are {', '.join(sorted(splits_allowed))}"
                )
            item = replace(item, split=splits.get(item.split, item.split))
            if name in seen:
                where, last, split = seen[name]
                if last is None or step is None:
                    raise ValueError(
                        f"the episode {name!r} is there already ({where}): each is given once, whole or as "
                        "its decisions"
                    )
                if split != item.split:
                    raise ValueError(
                        f"the episode {name!r} is of the split {item.split!r} here and of {split!r} in "
                        f"{where}, and belongs to one"
                    )
                if step <= last:
                    what = "is there already" if step == last else f"comes after step {last}"
                    raise ValueError(
                        f"step {step} of the episode {name!r} {what} ({where}): an episode's steps come "
                        "once, in rising order"
                    )
        except ValueError as error:
            raise ValueError(f"{place}: {error}.") from None
        seen[name] = (place.rsplit(", ")[-1], step, item.split)
        items.append(item)
    return items


def checked(
    given: Iterable[Episode | Decision], source: str, splits: Mapping[str, str] = SPLITS
) -> list[Episode | Decision]:
    """Episodes or decisions made by a program, checked as a file's are; `source` names it in sentences."""

    def row(item: object, place: str) -> dict:
        if not isinstance(item, (Episode, Decision)):
            raise ValueError(
                f"{place}: there is a {type(item).__name__}, and should be an interp.tasks.episodes.Decision "
                "or Episode."
            )
        return asdict(item) if isinstance(item, Episode) else dict(vars(item))

    places = ((f"{source}, number {i}", item) for i, item in enumerate(given, 1))
    items = _read(((place, row(item, place)) for place, item in places), splits)
    if not items:
        raise ValueError(f"{source}: there are no episodes and no decisions.")
    return items


def load_episodes(path: str | Path, splits: Mapping[str, str] = SPLITS) -> list[Episode | Decision]:
    """Read episodes (rows with `steps`) and decisions (rows with `messages`) from a file of JSON lines.

    splits: what a study calls a split -> what the file calls it; either name is read. Raises
    FileNotFoundError, or ValueError naming the line that is neither, or that does not fit those before it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a .jsonl or .jsonl.xz file of episodes or decisions.")
    if not path.exists():
        raise FileNotFoundError(
            f"No episodes at {path}: give a .jsonl or .jsonl.xz file, or record one with `{PROGRAM} record`."
        )
    now = path.stat()
    state = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, limit_bytes()
    return list(_loaded(path, state, tuple(splits.items())))


@lru_cache(maxsize=2)  # analyses of one process read the same file
def _loaded(
    path: Path, state: tuple[int, ...], splits: tuple[tuple[str, str], ...]
) -> tuple[Episode | Decision, ...]:
    """What a file holds; `state` is another where the file, or how much may be read of one, is."""
    items = _read(lines(path), dict(splits))
    if not items:
        raise ValueError(f"{path} holds no episodes and no decisions: it is empty.")
    return tuple(items)


def by_split(found: Iterable[Episode | Decision]) -> dict[str, list[Episode | Decision]]:
    """Episodes, or decisions, grouped by split."""
    groups: dict[str, list[Episode | Decision]] = {}
    for episode in found:
        groups.setdefault(episode.split, []).append(episode)
    return groups


def load_corpus(path: str | Path = CORPUS) -> dict[str, list[Episode | Decision]]:
    """Read a corpus and group its episodes, or decisions, by split."""
    return by_split(load_episodes(path))


def base_episodes(corpus: Mapping[str, Sequence[Episode | Decision]]) -> list[Episode]:
    """The whole episodes that a base is trained on."""
    both = [each for split in ("base", "base_aimless") for each in corpus.get(split, ())]
    return [each for each in both if isinstance(each, Episode)]


def sample_decisions(episodes: Sequence[Episode | Decision], n: int, seed: int = 0) -> list[Decision]:
    """Draw about equally many steps from each episode until `n` decisions are found, in episode order.

    Raises ValueError when there are fewer than `n`.
    """
    rng = np.random.default_rng(seed)
    groups: dict[str, list[Decision]] = {}
    for episode in episodes:
        for decision in episode.decisions():
            groups.setdefault(decision.episode, []).append(decision)
    by_episode = list(groups.values())
    pools = [[int(i) for i in rng.permutation(len(group))] for group in by_episode]
    if sum(map(len, pools)) < n:
        raise ValueError(
            f"{n} decisions were asked for, but {len(by_episode)} episodes hold only {sum(map(len, pools))}."
        )
    chosen: list[tuple[int, int]] = []
    while len(chosen) < n:
        chosen += [(i, pools[i].pop()) for i in rng.permutation(len(pools)) if pools[i]]
    return [by_episode[i][s] for i, s in sorted(chosen[:n])]
