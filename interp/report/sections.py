"""The report's sections: what is said in each before its figures, in fixed words and with numbers of the tables.

>>> for section in SECTIONS:
...     print(section.title, section.lead(study), section.figures)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from interp.report import behaviour as report_behaviour, instruments as report_instruments, masking as report_masking, prose as report_prose
from interp.plots.captions import side
from interp.results.headline import READINGS, headline
from interp.report.nulls import nulls
from interp.report.words import WHERE, Block, Items, Read, by_split, ends, grouped, paragraph, told
from interp.results.queries import pick, splits_of


class Section(NamedTuple):
    """One section of the report."""

    name: str
    """Its id on the page."""
    title: str
    lead: Callable[[Read], list[Block]]
    """What is said before its figures; nothing where its tables are missing."""
    figures: tuple[str, ...] = ()
    """Names of its figures, in reading order."""


def question(study: Read) -> list[Block]:
    """What is asked, and why."""
    return list(report_prose.QUESTION)


def answer(study: Read) -> list[Block]:
    """The findings in a few sentences with their numbers, and a table of the headline readings."""
    items = report_behaviour.gains(study)
    reliance = by_split("prompt reliance, the share of the prompt's effect on the action that goes around the trace,", study, "reliance",
                        metric="prompt_reliance")
    for text, said in (
        ("<b>Whole games.</b>", report_behaviour.games(study)),
        ("<b>Around the trace or through it.</b>", reliance),
        ("<b>A trace from elsewhere.</b> The agent is given another state's trace behind its own prompt.", report_instruments.followed(study)),
        ("<b>Before the first word.</b>", _before(study)),
        ("<b>Masking action supervision.</b>", report_masking.verdict(study)),
        (f"<b>{'Side by side' if 'environments' in study.tables else 'Elsewhere'}.</b>", report_behaviour.beside(study)),
    ):
        items += [f"{text} {said}"] if said else []
    blocks = [report_behaviour.studied(study), Items(items) if items else None, report_behaviour.summary(study)]
    return [block for block in blocks if block]


def _before(study: Read) -> str:
    """What the boundary says of the action to come, and whether that place is used."""
    rows, parts = pick(headline(study.tables), metric="probe_gain"), {}
    words = {1: "better than", -1: "worse than", 0: "no better or worse, for sure, than"}
    for split in splits_of(rows):
        last = ends(pick(rows, split=split)).last
        parts[split] = (f"a linear probe reads the action to come {words[side(last)]} the best guess made without activations",
                        f"{told(last, signed=True)} in accuracy")
    top = report_instruments.boundary(study)
    return paragraph(f"At the last checkpoint {grouped(parts)}." if parts else "",
                     "" if top is None else f"Patching the place that it reads gives back at most {told(top)} of the difference between two actions.")


def measured(study: Read) -> list[Block]:
    """A glossary of what this study's tables need."""
    needed = [(term, text) for term, tables, text in report_prose.TERMS if not tables or any(table in study.tables for table in tables)]
    return [Items([f"<b>{term}</b>: {text}" for term, text in needed])]


def limits(study: Read) -> list[Block]:
    """What the study cannot say."""
    items, made = list(report_prose.LIMITS), study.made("behaviour")
    config = made.get("config") or {}
    if made:
        items += report_prose.LIMITS_OF_A_SERIES
        items += [text for ending, text in report_prose.LIMITS_OF_SHIPPED.items() if str(config.get("series", "")).endswith(ending)]
        items += [report_prose.GENERATED] if (made.get("environment") or {}).get("name") == "alfworld" and not config.get("official") else []
    if (limit := (study.made(study.games).get("config") or {}).get("step_limit")) is not None:
        items.append(f"Games end after {int(limit)} steps, so a task that needs more is lost however well it is played.")
    rows = headline(study.tables)
    rows = rows[rows["metric"].isin(READINGS)]
    if len(rows):
        few = rows.loc[rows["n_groups"].idxmin()]
        items.append(f"Some readings rest on few episodes or games, such as this: {READINGS[few['metric']]}, {WHERE[few['split']]}, on "
                     f"{int(few['n_groups'])}. Their intervals are wide, and what they miss can be large.")
    return [Items(items + [text for table, text in report_prose.LIMITS_OF.items() if table in study.tables])]


SECTIONS = (
    Section("question", "The question", question),
    Section("answer", "The answer in short", answer),
    Section("measured", "How it is measured", measured),
    Section("trusted", "Can the instruments be trusted?", report_instruments.trusted, ("calibration",)),
    Section("better", "Does the agent get better, and where?", report_behaviour.better, (
        "behaviour", "parse", "revision", "online", "online_official")),
    Section("predicted", "Is the action in the prompt already?", report_instruments.predicted, ("probes", "transfer", "mdl")),
    Section("depends", "What does the action depend on?", report_instruments.depends, (
        "patching", "patching_spans", "patching_screen", "reliance", "conflict", "conflict_shift", "removal", "early", "shares", "steering")),
    Section("masking", "Does masking action supervision move the gain?", report_masking.masked, (
        "masking_success", "masking_table", "masking_dose", "masking_selection", "masking_gap", "masking_reliance", "masking_mechanism",
        "masking_power")),
    Section("elsewhere", "Does it hold elsewhere?", report_behaviour.elsewhere, (
        "splits", "environments_in_domain", "environments_out_of_domain")),
    Section("nulls", "Nulls", nulls),
    Section("limits", "Limits", limits),
)
