"""Training on the GPU: the batches, the side stream, the moving average, kill and resume, memory, two ranks."""

import re
import signal
from dataclasses import replace

import pytest
import ranked
import toy
import torch

import augment
import models
from train.engine import checkpoint, data, loop, predict
from train.engine.command import command
from train.engine.loop import Ahead, batches, train_step
from train.engine.parallel import Ranks
from train.engine.state import State, Stopped

pytestmark = [pytest.mark.cuda, pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")]


@pytest.fixture
def recipe(toy_set, device):
    """Six steps with all that is drawn, on images and in the model."""
    return toy.Toy(data=str(toy_set), device=device.type, augment=("crop", "flip", "erase"), mix="ricap", lr=0.01,
                   model="flatse", constructor=(("width", 8), ("depth", 16), ("drop_path", 0.3)))


def pictures(count=256, seed=0):
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def weights_of(file):
    """All floats of a finished network as one vector."""
    state = checkpoint.load_weights(file)["state"]
    return torch.cat([value.flatten() for value in state.values() if value.is_floating_point()])


def test_float32_is_float32_wherever_a_gpu_has_less():
    """torch's own default for convolutions is TF32."""
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


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
    images, hard, found = pictures(), data.one_hot(torch.arange(256) % 10), []
    for place in (device, torch.device("cpu")):
        draws(1)
        mixed = augment.mixing(name)(torch.Generator(place), images.to(place), hard.to(place), hard.to(place), batch=64)
        found.append([tensor.cpu().float() for tensor in mixed])
    for ours, theirs in zip(*found):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-3)
    assert name == "none" or not torch.equal(found[1][0], images.float())


def test_the_side_stream_changes_no_bit(device):
    """The main stream is kept busy, so that a batch given up too early would be overwritten while it is read."""
    recipe = toy.Toy(batch_size=64, augment=("crop", "flip", "autoaugment", "erase"), mix="cutmix")
    images, hard = pictures(4096).to(device), data.one_hot(torch.arange(4096) % 10).to(device)
    weight, taken = torch.randn(2048, 2048, device=device), {}
    for name, ahead in (("beside", Ahead(device)), ("in line", lambda batches: batches)):
        taken[name] = []
        for epoch in range(3):
            for inputs, targets in ahead(batches(images, [hard], recipe, epoch)):
                for _ in range(4 if device.type == "cuda" else 0):
                    weight = (weight @ weight).clamp(-1, 1)
                taken[name].append((inputs.double().mean((1, 2, 3)), inputs[:, :, ::8, ::8].clone(), targets.clone()))
    assert len(taken["beside"]) == 3 * 64
    assert all(torch.equal(a, b) for one, other in zip(*taken.values()) for a, b in zip(one, other))


# ---------------------------------------------------------------- runs


def test_the_moving_average_is_its_formula(device, recipe):
    torch.manual_seed(0)
    model = models.build(recipe.model, **recipe.options).to(device, memory_format=torch.channels_last).train()
    state = State(model, recipe, checkpoint.Run("nowhere/run.pt"), "", steps=8, ranks=Ranks())
    wanted = {key: value.cpu().double() for key, value in model.state_dict().items()}
    train = data.split(data.load(recipe.data), 0)[0]
    images, hard = train.images.to(device), data.one_hot(train.labels).to(device)
    for epoch in range(3):
        for inputs, targets in batches(images, [hard], recipe, epoch):
            decay = min(recipe.ema_decay, (1 + state.step) / (10 + state.step))
            parts, logits = train_step(model, state.optimizer, recipe, inputs, [targets])
            state.advance(parts, logits, targets, len(inputs))
            wanted = {key: decay * wanted[key] + (1 - decay) * value.cpu().double()
                      for key, value in model.state_dict().items()}
    for key, value in state.average.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.cpu().double(), wanted[key], rtol=1e-5, atol=1e-6), key


