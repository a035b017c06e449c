"""The report's sections: what is said in each before its figures, in fixed words and with numbers of the tables.

>>> for section in SECTIONS:
...     print(section.title, section.lead(study), section.figures)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from interp import report_behaviour, report_instruments
from interp.captions_masking import _claim
from interp.headline import READINGS, headline
from interp.report_nulls import nulls
from interp.report_words import WHERE, Block, Items, Read, by_split, ends, escaped, grouped, side, told
from interp.style import pick


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
    return [
        "Agents made of language models are trained to write a <i>chain of thought</i> (a <i>trace</i>) before they act, and that makes them better. But a better "
        "agent need not be one that thinks better. The gain can land in two places. It can land <b>in the trace</b>: what is written there becomes better, and the "
        "action follows what is written. Or it can land <b>in what the prompt alone predicts</b>: training teaches the action itself, it is as good as settled before "
        "the first word of the trace, and the trace comes with it.",
        "The two look alike from outside, and they matter for different reasons. Where the trace decides, reading it is a way to watch over the agent, and changing it "
        "changes what the agent does. Where the prompt decides, a trace can be plausible and beside the point, and could as well be left out. So the same agent is "
        "measured at several checkpoints of its training, from outside (what it does with and without its trace) and from inside (what its activations hold, and which of "
        "them its action uses).",
    ]


def answer(study: Read) -> list[Block]:
    """The findings in a few sentences with their numbers, and a table of the headline readings."""
    items = report_behaviour.gains(study) if "behaviour" in study.tables else []
    items += [f"<b>Whole games.</b> {text}" for text in [report_behaviour.games(study)] if text]
    if text := by_split("prompt reliance, the share of the prompt's effect on the action that goes around the trace,", study, "reliance", metric="prompt_reliance"):
        items.append(f"<b>Around the trace or through it.</b> {text}")
    if "conflict" in study.tables and (text := report_instruments.followed(study)):
        items.append(f"<b>A trace from elsewhere.</b> The agent is given another state's trace behind its own prompt. {text}")
    items += [text for text in [_before(study)] if text]
    items += [f"<b>Masking action supervision.</b> {escaped(_claim(study.tables['masking']))}"] if "masking" in study.tables else []
    items += [text for text in [report_behaviour.beside(study)] if text]
    table = report_behaviour.summary(study)
    about = report_behaviour.studied(study)
    return [*([about] if about else []), *([Items(items)] if items else []), *([table] if table else [])]


def _before(study: Read) -> str:
    """What the boundary says of the action to come, and whether that place is used."""
    rows, parts = headline(study.tables), {}
    words = {1: "better than", -1: "worse than", 0: "no better or worse, for sure, than"}
    for split in study.splits("probes"):
        gain = ends(pick(rows, metric="probe_gain", split=split))
        if gain is not None:
            parts[split] = f"a linear probe reads the action to come {words[side(gain.last)]} the best guess made without activations", f"{told(gain.last, signed=True)} in accuracy"
    top = report_instruments.boundary(study)
    said = [f"At the last checkpoint {grouped(parts)}."] if parts else []
    said += [f"Patching the place that it reads gives back at most {told(top)} of the difference between two actions."] if top is not None else []
    return f"<b>Before the first word.</b> {' '.join(said)}" if said else ""


#: Terms, and the table without which each is not needed; "" where it always is.
_TERMS = (
    ("Decision", "behaviour", "a moment in a recorded episode at which the agent has to act: all that it has seen so far, and the action that an expert took there."),
    ("Checkpoint", "", "the agent as it was after so many steps of training; the first is the model before its chain-of-thought training, unless said otherwise."),
    ("Prompt boundary", "", "the last token of the prompt, before any word of the trace. What the agent knows before it thinks, it knows here or earlier."),
    ("CoT action and prompt action", "behaviour", "the action behind the agent's own trace; and the action where it has to act at once, because the mark that opens an action is put "
     "right behind the boundary. Both are compared with the expert's; the <i>gap</i> is the first's agreement less the second's."),
    ("In-domain and out-of-domain", "", "episodes that training did not see, of the kinds of task that it did; and of kinds of task that it never saw solved."),
    ("Games", "online", "the agent plays in the environment itself until it wins or its steps are up, with its trace and without."),
    ("Probe", "probes", "a linear classifier that is fitted to the activations at the boundary to tell which action the agent will go on to take. Its <i>gain</i> is what it gets "
     "right beyond the best of four guesses that see no activations: the commonest action, the previous one, the words of the prompt, its length."),
    ("Codelength", "mdl", "how many bits it takes to send the actions to come, to one who has the activations, or the prompt's words, or neither; a gain at little data shows here first."),
    ("Patching", "patching", "the states of a run on a twin prompt (two names swapped, so that another action is right) are copied into the run on the prompt, at one place. 0: the action "
     "is not moved; 1: it becomes the other run's in full. A probe says what is there, a patch what is used."),
    ("Prompt reliance", "reliance", "the same between two ways to the action: the prompt's own states, and the states of the trace. Reliance is the direct way's share of both."),
    ("Conflicting traces", "conflict", "behind its own prompt the agent is given a trace that is not its own: does it keep its action, or follow the trace? Also nothing, full stops, or its own trace, as a check."),
    ("Early answering", "early", "the agent's own trace is cut short: how much of it is needed to get its action?"),
    ("Shares", "shares", "how much of the action's attention and gradient goes to the trace, over the trace's share of the tokens."),
    ("Steering", "steering", "the direction that the probe found is added to the states: does the action go where it points?"),
    ("Masking", "masking", "arms of training in which a share k of the examples has no loss on the action's tokens; beside them arms in which as many other tokens have none."),
    ("Interval", "", "in brackets, 95 %, from resampling whole episodes (and, for arms of training, seeds). A reading is said to <i>rise</i> or <i>fall</i> where the interval of the "
     "difference between the last checkpoint and the first excludes 0; it is put together from both intervals (Newcombe 1998), as if they were of different decisions, which is strict."),
)  # fmt: skip


def measured(study: Read) -> list[Block]:
    """A glossary of what this study's tables need."""
    return [Items([f"<b>{term}</b>: {text}" for term, table, text in _TERMS if not table or table in study.tables or (table == "online" and study.games in study.tables)])]


