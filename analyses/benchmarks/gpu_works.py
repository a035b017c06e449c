"""The works of the benchmark on a GPU, and what each is compared with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3Config

import interp
from interp.models.hooked import pick_device, pick_dtype
from interp.prompts.format import Prompt, PromptFormat
from interp.tasks.episodes import Decision

from .gpu_settings import SHAPES, Config
from .rivals import twin

if TYPE_CHECKING:
    from interp.engine.capturing import Activations
    from interp.measures.patching import Sweep

SITES = ("resid_pre", "attn_out", "mlp_out")
#: The longest prompts of each row, in tokens: longer ones of `--lengths` are left out.
LONGEST = dict(
    sweep=10**6,
    sites=8192,
    reliance=8192,
    pairs=512,
    capture=2048,
    decode=2048,
    ragged=2048,
    episodes=2048,
    choose=512,
    grid=128,
)
#: Tokens of one pass of a bare forward.
TOGETHER = 32768


@dataclass
class Baseline:
    """Another way to do a work, or a part of it that is scaled up; `difference` compares it with ours."""

    name: str
    call: Callable[[], Any]
    scale: float = 1.0
    difference: Callable[[Any, Any], float] | None = None
    unit: str = "nats"


@dataclass
class Work:
    """One row, or several that share our side of it."""

    name: str
    tokens: int
    ours: Callable[[], Any]
    baselines: list[Baseline] = field(default_factory=list)


def build(shape: str, device: torch.device, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """A Qwen3 with random weights made on the device, wide enough that a patch moves log-probabilities."""
    config = Qwen3Config(
        **{**dict(vocab_size=151936, head_dim=128, max_position_embeddings=40960), **SHAPES[shape]}
    )
    with device:
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in hf.eval().requires_grad_(False).parameters():
        if parameter.ndim == 2:
            parameter.normal_(0, config.hidden_size**-0.5, generator=generator)
    return hf


class Bench:
    """One model, and the works on it."""

    def __init__(self, config: Config, shape: str) -> None:
        self.config, self.shape = config, shape
        self.device = pick_device(config.device)
        series = interp.CheckpointSeries.discover()
        tokenizer = AutoTokenizer.from_pretrained(series.path(series.steps[0]))
        self.hf = build(shape, self.device, pick_dtype(config.dtype, self.device), config.seed)
        self.model = interp.HookedModel(self.hf, tokenizer)
        self.format = PromptFormat(tokenizer)
        self.random = np.random.default_rng(config.seed)

    @cached_property
    def bare(self) -> PreTrainedModel:
        """A module of its own over the same weights, whose hooks and attention are nobody else's."""
        return twin(self.hf)

    @cached_property
    def bridge(self) -> Any:
        """TransformerLens over the same weights."""
        return self.model.bridge

    def draw(self, n: int) -> list[int]:
        """Ids of a random text, none of them a control token."""
        return self.random.integers(100, self.hf.config.vocab_size, n).tolist()

    def prompt(self, ids: Sequence[int], number: int, episode: str = "", step: int = 0) -> Prompt:
        names = tuple(f"go to desk {i}" for i in range(1, 21))
        decision = Decision(
            (),
            names[number % 2],
            admissible=names,
            episode=episode or f"game-{number}",
            step=step,
            split="bench",
            trace="The desk is next, so I go there.",
        )
        return Prompt(tuple(ids), (*["observation"] * (len(ids) - 1), "boundary"), decision, self.format)

    def prompts(self, n: int, tokens: int) -> list[Prompt]:
        return [self.prompt(self.draw(tokens), i) for i in range(n)]

    def pair(self, tokens: int) -> tuple[Prompt, Prompt]:
        """Two prompts that begin alike, a fifth of them, with different actions."""
        ids = self.draw(tokens)
        return self.prompt(ids, 0), self.prompt(ids[: tokens // 5] + self.draw(tokens - tokens // 5), 1)

    def tensor(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        return torch.tensor([list(row) for row in rows], device=self.device)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Sequence[int]]) -> None:
        """Bare forwards without the language-model head, in batches, of rows of one length."""
        size = max(1, TOGETHER // len(rows[0]))
        for start in range(0, len(rows), size):
            self.bare.model(self.tensor(rows[start : start + size]), use_cache=False)

    def works(self) -> Iterator[Work]:
        """Every work at every length; its inputs are made when its turn comes."""
        for row in self.config.rows:
            lengths = sorted(
                {min(n, LONGEST[row]) for n in self.config.lengths if n <= LONGEST[row]} or {LONGEST[row]}
            )
            for tokens in lengths:
                yield getattr(self, f"work_{row}")(tokens)

    # patching

    def _ends(self, clean: Prompt, corrupt: Prompt) -> tuple[list[list[int]], int]:
        """What follows a prompt in mode `prompt`, for both actions, and where in it the actions part."""
        opening = self.format.action_prefix(None)
        actions = [self.format.action_ids(p.decision.reference) for p in (clean, corrupt)]
        apart = next(i for i, (a, b) in enumerate(zip(*actions)) if a != b)
        return [[*opening, *action] for action in actions], len(opening) + apart

    def _difference(self, logits: torch.Tensor, ends: Sequence[Sequence[int]], start: int) -> float:
        """log p(clean action) - log p(corrupt action); logits: [action, last token, vocabulary]."""
        n = len(ends[0]) - start
        scored = torch.tensor([end[start:] for end in ends], device=logits.device)
        logp = logits[:, -n - 1 : -1].float().log_softmax(-1).gather(-1, scored[..., None])[..., 0].sum(1)
        return float(logp[0] - logp[1])

    @torch.inference_mode()
    def _plain_cells(self, clean: Prompt, corrupt: Prompt, layers: Sequence[int]) -> dict[int, float]:
        """Denoised differences by a loop with hooks, clean's residual stream put into corrupt's run."""
        ends, start = self._ends(clean, corrupt)
        entering: list[torch.Tensor] = []
        blocks, at = self.bare.model.layers, clean.boundary
        handles = [
            block.register_forward_pre_hook(lambda _, args: entering.append(args[0][:, at].clone()))
            for block in blocks
        ]
        self.bare.model(self.tensor([clean.ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        differences = {}
        for layer in layers:

            def edit(_: torch.nn.Module, args: tuple) -> tuple:
                hidden = args[0].clone()
                hidden[:, at] = entering[layer]
                return (hidden, *args[1:])

            handle = blocks[layer].register_forward_pre_hook(edit)
            rows = self.tensor([[*corrupt.ids, *end] for end in ends])
            logits = self.bare(rows, use_cache=False, logits_to_keep=len(ends[0]) + 1).logits
            handle.remove()
            differences[layer] = self._difference(logits, ends, start)
        return differences

    @torch.inference_mode()
    def _lens_cells(self, clean: Prompt, corrupt: Prompt, layers: Sequence[int]) -> dict[int, float]:
        """The same by TransformerLens, one run for each cell and action."""
        ends, start = self._ends(clean, corrupt)
        names = [f"blocks.{layer}.hook_resid_pre" for layer in layers]
        _, cache = self.bridge.run_with_cache(self.tensor([clean.ids]), names_filter=names, return_type=None)
        differences = {}
        for layer, name in zip(layers, names):

            def edit(hidden: torch.Tensor, hook: Any) -> torch.Tensor:
                hidden[:, clean.boundary] = cache[hook.name][0, clean.boundary]
                return hidden

            rows = [self.tensor([[*corrupt.ids, *end]]) for end in ends]
            logits = torch.cat(
                [
                    self.bridge.run_with_hooks(
                        r, fwd_hooks=[(name, edit)], use_cache=False, logits_to_keep=len(ends[0]) + 1
                    )
                    for r in rows
                ]
            )
            differences[layer] = self._difference(logits, ends, start)
        return differences

    def _work_patching(self, name: str, tokens: int, sites: Sequence[str]) -> Work:
        clean, corrupt = self.pair(tokens)
        depth = self.model.n_layers
        layers = sorted({int(i) for i in np.linspace(0, depth - 1, self.config.sampled)})

        def off(sweep: Sweep, cells: dict[int, float]) -> float:
            gap = sweep.clean[0] - sweep.corrupt[0]
            return max(
                abs(sweep.denoise[0, 0, layer] * gap + sweep.corrupt[0] - value)
                for layer, value in cells.items()
            )

        scale = 2 * depth * len(sites) / len(layers)
        loops = [Baseline("plain hooks", lambda: self._plain_cells(clean, corrupt, layers), scale, off)]
        if self.config.rivals and importlib.util.find_spec("transformer_lens"):
            loops.append(
                Baseline("TransformerLens", lambda: self._lens_cells(clean, corrupt, layers), scale, off)
            )
        ours = lambda: interp.patch(self.model, [clean], [corrupt], sites, minimum=-1e9)
        return Work(name, tokens, ours, [Baseline("one forward", lambda: self.forward([clean.ids])), *loops])

    def work_sweep(self, tokens: int) -> Work:
        return self._work_patching("layer sweep of a pair", tokens, ["resid_pre"])

    def work_sites(self, tokens: int) -> Work:
        return self._work_patching("three sites, both directions", tokens, SITES)

    def work_pairs(self, tokens: int) -> Work:
        clean, corrupt = (
            list(prompts) for prompts in zip(*(self.pair(tokens) for _ in range(self.config.pairs)))
        )
        few = min(self.config.pairs, 4)

        def one_by_one() -> np.ndarray:
            return np.concatenate(
                [interp.patch(self.model, [a], [b], minimum=-1e9).clean for a, b in zip(clean[:few], corrupt)]
            )

        def off(sweep: Sweep, alone: np.ndarray) -> float:
            return float(np.abs(sweep.clean[:few] - alone).max())

        both = [p.ids for p in (*clean, *corrupt)]
        return Work(
            f"layer sweep of {len(clean)} pairs",
            tokens,
            lambda: interp.patch(self.model, clean, corrupt, minimum=-1e9),
            [
                Baseline("one pair at a time", one_by_one, len(clean) / few, off),
                Baseline("forwards of the prompts", lambda: self.forward(both)),
            ],
        )

    def work_grid(self, tokens: int) -> Work:
        clean, corrupt = self.pair(tokens)
        layers = [0, self.model.n_layers - 1]
        scale = 2 * self.model.n_layers * tokens / len(layers)
        loops = [Baseline("plain hooks", lambda: self._plain_cells(clean, corrupt, layers), scale)]
        if self.config.rivals and importlib.util.find_spec("transformer_lens"):
            loops.append(Baseline("TransformerLens", lambda: self._lens_cells(clean, corrupt, layers), scale))
        return Work(
            "layer x position grid",
            tokens,
            lambda: interp.patch(self.model, [clean], [corrupt], at="all", minimum=-1e9),
            loops,
        )

    # keys and values, and activations

    def work_reliance(self, tokens: int) -> Work:
        clean, corrupt = self.pair(tokens)
        actions = [self.format.action_ids(p.decision.reference) for p in (clean, corrupt)]
        start = next(i for i, (a, b) in enumerate(zip(*actions)) if a != b)

        @torch.inference_mode()
        def totals() -> float:
            """The total effect by four plain sequences."""
            differences = []
            for prompt in (clean, corrupt):
                rows = self.tensor(
                    [[*prompt.ids, *self.format.with_trace(prompt.decision.trace), *a] for a in actions]
                )
                logits = self.bare(rows, use_cache=False, logits_to_keep=len(actions[0]) + 1).logits
                differences.append(self._difference(logits, actions, start))
            return differences[0] - differences[1]

        return Work(
            "prompt reliance of a pair",
            tokens,
            lambda: interp.prompt_reliance(self.model, [clean], [corrupt], minimum=-1e9),
            [
                Baseline("one forward", lambda: self.forward([clean.ids])),
                Baseline(
                    "four forwards: the total effect",
                    totals,
                    1.0,
                    lambda ours, total: abs(float(ours.total[0]) - total),
                ),
            ],
        )

    def work_capture(self, tokens: int) -> Work:
        prompts = self.prompts(self.config.captured, tokens)

        @torch.inference_mode()
        def states() -> torch.Tensor:
            out = self.bare.model(self.tensor([prompts[0].ids]), use_cache=False, output_hidden_states=True)
            return torch.stack(out.hidden_states)[1:-1, 0, -1].float().cpu()

        def off(acts: Activations, plain: torch.Tensor) -> float:
            return float((acts.values[0, 0, :-1] - plain).norm() / plain.norm())

        return Work(
            f"boundary capture of {len(prompts)} prompts",
            tokens,
            lambda: interp.capture(self.model, prompts),
            [
                Baseline("bare forwards", lambda: self.forward([p.ids for p in prompts])),
                Baseline("output_hidden_states of one prompt", states, len(prompts), off, "relative"),
            ],
        )

    # decoding

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Greedy tokens [row, token] of one batch, padded on the left where its rows are ragged."""
        width = max(map(len, rows))
        ids = self.tensor([[*[0] * (width - len(row)), *row] for row in rows])
        mask = self.tensor([[*[0] * (width - len(row)), *[1] * len(row)] for row in rows])
        n = self.config.new_tokens
        return self.hf.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=n,
            min_new_tokens=n,
            pad_token_id=0,
        )[:, width:].cpu()

    def _work_decoding(self, name: str, tokens: int, prompts: Sequence[Prompt], modes: Sequence[str]) -> Work:
        from interp.engine.decoding import decode_modes

        rows = {mode: [[*p.ids, *self.format.mode_prefix(mode)] for p in prompts] for mode in modes}

        def off(ours: dict[str, list], plain: dict[str, torch.Tensor]) -> float:
            """Share of the rows whose first eight tokens differ."""
            pairs = [
                (completion.ids[:8], tuple(ids[:8].tolist()))
                for mode in modes
                for completion, ids in zip(ours[mode], plain[mode])
            ]
            return float(np.mean([a != b for a, b in pairs]))

        def ours() -> dict[str, list]:
            return decode_modes(self.model, prompts, modes, max_new_tokens=self.config.new_tokens)

        return Work(
            name,
            tokens,
            ours,
            [
                Baseline(
                    "generate, a batch for each mode",
                    lambda: {m: self._generate(r) for m, r in rows.items()},
                    1.0,
                    off,
                    "rows that differ",
                )
            ],
        )

    def work_decode(self, tokens: int) -> Work:
        n = self.config.decoded
        return self._work_decoding(
            f"decoding {n} x {self.config.new_tokens} tokens", tokens, self.prompts(n, tokens), ["prompt"]
        )

    def work_ragged(self, tokens: int) -> Work:
        n = self.config.decoded
        lengths = self.random.integers(tokens // 2, tokens + 1, n)
        prompts = [self.prompt(self.draw(int(length)), i) for i, length in enumerate(lengths)]
        return self._work_decoding(
            f"decoding {n} ragged x {self.config.new_tokens} tokens", tokens, prompts, ["prompt"]
        )

    def work_episodes(self, tokens: int) -> Work:
        """Four episodes, whose prompts extend one another, in both modes."""
        n, prompts = max(1, self.config.decoded // 4), []
        for number in range(4):
            ids = self.draw(tokens)
            prompts += [
                self.prompt(ids[: round(length)], step, f"game-{number}", step)
                for step, length in enumerate(np.linspace(tokens // 2, tokens, n))
            ]
        return self._work_decoding(
            f"decoding episodes, 2 modes x {len(prompts)} x {self.config.new_tokens} tokens",
            tokens,
            prompts,
            ["prompt", "cot"],
        )

    def work_choose(self, tokens: int) -> Work:
        prompts = self.prompts(self.config.choices, tokens)
        actions = [self.format.action_ids(name) for name in prompts[0].decision.admissible]
        width = max(map(len, actions))

        @torch.inference_mode()
        def first() -> torch.Tensor:
            """Summed log-probabilities of the first decision's candidates, in one padded batch."""
            head = [*prompts[0].ids, *self.format.action_prefix(None)]
            rows = self.tensor([[*head, *action, *[0] * (width - len(action))] for action in actions])
            logp = (
                self.bare(rows, use_cache=False, logits_to_keep=width + 1)
                .logits[:, :-1]
                .float()
                .log_softmax(-1)
            )
            return torch.stack([row[range(len(a)), a].sum() for row, a in zip(logp, actions)]).cpu()

        def ours() -> list[torch.Tensor]:
            return interp.choose_each(self.model, prompts, [p.decision.admissible for p in prompts])

        return Work(
            f"forced choice of {len(prompts)} decisions x {len(actions)}",
            tokens,
            ours,
            [
                Baseline("forwards of the prompts", lambda: self.forward([p.ids for p in prompts])),
                Baseline(
                    "a batch of the candidates",
                    first,
                    len(prompts),
                    lambda ours, plain: float((ours[0][0, :, 0] - plain).abs().max()),
                ),
            ],
        )
