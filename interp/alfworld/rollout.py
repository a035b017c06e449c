"""Play many games side by side: decoding batched over them, the engine in worker processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm

from interp.alfworld.commands import parse
from interp.alfworld.engine import Household, View
from interp.alfworld.scenes import Game
from interp.decoding import decode
from interp.generation import Memory
from interp.prompts import Mode, PromptFormat
from interp.tasks import Decision


@dataclass(frozen=True)
class Result:
    """How one game ended: won, after how many steps, and whether an unparsed action ended it."""

    game: str
    task_type: str
    won: bool
    steps: int
    unparsed: bool


@dataclass
class _Player:
    """One running game, and the conversation so far."""

    game: Game
    slot: int
    view: View
    messages: list[dict] = field(default_factory=list)
    steps: int = 0

    def decision(self) -> Decision:
        task = self.messages[0]["content"]
        return Decision(tuple(self.messages), "", self.view.admissible, self.game.id, self.steps,
                        task[task.index("Your task is to:"):], self.game.task_type, self.game.split)


def _serve(pipe) -> None:
    """A worker: plays the games it is sent until its pipe closes."""
    playing: dict[int, Household] = {}
    try:
        while True:
            orders = pipe.recv()
            views = {}
            for slot, order in orders.items():
                if isinstance(order, Game):
                    if slot in playing:
                        playing.pop(slot).close()
                    playing[slot] = Household(order)
                    views[slot] = playing[slot].reset()
                else:
                    views[slot] = playing[slot].step(order)
            pipe.send(views)
    except (EOFError, KeyboardInterrupt, BrokenPipeError):
        pass
    except Exception as error:  # tell the parent why, rather than die silently
        pipe.send(error)


class Engines:
    """Engine workers; `send` gives each slot a game to start or a command to play, and returns what each slot sees."""

    def __init__(self, workers: int = 2):
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def send(self, orders: dict[int, "Game | str"]) -> dict[int, View]:
        """Play one order for each slot; raises what a worker raised."""
        shares = [{s: o for s, o in orders.items() if s % len(self._pipes) == w} for w in range(len(self._pipes))]
        for pipe, share in zip(self._pipes, shares):
            if share:
                pipe.send(share)
        views: dict[int, View] = {}
        for pipe, share in zip(self._pipes, shares):
            if share:
                answer = pipe.recv()
                if isinstance(answer, Exception):
                    raise answer
                views.update(answer)
        return views

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


@contextmanager
def engines(workers: int = 2) -> Iterator[Engines]:
    """Engine workers that end with the block, however it ends."""
    pool = Engines(workers)
    try:
        yield pool
    finally:
        pool.close()


def play(model, fmt: PromptFormat, games: Sequence[Game], mode: Mode, pool: Engines, *, step_limit: int = 50,
         side_by_side: int = 32, max_new_tokens=None, progress: bool = False) -> list[Result]:
    """Play every game once in one mode, `side_by_side` at a time; a game that ends gives its place to the next.

    A game is lost when the limit is reached, or an action does not parse. The agent's own traces and actions stay in
    its history.
    """
    waiting = list(enumerate(games))[::-1]
    running: dict[int, tuple[int, _Player]] = {}
    results: dict[int, Result] = {}
    memory: Memory = {}
    bar = tqdm(total=len(games), desc=f"play ({mode})", leave=False, disable=not progress)
    while waiting or running:
        orders = {}
        for slot in range(side_by_side):
            if slot not in running and waiting:
                number, game = waiting.pop()
                running[slot] = (number, _Player(game, slot, None))
                orders[slot] = game
        for slot, view in (pool.send(orders) if orders else {}).items():
            player = running[slot][1]
            player.view = view
            player.messages.append(dict(role="user", content=view.text))
        slots = sorted(running)
        said = decode(model, [fmt.prompt(running[s][1].decision()) for s in slots], mode, parser=parse, memory=memory, max_new_tokens=max_new_tokens)
        moves = {}
        for slot, words in zip(slots, said):
            number, player = running[slot]
            if words.action is None:
                results[number] = Result(player.game.id, player.game.task_type, False, player.steps, True)
                del running[slot], memory[player.game.id]
                bar.update()
            else:
                moves[slot] = words.action
                player.messages.append(dict(role="agent", trace=words.trace if mode == "cot" else None, action=words.action))
        for slot, view in (pool.send(moves) if moves else {}).items():
            number, player = running[slot]
            player.view, player.steps = view, player.steps + 1
            player.messages.append(dict(role="user", content=view.text))
            if view.won or player.steps >= step_limit:
                results[number] = Result(player.game.id, player.game.task_type, view.won, player.steps, False)
                del running[slot], memory[player.game.id]
                bar.update()
    bar.close()
    return [results[i] for i in range(len(games))]
