"""The README's generated parts, from the committed tables: stage times, the benchmark, and which architectures are exact."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd

README, TABLES = Path(__file__).parents[1] / "README.md", Path(__file__).parents[1] / "figures" / "tables"
STAGES = ("behaviour", "online", "probes", "patching", "reliance", "conflict")
#: Works of the benchmark in reading order, and what the README calls them.
WORKS = {
    "layer sweep": "layer sweep of `resid_pre` at the boundary", "layer x position grid": "full layer x position grid",
    "boundary capture": "boundary capture, all layers", "episode": "a 10-step episode, captured at every step",
}


def times(tables: Path = TABLES) -> str:
    """Time of each stage: what its table took, with the stages of its own that an interrupted run had left on disk."""
    seconds = {}
    for name in STAGES:
        made = json.loads((tables / f"{name}.json").read_text())
        seconds[name] = made["seconds"] + sum(s for kind, s in made["seconds_reused"].items() if kind != "decoded" or name == "behaviour")
    return ", ".join(f"{name} {s / 60:.0f} min" if s >= 90 else f"{name} {s:.0f} s" for name, s in seconds.items()) + "."


def architectures() -> str:
    """The table of `interp.architectures`, in Markdown."""
    from interp.architectures import table

    return _markdown(table())


def bench(tables: Path = TABLES) -> str:
    """Ratios and greatest differences of the benchmark, in Markdown."""
    frame = pd.read_csv(tables / "bench.csv", keep_default_na=False, na_values=[""])
    rivals = [tool for tool in dict.fromkeys(frame.tool) if tool not in ("interp", "forward", "safetensors", "scikit-learn")]
    rows = []
    for work, name in WORKS.items():
        for tokens, group in frame[frame.work == work].groupby("tokens", sort=True):
            own, by_tool = group[group.tool == "interp"].iloc[0], group.set_index("tool")
            ratios = {tool: f"{by_tool.ratio[tool]:.2g} x" if by_tool.ratio[tool] < 100 else f"{by_tool.ratio[tool]:.0f} x" if tool in by_tool.index else "" for tool in rivals if tool in by_tool.index}
            rows.append({"work": name, "tokens": int(tokens), "interp": f"{own.seconds:.2g} s", **{t: ratios.get(t, "") for t in rivals},
                         "plain forwards": f"{own.plain_forwards:.2g}" if own.plain_forwards == own.plain_forwards else "",
                         "largest difference": f"{own.max_difference:.0e}"})
    return _markdown(pd.DataFrame(rows))


BLOCKS = {"times": times, "bench": bench, "architectures": architectures}


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
