"""Record ScienceWorld: the simulator's solutions without idle steps, with traces from their subgoals.

A solution is played again and kept where it scores 1. What wanders through rooms without a look is cut out of
it, and so are looks that show nothing new and doors opened twice. Noisy and aimless play is for the mixture
that a base is trained on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from interp.environments.phrases import spelled_out
from interp.environments.recording import Sizes
from interp.environments.scienceworld.environment import (
    IN_DOMAIN,
    OUT_OF_DOMAIN,
    Game,
    Laboratory,
    doors,
    draw,
    parse,
    room_of,
    target,
    task_of,
    verb,
)
from interp.tasks.episodes import Episode, Step

SIZES = Sizes(base=700, base_out_of_domain=150, train=1300, test=160)
#: Not recorded: one Java process does not always repeat its substances.
LEFT_OUT = ("3-4",)
#: Steps that an episode may take; longer solutions are dropped.
STEP_LIMIT = 60
#: Candidates of a test decision: as many of the reference's verb, and of others.
CANDIDATES = (8, 7)
NOISE = 1 / 3
_CANDIDATE_VERBS = (
    "open door to",
    "go to",
    "look around",
    "pick up",
    "focus on",
    "move",
    "pour",
    "mix",
    "use",
    "activate",
    "open",
    "connect",
    "inventory",
)
_SUBGOAL = ("Next: {}.", "I have to {}.", "The step at hand: {}.", "What is left: {}.")
_PLACE = ("I am in the {}.", "This is the {}.", "Here, in the {}.")
_REASON = {
    "open door to": (
        "The way leads through the door to the {x}.",
        "{x} lies behind that door.",
        "First the door to the {x}.",
    ),
    "go to": ("On to the {x}.", "The {x} is next.", "Now walk to the {x}."),
    "look around": (
        "What is here is not known yet.",
        "See what this room holds.",
        "I need to see what there is.",
    ),
    "pick up": ("I need {x} with me.", "{x} must come along.", "Take {x}."),
    "focus on": ("{x} is what is asked for.", "{x} is the one.", "The task is about {x}."),
    "move": ("{x} belongs there.", "{x} has to go in its place.", "Put {x} where it is wanted."),
    "pour": ("{x} has to be in there.", "Empty {x} into it.", "{x} goes in."),
    "mix": ("What is in {x} can be mixed.", "Together in {x} they react.", "All is in {x} now."),
    "use": ("{x} is the tool for it.", "{x} will tell.", "Now {x} is of use."),
    "activate": ("{x} has to run.", "Switch {x} on.", "{x} is off, and should be on."),
    "deactivate": ("{x} has run long enough.", "Switch {x} off.", "{x} is no longer needed."),
    "open": ("{x} is shut.", "What I want may be in {x}.", "Look inside {x}."),
    "close": ("{x} should be shut.", "Shut {x} again.", "{x} stands open."),
    "connect": ("{x} is part of the circuit.", "The current has to pass {x}.", "{x} is not wired yet."),
    "examine": ("How is {x} doing?", "{x} may have changed.", "Check {x}."),
    "look at": ("What is {x} like?", "See {x} from near.", "{x} may tell something."),
    "wait": ("This takes time.", "Let it work a while.", "Nothing to do but wait."),
}
_OTHER = ("This may help.", "Try this.", "See what this does.")


@dataclass(frozen=True)
class Job:
    """A game, its episodes' split, and which kinds are played; candidates: list test candidates, too."""

    game: Game
    split: str
    kinds: tuple[str, ...]
    candidates: bool = False


def plan(sizes: Sizes, seed: int) -> list[Job]:
    """A corpus's games: train variations to learn from, development variations to test on, no test ones."""
    known, unknown = ([t for t in types if t not in LEFT_OUT] for types in (IN_DOMAIN, OUT_OF_DOMAIN))

    def take(
        split: str,
        types: Sequence[str],
        fold: str,
        n: int | None,
        kinds: tuple[str, ...],
        candidates: bool = False,
    ) -> list[Job]:
        return [Job(game, split, kinds, candidates) for game in draw(types, fold, n or 0, seed)]

    return (
        take("base", known, "Train", sizes.base, ("noisy", "noisy", "aimless"))
        + take("base_aimless", unknown, "Train", sizes.base_out_of_domain, ("aimless", "aimless"))
        + take("train", known, "Train", sizes.train, ("expert",))
        + take("test_in_domain", known, "Dev", sizes.test, ("expert",), True)
        + take("test_out_of_domain", unknown, "Dev", sizes.test, ("expert",), True)
    )


@cache
def _laboratory() -> Laboratory:
    return Laboratory()


def episodes(job: Job) -> list[Episode]:
    """A job's episodes, without noisy ones of more than STEP_LIMIT steps; an expert stops there and loses."""
    lab = _laboratory()
    gold = [] if job.kinds == ("aimless",) * len(job.kinds) else lab.gold(job.game)
    played = [play(lab, job, which, f"{job.game}/{i}", gold) for i, which in enumerate(job.kinds)]
    return [e for e in played if len(e.steps) <= STEP_LIMIT]


