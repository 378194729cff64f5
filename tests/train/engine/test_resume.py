"""A run that was stopped and resumed ends bit for bit as one that was not (R1-R3, R9, R10, R24, R25)."""

import inspect
import os
import random
import signal
import time
from contextlib import suppress

import pandas as pd
import pytest
import torch

import augment
import models
import toy
from train.engine import checkpoint, data, loop, state
from train.engine.command import UserError
from train.engine.device import faster_in_bfloat16
from train.engine.state import Diverged, Stopped

SMALL = {"width": 2, "widening": 6, "drop_path": 0.3, "shakedrop": 0.5}
DEPTHS = (20, 14, 16, 11)  # one of them suits each family


def small(name):
    """Options that make the model called `name` small enough for a test, whatever its family."""
    takes = inspect.signature(models.MODELS[name]).parameters
    options = {option: value for option, value in SMALL.items() if option in takes}
    for depth in DEPTHS if "depth" in takes else ():
        with suppress(ValueError):
            models.build(name, **options | {"depth": depth})
            return options | {"depth": depth}
    return options


FAMILIES = {getattr(constructor, "func", constructor): name for name, constructor in models.MODELS.items()}.values()


pytestmark = pytest.mark.usefixtures("handlers")


@pytest.fixture(scope="module", autouse=True)
def toy_set(tmp_path_factory):
    """The toy set is the official one in this module; its folder."""
    with pytest.MonkeyPatch.context() as patch:
        toy.use(patch.setattr)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield toy.write_npz(tmp_path_factory.mktemp("data"))
        torch.set_num_threads(threads)


def train_with_stops(recipe, stops):
    """Train; SIGTERM comes in the given steps of the run. Returns its result."""
    done = 0
    for stop in stops:
        with pytest.raises(Stopped) as caught:
            loop.run(toy.hook(recipe, loss=toy.terminate(stop - done)))
        assert caught.value.code == 143 and f"step {stop} of" in str(caught.value)
        done = stop
    return toy.result(loop.run(recipe))


# Mid-epoch, at the last step of an epoch (before and after a stop in it), and at the last of all.
STOPS = (2, 3, 5, 6)


@pytest.mark.parametrize("changes", [
    *(pytest.param(dict(model=name, constructor=tuple(small(name).items())), id=name) for name in FAMILIES),
    *(pytest.param(dict(augment=(name,)), id=name) for name in augment.AUGMENTATIONS),
    *(pytest.param(dict(mix=name), id=name) for name in augment.MIXES if name != "none"),
    pytest.param(dict(fold=None, ema_decay=0.0, limit=14, augment=("crop", "flip")), id="noval-limit-no-ema"),
    pytest.param(dict(augment=("flip", "cutout"), mix="ricap", nesterov=False, momentum=0.0), id="several"),
    pytest.param(dict(augment=("shift",), alternate_flip=True, small=0.5), id="small-at-first"),
    pytest.param(dict(precision="bfloat16", constructor=(("width", 16),)), id="bfloat16", marks=pytest.mark.skipif(
        not faster_in_bfloat16(), reason="this processor is no faster in bfloat16")),
])
def test_stopped_and_resumed_run_equals_an_undisturbed_one(recipe, changes):
    undisturbed = toy.result(loop.run(recipe("whole", **changes)))
    steps = 2 if changes.get("limit") else 2 * toy.STEPS
    stops = [step for step in STOPS if step <= steps]
    assert toy.different(undisturbed, train_with_stops(recipe("stopped", **changes), stops)) is None


def test_the_comparison_sees_a_difference(recipe):
    results = [toy.result(loop.run(recipe(str(seed), seed=seed))) for seed in (1, 1, 2)]
    results = [r | {"weights": r["weights"] | {"recipe": None}} for r in results]
    assert toy.different(results[0], results[1]) is None
    assert toy.different(results[0]["weights"], results[2]["weights"]).startswith(".state")
    assert toy.different(results[0]["weights"]["ema"], results[2]["weights"]["ema"])
    assert results[0]["csv"] != results[2]["csv"]


def test_soft_targets_are_part_of_the_run(recipe):
    def kind(logits, images, hard, soft):
        return {"loss": (logits - soft).square().mean(), "hard": toy.Toy().loss(logits, images, hard)["loss"]}

    def student(name, scale, loss=kind):
        def prepare(train, model):
            return train, [scale * torch.randn(len(train), 10, generator=torch.Generator().manual_seed(3))]

        return toy.hook(recipe(name, mix="ricap"), loss=loss, prepare=prepare)

    whole = toy.result(loop.run(student("whole", 1)))
    assert "train_hard" in whole["csv"]
    with pytest.raises(Stopped):
        loop.run(student("stopped", 1, toy.at(3, lambda: os.kill(os.getpid(), 15), kind)))
    with pytest.raises(UserError, match="data .* -> "):
        loop.run(student("stopped", 2))
    assert toy.different(whole, toy.result(loop.run(student("stopped", 1)))) is None
    with pytest.raises(UserError, match="data .* -> "):  # finished weights are not another labels file's either
        loop.run(student("stopped", 2))


