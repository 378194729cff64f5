"""The loop: its schedule, its steps against ones written out, what it sees and what it logs."""

import copy
import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import models
import toy
from augment.basic import normalize
from train import evaluate, export
from train.engine import checkpoint, data, loop, predict
from train.engine.command import UserError
from train.engine.loop import batches, derive
from train.engine.state import Stopped

COLUMNS = ["epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds", "images_per_second"]

pytestmark = pytest.mark.usefixtures("toy_set")


# ---------------------------------------------------------------- the schedule


def test_the_learning_rate_by_hand(recipe):
    """Ten steps in ten epochs, two of warm-up, from 0.4 to 0.2: cos(k pi / 8) by hand."""
    cosines = [1, 0.923880, 0.707107, 0.382683, 0, -0.382683, -0.707107, -0.923880]
    settings = dict(epochs=10, warmup_epochs=2, lr=0.4, min_lr=0.2)
    expected = [0.2, 0.4] + [0.3 + 0.1 * cosine for cosine in cosines]
    assert [recipe(**settings).learning_rate(step, 10) for step in range(10)] == pytest.approx(expected, abs=1e-6)
    from_below = recipe(warmup_lr=0.1, **settings)
    assert [from_below.learning_rate(step, 10) for step in range(3)] == pytest.approx([0.25, 0.4, 0.4])


def test_without_warmup_it_starts_at_its_peak_and_a_floor_at_the_peak_is_constant(recipe):
    assert recipe(epochs=5, warmup_epochs=0).learning_rate(0, 5) == 0.1
    constant = recipe(epochs=7, warmup_epochs=0, min_lr=0.1)
    assert {constant.learning_rate(step, 7) for step in range(7)} == {0.1}


@pytest.mark.parametrize("warmup_epochs, epochs, warmup", [(5, 100, 15), (5, 10, 6), (0.5, 10, 2), (0, 10, 0)])
def test_the_warmup_is_at_most_a_fifth_of_the_run(recipe, warmup_epochs, epochs, warmup):
    """Three steps an epoch."""
    assert recipe(warmup_epochs=warmup_epochs, epochs=epochs).warmup_steps(3 * epochs) == warmup


def test_seeds_differ_by_every_part_and_fit_a_generator():
    seeds = [derive(*parts) for parts in [(0, "a", 1), (0, "a", 2), (1, "a", 1), (0, "b", 1), (0, "a", 1, 1)]]
    assert len(set(seeds)) == 5 and derive(0, "a", 1) == seeds[0]
    assert derive(0, "augment", 3) == 604450161917222388  # another would change every run
    assert all(0 <= seed < 2**63 for seed in [*seeds, *map(derive, range(1000))])
    torch.Generator().manual_seed(max(seeds))


# ---------------------------------------------------------------- batches


def test_an_epoch_is_whole_batches_of_different_images_in_an_order_of_its_own(toy_set, recipe):
    dataset = data.load(toy_set)
    targets = data.one_hot(dataset.labels)
    number = torch.arange(60.0).view(60, 1).expand(60, 10)
    orders = []
    for epoch in range(2):
        steps = list(batches(dataset.images, [targets, number], recipe(), epoch))
        rows = torch.cat([numbers[:, 0] for _, _, numbers in steps]).long()
        assert [len(images) for images, *_ in steps] == [13] * 4 and len(set(rows.tolist())) == 52
        assert torch.equal(torch.cat([images for images, *_ in steps]), normalize(dataset.images[rows]))
        assert torch.equal(torch.cat([hard for _, hard, _ in steps]), targets[rows])
        assert all(images.is_contiguous(memory_format=torch.channels_last) for images, *_ in steps)
        orders.append(rows.tolist())
    assert orders[0] != orders[1] and len({*orders[0], *orders[1]}) > 52  # what was left over comes in other epochs


