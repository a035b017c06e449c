"""Tables for a paper, in LaTeX with booktabs.

>>> print(masking_table(frame))
"""

from __future__ import annotations

import pandas as pd

from interp.arm_rows import paper_table


def masking_table(frame: pd.DataFrame) -> str:
    r"""The masking study's arms and the claimed arm's differences, as a float over two columns; its preamble needs `\usepackage{booktabs}`.

    frame: table `masking`. Raises what `interp.arm_rows.paper_table` raises.
    """
    table = paper_table(frame)
    caption = (r"Arms of training at the last checkpoint: $k$ is the share of examples whose action tokens are unsupervised. "
               r"Brackets: 95\,\% intervals over games and seeds, not corrected for their number.")
    text = table.map(_math).rename(index=lambda title: title.replace("k = ", "$k$ = ")).style.to_latex(
        environment="table*", position="t", position_float="centering", hrules=True, column_format="lr" + "c" * (table.shape[1] - 1),
        multicol_align="c", caption=caption, label="tab:masking")
    levels = sum(" less " not in title for title in table.index)
    if levels < len(table):
        lines = text.splitlines()
        at = lines.index(r"\midrule") + 1 + levels
        text = "\n".join([*lines[:at], r"\midrule", *lines[at:], ""])
    return text.replace(r"\centering", "\\centering\n\\footnotesize\n\\setlength{\\tabcolsep}{4pt}", 1)


def _math(cell: str) -> str:
    return cell.replace("−", "$-$").replace("+", "$+$").replace("–", "--")
