# %% [markdown]
# # 5. Is this trace post hoc?
#
# A trace is **post hoc** if the action was settled without it, and the trace only comes along. Three instruments ask in different ways:
#
# - **conflicting traces**: another trace is put after the prompt. Does the action follow it, or stay?
# - **early answering**: the agent's own trace is cut off. From where on is the action the final one?
# - **prompt reliance**: two names are exchanged in the prompt. Does the effect reach the action directly, or through the trace?
#
# The agent is the shipped one at its last checkpoint, at 30 decisions.

# %%
import interp

series = interp.CheckpointSeries.discover()
model = series.load(series.steps[-1])
fmt = interp.PromptFormat(model.tokenizer)
decisions = interp.sample_decisions(interp.load_corpus()["test_in_domain"], 30)
prompts = [fmt.prompt(d) for d in decisions]
games = [d.episode for d in decisions]
cot = interp.decode(model, prompts, mode="cot")
at_once = interp.decode(model, prompts, mode="prompt")

# %% [markdown]
# ## Conflicting traces
#
# `self_splice` puts the agent's own trace back. It must reproduce the action every time, or the other rows do not count. `other_state` is the
# trace of another game's decision, without the sentence that names its action. `filler` is full stops of the own trace's length, and `empty`
# is no words at all.

# %%
from interp.plots.results import plot

outcomes = interp.conflict(
    model, prompts, cot, inserted_traces=("self_splice", "other_state", "filler", "empty")
)
plot(outcomes, groups=games)

# %% [markdown]
# The warning counts actions that could not be read. They are neither kept nor followed: an empty trace is a place where this agent never was
# in training. This is why **following another trace** says more than changing without one.
#
# ## Early answering
#
# The trace is cut after some of its sentences, and the agent has to act. The control replaces each part by as many full stops. An area of 0
# means that the action does not need the trace.

# %%
early = interp.early_answers(model, prompts, cot, points=4, choices=0)
early.plot(groups=games)

# %% [markdown]
# Most of these actions appear only with the last sentence, which often names the action. This is what early answering shows of a trace that
# ends in its conclusion: the words before it may matter for that sentence, and do not settle the action by themselves.
#
# ## Prompt reliance
#
# In each pair the twin prompt has two names exchanged, so that another action is right. The action reads prompt and trace through their keys
# and values. Exchanging the prompt's alone gives the **direct** effect, exchanging the trace's alone the effect **via the trace**.
# Prompt reliance is direct / (direct + via CoT).

# %%
clean, corrupt, dropped = interp.make_pairs(fmt, decisions, n=12)
reliance = interp.prompt_reliance(model, clean, corrupt)
reliance.plot(groups=[p.decision.episode for p in clean])

# %% [markdown]
# Traces and actions are the expert's here, and fixed. Prompt reliance speaks of two exchanged names, not of everything that the prompt says.
#
# ## Each decision, side by side
#
# One row for each decision. `prompt_action` says whether the action is the same without a trace, `follows` whether it becomes the one that
# another state's trace argues for, `area` how much of the own trace it needs (`filler` is the control), `reliance` the direct share of the
# prompt's effect where the decision has a pair.
#
# The last column is a rule of this notebook, not of the toolkit:
#
# - **trace decides**: the action follows another trace, and is a different one without a trace;
# - **trace not needed**: the same action without a trace, and under another trace;
# - **mixed**: anything else.

# %%
import pandas as pd

other = outcomes["other_state"].to_frame().set_index("decision")
area = pd.Series(early.area(), early.index)
control = pd.Series(early.area("filler"), early.index)
pairs = reliance.to_frame()
share = {clean[row.pair].decision.id: row.direct / (row.direct + row.via_cot) for row in pairs.itertuples()}

rows = []
for i, decision in enumerate(decisions):
    if i not in other.index or i not in early.index:
        continue  # no trace, no action, or no other state's trace to insert
    same, follows, keeps = at_once[i].action == cot[i].action, other["follow"][i], other["keep"][i]
    rule = "trace decides" if follows and not same else "trace not needed" if same and keeps else "mixed"
    rows.append(
        dict(
            decision=i,
            action=cot[i].action,
            prompt_action="same" if same else "other",
            follows=bool(follows),
            area=area[i],
            filler=control[i],
            reliance=share.get(decision.id),
            rule=rule,
        )
    )
diagnosis = pd.DataFrame(rows)
diagnosis.head(12).round(2)

# %%
from interp.stats import cluster_bootstrap

summary = []
for rule in ("trace decides", "mixed", "trace not needed"):
    estimate = cluster_bootstrap(diagnosis["rule"] == rule, [games[i] for i in diagnosis["decision"]])
    summary.append({"rule": rule, **estimate.row()})
pd.DataFrame(summary).round(2)

# %% [markdown]
# ## One decision in detail
#
# The first decision whose action does not need its trace, if there is one, else the first that is mixed: what was inserted, and what was done.

# %%
order = {"trace not needed": 0, "mixed": 1, "trace decides": 2}
chosen = int(
    diagnosis.sort_values("rule", key=lambda column: column.map(order), kind="stable")["decision"].iloc[0]
)
print("trace:", cot[chosen].trace)
print("reference:", decisions[chosen].reference)
every = pd.concat([outcome.to_frame() for outcome in outcomes.values()])
every[every["decision"] == chosen][["inserted_trace", "own", "argued", "action", "keep", "follow"]]

# %% [markdown]
# ## What may be concluded
#
# - On most of these decisions this agent's trace decides: it follows another trace, and acts otherwise without one. The agent is very small
#   and its expert's traces name what to act on, so this is expected here. Larger models can differ.
# - A conflicting trace shows what a trace **can** do. The agent's own traces agree with its prompt, and may do less.
# - "mixed" is no verdict. The same action in both modes can mean that the prompt settled it, or that it is the obvious one. A single
#   decision is an illustration: read the shares and their intervals.
# - How far each instrument can be trusted was measured on agents whose answer is known ([calibration](../docs/calibration.md)).
# - `python -m analyses all` measures this at every checkpoint. `interp.view(run)` then shows one decision after the other.
