"""An expert that knows only what the agent has seen: a belief state, and a policy read off it.

The policy is reactive: it reads the belief, not its own plan, so it can take over after any detour.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from interp.environments.alfworld.scenes import TREATMENT, Game, tables

_VERBS = {"Cleanable": "clean", "Heatable": "heat", "Coolable": "cool"}
#: What the words of a task ask for: they say "hot" in one form and "heat" in the other.
_ADJECTIVES = {"hot": "heat"}
_APPLIANCES = {_VERBS[ability]: appliance.lower() for ability, appliance in TREATMENT.values()}
_TASKS = (
    r"(?:look at|examine the) (?P<target>\w+) (?:under|with) the (?P<lamp>\w+)",
    r"(?P<verb>clean|heat|cool) some (?P<target>\w+) and put it in (?P<place>\w+)",
    r"(?:put|find) (?P<two>two) (?P<target>\w+) (?:and put them )?in (?P<place>\w+)",
    r"put (?:a|some) (?:(?P<verb>clean|hot|cool) )?(?P<target>\w+) (?:in|on) (?P<place>\w+)",
)


def kind(name: str) -> str:
    """Class of a named thing: `kind("sidetable 2") == "sidetable"`."""
    return name.rsplit(" ", 1)[0]


def listed(text: str) -> list[str]:
    """The things named after "you see", in order."""
    match = re.search(r"you see (.*?)\.(?:\s|$)", text, re.S)
    if not match or match.group(1).strip() == "nothing":
        return []
    return [re.sub(r"^(?:and )?an? ", "", part.strip()) for part in match.group(1).split(",")]


@dataclass
class Goal:
    """What the task asks for, in the words of the game's text."""

    target: str
    place: str = ""
    lamp: str = ""
    verb: str = ""
    appliance: str = ""
    count: int = 1

    @classmethod
    def of(cls, game: Game) -> "Goal":
        ability, appliance = TREATMENT.get(game.task_type, ("", ""))
        names = ("object_target", "parent_target", "toggle_target")
        target, place, lamp = (game.params[name].lower() for name in names)
        count = 2 if game.task_type == "pick_two_obj_and_place" else 1
        return cls(target, place, lamp, _VERBS.get(ability, ""), appliance.lower(), count)

    @classmethod
    def read(cls, task: str) -> "Goal":
        """The goal of a task's words; raises ValueError where they are none of the game's."""
        words = task.removeprefix("Your task is to:").strip().removesuffix(".")
        for form in _TASKS:
            if match := re.fullmatch(form, words):
                found = {name: said or "" for name, said in match.groupdict().items()}
                verb = _ADJECTIVES.get(found.get("verb", ""), found.get("verb", ""))
                count = 2 if found.get("two") else 1
                place, lamp = found.get("place", ""), found.get("lamp", "")
                return cls(found["target"], place, lamp, verb, _APPLIANCES.get(verb, ""), count)
        raise ValueError(f"No goal can be read off the task {task!r}, which is none of ALFWorld's.")


