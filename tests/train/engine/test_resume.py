"""A run that was stopped and resumed ends bit for bit as one that was not."""

import os
import random
import re
import signal
import time
from argparse import Namespace
from contextlib import suppress

import pandas as pd
import pytest
import torch
import toy
from torch._inductor.exc import CppCompileError
from untrained import write_weights

import augment
import models
from train import UserError
from train.data import cifar10
from train.engine import checkpoint, loop
from train.engine import device as engine_device
from train.engine.device import hardware
from train.engine.loop import Diverged, Stopped, cross_entropy
from train.engine.network import load

SMALL = {"width": 2, "widths": (2, 4, 4), "widening": 6, "drop_path": 0.3, "shakedrop": 0.5}
DEPTHS = (20, 14, 16, 11)  # one of them suits each family


def small(name):
    """Options that make the model called `name` small enough for a test, whatever its family."""
    takes = models.options_of(name)
    options = {option: value for option, value in SMALL.items() if option in takes}
    for depth in DEPTHS if "depth" in takes else ():
        with suppress(ValueError):
            models.build(name, **options | {"depth": depth})
            return options | {"depth": depth}
    return options


FAMILIES = {getattr(constructor, "func", constructor): name for name, constructor in models.MODELS.items()}.values()


pytestmark = pytest.mark.usefixtures("handlers")


def stop(args, step, loss=None, **more):
    """Train until SIGTERM comes in the step-th step of this process."""
    with pytest.raises(Stopped) as caught:
        loop.run(args, loss=toy.terminate(step, loss=loss), **more)
    assert caught.value.code == 143
    return str(caught.value)


def train_with_stops(args, stops, loss=None, **more):
    """Train; SIGTERM comes in the given steps of the run. Returns its result."""
    for before, step in zip((0, *stops), stops, strict=False):
        assert f"step {step} of" in stop(args, step - before, loss, **more)
    return toy.result(loop.run(args, loss=loss, **more))


# Mid-epoch, at the last step of an epoch (before and after a stop in it), and at the last of all.
STOPS = (2, 3, 5, 6)


@pytest.mark.parametrize("changes", [
    *(pytest.param(dict(model=name, **small(name)), id=name) for name in FAMILIES),
    *(pytest.param(dict(augment=",".join(augment.AUGMENTATIONS), mix=name), id=name)
      for name in augment.MIXES if name != "none"),
    pytest.param(dict(fold=None, ema_decay=0, limit=45, augment="crop,flip"), id="noval-limit-no-ema"),
    pytest.param(dict(nesterov=False, momentum=0), id="no-momentum"),
    pytest.param(dict(augment="shift", alternate_flip=True, low_res=0.5), id="low-res-at-first"),
    pytest.param(dict(model="fastnet-m", norm_bias_lr=8, decay_all=False, schedule="triangular", lr=0.01), id="groups"),
    pytest.param(dict(precision="bfloat16", width=16), id="bfloat16"),
])
def test_stopped_and_resumed_run_equals_an_undisturbed_one(configure, changes):
    undisturbed = toy.result(loop.run(configure("whole", **changes)))
    assert toy.different(undisturbed, train_with_stops(configure("stopped", **changes), STOPS)) is None


def test_the_comparison_sees_a_difference(configure):
    results = [toy.result(loop.run(configure(str(k), seed=seed))) for k, seed in enumerate((1, 1, 2))]
    assert toy.different(results[0], results[1]) is None
    assert toy.different(results[0]["weights"], results[2]["weights"]).startswith(".state")
    assert toy.different(results[0]["weights"]["ema"], results[2]["weights"]["ema"])
    assert results[0]["csv"] != results[2]["csv"]


def two_losses(logits, hard, soft):
    return {"loss": (logits - soft).square().mean(), "hard": cross_entropy(0)(logits, hard)["loss"]}


def random_logits(scale):
    """Further targets for `run`: the same random ones, times `scale`."""
    return lambda train: (train, [scale * torch.randn(len(train), 10, generator=torch.Generator().manual_seed(3))])


