"""The readings that sum up a study: the rows of every table that stand beside another study's.

>>> headline(study.tables)      # step, split, metric, and the estimate
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from interp.results.queries import label_of, pick
from interp.results.tables import ESTIMATE_COLUMNS

#: Readings in reading order: their names in a report's tables.
READINGS = {
    "choice_cot_sum": "CoT action by forced choice",
    "choice_prompt_sum": "prompt action by forced choice",
    "choice_gap_sum": "gap by forced choice",
    "acc_cot": "CoT action agrees with the expert",
    "acc_prompt": "prompt action agrees with the expert",
    "gap": "gap between the two",
    "success_cot": "games won with the trace",
    "success_prompt": "games won without the trace",
    "prompt_reliance": "prompt reliance",
    "follow": "another state's trace is followed",
    "keep": "own action kept against it",
    "probe_gain": "boundary probe's gain over controls",
}
#: Those of table `behaviour`, with both modes' parse rates.
BEHAVIOUR = (*list(READINGS)[:6], "parse_cot", "parse_prompt")
_COLUMNS = ["step", "split", "metric", *ESTIMATE_COLUMNS]


def headline(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The rows that sum up a study, of the tables it has; ALFWorld's own games where no others were played.

    Args:
        tables: frame per name, as `interp.results.tables.read_table` reads them.

    Returns:
        Columns step, split, metric (READINGS, and both modes' parse rates) and the estimate.
    """
    parts = [pd.DataFrame(columns=_COLUMNS)]
    if (table := tables.get("behaviour")) is not None:
        parts.append(table[table["metric"].isin(BEHAVIOUR)])
    if (table := tables.get("online", tables.get("online_official"))) is not None:
        parts.append(pick(table, metric="success").assign(metric=lambda t: "success_" + t["mode"]))
    if (table := tables.get("reliance")) is not None:
        parts.append(pick(table, metric="prompt_reliance"))
    if (table := tables.get("conflict")) is not None:
        parts.append(
            pick(table, inserted_trace="other_state")[lambda t: t["metric"].isin(["keep", "follow"])]
        )
    if (table := tables.get("probes")) is not None and len(table):
        parts.append(
            pick(table, label=label_of(table), layer=-1, predictor="gain", metric="accuracy").assign(
                metric="probe_gain"
            )
        )
    return pd.concat([part[_COLUMNS] for part in parts if len(part)] or parts, ignore_index=True)
