"""How wide a text is, without a browser: by the widths of Arial's characters, to which other type is close.

>>> round(text_width("prompt reliance"))
98
>>> wrapped("difference to the random mask", 110)
['difference to the', 'random mask']
"""

from __future__ import annotations

import re

from interp.plots.look import SMALL, current

#: Thousandths of the type's size, by characters of one width; other characters are as wide as digits.
_WIDTHS = {
    "ijl'|": 222,
    "fIt.,:;!/[]\\ \u00a0": 278,
    '()-r`"*': 340,
    "cksvxyzJ": 500,
    "ABEKPSVXY": 667,
    "CDHNRUw": 722,
    "GOQ": 778,
    "mM": 833,
    "%": 889,
    "W@": 980,
}
_OF = {character: width for characters, width in _WIDTHS.items() for character in characters}
_OTHER, _BREAK = 570, "<br>"
#: Signs that Computer Modern has wider.
_SIGNS = re.compile("[=+−<>]")


def text_width(text: str, size: float = SMALL) -> float:
    """About how many units a text is wide, or its longest line."""
    lines = text.replace("<b>", "").replace("</b>", "").replace("&lt;", "<").split(_BREAK)
    more = 210 if current().font == "tex" else 0
    wide = (sum(_OF.get(each, _OTHER) for each in line) + more * len(_SIGNS.findall(line)) for line in lines)
    return max(wide) * size / 1000


def wrapped(text: str, room: float, size: float = SMALL) -> list[str]:
    """A text in lines of at most this many units, its own breaks kept; a longer word has a line."""
    lines: list[str] = []
    for part in text.split(_BREAK):
        line = ""
        for word in part.split(" "):
            longer = f"{line} {word}" if line else word
            if line and text_width(longer, size) > room:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
