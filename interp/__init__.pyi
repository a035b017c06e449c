from . import figures as figures
from .checkpoints.series import CheckpointSeries as CheckpointSeries
from .engine.activations import Activations as Activations
from .engine.capturing import capture as capture
from .engine.decoding import (
    Completion as Completion,
    choose as choose,
    choose_each as choose_each,
    decode as decode,
)
from .environments.base import Environment as Environment, View as View
from .measures.ablation import Ablation as Ablation, ablate as ablate
from .measures.attribution import attribute as attribute
from .measures.conflicts import Outcome as Outcome, conflict as conflict
from .measures.early import EarlyAnswers as EarlyAnswers, early_answers as early_answers
from .measures.lens import Lens as Lens, lens as lens
from .measures.own_traces import (
    OwnTraceEffects as OwnTraceEffects,
    own_trace_effects as own_trace_effects,
)
from .measures.pairs import make_pairs as make_pairs
from .measures.patching import patch as patch
from .measures.reliance import Reliance as Reliance, prompt_reliance as prompt_reliance
from .measures.steered import Steering as Steering
from .measures.steered_answers import SteeredAnswers as SteeredAnswers, steer_answers as steer_answers
from .measures.steering import SteerOptions as SteerOptions, steer as steer
from .measures.sweep import Sweep as Sweep
from .models.hooked import HookedModel as HookedModel
from .probing.probes import ProbeOptions as ProbeOptions, ProbeResult as ProbeResult, probe as probe
from .prompts.format import Prompt as Prompt, PromptFormat as PromptFormat
from .prompts.showing import show as show
from .prompts.styles import Style as Style
from .prompts.text import TextPrompt as TextPrompt
from .report.viewer import Viewer as Viewer, view as view
from .tasks.episodes import (
    Decision as Decision,
    Episode as Episode,
    load_corpus as load_corpus,
    sample_decisions as sample_decisions,
)

__version__: str
