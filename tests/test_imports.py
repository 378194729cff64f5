"""Imports run one way, and a warning that is raised in our own code is an error of the tests."""

import ast
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [r"train$", r"augment\b", r"models\b", r"train\.data\b", r"train\.engine\b", r"train\.scores\b", r"train\.\w+$",
         r"distill\b"]  # from below upwards; the last but one are the scripts


def floor(module: str) -> int:
    """The place of a module's room in ROOMS; -1 of a library."""
    return next((number for number, room in enumerate(ROOMS) if re.match(room, module)), -1)


def imported(source: str) -> list[str]:
    """What a file imports, with the module that it is looked for in: train.data and train.data.cifar10, say."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [node.module, *(name for name in inner if list(ROOT.glob(name.replace(".", "/") + "*")))]
    return found


def upward(module: str, source: str) -> list[str]:
    return [name for name in imported(source) if floor(name) > floor(module)]


@pytest.mark.parametrize("folder", ["augment", "models", "train", "distill"])
def test_no_room_imports_from_one_above(folder):
    files = {str(file.relative_to(ROOT)): file.read_text("utf-8") for file in (ROOT / folder).rglob("*.py")}
    modules = {file: file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}
    assert files and -1 not in map(floor, modules.values())
    assert not [(file, name) for file, source in files.items() for name in upward(modules[file], source)]


@pytest.mark.parametrize("module, line", [
    ("train", "import train.engine"), ("augment.mix", "import models"), ("models", "from train.data import cifar10"),
    ("train.data.cifar10", "from train.engine.device import hardware"),
    ("train.engine.loop", "from train import scores"), ("train.scores.page", "from train.report import gather"),
    ("train.report", "def main():\n    from distill import table"),
])
def test_an_upward_import_is_found(module, line):
    assert upward(module, line)


@pytest.mark.parametrize("module", ["augment", "models", "models.layers", "train", "train.engine.loop", "distill.loss"])
def test_a_warning_of_our_own_is_an_error(module):
    with pytest.raises(UserWarning):
        warnings.warn_explicit("ours", UserWarning, "file.py", 1, module)
    with pytest.warns(UserWarning):
        warnings.warn_explicit("theirs", UserWarning, "file.py", 1, f"torch.{module}")