# ---------------------------------------------------------------- what a saved state belongs to


@pytest.mark.parametrize("finished", [False, True])
def test_another_recipe_is_refused_with_the_difference(recipe, tmp_path, finished, monkeypatch):
    if finished:
        loop.run(recipe("run"))
    else:
        with pytest.raises(Stopped):
            loop.run(toy.hook(recipe("run"), loss=toy.terminate(5)))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for changes, told in [
        (dict(epochs=3), "epochs 2 -> 3"),
        (dict(seed=7), "seed 0 -> 7"),
        (dict(fold=1), "fold 0 -> 1"),
        (dict(fold=None), "fold 0 -> None"),
        (dict(lr=0.3), "lr 0.1 -> 0.3"),
        (dict(batch_size=20), "batch_size 13 -> 20"),
        (dict(augment=("flip",)), r"augment \[\] -> \['flip'\]"),
        (dict(mix="mixup"), "mix none -> mixup"),
        (dict(ema_decay=0.0), "ema_decay 0.9 -> 0.0"),
        (dict(limit=50), "limit None -> 50"),
        (dict(constructor=(("width", 3),)), "constructor .* -> .*3"),
        (dict(model="flatse", constructor=tuple(small("flatse").items())), "model resnet18 -> flatse"),
        (dict(precision="bfloat16"), "precision float32 -> bfloat16"),
    ]:
        with pytest.raises(UserError, match=told):
            loop.run(recipe("run", **changes))
    monkeypatch.setattr(data, "load", lambda path, part="train": data.as_dataset(*toy.arrays(part, 1), "other"))
    with pytest.raises(UserError, match="data [0-9a-f]{16} -> [0-9a-f]{16}"):
        loop.run(recipe("run"))
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_fresh_starts_over_but_loses_nothing_before_the_data_is_there(recipe, tmp_path):
    def missing(train, model):
        raise UserError("no labels")

    first = toy.result(loop.run(recipe("run")))
    with pytest.raises(UserError, match="no labels"):
        loop.run(toy.hook(recipe("run", fresh=True), prepare=missing))
    assert toy.different(first, toy.result(tmp_path / "run.pt")) is None
    with pytest.raises(Stopped, match="the same command without --fresh"):
        loop.run(toy.hook(recipe("run", seed=5, fresh=True), loss=toy.terminate(3)))
    kept = torch.load(tmp_path / "run.pt", weights_only=True)["content"]
    assert toy.different(first["weights"]["state"], kept["state"]) is None  # what is finished stays until then
    loop.run(recipe("run", seed=5))
    assert toy.result(tmp_path / "run.pt")["weights"]["recipe"]["seed"] == 5


def test_a_finished_run_is_not_trained_again(recipe, capsys):
    weights = loop.run(recipe("run"))
    before = weights.read_bytes()
    assert loop.run(toy.hook(recipe("run"), loss=None)) == weights
    assert "--fresh" in capsys.readouterr().out and weights.read_bytes() == before


# ---------------------------------------------------------------- what is saved, and when


