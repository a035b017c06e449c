"""Blocks give their hidden states bare or first of several things, which stay what they are."""

from collections import namedtuple
from dataclasses import dataclass, make_dataclass

import pytest
import torch
from transformers.utils import ModelOutput

from interp.engine.cells import Cell, Run
from interp.engine.loops import Plain
from interp.engine.sweeps import Packed
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel
from interp.models.hooks import only
from interp.models.outputs import Layout, entries_of, first_of, mapped, replaced

PROMPT, TAILS, SCORED = [(7 * i + 3) % 97 for i in range(12)], [[4, 8, 15], [4, 16, 23, 42]], [2, 3]
Pair = namedtuple("Pair", ["hidden_states", "weights"])
Data = make_dataclass("Data", ["hidden_states", "weights"])


@dataclass
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    hidden_states: torch.Tensor | None = None
    weights: torch.Tensor | None = None


KINDS = dict(
    tuple=lambda hidden, weights: (hidden, weights),
    list=lambda hidden, weights: [hidden, weights],
    named_tuple=Pair,
    model_output=lambda hidden, weights: Output(hidden_states=hidden, weights=weights),
    dataclass=Data,
    dictionary=lambda hidden, weights: dict(hidden_states=hidden, weights=weights),
)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_whose_hidden_states_are_replaced_is_what_it_was(kind):
    hidden, weights, other = torch.ones(1, 2, 3), torch.zeros(2), torch.full((1, 2, 3), 5.0)
    output = KINDS[kind](hidden, weights)
    assert first_of(output) is hidden
    new, bare = replaced(output, other), Layout.of(output).around(other)
    assert type(new) is type(bare) is type(output)
    assert first_of(new) is first_of(bare) is other
    assert any(entry is weights for entry in entries_of(new))
    assert [entry for entry in entries_of(bare) if entry is not None] == [other]
    assert Layout.of(new) == Layout.of(bare) == Layout.of(output)


def test_a_bare_tensor_has_no_layout_and_what_holds_no_tensor_gives_none():
    tensor = torch.ones(1)
    assert Layout.of(tensor) is None and first_of(tensor) is tensor and replaced(tensor, -tensor) == -1
    for empty in ((), None, (None, tensor), Output()):
        assert Layout.of(empty) is None and first_of(empty) is None


def test_named_tuples_among_the_arguments_of_a_block_stay_named():
    found = mapped([Pair(torch.ones(2), None), (torch.ones(2), 3)], lambda tensor: tensor[:1])
    assert type(found) is list and type(found[0]) is Pair and type(found[1]) is tuple
    assert found[0].hidden_states.shape == (1,) and found[0].weights is None and found[1][1] == 3


def read_by_name(hf, kind):
    """The model with blocks that give another kind of output, which its decoder takes apart by name."""

    def part(output, name, number):
        if isinstance(output, dict):
            return output.get(name)
        return getattr(output, name) if hasattr(output, name) else output[number]

    plain = type(hf.transformer.h[0])

    class Block(plain):
        def forward(self, *args, **kwargs):
            return KINDS[kind](*super().forward(*args, **kwargs))

        def __call__(self, *args, **kwargs):
            output = super().__call__(*args, **kwargs)
            return part(output, "hidden_states", 0), part(output, "weights", 1)

    for block in hf.transformer.h:
        block.__class__ = Block
    return hf


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "tuple"])
@torch.inference_mode()
def test_blocks_that_give_any_kind_of_output_are_captured_and_patched_like_those_that_give_a_tuple(kind):
    plain, named = HookedModel(tiny("falcon"), None), HookedModel(read_by_name(tiny("falcon"), kind), None)
    assert named.support == plain.support and named.widths == plain.widths
    assert named.layout.kind is not tuple

    def values(model):
        run_kind = Packed if model.packs(len(PROMPT) + 4) else Plain
        run = run_kind(model, [Run(PROMPT, TAILS, SCORED, [len(PROMPT) - 1])], ["resid_pre", "resid_post"])
        cells = [
            Cell(site, layer, [(len(PROMPT) - 1,)], [run.values[site, layer][0] * 0.5], slice(None))
            for site in ("resid_pre", "resid_post")
            for layer in range(model.n_layers)
        ]
        return [run.base, run.patched(cells)]

    for found, wanted in zip(values(named), values(plain), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with only(named.blocks, 1, 2, named.layout), only(plain.blocks, 1, 2, plain.layout):
        ids = torch.tensor([PROMPT])
        assert torch.equal(named.whole(ids), plain.whole(ids))


@pytest.mark.parametrize("layers", [["local", "lsh"] * 2, ["lsh"], ["local", "local"]])
def test_two_streams_that_blocks_hand_on_are_refused_by_name(layers):
    with pytest.raises(NotImplementedError, match="^ReformerModelWithLMHead .* changes two residual streams"):
        HookedModel(tiny("reformer", attn_layers=layers, num_hidden_layers=len(layers)), None)


def test_a_value_of_the_first_block_that_is_handed_on_unchanged_is_no_second_stream():
    hf = tiny("falcon")
    plain = type(hf.transformer.h[0])

    class Block(plain):
        def forward(self, hidden_states, *args, first=None, **kwargs):
            hidden, weights = super().forward(hidden_states, *args, **kwargs)
            return hidden, weights, hidden.clone() if first is None else first

        def __call__(self, *args, **kwargs):
            hidden, weights, kept["first"] = super().__call__(*args, first=kept.get("first"), **kwargs)
            return hidden, weights

    kept = {}
    for block in hf.transformer.h:
        block.__class__ = Block
    hf.transformer.register_forward_pre_hook(lambda *args: kept.clear())
    assert all(HookedModel(hf, None).hook_points["resid_post"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_draws_at_random_beyond_a_length_is_refused_there(dtype):
    """Beside its own noise every path would pass for exact."""
    hf = tiny("llama", dtype=dtype, sliding_window=32)

    def noisy(module, args, output):
        if args[0].shape[1] > 32:
            return output + torch.rand_like(output) * output.abs().max()

    hf.model.layers[1].mlp.register_forward_hook(noisy)
    model = HookedModel(hf, None)
    with pytest.raises(
        ValueError, match="^LlamaForCausalLM gives other numbers each time it reads the same 34"
    ):
        model.crossing(31)
