"""ScienceWorld as an environment: elementary-school science in ten rooms, played by its Java simulator.

The last task type of each of its topics is out of domain; genetics, whose gold paths take ten seconds to make
and 150 steps to play, is left out. The package draws from one stream of random numbers and numbers objects
for the whole Java process: both start anew with each game here, and each game has a process of its own, so
that the same actions meet the same observations (in `3-4` they may not, and `3-3`'s solutions vary).

>>> lab = Laboratory()
>>> view = lab.reset(Game("4-1", 2))
>>> for action in lab.gold(Game("4-1", 2)): view = lab.step(action)
>>> lab.close()
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from interp.environments import java
from interp.environments.base import Environment, View
from interp.system.paths import DATA
from interp.tasks.episodes import Decision

CORPUS = DATA / "scienceworld.jsonl.xz"
INSTALL = "pip install 'interp-agents[scienceworld]'"
#: Its task types by their number, topic first.
TASKS = {
    "1-1": "boil",
    "1-2": "melt",
    "1-3": "freeze",
    "1-4": "change-the-state-of-matter-of",
    "2-1": "use-thermometer",
    "2-2": "measure-melting-point-known-substance",
    "2-3": "measure-melting-point-unknown-substance",
    "3-1": "power-component",
    "3-2": "power-component-renewable-vs-nonrenewable-energy",
    "3-3": "test-conductivity",
    "3-4": "test-conductivity-of-unknown-substances",
    "4-1": "find-living-thing",
    "4-2": "find-non-living-thing",
    "4-3": "find-plant",
    "4-4": "find-animal",
    "5-1": "grow-plant",
    "5-2": "grow-fruit",
    "6-1": "chemistry-mix",
    "6-2": "chemistry-mix-paint-secondary-color",
    "6-3": "chemistry-mix-paint-tertiary-color",
    "7-1": "lifespan-longest-lived",
    "7-2": "lifespan-shortest-lived",
    "7-3": "lifespan-longest-lived-then-shortest-lived",
    "8-1": "identify-life-stages-1",
    "8-2": "identify-life-stages-2",
    "9-1": "inclined-plane-determine-angle",
    "9-2": "inclined-plane-friction-named-surfaces",
    "9-3": "inclined-plane-friction-unnamed-surfaces",
}
#: The last type of each topic.
OUT_OF_DOMAIN = tuple({name.split("-")[0]: name for name in TASKS}.values())
IN_DOMAIN = tuple(name for name in TASKS if name not in OUT_OF_DOMAIN)
#: Variations of a type are numbered; half are for training, a quarter each for development and test.
FOLDS = ("Train", "Dev", "Test")
_VERBS = (
    "open door to",
    "close door to",
    "go to",
    "look around",
    "look at",
    "look in",
    "pick up",
    "put down",
    "focus on",
    "move",
    "pour",
    "mix",
    "use",
    "activate",
    "deactivate",
    "open",
    "close",
    "connect",
    "disconnect",
    "examine",
    "read",
    "eat",
    "flush",
    "dunk",
    "drop",
    "inventory",
    "task",
    "wait1",
    "wait",
)
_ACTION = re.compile(rf"({'|'.join(_VERBS)})(?: (\S.*))?|\d")
_ALONE = {"look around", "inventory", "task", "wait1", "wait"}
_ROOM = re.compile(r"(?:room|location) is called the (.*?)\.")
_DOOR = re.compile(r"door to the (.*?) \(that is (open|closed)\)")
#: Things that come in several kinds told apart by a word before them.
_KIND = re.compile(
    r"\b(?!(?:a|an|the|of|in|on|to|into|and|with|light) )[a-z]+ (box|light bulb|wire|paint|egg|seed)\b"
)


@dataclass(frozen=True)
class Game:
    """One variation of a task type, a key of TASKS."""

    task_type: str
    variation: int

    def __str__(self) -> str:
        return f"{self.task_type}/{self.variation}"


class Laboratory:
    """A game being played, in a Java process that this object starts and that ends with it.

    Raises ImportError where the package or Java is missing, naming how to install it.
    """

    def __init__(self) -> None:
        self._engine = java.Engine("scienceworld", "scienceworld.jar", INSTALL)
        self._game = self._engine.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        self._random = (
            self._engine.jvm.java.lang.Class.forName("scala.util.Random$").getField("MODULE$").get(None)
        )
        self.close = self._engine.close

    def _load(self, game: Game, with_gold: bool) -> None:
        self._engine.jvm.util.UniqueIdentifier.reset()
        self._random.setSeed(zlib.crc32(str(game).encode()))
        self._game.load(TASKS[game.task_type], game.variation, "", with_gold)

    def reset(self, game: Game) -> View:
        """Start a game; its first text is the task and what the room shows."""
        self._load(game, with_gold=False)
        return View(f"{_flat(self._game.getTaskDescription())} {self.look()}")

    def step(self, action: str) -> View:
        """Play one action; what makes no sense is answered so by the simulator.

        The score is the share of the task that is done. A wrong focus loses the game: its score falls below
        0, and counts as 0.
        """
        answer = _flat(self._game.step(action.encode("utf-8", "replace").decode()))
        score = round(float(self._game.getScore()), 4)
        return View(
            answer or "Nothing happens.",
            done=bool(self._game.getCompleted()) or score < 0,
            score=max(0.0, score),
        )

    def look(self) -> str:
        """What `look around` would show, without a step."""
        return _flat(self._game.freeActionLook())

    def objects(self) -> list[str]:
        """Names of what can be acted on."""
        return sorted(self._game.getPossibleObjects())

    def valid(self) -> list[str]:
        """Every action that can be played, thousands of them; takes 0.1 to 0.2 seconds."""
        return sorted(set(map(_flat, self._game.getValidActionObjectCombinations())))

    def subgoals(self) -> tuple[str, ...]:
        """Descriptions of the subgoals that are reached, as the simulator words them."""
        rows = (line.split("\t") for line in self._game.getGoalProgressStr().splitlines())
        return tuple(
            " ".join(row[-1].split()) for row in rows if len(row) > 2 and row[1] == "true" and row[-1].strip()
        )

    def gold(self, game: Game) -> list[str]:
        """The simulator's own solution, which may fail: keep it where it scores 1.

        No game is left to go on with.
        """
        self._load(game, with_gold=True)
        return list(self._game.getGoldActionSequence())

    def variations(self, task_type: str, fold: str) -> list[int]:
        """The variations of a type in one of FOLDS."""
        self._load(Game(task_type, 0), with_gold=False)
        return list(getattr(self._game, f"getVariations{fold}")())


def _flat(text: str) -> str:
    return " ".join(text.split())


def parse(text: str) -> str | None:
    """The action in `text`.

    None where it begins with no verb (a digit answers "which of several is meant").
    """
    text = _flat(text)
    match = _ACTION.fullmatch(text)
    return text if match and (match[1] is None or (match[1] in _ALONE) == (match[2] is None)) else None


def verb(action: str) -> str:
    """What is done: `verb("pick up orange") == "pick up"`; "answer" of a digit."""
    words = _ACTION.fullmatch(action)
    return words[1] or "answer" if words else action


def target(action: str) -> str:
    """What it is done to: `target("move orange in bowl to blue box") == "orange"`.

    "none" without an object.
    """
    words = _ACTION.fullmatch(action)
    rest = words[2] if words else action
    return re.split(r" (?:in|on|to|into|from) ", rest)[0] if rest else "none"


def task_of(text: str) -> str:
    """The task's words in the first text of a game."""
    match = _ROOM.search(text)
    return text[: text.rindex("This ", 0, match.start())].strip() if match else ""


