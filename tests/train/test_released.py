"""The released networks and their files: half precision, recorded logits, and what every tool takes by default."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from untrained import write_weights

from models import BUDGET
from train import ROOT, UserError, classify, evaluate, export
from train.data import cifar10, sources
from train.engine import checkpoint, metrics, network
from train.engine.network import load, load_all, logits

MEGABYTES, TOLERANCE, LEAST = 10, 1e-3, 90.0
REAL = Path(os.environ.get("CIFAR10", ROOT / "data"))


@pytest.fixture
def half(typed, tmp_path):
    """half(weights, *words) -> (exit code, stdout, stderr) of the export to half.pt."""
    return lambda file, *words: typed(export.main, file, "--format", "half", "--out", tmp_path / "half.pt", *words)


# ---------------------------------------------------------------- the files in weights/


@pytest.fixture(scope="module", params=["released.pt", "seresnet164-distilled.pt"])
def released(request):
    return load(ROOT / "weights" / request.param)


def test_it_is_small_and_within_the_rules(released):
    assert released.file.stat().st_size <= MEGABYTES * 1e6
    released.check_clean()
    assert released.params <= BUDGET
    assert not released.synthetic and released.fold is None and released.provenance["seen_folds"] == [*range(5)]


def test_it_still_answers_as_recorded(released):
    wanted = released.content["check"]["logits"]
    found = logits(released.model, cifar10.load("synthetic", "test").images[:len(wanted)])
    assert len(wanted) == export.CHECKED and (found - wanted).abs().max() <= TOLERANCE


def test_it_knows_the_first_test_images(released):
    if not sources.present(REAL):
        pytest.skip(f"no CIFAR-10 in {REAL}, the folder that CIFAR10 names or data/")
    first = cifar10.load(REAL, "test").select(slice(200))
    assert metrics.accuracy(logits(released.model, first.images), first.labels) >= LEAST


# ---------------------------------------------------------------- half precision, on toy weights


def test_a_file_in_half_precision_answers_alike_and_keeps_the_rest(weights, half, tmp_path):
    content = checkpoint.load(weights)
    checkpoint.save(weights, content | {"temperature": 1.7})
    code, out, err = half(weights, "--allow-ties")
    assert (code, err) == (0, "") and "resnet18-2 in half precision" in out
    kept = checkpoint.load_weights(tmp_path / "half.pt")
    floats = [value for value in kept["state"].values() if value.is_floating_point()]
    halves = [value for value in floats if value.dtype == torch.float16]
    wholes = [value for value in floats if value.dtype == torch.float32]
    assert len(halves) + len(wholes) == len(floats) and wholes
    assert max(map(torch.numel, wholes)) <= min(map(torch.numel, halves))
    assert 100 * sum(map(torch.numel, wholes)) <= sum(map(torch.numel, floats))
    assert kept["ema"] is None and kept["temperature"] == 1.7
    assert all(kept[name] == content[name] for name in ("provenance", "config", "model", "options", "log"))
    whole, smaller = load(weights), load(tmp_path / "half.pt")
    assert {value.dtype for value in smaller.model.parameters()} == {torch.float32}
    images = cifar10.load("synthetic", "test").images
    before, after = (logits(one.model, images) for one in (whole, smaller))
    difference = (before - after).abs()
    assert 0 < difference.max() < 0.1 and f"{difference.max():.1e} at most" in out
    assert f"of 20,000 logits {(difference > 0).sum():,}" in out
    assert f"{(before.argmax(1) != after.argmax(1)).sum()} predictions differ" in out
    recorded = kept["check"]["logits"]
    assert recorded.dtype == torch.float32 and torch.equal(recorded, after[:16])
    assert smaller.fingerprint == whole.fingerprint
    with pytest.raises(UserError, match="a network counts once"):
        load_all([weights, tmp_path / "half.pt"])


def test_the_moving_average_is_what_is_kept(toy_set, weights, half, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TIE", 9.0)  # predictions of a network that nobody trained change more often
    other = write_weights(tmp_path / "other.pt", toy_set, seed=1)["state"]
    checkpoint.save(weights, checkpoint.load(weights) | {"ema": other})
    assert half(weights, "--allow-ties")[0] == 0
    kept = checkpoint.load_weights(tmp_path / "half.pt")
    state = kept["state"]
    assert kept["ema"] is None and state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name].to(state[name].dtype)) for name in other)
    assert all(state[name].dtype == other[name].dtype for name in other if not other[name].is_floating_point())


@pytest.mark.parametrize("margin, flags, code", [
    (0.5, [], 2), (0.5, ["--allow-ties"], 2), (5e-3, [], 2), (5e-3, ["--allow-ties"], 0),
])
def test_a_prediction_that_would_change_is_refused(weights, half, tmp_path, monkeypatch, margin, flags, code):
    """The half predicts another class for three images, which leads by `margin` in the whole."""
    before = torch.zeros(2_000, 10)
    before[:, 4] = margin
    after = before.clone()
    after[:3, 5] = margin + 1e-3
    predicted = iter([before, after])
    monkeypatch.setattr(export, "logits", lambda *_: next(predicted))
    found, out, err = half(weights, *flags)
    assert found == code and "3 predictions differ" in out + err
    assert (tmp_path / "half.pt").exists() == (code == 0) and err.count("\n") == (code > 0)
    assert ("--allow-ties" in err) == (margin < export.TIE and not flags)


def test_what_half_precision_cannot_hold_is_refused(weights, half, tmp_path):
    content = checkpoint.load(weights)
    next(iter(content["state"].values())).mul_(1e6)
    checkpoint.save(weights, content)
    code, _, err = half(weights)
    assert code == 2 and "not finite in half precision" in err and not (tmp_path / "half.pt").exists()


def test_other_files_are_not_overwritten_by_a_half(toy_set, weights, typed):
    before = weights.read_bytes()
    code, _, err = typed(export.main, weights, "--format", "half", "--out", weights)
    assert code == 2 and "no half of these" in err and weights.read_bytes() == before
    assert typed(export.main, weights, "--format", "half", "--allow-ties")[0] == 0
    assert weights.with_name("net-half.pt").exists() and weights.read_bytes() == before
    other = weights.with_name("other.pt")
    write_weights(other, toy_set, seed=1)
    for source in (other, weights.with_name("net-half.pt")):
        code, _, err = typed(export.main, source, "--format", "half", "--allow-ties", "--out", weights)
        assert code == 2 and "net.pt holds weights that are no half of these" in err and weights.read_bytes() == before
    for content in (b"of another program", None):
        mine = weights.with_name("mine.pt")
        mine.write_bytes(content) if content else checkpoint.save(mine, {"state": {}})
        was = mine.read_bytes()
        code, _, err = typed(export.main, weights, "--format", "half", "--allow-ties", "--out", mine)
        assert code == 2 and "mine.pt" in err and err.count("\n") == 1 and mine.read_bytes() == was


# ---------------------------------------------------------------- the default of every tool


def test_the_tools_take_it(toy_set, weights, tmp_path, monkeypatch, typed):
    monkeypatch.setattr(network, "RELEASED", weights)
    code, out, _ = typed(evaluate.main, "--data", toy_set, "--device", "cpu")
    assert code == 0 and out.startswith("test top-1 ") and "net.pt" in out
    code, out, _ = typed(export.main, "--format", "half", "--out", tmp_path / "half.pt", "--allow-ties")
    assert code == 0 and (tmp_path / "half.pt").exists()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    assert typed(classify.main, tmp_path / "red.png", "--device", "cpu")[0] == 0
    monkeypatch.setattr(network, "RELEASED", tmp_path / "none.pt")
    for main, words in [(evaluate.main, ["--data", toy_set]), (export.main, []), (classify.main, ["red.png"])]:
        code, out, err = typed(main, *words)
        assert (code, out) == (2, "") and "make quick" in err and err.count("\n") == 1


def test_the_lines_of_the_readme_work_in_any_folder(tmp_path):
    """The first block of Python in it, with the path of this repository in the place of the example's."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
    Image.new("RGB", (200, 100), "navy").save(tmp_path / "cat.jpg")
    code = code.replace("/path/to/cifar10-under-5m", str(ROOT))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr
    name, probability = done.stdout.split()
    assert name in cifar10.CLASSES and 0.1 < float(probability) < 1
