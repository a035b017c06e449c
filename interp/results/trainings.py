"""The tables `seeds` and `conditions`: readings of trainings of one recipe, of each and over all; of several.

>>> frame, _ = read_table("runs/seeds/tables", "seeds")
>>> frame[(frame["seed"] == MEAN) & (frame["quantity"] == "change")]
"""

from __future__ import annotations

from interp.results.tables import ESTIMATE_COLUMNS

#: What the rows of the mean over trainings have in the column `seed`.
MEAN = "mean"
#: Columns of the table; `quantity` is `level`, or `change` since the base, and `interval` what it is over.
COLUMNS = (
    "seed",
    "step",
    "split",
    "claim",
    "statistic",
    "readout",
    "quantity",
    "margin",
    "verdict",
    "interval",
    "seeds",
    "before",
    "after",
    "low_90",
    "high_90",
    *ESTIMATE_COLUMNS,
)
