r"""Tables for a paper, in LaTeX with `booktabs` and `array` (and `longtable` for those longer than a page).

>>> print(masking_table(frame))
>>> print(booktabs(frame, "What was read.", "tab:read", Look("icml")))
>>> escape("go to desk_1 & 50 %")
'go to desk\\_\\allowbreak{}1 \\& 50 \\%'

A table takes one column of the page where its longest cells fit side by side, else the whole width, and only
then are its cells broken. No type is smaller than 7 points.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

import pandas as pd

from interp.plots.look import INCHES, Look
from interp.results import claims
from interp.results.condition_rows import cell, paper_table
from interp.results.names import SPLITS
from interp.results.queries import splits_of
from interp.stats.changes import CONTRADICTED, OPEN, SUPPORTED

#: Most lines of a float; a longer table runs over pages.
MOST_LINES = 50
#: Points of the smallest type, of a table's and between columns on either side.
_SMALL, _TYPE, _GAP = 7.0, 8.0, 4.0
#: Type and gaps of tables, the smaller ones where longest words do not fit side by side; and its points.
_TYPES = (("footnotesize", _GAP), ("footnotesize", 2.0), ("scriptsize", 2.0))
_POINTS = {"footnotesize": _TYPE, "scriptsize": _SMALL}
#: Lines of a row on average, above which the smaller ones are taken as well.
_MOST_A_ROW = 2.5
#: Characters that are written otherwise.
_WRITTEN = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_\allowbreak{}", "/": r"/\allowbreak{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$", '"': "''", "`": "`{}",
    "−": "$-$", "–": "--", "—": "---", "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$",
    "→": r"$\to$", "κ": r"$\kappa$", "…": r"\dots{}", "’": "'", "‘": "`", "“": "``", "”": "''",
    "·": r"$\cdot$", "°": r"$^\circ$", "µ": r"$\mu$", "\N{NO-BREAK SPACE}": "~", "\N{WORD JOINER}": "{}",
}  # fmt: skip
#: White space but the no-break space, which holds a number and its interval together.
_SPACE = re.compile(r"[ \t\n\r\f\v]+")
#: An estimate; held together as a whole, or its interval alone.
_ESTIMATE = re.compile(r"(\d) \[([^\[\],]+), ([^\[\]]+)\]")
_HELD = ("\\1\N{NO-BREAK SPACE}[\\2,\N{NO-BREAK SPACE}\\3]", r"\1 [\2," + "\N{NO-BREAK SPACE}" + r"\3]")
#: Letters that LaTeX puts together from a letter and an accent, and those of its own.
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u0327": "c "}
_LETTERS = {
    "ß": r"\ss{}", "ø": r"\o{}", "Ø": r"\O{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "å": r"\aa{}",
}  # fmt: skip


def escape(text: str) -> str:
    r"""A text of a table, a model or a file as LaTeX that shows it, in ASCII: no command of its own is run.

    White space is a space; a character that a plain LaTeX lacks is shown by its number.
    """
    line = _SPACE.sub(" ", str(text)).strip(" ")
    # two hyphens are no dash
    return "".join(_written(each) for each in re.sub("-(?=-)", "-\N{WORD JOINER}", line))


def code(text: str) -> str:
    r"""The same in type of one width, to be broken after every sign and within long words, as a hash is."""
    parts = re.findall(r"[A-Za-z0-9]{1,8}|.", _SPACE.sub(" ", str(text)))
    signs = {each: rf"\symbol{{{ord(each)}}}" for each in '\\{}$&#%_~^<>|"`'}  # which this type has itself
    broken = (" " if part == " " else signs.get(part, escape(part)) + r"\allowbreak{}" for part in parts)
    return rf"\texttt{{{''.join(broken)}}}"


def _written(character: str) -> str:
    if character in _WRITTEN:
        return _WRITTEN[character]
    if character.isascii() and character.isprintable():
        return character
    letter, *accents = list(unicodedata.normalize("NFD", character))
    if letter.isascii() and letter.isalpha() and len(accents) == 1 and accents[0] in _ACCENTS:
        return rf"\{_ACCENTS[accents[0]]}{{{letter}}}"
    return _LETTERS.get(character, f"[U+{ord(character):04X}]")


def booktabs(frame: pd.DataFrame, caption: str, label: str, look: Look = Look()) -> str:
    """A table of texts as LaTeX, sized for a column of the paper or for its page.

    What all rows share is told in the caption, and a column without a value is left out. A table of more than
    MOST_LINES lines is a `longtable`, which needs a page of one column.

    Args:
        frame: cells as plain text, which is escaped; without its index.
        caption: plain text.
        label: for `\\ref`.
        look: of which the venue is read: its widths are fitted.

    Raises:
        ValueError: the table is empty.
    """
    if frame.empty:
        raise ValueError(f"the table {label} has no rows.")
    frame, shared = _without_shared(frame.astype(object).where(frame.notna(), "").astype(str))
    widths = [max(_width(str(name)), *map(_width, frame[name])) for name in frame]
    gaps = 2 * _GAP * (len(widths) - 1)
    column, page = _points(look)
    wide = len(frame) > MOST_LINES or sum(widths) + gaps > column
    room = (page if wide else column) - gaps
    columns, lines, type_, gap = "l" * len(widths), len(frame), *_TYPES[0]
    if sum(widths) > room:
        frame, parts, type_, gap = _smallest_needed(frame, widths, page if wide else column)
        columns = "".join(rf">{{\raggedright\arraybackslash}}p{{{part:.1f}pt}}" for part in parts)
        scale = _POINTS[type_] / _TYPE
        lines = sum(_lines(row, [part / scale for part in parts]) for row in frame.to_numpy())
    long = lines > MOST_LINES
    kind = "longtable" if long else _over_page(look) if wide else "table"
    text = (
        frame.style.hide(axis="index")
        .format(escape)
        .format_index(escape, axis="columns")
        .to_latex(
            environment=kind,
            position=None if long else "t",
            position_float=None if long else "centering",
            hrules=True,
            column_format=f"@{{}}{columns}@{{}}",
            caption=escape(f"{caption} {shared}".strip()),
            label=label,
        )
    )
    apart = "" if columns.startswith("l") else "\\setlength{\\extrarowheight}{1.5pt}\n"
    if long:
        return f"{{\\{type_}\\setlength{{\\tabcolsep}}{{{gap:g}pt}}\n{apart}{text}}}\n"
    return _styled(text, gap, type_).replace(r"\begin{tabular}", rf"{apart}\begin{{tabular}}", 1)


def _points(look: Look) -> tuple[float, float]:
    """Widths of a column and of the page, in points."""
    column, page = INCHES[look.venue]
    return 72 * column, 72 * page


def _over_page(look: Look) -> str:
    """The float that is as wide as the page."""
    column, page = INCHES[look.venue]
    return "table*" if page > column else "table"


def _without_shared(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A table without the columns and the steps that are the same in all rows, and a sentence of those.

    Of a column that has a value in no row nothing is said.
    """
    frame = frame.drop(columns=[name for name in frame if (frame[name] == "–").all()])
    for name in [name for name in frame if str(name).endswith("checkpoint")]:
        at = frame[name].str.extract(r" \((step \d+)\)$")[0]
        if at.nunique() == 1 and at.notna().sum() == frame[name].str.contains("step").sum():
            frame = frame.assign(**{name: frame[name].str.removesuffix(f" ({at.dropna().iloc[0]})")})
            frame = frame.rename(columns={name: f"{name.partition(' ')[0]}: {at.dropna().iloc[0]}"})
    same = [name for name in frame if frame[name].nunique() == 1] if len(frame) > 1 else []
    same = [name for name in same if name in ("n", "clusters", "seeds", "dropped", "own pairs", "split")]
    said = "; ".join(f"{name}: {frame[name].iloc[0]}" for name in same)
    return frame.drop(columns=same), f"In all rows {said}." if said else ""


