"""Small games for live play. Nothing here imports torch: a worker process imports this module, and starts in
a second."""

import random

from interp.environments.base import View

COLOURS = ("red", "blue", "green")


class Doors:
    """A door that has to be walked to and opened."""

    def reset(self, game):
        self.wanted, self.here = random.Random(game).choice(COLOURS), ""
        return View(f"You see three doors. Your task is to: open the {self.wanted} door.")

    def step(self, action):
        if action.startswith("go to "):
            self.here = action.split()[2]
            return View(f"You are at the {self.here} door.")
        won = action == f"open {self.wanted} door" and self.here == self.wanted
        return View("It opens." if won else "Nothing happens.", done=won, score=float(won))


class Parity:
    """A game of one step, won by an action of an odd length: what sampling wins about half of the time."""

    def reset(self, game):
        return View("You see a door. Your task is to: act.")

    def step(self, action):
        return View("Done.", done=True, score=float(len(action) % 2))
