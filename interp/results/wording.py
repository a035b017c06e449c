"""Words that figures, reports and messages share.

>>> listed(["a", "b", "c"])
'a, b and c'
>>> visible("a line\\n")
'a line⏎'
"""

from __future__ import annotations

from collections.abc import Iterable

#: Splits inside a sentence.
WHERE = {"in_domain": "in-domain", "out_of_domain": "out-of-domain"}


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    words = [word for word in words if word]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def visible(text: str) -> str:
    """A token's text in one line: line ends and tabs as signs, what cannot be seen as its escape."""
    signs = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    shown = (signs.get(c, c if c.isprintable() else ascii(c)[1:-1]) for c in text)
    return "".join(shown)


def sentence(text: str) -> str:
    """The text with a capital and a full stop; nothing of nothing."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""
