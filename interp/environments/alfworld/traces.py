"""Chain-of-thought traces from the belief state: goal, what is held, what is ruled out, what comes next.

They are written at three levels of leak (docs/methods.md 8.3). `full` names the thing or place to act on, and
spells out one action in six. `class` names kinds only: the drawer, not which one. `subgoal` says what is
still to be achieved, and names nothing. The reading of a level is the same for any episode, so one corpus can
be written again at another.

>>> episode = rewritten(load_corpus()["train"][0], "subgoal")
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from typing import Literal, get_args

from interp.environments.alfworld.expert import Belief, Goal, kind, listed
from interp.environments.phrases import IN_HAND, in_hand, spelled_out
from interp.tasks.episodes import Episode

Leak = Literal["full", "class", "subgoal"]
LEAKS: tuple[Leak, ...] = get_args(Leak)

_READY = ("It can be made ready here.", "Here it is treated.", "This makes it ready.")
_GOAL = ("Goal: {goal}.", "I am after {goal}.", "The task is {goal}.")
_RULED = ("No {name} in {out}.", "{out}: no {name}.", "Ruled out for {name}: {out}.")
_NEXT = {
    "search": ("{r} is the next place to check.", "Next I check {r}.", "{r} comes next."),
    "fetch": ("{x} was seen at {r}.", "I saw {x} at {r}.", "Back to {r} for {x}."),
    "treat": ("It needs the {r} to {verb}.", "To {verb} it I need {r}.", "First the {r}, to {verb} it."),
    "deliver": ("It belongs at {r}.", "Now it has to reach {r}.", "Then on to {r}."),
    "light": ("The {x} is at {r}.", "I need the {x} at {r}.", "Light: {x} at {r}."),
    "open": ("{r} is shut, look inside.", "I must see inside {r}.", "{r} is closed, so open up."),
    "take": ("{x} is here, pick it up.", "Here is {x}, I need it.", "Found {x}."),
    "move": ("This is where {x} goes.", "{x} can be left here.", "Put {x} down at {r}."),
    "clean": ("Wash {x} here.", "Here {x} gets clean.", "{x} must be clean first."),
    "heat": ("Warm {x} here.", "Here {x} gets hot.", "{x} must be hot first."),
    "cool": ("Chill {x} here.", "Here {x} gets cool.", "{x} must be cool first."),
    "use": ("Turn on {x} now.", "Now {x} gives light.", "{x} is here, switch it on."),
    "other": ("Try something else.", "Look around a little.", "See what this does."),
}
#: The same where nothing is named: what is still to be achieved.
_SUBGOAL = {
    "search": ("It is not found yet.", "Still to be found.", "The search goes on."),
    "fetch": ("It was seen earlier, so back to it.", "I know where it is.", "Seen, and now to be fetched."),
    "treat": ("It has to be made ready first.", "Not ready yet.", "First it needs its treatment."),
    "deliver": ("Now it has to reach its place.", "It is ready for its place.", "Off to where it belongs."),
    "light": ("Now for the light.", "The light is known.", "It has to be brought to the light."),
    "open": ("What is inside is not seen yet.", "It may be in here.", "Closed, so I must see inside."),
    "take": ("It is here, pick it up.", "Found, and I need it.", "Here it is."),
    "move": ("This is its place.", "It can be left here.", "Arrived, put it down."),
    "clean": _READY,
    "heat": _READY,
    "cool": _READY,
    "use": ("The light has to be on.", "Now it needs light.", "Here is the light."),
    "other": _NEXT["other"],
}


#: Phrases that say the same, in groups: what a trace is paraphrased by.
PHRASES = (_GOAL, _RULED, *_NEXT.values(), *_SUBGOAL.values(), *IN_HAND)


def _goal_phrase(belief: Belief) -> str:
    goal = belief.goal
    what = {"clean": "clean ", "heat": "hot ", "cool": "cool "}.get(goal.verb, "") + goal.target
    what = f"two {what}" if goal.count == 2 else what
    return f"{what} under {goal.lamp}" if goal.lamp else f"{what} to {goal.place}"


def _next(belief: Belief, command: str) -> tuple[str, dict]:
    """Which sentence says what comes next, and its words."""
    words = command.split()
    thing, place = " ".join(words[1:3]), " ".join(words[-2:])
    if command.startswith("go to "):
        goal, place = belief.goal, command[6:]
        holding = belief.held and kind(belief.held) == goal.target
        if holding and goal.verb and belief.held not in belief.treated and kind(place) == goal.appliance:
            return "treat", dict(r=place, verb=goal.verb)
        lamp = belief.find(goal.lamp) if goal.lamp else None
        if holding and lamp and lamp[0] == place:
            return "light", dict(x=lamp[1], r=place)
        if holding and goal.place and kind(place) == goal.place:
            return "deliver", dict(r=place)
        seen = belief.find(goal.target, skip=belief.chosen)
        if not belief.held and seen and seen[0] == place:
            return "fetch", dict(x=seen[1], r=place)
        return "search", dict(r=place)
    if words[0] in ("open", "take", "move", "clean", "heat", "cool", "use"):
        return words[0], dict(x=thing, r=place)
    return "other", {}


def write(belief: Belief, command: str, rng: random.Random, leak: Leak = "full") -> str:
    """One trace for the step that `command` takes from `belief`, in a phrasing drawn from `rng`.

    Raises ValueError for a level of leak that there is not.
    """
    if leak not in LEAKS:
        raise ValueError(f"There is no level of leak {leak!r}: there are {', '.join(LEAKS)}.")
    which, words = _next(belief, command)
    if leak == "subgoal":
        return f"{in_hand('something' if belief.held else '', rng)} {rng.choice(_SUBGOAL[which])}"
    goal = belief.goal
    parts = [rng.choice(_GOAL).format(goal=_goal_phrase(belief)), in_hand(belief.held, rng)]
    if which == "search" and belief.seen:
        name = goal.lamp if belief.held and goal.lamp else goal.target
        out = ", ".join(list(belief.seen)[-2:])
        parts.append(rng.choice(_RULED).format(name=name, out=out))
    parts.append(rng.choice(_NEXT[which]).format(**words))
    if leak == "class":
        return re.sub(r"\b([a-z]+) \d+\b", r"\1", " ".join(parts))
    return " ".join(parts + spelled_out(command, rng))


def rewritten(episode: Episode, leak: Leak) -> Episode:
    """An episode with its traces written again at a level of leak, the same for the same episode.

    The belief is read off the recorded texts, so no game is played. Raises ValueError for a task that is none
    of ALFWorld's.
    """
    rng = random.Random(f"{episode.id} {leak}")
    belief, steps = Belief(Goal.read(episode.task), listed(episode.start)), []
    for step in episode.steps:
        steps.append(replace(step, trace=write(belief, step.action, rng, leak)))
        belief.update(step.action, step.observation)
    return replace(episode, steps=tuple(steps))
