"""Play many games side by side: decoding batched over them, the games in worker processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from interp.engine.decoding import decode_modes
from interp.engine.reading import Memory
from interp.environments.base import Environment, View
from interp.models.hooked import HookedModel
from interp.prompts.format import Mode, PromptFormat
from interp.rollouts.workers import Engines
from interp.tasks.episodes import Decision


@dataclass(frozen=True)
class Result:
    """How one game ended: result, steps, score, whether an unparsed action ended it, truncated prompts."""

    game: str
    won: bool
    steps: int
    unparsed: bool
    score: float = 0.0
    truncated: int = 0


@dataclass
class Player:
    """One running game, and the conversation so far."""

    name: str
    view: View
    task: str
    messages: list[dict] = field(default_factory=list)
    steps: int = 0
    truncated: int = 0

    def see(self, view: View) -> None:
        self.view = view
        if view.system and not self.messages:
            self.messages.append(dict(role="system", content=view.system))
        self.messages.append(dict(role=view.role, content=view.text))

    def decision(self) -> Decision:
        return Decision(
            tuple(self.messages),
            "",
            admissible=self.view.admissible,
            episode=self.name,
            step=self.steps,
            task=self.task,
            split="",
        )

    def result(self, unparsed: bool = False) -> Result:
        return Result(
            self.name, self.view.won and not unparsed, self.steps, unparsed, self.view.score, self.truncated
        )


def play(
    model: HookedModel,
    fmt: PromptFormat,
    environment: Environment,
    games: Sequence,
    mode: Mode,
    pool: Engines,
    *,
    step_limit: int = 50,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
) -> list[Result]:
    """Play every game once in one mode, some side by side; a game that ends gives its place to the next.

    A game is lost when the limit is reached, or an action does not parse. The agent's own traces and actions
    stay in its history. Raises ValueError for two games of one name and a limit below 1.
    """
    _check(environment, games, step_limit)
    waiting = list(enumerate(games))[::-1]
    running: dict[int, tuple[int, Player]] = {}
    results: dict[int, Result] = {}
    memory: Memory = {}
    bar = tqdm(total=len(games), desc=f"play ({mode})", leave=False, disable=not progress)

    def end(slot: int, unparsed: bool = False) -> None:
        number, player = running.pop(slot)
        results[number] = player.result(unparsed)
        memory.pop(player.name, None)  # a model that reads every prompt anew keeps nothing
        bar.update()

    while waiting or running:
        free = [slot for slot in range(environment.side_by_side) if slot not in running]
        running |= _started(pool, environment, free, waiting)
        slots = sorted(running)
        prompts = [fmt.prompt(running[slot][1].decision()) for slot in slots]
        completions = decode_modes(
            model, prompts, [mode], parser=environment.parse, memory=memory, max_new_tokens=max_new_tokens
        )[mode]
        moves: dict[int, tuple[str, object]] = {}
        for slot, prompt, completion in zip(slots, prompts, completions):
            player = running[slot][1]
            player.truncated += prompt.dropped > 0
            if completion.action is None:
                end(slot, unparsed=True)
                continue
            moves[slot] = ("step", completion.action)
            trace = completion.trace if mode == "cot" else None
            player.messages.append(dict(role="agent", trace=trace, action=completion.action))
        for slot, view in (pool.send(moves) if moves else {}).items():
            player = running[slot][1]
            player.see(view)
            player.steps += 1
            if view.done or player.steps >= step_limit:
                end(slot)
    bar.close()
    return [results[i] for i in range(len(games))]


def _check(environment: Environment, games: Sequence, step_limit: int) -> None:
    if step_limit < 1:
        raise ValueError(f"A game is lost after 1 step or more, not {step_limit}.")
    if len({str(game) for game in games}) < len(games):
        raise ValueError(
            f"Two of the {len(games)} games of the environment {environment.name!r} have the same name: "
            "`str` of a game must tell it apart."
        )


def _started(
    pool: Engines, environment: Environment, free: Sequence[int], waiting: list[tuple[int, Any]]
) -> dict[int, tuple[int, Player]]:
    """Slot -> number and player of the games that take the free slots; they leave the end of `waiting`."""
    starting = {slot: waiting.pop() for slot in free[: len(waiting)]}
    views = pool.send({slot: ("reset", game) for slot, (_, game) in starting.items()}) if starting else {}
    started = {}
    for slot, view in views.items():
        number, game = starting[slot]
        player = Player(str(game), view, environment.task(view.text))
        player.see(view)
        started[slot] = (number, player)
    return started