def test_soft_targets_and_further_losses_are_part_of_the_run(configure):
    """At the last step of an epoch no batch remains, and the names of the losses are those of the saved sums."""
    whole = toy.result(loop.run(configure("whole", mix="ricap"), random_logits(1), two_losses))
    args = configure("stopped", mix="ricap")
    assert "train_loss,train_accuracy,train_hard," in whole["csv"]
    assert toy.different(whole, train_with_stops(args, STOPS, two_losses, targets=random_logits(1))) is None
    with pytest.raises(UserError, match="data .* -> "):  # finished weights are not another labels file's
        loop.run(args, random_logits(2), two_losses)
    stop(configure("half", mix="ricap"), 2, two_losses, targets=random_logits(1))
    with pytest.raises(UserError, match="data .* -> "):  # nor is a state
        loop.run(configure("half", mix="ricap"), random_logits(2), two_losses)


# ---------------------------------------------------------------- what a saved state belongs to


@pytest.mark.parametrize("finished", [False, True])
def test_another_configuration_is_refused_with_the_difference(configure, tmp_path, finished, monkeypatch):
    loop.run(configure()) if finished else stop(configure(), 5)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("run.*")}
    for changes, told in [
        (dict(epochs=3), "epochs 2 -> 3"), (dict(seed=7), "seed 0 -> 7"), (dict(fold=1), "fold 0 -> 1"),
        (dict(fold=None), "fold 0 -> None"), (dict(lr=0.3), "lr 0.1 -> 0.3"), (dict(width=3), "width 2 -> 3"),
        (dict(batch_size=20), "batch_size 13 -> 20"), (dict(augment="flip"), r"augment \[\] -> \['flip'\]"),
        (dict(mix="mixup"), "mix none -> mixup"), (dict(ema_decay=0), "ema_decay 0.9 -> 0.0"),
        (dict(limit=50), "limit None -> 50"), (dict(precision="bfloat16"), "precision float32 -> bfloat16"),
        (dict(model="flatse", **small("flatse")), "model resnet18 -> flatse"),
    ]:
        with pytest.raises(UserError, match=f"the saved run differs from this command .*{told}"):
            loop.run(configure(**changes))
    monkeypatch.setattr(cifar10, "load", lambda path, part="train": cifar10.as_dataset(*toy.arrays(part, 1), "other"))
    with pytest.raises(UserError, match="data [0-9a-f]{16} -> [0-9a-f]{16}"):
        loop.run(configure())
    assert before == {file.name: file.read_bytes() for file in tmp_path.glob("run.*")}


def test_files_are_known_by_their_content_and_not_by_their_paths(toy_set, configure, tmp_path, monkeypatch):
    """The data, the run's own files, the first weights and the teachers may move; others are not the same."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # for the device `auto`
    for seed in range(3):
        write_weights(tmp_path / f"{seed}.pt", toy_set, seed)
    again = dict(init=tmp_path / "0.pt"), dict(teachers=[load(tmp_path / f"{k}.pt") for k in (1, 2)])
    whole = toy.result(loop.run(configure("whole", **again[0]), loss=two_losses, **again[1]))
    stop(configure("run", **again[0]), 4, two_losses, **again[1])
    assert str(tmp_path) not in repr(checkpoint.load(tmp_path / "run.last.pt")["config"])
    moved = tmp_path / "elsewhere"
    toy_set.rename(moved), (tmp_path / "run.last.pt").rename(moved / "other.last.pt")
    for number in range(3):
        (tmp_path / f"{number}.pt").rename(moved / f"weights{number}.pt")
    first, *teachers = (moved / f"weights{k}.pt" for k in range(3))

    def args(init):
        return configure(data=moved, out=moved / "other.pt", init=init, device="auto")

    half = load(teachers[0]).content  # as of `export --format half`, which keeps the fingerprint
    half["state"] = {name: value.half().to(value.dtype) for name, value in half["state"].items()}
    checkpoint.save(moved / "half.pt", half)
    others = (teachers[::-1], [moved / "half.pt", teachers[1]])
    for init, files, told in ((teachers[0], teachers, "init"), *((first, files, "teachers") for files in others)):
        with pytest.raises(UserError, match=rf"differs from this command \({told} "):
            loop.run(args(init), loss=two_losses, teachers=list(map(load, files)))
    found = toy.result(loop.run(args(first), loss=two_losses, teachers=list(map(load, teachers))))
    assert toy.different(whole, found) is None


def test_a_table_and_images_count_by_their_content(configure, tmp_path):
    """A folder's by all of its pictures; the word that stands for generated ones is itself."""
    def config(labels, images):
        return loop.stored(Namespace(**vars(configure()), labels=labels, images=images, teachers=()), None, ())

    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir(), (folder / "one.png").write_bytes(b"1"), (folder / "labels.csv").write_bytes(b"2")
    was, same = (config(folder / "labels.csv", str(folder)) for folder in (tmp_path / "a", tmp_path / "b"))
    assert was == same and len(was["labels"]) == len(was["images"]) == 16 and was["teachers"] == []
    (tmp_path / "b" / ".DS_Store").write_bytes(b"3"), (tmp_path / "b" / "more").mkdir()
    assert config(tmp_path / "b" / "labels.csv", str(tmp_path / "b")) == was, "what is left out does not count"
    (tmp_path / "b" / "one.png").write_bytes(b"3")
    other = config(tmp_path / "b" / "labels.csv", str(tmp_path / "b"))
    assert other["labels"] == was["labels"] and other["images"] != was["images"]
    assert config(None, "synthetic")["images"] != config(None, "others")["images"]


