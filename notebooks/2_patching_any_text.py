# %% [markdown]
# # 2. Patching any text
#
# Nothing in this notebook needs an agent, a chat template or a study: a model, two texts and two answers do. The model is the shipped
# agent, so that it runs offline. With `interp.HookedModel.from_pretrained("gpt2")` the same cells work on the indirect-object task:
#
# ```python
# clean = "When Mary and John went to the shop, John gave a drink to"
# corrupt = "When Mary and John went to the shop, Mary gave a drink to"
# interp.patch(model, clean, corrupt, answers=(" Mary", " John"), at="all")
# ```

# %%
import interp

series = interp.CheckpointSeries.discover()
model = series.load(series.steps[-1])
model

# %% [markdown]
# ## Two texts that differ in one word
#
# The agent begins its traces with the thing that it is after. Which one does it name? The texts differ in a single token, and so do the
# answers. An answer's leading space matters, as it does for the tokenizer.

# %%
text = "<|user|>You see a drawer 1. Your task is to: put a {} in drawer.<|end|><|agent|><think>Goal:"
clean, corrupt = text.format("mug"), text.format("pen")
answers = (" mug", " pen")

print(len(model.tokens(clean)), len(model.tokens(corrupt)))
print(repr(model.generate(clean, max_new_tokens=8)))
print(repr(model.generate(corrupt, max_new_tokens=8)))

# %% [markdown]
# ## Patch every layer and token
#
# **Denoising** runs the corrupt text, replaces one activation with the clean run's, and asks how much of the difference
# log p(clean answer) − log p(corrupt answer) comes back: 0 is nothing, 1 is all of it. **Noising** does the reverse. Both are exact, and the
# whole grid costs about as much as reading the two texts.

# %%
sweep = interp.patch(model, clean, corrupt, answers=answers, sites=["resid_pre"], at="all")
sweep.plot()

# %% [markdown]
# Every cell is also a row of a table. Here are the five places where a single state carries most:

# %%
sweep.to_frame().nlargest(5, "denoise")[["layer", "position", "token", "denoise", "noise"]].round(3)

# %% [markdown]
# In the first layers the answer's state is at the word itself. Deeper, it has been copied to the last token, from which the answer is read.
# One pair is an illustration. It shows where **this** difference is carried, between **these** two texts.
#
# ## Several pairs
#
# Lists of texts are pairs too, each with its own answers. The bands are 95 % intervals over the five pairs, and five are few.

# %%
things = ["mug", "pen", "book", "apple", "bowl", "candle"]
one_token = [
    thing for thing in things if len(model.tokenizer.encode(" " + thing, add_special_tokens=False)) == 1
]
first, second = one_token[:-1], one_token[1:]
several = interp.patch(
    model,
    [text.format(thing) for thing in first],
    [text.format(thing) for thing in second],
    answers=[(f" {a}", f" {b}") for a, b in zip(first, second)],
    sites=["resid_pre", "attn_out", "mlp_out"],
    at="boundary",
)
several.plot()

# %% [markdown]
# At the last token `resid_pre` carries more with each layer: it is the sum of all that earlier layers wrote there. `attn_out` is what one
# layer's attention writes, and here it is attention that brings the answer from the word to the last token. Effects of single parts need
# not add up to the whole, since later layers read them together.
#
# ## A screen: attribution patching
#
# `attribute` estimates the same grid to first order, from one pass forward and one back for each text. It is cheap where the model is large
# and the texts are long. It is only as good as its agreement with exact patching, so measure that first. Here, for each pair:

# %%
import numpy as np
import pandas as pd

pairs = dict(
    clean=[text.format(thing) for thing in first],
    corrupt=[text.format(thing) for thing in second],
    answers=[(f" {a}", f" {b}") for a, b in zip(first, second)],
)
exact = interp.patch(model, **pairs, at="all").denoise
screen = interp.attribute(model, **pairs).denoise
agreement = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(exact, screen)]
pd.DataFrame({"clean": first, "corrupt": second, "correlation": np.round(agreement, 2)})

# %% [markdown]
# For some pairs the estimate ranks the cells well, for others it is useless or even reversed: exchanging a word is a large change, and
# a gradient speaks of small ones. On this model no screen is needed, since exact patching takes a fraction of a second.
#
# ## What each layer would say next: the logit lens
#
# `lens` reads the residual stream after each layer through the model's last norm and unembedding. A layer in which an answer is improbable
# may still know it, in directions that the unembedding does not read.

# %%
interp.lens(model, clean, answers=answers).plot()

# %% [markdown]
# ## Which heads matter? Ablation
#
# `ablate` replaces an activation (here each head's output at the last token) by its mean over the six texts, and reads how far the
# distribution of the next token moves: KL in nats, 0 where nothing changes. Ablations measure what a head does that no other head makes up
# for, on these texts. The mean over six texts is a coarse one.

# %%
ablation = interp.ablate(
    model, [text.format(thing) for thing in one_token], sites=["z"], how="mean", at="boundary"
)
ablation.plot()

# %% [markdown]
# ## Texts of different lengths
#
# Positions correspond token for token. Where they cannot, the error shows both tokenisations. `align=` says which position of the clean text
# is which of the corrupt one; only those are patched.

# %%
import textwrap

longer = text.format("pen").replace("a drawer 1", "a drawer 1, a shelf 1")
try:
    interp.patch(model, clean, longer, answers=answers)
except ValueError as error:
    print(textwrap.fill(str(error), 110))

n, m = len(model.tokens(clean)), len(model.tokens(longer))
from_the_end = {n - i: m - i for i in range(1, 12)}
aligned = interp.patch(model, clean, longer, answers=answers, at="all", align=from_the_end)
print(aligned)
aligned.to_frame().nlargest(3, "denoise")[["layer", "position", "token", "denoise", "noise"]].round(3)

# %% [markdown]
# ## An intervention of your own
#
# A hook is a function of an activation [row, token, d_model] and of where its tokens are. It runs in every pass of a generation. Here
# the state of the word "mug" after the embedding is replaced by that of "pen", and the agent names the pen.

# %%
place = next(i for i, (a, b) in enumerate(zip(model.tokens(clean), model.tokens(corrupt))) if a != b)
pen = interp.capture(model, corrupt, ["resid_pre"], at=place, layers=[0]).values[0, 0, 0]


def as_pen(resid, where):
    return resid.where((where.position != place)[..., None], pen)


print(repr(model.generate(clean, max_new_tokens=8)))
print(repr(model.generate(clean, max_new_tokens=8, hooks={"blocks.0.hook_resid_pre": as_pen})))

# %% [markdown]
# ## What may be concluded
#
# - Denoising says that a state is **sufficient** to restore the answer in the corrupt run; noising says that it is **needed** in the clean one.
#   They can differ.
# - Both are about a difference between two texts. What the texts share cannot show.
# - A place where nothing happens may be one of several copies: taking one away changes little while others remain.
