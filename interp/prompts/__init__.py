"""From a decision, a conversation or plain text to token ids with spans and the prompt boundary."""

from interp.system.lazily import exports

_PUBLIC = {
    "MODES": "format",
    "Prompt": "format",
    "PromptFormat": "format",
    "STYLES": "styles",
    "Style": "styles",
}
__all__ = [*_PUBLIC]
__getattr__ = exports(__name__, _PUBLIC)
