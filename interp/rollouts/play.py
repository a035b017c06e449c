"""Play many games side by side: decoding batched over them, the games in worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from interp.engine.decoding import decode
from interp.engine.generation import Memory
from interp.environments.base import Environment, View
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
            tuple(self.messages), "", self.view.admissible, self.name, self.steps, self.task, "", ""
        )

    def result(self, unparsed: bool = False) -> Result:
        return Result(
            self.name, self.view.won and not unparsed, self.steps, unparsed, self.view.score, self.truncated
        )


def play(
    model,
    fmt: PromptFormat,
    environment: Environment,
    games: Sequence,
    mode: Mode,
    pool: Engines,
    *,
    step_limit: int = 50,
    max_new_tokens=None,
    progress: bool = False,
) -> list[Result]:
    """Play every game once in one mode, some side by side; a game that ends gives its place to the next.

    A game is lost when the limit is reached, or an action does not parse. The agent's own traces and actions
    stay in its history. Raises ValueError for two games of one name and a limit below 1.
    """
    if step_limit < 1:
        raise ValueError(f"A game is lost after 1 step or more, not {step_limit}.")
    if len({str(game) for game in games}) < len(games):
        raise ValueError(
            f"Two of the {len(games)} games of the environment {environment.name!r} have the same name: "
            "`str` of a game must tell it apart."
        )
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
        starting = {}
        for slot in range(environment.side_by_side):
            if slot not in running and waiting:
                starting[slot] = waiting.pop()
        for slot, view in (
            pool.send({s: ("reset", game) for s, (_, game) in starting.items()}) if starting else {}
        ).items():
            number, game = starting[slot]
            running[slot] = (number, Player(str(game), view, environment.task(view.text)))
            running[slot][1].see(view)
        slots = sorted(running)
        prompts = [fmt.prompt(running[s][1].decision()) for s in slots]
        for slot, prompt in zip(slots, prompts):
            running[slot][1].truncated += prompt.dropped > 0
        said = decode(
            model, prompts, mode, parser=environment.parse, memory=memory, max_new_tokens=max_new_tokens
        )
        moves = {}
        for slot, words in zip(slots, said):
            if words.action is None:
                end(slot, unparsed=True)
            else:
                moves[slot] = ("step", words.action)
                running[slot][1].messages.append(
                    dict(role="agent", trace=words.trace if mode == "cot" else None, action=words.action)
                )
        for slot, view in (pool.send(moves) if moves else {}).items():
            player = running[slot][1]
            player.see(view)
            player.steps += 1
            if view.done or player.steps >= step_limit:
                end(slot)
    bar.close()
    return [results[i] for i in range(len(games))]