def limits(study: Read) -> list[Block]:
    """What the study cannot say."""
    items = ["<i>Does not clearly change</i> is no proof that nothing changed: the intervals say how much could have been missed. They are not "
             "corrected for the number of readings on this page, so of many nulls a few will look like effects."]
    made = study.made("behaviour")
    if made:
        items.append("One training run is studied: the intervals are over episodes, and say nothing of other runs with another seed, other data or another size of model.")
        items.append("Decisions are the expert's states. An action that differs from the expert's counts as wrong even where it would have worked; only whole games settle that.")
        series = str((made.get("config") or {}).get("series", ""))
        items += [text for ending, text in _SERIES.items() if series.endswith(ending)]
        if (made.get("environment") or {}).get("name") == "alfworld" and not (made.get("config") or {}).get("official"):
            items.append("The decisions are of generated games with ALFWorld's rules, engine and floor plans, and sampled placements: scores on them are not ALFWorld scores.")
    if (limit := (study.made(study.games).get("config") or {}).get("step_limit")) is not None:
        items.append(f"Games end after {int(limit)} steps, so a task that needs more is lost however well it is played.")
    rows = headline(study.tables)
    if len(rows):
        few = rows.loc[rows["n_groups"].idxmin()]
        items.append(f"Some readings rest on few episodes or games: {READINGS.get(few['metric'], few['metric'])}, {WHERE[few['split']]}, on {int(few['n_groups'])}. Their intervals are wide, and what they "
                     "miss can be large.")
    items += [text for table, text in _OF.items() if table in study.tables]
    return [Items(items)]


#: What is known of the series that ship, by the end of their folder's path.
_SERIES = {
    "interp/data/series": "The agent is very small and was trained on an expert's traces, which name the thing or place to act on in most steps and sometimes the whole action. A trace that decides "
                          "the action is therefore expected; what the series can show is whether training moves the decision into the prompt. Larger models can differ.",
    "smollm2/series": "The agent is a small pretrained chat model, tuned with low-rank updates on an expert's traces, which name the thing or place to act on in most steps: a trace that decides the "
                      "action is expected.",
}
#: Limits of single instruments, by table.
_OF = {
    "probes": "Probes are linear and read one token: what they do not find may be there in another form, or elsewhere.",
    "patching": "Patching and prompt reliance swap two names in a prompt, with traces and actions of the expert held fixed: they say how those names matter, not everything else in the prompt.",
    "conflict": "Conflicting traces show what a trace can do, not what the agent's own traces do.",
    "masking": "Of an arm with few seeds an interval over seeds is wide, and of one seed there is none: then the result is an illustration. Contrasts beside the claim's are described, not tested.",
    "environments": "Each series is one training run, shorter and on fewer decisions than ALFWorld's. A series that learned nothing of an environment can only show a floor there.",
    "calibration": "The agents of the calibration take one step each in a tiny world, with short traces: an instrument that is right on them can still be wrong on a large model.",
}

SECTIONS = (
    Section("question", "The question", question),
    Section("answer", "The answer in short", answer),
    Section("measured", "How it is measured", measured),
    Section("trusted", "Can the instruments be trusted?", report_instruments.trusted, ("calibration",)),
    Section("better", "Does the agent get better, and where?", report_behaviour.better, ("behaviour", "parse", "revision", "online", "online_official")),
    Section("predicted", "Is the action in the prompt already?", report_instruments.predicted, ("probes", "transfer", "mdl")),
    Section("depends", "What does the action depend on?", report_instruments.depends, (
        "patching", "patching_spans", "patching_screen", "reliance", "conflict", "conflict_shift", "removal", "early", "shares", "steering")),
    Section("masking", "Does masking action supervision move the gain?", report_instruments.masked, (
        "masking_success", "masking_table", "masking_dose", "masking_selection", "masking_gap", "masking_reliance", "masking_mechanism", "masking_power")),
    Section("elsewhere", "Does it hold elsewhere?", report_behaviour.elsewhere, ("splits", "environments_in_domain", "environments_out_of_domain")),
    Section("nulls", "Nulls", nulls),
    Section("limits", "Limits", limits),
)
