"""Which architectures are exact is found out by trying, and said: every causal family of the installed
transformers is listed."""

import copy
import os
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import transformers

from interp.engine.capturing import capture
from interp.engine.cells import Cell, Run
from interp.engine.generation import continue_each
from interp.engine.loops import Plain
from interp.engine.packing import score
from interp.engine.sweeps import Packed
from interp.measures.reliance import PATHS, Swap, packed_paths, plain_paths, whole_paths
from interp.models.architectures import COLUMNS, FAMILIES, SIZES, document, families, table, tiny
from interp.models.architectures import page as as_page
from interp.models.hooked import HookedModel
from interp.models.inner import decoder, text_config
from interp.system.paths import ROOT

PAGE = ROOT / "docs" / "architectures.md"
#: The whole walk takes many minutes (INTERP_EVERY_ARCHITECTURE=1), so else: windows, latent attention and
#: experts, a state
#: beside attention, parallel blocks, multipliers, the plain loop, and a stream in float32 whatever the dtype.
SAMPLE = ("gemma3_text", "deepseek_v3", "qwen3_next", "cohere2", "granite", "bloom", "mamba")
EVERY = bool(os.environ.get("INTERP_EVERY_ARCHITECTURE"))
WALKED = families() if EVERY else SAMPLE
#: Ways of going on, and how many of their last tokens are scored.
TAILS, SCORED = [[4, 8, 15], [4, 16, 23, 42]], [2, 3]
#: How far one exact path may be from another, in what a plain pass is off by rounding: to either side, and
#: not at its worst
#: on the same tokens.
TIMES = 4
#: In a narrow dtype every expert is taken and every token attended to: of two that score nearly alike
#: rounding takes either one,
#: in any plain pass too, and what follows is then off by more than rounding. In float32 families choose as
#: they do.
ALL = dict(num_experts_per_tok=4, num_experts_per_token=4, moe_topk=4, moe_k=4, top_k=4, index_topk=128)


@pytest.fixture(scope="module")
def found():
    return table().set_index("family")


