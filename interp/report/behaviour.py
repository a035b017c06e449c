"""What a report says of behaviour: where a gain lands, what the trace changes, which games are won, and other series beside.

>>> headline, numbers = placed(study.tables["behaviour"], "in_domain")
>>> headline
'most of the gain lands in the trace'
"""

from __future__ import annotations

import pandas as pd

from interp.plots.captions import side
from interp.results.headline import READINGS, headline
from interp.plots.environments import ENVIRONMENTS
from interp.report.words import WHERE, Cells, Ends, Read, ends, escaped, grouped, listed, paragraph, sentence, steps, told, trend
from interp.results.names import SPLITS
from interp.results.queries import pick, splits_of

#: Share of decisions on which the prompt action must parse, for its accuracy to be a reading of what the prompt knows.
READABLE = 0.5
#: What says where a gain lands; and why there is none.
_PLACING = ("acc_cot", "acc_prompt", "gap", "parse_prompt")
_NO_GAIN = {"down": "the agent gets worse with its trace", "level": "there is no clear gain to place",
            "unknown": "without intervals no gain can be placed"}
_TRACE = {1: "the trace helps", -1: "the trace harms", 0: "the trace neither helps nor harms for sure"}
#: How the games won with the trace changed since the first checkpoint, and words of a table.
_WON = {"up": "more than at the first", "down": "fewer than at the first", "level": "not clearly more or fewer than at the first"}
_CHANGE = {"up": "rises", "down": "falls", "level": "no clear change", "single": "one checkpoint", "unknown": "no intervals"}
_PARSED = {"parse_cot": "CoT action", "parse_prompt": "prompt action", "parse_empty_think": "action behind an empty trace"}
_SMOLLM2 = "SmolLM2 on ALFWorld's own games"


def placed(frame: pd.DataFrame, split: str) -> tuple[str, str]:
    """Where the gain of a series lands, in words that intervals choose, and the numbers that say so; empty where the rows are missing.

    Args:
        frame: step, split, metric and the estimate: acc_cot, acc_prompt, gap and, where they are, parse_prompt.
        split: one of SPLITS.
    """
    cot, prompt, gap, parse = (ends(pick(frame, split=split, metric=metric).dropna(subset="value")) for metric in _PLACING)
    if cot is None or prompt is None or gap is None:
        return "", ""
    said = [trend("the CoT action's agreement with the expert", cot), trend("the prompt action's", prompt), trend("the gap between them", gap)]
    said += [trend("the share of decisions on which the prompt action parses", parse)] if _unread(parse) else []
    return _place(cot, prompt, gap, parse), "; ".join(said)


def _place(cot: Ends, prompt: Ends, gap: Ends, parse: Ends | None) -> str:
    if cot.moved == "single":
        return f"with one checkpoint there is no gain to place; {_TRACE[side(gap.last)]}"
    if cot.moved != "up":
        return _NO_GAIN[cot.moved]
    if _unread(parse):
        return ("the agent gains with its trace; what the prompt alone predicts is not read, because without a trace fewer than half of its "
                "actions parse")
    if gap.moved != "up" and prompt.moved != "up":
        return "there is a gain, and where it lands is not told apart"
    if gap.moved != "up":
        return "the gain lands in what the prompt alone predicts" if gap.moved == "down" else "the gain shows without the trace as well"
    if prompt.moved != "up":
        return "the gain lands in the trace" + (", and the action without it gets worse" if prompt.moved == "down" else "")
    part = (prompt.last["value"] - prompt.first["value"]) / (cot.last["value"] - cot.first["value"])
    return "most of the gain lands in the trace" if part < 0.5 else "part of the gain lands in the trace, most of it shows without"


def _unread(parse: Ends | None) -> bool:
    """Whether the prompt action parses too rarely at the last checkpoint for its accuracy to say what the prompt knows."""
    return parse is not None and bool(parse.last["value"] < READABLE)


