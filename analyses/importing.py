"""Import decisions from a log: OpenAI messages, ShareGPT, inspect_ai, or rollouts of TRL and verl."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from interp.results.tables import write_json, written
from interp.system.limits import Existing, Known, Limits, check
from interp.system.paths import PROGRAM
from interp.tasks.importers.formats import Format
from interp.tasks.importers.turns import Parser

from .command import sentence
from .prompting import style
from .registry import Instrument

if TYPE_CHECKING:
    from interp.tasks.importers.decisions import Importer


@dataclass
class Config:
    """Each turn of the agent becomes a decision; what is left out is counted by reason."""

    file: tyro.conf.Positional[Annotated[Path, Existing()]]
    """The log: JSON lines, a JSON list, parquet, or inspect's .eval (docs/checkpoints.md says what is
    read)."""
    out: Path = Path("decisions.jsonl")
    """File of decisions to write, for --decisions of a study; beside it what was left out, as JSON."""
    format: Literal["auto", Format] = "auto"
    """What wrote the log (auto: told from the fields of its first record)."""
    style: Annotated[str, Known(style)] = ""
    """Prompt style that the agent's texts are in, for their traces and actions; none: <think>, <tool_call>
    and <action>, and a text without them is an action as a whole."""
    score: str = ""
    """Number of each record, such as verl's `score`, a column of TRL's or a scorer of inspect's; none: all
    conversations are taken."""
    at_least: Annotated[float, Limits(-1e9, 1e9)] = 1.0
    """Least --score of conversations that are taken."""
    split: Literal["in_domain", "out_of_domain", "train"] = "in_domain"
    """Split of the decisions (train: never studied)."""

    def check(self) -> None:
        """Raise ValueError for a file to write that could not be read, or is the log itself."""
        check(self)
        if self.out.suffix != ".jsonl":
            raise ValueError(f"--out is {self.out}, and should be a file named .jsonl.")
        if self.out.exists() and self.out.samefile(self.file):
            raise ValueError(f"--out is the log itself, {self.file}: name another file.")


def parser(name: str) -> Parser | None:
    """Splits a text of a prompt style in trace and action; None for no style."""
    from interp.prompts.styles import STYLES

    if not name:
        return None
    tags = STYLES[name]
    trace_opens, action_opens = tags.open_think.strip(), tags.open_action.strip()

    def parse(text: str) -> tuple[str | None, str | None]:
        text = text.strip()
        if text.startswith(action_opens):
            return tags.parse(text.removeprefix(action_opens), with_trace=False, ended=True)
        # without its opening, which may be in the prompt, a trace begins at once
        return tags.parse(text.removeprefix(trace_opens), with_trace=True, ended=True)

    return parse


def run(config: Config) -> None:
    """Read, write, and say what became of it."""
    from interp.tasks.importers.decisions import Importer

    log = Importer(
        config.file,
        None if config.format == "auto" else config.format,
        parser(config.style),
        config.split,
        config.score,
        config.at_least,
    )
    lines = log.lines()
    first = next(lines, None)
    if first is None:
        reasons = "; ".join(f"{row['reason']} ({row['first']})" for row in log.dropped.rows()[:3])
        raise ValueError(f"{config.file} gives no decision: {reasons or 'it is empty'}.")
    with written(config.out) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in chain([first], lines))
    _say(config, log)


def _say(config: Config, log: Importer) -> None:
    """Print what was taken and what was not, and keep it beside the decisions."""
    summary = dict(
        log=str(config.file),
        format=log.format,
        decisions=log.decisions,
        episodes=log.episodes,
        dropped=log.dropped.rows(),
        changed=log.changed.rows(),
        config={field.name: str(getattr(config, field.name)) for field in dataclasses.fields(config)},
    )
    beside = write_json(config.out.with_suffix(".import.json"), summary)
    print(f"{config.out}: {log.decisions:,} decisions of {log.episodes:,} episodes ({log.format})")
    for word, tally in (("left out", log.dropped), ("changed", log.changed)):
        for row in tally.rows():
            print(sentence(f"{word} {row['n']:,}: {row['reason']}; first {row['first']}"))
    print(f"The same counts are in {beside}.")
    tools = _write_tools(config, log.signatures)
    print(f"Study them: {PROGRAM} all --decisions {config.out}{tools} --series YOUR_CHECKPOINTS")


def _write_tools(config: Config, signatures: set[str]) -> str:
    """Write the function signatures where all records bring the same; the flag that gives them to a study."""
    if len(signatures) > 1:
        print("Function signatures differ between records: give those that prompts should have as --tools.")
    if len(signatures) != 1:
        return ""
    path = write_json(config.out.with_suffix(".tools.json"), json.loads(next(iter(signatures))))
    print(f"The function signatures are in {path}.")
    return f" --tools {path}"


INSTRUMENT = Instrument("import", Config, run)
