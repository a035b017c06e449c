"""What each instrument reads of one agent of the calibration, as rows of estimates."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from interp.engine.capturing import capture
from interp.engine.decoding import decode, draw
from interp.measures.conflicts import conflict
from interp.measures.early import early_answers
from interp.measures.pairs import make_pairs
from interp.measures.patching import patch, sanity
from interp.measures.reliance import EFFECTS, prompt_reliance
from interp.measures.shares import shares
from interp.measures.steering import steer
from interp.probing.directions import orthogonal_directions, probe_direction
from interp.probing.probes import NESTED, probe
from interp.prompts.format import SPANS
from interp.stats.intervals import cluster_bootstrap
from interp.tasks.actions import target
from interp.training.organisms import competence, decisions

#: Spans that are not the prompt.
BEHIND = ("cot", "action_tag", "action")
#: Functions of the effects' means over pairs, which are in the order of EFFECTS.
MEDIATED = {
    "prompt_reliance": lambda m: m[..., 0] / (m[..., 0] + m[..., 1]),
    "state_share": lambda m: m[..., 4] / (m[..., 3] + m[..., 4]),
}
#: Strength of steering, in units of the residual's norm.
ALPHA = 1.0


def exact(model, prompts, own, clean, corrupt, parser=str) -> dict[str, tuple]:
    """The checks that hold exactly on any agent: instrument -> (value of each row, episode of each row)."""
    spliced = conflict(model, prompts, own, ["self_splice"], parser=parser)["self_splice"]
    checked = sanity(model, clean, corrupt)
    return dict(
        self_splice=(spliced.keep, [prompts[i].decision.episode for i in spliced.index]),
        self_patch=([checked.self_patch], ["all"]),
        patch_everything=([checked.everything], ["all"]),
    )


def mediated(model, clean, corrupt) -> dict[str, tuple]:
    """Prompt reliance and its split, and patching of the whole prompt and of the boundary after the trace."""
    reliance = prompt_reliance(model, clean, corrupt)
    groups = [p.decision.episode for p in clean]
    effects, of = np.stack([getattr(reliance, e) for e in EFFECTS], 1), [groups[i] for i in reliance.kept]
    found = {name: (effects, of, function) for name, function in MEDIATED.items()}
    for name, at in (("prompt_patch", "prompt"), ("boundary_patch", "boundary")):
        sweep = patch(model, clean, corrupt, ["resid_pre"], at=at, mode="cot")
        kept = ~np.isnan(sweep.denoise[:, 0, 0])
        layers = (
            slice(1) if at == "prompt" else slice(None)
        )  # the whole prompt at its embeddings; the boundary where it does most
        found[name] = (
            sweep.denoise[kept, 0, layers],
            [g for g, k in zip(groups, kept) if k],
            lambda m: m.max(-1),
        )
    return found


def read_off(model, prompts, own, seed: int) -> list[dict]:
    """The boundary probe's AUROC and its gain in accuracy over the best control, for the thing taken."""
    acts = capture(model, prompts, ["resid_pre", "resid_post"]).values
    acts = torch.cat([acts[:, 0, :1], acts[:, 1]], 1).numpy()
    kept = [i for i, s in enumerate(own) if s.action]
    texts, episodes = (
        [prompts[i].format.text(prompts[i].ids) for i in kept],
        [prompts[i].decision.episode for i in kept],
    )
    found = probe(
        acts[kept],
        [target(own[i].action) for i in kept],
        episodes,
        prompts=texts,
        metrics=("accuracy", "auroc"),
        seed=seed,
    )
    named = {"auroc": ("probe", "auroc"), "gain": ("gain", "accuracy")}
    rows = {(r["predictor"], r["metric"]): r for r in found.rows if r["layer"] == NESTED}
    return [
        dict(instrument=name, **{k: rows[key][k] for k in ("value", "low", "high", "n", "n_groups")})
        for name, key in named.items()
    ]


def behind_traces(model, prompts, own, seed: int) -> dict[str, tuple]:
    """Agreement of the modes, conflicting traces, early answering, and the prompt's shares."""

    def of(index):
        return [prompts[i].decision.episode for i in index]

    at_once = decode(model, prompts, "prompt")
    other = conflict(model, prompts, own, ["other_state"], seed=seed)["other_state"]
    early = early_answers(model, prompts, own)
    found = dict(
        agreement=(np.array([a.action == b.action for a, b in zip(at_once, own)]), of(range(len(prompts)))),
        keep=(other.keep, of(other.index)),
        follow=(other.follow, of(other.index)),
        early_area=(early.area(), of(early.index)),
    )
    leads = {
        i: prompts[i].format.decoded_prefix(s.ids) for i, s in enumerate(own[: len(own) // 5]) if s.action
    }
    share = shares(model, [prompts[i] for i in leads], list(leads.values()), [own[i].action for i in leads])
    prompt = [i for i, span in enumerate(SPANS) if span not in BEHIND]
    for name, definition in (("attention_prompt", "attention"), ("gradient_prompt", "gradient_resid")):
        values = share.of(definition, "sink_free")[..., prompt].sum(-1).mean(-1)
        found[name] = (
            values[np.isfinite(values)],
            [e for e, known in zip(of(leads), np.isfinite(values)) if known],
        )
    return found


def steered(model, prompts, own, seed: int) -> dict[str, tuple]:
    """Flips along the probe's direction at the boundary - flips along random ones.

    Flips into a class, of decisions that gave no direction.
    """
    n, layer = len(prompts) // 5, (model.n_layers - 1) // 2
    acts = capture(model, prompts[n:], ["resid_post"], layers=[layer]).values[:, 0, 0].numpy()
    labels = [target(s.action) if s.action else "" for s in own[n:]]
    (a, _), (b, _) = Counter(filter(None, labels)).most_common(2)
    w = probe_direction(acts, labels, a, b)
    found = steer(
        model,
        prompts[:n],
        dict(probe=w, orthogonal=orthogonal_directions(w, seed=seed)),
        layer,
        target=a,
        alphas=(ALPHA,),
    )
    along = {c.kind: c.to_target.mean(0) for c in found.cells}
    return dict(steering=(along["probe"] - along["orthogonal"], [p.decision.episode for p in prompts[:n]]))


def estimated(found: dict[str, tuple], seed: int) -> list[dict]:
    """A row for each instrument's (values, episodes) or (columns, episodes, function of their means)."""
    known = {name: given for name, given in found.items() if len(given[0])}
    return [
        dict(instrument=name, **cluster_bootstrap(np.asarray(values), *rest, seed=seed).row())
        for name, (values, *rest) in known.items()
    ]


def readings(model, fmt, name: str, n: int, seed: int) -> list[dict]:
    """Every instrument's reading of one organism."""
    asked = decisions(name, n, seed)
    prompts = [fmt.prompt(d) for d in asked]
    clean, corrupt, _ = make_pairs(fmt, asked, n, seed)
    own = draw(model, prompts, seed=seed)
    found = {
        **mediated(model, clean, corrupt),
        **behind_traces(model, prompts, own, seed),
        **steered(model, prompts, own, seed),
        **exact(model, prompts, own, clean, corrupt),
    }
    return [*estimated(found, seed), *read_off(model, prompts, own, seed)]


def competent(model, fmt, name: str, n: int, seed: int) -> list[dict]:
    """The share of decisions answered as constructed; where it is low, nothing is calibrated."""
    asked = decisions(name, n, seed)
    said = draw(model, [fmt.prompt(d) for d in asked], seed=seed)
    return estimated(dict(competence=(np.array(competence(asked, said)), [d.episode for d in asked])), seed)
