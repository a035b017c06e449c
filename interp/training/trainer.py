"""Train a checkpoint series: tokenizer, base, then chain-of-thought fine-tuning, with Hugging Face's trainer.

A series is a folder of ordinary checkpoints, `checkpoint-0` (the base) to the last, with `training.json`
beside the weights of each saying what made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from interp.checkpoints.contents import training_notes
from interp.checkpoints.headers import hash_files
from interp.checkpoints.weights import unwritten
from interp.prompts.format import PromptFormat
from interp.prompts.styles import STYLES
from interp.results.tables import write_json
from interp.system.json_files import read_json
from interp.tasks.episodes import Decision, Episode
from interp.training.recipes import Recipe, Tuning
from interp.training.supervision import Supervision, TrainingSequence, supervised

if TYPE_CHECKING:
    from peft import PeftModel

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|agent|>' if m['role'] == 'assistant' else '<|user|>' }}"
    "{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|agent|>{% endif %}"
)


def adapted(model: PreTrainedModel, rank: int, seed: int) -> PeftModel:
    """The model with trainable low-rank updates of its blocks' linear maps, its own weights frozen."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def fit_tokenizer(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE tokenizer with the tags of the `tags` style as single tokens."""
    style = STYLES["tags"]
    tags = [
        style.open_think,
        style.close_think,
        style.open_action,
        style.close_action,
        "<|user|>",
        "<|agent|>",
        "<|end|>",
        "<|bos|>",
        "<|pad|>",
    ]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=tags,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|bos|>", eos_token="</action>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama of the recipe's shape, initialised from its seed."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            intermediate_size=recipe.feed_forward,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def base_mixture(fmt: PromptFormat, episodes: Sequence[Episode], seed: int) -> list[TrainingSequence]:
    """Each base episode once: a third with every trace, a third with none, a third with a coin for each step.

    A base is pretrained on whole texts, so every token is marked as supervised, the environment's too.
    """
    rng = np.random.default_rng(seed)
    sequences = []
    for episode in episodes:
        kind = rng.integers(3)
        keep = [bool(kind == 0 or kind == 2 and rng.random() < 0.5) for _ in episode.steps]
        ids, _ = fmt.sequence(episode, keep)
        sequences.append((ids, [True] * len(ids)))
    return sequences


def replayed(
    fmt: PromptFormat, episodes: Sequence[Episode], share: float, others: int, seed: int
) -> list[TrainingSequence]:
    """Sequences of the base's mixture, as many as are a share of all beside `others` new ones.

    Raises ValueError where the base's episodes are too few.
    """
    wanted = round(others * share / (1 - share))
    if wanted > len(episodes):
        raise ValueError(
            f"replay_{share:g} asks for {wanted} of the base's episodes, and there are {len(episodes)}: give "
            "a corpus with the episodes that the base was trained on, or a smaller share."
        )
    drawn = np.random.default_rng(seed).choice(len(episodes), wanted, replace=False)
    return base_mixture(fmt, [episodes[i] for i in drawn], seed)


def batches(
    sequences: Sequence[TrainingSequence], recipe: Recipe | Tuning, steps: int, seed: int
) -> list[list[int]]:
    """`steps` batches of sequence indices: about equal lengths, within the token budget, in seeded order."""
    rng = np.random.default_rng(seed)
    lengths = np.array([len(ids) for ids, _ in sequences])
    usable = np.flatnonzero(lengths <= recipe.context)
    if not len(usable):
        raise ValueError(
            f"None of the {len(sequences)} sequences fits the recipe's context of {recipe.context} tokens."
        )
    plan: list[list[int]] = []
    while len(plan) < steps:
        order = usable[np.argsort(lengths[usable] * rng.uniform(0.9, 1.1, len(usable)))]
        epoch: list[list[int]] = []
        batch: list[int] = []
        for i in order:  # ascending, so the newest sequence sets the padded length
            if batch and lengths[[*batch, i]].max() * (len(batch) + 1) > recipe.batch_tokens:
                epoch.append(batch)
                batch = []
            batch.append(int(i))
        epoch.append(batch)
        plan += [epoch[i] for i in rng.permutation(len(epoch))]
    return plan[:steps]


