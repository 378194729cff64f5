"""Logits that depend on nothing but the image, predictions, and what is checked of finished weights."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from untrained import write_weights

import models
from augment.basic import normalize
from train import UserError
from train.data import cifar10
from train.engine import checkpoint, loop, metrics
from train.engine import network as engine
from train.engine.network import load, load_all, logits, mean_logits, restore


@pytest.fixture
def model():
    torch.manual_seed(0)
    return models.build("resnet18", width=2)


@pytest.fixture
def images():
    """uint8 (20, 3, 32, 32)."""
    return cifar10.as_dataset(*toy.arrays("test"), "toy").images


@pytest.fixture
def network(toy_set, tmp_path):
    """network(**changes): a Network of the toy set, of a run with a configuration so changed."""

    def build(**changes):
        write_weights(tmp_path / "net.pt", toy_set, **changes)
        return load(tmp_path / "net.pt")

    return build


# ---------------------------------------------------------------- logits


def test_logits_depend_on_neither_order_nor_batch_size(model, images, monkeypatch):
    whole = logits(model, images)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(logits(model, images[order]), whole[order])
    for size in (1, 7, 19):
        monkeypatch.setattr(engine, "BATCH", size)
        torch.testing.assert_close(logits(model, images), whole)
    assert logits(model, images[:0]).shape == (0, 10)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", [True, False])
def test_a_pass_changes_nothing_in_the_network_nor_in_cudnn_whatever_happens(model, images, monkeypatch, mode, fails):
    """cudnn's benchmark chooses anew in every process, and each algorithm adds in an order of its own."""
    seen = []

    def hook(*_):
        seen.append((model.training, torch.backends.cudnn.benchmark))
        if fails:
            raise RuntimeError("out of memory, say")

    model.train(mode).register_forward_pre_hook(hook)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", mode)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="say"):
            logits(model, images)
    else:
        found = logits(model, images)
        assert found.dtype == torch.float32 and not found.requires_grad
    assert seen == [(False, False)] and model.training is mode and torch.backends.cudnn.benchmark is mode
    assert toy.different(before, dict(model.state_dict())) is None


def test_tta_is_the_mean_of_an_image_and_its_mirror_image(model, images):
    plain, mirrored = logits(model, images), logits(model, images.flip(-1))
    torch.testing.assert_close(logits(model, images, tta=True), (plain + mirrored) / 2)
    assert not torch.equal(plain, mirrored)


@pytest.mark.parametrize("wrong, told", [
    (lambda x: x.float() / 255, r"float32 \(20, 3, 32, 32\)"), (lambda x: x.permute(0, 2, 3, 1), r"\(20, 32, 32, 3\)"),
    (lambda x: x.repeat(1, 1, 2, 2), r"\(20, 3, 64, 64\)"), (lambda x: x[0], r"\(3, 32, 32\)"),
    (lambda x: x.numpy(), "uint8"), (list, "list")])
def test_images_of_another_form_have_no_logits(model, images, wrong, told):
    with pytest.raises(UserError, match=f"a tensor of uint8 .N, 3, 32, 32., 0 to 255, not .*{told}"):
        logits(model, wrong(images))


def test_several_networks_answer_by_the_mean_of_their_logits(toy_set, tmp_path, images):
    for seed in range(3):
        write_weights(tmp_path / f"{seed}.pt", toy_set, seed)
    networks = load_all([tmp_path / f"{seed}.pt" for seed in range(3)])
    mean = torch.stack([logits(network.model, images, tta=True) for network in networks]).mean(0)
    torch.testing.assert_close(mean_logits(networks, images, tta=True, bars=False), mean)


# ---------------------------------------------------------------- predictions


def as_given(kind, nhwc, folder):
    """The images (N, 32, 32, 3) in one of the forms that `predict` takes."""
    nchw, pictures = nhwc.transpose(0, 3, 1, 2), [Image.fromarray(image) for image in nhwc]
    files = [folder / f"{number}.png" for number in range(len(nhwc))]
    for file, picture in zip(files, pictures, strict=True):
        picture.save(file)
    fixed = nchw.copy()
    fixed.flags.writeable = False
    return {"nhwc": nhwc, "nchw": nchw, "tensor": torch.from_numpy(nchw.copy()), "array read-only": fixed,
            "backwards in memory": nchw[:, :, :, ::-1].copy()[:, :, :, ::-1], "pictures": pictures, "files": files,
            "words": [str(file) for file in files], "mixed": (*files[:5], *pictures[5:10], *nhwc[10:])}[kind]


