from .contents import SERIES as SERIES
from .series import CheckpointSeries as CheckpointSeries
