"""The loop: its schedule, its steps against ones written out, what it sees, what it logs and what it says of itself."""

import copy
import math
import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import toy
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from untrained import write_weights

import augment
import models
from train import UserError, export
from train.data import cifar10
from train.engine import checkpoint, device, loop, metrics
from train.engine.batches import batches, derive
from train.engine.loop import Stopped, cross_entropy, learning_rate
from train.engine.network import load, logits, total_epochs

COLUMNS = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"]

pytestmark = pytest.mark.usefixtures("toy_set")


# ---------------------------------------------------------------- the schedule


def rates(steps, **changes):
    return [learning_rate(toy.configure(**changes), step, steps) for step in range(steps)]


def test_the_learning_rate_by_hand():
    """Ten steps in ten epochs, two of warm-up, from 0.4 to 0.2: cos(k pi / 8) by hand."""
    cosines = [1, 0.923880, 0.707107, 0.382683, 0, -0.382683, -0.707107, -0.923880]
    settings = dict(epochs=10, warmup_epochs=2, lr=0.4, min_lr=0.2)
    expected = [0.2, 0.4] + [0.3 + 0.1 * cosine for cosine in cosines]
    assert rates(10, **settings) == pytest.approx(expected, abs=1e-6)
    assert rates(10, warmup_lr=0.1, **settings)[:3] == pytest.approx([0.25, 0.4, 0.4])
    assert rates(5, epochs=5, warmup_epochs=0)[0] == 0.1


@pytest.mark.parametrize("warmup_lr, triangular, others", [
    (None, [0.4, 1.2, 2.0], [1.0, 2.0, 2.0]), (0, [0.0, 1.0, 2.0], [1.0, 2.0, 2.0]),
    (1, [1.0, 1.5, 2.0], [1.5, 2.0, 2.0])])
def test_a_triangle_begins_at_the_warm_up_rate_or_a_fifth_of_the_peak(warmup_lr, triangular, others):
    """Two steps of warm-up: of step 0 and 1 for the triangle, of 1 and 2 for the other schedules."""
    found = {name: rates(10, schedule=name, epochs=10, warmup_epochs=2, lr=2, warmup_lr=warmup_lr)
             for name in ("triangular", "cosine", "constant")}
    assert found["triangular"] == pytest.approx([*triangular, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25])
    assert found["cosine"][:3] == found["constant"][:3] == pytest.approx(others) and set(found["constant"][2:]) == {2}
    floor = rates(10, schedule="triangular", epochs=10, warmup_epochs=2, lr=2, warmup_lr=warmup_lr, min_lr=0.2)
    assert floor == pytest.approx([*triangular, 1.775, 1.55, 1.325, 1.1, 0.875, 0.65, 0.425])


@pytest.mark.parametrize("warmup_epochs, epochs, warmup", [(5, 100, 15), (5, 10, 6), (0.5, 10, 2), (0, 10, 0)])
def test_the_warmup_is_at_most_a_fifth_of_the_run(warmup_epochs, epochs, warmup):
    """Three steps an epoch: the rate rises before its peak and falls behind it."""
    found = rates(3 * epochs, epochs=epochs, warmup_epochs=warmup_epochs)
    assert found[:warmup] == sorted(set(found[:warmup])) and found[warmup:] == sorted(found[warmup:], reverse=True)
    assert max(found[warmup + 1:]) < found[warmup] == 0.1 and (not warmup or found[0] == pytest.approx(0.1 / warmup))


# ---------------------------------------------------------------- steps