@pytest.mark.parametrize("began, here", [(False, True), (True, False)])
def test_a_resumed_run_keeps_the_precision_that_auto_was_where_it_began(
        configure, monkeypatch, capsys, began, here):
    names = {False: "float32", True: "bfloat16"}
    monkeypatch.setattr(engine_device, "faster_in_bfloat16", lambda: began)
    whole = toy.result(loop.run(configure("whole", precision="auto")))
    stop(configure(precision="auto"), 4)
    monkeypatch.setattr(engine_device, "faster_in_bfloat16", lambda: here)
    with pytest.raises(UserError, match=f"precision {names[began]} -> {names[here]}"):
        loop.run(configure(precision=names[here]))
    assert "this run began" not in capsys.readouterr().out
    for _ in range(2):  # resumed, and finished
        assert toy.different(whole, toy.result(loop.run(configure(precision="auto")))) is None
        said = capsys.readouterr().out
        assert f"this run began in {names[began]}; here auto is {names[here]}" in said
        assert f"; to start over, add --precision {names[here]} --fresh" in said
        assert ("bfloat16 is slower, up to 12 times" in said) == began
    assert load(loop.run(configure(precision="auto", fresh=True))).config["precision"] == names[here]


def test_a_finished_run_is_not_trained_again(configure, capsys):
    weights = loop.run(configure())
    before = weights.read_bytes()
    assert loop.run(configure(), loss=lambda *_: pytest.fail("a step")) == weights
    assert "--fresh" in capsys.readouterr().out and weights.read_bytes() == before


def test_fresh_replaces_finished_weights_only(configure, tmp_path):
    (tmp_path / "run.pt").write_bytes(b"of another program")
    with pytest.raises(UserError, match="run.pt cannot be read as a checkpoint .* --fresh would replace it"):
        loop.run(configure(fresh=True), loss=lambda *_: pytest.fail("a step"))
    (tmp_path / "run.pt").unlink(), stop(configure(), 4)
    with pytest.raises(UserError, match="run.last.pt is a resume state"):
        loop.run(configure("run.last", fresh=True), loss=lambda *_: pytest.fail("a step"))


def test_fresh_starts_over_but_loses_nothing_before_new_weights_are_there(configure, tmp_path, capsys):
    def missing(train):
        raise UserError("no labels")

    before = loop.run(configure()).read_bytes()
    with pytest.raises(UserError, match="no labels"):
        loop.run(configure(fresh=True), missing)
    assert "the same command without --fresh goes on" in stop(configure(seed=5, fresh=True), 5)
    with pytest.raises(UserError, match="no labels"):
        loop.run(configure(seed=5, fresh=True), missing)
    assert (tmp_path / "run.pt").read_bytes() == before
    found = toy.result(loop.run(configure(seed=5)))
    assert "resumed at step 5" in capsys.readouterr().out
    assert toy.different(found, toy.result(loop.run(configure("undisturbed", seed=5)))) is None
    assert [file.name for file in tmp_path.glob("run.*")] in (["run.csv", "run.pt"], ["run.pt", "run.csv"])


