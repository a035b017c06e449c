"""Mechanistic interpretability of language-model agents: where does the gain of CoT training land?

Public names are declared in `__init__.pyi`, and imported when they are first used.
"""

import sys

import lazy_loader

from interp.moved import Moved

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
sys.meta_path.append(Moved())
