"""The command ``vlsi``, and ``python -m vlsi_cli``."""

from __future__ import annotations

import sys

from vlsi_cli import interrupts


def main() -> None:
    """Load the command line and run it; Ctrl-C while it is still loading ends in a word as it does later."""
    try:
        with interrupts.heeded() as seen:
            try:
                from vlsi_cli.app import main as run
            except (Exception, KeyboardInterrupt) as error:  # whatever a library makes of a broken import
                if isinstance(error, KeyboardInterrupt):
                    seen.number = interrupts.number_of(error)
                if seen.number is None:
                    raise
                sys.stderr.write("warning: interrupted\n")
                raise SystemExit(128 + seen.number) from None
            run()
    finally:
        interrupts.leave()


if __name__ == "__main__":
    main()
