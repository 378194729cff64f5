"""Training on the GPU: the batches, the side stream, the moving average, kill and resume, memory, two ranks."""

import re
from argparse import Namespace

import pytest
import ranked
import torch
import toy

import augment
import models
from train.data import cifar10
from train.engine import checkpoint, loop, metrics
from train.engine.batches import Ahead, batches
from train.engine.device import builds_kernels
from train.engine.network import load, logits

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]


@pytest.fixture
def run(configure, device):
    """run(name, loss, **changes): the weights of six steps with all that is drawn, on images and in the model."""

    def train(name="run", loss=None, **changes):
        drawn = dict(augment="crop,flip,erase", mix="ricap", lr=0.01, model="flatse", width=8, depth=16, drop_path=0.3)
        return loop.run(configure(name, **drawn | {"device": device.type} | changes), loss=loss)

    return train


def pictures(count=256, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def weights_of(file):
    """All floats of a finished network as one vector."""
    state = checkpoint.load_weights(file)["state"]
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


# ---------------------------------------------------------------- batches


@pytest.fixture
def draws(monkeypatch):
    """draws(seed): random numbers come from one CPU generator from there on, whatever the device they are for."""
    source, dirichlet = torch.Generator(), torch._sample_dirichlet

    def drawn(original):
        return lambda *shape, generator=None, device="cpu", **rest: original(
            *shape, generator=source, **rest).to(device)

    for name in ("rand", "randint"):
        monkeypatch.setattr(torch, name, drawn(getattr(torch, name)))
    monkeypatch.setattr(torch, "_sample_dirichlet", lambda concentration, generator: dirichlet(
        concentration.cpu(), source).to(concentration.device))
    return source.manual_seed


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_augmentation_is_that_of_the_cpu_for_the_same_draws(name, device, draws):
    images, found = pictures(), []
    for place in (device, torch.device("cpu")):
        draws(1)
        found.append(augment.pipeline([name])(images.to(place), torch.Generator(place)).cpu())
    differ = (found[0] != found[1]).flatten(1).any(1).float().mean()
    exact = ("crop", "shift", "flip", "cutout", "autoaugment", "trivial")
    assert differ <= (0 if name in exact else 0.02) and not torch.equal(found[1], images)


@pytest.mark.parametrize("name", augment.MIXES)
def test_mixing_is_that_of_the_cpu_for_the_same_draws(name, device, draws):
    images, hard, found = pictures(), cifar10.one_hot(torch.arange(256) % 10), []
    for place in (device, torch.device("cpu")):
        draws(1)
        mixed = augment.mixing(name)(torch.Generator(place), images.to(place), hard.to(place), hard.to(place), batch=64)
        found.append([tensor.cpu().float() for tensor in mixed])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-3)
    assert name == "none" or not torch.equal(found[1][0], images.float())


