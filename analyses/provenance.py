"""What a table's provenance says of the run, and whether the tables of one folder are of one study.

>>> made = {"corpus": "c", "weights": {}}
>>> mixed({"behaviour": dict(made, seed=0), "probes": dict(made, seed=1)})
['These tables are not of one study: the seed is 0 in behaviour and 1 in probes.']
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import interp
from interp.results.wording import listed
from interp.system.paths import PROGRAM, ROOT

if TYPE_CHECKING:
    from interp.models.hooked import HookedModel
    from interp.prompts.format import Prompt

    from .study import Study

#: Packages whose versions are kept.
VERSIONS = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "scikit-learn",
    "statsmodels",
    "pandas",
    "alfworld",
    "textworld",
)

#: What a checkpoint's identity is made of, as its files are called.
FILES = {
    "weights": "weights",
    "config": "config.json",
    "generation_config": "generation_config.json",
    "tokenizer": "tokenizer (tokenizer.json or what lies beside it)",
    "template": "chat template (chat_template.jinja, or in tokenizer_config.json)",
    "adapter_config": "adapter_config.json",
    "code": "Python files",
    "training": "training.json",
}
#: What tables of one study agree in, as it is called.
ALIKE = {
    "seed": "the seed",
    "dtype": "the dtype",
    "device": "the device",
    "activation_dtype": "the precision of stored activations",
    "corpus": "the corpus",
    "format": "the prompts' format",
    "steps": "the list of checkpoints",
}


def mixed(provenances: Mapping[str, Mapping]) -> list[str]:
    """Sentences on what the tables of one folder were not all made with; table -> its provenance.

    Only tables of a study of one series are compared, and only what both of two say.
    """
    studies = {
        table: made
        for table, made in provenances.items()
        if "corpus" in made and isinstance(made.get("weights"), Mapping)
    }
    groups: dict[str, dict] = defaultdict(lambda: defaultdict(list))
    for table, made in sorted(studies.items()):
        for key, name in ALIKE.items():
            value = ", ".join(sorted(made["weights"], key=_number)) if key == "steps" else made.get(key)
            if value is not None and (
                key != "format" or "identity" in made
            ):  # an older release hashed formats otherwise
                groups[name][str(value)].append(table)
        for step, digest in made["weights"].items():
            groups[f"the weights of checkpoint {step}"][str(digest)].append(table)
        for step, parts in (made.get("identity") or {}).items():
            for part, digest in parts.items():
                if part == "weights":
                    continue
                groups[f"the {FILES.get(part, part)} of checkpoint {step}"][str(digest)].append(table)
    sentences = []
    for name, by in groups.items():
        if name == ALIKE["steps"] and (fewer := _parts_of_one(by)):
            sentences.append(fewer)
        elif len(by) > 1:
            values = listed(f"{value or 'none'} in {listed(tables)}" for value, tables in by.items())
            sentences.append(f"These tables are not of one study: {name} is {values}.")
    return sentences


def _number(step: str) -> tuple[float, str]:
    """Where a checkpoint stands among others, by its name."""
    return (float(step) if step.isdecimal() else float("inf")), step


def _parts_of_one(lists: Mapping[str, Sequence[str]]) -> str:
    """Which tables read fewer checkpoints than the others, all of them among theirs; else nothing."""
    most = max(lists, key=lambda steps: len(steps.split(", ")))
    every = most.split(", ")
    fewer = {steps: tables for steps, tables in lists.items() if steps != most}
    if not fewer or any(not set(steps.split(", ")) <= set(every) for steps in fewer):
        return ""
    told = listed(f"{listed(tables)} only {steps}" for steps, tables in fewer.items())
    return f"Not every table has all {len(every)} checkpoints: {told}."


def made_by(name: str, config: Any, started: float) -> dict[str, Any]:
    """What every table's provenance says of the run that made it.

    Args:
        name: of the analysis.
        config: its dataclass.
        started: when, in seconds since the epoch.
    """
    import torch

    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for field, value in fields.items():
        if isinstance(value, Path) and value.is_relative_to(ROOT):  # what ships, wherever it lies
            fields[field] = value.relative_to(ROOT)
    return dict(
        analysis=name,
        config=json.loads(json.dumps(fields, default=str)),
        command=" ".join([PROGRAM, *(shlex.quote(str(word)) for word in sys.argv[1:])]),
        threads=torch.get_num_threads(),
        written=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        seconds=round(time.time() - started, 1),
        versions=versions(),
    )


def versions() -> dict[str, str]:
    """Releases of the toolkit and of the packages that numbers depend on."""
    return {
        "interp": interp.__version__,
        **{v: importlib.metadata.version(v) for v in VERSIONS if _installed(v)},
    }


def made_of(
    study: Study,
    model: HookedModel,
    name: str,
    started: float,
    prompts: Sequence[Prompt] | None,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The provenance of a table of a study's; arguments as `Study.write` has them."""
    series = study.checkpoint_series
    provenance = dict(
        made_by(name, study, started),
        seed=study.seed,
        seconds_reused=study.seconds_reused(),
        device=str(model.device),
        dtype=str(model.dtype),
        activation_dtype=study.activation_dtype,
        weights={str(s): series.weights_hash(s) for s in study.steps},
        identity={str(s): study.identity(s) for s in study.steps},
        series_notes=series.notes,
        format=study.format.hash,
        corpus=hashlib.sha256(
            study.file.read_bytes() if study.file else repr(study.episodes).encode()
        ).hexdigest()[:16],
        environment=dict(name=study.env.name, source=study.env.source),
        **extra,
    )
    if study.truncate != "none" and "truncation" not in extra:
        read = [p for s in study.parts for p in study.prompts(s)] if prompts is None else prompts
        provenance["truncation"] = dict(
            policy=study.truncate, decisions=len(read), truncated=sum(p.dropped > 0 for p in read)
        )
    return provenance


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
