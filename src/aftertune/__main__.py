"""``python -m aftertune``: the command where its script is not on the path."""

from aftertune.cli import main

if __name__ == "__main__":
    main()
