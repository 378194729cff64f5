"""`train/export.py`: the exported file answers bytes as the network answers normalized images."""

import importlib.util

import pytest
import torch

import models
from train import export
from train.engine import data, predict
from untrained import weights  # noqa: F401

HAVE_ONNX = all(importlib.util.find_spec(name) for name in export.NEEDED)


@pytest.fixture
def run(typed):
    """run(*words) -> (exit code, stdout, stderr) of the command."""
    return lambda *words: typed(export.main, *words)


def test_the_network_behind_bytes_is_the_network(weights):
    network = predict.load([weights])[0].model
    images = data.load(weights.parent / "data", "test").images
    with torch.inference_mode():
        assert torch.allclose(export.FromBytes(network)(images), predict.logits(network, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.skipif(
    not HAVE_ONNX, reason="onnx, onnxscript and onnxruntime are an optional extra"))])
def test_the_file_alone_gives_the_same_logits(weights, run, format):
    code, out, err = run(weights, "--format", format)
    file = weights.with_suffix({"torch": ".pt2", "onnx": ".onnx"}[format])
    assert (code, err) == (0, "") and str(file) in out and "logits agree within" in out
    if format == "torch":
        answer = torch.export.load(file).module()
    else:
        import onnxruntime
        session = onnxruntime.InferenceSession(str(file))
        answer = lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])  # noqa: E731
    images = data.load(weights.parent / "data", "test").images
    for count in (1, 3, 20):  # the batch is not frozen to the exporter's example
        wanted = predict.logits(predict.load([weights])[0].model, images[:count])
        assert answer(images[:count]).shape == (count, 10)
        assert torch.allclose(answer(images[:count]), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("error", [1e-4, float("nan")])
def test_a_difference_is_found_and_nothing_written(weights, run, monkeypatch, error):
    def flawed(network):
        file, answer = export.export_torch(network)
        return file, lambda images: answer(images) * (1 + error * (len(images) == 33))

    monkeypatch.setitem(export.FORMATS, "torch", (flawed, ".pt2"))
    code, _, err = run(weights)
    assert code == 2 and "nothing was written" in err and not weights.with_suffix(".pt2").exists()


def test_the_disparity_is_relative_to_the_largest_logit(weights):
    network = predict.load([weights])[0].model
    assert export.disparity(network, lambda images: predict.logits(network, images)) == 0
    smaller = export.disparity(network, lambda images: predict.logits(network, images) * 0.99)
    assert smaller == pytest.approx(0.01, rel=1e-3)


def test_what_onnx_lacks_is_named_with_the_command(weights, run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name, *rest: None if name in export.NEEDED else find(name, *rest))
    code, out, err = run(weights, "--format", "onnx")
    assert (code, out) == (2, "") and "pip install onnx onnxscript onnxruntime" in err and err.count("\n") == 1


def test_the_budget_binds_all_but_teachers(weights, run, monkeypatch):
    monkeypatch.setattr(models, "BUDGET", 1000)
    code, _, err = run(weights)
    assert code == 2 and "above the budget" in err and "--teacher" in err and not weights.with_suffix(".pt2").exists()
    assert run(weights, "--teacher")[0] == 0 and weights.with_suffix(".pt2").exists()


@pytest.mark.parametrize("flags, words", [
    (["--format", "tflite"], "invalid choice"), (["--out", "x.onnx"], "should end in .pt2"),
    (["--out", "nowhere/x.pt2"], "does not exist"),
])
def test_a_mistake_is_one_line(weights, run, flags, words):
    code, out, err = run(weights, *flags)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
