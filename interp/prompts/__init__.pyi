from .format import MODES as MODES
from .format import Prompt as Prompt
from .format import PromptFormat as PromptFormat
from .styles import STYLES as STYLES
from .styles import Style as Style
