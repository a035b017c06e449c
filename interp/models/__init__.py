"""One hooked model: its hook points, and which of its computations are exact on which path."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