def test_the_seed_decides_the_first_weights_and_the_noise_inside_the_model_in_every_step(configure, monkeypatch):
    drawn, heads, step = [], [], loop.train_step

    def noted(network, *given):
        drawn.append(torch.initial_seed())
        heads.append(network.head.weight.detach().clone())
        return step(network, *given)

    monkeypatch.setattr(loop, "train_step", noted)
    for seed in (0, 1):
        loop.run(configure(str(seed), seed=seed))
    assert len(set(drawn)) == len(drawn) == 12 and not torch.equal(heads[0], heads[6])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_and_its_teachers_compute_in_its_precision_and_at_20_pixels_first(toy_set, tmp_path, configure,
                                                                               monkeypatch, precision):
    seen, build, frozen, copies = [], loop.build, loop.Frozen, []
    write_weights(tmp_path / "teacher.pt", toy_set)
    teacher = load(tmp_path / "teacher.pt")

    def watched(args):
        model = build(args)
        model.register_forward_hook(lambda net, images, out: seen.append((
            images[0].shape[3], out.dtype, net.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
        )) if net.training else None)
        return model

    def loss(logits, hard, soft):
        given.add(logits.dtype)
        return cross_entropy(0)(logits, hard)

    given = set()
    monkeypatch.setattr(loop, "build", watched)
    monkeypatch.setattr(loop, "Frozen", lambda *words: copies.append(frozen(*words)) or copies[-1])
    loop.run(configure(precision=precision, low_res=0.5), loss=loss, teachers=[teacher])
    assert seen == [(side, getattr(torch, precision), True) for side in [20] * 3 + [32] * 3]
    assert given == {torch.float32} and teacher.model.stem[0].weight.dtype == torch.float32
    assert copies[0].networks[0].stem[0].weight.dtype == getattr(torch, precision)


