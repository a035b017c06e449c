"""Continuations of many prompts, greedy or sampled, each prompt read once for all of its own.

The prompts' keys and values are kept (`interp.engine.reading`), and every variant (a mode's opening, a
spliced trace) goes on from them, many prompts in one batch. The reference implementation is Hugging Face's
`generate`, prompt by prompt (tested).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm

from interp.engine.bundles import bundles, continue_bundles
from interp.engine.outputs import Continuation, Output, Pick, Stop, suffix_logp
from interp.engine.picking import picker, uniform_numbers
from interp.engine.reading import Memory, Rows, prompt_batches, read_on, read_prompts
from interp.engine.remembered import Remembering, recalled
from interp.engine.stepping import Steps
from interp.models.caches import Layers, selected
from interp.models.devices import SHARE, fetched, free_for, halved, sent, token_bytes
from interp.models.hooked import HookedModel
from interp.models.hooks import Edit, Edits, PassEdit, Where
from interp.models.site_names import one_layer
from interp.models.turns import measured
from interp.models.whole import Growing, length_batches, padded

#: Tokens of prompts that are continued together on a CPU, the fewest and the most: as many as have twice the
#: bytes of the weights. A step reads those once for a batch, and more would only be padded further.
FEWEST, BATCH = 12288, 24576
#: On a GPU: most tokens of prompts that are continued together, and copies of their keys and values there
#: may be.
KEPT, COPIES = 2**18, 2.5
#: continuation of each row, ids of each continuation, whether the suffixes are read, and the position of
#: each token (-1 for padding) -> edits in that pass
EditPass = Callable[[Sequence[int], Sequence[Sequence[int]], bool, Int[Tensor, "row token"]], Edits]
#: Functions that run on sites in every pass.
Hooks = Mapping[str | tuple[str, int], PassEdit]
#: A variant and the index of a prompt.
Key = tuple[str, int]
#: Indices of prompts, their keys and values, and which of their slots count; slots beyond may be written to.
OnRead = Callable[[Sequence[int], Layers, Bool[Tensor, "row slot"]], None]


def _unpadded(at: Int[Tensor, "row token"], lengths: Sequence[int]) -> Int[Tensor, "row token"]:
    """Positions of tokens, -1 for what pads each row on the right."""
    read = torch.arange(at.shape[1], device=at.device) < torch.tensor(lengths, device=at.device)[:, None]
    return torch.where(read, at, -1)


def _ahead(model: HookedModel) -> int:
    """How many passes begin before an earlier one's tokens are read: a GPU must not wait for the CPU."""
    return int(model.device.type == "cuda")


