"""`beam`, and `python -m beamprof` for launchers such as torchrun."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C is answered from here on, while its modules still load."""
    try:
        from beamprof.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written; run the same command again\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
