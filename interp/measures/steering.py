"""Steering: a direction added to the residual stream while the action is decoded, and how often it changes.

>>> w = probe_direction(acts, labels, "shelf", "drawer")
>>> directions = {"probe": w, "orthogonal": orthogonal_directions(w)}
>>> result = steer(model, prompts, directions, layer=1, position="cot", target="shelf")
>>> values, decision = result.column("probe", 0.5, "flip")            # for cluster_bootstrap, by episode

Not supported: sampling, several layers or directions at once, the mode `empty_think`. For plain text see
`interp.measures.steered_answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm import tqdm

from interp.engine.capturing import capture
from interp.engine.decoding import LIMITS, Completion, decode, format_of, parse_completion
from interp.engine.generation import continue_rows
from interp.engine.picking import greedy
from interp.engine.reading import read_prompts, tree_batches
from interp.measures.steered import METRICS as METRICS
from interp.measures.steered import Actions, Steered, Steering
from interp.models.hooked import HookedModel
from interp.models.turns import measured
from interp.probing.directions import unit
from interp.prompts.format import Mode, Prompt, PromptFormat
from interp.system.choices import Position
from interp.system.options import takes_fields
from interp.tasks import actions

POSITIONS: tuple[Position, ...] = get_args(Position)
#: Vectors of one kind, or a single one, of any length.
Directions = Mapping[str, Shaped[np.ndarray, "..."] | Sequence]


@dataclass(frozen=True)
class SteerOptions:
    """How `steer` decodes and counts."""

    alphas: Sequence[float] = (0.0, 0.25, 0.5, 1.0)
    """In units of the mean norm of the residual at these prompts' boundary."""
    classify: Callable[[str], str] = actions.target
    """An action's class."""
    parser: Callable[[str], str | None] = str
    """From an action's text to the action; None where it is none."""
    per_decision: int | None = None
    """Directions of a kind for each decision (None: all); the next decision has the next ones."""
    max_new_tokens: int | None = None
    """`LIMITS[mode]` where None."""
    batch_tokens: int = 24576
    """Most tokens of a batch, padding included."""
    progress: bool = False

    def limit(self, mode: str) -> int:
        """Most tokens to generate; raises ValueError for none."""
        limit = LIMITS[mode] if self.max_new_tokens is None else self.max_new_tokens
        if limit < 1:
            raise ValueError(f"max_new_tokens is a number from 1 on, not {limit}.")
        return limit


def _hit(position: str, phase: str) -> bool:
    return position in (phase, "everywhere")


class _Tag:
    """Tells when the action tag is open: from the token that completes it on."""

    def __init__(self, fmt: PromptFormat) -> None:
        self.fmt, self.last = fmt, fmt.style.open_action.strip()[-1]
        self.pieces: dict[int, str] = {}

    def completed(self, ids: Sequence[int]) -> bool:
        """Whether ids generated in mode `cot` hold the opened tag, and the last one may have completed it."""
        if ids[-1] not in self.pieces:
            self.pieces[ids[-1]] = self.fmt.text(ids[-1:])
        return self.last in self.pieces[ids[-1]] and self.fmt.style.lead(self.fmt.text(ids)) is not None

    def place(self, ids: Sequence[int]) -> int | None:
        """Index of the token that completed the tag; None where it was never opened."""
        return next((i for i in range(len(ids)) if self.completed(ids[: i + 1])), None)


