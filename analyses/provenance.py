"""Whether the tables of one folder are of one study, from what their provenances say.

>>> mixed({"behaviour": {"corpus": "c", "weights": {}, "seed": 0}, "probes": {"corpus": "c", "weights": {}, "seed": 1}})
['These tables are not of one study: the seed is 0 in behaviour and 1 in probes.']
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from interp.results.wording import listed

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
    "corpus": "the corpus",
    "format": "the prompts' format",
    "steps": "the list of checkpoints",
}


def mixed(provenances: Mapping[str, Mapping]) -> list[str]:
    """What tables of one folder were made with that is not the same for all, in sentences; table -> its provenance.

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
            value = ", ".join(made["weights"]) if key == "steps" else made.get(key)
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
        if len(by) > 1:
            values = listed(f"{value or 'none'} in {listed(tables)}" for value, tables in by.items())
            sentences.append(f"These tables are not of one study: {name} is {values}.")
    return sentences
