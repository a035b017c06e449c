"""Continuations of many prompts, greedy or sampled, each prompt read once for all the ways in which it is continued.

Prompts that share little are rows of a batch, read without a mask; of those that extend one another the
longest alone is read. Where more of them is shared (the history of one episode), they are a tree, read after
their common beginning in packs. Their keys and values are kept, and every variant (a mode's opening, a
spliced trace) goes on from them, many prompts in one batch. The plain twin is Hugging Face's `generate`,
prompt by prompt (tested).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from interp.engine.packing import WORTH, ancestors, merge, shared
from interp.models.devices import SHARE, fetched, free_bytes, halved, pass_tokens, sent
from interp.models.hooked import Layers, layers_of
from interp.models.turns import measured
from interp.models.whole import Growing, length_batches, padded

#: tokens of a tree of prompts that are read in one pass, whose mask has the square of them
PACK = 2048
#: on a CPU: tokens of plain rows that are read in one pass, and of prompts that are continued together
READ, BATCH = 8192, 24576
#: on a GPU: most tokens of prompts that are continued together, and copies of their keys and values that
#: there may be
KEPT, COPIES = 2**18, 2.5
#: whether the ids generated so far are at their end
Stop = Callable[[Sequence[int]], bool]
#: logits [row, vocabulary], the continuation that each row is of, how many tokens were picked before -> token
#: of each row
Pick = Callable[[torch.Tensor, Sequence[int], int], torch.Tensor]
#: name -> ids read so far, and for each layer their keys and values [head, token, width]
Memory = dict[Hashable, tuple[tuple[int, ...], list]]


@dataclass(frozen=True)
class Continuation:
    """Generated `ids`, and the log-probability per token, in nats, of the given suffix after its first token."""

    ids: tuple[int, ...]
    logp: float


class _Room(DynamicLayer):
    """A cache layer over buffers with room for what comes, so that a new token copies no old one."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int):
        super().__init__()
        self.lazy_initialization(keys, values)
        self._used, self._buffers = used, (keys, values)
        self.keys, self.values = (b[:, :, :used] for b in self._buffers)

    def update(self, key_states, value_states, *args, **kwargs):
        end = self._used + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[:, :, self._used : end] = new
        self._used = end
        self.keys, self.values = (b[:, :, :end] for b in self._buffers)
        return self.keys, self.values

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows."""
        self._buffers = tuple(b[rows.to(b.device)] for b in self._buffers)
        self.keys, self.values = (b[:, :, : self._used] for b in self._buffers)


def _roomy(tensor: torch.Tensor, used: int, room: int) -> torch.Tensor:
    """Keys or values [row, head, slot, width] with at least so many slots beyond the used ones; itself where
    it has them.
    """
    if tensor.shape[2] >= used + room:
        return tensor
    return torch.cat([tensor[:, :, :used], tensor.new_empty(*tensor.shape[:2], room, tensor.shape[3])], 2)


class _Rows:
    """The rows of a batch that are still generating: their cache, which of its keys count, and the position
    of each.

    layers: keys and values, of whose first slots those in `seen` Bool[Tensor, "row slot"] (on the CPU) count;
    slots beyond are overwritten. lengths: tokens of each row that are read next, padded on the right; new:
    tokens that may follow them.
    """

    def __init__(self, model, layers: Layers, seen: torch.Tensor, lengths: Sequence[int], new: int):
        extra = max(lengths)
        read = torch.arange(extra) < torch.tensor(lengths)[:, None]
        counts = torch.cat([seen, read, torch.ones(len(seen), new, dtype=torch.bool)], 1)
        self.model, self.used = model, seen.shape[1]
        self.at = sent(counts.cumsum(1) - 1, model.device)
        #: None where every slot counts: then no pass needs a mask of one's own, and none repeats keys for
        #: grouped heads
        self.counts = None if counts.all() else sent(counts, model.device)
        self.step = None
        self.cache = DynamicCache()
        self.cache.layers = [
            _Room(*(_roomy(t, self.used, extra + new) for t in layer), self.used) for layer in layers
        ]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Final hidden states [row, token, width] of new tokens; each sees the keys that count and the new ones up to itself."""
        start, end = self.used, self.used + ids.shape[1]
        at = self.at[:, start:end]
        mask = None if self.counts is None else self._mask(at, start, end)
        hidden = self.model.inner(
            input_ids=ids, position_ids=at, attention_mask=mask, past_key_values=self.cache, use_cache=True
        ).last_hidden_state
        self.used = end
        return hidden

    def _mask(self, at: torch.Tensor, start: int, end: int):
        if end - start > 1:
            visible = self.counts[:, None, :end].repeat(1, end - start, 1)
            visible[:, :, start:] &= torch.ones(
                end - start, end - start, dtype=torch.bool, device=visible.device
            ).tril()
            return self.model.mask(visible, at, self.at[:, :end])
        if set(self.model.layer_types) == {
            "full_attention"
        }:  # one mask for all steps, of which each sees more
            if self.step is None:
                self.step = self.model.mask(self.counts[:, None], at, self.at)
            return self.step[..., :end]
        return self.model.mask(self.counts[:, None, :end], at, self.at[:, :end])

    def keep(self, alive: torch.Tensor) -> None:
        """Drop the rows that have ended."""
        self.at = self.at[alive]
        self.counts = None if self.counts is None else self.counts[alive]
        self.step = None if self.step is None else self.step[alive]
        for layer in self.cache.layers:
            layer.select(alive)


