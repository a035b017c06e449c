"""Names of sites, which are TransformerLens's; a bad one is refused before torch is imported.

>>> parse_site("blocks.3.hook_resid_pre")
('resid_pre', 3)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
_ALIASES = {"attn.hook_z": "z"}


def parse_site(name: str) -> tuple[str, int | None]:
    """`"resid_pre"` -> (site, None); `"blocks.3.hook_resid_pre"` -> (site, 3).

    Raises ValueError for an unknown site.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?(.+)", name)
    site = match.group(2) if match else name
    site = _ALIASES.get(site, site)
    if site not in SITES:
        raise ValueError(
            f"There is no site {name!r}: the sites are {', '.join(SITES)}, or blocks.<layer>.hook_<site>."
        )
    return site, int(match.group(1)) if match else None


def parse_key(key: str | tuple[str, int]) -> tuple[str, int | None]:
    """(site, layer) of a name, or of a pair of both: `"blocks.3.hook_z"`, `("z", 3)`."""
    return parse_site(key) if isinstance(key, str) else (parse_site(key[0])[0], key[1])


def one_layer(name: str | tuple[str, int]) -> tuple[str, int]:
    """(site, layer) of a name such as "blocks.3.hook_resid_pre"; a pair of both stays.

    Raises ValueError for one without a layer.
    """
    if not isinstance(name, str):
        return name
    site, layer = parse_site(name)
    if layer is None:
        raise ValueError(f'{name!r} names no layer: say ("{name}", 3), or "blocks.3.hook_{name}".')
    return site, layer


def tl_name(site: str, layer: int) -> str:
    """A site's name in TransformerLens.

    >>> tl_name("z", 3)
    'blocks.3.attn.hook_z'
    """
    return f"blocks.{layer}.{'attn.' if site == 'z' else ''}hook_{site}"


def every_layer(names: Sequence[str]) -> list[str]:
    """Sites that are read at every layer.

    Raises ValueError for a name of one layer, a site named twice, or no name.
    """
    sites: list[str] = []
    for name in names:
        site, layer = parse_site(name)
        if layer is not None:
            raise ValueError(
                f"{name!r} names one layer, but every layer is read: ask for the site alone and pick the "
                "layer from the result."
            )
        if site in sites:
            raise ValueError(f"Site {site!r} is asked for twice: name each site once.")
        sites.append(site)
    if not sites:
        raise ValueError(f"No site is asked for: name some of {', '.join(SITES)}.")
    return sites
