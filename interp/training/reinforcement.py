"""Reinforcement learning in an environment: GRPO (Shao et al. 2024) by TRL, with whole games as completions.

A completion is a game: what the agent wrote and, between its turns, what the environment answered, which is
never trained on. A share of the steps can have their action tokens left out of the loss as well, as in
supervised training (`interp.training.supervision`); advantages stay what the whole game earned. Checkpoints
have the form of a supervised series.

>>> start = "runs/series/shipped/checkpoint-800"
>>> reinforce(model, tokenizer, "runs/rl", find("alfworld"), Reinforcement(steps=4), start=start)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from interp.engine.decoding import Completion, decode_modes, parse_completion
from interp.engine.reading import Memory
from interp.environments.base import Environment
from interp.models.hooked import HookedModel
from interp.prompts.format import Prompt, PromptFormat
from interp.rollouts.play import Player
from interp.rollouts.workers import Engines
from interp.training.recipes import Reinforcement
from interp.training.supervision import lot
from interp.training.trainer import SaveAt, adapted, finish, memory_options

INSTALL = "pip install 'interp-agents[rl]'"
#: (prompts, memory, turn) -> the agent's turn after each prompt.
Sample = Callable[[list[Prompt], Memory, int], list[Completion]]


@dataclass
class Play:
    """One game as tokens: its first prompt, all that follows and whether it is trained on, and the reward."""

    prompt_ids: list[int]
    ids: list[int]
    trained: list[int]
    reward: float
    won: bool


def answer(prompt: Prompt) -> list[int]:
    """Ids of a prompt after the agent's last turn: what the environment answers, in the template's frame."""
    last = max(i for i, span in enumerate(prompt.spans) if span == "history")
    return list(prompt.ids[last + 1 :])


def trained(fmt: PromptFormat, ids: Sequence[int], masked: bool) -> list[int]:
    """Which ids of a turn are trained on: all, or all but the action's inside its tags."""
    lead = fmt.decoded_prefix(ids) if masked else None
    if lead is None or list(lead) != list(ids[: len(lead)]):
        return [1] * len(ids)
    closing = fmt.encode(fmt.style.close_action)
    end = len(closing) if closing and list(ids[-len(closing) :]) == closing else 1
    return [1] * len(lead) + [0] * (len(ids) - len(lead) - end) + [1] * end


class Rollouts:
    """TRL's `rollout_func`: plays games in worker processes with the trainer's current weights.

    context: tokens that the model reads at most; a game that leaves no room for another turn ends with what
    it has earned.
    """

    def __init__(
        self,
        environment: Environment,
        games: Sequence,
        fmt: PromptFormat,
        recipe: Reinforcement,
        engines: Engines,
        context: int | None = None,
    ) -> None:
        self.environment = environment
        self.fmt = fmt
        self.recipe = recipe
        self.engines = engines
        self.context = context
        self.games = {str(game): game for game in games}
        self._copy: HookedModel | None = None

    def __call__(self, prompts: list[str], trainer: Any) -> dict:
        plays = self.play(prompts, partial(self._sample, trainer), trainer.state.global_step)
        return dict(
            prompt_ids=[p.prompt_ids for p in plays],
            completion_ids=[p.ids for p in plays],
            logprobs=None,
            env_mask=[p.trained for p in plays],
            earned=[p.reward for p in plays],
        )

    def _sample(self, trainer: Any, prompts: Sequence[Prompt], memory: Memory, turn: int) -> list[Completion]:
        """The agent's turn after each prompt, drawn with the trainer's current weights."""
        recipe = self.recipe
        if recipe.vllm:
            opening = self.fmt.mode_prefix("cot")
            starts = [[*prompt.ids, *opening] for prompt in prompts]
            drawn, _ = trainer._generate_single_turn(starts, None, {}, 1)
            return [parse_completion(self.fmt, ids, "cot", self.environment.parse) for ids in drawn]
        if self._copy is None or not memory:  # a new lot of games: the weights have moved
            self._copy = None  # which frees the last one
            self._copy = HookedModel(_plain(trainer), self.fmt.tokenizer)
        return decode_modes(
            self._copy,
            prompts,
            ["cot"],
            parser=self.environment.parse,
            max_new_tokens=recipe.trace_tokens,
            memory=memory,
            temperature=recipe.temperature,
            seed=(recipe.seed * 100_003 + trainer.state.global_step) * 1_009 + turn,
        )["cot"]

    def play(self, names: Sequence[str], sample: Sample, number: int = 0) -> list[Play]:
        """Play each named game to its end, in order.

        `sample(prompts, memory, turn)` gives the agent's turns.
        """
        recipe, fmt = self.recipe, self.fmt
        running, plays = self._start(names, number)
        memory: Memory = {}
        opening = fmt.mode_prefix("cot")
        for turn in range(recipe.step_limit):
            prompts = {slot: fmt.prompt(running[slot].decision()) for slot in sorted(running)}
            for slot in prompts if turn else ():
                answered = answer(prompts[slot])
                plays[slot].ids += answered
                plays[slot].trained += [0] * len(answered)
            slots = [slot for slot in prompts if self._fits(plays[slot], len(opening))]
            running = {slot: running[slot] for slot in slots}
            if not running:
                break
            # What was sampled stays as it was sampled: its text need not be tokenised the same way.
            sampled = [
                replace(prompts[slot], ids=(*plays[slot].prompt_ids, *plays[slot].ids)) for slot in slots
            ]
            moves: dict[int, tuple[str, object]] = {}
            for slot, completion in zip(slots, sample(sampled, memory, turn)):
                player, play = running[slot], plays[slot]
                masked = lot(f"{player.name}#{turn}", recipe.seed) < recipe.action_mask
                play.ids += [*opening, *completion.ids]
                play.trained += [0] * len(opening) + trained(fmt, completion.ids, masked)
                if completion.action is None:
                    play.reward = -recipe.format_penalty
                    running.pop(slot)
                    continue
                moves[slot] = ("step", completion.action)
                player.messages.append(dict(role="agent", trace=completion.trace, action=completion.action))
            for slot, view in (self.engines.send(moves) if moves else {}).items():
                running[slot].see(view)
                plays[slot].reward, plays[slot].won = view.score, view.won
                if view.done:
                    running.pop(slot)
        return plays

    def _start(self, names: Sequence[str], number: int) -> tuple[dict[int, Player], list[Play]]:
        """The games at their first prompts, by slot."""
        views = self.engines.send({slot: ("reset", self.games[name]) for slot, name in enumerate(names)})
        running: dict[int, Player] = {}
        plays: list[Play] = []
        for slot, name in enumerate(names):
            player = Player(f"{name}/{number}.{slot}", views[slot], self.environment.task(views[slot].text))
            player.see(views[slot])
            running[slot] = player
            plays.append(Play(list(self.fmt.prompt(player.decision()).ids), [], [], 0.0, False))
        return running, plays

    def _fits(self, play: Play, opening: int) -> bool:
        """Whether the context has room for another turn, which begins with `opening` tokens."""
        tokens = len(play.prompt_ids) + len(play.ids) + opening + self.recipe.trace_tokens
        return not self.context or tokens <= self.context