def _adding(added: Float[Tensor, "*row token d_model"]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor + added.to(tensor.device)


@dataclass
class _Edits:
    """The hooks of one batch: `vectors` [row, d_model] are added where a row's token lies in a steered phase.

    `flags`: which of each row's first tokens are steered. `acting`: whether a row has opened its action.
    """

    layer: int
    position: str
    tag: _Tag
    vectors: Float[Tensor, "row d_model"]
    flags: list[list[bool]]
    acting: list[bool]

    def __call__(
        self, owner: Sequence[int], out: Sequence[Sequence[int]], first: bool, at: Int[Tensor, "row token"]
    ) -> dict[tuple[str, int], Callable[[Tensor], Tensor]]:
        if first:
            width = max(map(len, self.flags))
            steered = [[*flags, *[False] * (width - len(flags))] for flags in self.flags]
        else:
            for i in owner:
                self.acting[i] = self.acting[i] or self.tag.completed(out[i])
            steered = [[_hit(self.position, "action" if self.acting[i] else "cot")] for i in owner]
        vectors = self.vectors[list(owner)]
        added = torch.tensor(steered, device=vectors.device)[..., None] * vectors[:, None]
        return {("resid_post", self.layer): _adding(added)}


@dataclass
class _Row:
    """One decision of a batch: what is read before and in the first steered pass, and what is steered."""

    decision: int
    prefix: Sequence[int]
    suffix: list[int]
    flags: list[bool]
    begun: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Run:
    """What steering is decoded with."""

    model: HookedModel
    fmt: PromptFormat
    layer: int
    position: str
    mode: Mode
    limit: int

    @cached_property
    def tag(self) -> _Tag:
        return _Tag(self.fmt)

    @cached_property
    def stop(self) -> Callable[[Sequence[int]], bool]:
        return self.fmt.ended(self.mode)

    def opening(self, prompt: Prompt) -> tuple[list[int], list[bool]]:
        """What is read from the boundary on before the first token is generated, and what is steered."""
        opening = prompt.format.mode_prefix(self.mode)
        phase = _hit(self.position, "action" if self.mode == "prompt" else "cot")
        flags = [_hit(self.position, "boundary"), *[phase] * len(opening)]
        return [prompt.ids[-1], *opening], flags

    def row(self, index: int, prompt: Prompt, unsteered: Sequence[int]) -> _Row | None:
        """How one decision is read; None where nothing of it is steered."""
        suffix, flags = self.opening(prompt)
        if self.position != "action" or self.mode != "cot":
            return _Row(index, prompt.ids[:-1], suffix, flags)
        at = self.tag.place(unsteered)  # up to the tag nothing is steered, so the trace is the unsteered one
        if at is None:
            return None
        prefix = (*prompt.ids[:-1], *suffix, *unsteered[:at])
        return _Row(index, prefix, [unsteered[at]], [True], tuple(unsteered[: at + 1]))


def _chunks(lengths: Sequence[int], cells: int, batch_tokens: int) -> Iterator[list[tuple[int, int]]]:
    """(cell, row) in batches of at most `batch_tokens` with padding, a row's cells side by side."""
    chunk: list[tuple[int, int]] = []
    for row in sorted(range(len(lengths)), key=lambda r: lengths[r]):
        for cell in range(cells):
            if chunk and lengths[row] * (len(chunk) + 1) > batch_tokens:
                yield chunk
                chunk = []
            chunk.append((cell, row))
    yield chunk


def _batched(
    run: _Run,
    prompts: Sequence[Prompt],
    vectors: Float[Tensor, "cell decision d_model"],
    unsteered: Sequence[Completion],
    batch_tokens: int,
    progress: bool,
) -> list[list[tuple[int, ...]]]:
    """Generated ids [cell][decision]; what lies before the first steered token is read once for all cells."""
    model, limit = run.model, run.limit
    generated = [[completion.ids for completion in unsteered] for _ in vectors]
    candidates = (run.row(i, prompt, unsteered[i].ids) for i, prompt in enumerate(prompts))
    rows = [row for row in candidates if row is not None]
    groups = tree_batches([row.prefix for row in rows], batch_tokens)
    for group in tqdm(groups, desc="steer", leave=False, disable=not progress):
        model.check_length(max(len(rows[r].prefix) + len(rows[r].suffix) for r in group) + limit)
        layers, seen = read_prompts(model, [rows[r].prefix for r in group])
        lengths = [len(rows[r].prefix) + limit for r in group]
        for chunk in _chunks(lengths, len(vectors), batch_tokens):
            cells, index = [cell for cell, _ in chunk], [r for _, r in chunk]
            own = [rows[group[r]] for r in index]
            width = max(len(row.prefix) for row in own)
            out = continue_rows(
                model,
                [(k[index, :, :width], v[index, :, :width]) for k, v in layers],
                seen[index, :width],
                [row.suffix for row in own],
                [run.stop] * len(own),
                [limit - min(len(row.begun) for row in own)] * len(own),
                greedy,
                begun=[row.begun for row in own],
                edits=_Edits(
                    run.layer,
                    run.position,
                    run.tag,
                    vectors[cells, [row.decision for row in own]],
                    [row.flags for row in own],
                    [run.mode == "prompt" or bool(row.begun) for row in own],
                ),
            )
            for cell, row, continuation in zip(cells, own, out):
                generated[cell][row.decision] = continuation.ids[:limit]
    return generated


def _plain(
    model: HookedModel,
    prompt: Prompt,
    vector: Float[Tensor, "d_model"],
    layer: int,
    position: str,
    mode: Mode,
    limit: int,
) -> tuple[int, ...]:
    """The reference implementation of a row of `_batched`: all tokens are read anew for each new one."""
    run = _Run(model, format_of(model, [prompt]), layer, position, mode, limit)
    suffix, flags = run.opening(prompt)
    head, steered = [*prompt.ids[:-1], *suffix], [*[False] * (len(prompt.ids) - 1), *flags]
    model.check_length(len(head) + limit)
    acting = mode == "prompt"
    out: list[int] = []
    while not (out and (run.stop(out) or len(out) == limit)):
        if out:
            acting = acting or run.tag.completed(out)
            steered.append(_hit(position, "action" if acting else "cot"))
        added = torch.tensor(steered, device=model.device)[:, None] * vector
        with model.hooks({("resid_post", layer): _adding(added)}):
            hidden = model.whole(torch.tensor([[*head, *out]], device=model.device))
        out.append(int(model.logits(hidden[0, -1]).argmax()))
    return tuple(out)


def check_strengths(model: HookedModel, layer: int, alphas: Sequence[float]) -> None:
    """Raise ValueError for a layer that the model does not have, and for alphas that are not finite."""
    if layer not in range(model.n_layers):
        raise ValueError(f"The layer must be one of 0 to {model.n_layers - 1}, not {layer}.")
    if not len(alphas) or not np.isfinite(alphas).all():
        raise ValueError(f"The alphas must be some finite numbers, not {list(alphas)}.")


def _check(
    model: HookedModel,
    prompts: Sequence[Prompt],
    layer: int,
    position: str,
    options: SteerOptions,
) -> None:
    if not prompts:
        raise ValueError("There is nothing to steer: the list of prompts is empty.")
    if position not in POSITIONS:
        raise ValueError(
            f"There is no position {position!r} to steer at: the positions are {', '.join(POSITIONS)}."
        )
    if not all(isinstance(prompt, Prompt) for prompt in prompts):
        raise ValueError(
            "`steer` decodes actions, so it takes prompts of a PromptFormat: for texts or token ids, "
            "`interp.steer_answers` reads what steering does to given answers."
        )
    check_strengths(model, layer, options.alphas)
    if options.per_decision is not None and options.per_decision < 1:
        raise ValueError(
            f"Each decision is steered along at least one direction of a kind, not {options.per_decision}."
        )


def _checked_mode(mode: str, position: str) -> Mode:
    if mode == "cot":
        return "cot"
    if mode != "prompt":
        raise ValueError(f"Steering decodes in mode cot or prompt, not {mode!r}.")
    if position == "cot":
        raise ValueError(
            "In mode prompt no trace is written, so there is none to steer during: "
            "use mode cot, or another position."
        )
    return "prompt"


def unit_directions(directions: Directions, d_model: int) -> dict[str, Float[np.ndarray, "_ d_model"]]:
    """The directions of each kind at length 1, [direction, d_model], or a ValueError."""
    if not directions:
        raise ValueError("No direction is given: name at least one kind.")
    units = {}
    for kind, vectors in directions.items():
        rows = np.atleast_2d(np.asarray(vectors, dtype=float))
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != d_model:
            raise ValueError(
                f"The directions {kind!r} are of shape {np.shape(vectors)}, but this model's residual stream "
                f"has {d_model} numbers."
            )
        units[kind] = unit(rows, f"one of {kind!r} is not")
    return units


@takes_fields(SteerOptions)
@measured
@torch.inference_mode()
def steer(
    model: HookedModel,
    prompts: Sequence[Prompt],
    directions: Directions,
    layer: int,
    *,
    target: str,
    position: str = "boundary",
    mode: str = "cot",
    unsteered: Sequence[Completion] | None = None,
    options: SteerOptions = SteerOptions(),
) -> Steering:
    """Add alpha * norm * direction to `resid_post` of one layer while decoding greedily.

    Every direction is added at every alpha. Flips are counted against the unsteered action.

    Args:
        directions: kind -> vectors [direction, d_model] (or one vector), of any length: they are made unit
            vectors.
        target: the class, by `options.classify`, that the directions point to.
        position: `boundary`, the last prompt token; `cot`, from there until the action tag is open (the
            trace's tags among it); `action`, from the token that completes that tag on; `everywhere`, all of
            these.
        unsteered: what `decode` gave in this mode with the same parser and limit, where it is there already.
        options: how to decode and count; its fields are also taken as keywords.

    Raises:
        ValueError: for no prompts, an unknown position, mode or layer, position `cot` in mode `prompt`,
            alphas that are not finite, and directions that are zero or of another width.
    """
    _check(model, prompts, layer, position, options)
    checked = _checked_mode(mode, position)
    units, limit = unit_directions(directions, model.d_model), options.limit(checked)
    run = _Run(model, format_of(model, prompts), layer, position, checked, limit)
    if unsteered is None:
        unsteered = decode(
            model, prompts, run.mode, parser=options.parser, max_new_tokens=limit, progress=options.progress
        )
    if len(unsteered) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts but {len(unsteered)} unsteered decodings: give one for each."
        )
    residual = capture(model, prompts, ["resid_post"], layers=[layer]).values[:, 0, 0]
    norm = float(residual.norm(dim=-1).mean())
    rows = {kind: min(len(vectors), options.per_decision or len(vectors)) for kind, vectors in units.items()}
    cells, vectors = _cells(units, rows, options.alphas, norm, len(prompts))
    ids, path = _decoded(run, prompts, vectors, unsteered, options)
    done = [
        [parse_completion(run.fmt, each, run.mode, options.parser).action for each in cell] for cell in ids
    ]
    before = [completion.action for completion in unsteered]
    by_cell = dict(zip(cells, done[1:]))
    steered = []
    for kind, n_rows in rows.items():
        for alpha in dict.fromkeys(options.alphas):
            chosen = [by_cell.get((kind, k, alpha), done[0]) for k in range(n_rows)]
            steered.append(_counted(kind, float(alpha), chosen, before, options.classify, target))
    resample = np.array([a != b for a, b in zip(done[0], before)])
    return Steering(position, mode, int(layer), norm, target, path, before, resample, tuple(steered))


