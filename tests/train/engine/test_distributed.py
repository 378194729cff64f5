"""Several ranks train as one process does: the same gradients, the same log, one writer, one voice."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pandas as pd
import pytest
import ranked
import torch
import torch.nn.functional as F
import toy

import models
from train import ROOT
from train.data import cifar10
from train.engine import checkpoint, loop
from train.engine.batches import batches

pytestmark = pytest.mark.usefixtures("toy_set")

MIXED = dict(augment="crop,flip,erase", mix="ricap", ema_decay=0)


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setitem(models.MODELS, "plain", ranked.Plain)


def whole_batches(args):
    train, _ = cifar10.split(cifar10.load(args.data), args.fold, args.limit)
    return list(batches(train.images, [cifar10.one_hot(train.labels)], args, 0))


# ---------------------------------------------------------------- one step


def test_ranks_draw_noise_of_their_own_and_share_a_precision(configure, tmp_path):
    assert ranked.together(2, ranked.seeds, configure(precision="auto"), str(tmp_path / "seeds")) == [0, 0]
    one, two = (torch.load(tmp_path / f"seeds{rank}") for rank in range(2))
    assert one and not {seed for seed, _ in one} & {seed for seed, _ in two}
    assert {precision for _, precision in one + two} == {"bfloat16"}


@pytest.mark.parametrize("changes, sizes", [
    ({}, [[5] * 3, [4] * 3, [4] * 3]), (dict(limit=1, fold=None), [[1], [0], [0]])])
@pytest.mark.parametrize("model, training", [("plain", True), ("resnet18", False)])
def test_the_gradients_are_those_of_one_process(configure, tmp_path, model, training, changes, sizes):
    """Of batches of 13 images, in parts of 5, 4, 4, and of one image, in parts of 1, 0, 0. To 1e-5 of the largest."""
    args = configure(model=model, width=4, **MIXED, **changes)
    assert ranked.together(3, ranked.gradients, args, str(tmp_path / "step"), training) == [0, 0, 0]
    ranks = [torch.load(tmp_path / f"step{rank}") for rank in range(3)]
    network = ranked.built(args).train(training)
    assert [[len(step[0]) for step in steps] for steps in ranks] == sizes
    for step, (images, targets) in enumerate(whole_batches(args)):
        assert torch.equal(torch.cat([steps[step][0] for steps in ranks]), images)
        assert torch.equal(torch.cat([steps[step][1] for steps in ranks]), targets)
        network.zero_grad()
        F.cross_entropy(network(images), targets).backward()
        largest = max(parameter.grad.abs().max().item() for parameter in network.parameters())
        for name, parameter in network.named_parameters():
            for steps in ranks:
                torch.testing.assert_close(steps[step][2][name], parameter.grad, rtol=0, atol=1e-5 * largest)


def test_batch_normalization_takes_each_ranks_own_statistics(configure, tmp_path):
    """The gradient is the mean, weighted by images, of those of parts that are normalized apart."""
    args = configure(**MIXED)
    assert ranked.together(2, ranked.gradients, args, str(tmp_path / "step"), True) == [0, 0]
    found, other = (torch.load(tmp_path / f"step{rank}") for rank in range(2))
    network = ranked.built(args).train()
    for step, (images, targets) in enumerate(whole_batches(args)):
        network.zero_grad()
        for part, wanted in zip(images.tensor_split(2), targets.tensor_split(2), strict=True):
            (F.cross_entropy(network(part), wanted) * len(part) / len(images)).backward()
        largest = max(parameter.grad.abs().max().item() for parameter in network.parameters())
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(found[step][2][name], parameter.grad, rtol=0, atol=1e-5 * largest)
            assert torch.equal(found[step][2][name], other[step][2][name])


# ---------------------------------------------------------------- a run


def test_the_log_is_that_of_one_process(configure, tmp_path):
    """A mean over all images that knows no rounding of the network agrees to 1e-9."""
    settings = dict(model="plain", mix="cutmix", augment="flip", lr=0.5)
    loop.run(configure("one", **settings), loss=ranked.with_known_mean)
    assert ranked.together(2, ranked.train, configure("two", **settings), None, ranked.with_known_mean) == [0, 0]
    one, two = (pd.read_csv(tmp_path / f"{name}.csv").drop(columns=["seconds", "images_per_second"])
                for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5)
    assert two.train_known.tolist() == pytest.approx(one.train_known.tolist(), rel=1e-9)
    alone, shared = (checkpoint.load_weights(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert shared["config"] == alone["config"] | {"ranks": 2}
    assert shared["provenance"]["hardware"] == f"2 x {alone['provenance']['hardware']}"
    assert shared["provenance"]["command"].startswith("torchrun --nproc-per-node 2 ")
    for name, value in alone["ema"].items():
        torch.testing.assert_close(shared["ema"][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count, stop, settings", [
    pytest.param(2, 2, dict(mix="ricap", augment="crop,flip"), id="resnet18"),
    pytest.param(3, 3, dict(mix="ricap", augment="crop,flip"), id="resnet18-three"),
    pytest.param(2, 2, dict(model="shakeshake26-40-se", batch_size=10), id="shakeshake"),
    pytest.param(2, 2, dict(limit=1, fold=None, epochs=3), id="one-image-for-two"),
])
def test_a_resumed_run_equals_an_undisturbed_one(configure, tmp_path, count, stop, settings):
    """The signal reaches one rank only; all stop, at a step in the middle of an epoch or at its last.

    Two summands commute; of three the order counts, and with it the place of a gradient among those that travel.
    """
    assert ranked.together(count, ranked.train, configure("whole", **settings)) == [0] * count
    assert ranked.together(count, ranked.train, configure("stopped", **settings), stop) == [143] * count
    assert checkpoint.load(tmp_path / "stopped.last.pt")["step"] == stop
    assert ranked.together(count, ranked.train, configure("stopped", **settings)) == [0] * count
    whole, stopped = (toy.result(tmp_path / f"{name}.pt") for name in ("whole", "stopped"))
    assert toy.different(whole, stopped) is None
    ends = [".csv", ".pt"]
    assert sorted(f.name for f in tmp_path.glob("[!.]*.*")) == sorted(n + e for n in ("whole", "stopped") for e in ends)


@pytest.mark.usefixtures("handlers")
def test_another_number_of_ranks_is_refused(configure, tmp_path):
    with pytest.raises(loop.Stopped):
        loop.run(configure(), loss=toy.terminate(2))
    signal.signal(signal.SIGTERM, signal.SIG_DFL), signal.signal(signal.SIGINT, signal.default_int_handler)
    before = (tmp_path / "run.last.pt").read_bytes()
    assert ranked.together(2, ranked.train, configure()) == [2, 2]
    assert (tmp_path / "run.last.pt").read_bytes() == before


# ---------------------------------------------------------------- a launcher's variables that are left


@pytest.mark.parametrize("left, told", [
    ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, with RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"),
    ({"WORLD_SIZE": "many"}, "WORLD_SIZE is many, with"),
    (ranked.environments(2)[1] | {"MASTER_PORT": ""}, "WORLD_SIZE is 2, with MASTER_PORT not set"),
    (ranked.environments(2)[0] | {"WORLD_SIZE": "two"}, "WORLD_SIZE is two, with not a number"),
    ({"WORLD_SIZE": "1"}, None), ({"WORLD_SIZE": ""}, None), ({"RANK": "3"}, None)])
def test_a_world_size_that_nobody_started_is_refused_at_once(configure, monkeypatch, typed, left, told):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if told:
        monkeypatch.setattr(loop, "build", lambda args: pytest.fail("the run began"))
    code, _, err = typed(lambda: loop.run(configure(epochs=1)))
    assert code == (2 if told else 0) and err.count("\n") == bool(told)
    assert not told or (told in err and err.endswith(": start the ranks by torchrun, or unset WORLD_SIZE\n"))


def wait_for(there, processes, patience=90):
    """Wait until `there()` is true, as long as all processes run; whether it is."""
    end = time.monotonic() + patience
    while not there() and all(process.is_alive() for process in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return there()


def endless(toy_set, tmp_path):
    return ("--data", toy_set, "--out", tmp_path / "run.pt", "--width", 2, "--epochs", 100_000, "--batch-size", 13,
            "--device", "cpu", "--augment", "none")


def test_without_torchrun_a_rank_says_for_whom_it_waits(toy_set, tmp_path):
    log = tmp_path / "log"
    environment = {name: value for name, value in ranked.environments(2)[1].items() if "ELASTIC" not in name}
    line = f"waiting for 2 ranks at localhost:{environment['MASTER_PORT']}; torchrun starts them, or unset WORLD_SIZE\n"
    with toy.training(*endless(toy_set, tmp_path), log=log, environment=environment) as process:
        assert wait_for(lambda: log.exists() and log.read_text() == line, [process]), log.read_text()


# ---------------------------------------------------------------- the end of a rank


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_other(toy_set, tmp_path, victim, how):
    log, patience = tmp_path / "log", timedelta(seconds=20)
    stack, processes = ranked.training(2, *endless(toy_set, tmp_path), log=log, SAVE_EVERY=0.2,
                                       STEP_TIMEOUT=patience, RANK_0_TIMEOUT=patience)
    with stack:
        assert wait_for((tmp_path / "run.last.bak").exists, processes), log.read_text()
        os.kill(processes[victim].pid, how)
        processes[1 - victim].join(90)
        assert processes[1 - victim].exitcode not in (0, None), log.read_text()
    assert checkpoint.load(tmp_path / "run.last.pt")["step"] > 0


@pytest.mark.parametrize("agree", ["all_max", "all_sum"])
def test_what_rank_0_does_alone_is_waited_for_longer_than_a_step(agree, tmp_path):
    assert ranked.together(2, ranked.hang, agree, tmp_path / "mark") == [3, 0]


def torchrun(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


TRIAL = ("train/baseline.py", "--data", "synthetic", "--limit", 100, "--width", 2, "--device", "cpu")


def test_torchrun_passes_sigterm_on_and_one_rank_speaks(tmp_path):
    process, csv = torchrun(*TRIAL, "--out", tmp_path / "run.pt", "--epochs", 100_000), tmp_path / "run.csv"
    process.is_alive = lambda: process.poll() is None
    try:
        # Five epochs: the first line comes at the end of an epoch at the latest.
        trained = wait_for(lambda: csv.exists() and csv.read_text().count("\n") > 5, [process], patience=300)
        process.terminate()
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert trained, err
    saved = checkpoint.load(tmp_path / "run.last.pt")
    assert err.count("SIGTERM at step") == 1 and f"SIGTERM at step {saved['step']:,} of" in err
    assert out.count("resnet18-2") == 1 and "2 x " in out and saved["config"]["ranks"] == 2
    assert "waiting for" not in err


def test_a_mistake_is_told_once(tmp_path):
    process = torchrun(*TRIAL, "--out", tmp_path / "nowhere" / "run.pt")
    _, err = process.communicate(timeout=300)
    assert err.count("baseline.py: ") == 1 and f"the folder {tmp_path / 'nowhere'} does not exist" in err
    assert "Connection closed" not in err  # a traceback of the other rank
    assert process.returncode != 0