def room_of(text: str) -> str:
    """The room that a look describes ("" where it is none)."""
    match = _ROOM.search(text)
    return match[1] if match else ""


def doors(text: str) -> dict[str, bool]:
    """The rooms next door in a look, and whether their doors are open."""
    return {name: state == "open" for name, state in _DOOR.findall(text)}


def swap_candidates(decision: Decision, _: Sequence[Decision]) -> list[tuple[str, str]]:
    """Pairs of names whose exchange changes the action: two rooms next door, "blue box" and "red box", etc.

    The house is the same in every game, so an agent that knows its plan can be surprised by two rooms
    exchanged.
    """
    seen = [m["content"] for m in decision.messages if m["role"] == "user"]
    if decision.reference.startswith("open door to "):
        name = decision.reference.removeprefix("open door to ")
        beside = doors(next((text for text in reversed(seen) if room_of(text)), ""))
        return [(name, other) for other in sorted(beside) if other != name and name in beside]
    named = {m.group(): m[1] for m in _KIND.finditer(decision.reference)}
    others = {m.group(): m[1] for m in _KIND.finditer(" ".join(seen))}
    return [
        (name, other)
        for name, kind in named.items()
        for other in sorted(others)
        if others[other] == kind and other not in named
    ]


@cache
def _folds() -> dict[str, dict[str, list[int]]]:
    lab = Laboratory()
    folds = {name: {fold: lab.variations(name, fold) for fold in FOLDS} for name in TASKS}
    lab.close()
    return folds


def draw(task_types: Sequence[str], fold: str, n: int, seed: int) -> list[Game]:
    """The first `n` games of a fold: types take turns while they have games, in a seeded order."""
    rng = np.random.default_rng(seed)
    left = {name: [int(v) for v in rng.permutation(_folds()[name][fold])] for name in task_types}
    games: list[Game] = []
    while len(games) < n and any(left.values()):
        games += [Game(name, variations.pop()) for name, variations in left.items() if variations]
    return games[:n]


def games(split: str, n: int, seed: int) -> list[Game]:
    """The first `n` test variations of a study's split; recorded decisions are of development variations."""
    return draw(IN_DOMAIN if split == "in_domain" else OUT_OF_DOMAIN, "Test", n, seed)


SCIENCEWORLD = Environment(
    "scienceworld",
    decisions=CORPUS,
    parse=parse,
    classes=dict(verb=verb, target=target),
    closed_actions=False,
    swap_candidates=swap_candidates,
    task=task_of,
    live=Laboratory,
    games=games,
    graded=True,
    side_by_side=4,
    needs=lambda: java.missing("scienceworld", INSTALL),
)
