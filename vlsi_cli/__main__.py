"""``python -m vlsi_cli`` is the command ``vlsi``."""

from __future__ import annotations

from vlsi_cli.app import main

if __name__ == "__main__":
    main()
