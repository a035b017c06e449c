"""Elicited prompt action: read after one small tuning of each checkpoint (docs/methods.md 2.4)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from interp.environments.base import ANY
from interp.prompts.format import Prompt
from interp.results.names import HELD_OUT
from interp.system.limits import Existing
from interp.tasks.episodes import sample_decisions
from interp.training.recipes import Elicitation

from . import behaviour
from .both_modes import right
from .registry import Instrument
from .remedies import NotApplicable
from .rows import mean_row

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel
    from interp.training.elicitation import Elicited

#: Split of a corpus that is tuned on.
TRAINING = "train"
#: The untrained model, where a checkpoint is named.
TWIN = "twin"


@dataclass
class Config(behaviour.Config):
    """The prompt action of a copy of each checkpoint that was shortly tuned, prompt to action, and of an
    untrained twin's; both are read at the study's decisions, as `behaviour` reads the prompt action."""

    tune_on: Annotated[Path | None, Existing()] = None
    """File of decisions to tune on, as --corpus, of episodes that are not studied (none: the training split
    of the corpus)."""
    tuning: Elicitation = field(default_factory=Elicitation)
    """The tuning, the same for every checkpoint."""

    @property
    def reads(self) -> list[Path]:
        """What the table is made from, beside checkpoints and the studied decisions."""
        return [self.tune_on] if self.tune_on else []

    def check(self) -> None:
        """Raises as `Study.check` does, and where there is nothing to tune on."""
        super().check()
        _ = self.drawn

    @cached_property
    def drawn(self) -> list:
        """The decisions to tune on: the same for every checkpoint."""
        corpus = (self._named or ANY).recorded(self.tune_on) if self.tune_on else self.recorded
        groups = list(corpus.values()) if self.tune_on else [corpus.get(TRAINING, [])]
        episodes = [episode for group in groups for episode in group]
        if not episodes:
            raise NotApplicable(
                f"The corpus has no split {TRAINING!r} to tune on",
                "Give a file of decisions of other episodes (--tune_on).",
            )
        sizes = sum(len(episode.references) for episode in episodes)
        chosen = sample_decisions(episodes, min(self.tuning.decisions, sizes), self.seed)
        studied = {p.episode for group in self._sampled.values() for p in group}
        if both := sorted({decision.episode for decision in chosen} & studied):
            raise ValueError(
                f"The episode {both[0]!a} is studied and would be tuned on as well: give --tune_on a file of "
                "other episodes."
            )
        return chosen

    @cached_property
    def examples(self) -> list[Prompt]:
        """The prompts to tune on."""
        return [self.format.prompt(decision) for decision in self.drawn]

    @cached_property
    def _tuned(self) -> dict[str, Elicited]:
        return {}

    def tuned(self, name: str) -> Elicited:
        """The tuned copy of a checkpoint, or of the untrained TWIN; the last one is held."""
        from interp.models.untrained import random_twin
        from interp.training.elicitation import elicit

        if name not in self._tuned:
            self._tuned.clear()
            base = self.model(self.steps[0] if name == TWIN else int(name))
            model = random_twin(base, self.seed) if name == TWIN else base
            self._tuned[name] = elicit(model, self.examples, self.tuning, self.seed)
        return self._tuned[name]


def tuning(config: Config, name: str) -> dict:
    """How the tuning of a checkpoint or of TWIN went, as a stage keeps it."""

    def compute() -> dict:
        elicited = config.tuned(name)
        return dict(held_out=elicited.held_out.tolist(), episodes=list(elicited.episodes), kept=elicited.kept)

    step = config.steps[0] if name == TWIN else int(name)
    return config.stage(f"elicited/{name}-tuning", dict(config.inputs(step), **_recipe(config)), compute)


def _recipe(config: Config) -> dict:
    return dict(tuning=asdict(config.tuning), tuned_on=config.digest(config.examples))


def candidates(config: Config, split: str) -> dict[str, tuple[str, ...]]:
    """Decision -> the actions that a forced choice is among, at as many as `behaviour` reads.

    They are the same for every checkpoint: where not all actions are listed, none is among them that a
    checkpoint said.
    """
    prompts = config.prompts(split)
    n = config.number(config.choices, behaviour.QUICK, len(prompts))
    among = {prompt.decision.id: config.env.candidates(prompt.decision) for prompt in prompts[:n]}
    return {decision: names for decision, names in among.items() if names}


def reading(config: Config, name: str, split: str) -> dict:
    """What the tuned copy of a checkpoint, or of TWIN, does right at the boundary, as a stage keeps it.

    Returns:
        `decisions` (ids) and `actions` (None: unparsed), and of the forced choice `chosen` (ids, and the
        actions of highest summed log-probability).
    """
    step = config.steps[0] if name == TWIN else int(name)
    among = candidates(config, split)
    inputs = dict(
        config.inputs(step, split),
        **_recipe(config),
        n=len(among),
        limits=config.limits,
        closed_actions=config.env.closed_actions,
    )
    return config.stage(
        f"elicited/{name}-{split}", inputs, lambda: _read(config, config.tuned(name).model, split, among)
    )


def _read(config: Config, model: HookedModel, split: str, among: Mapping[str, Sequence[str]]) -> dict:
    from interp.engine.decoding import choose_each, decode_modes

    by_id = {prompt.decision.id: prompt for prompt in config.prompts(split)}
    completions = decode_modes(
        model, list(by_id.values()), ["prompt"], parser=config.parse, max_new_tokens=config.limits
    )
    scores = choose_each(model, [by_id[decision] for decision in among], list(among.values()))
    chosen = zip(among.items(), (int(logp[0, :, 0].argmax()) for logp in scores), strict=True)
    return dict(
        decisions=list(by_id),
        actions=[completion.action or None for completion in completions["prompt"]],
        chosen=[(decision, names[best]) for (decision, names), best in chosen],
    )


#: What each of a decision's ids does: (id, action; None: unparsed).
Acts = list[tuple[str, str | None]]


def _before(config: Config, step: int, split: str) -> tuple[Acts, Acts]:
    """The untuned checkpoint's prompt action by free decoding, and by forced choice among the candidates."""
    ids = (prompt.decision.id for prompt in config.prompts(split))
    actions = (completion.action or None for completion in config.decoded(step, split, "prompt"))
    among, forced = candidates(config, split), []
    for row in behaviour.chosen(config, step, split):
        summed = dict(zip(row["candidates"], np.array(row["logp"]["prompt"])[:, 0], strict=True))
        if names := among.get(row["decision"]):
            forced.append((row["decision"], max(names, key=summed.__getitem__)))
    return list(zip(ids, actions, strict=True)), forced


