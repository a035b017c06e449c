from .checkpoints.series import CheckpointSeries as CheckpointSeries
from .engine.capturing import Activations as Activations
from .engine.capturing import capture as capture
from .engine.decoding import Completion as Completion
from .engine.decoding import choose as choose
from .engine.decoding import decode as decode
from .environments.base import Environment as Environment
from .environments.base import View as View
from .measures.attribution import attribute as attribute
from .measures.conflicts import Outcome as Outcome
from .measures.conflicts import conflict as conflict
from .measures.early import EarlyAnswers as EarlyAnswers
from .measures.early import early_answers as early_answers
from .measures.pairs import make_pairs as make_pairs
from .measures.patching import Sweep as Sweep
from .measures.patching import patch as patch
from .measures.reliance import Reliance as Reliance
from .measures.reliance import prompt_reliance as prompt_reliance
from .measures.steering import Steering as Steering
from .measures.steering import steer as steer
from .models.hooked import HookedModel as HookedModel
from .probing.probes import ProbeResult as ProbeResult
from .probing.probes import probe as probe
from .prompts.format import Prompt as Prompt
from .prompts.format import PromptFormat as PromptFormat
from .prompts.styles import Style as Style
from .tasks.episodes import (
    Decision as Decision,
)
from .tasks.episodes import (
    Episode as Episode,
)
from .tasks.episodes import (
    load_corpus as load_corpus,
)
from .tasks.episodes import (
    sample_decisions as sample_decisions,
)

__version__: str