def test_the_side_stream_changes_no_bit(device):
    """The main stream is kept busy, so that a batch given up too early would be overwritten while it is read."""
    args = toy.configure(batch_size=64, augment="crop,flip,autoaugment,erase", mix="cutmix")
    images, hard = pictures(4096).to(device), cifar10.one_hot(torch.arange(4096) % 10).to(device)
    weight, taken = torch.randn(2048, 2048, device=device), {}
    for name, ahead in (("beside", Ahead(device)), ("in line", lambda batches: batches)):
        taken[name] = []
        for epoch in range(3):
            for inputs, targets in ahead(batches(images, [hard], args, epoch)):
                for _ in range(4 if device.type == "cuda" else 0):
                    weight = (weight @ weight).clamp(-1, 1)
                taken[name].append((inputs.double().mean((1, 2, 3)), inputs[:, :, ::8, ::8].clone(), targets.clone()))
    assert len(taken["beside"]) == 3 * 64
    assert all(torch.equal(a, b) for one, other in zip(*taken.values(), strict=True)
               for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- runs


@pytest.fixture
def steps(monkeypatch):
    """A list that grows with each step of a run: the floats of the network before and after it, and its optimizer."""
    found, step = [], loop.train_step

    def floats(network):
        return {key: value.cpu().double() for key, value in network.state_dict().items() if value.is_floating_point()}

    def recorded(network, optimizer, *rest):
        before = floats(network)
        result = step(network, optimizer, *rest)
        found.append(Namespace(before=before, after=floats(network), optimizer=optimizer))
        return result

    monkeypatch.setattr(loop, "train_step", recorded)
    return found


def test_the_moving_average_is_its_formula(run, steps):
    average = checkpoint.load_weights(run(ema_decay=0.9))["ema"]
    wanted = steps[0].before
    for number, step in enumerate(steps):
        decay = min(0.9, (1 + number) / (10 + number))
        wanted = {key: decay * wanted[key] + (1 - decay) * value for key, value in step.after.items()}
    for key, value in wanted.items():
        assert torch.allclose(average[key].double(), value, rtol=1e-5, atol=1e-6), key


def stop(run, step, **changes):
    """A run that SIGTERM ends in a step, which leaves stopped.last.pt."""
    with pytest.raises(loop.Stopped):
        run("stopped", toy.terminate(step), **changes)


def test_a_state_of_another_device_goes_on_with_the_optimizers_kernel_of_this_one(
        device, run, steps, handlers, tmp_path):
    stop(run, 2)
    saved = checkpoint.load(tmp_path / "stopped.last.pt")
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = device.type != "cuda"
    checkpoint.save(tmp_path / "stopped.last.pt", saved)
    run("stopped")
    assert len(steps) == 6
    assert all(group["fused"] == (device.type == "cuda") for group in steps[-1].optimizer.param_groups)


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_killed(step, run, handlers, deterministic):
    stop(run, step)
    assert toy.different(toy.result(run("whole")), toy.result(run("stopped"))) is None


@pytest.mark.parametrize("low_res", [0, 0.5])  # with it the network is compiled for two sizes of images
def test_compiled_in_bfloat16_it_ends_within_a_hundredth(run, handlers, compiler, low_res):
    """Of the way that the weights went; without the deterministic mode a GPU adds in any order."""
    fast = dict(compile=True, precision="bfloat16", low_res=low_res)
    stop(run, 4, **fast)
    files = run("whole", **fast), run("stopped", **fast), run("start", **fast, lr=1e-12, warmup_lr=0)
    wanted, found, origin = map(weights_of, files)
    assert (found - wanted).norm() < 0.01 * (wanted - origin).norm()


def test_a_run_is_scored_on_the_cpu_as_it_was_on_the_device(toy_set, run):
    """The last row's validation, of the moving average, against that of the file."""
    network = load(run(precision="auto"))
    held_out = network.split(cifar10.load(toy_set))[1]
    found = metrics.nll(logits(network.model, held_out.images), held_out.labels)
    assert found == pytest.approx(network.content["log"][-1]["val_loss"], abs=1e-4)


def test_out_of_memory_is_one_line(device, typed):
    def main():
        torch.empty(2**50, dtype=torch.uint8, device=device)

    code, out, err = typed(main)
    assert (code, out) == (1, "") and err.count("\n") == 1 and re.search("out of memory.*--batch-size", err)


@pytest.mark.parametrize("compile", [False, True])
def test_two_ranks_train_as_one(device, configure, monkeypatch, compile):
    """nccl on GPUs, gloo in the rehearsal. Without normalizations, whose statistics are each rank's own."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("only one GPU")
    if compile and not builds_kernels(device):  # the ranks are processes of their own, whose compiler is real
        pytest.skip("no compiler")
    monkeypatch.setitem(models.MODELS, "plain", ranked.Plain)
    settings = dict(model="plain", width=4, device=device.type, augment="crop,flip,erase", mix="ricap", lr=0.01)
    one, two = configure("one", **settings), configure("two", **settings, compile=compile)
    loop.run(one)
    assert ranked.together(2, ranked.train, two) == [0, 0]
    assert torch.allclose(weights_of(two.out), weights_of(one.out), rtol=1e-4, atol=1e-5)