def test_small_images_are_those_of_pillow():
    class Spy(torch.nn.Linear):
        def forward(self, images):
            self.seen = images.detach()
            return super().forward(images.mean((2, 3)))

    images, spy = torch.randn(2, 3, 32, 32), Spy(3, 10)
    optimizer = torch.optim.SGD(spy.parameters(), lr=0.1)
    loop.train_step(spy, optimizer, toy.configure(), cross_entropy(0), images, [torch.eye(10)[:2]], side=20)
    for channel, small in zip(images.flatten(0, 1), spy.seen.flatten(0, 1), strict=True):
        wanted = Image.fromarray(channel.numpy()).resize((20, 20), Image.Resampling.BILINEAR)
        torch.testing.assert_close(small, torch.from_numpy(np.array(wanted)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ema_decay, momentum, nesterov, smoothing", [(0.12, 0.9, True, 0.0), (0.6, 0.8, False, 0.1)])
def test_a_run_equals_one_written_out(toy_set, configure, ema_decay, momentum, nesterov, smoothing):
    """SGD with momentum and weight decay, float targets, smoothing, EMA with its start: by hand, four steps."""
    args = configure(ema_decay=ema_decay, lr=0.05, weight_decay=0.01, warmup_epochs=0.5, batch_size=20,
                     momentum=momentum, nesterov=nesterov, smoothing=smoothing)
    content = checkpoint.load_weights(loop.run(args))
    train, _ = cifar10.split(cifar10.load(toy_set), 0)
    torch.manual_seed(derive(0, "init"))
    model = models.build("resnet18", width=2).to(memory_format=torch.channels_last)
    average, velocity, step = copy.deepcopy(model.state_dict()), {}, 0
    for epoch in range(2):
        model.train()
        for images, targets in batches(train.images, [cifar10.one_hot(train.labels)], args, epoch):
            model.zero_grad()
            smooth = (1 - smoothing) * targets + smoothing / 10
            (-(smooth * model(images).log_softmax(1)).sum(1)).mean().backward()
            lr = 0.05 if step == 0 else 0.025 * (1 + math.cos(math.pi * (step - 1) / 3))
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    gradient = weight.grad + 0.01 * weight
                    velocity[name] = gradient if step == 0 else momentum * velocity[name] + gradient
                    weight -= lr * (gradient + momentum * velocity[name] if nesterov else velocity[name])
            decay = min(ema_decay, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                if value.is_floating_point():
                    average[name] = decay * average[name] + (1 - decay) * value
            step += 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(content["state"][name], value, rtol=1e-3, atol=1e-5)
        if value.is_floating_point():
            torch.testing.assert_close(content["ema"][name], average[name], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(content["ema"]["head.weight"], content["state"]["head.weight"], atol=1e-4)


@pytest.mark.parametrize("decay_all", [True, False])
def test_without_decay_all_only_filters_and_matrices_decay(decay_all):
    model = models.build("resnet18", width=2)
    frozen = next(model.parameters()).requires_grad_(False)
    groups = loop.parameter_groups(toy.configure(decay_all=decay_all), model)
    decay = [(parameter, group.get("weight_decay", 0.1)) for group in groups for parameter in group["params"]]
    learned = {parameter for parameter in model.parameters() if parameter is not frozen}
    assert len(decay) == len(learned) and {parameter for parameter, _ in decay} == learned
    assert all(found == (0.1 if decay_all or parameter.dim() > 1 else 0) for parameter, found in decay)


@pytest.mark.parametrize("low_res, told", [(0.0, 0), (0.5, 1)])
def test_a_second_compilation_is_told(configure, monkeypatch, capsys, low_res, told):
    monkeypatch.setattr("train.engine.device.builds_kernels", lambda _: True)
    monkeypatch.setattr(torch, "compile", lambda model, **_: torch.nn.Sequential(model))
    loop.run(configure(compile=True, low_res=low_res))
    assert capsys.readouterr().out.count("this step compiles the network again, for images of 32x32 pixels\n") == told


@pytest.mark.parametrize("compiled", [False, True])
def test_an_average_of_constant_weights_is_constant_and_moves_otherwise(configure, monkeypatch, compiled):
    calls = []
    monkeypatch.setattr(device, "builds_kernels", lambda _: True)
    monkeypatch.setattr(torch, "compile", lambda model, **how: calls.append(how) or torch.nn.Sequential(model))
    moving = checkpoint.load_weights(loop.run(configure("moving", compile=compiled)))
    monkeypatch.setattr(loop, "learning_rate", lambda *_: 0.0)
    constant = checkpoint.load_weights(loop.run(configure("constant", compile=compiled)))
    assert calls == [{"dynamic": False, "mode": "default"}] * 2 * compiled
    learned = dict(models.build("resnet18", width=2).named_parameters())
    assert set(constant["state"]) == set(constant["ema"]) == set(models.build("resnet18", width=2).state_dict())
    assert all(torch.equal(constant["ema"][name], constant["state"][name]) for name in learned)
    assert all(not torch.equal(moving["ema"][name], moving["state"][name]) for name in learned)
    assert not torch.equal(constant["ema"]["stem.1.running_mean"], constant["state"]["stem.1.running_mean"])


class Watch(TorchDispatchMode):
    """Notes in which step an operation hands a number, or a shape, from the device to Python: it waits for it.

    .item(), bool(), float() and nonzero() are such operations, and .tolist(), .cpu() and .numpy() on a GPU.
    """

    def __init__(self, patch):
        super().__init__()
        self.step, self.asked = 0, []
        for name in ("tolist", "cpu", "numpy"):
            real = getattr(torch.Tensor, name)
            patch(torch.Tensor, name, lambda tensor, *a, real=real: self.asked.append(self.step) or real(tensor, *a))

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if torch.Tag.data_dependent_output in function.tags or function is torch.ops.aten.nonzero.default:
            self.asked.append(self.step)
        return function(*arguments, **options or {})


@pytest.mark.parametrize("spoil, steps", [
    (None, {0, 3, 6}), (bool, {*range(7)}), (lambda loss: loss.item(), {*range(7)}),
    (lambda loss: loss[None].cpu(), {*range(7)}), (lambda loss: loss[None].nonzero(), {*range(7)})])
def test_no_step_waits_for_the_device(configure, monkeypatch, spoil, steps):
    """A run of 6 steps asks only when it begins and when an epoch ends. A loss that does in every step is seen."""
    monkeypatch.setattr(loop, "LOOK_EVERY", 1e9)
    monkeypatch.setattr(augment, "CHUNK", 13)  # so that every batch is made in its step
    args = configure(augment="crop,flip,erase,cutout", mix="ricap", alternate_flip=False)

    def counted(given, hard):
        watch.step += 1
        parts = loop.cross_entropy(0)(given, hard)
        if spoil:
            spoil(parts["loss"].detach())
        return parts

    with Watch(monkeypatch.setattr) as watch:
        loop.run(args, loss=counted)
    assert set(watch.asked) | {0} == steps


# ---------------------------------------------------------------- weights to begin with


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_begins_with_the_weights_that_count_and_new_momentum(configure, monkeypatch, ema_decay):
    """A further epoch equals one of a network whose weights were replaced by hand."""
    start, build = loop.run(configure("start", ema_decay=ema_decay)), loop.build
    content = checkpoint.load_weights(start)

    def by_hand(args):
        model = build(args)
        model.load_state_dict(content["ema"] or content["state"])
        return model

    found = toy.result(loop.run(configure("found", init=start, seed=1, epochs=1)))
    monkeypatch.setattr(loop, "build", by_hand)
    wanted = toy.result(loop.run(configure("wanted", seed=1, epochs=1)))
    assert found["weights"]["config"].pop("init") == load(start).fingerprint
    assert wanted["weights"]["config"].pop("init") is None and toy.different(found, wanted) is None


def test_the_weights_to_begin_with_are_told_with_all_that_came_before(configure):
    first = loop.run(configure("first", epochs=3))
    second = loop.run(configure("second", init=first, seed=1))
    third = load(loop.run(configure("third", init=second, seed=2, epochs=1)))
    assert [run["run"] for run in third.history] == ["third", "second", "first"]
    assert [run["config"]["epochs"] for run in third.history] == [1, 2, 3] and total_epochs(third.history) == 6
    assert third.provenance["before"] == load(second).history
    assert third.provenance["before"][1]["fingerprint"] == load(first).fingerprint
    assert third.describe().count(", after ") == 2 and ", after 3 epochs by `" in third.describe()


def write_start(file, data, **kept):
    """Weights to begin with; `kept` changes their run, and what their provenance says."""
    about = {name: kept.pop(name) for name in ("seen_folds", "train_digest") if name in kept}
    content = write_weights(file, data, **kept)
    checkpoint.save(file, content | {"provenance": content["provenance"] | about})


ALL_FOLDS = [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kept, changes, told", [
    ({"width": 3}, {}, "start.pt is resnet18-3, and the network to train is resnet18-2"),
    ({"fold": 1}, {}, "start.pt was trained on images that --fold 0 holds out"),
    ({"fold": None}, {"fold": 4}, "start.pt was trained on images that --fold 4 holds out"),
    ({"seen_folds": ALL_FOLDS}, {}, "start.pt was trained on images that --fold 0 holds out"),  # through its teachers
    ({"fold": None, "include_test": True}, {"fold": None}, "start.pt was trained with the test images, which"),
    ({"source": "synthetic"}, {}, "start.pt was trained on other images than those of"),
    ({"train_digest": "0"}, {}, "start.pt was trained on other images than those of .*cifar10.npz"),
    ({}, {"out": "start.pt"}, "start.pt is the file that this run writes: name another with --out"),
])
def test_weights_to_begin_with_that_do_not_fit_are_refused(
        toy_set, configure, tmp_path, kept, changes, told, monkeypatch):
    write_start(tmp_path / "start.pt", toy_set, **kept)
    changes = {name: tmp_path / value if name == "out" else value for name, value in changes.items()}
    if "train_digest" not in kept:  # before the data is read
        monkeypatch.setattr(cifar10, "load", None)
    with pytest.raises(UserError, match=told):
        loop.run(configure(init=tmp_path / "start.pt", fresh=True, **changes))
    assert (tmp_path / "start.pt").exists()


@pytest.mark.parametrize("kept, changes, seen", [
    ({"fold": None, "include_test": True}, {"fold": None, "include_test": True}, ALL_FOLDS),
    ({"fold": 3}, {"fold": None}, ALL_FOLDS), ({"fold": 3}, {"fold": 3}, [0, 1, 2, 4]),
    ({"seen_folds": ALL_FOLDS}, {"fold": None}, ALL_FOLDS)])
def test_a_run_may_begin_with_weights_that_know_no_more_than_it(toy_set, configure, tmp_path, kept, changes, seen):
    write_start(tmp_path / "start.pt", toy_set, **kept)
    told = load(loop.run(configure(init=tmp_path / "start.pt", epochs=1, **changes))).provenance
    assert told["include_test"] is changes.get("include_test", False) and told["seen_folds"] == seen


@pytest.mark.usefixtures("handlers")
def test_fastnet_goes_on_behind_the_first_layer_that_it_was_trained_with(configure, tmp_path, capsys):
    """From a file in half precision, of a run on other images; and when killed and resumed."""
    fastnet = dict(model="fastnet", width=4, epochs=1)
    start = load(loop.run(configure("start", limit=30, **fastnet)))
    export.write_half(start, tmp_path / "half.pt", allow_ties=True)

    def run(name, loss=None):
        return toy.result(loop.run(configure(name, init=tmp_path / "half.pt", seed=1, **fastnet), loss=loss))

    with pytest.raises(Stopped):
        run("stopped", toy.terminate(2))
    assert toy.different(run("stopped"), whole := run("whole")) is None
    assert re.search("3 steps in 1 epoch, from half.pt", capsys.readouterr().out)
    half = checkpoint.load(tmp_path / "half.pt")["state"]
    assert torch.equal(whole["weights"]["state"]["whitening.weight"], half["whitening.weight"].float())


# ---------------------------------------------------------------- what is logged


def test_the_log_has_its_columns_and_true_figures(toy_set, configure, tmp_path):
    weights = loop.run(configure(ema_decay=0.0, epochs=3))
    log = pd.read_csv(tmp_path / "run.csv")
    assert list(log.columns) == COLUMNS and log.epoch.tolist() == [1, 2, 3]
    assert log.lr.tolist() == [rates(9, epochs=3)[step] for step in (2, 5, 8)]
    _, val = cifar10.split(cifar10.load(toy_set), 0)
    found = logits(load(weights).model, val.images)
    assert log.val_accuracy.iloc[-1] == metrics.accuracy(found, val.labels)
    assert log.val_loss.iloc[-1] == metrics.nll(found, val.labels)
    assert (log.seconds > 0).all() and (log.images_per_second >= 39 / log.seconds).all()


def test_training_figures_are_means_over_the_images(configure, tmp_path):
    seen = []

    def record(given, targets):
        loss = F.cross_entropy(given, targets, reduction="none")
        seen.append((loss.detach(), given.argmax(1) == targets.argmax(1)))
        return {"loss": loss.mean(), "twice": 2 * loss.mean()}

    loop.run(configure(), loss=record)
    log = pd.read_csv(tmp_path / "run.csv")
    assert list(log.columns) == [*COLUMNS[:4], "train_twice", *COLUMNS[4:]]
    assert [len(loss) for loss, _ in seen] == [13] * 6
    for epoch in range(2):
        losses, right = (torch.cat(parts) for parts in zip(*seen[3 * epoch:3 * epoch + 3], strict=True))
        assert log.train_loss[epoch] == pytest.approx(losses.mean().item(), abs=1e-6)
        assert log.train_accuracy[epoch] == 100 * right.double().mean().item()
    assert log.train_twice.tolist() == pytest.approx((2 * log.train_loss).tolist())


@pytest.mark.parametrize("changes", [dict(limit=1, fold=None), dict(limit=14, fold=None), dict(batch_size=1, limit=5),
                                     dict(batch_size=999), dict(epochs=1)])
def test_the_smallest_runs_work_and_without_validation_its_cells_are_empty(configure, tmp_path, changes):
    loop.run(configure(**changes))
    log = pd.read_csv(tmp_path / "run.csv")
    assert list(log.columns) == COLUMNS and log.train_loss.notna().all()
    assert log.val_loss.isna().all() == log.val_accuracy.isna().all() == ("limit" in changes)


def test_the_first_line_states_the_run_and_the_last_its_scores(configure, capsys):
    loop.run(configure(epochs=3))
    first, last = capsys.readouterr().out.splitlines()
    assert re.match(r"resnet18-2: 2,988 parameters, .+\), 1 thread, float32, channels_last, 40 images, 9 steps in "
                    r"3 epochs, about", first)
    assert re.search("validation .* of 20 images, .* for 3 epochs", last)


# ---------------------------------------------------------------- what finished weights say of themselves


def test_the_weights_file_tells_what_made_it(toy_set, configure, monkeypatch):
    monkeypatch.setattr(loop, "commit", lambda: "abc+")
    args = configure()
    content = checkpoint.load_weights(loop.run(args))
    train, _ = cifar10.split(cifar10.load(toy_set), 0)
    kept = {name: value for name, value in vars(args).items()
            if name not in {"data", "out", "device", "compile", "fresh"}}
    assert content["config"] == kept | {"augment": [], "seen_folds": []} and content["model"] == "resnet18"
    assert content["options"] == {"num_classes": 10, "width": 2, "blocks": 2, "zero_init": False}
    told = content["provenance"]
    assert (told["run"], told["params"], told["images"], told["steps"]) == ("run", 2988, 40, 6)
    assert told["train_digest"] == train.digest and told["source"] == "cifar10.npz" and told["commit"] == "abc+"
    assert told["include_test"] is told["over_budget"] is False and told["unlabelled"] == 0
    assert told["threads"] == "1" and told["hardware"].endswith("), 1 thread")
    assert told["fingerprint"] == checkpoint.digest(content["ema"])[:16]


def test_images_without_a_label_are_counted_and_not_part_of_the_digest(toy_set, configure, tmp_path):
    def with_unlabelled(train):
        more = cifar10.load(toy_set, "test").select(slice(13))
        return cifar10.join(train, replace(more, labels=torch.full((13,), -1))), ()

    known, right = [], []

    def counting(logits, hard):
        labelled = hard.sum(1) == 1
        known.append(labelled.sum().item())
        right.append((logits.argmax(1) == hard.argmax(1))[labelled].sum().item())
        return cross_entropy(0)(logits, hard)

    before = load(loop.run(configure("a", epochs=1))).provenance
    told = load(loop.run(configure("b", epochs=1), with_unlabelled, counting)).provenance
    assert (told["unlabelled"], told["images"], told["steps"]) == (13, 53, 4)
    assert told["train_digest"] == before["train_digest"]
    row = pd.read_csv(tmp_path / "b.csv").iloc[0]
    assert row.train_accuracy == pytest.approx(100 * sum(right) / sum(known)) and 27 <= sum(known) <= 40


@pytest.mark.parametrize("fold, teacher, table, seen", [
    (0, None, (), [1, 2, 3, 4]), (None, None, (), ALL_FOLDS), (3, None, (), [0, 1, 2, 4]), (0, 0, (), [1, 2, 3, 4]),
    (0, 1, (), ALL_FOLDS), (0, None, (2, 1), [1, 2, 3, 4]), (0, None, (0, 1), ALL_FOLDS)])
def test_a_fold_that_the_teachers_have_seen_is_no_validation(toy_set, configure, tmp_path, capsys, fold, teacher,
                                                               table, seen):
    """By their own folds, or by what the table of their logits says."""
    teachers = []
    if teacher is not None:
        write_weights(tmp_path / "teacher.pt", toy_set, fold=teacher)
        teachers = [load(tmp_path / "teacher.pt")]
    args = configure(fold=fold, epochs=1)
    args.seen_folds = table

    def loss(given, hard, *soft):
        assert len(soft) == len(teachers) and all(tensor.shape == given.shape for tensor in soft)
        return loop.cross_entropy(0)(given, hard)

    student = load(loop.run(args, loss=loss, teachers=teachers))
    assert student.provenance["seen_folds"] == seen and student.fold == (None if fold in seen else fold)
    row, no_validation = pd.read_csv(tmp_path / "run.csv").iloc[0], fold in seen
    assert (f"NO VALIDATION (the teachers have trained on fold {fold}): " in capsys.readouterr().out) == no_validation
    assert pd.isna(row.val_loss) == pd.isna(row.val_accuracy) == (no_validation or fold is None)
    assert ("seen_fold_accuracy" in row) == ("seen_fold_loss" in row) == no_validation


@pytest.mark.usefixtures("handlers")
def test_all_processes_of_a_run_are_told_of(configure, monkeypatch):
    def process(commit, hardware, loss=None):
        monkeypatch.setattr(loop, "commit", lambda: commit)
        monkeypatch.setattr(loop, "hardware", lambda device: hardware)
        return loop.run(configure(), loss=loss)

    for commit, hardware, steps in (("a", "abacus", 1), ("b", "abacus", 2)):
        with pytest.raises(Stopped):
            process(commit, hardware, toy.terminate(steps))
    told = load(process("b", "slate")).provenance
    assert (told["commit"], told["hardware"], told["threads"]) == ("a; b", "abacus; slate", "1")
    assert told["torch"] == str(torch.__version__)


def git(folder, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_is_told_with_a_mark_when_files_were_changed(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # as in a hook of git
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull), monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setattr(loop, "ROOT", tmp_path)
    assert loop.commit() == ""
    file = tmp_path / "file"
    git(tmp_path, "init", "-q"), file.write_text("1"), git(tmp_path, "add", "."), git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag, which is not what is told")
    first = git(tmp_path, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{12}", loop.commit()) and first.startswith(loop.commit())
    file.write_text("2")
    assert loop.commit() == first[:12] + "+"
    monkeypatch.setenv("PATH", "")
    assert loop.commit() == ""


def test_a_run_gives_the_signals_back_and_works_in_a_thread(configure):
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    loop.run(configure(epochs=1))
    assert [signal.getsignal(number) for number in numbers] == before
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(loop.run, configure("thread", epochs=1)).result().exists()


# ---------------------------------------------------------------- what is refused


def test_the_budget_is_checked_before_training(configure, monkeypatch):
    monkeypatch.setattr(models, "BUDGET", 2988)
    assert load(loop.run(configure(epochs=1))).params == 2988
    monkeypatch.setattr(models, "BUDGET", 2987)
    with pytest.raises(UserError, match="2,988 parameters, 1 above the budget"):
        loop.run(configure("over"))
    assert load(loop.run(configure("teacher", allow_over_budget=True, epochs=1))).provenance["over_budget"] is True


@pytest.mark.parametrize("changes, told", [
    (dict(width=0), "width.*0"), (dict(width=-1), "width"),
    (dict(model="seresnet20", depth=12), "12"), (dict(model="fastnet", width=8, widths=[4, 4, 4]), "contradicts"),
    (dict(model="pyramidnet", shakedrop=2), "2")])
def test_a_model_that_cannot_be_built_is_a_users_mistake(configure, changes, told):
    with pytest.raises(UserError, match=told):
        loop.run(configure(**changes))


# ---------------------------------------------------------------- the test images


def seen_in_training(args, monkeypatch):
    """The ids of all images that reach `batches`, and the weights."""
    seen = set()

    def tap(images, *rest):
        seen.update(cifar10.image_ids(images.permute(0, 2, 3, 1).contiguous().numpy()))
        return batches(images, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batches", tap)
        return seen, loop.run(args)


@pytest.mark.parametrize("fold", [0, 3, None])
def test_no_test_image_and_no_held_out_image_reaches_training(toy_set, configure, monkeypatch, fold):
    parts, load_images = [], cifar10.load
    monkeypatch.setattr(cifar10, "load", lambda path, part="train": parts.append(part) or load_images(path, part))
    seen, _ = seen_in_training(configure(fold=fold), monkeypatch)
    train, val = cifar10.split(load_images(toy_set), fold)
    assert seen == set(train.ids) and not seen & set(load_images(toy_set, "test").ids)
    assert val is None or not seen & set(val.ids)
    assert set(parts) == {"train"}  # the file of the test images is not even read


def test_weights_that_saw_the_test_images_are_marked(toy_set, configure, monkeypatch):
    seen, weights = seen_in_training(configure(include_test=True, fold=None), monkeypatch)
    assert set(cifar10.load(toy_set, "test").ids) < seen and len(seen) == 80
    assert load(weights).provenance["include_test"] is True
