"""Mechanistic interpretability of language-model agents: where do the gains of chain-of-thought training land?"""

import sys

from interp.moved import Moved
from interp.system.lazily import exports

__version__ = "0.1.0"

_SURFACE = {
    "CheckpointSeries": "checkpoints.series",
    "HookedModel": "models.hooked",
    "PromptFormat": "prompts.format",
    "Style": "prompts.styles",
    "attribute": "measures.attribution",
    "capture": "engine.capturing",
    "choose": "engine.decoding",
    "conflict": "measures.conflicts",
    "decode": "engine.decoding",
    "early_answers": "measures.early",
    "load_corpus": "tasks.episodes",
    "make_pairs": "measures.pairs",
    "patch": "measures.patching",
    "probe": "probing.probes",
    "prompt_reliance": "measures.reliance",
    "sample_decisions": "tasks.episodes",
    "steer": "measures.steering",
}
__all__ = [*_SURFACE, "__version__"]
#: Imports a public name when it is first used, so that drawing a table never imports torch.
__getattr__ = exports(__name__, _SURFACE)
sys.meta_path.append(Moved())
