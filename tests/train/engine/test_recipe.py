"""From a command line to a recipe, defaults, help, presets and one line for what is wrong; and a recipe's hooks."""

import math
import re
from dataclasses import dataclass, fields, replace

import pytest
import torch

import models
from train.baseline import STAGES, Baseline
from train.engine import checkpoint, command
from train.engine import device as engine_device
from train.engine import results
from train.engine.command import UserError, integer
from train.engine.recipe import Recipe, parse, setting
from train.engine.state import optimizer_of


def baseline(*argv):
    return parse(Baseline, "The baseline.", list(map(str, argv)), stage=STAGES)


def parsed(*argv):
    return parse(Recipe, "A recipe.", list(map(str, argv)))


def test_without_flags_the_recipe_is_the_dataclass():
    assert parsed() == Recipe()


GIVEN = dict(
    data="some/where", fold=3, limit=7, include_test=True, epochs=5, batch_size=32, lr=0.05, momentum=0.8,
    nesterov=False, weight_decay=1e-4, decay_all=False, warmup_epochs=2.5, warmup_lr=0.01, min_lr=0.001, smoothing=0.1,
    ema_decay=0.99, init="weights.pt", seed=4, augment=("shift", "erase:0.5"), mix="mixup:0.2", alternate_flip=True,
    small=0.25, out="run.pt", device="cpu", precision="bfloat16", compile=True, fresh=True)


def as_flags(name, value):
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, ",".join(value) if isinstance(value, tuple) else value]


def test_every_field_has_a_flag():
    assert set(GIVEN) == {f.name for f in fields(Recipe)} - {"model"}
    assert parsed(*(word for name, value in GIVEN.items() for word in as_flags(name, value))) == Recipe(**GIVEN)


@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_sets_its_field_and_no_other(name):
    flags = "--augment", "crop", *as_flags(name, GIVEN[name])
    assert parsed(*flags) == replace(Recipe(augment=("crop",)), **{name: GIVEN[name]})


def test_aliases_and_the_absence_of_validation():
    assert parsed("--wd", 0.01, "-b", 16, "--output", "x.pt") == Recipe(weight_decay=0.01, batch_size=16, out="x.pt")
    assert parsed("--noval") == Recipe(fold=None) and parsed("--fold", 0) == Recipe()
    assert parsed("--augment", "none").augment == parsed("--augment", "").augment == ()
    assert baseline("--no-zero-init").zero_init is False


