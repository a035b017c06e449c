"""Making a series: fine-tuning, masked supervision, reinforcement, and agents whose answer is known."""

from interp.system.lazily import exports

_PUBLIC = {
    "Recipe": "recipes",
    "Tuning": "recipes",
    "fit_tokenizer": "trainer",
    "train": "trainer",
    "train_condition": "trainer",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