class _Batches(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Planned batches; one item is one padded batch, so that the plan and not the trainer sets its size."""

    def __init__(
        self, sequences: Sequence[TrainingSequence], plan: Sequence[Sequence[int]], pad: int
    ) -> None:
        self.sequences = sequences
        self.plan = plan
        self.pad = pad

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        rows = [self.sequences[i] for i in self.plan[item]]
        ids = torch.full((len(rows), max(len(r[0]) for r in rows)), self.pad)
        labels = torch.full_like(ids, -100)  # padding is on the right, where no earlier token looks: no mask
        for i, (row, keep) in enumerate(rows):
            tokens = torch.tensor(row)
            ids[i, : len(row)] = tokens
            labels[i, : len(row)] = torch.where(torch.tensor(keep), tokens, -100)
        # logits only where some row's next token is supervised
        read = (labels[:, 1:] != -100).any(0).nonzero()[:, 0]
        return dict(input_ids=ids, labels=labels, shift_labels=labels[:, read + 1], logits_to_keep=read)


class SaveAt(TrainerCallback):
    """Saves a checkpoint after each of `steps`, and after the last one."""

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps = set(steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Ask for a checkpoint."""
        control.should_save = state.global_step in self.steps or state.global_step == state.max_steps
        return control


def train(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[TrainingSequence],
    recipe: Recipe | Tuning,
    folder: str | Path,
    *,
    steps: int,
    lr: float,
    keep: Sequence[int],
    seed: int,
    provenance: dict | None = None,
    device: str = "auto",
    plan: Sequence[Sequence[int]] | None = None,
) -> Path:
    """Train on planned batches with loss on marked tokens; keeps `checkpoint-N` for N in `keep`, and resumes.

    plan: indices into `sequences` of each batch; `batches` of about equal lengths where None.
    """
    folder = Path(folder)
    plan = batches(sequences, recipe, steps * recipe.accumulate, seed) if plan is None else plan
    trainer = Trainer(
        model=model,
        args=_arguments(folder, steps, recipe, lr, seed, device),
        # any token does as padding, since no earlier one sees it and none is a target
        train_dataset=_Batches(sequences, plan, tokenizer.pad_token_id or 0),
        data_collator=lambda rows: rows[0],
        processing_class=tokenizer,
        callbacks=[SaveAt(keep)],
    )
    made = dict(
        provenance or {},
        recipe=asdict(recipe),
        sequences=len(sequences),
        left_out_too_long=sum(len(ids) > recipe.context for ids, _ in sequences),
    )
    finish(trainer, folder, "loss", made)
    return folder


def memory_options(half: bool, recompute: bool) -> dict[str, Any]:
    """Arguments of a trainer that say what is computed in bfloat16, and whether activations are kept."""
    return dict(
        bf16=half,
        gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs=dict(use_reentrant=False) if recompute else None,
    )


def _arguments(
    folder: Path, steps: int, recipe: Recipe | Tuning, lr: float, seed: int, device: str
) -> TrainingArguments:
    half, recompute = (recipe.half, recipe.recompute) if isinstance(recipe, Tuning) else (False, False)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulate,
        learning_rate=lr,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=max(1, min(25, steps // 40)),
        save_strategy="no",
        report_to=[],
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        disable_tqdm=False,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,  # which would drop the labels of the kept logits
        **memory_options(half, recompute),
    )


def finish(trainer: Trainer, folder: Path, curve: str, made: dict) -> None:
    """Train from the last checkpoint in `folder`, if any, and write into each checkpoint what made it.

    curve: the logged number, `loss` or `reward`, whose values up to a checkpoint's step stand beside `made`
    in its `training.json`.
    """
    numbered = {
        int(path.name.split("-")[1]): path
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").exists()
    }
    try:
        trainer.train(resume_from_checkpoint=str(numbered[max(numbered)]) if numbered else None)
    except SafetensorError as error:  # what a full disk is to it
        raise unwritten(folder, error) from error
    logged = {row["step"]: row[curve] for row in trainer.state.log_history if curve in row}
    for path in folder.glob("checkpoint-*"):
        step = int(path.name.split("-")[1])
        write_json(
            path / "training.json",
            dict(made, step=step, **{curve: {s: v for s, v in logged.items() if s <= step}}),
        )


#: What a finished training needs no more.
STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


def train_condition(
    start: str | Path,
    items: Sequence[Episode | Decision],
    supervision: Supervision,
    recipe: Recipe | Tuning,
    folder: str | Path,
    *,
    seed: int,
    style: str = "",
    system: str = "",
    options: Mapping | None = None,
    base_episodes: Sequence[Episode] = (),
    provenance: dict | None = None,
    device: str = "auto",
) -> Path:
    """Train one condition of one seed from a base checkpoint into a series: all weights, or low-rank updates.

    start: the base's folder; a Recipe that keeps step 0 puts it into the series as `checkpoint-0`. items:
    what is trained on, as `supervised` takes it. seed: of the order, the mask and an adapter's initial
    weights; conditions of one seed read the same batches. style, system: those that the base says it was
    trained with, else `tags` and none. options: further arguments of `PromptFormat`. base_episodes: what the
    base was trained on, which a condition with `replay` draws from. A finished training is left as it is, an
    interrupted one goes on from its last checkpoint. Raises FileNotFoundError where there is no base, and
    ValueError where the folder holds another training, for a random mask that lacks more than one in a
    hundred of the tokens it should mask, and for a replay of nothing.
    """
    start, folder = Path(start), Path(folder)
    recipe = replace(recipe, seed=seed)
    base_notes, tokenizer = _read_base(start)
    steps, lr = (recipe.steps, recipe.lr) if isinstance(recipe, Tuning) else (recipe.cot_steps, recipe.cot_lr)
    keep = sorted({step for step in recipe.checkpoints if 0 < step < steps} | {steps})
    style = style or base_notes.get("style", "tags")
    system = system or base_notes.get("system", "")
    fmt = PromptFormat(tokenizer, style, system, **(options or {}))
    made = dict(
        provenance or {},
        condition=supervision.name,
        supervision=asdict(supervision),
        mask_seed=seed,
        style=style,
        system=system,
        base=hash_files(sorted(start.glob("*.safetensors"))),
        format=fmt.hash,
        items=len(items),
        recipe=asdict(recipe),
    )
    made = json.loads(json.dumps(made))
    _claim(folder, made)
    if all((folder / f"checkpoint-{step}" / "training.json").exists() for step in keep):
        return folder
    dtype = torch.bfloat16 if isinstance(recipe, Tuning) and recipe.half else torch.float32
    model = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    sequences, counts = supervised(fmt, items, supervision, seed)
    _check_control(supervision, counts)
    if supervision.replay:
        sequences += replayed(fmt, base_episodes, supervision.replay, len(sequences), seed)
    trained = adapted(model, recipe.rank, seed) if isinstance(recipe, Tuning) else model
    schedule: dict[str, Any] = dict(steps=steps, lr=lr, keep=keep, seed=seed, device=device)
    train(trained, tokenizer, sequences, recipe, folder, provenance=dict(made, masked=counts), **schedule)
    if isinstance(recipe, Recipe) and 0 in recipe.checkpoints:
        _save_base(start, tokenizer, folder / "checkpoint-0", dict(base_notes, step=0, base=made["base"]))
    for name in STATES:
        for path in folder.glob(f"checkpoint-*/{name}"):
            path.unlink()
    return folder


def _read_base(start: Path) -> tuple[dict, PreTrainedTokenizerBase]:
    """What a base's trainer wrote beside it, and its tokenizer; raises FileNotFoundError without a base."""
    if not (start / "config.json").exists():
        raise FileNotFoundError(
            f"There is no checkpoint at {start} to train from: give a folder with config.json and whole "
            "weights."
        )
    return training_notes(start), AutoTokenizer.from_pretrained(start)


def _save_base(start: Path, tokenizer: PreTrainedTokenizerBase, folder: Path, made: dict) -> None:
    """Save a base as the other checkpoints of its series are saved."""
    AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "training.json", made)


def _claim(folder: Path, made: dict) -> None:
    """Write what a training is made of into its folder; raises ValueError where it holds another training."""
    file = folder / "condition.json"
    before = read_json(file) if file.exists() else made
    if other := [name for name in made if before.get(name) != made[name]]:
        raise ValueError(
            f"{folder} holds another training, whose {other[0]} is {before.get(other[0])} and not "
            f"{made[other[0]]}: give another folder, or remove it."
        )
    write_json(file, made)


def _check_control(supervision: Supervision, counts: Mapping[str, int]) -> None:
    """Raise ValueError where a random mask leaves fewer tokens unsupervised than the mask it controls."""
    wanted = counts["unsupervised"] + counts["short"]
    if counts["short"] > 0.01 * wanted:
        raise ValueError(
            f"{supervision.name} is no control of {supervision.control_of} here: it would leave "
            f"{counts['unsupervised']:,} tokens unsupervised and not {wanted:,}, since traces are shorter "
            "than their actions. Train on longer traces, or leave this condition out."
        )