@pytest.mark.parametrize("chunk", [1, 13, 26, 512])
def test_an_epoch_begun_in_the_middle_goes_on_as_the_whole(toy_set, recipe, monkeypatch, chunk):
    """With chunks of one batch, two, and all of them."""
    monkeypatch.setattr(loop.augment, "CHUNK", chunk)
    dataset, settings = data.load(toy_set), recipe(augment=("crop", "flip", "erase"), mix="ricap")
    whole = list(batches(dataset.images, [data.one_hot(dataset.labels)], settings, 3))
    for first in range(5):
        rest = list(batches(dataset.images, [data.one_hot(dataset.labels)], settings, 3, first))
        assert toy.different([tuple(step) for step in whole[first:]], [tuple(step) for step in rest]) is None


# ---------------------------------------------------------------- steps


@pytest.mark.parametrize("ema_decay", [0.12, 0.6])
def test_a_run_equals_one_written_out(toy_set, recipe, ema_decay):
    """SGD with Nesterov momentum and weight decay, float targets, EMA with its start: by hand, four steps."""
    settings = recipe(ema_decay=ema_decay, lr=0.05, weight_decay=0.01, warmup_epochs=0.5, batch_size=20)
    content = checkpoint.load_weights(loop.run(settings))
    train, val = data.split(data.load(toy_set), 0)
    torch.manual_seed(derive(0, "init"))
    model = models.build("resnet18", width=2).to(memory_format=torch.channels_last)
    average, velocity, step = copy.deepcopy(model.state_dict()), {}, 0
    for epoch in range(2):
        model.train()
        for images, targets in batches(train.images, [data.one_hot(train.labels)], settings, epoch):
            model.zero_grad()
            (-(targets * model(images).log_softmax(1)).sum(1)).mean().backward()
            lr = 0.05 if step == 0 else 0.025 * (1 + math.cos(math.pi * (step - 1) / 3))
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    gradient = weight.grad + 0.01 * weight
                    velocity[name] = gradient if step == 0 else 0.9 * velocity[name] + gradient
                    weight -= lr * (gradient + 0.9 * velocity[name])
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