def _plain(trainer: Any) -> PreTrainedModel:
    """A copy of the trainer's model as it is now, low-rank updates merged into it."""
    copied = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
    plain = copied.merge_and_unload() if hasattr(copied, "merge_and_unload") else copied
    for module in plain.modules():
        vars(module).pop("forward", None)  # the trainer's wrapper of it runs the trainer's own modules
    return plain


def earned(completions: object, earned: Sequence[float], **_: object) -> list[float | None]:
    """What each game earned: its score minus the penalty of one that an unparsed action ended."""
    return list(earned)


def reinforce(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    environment: Environment,
    recipe: Reinforcement,
    *,
    fmt: PromptFormat | None = None,
    provenance: dict | None = None,
    workers: int = 2,
    device: str = "auto",
) -> Path:
    """Train on in-domain games; keeps `checkpoint-N` for the recipe's checkpoints, resumes from the last.

    model: a causal language model at the supervised checkpoint that it goes on from. fmt: how prompts are
    written (None: the style `tags`). Raises ImportError without TRL, and ValueError for an environment that
    cannot be played and for a format whose games are no one sequence.
    """
    try:
        from datasets import Dataset
        from trl.trainer.grpo_config import GRPOConfig
        from trl.trainer.grpo_trainer import GRPOTrainer
    except ImportError as error:
        raise ImportError(f"TRL is not installed ({INSTALL}).") from error
    if reason := environment.unplayable():
        raise ValueError(f"There is nothing to learn from: {reason}.")
    assert environment.games is not None and environment.live is not None  # since it is playable
    folder, fmt = Path(folder), fmt or PromptFormat(tokenizer)
    if not fmt.whole:
        raise ValueError(
            "A game is trained on as one sequence, but this style's template does not keep the agent's "
            "turns in the history as they were written: keep them (--history_traces kept), or give another "
            "style."
        )
    games = environment.games("in_domain", recipe.games_held, recipe.seed + 1)
    context = model.config.max_position_embeddings
    arguments = _arguments(recipe, folder, context, fmt.style.close_action.strip(), device)
    with closing(Engines(environment.live, workers)) as engines:
        rollouts = Rollouts(environment, games, fmt, recipe, engines, context)
        trainer = GRPOTrainer(
            model=adapted(model, recipe.rank, recipe.seed) if recipe.rank else model,
            reward_funcs=earned,
            args=GRPOConfig(**arguments),
            train_dataset=Dataset.from_dict(dict(prompt=[str(g) for g in games])),
            processing_class=copy.deepcopy(tokenizer),
            rollout_func=rollouts,
            callbacks=[SaveAt(recipe.checkpoints)],
        )
        made = dict(provenance or {}, recipe=asdict(recipe), environment=environment.name)
        finish(trainer, folder, "reward", made)
    return folder


def _arguments(recipe: Reinforcement, folder: Path, context: int, stop: str, device: str) -> dict[str, Any]:
    """TRL's settings of a recipe; stop: text that ends an agent's turn under vLLM."""
    return dict(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.generations,
        gradient_accumulation_steps=recipe.games,
        num_generations=recipe.generations,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant",
        beta=recipe.beta,
        temperature=recipe.temperature,
        max_completion_length=context,
        generation_kwargs=dict(stop=[stop]) if recipe.vllm else None,
        use_vllm=recipe.vllm,
        vllm_mode="colocate",
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=device == "cpu",
        **memory_options(recipe.half, recipe.recompute),
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        dataloader_pin_memory=False,
        disable_dropout=True,
    )