@pytest.mark.parametrize("kind", ["nhwc", "nchw", "tensor", "array read-only", "backwards in memory", "pictures",
                                  "files", "words", "mixed"])
def test_a_network_predicts_pictures_of_every_form(network, tmp_path, images, kind):
    trained = network(sharpness=0.01)
    trained.content["temperature"] = 2.0
    wanted = (logits(trained.model, images).double() / 2).softmax(1).numpy()
    names, found = trained.predict(as_given(kind, images.permute(0, 2, 3, 1).numpy(), tmp_path))
    assert np.array_equal(found, wanted) and found.dtype == np.float64
    assert names == [cifar10.CLASSES[k] for k in wanted.argmax(1)] and found.max() < 0.9


def test_one_picture_of_any_size_is_seen_in_its_centre(network, tmp_path, images):
    trained, one = network(sharpness=0.01), images[3].permute(1, 2, 0).numpy()
    large = np.pad(one.repeat(4, 0).repeat(4, 1), ((0, 0), (40, 40), (0, 0)))
    Image.fromarray(large).save(tmp_path / "large.png")
    answers = [trained.predict(given)[1] for given in (large, Image.fromarray(large), tmp_path / "large.png", [large])]
    assert all(np.array_equal(answer, answers[0]) and answer.shape == (1, 10) for answer in answers)
    np.testing.assert_allclose(trained.predict(one)[1], trained.predict(images[3:4])[1])
    tta = logits(trained.model, images[:2], tta=True).softmax(1)
    np.testing.assert_allclose(trained.predict(images[:2], tta=True)[1], tta, rtol=1e-5)


@pytest.mark.parametrize("given, told", [
    (np.zeros((2, 32, 32, 3), np.float32), "uint8, 0 to 255, not float32"), (torch.zeros(2, 3, 32, 32), "not float32"),
    (np.zeros((2, 32, 32, 3), np.int64), "not int64"), (np.zeros((2, 64, 64, 3), np.uint8), r"not \(2, 64, 64, 3\)"),
    (np.zeros((3, 32, 32), np.uint8), r"not \(3, 32, 32\)"), (np.zeros((32, 32), np.uint8), r"not \(32, 32\)"),
    ([np.zeros((32, 32, 3), np.float64)], "not float64"), ([], "pictures should be"), (None, "pictures should be"),
    ("nothing.png", "nothing.png does not exist")])
def test_what_is_no_picture_is_refused(network, given, told):
    with pytest.raises(UserError, match=told):
        network().predict(given)


# ---------------------------------------------------------------- finished networks


@pytest.mark.parametrize("decay, precision", [(0.0, "float32"), (0.9, "float32"), (0.9, "bfloat16")])
def test_weights_come_back_as_the_network_that_counts_and_answer_in_float32(configure, toy_set, decay, precision):
    weights = loop.run(configure(ema_decay=decay, precision=precision))
    content, trained = checkpoint.load_weights(weights), load(weights)
    wanted = models.build("resnet18", width=2)
    wanted.load_state_dict(content["ema"] if decay else content["state"])
    _, val = cifar10.split(cifar10.load(toy_set), 0)
    with torch.no_grad():
        by_hand = wanted.eval()(normalize(val.images))
    assert not trained.model.training and trained.fold == 0 and trained.config["precision"] == precision
    torch.testing.assert_close(logits(trained.model, val.images), by_hand, rtol=1e-5, atol=1e-5)
    assert content["log"][-1]["val_loss"] == pytest.approx(metrics.nll(by_hand, val.labels), abs=1e-6)


