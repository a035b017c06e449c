"""Taps: read or replace an activation at a named site while the model runs once, or fail loudly.

Site names and their meaning are TransformerLens's: `resid_pre`, `resid_mid`, `resid_post` (residual stream before a
block, between attention and MLP, after the block), `attn_out`, `mlp_out` (what each adds), `z` (heads' outputs before
the output projection, heads concatenated).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import torch

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
#: site -> (submodule of a block, does the site enter or leave it)
_WHERE = {
    "resid_pre": ("", "in"), "resid_mid": ("post_attention_layernorm", "in"), "resid_post": ("", "out"),
    "attn_out": ("self_attn", "out"), "mlp_out": ("mlp", "out"), "z": ("self_attn.o_proj", "in"),
}
_ALIASES = {"attn.hook_z": "z"}
Edit = Callable[[torch.Tensor], "torch.Tensor | None"]


def parse_site(name: str) -> tuple[str, int | None]:
    """`"resid_pre"` -> (site, None); `"blocks.3.hook_resid_pre"` -> (site, 3).

    Raises ValueError for a site that is not known.
    """
    match = re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?(.+)", name)
    site = match.group(2) if match else name
    site = _ALIASES.get(site, site)
    if site not in SITES:
        raise ValueError(f"There is no site {name!r}: the sites are {', '.join(SITES)}, or blocks.<layer>.hook_<site>.")
    return site, int(match.group(1)) if match else None


def every_layer(names) -> list[str]:
    """Sites that are read at every layer; raises ValueError for a name of one layer, which would be a silent difference."""
    parsed = [parse_site(name) for name in names]
    named = [name for name, (_, layer) in zip(names, parsed) if layer is not None]
    if named:
        raise ValueError(f"{named[0]!r} names one layer, but every layer is read: ask for the site alone and pick the layer from the result.")
    found = [site for site, _ in parsed]
    twice = [site for site in found if found.count(site) > 1]
    if twice or not found:
        raise ValueError(f"Site {twice[0]!r} is asked for twice: name each site once." if twice else
                         f"No site is asked for: name some of {', '.join(SITES)}.")
    return found


def check_architecture(blocks, architecture: str) -> None:
    """Raise NotImplementedError, naming the architecture, where a block lacks a module that the sites are read at."""
    for block in blocks:
        for site, (path, _) in _WHERE.items():
            try:
                block.get_submodule(path)
            except AttributeError:
                raise NotImplementedError(f"{architecture} is not supported: its blocks have no {path!r}, where {site} is read. "
                                          "Supported are pre-norm Llama-like blocks (Llama, Mistral, Qwen2, Qwen3, SmolLM).") from None
        if any("norm" in name and name not in ("input_layernorm", "post_attention_layernorm") for name, _ in block.named_children()):
            raise NotImplementedError(f"{architecture} is not supported: its blocks normalise what attention and MLP add, "
                                      "so attn_out, mlp_out and resid_mid are not where this toolkit reads them.")


@contextmanager
def taps(blocks, edits: Mapping[tuple[str, int], Edit]):
    """Run each edit on the activation at its (site, layer) [batch, token, width]; a returned tensor replaces it.

    For exactly one forward pass: raises RuntimeError naming the site when a tap did not fire, or fired twice.
    """
    fired, handles = dict.fromkeys(edits, 0), []

    def apply(key, tensor):
        fired[key] += 1
        if fired[key] > 1:
            raise RuntimeError(f"The tap at blocks.{key[1]}.hook_{key[0]} fired twice: run one forward pass inside `taps`.")
        return edits[key](tensor)

    def entering(key):
        def hook(module, args, kwargs):
            if args:
                new = apply(key, args[0])
                return None if new is None else ((new, *args[1:]), kwargs)
            new = apply(key, kwargs["hidden_states"])
            return None if new is None else (args, {**kwargs, "hidden_states": new})
        return hook

    def leaving(key):
        def hook(module, args, output):  # a tensor, or a tuple that starts with it
            first = output[0] if isinstance(output, tuple) else output
            new = apply(key, first)
            return None if new is None else ((new, *output[1:]) if isinstance(output, tuple) else new)
        return hook

    try:
        for site, layer in edits:
            path, side = _WHERE[site]
            module = blocks[layer].get_submodule(path)
            handles.append(module.register_forward_pre_hook(entering((site, layer)), with_kwargs=True) if side == "in"
                           else module.register_forward_hook(leaving((site, layer))))
        yield
        silent = [key for key, count in fired.items() if count != 1]
        if silent:
            raise RuntimeError(f"The tap at blocks.{silent[0][1]}.hook_{silent[0][0]} did not fire.")
    finally:
        for handle in handles:
            handle.remove()