def greedy(logits: torch.Tensor, rows: Sequence[int], step: int) -> torch.Tensor:
    """The likeliest token of each row."""
    return logits.argmax(-1)


def _picker(temperature: float, uniform: torch.Tensor) -> Pick:
    """The likeliest token at temperature 0, else one drawn from the tempered distribution by a number of its
    own.

    uniform: numbers from 0 to 1 [continuation, token]; what is drawn does not depend on the batch that a row
    is in.
    """
    if temperature == 0:
        return greedy

    def draw(logits, rows, step):
        mass = (logits / temperature).double().softmax(-1).cumsum(-1)
        at = sent(uniform[list(rows), step], logits.device)[:, None] * mass[:, -1:]
        return torch.searchsorted(mass, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    return draw


def _suffix_logp(
    model, hidden: torch.Tensor, ids: torch.Tensor, lengths: Sequence[int]
) -> Callable[[], torch.Tensor]:
    """What gives the mean log-probability of each row's suffix after its first token, in nats, on the CPU."""
    scored = torch.tensor(
        [(r, t) for r, n in enumerate(lengths) for t in range(1, n)], dtype=torch.long
    ).view(-1, 2)
    total = torch.zeros(len(lengths), device=model.device)
    if len(scored):
        row, slot = sent(scored.T.contiguous(), model.device)
        place = torch.arange(len(scored), device=model.device)
        total.index_add_(0, row, model.log_probability(hidden[row, slot - 1], place, ids[row, slot]))
    return fetched(total / sent(torch.tensor([max(1, n - 1) for n in lengths]), model.device))


def _ahead(model) -> int:
    """How many passes are begun before the tokens of an earlier one are looked at: a GPU is not to wait for
    the CPU.
    """
    return int(model.device.type == "cuda")


def _continue(
    model,
    layers,
    seen,
    suffixes,
    stops: Sequence[Stop],
    limits: Sequence[int],
    pick: Pick,
    *,
    begun: Sequence[Sequence[int]] = (),
    edits: Callable | None = None,
) -> list[Continuation]:
    """Continue the rows of one batch; `layers` are the prompts' keys and values, of which `seen` [row, slot]
    (on the CPU) count.

    stops, limits: of each row, the latter in tokens. begun: ids generated earlier, with which each row's ids
    begin. edits: from (continuation of each row, ids of each continuation, whether the suffixes are being
    read) to what is tapped in that pass.
    """
    lengths = list(map(len, suffixes))
    ids, _ = padded(suffixes, model.device)
    rows = _Rows(model, layers, seen, lengths, max(limits))
    out: list[list[int]] = [list(b) for b in begun] or [[] for _ in suffixes]
    most = [len(o) + limit for o, limit in zip(out, limits)]
    owner = list(range(len(suffixes)))  # row of the running batch -> continuation
    over: set[int] = set()
    picked: deque = (
        deque()
    )  # what gives the tokens of passes that were not looked at yet, and the continuation of each
    ahead = 0 if edits else _ahead(model)  # an edit depends on the tokens before it

    def look(owner: Sequence[int], tokens: Callable[[], torch.Tensor]) -> None:
        for i, t in zip(owner, tokens().tolist()):
            if i not in over:
                out[i].append(t)
                if stops[i](out[i]) or len(out[i]) == most[i]:
                    over.add(i)

    with model.hooks(edits(owner, out, True)) if edits else nullcontext():
        hidden = rows.forward(ids)
    logp = _suffix_logp(model, hidden, ids, lengths)
    last = sent(torch.tensor(lengths) - 1, model.device)
    token = pick(model.logits(hidden[torch.arange(len(lengths), device=model.device), last]), owner, 0)
    for step in range(1, max(limits) + 1):
        picked.append((owner, fetched(token)))
        while len(picked) > (ahead if step < max(limits) else 0):
            look(*picked.popleft())
        alive = [r for r, i in enumerate(owner) if i not in over]
        if not alive:
            break
        if len(alive) <= len(owner) // 2:
            kept = sent(torch.tensor(alive), model.device)
            rows.keep(kept)
            token, owner = token[kept], [owner[r] for r in alive]
        with model.hooks(edits(owner, out, False)) if edits else nullcontext():
            hidden = rows.forward(token[:, None])
        token = pick(model.logits(hidden[:, 0]), owner, step)
    return [Continuation(tuple(o), p) for o, p in zip(out, logp().tolist())]


def tree_batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of at most `batch_tokens` with padding, rows that begin alike next to each other."""
    found: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        longest = max(longest, len(rows[i]))
        if not found or longest * (len(found[-1]) + 1) > batch_tokens:
            found.append([])
            longest = len(rows[i])
        found[-1].append(i)
    return found


def _packs(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in the order of their ids, in packs of at most `PACK` tokens where each beginning counts once."""
    found, size, last = [], PACK, ()
    for i in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        size += len(rows[i]) - shared(last, rows[i])
        if size > PACK:
            found.append([])
            size = len(rows[i])
        found[-1].append(i)
        last = rows[i]
    return found


def _trunks(rows: Sequence[Sequence[int]]) -> tuple[list[int], list[int], int]:
    """Rows that begin no other, the one of them that each row begins or is, and the tokens of the tree of
    all.
    """
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    home, nodes = [0] * len(rows), 0
    for i, after in zip(order[::-1], [None, *order[:0:-1]]):  # a row stands right before those that it begins
        begins = 0 if after is None else shared(rows[i], rows[after])
        home[i] = home[after] if begins == len(rows[i]) else i
        nodes += len(rows[i]) - begins
    return sorted(set(home)), home, nodes


def _read(model, rows, room: int = 0) -> tuple[Layers, torch.Tensor]:
    """Keys and values of each layer for a batch of prompts, with room beyond them, and which of their slots
    count (on the CPU).

    Each beginning is read once where that is less work than plain rows, which need no mask.
    """
    trunks, home, nodes = _trunks(rows)
    lengths = list(map(len, rows))
    slots = max(lengths) + room
    plain = WORTH * sum(len(rows[i]) for i in trunks) <= nodes
    layers = _read_plain(model, rows, trunks, home, slots) if plain else _read_tree(model, rows, slots)
    return layers, torch.arange(slots - room) < torch.tensor(lengths)[:, None]


def _empty(layers: Layers, rows: int, slots: int) -> Layers:
    """Zeros for keys and values [row, head, slot, width] of layers like the given ones."""
    return [tuple(t.new_zeros(rows, t.shape[1], slots, t.shape[3]) for t in layer) for layer in layers]


def _read_plain(model, rows, trunks: Sequence[int], home: Sequence[int], slots: int) -> Layers:
    """Keys and values of plain rows, those of the `trunks`: a row that begins one of them has the same."""
    lengths = [len(rows[i]) for i in trunks]
    layers: Layers = []

    def read(batch: list[int]) -> tuple[list[int], Layers]:
        return batch, model.read_rows(padded([rows[trunks[k]] for k in batch], model.device)[0])

    for batch, new in halved(length_batches(lengths, pass_tokens(model, max(lengths), READ)), read):
        layers = layers or _empty(new, len(rows), slots)
        source = {trunks[k]: place for place, k in enumerate(batch)}
        mine = [i for i, trunk in enumerate(home) if trunk in source]
        to, place = (sent(torch.tensor(x), model.device) for x in (mine, [source[home[i]] for i in mine]))
        for layer, parts in zip(layers, new):
            for whole, part in zip(layer, parts):
                whole[to.to(part.device), :, : part.shape[2]] = part[place.to(part.device)]
    return layers


def _read_tree(model, rows, slots: int) -> Layers:
    """Keys and values of a tree of rows, each beginning read once, in packs after what all have in common."""
    first, last = min(rows, key=tuple), max(rows, key=tuple)
    start = min(shared(first, last), len(first) - 1)
    prefix = layers_of(model.read(first[:start])) or model.empty()
    layers = _empty(prefix, len(rows), slots)
    for layer, known in zip(layers, prefix):
        for whole, part in zip(layer, known):
            whole[:, :, :start] = part
    for pack in _packs([row[start:] for row in rows]):
        tokens, parents, nodes = merge([rows[i][start:] for i in pack])
        seen = ancestors(parents)
        visible = torch.cat([torch.ones(len(tokens), start, dtype=torch.bool), seen], 1)
        _, new = model.packed(
            prefix,
            *(
                sent(t, model.device)
                for t in (torch.tensor(tokens), seen.sum(1) - 1 + start, visible, torch.arange(start))
            ),
        )
        for i, path in zip(pack, nodes):
            where = sent(torch.tensor(path, dtype=torch.long), model.device)
            for layer, parts in zip(layers, new):
                for whole, part in zip(layer, parts):
                    whole[i, :, start : len(rows[i])] = part[0][:, where.to(part.device)]
    return layers


def _read_on(model, rows, names, memory: Memory, room: int = 0) -> tuple[Layers, torch.Tensor]:
    """As `_read`, but of each row only what follows its longest common prefix with what `memory` holds under its name."""
    known = []
    for row, name in zip(rows, names):
        old = memory[name][0] if name in memory else ()
        known.append(min(shared(old, row), len(row) - 1))
    if not any(known):
        layers, seen = _read(model, rows, room)
        for r, (row, name) in enumerate(zip(rows, names)):
            memory[name] = (tuple(row), [(k[r, :, : len(row)], v[r, :, : len(row)]) for k, v in layers])
        return layers, seen
    width, example = max(known), next(memory[n][1] for n, s in zip(names, known) if s)
    new = [len(row) - n for row, n in zip(rows, known)]
    old = _empty([tuple(t[None] for t in pair) for pair in example], len(rows), width + max(new) + room)
    for r, (name, n) in enumerate(zip(names, known)):
        for layer, pair in enumerate(memory[name][1] if n else ()):
            for whole, part in zip(old[layer], pair):
                whole[r, :, :n] = part[:, :n]
    seen = torch.arange(width) < torch.tensor(known)[:, None]
    batch = _Rows(model, old, seen, new, 0)
    batch.forward(padded([row[n:] for row, n in zip(rows, known)], model.device)[0])
    for r, (row, name, n) in enumerate(zip(rows, names, known)):
        memory[name] = (
            tuple(row),
            [
                tuple(torch.cat([t[r, :, :n], t[r, :, width : width + len(row) - n]], 1) for t in pair)
                for pair in old
            ],
        )
    return old, torch.cat([seen, torch.arange(max(new)) < torch.tensor(new)[:, None]], 1)


def _plain(
    model, prompt: Sequence[int], suffix: Sequence[int], stop: Stop, max_new_tokens: int, pick: Pick
) -> Continuation:
    """One continuation by itself, without padding, a mask of one's own or another's keys and values."""
    sequence, suffix_ids = Growing(model), torch.tensor(list(suffix), device=model.device)
    hidden = sequence.add([*prompt, *suffix])[len(prompt) :]
    logp = model.logits(hidden[:-1]).log_softmax(-1).gather(1, suffix_ids[1:, None]).sum().item() / max(
        1, len(suffix) - 1
    )
    out: list[int] = []
    while True:
        out.append(int(pick(model.logits(hidden[-1:]), [0], len(out))))
        if stop(out) or len(out) == max_new_tokens:
            return Continuation(tuple(out), logp)
        hidden = sequence.add(out[-1:])


@measured
@torch.inference_mode()
def continue_each(
    model,
    prompts: Sequence[Sequence[int]],
    variants: Mapping[str, Sequence[Sequence[int] | None]],
    stop: Stop | Mapping[str, Stop],
    max_new_tokens: int | Mapping[str, int],
    batch_tokens: int | None = None,
    progress: bool = False,
    memory: Memory | None = None,
    names: Sequence[Hashable] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> dict[str, list]:
    """Continue every prompt in every variant until `stop(ids generated so far)` or `max_new_tokens`.

    variants: name -> one suffix of ids for each prompt (None: not this one), read after the prompt before generating.
    memory, names: keys and values kept from earlier calls under each prompt's name, brought up to date in place; a prompt
    that extends the one kept (checked on ids) is read only from where it differs. temperature: 0 is greedy; above, tokens are
    drawn, and `seed` and the same prompts give the same ones, whatever batches they are in. batch_tokens:
    most tokens of prompts that are continued together, padding included (None: by the GPU's free memory,
    24,576 on a CPU; a batch that does not fit the GPU is halved). Returns name -> one Continuation (or None)
    for each prompt. Raises ValueError for an empty suffix, no token to generate, or a context too long.
    """
    if any(suffix is not None and not len(suffix) for suffixes in variants.values() for suffix in suffixes):
        raise ValueError("Every suffix needs at least one token to generate from.")
    model.check_ids(
        [*prompts, *(suffix for suffixes in variants.values() for suffix in suffixes if suffix is not None)]
    )
    limits = {
        name: max_new_tokens if isinstance(max_new_tokens, int) else max_new_tokens[name] for name in variants
    }
    if none := [n for n in limits.values() if n < 1]:
        raise ValueError(f"max_new_tokens is a number from 1 on, not {none[0]}.")
    stops = {name: stop if callable(stop) else stop[name] for name in variants}
    found: dict[str, list] = {name: [None] * len(prompts) for name in variants}
    uniform = _uniform(temperature, seed, len(prompts), limits)
    longest = {
        (name, i): len(prompts[i]) + len(suffix) + limits[name]
        for name, suffixes in variants.items()
        for i, suffix in enumerate(suffixes)
        if suffix is not None
    }
    for tokens in set(longest.values()):
        model.check_length(tokens)
    alone = {
        key
        for key, tokens in longest.items()
        if model.support.trajectory != "fast" or model.rereads(tokens) or not model.packs(tokens)
    }
    for name, i in tqdm(sorted(alone), desc="decode", leave=False, disable=not progress or not alone):
        found[name][i] = _plain(
            model,
            prompts[i],
            variants[name][i],
            stops[name],
            limits[name],
            _picker(temperature, uniform[name][[i]]),
        )
    batched = longest.keys() - alone
    together = sorted({i for _, i in batched})
    if not together:
        return found
    room = max(longest[key] - len(prompts[key[1]]) for key in batched)
    if batch_tokens is None:
        batch_tokens = _batch_tokens(model, max(len(prompts[i]) for i in together), room)

    def run(group: list[int]) -> None:
        rows = [prompts[i] for i in group]
        kept, seen = (
            _read(model, rows, room)
            if memory is None
            else _read_on(model, rows, [names[i] for i in group], memory, room)
        )
        waiting = {name: [r for r, i in enumerate(group) if (name, i) in batched] for name in variants}
        suffix_lengths = {
            name: {len(variants[name][group[r]]) for r in some} for name, some in waiting.items()
        }
        slots = max(map(len, rows)) + room
        for part in _side_by_side(
            waiting, suffix_lengths, batch_tokens // slots, len(set(map(len, rows))) == 1
        ):
            own = [(name, group[r]) for name, r in part]
            some = [r for _, r in part]
            layers = kept if some == list(range(len(group))) else _selected(kept, some)
            pick = _picker(temperature, torch.stack([uniform[name][i] for name, i in own]))
            out = _continue(
                model,
                layers,
                seen[some],
                [variants[name][i] for name, i in own],
                [stops[name] for name, _ in own],
                [limits[name] for name, _ in own],
                pick,
            )
            for (name, i), continuation in zip(own, out):
                found[name][i] = continuation

    groups = [
        [together[k] for k in group] for group in tree_batches([prompts[i] for i in together], batch_tokens)
    ]
    for _ in tqdm(halved(groups, run), desc="decode", total=len(groups), leave=False, disable=not progress):
        pass
    return found


def _side_by_side(
    waiting: Mapping[str, Sequence[int]], suffix_lengths: Mapping[str, set[int]], most: int, even: bool
) -> list[list[tuple[str, int]]]:
    """(variant, row) in parts that are continued together: several variants of a few rows take no more steps
    than one.

    A part has at most so many rows, or is one variant. even: whether the rows are of one length; then only
    suffixes of one length stand together, since they need no mask.
    """
    parts: list[list[tuple[str, int]]] = []
    last: set[int] = set()
    for name, some in waiting.items():
        own = [(name, r) for r in some]
        alike = not even or len(last | suffix_lengths[name]) == 1
        if parts and alike and len(parts[-1]) + len(own) <= most:
            parts[-1] += own
        elif own:
            parts.append(own)
            last = suffix_lengths[name]
    return parts


def _selected(layers: Layers, rows: Sequence[int]) -> Layers:
    """Copies of some rows' keys and values."""
    where = sent(torch.tensor(rows), layers[0][0].device)
    return [tuple(t[where.to(t.device)] for t in layer) for layer in layers]


def _uniform(
    temperature: float, seed: int, prompts: int, limits: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """For each variant, numbers from 0 to 1 [prompt, token] to draw by, none where nothing is drawn."""
    if temperature < 0:
        raise ValueError(f"A temperature is 0 (greedy) or above, not {temperature}.")
    generator = torch.Generator().manual_seed(seed)
    most = max(limits.values(), default=0) if temperature else 0
    found = {}
    for name, limit in limits.items():
        numbers = torch.rand(prompts, limit if temperature else 0, generator=generator, dtype=torch.float64)
        found[name] = torch.nn.functional.pad(numbers, (0, most - numbers.shape[1]))
    return found


def _batch_tokens(model, longest: int, room: int) -> int:
    """Most tokens of prompts in a batch of which each row has room for so many more."""
    if model.device.type != "cuda":
        return BATCH
    kept = sum(t.shape[1] * t.shape[3] * t.element_size() for layer in model.empty() for t in layer)
    each = COPIES * kept * (longest + room) / longest
    return min(KEPT, int(SHARE * free_bytes(model.device) / each))
