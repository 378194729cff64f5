"""From a command line to a recipe: defaults, help, presets, and one line for what is wrong."""

import dataclasses
import re
from dataclasses import dataclass, fields

import pytest
import torch

from train import recipe
from train.baseline import STAGES, Baseline
from train.recipe import Recipe, UserError, command, parse, setting


def baseline(*argv):
    return parse(Baseline, "The baseline.", list(map(str, argv)), stage=STAGES)


def plain(*argv):
    return parse(Recipe, "A recipe.", list(map(str, argv)))


def test_without_flags_the_recipe_is_the_dataclass():
    assert plain() == Recipe()


GIVEN = {
    "data": "some/where",
    "fold": 3,
    "limit": 7,
    "include_test": True,
    "epochs": 5,
    "batch_size": 32,
    "lr": 0.05,
    "momentum": 0.8,
    "nesterov": False,
    "weight_decay": 1e-4,
    "warmup_epochs": 2.5,
    "min_lr": 0.001,
    "ema_decay": 0.99,
    "seed": 4,
    "augment": ("flip", "cutout"),
    "mix": "ricap",
    "alternate_flip": True,
    "out": "run.pt",
    "device": "cpu",
    "compile": True,
    "fresh": True,
}


def as_flags(name, value):
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, ",".join(value) if isinstance(value, tuple) else value]


def test_every_field_has_a_flag():
    assert set(GIVEN) == {f.name for f in fields(Recipe)} - {"model"}
    assert plain(*(word for name, value in GIVEN.items() for word in as_flags(name, value))) == Recipe(**GIVEN)


@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_sets_its_field_and_no_other(name):
    assert plain(*as_flags(name, GIVEN[name])) == dataclasses.replace(Recipe(), **{name: GIVEN[name]})


def test_aliases_and_the_absence_of_validation():
    assert plain("--wd", 0.01, "-b", 16, "--output", "x.pt") == Recipe(weight_decay=0.01, batch_size=16, out="x.pt")
    assert plain("--noval") == Recipe(fold=None) and plain("--noval").split_name == "noval"
    assert plain("--augment", "none").augment == plain("--augment", "").augment == ()
    assert baseline("--no-zero-init").zero_init is False