def test_weights_of_another_model_do_not_fit(model, toy_set, tmp_path):
    content = {"model": "resnet18", "options": {"width": 2}, "state": model.state_dict(), "ema": None}
    restore(content)
    for changes, told in [(dict(options={"width": 3}), "size mismatch for stem.0.weight"), (dict(model="none"), "none"),
                          (dict(options={"depth": 3}), "no option depth"), (dict(state={}), "Missing key.*stem")]:
        with pytest.raises(UserError, match=f"^weights of '(resnet18|none)' do not fit: .*{told}"):
            restore(content | changes)
    checkpoint.save(tmp_path / "net.pt", write_weights(tmp_path / "net.pt", toy_set) | {"state": {}})
    with pytest.raises(UserError, match="net.pt: weights of 'resnet18' do not fit"):
        load(tmp_path / "net.pt")


def test_logits_may_be_what_another_network_learns_from(network, images):
    found = logits(network().model, images)
    student = torch.zeros_like(found, requires_grad=True)
    torch.nn.functional.mse_loss(student, found).backward()
    found -= found.mean()
    assert student.grad.norm() > 0


def test_a_network_named_twice_is_refused(toy_set, tmp_path):
    """Under another name, too, and in another precision."""
    content = write_weights(tmp_path / "a.pt", toy_set)
    shutil.copy(tmp_path / "a.pt", tmp_path / "b.pt")
    half = {key: value.half() if value.is_floating_point() else value for key, value in content["state"].items()}
    checkpoint.save(tmp_path / "c.pt", content | {"state": half})
    for twin in "abc":
        with pytest.raises(UserError, match=f"{twin}.pt repeats .*a.pt: a network counts once"):
            load_all([tmp_path / "a.pt", tmp_path / f"{twin}.pt"])
    with pytest.raises(UserError, match="nothing.pt does not exist"):
        load_all([tmp_path / "nothing.pt"])


def test_without_a_name_it_is_the_released_network(network, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "RELEASED", tmp_path / "net.pt")
    with pytest.raises(UserError, match="a path is empty"):  # it is no name of the released network
        load("")
    with pytest.raises(UserError, match="no network is released here, so name WEIGHTS"):
        load()
    assert network().fingerprint == load().fingerprint == load_all()[0].fingerprint


def test_weights_that_saw_the_test_images_are_contaminated_and_no_teacher(network, toy_set):
    network().check_clean()
    marked = network(include_test=True)
    with pytest.raises(engine.Contaminated, match="^CONTAMINATED: .*net.pt was trained with") as caught:
        marked.check_clean()
    assert caught.value.code == 3
    with pytest.raises(UserError, match="net.pt was trained with the test images, which would leak into what learns"):
        marked.check_source(toy_set, include_test=False)
    marked.check_source(toy_set, include_test=True)


@pytest.mark.parametrize("source, path, fits", [
    ("cifar10.npz", "data", True), ("synthetic", "synthetic", True),
    ("synthetic with its test images", "synthetic", True), ("synthetic", "data", False),
    ("cifar-10-batches-py", "synthetic", False)])
def test_weights_belong_to_the_images_of_their_kind(network, source, path, fits):
    trained = network(source=source)
    assert (trained.classes == cifar10.CLASSES) == (not source.startswith("synthetic"))
    if fits:
        return trained.check_kind(path)
    with pytest.raises(UserError, match=f"net.pt was trained on other images than those of {path}"):
        trained.check_kind(path)


@pytest.mark.parametrize("fold, limit", [(2, None), (0, 30), (None, 20)])
def test_a_network_knows_what_it_was_trained_on(network, toy_set, fold, limit):
    whole, trained = cifar10.load(toy_set), network(fold=fold, limit=limit)
    found, wanted = trained.split(whole), cifar10.split(whole, fold, limit)
    assert [part and part.digest for part in found] == [part and part.digest for part in wanted]
    with pytest.raises(UserError, match="net.pt was trained on other images than those of .*cifar10.npz"):
        trained.split(replace(whole, labels=whole.labels.flip(0)))


def test_a_fold_that_its_teachers_saw_was_not_held_out(network):
    trained = network(fold=2)
    assert trained.fold == 2 and "fold 2 held out, seed" in trained.describe()
    trained.provenance["seen_folds"] = [0, 1, 2, 3, 4]
    assert trained.fold is None and "fold 2 held out, which its teachers had seen, seed" in trained.describe()
    assert network(fold=None).fold is None and "on 60 images, none held out" in network(fold=None).describe()
