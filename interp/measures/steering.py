"""Steering: a direction added to the residual stream while the action is decoded, and how often that changes the action.

>>> w = probe_direction(acts, labels, "shelf", "drawer")
>>> found = steer(model, prompts, {"probe": w, "orthogonal": orthogonal_directions(w)}, layer=1, position="cot", target="shelf")
>>> values, decision = found.column("probe", 0.5, "flip")            # for cluster_bootstrap, by the decisions' episodes

Not supported: sampling (decoding is greedy), several layers or several directions at once, the mode `empty_think`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm import tqdm

from interp.engine.capturing import capture
from interp.engine.decoding import LIMITS, Completion, decode, format_of, parse_completion
from interp.engine.generation import continue_rows, greedy
from interp.engine.reading import read_prompts, tree_batches
from interp.models.turns import measured
from interp.probing.directions import unit
from interp.prompts.format import Prompt
from interp.system.choices import Position
from interp.tasks import actions

POSITIONS: tuple[Position, ...] = get_args(Position)
METRICS = ("flip", "flip_parsed", "to_target", "parse")


@dataclass(frozen=True)
class Steered:
    """One kind of direction at one alpha, each array [direction, decision].

    `action`: what was done (None: unparsed); `flip`: it is not the unsteered action; `parsed`: it is an action; `judged`:
    the unsteered text is one as well; `to_target`: a flip into the target class, from another one. Of a kind of which each decision
    is steered along m directions only, row k holds direction (m * i + k) mod their number at decision i.
    """

    kind: str
    alpha: float
    action: list[list[str | None]]
    flip: Bool[np.ndarray, "direction decision"]
    parsed: Bool[np.ndarray, "direction decision"]
    judged: Bool[np.ndarray, "direction decision"]
    to_target: Bool[np.ndarray, "direction decision"]


@dataclass(frozen=True)
class Steering:
    """Every kind and alpha at one position and layer. `norm`: the residual's mean norm there, alpha's unit.

    `unsteered`: the plain decoding's actions [decision]; `resample`: where alpha 0 gives another one (nowhere, but for
    rounding in bfloat16). `path` is `batched`, or `plain loop` with the reason why the model is served by that one.
    """

    position: str
    mode: str
    layer: int
    norm: float
    target: str
    path: str
    unsteered: list[str | None]
    resample: Bool[np.ndarray, "decision"]
    cells: tuple[Steered, ...]

    def column(self, kind: str, alpha: float, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """One metric of one cell [row], and the decision of each row, the directions of a kind one after the other.

        `flip` over all decisions and `flip_parsed` over those whose two texts both parse are differences to the alpha 0 resample
        rate, row by row; `to_target` and `parse` are as counted. Raises ValueError for a cell or metric that is not there.
        """
        cell = next((c for c in self.cells if (c.kind, c.alpha) == (kind, alpha)), None)
        if cell is None or metric not in METRICS:
            raise ValueError(
                f"There is no {metric!r} of {kind!r} at alpha {alpha}: the metrics are {', '.join(METRICS)}, the cells "
                f"{', '.join(f'{c.kind} {c.alpha:g}' for c in self.cells)}."
            )
        values = {
            "flip": cell.flip,
            "flip_parsed": cell.flip,
            "to_target": cell.to_target,
            "parse": cell.parsed,
        }[metric]
        if metric.startswith("flip") and self.resample.any():
            values = values.astype(float) - self.resample
        row, decision = np.nonzero(cell.judged if metric == "flip_parsed" else np.ones_like(cell.judged))
        return values[row, decision], decision


def _hit(position: str, phase: str) -> bool:
    return position in (phase, "everywhere")


class _Tag:
    """Tells when the action tag is open: with the token that completes it, since until then no one knows."""

    def __init__(self, fmt):
        self.fmt, self.last, self.pieces = fmt, fmt.style.open_action.strip()[-1], {}

    def completed(self, ids: Sequence[int]) -> bool:
        """Whether ids generated in mode `cot` hold the opened tag, and their last token may have completed it."""
        if ids[-1] not in self.pieces:
            self.pieces[ids[-1]] = self.fmt.text(ids[-1:])
        return self.last in self.pieces[ids[-1]] and self.fmt.style.lead(self.fmt.text(ids)) is not None

    def place(self, ids: Sequence[int]) -> int | None:
        """Index of the token that completed the tag; None where it was never opened."""
        return next((i for i in range(len(ids)) if self.completed(ids[: i + 1])), None)


class _Edits:
    """The hooks of one batch: `vectors` [row, d_model] are added where a row's token lies in a steered phase."""

    def __init__(self, layer, position, tag, vectors, flags, acting):
        self.layer, self.position, self.tag, self.vectors, self.flags, self.acting = (
            layer,
            position,
            tag,
            vectors,
            flags,
            acting,
        )

    def __call__(self, owner, out, first):
        if first:
            width = max(map(len, self.flags))
            where = [[*f, *[False] * (width - len(f))] for f in self.flags]
        else:
            for i in owner:
                self.acting[i] = self.acting[i] or self.tag.completed(out[i])
            where = [[_hit(self.position, "action" if self.acting[i] else "cot")] for i in owner]
        where, vectors = torch.tensor(where, device=self.vectors.device), self.vectors[owner]
        return {
            ("resid_post", self.layer): lambda tensor: (
                tensor + (where[..., None] * vectors[:, None]).to(tensor.device)
            )
        }


