"""An analysis that is left out, and what would allow it, in a sentence."""

from interp.system.paths import PROGRAM

#: Of one that needs actions.
PARSES = (
    "Give a later checkpoint (--checkpoints), the style that it was trained in (--style), or more tokens "
    "(--trace_tokens)."
)
#: Of one that fits probes.
LABELLED = (
    "Give more decisions of more episodes (--decisions), another label (--labels), or a checkpoint whose "
    "actions parse."
)
#: Of one that exchanges names.
EXCHANGED = (
    "Give decisions in which two names can be exchanged, with an environment that says which "
    "(--environment MODULE:NAME with swap_candidates, docs/task.md)."
)
#: Of one that plays games.
PLAYABLE = (
    "Install what is missing, or give an environment of your own with a game (--environment MODULE:NAME, "
    f"docs/task.md); `{PROGRAM} all --skip online` does not try."
)


class NotApplicable(ValueError):
    """An analysis that these decisions do not allow; the others go on. Says why, and what would allow it."""

    left_out = True

    def __init__(self, reason: str, remedy: str = ""):
        super().__init__(f"{reason.rstrip('.')}. {remedy}".rstrip())