def _width(text: str, points: float = _TYPE) -> float:
    """About how wide a text is in Computer Modern, a little on the wide side."""
    # a character that is shown by its number is as wide as that
    text = "".join(each if (made := _written(each))[:3] != "[U+" else made for each in text)
    wide, narrow = len(re.findall(r"[A-ZmwMW−+<>=κ%–]", text)), len(re.findall(r"[ ,.:;'|\[\]()ijlt]", text))
    return points * 1.04 * (0.82 * wide + 0.36 * narrow + 0.54 * (len(text) - wide - narrow))


def _smallest_needed(
    frame: pd.DataFrame, widths: list[float], room: float
) -> tuple[pd.DataFrame, list[float], str, float]:
    """A table's cells and columns in the largest type in which its words fit and most rows have two lines.

    Where no type does that, in the largest in which the words fit; else in the smallest.
    """
    made = []
    for type_, gap in _TYPES:
        scale = _POINTS[type_] / _TYPE
        inner = (room - 2 * gap * (len(widths) - 1)) / scale
        cells, parts = _broken(frame, widths, inner)
        fits = sum(parts) <= inner + 0.1
        lines = sum(_lines(row, parts) for row in cells.to_numpy()) / len(cells)
        parts = [scale * part for part in parts]
        made.append((not fits, fits and lines > _MOST_A_ROW, cells, parts, type_, gap))
    return min(made[::-1] if all(one[0] for one in made) else made, key=lambda one: one[:2])[2:]


