"""What every training of the masking study does: its decisions, its games, and what the instruments read of it, item by item.

Trainings are compared on the same items, so what one of them has no value for (it follows no trace where its own action did not parse)
stays in the table, without one.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm import tqdm

from analyses.probes import labelled, texts
from analyses.provenance import made_by
from analyses.study import Study
from interp.results.tables import write_table
from interp.rollouts.workers import engines
from interp.training.supervision import Supervision

if TYPE_CHECKING:
    from analyses.masking.run import Config

#: What the boundary probe reads: the action that the training itself goes on to take.
LABEL = "eventual_target"
FOLDS = 5
#: No pair is left out for the difference that it is divided by, be it small or of the wrong sign, since here means are divided.
MINIMUM = -np.inf


def trainings(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """(condition, seed, folder) of every training below a folder of conditions.

    Raises FileNotFoundError where there is none, and ValueError for a folder whose name is no condition's or no seed's.
    """
    found = sorted(folder.glob("*/seed-*/"))
    if not found:
        raise FileNotFoundError(
            f"There are no conditions in {folder}: a training's checkpoints are in {folder}/ARM/seed-S/checkpoint-N."
        )
    for path in found:
        number = path.name.removeprefix("seed-")
        if not number.isdigit():
            raise ValueError(f"{path} is no seed's folder: it is called seed-S, S a number.")
        yield Supervision.named(path.parent.name).name, int(number), path


def measure(config: Config) -> None:
    """Decode every training's last checkpoint (or those named), play games and read the instruments, into three tables of rows for each item."""
    rows, weights, skipped, started = dict(decisions=[], games=[], instruments=[]), {}, {}, time.time()
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
            f"Conditions are compared at one step, but {a} of seed {s} ends at {last[a, s]} and {b} of seed {t} at {last[b, t]}: "
            "name a step with --checkpoints."
        )
    read: dict[str, str] = {}  # what the first training read
    along = set.intersection(*(set(study.steps) for study in studies.values()))
    for condition, seed in tqdm(list(studies), desc="measure"):
        study = studies.pop((condition, seed))  # and its model with it
        chosen = config.checkpoints or study.steps[-1:]
        for split in study.parts:
            if read.setdefault(split, digest := study.digest(study.prompts(split))) != digest:
                raise ValueError(
                    f"{condition} of seed {seed} reads other prompts than the first training ({split}), so the two are not compared: give all "
                    "conditions one tokenizer, style and system prompt."
                )
        for step in sorted({*chosen, *(along if "reliance" in config.instruments else ())}):
            key = dict(condition=condition, seed=seed, step=step)
            weights[f"{condition} {seed} {step}"] = study.checkpoint_series.weights_hash(step)
            for split in study.parts if step in chosen else ():
                rows["decisions"] += [dict(key, split=split, **row) for row in answers(study, step, split)]
                rows["games"] += [dict(key, split=split, **row) for row in games(config, study, step, split)]
            for name in [
                n for n in INSTRUMENTS if n in config.instruments and (step in chosen or n == "reliance")
            ]:
                read_off, reason = INSTRUMENTS[name](config, study, step)
                rows["instruments"] += [dict(key, **row) for row in read_off]
                skipped |= {f"{condition} {seed} {step} {name}": reason} if reason else {}
    if config.part[1] > 1:
        return  # the other parts are not known here
    made = dict(made_by("masking", config, started), seed=config.seed, weights=weights, skipped=skipped)
    for name, found in rows.items():
        if found:
            write_table(config.run / "tables", f"masking_{name}", pd.DataFrame(found), made)


