"""Steering: the batched path against plain loops, a direction that must work, its baselines, and wrong
use."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from interp.engine.decoding import decode, parse_completion
from interp.environments.alfworld.commands import parse
from interp.measures import steering
from interp.measures.steering import METRICS, POSITIONS, steer
from interp.models.hooked import HookedModel, Support
from interp.probing.directions import (
    orthogonal_directions,
    parting_token,
    probe_direction,
    shuffled_direction,
    unembedding_direction,
)
from interp.prompts.format import PromptFormat
from tests.conftest import tiny_hf

EVERY = [
    *((position, "cot") for position in POSITIONS),
    *((position, "prompt") for position in POSITIONS if position != "cot"),
]


def drawn(model, n=2, seed=0):
    return np.random.default_rng(seed).standard_normal((n, model.d_model))


def texts(found):
    return {(c.kind, c.alpha): c.action for c in found.cells}


@pytest.fixture
def generated(monkeypatch):
    """The ids of every decoding that `steer` parses, in its order."""
    seen, real = [], steering.parse_completion
    monkeypatch.setattr(
        steering, "parse_completion", lambda fmt, ids, *rest: seen.append(tuple(ids)) or real(fmt, ids, *rest)
    )
    return seen


def by_hand(model, prompt, vector, layer, position, mode, limit):
    """A plain loop over a hook of PyTorch's own, phases from the text: what comes out, and how the block was
    changed."""
    fmt, out = prompt.format, []
    stop = fmt.ended(mode)
    while not (out and (stop(out) or len(out) == limit)):
        opening = fmt.mode_prefix(mode)
        phases = (
            ["before"] * prompt.boundary
            + ["boundary"]
            + ["action" if mode == "prompt" else "cot"] * len(opening)
        )
        opened = [
            mode == "prompt" or fmt.style.lead(fmt.text(out[: i + 1])) is not None for i in range(len(out))
        ]
        phases += ["action" if o else "cot" for o in opened]
        where = torch.tensor([p == position or position == "everywhere" and p != "before" for p in phases])[
            :, None
        ]

        def hook(module, args, output):
            first = output[0] if isinstance(output, tuple) else output
            new = first + where * vector
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = model.blocks[layer].register_forward_hook(hook)
        with torch.inference_mode():
            out.append(
                int(
                    model.hf(torch.tensor([[*prompt.ids, *opening, *out]]), use_cache=False)
                    .logits[0, -1]
                    .argmax()
                )
            )
        handle.remove()
    return tuple(out)


@pytest.mark.parametrize("position,mode", EVERY)
def test_the_batched_path_equals_both_plain_loops_on_every_architecture(
    model, prompts, generated, monkeypatch, position, mode
):
    """Word for word, and in every logit that a word was chosen by: random weights often say one word, steered
    or not."""
    some, given, logits = (
        prompts[:2],
        dict(target="x", position=position, mode=mode, alphas=(0.0, 0.5, -3.0), max_new_tokens=4),
        [],
    )
    real = model.logits

    def watched(hidden, *part):
        found = real(hidden, *part)
        if not part:  # a part of the vocabulary chooses no word
            logits.append(found)
        return found

    monkeypatch.setattr(model, "logits", watched)
    fast = steer(model, some, {"random": drawn(model)}, 1, **given)
    ids, batched = list(generated), torch.cat([each.reshape(-1, each.shape[-1]) for each in logits])
    logits.clear()
    monkeypatch.setitem(
        model.__dict__, "support", replace(model.support, trajectory="plain loop", reason="a made-up reason")
    )
    slow = steer(
        model,
        some,
        {"random": drawn(model)},
        1,
        unsteered=decode(model, some, mode, max_new_tokens=4),
        **given,
    )
    assert (fast.path, slow.path) == ("batched", "plain loop: a made-up reason") and texts(fast) == texts(
        slow
    )
    assert ids == generated[len(ids) :] and len(ids) == 2 * (1 + 2 * 2)
    alone = torch.stack([each for each in logits if each.ndim == 1])
    assert torch.cdist(alone, batched, p=float("inf")).amin(1).max() < 1e-3 * alone.abs().max()
    fewest = 8 if position == "action" and mode == "cot" else 16  # no tag is opened, so nothing is steered
    assert len(alone.round(decimals=2).unique(dim=0)) >= fewest
    unit = drawn(model)[1] / np.linalg.norm(drawn(model)[1])
    vector = torch.tensor(-3.0 * fast.norm * unit, dtype=torch.float32)
    assert ids[-1] == by_hand(model, some[-1], vector, 1, position, mode, 4)


@pytest.mark.parametrize("position", POSITIONS)
def test_the_batched_path_equals_the_plain_loop_where_actions_are_written(
    trained, trained_prompts, generated, position
):
    """A model that closes its tags: traces of many lengths, tags opened at different times, rows that end
    early."""
    some, vectors, budgets = trained_prompts[1:40:8], drawn(trained), (24576, 1000)
    for budget in budgets:
        found = steer(
            trained,
            some,
            {"random": vectors},
            1,
            target="drawer",
            position=position,
            alphas=(0.7,),
            parser=parse,
            batch_tokens=budget,
        )
    cells = [0 * vectors[0], *(0.7 * found.norm * w / np.linalg.norm(w) for w in vectors)]
    plain = [
        steering._plain(trained, p, torch.tensor(v, dtype=torch.float32), 1, position, "cot", 96)
        for v in cells
        for p in some
    ]
    assert generated == plain * len(budgets) and sum(a is not None for a in found.unsteered) > 3
    assert len({len(ids) for ids in plain}) > 2 and (
        position == "boundary" or any(c.flip.any() for c in found.cells)
    )


def test_a_tag_of_several_tokens_opens_with_the_last_of_them(llama, episodes, generated):
    fmt = PromptFormat(llama.tokenizer, style="react")
    tag, ids = steering._Tag(fmt), [*fmt.encode("I look.\nAction:"), *fmt.encode(" go\n")]
    assert fmt.text(ids[: tag.place(ids) + 1]).endswith("Action:") and not fmt.text(
        ids[: tag.place(ids)]
    ).endswith("Action:")
    assert len(fmt.encode("\nAction:")) > 1 and tag.place(fmt.encode("Actions: I look")) is None
    some = [fmt.prompt(d) for d in episodes["test_in_domain"][0].decisions()[:2]]
    unsteered = [parse_completion(fmt, ids, "cot")] * 2  # a trace that random weights would never write
    steer(
        llama,
        some,
        {"random": drawn(llama, 1)},
        1,
        target="x",
        position="action",
        alphas=(2.0,),
        unsteered=unsteered,
        max_new_tokens=len(ids),
    )
    told = ids[: tag.place(ids) + 1]
    assert (
        all(found[: len(told)] == tuple(told) and len(found) <= len(ids) for found in generated)
        and len(set(generated)) > 1
    )


@pytest.mark.parametrize("position,mode", EVERY)
def test_alpha_zero_changes_nothing_and_its_resample_rate_is_zero(
    trained, trained_prompts, generated, position, mode
):
    some = trained_prompts[:12]
    plain = decode(trained, some, mode, parser=parse)
    found = steer(
        trained,
        some,
        {"a": drawn(trained, 3), "b": drawn(trained, 1, 9)},
        1,
        target="drawer",
        position=position,
        mode=mode,
        alphas=(0.0,),
        parser=parse,
    )
    assert generated == [s.ids for s in plain] and found.unsteered == [s.action for s in plain]
    rate = found.resample.mean()
    assert rate == 0, (
        f"The steered path at alpha 0 differs from the plain decoding on {rate:.1%} of the decisions: it is not exact."
    )
    for cell in found.cells:
        assert not cell.flip.any() and not cell.to_target.any()
        assert cell.parsed.tolist() == [[a is not None for a in found.unsteered]] * len(cell.action)


@pytest.fixture(scope="module")
def chain(tokenizer):
    """A model without attention or MLP whose next token hangs on the last one alone: it thinks a dot, and
    takes the apple.

    After the action tag `apple` has logit 5 and `mug` 4; mug's row has a part (3) that no token's embedding
    reaches.
    """
    words = ["<think>", ".", "</think>", "<action>", " apple", " mug", "</action>"]
    ids = [tokenizer(w, add_special_tokens=False)["input_ids"] for w in words]
    assert all(len(i) == 1 for i in ids)
    think, dot, close, act, apple, mug, end = (i[0] for i in ids)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    hf = LlamaForCausalLM(config)
    for parameter in hf.parameters():
        parameter.data.fill_(1.0 if parameter.ndim == 1 else 0.0)
    embed, head = hf.model.embed_tokens.weight.data, hf.lm_head.weight.data
    embed[:, 20] = 1
    for axis, token in enumerate((think, dot, close, act, apple, mug)):
        embed[token] = torch.eye(32)[axis]
    head[dot, 0], head[close, 1], head[act, 2] = 20, 20, 20
    head[apple, 3], head[mug, 3], head[mug, 10] = 5, 4, 3
    head[end, 4] = head[end, 5] = 20
    return HookedModel(hf, tokenizer), mug


@pytest.mark.parametrize("mode", ["cot", "prompt"])
def test_a_planted_direction_flips_the_action_to_the_wanted_token(chain, prompts, mode):
    model, mug = chain
    fmt = PromptFormat(model.tokenizer)
    w = unembedding_direction(model, mug)
    assert parting_token(fmt, " mug", " apple") == mug and np.allclose(w[[3, 10]], [0.8, 0.6])
    for position in [p for p, m in EVERY if m == mode]:
        found = steer(
            model,
            prompts[:4],
            {"unembedding": w, "other": orthogonal_directions(w, 3)},
            1,
            target="mug",
            position=position,
            mode=mode,
            alphas=(0.0, 0.5, 1.5),
            classify=str,
            max_new_tokens=6,
        )
        assert found.norm == pytest.approx(1) and found.unsteered == ["apple"] * 4
        steered = texts(found)
        assert (
            steered["unembedding", 0.5] == steered["unembedding", 0.0] == [["apple"] * 4]
        )  # 4 + 5/2 does not reach 5 + 4/2
        reaches = position in ("action", "everywhere")
        assert steered["unembedding", 1.5] == [["mug" if reaches else "apple"] * 4], position
        values, decision = found.column("unembedding", 1.5, "to_target")
        assert values.tolist() == [reaches] * 4 and decision.tolist() == [0, 1, 2, 3]
        assert found.column("other", 1.5, "parse")[1].tolist() == [0, 1, 2, 3] * 3


def test_what_counts_as_a_flip_over_all_and_over_parsed_decisions():
    before, action = (
        ["go to desk 1", None, None, "look", "go to shelf 2"],
        [["go to shelf 1", None, "look", None, "go to shelf 1"]],
    )
    cell = steering._counted("probe", 2.0, action, before, steering.actions.target, "shelf")
    resample = np.zeros(5, dtype=bool)
    found = steering.Steering("cot", "cot", 0, 1.0, "shelf", "batched", before, resample, (cell,))
    columns = {m: [x.tolist() for x in found.column("probe", 2.0, m)] for m in METRICS}
    assert columns["flip"] == [[True, False, True, True, True], [0, 1, 2, 3, 4]]
    assert columns["flip_parsed"] == [[True, True], [0, 4]]
    assert columns["to_target"][0] == [
        True,
        False,
        False,
        False,
        False,
    ]  # shelf 2 to shelf 1 is a flip, but not into the class
    assert columns["parse"][0] == [True, False, True, False, True]
    resample[0] = True
    assert found.column("probe", 2.0, "flip")[0].tolist() == [0, 0, 1, 1, 1] and found.column(
        "probe", 2.0, "flip_parsed"
    )[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="no 'flip' of 'probe' at alpha 3.*probe 2"):
        found.column("probe", 3.0, "flip")


def test_directions_point_from_b_to_a_and_baselines_are_orthogonal_unit_and_seeded():
    rng = np.random.default_rng(0)
    acts, labels = rng.standard_normal((60, 16)), ["shelf", "drawer", "desk"] * 20
    acts[::3, 2] += 5
    for method in ("mean", "logistic"):
        w = probe_direction(acts, labels, "shelf", "drawer", method)
        assert w.shape == (16,) and np.linalg.norm(w) == pytest.approx(1) and w.argmax() == 2 and w[2] > 0.5
        assert probe_direction(acts, labels, "drawer", "shelf", method) == pytest.approx(-w, abs=1e-3)
        shuffled = [shuffled_direction(acts, labels, "shelf", "drawer", method, seed) for seed in (0, 0, 1)]
        assert (
            (shuffled[0] == shuffled[1]).all()
            and not np.allclose(shuffled[0], shuffled[2])
            and abs(shuffled[0] @ w) < 0.9
        )
    around = orthogonal_directions(3 * w, seed=4)
    assert (
        around.shape == (20, 16)
        and np.abs(around @ w).max() < 1e-12
        and np.allclose(np.linalg.norm(around, axis=1), 1)
    )
    assert (around == orthogonal_directions(w, seed=4)).all() or np.allclose(
        around, orthogonal_directions(w, seed=4)
    )
    assert not np.allclose(around, orthogonal_directions(w, seed=5))
    scaled = acts * np.geomspace(0.01, 100, 16)  # a logistic direction is in the activations' own units
    low, high = (
        scaled[np.array(labels) == c] @ probe_direction(scaled, labels, "shelf", "drawer", "logistic")
        for c in ("drawer", "shelf")
    )
    assert high.mean() > low.mean()


def test_a_direction_cannot_be_made_of_nothing(fmt):
    acts, labels = np.ones((4, 3)), ["a", "a", "b", "b"]
    for method in ("mean", "logistic"):
        with pytest.raises(ValueError, match="not zero, but 'a' and 'b' have the same"):
            probe_direction(acts, labels, "a", "b", method)
    with pytest.raises(ValueError, match="2 are of 'a' and 0 of 'c'"):
        probe_direction(acts, labels, "a", "c")
    with pytest.raises(ValueError, match="two classes"):
        probe_direction(acts, labels, "a", "a")
    with pytest.raises(ValueError, match="a label for each decision"):
        probe_direction(acts, labels[1:], "a", "b")
    with pytest.raises(ValueError, match="no method 'lda'"):
        probe_direction(acts, labels, "a", "b", "lda")
    with pytest.raises(ValueError, match="not zero"):
        orthogonal_directions(np.zeros(3))
    with pytest.raises(ValueError, match="at least two dimensions"):
        orthogonal_directions(np.ones(1))
    with pytest.raises(ValueError, match="do not part"):
        parting_token(fmt, "look", "look")


BAD = {
    "position": (dict(position="trace"), "no position 'trace'.*boundary, cot, action, everywhere"),
    "mode": (dict(mode="empty_think"), "cot or prompt, not 'empty_think'"),
    "no trace": (dict(mode="prompt", position="cot"), "no trace is written"),
    "layer": (dict(layer=3), "one of 0 to 2, not 3"),
    "negative layer": (dict(layer=-1), "one of 0 to 2, not -1"),
    "no alphas": (dict(alphas=()), "some finite numbers"),
    "infinite alpha": (dict(alphas=(1.0, float("inf"))), "some finite numbers"),
    "no directions": (dict(directions={}), "No direction is given"),
    "zero": (dict(directions={"probe": np.zeros(32)}), "not zero, but one of 'probe' is not"),
    "not finite": (dict(directions={"probe": np.full(32, np.nan)}), "must be finite"),
    "width": (dict(directions={"probe": np.ones(31)}), r"'probe' are of shape \(31,\).*32 numbers"),
    "no prompts": (dict(prompts=[]), "list of prompts is empty"),
    "none per decision": (dict(per_decision=0), "at least one direction of a kind, not 0"),
    "decodings": (dict(unsteered=[]), "2 prompts but 0 unsteered"),
    "too long": (dict(max_new_tokens=2000), "reads at most 1024"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_use_is_a_sentence(llama, prompts, case):
    changed, words = BAD[case]
    given = (
        dict(prompts=prompts[:2], directions={"probe": np.ones(32)}, layer=1, target="x", max_new_tokens=2)
        | changed
    )
    with pytest.raises(ValueError, match=words):
        steer(llama, given.pop("prompts"), given.pop("directions"), given.pop("layer"), **given)


def hooks_of(model):
    return [m for m in model.hf.modules() if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("support", ["fast", "plain loop"])
def test_no_hook_is_left_even_after_an_error(tokenizer, prompts, monkeypatch, support):
    model = HookedModel(tiny_hf("Llama", tokenizer), tokenizer)
    model.support = Support("fast", support, "fast", "fast", "a made-up reason")
    given = dict(target="x", position="everywhere", alphas=(1.0,), max_new_tokens=3)
    steer(model, prompts[:2], {"random": drawn(model)}, 1, **given)
    assert not hooks_of(model)
    unsteered = decode(model, prompts[:2], max_new_tokens=3)
    real = model.blocks[2].mlp.forward

    def failing(hidden):
        if model.blocks[1]._forward_hooks:
            raise RuntimeError("out of memory")
        return real(hidden)

    monkeypatch.setattr(model.blocks[2].mlp, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        steer(model, prompts[:2], {"random": drawn(model)}, 1, unsteered=unsteered, **given)
    assert not hooks_of(model)


def test_each_decision_takes_its_share_of_many_directions(trained, trained_prompts):
    """Row k of decision i is direction (2 i + k) mod 6, as if each had been asked for by itself; a kind of
    one is read everywhere."""
    some, six = trained_prompts[1:40:6], drawn(trained, 6)
    given = dict(layer=1, target="drawer", position="everywhere", alphas=(0.0, 0.7), parser=parse)
    whole = steer(trained, some, {"random": six}, **given)
    few = steer(trained, some, {"random": six, "one": six[3]}, per_decision=2, **given)
    all_of, action = texts(whole)["random", 0.7], texts(few)["random", 0.7]
    assert (
        action == [[all_of[(2 * i + k) % 6][i] for i in range(len(some))] for k in range(2)]
        and len({a for row in all_of for a in row}) > 2
    )
    assert texts(few)["one", 0.7] == [all_of[3]] and [len(c.action) for c in few.cells] == [2, 2, 1, 1]
    assert few.column("random", 0.7, "flip")[1].tolist() == [*range(len(some))] * 2
    slow = [
        [
            steering._plain(
                trained,
                p,
                torch.tensor(0.7 * few.norm * v / np.linalg.norm(v), dtype=torch.float32),
                1,
                "everywhere",
                "cot",
                96,
            )
            for p, v in zip(some, six[(2 * np.arange(len(some)) + k) % 6])
        ]
        for k in range(2)
    ]
    assert action == [
        [parse_completion(p.format, ids, "cot", parse).action for p, ids in zip(some, row)] for row in slow
    ]