def _broken(frame: pd.DataFrame, widths: list[float], room: float) -> tuple[pd.DataFrame, list[float]]:
    """The room divided: to each column its longest word, and of the rest what its longest cell asks for.

    Estimates are held together, or only their intervals, whichever makes fewer lines; or nothing, if it must.
    """
    made = []
    for each in (*(frame.replace(_ESTIMATE, how, regex=True) for how in _HELD), frame):
        words = [max(_longest(cell) for cell in (str(name), *each[name])) for name in each]
        more = [width - word for width, word in zip(widths, words, strict=True)]
        rest = max(0.0, room - sum(words)) / max(1.0, sum(more))
        parts = [word + rest * extra for word, extra in zip(words, more, strict=True)]
        lines = sum(_lines(row, parts) for row in each.to_numpy())
        made.append((sum(words) > room, each is frame, lines, each, parts))
    return min(made, key=lambda one: one[:3])[3:]


def _longest(cell: str) -> float:
    """Width of a cell's longest part that stays in one line."""
    return max(_width(word) for word in re.split(r"[ \n]|(?<=[_/-])", cell))


def _lines(row: Sequence[str], parts: Sequence[float]) -> int:
    """How many lines a row takes in columns of these widths."""
    return max(math.ceil(_width(cell) / part) for cell, part in zip(row, parts, strict=True))


def _styled(text: str, gap: float = _GAP, type_: str = "footnotesize") -> str:
    """A float's type and distances, after its `centering`."""
    look = f"\\centering\n\\{type_}\n\\setlength{{\\tabcolsep}}{{{gap:.3g}pt}}"
    look += "\n\\setlength{\\belowcaptionskip}{6pt}"
    return text.replace(r"\centering", look, 1)


