"""`python -m piecework` is `piecework`."""

from piecework.cli import main

if __name__ == "__main__":
    main()
