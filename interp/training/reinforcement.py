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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from interp.engine.decoding import Completion, decode, parse_completion
from interp.environments.base import Environment
from interp.models.hooked import HookedModel
from interp.prompts.format import Prompt, PromptFormat
from interp.rollouts.play import Player
from interp.rollouts.workers import Engines
from interp.training.recipes import Reinforcement
from interp.training.supervision import lot
from interp.training.trainer import SaveAt, finish

INSTALL = "pip install 'interp-agents[rl]'"


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
    tail = fmt.encode(fmt.style.close_action)
    behind = len(tail) if tail and list(ids[-len(tail) :]) == tail else 1
    return [1] * len(lead) + [0] * (len(ids) - len(lead) - behind) + [1] * behind


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
    ):
        self.environment, self.fmt, self.recipe, self.engines, self.context = (
            environment,
            fmt,
            recipe,
            engines,
            context,
        )
        self.games = {str(game): game for game in games}
        self._copy: HookedModel | None = None

    def __call__(self, prompts: list[str], trainer) -> dict:
        number = trainer.state.global_step
        plays = self.play(
            prompts, lambda asked, memory, turn: self._sample(trainer, asked, memory, turn), number
        )
        return dict(
            prompt_ids=[p.prompt_ids for p in plays],
            completion_ids=[p.ids for p in plays],
            logprobs=None,
            env_mask=[p.trained for p in plays],
            earned=[p.reward for p in plays],
        )

    def _sample(self, trainer, asked: list[Prompt], memory: dict, turn: int) -> list[Completion]:
        recipe = self.recipe
        if recipe.vllm:
            opening = self.fmt.mode_prefix("cot")
            found, _ = trainer._generate_single_turn([[*p.ids, *opening] for p in asked], None, {}, 1)
            return [parse_completion(self.fmt, ids, "cot", self.environment.parse) for ids in found]
        if self._copy is None:
            copied = copy.deepcopy(trainer.accelerator.unwrap_model(trainer.model))
            vars(copied).pop("forward", None)  # the trainer's wrapper of it runs the trainer's own modules
            self._copy = HookedModel(copied, self.fmt.tokenizer)
        if not memory:  # a new lot of games: the weights have moved
            self._copy.hf.load_state_dict(trainer.accelerator.unwrap_model(trainer.model).state_dict())
        return decode(
            self._copy,
            asked,
            "cot",
            parser=self.environment.parse,
            max_new_tokens=recipe.trace_tokens,
            memory=memory,
            temperature=recipe.temperature,
            seed=(recipe.seed * 100_003 + trainer.state.global_step) * 1_009 + turn,
        )

    def play(self, names: Sequence[str], sample, number: int = 0) -> list[Play]:
        """Play each named game to its end, in order.

        `sample(prompts, memory, turn)` gives the agent's turns.
        """
        recipe, fmt = self.recipe, self.fmt
        views = self.engines.send({slot: ("reset", self.games[name]) for slot, name in enumerate(names)})
        running: dict[int, Player] = {}
        plays: list[Play] = []
        for slot, name in enumerate(names):
            player = Player(f"{name}/{number}.{slot}", views[slot], self.environment.task(views[slot].text))
            player.see(views[slot])
            running[slot] = player
            plays.append(Play(list(fmt.prompt(player.decision()).ids), [], [], 0.0, False))
        memory: dict = {}
        opening = fmt.mode_prefix("cot")
        for turn in range(recipe.step_limit):
            prompts = {slot: fmt.prompt(running[slot].decision()) for slot in sorted(running)}
            for slot in prompts if turn else ():
                behind = answer(prompts[slot])
                plays[slot].ids += behind
                plays[slot].trained += [0] * len(behind)
            slots = [
                s
                for s in prompts
                if not self.context
                or len(plays[s].prompt_ids) + len(plays[s].ids) + len(opening) + recipe.trace_tokens
                <= self.context
            ]
            running = {slot: running[slot] for slot in slots}
            if not running:
                break
            # What was sampled stays as it was sampled: its text need not be tokenised the same way.
            asked = [
                replace(prompts[slot], ids=(*plays[slot].prompt_ids, *plays[slot].ids)) for slot in slots
            ]
            moves = {}
            for slot, words in zip(slots, sample(asked, memory, turn)):
                player, play = running[slot], plays[slot]
                masked = lot(f"{player.name}#{turn}", recipe.seed) < recipe.action_mask
                play.ids += [*opening, *words.ids]
                play.trained += [0] * len(opening) + trained(fmt, words.ids, masked)
                if words.action is None:
                    play.reward = -recipe.format_penalty
                    running.pop(slot)
                else:
                    moves[slot] = ("step", words.action)
                    player.messages.append(dict(role="agent", trace=words.trace, action=words.action))
            for slot, view in (self.engines.send(moves) if moves else {}).items():
                running[slot].see(view)
                plays[slot].reward, plays[slot].won = view.score, view.won
                if view.done:
                    running.pop(slot)
        return plays


def earned(completions, earned: Sequence[float], **_) -> list[float]:
    """What each game earned: its score minus the penalty of one that an unparsed action ended."""
    return list(earned)


def reinforce(
    model,
    tokenizer,
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

    model: a causal language model with all its weights trainable, at the supervised checkpoint that it goes
    on from. fmt: how prompts are written (None: the style `tags`). Raises ImportError without TRL, and
    ValueError for an environment that cannot be played and for a format whose games are no one sequence.
    """
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise ImportError(f"TRL is not installed ({INSTALL}).") from error
    if reason := environment.unplayable():
        raise ValueError(f"There is nothing to learn from: {reason}.")
    folder, fmt = Path(folder), fmt or PromptFormat(tokenizer)
    if not fmt.whole:
        raise ValueError(
            "A game is trained on as one sequence, but this style's template does not keep the agent's "
            "turns in the history as they were written: keep them (--history_traces kept), or give another "
            "style."
        )
    games = environment.games("in_domain", recipe.games_held, recipe.seed + 1)
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.generations,
        gradient_accumulation_steps=recipe.games,
        num_generations=recipe.generations,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant",
        beta=recipe.beta,
        temperature=recipe.temperature,
        max_completion_length=model.config.max_position_embeddings,
        generation_kwargs=dict(stop=[fmt.style.close_action.strip()]) if recipe.vllm else None,
        use_vllm=recipe.vllm,
        vllm_mode="colocate",
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        dataloader_pin_memory=False,
        disable_dropout=True,
    )
    with closing(Engines(environment.live, workers)) as engines:
        rollouts = Rollouts(environment, games, fmt, recipe, engines, model.config.max_position_embeddings)
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=earned,
            args=arguments,
            train_dataset=Dataset.from_dict(dict(prompt=[str(g) for g in games])),
            processing_class=copy.deepcopy(tokenizer),
            rollout_func=rollouts,
            callbacks=[SaveAt(recipe.checkpoints)],
        )
        finish(
            trainer,
            folder,
            "reward",
            dict(provenance or {}, recipe=asdict(recipe), environment=environment.name),
        )
    return folder