def studied(study: Read) -> str:
    """What the study is of: checkpoints, decisions and environment, from the table and its provenance."""
    rows = study.rows("behaviour", metric="acc_cot")
    if rows.empty:
        return ""
    name, count = (study.made("behaviour").get("environment") or {}).get("name", ""), rows["step"].nunique()
    of = f" in the environment {escaped(ENVIRONMENTS.get(name, name))}" if name else ""
    sizes = listed(f"{int(part['n'].max())} decisions {WHERE[split]} (of {int(part['n_groups'].max())} episodes)" for split in splits_of(rows)
                   for part in [pick(rows, split=split)])
    return f"Studied here: {count} checkpoint{'s' if count > 1 else ''} of one training run {steps(rows)}, on {sizes}{of}."


def gains(study: Read) -> list[str]:
    """A sentence for each split, or one for both: where the gain lands, with numbers."""
    found = {split: placed(study.rows("behaviour"), split) for split in study.splits("behaviour")}
    found = {split: of for split, of in found.items() if of[0]}
    if len({of[0] for of in found.values()}) == 1 and len(found) > 1:
        numbers = " ".join(sentence(f"{WHERE[split]}, {of[1]}") for split, of in found.items())
        return [f"<b>{sentence(f'{listed(WHERE[split] for split in found)}: {next(iter(found.values()))[0]}')}</b> {numbers}"]
    return [f"<b>{sentence(f'{WHERE[split]}: {of[0]}')}</b> {sentence(of[1])}" for split, of in found.items()]


def games(study: Read, table: str = "") -> str:
    """Games won at the last checkpoint in both modes, and whether that is a gain with the trace."""
    table, parts = table or study.games, []
    for split in study.splits(table):
        cot, prompt = (study.ends(table, split=split, mode=mode, metric="success") for mode in ("cot", "prompt"))
        if cot is None:
            continue
        text = f"{WHERE[split]} {'it' if parts else 'the last checkpoint'} wins {told(cot.last)} of {int(cot.last['n'])} games with its trace"
        text += f" and {told(prompt.last)} without it" if prompt is not None else ""
        parts.append(text + (f": with it, {_WON[cot.moved]} ({told(cot.first)})" if cot.moved in _WON else ""))
    return sentence("; ".join(parts))


def better(study: Read) -> list[str]:
    """Lead of the section on behaviour."""
    rows = study.rows("behaviour")
    if rows.empty:
        return [text] if (text := games(study)) else []
    said = [paragraph(f"Numbers are of the first and last checkpoint {steps(rows)}.", *gains(study))]
    parts = {}
    for split in study.splits("behaviour"):
        found = {metric: study.ends("behaviour", split=split, metric=metric) for metric in ("revision", "revision_helpful", "revision_harmful")}
        if None not in found.values():
            changed, helpful, harmful = (of.last for of in found.values())
            verdict = "what it mends and what it spoils are not told apart"
            if helpful["low"] > harmful["high"]:
                verdict = "it mends more than it spoils"
            elif harmful["low"] > helpful["high"]:
                verdict = "it spoils more than it mends"
            parts[split] = verdict, (f"the action changes on {told(changed)} of the decisions, from wrong to right on {told(helpful)}, from right to "
                                     f"wrong on {told(harmful)}")
    said += [f"<b>What the trace changes.</b> At the last checkpoint, the CoT action against the prompt action: {grouped(parts)}."] if parts else []
    said += [f"<b>Form.</b> {text}"] if (text := _form(study)) else []
    if text := games(study):
        said.append(f"<b>Games.</b> {text}")
    if study.games == "online" and (text := games(study, "online_official")):
        said.append(f"<b>ALFWorld's own games.</b> {text}")
    return said


def _form(study: Read) -> str:
    """Whether each mode produces an action at all at its worst checkpoint."""
    parts = []
    for metric, name in _PARSED.items():
        rows = study.rows("behaviour", metric=metric)
        if len(rows):
            worst = rows.loc[rows["value"].idxmin()]
            rare = ", too rarely for its accuracy to say much" if worst["value"] < READABLE else ""
            parts.append(f"the {name} on {told(worst)} (step {int(worst['step'])}, {WHERE[worst['split']]}{rare})")
    return f"How often there is an action to judge, at the checkpoint where it is rarest: {'; '.join(parts)}." if parts else ""