def answers(study: Study, step: int, split: str) -> list[dict]:
    """Whether each decision is answered rightly (`Environment.is_correct`), and at all, with and without a trace."""
    said = {mode: study.decoded(step, split, mode) for mode in ("cot", "prompt")}
    return [
        dict(
            game=p.decision.episode,
            item=i,
            **{
                f"acc_{m}": int(
                    bool(said[m][i].action) and study.env.is_correct(p.decision, said[m][i].action)
                )
                for m in said
            },
            **{f"parse_{m}": int(said[m][i].action is not None) for m in said},
        )
        for i, p in enumerate(study.prompts(split))
    ]


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

        def compute():
            with engines(study.env.live, config.workers) as pool:
                found = play(
                    study.model(step),
                    study.format,
                    study.env,
                    picked,
                    mode,
                    pool,
                    step_limit=config.step_limit,
                    max_new_tokens=study.limits,
                )
            return [int(r.won) for r in found]

        inputs = dict(
            study.inputs(step),
            format=study.format.hash,
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


def _paired(study: Study, n: int) -> Iterator[tuple[str, list, list, str]]:
    """Of each split clean and corrupt prompts, or why there are none."""
    for split in study.parts:
        clean, corrupt, dropped = study.pairs_of(split, n)
        yield (
            split,
            clean,
            corrupt,
            "" if clean else f"no decision {split.replace('_', '-')} has a counterfactual twin ({dropped})",
        )


def reliance(config: Config, study: Study, step: int) -> tuple[list[dict], str]:
    """Prompt reliance (docs/methods.md 4.2): each pair's direct effect over the sum of direct and via-CoT; no pair is left out, however small its total."""
    from interp.measures.reliance import prompt_reliance

    rows, reason = [], ""
    for split, clean, corrupt, lacking in _paired(study, config.pairs):
        reason = reason or lacking
        if clean:

            def compute():
                found = prompt_reliance(study.model(step), clean, corrupt, minimum=MINIMUM)
                return [found.direct.tolist(), found.via_cot.tolist()]

            inputs = dict(study.inputs(step), pairs=[study.digest(side) for side in (clean, corrupt)])
            direct, via_cot = study.stage(f"masking/{step}-{split}-reliance", inputs, compute)
            rows += _rows(
                "prompt_reliance",
                split,
                [p.decision.episode for p in clean],
                direct,
                np.add(direct, via_cot).tolist(),
            )
    return rows, reason


def patching(config: Config, study: Study, step: int) -> tuple[list[dict], str]:
    """The share of the action's difference that patching gives back: `patch_prompt`, all of the prompt at its embeddings, read after the
    trace; `patch_boundary`, the mean over layers at the boundary alone, read right after it."""
    from interp.measures.patching import patch_modes

    rows, reason = [], ""
    for split, clean, corrupt, lacking in _paired(study, config.patched):
        reason = reason or lacking
        if clean:

            def compute():
                found = patch_modes(
                    study.model(step), clean, corrupt, at=("boundary", "prompt"), minimum=MINIMUM
                )
                whole, edge = found["prompt", "cot"], found["boundary", "prompt"]
                moved = dict(
                    patch_prompt=(whole, whole.moved[:, 0, 0]),
                    patch_boundary=(edge, edge.moved[:, 0].mean(-1)),
                )
                return {
                    name: [
                        [float(v) if np.isfinite(v) else None for v in values]
                        for values in (part, sweep.clean - sweep.corrupt)
                    ]
                    for name, (sweep, part) in moved.items()
                }

            inputs = dict(
                study.inputs(step),
                pairs=[study.digest(side) for side in (clean, corrupt)],
                minimum=str(MINIMUM),
            )
            for name, (values, whole) in study.stage(
                f"masking/{step}-{split}-patching", inputs, compute
            ).items():
                rows += _rows(name, split, [p.decision.episode for p in clean], values, whole)
    return rows, reason


def conflicts(config: Config, study: Study, step: int) -> tuple[list[dict], str]:
    """Whether another state's trace is followed, and the own action kept (docs/methods.md 5.1), where the own one parsed and a donor was found."""
    from interp.measures.conflicts import conflict

    rows = []
    for split in study.parts:
        prompts = study.prompts(split)[: config.conflicts]
        own = study.decoded(step, split, "cot")[: config.conflicts]

        def compute():
            found = conflict(
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
            read = {
                name: dict(zip(found.index.tolist(), getattr(found, name).astype(int).tolist()))
                for name in ("follow", "keep")
            }
            return {name: [of.get(i) for i in range(len(prompts))] for name, of in read.items()}

        inputs = dict(
            study.inputs(step, split),
            n=config.conflicts,
            limits=study.limits,
            closed_actions=study.env.closed_actions,
        )
        for name, values in study.stage(f"masking/{step}-{split}-conflict", inputs, compute).items():
            rows += _rows(name, split, [p.decision.episode for p in prompts], values)
    return rows, "" if any(
        row["value"] is not None for row in rows
    ) else "no action parsed, or none found a donor"


def probes(config: Config, study: Study, step: int) -> tuple[list[dict], str]:
    """Whether the boundary probe reads the action that will be taken, less whether the best control without activations does (docs/methods.md 3.3)."""
    import torch

    from interp.engine.capturing import capture
    from interp.probing.probes import NESTED, SPLITS, probe

    def compute():
        sets, where = [], {}
        for split in study.parts:
            kept, names = labelled(study, step, split, LABEL)
            if not len(kept):
                return dict(skipped=f"no action {split.replace('_', '-')} parsed")
            asked = [study.prompts(split)[i] for i in kept]
            acts = capture(study.model(step), asked, ["resid_pre", "resid_post"]).values
            words = texts(study, split)
            sets.append(
                (
                    torch.cat([acts[:, 0, :1], acts[:, 1]], 1).numpy(),
                    names,
                    [p.decision.episode for p in asked],
                    [words[i] for i in kept],
                    [p.decision.previous for p in asked],
                )
            )
            where[split] = kept
        try:
            (acts, names, groups, words, previous), *test = sets
            found = probe(
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
        except ValueError as problem:  # too few decisions that parse, or one class
            return dict(skipped=str(problem))
        labels = np.concatenate([np.array(of[1]) for of in sets])
        gain = (found.predicted["probe", NESTED] == labels).astype(int) - (
            found.predicted["best_control", NESTED] == labels
        )
        values = {split: [None] * len(study.prompts(split)) for split in study.parts}
        for split, theirs in zip(study.parts, SPLITS):
            for i, v in zip(where[split], gain[found.split == theirs].tolist(), strict=True):
                values[split][i] = v
        return dict(skipped="", values=values)

    inputs = dict(
        study.inputs(step),
        decisions=[study.digest(study.prompts(split)) for split in study.parts],
        label=LABEL,
        folds=FOLDS,
    )
    found = study.stage(f"masking/{step}-probes", inputs, compute)
    if found["skipped"]:
        return [], found["skipped"]
    return [
        row
        for split in study.parts
        for row in _rows(
            "probe_gain", split, [p.decision.episode for p in study.prompts(split)], found["values"][split]
        )
    ], ""


#: What reads a training, in the order in which it does.
INSTRUMENTS = dict(reliance=reliance, patching=patching, conflict=conflicts, probes=probes)
