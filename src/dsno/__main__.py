"""`python -m dsno`, which is what launchers start."""

import sys

from dsno.cli import main

if __name__ == "__main__":
    sys.exit(main())
