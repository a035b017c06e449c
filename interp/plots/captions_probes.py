"""Captions of the probes' figures: what each table says, in numbers, as HTML.

>>> frame, _ = read_table("runs/quick/tables", "transfer")
>>> transfer(frame)
"""

from __future__ import annotations

import pandas as pd

from interp.plots.captions import _by_split, _change, _estimate, _join, _last, _paragraph, _size
from interp.results.names import CONTROLS, LABELS, SPLITS, STYLE
from interp.results.queries import label_of, pick


def probes(frame: pd.DataFrame, label: str = "eventual_target", split: str = "in_domain") -> str:
    """Nested probe's accuracy, best control and gain at the first and last checkpoint; the best cell; controls of activations; pairs of verbs."""
    rows = pick(frame, label=label, split=split, metric="accuracy")
    lead = f"Linear probe at the prompt boundary for the {LABELS.get(label, label)}, {SPLITS[split].lower()}."
    nested = pick(rows, layer=-1).assign(metric=lambda table: table["reader"])
    words = {"probe": "Accuracy of the probe with nested layer choice", "gain": "gain over the best control that reads no activation"}
    text = [_join([_change(nested, reader, word) for reader, word in words.items()]) + "."]
    at_end = pick(rows, step=rows["step"].max())
    controls = at_end[at_end["reader"].isin(CONTROLS)].sort_values("layer").drop_duplicates("reader")
    if len(controls):
        best = controls.loc[controls["value"].idxmax()]
        text.append(f"Best such control at step {int(best['step'])}: {STYLE[best['reader']][0]}, {_estimate(best)}.")
    ends = {"random_model": "randomly initialised model", "control_task": "control task (a random label for each prompt type)", "selectivity": "selectivity"}
    found = {reader: _last(nested, reader) for reader in ends}
    known = [f"{word} {_estimate(found[reader])}" for reader, word in ends.items() if found[reader] is not None]
    if known:
        step = int(next(row for row in found.values() if row is not None)["step"])
        text.append(f"The same probe at step {step} of the {_join(known)}.")
    cells = rows[(rows["reader"] == "gain") & (rows["layer"] >= 0)].dropna(subset="value")
    if len(cells):
        top = cells.loc[cells["value"].idxmax()]
        clear, p = int((cells["low"] > 0).sum()), pick(rows, reader="gain_p")["value"]
        corrected = f"smallest p corrected over layers, one checkpoint at a time: {p.min():.2g}" if len(p) else "without correction over layers"
        text.append(
            f"Largest gain on the map: {_estimate(top, signed=True)} at layer {int(top['layer'])}, step "
            f"{int(top['step'])}, picked as the maximum; {clear} of {len(cells)} cells have an interval above 0, {corrected}."
        )
    return _paragraph(lead, [" ".join(text) + " " + _size(rows), *_pairs(frame)])


def _pairs(frame) -> list[str]:
    """Line on the pairs of verbs at the last checkpoint that has some."""
    rows = frame[frame["label"].str.startswith("pairwise") & (frame["layer"] == -1) & (frame["metric"] == "accuracy")]
    rows = pick(rows, step=rows["step"].max())
    said = []
    for label, of in rows.groupby("label", sort=True):
        of = of.assign(metric=of["reader"])
        said.append(f"{label.removeprefix('pairwise ')} {_estimate(_last(of, 'probe'))}, gain {_estimate(_last(of, 'gain'), signed=True)}, n = {int(of['n'].max())}")
    return [f"Which of two admissible verbs is taken, step {int(rows['step'].max())}: {_join(said, '; ')}."] if said else []


def transfer(frame: pd.DataFrame, label: str | None = None) -> str:
    """Accuracy of the own, the first and the last checkpoint's probe at both ends, and the largest drop, per split."""
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    first, last = frame["train_step"].min(), frame["train_step"].max()
    lead = (
        f"Probes for the {LABELS.get(label, label)} trained at one checkpoint in-domain and read at every other: accuracy (left), what is lost against "
        "the test step's own probe (middle), and three probes over test steps (right). Layer and C are chosen at the training step, "
        "without test labels; where the label is the eventual action, every checkpoint is read for its own, so a drop holds the change of its actions too."
    )
    lines = []
    for name, rows in _by_split(frame):
        probe = pick(rows, reader="probe")

        def cell(train, test, reader="probe", rows=rows):
            of = pick(rows, reader=reader, train_step=train, test_step=test)
            return _estimate(of.iloc[0]) if len(of) else "unknown"

        text = f"{name}: the first checkpoint's probe reads step {last} at {cell(first, last)}, its own probe at {cell(last, last)} (drop {cell(first, last, 'drop')}); "
        text += f"the last checkpoint's reads step {first} at {cell(last, first)}, its own at {cell(first, first)} (drop {cell(last, first, 'drop')})."
        drops = pick(rows, reader="drop")
        drops = drops[drops["train_step"] != drops["test_step"]]
        clear = int((drops["low"] > 0).sum())
        lines.append(f"{text} {clear} of {len(drops)} pairs of checkpoints drop by an interval above 0. {_size(probe)}")
    return _paragraph(lead, lines)


def mdl(frame: pd.DataFrame, label: str | None = None) -> str:
    """Codelengths and compression at the first and last checkpoint, and what the probe saves over the best code without activations."""
    label = label or label_of(frame)
    frame = pick(frame, label=label)
    lead = (
        f"Online codelength of the {LABELS.get(label, label)} (Voita & Titov 2020): bits for each decision (top) and compression against the uniform "
        "code (bottom), with the activations, with the prompt's TF-IDF, and with class frequencies alone. Layer and C are chosen inside the "
        "decisions already sent."
    )
    lines = []
    for name, rows in _by_split(frame):
        bits, ratio = ({reader: pick(rows, metric=metric, reader=reader).assign(metric=reader) for reader in ("probe", "tfidf", "majority", "gain")}
                       for metric in ("bits", "compression"))
        words = {"probe": "bits with the activations", "tfidf": "with the text", "majority": "with class frequencies",
                 "gain": "saved over the shorter of these two"}
        said = [_change(bits[reader], reader, word) for reader, word in words.items()] + [_change(ratio["probe"], "probe", "compression by the activations")]
        lines.append(f"{name}: {_join(said)}. {_size(bits['probe'])}")
    return _paragraph(lead, lines)
