"""Runs the command line: `python -m buildkit COMMAND`."""

import sys

from buildkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
