"""Where the toolkit's own files lie."""

from pathlib import Path

#: The checkout, or the folder of installed packages.
ROOT = Path(__file__).parents[2]
#: Recorded decisions, the shipped series, adapters and agents.
DATA = ROOT / "interp" / "data"
