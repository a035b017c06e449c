"""Record TWC's corpus: an expert that knows the usual places and what it has seen, with its reasons."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from interp.environments.phrases import in_hand, spelled_out
from interp.environments.recording import Sizes, bare
from interp.environments.textworldexpress.environment import Game, Live, games, task_of
from interp.tasks.episodes import Episode, Step

#: Games that the shipped corpus was played from.
SIZES = Sizes(base=400, base_out_of_domain=0, train=700, test=150)
STEP_LIMIT = 40
NOISE = 1 / 3  # of the actions in a noisy expert episode
_GOAL = (
    "Goal: put things where they belong.",
    "I am to put things where they belong.",
    "The task: put things where they belong.",
)
_NEXT = {
    "take": (
        "Out of place: the {x}, to go in the {r}.",
        "The place of the {x} is not here, but in the {r}.",
        "The usual place of the {x} is the {r}.",
    ),
    "put": (
        "Here is the {r}, the home of the {x}.",
        "I carry the {x}, for which the place is here, the {r}.",
        "The {r} is the place for the {x}.",
    ),
    "open": (
        "The {r} is shut, and the {x} must go in there.",
        "The place of the {x} is the {r}, which is closed.",
        "To put the {x} away I need the {r} open.",
    ),
    "let out": (
        "In the {r}, now shut, lies the {x}, out of place.",
        "The {r} has the {x} in it, wrongly.",
        "I must get the {x} out of the {r}.",
    ),
    "deliver": (
        "The {x} must go in the {r}, over in the {room}.",
        "The {r} for the {x} is in the {room}.",
        "To the {room}, where the {r} is, for the {x}.",
    ),
    "search": (
        "There is no {r} here for the {x}; the {room} may have one.",
        "The {r}, for the {x}, is not here: on to the {room}.",
        "No {r} in sight. The {x} may find a place in the {room}.",
    ),
    "fetch": (
        "Out of place over in the {room}: the {x}.",
        "Back to the {room} for the {x}.",
        "I left the {x} in the {room}, in a wrong place.",
    ),
    "explore": (
        "All is in its place here; the {room} is left to see.",
        "Nothing to put away here: on to the {room}.",
        "Next I see what lies about in the {room}.",
    ),
    "stray take": (
        "The {x} could go somewhere else.",
        "I take the {x} along.",
        "See where else the {x} may go.",
    ),
    "stray put": (
        "The {x} can lie in the {r} for now.",
        "Get rid of the {x} in the {r}.",
        "The {r} has room for the {x}.",
    ),
    "stray open": ("See what is in the {r}.", "The {r} may hide something.", "A look inside the {r}."),
    "stray close": ("The {r} should be shut.", "Leave the {r} closed.", "No need for an open {r}."),
    "stray move": (
        "See how it looks in the {room}.",
        "Off to the {room} for a while.",
        "I would rather be in the {room}.",
    ),
}


@dataclass
class Belief:
    """What the agent knows: usual places, the rooms that it saw, what it holds, where it put things.

    homes: thing -> its usual place. rooms: room -> the text that it was last described with. placed: thing ->
    (room, receptacle).
    """

    homes: dict[str, str]
    rooms: dict[str, str] = field(default_factory=dict)
    here: str = ""
    held: list[str] = field(default_factory=list)
    placed: dict[str, tuple[str, str]] = field(default_factory=dict)

    def update(self, action: str, text: str) -> None:
        """Take in what came back after an action ("" for the first text)."""
        if room := re.match(r"You are in the (.*?)\.", text):
            self.here = room[1]
            self.rooms[self.here] = text
        thing, _, place = action.partition(" ")[2].partition(" in ")
        if action.startswith("take "):
            self.held.append(thing)
            self.placed.pop(thing, None)
        elif action.startswith("put "):
            self.held.remove(thing)
            self.placed[thing] = (self.here, place)

    def wrong(self, thing: str) -> bool:
        """Whether a thing that is not held is out of its place."""
        return self.placed.get(thing, ("", ""))[1] != self.homes.get(thing)

    def room_of(self, place: str) -> str:
        """The room that a receptacle was seen in ("": none so far)."""
        return next(
            (
                room
                for room, text in self.rooms.items()
                if re.search(rf"(?i)\b(?:an?|open) {re.escape(place)}(?=,|\.| that)", text)
            ),
            "",
        )

    def exits(self) -> dict[str, str]:
        """Direction -> the room that is seen there."""
        return {
            way.lower(): room
            for way, room in re.findall(r"[Tt]o the (\w+) you see the ([^.]+)\.", self.rooms[self.here])
        }


def homes(path: Sequence[str]) -> dict[str, str]:
    """The usual places, from a solution's actions."""
    return dict(action[4:].split(" in ") for action in path if action.startswith("put "))


