"""Weights on disk: what trainers leave there, read and checked, and a series swapped in place."""

from interp.system.lazily import exports

_PUBLIC = {
    "CheckpointSeries": "series",
    "SERIES": "contents",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
