"""What analyses share: the study's configuration, its checkpoints and decisions, and stages that resume."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import lazy_loader as lazy
import numpy as np
import tyro

from interp.checkpoints.contents import SERIES, training_notes
from interp.environments.base import ANY, Environment, find
from interp.measures.pairs import make_pairs
from interp.prompts.format import MODES, Mode, Prompt, PromptFormat, Truncate
from interp.results.tables import write_table
from interp.system import limits
from interp.system.limits import Folder, Sample, Seed, Steps, Tokens
from interp.system.sources import source_hash
from interp.tasks.episodes import CORPUS, Decision, sample_decisions

from . import resident, stages
from .decodings import check_generator, decode_split
from .fields import Device, EnvironmentName, Placing, Storing, places
from .progress import tracked
from .prompting import Prompting, digest
from .provenance import made_of

# What imports torch is imported where it is used: a bad flag is refused at once.
if TYPE_CHECKING:
    import pandas as pd

    from interp.checkpoints.series import CheckpointSeries
    from interp.engine.decoding import Completion
    from interp.models.hooked import HookedModel
else:
    pd = lazy.load("pandas")


@dataclass
class Study(Prompting, Storing, Placing):
    """Where a study runs, on what, and how large it is."""

    run: Annotated[Path, Folder()] = Path("runs/quick")
    """Folder for everything the run writes: tables, partial results, activations."""
    series: Path = SERIES
    """Folder that a trainer wrote (docs/checkpoints.md lists what is read), or with --revisions a hub
    repository; the shipped series by default."""
    revisions: tuple[str, ...] = ()
    """Revisions of a hub repository, fetched with HF_HUB_OFFLINE=0."""
    trust_remote_code: bool = False
    """Let Python code run that a checkpoint brings along; read it first."""
    corpus: Path = CORPUS
    """Recorded episodes or decisions, .jsonl or .jsonl.xz; the environment's by default."""
    base: Path | None = None
    """Folder of the model that the series' adapters belong to (none: where their configuration says)."""
    environment: Annotated[EnvironmentName, tyro.conf.arg(aliases=["--actions"])] = "auto"
    """What is acted in: alfworld, any (recorded decisions, where any text or JSON object is an action), or
    one of your own as MODULE:NAME, whose code is run (auto: alfworld where the recorded actions are its
    commands, else any)."""
    size: Literal["quick", "full"] = "quick"
    """Sets every number below that is not given."""
    checkpoints: Steps = ()
    """Checkpoints to study; all when empty."""
    splits: tuple[Literal["in_domain", "out_of_domain"], ...] = ()
    """Which test decisions: seen task types in unseen scenes, or task types never trained on (default: all
    splits that the corpus holds)."""
    shard: Sample = 0
    """Compute what goes decision by decision in shards of so many decisions (0: whole), which workers of a
    cluster share."""
    decisions: int | Path = 0
    """How many decisions in each split (0: 160 quick, 400 full, or all where there are fewer); or a file of
    them, as --corpus."""
    seed: Seed = 0
    """Seed of every draw: decisions, pairs, donors, resamples, folds."""
    official: bool = False
    """Play ALFWorld's own valid_seen games from $ALFWORLD_DATA instead of generated ones."""
    trace_tokens: Tokens = 96
    """Tokens that a trace and its action may take before a decoding is given up."""
    action_tokens: Tokens = 24
    """Tokens that an action may take where no trace is written before it."""
    truncate: Truncate = "none"
    """What is done with a prompt that leaves no room for a trace and an action in the model's context: it is
    refused (none), or its oldest turns after the task are left out, which the table's provenance counts."""
    generator: Literal["hf", "vllm"] = "hf"
    """What decodes: the hooked Hugging Face model, or vLLM on a GPU (full weights only)."""
    device: Device = "auto"
    """auto, cpu or cuda."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto (float32 on the CPU, bfloat16 on a GPU), float32, bfloat16 or float16."""

    def __post_init__(self) -> None:
        if isinstance(self.decisions, Path) and self.corpus == CORPUS:  # `--decisions my.jsonl`
            self.corpus, self.decisions = self.decisions, 0

    def check(self) -> None:
        """Raise the sentence of what cannot be studied, before a model is loaded."""
        limits.check(self)
        if self.base and not any((folder / self.base).exists() for folder in self._folders):
            raise FileNotFoundError(
                f"--base: there is no folder {self.base}, seen from here or from the checkpoints."
            )
        check_generator(self)
        self.format_options()
        _ = self._sampled  # read now
        held = max(sum(len(e.references) for e in group) for group in self.episodes.values())
        for name in ("choices", "conflicts", "decisions_read", "pairs", "steered", "test_decisions"):
            if getattr(self, name, 0) > held:
                raise ValueError(
                    f"--{name} is {getattr(self, name):,}, but no split holds more than {held:,} decisions."
                )
        for name in ("online_checkpoints", "span_checkpoints"):
            if getattr(self, name, 0) > len(self.steps):
                raise ValueError(
                    f"--{name} is {getattr(self, name):,}, but {len(self.steps)} checkpoints are studied."
                )
        if self.official:
            self.pick_games("in_domain", 1, self.seed)

    def number(self, given: int, quick: int, full: int) -> int:
        """A size that was given, or the one of the study's size."""
        return given or (quick if self.size == "quick" else full)

    def spread(self, n: int) -> list[int]:
        """At most `n` checkpoints, evenly chosen with first and last."""
        chosen = np.linspace(0, len(self.steps) - 1, min(n, len(self.steps)))
        return sorted({self.steps[round(i)] for i in chosen})

    @cached_property
    def written(self) -> list[Path]:
        """The tables written so far."""
        return []

    @cached_property
    def said(self) -> list[str]:
        return []

    @cached_property
    def unit(self) -> stages.Unit | None:
        """What is read of this study now, which a cluster's worker sets; None: all of it."""
        return None

    @cached_property
    def by_decision(self) -> list[float]:
        """Seconds of the stages that go decision by decision."""
        return []

    def say(self, sentence: str) -> None:
        """Print what a reader of the tables has to know, which a run that finds them made says again."""
        if sentence and sentence not in self.said:
            print(sentence, file=sys.stderr)
            self.said.append(sentence)

    @cached_property
    def _reused(self) -> dict[str, float]:
        """Stages taken from disk, and the seconds that computing each took."""
        return {}

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {}

    @cached_property
    def _identities(self) -> dict[int, dict[str, str]]:
        return {}

    @cached_property
    def checkpoint_series(self) -> CheckpointSeries:
        from interp.checkpoints.series import CheckpointSeries

        if self.revisions:
            return CheckpointSeries.from_hub(
                str(self.series), self.revisions, self.base, self.trust_remote_code
            )
        return CheckpointSeries.discover(self.series, self.base, self.trust_remote_code)

    @property
    def _folders(self) -> list[Path]:
        """Where a base is looked for: here, and from each checkpoint."""
        paths = [path for path in self.checkpoint_series.sources.values() if isinstance(path, Path)]
        return [Path(), *paths, *dict.fromkeys(path.parent for path in paths)]

    @cached_property
    def steps(self) -> list[int]:
        limits.check(self)
        for step in self.checkpoints:
            self.checkpoint_series.path(step)  # names those there are where this one is not
        return list(self.checkpoints) or self.checkpoint_series.steps

    @cached_property
    def _model(self) -> HookedModel:
        identity = self.identity(self.steps[0])  # what changed is said before anything fails for it
        where = (self.device, self.dtype, places(self))
        source = (self.series, self.revisions, self.base, *where, str(identity))
        load = self.checkpoint_series.load
        return resident.loaded(source, lambda: load(self.steps[0], *where))

    def model(self, step: int) -> HookedModel:
        """The study's one model, with this checkpoint's weights."""
        if self._model.step != step:
            later = [s for s in self.steps if s > step]
            ahead = self.unit.ahead if self.unit else min(later, default=None)
            self.checkpoint_series.swap(self._model, step, ahead=ahead)
        return self._model

    @cached_property
    def _trained(self) -> dict:
        """The trainer's notes of the last checkpoint that has some."""
        paths = (self.checkpoint_series.path(step) for step in reversed(self.steps))
        notes = (training_notes(path) for path in paths if isinstance(path, Path))
        return next(filter(None, notes), {})

    @property
    def style_name(self) -> str:
        """Name of the prompt style: the one given, or the one trained in."""
        return self.style or self._trained.get("style", "tags")

    @cached_property
    def format(self) -> PromptFormat:
        return self._format()

    def _format(self, **changes: object) -> PromptFormat:
        """The study's prompt format, with other options."""
        from interp.engine.decoding import stop_tokens

        return PromptFormat(
            self._model.tokenizer,
            self.style_name,
            self.system or self._trained.get("system", ""),
            **self.format_options() | changes,
            context=self._model.context,
            room=self.trace_tokens + self.action_tokens,
            truncate=self.truncate,
            stop_tokens=stop_tokens(self._model),
            template_file=None if self.revisions else self.checkpoint_series.template_file,
        )

    @cached_property
    def _named(self) -> Environment | None:
        """The environment that was asked for by name."""
        return None if self.environment == "auto" else find(self.environment)

    @property
    def file(self) -> Path | None:
        """The file of the decisions; None where the environment that was named makes them."""
        given = self._named.decisions if self._named and self.corpus == CORPUS else None
        return Path(self.corpus) if given is None else given if isinstance(given, Path) else None

    @cached_property
    def env(self) -> Environment:
        """The environment: the one that was named, or the one whose actions are recorded."""
        if self._named:
            return self._named
        household = find("alfworld")
        firsts = (action for group in self.episodes.values() for e in group for action in e.references[:1])
        return household if all(map(household.parse, firsts)) else ANY

    @property
    def parse(self) -> Callable[[str], str | None]:
        """The parser of actions."""
        return self.env.parse

    @property
    def limits(self) -> dict[str, int]:
        """Tokens that a decoding may take, for each mode."""
        return {mode: self.trace_tokens if mode == "cot" else self.action_tokens for mode in MODES}

    @property
    def parts(self) -> tuple[str, ...]:
        """The splits that are studied."""
        return tuple(self.episodes)

    @cached_property
    def episodes(self) -> dict[str, list]:
        if isinstance(self.decisions, Path):
            raise ValueError(
                f"Both --decisions {self.decisions} and --corpus {self.corpus} name a file: --decisions "
                "takes a number beside --corpus."
            )
        if self.decisions < 0:
            raise ValueError(f"--decisions is a number from 1 on, or a file, not {self.decisions}.")
        named, corpus = self._named or ANY, self.recorded
        wanted = self.splits or [s for s in named.splits if named.splits[s] in corpus] or list(named.splits)
        missing = [named.splits.get(s, s) for s in wanted if named.splits.get(s) not in corpus]
        if missing:
            where = self.file or f"The environment {named.name!r}"
            raise ValueError(
                f"{where} holds no episodes of the split {missing[0]!r}: it has {', '.join(sorted(corpus))}."
            )
        return {s: corpus[named.splits[s]] for s in wanted}

    @cached_property
    def recorded(self) -> dict[str, list]:
        """Everything that the corpus holds, by the names of its own splits."""
        return (self._named or ANY).recorded(self.file)

    @property
    def training(self) -> list:
        """Episodes of the training split; none where the corpus has no such split, or it is studied."""
        studied = [(self._named or ANY).splits[split] for split in self.parts]
        return [] if "train" in studied else self.recorded.get("train", [])

    @cached_property
    def _sampled(self) -> dict[str, list[Decision]]:
        held = {s: sum(len(e.references) for e in group) for s, group in self.episodes.items()}
        sizes = {s: self.decisions or min(n, self.number(0, 160, 400)) for s, n in held.items()}
        return {s: sample_decisions(self.episodes[s], sizes[s], self.seed) for s in self.parts}

    @cached_property
    def _prompts(self) -> dict[str, list[Prompt]]:
        return {s: resident.prompts(self.format, decisions) for s, decisions in self._sampled.items()}

    @cached_property
    def _without_traces(self) -> dict[str, list[Prompt]]:
        bare = self._format(history_traces="dropped")
        return {s: resident.prompts(bare, decisions) for s, decisions in self._sampled.items()}

    @property
    def pick_games(self) -> Callable[[str, int, int], Sequence]:
        """(split, n, seed) -> games to play, the benchmark's own where `official` is set.

        Raises ValueError where it has none.
        """
        pick = self.env.official if self.official else self.env.games
        if pick is None:
            raise ValueError(
                f"The environment {self.env.name!r} has no official games: leave out --official."
            )
        return pick

    def prompts(self, split: str) -> list[Prompt]:
        return self._prompts[split]

    def prompts_without_traces(self, split: str) -> list[Prompt]:
        """The prompts of a split with the traces of earlier turns left out."""
        return self._without_traces[split]

    @cached_property
    def _pairs(self) -> dict[tuple[str, int], tuple[list[Prompt], list[Prompt], dict[str, int]]]:
        return {}

    def pairs_of(self, split: str, n: int) -> tuple[list[Prompt], list[Prompt], dict[str, int]]:
        """Up to `n` counterfactual pairs of a split: clean, corrupt, and how many were dropped by reason."""
        if (split, n) not in self._pairs:
            decisions = [d for e in self.episodes[split] for d in e.decisions()]
            clean, corrupt, dropped = make_pairs(
                self.format, decisions, n, self.seed, self.env.swap_candidates
            )
            self._pairs[split, n] = clean, corrupt, dict(dropped)
        return self._pairs[split, n]

    def inputs(self, step: int, split: str | None = None) -> dict:
        """Content hashes of what a stage reads: the checkpoint, the first one, and the prompts of a split.

        The first checkpoint's configuration, tokenizer and template are those of the study's one model.
        """
        from interp.models.hooked import pick_device, pick_dtype

        device = pick_device(self.device)
        first = {name: digest for name, digest in self.identity(self.steps[0]).items() if name != "weights"}
        inputs = dict(
            **self.identity(step),
            first=first,
            seed=self.seed,
            device=device.type,
            dtype=str(pick_dtype(self.dtype, device)),
        )
        if self.shard:
            inputs |= dict(shard=self.shard)  # batches of other lengths may round otherwise
        if split:
            if split not in self._digests:
                self._digests[split] = self.digest(self.prompts(split))
            inputs |= dict(
                decisions=self._digests[split],
                parser=f"{self.parse.__module__} {self.env.source}".rstrip(),
            )
        return inputs

    def identity(self, step: int) -> dict[str, str]:
        """Content hashes of all that a checkpoint is loaded from, the series' template among them.

        Prints what of it changed since this run's folder kept a result of it.
        """
        from interp.checkpoints.identity import hash_text

        from . import first_use

        if step not in self._identities:
            template = hash_text(self.checkpoint_series.template) if not self.revisions else ""
            identity = self.checkpoint_series.identity(step) | (dict(template=template) if template else {})
            self._identities[step] = identity
            if changed := first_use.changed(self.run, step, self.checkpoint_series.path(step), identity):
                print(changed, file=sys.stderr)
        return self._identities[step]

    digest = staticmethod(digest)

    def stage(self, name: str, inputs: dict, compute: Callable[[], object]) -> Any:
        """What `compute` returns (JSON), from disk when the same code computed it before from the same
        inputs.

        A damaged file is named and computed again. Raises ValueError for a name that leads out of the run's
        folder, and in a cluster's worker `stages.Busy` where another process computes it.
        """
        path, made = self._stage(name, inputs, compute)
        found, new = stages.found(path, made, compute, wait=not self.unit)
        if new:
            self._keep_identities()
        else:
            self._reused[str(path)] = found["seconds"]
        return found["value"]

    def _stage(self, name: str, inputs: dict, compute: Callable[[], object]) -> tuple[Path, dict]:
        """A stage's file, and what it is made from."""
        made = json.loads(json.dumps(dict(inputs, source=source_hash(compute.__module__)), default=str))
        return stages.place(self.run, name, made), made

    def kept(self, name: str, inputs: dict, compute: Callable[[], object]) -> bool:
        """Whether a stage is there; arguments as `stage` has them."""
        return self._stage(name, inputs, compute)[0].exists()

    def _keep_identities(self) -> None:
        """Keep the hashes of the checkpoints that were read; until then `identity` prints what changed."""
        from . import first_use

        for step, identity in self._identities.items():
            first_use.keep(self.run, step, self.checkpoint_series.path(step), identity)

    def decoded(self, step: int, split: str, mode: Mode) -> list[Completion]:
        """Greedy decoding of a split in one mode, decoded once for all analyses."""
        return decode_split(self, step, split, mode)

    def candidates(
        self, step: int, split: str, argued: Mapping[int, Sequence[str | None]] = {}
    ) -> list[tuple[str, ...]]:
        """The actions that a forced choice at each decision of a split is among.

        Where not all are listed, this checkpoint's own actions are among them, and those that traces argue
        for (`argued`, by the decision's index).
        """
        own = zip(*(self.decoded(step, split, mode) for mode in ("prompt", "cot")), strict=True)
        return [
            self.env.candidates(p.decision, *(each.action for each in both), *argued.get(i, ()))
            for i, (p, both) in enumerate(zip(self.prompts(split), own, strict=True))
        ]

    def seconds_reused(self) -> dict[str, float]:
        """Kind of stage -> the seconds that computing those taken from disk took, when they were computed."""
        by_kind: dict[str, float] = {}
        for path, seconds in self._reused.items():
            kind = Path(path).relative_to(self.run / "partial").parts[0]
            by_kind[kind] = round(by_kind.get(kind, 0) + seconds, 1)
        return by_kind

    def cells(
        self, name: str, splits: Sequence[str] = (), steps: Sequence[int] = ()
    ) -> Iterable[tuple[int, str]]:
        """(checkpoint, split) in order, with their progress; the one of a cluster's unit alone."""
        every = [(s, split) for s in steps or self.steps for split in splits or self.parts]
        return stages.of_unit(every, self.unit) if self.unit else tracked(every, name)

    def provenance(
        self, name: str, started: float, prompts: Sequence[Prompt] | None = None, **extra: object
    ) -> dict:
        """What made a table; `prompts`: those it read, where they are not the study's."""
        return made_of(self, self._model, name, started, prompts, extra)

    def write(
        self,
        name: str,
        rows: list[dict],
        started: float,
        prompts: Sequence[Prompt] | None = None,
        **extra: object,
    ) -> Path:
        """Write a table and its provenance; arguments as `provenance`'s."""
        from .partial import added

        frame, made = pd.DataFrame(rows), self.provenance(name, started, prompts, **extra)
        if self.checkpoints:
            frame, made, sentence = added(self.run / "tables", name, frame, made)
            self.say(sentence)
        path = write_table(self.run / "tables", name, frame, made)
        self.written.append(path)
        self._keep_identities()
        return path
