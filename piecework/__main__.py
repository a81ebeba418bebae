"""`piecework` and `python -P -m piecework`: the command line, or one line about what is missing."""

from __future__ import annotations

import sys

from piecework.base.entry import fail, guard


def main(platform: str = sys.platform) -> None:
    """Entry point of the console command. Exits with the code of the chosen command."""
    if platform == "win32":
        fail("Piecework does not run on Windows. WSL 2 may work, and nobody has tried it", 2)
    guard(_command_line)


def _command_line() -> None:
    # Imported here: without the extra "cli" this import fails, and the guard names the extra.
    from piecework import cli

    cli.main()


if __name__ == "__main__":
    main()
