"""The quick recipe: its parameter groups and mirroring against numbers by hand, and a run of it."""

import runpy

import pytest
import torch
import toy

import models
from augment.basic import normalize
from train import quick
from train.data import cifar10
from train.engine import checkpoint, loop
from train.engine.batches import batches, derive
from train.engine.flags import config, parse

RECIPE = quick.RECIPE


def main():
    runpy.run_path(quick.__file__, run_name="__main__")


@pytest.mark.parametrize("decay_all, decays", [(True, [1.3e-3] * 3), (False, [1.3e-3, 0.0, 0.0])])
def test_the_shifts_learn_faster_with_the_same_decay_per_step_and_frozen_weights_are_in_no_group(decay_all, decays):
    args, model = config(RECIPE, decay_all=decay_all), models.build("fastnet", width=4)
    optimizer = torch.optim.SGD(loop.parameter_groups(args, model), lr=1, weight_decay=args.weight_decay)
    decay = {p: group["weight_decay"] * group.get("lr_scale", 1) for group in optimizer.param_groups
             for p in group["params"]}
    shifts = [layer.bias for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    *others, last = optimizer.param_groups
    assert last["params"] == shifts and last["lr_scale"] == 64 and not any("lr_scale" in group for group in others)
    assert [decay[p] for p in (model.stage1[0].weight, shifts[0], model.whitening.bias)] == pytest.approx(decays)
    learned = [p for p in model.parameters() if p.requires_grad]
    assert len(decay) == len(learned) == 8 + 6 and set(decay) == set(learned)
    assert all(p is not model.whitening.weight for p in learned)


def test_a_group_learns_at_its_own_rate(toy_set, tmp_path):
    """One step of plain SGD from the same weights: the shifts move 64 times as far as with one group."""

    def moved(name, **changes):
        plain = dict(columns=1, width=2, epochs=1, batch_size=60, lr=1e-3, warmup_epochs=0, momentum=0, nesterov=False,
                     weight_decay=0, fold=None, device="cpu", precision="float32")
        args = config(RECIPE | plain, data=toy_set, out=tmp_path / name, **changes)
        torch.manual_seed(derive(0, "init"))
        before = models.build("fastnet", width=2).state_dict()
        after = checkpoint.load_weights(loop.run(args))["state"]
        return {key: (after[key] - before[key]).double() for key in before if key.endswith(("weight", "bias"))}

    one, two = moved("one.pt", norm_bias_lr=1), moved("two.pt")
    for key, step in one.items():
        scale = 64 if key.startswith("stage") and key.endswith("bias") else 1
        torch.testing.assert_close(two[key], step * scale, rtol=1e-3, atol=1e-6)
    assert one["stage1.2.bias"].any() and two["whitening.weight"].equal(one["whitening.weight"])


def test_columns_learn_as_if_each_were_alone():
    """Three steps of two columns and of the two as networks of their own, by each one's own loss."""
    torch.manual_seed(0)
    args, loss = config(RECIPE, precision="float32"), loop.cross_entropy(0.2)
    both = models.build("fastnet", columns=2, widths=(4, 6, 5), residual=True).double()
    networks = both, *toy.columns_of(both)
    for network in networks:
        network.whitening.bias.requires_grad_(False)  # the one thing that they share
    optimizers = [torch.optim.SGD(loop.parameter_groups(args, network), lr=0.01, momentum=0.85, nesterov=True,
                                  weight_decay=1.3e-3) for network in networks]
    for _ in range(3):
        images = torch.randn(12, 3, 32, 32, dtype=torch.float64)
        hard = cifar10.one_hot(torch.randint(10, (12,))).double()
        steps = [loop.train_step(*pair, args, loss, images, [hard]) for pair in zip(networks, optimizers, strict=True)]
        (parts, logits), *alone = steps
        torch.testing.assert_close(logits, sum(logits for _, logits in alone) / 2)
        torch.testing.assert_close(parts["loss"], sum(parts["loss"] for parts, _ in alone) / 2)
    for moved, alone in zip(toy.columns_of(both), networks[1:], strict=True):
        torch.testing.assert_close(moved.state_dict(), alone.state_dict())
    assert not torch.equal(networks[1].stage1[4].weight, networks[2].stage1[4].weight)


def test_alternate_flip_mirrors_every_image_in_every_other_epoch(toy_set):
    dataset = cifar10.load(toy_set)
    number = torch.arange(60.0).view(60, 1)
    plain, mirrored = normalize(dataset.images), normalize(dataset.images.flip(-1))
    first, second = torch.zeros(2, 4, 60, dtype=torch.bool)
    for seed, history in ((0, first), (1, second)):
        args = config({}, augment="none", alternate_flip=True, batch_size=12, seed=seed)
        for epoch in range(4):
            for images, rows in batches(dataset.images, [number], args, epoch):
                for image, row in zip(images, rows[:, 0].long().tolist(), strict=True):
                    history[epoch, row] = torch.equal(image, mirrored[row])
                    assert history[epoch, row] or torch.equal(image, plain[row])
        assert torch.equal(history[0], ~history[1]) and torch.equal(history[:2], history[2:])
        assert 15 < history[0].sum() < 45
    assert not torch.equal(first, second)


@pytest.mark.parametrize("fold, flags", [(None, ["--noval"]), (0, ["--fold", 0])])
def test_the_command_whitens_with_what_it_trains_on(toy_set, tmp_path, typed, monkeypatch, fold, flags):
    monkeypatch.setattr(loop, "WHITENED", 30)
    out = tmp_path / "quick.pt"
    words = ("--width", 4, "--epochs", 3, "-b", 20, *flags, "--lr", 0.1, "--device", "cpu")
    code, printed, err = typed(main, "--data", toy_set, "--out", out, *words)
    assert code == 0 and printed.startswith("fastnet-2x4: "), err
    state, expected = checkpoint.load_weights(out)["state"], models.build("fastnet", width=4, columns=2)
    expected.whiten(normalize(cifar10.split(cifar10.load(toy_set), fold)[0].images[:30]))
    assert torch.equal(state["whitening.weight"], expected.whitening.weight)


@pytest.mark.parametrize("words, name", [
    ("", "fastnet-m-fold0"), ("--widths 4,8,12 --residual", "fastnet-2x4-8-12-res-fold0"),
    ("--width 4 --noval --seed 1 --columns 1", "fastnet-4-noval-seed1"),
])
def test_the_widths_reach_the_network_and_the_name_of_the_run(words, name):
    args = parse(quick.__doc__, RECIPE, argv=words.split())
    assert loop.run_name(args, loop.build(args).name) == name
