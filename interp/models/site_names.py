"""Names of sites, which are TransformerLens's, read without torch: a bad one is refused before torch is imported.

>>> parse_site("blocks.3.hook_resid_pre")
('resid_pre', 3)
"""

from __future__ import annotations

import re

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
_ALIASES = {"attn.hook_z": "z"}


def parse_site(name: str) -> tuple[str, int | None]:
    """`"resid_pre"` -> (site, None); `"blocks.3.hook_resid_pre"` -> (site, 3).

    Raises ValueError for a site that is not known.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?(.+)", name)
    site = match.group(2) if match else name
    site = _ALIASES.get(site, site)
    if site not in SITES:
        raise ValueError(
            f"There is no site {name!r}: the sites are {', '.join(SITES)}, or blocks.<layer>.hook_<site>."
        )
    return site, int(match.group(1)) if match else None


def every_layer(names) -> list[str]:
    """Sites that are read at every layer; raises ValueError for a name of one layer, a site named twice, or none."""
    parsed = [parse_site(name) for name in names]
    named = [name for name, (_, layer) in zip(names, parsed) if layer is not None]
    if named:
        raise ValueError(
            f"{named[0]!r} names one layer, but every layer is read: ask for the site alone and pick the layer from the result."
        )
    found = [site for site, _ in parsed]
    twice = [site for site in found if found.count(site) > 1]
    if twice or not found:
        raise ValueError(
            f"Site {twice[0]!r} is asked for twice: name each site once."
            if twice
            else f"No site is asked for: name some of {', '.join(SITES)}."
        )
    return found
