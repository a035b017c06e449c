"""Weights on disk: what trainers leave there, read and checked, and a series swapped in place."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