def masking_table(frame: pd.DataFrame, look: Look = Look()) -> str:
    """The masking study's conditions and differences as a float over the page.

    A condition's values have their intervals in the line below, so that seven readings fit a page.

    Args:
        frame: table `masking`.
        look: of which the venue is read: its widths are fitted.

    Raises:
        ValueError: as `interp.results.condition_rows.paper_table`.
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
    values = parts.map(lambda cell: escape(cell[0])).rename(
        index=lambda title: escape(title).replace("k = ", "$k$ = ")
    )
    intervals = parts.map(lambda cell: _interval("".join(cell[1:]).strip())).rename(index=lambda _: "")
    lines = pd.concat([values, intervals]).iloc[
        [i for row in range(len(table)) for i in (row, row + len(table))]
    ]
    text = lines.style.to_latex(
        environment=_over_page(look),
        position="t",
        position_float="centering",
        hrules=True,
        column_format="@{}lr" + "c" * (table.shape[1] - 1) + "@{}",
        multicol_align="c",
        caption=caption,
        label="tab:masking",
    )
    widest = _interval_width("".join(each[1:]).strip() for column in parts for each in parts[column])
    needed = 90 + (table.shape[1] - 1) * widest
    text = _styled(text, min(_GAP, max(1.0, (_points(look)[1] - needed) / (2 * table.shape[1]))))
    text = re.sub(r"(scriptsize .*) \\\\$", r"\1 \\\\[2pt]", text, flags=re.MULTILINE)
    if levels < len(table):
        lines = text.splitlines()
        at = lines.index(r"\midrule") + 1 + 2 * levels
        text = "\n".join([*lines[:at], r"\midrule", *lines[at:], ""])
    return text


def _interval_width(texts: Iterable[str]) -> float:
    """Points of the widest interval, as it is written below its value."""
    return max((_width(text, _SMALL) for text in texts), default=0.0)


def _interval(text: str) -> str:
    return rf"{{\scriptsize {escape(text)}}}" if text else ""


#: Marks of the verdicts.
_MARKS = {SUPPORTED: "s", CONTRADICTED: "c", OPEN: "o"}
#: Points of the first column of the claims' table, at least and at most.
_READING = (110.0, 190.0)


def claims_table(frame: pd.DataFrame, look: Look = Look()) -> str:
    """What claims (a) to (c) rest on, as a float over the page: as many checkpoints as fit, the last always.

    A change has its interval in the line below, and its verdict as a raised letter.

    Args:
        frame: table `claims`.
        look: of which the venue is read: its widths are fitted.

    Raises:
        ValueError: where it has no line of these claims.
    """
    lines = claims.lines(frame)
    if not lines:
        raise ValueError("the table has no change of claims (a) to (c).")
    rows_of = [claims.of_line(frame, line, split) for split in splits_of(frame) for line in lines]
    cells = (cell(row, signed=True) for rows in rows_of for _, row in rows.iterrows())
    each = 2 * _GAP + _interval_width(text.partition(" ")[2] for text in cells)
    steps, every = _fitting(frame, _points(look)[1], each)
    rows = []
    for split in splits_of(frame):
        rows.append(rf"\multicolumn{{{len(steps) + 1}}}{{@{{}}l}}{{\emph{{{SPLITS[split]}}}}} \\*")
        for line in lines:
            rows.append(_change_row(line, claims.of_line(frame, line, split).set_index("step"), steps))
    caption = (
        r"Changes since the base on the same decisions, with 95\,\% intervals. Verdicts on the claims that "
        r"(a) the prompt action improves, (b) the gap does not widen, (c) later checkpoints rely more on the "
        r"prompt: s supported, c contradicted, o open."
    )
    if len(steps) < every:
        caption += f" {len(steps)} of {every} checkpoints."
    head = " & ".join(["step", *map(str, steps)]) + r" \\"
    room = _points(look)[1] - len(steps) * each
    columns = (
        rf"@{{}}>{{\raggedright\arraybackslash}}p{{{min(_READING[1], room):.0f}pt}}{'c' * len(steps)}@{{}}"
    )
    return _float(rows, head, columns, caption, "tab:claims", look)


def _fitting(frame: pd.DataFrame, page: float, each: float) -> tuple[list[int], int]:
    """The checkpoints that fit beside one another, evenly spaced to the last, and how many there are.

    Args:
        frame: table `claims`.
        page: its width in points.
        each: width of a checkpoint's column with its gaps.
    """
    steps = sorted({int(step) for step in frame.loc[frame["claim"] != "d", "step"]})
    count = max(1, min(len(steps), int((page - _READING[0]) // each)))
    if count == 1:
        return steps[-1:], len(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)], len(steps)


def _float(rows: list[str], head: str, columns: str, caption: str, label: str, look: Look) -> str:
    """Rows as a float over the page, or over pages where they are more than fit one."""
    body = [r"\toprule", head, r"\midrule"]
    if 2 * len(rows) > MOST_LINES:
        return "\n".join(
            [
                rf"{{\footnotesize\setlength{{\tabcolsep}}{{{_GAP:g}pt}}",
                rf"\begin{{longtable}}{{{columns}}}",
                rf"\caption{{{caption}}} \label{{{label}}} \\",
                *body,
                r"\endfirsthead",
                *body,
                r"\endhead",
                *rows,
                r"\bottomrule",
                r"\end{longtable}}",
                "",
            ]
        )
    kind = _over_page(look)
    return _styled(
        "\n".join(
            [
                rf"\begin{{{kind}}}[t]",
                r"\centering",
                rf"\caption{{{caption}}}",
                rf"\label{{{label}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                *body,
                *(row.replace(r"\\*", r"\\") for row in rows),
                r"\bottomrule",
                r"\end{tabular}",
                rf"\end{{{kind}}}",
                "",
            ]
        )
    )


def _change_row(line: claims.Line, of_line: pd.DataFrame, steps: list[int]) -> str:
    """A line's changes with their verdicts, each with its interval below."""
    cells = [f"({line.claim}) {escape(line.title)}"]
    for step in steps:
        row = of_line.loc[step] if step in of_line.index else None
        change, _, interval = cell(row, signed=True).partition(" ")
        mark = "" if row is None else rf"$^{{\mathrm{{{_MARKS[row['verdict']]}}}}}$"
        below = rf"\\{_interval(interval)}" if interval else ""
        cells.append(rf"\begin{{tabular}}[t]{{@{{}}c@{{}}}}{escape(change)}{mark}{below}\end{{tabular}}")
    return " & ".join(cells) + r" \\[2pt]"
