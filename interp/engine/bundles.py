"""Continuations of a prompt side by side in one row of a batch: a step reads its keys once for all of them.

On a CPU a step of decoding takes as long as keys and values take from memory. A row here has a column for
each of its prompt's continuations, and a token sees the prompt and those of its own continuation. The
reference implementation is a row for each continuation (`interp.engine.generation.continue_rows`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.engine.outputs import Continuation, Output, Pick, Stop, suffix_logp
from interp.models.caches import Layers, RoomyLayer, with_room
from interp.models.hooked import HookedModel
from interp.models.whole import padded

#: Devices on which continuations of a prompt share a row.
DEVICES = ("cpu",)
#: Owners of slots beside the continuations: all of a row's, and none.
ALL, NONE = -1, -2


def bundles(model: HookedModel) -> bool:
    """Whether continuations of a prompt share a row: where every layer sees all that came before."""
    return model.device.type in DEVICES and set(model.layer_types) == {"full_attention"}


class Bundles:
    """The rows of a batch, and the continuations that are the columns of each.

    Args:
        layers, seen: keys and values of the prompts, and which of their slots count.
        row_of: of each continuation.
        suffixes: ids of each continuation that are read before generating.
        most: most tokens after a suffix.
    """

    def __init__(
        self,
        model: HookedModel,
        layers: Layers,
        seen: Bool[Tensor, "row slot"],
        row_of: Sequence[int],
        suffixes: Sequence[Sequence[int]],
        most: int,
    ):
        self.model = model
        #: Where each continuation's suffix lies: its row, its first slot after the prompt's, and its end.
        self.spans: list[tuple[int, int, int]] = []
        rows: list[list[int]] = [[] for _ in seen]
        owners: list[list[int]] = [[] for _ in seen]
        for i, (row, suffix) in enumerate(zip(row_of, suffixes)):
            self.spans.append((row, len(rows[row]), len(rows[row]) + len(suffix)))
            rows[row] += suffix
            owners[row] += [i] * len(suffix)
        self.ids = padded(rows, model.device)
        width = self.ids.shape[1]
        read = torch.tensor([own + [NONE] * (width - len(own)) for own in owners])
        self.owner = torch.cat([torch.where(seen, ALL, NONE), read], 1)
        starts = torch.tensor([start for _, start, _ in self.spans])
        #: Position of each continuation's next token; the last is that of none.
        self.next = seen.sum(1)[list(row_of)] + torch.tensor([end - start for _, start, end in self.spans])
        first = torch.cat([seen.sum(1)[list(row_of)] - starts, torch.zeros(2, dtype=torch.long)])
        self._at = (torch.arange(width) + first[read]).clamp(min=0)
        columns = max(map(row_of.count, set(row_of)))
        self._used, room = seen.shape[1], width + columns * most
        self._layers = [
            RoomyLayer(with_room(keys, self._used, room), with_room(values, self._used, room), self._used)
            for keys, values in layers
        ]
        self._cache = DynamicCache()
        self._cache.layers = list(self._layers)
        self._rows = list(range(len(seen)))
        self._row_of = row_of
        self._columns = torch.zeros(0, 0, dtype=torch.long)

    def _forward(
        self, ids: Int[Tensor, "row token"], at: Int[Tensor, "row token"], mask: Tensor
    ) -> Float[Tensor, "row token d_model"]:
        self._used += ids.shape[1]
        at = at.clamp(max=(self.model.context or 2**31) - 1)  # of one that has ended, and waits for others
        return self.model.inner(
            input_ids=ids, position_ids=at, attention_mask=mask, past_key_values=self._cache, use_cache=True
        ).last_hidden_state

    def _mask(self, own: Int[Tensor, "row token"], visible: Tensor | None = None) -> Tensor:
        """The mask of tokens of these continuations over all slots that have an owner."""
        owner = self.owner[:, None]
        sees = (owner == ALL) | (owner == own[..., None])
        mask = self.model.mask(sees if visible is None else sees & visible, own, self.owner)
        assert isinstance(mask, Tensor)
        return mask

    def read(self) -> Float[Tensor, "row token d_model"]:
        """Final hidden states of the suffixes."""
        width = self.ids.shape[1]
        before = torch.ones(width, self.owner.shape[1] - width, dtype=torch.bool)
        causal = torch.cat([before, torch.ones(width, width, dtype=torch.bool).tril()], 1)
        return self._forward(self.ids, self._at, self._mask(self.owner[:, -width:], causal))

    def keep(self, going: Sequence[int], left: int) -> None:
        """Go on with these continuations, for so many steps at most; columns and rows that ended are left."""
        in_row: dict[int, list[int]] = {}
        for i in going:
            in_row.setdefault(self._row_of[i], []).append(i)
        kept = [r for r, row in enumerate(self._rows) if row in in_row]
        if fewer := len(kept) <= len(self._rows) // 2:
            index = torch.tensor(kept)
            self._rows = [self._rows[r] for r in kept]
            self.owner = self.owner[index]
            for layer in self._layers:
                layer.select(index)
        width = max(map(len, in_row.values()))
        if fewer or width < self._columns.shape[1] or not self._columns.numel():
            own = [in_row.get(row, []) for row in self._rows]
            self._columns = torch.tensor([each + [NONE] * (width - len(each)) for each in own])
            self.owner = torch.cat([self.owner[:, : self._used], self._columns.repeat(1, left)], 1)
            self._steps = self._mask(self._columns)
        places = {i: place for place, i in enumerate(self._columns.flatten().tolist())}
        self._place = torch.tensor([places[i] for i in going])

    def step(self, going: Sequence[int], token: Int[Tensor, " going"]) -> Float[Tensor, "going d_model"]:
        """Final hidden states of the next tokens of the continuations that go on, in the order of `keep`."""
        rows, width = self._columns.shape
        ids, at = torch.zeros(2, rows * width, dtype=torch.long)
        ids[self._place], at[self._place] = token, self.next[list(going)]
        self.next[list(going)] += 1
        mask = self._steps[..., : self._used + width]
        hidden = self._forward(ids.view(rows, width), at.view(rows, width), mask)
        return hidden.flatten(0, 1)[self._place]


def continue_bundles(
    model: HookedModel,
    layers: Layers,
    seen: Bool[Tensor, "row slot"],
    row_of: Sequence[int],
    suffixes: Sequence[Sequence[int]],
    stops: Sequence[Stop],
    limits: Sequence[int],
    pick: Pick,
) -> list[Continuation]:
    """As `continue_rows`, of any number of continuations of each row; a row is of a prompt.

    row_of: of each continuation, as `suffixes`, `stops` and `limits` are.
    """
    most = max(limits)
    rows = Bundles(model, layers, seen, row_of, suffixes, most)
    out = Output([[] for _ in suffixes], stops, limits)
    hidden = rows.read()
    logp = suffix_logp(model, hidden, rows.ids, rows.spans)
    row, _, end = torch.tensor(rows.spans).T
    going, states = list(range(len(suffixes))), hidden[row, end - 1]
    for step in range(most):
        token = pick(model.logits(states), going, step)
        out.add(going, token.tolist())
        alive = [k for k, i in enumerate(going) if i not in out.over]
        if not alive:
            break
        if not step or len(alive) < len(going):
            going, token = [going[k] for k in alive], token[alive]
            rows.keep(going, most - step - 1)
        states = rows.step(going, token)
    return [Continuation(tuple(o), p) for o, p in zip(out.ids, logp().tolist())]
