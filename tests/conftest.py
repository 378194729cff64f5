"""What all tests share: the repository and its helpers on the path, the real packages, and commands as typed."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "train")]
os.environ.setdefault("PYTHONPATH", str(ROOT))

# tests/train would otherwise be taken for the package `train` when its first test module is imported.
import augment  # noqa: E402, F401
import distill  # noqa: E402, F401
import models  # noqa: E402, F401
import train  # noqa: E402, F401


@pytest.fixture
def typed(monkeypatch, capsys):
    """typed(main, words...): run a command in this process; returns (exit code, stdout, stderr)."""

    def call(main, *words):
        monkeypatch.setattr(sys, "argv", [main.__module__.split(".")[-1] + ".py", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call
