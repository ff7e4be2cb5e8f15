"""python -m jepa_core: see folders/commands.py."""

import sys

from .folders.commands import main

if __name__ == "__main__":
    sys.exit(main())
