"""Decisions of a run as one tidy table, `decisions.parquet`: a row for each decision, checkpoint and mode.

>>> frame, made = read_decisions("runs/quick/tables")
>>> wrong = frame[(frame["mode"] == "cot") & ~frame["is_correct"]]
>>> wrong.groupby("checkpoint").size()
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from interp.results.names import NO_TRACES
from interp.results.tables import inside, read_sealed, write_sealed

NAME = "decisions"
_TEXT, _TEXTS = pa.string(), pa.list_(pa.string())
_WHERE = [("span", _TEXT), ("start", pa.int64()), ("end", pa.int64())]
_CONFLICT = [
    ("inserted_trace", _TEXT),
    ("inserted", _TEXT),
    ("argued", _TEXT),
    ("action", _TEXT),
    ("keep", pa.bool_()),
    ("follow", pa.bool_()),
    ("leaked", pa.bool_()),
    ("logp_trace", pa.float64()),
]
_PROBE = [("label", _TEXT), ("truth", _TEXT), ("predicted", _TEXTS)]
_EFFECT = pa.list_(pa.float64())
_LENS = [("whose", _TEXT), ("token", _TEXT), ("rank", pa.list_(pa.int64())), ("probability", _EFFECT)]
_ESTIMATED = [
    ("site", _TEXT),
    ("direction", _TEXT),
    ("position", pa.int64()),
    ("token", _TEXT),
    ("effect", _EFFECT),
]
_PATCHED = [
    ("at", _TEXT),
    ("site", _TEXT),
    ("direction", _TEXT),
    ("metric", _TEXT),
    ("effect", _EFFECT),
]
#: Column -> its type, and what it holds. What no analysis of the run kept is null.
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "decision": (_TEXT, "its id, `EPISODE#STEP`"),
    "episode": (_TEXT, "its episode"),
    "step": (pa.int64(), "its step in the episode"),
    "split": (_TEXT, "in_domain or out_of_domain"),
    "task": (_TEXT, "the task in the prompt's words"),
    "task_type": (_TEXT, "the kind of task"),
    "checkpoint": (pa.int64(), "training step"),
    "mode": (_TEXT, f"prompt, cot, empty_think, or {NO_TRACES} (`prompt` still has them)"),
    "action": (_TEXT, "the decoded action; null where it did not parse"),
    "parsed": (pa.bool_(), "whether it parsed"),
    "is_correct": (pa.bool_(), "whether it is right; one that did not parse is wrong"),
    "reference": (_TEXT, "the recorded action"),
    "n_admissible": (pa.int64(), "actions that the decision lists"),
    "trace": (_TEXT, "the decoded trace (cot)"),
    "completion": (_TEXT, "all that was decoded, tags included"),
    "actions_differ": (pa.bool_(), "whether the prompt and the CoT action differ, or one does not parse"),
    "flipped": (pa.bool_(), "whether a trace that argues for another action changed the CoT action"),
    "diagnosis": (_TEXT, "what the CoT action rests on: post_hoc, overridable, trace_decided or neither"),
    "choice": (_TEXT, "forced choice, by summed log-probability"),
    "choice_per_token": (_TEXT, "forced choice, by log-probability per token"),
    "candidates": (_TEXTS, "what forced choice is among, the likeliest first"),
    "candidates_logp": (pa.list_(pa.float64()), "their summed log-probabilities, in nats"),
    "reference_rank": (pa.int64(), "rank of the recorded action among the candidates (1: likeliest)"),
    "action_rank": (pa.int64(), "rank of the decoded action among the candidates"),
    "area_action": (pa.float64(), "early answering: 0, the action does not need the trace, to 1 (cot)"),
    "area_distribution": (pa.float64(), "the same on the distribution over candidates"),
    "area_filler": (pa.float64(), "the same after full stops of equal length"),
    "same_0": (pa.bool_(), "the same action without the trace"),
    "same_25": (pa.bool_(), "after a quarter of it"),
    "same_50": (pa.bool_(), "after half of it"),
    "same_75": (pa.bool_(), "after three quarters of it"),
    "twin": (_TEXT, "the action that is right for its twin, two names exchanged"),
    "direct": (pa.float64(), "effect of the twin's prompt past the trace, in nats (cot)"),
    "via_cot": (pa.float64(), "effect of the twin's trace, in nats"),
    "total": (pa.float64(), "effect of both, in nats"),
    "via_text": (pa.float64(), "effect of the trace's words, in nats"),
    "via_state": (pa.float64(), "effect of the trace's hidden state, in nats"),
    "conflicts": (pa.list_(pa.struct(_CONFLICT)), "inserted traces and what was done after each (cot)"),
    "probes": (pa.list_(pa.struct(_PROBE)), "held-out predictions of the boundary probes by layer (cot)"),
    "lens": (
        pa.list_(pa.struct(_LENS)),
        "logit lens at the boundary by layer: rank and probability of the token of the eventual and of the "
        "recorded action that rules out the most other actions (cot)",
    ),
    "patching": (pa.list_(pa.struct(_PATCHED)), "effects of patching by layer, for each place"),
    "attribution": (
        pa.list_(pa.struct(_ESTIMATED)),
        "first-order estimates of patching by layer, at the tokens where they are largest",
    ),
    "prompt": (_TEXT, "the prompt up to the boundary"),
    "spans": (pa.list_(pa.struct(_WHERE)), "its spans, in characters"),
}
_SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])
#: What a nullable column is in pandas.
_NULLABLE = {pa.bool_(): pd.BooleanDtype(), pa.int64(): pd.Int64Dtype()}


def write_decisions(folder: str | Path, rows: Sequence[dict], provenance: dict) -> Path:
    """Write rows to `<folder>/decisions.parquet` and their sealed provenance beside it; returns the path.

    Args:
        rows: columns of COLUMNS by name; a column that a row lacks is null.
    """
    frame = pa.Table.from_pylist(list(rows), _SCHEMA).to_pandas(types_mapper=_NULLABLE.get)
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(frame, _SCHEMA, preserve_index=False), content, compression="zstd")
    return write_sealed(inside(folder, f"{NAME}.parquet"), content.getvalue(), provenance, len(frame))


def read_decisions(folder: str | Path) -> tuple[pd.DataFrame, dict]:
    """The table and its provenance; raises as `interp.results.tables.read_sealed`."""
    content, provenance = read_sealed(inside(folder, f"{NAME}.parquet"))
    return pd.read_parquet(io.BytesIO(content)), provenance