def _opening(prompt: Prompt, mode: str, position: str) -> tuple[list[int], list[bool]]:
    """What is read from the boundary on before the first token is generated, and which of it is steered."""
    opening = prompt.format.mode_prefix(mode)
    return [prompt.ids[-1], *opening], [
        _hit(position, "boundary"),
        *[_hit(position, "action" if mode == "prompt" else "cot")] * len(opening),
    ]


def _chunks(lengths: Sequence[int], cells: int, batch_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """(cell, row) in batches of at most `batch_tokens` with padding; a row's cells stand together, so that little is padding."""
    chunk: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        for cell in range(cells):
            if chunk and lengths[row] * (len(chunk) + 1) > batch_tokens:
                yield chunk
                chunk = []
            chunk.append((cell, row))
    yield chunk


def _batched(
    model, prompts, vectors, layer, position, mode, unsteered, limit, batch_tokens, progress
) -> list[list[tuple[int, ...]]]:
    """Generated ids [cell][decision] for vectors [cell, decision, d_model]; what lies before the first steered token is read once for all cells."""
    fmt = format_of(model, prompts)
    tag, stop = _Tag(fmt), fmt.ended(mode)
    found = [[s.ids for s in unsteered] for _ in vectors]
    prefixes, suffixes, flags, begun, which = [], [], [], [], []
    for i, prompt in enumerate(prompts):
        read, steered = _opening(prompt, mode, position)
        prefix, told = prompt.ids[:-1], ()
        if (
            position == "action" and mode == "cot"
        ):  # up to the tag nothing is steered, so the trace is the unsteered one
            ids = unsteered[i].ids
            if (at := tag.place(ids)) is None:
                continue
            prefix, read, steered, told = (*prefix, *read, *ids[:at]), [ids[at]], [True], ids[: at + 1]
        for each, value in zip((prefixes, suffixes, flags, begun, which), (prefix, read, steered, told, i)):
            each.append(value)
    for group in tqdm(tree_batches(prefixes, batch_tokens), desc="steer", leave=False, disable=not progress):
        model.check_length(max(len(prefixes[r]) + len(suffixes[r]) for r in group) + limit)
        layers, seen = read_prompts(model, [prefixes[r] for r in group])
        for chunk in _chunks([len(prefixes[r]) + limit for r in group], len(vectors), batch_tokens):
            cells, rows = (list(x) for x in zip(*chunk))
            own = [group[r] for r in rows]
            width = max(len(prefixes[r]) for r in own)
            edits = _Edits(
                layer,
                position,
                tag,
                vectors[cells, [which[r] for r in own]],
                [flags[r] for r in own],
                [mode == "prompt" or bool(begun[r]) for r in own],
            )
            out = continue_rows(
                model,
                [(k[rows, :, :width], v[rows, :, :width]) for k, v in layers],
                seen[rows, :width],
                [suffixes[r] for r in own],
                [stop] * len(own),
                [limit - min(len(begun[r]) for r in own)] * len(own),
                greedy,
                begun=[begun[r] for r in own],
                edits=edits,
            )
            for cell, r, continuation in zip(cells, own, out):
                found[cell][which[r]] = continuation.ids[:limit]
    return found


def _plain(model, prompt: Prompt, vector, layer, position, mode, limit) -> tuple[int, ...]:
    """One decision at one vector, every token read anew for every one that is generated."""
    fmt = format_of(model, [prompt])
    tag, stop, acting, out = _Tag(fmt), fmt.ended(mode), mode == "prompt", []
    read, steered = _opening(prompt, mode, position)
    head, steered = [*prompt.ids[:-1], *read], [*[False] * (len(prompt.ids) - 1), *steered]
    model.check_length(len(head) + limit)
    while not (out and (stop(out) or len(out) == limit)):
        if out:
            acting = acting or tag.completed(out)
            steered.append(_hit(position, "action" if acting else "cot"))
        where = torch.tensor(steered, device=model.device)[:, None]
        with model.hooks({("resid_post", layer): lambda tensor: tensor + (where * vector).to(tensor.device)}):
            hidden = model.whole(torch.tensor([[*head, *out]], device=model.device))
        out.append(int(model.logits(hidden[0, -1]).argmax()))
    return tuple(out)


def _check(model, prompts, directions, layer, position, mode, alphas, per_decision) -> dict[str, np.ndarray]:
    """The directions as unit rows [direction, d_model], or a ValueError."""
    if not prompts:
        raise ValueError("There is nothing to steer: the list of prompts is empty.")
    if position not in POSITIONS:
        raise ValueError(
            f"There is no position {position!r} to steer at: the positions are {', '.join(POSITIONS)}."
        )
    if mode not in ("cot", "prompt"):
        raise ValueError(f"Steering decodes in mode cot or prompt, not {mode!r}.")
    if position == "cot" and mode == "prompt":
        raise ValueError(
            "In mode prompt no trace is written, so there is none to steer during: use mode cot, or another position."
        )
    if layer not in range(model.n_layers):
        raise ValueError(f"The layer must be one of 0 to {model.n_layers - 1}, not {layer}.")
    if not len(alphas) or not np.isfinite(alphas).all():
        raise ValueError(f"The alphas must be some finite numbers, not {list(alphas)}.")
    if per_decision is not None and per_decision < 1:
        raise ValueError(
            f"Each decision is steered along at least one direction of a kind, not {per_decision}."
        )
    if not directions:
        raise ValueError("No direction is given: name at least one kind.")
    found = {}
    for kind, given in directions.items():
        rows = np.atleast_2d(np.asarray(given, dtype=float))
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != model.d_model:
            raise ValueError(
                f"The directions {kind!r} are of shape {np.shape(given)}, but this model's residual stream has {model.d_model} numbers."
            )
        found[kind] = unit(rows, f"one of {kind!r} is not")
    return found


@measured
@torch.inference_mode()
def steer(
    model,
    prompts: Sequence[Prompt],
    directions: Mapping[str, Float[np.ndarray, "direction d_model"]],
    layer: int,
    *,
    target: str,
    position: Position = "boundary",
    alphas: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
    mode: Literal["cot", "prompt"] = "cot",
    classify: Callable[[str], str] = actions.target,
    parser: Callable[[str], str | None] = str,
    unsteered: Sequence[Completion] | None = None,
    per_decision: int | None = None,
    max_new_tokens: int | None = None,
    batch_tokens: int = 24576,
    progress: bool = False,
) -> Steering:
    """Add alpha * norm * direction to `resid_post` of one layer while decoding greedily: every direction at every alpha.

    directions: kind -> one vector or several, of any length (they are made unit vectors). alphas: in units of the mean norm
    of that residual at these prompts' boundary. target: the class, by `classify`, that the directions point to.
    position: `boundary`, the last prompt token; `cot`, from there until the action tag is open (the trace's tags among it);
    `action`, from the token that completes that tag on; `everywhere`, all of these. unsteered: what `decode` gave in this
    mode with the same parser and limit, where it is known already. per_decision: of a kind of more directions than this, each
    decision is steered along that many, the next decision along the next ones, so that all of them count alike for less work (None:
    every direction at every decision). max_new_tokens: `LIMITS[mode]` where None.
    Flips are counted against the unsteered action. Raises ValueError for no prompts, an unknown position, mode or layer,
    position `cot` in mode `prompt`, alphas that are not finite, and directions that are zero or of another width.
    """
    units = _check(model, prompts, directions, layer, position, mode, alphas, per_decision)
    limit = LIMITS[mode] if max_new_tokens is None else max_new_tokens
    if limit < 1:
        raise ValueError(f"max_new_tokens is a number from 1 on, not {limit}.")
    norm = float(capture(model, prompts, ["resid_post"], layers=[layer]).values[:, 0, 0].norm(dim=-1).mean())
    unsteered = (
        decode(model, prompts, mode, parser=parser, max_new_tokens=limit, progress=progress)
        if unsteered is None
        else list(unsteered)
    )
    if len(unsteered) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts but {len(unsteered)} unsteered decodings: give one for each."
        )
    along = {kind: min(len(rows), per_decision or len(rows)) for kind, rows in units.items()}
    # alpha 0 is the same run for every direction
    cells = [
        (kind, k, alpha)
        for kind, m in along.items()
        for alpha in dict.fromkeys(alphas)
        if alpha
        for k in range(m)
    ]
    vectors = np.zeros((1 + len(cells), len(prompts), model.d_model))
    for cell, (kind, k, alpha) in enumerate(cells, start=1):
        vectors[cell] = (
            alpha * norm * units[kind][(along[kind] * np.arange(len(prompts)) + k) % len(units[kind])]
        )
    vectors = torch.tensor(vectors, dtype=model.dtype, device=model.device)
    longest = max(len(p.ids) + len(p.format.mode_prefix(mode)) for p in prompts) + limit
    fast = model.support.trajectory == "fast" and model.packs(longest)
    if fast:
        out = _batched(
            model, prompts, vectors, layer, position, mode, unsteered, limit, batch_tokens, progress
        )
    else:
        out = [
            [_plain(model, p, vector, layer, position, mode, limit) for p, vector in zip(prompts, each)]
            for each in vectors
        ]
    fmt = format_of(model, prompts)
    did = [[parse_completion(fmt, ids, mode, parser).action for ids in each] for each in out]
    before, of = [s.action for s in unsteered], dict(zip(cells, did[1:]))
    rows = [
        (kind, alpha, [of.get((kind, k, alpha), did[0]) for k in range(m)])
        for kind, m in along.items()
        for alpha in dict.fromkeys(alphas)
    ]
    return Steering(
        position,
        mode,
        int(layer),
        norm,
        target,
        "batched" if fast else model.path(longest),
        before,
        np.array([a != b for a, b in zip(did[0], before)]),
        tuple(_counted(kind, float(alpha), action, before, classify, target) for kind, alpha, action in rows),
    )


def _counted(kind, alpha, action, before, classify, target) -> Steered:
    def per_decision(judge):
        return np.array([[judge(a, b) for a, b in zip(each, before)] for each in action], dtype=bool)

    def reached(a, b):
        return a is not None and classify(a) == target and (b is None or classify(b) != target)

    return Steered(
        kind,
        alpha,
        action,
        per_decision(lambda a, b: a != b),
        per_decision(lambda a, b: a is not None),
        per_decision(lambda a, b: a is not None and b is not None),
        per_decision(reached),
    )
