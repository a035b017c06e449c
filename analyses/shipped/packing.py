"""Low-rank adapters as they are shipped: small integers with a scale for each vector, compressed.

>>> pack(Path("runs/smollm2/series/checkpoint-4"), Path("interp/data/smollm2/checkpoint-4"))
>>> unpack(Path("interp/data/smollm2/checkpoint-4"), Path("runs/smollm2/series/checkpoint-4"))

An update is a product of two thin matrices; each row of the first and each column of the second is rounded to
integers of at most LEVELS times its scale. What is unpacked is an ordinary adapter in half precision.
"""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from interp.checkpoints.weights import save as save_file
from interp.results.tables import written

WEIGHTS = "adapter_model.safetensors"
PACKED = "adapter_model.packed.xz"
BESIDE = ("adapter_config.json", "training.json")
#: Largest integer, seven bits with the sign: a token's log-probability moves by 0.0004 on average.
LEVELS = 63
_SCALE = ".scale"


def pack(folder: Path, out: Path) -> Path:
    """Write the adapter in `folder` to `out` as it is shipped, with its configuration and what made it.

    Returns:
        The packed file, the same bytes from the same adapter.

    Raises:
        ValueError: a weight is not finite.
    """
    parts: dict[str, torch.Tensor] = {}
    for name, weight in sorted(load_file(folder / WEIGHTS).items()):
        if not weight.isfinite().all():
            raise ValueError(f"{folder / WEIGHTS} has a weight in {name!r} that is not finite.")
        parts[name], parts[name + _SCALE] = rounded(weight)
    content = lzma.compress(save(parts), preset=9 | lzma.PRESET_EXTREME)
    with written(out / PACKED) as temporary:
        temporary.write_bytes(content)
    for name in BESIDE:
        shutil.copy(folder / name, out / name)
    return out / PACKED


def unpack(folder: Path, out: Path) -> Path:
    """Write the adapter that is shipped in `folder` to `out` as trainers do, in half precision.

    Returns:
        The file of its weights.

    Raises:
        ValueError: the packed file is damaged.
    """
    try:
        parts = load(lzma.decompress((folder / PACKED).read_bytes()))
    except (lzma.LZMAError, EOFError, SafetensorError) as error:
        raise ValueError(
            f"{folder / PACKED} is damaged ({error}): copy it again from the repository."
        ) from error
    weights = {
        name: (part * parts[name + _SCALE]).half()
        for name, part in parts.items()
        if not name.endswith(_SCALE)
    }
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / WEIGHTS)
    (out / WEIGHTS).chmod(0o644)
    for name in BESIDE:
        shutil.copy(folder / name, out / name)
    return out / WEIGHTS


def rounded(
    weight: Float[torch.Tensor, "rows columns"],
) -> tuple[torch.Tensor, Float[torch.Tensor, "..."]]:
    """The integers nearest to a matrix in units of a scale, one for each of its longer vectors, and the
    scales."""
    longer = int(weight.shape[1] > weight.shape[0])
    scale = weight.float().abs().amax(longer, keepdim=True) / LEVELS
    integers = (weight.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)).round()
    return integers.to(torch.int8), scale