def test_targets_are_float_probabilities(recipe):
    logits, targets = torch.randn(5, 10), torch.rand(5, 10).softmax(1)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(recipe().loss(logits, None, targets)["loss"], expected)
    hard = torch.tensor([1, 2, 3, 4, 5])
    torch.testing.assert_close(recipe().loss(logits, None, data.one_hot(hard))["loss"], F.cross_entropy(logits, hard))
    smooth = 0.8 * data.one_hot(hard) + 0.02
    expected = -(smooth * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(recipe(smoothing=0.2).loss(logits, None, data.one_hot(hard))["loss"], expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_an_average_of_constant_weights_is_constant_and_moves_otherwise(recipe, monkeypatch, compiled):
    monkeypatch.setattr(torch, "compile", lambda model, **_: torch.nn.Sequential(model))  # as a wrapper, quickly
    constant = checkpoint.load_weights(loop.run(toy.hook(recipe("a", compile=compiled), learning_rate=lambda *_: 0.0)))
    moving = checkpoint.load_weights(loop.run(recipe("b", compile=compiled)))
    learned = dict(models.build("resnet18", width=2).named_parameters())
    assert set(constant["state"]) == set(constant["ema"]) == set(models.build("resnet18", width=2).state_dict())
    assert all(torch.equal(constant["ema"][name], constant["state"][name]) for name in learned)
    assert all(not torch.equal(moving["ema"][name], moving["state"][name]) for name in learned)
    assert not torch.equal(constant["ema"]["stem.1.running_mean"], constant["state"]["stem.1.running_mean"])


@pytest.mark.parametrize("compiled, told", [(False, [1, 2, 3, 3, 4, 5, 6, 6]), (True, [3, 4, 5, 6, 6])])
def test_no_time_is_taken_from_the_steps_that_compile(recipe, monkeypatch, compiled, told):
    """Of 6 steps in 2 epochs, whose ends are always told."""
    monkeypatch.setattr(torch, "compile", lambda model, **_: torch.nn.Sequential(model))
    monkeypatch.setattr(loop, "LOOK_EVERY", 0)
    steps, reach = [], loop.Progress.reach
    monkeypatch.setattr(loop.Progress, "reach", lambda bar, done, *note: steps.append(done) or reach(bar, done, *note))
    loop.run(recipe("run", compile=compiled))
    assert steps == told


def test_a_compiled_run_saves_the_network_itself(recipe):
    torch.compiler.reset()
    monkeyed = torch.compile
    try:
        torch.compile = lambda model, **_: monkeyed(model, backend="aot_eager", dynamic=False)
        weights = loop.run(recipe("compiled", compile=True, epochs=1))
    finally:
        torch.compile = monkeyed
    plain = checkpoint.load_weights(loop.run(recipe("plain", epochs=1)))
    content = checkpoint.load_weights(weights)
    assert list(content["state"]) == list(plain["state"])
    for name, value in plain["state"].items():
        torch.testing.assert_close(content["state"][name], value, rtol=1e-3, atol=1e-4)


def test_no_step_waits_for_the_device(recipe, monkeypatch):
    """.item(), float() and bool() of a tensor would; a run of 6 steps may only ask when an epoch ends."""
    asked = []
    for name in ("item", "__bool__", "__float__", "__int__", "tolist", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda self, *a, real=real: asked.append(steps[-1]) or real(self, *a))
    steps = [0]

    def counted(*arguments):
        steps.append(steps[-1] + 1)
        return toy.Toy().loss(*arguments)

    monkeypatch.setattr(loop, "LOOK_EVERY", 1e9)
    monkeypatch.setattr(torch.optim.SGD, "step", torch.optim.SGD.step)
    loop.run(toy.hook(recipe(augment=("crop", "flip", "erase", "cutout"), mix="ricap"), loss=counted))
    assert set(asked) <= {0, 3, 6} and {3, 6} <= set(asked)


# ---------------------------------------------------------------- weights to begin with


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_begins_with_the_weights_that_count_and_new_momentum(recipe, ema_decay):
    """A further epoch equals one in which the initial weights were replaced by hand; `prepare` cannot undo it."""
    start = loop.run(recipe("start", ema_decay=ema_decay))
    content = checkpoint.load_weights(start)

    def spoil(train, model):
        torch.nn.init.ones_(model.head.weight)
        return train, ()

    def by_hand(train, model):
        model.load_state_dict(content["ema"] or content["state"])
        return train, ()

    found = loop.run(toy.hook(recipe("found", init=str(start), seed=1, epochs=1), prepare=spoil))
    wanted = loop.run(toy.hook(recipe("wanted", seed=1, epochs=1), prepare=by_hand))
    found, wanted = toy.result(found), toy.result(wanted)
    assert found["weights"]["recipe"].pop("init") == predict.load([start])[0].fingerprint
    assert toy.different(found, wanted) is None


def test_the_weights_to_begin_with_are_told_by_content_and_with_all_that_came_before(recipe, tmp_path):
    first = loop.run(recipe("first", epochs=3))
    second = loop.run(recipe("second", init=str(first), seed=1))
    third = predict.load([loop.run(recipe("third", init=str(second), seed=2, epochs=1))])[0]
    assert [run["run"] for run in third.history] == ["third", "second", "first"]
    assert [run["recipe"]["epochs"] for run in third.history] == [1, 2, 3]
    assert third.provenance["before"] == predict.load([second])[0].history
    assert third.provenance["before"][1]["weights"] == predict.load([first])[0].fingerprint
    assert predict.total_epochs(third.history) == 6
    assert third.origin.count(", after ") == 2 and ", after 3 epochs by `" in third.origin
    moved = first.rename(tmp_path / "moved.pt")
    again = recipe("second", init=str(moved), seed=1)
    assert loop.run(again) == second and again.identity == checkpoint.load_weights(second)["recipe"]
    with pytest.raises(UserError, match="differs from this command .init "):
        loop.run(recipe("second", init=str(tmp_path / "third.pt"), seed=1))


@pytest.mark.parametrize("kept, changes, told", [
    ({"constructor": (("width", 3),)}, {}, "start.pt is resnet18-3, and the network to train is resnet18-2"),
    ({"fold": 1}, {}, "start.pt was trained on images that --fold 0 holds out"),
    ({"fold": None}, {"fold": 4}, "start.pt was trained on images that --fold 4 holds out"),
    ({"fold": None, "include_test": True}, {"fold": None}, "start.pt was trained with the test images, which"),
    ({"data": "synthetic", "limit": 40}, {}, "start.pt was trained on other images than those of"),
    ({}, {"out": "start"}, "start.pt is the file that this run writes: name another with --out"),
])
def test_weights_to_begin_with_that_do_not_fit_are_refused_before_the_data_is_read(
        recipe, kept, changes, told, monkeypatch):
    start = loop.run(replace(recipe("start", epochs=1), **kept))
    changes = {"out": str(start)} if "out" in changes else changes
    monkeypatch.setattr(data, "load", None)
    with pytest.raises(UserError, match=told):
        loop.run(replace(recipe(init=str(start)), fresh=True, **changes))
    assert start.exists()


def test_other_images_of_the_same_kind_are_refused_before_training(recipe):
    start = loop.run(recipe("start", epochs=1))
    content = checkpoint.load(start)
    content["provenance"]["train_digest"] = "0"
    checkpoint.save(start, content)
    with pytest.raises(UserError, match="start.pt was trained on other images than those of .*cifar10.npz"):
        loop.run(toy.hook(recipe(init=str(start)), prepare=None, loss=None))


def test_a_marked_run_may_begin_with_marked_weights(recipe):
    start = loop.run(recipe("start", fold=None, include_test=True, epochs=1))
    weights = loop.run(recipe(init=str(start), fold=None, include_test=True, epochs=1))
    assert checkpoint.load_weights(weights)["provenance"]["include_test"] is True


def test_fastnet_goes_on_behind_the_first_layer_that_it_was_trained_with(recipe, tmp_path, capsys):
    """From a file in half precision, with another first layer from `prepare`; and when killed and resumed."""
    fastnet = dict(model="fastnet", constructor=(("width", 4),), epochs=1)

    def whitened_by(count):
        def prepare(train, model):
            model.whiten(normalize(train.images[:count]))
            return train, ()
        return prepare

    start = loop.run(toy.hook(recipe("start", **fastnet), prepare=whitened_by(40)))
    export.write_half(predict.load([start])[0], tmp_path / "half.pt", ties=True)

    def run(name, loss):
        settings = recipe(name, **fastnet, init=str(tmp_path / "half.pt"), seed=1)
        return toy.result(loop.run(toy.hook(settings, prepare=whitened_by(7), loss=loss)))

    with pytest.raises(Stopped):
        run("stopped", toy.terminate(2))
    assert toy.different(run("stopped", toy.Toy().loss), whole := run("whole", toy.Toy().loss)) is None
    assert re.search("3 steps in 1 epoch, from half.pt", capsys.readouterr().out)
    half = checkpoint.load(tmp_path / "half.pt")["state"]
    assert torch.equal(whole["weights"]["state"]["whitening.weight"], half["whitening.weight"].float())


def test_a_run_on_all_images_may_begin_with_a_folds_weights(recipe):
    start = loop.run(recipe("start", fold=3, epochs=1))
    assert loop.run(recipe(init=str(start), fold=None, epochs=1)).exists()


# ---------------------------------------------------------------- what is logged


def test_the_log_has_its_columns_and_true_figures(toy_set, recipe, tmp_path):
    weights = loop.run(recipe(ema_decay=0.0, epochs=3))
    log = pd.read_csv(tmp_path / "run.csv")
    assert list(log.columns) == COLUMNS and log.epoch.tolist() == [1, 2, 3]
    assert log.lr.tolist() == [recipe(epochs=3).learning_rate(step, 9) for step in (2, 5, 8)]
    _, val = data.split(data.load(toy_set), 0)
    answers = predict.answers(predict.load([weights]), val.images)
    assert log.val_accuracy.iloc[-1] == predict.accuracy(answers, val.labels)
    assert log.val_loss.iloc[-1] == predict.nll(answers, val.labels)
    assert (log.seconds > 0).all() and (log.images_per_second >= 39 / log.seconds).all()


def test_training_figures_are_means_over_the_images(recipe, tmp_path):
    seen = []

    def record(logits, images, targets):
        loss = F.cross_entropy(logits, targets, reduction="none")
        seen.append((loss.detach(), logits.argmax(1) == targets.argmax(1)))
        return {"loss": loss.mean(), "twice": 2 * loss.mean()}

    loop.run(toy.hook(recipe(), loss=record))
    log = pd.read_csv(tmp_path / "run.csv")
    assert list(log.columns) == COLUMNS[:4] + ["train_twice"] + COLUMNS[4:]
    assert [len(loss) for loss, _ in seen] == [13] * 6
    for epoch in range(2):
        losses, right = (torch.cat(parts) for parts in zip(*seen[3 * epoch:3 * epoch + 3]))
        assert log.train_loss[epoch] == pytest.approx(losses.mean().item(), abs=1e-6)
        assert log.train_accuracy[epoch] == 100 * right.double().mean().item()
    assert log.train_twice.tolist() == pytest.approx((2 * log.train_loss).tolist())


def test_without_validation_its_cells_are_empty(recipe, tmp_path):
    loop.run(recipe(fold=None))
    log = pd.read_csv(tmp_path / "run.csv")
    assert list(log.columns) == COLUMNS and log.val_loss.isna().all() and log.val_accuracy.isna().all()


@pytest.mark.parametrize("changes", [dict(limit=1, fold=None), dict(limit=14, fold=None), dict(batch_size=1, limit=5),
                                     dict(batch_size=999), dict(epochs=1)])
def test_the_smallest_runs_work(recipe, tmp_path, changes):
    loop.run(recipe(**changes))
    assert pd.read_csv(tmp_path / "run.csv").train_loss.notna().all()


def test_the_first_line_states_the_run(recipe, capsys):
    loop.run(recipe(epochs=3))
    first, last = capsys.readouterr().out.splitlines()
    assert re.match(r"resnet18-2: 2,988 parameters, .+\), 1 thread, float32, channels_last, 40 images, 9 steps in "
                    r"3 epochs, about", first)
    assert first.endswith(" s") and "of 20 images" in last and "for 3 epochs" in last


@pytest.mark.parametrize("kind, steps, compile, tools, expected", [
    ("cuda", 2_000, None, True, True), ("cuda", 1_999, None, True, False), ("cuda", 2_000, None, False, False),
    ("cuda", 1, True, True, True), ("cuda", 2_000, False, True, False), ("cpu", 2_000, None, True, False),
    ("cpu", 1, True, True, True)])
def test_long_runs_on_cuda_are_compiled_where_kernels_can_be_built(
        recipe, tmp_path, monkeypatch, kind, steps, compile, tools, expected):
    monkeypatch.delenv("CC", raising=False), monkeypatch.delenv("CXX", raising=False)
    compiler = "clang" if kind == "cuda" else "g++"
    monkeypatch.setattr(loop.shutil, "which", lambda name: f"/usr/bin/{name}" if tools and name == compiler else None)
    monkeypatch.setattr(loop.sysconfig, "get_path", lambda *_: tmp_path)
    (tmp_path / "Python.h").touch()
    assert loop.worth_compiling(recipe("a", compile=compile), torch.device(kind), steps) == expected
    (tmp_path / "Python.h").unlink()
    assert not loop.worth_compiling(recipe("a", compile=False), torch.device(kind), steps)
    assert not loop.worth_compiling(recipe("a", compile=None), torch.device(kind), steps)
    with pytest.raises(UserError, match=r"--compile needs a compiler \(.*\) and Python's headers"):
        loop.worth_compiling(recipe("a", compile=True), torch.device(kind), steps)


def test_the_weights_file_tells_what_made_it(toy_set, recipe):
    content = checkpoint.load_weights(loop.run(recipe()))
    train, _ = data.split(data.load(toy_set), 0)
    assert content["recipe"] == recipe().identity and content["model"] == "resnet18"
    assert content["options"] == {"num_classes": 10, "width": 2, "zero_init": False}
    told = content["provenance"]
    assert (told["run"], told["params"], told["images"], told["steps"]) == ("run", 2988, 40, 6)
    assert told["train_digest"] == train.digest and told["source"] == "cifar10.npz"
    assert told["include_test"] is told["over_budget"] is False


def test_the_budget_is_checked_before_training(recipe, monkeypatch):
    for budget, fits in ((2988, True), (2987, False)):
        monkeypatch.setattr(models, "BUDGET", budget)
        if fits:
            loop.run(recipe())
            continue
        with pytest.raises(UserError, match="2,988 parameters, 1 above the budget"):
            loop.run(toy.hook(recipe("over"), loss=None))
        weights = loop.run(recipe("teacher"), teacher=True)
        assert checkpoint.load_weights(weights)["provenance"]["over_budget"] is True


@pytest.mark.parametrize("changes, told", [
    (dict(model="nonesuch"), "unknown model"),
    (dict(constructor=(("depth", 3),)), "no option"),
    (dict(model="seresnet20", constructor=(("depth", 12),)), "12"),
])
def test_a_model_that_cannot_be_built_is_a_users_mistake(recipe, changes, told):
    with pytest.raises(UserError, match=told):
        loop.run(recipe(**changes))


# ---------------------------------------------------------------- R15: the test images


def seen_in_training(recipe, monkeypatch):
    """The ids of all images that reach `batches`, and of those that are augmented."""
    seen = set()

    def tap(images, *rest):
        seen.update(data.image_ids(images.permute(0, 2, 3, 1).contiguous().numpy()))
        return batches(images, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "batches", tap)
        return seen, loop.run(recipe)


@pytest.mark.parametrize("fold", [0, 3, None])
def test_no_test_image_and_no_held_out_image_reaches_training(toy_set, recipe, monkeypatch, fold):
    parts = []
    load = data.load
    monkeypatch.setattr(data, "load", lambda path, part="train": parts.append(part) or load(path, part))
    seen, _ = seen_in_training(recipe(fold=fold), monkeypatch)
    train, val = data.split(load(toy_set), fold)
    assert seen == set(train.ids) and not seen & set(load(toy_set, "test").ids)
    assert val is None or not seen & set(val.ids)
    assert parts == ["train"]  # the file of the test images is not even read


def test_weights_that_saw_the_test_images_are_marked_and_refused(toy_set, recipe, monkeypatch, capsys):
    seen, weights = seen_in_training(recipe(include_test=True, fold=None), monkeypatch)
    assert set(data.load(toy_set, "test").ids) < seen and len(seen) == 80
    assert checkpoint.load_weights(weights)["provenance"]["include_test"] is True
    monkeypatch.setattr("sys.argv", ["evaluate.py", str(weights), "--data", str(toy_set), "--device", "cpu"])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    streams = capsys.readouterr()
    assert caught.value.code != 0 and "CONTAMINATED" in streams.err and "top-1" not in streams.out