def _cells(
    units: Mapping[str, Float[np.ndarray, "_ d_model"]],
    rows: Mapping[str, int],
    alphas: Sequence[float],
    norm: float,
    n: int,
) -> tuple[list[tuple[str, int, float]], Float[np.ndarray, "cell decision d_model"]]:
    """(kind, row, alpha) of each steered run, and what is added; first comes alpha 0, the same for all."""
    cells = []
    vectors = [np.zeros((n, next(iter(units.values())).shape[1]))]
    for kind, n_rows in rows.items():
        for alpha in dict.fromkeys(alphas):
            for k in range(n_rows if alpha else 0):
                cells.append((kind, k, alpha))
                direction = (n_rows * np.arange(n) + k) % len(units[kind])
                vectors.append(alpha * norm * units[kind][direction])
    return cells, np.stack(vectors)


def _decoded(
    run: _Run,
    prompts: Sequence[Prompt],
    vectors: Float[np.ndarray, "cell decision d_model"],
    unsteered: Sequence[Completion],
    options: SteerOptions,
) -> tuple[list[list[tuple[int, ...]]], str]:
    """Generated ids [cell][decision], and the path that they were decoded on."""
    model = run.model
    added = torch.tensor(vectors, dtype=model.dtype, device=model.device)
    longest = max(len(p.ids) + len(p.format.mode_prefix(run.mode)) for p in prompts) + run.limit
    if model.support.trajectory == "fast" and model.packs(longest):
        return _batched(run, prompts, added, unsteered, options.batch_tokens, options.progress), "batched"

    def plain(prompt: Prompt, vector: Float[Tensor, "d_model"]) -> tuple[int, ...]:
        return _plain(model, prompt, vector, run.layer, run.position, run.mode, run.limit)

    ids = [[plain(*each) for each in zip(prompts, of_cell)] for of_cell in added]
    return ids, model.path(longest)


def _counted(
    kind: str,
    alpha: float,
    action: Actions,
    before: Sequence[str | None],
    classify: Callable[[str], str],
    target: str,
) -> Steered:
    def judged(judge: Callable[[str | None, str | None], bool]) -> Bool[np.ndarray, "direction decision"]:
        return np.array([[judge(a, b) for a, b in zip(each, before)] for each in action], dtype=bool)

    def reached(a: str | None, b: str | None) -> bool:
        return a is not None and classify(a) == target and (b is None or classify(b) != target)

    return Steered(
        kind,
        alpha,
        action,
        flip=judged(lambda a, b: a != b),
        parsed=judged(lambda a, b: a is not None),
        judged=judged(lambda a, b: a is not None and b is not None),
        to_target=judged(reached),
    )
