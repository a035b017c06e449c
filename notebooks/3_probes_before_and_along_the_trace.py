# %% [markdown]
# # 3. Probes before and along the trace
#
# When is the action known? A **probe** is a linear classifier that reads the action from activations. At the boundary it reads what the
# prompt alone gives. Further along the trace it also reads what the trace has said.
#
# A probe's accuracy alone says little, since the prompt's words may give the action away. The number to read is the **gain** over the best
# control that reads no activation.

# %%
import interp

series = interp.CheckpointSeries.discover()
model = series.load(series.steps[-1])
fmt = interp.PromptFormat(model.tokenizer)
decisions = interp.sample_decisions(interp.load_corpus()["test_in_domain"], 60)
prompts = [fmt.prompt(d) for d in decisions]
completions = interp.decode(model, prompts, mode="cot")
completions[0].trace

# %% [markdown]
# ## What is predicted
#
# The label is the **eventual action**: what this checkpoint goes on to do after its own trace, here its verb. The groups are the games.
# Decisions of one game are never in a training fold and a test fold at once.

# %%
import pandas as pd

from interp.environments import find

verb = find("alfworld").classes["verb"]
labels = [verb(c.action) if c.action else "none" for c in completions]
games = [d.episode for d in decisions]
previous = [d.previous or "none" for d in decisions]
pd.Series(labels).value_counts().to_frame("decisions")

# %% [markdown]
# ## At the boundary
#
# The controls are the majority class, the action before, the length of the prompt, and its words (`tfidf`). All are scored on the same
# folds. At the right of the picture the layer itself is chosen inside the training folds (`nested`), which is the honest number.

# %%
acts = interp.capture(model, prompts, sites=["resid_post"], at="boundary")
texts = [fmt.text(p.ids) for p in prompts]
result = interp.probe(
    acts, labels, games, prompts=texts, previous=previous, folds=3, draws=300, metrics=("accuracy",)
)
result.plot()

# %%
table = result.to_frame()
nested = table[(table["layer"] == -1) & (table["predictor"] != "shuffled")]
nested[["predictor", "value", "low", "high", "n"]].round(2)

# %% [markdown]
# The row `gain` is the probe minus the best control, paired by decision. Where its interval includes 0, this probe did not read more than
# the controls do. With 60 decisions, of which three quarters share one verb, the interval is wide: a gain of ten points could be missed.
#
# ## Along the trace
#
# The same probe at five points: the boundary, three points in the trace, and the opened action tag. `capture` takes positions by name, by
# index, or a list for each prompt. Indices count on into the trace that `traces=` gives.

# %%
import numpy as np

inside = interp.capture(model, prompts, at="trace", traces=completions)  # every token of every trace
inside

# %%
tag = interp.capture(model, prompts, at="action_tag", traces=completions)


def after(share):
    """Activations [decision, layer, d_model] at the token that ends this share of each trace."""
    rows = [inside.rows(i)[:, 0] for i in range(len(prompts))]
    return np.stack([row[max(0, round(share * len(row)) - 1)].numpy() for row in rows])


def text_up_to(share):
    """The prompt, and this share of the trace's words."""
    words = [c.trace.split() for c in completions]
    return [text + " ".join(w[: round(share * len(w))]) for text, w in zip(texts, words)]


points = {
    "boundary": (0.0, acts.values[:, 0].numpy()),
    "25% of the trace": (0.25, after(0.25)),
    "50% of the trace": (0.5, after(0.5)),
    "100% of the trace": (1.0, after(1.0)),
    "action tag": (1.1, tag.values[:, 0].numpy()),
}
rows = []
for position, (share, values) in points.items():
    probed = interp.probe(
        values, labels, games, prompts=text_up_to(min(share, 1)), folds=3, draws=300, metrics=("accuracy",)
    ).to_frame()
    for name in ("probe", "gain", "tfidf", "majority"):
        row = probed[(probed["predictor"] == name) & (probed["layer"] == -1)].iloc[0]
        rows.append(row.to_dict() | dict(position=position, share=share, step=2000, label="eventual_verb"))
along = pd.DataFrame(rows)
along.pivot(index="position", columns="predictor", values="value").loc[list(points)].round(2)

# %% [markdown]
# The study has a figure for this table. Its lines carry 95 % intervals over games.

# %%
from interp.plots.probes import along_trace

along_trace(along)

# %% [markdown]
# ## What may be concluded
#
# - A gain at the boundary would mean that the action can be read before the first word of the trace. Here none is found. A null at this size
#   does not show that nothing is there: a probe is linear, reads one token, and had 40 decisions to learn from in each fold.
# - Along the trace the probe's accuracy rises, and at the action tag it reads almost every verb: the next token is the verb's first. So the
#   trace's tokens come to carry the action. Whether they **decide** it, or carry what was settled elsewhere, no probe can say.
# - The control `tfidf` counts words of prompt and trace alike, and may miss what a better reader of the same text would find. A gain over it
#   is a gain over this control.
# - **Decodable is not used.** Whether the action depends on what is read is a question for patching
#   ([notebook 2](2_patching_any_text.ipynb)) and prompt reliance ([notebook 5](5_is_this_trace_post_hoc.ipynb)).
# - `python -m analyses along_trace` measures this at every checkpoint, with more decisions and points.
