"""`train/export.py`: the exported file has the logits for bytes that the network has for normalized images."""

import pytest
import torch

from train import export
from train.data import cifar10
from train.engine.network import load, logits


@pytest.fixture
def run(typed):
    """run(*words) -> (exit code, stdout, stderr) of the command."""
    return lambda *words: typed(export.main, *words)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_the_file_alone_gives_the_same_logits(weights, run, format):
    if format == "onnx":  # an optional extra
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    code, out, err = run(weights, "--format", format)
    file = weights.with_suffix({"torch": ".pt2", "onnx": ".onnx"}[format])
    assert (code, err) == (0, "") and str(file) in out and "logits agree within" in out
    if format == "torch":
        answer = torch.export.load(file).module()
    else:
        session = onnxruntime.InferenceSession(str(file))

        def answer(images):
            return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    images = cifar10.load(weights.parent / "data", "test").images
    for count in (1, 3, 20):  # the batch is not frozen to the exporter's example
        wanted = logits(load(weights).model, images[:count])
        assert answer(images[:count]).shape == (count, 10)
        assert torch.allclose(answer(images[:count]), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("error", [1e-4, float("nan")])
def test_a_difference_is_found_and_nothing_written(weights, run, monkeypatch, error):
    def flawed(network):
        return b"", lambda images: logits(network.network, images) * (1 + error * (len(images) == 33))

    monkeypatch.setitem(export.FORMATS, "torch", (flawed, ".pt2"))
    code, _, err = run(weights)
    assert code == 2 and "nothing was written" in err and not weights.with_suffix(".pt2").exists()


def test_the_disparity_is_relative_to_the_largest_logit(weights):
    network = load(weights).model
    assert export.disparity(network, lambda images: logits(network, images)) == 0
    smaller = export.disparity(network, lambda images: logits(network, images) * 0.99)
    assert smaller == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("flags, words", [
    (["--format", "tflite"], "invalid choice"), (["--out", "x.onnx"], "should end in .pt2"),
    (["--out", "nowhere/x.pt2"], "does not exist"), (["--allow-ties"], "a flag of --format half"),
])
def test_a_mistake_is_one_line(weights, run, flags, words):
    code, out, err = run(weights, *flags)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