def _rows(config: Config, step: int, split: str) -> Iterator[dict]:
    """A checkpoint's rows in one split: the prompt action before, tuned, and the tuned twin's."""
    decisions = {prompt.decision.id: prompt.decision for prompt in config.prompts(split)}
    free, forced = _before(config, step, split)
    acts: dict[str, dict[str, Acts]] = dict(free=dict(prompt=free), choice_sum=dict(prompt=forced))
    rounds = dict(prompt=0)
    for name, of in (("elicited", str(step)), ("twin", TWIN)):
        stored = reading(config, of, split)
        acts["free"][name] = list(zip(stored["decisions"], stored["actions"], strict=True))
        acts["choice_sum"][name] = stored["chosen"]
        rounds[name] = tuning(config, of)["kept"]
    for readout, by_name in acts.items():
        episodes = [decisions[decision].episode for decision, _ in by_name["prompt"]]
        columns = {
            f"acc_{name}": (
                right([decisions[d] for d, _ in each], [a for _, a in each], config.env.is_correct),
                name,
            )
            for name, each in by_name.items()
        }
        tuned, _ = columns["acc_elicited"]
        for name in ("prompt", "twin"):
            moved = tuned.astype(float) - columns[f"acc_{name}"][0]
            columns[f"elicited_minus_{name}"] = moved, "elicited"
        if readout == "free":
            for name, each in by_name.items():
                columns[f"parse_{name}"] = np.array([a is not None for _, a in each], dtype=bool), name
        for metric, (values, name) in columns.items():
            row = mean_row(values, episodes, config.seed)
            yield dict(step=step, split=split, readout=readout, metric=metric, round=rounds[name], **row)


def _curve(config: Config, step: int) -> Iterator[dict]:
    """Nats of the recorded action at the tuning's held-out decisions, after each round."""
    stored = tuning(config, str(step))
    for number, nats in enumerate(stored["held_out"]):
        row = mean_row(np.array(nats), stored["episodes"], config.seed)
        yield dict(step=step, split=HELD_OUT, readout="logp", metric="nats", round=number, **row)


def run(config: Config) -> None:
    """Tune a copy of every checkpoint and of a twin, and read them; each reading is a resumable stage."""
    started, rows = time.time(), []
    for split in config.parts:  # first, since one tuned copy at a time is held
        reading(config, TWIN, split)
    twin = tuning(config, TWIN)
    for step, split in config.cells("elicited"):
        rows += _rows(config, step, split)
        if split == config.parts[-1]:
            rows += _curve(config, step)
    config.write(
        "elicited",
        [row for row in rows if row["n"]],
        started,
        judge=config.env.judge,
        tuned_on=len(config.examples),
        held_out=len(twin["episodes"]),
        twin_nats=[float(np.mean(nats)) for nats in twin["held_out"]],
    )


INSTRUMENT = Instrument("elicited", Config, run, in_all=(1, 6), full_only=True)
