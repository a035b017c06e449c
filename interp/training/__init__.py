"""Making a series: fine-tuning, masked supervision, reinforcement, and agents whose answer is known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
