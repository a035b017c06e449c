"""Where the toolkit's own files lie."""

from pathlib import Path

#: The checkout, or the folder of installed packages.
ROOT = Path(__file__).parents[2]
#: Recorded decisions, the shipped series, adapters and agents.
DATA = ROOT / "interp" / "data"
#: How the command line is called here: in a checkout, or where the package is installed.
PROGRAM = "python -m analyses" if (ROOT / "analyses" / "registry.py").is_file() else "interp-analyses"