def test_a_run_that_moves_takes_the_optimizer_kernel_of_its_device_and_tells_what_else_is_there(
        configure, tmp_path, monkeypatch, capsys):
    stop(configure(), 2)
    state = checkpoint.load(tmp_path / "run.last.pt")
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True  # as it is saved on CUDA
    state["places"][0] |= {"threads": 7, "hardware": "an abacus, 7 threads", "execution": "compiled", "commit": "old"}
    checkpoint.save(tmp_path / "run.last.pt", state)
    fused, train_step = [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda network, optimizer, *rest: fused.extend(
        group["fused"] for group in optimizer.param_groups) or train_step(network, optimizer, *rest))
    assert load(loop.run(configure())).provenance["threads"] == "7; 1" and fused and not any(fused)
    told = re.search("resumed at step 2, (.*)", capsys.readouterr().out)[1]
    assert told == (f"hardware {hardware(torch.device('cpu'))} instead of an abacus, 7 threads, execution eager "
                    f"instead of compiled, commit {loop.commit() or 'unknown'} instead of old: the weights may differ "
                    f"from those of a run in one go")


def test_the_time_before_a_stop_counts(configure, tmp_path):
    stop(configure(), 2)
    state = checkpoint.load(tmp_path / "run.last.pt")
    checkpoint.save(tmp_path / "run.last.pt", state | {"seconds": 1000.0})
    network = load(loop.run(configure()))
    first, second = (row["seconds"] for row in network.content["log"])
    assert first > 1000 > second and network.provenance["seconds"] == first + second
    assert network.content["log"][0]["images_per_second"] < 1


# ---------------------------------------------------------------- what is saved, and when