def act(belief: Belief, admissible: Sequence[str]) -> tuple[str, str, dict] | None:
    """The expert's next action, which sentence of _NEXT says why, and its words; None where there is none.

    It reads the belief, not a plan, so it can take over after any detour: things out of place are taken up,
    in the order of the room's description; what is held is put away where its place is here; then on to the
    other room.
    """
    loose = [c[5:] for c in admissible if c.startswith("take ") and belief.wrong(c[5:])]
    if loose:
        seen = belief.rooms[belief.here]
        thing = min(loose, key=lambda x: (belief.placed.get(x, ("",))[0] == belief.here, seen.find(x), x))
        return f"take {thing}", "take", dict(x=thing, r=belief.homes[thing])
    for thing in belief.held:
        home = belief.homes[thing]
        if f"put {thing} in {home}" in admissible:
            return f"put {thing} in {home}", "put", dict(x=thing, r=home)
        if f"open {home}" in admissible:
            return f"open {home}", "open", dict(x=thing, r=home)
    for thing, (room, place) in belief.placed.items():
        if belief.wrong(thing) and room == belief.here and f"open {place}" in admissible:
            return f"open {place}", "let out", dict(x=thing, r=place)
    for way, room in belief.exits().items():
        for thing in belief.held:
            home_room = belief.room_of(belief.homes[thing])
            if home_room in ("", room):
                return (
                    f"move {way}",
                    "deliver" if home_room else "search",
                    dict(x=thing, r=belief.homes[thing], room=room),
                )
        for thing, (where, _) in belief.placed.items():
            if where == room and belief.wrong(thing):
                return f"move {way}", "fetch", dict(x=thing, room=room)
        return f"move {way}", "explore", dict(room=room)
    return None


def _stray(belief: Belief, action: str) -> tuple[str, dict]:
    """Which sentence argues for an action that the expert does not want, and its words."""
    verb, _, rest = action.partition(" ")
    thing, _, place = rest.partition(" in ")
    return f"stray {verb}", dict(x=thing, r=place or thing, room=belief.exits().get(thing, ""))


def write(belief: Belief, action: str, reason: tuple[str, dict], rng: random.Random) -> str:
    """One trace for an action: the goal, what is held, why this comes next, phrased at random by `rng`."""
    which, words = reason
    parts = [
        rng.choice(_GOAL),
        in_hand(", ".join(belief.held), rng),
        rng.choice(_NEXT[which]).format(**words),
    ]
    return " ".join(parts + spelled_out(action, rng))


def play(live: Live, game: Game, split: str, which: str, number: int, usual: dict[str, str]) -> Episode:
    """Play one episode: `expert`, `noisy` (a third of the actions at random) or `aimless` (all at random).

    usual: the game's things and their usual places. A wrong action is chosen before the trace is written, so
    the trace argues for the action that follows it.
    """
    rng = random.Random(f"{game}/{which}/{number}")
    view = live.reset(game)
    start, belief = view.text, Belief(usual)
    steps: list[Step] = []
    belief.update("", start)
    limit = rng.randint(8, 16) if which == "aimless" else STEP_LIMIT
    while not view.done and len(steps) < limit:
        wanted = act(belief, view.admissible)
        if wanted is None:
            break
        action, sentence, words = wanted
        reason = sentence, words
        wrong = which == "aimless" or which == "noisy" and rng.random() < NOISE
        options = [c for c in view.admissible if c != action and c not in ("look around", "inventory")]
        if wrong and options:
            action = rng.choice(options)
            reason = _stray(belief, action)
        trace = write(belief, action, reason, rng)
        after = live.step(action)
        steps.append(Step(trace, action, after.text, wanted[0], view.admissible))
        belief.update(action, after.text)
        view = after
    return Episode(
        f"{split}/{game}/{which}{number}",
        split,
        game.name,
        game.seed,
        task_of(start),
        start,
        tuple(steps),
        view.won,
        which,
    )


def plan(sizes: Sizes, seed: int) -> list[tuple[Game, str, tuple[str, ...], bool]]:
    """Which games are played for which split and how; test games keep their admissible actions.

    Out-of-domain things are in no base or training game, not even in aimless play. Raises ValueError where
    such games are asked for.
    """
    if sizes.base_out_of_domain:
        raise ValueError(
            "TWC's base mixture has no out-of-domain games: its out-of-domain things are in no training "
            "text. Leave base_out_of_domain at 0."
        )
    trained, tested, outside = (
        games("twc", split, use, seed)
        for split, use in (("in_domain", "train"), ("in_domain", "test"), ("out_of_domain", "test"))
    )
    jobs: list[tuple[Game, str, tuple[str, ...], bool]] = []
    jobs += [(g, "base", ("noisy", "noisy", "aimless"), False) for g in islice(trained, sizes.base)]
    jobs += [(g, "train", ("expert",), False) for g in islice(trained, sizes.train)]
    jobs += [(g, "test_in_domain", ("expert",), True) for g in islice(tested, sizes.test)]
    return jobs + [(g, "test_out_of_domain", ("expert",), True) for g in islice(outside, sizes.test)]


def episodes(job: tuple[Game, str, tuple[str, ...], bool]) -> list[Episode]:
    """A job's episodes: its game, played in each of its ways, with its admissible actions or without."""
    game, split, kinds, keep_admissible = job
    live = Live()
    usual = homes(live.gold(game))
    played = [play(live, game, split, which, number, usual) for number, which in enumerate(kinds)]
    return played if keep_admissible else [bare(e) for e in played]
