"""Of one making or not: what changed of a checkpoint since a run first read it, and tables of one folder that were made otherwise."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import transformers

from interp.headers import hash_files
from interp.identity import hash_text
from interp.records import read_record, write_record
from interp.report_words import listed
from interp.series import CheckpointSeries

#: What a checkpoint's identity is made of, as its files are called.
FILES = {"weights": "weights", "config": "config.json", "generation_config": "generation_config.json",
         "tokenizer": "tokenizer (tokenizer.json or what lies beside it)", "template": "chat template (chat_template.jinja, or in tokenizer_config.json)",
         "adapter_config": "adapter_config.json", "code": "Python files", "training": "training.json"}
#: What tables of one study agree in, as it is called.
ALIKE = {"seed": "the seed", "dtype": "the dtype", "device": "the device", "corpus": "the corpus", "format": "the prompts' format",
         "steps": "the list of checkpoints"}


def first_use(run: Path, series: CheckpointSeries, step: int, identity: Mapping[str, str]) -> str:
    """Keep a checkpoint's hashes in a run's folder where it is first read, and say what changed since: a sentence, or nothing."""
    source = series.path(step)
    training = source / "training.json" if isinstance(source, Path) else None
    now = dict(identity, training=hash_files([training]) if training and training.exists() else "")
    name = str(source.resolve()) if isinstance(source, Path) else "@".join(source)
    path = run / "partial" / "first_use" / f"{step}-{hash_text(name)}.json"
    if path.exists():
        try:
            then = read_record(path)
        except ValueError as damage:
            print(f"{damage}: what {name} holds is noted anew.", file=sys.stderr)
        else:
            return _changed(run, name, then, now)
    write_record(path, dict(checkpoint=name, date=time.strftime("%Y-%m-%d"), transformers=transformers.__version__, identity=now))
    return ""


def _changed(run: Path, name: str, then: Mapping, now: Mapping[str, str]) -> str:
    differ = [FILES.get(part, part) for part in now if then["identity"].get(part, now[part]) != now[part]]
    if not differ:
        return ""
    release = f" (with transformers {then['transformers']}; now {transformers.__version__})" * (then["transformers"] != transformers.__version__)
    return (f"The checkpoint {name} is not what it was when {run} first read it on {then['date']}{release}: its {listed(differ)} changed. "
            f"What is computed from now on is of the new files, and tables in {run / 'tables'} that are not made again are of the old ones.")


def mixed(provenances: Mapping[str, Mapping]) -> list[str]:
    """What tables of one folder were made with that is not the same for all, in sentences; table -> its provenance.

    Only tables of a study of one series are compared, and only what both of two say.
    """
    studies = {table: made for table, made in provenances.items() if "corpus" in made and isinstance(made.get("weights"), Mapping)}
    groups: dict[str, dict] = defaultdict(lambda: defaultdict(list))
    for table, made in sorted(studies.items()):
        for key, name in ALIKE.items():
            value = ", ".join(made["weights"]) if key == "steps" else made.get(key)
            if value is not None and (key != "format" or "identity" in made):  # an older release hashed formats otherwise
                groups[name][str(value)].append(table)
        for step, digest in made["weights"].items():
            groups[f"the weights of checkpoint {step}"][str(digest)].append(table)
        for step, parts in (made.get("identity") or {}).items():
            for part, digest in parts.items():
                groups[f"the {FILES.get(part, part)} of checkpoint {step}"][str(digest)].append(table)
    sentences = []
    for name, by in groups.items():
        if len(by) > 1:
            values = listed(f"{value or 'none'} in {listed(tables)}" for value, tables in by.items())
            sentences.append(f"These tables are not of one study: {name} is {values}.")
    return sentences
