"""What all tests share: the repository and the helpers on the path, and the real packages under their names."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "train")]
os.environ.setdefault("PYTHONPATH", str(ROOT))

# tests/train would otherwise be taken for the package `train` when its first test module is imported.
import augment  # noqa: E402, F401
import distill  # noqa: E402, F401
import models  # noqa: E402, F401
import train  # noqa: E402, F401