def continue_rows(
    model: HookedModel,
    layers: Layers,
    seen: Bool[Tensor, "row slot"],
    suffixes: Sequence[Sequence[int]],
    stops: Sequence[Stop],
    limits: Sequence[int],
    pick: Pick,
    *,
    begun: Sequence[Sequence[int]] = (),
    edits: EditPass | None = None,
    starts: Sequence[int] = (),
    remembering: Remembering | None = None,
) -> list[Continuation]:
    """Continue the rows of one batch.

    Args:
        layers: the prompts' keys and values.
        seen: which of their slots count; on the CPU.
        suffixes: ids of each row that are read before generating.
        stops, limits: of each row, the latter in tokens.
        begun: ids generated earlier, with which each row's ids begin.
        edits: of each pass; then no pass begins before the tokens of the one before it are known.
        starts: tokens of each suffix that its log-probability leaves out (none where not given).
        remembering: takes the keys and values of each row that ends.
    """
    lengths = list(map(len, suffixes))
    ids = padded(suffixes, model.device)
    most = max(limits)
    rows = Rows(model, layers, seen, lengths, most)
    steps = Steps(rows, recording=edits is None)
    out = Output([list(b) for b in begun] or [[] for _ in suffixes], stops, limits)
    owner = list(range(len(suffixes)))  # row of the running batch -> continuation
    # What gives the tokens of passes that were not looked at yet, and the continuation of each.
    picked: deque[tuple[list[int], Callable[[], Tensor]]] = deque()
    ahead = 0 if edits else _ahead(model)  # an edit depends on the tokens before it

    def edited(new: int, first: bool) -> AbstractContextManager[None]:
        if edits is None:
            return nullcontext()
        at = rows.at[:, rows.used : rows.used + new]
        return model.hooks(edits(owner, out.ids, first, _unpadded(at, lengths) if first else at))

    with edited(ids.shape[1], True):
        hidden = rows.forward(ids)
    spans = [(r, start, n) for r, (start, n) in enumerate(zip(starts or [0] * len(lengths), lengths))]
    logp = suffix_logp(model, hidden, ids, spans)
    last = sent(torch.tensor(lengths) - 1, model.device)
    token = pick(model.logits(hidden[torch.arange(len(lengths), device=model.device), last]), owner, 0)
    for step in range(1, most + 1):
        picked.append((owner, fetched(token)))
        while len(picked) > (ahead if step < most else 0):
            earlier, tokens = picked.popleft()
            out.add(earlier, tokens().tolist())
        alive = [r for r, i in enumerate(owner) if i not in out.over]
        drops = len(alive) <= len(owner) // 2 and steps.drops(most - step)
        if remembering and (drops or not alive):
            over = [(r, i, out.ids[i]) for r, i in enumerate(owner) if i in out.over]
            remembering.take(steps.layers(), over)
        if not alive:
            break
        if drops:
            kept = sent(torch.tensor(alive), model.device)
            steps.keep(kept)
            token, owner = token[kept], [owner[r] for r in alive]
        with edited(1, False):
            hidden = steps.forward(token[:, None], most - step)
        token = pick(model.logits(hidden[:, 0]), owner, step)
    return [Continuation(tuple(o), p) for o, p in zip(out.ids, logp().tolist())]


def _plain(
    model: HookedModel,
    prompt: Sequence[int],
    suffix: Sequence[int],
    stop: Stop,
    max_new_tokens: int,
    pick: Pick,
) -> Continuation:
    """One continuation by itself, without padding, a mask or another's keys and values."""
    sequence = Growing(model)
    suffix_ids = torch.tensor(list(suffix), device=model.device)
    hidden = sequence.add([*prompt, *suffix])[len(prompt) :]
    logp = model.logits(hidden[:-1]).log_softmax(-1).gather(1, suffix_ids[1:, None]).sum().item()
    out: list[int] = []
    while True:
        out.append(int(pick(model.logits(hidden[-1:]), [0], len(out))))
        if stop(out) or len(out) == max_new_tokens:
            return Continuation(tuple(out), logp / max(1, len(suffix) - 1))
        hidden = sequence.add(out[-1:])


