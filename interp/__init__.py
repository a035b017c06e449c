"""Mechanistic interpretability of language-model agents: where do the gains of chain-of-thought training land?"""

import importlib

__version__ = "0.1.0"

_SURFACE = {
    "CheckpointSeries": "interp.series", "HookedModel": "interp.models", "PromptFormat": "interp.prompts", "Style": "interp.styles",
    "attribute": "interp.attribution", "capture": "interp.capturing", "choose": "interp.decoding", "conflict": "interp.conflicts",
    "decode": "interp.decoding", "early_answers": "interp.early", "load_corpus": "interp.tasks", "make_pairs": "interp.pairs",
    "patch": "interp.patching", "probe": "interp.probes", "prompt_reliance": "interp.mediation", "sample_decisions": "interp.tasks",
    "steer": "interp.steering",
}
__all__ = [*_SURFACE, "__version__"]


def __getattr__(name: str):
    """Import a public name when it is first used, so that drawing a table never imports torch."""
    if name not in _SURFACE:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(importlib.import_module(_SURFACE[name]), name)
