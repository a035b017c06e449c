"""Household games: generated from ALFWorld's floor plans and placement tables, or ALFWorld's own files.

A generated game is ALFWorld-like, not ALFWorld: receptacles come from the wheel's 120 AI2-THOR layouts, what
may lie where from its placement tables, but every object's place is sampled. Scores on them are not ALFWorld
scores.

>>> game = make_game(scene=12, task_type="pick_clean_then_place_in_recep", seed=3, split="train")
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from interp.system.json_files import read_json

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
#: Never trained on: their goals are out of domain.
OUT_OF_DOMAIN = ("pick_cool_then_place_in_recep", "pick_two_obj_and_place")
IN_DOMAIN = tuple(t for t in TASK_TYPES if t not in OUT_OF_DOMAIN)
ROOMS = (range(1, 31), range(201, 231), range(301, 331), range(401, 431))
#: The last five floor plans of each room are never seen in training.
TEST_SCENES = tuple(s for room in ROOMS for s in room[-5:])
TRAIN_SCENES = tuple(s for room in ROOMS for s in room[:-5])
TREATMENT = {
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}
_LAMPS = ("DeskLamp", "FloorLamp")
_LAMP_SUPPORTS = ("SideTable", "Desk", "Dresser", "Shelf", "CoffeeTable", "Sofa", "Bed")
#: How ALFWorld writes names, and `#` for what is a dash in PDDL.
_MANGLED = str.maketrans(
    {"-": "_minus_", "#": "-", "|": "_bar_", "+": "_plus_", ".": "_dot_", ",": "_comma_"}
)
_COPIES = (0, 0, 1, 1, 2)  # how many of a class a room holds


@dataclass(frozen=True)
class Game:
    """One game: its PDDL problem and what the task asks for (`params` as in ALFWorld's `pddl_params`)."""

    id: str
    split: str
    task_type: str
    params: dict
    scene: int
    problem: str

    def __str__(self) -> str:
        return self.id


class Tables(NamedTuple):
    """ALFWorld's tables, in a fixed order (its own are sets).

    fits: receptacle class -> object classes that may lie in it. static: receptacles that do not move.
    affordances: "Cleanable" and so on -> object classes.
    """

    fits: dict[str, tuple[str, ...]]
    static: frozenset[str]
    affordances: dict[str, frozenset[str]]
    openable: frozenset[str]
    objects: frozenset[str]


@functools.cache
def tables() -> Tables:
    """ALFWorld's tables; raises ImportError where it is not installed."""
    from alfworld.gen import constants as K

    fits = {r: tuple(sorted(objects)) for r, objects in sorted(K.VAL_RECEPTACLE_OBJECTS.items())}
    static = frozenset(r for r in K.RECEPTACLES if r not in K.MOVABLE_RECEPTACLES_SET)
    affordances = {k: frozenset(v) for k, v in K.VAL_ACTION_OBJECTS.items()}
    return Tables(fits, static, affordances, frozenset(K.OPENABLE_CLASS_LIST), frozenset(K.OBJECTS_SET))


@functools.cache
def _layout(scene: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Receptacles that open (ids), and classes that are present, in one of AI2-THOR's floor plans."""
    import alfworld.gen

    folder = Path(alfworld.gen.__file__).parent / "layouts"
    openable = json.loads((folder / f"FloorPlan{scene}-openable.json").read_text())
    present = json.loads((folder / f"FloorPlan{scene}-objects.json").read_text())
    return tuple(openable), tuple(sorted(set(present)))


def _class_of(receptacle: str) -> str:
    parts = receptacle.split("|")
    return parts[-1] if receptacle.endswith("Basin") else parts[0]


def _receptacles(scene: int, rng: random.Random) -> dict[str, str]:
    """Receptacle id -> class: the layout's own, plus one of each class that it lists without a position."""
    openable, present = _layout(scene)
    static = tables().static
    classes = {r: _class_of(r) for r in openable if _class_of(r) in static}
    for name in present:
        if name in static and name not in classes.values() and name not in ("Sink", "Bathtub"):
            stem, tail = (name[:-5], f"|{name}") if name.endswith("Basin") else (name, "")
            for i in range(4 if name == "StoveBurner" else 1):
                classes[f"{stem}|+00.{i:02d}|+00.90|+00.{rng.randrange(100):02d}{tail}"] = name
    return classes


def _goal(
    task_type: str,
    receptacles: dict[str, str],
    portable: list[str],
    lamps: list[str],
    can: set[tuple[str, str]],
    rng: random.Random,
) -> tuple[str, str, str] | None:
    """Sample (object class, target receptacle class, lamp class); None where the scene has no such task."""
    classes = set(receptacles.values())
    if task_type == "look_at_obj_in_light":
        things = sorted(o for o in portable if any((r, o) in can for r in classes))
        return (rng.choice(things), "", rng.choice(lamps)) if lamps and things else None
    ability, appliance = TREATMENT.get(task_type, (None, None))
    options = sorted(
        (o, r)
        for r, o in can
        if o in portable
        and r != appliance
        and (ability is None or (o in tables().affordances[ability] and appliance in classes))
    )
    if not options:
        return None
    target, parent = rng.choice(options)
    return target, parent, ""


def make_game(scene: int, task_type: str, seed: int, split: str) -> Game | None:
    """Generate one household game from scene, task type and seed; None where the scene has no such task."""
    rng = random.Random(f"{split}/{scene}/{task_type}/{seed}")
    fits, static, _, _, objects = tables()
    _, present = _layout(scene)
    receptacles = _receptacles(scene, rng)
    placeable = {o for things in fits.values() for o in things}
    portable = [o for o in present if o in objects and o not in static and o in placeable and o not in _LAMPS]
    lamps = [o for o in _LAMPS if o in present]
    can = {(r, o) for r in set(receptacles.values()) for o in fits.get(r, ())}
    goal = _goal(task_type, receptacles, portable, lamps, can, rng)
    if goal is None:
        return None
    target, parent, lamp = goal
    wanted = 2 if task_type == "pick_two_obj_and_place" else 1
    placed: dict[str, tuple[str, str]] = {}  # object id -> (class, receptacle)
    for name in portable + lamps:
        copies = wanted + rng.randrange(2) if name == target else 1 if name in lamps else rng.choice(_COPIES)
        places = [
            r for r, c in receptacles.items() if (c, name) in can and not (name == target and c == parent)
        ]
        if not places and name in lamps:
            places = [r for r, c in receptacles.items() if c in _LAMP_SUPPORTS]
        for _ in range(copies if places else 0):
            x, y, z = rng.uniform(-4, 4), rng.uniform(0, 2), rng.uniform(-4, 4)
            placed[f"{name}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"] = (name, rng.choice(places))
    have = [c for c, _ in placed.values()]
    if have.count(target) < wanted or (lamp and lamp not in have):
        return None
    problem = _problem(task_type, target, parent, lamp, receptacles, placed, can)
    identifier = f"{split}/{task_type}-{target}-{parent or lamp}-{scene}/{seed}"
    params = dict(
        object_target=target, parent_target=parent, toggle_target=lamp, mrecep_target="", object_sliced=False
    )
    return Game(identifier, split, task_type, params, scene, problem)


def _problem(
    task_type: str,
    target: str,
    parent: str,
    lamp: str,
    receptacles: dict[str, str],
    placed: dict[str, tuple[str, str]],
    can: set[tuple[str, str]],
) -> str:
    """The PDDL problem in the dialect of ALFWorld's own game files."""
    from alfworld.gen import goal_library

    affordances, openable = tables().affordances, tables().openable
    place = {r: f"loc|{i}|0|0|0" for i, r in enumerate(receptacles)}
    classes = sorted({c for c, _ in placed.values()})
    lines = [
        "(define (problem household)",
        "(:domain alfred)",
        "(:objects",
        "agent1 # agent",
        "loc|99|0|0|0 # location",
    ]
    # The domain names these types as constants, whether or not the scene has such a thing.
    lines += [f"{c}Type # otype" for c in sorted({*classes, "Apple", "Knife", "ButterKnife"})]
    lines += [
        f"{c}Type # rtype"
        for c in sorted({*receptacles.values(), "SinkBasin", "Microwave", "Fridge", "Sink"})
    ]
    lines += [f"{o} # object" for o in placed] + [f"{r} # receptacle" for r in receptacles]
    lines += [f"{where} # location" for where in place.values()] + [
        ")",
        "(:init",
        "(atLocation agent1 loc|99|0|0|0)",
    ]
    for r, c in receptacles.items():
        lines += [f"(receptacleType {r} {c}Type)", f"(receptacleAtLocation {r} {place[r]})"]
        lines += [f"(openable {r})"] * (c in openable)
    lines += [f"(canContain {r}Type {o}Type)" for r, o in sorted(can) if o in classes]
    for o, (c, r) in placed.items():
        lines += [
            f"(objectType {o} {c}Type)",
            f"(inReceptacle {o} {r})",
            f"(objectAtLocation {o} {place[r]})",
        ]
        lines += [f"(toggleable {o})" if c in _LAMPS else f"(pickupable {o})"]
        lines += [
            f"({a.lower()} {o})"
            for a in ("Cleanable", "Heatable", "Coolable", "Sliceable")
            if c in affordances[a]
        ]
    goal = goal_library.gdict[task_type]["pddl"].format(obj=target, recep=parent, toggle=lamp)
    text = "\n".join(lines) + "\n)" + goal
    return text.translate(_MANGLED)


def games(split: str, task_types: Sequence[str], scenes: Sequence[int], seed: int) -> Iterator[Game]:
    """Endless stream of generated games, task type and scene drawn uniformly."""
    rng = random.Random(f"{split}/{seed}")
    number = 0
    while True:
        task_type, scene = rng.choice(task_types), rng.choice(scenes)
        number += 1
        game = make_game(scene, task_type, seed * 1_000_000 + number, split)
        if game is not None:
            yield game


def official_games(split: str, root: str | None = None) -> list[Game]:
    """Official games below `$ALFWORLD_DATA/json_2.1.1/<split>`, solvable ones of six types.

    Only the problem and the task are read from a game file; rules and grammar always come from the installed
    wheel. Raises FileNotFoundError when the folder holds no games.
    """
    root = root or os.environ.get("ALFWORLD_DATA")
    folder = Path(root or ".") / "json_2.1.1" / split
    games = []
    for path in sorted(folder.glob("*/*/game.tw-pddl")) if root else ():
        data, trial = read_json(path), read_json(path.parent / "traj_data.json")
        try:
            if (
                not data.get("solvable", True)
                or trial["task_type"] not in TASK_TYPES
                or trial["pddl_params"]["object_sliced"]
            ):
                continue
            scene = int(re.findall(r"\d+", str(trial["scene"]["floor_plan"]))[0])
            problem = data["pddl_problem"]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} or the traj_data.json beside it is no official game ({type(error).__name__}: "
                f"{error}): run alfworld-download again."
            ) from error
        name = f"{split}/{path.parent.parent.name}/{path.parent.name}"
        games.append(Game(name, split, trial["task_type"], trial["pddl_params"], scene, problem))
    if not games:
        raise FileNotFoundError(
            f"No official games in {folder}: set ALFWORLD_DATA to the folder that alfworld-download wrote."
        )
    return games
