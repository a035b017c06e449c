"""What each instrument reads of one agent of the calibration, as rows of estimates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from interp.engine.capturing import capture
from interp.engine.decoding import Completion, decode, draw
from interp.measures.conflicts import conflict
from interp.measures.early import early_answers
from interp.measures.own_traces import own_trace_effects
from interp.measures.pairs import make_pairs
from interp.measures.patching import patch
from interp.measures.reliance import EFFECTS, prompt_reliance
from interp.measures.sanity import sanity
from interp.measures.shares import shares
from interp.measures.steering import steer
from interp.models.hooked import HookedModel
from interp.probing.directions import orthogonal_directions, probe_direction
from interp.probing.probes import NESTED, probe
from interp.prompts.format import SPANS, Prompt, PromptFormat
from interp.stats.changes import part_share
from interp.stats.intervals import cluster_bootstrap
from interp.tasks.actions import target
from interp.training.organisms import LARGEST, competence, decisions

from .both_modes import same

#: Spans that are not the prompt.
AFTER = ("cot", "action_tag", "action")
#: Functions of the effects' means over pairs, which are in the order of EFFECTS.
MEDIATED = {
    "prompt_reliance": lambda m: part_share(m[..., :2]),
    "state_share": lambda m: part_share(m[..., [4, 3]]),
}
#: Strength of steering, in units of the residual's norm.
ALPHA = 1.0
#: Instrument -> the value of each row, its episode, and, of several columns, a function of their means.
Readings = dict[str, tuple]


def exact(
    model: HookedModel,
    prompts: list[Prompt],
    own: list[Completion],
    clean: list[Prompt],
    corrupt: list[Prompt],
    parser: Callable[[str], str | None] = str,
) -> Readings:
    """The checks that hold exactly on any agent."""
    spliced = conflict(model, prompts, own, ["self_splice"], parser=parser)["self_splice"]
    checked = sanity(model, clean, corrupt)
    return dict(
        self_splice=(spliced.keep, [prompts[i].decision.episode for i in spliced.index]),
        self_patch=([checked.self_patch], ["all"]),
        patch_everything=([checked.everything], ["all"]),
    )


def mediated(model: HookedModel, clean: list[Prompt], corrupt: list[Prompt]) -> Readings:
    """Prompt reliance and its split, and patching of the whole prompt and of the boundary after the trace."""
    reliance = prompt_reliance(model, clean, corrupt)
    episodes = [p.decision.episode for p in clean]
    effects = np.stack([getattr(reliance, effect) for effect in EFFECTS], 1)
    kept_episodes = [episodes[i] for i in reliance.kept]
    readings = {name: (effects, kept_episodes, function) for name, function in MEDIATED.items()}
    # The whole prompt is patched at its embeddings; the boundary counts where it does most.
    for name, at, layers in (
        ("prompt_patch", "prompt", slice(1)),
        ("boundary_patch", "boundary", slice(None)),
    ):
        sweep = patch(model, clean, corrupt, ["resid_pre"], at=at, mode="cot")
        kept = np.flatnonzero(~np.isnan(sweep.denoise[:, 0, 0]))
        values = sweep.denoise[kept, 0, layers]
        readings[name] = values, [episodes[i] for i in kept], lambda m: m.max(-1)
    return readings


def through_own(model: HookedModel, clean: list[Prompt], corrupt: list[Prompt], seed: int) -> Readings:
    """Direct and indirect effect through own traces, as shares of the largest, and their ratio."""
    effects = own_trace_effects(model, clean, corrupt, seed=seed)
    episodes = [clean[i].decision.episode for i in effects.kept]
    both = np.stack([effects.direct, effects.indirect], 1)
    return dict(
        own_direct=(effects.direct / LARGEST, episodes),
        own_indirect=(effects.indirect / LARGEST, episodes),
        own_reliance=(both, episodes, part_share),
    )


def read_off(model: HookedModel, prompts: list[Prompt], own: list[Completion], seed: int) -> list[dict]:
    """The boundary probe's AUROC and its gain in accuracy over the best control, for the thing taken."""
    acts = capture(model, prompts, ["resid_pre", "resid_post"]).values
    acts = torch.cat([acts[:, 0, :1], acts[:, 1]], 1).numpy()
    kept = [i for i, completion in enumerate(own) if completion.action]
    result = probe(
        acts[kept],
        [target(own[i].action) for i in kept],
        [prompts[i].decision.episode for i in kept],
        prompts=[prompts[i].format.text(prompts[i].ids) for i in kept],
        metrics=("accuracy", "auroc"),
        seed=seed,
    )
    named = {"auroc": ("probe", "auroc"), "gain": ("gain", "accuracy")}
    rows = {(r["predictor"], r["metric"]): r for r in result.rows if r["layer"] == NESTED}
    return [
        dict(instrument=name, **{k: rows[key][k] for k in ("value", "low", "high", "n", "n_groups")})
        for name, key in named.items()
    ]