def test_the_state_is_saved_when_it_is_due_and_at_the_end(configure, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint.RunFiles, "save_state", lambda run, state: saved.append(state["step"]))
    loop.run(configure("at-the-end"))
    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    loop.run(configure("by-time"))
    assert saved == [6, 1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize("damage", [
    lambda text: text[:-9], lambda text: text + text.splitlines()[1][:20], lambda text: text + text.partition("\n")[2],
    lambda text: ""])
def test_a_torn_csv_is_repaired(configure, tmp_path, damage):
    whole = toy.result(loop.run(configure("whole")))
    stop(configure("torn"), 5)
    csv = tmp_path / "torn.csv"
    csv.write_text(damage(csv.read_text()))
    assert toy.result(loop.run(configure("torn")))["csv"] == whole["csv"]
    assert csv.read_text().count("epoch") == 1 and len(csv.read_text().splitlines()) == 3


def test_a_loss_that_is_not_finite_is_seen_at_the_next_look(configure, monkeypatch):
    """In the middle of an epoch, before a state is due."""
    monkeypatch.setattr(loop, "LOOK_EVERY", 0)
    with pytest.raises(Diverged, match="the loss is not finite by step 1 "):
        loop.run(configure(), loss=lambda logits, hard: {"loss": logits.sum() * float("nan")})


@pytest.mark.parametrize("warmup, advice", [(0.5, "a longer --warmup-epochs"),
                                            (9, "more --epochs, for a longer warm-up")])
def test_a_longer_warmup_is_advised_only_where_the_run_has_room_for_it(configure, warmup, advice):
    with pytest.raises(Diverged, match=f"Try a smaller --lr, or {advice}$"):
        loop.run(configure(epochs=5, warmup_epochs=warmup), loss=lambda logits, _: {"loss": logits.sum() * torch.nan})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(configure, tmp_path, monkeypatch, value):
    steps = []

    def poisoned(logits, hard):
        steps.append(len(logits))
        return {"loss": cross_entropy(0)(logits, hard)["loss"] * (value if len(steps) == 6 else 1)}

    monkeypatch.setattr(loop, "SAVE_EVERY", 0)
    # In the last step, after one of warm-up: 0.1 / 2 * (1 + cos(4/5 pi))
    with pytest.raises(Diverged, match=r"the loss is not finite by step 6 \(learning rate 0.009549\).*--lr") as caught:
        loop.run(configure(ema_decay=0.99), loss=poisoned)
    assert caught.value.code == 1 and "the state saved before is kept" in str(caught.value)
    state = checkpoint.load(tmp_path / "run.last.pt")
    assert state["step"] == 5 and checkpoint.nonfinite(state) is None
    assert not (tmp_path / "run.pt").exists() and "nan" not in (tmp_path / "run.csv").read_text()


def test_a_weight_that_is_not_finite_is_not_saved(configure, tmp_path):
    steps = []

    def smooth_until_the_end(logits, hard):
        steps.append(len(logits))  # the root's slope at 0 is infinite: the loss is fine, the gradient is not
        hole = (0 * logits.sum()).sqrt() if len(steps) == 6 else 0
        return {"loss": cross_entropy(0)(logits, hard)["loss"] + hole}

    with pytest.raises(Diverged, match=r"^state\.state\.\S+ is not finite by step 6") as caught:
        loop.run(configure(), loss=smooth_until_the_end)
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
    # A shell's loop ends only if its command died of Ctrl-C, not if it exits with 130.
    assert process.exitcode == (-number if number == signal.SIGINT else 128 + number), log.read_text()
    assert last_line.startswith(f"baseline.py: {number.name} at step")
    assert str(weights.with_suffix(".last.pt")) in last_line
    assert last_line.endswith("the same command goes on from there") and "Traceback" not in log.read_text()
    step = int(last_line.split("at step ")[1].split()[0].replace(",", ""))
    assert checkpoint.load(weights.with_suffix(".last.pt"))["step"] == step
    assert {file.name for file in tmp_path.glob("*.*")} - {"run.csv", "run.last.bak"} == {".run.lock", "run.last.pt"}


def test_a_signal_saves_though_nobody_reads_standard_error(configure, tmp_path, monkeypatch):
    write = os.write

    def gone(descriptor, data):
        if descriptor == 2:
            raise BrokenPipeError(32, "Broken pipe")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", gone)
    with pytest.raises(Stopped):
        loop.run(configure(), loss=toy.terminate(2))
    assert checkpoint.load(tmp_path / "run.last.pt")["step"] == 2


@pytest.mark.parametrize("number, error, told", [
    (signal.SIGINT, CppCompileError(["g++"], "interrupted"), KeyboardInterrupt),
    (signal.SIGINT, RuntimeError("ours"), RuntimeError),
    (signal.SIGTERM, RuntimeError("a rank is gone"), RuntimeError)])
def test_an_interrupt_that_also_ends_the_compiler_is_one(configure, monkeypatch, number, error, told):
    def fails(*_):
        signal.raise_signal(number)
        raise error

    monkeypatch.setattr(loop, "train_step", fails)
    with pytest.raises(told):
        loop.run(configure())


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
            if not process.is_alive():  # a fast machine is finished before the last kills
                process.join()
                assert process.exitcode == 0 and kill, log.read_text()
                break
    finish(argv, log)
    finish(arguments(toy_set, folder / "whole.pt", **flags), log)
    assert "Traceback" not in log.read_text() and "damaged" not in log.read_text()
    assert toy.different(toy.result(folder / "whole.pt"), toy.result(weights)) is None
    assert {file.name for file in folder.glob(".*")} == {".killed.lock", ".whole.lock"}


def test_killed_twenty_times_it_ends_the_same(toy_set, tmp_path):
    kill_often(toy_set, tmp_path, kills=20, epochs=25, width=2, steps_between=0.05)


@pytest.mark.faults
def test_killed_a_hundred_times_it_ends_the_same(toy_set, tmp_path):
    """The undisturbed run takes some three minutes."""
    finish(arguments(toy_set, tmp_path / "trial.pt", **{"--epochs": 5, "--width": 16}), tmp_path / "log")
    epochs = int(200 / pd.read_csv(tmp_path / "trial.csv").seconds.mean())
    kill_often(toy_set, tmp_path, kills=100, epochs=epochs, width=16, steps_between=1.0)
