"""The commands as people type them: from anywhere, in any locale, offline, and with mistakes."""

import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import toy

from train import ROOT, baseline, evaluate, flatse, pyramidnet, seresnet, shakeshake
from train.engine import checkpoint, flags, loop

pytestmark = pytest.mark.usefixtures("toy_set")


def train_baseline():
    """What train/baseline.py does when it is run."""
    loop.run(flags.parse(baseline.__doc__, baseline.STAGES, by="stage"))


train_baseline.__module__ = "train.baseline"  # which names the script in what it says


def small(toy_set, weights):
    return ("--data", toy_set, "--out", weights, "--width", 2, "--epochs", 1, "--batch-size", 20, "--device", "cpu")


def left(folder):
    """The files that a command left there, but for the lock of a run."""
    return sorted(file for file in os.listdir(folder) if not file.endswith(".lock"))


def shell(*words, cwd, **environment):
    """Run Python in a real process of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True,
                          env=inherited | {"OMP_NUM_THREADS": "1"} | environment)


TRIAL = ("--data", "synthetic", "--limit", 20, "--width", 2, "--epochs", 1, "--device", "cpu")


# ---------------------------------------------------------------- from anywhere


def test_a_copy_in_a_path_with_a_space_and_an_umlaut_in_the_c_locale(tmp_path):
    copy, elsewhere = tmp_path / "ein Ordner für alles", tmp_path / "else where"
    elsewhere.mkdir()
    for folder in ("models", "augment", "train"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "weights").mkdir()
    locale = dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = shell(copy / "train" / "baseline.py", *TRIAL, cwd=elsewhere, **locale)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load_weights(copy / "weights" / "resnet18-2-fold0.pt")["provenance"]["source"] == "synthetic"
    assert not os.listdir(elsewhere)


def test_as_a_module(tmp_path):
    done = shell("-m", "train.baseline", *TRIAL, "--noval", "--out", tmp_path / "run.pt", cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run.csv").read_text().count("\n") == 2 and "resnet18-2: 2,988 parameters" in done.stdout


def test_in_a_spawned_process(toy_set, tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "CONTEXT", multiprocessing.get_context("spawn"))
    with toy.training(*small(toy_set, tmp_path / "run.pt"), log=tmp_path / "log") as process:
        process.join()
    assert process.exitcode == 0 and (tmp_path / "run.pt").exists()


@pytest.mark.parametrize("script", [flatse, pyramidnet, seresnet, shakeshake])
def test_a_script_runs_its_own_recipe(typed, monkeypatch, script):
    runs = []
    monkeypatch.setattr(loop, "run", runs.append)

    def main():
        runpy.run_path(script.__file__, run_name="__main__")

    assert typed(main, "--noval")[0] == 0 and vars(runs[0]) == vars(flags.config(script.RECIPE, fold=None))


# ---------------------------------------------------------------- without a network


def test_training_and_scoring_on_local_data_touch_no_network(toy_set, tmp_path, offline, typed):
    weights = tmp_path / "run.pt"
    code, out, err = typed(train_baseline, *small(toy_set, weights))
    assert (code, err) == (0, "") and "of 20 images" in out
    code, out, _ = typed(evaluate.main, weights, "--data", toy_set, "--device", "cpu")
    assert code == 0 and "of 20 images" in out
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["params"] == 2988 and result["images"] == 20 and len(result["metrics"]["per_class"]) == 10
    assert not offline


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("flags, told", [
    (("--out", "/nonexistent/run.pt"), "the folder /nonexistent does not exist"),
    (("--out", "run.pth"), "should end in .pt"), (("--fold", "7"), "'7' should be"),
    (("--fold", "0", "--noval"), "--noval"), (("--alpha", "1"), "--alpha"),
    (("--device", "cuda"), "--device cuda: "),
    (("--data", "nowhere"), "--data nowhere does not exist"), (("--data", "/proc"), "--data /proc"),
])
def test_a_mistake_is_one_line_and_leaves_nothing(toy_set, tmp_path, typed, monkeypatch, flags, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(train_baseline, *small(toy_set, tmp_path / "run.pt"), *flags)
    assert code == 2 and not out
    assert err.startswith("baseline.py: ") and told in err and err.count("\n") == 1
    assert left(tmp_path) == ["data"]


def test_out_of_memory_is_one_line_with_a_suggestion(toy_set, tmp_path, typed, monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")

    monkeypatch.setattr(loop, "train_step", greedy)
    code, _, err = typed(train_baseline, *small(toy_set, tmp_path / "run.pt"))
    assert code == 1 and err.count("\n") == 1 and "smaller --batch-size" in err
    assert left(tmp_path) == ["data"]


def test_weights_that_cannot_be_used_are_one_line(toy_set, tmp_path, typed):
    (tmp_path / "bad.pt").write_bytes(b"bad")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    for file, told in [("bad.pt", "cannot be read as a checkpoint (it is not a file of torch.save, or is cut off)"),
                       ("foreign.pt", "(another program wrote it)"), ("none.pt", "does not exist")]:
        code, out, err = typed(evaluate.main, tmp_path / file, "--data", toy_set, "--device", "cpu")
        assert code == 2 and told in err and "top-1" not in out
    code, _, err = typed(train_baseline, *small(toy_set, tmp_path / "bad.pt"))  # nor are they taken for a finished run
    assert code == 2 and "cannot be read as a checkpoint" in err
