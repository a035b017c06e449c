# %% [markdown]
# # 6. Build your own instrument in two files
#
# An instrument is a module with a configuration and a function `run` that writes one tidy table, and a module with the figure of that
# table. The toolkit gives the rest: checkpoints, decisions, decoding that is kept on disk, intervals, provenance.
#
# The question of this notebook: **do longer prompts lead to longer traces, and does training change that?**
#
# In a checkout the two files would be `analyses/trace_length.py` and `interp/plots/trace_length.py`, and nothing else would have to be
# changed: the registries find them. Here they go into a temporary folder, which both packages are told to look into as well.

# %%
import importlib
import sys
import tempfile
from pathlib import Path

from interp.system.paths import ROOT

sys.path.append(str(ROOT))
package = "analyses" if (ROOT / "analyses").exists() else "interp.analyses"  # in a checkout, or as it is installed

folder = Path(tempfile.mkdtemp())
for name in (package, "interp.plots"):
    (folder / name).mkdir()
    importlib.import_module(name).__path__.append(str(folder / name))

# %% [markdown]
# ## File 1: what is measured
#
# - The first line of the docstring is what the command line lists.
# - `Config` inherits every option of a study (`--series`, `--decisions`, `--size`, ...). A field of your own is an option of your own; the
#   line below it is its help, and `Limits` says what it may be.
# - `config.cells` goes through checkpoints and splits. `config.prompts` and `config.decoded` give what every analysis shares: it is decoded
#   once for all of them.
# - `mean_row` is a mean with its 95 % interval over games, as the columns that every table ends with.
# - `config.write` writes the table, and its provenance beside it.

# %%
# %%writefile {folder}/{package}/trace_length.py
"""Trace length: tokens of the agent's own trace, and its correlation with the prompt's length."""

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from interp.system.limits import Limits

from .registry import Instrument
from .remedies import NotApplicable
from .rows import mean_row
from .study import Study


@dataclass
class Config(Study):
    """Count the tokens of every trace."""

    shortest: Annotated[int, Limits(1, 10_000)] = 1
    """Traces of fewer tokens are left out."""


def run(config: Config) -> None:
    """One row for each checkpoint, split and metric."""
    started, rows = time.time(), []
    for step, split in config.cells("trace length"):
        prompts, completions = config.prompts(split), config.decoded(step, split, "cot")
        lengths = [len(config.format.encode(c.trace or "")) for c in completions]
        kept = [i for i, length in enumerate(lengths) if length >= config.shortest]
        if len(kept) < 2:
            continue
        games = [prompts[i].decision.episode for i in kept]
        trace = np.array([lengths[i] for i in kept], dtype=float)
        prompt = np.array([len(prompts[i].ids) for i in kept], dtype=float)
        where = dict(step=step, split=split)
        rows.append(dict(where, metric="trace_tokens", **mean_row(trace, games, config.seed)))
        scores = np.stack([(x - x.mean()) / (x.std() or 1.0) for x in (trace, prompt)])
        rows.append(dict(where, metric="correlation", **mean_row(scores[0] * scores[1], games, config.seed)))
    if not rows:
        raise NotApplicable("No checkpoint writes traces at these decisions.")
    config.write("trace_length", rows, started)


INSTRUMENT = Instrument("trace_length", Config, run)

# %% [markdown]
# ## File 2: its figure
#
# `figure` registers a function of a table, with the title, the table's name, the section of the report, and a caption whose message comes
# first. The helpers of `interp.plots` give lines with bands and the house's axes.

# %%
# %%writefile {folder}/interp.plots/trace_length.py
"""The figure of trace lengths."""

import plotly.graph_objects as go

from interp.plots.caption import Caption, size
from interp.plots.pictures import band_line
from interp.plots.registry import figure
from interp.plots.theme import facets
from interp.results.names import BLUE, VERMILION
from interp.results.queries import pick

LOOKS = {
    "trace_tokens": ("tokens of a trace", VERMILION, "solid", "circle"),
    "correlation": ("correlation with the prompt's length", BLUE, "solid", "square"),
}


def caption(frame):
    """The message, what is drawn, and how much it rests on."""
    last = pick(frame, step=frame["step"].max(), metric="trace_tokens")["value"].mean()
    return Caption(
        f"At the last checkpoint a trace has {last:.0f} tokens.", "Means by checkpoint.", size(frame)
    )


@figure("How long are the traces?", table="trace_length", section="traces", caption=caption)
def trace_length(frame, split="in_domain") -> go.Figure:
    """Length, and its correlation with the prompt's, by checkpoint."""
    fig = facets(1, 260, 0, [label for label, *_ in LOOKS.values()], spacing=0.1, shared=False)
    for column, (metric, look) in enumerate(LOOKS.items(), start=1):
        rows = pick(frame, split=split, metric=metric)
        band_line(fig, rows, "step", look, (1, column), show=False)
    return fig.update_xaxes(title="training step")


# %% [markdown]
# ## Run it
#
# The instrument is a command now, with `--help` like any other. Here it runs in this kernel at three checkpoints and 24 decisions; in a
# shell it would be `python -m analyses trace_length --checkpoints 0 350 2000 --decisions 24 --splits in_domain --run FOLDER`.

# %%
command = importlib.import_module(f"{package}.__main__").run
options = f"--checkpoints 0 350 2000 --decisions 24 --splits in_domain --trace_tokens 64 --run {folder}/run"
status = command(["trace_length", *options.split()], draw=False)

# %%
from interp.results.tables import read_table

table, provenance = read_table(folder / "run" / "tables", "trace_length")
table.round(2)

# %%
{name: provenance[name] for name in ("seed", "device", "dtype", "corpus", "format")}

# %%
from interp.plots.registry import figures

mine = next(each for each in figures() if each.table == "trace_length")
print(mine.caption(table).text)
mine.draw(table, provenance)

# %% [markdown]
# ## What is still missing
#
# - **A null that is known.** Before a number is believed, an instrument is read where the answer is known
#   ([calibration](../docs/calibration.md)). Here: shuffle the prompts' lengths, and the correlation must go to 0.
# - **A definition** in `docs/methods.md`, how to read it in `docs/instruments.md`, and tests: `CONTRIBUTING.md` lists the steps.
# - **Care with n.** With 24 decisions the interval of a correlation is 0.7 to 0.9 wide. A change that it does not show may still be there.
