"""One hooked model: its hook points, and which of its computations are exact on which path."""

from interp.system.lazily import exports

_PUBLIC = {
    "HookedModel": "hooked",
    "pick_device": "devices",
    "pick_dtype": "devices",
    "random_twin": "hooked",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