@dataclass(frozen=True)
class _Request:
    """What `continue_each` is to do; `uniform` are the numbers of each variant [prompt, token] to draw by."""

    model: HookedModel
    prompts: Sequence[Sequence[int]]
    variants: Mapping[str, Sequence[Sequence[int] | None]]
    stops: Mapping[str, Stop]
    limits: Mapping[str, int]
    temperature: float
    uniform: Mapping[str, Tensor]
    hooks: Hooks

    def keys(self) -> list[Key]:
        """Each prompt of each variant that has a suffix for it."""
        return [
            (name, i)
            for name, suffixes in self.variants.items()
            for i, suffix in enumerate(suffixes)
            if suffix is not None
        ]

    def suffix(self, key: Key) -> Sequence[int]:
        """The ids that a prompt is continued after."""
        name, i = key
        suffix = self.variants[name][i]
        assert suffix is not None
        return suffix

    def room(self, key: Key) -> int:
        """Most tokens after a prompt."""
        return len(self.suffix(key)) + self.limits[key[0]]

    def length(self, key: Key) -> int:
        """Most tokens of a prompt with what follows it."""
        return len(self.prompts[key[1]]) + self.room(key)

    def is_alone(self, key: Key) -> bool:
        """Whether a prompt of that length cannot be in a batch."""
        tokens = self.length(key)
        fast = self.model.support.trajectory == "fast"
        return not fast or self.model.rereads(tokens) or not self.model.packs(tokens)

    def _pick(self, keys: Sequence[Key]) -> Pick:
        return picker(self.temperature, torch.stack([self.uniform[name][i] for name, i in keys]))

    def alone(self, key: Key) -> Continuation:
        """Continue one prompt by itself."""
        name, i = key
        suffix, pick = self.suffix(key), self._pick([key])
        with self.model.hooks(self._alone(i), passes="any") if self.hooks else nullcontext():
            return _plain(self.model, self.prompts[i], suffix, self.stops[name], self.limits[name], pick)

    def _alone(self, prompt: int) -> Hooks:
        """The hooks for the passes of one prompt by itself."""

        def of_prompt(hook: PassEdit) -> PassEdit:
            return lambda tensor, where: hook(
                tensor, Where(torch.full_like(where.prompt, prompt), where.position)
            )

        return {key: of_prompt(hook) for key, hook in self.hooks.items()}

    def hooked(self, keys: Sequence[Key]) -> list[Continuation]:
        """Continue a batch of prompts under the hooks, which run from the first token of each prompt on."""
        layers = [
            (k.expand(len(keys), -1, -1, -1), v.expand(len(keys), -1, -1, -1)) for k, v in self.model.empty()
        ]
        names = [name for name, _ in keys]
        prompts = torch.tensor([i for _, i in keys], device=self.model.device)

        def edits(
            owner: Sequence[int], ids: Sequence[Sequence[int]], first: bool, at: Int[Tensor, "row token"]
        ) -> Edits:
            where = Where(prompts[list(owner)], at)

            def told(hook: PassEdit) -> Edit:
                return lambda tensor: hook(tensor, where)

            return {one_layer(key): told(hook) for key, hook in self.hooks.items()}

        return continue_rows(
            self.model,
            layers,
            torch.zeros(len(keys), 0, dtype=torch.bool),
            [[*self.prompts[i], *self.suffix((name, i))] for name, i in keys],
            [self.stops[name] for name in names],
            [self.limits[name] for name in names],
            self._pick(keys),
            edits=edits,
            starts=[len(self.prompts[i]) for _, i in keys],
        )

    def together(
        self, keys: Sequence[Key], layers: Layers, seen: Bool[Tensor, "row slot"]
    ) -> list[Continuation]:
        """Continue a batch of prompts whose keys and values were read."""
        names = [name for name, _ in keys]
        return continue_rows(
            self.model,
            layers,
            seen,
            [self.suffix(key) for key in keys],
            [self.stops[name] for name in names],
            [self.limits[name] for name in names],
            self._pick(keys),
        )

    def extended(self, keys: Sequence[Key], memory: Memory, names: Sequence[Hashable]) -> list[Continuation]:
        """As `together`, from what a memory holds of each prompt, which has one continuation.

        names: of all prompts; their continuations are then in the memory.
        """
        prompts = [self.prompts[i] for _, i in keys]
        own_names = [names[i] for _, i in keys]
        before = recalled(self.model, prompts, own_names, memory, max(map(self.room, keys)))
        suffixes = [[*unread, *self.suffix(key)] for unread, key in zip(before.unread, keys)]
        rows = [[*prompt, *self.suffix(key)] for prompt, key in zip(prompts, keys)]
        return continue_rows(
            self.model,
            before.layers,
            before.seen,
            suffixes,
            [self.stops[name] for name, _ in keys],
            [self.limits[name] for name, _ in keys],
            self._pick(keys),
            starts=list(map(len, before.unread)),
            remembering=Remembering(self.model, memory, own_names, rows, before, suffixes),
        )

    def bundled(
        self, keys: Sequence[Key], row_of: Sequence[int], layers: Layers, seen: Bool[Tensor, "row slot"]
    ) -> list[Continuation]:
        """As `together`, for prompts of which several variants share a row."""
        return continue_bundles(
            self.model,
            layers,
            seen,
            row_of,
            [self.suffix(key) for key in keys],
            [self.stops[name] for name, _ in keys],
            [self.limits[name] for name, _ in keys],
            self._pick(keys),
        )