def help_text(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        baseline(*argv, "--help")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_flag_with_its_default_on_a_screen(capsys):
    text = help_text(capsys)
    lines = text.splitlines()
    assert len(lines) <= 55 and max(map(len, lines)) <= 110
    joined = re.sub(r"\s+", " ", text)
    for f in fields(Baseline):
        if "flag" in f.metadata:
            assert f"--{f.name.replace('_', '-')}" in joined and f.metadata["flag"]["help"] in joined
    for flag, default in [
        ("--fold K", "0"), ("--epochs N", "200"), ("--lr X", "0.2"), ("--min-lr X", "0.0"), ("--seed N", "0"),
        ("--data PATH", "data"), ("--ema-decay X", "0.0"), ("--stage {basic,optimized,augmented}", "augmented"),
        ("--precision {auto,float32,bfloat16}", "auto"), ("--nesterov, --no-nesterov", "on"),
    ]:
        assert re.search(rf"{re.escape(flag)} [^[]*\[{re.escape(default)}\]", joined), flag
    assert "[crop,flip,autoaugment,erase,cutout] --mix NAME[:STRENGTH]" in joined


def test_help_shows_the_defaults_of_the_stage(capsys):
    joined = re.sub(r"\s+", " ", help_text(capsys, "--stage", "basic"))
    for shown in ("peak learning rate [0.1]", "a fifth of the run [0.0]", "[none] --mix NAME", "momentum [off]"):
        assert shown in joined


def test_the_stages_are_the_documented_ones():
    basic, optimized, augmented = (baseline("--stage", stage) for stage in ("basic", "optimized", "augmented"))
    assert augmented == baseline() == Baseline(stage="augmented", **STAGES["augmented"])
    assert (basic.lr, basic.min_lr, basic.batch_size, basic.momentum, basic.nesterov) == (0.1, 0.1, 128, 0.9, False)
    assert (basic.weight_decay, basic.warmup_epochs, basic.augment, basic.zero_init) == (0.0, 0.0, (), False)
    for stage in (optimized, augmented):
        assert (stage.lr, stage.min_lr, stage.momentum, stage.nesterov) == (0.2, 0.0, 0.9, True)
        assert (stage.weight_decay, stage.warmup_epochs, stage.zero_init) == (5e-4, 5.0, True)
    assert optimized.augment == ("crop", "flip")
    assert augmented.augment == ("crop", "flip", "autoaugment", "erase", "cutout")
    names = [r.run_name("resnet18") for r in (basic, optimized, augmented)]
    assert names == ["resnet18-basic-fold0", "resnet18-optimized-fold0", "resnet18-fold0"]


def test_a_flag_beats_its_stage():
    assert baseline("--lr", 0.3, "--stage", "optimized").lr == 0.3
    assert baseline("--stage=basic", "--augment", "flip").augment == ("flip",)


@pytest.mark.parametrize("flags, name", [
    ("", "net-fold0"), ("--fold 3", "net-fold3"), ("--noval", "net-noval"), ("--seed 0", "net-fold0"),
    ("--seed 12", "net-fold0-seed12"), ("--noval --seed 1", "net-noval-seed1")])
def test_a_run_is_named_by_its_fold_and_a_seed_other_than_0(flags, name):
    recipe = parsed(*flags.split())
    assert recipe.run_name("net") == name and results.family(name) == "net"


def test_identity_is_what_decides_the_weights():
    other = dict(data="x", out="y.pt", device="cpu", compile=True, fresh=True)
    assert Recipe(**other).identity == Recipe().identity
    assert set(Recipe().identity) == {f.name for f in fields(Recipe)} - {*other, "init"}
    assert Recipe(augment=("flip",)).identity["augment"] == ["flip"]


@pytest.mark.parametrize("units, settled", [(True, "bfloat16"), (False, "float32")])
def test_the_precision_is_settled_by_the_device_and_part_of_the_identity(monkeypatch, units, settled):
    monkeypatch.setattr(engine_device, "faster_in_bfloat16", lambda: units)
    device, recipe = Recipe(device="cpu").on_device()
    assert device.type == "cpu" and recipe == Recipe(device="cpu", precision=settled)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Recipe().on_device()[1] == recipe  # what `auto` means is asked once
    assert recipe.identity["precision"] == settled
    other = {"bfloat16": "float32", "float32": "bfloat16"}[settled]
    named = Recipe(device="cpu", precision=other).on_device()[1]
    assert named.precision == other
    with pytest.raises(UserError, match=f"precision {settled} -> {other}"):
        checkpoint.check_same({"recipe": recipe.identity, "data": ""}, named.identity, "")


def test_options_are_those_of_the_model():
    assert Recipe().options == {} and baseline("--width", 8).options == {"width": 8, "zero_init": True}


WRONG = [
    ("--fold 7", "'7' should be a whole number, 0 to 4"), ("--fold -1", "0 to 4"),
    ("--fold x", "'x' should be a whole number"), ("--fold 1.5", "whole number"),
    ("--fold 0 --noval", "--fold 0 and --noval contradict each other"), ("--noval --fold 1", "--fold 1 and --noval"),
    ("--epochs 0", "'0' should be a whole number, 1 or more"), ("--epochs 1e3", "whole number"),
    ("--batch-size -1", "1 or more"), ("-b 0", "1 or more"), ("--limit 0", "1 or more"), ("--width 0", "1 or more"),
    ("--lr nan", "'nan' should be a number, above 0"), ("--lr inf", "above 0"), ("--lr 0", "above 0"),
    ("--lr -1", "above 0"), ("--momentum 1.5", "0 to 1"), ("--smoothing 1.1", "0 to 1"), ("--small 2", "0 to 1"),
    ("--wd -0.1", "0 or more"), ("--wd nan", "0 or more"), ("--warmup-epochs -1", "0 or more"),
    ("--warmup-lr -1", "0 or more"), ("--ema-decay 2", "0 to 1"), ("--seed -3", "0 or more"),
    ("--seed x", "whole number"), ("--mix foo", "unknown mix 'foo'"),
    ("--augment foo", "unknown augmentation 'foo': known are crop, shift, flip"),
    ("--device tpu", "choose from"), ("--precision float16", "choose from"), ("--stage best", "choose from"),
    ("--epoch 3", "unrecognized arguments: --epoch"), ("--epochs", "expected one argument"),
    ("extra", "unrecognized arguments"), ("--momentum 0", "add --no-nesterov"),
    ("--min-lr 0.5 --lr 0.1", "--min-lr 0.5 is above --lr 0.1"),
    ("--warmup-lr 0.5 --lr 0.1", "--warmup-lr 0.5 is above --lr 0.1"),
    ("--stage basic --lr 0.05", "--min-lr 0.1 is above --lr 0.05"),
    ("--alternate-flip --augment crop,flip:0.3", "leave flip out of --augment\n"),
]


@pytest.mark.parametrize("flags, told", WRONG)
def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys, flags, told):
    with pytest.raises(SystemExit) as caught:
        command.command(baseline)(*flags.split())
    streams = capsys.readouterr()
    assert caught.value.code == 2 and streams.err.count("\n") == 1 and not streams.out
    assert told in streams.err and "Traceback" not in streams.err


