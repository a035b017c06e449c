# %% [markdown]
# # 4. Your own checkpoints and decisions
#
# A study needs two things of yours: the folder that your trainer wrote, and decisions. This notebook makes both small, in a temporary
# folder, so that every step is seen. Two of the shipped checkpoints stand for your trainer's.
#
# What else can be read (adapters, quantised weights, verl, OpenRLHF, a hub's revisions) is listed in
# [your own checkpoints](../docs/checkpoints.md).

# %%
import json
import tempfile
from pathlib import Path

import interp

folder = Path(tempfile.mkdtemp())
shipped = interp.CheckpointSeries.discover()
for step in (0, 2000):
    model = shipped.load(step)
    model.hf.save_pretrained(folder / "trainer" / f"checkpoint-{step}")
    model.tokenizer.save_pretrained(folder / "trainer" / f"checkpoint-{step}")

sorted(path.name for path in (folder / "trainer" / "checkpoint-2000").iterdir())

# %% [markdown]
# ## The series
#
# `discover` reads the folder, orders the checkpoints by training step, and compares their configurations, tokenizers and shapes before
# anything runs. `load` makes one model; `swap` puts another checkpoint's weights into it, which costs far less than loading again.

# %%
series = interp.CheckpointSeries.discover(folder / "trainer")
model = series.load(series.steps[-1])
series, model

# %% [markdown]
# ## Decisions
#
# A decision needs the messages before it and the reference action. `admissible` lists the actions that can be taken, and allows
# forced choice. `episode` names the game. Decisions of one game share its name, since folds and intervals keep a game together.

# %%
START = "You are in the middle of a room. Looking quickly around you, you see a {}. Your task is to: put a {} in {}."


def decisions_of(number, thing, place, places):
    """Two steps of a game: go where the thing is, and take it."""
    task = f"put a {thing} in {place}"
    start = {"role": "user", "content": START.format(", a ".join([*places, f"{place} 1"]), thing, place)}
    moves = [f"go to {name}" for name in (*places, f"{place} 1")]
    common = dict(episode=f"game {number}", task=task, task_type="put", split="in_domain")
    yield interp.Decision([start], moves[0], admissible=moves, **common)
    seen = f"You arrive at {places[0]}. On the {places[0]}, you see a {thing} 1."
    turns = [
        start,
        {"role": "assistant", "trace": f"Goal: {thing} to {place}. Hands empty.", "action": moves[0]},
        {"role": "user", "content": seen},
    ]
    take = f"take {thing} 1 from {places[0]}"
    yield interp.Decision(turns, take, admissible=[*moves[1:], take], **common)


things, places = ("mug", "pen", "book", "apple", "bowl"), ("desk 1", "shelf 1", "drawer 1", "countertop 1")
decisions = [
    decision
    for number in range(20)
    for decision in decisions_of(
        number, things[number % 5], "dresser", [places[(number + k) % 4] for k in range(3)]
    )
]
decisions[1]

# %% [markdown]
# The first move of a game is a guess, since nothing says where the thing is: do not expect agreement there. The second is not.

# %%
import pandas as pd

pd.set_option("display.max_colwidth", None)
fmt = interp.PromptFormat(model.tokenizer, style="tags")
prompts = [fmt.prompt(d) for d in decisions]
completions = interp.decode(model, prompts, mode="cot")
pd.DataFrame(
    {
        "decision": [d.id for d in decisions[:6]],
        "reference": [d.reference for d in decisions[:6]],
        "CoT action": [c.action for c in completions[:6]],
        "trace": [c.trace for c in completions[:6]],
    }
)

# %% [markdown]
# ## A file, and the command line
#
# One decision is one line of JSON. With the file, every analysis is a command: no code of your own.
#
# ```sh
# python -m analyses behaviour --series trainer --decisions decisions.jsonl --style tags --choices 8 --run run
# python -m analyses decisions --series trainer --decisions decisions.jsonl --style tags --run run
# ```
#
# Stages are kept in the run's folder, so that a command that was stopped goes on where it was. From a shell each also draws its figures. The actions are recognised as the household's;
# for a task of your own, any text is an action ([your own task](../docs/task.md)). Here the same commands run in this kernel.

# %%
lines = (
    {
        "messages": list(d.messages),
        "reference": d.reference,
        "admissible": list(d.admissible),
        **{name: getattr(d, name) for name in ("episode", "step", "task", "task_type", "split", "trace")},
    }
    for d in decisions
)
file = folder / "decisions.jsonl"
file.write_text("".join(json.dumps(line) + "\n" for line in lines))
print(file.read_text().splitlines()[0][:200], "...")

# %%
import importlib
import sys

from interp.system.paths import ROOT

sys.path.append(str(ROOT))
package = "analyses" if (ROOT / "analyses").exists() else "interp.analyses"  # in a checkout, or as it is installed
command = importlib.import_module(f"{package}.__main__").run

study = f"--series {folder}/trainer --decisions {file} --style tags --run {folder}/run"
command(f"behaviour {study} --choices 8".split(), draw=False)
command(f"decisions {study}".split(), draw=False)
sorted(path.name for path in (folder / "run" / "tables").iterdir())

# %% [markdown]
# ## Read the table
#
# Every table is tidy: a row for each reading, with its interval, the number of decisions n and the number of games. The JSON beside it is its
# provenance: the command, seed, versions, and hashes of weights and decisions.

# %%
from interp.results.tables import read_table

table, provenance = read_table(folder / "run" / "tables", "behaviour")
shown = table[table["metric"].isin(["acc_cot", "acc_prompt", "gap", "parse_prompt"])]
shown[["step", "metric", "value", "low", "high", "n", "n_groups"]].round(2)

# %%
from interp.plots.behaviour import behaviour

behaviour(table, provenance)

# %% [markdown]
# ## One decision after the other
#
# The second command wrote `decisions.html`, a page to look through single decisions: choose the checkpoint, filter, move with `j` and `k`.
# `tables/decisions.parquet` holds the same for questions of your own.

# %%
page = interp.view(folder / "run")  # as the last line of a cell, `page` shows it here
print(page.path.name, page.path.stat().st_size // 1024, "KiB")

every = pd.read_parquet(folder / "run" / "tables" / "decisions.parquet")
cot = every[(every["mode"] == "cot") & (every["checkpoint"] == 2000)]
cot[cot["actions_differ"] & cot["is_correct"]][["decision", "reference", "action", "trace"]].head(4)

# %% [markdown]
# ## What may be concluded
#
# - These 40 decisions are made by hand and alike, so the intervals understate how much other games would differ: intervals over games
#   speak of games like those.
# - `gap` is what the trace adds. Read `parse_prompt` beside it: where prompt mode does not parse, the gap measures format.
# - `python -m analyses all` runs every instrument on the same two inputs, and writes a page, `index.html`. What the decisions do not allow
#   is left out with a sentence that says what is missing.
