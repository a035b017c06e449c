"""Parts of the documentation that are tables, in Markdown.

>>> TABLES["splits"]()
"""

from __future__ import annotations

import contextlib
import io
import re

import pandas as pd

from interp.plots.calibration import AGENTS, INSTRUMENTS, allowed, grown, verdicts
from interp.results.claims import VERDICTS
from interp.results.condition_rows import paper_table
from interp.results.tables import read_table
from interp.system.paths import ROOT

from .verdicts import rates

FIGURES = ROOT / "figures"
STUDY = FIGURES / "tables"
#: Stages of the full-size run, in the order in which they are listed.
STAGES = (
    "behaviour",
    "online",
    "probes",
    "transfer",
    "mdl",
    "patching",
    "reliance",
    "conflict",
    "early",
    "shares",
    "steering",
)
#: Works of the benchmark in reading order, and what the documentation calls them.
WORKS = {
    "layer sweep": "layer sweep of `resid_pre` at the boundary",
    "layer x position grid": "full layer x position grid",
    "boundary capture": "boundary capture, all layers",
    "episode": "a 10-step episode, captured at every step",
}
#: Not other tools, but the engine itself and the bare forward pass that a capture is held against.
NO_RIVALS = ("interp", "forward alone")


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown, without its index."""
    rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).values.tolist()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def number(value: float) -> str:
    """Two decimals, and no minus before a zero."""
    return f"{value:.2f}".replace("-0.00", "0.00")


def times() -> str:
    """Time of each stage: what its table took, with its own stages that an interrupted run left on disk."""
    written = []
    for name in STAGES:
        _, made = read_table(STUDY, name)
        reused = made["seconds_reused"]
        decoded_elsewhere = 0 if name == "behaviour" else reused.get("decoded", 0)
        seconds = made["seconds"] + sum(reused.values()) - decoded_elsewhere
        written.append(f"{name} {seconds / 60:.0f} min" if seconds >= 90 else f"{name} {seconds:.0f} s")
    return ", ".join(written) + "."


def plan() -> str:
    """What a study of the paper's scale takes on a cluster, by number of workers."""
    frame, made = read_table(STUDY, "plan")
    shown = pd.DataFrame(
        {
            "workers": [f"{n:,}" for n in frame["workers"]],
            "hours": [f"{hours:,.1f}" for hours in frame["hours"]],
            "computing": [f"{share:.0%}" for share in frame["computing"]],
            "reading weights": [f"{share:.0%}" for share in frame["loading"]],
            "driver busy": [f"{share:.1%}" for share in frame["driver"]],
        }
    )
    return f"{' '.join(made['sizes'])}\n\n{markdown(shown)}"


def architectures() -> str:
    """What is exact in some families of models, and by which path."""
    from interp.models.architectures import table

    return markdown(table())


def _short(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits}g}'):,g}"


def _bench_row(work: str, tokens: int, tools: pd.DataFrame, rivals: list[str]) -> dict:
    ratios = {}
    for tool in rivals:
        ratio = tools.ratio.get(tool)
        ratios[tool] = "" if ratio is None else f"{ratio:.{0 if ratio >= 10 else 1}f} x"
    own = tools.loc["interp"]
    return {
        "work": WORKS[work],
        "tokens": tokens,
        **ratios,
        "ours": f"{_short(own.seconds, 2)} s",
        "in plain forwards": _short(own.plain_forwards, 3),
        "largest difference": f"{own.max_difference:.0e}",
    }


def bench() -> str:
    """Every work that other tools do as well, then a list of those that they do not."""
    frame = read_table(STUDY, "bench")[0]
    compared = frame[frame.work.isin(list(WORKS))]
    rivals = [tool for tool in dict.fromkeys(compared.tool) if tool not in NO_RIVALS]
    rows = []
    for work in WORKS:
        for tokens, group in frame[frame.work == work].groupby("tokens", sort=True):
            rows.append(_bench_row(work, int(tokens), group.set_index("tool"), rivals))
    listed = "\n".join(f"- {line}" for line in _bench_alone(frame))
    return f"{markdown(pd.DataFrame(rows))}\n\n{listed}"


#: Baselines of the GPU's benchmark that say how many plain passes our time is.
FORWARDS = ("one forward", "bare forwards", "forwards of the prompts")


def bench_gpu() -> str:
    """Every work timed on a GPU: seconds, those of the first call, plain passes, and other ways to do it."""
    frame, made = read_table(STUDY, "bench_gpu")
    rows = []
    for (work, model, tokens), group in frame.groupby(["work", "model", "tokens"], sort=False):
        forwards = group[group.baseline.isin(FORWARDS)]
        row = dict(work=work, model=model, tokens=tokens)
        row["seconds"] = _short(group.seconds.iloc[0], 2)
        row["first call"] = _short(group.cold_seconds.iloc[0], 2)
        row["in plain passes"] = _short(1 / forwards.ratio.iloc[0], 3) if len(forwards) else ""
        others = group[~group.baseline.isin(FORWARDS)]
        row["against"] = ", ".join(f"{each.ratio:.3g} x {each.baseline}" for each in others.itertuples())
        rows.append(row)
    return f"{made['device']}, bfloat16:\n\n{markdown(pd.DataFrame(rows))}"