def series(study: Read) -> dict[str, pd.DataFrame]:
    """Series beside this one, by name: rows of step, split, metric and the estimate."""
    found = {_SMOLLM2: headline(study.beside["smollm2"].tables)} if "smollm2" in study.beside else {}
    merged = study.tables.get("environments")
    if merged is None and "environments" in study.beside:
        merged = study.beside["environments"].tables.get("environments")
    if merged is not None:
        mine = (study.made("behaviour").get("environment") or {}).get("name")
        found |= {name: rows for key, name in ENVIRONMENTS.items() if key != mine and len(rows := pick(merged, environment=key))}
    return found


def elsewhere(study: Read) -> list:
    """Lead of the section on other series: where the gain lands in each, a table of their readings, and links to their pages."""
    found = series(study)
    if not found:
        return []
    blocks: list = [f"<b>{sentence(WHERE[split])}</b> {sentence(by)}" for split in SPLITS if (by := _grouped(found, split))]
    blocks.append(_side_by_side(found))
    links = {"smollm2": "the study of SmolLM2 on ALFWorld's own games", "environments": "the environments side by side"}
    pages = [f'<a href="{study.beside[name].link}">{title}</a>' for name, title in links.items() if name in study.beside]
    return blocks + ([f"Whole pages: {listed(pages)}."] if pages else [])


def _grouped(found: dict[str, pd.DataFrame], split: str) -> str:
    """Series by where their gain lands, with the gap at the end: `in A (gap 0.47 [..]) and B (..) the gain lands in the trace; in C ..`."""
    by: dict[str, list[str]] = {}
    for name, rows in found.items():
        if text := placed(rows, split)[0]:
            gap = ends(pick(rows, split=split, metric="gap").dropna(subset="value")).last
            by.setdefault(text, []).append(f"{name} (gap {told(gap)})")
    return "; ".join(f"in {listed(names)} {text}" for text, names in by.items())


def beside(study: Read) -> str:
    """Sentence on the other series for the answer in short."""
    by = _grouped(series(study), "in_domain")
    return f"In-domain, at the end, {by}." if by else ""


def summary(study: Read) -> Cells | None:
    """The study's headline readings at both ends, a row for each reading and a column for each split."""
    rows = headline(study.tables)
    if rows.empty:
        return None
    splits, lines = splits_of(rows), []
    for metric, name in READINGS.items():
        found = [ends(pick(rows, metric=metric, split=split)) for split in splits]
        if any(found):
            lines.append([name, *(cell for of in found for cell in ([told(of.first), told(of.last), _CHANGE[of.moved]] if of else ["–"] * 3))])
    heads = ["reading", *(f"{SPLITS[split]}, {which}" for split in splits for which in ("first", "last", "change"))]
    return Cells(f"The study's readings at the first and last checkpoint that each was taken at {steps(rows)}, with 95 % intervals.", heads, lines)


def _side_by_side(found: dict[str, pd.DataFrame]) -> Cells:
    """Other series' readings: both accuracies at both ends, the rest at the last checkpoint."""
    measured = {metric for rows in found.values() for metric in rows["metric"]}
    last, lines = [metric for metric in ("success_cot", "prompt_reliance", "follow", "probe_gain") if metric in measured], []
    for name, rows in found.items():
        for split in splits_of(rows):
            of = {metric: ends(pick(rows, split=split, metric=metric).dropna(subset="value")) for metric in ("acc_cot", "acc_prompt", *last)}
            both = [f"{told(of[m].first)}<br>{told(of[m].last)}" if of[m] else "–" for m in ("acc_cot", "acc_prompt")]
            lines.append([name, WHERE[split], *both, *(told(of[m].last) if of[m] else "–" for m in last)])
    heads = ["series", "split", "CoT action, first and last", "prompt action, first and last", *(f"{READINGS[m]}, last" for m in last)]
    return Cells("Series side by side: agreement with the expert at the first checkpoint (above) and the last (below), other readings at the last. "
                 "Dash: not measured.", heads, lines)
