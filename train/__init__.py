"""Training: what a person runs. Recipes, one per family, and tools; what they share is in train/engine."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def one_line_excepthook(kind, error, trace):
    """One line for Ctrl-C while the libraries are read, one that is missing or a full disk; else the traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    if issubclass(kind, ModuleNotFoundError):
        print(f"{error.name or error} is not installed for {sys.executable}: `make setup` installs all that is needed, "
              f"and then .venv/bin/python runs the scripts", file=sys.stderr)
        sys.exit(2)
    if issubclass(kind, OSError) and error.errno:  # torch wants a folder for temporary files
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
    sys.__excepthook__(kind, error, trace)


# Only where a script of ours is run, by its path or by `python -m`: who imports this package keeps what he has.
if sys.argv[0] == "-m" or Path(sys.argv[0]).resolve().parent in (ROOT / "train", ROOT / "distill"):
    sys.excepthook = one_line_excepthook
