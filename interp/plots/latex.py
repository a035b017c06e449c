"""Tables for a paper, in LaTeX with booktabs.

>>> print(masking_table(frame))
"""

from __future__ import annotations

import re

import pandas as pd

from interp.results.condition_rows import paper_table


def masking_table(frame: pd.DataFrame) -> str:
    r"""The masking study's conditions and differences as a float over two columns; needs `booktabs`.

    A condition's values have their intervals in the line below, so that seven readings fit a page of two
    columns.

    frame: table `masking`. Raises what `interp.results.condition_rows.paper_table` raises.
    """
    table = paper_table(frame).rename(columns={"in-domain": "in", "out-of-domain": "out"}, level=1)
    caption = (
        r"Training conditions at the last checkpoint: $k$ is the share of examples "
        r"whose action tokens are unsupervised. "
        r"In, out: on decisions in and out of domain. "
        r"Brackets: 95\,\% intervals over games and seeds, not corrected for their number."
    )
    levels = sum(" − " not in title for title in table.index)
    parts = table.map(lambda cell: cell.partition(" ["))
    values = parts.map(lambda cell: _math(cell[0])).rename(
        index=lambda title: _math(title.replace("k = ", "$k$ = "))
    )
    intervals = parts.map(
        lambda cell: rf"{{\scriptsize {_math(''.join(cell[1:]).strip())}}}" if cell[1] else ""
    ).rename(index=lambda _: "")
    lines = pd.concat([values, intervals]).iloc[
        [i for row in range(len(table)) for i in (row, row + len(table))]
    ]
    text = lines.style.to_latex(
        environment="table*",
        position="t",
        position_float="centering",
        hrules=True,
        column_format="lr" + "c" * (table.shape[1] - 1),
        multicol_align="c",
        caption=caption,
        label="tab:masking",
    )
    text = text.replace(
        r"\centering",
        "\\centering\n\\footnotesize\n\\setlength{\\tabcolsep}{4pt}\n\\setlength{\\belowcaptionskip}{6pt}",
        1,
    )
    text = re.sub(r"(scriptsize .*) \\\\$", r"\1 \\\\[2pt]", text, flags=re.MULTILINE)
    if levels < len(table):
        lines = text.splitlines()
        at = lines.index(r"\midrule") + 1 + 2 * levels
        text = "\n".join([*lines[:at], r"\midrule", *lines[at:], ""])
    return text


def _math(cell: str) -> str:
    return cell.replace("−", "$-$").replace("+", "$+$").replace("–", "--")
