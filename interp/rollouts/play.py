"""Play many games side by side: decoding batched over them, the games in worker processes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from interp.engine.decoding import Completion, choose_each, decode_each
from interp.engine.reading import Memory
from interp.engine.vllm_backend import Engine
from interp.environments.base import Environment, View
from interp.models.hooked import HookedModel
from interp.prompts.format import Mode, Prompt, PromptFormat
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
    tokens: int = 0
    """Tokens that the agent wrote."""
    at_once: int = 0
    """Steps that a routed agent played without a trace."""


@dataclass(frozen=True)
class Routing:
    """Which steps are played at once, with the likeliest of the listed actions; the others are thought about.

    A step that lists fewer than two actions is thought about.
    """

    threshold: float = np.inf
    """Least margin at which a step is played at once: the log-probability of the likeliest action, the tag
    right at the boundary, minus that of the next, in nats."""
    share: float | None = None
    """A share of the steps, drawn at random, instead (the control of a threshold)."""
    seed: int = 0
    """Of the draw."""

    def drawn(self, decision: Decision) -> bool:
        """Whether a step is played at once by chance, the same each time."""
        draw = np.random.default_rng([self.seed, zlib.crc32(decision.episode.encode()), decision.step])
        return self.share is not None and float(draw.random()) < self.share


class Choice(NamedTuple):
    """The likeliest of the listed actions right at the boundary, and by how much, in nats."""

    action: str
    margin: float


@dataclass
class Player:
    """One running game, and the conversation so far."""

    name: str
    view: View
    task: str
    mode: Mode = "cot"
    messages: list[dict] = field(default_factory=list)
    steps: int = 0
    truncated: int = 0
    tokens: int = 0
    at_once: int = 0

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
            self.name,
            self.view.won and not unparsed,
            self.steps,
            unparsed,
            self.view.score,
            self.truncated,
            self.tokens,
            self.at_once,
        )


def play(
    model: HookedModel,
    fmt: PromptFormat,
    environment: Environment,
    games: Sequence,
    mode: Mode | Sequence[Mode],
    pool: Engines,
    *,
    step_limit: int = 50,
    max_new_tokens: int | Mapping[str, int] | None = None,
    progress: bool = False,
    routing: Routing | None = None,
    engine: Engine | None = None,
) -> list[Result]:
    """Play every game once, some side by side; a game that ends gives its place to the next.

    A game is lost when the limit is reached, or an action does not parse. The agent's own traces and actions
    stay in its history. Raises ValueError for two games of one name in one mode, modes of another number than
    the games, and a limit below 1.

    Args:
        mode: of all games, or of each.
        routing: which steps are played at once, whatever the mode.
        engine: vLLM over the same checkpoint, which decodes for all games side by side.
    """
    modes = _modes(environment, games, mode, step_limit)
    waiting = list(enumerate(zip(games, modes)))[::-1]
    running: dict[int, tuple[int, Player]] = {}
    results: dict[int, Result] = {}
    memory: Memory = {}
    bar = tqdm(
        total=len(games), desc=f"play ({', '.join(sorted(set(modes)))})", leave=False, disable=not progress
    )

    def decode(prompts: Sequence[Prompt], modes: Sequence[Mode]) -> Sequence[Completion]:
        options: dict[str, Any] = dict(parser=environment.parse, max_new_tokens=max_new_tokens)
        return decode_each(model, prompts, modes, memory=memory, engine=engine, **options)

    def end(slot: int, unparsed: bool = False) -> None:
        number, player = running.pop(slot)
        results[number] = player.result(unparsed)
        memory.pop((player.name, player.mode), None)  # a model that reads every prompt anew keeps nothing
        bar.update()

    while waiting or running:
        free = [slot for slot in range(environment.side_by_side) if slot not in running]
        running |= _started(pool, environment, free, waiting)
        slots = sorted(running)
        players = [running[slot][1] for slot in slots]
        prompts = [fmt.prompt(player.decision()) for player in players]
        moves: dict[int, tuple[str, object]] = {}
        at_once = _at_once(model, prompts, routing) if routing else {}
        others = [i for i in range(len(prompts)) if i not in at_once]
        thought = decode([prompts[i] for i in others], [players[i].mode for i in others]) if others else ()
        completions = at_once | dict(zip(others, thought))
        for i, (slot, player, prompt) in enumerate(zip(slots, players, prompts)):
            completion = completions[i]
            player.truncated += prompt.dropped > 0
            player.tokens += len(completion.ids)
            player.at_once += i in at_once
            if completion.action is None:
                end(slot, unparsed=True)
                continue
            moves[slot] = ("step", completion.action)
            trace = completion.trace if player.mode == "cot" and i not in at_once else None
            player.messages.append(dict(role="agent", trace=trace, action=completion.action))
        for slot, view in (pool.send(moves) if moves else {}).items():
            player = running[slot][1]
            player.see(view)
            player.steps += 1
            if view.done or player.steps >= step_limit:
                end(slot)
    bar.close()
    return [results[i] for i in range(len(games))]


def choices(model: HookedModel, prompts: Sequence[Prompt]) -> list[Choice]:
    """The likeliest listed action of each prompt, the tag right at the boundary; two or more are listed."""
    scores = choose_each(model, prompts, [prompt.decision.admissible for prompt in prompts])
    best = [logp[0, :, 0].topk(2) for logp in scores]
    return [
        Choice(prompt.decision.admissible[int(top.indices[0])], float(top.values[0] - top.values[1]))
        for prompt, top in zip(prompts, best)
    ]


def _at_once(model: HookedModel, prompts: Sequence[Prompt], routing: Routing) -> dict[int, Completion]:
    """Index -> the action of each prompt that is played at once, as if it had been written."""
    listed = [i for i, prompt in enumerate(prompts) if len(prompt.decision.admissible) > 1]
    if routing.share is not None:
        listed = [i for i in listed if routing.drawn(prompts[i].decision)]
    chosen = choices(model, [prompts[i] for i in listed]) if listed else []
    return {
        i: Completion(tuple(prompts[i].format.action_ids(choice.action)), None, choice.action)
        for i, choice in zip(listed, chosen)
        if routing.share is not None or choice.margin >= routing.threshold
    }


def _modes(
    environment: Environment, games: Sequence, mode: Mode | Sequence[Mode], step_limit: int
) -> list[Mode]:
    """The mode of each game; raises ValueError for what cannot be played."""
    modes: list[Mode] = [mode] * len(games) if isinstance(mode, str) else list(mode)
    if step_limit < 1:
        raise ValueError(f"A game is lost after 1 step or more, not {step_limit}.")
    if len(modes) != len(games):
        raise ValueError(f"There are {len(games)} games and {len(modes)} modes: give one, or one for each.")
    if len({(str(game), mode) for game, mode in zip(games, modes)}) < len(games):
        raise ValueError(
            f"Two of the {len(games)} games of the environment {environment.name!r} have the same name: "
            "`str` of a game must tell it apart."
        )
    return modes


def _started(
    pool: Engines, environment: Environment, free: Sequence[int], waiting: list[tuple[int, tuple[Any, Mode]]]
) -> dict[int, tuple[int, Player]]:
    """Slot -> number and player of the games that take the free slots; they leave the end of `waiting`."""
    starting = {slot: waiting.pop() for slot in free[: len(waiting)]}
    resets = {slot: ("reset", game) for slot, (_, (game, _)) in starting.items()}
    started = {}
    for slot, view in (pool.send(resets) if resets else {}).items():
        number, (game, mode) = starting[slot]
        player = Player(str(game), view, environment.task(view.text), mode)
        player.see(view)
        started[slot] = (number, player)
    return started
