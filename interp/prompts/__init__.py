"""From a decision, a conversation or plain text to token ids with spans and the prompt boundary."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
