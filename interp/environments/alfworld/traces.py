"""Chain-of-thought traces from the belief state: goal, what is held, what is ruled out, what comes next."""

from __future__ import annotations

import random

from interp.environments.alfworld.expert import Belief, kind
from interp.environments.phrases import in_hand, spelled_out

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


def write(belief: Belief, command: str, rng: random.Random) -> str:
    """One trace for the step that `command` takes from `belief`, in a phrasing drawn from `rng`."""
    goal = belief.goal
    parts = [rng.choice(_GOAL).format(goal=_goal_phrase(belief))]
    parts.append(in_hand(belief.held, rng))
    which, words = _next(belief, command)
    if which == "search" and belief.seen:
        name = goal.lamp if belief.held and goal.lamp else goal.target
        out = ", ".join(list(belief.seen)[-2:])
        parts.append(rng.choice(_RULED).format(name=name, out=out))
    parts.append(rng.choice(_NEXT[which]).format(**words))
    return " ".join(parts + spelled_out(command, rng))