@dataclass
class Belief:
    """What the agent can know: the receptacles, where it is, what it holds, what it saw where."""

    goal: Goal
    receptacles: list[str]
    here: str = ""
    held: str = ""
    seen: dict[str, list[str]] = field(default_factory=dict)  # receptacle -> contents, once looked into
    closed: set[str] = field(default_factory=set)
    treated: set[str] = field(default_factory=set)
    chosen: str = ""  # the receptacle of the goal's class that things go to

    @classmethod
    def start(cls, game: Game, text: str) -> "Belief":
        return cls(Goal.of(game), listed(text))

    def update(self, command: str, text: str) -> None:
        """Take in what came back after a command; one that did nothing changes nothing."""
        if text.startswith("Nothing happens"):
            return
        words = command.split()
        if command.startswith("go to "):
            self.here = command[6:]
            self._look(text)
        elif words[0] == "open":
            self._look(text)
        elif words[0] == "close":
            self.closed.add(self.here)
        elif words[0] == "take":
            self.held = " ".join(words[1:3])
            self.seen[self.here] = [x for x in self.seen.get(self.here, ()) if x != self.held]
            if self.here == self.chosen and not self._done_at(self.here):
                self.chosen = ""
        elif words[0] == "move":
            self.seen.setdefault(self.here, []).append(self.held)
            if kind(self.here) == self.goal.place and kind(self.held) == self.goal.target:
                self.chosen = self.chosen or self.here
            self.held = ""
        elif words[0] == self.goal.verb:
            self.treated.add(" ".join(words[1:3]))
        elif words[0] in ("clean", "heat", "cool"):
            self.treated.discard(
                " ".join(words[1:3]) if words[0] != "clean" and self.goal.verb != "clean" else ""
            )

    def _look(self, text: str) -> None:
        if text.rstrip(".").endswith("is closed"):
            self.closed.add(self.here)
        else:
            self.closed.discard(self.here)
            self.seen[self.here] = listed(text)

    def _done_at(self, place: str) -> list[str]:
        ready = self.treated if self.goal.verb else None
        return [
            x
            for x in self.seen.get(place, ())
            if kind(x) == self.goal.target and (ready is None or x in ready)
        ]

    def find(self, name: str, skip: str = "") -> tuple[str, str] | None:
        """Where a thing of class `name` was last seen: (receptacle, thing)."""
        for place in self.receptacles:
            for thing in self.seen.get(place, ()):
                if kind(thing) == name and place != skip:
                    return place, thing
        return None

    def unexplored(self, name: str) -> list[str]:
        """Receptacles not looked into yet: those where such a thing can lie first, surfaces before doors."""
        likely = _holders(name)
        doors = {c.lower() for c in tables().openable}
        left = [r for r in self.receptacles if r not in self.seen]
        return sorted(left, key=lambda r: (kind(r) not in likely, kind(r) in doors))


def act(belief: Belief, admissible: tuple[str, ...]) -> str | None:
    """The expert's next command, or None where everything has been searched in vain."""
    goal = belief.goal
    if belief.here in belief.closed and _wants_inside(belief):
        return f"open {belief.here}"
    if belief.held and kind(belief.held) != goal.target:
        return _put_away(belief, admissible)
    if belief.held:
        if goal.verb and belief.held not in belief.treated:
            at = next(r for r in belief.receptacles if kind(r) == goal.appliance)
            return f"{goal.verb} {belief.held} with {at}" if belief.here == at else f"go to {at}"
        if goal.lamp:
            thing_at = belief.find(goal.lamp)
            if thing_at is None:
                return _explore(belief, goal.lamp)
            return f"use {thing_at[1]}" if belief.here == thing_at[0] else f"go to {thing_at[0]}"
        place = belief.chosen or next(r for r in belief.receptacles if kind(r) == goal.place)
        return f"move {belief.held} to {place}" if belief.here == place else f"go to {place}"
    thing_at = belief.find(goal.target, skip=belief.chosen)
    if thing_at is None:
        return _explore(belief, goal.target)
    return f"take {thing_at[1]} from {thing_at[0]}" if belief.here == thing_at[0] else f"go to {thing_at[0]}"


def _wants_inside(belief: Belief) -> bool:
    """Open a closed receptacle to look into it, to take what is in it, or to put something there."""
    goal, here = belief.goal, belief.here
    if here not in belief.seen:
        return not (
            belief.held
            and kind(belief.held) == goal.target
            and (
                goal.verb and belief.held not in belief.treated or not goal.lamp and kind(here) != goal.place
            )
        )
    if belief.held:
        return kind(here) == goal.place and (not goal.verb or belief.held in belief.treated)
    return any(kind(x) in (goal.target, goal.lamp) for x in belief.seen[here])


def _explore(belief: Belief, name: str) -> str | None:
    left = belief.unexplored(name)
    return f"go to {left[0]}" if left else None


def _put_away(belief: Belief, admissible: tuple[str, ...]) -> str:
    """Put down what is not wanted: here if it may lie here, else in the nearest place that holds it."""
    for command in admissible:
        if command.startswith(f"move {belief.held} to"):
            return command
    holders = _holders(kind(belief.held))
    elsewhere = [r for r in belief.receptacles if r != belief.here]
    options = [r for r in elsewhere if kind(r) in holders and r not in belief.closed]
    return f"go to {(options or elsewhere)[0]}"


def _holders(name: str) -> set[str]:
    """Classes of receptacles in which a thing of class `name` can lie."""
    return {r.lower() for r, things in tables().fits.items() if name in {t.lower() for t in things}}