def test_the_state_is_saved_when_it_is_due_and_at_the_end(recipe, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint.Run, "save_state", lambda run, state: saved.append(state["step"]))
    loop.run(recipe("at-the-end"))
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    loop.run(recipe("by-time"))
    assert saved == [6] + [1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("damage", [
    lambda text: text[:-9],
    lambda text: text + text.splitlines()[1][:20],
    lambda text: text + text.partition("\n")[2],
    lambda text: "",
])
def test_a_torn_csv_is_repaired(recipe, tmp_path, damage):
    whole = toy.result(loop.run(recipe("whole")))
    with pytest.raises(Stopped):
        loop.run(toy.hook(recipe("torn"), loss=toy.terminate(5)))
    csv = tmp_path / "torn.csv"
    csv.write_text(damage(csv.read_text()))
    assert toy.result(loop.run(recipe("torn")))["csv"] == whole["csv"]
    assert csv.read_text().count("epoch") == 1 and len(csv.read_text().splitlines()) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(recipe, tmp_path, monkeypatch, value):
    steps = []

    def poisoned(logits, images, hard):
        steps.append(len(images))
        return {"loss": toy.Toy().loss(logits, images, hard)["loss"] * (value if len(steps) == 6 else 1)}

    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    # Step 5 of 6, after one of warm-up: 0.1 / 2 * (1 + cos(4/5 pi))
    with pytest.raises(Diverged, match=r"the loss is not finite at step 5 \(learning rate 0.009549\).*--lr") as caught:
        loop.run(toy.hook(recipe("run", ema_decay=0.99), loss=poisoned))
    assert caught.value.code == 1 and "the state saved before is kept" in str(caught.value)
    state = checkpoint.load(tmp_path / "run.last.pt")
    assert state["step"] == 5 and checkpoint.nonfinite(state) is None
    assert not (tmp_path / "run.pt").exists() and "nan" not in (tmp_path / "run.csv").read_text()


def test_a_weight_that_is_not_finite_is_not_saved(recipe, tmp_path):
    steps = []

    def smooth_until_the_end(logits, images, hard):
        steps.append(len(images))  # the root's slope at 0 is infinite: the loss is fine, the gradient is not
        hole = (0 * logits.sum()).sqrt() if len(steps) == 6 else 0
        return {"loss": toy.Toy().loss(logits, images, hard)["loss"] + hole}

    with pytest.raises(Diverged, match=r"^state\.state\.\S+ is not finite at step 5") as caught:
        loop.run(toy.hook(recipe("run"), loss=smooth_until_the_end))
    assert "saved before" not in str(caught.value) and "--fresh" not in str(caught.value)  # nothing is there
    assert not (tmp_path / "run.last.pt").exists() and not (tmp_path / "run.pt").exists()


# ---------------------------------------------------------------- signals and kills


def arguments(toy_set, weights, **more):
    flags = {"--data": toy_set, "--out": weights, "--stage": "optimized", "--width": 2, "--batch-size": 13,
             "--device": "cpu", "--precision": "float32", "--ema-decay": 0.9} | more
    return [item for pair in flags.items() for item in pair]


def new_state(weights, process, before=None, patience=60):
    """Wait until a run has saved a state, other than `before`; returns what identifies it."""
    last, end = weights.with_suffix(".last.pt"), time.monotonic() + patience
    while process.is_alive() and time.monotonic() < end:
        with suppress(FileNotFoundError):  # between the two renames of a save it is away
            found = last.stat()
            if (found.st_ino, found.st_mtime_ns) != before:
                return found.st_ino, found.st_mtime_ns
        time.sleep(0.002)
    return before


def finish(argv, log, **settings):
    with toy.training(*argv, log=log, **settings) as process:
        process.join()
    assert process.exitcode == 0, log.read_text()


@pytest.mark.parametrize(
    "number, times", [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGINT, 3)]
)
def test_a_signal_to_a_process_saves_and_says_how_to_go_on(toy_set, tmp_path, number, times):
    weights, log = tmp_path / "run.pt", tmp_path / "log"
    argv = arguments(toy_set, weights, **{"--epochs": 10_000})
    with toy.training(*argv, log=log, LOOK_EVERY=0, SAVE_EVERY=0.05) as process:
        assert new_state(weights, process), log.read_text()
        for _ in range(times):
            os.kill(process.pid, number)
            time.sleep(0.003)
        process.join(30)
        assert not toy.survivors(process)
    last_line = log.read_text().splitlines()[-1]
    assert process.exitcode == 128 + number, log.read_text()
    assert last_line.startswith(f"baseline.py: {number.name} at step")
    assert str(weights.with_suffix(".last.pt")) in last_line
    assert last_line.endswith("the same command goes on from there") and "Traceback" not in log.read_text()
    step = int(last_line.split("at step ")[1].split()[0].replace(",", ""))
    assert checkpoint.load(weights.with_suffix(".last.pt"))["step"] == step
    assert {file.name for file in tmp_path.iterdir()} - {"run.csv", "run.last.bak"} == {"log", "run.last.pt"}


def kill_often(toy_set, folder, kills, epochs, width, steps_between):
    """A run killed so many times and one undisturbed: assert that both end the same."""
    weights, log, dice = folder / "killed.pt", folder / "log", random.Random(epochs)
    flags = {"--epochs": epochs, "--width": width, "--augment": "crop,flip,autoaugment", "--mix": "cutmix"}
    argv = arguments(toy_set, weights, **flags)
    before = None
    for kill in range(kills):
        with toy.training(*argv, log=log, SAVE_EVERY=0) as process:
            if kill % 5 == 4:  # in the beginning, while it reads and restores
                time.sleep(dice.uniform(0, 0.3))
            else:
                before = new_state(weights, process, before)
                time.sleep(dice.uniform(0, steps_between))
            assert process.is_alive(), f"not killed in time: {log.read_text()}"
    finish(argv, log)
    finish(arguments(toy_set, folder / "whole.pt", **flags), log)
    assert "Traceback" not in log.read_text() and "damaged" not in log.read_text()
    assert toy.different(toy.result(folder / "whole.pt"), toy.result(weights)) is None
    assert not list(folder.glob(".*")) and not list(folder.glob("*.lock"))


def test_killed_twenty_times_it_ends_the_same(toy_set, tmp_path):
    kill_often(toy_set, tmp_path, kills=20, epochs=25, width=2, steps_between=0.05)


@pytest.mark.faults
def test_killed_a_hundred_times_it_ends_the_same(toy_set, tmp_path):
    """The undisturbed run takes at least two minutes."""
    finish(arguments(toy_set, tmp_path / "trial.pt", **{"--epochs": 5, "--width": 16}), tmp_path / "log")
    epochs = int(200 / pd.read_csv(tmp_path / "trial.csv").seconds.mean())
    kill_often(toy_set, tmp_path, kills=100, epochs=epochs, width=16, steps_between=1.0)
    assert pd.read_csv(tmp_path / "whole.csv").seconds.sum() > 120
