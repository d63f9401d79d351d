"""The start of the console script ``host``, and of ``python -m host``."""

import sys


def main() -> None:
    """Runs the tool. Ctrl-C is quiet from the first import on."""
    try:
        from host.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
