"""Several ranks train as one process does: the same gradients, the same log, one writer, one voice (R8, R10)."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import models
import ranked
import toy
from train.engine import checkpoint, data, loop, parallel, state
from train.engine.command import ROOT
from train.engine.loop import batches

pytestmark = pytest.mark.usefixtures("toy_set")

MIXED = dict(augment=("crop", "flip", "erase"), mix="ricap", ema_decay=0.0)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setitem(models.MODELS, "plain", ranked.Plain)


def whole_batches(recipe):
    train, _ = data.split(data.load(recipe.data), recipe.fold, recipe.limit)
    return list(batches(train.images, [data.one_hot(train.labels)], recipe, 0))


# ---------------------------------------------------------------- one step


@pytest.mark.parametrize("changes, sizes", [
    ({}, [[5] * 3, [4] * 3, [4] * 3]), (dict(limit=1, fold=None), [[1], [0], [0]])])
@pytest.mark.parametrize("model, training", [("plain", True), ("resnet18", False)])
def test_the_gradients_are_those_of_one_process(plain, recipe, tmp_path, model, training, changes, sizes):
    """Of batches of 13 images, in parts of 5, 4, 4, and of one image, in parts of 1, 0, 0. To 1e-5 of the largest."""
    settings = recipe(model=model, constructor=(("width", 4),), **MIXED, **changes)
    assert ranked.together(3, ranked.gradients, settings, str(tmp_path / "step"), training) == [0, 0, 0]
    ranks = [torch.load(tmp_path / f"step{rank}") for rank in range(3)]
    network = ranked.built(settings).train(training)
    assert [[len(step[0]) for step in steps] for steps in ranks] == sizes
    for step, (images, targets) in enumerate(whole_batches(settings)):
        assert torch.equal(torch.cat([steps[step][0] for steps in ranks]), images)
        assert torch.equal(torch.cat([steps[step][1] for steps in ranks]), targets)
        network.zero_grad()
        F.cross_entropy(network(images), targets).backward()
        largest = max(parameter.grad.abs().max().item() for parameter in network.parameters())
        for name, parameter in network.named_parameters():
            for steps in ranks:
                torch.testing.assert_close(steps[step][2][name], parameter.grad, rtol=0, atol=1e-5 * largest)


def test_batch_normalization_takes_each_ranks_own_statistics(recipe, tmp_path):
    """The gradient is the mean, weighted by images, of those of parts that are normalized apart."""
    settings = recipe(**MIXED)
    assert ranked.together(2, ranked.gradients, settings, str(tmp_path / "step"), True) == [0, 0]
    found, other = (torch.load(tmp_path / f"step{rank}") for rank in range(2))
    network = ranked.built(settings).train()
    for step, (images, targets) in enumerate(whole_batches(settings)):
        network.zero_grad()
        for part, wanted in zip(images.tensor_split(2), targets.tensor_split(2)):
            if len(part):
                (F.cross_entropy(network(part), wanted) * len(part) / len(images)).backward()
        largest = max(parameter.grad.abs().max().item() for parameter in network.parameters())
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(found[step][2][name], parameter.grad, rtol=0, atol=1e-5 * largest)
            assert torch.equal(found[step][2][name], other[step][2][name])


# ---------------------------------------------------------------- a run


def test_the_log_is_that_of_one_process(plain, recipe, tmp_path):
    settings = dict(model="plain", constructor=(), mix="cutmix", augment=("flip",), lr=0.5)
    loop.run(recipe("one", **settings))
    assert ranked.together(2, ranked.train, recipe("two", **settings)) == [0, 0]
    one, two = (pd.read_csv(tmp_path / f"{name}.csv").drop(columns=["seconds", "images_per_second"])
                for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    alone, shared = (checkpoint.load_weights(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert shared["recipe"] == alone["recipe"] | {"ranks": 2}
    assert shared["provenance"]["hardware"] == f"2 x {alone['provenance']['hardware']}"
    assert shared["provenance"]["command"].startswith("torchrun --nproc-per-node 2 ")
    for name, value in alone["ema"].items():
        torch.testing.assert_close(shared["ema"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count, settings", [
    pytest.param(2, dict(mix="ricap", augment=("crop", "flip")), id="resnet18"),
    pytest.param(3, dict(mix="ricap", augment=("crop", "flip")), id="resnet18-three"),
    pytest.param(2, dict(model="shakeshake26-40-se", batch_size=10), id="shakeshake"),
    pytest.param(2, dict(limit=1, fold=None, epochs=3), id="one-image-for-two"),
])
def test_a_resumed_run_equals_an_undisturbed_one(recipe, tmp_path, count, settings):
    """The signal reaches one rank only; all stop, at a step in the middle of an epoch.

    Two summands commute; of three the order counts, and with it the place of a gradient among those that travel.
    """
    stop = 2
    assert ranked.together(count, ranked.train, recipe("whole", **settings)) == [0] * count
    assert ranked.together(count, ranked.train, recipe("stopped", **settings), stop) == [143] * count
    assert checkpoint.load(tmp_path / "stopped.last.pt")["step"] == stop
    assert ranked.together(count, ranked.train, recipe("stopped", **settings)) == [0] * count
    whole, stopped = (toy.result(tmp_path / f"{name}.pt") for name in ("whole", "stopped"))
    assert toy.different(whole, stopped) is None
    ends = [".csv", ".pt"]
    assert sorted(f.name for f in tmp_path.glob("*.*")) == sorted(n + e for n in ("whole", "stopped") for e in ends)


def test_another_number_of_ranks_is_refused(recipe, tmp_path, capfd):
    with pytest.raises(state.Stopped):
        loop.run(toy.hook(recipe(), loss=toy.terminate(2)))
    signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    before = (tmp_path / "run.last.pt").read_bytes()
    assert ranked.together(2, ranked.train, recipe()) == [2, 2]
    assert (tmp_path / "run.last.pt").read_bytes() == before


# ---------------------------------------------------------------- the end of a rank


def wait_for(file, processes, patience=40):
    end = time.monotonic() + patience
    while not file.exists() and all(p.is_alive() for p in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return file.exists()


def endless(toy_set, tmp_path):
    return ("--data", toy_set, "--out", tmp_path / "run.pt", "--width", 2, "--epochs", 100_000, "--batch-size", 13,
            "--device", "cpu", "--augment", "none")


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_other_with_one_line(toy_set, tmp_path, victim, how):
    log = tmp_path / "log"
    stack, processes = ranked.training(2, *endless(toy_set, tmp_path), log=log, SAVE_EVERY=0.2,
                                       STEP_TIMEOUT=timedelta(seconds=3),
                                       RANK_0_TIMEOUT=timedelta(seconds=3))
    with stack:
        assert wait_for(tmp_path / "run.last.bak", processes), log.read_text()
        os.kill(processes[victim].pid, how)
        processes[1 - victim].join(20)
        assert processes[1 - victim].exitcode == 1, log.read_text()
    lines = log.read_text().splitlines()
    assert sum("another rank has ended" in line for line in lines) == 1 and "Traceback" not in log.read_text()
    assert checkpoint.load(tmp_path / "run.last.pt")["step"] > 0


@pytest.mark.parametrize("agree", ["all_max", "all_sum"])
def test_what_rank_0_does_alone_is_waited_for_longer_than_a_step(tmp_path, agree):
    assert ranked.together(2, ranked.hang, tmp_path / "told", agree) == [0, 0]
    assert (tmp_path / "told").read_text() == "True"


@pytest.mark.parametrize("error, lost", [
    (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"), True),
    (RuntimeError("Application timeout caused pair closure"), True),  # of an operation beside the one that waited
    (torch.distributed.DistBackendError("NCCL error"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), False),
])
def test_a_lost_rank_is_known_by_its_error(error, lost):
    assert parallel.lost_another(error) is lost


def torchrun(*words, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


TRIAL = ("train/baseline.py", "--data", "synthetic", "--limit", 100, "--width", 2, "--device", "cpu")


def test_torchrun_passes_sigterm_on_and_one_rank_speaks(tmp_path):
    process = torchrun(*TRIAL, "--out", tmp_path / "run.pt", "--epochs", 100_000)
    process.is_alive = lambda: process.poll() is None
    try:
        assert wait_for(tmp_path / "run.csv", [process]), process.communicate()
        time.sleep(1.5)  # the first line comes after half a second
        process.terminate()
        out, err = process.communicate(timeout=40)
    finally:
        process.kill()
    saved = checkpoint.load(tmp_path / "run.last.pt")
    assert err.count("SIGTERM at step") == 1 and f"SIGTERM at step {saved['step']:,} of" in err
    assert out.count("resnet18-2") == 1 and "2 x " in out and saved["recipe"]["ranks"] == 2


def test_a_mistake_is_told_once(tmp_path):
    process = torchrun(*TRIAL, "--out", tmp_path / "nowhere" / "run.pt")
    out, err = process.communicate(timeout=40)
    assert err.count("baseline.py: ") == 1 and f"the folder {tmp_path / 'nowhere'} does not exist" in err
    assert process.returncode != 0
