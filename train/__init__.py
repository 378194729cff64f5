"""Training: what a person runs. Recipes, one per family, and tools; what they share is in train/engine."""

import sys
from pathlib import Path


def last_words(kind, error, trace):
    """One line for Ctrl-C while the libraries are read, and for a library that is missing; else the traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if issubclass(kind, ModuleNotFoundError):
        print(f"{sys.argv[0]}: {error.name} is not installed for {sys.executable}: `make setup` installs all that is "
              f"needed, and then .venv/bin/python runs it", file=sys.stderr)
        sys.exit(2)
    sys.__excepthook__(kind, error, trace)


# Only where a script of ours is run: who imports this package keeps what he has.
if Path(sys.argv[0]).resolve().parent.parent == Path(__file__).resolve().parents[1]:
    sys.excepthook = last_words
