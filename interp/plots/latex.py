"""Tables for a paper, in LaTeX with booktabs.

>>> print(masking_table(frame))
"""

from __future__ import annotations

import re

import pandas as pd

from interp.results import claims
from interp.results.condition_rows import cell, paper_table
from interp.results.names import SPLITS
from interp.results.queries import splits_of
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED


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


_KAPPA = r"$\kappa$"
#: Marks of the verdicts.
_MARKS = {SUPPORTED: "s", CONTRADICTED: "c", OPEN: "o"}


def claims_table(frame: pd.DataFrame) -> str:
    r"""What claims (a) to (c) rest on at every checkpoint, as a float over two columns; needs `booktabs`.

    A change has its interval in the line below, and its verdict as a raised letter.

    Args:
        frame: table `claims`.

    Raises:
        ValueError: where it has no line of these claims.
    """
    lines = claims.lines(frame)
    if not lines:
        raise ValueError("the table has no change of claims (a) to (c).")
    steps = sorted({int(step) for step in frame.loc[frame["claim"] != "d", "step"]})
    rows = []
    for split in splits_of(frame):
        rows.append(rf"\multicolumn{{{len(steps) + 1}}}{{l}}{{\emph{{{SPLITS[split]}}}}} \\")
        for line in lines:
            rows += _change_rows(line, claims.of_line(frame, line, split).set_index("step"), steps)
    caption = (
        r"Changes since the base on the same decisions, with 95\,\% intervals. Verdicts on the claims that "
        r"(a) the prompt action improves, (b) the gap does not widen, (c) later checkpoints rely more on the "
        r"prompt: s supported, c contradicted, o open."
    )
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{caption}}}",
            r"\label{tab:claims}",
            rf"\begin{{tabular}}{{l{'c' * len(steps)}}}",
            r"\toprule",
            " & ".join(["step", *map(str, steps)]) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def _change_rows(line: claims.Line, of_line: pd.DataFrame, steps: list[int]) -> list[str]:
    """A line's changes with their verdicts, and its intervals below."""
    values, ends = [f"({line.claim}) {line.title}".replace("κ", _KAPPA).replace("−", "$-$")], [""]
    for step in steps:
        row = of_line.loc[step] if step in of_line.index else None
        change, _, interval = cell(row, signed=True).partition(" ")
        mark = "" if row is None else rf"$^{{\mathrm{{{_MARKS[row['verdict']]}}}}}$"
        values.append(f"{_math(change)}{mark}")
        ends.append(rf"{{\scriptsize {_math(interval)}}}" if interval else "")
    return [" & ".join(values) + r" \\", " & ".join(ends) + r" \\[2pt]"]
