"""Taps: read or replace an activation at a named site while the model runs once, or fail loudly.

Site names and their meaning are TransformerLens's: `resid_pre`, `resid_mid`, `resid_post` (residual stream before a
block, between attention and MLP, after the block), `attn_out`, `mlp_out` (what each adds), `z` (heads' outputs before
the output projection, heads concatenated). Where a site is in a model is not looked up by the model's name: candidates
are tried on a few tokens, and only those for which the sums come out are used (`find_places`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager

import torch

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")
_ALIASES = {"attn.hook_z": "z"}
_ATTENTION, _MLP = ("self_attn", "attn", "attention"), ("mlp", "feed_forward")
_PROJECTION = ("o_proj", "c_proj", "dense", "out_proj")
#: site -> submodules of a block to try, and whether the site enters or leaves them
_CANDIDATES = {
    "attn_out": (("post_attention_layernorm", *_ATTENTION), "out"),
    "mlp_out": (("post_feedforward_layernorm", *_MLP), "out"),
    "resid_mid": (("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", *_MLP), "in"),
    "z": (tuple(f"{a}.{p}" for a in _ATTENTION for p in _PROJECTION), "in"),
}
Edit = Callable[[torch.Tensor], "torch.Tensor | None"]
Places = Mapping[str, tuple[str, str]]


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
    """Sites that are read at every layer; raises ValueError for a name of one layer, a site named twice, or none."""
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


def _same_numbers(total: torch.Tensor, *parts: torch.Tensor) -> bool:
    """Is `total` the sum of `parts`, added in one order or the other, bit for bit (but for one number in a hundred)?

    A block adds in its own dtype, so the right parts give its very bits; a tolerance would let a small wrong part pass.
    """
    sums = (sum(parts[1:], parts[0]), sum(parts[-2::-1], parts[-1]))
    return any(s.shape == total.shape and (s == total).float().mean().item() > 0.99 for s in sums)


def find_places(blocks, run: Callable[[], object], architecture: str) -> dict[str, tuple[str, str]]:
    """Where each site is: (submodule of a block, whether the site enters or leaves it), proven on one small forward pass.

    The proof, in every block: resid_mid = resid_pre + attn_out and resid_post = resid_mid + mlp_out; `z` is what the
    attention's output projection reads. A model whose attention and MLP read the same residual has no resid_mid.
    run: runs the model on a few tokens. Raises NotImplementedError, naming the architecture, where no candidates add up.
    """
    options = {site: [(name, side) for name in names if _has(blocks[0], name)] for site, (names, side) in _CANDIDATES.items()}
    edges = {"resid_pre": ("", "in"), "resid_post": ("", "out")}
    every = {f"{site}:{name}": (name, side) for site, found in options.items() for name, side in found} | edges
    seen: list[dict[str, torch.Tensor]] = [{} for _ in blocks]

    def keep(key, layer):
        return lambda tensor: seen[layer].__setitem__(key, tensor.detach().clone())

    try:
        with taps(blocks, every, {(key, layer): keep(key, layer) for key in every for layer in range(len(blocks))}):
            run()
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise NotImplementedError(f"{architecture} is not supported: its blocks cannot be read one after the other ({error}).") from error

    def adds(total, *parts):
        return all(_same_numbers(s[total], *(s[p] for p in parts)) for s in seen)

    def projects(path):
        whole = f"attn_out:{path.split('.')[0]}"
        with torch.no_grad():
            return all(torch.allclose(s[whole], block.get_submodule(path)(s[f"z:{path}"]), rtol=1e-2) for s, block in zip(seen, blocks))

    for attention, mlp in ((a, m) for a in options["attn_out"] for m in options["mlp_out"]):
        out, more = f"attn_out:{attention[0]}", f"mlp_out:{mlp[0]}"
        if not adds("resid_post", "resid_pre", out, more):
            continue
        found = edges | {"attn_out": attention, "mlp_out": mlp}
        found |= {"resid_mid": mid for mid in options["resid_mid"] if adds(f"resid_mid:{mid[0]}", "resid_pre", out)}
        return found | {"z": z for z in options["z"] if projects(z[0])}
    raise NotImplementedError(f"{architecture} is not supported: what its attention and MLP add to the residual stream could not be found "
                              f"(tried {', '.join(sorted(n for names, _ in _CANDIDATES.values() for n in names if _has(blocks[0], n)))}).")


def _has(block, path: str) -> bool:
    try:
        block.get_submodule(path)
    except AttributeError:
        return False
    return True


@contextmanager
def taps(blocks, places: Places, edits: Mapping[tuple[str, int], Edit]):
    """Run each edit on the activation at its (site, layer) [batch, token, width]; a returned tensor replaces it.

    For exactly one forward pass: raises RuntimeError naming the site when a tap did not fire, or fired twice, and
    NotImplementedError for a site that this model does not have.
    """
    fired, handles, moved = dict.fromkeys(edits, 0), [], {}

    def apply(key, tensor):
        fired[key] += 1
        if fired[key] > 1:
            raise RuntimeError(f"The tap at blocks.{key[1]}.hook_{key[0]} fired twice: run one forward pass inside `taps`.")
        new = edits[key](tensor)
        if key[0] == "resid_mid" and new is not None:
            moved[key[1]] = new - tensor
        return new

    def follow(layer):
        """The tap before the MLP is off the stream: what an edit of resid_mid adds goes round the MLP too."""
        def hook(module, args, output):
            if layer in moved:
                return (output[0] + moved[layer], *output[1:]) if isinstance(output, tuple) else output + moved[layer]
        return hook

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
            if site not in places:
                raise NotImplementedError(f"This model has no {site}: its attention and MLP read the same residual stream, so nothing lies between.")
            path, side = places[site]
            module = blocks[layer].get_submodule(path)
            handles.append(module.register_forward_pre_hook(entering((site, layer)), with_kwargs=True) if side == "in"
                           else module.register_forward_hook(leaving((site, layer))))
        for layer in (layer for site, layer in edits if site == "resid_mid"):  # behind the taps of mlp_out itself
            handles.append(blocks[layer].get_submodule(places["mlp_out"][0]).register_forward_hook(follow(layer)))
        yield
        silent = [key for key, count in fired.items() if count != 1]
        if silent:
            raise RuntimeError(f"The tap at blocks.{silent[0][1]}.hook_{silent[0][0]} did not fire.")
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def patterns(hf, blocks, keep: Callable[[int, torch.Tensor], None]):
    """Attend eagerly, and hand each layer's attention pattern [batch, head, query, key] to `keep`; for one forward pass.

    The model attends again as it did before when the pass is over, or has failed. Raises NotImplementedError, naming the
    architecture, where a block has no one attention module or gives no pattern whose rows sum to 1.
    """
    name, before, seen, handles = type(hf).__name__, hf.config._attn_implementation, [], []

    def leaving(layer):
        def hook(module, args, output):
            pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if pattern is None:
                raise NotImplementedError(f"{name} gives no attention pattern at layer {layer}, even where it is asked to attend eagerly.")
            if (pattern.float().sum(-1) - 1).abs().max() > (1e-3 if pattern.dtype == torch.float32 else 0.05):
                raise NotImplementedError(f"{name} attends to more than its tokens: rows of the pattern at layer {layer} do not sum to 1.")
            seen.append(layer)
            keep(layer, pattern)
        return hook

    try:
        for layer, block in enumerate(blocks):
            found = [path for path in _ATTENTION if _has(block, path)]
            if len(found) != 1:
                raise NotImplementedError(f"{name} has no one attention module at layer {layer} (tried {', '.join(_ATTENTION)}).")
            handles.append(block.get_submodule(found[0]).register_forward_hook(leaving(layer)))
        hf.set_attn_implementation("eager")
        yield
        if seen != list(range(len(blocks))):
            raise RuntimeError(f"The layers that attended are {seen}, not each once, in order: run one forward pass inside `patterns`.")
    finally:
        for handle in handles:
            handle.remove()
        hf.set_attn_implementation(before)


@contextmanager
def only(blocks, first: int, last: int):
    """Pass over the blocks below `first` and above `last`: they give back what they are given."""
    skipped = [block for layer, block in enumerate(blocks) if not first <= layer <= last]
    try:
        for block in skipped:
            block.forward = _same
        yield
    finally:
        for block in skipped:
            del block.forward


def _same(hidden_states, *args, **kwargs):
    return hidden_states


@contextmanager
def joining(blocks, counts, enter: Callable[[int, int, int], torch.Tensor], slots: int):
    """Run block l on the first counts[l] of the packed `slots` only; those that join at l start from `enter(l, from, to)`.

    counts never falls and ends at `slots`; blocks whose count is 0 are passed over. enter gives [to - from, d_model], the same for every row.
    """
    first = next(layer for layer, count in enumerate(counts) if count)

    def narrowed(value, n):
        if isinstance(value, (tuple, list)):
            return type(value)(narrowed(v, n) for v in value)
        if not isinstance(value, torch.Tensor) or n == slots:
            return value
        if value.ndim == 4 and value.shape[-2] == slots:  # a mask [1, 1, slot, prefix + slot]
            return value[..., :n, :value.shape[-1] - slots + n]
        axis = next((a for a in (1, 0) if value.ndim > a and value.shape[a] == slots), None)  # positions, rotations
        return value if axis is None else value.narrow(axis, 0, n)

    def hook(layer):
        before, n = counts[layer - 1] if layer > first else 0, counts[layer]

        def enlarge(module, args, kwargs):
            hidden, *rest = args if args else (kwargs["hidden_states"],)
            if n > before:
                new = enter(layer, before, n).expand(len(hidden), -1, -1)
                hidden = torch.cat([hidden[:, :before], new], 1) if before else new
            others = {k: narrowed(v, n) for k, v in kwargs.items() if k != "hidden_states"}
            return ((hidden, *(narrowed(v, n) for v in rest)), others) if args else ((), {**others, "hidden_states": hidden})
        return module_hooks.append(blocks[layer].register_forward_pre_hook(enlarge, with_kwargs=True))

    module_hooks: list = []
    try:
        for layer in range(first, len(blocks)):
            hook(layer)
        with only(blocks, first, len(blocks) - 1):
            yield
    finally:
        for handle in module_hooks:
            handle.remove()