def direct(gold: Sequence[str], room: str) -> list[str]:
    """A solution without walks in circles: doors and ways alone that end in the room where they began."""
    rooms = [room]
    for action in gold:
        rooms.append(action.removeprefix("go to ") if action.startswith("go to ") else rooms[-1])
    kept, i = [], 0
    while i < len(gold):
        j = i
        while j < len(gold) and gold[j].startswith(("go to ", "open door to ")):
            j += 1
        i = max(
            [k for k in range(i + 1, j + 1) if rooms[k] == rooms[i] and gold[k - 1].startswith("go to ")],
            default=i,
        )
        if i < len(gold):
            kept.append(gold[i])
        i += 1
    return kept


def moves(lab: Laboratory, gold: Sequence[str], room: str) -> Iterator[str]:
    """A solution's actions in turn, without idle looks and without doors that are open."""
    seen: dict[str, str] = {room: lab.look()}
    for action in direct(gold, room):
        if action == "look around":
            now = lab.look()
            if seen.get(room_of(now)) == now:
                continue
            seen[room_of(now)] = now
        elif action.startswith("open door to ") and doors(lab.look()).get(
            action.removeprefix("open door to ")
        ):
            continue
        yield action


def aimless(lab: Laboratory, rng: random.Random, still: bool) -> str:
    """An action at random; still: one that changes nothing."""
    thing = rng.choice([name for name in lab.objects() if name not in ("agent", "air")] or ["agent"])
    if still:
        return rng.choice(
            (f"look at {thing}", f"examine {thing}", f"look in {thing}", "inventory", "look around")
        )
    ways = [
        f"{'go to' if is_open else 'open door to'} {room}"
        for room, is_open in sorted(doors(lab.look()).items())
    ]
    return rng.choice(
        (
            rng.choice(ways or ["look around"]),
            rng.choice(ways or ["look around"]),
            "look around",
            f"pick up {thing}",
            f"open {thing}",
            f"look at {thing}",
            f"activate {thing}",
            f"examine {thing}",
        )
    )


def play(lab: Laboratory, job: Job, which: str, seed: str, gold: Sequence[str]) -> Episode:
    """Play one episode: `expert`, `noisy` (an idle action after every second one) or `aimless`."""
    rng = random.Random(seed)
    start = lab.reset(job.game).text
    room = room_of(start)
    wanted = moves(lab, gold, room) if which != "aimless" else iter(())
    limit = rng.randint(6, 14) if which == "aimless" else STEP_LIMIT + (which == "noisy")
    rows: list[tuple] = []  # place, action, what came back, reference, candidates, subgoals reached so far
    upcoming, view = next(wanted, None), None
    while len(rows) < limit and not (view and view.done):
        if which == "aimless":
            action = aimless(lab, rng, still=False)
        elif upcoming is None:
            break
        else:
            action = aimless(lab, rng, still=True) if which == "noisy" and rng.random() < NOISE else upcoming
        listed = candidates(lab, action, rng) if job.candidates else ()
        reference, view = (upcoming or action), lab.step(action)
        rows.append((room, action, view.text, reference, listed, lab.subgoals()))
        if action.startswith("go to ") and view.text.startswith("You move to"):
            room = action.removeprefix("go to ")
        if action == upcoming:
            upcoming = next(wanted, None)
    steps = tuple(
        Step(trace(row, reached(rows, i), rng), row[1], row[2], row[3], row[4]) for i, row in enumerate(rows)
    )
    return Episode(
        f"{job.split}/{job.game}/{which}{seed.rsplit('/', 1)[-1]}",
        job.split,
        job.game.task_type,
        job.game.variation,
        task_of(start),
        start,
        steps,
        bool(view and view.won),
        which,
    )


def reached(rows: Sequence[tuple], step: int) -> str:
    """The subgoal that is reached next, from a step on ("" where none is)."""
    before = rows[step - 1][5] if step else ()
    for row in rows[step:]:
        if new := [subgoal for subgoal in row[5] if subgoal not in before]:
            return new[0]
    return ""


def trace(row: tuple, subgoal: str, rng: random.Random) -> str:
    """What is to be reached, where the agent is, and why this action."""
    room, action = row[:2]
    what, thing = verb(action), target(action)
    parts = [rng.choice(_SUBGOAL).format(subgoal[0].lower() + subgoal[1:])] if subgoal else []
    parts += [rng.choice(_PLACE).format(room)] if rng.random() < 0.5 else []
    parts.append(rng.choice(_REASON.get("wait" if what == "wait1" else what, _OTHER)).format(x=thing))
    return " ".join(part[0].upper() + part[1:] for part in parts + spelled_out(action, rng))


def candidates(lab: Laboratory, action: str, rng: random.Random) -> tuple[str, ...]:
    """The action among others that can be played, some with its verb, some with verbs that solutions use."""
    mine, others = [], []
    for other in filter(parse, lab.valid()):
        kind = verb(other)
        if other != action and kind == verb(action):
            mine.append(other)
        elif kind in _CANDIDATE_VERBS and kind != verb(action):
            others.append((kind, other))
    by_kind: dict[str, list[str]] = {}
    for kind, other in others:
        by_kind.setdefault(kind, []).append(other)
    drawn = [
        rng.choice(by_kind[kind]) for kind in rng.sample(sorted(by_kind), min(CANDIDATES[1], len(by_kind)))
    ]
    return tuple(sorted({action, *rng.sample(mine, min(CANDIDATES[0], len(mine))), *drawn}))
