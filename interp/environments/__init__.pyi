from .base import ANY as ANY
from .base import Environment as Environment
from .base import View as View
from .base import find as find
