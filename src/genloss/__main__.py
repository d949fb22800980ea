"""`python -m genloss` is the `genloss` command."""

from genloss.cli import main

if __name__ == "__main__":
    main()