@measured
@torch.inference_mode()
def continue_each(
    model: HookedModel,
    prompts: Sequence[Sequence[int]],
    variants: Mapping[str, Sequence[Sequence[int] | None]],
    stop: Stop | Mapping[str, Stop],
    max_new_tokens: int | Mapping[str, int],
    batch_tokens: int | None = None,
    progress: bool = False,
    memory: Memory | None = None,
    names: Sequence[Hashable] = (),
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    hooks: Hooks | None = None,
    on_read: OnRead | None = None,
) -> dict[str, list]:
    """Continue every prompt in every variant: name -> one Continuation (or None) for each prompt.

    Args:
        variants: name -> one suffix of ids for each prompt (None: not this one), read before generating.
        stop: whether the ids generated so far are at their end; for all variants, or for each.
        batch_tokens: most tokens of prompts that are continued together, padding included (None: by the
            GPU's free memory, on a CPU by the weights' size; a batch that does not fit the GPU is halved).
        memory, names: keys and values kept from earlier calls under the prompts' names, brought up to date
            in place; a prompt that extends the one kept (checked on ids) is read from where it differs. What
            is written after a prompt of one continuation is kept as well.
        temperature: 0 is greedy; above, tokens are drawn.
        seed: gives the same draws for the same prompts, whatever batches they are in; one for each prompt
            gives a prompt the same draws whatever other prompts there are.
        hooks: functions of the activation [row, token, width] at a site and of where its tokens are, which
            run in every pass, from the prompt's first token on; no keys and values are then shared or kept.
        on_read: is given each batch of prompts that is read for several variants (`OnRead`), before it is
            continued; a batch that is halved is given once more.

    Raises:
        ValueError: an empty suffix, no token to generate, a context too long, or seeds of another number
            than the prompts.
    """
    suffixes = [suffix for each in variants.values() for suffix in each if suffix is not None]
    if not all(len(suffix) for suffix in suffixes):
        raise ValueError("Every suffix needs at least one token to generate from.")
    model.check_ids([*prompts, *suffixes])
    limits = dict.fromkeys(variants, max_new_tokens) if isinstance(max_new_tokens, int) else max_new_tokens
    limits = {name: limits[name] for name in variants}
    if none := [n for n in limits.values() if n < 1]:
        raise ValueError(f"max_new_tokens is a number from 1 on, not {none[0]}.")
    stops = {name: stop if callable(stop) else stop[name] for name in variants}
    uniform = uniform_numbers(temperature, seed, len(prompts), limits)
    request = _Request(model, prompts, variants, stops, limits, temperature, uniform, hooks or {})
    keys = request.keys()
    for tokens in {request.length(key) for key in keys}:
        model.check_length(tokens)
    out: dict[str, list] = {name: [None] * len(prompts) for name in variants}
    alone = sorted(key for key in keys if request.is_alone(key))
    for name, i in tqdm(alone, desc="decode", leave=False, disable=not progress or not alone):
        out[name][i] = request.alone((name, i))
    batched = set(keys) - set(alone)
    if not batched:
        return out
    if hooks:
        found = _hooked(request, batched, batch_tokens or BATCH, progress)
    else:
        named = None if memory is None else (memory, names)
        found = _batched(request, batched, batch_tokens, named, progress, on_read)
    for (name, i), continuation in found:
        out[name][i] = continuation
    return out


def _hooked(
    request: _Request, keys: set[Key], batch_tokens: int, progress: bool
) -> list[tuple[Key, Continuation]]:
    """Continue prompts in batches under hooks, each prompt read anew for each of its variants."""
    ordered = sorted(keys)
    batches = length_batches([request.length(key) for key in ordered], batch_tokens)
    found: list[tuple[Key, Continuation]] = []
    for batch in tqdm(batches, desc="decode", leave=False, disable=not progress):
        group = [ordered[k] for k in batch]
        found += zip(group, request.hooked(group))
    return found