def test_a_state_of_another_device_goes_on_with_the_optimizers_kernel_of_this_one(device, recipe, tmp_path):
    model = models.build(recipe.model, **recipe.options).to(device)
    files = checkpoint.Run(tmp_path / "run.pt")
    state = State(model, recipe, files, "", steps=8, ranks=Ranks())
    state.save()
    saved = checkpoint.load(files.last)
    for group in saved["optimizer"]["param_groups"]:
        group["fused"] = device.type != "cuda"
    checkpoint.save(files.last, saved)
    groups = State(model, recipe, files, "", steps=8, ranks=Ranks()).optimizer.param_groups
    assert groups and all(group["fused"] == (device.type == "cuda") for group in groups)


def stop_and_resume(recipe, folder, step):
    """(weights of a run from start to end, of one that SIGTERM ended in a step and the same command finished)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    files = [folder / "whole.pt", folder / "resumed.pt"]
    loop.run(replace(recipe, out=str(files[0])))
    resumed = replace(recipe, out=str(files[1]))
    try:
        with pytest.raises(Stopped):
            loop.run(toy.hook(resumed, loss=toy.terminate(step)))
    finally:
        for number, handler in before.items():  # a stopped process would ignore them to its end
            signal.signal(number, handler)
    assert files[1].with_suffix(".last.pt").exists()
    loop.run(resumed)
    return files


@pytest.mark.parametrize("step", [2, 4])
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_killed(step, recipe, deterministic, tmp_path):
    whole, resumed = stop_and_resume(recipe, tmp_path, step)
    assert toy.different(toy.result(whole), toy.result(resumed)) is None


def test_compiled_in_bfloat16_it_ends_within_a_hundredth(recipe, compiler, tmp_path):
    """Of the way that the weights went; without the deterministic mode a GPU adds in any order."""
    whole, resumed = stop_and_resume(replace(recipe, compile=True, precision="bfloat16"), tmp_path, 4)
    start = replace(recipe, out=str(tmp_path / "start.pt"), lr=1e-12, warmup_lr=0.0)
    loop.run(start)
    wanted, found, origin = map(weights_of, (whole, resumed, tmp_path / "start.pt"))
    assert (found - wanted).norm() < 0.01 * (wanted - origin).norm()


def test_a_run_is_scored_on_the_cpu_as_it_was_on_the_device(recipe, tmp_path, capsys):
    """The last row's validation, of the moving average, against that of the file."""
    weights = loop.run(replace(recipe, out=str(tmp_path / "run.pt"), precision="auto"))
    network = predict.load([weights])[0]
    held_out = network.split(data.load(recipe.data))[1]
    answers = predict.logits(network.model, held_out.images)
    assert predict.nll(answers, held_out.labels) == pytest.approx(network.content["log"][-1]["val_loss"], abs=1e-4)


def test_out_of_memory_is_one_line(device, typed):
    @command
    def main():
        torch.empty(2**50, dtype=torch.uint8, device=device)

    code, out, err = typed(main)
    assert (code, out) == (1, "") and err.count("\n") == 1 and re.search("out of memory.*--batch-size", err)


@pytest.mark.parametrize("compile", [False, True])
def test_two_ranks_train_as_one(device, recipe, tmp_path, compile):
    """nccl on GPUs, gloo in the rehearsal. Without normalizations, whose statistics are each rank's own."""
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("only one GPU")
    if compile and not loop.builds_kernels(device):  # the ranks are processes of their own, whose compiler is real
        pytest.skip("no compiler")
    models.MODELS["plain"] = ranked.Plain
    plain = replace(recipe, model="plain", constructor=(("width", 4),))
    loop.run(replace(plain, out=str(tmp_path / "one.pt")))
    two = replace(plain, compile=compile, out=str(tmp_path / "two.pt"))
    assert ranked.together(2, ranked.train, two, patience=300 if compile else 60) == [0, 0]
    assert torch.allclose(weights_of(tmp_path / "two.pt"), weights_of(tmp_path / "one.pt"), rtol=1e-4, atol=1e-5)
