"""What was decided: episodes and decisions, the schema of their files, and actions as text."""

from interp.system.lazily import exports

_PUBLIC = {
    "CORPUS": "episodes",
    "Decision": "episodes",
    "Episode": "episodes",
    "Step": "episodes",
    "load_corpus": "episodes",
    "sample_decisions": "episodes",
    "save_episodes": "episodes",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
