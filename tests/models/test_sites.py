"""Sites are proven by the sums of each block, in every dtype; what cannot be proven is refused by name, and
nothing else with it."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from interp.engine.cells import Cell, Run
from interp.engine.loops import Plain
from interp.engine.packing import score
from interp.engine.sweeps import Packed
from interp.measures.attribution import gradients
from interp.models.architectures import tiny
from interp.models.hooked import HookedModel
from interp.models.sites import find_hook_points
from tests.conftest import tiny_hf

IDS = torch.arange(3, 28)[None]
#: Multipliers, norms after the parts, parallel parts, parts without a module of their own, experts beside an
#: MLP, tuples.
FAMILIES = (
    "granite",
    "granitemoe",
    "granitemoeshared",
    "cohere",
    "cohere2",
    "glm4",
    "afmoe",
    "llama4_text",
    "opt",
    "bloom",
    "gptj",
    "codegen",
    "gpt_neo",
    "falcon",
    "mpt",
    "gemma4_text",
    "phimoe",
    "xglm",
)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    more = dict(layer_types=["full_attention"] * 4) if request.param == "llama4_text" else {}
    return HookedModel(tiny(request.param, **more), None)


def read(model, sites, ids=IDS):
    seen = {}
    with (
        torch.inference_mode(),
        model.hooks(
            {
                (s, i): lambda x, key=(s, i): seen.update({key: x.clone()})
                for s in sites
                for i in range(model.n_layers)
            }
        ),
    ):
        model.inner(input_ids=ids, use_cache=False)
    return seen


@torch.inference_mode()
def test_what_is_added_and_what_is_predicted_are_the_models_own(family):
    seen, layers = read(family, family.hook_points), range(family.n_layers)
    whole = family.hf(IDS, use_cache=False, output_hidden_states=True)
    for layer in layers:
        torch.testing.assert_close(seen["resid_pre", layer], whole.hidden_states[layer])
        middle = seen["resid_pre", layer] + seen["attn_out", layer]
        torch.testing.assert_close(
            seen["resid_post", layer], middle + seen["mlp_out", layer], rtol=1e-4, atol=1e-4
        )
        if "resid_mid" in family.hook_points:
            torch.testing.assert_close(seen["resid_mid", layer], middle, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        family.logits(family.inner(IDS).last_hidden_state), whole.logits.float(), rtol=1e-4, atol=1e-4
    )
    part = family.logits(family.inner(IDS).last_hidden_state[0, 4:7], slice(10, 20))
    torch.testing.assert_close(part, whole.logits[0, 4:7, 10:20].float(), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_an_edit_moves_the_stream_by_as_much(family):
    """Every site of what is added, replaced by another value: the block's sum has that value in the old one's
    place."""
    for site in [s for s in ("attn_out", "mlp_out", "resid_mid") if s in family.hook_points]:
        value, seen = torch.linspace(-1, 1, family.d_model).expand(1, IDS.shape[1], -1), {}
        edits = {
            (s, 2): lambda x, s=s: seen.update({s: x.clone()})
            for s in family.hook_points
            if s not in (site, "z")
        }
        with family.hooks(edits | {(site, 2): lambda x: value.clone()}):
            family.inner(input_ids=IDS, use_cache=False)
        own = {
            "attn_out": lambda: seen["resid_pre"] + value + seen["mlp_out"],
            "mlp_out": lambda: seen["resid_pre"] + seen["attn_out"] + value,
            "resid_mid": lambda: value + seen["mlp_out"],
        }[site]()
        torch.testing.assert_close(seen["resid_post"], own, rtol=1e-4, atol=1e-4)


def test_cells_and_scores_equal_plain_passes(family):
    prompt, tails = IDS[0].tolist(), [[4, 8, 15], [4, 16, 23, 42]]
    kind = Packed if family.support.patch == "fast" else Plain
    one = [Run(prompt, tails, [2, 3], [20, 24])]
    fast, slow = (k(family, one, list(family.hook_points)) for k in (kind, Plain))
    torch.testing.assert_close(fast.base, slow.base, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        score(family, family.read(prompt), tails, [2, 3]), slow.base[0], rtol=0, atol=1e-4
    )
    generator = torch.Generator().manual_seed(0)
    cells = [
        Cell(s, layer, [(20,)], torch.randn(1, 1, family.width(s, layer), generator=generator), slice(None))
        for s in family.hook_points
        for layer in (0, 2)
    ]
    torch.testing.assert_close(fast.patched(cells), slow.patched(cells), rtol=0, atol=5e-4)
    assert (fast.patched(cells)[0] - fast.base).abs().max(1).values.min() > 1e-6  # every cell moves something


def test_gradients_reach_a_site_that_is_a_sum(family):
    """Finite differences along a random direction: what is read at a site lies on the way to the action.

    The step is small, since a larger one moves tokens to other experts, where the action's probability jumps.
    """
    step = 3e-3
    sites = [s for s in family.hook_points if s != "resid_pre"]
    with torch.inference_mode(False):
        _, (((_, found),),) = gradients(family, IDS[0].tolist(), [([[4, 8], [5, 9]], [2, 2])], sites)
    keys = [(s, layer) for s in sites for layer in range(family.n_layers)]
    for key in [(s, 1) for s in sites]:
        along = torch.randn(found[keys.index(key)].shape[1], generator=torch.Generator().manual_seed(1))
        moved = []
        for sign in (1, -1):

            def edit(x, sign=sign):
                x = x.clone()
                x[0, 5] += sign * step * along
                return x

            logp = []
            for tail in ([4, 8], [5, 9]):
                ids = torch.tensor([[*IDS[0].tolist(), *tail]])
                with torch.inference_mode(), family.hooks({key: edit}):
                    hidden = family.inner(input_ids=ids, use_cache=False).last_hidden_state[0]
                logp.append(family.logits(hidden[-3:-1]).log_softmax(-1).gather(1, ids[0, -2:, None]).sum())
            moved.append(logp[0] - logp[1])
        expected = (found[keys.index(key)][5] @ along).item()
        assert abs((moved[0] - moved[1]).item() / (2 * step) - expected) < 0.05 * abs(expected) + 2e-3, key


class _Adds(LlamaDecoderLayer):
    """A block that adds a small term of its own beside what its submodules give."""

    term = 1e-3

    def forward(self, hidden_states, *args, **kwargs):
        return super().forward(hidden_states, *args, **kwargs) + self.term * hidden_states.cos()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_small_wrong_part_is_refused_in_every_dtype_and_the_stream_still_served(tokenizer, dtype):
    right = HookedModel(tiny_hf("Llama", tokenizer).to(dtype), tokenizer)
    assert {"attn_out", "mlp_out", "resid_mid", "z"} <= set(right.hook_points)
    hf = tiny_hf("Llama", tokenizer).to(dtype)
    hf.model.layers[1].__class__ = _Adds
    model = HookedModel(hf, tokenizer)
    assert (
        model.hook_points["mlp_out"][1] is None
        and model.hook_points["mlp_out"][0]
        and model.support.capture == "fast"
    )
    with pytest.raises(NotImplementedError, match="no mlp_out at layer 1"):
        read(model, ["mlp_out"])
    assert len(read(model, ["resid_pre", "resid_post"])) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["granite", "cohere", "bloom", "gemma4_text"])
def test_narrow_dtypes_find_what_float32_finds(name, dtype):
    wide, narrow = HookedModel(tiny(name), None), HookedModel(tiny(name, dtype=dtype), None)
    assert {s: [p and p.paths for p in row] for s, row in wide.hook_points.items()} == {
        s: [p and p.paths for p in row] for s, row in narrow.hook_points.items()
    }
    for ours, theirs in (
        (p, q) for s in wide.hook_points for p, q in zip(wide.hook_points[s], narrow.hook_points[s]) if p
    ):
        assert ours.scales == pytest.approx(theirs.scales, rel=2e-3)


def test_a_stream_that_is_scaled_as_a_whole_has_no_mlp_out_but_its_other_sites():
    hf = tiny("gemma4_text")
    for block in hf.model.layers:
        block.layer_scalar.fill_(0.9)
    model = HookedModel(hf, None)
    assert set(model.hook_points) == {"resid_pre", "resid_post", "attn_out", "resid_mid", "z"}
    with pytest.raises(NotImplementedError, match="no mlp_out at layer 0"):
        read(model, ["mlp_out"])


def test_layers_of_unlike_parts_are_each_found_by_themselves(tokenizer):
    hf = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "opt",
            vocab_size=97,
            hidden_size=32,
            num_hidden_layers=3,
            ffn_dim=64,
            num_attention_heads=4,
            word_embed_proj_dim=32,
        ),
        dtype=torch.float32,
    ).eval()
    found = find_hook_points(hf.model.decoder.layers, hf.config, lambda: hf(IDS, use_cache=False))[0]
    assert found["mlp_out"][2].paths == ("fc2",)
    other = copy.deepcopy(hf)
    other.model.decoder.layers[
        1
    ].do_layer_norm_before = False  # the stream is normed after each part: nothing is added to it
    found = find_hook_points(other.model.decoder.layers, hf.config, lambda: other(IDS, use_cache=False))[0]
    assert found["mlp_out"][1] is None and found["mlp_out"][2].paths == ("fc2",)
    assert all(found["resid_post"])


@torch.inference_mode()
def test_a_stream_of_several_copies_is_read_and_replaced_side_by_side():
    model = HookedModel(tiny("gemma3n_text"), None)
    assert (
        model.d_model == 4 * 32
        and model.widths["resid_post"] == (128,) * 4
        and "attn_out" not in model.hook_points
    )
    kept = []
    handle = model.blocks[2].register_forward_pre_hook(lambda module, args: kept.append(args[0].clone()))
    seen = read(model, ["resid_pre"])["resid_pre", 2]
    handle.remove()
    assert torch.equal(seen[0, 5], kept[0][:, 0, 5].flatten())
    plain = model.hf(IDS, use_cache=False).logits
    with model.hooks({("resid_pre", 2): torch.clone}):
        torch.testing.assert_close(model.hf(IDS, use_cache=False).logits, plain)
    with model.hooks({("resid_pre", 2): torch.zeros_like}):
        assert not torch.allclose(model.hf(IDS, use_cache=False).logits, plain)


def test_a_block_that_adds_nothing_has_the_sites_of_its_code():
    """Blocks grafted into a trained model begin with zero weights at their ends."""
    hf = tiny("llama")
    for layer in (1, 3):
        block = hf.model.layers[layer]
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    assert HookedModel(hf, None).hook_points == HookedModel(tiny("llama"), None).hook_points
    for parameter in hf.model.layers.parameters():
        parameter.data.fill_(0.0)
    assert HookedModel(hf, None).hook_points == HookedModel(tiny("llama"), None).hook_points
