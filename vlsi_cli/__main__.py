"""The command ``vlsi``, and ``python -m vlsi_cli``."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the command line and run it; Ctrl-C while it is still loading ends in a word as it does later."""
    try:
        from vlsi_cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("warning: interrupted\n")
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
