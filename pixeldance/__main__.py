"""``python -m pixeldance``: the command line."""

from pixeldance.cli import main

if __name__ == "__main__":
    main()
