"""`python -m beamprof`: the command `beam`, for launchers such as torchrun."""

import sys

from beamprof.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