def _batched(
    request: _Request,
    keys: set[Key],
    batch_tokens: int | None,
    named: tuple[Memory, Sequence[Hashable]] | None,
    progress: bool,
    on_read: OnRead | None,
) -> list[tuple[Key, Continuation]]:
    """Continue prompts in batches, each prompt read once for all its variants."""
    model, prompts = request.model, request.prompts
    together = sorted({i for _, i in keys})
    room = max(request.room(key) for key in keys)
    if batch_tokens is None:
        batch_tokens = _batch_tokens(model, max(len(prompts[i]) for i in together), room)
    most_tokens = batch_tokens

    def run(group: list[int]) -> list[tuple[Key, Continuation]]:
        each_key = [(name, i) for i in group for name in request.variants if (name, i) in keys]
        if named and len(each_key) == len(group):
            return list(zip(each_key, request.extended(each_key, *named)))
        rows = [prompts[i] for i in group]
        waiting = {name: [r for r, i in enumerate(group) if (name, i) in keys] for name in request.variants}
        waiting = {name: members for name, members in waiting.items() if members}
        bundled = sum(map(len, waiting.values())) > len(rows) and bundles(model)
        if bundled:
            parts = _bundled(waiting, most_tokens // (len(rows) * room))
        else:
            lengths = list(map(len, rows))
            suffix_lengths = {
                name: {len(request.suffix((name, group[r]))) for r in members}
                for name, members in waiting.items()
            }
            even = len(set(lengths)) == 1
            parts = _side_by_side(waiting, suffix_lengths, most_tokens // (max(lengths) + room), even)
        space = room * max(len({name for name, _ in part}) for part in parts) if bundled else room
        if named is None:
            layers, seen = read_prompts(model, rows, space)
        else:
            memory, names = named
            layers, seen = read_on(model, rows, [names[i] for i in group], memory, space)
        if on_read:
            on_read(group, layers, seen)
        continuations: list[tuple[Key, Continuation]] = []
        for part in parts:
            own_keys = [(name, group[r]) for name, r in part]
            members = [r for _, r in part]
            if bundled:
                found = request.bundled(own_keys, members, layers, seen)
            else:
                own = layers if members == list(range(len(group))) else selected(layers, members)
                found = request.together(own_keys, own, seen[members])
            continuations += zip(own_keys, found)
        return continuations

    batches = prompt_batches([prompts[i] for i in together], most_tokens)
    groups = [[together[k] for k in batch] for batch in batches]
    done = tqdm(halved(groups, run), desc="decode", total=len(groups), leave=False, disable=not progress)
    return [continuation for continuations in done for continuation in continuations]


def _bundled(waiting: Mapping[str, Sequence[int]], most: int) -> list[list[tuple[str, int]]]:
    """(variant, row) in parts of as equally many variants, at most so many, whose rows they share."""
    names = list(waiting)
    parts = -(-len(names) // max(1, most))
    return [[(name, r) for name in names[p::parts] for r in waiting[name]] for p in range(parts)]


def _side_by_side(
    waiting: Mapping[str, Sequence[int]], suffix_lengths: Mapping[str, set[int]], most: int, even: bool
) -> list[list[tuple[str, int]]]:
    """(variant, row) in parts that are continued together: variants of a few rows take the steps of one.

    A part has at most so many rows, or is one variant. even: whether the rows are of one length; then only
    suffixes of one length stand together, since they need no mask.
    """
    parts: list[list[tuple[str, int]]] = []
    last: set[int] = set()
    for name, members in waiting.items():
        own = [(name, r) for r in members]
        alike = not even or len(last | suffix_lengths[name]) == 1
        if parts and alike and len(parts[-1]) + len(own) <= most:
            parts[-1] += own
        elif own:
            parts.append(own)
            last = suffix_lengths[name]
    return parts


def _batch_tokens(model: HookedModel, longest: int, room: int) -> int:
    """Most tokens of prompts in a batch of which each row has room for so many more."""
    if model.device.type != "cuda":
        weights = sum(parameter.nbytes for parameter in model.blocks.parameters())
        return min(BATCH, max(FEWEST, 2 * weights // token_bytes(model)))
    each = COPIES * token_bytes(model) * (longest + room) / longest
    return min(KEPT, int(SHARE * free_for(model) / each))
