"""The README's generated parts, from the committed tables: stage times, the benchmark, which architectures are exact, the splits, the arms."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from interp.results.arm_rows import paper_table
from interp.plots.calibration import AGENTS, INSTRUMENTS, allowed, grown, verdicts
from interp.results.tables import read_table
from interp.system.paths import ROOT

README, TABLES = ROOT / "README.md", ROOT / "figures" / "tables"
STAGES = ("behaviour", "online", "probes", "transfer", "mdl", "patching", "reliance", "conflict", "early", "shares", "steering")
#: Works of the benchmark in reading order, and what the README calls them.
WORKS = {
    "layer sweep": "layer sweep of `resid_pre` at the boundary", "layer x position grid": "full layer x position grid",
    "boundary capture": "boundary capture, all layers", "episode": "a 10-step episode, captured at every step",
}


def times(tables: Path = TABLES) -> str:
    """Time of each stage: what its table took, with the stages of its own that an interrupted run had left on disk."""
    seconds = {}
    for name in STAGES:
        _, made = read_table(tables, name)
        seconds[name] = made["seconds"] + sum(s for kind, s in made["seconds_reused"].items() if kind != "decoded" or name == "behaviour")
    return ", ".join(f"{name} {s / 60:.0f} min" if s >= 90 else f"{name} {s:.0f} s" for name, s in seconds.items()) + "."


def architectures() -> str:
    """The table of `interp.models.architectures`, in Markdown."""
    from interp.models.architectures import table

    return _markdown(table())


def bench(tables: Path = TABLES) -> str:
    """Ratios and greatest differences of the benchmark, in Markdown, then the works that no other tool does."""
    frame = read_table(tables, "bench")[0]
    rivals = [tool for tool in dict.fromkeys(frame.tool[frame.work.isin(list(WORKS))]) if tool not in ("interp", "forward alone")]
    rows = []
    for work, name in WORKS.items():
        for tokens, group in frame[frame.work == work].groupby("tokens", sort=True):
            of = group.set_index("tool")
            times = {tool: f"{of.ratio[tool]:.{0 if of.ratio[tool] >= 10 else 1}f} x" if tool in of.index else "" for tool in rivals}
            rows.append({"work": name, "tokens": int(tokens), **times, "ours": f"{of.seconds['interp']:.2g} s",
                         "in plain forwards": f"{of.plain_forwards['interp']:.3g}", "largest difference": f"{of.max_difference['interp']:.0e}"})
    alone = frame.set_index(["work", "tool"])
    pair = alone.loc["three sites, both directions, one pair", "interp"]
    captured = frame[(frame.work == "boundary capture") & (frame.tool == "forward alone")]
    memory = frame[frame.work == "memory of a boundary capture"].set_index("tool").peak_mb
    others = [
        "a capture takes " + ", ".join(f"{1 / row.ratio:.2f} x at {row.tokens:,} tokens" for row in captured.itertuples())
        + f" of the same batch's bare forward, and {memory['interp'] / memory['forward alone']:.2f} x of its memory",
        f"three sites x 30 layers at the boundary, both directions of one pair of {int(pair.tokens):,}-token prompts: {pair.plain_forwards:.1f} plain prompt forwards",
        f"probe sweep, 30 layers x 5 folds x 7 C: a loop over scikit-learn takes {alone.ratio['probe sweep', 'scikit-learn']:.1f} x our time",
        f"a checkpoint swapped in place: {1 / alone.ratio['swap a checkpoint', 'file read into memory']:.1f} x reading its file into memory, "
        f"{1 / alone.ratio['swap a checkpoint', 'file mapped and summed']:.1f} x mapping the file and touching every number",
    ]
    return _markdown(pd.DataFrame(rows)) + "\n\n" + "\n".join(f"- {line}" for line in others)


def calibration(tables: Path = TABLES) -> str:
    """Mean reading of each instrument on each organism over its seeds, beside what the construction allows, in Markdown."""
    frame, _ = grown(read_table(tables, "calibration")[0])
    rows = []
    for instrument, name in INSTRUMENTS.items():
        row = {"instrument": name}
        for agent, title in AGENTS.items():
            of = frame[(frame.instrument == instrument) & (frame.agent == agent)]
            misread = "**" if (verdicts(of) == "misread").any() else ""
            row[title] = f"{misread}{_number(of.value.mean())}{misread} ({allowed(of.iloc[0]) if of.truth_low.notna().all() else 'open'})" if len(of) else ""
        rows.append(row)
    return _markdown(pd.DataFrame(rows))


def splits(tables: Path = TABLES.parent / "environments" / "tables") -> str:
    """What each environment's splits hold, in Markdown."""
    frame = read_table(tables, "splits")[0]
    named = frame.rename(columns=dict(trained_on="trained on", holds="its decisions", task_types="task types"))
    return _markdown(named.map(lambda v: f"{v:,}" if isinstance(v, int) else v))


def masking(tables: Path = TABLES) -> str:
    """What each arm of the masking study reads, in Markdown."""
    table = paper_table(read_table(tables, "masking")[0].fillna({"arm": ""}))
    table.columns = [", ".join(part for part in column if part) for column in table.columns]
    return _markdown(table.rename_axis("arm").reset_index())


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-0.00", "0.00")


BLOCKS = {"times": times, "bench": bench, "architectures": architectures, "calibration": calibration, "splits": splits, "masking": masking}


def _markdown(frame: pd.DataFrame) -> str:
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def filled(text: str, names=tuple(BLOCKS)) -> str:
    """The README with what stands between each pair of marks made anew; raises ValueError for a mark that is not there."""
    for name in names:
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"The README has no place for {name!r}: it needs the marks <!-- {name} --> and <!-- end {name} -->.")
        block = BLOCKS[name]()
        text = pattern.sub(lambda match: f"{match.group(1)}{block}\n{match.group(2)}", text)
    return text


def run() -> None:
    """Write the README's generated parts."""
    README.write_text(filled(README.read_text()))