def listed() -> dict[str, list[str]]:
    """Family -> the cells of its row in the committed page."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in PAGE.read_text().splitlines()
        if line.startswith("| ")
    ]
    return {row[0]: row[1:] for row in rows[2:]}  # below the head and its rule


def test_every_family_is_fast_plain_or_refused_with_a_reason(found):
    assert list(found.index) == list(FAMILIES)
    for column in COLUMNS:
        assert set(found[column]) <= {"fast", "plain loop", "refused"}
    assert (found.reason[found.patch != "fast"] != "").all()
    fast = ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt_neox", "gpt2", "granite", "cohere2"]
    assert (found.loc[fast, list(COLUMNS)] == "fast").all().all()
    assert (found.loc["bart", list(COLUMNS)] == "refused").all() and "encoder" in found.reason["bart"]


@pytest.mark.parametrize("family", ["mamba", "qwen3_next"])
def test_a_model_that_keeps_a_state_is_read_by_plain_passes_and_has_no_keys_to_swap(found, family):
    assert found.loc[family, list(COLUMNS)].tolist() == ["fast", "plain loop", "plain loop", "refused"]
    assert (
        "'linear_attention', whose cache is not keys and values of each token alone" in found.reason[family]
    )


def test_the_page_lists_every_family_of_transformers_and_is_what_comes_out(found):
    page = listed()
    assert f"transformers {transformers.__version__}, as a tiny random model" in PAGE.read_text()
    assert sorted(page) == families()
    for family, row in found.iterrows():
        assert page[family] == [row.architecture, *(row[c] for c in COLUMNS), row.reason], family
    words = ["family", "architecture", *COLUMNS, "reason"]
    rows = pd.DataFrame([[family, *cells] for family, cells in page.items()], columns=words)
    assert PAGE.read_text() == (document() if EVERY else as_page(rows))
    assert page["reformer"][1:-1] == ["refused"] * 4 and "two residual streams" in page["reformer"][-1]


def plain(hf, ids, rows=1):
    """Log-probability of each token of some ids but the first, after those before it, by the model's own
    forward pass."""
    logp = hf(torch.tensor([ids] * rows), use_cache=False).logits[0].float().log_softmax(-1)
    return logp[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def scores(hf, prompt, tails=TAILS, scored=SCORED):
    """Log-probability of the last scored[i] tokens of each tail following a prompt, each by a plain pass."""
    return torch.stack([plain(hf, [*prompt, *tail])[-n:].sum() for tail, n in zip(tails, scored)])


def _stream(args, kwargs):
    return next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))


def entering(hf, ids, rows=1):
    """What enters each block [layer, width] at the last token of some ids, in the model's own pass."""
    found, handles = [], []
    for block in decoder(hf, text_config(hf))[1]:

        def hook(module, args, kwargs):
            found.append(_stream(args, kwargs)[0, -1].float())

        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    hf(torch.tensor([ids] * rows), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(found)


@contextmanager
def halved(block, at):
    """Halve what enters a block at one token, in the model's own pass: the reference of a patched cell."""

    def hook(module, args, kwargs):
        tensor, new = _stream(args, kwargs), _stream(args, kwargs).clone()
        new[0, at] *= 0.5
        return tuple(new if v is tensor else v for v in args), {
            k: new if v is tensor else v for k, v in kwargs.items()
        }

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    yield
    handle.remove()


def apart(found, wanted):
    """The largest difference in units of each row's largest number."""
    return ((found.float() - wanted).abs().amax(-1) / wanted.abs().amax(-1)).max().item()


def tolerances(hf, wide, prompts):
    """How far from a plain pass a token's log-probability may be, in nats, and a state, in its largest
    number.

    TIMES what the plain pass itself is off over these prompts: in bfloat16 from `wide`, the same weights in
    float32; in float32
    from itself over a batch of several rows, which are summed in another order.
    """
    sequences = [
        [*prompt, *between, *tail] for prompt in prompts for between in ([], [11, 12, 9]) for tail in TAILS
    ]
    other, rows, least = (hf, 3, 1e-4) if wide is None else (wide, 1, 0)
    nats = max((plain(hf, ids) - plain(other, ids, rows)).abs().max().item() for ids in sequences)
    far = max(apart(entering(hf, ids), entering(other, ids, rows)) for ids in sequences)
    return max(least, TIMES * nats), max(least, TIMES * far)


def served(family, dtype, **extra):
    """A family's tiny model, and the same weights in float32 (None for float32); None for what is refused by
    its name."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, number in ALL.items() if dtype != torch.float32 else ():
                patch.setitem(SIZES, name, number)
            hf = tiny(family, dtype=dtype, **extra)
    except Exception:
        assert listed()[family][1] in ("not built", "refused")
        return None
    wide = None if dtype == torch.float32 else copy.deepcopy(hf).float()
    try:
        return HookedModel(hf, None), wide
    except NotImplementedError as error:
        assert type(hf).__name__ in str(error)
        if listed()[family][1] != "refused":  # transformers itself cannot run it in this dtype
            with pytest.raises(RuntimeError):
                hf(input_ids=torch.arange(1, 9)[None], use_cache=False)
        return None


def boundaries(model, ids):
    """`capture` at the last token of some ids, read by themselves, of one that they extend and of one that
    they begin like."""
    some = [ids, ids[:-2], [*ids[:-2], 5, 6]]
    prompts = [SimpleNamespace(ids=i, boundary=len(i) - 1, hash="", episode="e") for i in some]
    found = [
        capture(model, prompts, ["resid_pre"], trajectory=together).values[:, 0] for together in (True, False)
    ]
    return some, found


def check_capture(model, prompt, close):
    if (
        not all(model.hook_points.get("resid_pre", [None]))
        or model.hook_points["resid_pre"][0].copies is not None
    ):
        return
    some, found = boundaries(model, prompt)
    for i, ids in enumerate(some):
        wanted = entering(model.hf, ids)
        assert all(apart(values[i], wanted) < close for values in found)


def check_decoding(model, prompts, nats):
    suffixes = dict(a=[[4, 8]] * len(prompts), b=[None, *[[9]] * (len(prompts) - 1)])
    found = continue_each(model, prompts, suffixes, lambda ids: False, 3)
    for name, rows in suffixes.items():
        for prompt, suffix, continuation in zip(prompts, rows, found[name]):
            if suffix is None:
                continue
            ids = [*prompt, *suffix]
            assert continuation.logp == pytest.approx(
                plain(model.hf, ids)[len(prompt) :].mean().nan_to_num().item(), abs=nats
            )
            for token in continuation.ids:
                logits = model.hf(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
                assert logits.max() - logits[token] <= 2 * nats
                ids.append(token)


def check_patching(model, prompt, close):
    sites = [s for s in model.hook_points if all(model.hook_points[s])]
    kind = Packed if model.packs(len(prompt) + 4) else Plain
    run, loop = (k(model, [Run(prompt, TAILS, SCORED, [len(prompt) - 1])], sites) for k in (kind, Plain))
    close(run.base[0], scores(model.hf, prompt))
    last = model.n_layers - 1
    cells = [
        Cell(site, layer, [(len(prompt) - 1,)], [run.values[site, layer][0] * 0.5], slice(None))
        for site in sites
        for layer in {1, last}
        if run.values[site, layer][0].ndim == 2
    ]
    if not cells:
        return
    patched = run.patched(cells)
    if kind is Packed:
        close(patched, loop.patched(cells))
        # Beside a shorter prompt, which is padded, with the same values in both.
        both = [Run(ids, TAILS, SCORED, [len(ids) - 1]) for ids in (prompt, prompt[2:])]
        twice = [
            Cell(c.site, c.layer, [(len(prompt) - 1,), (len(prompt) - 3,)], [*c.values] * 2, c.columns)
            for c in cells
        ]
        close(Packed(model, both).patched(twice), Plain(model, both).patched(twice))
    for cell, found in zip(cells, patched[0]):
        if cell.site == "resid_pre" and model.hook_points["resid_pre"][0].copies is None:
            with halved(model.blocks[cell.layer], len(prompt) - 1):
                close(found, scores(model.hf, prompt))


def check_reliance(model, prompt, close):
    prompts = dict(clean=prompt, corrupt=[*prompt[:-3], *((i + 5) % 97 for i in prompt[-3:])])
    traces, actions = dict(clean=[11, 12], corrupt=[11, 13]), [[9, *tail] for tail in TAILS]
    swap = Swap(prompts, traces, actions, SCORED)
    packed = not model.path(swap.longest)
    if packed:
        # Beside a shorter pair, which is padded.
        shorter = Swap({run: ids[2:] for run, ids in prompts.items()}, traces, actions, SCORED)
        scored = packed_paths(model, [swap, shorter])
        if model.config.model_type != "doge":  # of whose nearly equal keys rounding chooses
            close(scored[1], plain_paths(model, shorter))
        scored = scored[0]
    else:
        scored = (whole_paths if model.rereads(swap.longest) else plain_paths)(model, swap)
    found = dict(zip(PATHS, scored))
    for condition, run in (("unswapped", "clean"), ("total", "corrupt")):
        close(found[condition], scores(model.hf, [*prompts[run], *traces[run]], actions))
    if packed:
        close(torch.stack(list(found.values())), plain_paths(model, swap))


def check_served(model, wide, lengths):
    """Capture, forced choice, decoding, patching at the boundary and prompt reliance, against the model's own
    forward passes."""
    prompts = [[(7 * i + 3) % 97 for i in range(n)] for n in sorted(lengths)]
    nats, relative = tolerances(model.hf, wide, prompts)
    close = partial(torch.testing.assert_close, rtol=0, atol=nats * max(SCORED))
    for prompt in prompts:
        check_capture(model, prompt, relative)
        close(score(model, model.read(prompt), TAILS, SCORED), scores(model.hf, prompt))
        check_patching(model, prompt, close)
        if model.support.mediation != "refused":
            check_reliance(model, prompt, close)
    check_decoding(model, prompts, nats)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", WALKED)
@torch.inference_mode()
def test_what_a_family_is_served_equals_plain_passes(family, dtype):
    """Prompts shorter and longer than the windows, chunks and budgets of the tiny sizes, which are at most 8,
    and longer than
    every other length below 100 that the configuration names.
    """
    found = served(family, dtype)
    if found is None:
        return
    model, wide = found
    check_served(model, wide, {5, 21, max([n + 2 for n in model.lengths if n < 100] + [21])})


def rope(kind, **more):
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1e4, **more))


#: Where a rule changes, in tokens: rotary factors, windows, chunks, budgets, queries scaled by position.
SWITCH = 32
LONG = dict(original_max_position_embeddings=SWITCH)
SWITCHED = {
    "dynamic": ("llama", dict(max_position_embeddings=SWITCH, **rope("dynamic", factor=8.0))),
    "yarn": ("llama", rope("yarn", factor=4.0, **LONG)),
    "llama3": ("llama", rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **LONG)),
    "linear": ("llama", rope("linear", factor=4.0)),
    "longrope": (
        "phi3",
        LONG | rope("longrope", short_factor=[1.0] * 4, long_factor=[2.0, 4.0, 8.0, 16.0], **LONG),
    ),
    "yarn with a temperature": ("ministral3", rope("yarn", factor=4.0, llama_4_scaling_beta=0.5, **LONG)),
    "chunks": ("llama4_text", dict(attention_chunk_size=SWITCH, floor_scale=16, attn_scale=0.5)),
    "scaled queries": ("inkling2_text", dict(log_scaling_n_floor=SWITCH)),
    "window by place": ("gpt_neo", dict(window_size=SWITCH)),
    "window": ("gemma2", dict(sliding_window=SWITCH)),
    "budget of keys": ("doge", dict(keep_window_size=SWITCH, sliding_window=None)),
    "budget of blocks": (
        "minimax_m3_vl_text",
        dict(
            index_block_size=SWITCH // 4,
            index_topk_blocks=4,
            index_n_heads=2,
            layer_types=["full_attention", "minimax_m3_sparse"] * 2,
        ),
    ),
    "blocks of a state": ("minimax", dict(block_size=SWITCH)),
    "chunks of a state": ("falcon_h1", dict(mamba_chunk_size=SWITCH)),
    "convolution": ("lfm2", {}),
    "delta rule": ("qwen3_next", {}),
}
SLOW = ("scaled queries", "budget of blocks")
#: Most rules in float32, and one of each path in bfloat16; all of them with INTERP_EVERY_ARCHITECTURE=1.
RULES = {
    torch.float32: [rule for rule in SWITCHED if EVERY or rule not in SLOW],
    torch.bfloat16: list(SWITCHED) if EVERY else ["dynamic", "longrope", "yarn", "chunks", "convolution"],
}


@pytest.mark.parametrize("rule, dtype", [(rule, dtype) for dtype in RULES for rule in RULES[dtype]], ids=str)
@torch.inference_mode()
def test_what_is_served_around_a_length_at_which_a_rule_changes_equals_plain_passes(rule, dtype):
    """Prompts one token below the length with what follows them, at it, one above it, and far above."""
    family, extra = SWITCHED[rule]
    model, wide = served(family, dtype, **extra)
    check_served(model, wide, {SWITCH - 4, SWITCH, SWITCH + 1, 3 * SWITCH})


@torch.inference_mode()
def test_layers_of_states_alone_are_decoded_without_a_cache_that_they_cannot_fill():
    """transformers asks the cache for its length, and one without an attention layer knows none."""
    model = HookedModel(tiny("bamba", attn_layer_indices=[]), None)
    check_decoding(model, [[(7 * i + 3) % 97 for i in range(n)] for n in (5, 21)], 1e-3)


@torch.inference_mode()
def test_an_architecture_with_a_mask_of_its_own_takes_the_plain_loop_and_is_right():
    """GPT-Neo masks by place in memory, not by position: packing would be silently wrong, and it is found
    out."""
    model = HookedModel(tiny("gpt_neo"), None)
    assert model.support.patch == "plain loop" and "as in a plain pass" in model.support.reason
    prompt, tails, scored = [5, 9, 60, 33, 7, 12, 44, 3, 71, 20], [[4, 8, 15], [4, 16, 23, 42]], [2, 2]
    slow = scores(model.hf, prompt, tails, scored)
    torch.testing.assert_close(score(model, model.read(prompt), tails, scored), slow, rtol=0, atol=1e-4)
    torch.testing.assert_close(Plain(model, [Run(prompt, tails, scored)]).base[0], slow, rtol=0, atol=1e-4)
    continued = continue_each(
        model, [prompt, prompt[:4]], dict(a=[[4, 8], None]), lambda ids: ids[-1] == 96, 5
    )["a"]
    ids = [*prompt, 4, 8]
    for token in continued[0].ids:
        assert token == model.hf(torch.tensor([ids])).logits[0, -1].argmax()
        ids.append(token)
    assert continued[1] is None and len(continued[0].ids) == 5


@torch.inference_mode()
def test_a_wrong_mask_would_be_found_out(monkeypatch):
    """The trial itself: packing that lets a branch see another one is not taken for exact."""
    mask = HookedModel.mask
    monkeypatch.setattr(
        HookedModel,
        "mask",
        lambda self, visible, at, keys_at: mask(self, torch.ones_like(visible), at, keys_at),
    )
    assert HookedModel(tiny("llama"), None).support.patch == "plain loop"
