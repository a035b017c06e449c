"""What every training of the masking study does: its decisions, its games, and what instruments read of it.

Trainings are compared on the same items, so an item stays in the table where one of them has no value for it
(it follows no trace where its own action did not parse).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from interp.results.tables import write_table
from interp.rollouts.workers import engines
from interp.tasks.episodes import Decision, Episode
from interp.training.supervision import Supervision

from ..boundary import texts
from ..decodings import generator
from ..labels import labelled
from ..provenance import made_by
from ..rows import attempted
from ..study import Study
from . import manipulation
from .config import FOLDS, Config

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel
    from interp.prompts.format import Prompt

#: What the boundary probe reads: the action that the training itself goes on to take.
LABEL = "eventual_target"
#: No pair is left out for a small or negative difference, since here means are divided.
MINIMUM = -np.inf
#: Rows of an instrument, and why it has none.
Instrumented = tuple[list[dict], str]


def trainings(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """(condition, seed, folder) of every training below a folder of conditions.

    Raises FileNotFoundError where there is none, and ValueError for a folder named like no condition or no
    seed.
    """
    paths = sorted(folder.glob("*/seed-*/"))
    if not paths:
        raise FileNotFoundError(
            f"There are no conditions in {folder}: a training's checkpoints are in "
            f"{folder}/CONDITION/seed-S/checkpoint-N."
        )
    for path in paths:
        number = path.name.removeprefix("seed-")
        if not number.isdigit():
            raise ValueError(f"{path} is no seed's folder: it is called seed-S, S a number.")
        yield Supervision.named(path.parent.name).name, int(number), path


def measure(config: Config) -> None:
    """Decode every training's last checkpoint (or those named), play games and read the instruments.

    Writes three tables with a row for each item.
    """
    rows: dict[str, list] = dict(decisions=[], games=[], instruments=[], manipulation=[])
    weights, skipped, started = {}, {}, time.time()
    shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(Study)} | dict(
        base=config.start if config.lora else config.base
    )
    folders = {(condition, seed): folder for condition, seed, folder in trainings(config.folder)}
    mine = (
        set(config.mine(list(folders) if config.own else config.jobs)) if config.part[1] > 1 else set(folders)
    )
    studies = {
        key: Study(**shared | dict(series=folder, checkpoints=()))
        for key, folder in folders.items()
        if key in mine
    }
    last = {key: study.steps[-1] for key, study in studies.items()}
    if not config.checkpoints and len(set(last.values())) > 1:
        (a, s), (b, t) = min(last, key=last.get), max(last, key=last.get)
        raise ValueError(
            f"Conditions are compared at one step, but {a} of seed {s} ends at {last[a, s]} and {b} of seed "
            f"{t} at {last[b, t]}: name a step with --checkpoints."
        )
    read: dict[str, str] = {}  # what the first training read
    along = set.intersection(*(set(study.steps) for study in studies.values()))
    checked = _trained_on(config)
    for condition, seed in tqdm(list(studies), desc="measure"):
        study = studies.pop((condition, seed))  # and its model with it
        chosen = config.checkpoints or study.steps[-1:]
        for split in study.parts:
            if read.setdefault(split, digest := study.digest(study.prompts(split))) != digest:
                raise ValueError(
                    f"{condition} of seed {seed} reads other prompts than the first training ({split}), so "
                    "the two are not compared: give all conditions one tokenizer, style and system prompt."
                )
        for step in sorted({*chosen, *(along if "reliance" in config.instruments or checked else ())}):
            key = dict(condition=condition, seed=seed, step=step)
            weights[f"{condition} {seed} {step}"] = study.checkpoint_series.weights_hash(step)
            for split in study.parts if step in chosen else ():
                rows["decisions"] += [dict(key, split=split, **row) for row in answers(study, step, split)]
                rows["games"] += [dict(key, split=split, **row) for row in games(config, study, step, split)]
            if checked:
                rows["manipulation"] += [dict(key, **row) for row in manipulation.read(study, step, checked)]
            for name in [
                n for n in INSTRUMENTS if n in config.instruments and (step in chosen or n == "reliance")
            ]:
                read_off, reason = INSTRUMENTS[name](config, study, step)
                rows["instruments"] += [dict(key, **row) for row in read_off]
                skipped |= {f"{condition} {seed} {step} {name}": reason} if reason else {}
    if config.part[1] > 1:
        return  # the other parts are not known here
    made = dict(made_by("masking", config, started), seed=config.seed, weights=weights, skipped=skipped)
    for name, each in rows.items():
        if each:
            write_table(config.run / "tables", f"masking_{name}", pd.DataFrame(each), made)


def _trained_on(config: Config) -> list[Episode | Decision]:
    """The training episodes that the manipulation is checked on; none without a training split."""
    episodes = config.recorded.get("train", []) if config.checked else []
    drawn = np.random.default_rng(config.seed).permutation(len(episodes))[: config.checked]
    return [episodes[i] for i in drawn]


def answers(study: Study, step: int, split: str) -> list[dict]:
    """Whether each decision is answered correctly (`Environment.is_correct`), and at all, in both modes."""
    actions = {
        mode: [completion.action for completion in study.decoded(step, split, mode)]
        for mode in ("cot", "prompt")
    }
    rows = []
    for i, prompt in enumerate(study.prompts(split)):
        row = dict(game=prompt.decision.episode, item=i)
        for mode, each in actions.items():
            row[f"acc_{mode}"] = int(bool(each[i]) and study.env.is_correct(prompt.decision, each[i]))
        for mode, each in actions.items():
            row[f"parse_{mode}"] = int(each[i] is not None)
        rows.append(row)
    return rows


def games(config: Config, study: Study, step: int, split: str) -> list[dict]:
    """Whether each game is won, with and without a trace; none where no games are asked for."""
    if not config.games:
        return []
    from interp.rollouts.play import play

    if reason := study.env.unplayable():
        raise ValueError(f"No games can be played: {reason}. Leave out --games.")
    n, won = config.games if split == "in_domain" else (config.games + 1) // 2, {}
    picked = study.pick_games(split, n, study.seed)
    for mode in ("cot", "prompt"):

        def compute() -> list[int]:
            with engines(study.env.live, config.workers) as pool, generator(study, step) as engine:
                results = play(
                    study.model(step),
                    study.format,
                    study.env,
                    picked,
                    mode,
                    pool,
                    step_limit=config.step_limit,
                    max_new_tokens=study.limits,
                    engine=engine,
                )
            return [int(result.won) for result in results]

        inputs = dict(
            study.inputs(step),
            format=study.format.hash,
            generator=study.generator,
            mode=mode,
            n=n,
            limit=config.step_limit,
            tokens=study.limits[mode],
            official=study.official,
            environment=study.env.source,
        )
        won[mode] = study.stage(f"masking/{step}-{split}-{mode}", inputs, compute)
    return [
        dict(game=str(game), item=i, success_cot=a, success_prompt=b)
        for i, (game, a, b) in enumerate(zip(picked, won["cot"], won["prompt"], strict=True))
    ]


def _rows(
    metric: str, split: str, groups: Iterable[str], values: Iterable, denominators: Iterable | None = None
) -> list[dict]:
    """A row for each item; None where it has no value."""
    groups, values = list(groups), list(values)
    denominators = [1] * len(values) if denominators is None else list(denominators)
    return [
        dict(split=split, metric=metric, game=g, item=i, value=v, denominator=None if v is None else d)
        for i, (g, v, d) in enumerate(zip(groups, values, denominators, strict=True))
    ]


def _pairs(config: Config, study: Study, step: int, name: str, n: int, compute: Callable) -> Instrumented:
    """Rows of what `compute` reads of each split's counterfactual pairs, a resumable stage for each split.

    `compute(clean, corrupt)` gives metric -> (value, denominator) of each pair.
    """
    rows, reason = [], ""
    for split in study.parts:
        clean, corrupt, dropped = study.pairs_of(split, n)
        if not clean:
            where = split.replace("_", "-")
            reason = reason or f"no decision {where} has a counterfactual twin ({dropped})"
            continue
        inputs = dict(
            study.inputs(step),
            pairs=[study.digest(prompts) for prompts in (clean, corrupt)],
            minimum=str(MINIMUM),
        )
        stored = study.stage(
            f"masking/{step}-{split}-{name}", inputs, lambda: compute(study.model(step), clean, corrupt)
        )
        games = [prompt.decision.episode for prompt in clean]
        for metric, (values, denominators) in stored.items():
            rows += _rows(metric, split, games, values, denominators)
    return rows, reason


def reliance(config: Config, study: Study, step: int) -> Instrumented:
    """Prompt reliance (docs/methods.md 4.2): each pair's direct effect over the sum of direct and via-CoT.

    No pair is left out, however small its total.
    """

    def compute(model: HookedModel, clean: list[Prompt], corrupt: list[Prompt]) -> dict[str, list]:
        from interp.measures.reliance import prompt_reliance

        effects = prompt_reliance(model, clean, corrupt, minimum=MINIMUM)
        both = effects.direct + effects.via_cot
        return dict(prompt_reliance=[effects.direct.tolist(), both.tolist()])

    return _pairs(config, study, step, "reliance", config.pairs, compute)


def patching(config: Config, study: Study, step: int) -> Instrumented:
    """The share of the action's difference that patching gives back.

    `patch_prompt`: all of the prompt at its embeddings, read after the trace. `patch_boundary`: the mean over
    layers at the boundary alone, read right after it.
    """

    def compute(model: HookedModel, clean: list[Prompt], corrupt: list[Prompt]) -> dict[str, list]:
        from interp.measures.patching import patch_modes

        sweeps = patch_modes(model, clean, corrupt, at=("boundary", "prompt"), minimum=MINIMUM)
        whole, edge = sweeps["prompt", "cot"], sweeps["boundary", "prompt"]
        moved = dict(
            patch_prompt=(whole.moved[:, 0, 0], whole.clean - whole.corrupt),
            patch_boundary=(edge.moved[:, 0].mean(-1), edge.clean - edge.corrupt),
        )
        return {
            metric: [[float(v) if np.isfinite(v) else None for v in values] for values in both]
            for metric, both in moved.items()
        }

    return _pairs(config, study, step, "patching", config.patched, compute)


def conflicts(config: Config, study: Study, step: int) -> Instrumented:
    """Whether another state's trace is followed, and the own action kept (docs/methods.md 5.1).

    Read where the own action parsed and a donor was found.
    """
    from interp.measures.conflicts import conflict

    rows = []
    for split in study.parts:
        prompts = study.prompts(split)[: config.conflicts]
        own = study.decoded(step, split, "cot")[: config.conflicts]

        def compute() -> dict[str, list[int | None]]:
            outcome = conflict(
                study.model(step),
                prompts,
                own,
                ("other_state",),
                parser=study.parse,
                closed_actions=study.env.closed_actions,
                seed=study.seed,
                max_new_tokens=study.action_tokens,
                trace_tokens=study.trace_tokens,
            )["other_state"]
            index = outcome.index.tolist()
            by_decision = dict(
                follow=dict(zip(index, outcome.follow.astype(int).tolist(), strict=True)),
                keep=dict(zip(index, outcome.keep.astype(int).tolist(), strict=True)),
            )
            return {
                metric: [values.get(i) for i in range(len(prompts))] for metric, values in by_decision.items()
            }

        inputs = dict(
            study.inputs(step, split),
            n=config.conflicts,
            limits=study.limits,
            closed_actions=study.env.closed_actions,
        )
        for metric, values in study.stage(f"masking/{step}-{split}-conflict", inputs, compute).items():
            rows += _rows(metric, split, [p.decision.episode for p in prompts], values)
    any_read = any(row["value"] is not None for row in rows)
    return rows, "" if any_read else "no action parsed, or none found a donor"


def probes(config: Config, study: Study, step: int) -> Instrumented:
    """Whether the boundary probe reads the action that will be taken - whether the best control does.

    The control reads no activations (docs/methods.md 3.3).
    """
    inputs = dict(
        study.inputs(step),
        decisions=[study.digest(study.prompts(split)) for split in study.parts],
        label=LABEL,
        folds=FOLDS,
    )
    stored = study.stage(f"masking/{step}-probes", inputs, lambda: attempted(lambda: _gains(study, step)))
    if stored["skipped"]:
        return [], stored["skipped"]
    rows = []
    for split in study.parts:
        games = [prompt.decision.episode for prompt in study.prompts(split)]
        rows += _rows("probe_gain", split, games, stored["values"][split])
    return rows, ""


def _gains(study: Study, step: int) -> dict[str, dict[str, list[int | None]]]:
    """Of each split's decisions whether the probe is right - whether the best control is; None without an
    action.

    Raises ValueError for too few decisions that parse, or of one class.
    """
    from interp.probing.probes import NESTED, SPLITS, probe

    kept, sets = {}, []
    for split in study.parts:
        kept[split], names = labelled(study, step, split, LABEL)
        if not len(kept[split]):
            raise ValueError(f"no action {split.replace('_', '-')} parsed")
        sets.append(_probed(study, step, split, kept[split], names))
    (acts, names, groups, words, previous), *test = sets
    result = probe(
        acts,
        names,
        groups,
        prompts=words,
        previous=previous,
        test=test[0] if test else None,
        folds=FOLDS,
        seed=study.seed,
        draws=1,
    )
    labels = np.concatenate([np.array(names) for _, names, *_ in sets])
    right, control = (result.predicted[name, NESTED] == labels for name in ("probe", "best_control"))
    gain = right.astype(int) - control
    values: dict[str, list[int | None]] = {}
    for split, its_name in zip(study.parts, SPLITS, strict=False):
        values[split] = [None] * len(study.prompts(split))
        for i, each in zip(kept[split], gain[result.split == its_name].tolist(), strict=True):
            values[split][i] = each
    return dict(values=values)


def _probed(study: Study, step: int, split: str, kept: np.ndarray, names: list[str]) -> tuple:
    """Activations [decision, layer, d_model], labels, episodes, texts and previous actions."""
    import torch

    from interp.engine.capturing import capture

    prompts, words = [study.prompts(split)[i] for i in kept], texts(study.prompts(split))
    acts = capture(study.model(step), prompts, ["resid_pre", "resid_post"]).values
    return (
        torch.cat([acts[:, 0, :1], acts[:, 1]], 1).numpy(),
        names,
        [prompt.decision.episode for prompt in prompts],
        [words[i] for i in kept],
        [prompt.decision.previous for prompt in prompts],
    )


#: What reads a training, in the order in which it does.
INSTRUMENTS: dict[str, Callable[[Config, Study, int], Instrumented]] = dict(
    reliance=reliance, patching=patching, conflict=conflicts, probes=probes
)
