"""`python -m piecework` is `piecework`."""

from __future__ import annotations

from piecework.cli import main

if __name__ == "__main__":
    main()
