"""Games that are played and recorded; each environment in a package of its own."""

from interp.system.lazily import exports

_PUBLIC = {
    "ANY": "base",
    "Environment": "base",
    "View": "base",
    "find": "base",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
