"""The start of the console script ``host``, and of ``python -m host``."""

import signal
import sys


def main() -> None:
    """Runs the tool. Ctrl-C is quiet from the first import on.

    A request to end, and a terminal that is closed, clean up as Ctrl-C does.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda caught, _: sys.exit(128 + caught))
    try:
        from host.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
