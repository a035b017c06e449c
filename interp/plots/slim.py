"""SVG without what no reader sees: the same picture in less than half the bytes.

>>> svg = b'<svg xmlns="http://www.w3.org/2000/svg"><g/><path d="M0,0.12345h9" style="opacity:1"/></svg>'
>>> slim(svg)
b'<svg xmlns="http://www.w3.org/2000/svg"><path d="M0,0.12h9"/></svg>'

plotly writes every mark's style in full beside it, groups that stay empty, and names for its own scripts,
which run in interactive pages alone. scour, the well-kept tool for this, leaves files 1.4 times as large and
takes seconds for each.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
#: What holds without being said, and is not inherited from a group around it.
_DEFAULTS = ("opacity:1", "vector-effect:none")
_COLOUR = re.compile(r"rgb\((\d+), (\d+), (\d+)\)")
_LONG_NUMBER = re.compile(r"\d*\.\d{3,}")
_LENGTHS = ("d", "transform", "x", "y", "width", "height", "points")
_REFERRING = ("clip-path", "mask", "fill", "stroke", "style", f"{_XLINK}href", "href")
_REFERENCE = re.compile(r"#([\w.-]+)")


def slim(content: bytes) -> bytes:
    """Drop from an SVG what does not change the picture.

    These go: empty groups, groups without attributes around their members, paths without a line, ids that
    nothing refers to, classes, `data-` attributes and digits after a hundredth of a pixel. Styles that
    several elements share become classes.

    Args:
        content: an SVG file that plotly drew.

    Returns:
        The file, the same bytes from the same content.
    """
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", _XLINK[1:-1])
    root = ElementTree.fromstring(content)
    root.attrib.pop("class", None)
    _prune(root, _referenced(root))
    _number_ids(root)
    for element in root.iter():
        _shorten(element)
    _share_styles(root)
    return ElementTree.tostring(root, encoding="unicode").replace(" />", "/>").encode()


def _referenced(root: ElementTree.Element) -> set[str]:
    """The ids that an element refers to."""
    values = [v for element in root.iter() for name, v in element.attrib.items() if name in _REFERRING]
    return {name for value in values for name in _REFERENCE.findall(value)}


def _prune(parent: ElementTree.Element, referenced: set[str]) -> None:
    """Remove what draws nothing below an element, and put the members of a bare group in its place."""
    members = []
    for child in parent:
        _prune(child, referenced)
        kind = child.tag.removeprefix(_SVG)
        for name in [name for name in child.attrib if name == "class" or name.startswith("data-")]:
            del child.attrib[name]
        if child.get("id") not in referenced:
            child.attrib.pop("id", None)
        empty = not len(child) and not (child.text or "").strip()
        if kind in ("g", "defs") and empty:
            continue
        if kind == "path" and not child.get("d"):
            continue
        if kind == "clipPath" and "id" not in child.attrib:
            continue
        members += list(child) if kind == "g" and not child.attrib else [child]
    parent[:] = members


def _shorten(element: ElementTree.Element) -> None:
    """Write an element's lengths to a hundredth of a pixel, and its style without what holds anyway."""
    for name in _LENGTHS:
        if name in element.attrib:
            element.set(name, _LONG_NUMBER.sub(_rounded, element.get(name, "")))
    parts = [re.sub(r"\s*:\s*", ":", part.strip()) for part in element.attrib.pop("style", "").split(";")]
    style = ";".join(part for part in parts if part and part not in _DEFAULTS)
    if style:
        element.set("style", _COLOUR.sub(_hexadecimal, style))


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def _hexadecimal(colour: re.Match[str]) -> str:
    return "#" + "".join(f"{int(part):02x}" for part in colour.groups())


def _share_styles(root: ElementTree.Element) -> None:
    """Give styles that several elements have a class each, in the order in which they first appear."""
    styles = Counter(element.get("style") for element in root.iter() if element.get("style"))
    names = {
        style: f"s{number}" for number, style in enumerate(s for s, times in styles.items() if times > 1)
    }
    for element in root.iter():
        if element.get("style") in names:
            element.set("class", names[element.attrib.pop("style")])
    if names:
        sheet = ElementTree.Element(f"{_SVG}style")
        sheet.text = "".join(f".{name}{{{style}}}" for style, name in names.items())
        root.insert(0, sheet)


def _number_ids(root: ElementTree.Element) -> None:
    """Number the ids that are left, in the order in which they appear, and what refers to them."""
    kept = [element for element in root.iter() if "id" in element.attrib]
    numbers = {element.get("id", ""): f"c{number}" for number, element in enumerate(kept)}
    for element in kept:
        element.set("id", numbers[element.get("id", "")])
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in _REFERRING:
                element.set(name, _REFERENCE.sub(lambda found: f"#{numbers.get(found[1], found[1])}", value))