def test_a_script_may_add_fields_of_its_own():
    @dataclass(frozen=True)
    class Own(Recipe):
        depth: int = setting(20, "layers", integer(2), "model", model=True)

    made = parse(Own, "Own.", ["--depth", "11"])
    assert made.options == {"depth": 11} and made.identity["depth"] == 11


# ---------------------------------------------------------------- hooks


def test_the_warm_up_begins_from_its_own_rate():
    """Ten epochs of ten steps, of which two warm up: 0.2 + 0.8 (step + 1) / 20."""
    recipe = Recipe(epochs=10, lr=1.0, warmup_epochs=2.0, warmup_lr=0.2)
    rates = [recipe.learning_rate(step, 100) for step in range(100)]
    assert [rates[step] for step in (0, 9, 19, 20)] == pytest.approx([0.24, 0.6, 1.0, 1.0])
    assert rates[:20] == sorted(rates[:20]) and rates[20:] == sorted(rates[20:], reverse=True)


def test_smoothing_takes_from_the_label_what_it_gives_to_all():
    logits, hard = torch.tensor([[2.0, 0.0, -1.0, 0.5]]), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    norm = math.log(sum(math.exp(z) for z in logits[0].tolist()))
    for smoothing in (0.0, 0.2):
        wanted = [(1 - smoothing) * y + smoothing / 4 for y in hard[0].tolist()]
        by_hand = -sum(w * (z - norm) for w, z in zip(wanted, logits[0].tolist()))
        assert Recipe(smoothing=smoothing).loss(logits, None, hard)["loss"].item() == pytest.approx(by_hand)


@pytest.mark.parametrize("decay_all", [True, False])
def test_without_decay_all_only_filters_and_matrices_decay(decay_all):
    """What decays shrinks in a step without gradients."""
    model = models.build("resnet18", width=2)
    recipe = Recipe(decay_all=decay_all, lr=0.5, weight_decay=0.1)
    frozen = next(model.parameters()).requires_grad_(False)
    optimizer = optimizer_of(model, recipe)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [parameter for group in recipe.parameter_groups(model) for parameter in group["params"]]
    assert len(set(held)) == len(held) == len(list(model.parameters())) - 1
    # With Nesterov's momentum the first step is 1.9 times the gradient.
    for parameter in model.parameters():
        shrinks = parameter is not frozen and (decay_all or parameter.dim() > 1)
        assert torch.allclose(parameter, torch.tensor(1 - 0.5 * 0.1 * 1.9 if shrinks else 1.0))
