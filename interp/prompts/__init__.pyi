from .format import MODES as MODES, Prompt as Prompt, PromptFormat as PromptFormat
from .styles import STYLES as STYLES, Style as Style
