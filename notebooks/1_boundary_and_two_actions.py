# %% [markdown]
# # 1. The boundary and the two actions
#
# The shipped agent is a small language model that acts in a text game. It writes a **trace** (its reasoning) and then an **action**.
# Everything here runs offline, on the eight checkpoints of its training that come with the repository.
#
# The first cell is the README's example. The cells after it look at its parts.

# %%
import interp

series = interp.CheckpointSeries.discover()                # the shipped series, or the folder of your trainer's checkpoint-N
model = series.load(series.steps[-1])                      # a Hugging Face model with hooks
fmt = interp.PromptFormat(model.tokenizer, style="tags")   # <think> trace </think> <action> action </action>
decisions = interp.sample_decisions(interp.load_corpus()["test_in_domain"], 40)
prompts = [fmt.prompt(d) for d in decisions]               # token ids, a span for each token, the prompt boundary

actions = interp.decode(model, prompts, mode="cot")        # or mode="prompt": the action without a trace
acts = interp.capture(model, prompts, sites=["resid_post"], at="boundary")          # [decision, site, layer, d_model]
verbs = [a.action.split()[0] if a.action else "none" for a in actions]
print(interp.probe(acts, verbs, groups=[d.episode for d in decisions]).to_frame())     # with its controls and intervals

clean, corrupt, dropped = interp.make_pairs(fmt, decisions, n=8)                    # the same decision with two names swapped
sweep = interp.patch(model, clean, corrupt, sites=["resid_pre"], at="boundary")     # .denoise .noise: [pair, site, layer]
print(interp.prompt_reliance(model, clean, corrupt).prompt_reliance)                # direct / (direct + via-CoT)

series.swap(model, series.steps[0])                        # another checkpoint's weights, in the same module

# %% [markdown]
# ## A decision as the model reads it
#
# A **decision** is a moment at which the agent must act. Its **prompt** is everything before the trace: the task, the history of earlier
# turns, the last observation. Each token belongs to one **span**, shown in colour. The **boundary** is the last token of the prompt
# (outlined). Nothing of the trace has been written there, so whatever the model knows at the boundary, it knows from the prompt alone.
#
# There are two ways to go on from the boundary. Mode `cot` opens a trace. Mode `prompt` opens the action at once.

# %%
interp.show(prompts[0])

# %% [markdown]
# ## Two actions for each decision
#
# We go back to the last checkpoint and act in both modes, at the same decisions. The **CoT action** follows the agent's own trace. The
# **prompt action** has no trace. The **reference action** is what a recorded expert did.

# %%
import pandas as pd

pd.set_option("display.max_colwidth", None)
series.swap(model, series.steps[-1])
at_once = interp.decode(model, prompts[:6], mode="prompt")
pd.DataFrame(
    {
        "reference": [d.reference for d in decisions[:6]],
        "CoT action": [a.action for a in actions[:6]],
        "prompt action": [a.action for a in at_once],
        "trace": [a.trace for a in actions[:6]],
    }
)

# %% [markdown]
# ## Which of the two did training improve?
#
# The same 20 decisions at three checkpoints. `parsed` is the share of completions in which an action could be read. `value` is the share of
# actions that agree with the expert's, with a 95 % interval. Intervals resample episodes, since decisions of one game are not independent.

# %%
from interp.stats import cluster_bootstrap

few = decisions[:20]
rows = []
for step in (0, 350, 2000):
    series.swap(model, step)
    for mode in ("cot", "prompt"):
        completions = interp.decode(model, prompts[:20], mode=mode)
        correct = [c.action == d.reference for c, d in zip(completions, few)]
        agreement = cluster_bootstrap(correct, [d.episode for d in few])
        parsed = sum(c.action is not None for c in completions) / len(few)
        rows.append({"step": step, "mode": mode, "parsed": parsed, **agreement.row()})
pd.DataFrame(rows).round(2)

# %% [markdown]
# ## What may be concluded
#
# - Agreement with the expert rises with the trace. Without it the change is smaller than 20 decisions can show: look at how wide the
#   intervals are. The study of all checkpoints on 400 decisions is in the [results](../docs/results/shipped.md).
# - The gain is visible in the CoT action. This does **not** yet say that the trace decides. The trace could come along with a decision that
#   the prompt settled. [Notebook 5](5_is_this_trace_post_hoc.ipynb) puts that to the test.
# - An action that differs from the expert's counts as wrong, even where it would have worked.
# - An action tag right at the boundary is unusual for a model that was trained to write traces. Where `parsed` is low in mode `prompt`,
#   low agreement measures format, not knowledge.
