"""What was decided: episodes and decisions, the schema of their files, and actions as text."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