def after_traces(model: HookedModel, prompts: list[Prompt], own: list[Completion], seed: int) -> Readings:
    """Agreement of the modes, conflicting traces, early answering, and the prompt's shares."""
    episodes = [prompt.decision.episode for prompt in prompts]
    at_once = decode(model, prompts, "prompt")
    other = conflict(model, prompts, own, ["other_state"], seed=seed)["other_state"]
    early = early_answers(model, prompts, own)
    agree = np.array([same(a.action, b.action) for a, b in zip(at_once, own, strict=True)])
    others = [episodes[i] for i in other.index]
    readings: Readings = dict(
        agreement=(agree, episodes),
        keep=(other.keep, others),
        follow=(other.follow, others),
        early_area=(early.area(), [episodes[i] for i in early.index]),
    )
    index = [i for i, completion in enumerate(own[: len(own) // 5]) if completion.action]
    prefixes = [prompts[i].format.decoded_prefix(own[i].ids) for i in index]
    share = shares(model, [prompts[i] for i in index], prefixes, [own[i].action for i in index])
    prompt_spans = [i for i, span in enumerate(SPANS) if span not in AFTER]
    for name, definition in (("attention_prompt", "attention"), ("gradient_prompt", "gradient_resid")):
        values = share.of(definition, "sink_free")[..., prompt_spans].sum(-1).mean(-1)
        finite = np.flatnonzero(np.isfinite(values))
        readings[name] = values[finite], [episodes[index[i]] for i in finite]
    return readings


def steered(model: HookedModel, prompts: list[Prompt], own: list[Completion], seed: int) -> Readings:
    """Flips along the probe's direction at the boundary - flips along random ones.

    Flips into a class, of decisions that gave no direction.
    """
    n, layer = len(prompts) // 5, (model.n_layers - 1) // 2
    acts = capture(model, prompts[n:], ["resid_post"], layers=[layer]).values[:, 0, 0].numpy()
    labels = [target(completion.action) if completion.action else "" for completion in own[n:]]
    (a, _), (b, _) = Counter(filter(None, labels)).most_common(2)
    direction = probe_direction(acts, labels, a, b)
    by_kind = dict(probe=direction, orthogonal=orthogonal_directions(direction, seed=seed))
    result = steer(model, prompts[:n], by_kind, layer, target=a, alphas=(ALPHA,))
    along = {cell.kind: cell.to_target.mean(0) for cell in result.cells}
    return dict(steering=(along["probe"] - along["orthogonal"], [p.decision.episode for p in prompts[:n]]))


def estimated(readings: Readings, seed: int) -> list[dict]:
    """A row for each instrument that has values."""
    rows = []
    for name, (values, episodes, *function) in readings.items():
        if len(values):
            estimate = cluster_bootstrap(np.asarray(values), list(episodes), *function, seed=seed)
            rows.append(dict(instrument=name, **estimate.row()))
    return rows


def readings(model: HookedModel, fmt: PromptFormat, name: str, n: int, seed: int) -> list[dict]:
    """Every instrument's reading of one organism."""
    drawn = decisions(name, n, seed)
    prompts = [fmt.prompt(decision) for decision in drawn]
    clean, corrupt, _ = make_pairs(fmt, drawn, n, seed)
    own = draw(model, prompts, seed=seed)
    by_instrument = {
        **mediated(model, clean, corrupt),
        **through_own(model, clean, corrupt, seed),
        **after_traces(model, prompts, own, seed),
        **steered(model, prompts, own, seed),
        **exact(model, prompts, own, clean, corrupt),
    }
    return [*estimated(by_instrument, seed), *read_off(model, prompts, own, seed)]


def competent(model: HookedModel, fmt: PromptFormat, name: str, n: int, seed: int) -> list[dict]:
    """The share of decisions answered as constructed; where it is low, nothing is calibrated."""
    drawn = decisions(name, n, seed)
    own = draw(model, [fmt.prompt(decision) for decision in drawn], seed=seed)
    right = np.array(competence(drawn, own))
    return estimated(dict(competence=(right, [decision.episode for decision in drawn])), seed)
