"""Record CookingWorld: the engine's solutions of test games, each action with its reason.

There is nothing to train on, and no corpus is shipped.
"""

from __future__ import annotations

import random
import re
from itertools import islice

from interp.environments.phrases import in_hand, spelled_out
from interp.environments.recording import Sizes
from interp.environments.textworldexpress.environment import Game, Live, games, task_of
from interp.tasks.episodes import Episode, Step

SIZES = Sizes(base=0, base_out_of_domain=0, train=0, test=100)
_GOAL = (
    "Goal: cook by the recipe, then eat.",
    "I am to cook a meal and eat it.",
    "The task: a meal by the cookbook.",
)
_NEXT = {
    "take": ("The recipe asks for {x}.", "Here is {x}, which the meal needs.", "Among the ingredients: {x}."),
    "cookbook": (
        "The recipe is in the cookbook.",
        "First the cookbook.",
        "The cookbook knows what is needed.",
    ),
    "knife": (
        "What is to be cut needs the knife.",
        "Here is the knife, for cutting.",
        "The knife will be needed.",
    ),
    "read": ("See what the recipe asks for.", "Now the recipe.", "What goes into the meal?"),
    "open": ("See what is in the {x}.", "The {x} may hide something.", "A look inside the {x}."),
    "close": ("Done with the {x}.", "The {x} should be shut again.", "No need for an open {x}."),
    "move": ("On to the {room}.", "Next the {room}.", "The {room} comes next."),
    "chop": (
        "By the recipe the {x} must be chopped.",
        "The {x} goes in chopped.",
        "Chopped is how the {x} is wanted.",
    ),
    "slice": (
        "By the recipe the {x} must be sliced.",
        "The {x} goes in sliced.",
        "Sliced is how the {x} is wanted.",
    ),
    "dice": (
        "By the recipe the {x} must be diced.",
        "The {x} goes in diced.",
        "Diced is how the {x} is wanted.",
    ),
    "cook": (
        "By the recipe the {x} needs the {r}.",
        "The {r} is right for the {x}.",
        "The {x} has to be cooked, and here is the {r}.",
    ),
    "prepare": (
        "All that the recipe asks for is done.",
        "Everything is ready to be put together.",
        "Nothing is missing now.",
    ),
    "eat": ("The meal is ready.", "Now the meal can be eaten.", "Enjoy it."),
}


def play(live: Live, game: Game, split: str) -> Episode:
    """The engine's solution of a game as an expert's episode; the phrasings are drawn by the game's name."""
    path, rng = live.gold(game), random.Random(str(game))
    view = live.reset(game)
    start = room = view.text
    held: list[str] = []
    steps: list[Step] = []
    for action in path:
        verb, _, rest = action.partition(" ")
        thing, _, place = rest.partition(" in ")
        ahead = re.search(rf"(?i)to the {thing} you see (?:the |an? (?:open |closed )?)?([\w' -]+)", room)
        which = thing if verb == "take" and thing in _NEXT else verb
        parts = [
            rng.choice(_GOAL),
            in_hand(", ".join(held), rng),
            rng.choice(_NEXT[which]).format(x=thing, r=place, room=ahead[1] if ahead else "next room"),
        ]
        after = live.step(action)
        steps.append(
            Step(" ".join(parts + spelled_out(action, rng)), action, after.text, action, view.admissible)
        )
        view, room = after, after.text if after.text.startswith("You are in") else room
        held += [thing] if verb == "take" else []
    return Episode(
        f"{split}/{game}", split, game.name, game.seed, task_of(start), start, tuple(steps), view.won
    )


def plan(sizes: Sizes, seed: int) -> list[tuple[Game, str]]:
    """The test games of both splits. Raises ValueError where games to train on are asked for."""
    if sizes.base or sizes.base_out_of_domain or sizes.train:
        raise ValueError(
            "CookingWorld is recorded for tests alone: leave the sizes base, base_out_of_domain and train at "
            "0."
        )
    return [
        (game, f"test_{split}")
        for split in ("in_domain", "out_of_domain")
        for game in islice(games("cookingworld", split, "test", seed), sizes.test)
    ]


def episodes(job: tuple[Game, str]) -> list[Episode]:
    """A job's one episode."""
    return [play(Live(), *job)]
