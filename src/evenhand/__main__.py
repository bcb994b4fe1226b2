"""`python -m evenhand`: the command line, also under torchrun."""

import sys

from evenhand.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
