"""Mechanistic interpretability of language-model agents: where do the gains of chain-of-thought training land?"""

import importlib

__version__ = "0.1.0"

_SURFACE = {
    "CheckpointSeries": "interp.checkpoints.series",
    "HookedModel": "interp.models.hooked",
    "PromptFormat": "interp.prompts.format",
    "Style": "interp.prompts.styles",
    "attribute": "interp.measures.attribution",
    "capture": "interp.engine.capturing",
    "choose": "interp.engine.decoding",
    "conflict": "interp.measures.conflicts",
    "decode": "interp.engine.decoding",
    "early_answers": "interp.measures.early",
    "load_corpus": "interp.tasks.episodes",
    "make_pairs": "interp.measures.pairs",
    "patch": "interp.measures.patching",
    "probe": "interp.probing.probes",
    "prompt_reliance": "interp.measures.reliance",
    "sample_decisions": "interp.tasks.episodes",
    "steer": "interp.measures.steering",
}
__all__ = [*_SURFACE, "__version__"]


def __getattr__(name: str):
    """Import a public name when it is first used, so that drawing a table never imports torch."""
    if name not in _SURFACE:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(importlib.import_module(_SURFACE[name]), name)
