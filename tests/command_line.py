"""The command line in this process."""

import sys

from analyses import __main__ as cli


def main(*arguments):
    """Its exit status (an error that is not told would be raised here)."""
    before, sys.argv = sys.argv, ["analyses", *map(str, arguments)]
    try:
        return cli.main()
    finally:
        sys.argv = before