def help_text(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        baseline(*argv, "--help")
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_shows_every_flag_with_its_default_on_a_screen(capsys):
    text = help_text(capsys)
    lines = text.splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 110
    joined = re.sub(r"\s+", " ", text)
    for f in fields(Baseline):
        if "help" in f.metadata:
            assert f"--{f.name.replace('_', '-')}" in joined and f.metadata["help"] in joined
    for flag, default in [
        ("--fold K", "0"),
        ("--epochs N", "200"),
        ("--lr X", "0.2"),
        ("--min-lr X", "0.0"),
        ("--seed N", "0"),
        ("--data PATH", "data"),
        ("--augment NAME[,NAME...]", "crop,flip,autoaugment,erase,cutout"),
        ("--ema-decay X", "0.0"),
        ("--stage {basic,optimized,augmented}", "augmented"),
    ]:
        assert re.search(rf"{re.escape(flag)} [^[]*\[{re.escape(default)}\]", joined), flag


def test_help_shows_the_defaults_of_the_stage(capsys):
    joined = re.sub(r"\s+", " ", help_text(capsys, "--stage", "basic"))
    for shown in (
        "peak learning rate [0.1]",
        "warm-up, at most a fifth of the run [0.0]",
        "cutout,trivial,augmix [none]",
    ):
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
    assert [r.run_name("resnet18") for r in (basic, optimized, augmented)] == [
        "resnet18-basic-fold0",
        "resnet18-optimized-fold0",
        "resnet18-fold0",
    ]


def test_a_flag_beats_its_stage():
    assert baseline("--lr", 0.3, "--stage", "optimized").lr == 0.3
    assert baseline("--stage=basic", "--augment", "flip").augment == ("flip",)


def test_identity_is_what_decides_the_weights():
    other = dict(data="x", out="y.pt", device="cpu", compile=True, fresh=True)
    assert Recipe(**other).identity == Recipe().identity
    assert set(Recipe().identity) == {f.name for f in fields(Recipe)} - set(other)
    assert Recipe(augment=("flip",)).identity["augment"] == ["flip"]


def test_options_are_those_of_the_model():
    assert Recipe().options == {} and baseline("--width", 8).options == {"width": 8, "zero_init": True}


WRONG = [
    ("--fold 7", "'7' should be a whole number, 0 to 4"),
    ("--fold -1", "0 to 4"),
    ("--fold x", "'x' should be a whole number"),
    ("--fold 1.5", "whole number"),
    ("--fold 1 --noval", "not allowed with"),
    ("--epochs 0", "'0' should be a whole number, 1 or more"),
    ("--epochs 1e3", "whole number"),
    ("--batch-size -1", "1 or more"),
    ("-b 0", "1 or more"),
    ("--lr nan", "'nan' should be a number, above 0"),
    ("--lr inf", "above 0"),
    ("--lr 0", "above 0"),
    ("--lr -1", "above 0"),
    ("--momentum 1.5", "0 to 1"),
    ("--wd -0.1", "0 or more"),
    ("--wd nan", "0 or more"),
    ("--warmup-epochs -1", "0 or more"),
    ("--ema-decay 2", "0 to 1"),
    ("--seed -3", "0 or more"),
    ("--seed x", "whole number"),
    ("--mix foo", "choose from"),
    ("--augment foo", "unknown augmentation 'foo': known are crop, shift, flip"),
    ("--limit 0", "1 or more"),
    ("--device tpu", "choose from"),
    ("--stage best", "choose from"),
    ("--epoch 3", "unrecognized arguments: --epoch"),
    ("--epochs", "expected one argument"),
    ("extra", "unrecognized arguments"),
    ("--min-lr 0.5 --lr 0.1", "--min-lr 0.5 is above --lr 0.1"),
    ("--momentum 0", "add --no-nesterov"),
    ("--width 0", "1 or more"),
    ("--stage basic --lr 0.05", "--min-lr 0.1 is above --lr 0.05"),
]


@pytest.mark.parametrize("flags, told", WRONG)
def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys, flags, told):
    with pytest.raises(SystemExit) as caught:
        command(baseline)(*flags.split())
    streams = capsys.readouterr()
    assert caught.value.code == 2 and streams.err.count("\n") == 1 and not streams.out
    assert told in streams.err and "Traceback" not in streams.err


def test_a_device_that_is_not_there_is_a_users_mistake(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cuda: no CUDA device"):
        recipe.device_of("cuda")
    assert recipe.device_of("auto").type == recipe.device_of("cpu").type == "cpu"


@pytest.mark.parametrize(
    "error, code, told",
    [
        (UserError("two\nlines"), 2, "two lines"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore."),
            1,
            "try a smaller --batch-size",
        ),
        (MemoryError(), 1, "out of memory (MemoryError): try a smaller --batch-size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "try a smaller --batch-size"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, error, code, told):
    @command
    def main():
        raise error

    with pytest.raises(SystemExit) as caught:
        main()
    text = capsys.readouterr().err
    assert caught.value.code == code and told in text and text.count("\n") == 1


def test_our_own_mistakes_keep_their_traceback():
    @command
    def main():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError):
        main()


def test_a_script_may_add_fields_of_its_own():
    @dataclass(frozen=True)
    class Own(Recipe):
        depth: int = setting(20, "layers", recipe.whole(2), "model", model=True)

    made = parse(Own, "Own.", ["--depth", "11"])
    assert made.options == {"depth": 11} and made.identity["depth"] == 11


@pytest.mark.parametrize("run, family", [
    ("seresnet164-fold3", "seresnet164"), ("student-s12", "student"), ("resnet18-basic-noval", "resnet18-basic"),
    ("shakeshake26-64-se-fold0-seed2", "shakeshake26-64-se"), ("seresnet164", "seresnet164"), ("net-s1-noval", "net")])
def test_a_family_is_a_run_without_fold_and_seed(run, family):
    assert recipe.family(run) == family