def _bench_alone(frame: pd.DataFrame) -> list[str]:
    by_tool = frame.set_index(["work", "tool"])
    pair = by_tool.loc["three sites, both directions, one pair", "interp"]
    captured = frame[(frame.work == "boundary capture") & (frame.tool == "forward alone")]
    lengths = ", ".join(f"{1 / row.ratio:.2f} x at {row.tokens:,} tokens" for row in captured.itertuples())
    memory = frame[frame.work == "memory of a boundary capture"].set_index("tool").peak_mb
    read = 1 / by_tool.ratio["swap a checkpoint", "file read into memory"]
    mapped = 1 / by_tool.ratio["swap a checkpoint", "file mapped and summed"]
    return [
        f"a capture takes {lengths} of the same batch's bare forward, and "
        f"{memory['interp'] / memory['forward alone']:.2f} x of its memory",
        "three sites x 30 layers at the boundary, both directions of one pair of "
        f"{int(pair.tokens):,}-token prompts: {pair.plain_forwards:.1f} plain prompt forwards",
        "probe sweep, 30 layers x 5 folds x 7 C: a loop over scikit-learn takes "
        f"{by_tool.ratio['probe sweep', 'scikit-learn']:.1f} x our time",
        f"a checkpoint swapped in place: {read:.1f} x reading its file into memory, "
        f"{mapped:.1f} x mapping the file and touching every number",
    ]


def engine_counts() -> str:
    """What each work asks of a GPU."""
    frame = read_table(STUDY, "engine_counts")[0]
    padding = (100 * frame.padding / frame.tokens).round().astype(int)
    columns = {
        "work": frame.work,
        "passes": frame.passes,
        "tokens": frame.tokens,
        "of them padding": padding.map("{} %".format),
        "masks": (frame.mask_bytes / 2**20).map("{:.1f} MiB".format),
        "states unembedded": frame.unembedded,
        "kernels": frame.kernels,
        "sends": frame.sends,
        "fetches": frame.fetches,
        "waits": frame.waits,
    }
    written = pd.DataFrame(columns).map(lambda value: f"{value:,}" if isinstance(value, int) else value)
    return markdown(written)


def calibration() -> str:
    """Mean reading of each instrument on each agent over its seeds, beside what its construction allows."""
    frame, _ = grown(read_table(STUDY, "calibration")[0])
    rows = []
    for instrument, name in INSTRUMENTS.items():
        if not (frame.instrument == instrument).any():
            continue
        row = {"instrument": name}
        for agent, title in AGENTS.items():
            row[title] = _reading(frame[(frame.instrument == instrument) & (frame.agent == agent)])
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def _reading(seeds: pd.DataFrame) -> str:
    if seeds.empty:
        return ""
    bold = "**" if (verdicts(seeds) == "misread").any() else ""
    truth = allowed(seeds.iloc[0]) if seeds.truth_low.notna().all() else "open"
    return f"{bold}{number(seeds.value.mean())}{bold} ({truth})"


def splits() -> str:
    """What each environment's splits hold."""
    frame = read_table(FIGURES / "environments" / "tables", "splits")[0]
    names = {"trained_on": "trained on", "holds": "its decisions", "task_types": "task types"}
    written = frame.map(lambda value: f"{value:,}" if isinstance(value, int) else value)
    return markdown(written.rename(columns=names))


def masking() -> str:
    """What each training condition of the masking study reads."""
    table = paper_table(read_table(STUDY, "masking")[0].fillna({"condition": ""}))
    table.columns = [", ".join(part for part in column if part) for column in table.columns]
    return markdown(table.rename_axis("condition").reset_index())


def commands() -> str:
    """What the command line lists, with what it cites of the methods as links."""
    from ..__main__ import run as command_line

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        command_line(["--help"])
    rows = []
    for name, what in re.findall(r"^  (\w+) +(.+)$", printed.getvalue(), re.MULTILINE):
        linked = re.sub(r"docs/methods\.md ([\d.]*\d)", r"[methods \1](methods.md#\1)", what)
        rows.append({"command": f"`{name}`", "what it does": linked})
    return markdown(pd.DataFrame(rows))


def decisions() -> str:
    """The columns of `decisions.parquet`."""
    from interp.results.decisions import COLUMNS

    rows = [{"column": f"`{name}`", "what it holds": what} for name, (_, what) in COLUMNS.items()]
    return markdown(pd.DataFrame(rows))


def claim_verdicts() -> str:
    """How often simulated studies reach each verdict on a claim."""
    rows = []
    for row in rates().itertuples():
        shares = {word: f"{100 * getattr(row, word):.1f} %" for word in VERDICTS}
        of = f"{row.n:,} in {row.episodes}"
        rows.append(
            {"reading": row.reading, "true change": f"{row.change:+.2f}".replace("+0.00", "0")}
            | {"decisions in episodes": of}
            | shares
        )
    return markdown(pd.DataFrame(rows))


#: Name of a part -> what makes it.
TABLES = {
    "times": times,
    "bench": bench,
    "bench_gpu": bench_gpu,
    "engine_counts": engine_counts,
    "architectures": architectures,
    "calibration": calibration,
    "splits": splits,
    "masking": masking,
    "commands": commands,
    "decisions": decisions,
    "plan": plan,
    "verdicts": claim_verdicts,
}
