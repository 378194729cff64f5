"""From a command line, or from Python, to a configuration: defaults, help, choices, and one line for what is wrong."""

import re
from pathlib import Path

import pytest

from train import UserError
from train.baseline import STAGES
from train.engine.command import integer
from train.engine.flags import config, parse
from train.engine.loop import build, run_name
from train.quick import RECIPE as QUICK


def parsed(*argv):
    return parse("", {}, argv=list(map(str, argv)))


def staged(*argv):
    return parse("The baseline.", STAGES, by="stage", argv=list(map(str, argv)) if argv else None)


# By the name in the configuration: what is typed, and what stands there.
GIVEN = dict(
    data=("some/where", "some/where"), fold=("3", 3), limit=("7", 7), include_test=(True, True), epochs=("5", 5),
    batch_size=("32", 32), lr=("0.05", 0.05), schedule=("constant", "constant"), momentum=("0.8", 0.8),
    nesterov=(False, False), weight_decay=("1e-4", 1e-4), decay_all=(False, False), norm_bias_lr=("64", 64.0),
    warmup_epochs=("2.5", 2.5), warmup_lr=("0.01", 0.01), min_lr=("0.001", 0.001), smoothing=("0.1", 0.1),
    ema_decay=("0.99", 0.99), init=("weights.pt", Path("weights.pt")), seed=("4", 4), allow_over_budget=(True, True),
    augment=("shift,erase:0.5", ("shift", "erase:0.5")), mix=("mixup:0.2", "mixup:0.2"), alternate_flip=(True, True),
    low_res=("0.25", 0.25), out=("run.pt", Path("run.pt")), device=("cpu", "cpu"), precision=("bfloat16", "bfloat16"),
    compile=(True, True), fresh=(True, True), width=("8", 8), blocks=("3", 3), zero_init=(True, True))


def as_flag(name, word):
    flag = "--" + name.replace("_", "-")
    return [flag, word] if isinstance(word, str) else [flag if word else flag.replace("--", "--no-", 1)]


def test_every_setting_has_a_flag():
    assert {*GIVEN, "model", "seen_folds"} == set(vars(parsed()))


@pytest.mark.parametrize("name", GIVEN)
def test_a_flag_sets_its_name_and_no_other_and_so_does_a_change_from_python(name):
    word, value = GIVEN[name]
    wanted = vars(parsed("--augment", "crop")) | {name: value}
    assert vars(parsed("--augment", "crop", *as_flag(name, word))) == wanted
    assert vars(config({"augment": "crop"}, **{name: value})) == wanted
    assert vars(config({"augment": "crop", name: word})) == wanted


def test_aliases_and_what_means_nothing():
    assert parsed("--wd", 0.01, "-b", 16) == parsed("--weight-decay", 0.01, "--batch-size", 16)
    assert parsed("--noval").fold is config({}, fold=None).fold is None and parsed().fold == 0
    assert parsed("--augment", "none").augment == parsed("--augment", "").augment == ()
    assert config({}, augment=()).augment == config({}, augment="none").augment == ()
    assert parsed("--init", "~/a.pt").init == Path.home() / "a.pt"
    assert parsed("--data", "~/a").data == str(Path.home() / "a")


def test_a_flag_beats_its_recipe_and_a_recipe_the_defaults():
    assert staged("--lr", 0.3, "--stage", "optimized").lr == 0.3
    assert staged("--stage=basic", "--augment", "flip").augment == ("flip",)
    quick = parse("", QUICK, argv=["--columns", "1", "--no-alternate-flip", "--widths", "8,16,32"])
    assert (quick.lr, quick.seed, quick.columns, quick.alternate_flip, quick.residual) == (0.75, 0, 1, False, False)
    assert quick.widths == (8, 16, 32) == config(QUICK, widths=[8, 16, 32]).widths


def test_one_flag_may_choose_the_recipe():
    recipes = {"seresnet20": dict(model="seresnet20", lr=0.3), "fastnet": QUICK}
    first, second = (parse("", recipes, by="model", argv=argv) for argv in ([], ["--model", "fastnet"]))
    assert (first.model, first.lr, first.reduction) == ("seresnet20", 0.3, 4) and "columns" not in first
    assert (second.model, second.lr, second.columns) == ("fastnet", 0.75, 2) and "reduction" not in second
    with pytest.raises(UserError, match="'nonesuch' should be one of seresnet20, fastnet"):
        parse("", recipes, by="model", argv=["--model", "nonesuch"])


def test_a_script_may_add_flags_of_its_own():
    def add(arguments):
        arguments.add_argument("--temperature", type=integer(1), default="4")

    assert parse("", {}, argv=[], add=add).temperature == 4
    assert parse("", {"temperature": 3}, argv=["--temperature", "9"], add=add).temperature == 9


def test_the_stages_are_the_documented_ones():
    basic, optimized, augmented = (staged("--stage", stage) for stage in ("basic", "optimized", "augmented"))
    assert (basic.lr, basic.schedule, basic.batch_size, basic.momentum) == (0.1, "constant", 128, 0.9)
    assert basic.weight_decay == basic.warmup_epochs == 0 and basic.augment == ()
    assert basic.nesterov is basic.zero_init is False
    for stage in (optimized, augmented):
        assert (stage.lr, stage.schedule, stage.min_lr, stage.momentum) == (0.2, "cosine", 0.0, 0.9)
        assert (stage.weight_decay, stage.warmup_epochs, stage.nesterov, stage.zero_init) == (5e-4, 5.0, True, True)
    assert optimized.augment == ("crop", "flip")
    assert augmented.augment == ("crop", "flip", "autoaugment", "erase", "cutout")
    names = [run_name(args, "resnet18") for args in (basic, optimized, augmented)]
    assert names == ["resnet18-basic-fold0", "resnet18-optimized-fold0", "resnet18-fold0"]
    assert parse("", STAGES, by="stage", argv=[]) == augmented
    tuned = staged("--stage", "tuned", "--noval")
    assert run_name(tuned, build(tuned).name) == "resnet20x4-tuned-noval" and tuned.blocks == 3
    assert (tuned.epochs, tuned.lr, tuned.weight_decay, tuned.smoothing, tuned.low_res) == (139, 0.2, 1e-4, 0.1, 0.5)
    assert tuned.augment == ("crop", "flip", "trivial:0.5", "cutout")


@pytest.mark.parametrize("flags, name", [
    ("--fold 3", "net-fold3"), ("--noval", "net-noval"), ("--seed 0", "net-fold0"),
    ("--seed 12", "net-fold0-seed12"), ("--noval --seed 1", "net-noval-seed1")])
def test_a_run_is_named_by_its_fold_and_a_seed_other_than_0(flags, name):
    assert run_name(parsed(*flags.split()), "net") == name


@pytest.mark.parametrize("flags, shown", [
    ("", ["--fold K ... [0] --noval", "--lr X ... [0.2]", "--seed N ... [0]", "--stage NAME ... [augmented]",
          "alpha=0.4] [crop,flip,autoaugment,erase,cutout] --mix", "--no-nesterov ... [on]", "--data PATH ... [data]"]),
    ("--stage basic", ["--lr X ... [0.1]", "at most a fifth of the run [0]", "[none] --mix NAME", "momentum [off]"])])
def test_help_shows_every_flag_with_its_default(typed, flags, shown):
    code, text, _ = typed(staged, *flags.split(), "--help")
    text = " ".join(text.split())
    assert code == 0 and all(f"--{name.replace('_', '-')}" in text for name in {*GIVEN, "noval", "stage"})
    for words in shown:
        assert re.search(re.escape(words).replace(r"\.\.\.", r"[^\[]*"), text), words


# ---------------------------------------------------------------- what is wrong


WRONG = [
    ("--fold 7", "'7' should be a whole number, 0 to 4"), ("--fold -1", "0 to 4"),
    ("--fold 1.5", "'1.5' should be a whole number"), ("--fold 0 --noval", "--noval: not allowed with argument --fold"),
    ("--noval --fold 1", "--fold: not allowed with argument --noval"),
    ("--epochs 0", "'0' should be a whole number, 1 or more"), ("--epochs 1e3", "whole number"),
    ("--batch-size -1", "1 or more"), ("-b 0", "1 or more"), ("--limit 0", "1 or more"),
    ("--width x", "invalid int value: 'x'"), ("--lr nan", "'nan' should be a number, above 0"),
    ("--lr inf", "above 0"), ("--lr 0", "above 0"), ("--lr -1", "above 0"), ("--norm-bias-lr 0", "above 0"),
    ("--momentum 1.5", "0 to 1"), ("--smoothing 1.1", "0 to 1"), ("--low-res 2", "0 to 1"), ("--wd -0.1", "0 or more"),
    ("--wd nan", "0 or more"), ("--warmup-epochs -1", "0 or more"), ("--warmup-lr -1", "0 or more"),
    ("--ema-decay 2", "0 to 1"), ("--seed -3", "0 or more"), ("--mix foo", "unknown mix 'foo'"),
    ("--augment foo", "unknown augmentation 'foo': known are crop, shift, flip"),
    ("--schedule foo", "should be one of cosine, triangular, constant"), ("--device tpu", "'tpu'"),
    ("--precision float16", "one of auto, float32, bfloat16"),
    ("--stage best", "one of augmented, optimized, basic, tuned"),
    ("--epoch 3", "unrecognized arguments: --epoch"), ("--epochs", "expected one argument"),
    ("extra", "unrecognized arguments"), ("--momentum 0", "add --no-nesterov"),
    ("--min-lr 0.5 --lr 0.1", "--min-lr 0.5 is above --lr 0.1"),
    ("--schedule constant --min-lr 0.01", "--schedule constant stays at --lr: leave --min-lr out"),
    ("--warmup-lr 0.5 --lr 0.1", "--warmup-lr 0.5 is above --lr 0.1"),
    ("--alternate-flip --augment crop,flip:0.3", "leave flip out of --augment"),
]


@pytest.mark.parametrize("flags, told", WRONG)
def test_a_wrong_flag_is_one_line_and_exit_code_2(typed, flags, told):
    code, out, err = typed(staged, *flags.split())
    assert (code, out) == (2, "") and err.count("\n") == 1 and told in err


@pytest.mark.parametrize("changes, told", [
    (dict(epochs=0), "--epochs: '0' should be a whole number, 1 or more"), (dict(fold=7), "'7'.* 0 to 4"),
    (dict(epochs=2.5), "'2.5' should be a whole number"), (dict(epochs=True), "'True'"), (dict(lr="fast"), "'fast'"),
    (dict(seed=-1), "0 or more"), (dict(epochs=None), "epochs"), (dict(lr=None), "lr"), (dict(mix="foo"), "mix 'foo'"),
    (dict(augment=["foo"]), "augmentation 'foo'"), (dict(nesterov="no"), "nesterov='no' should be True or False"),
    (dict(compile="yes"), "compile='yes'"), (dict(precision="float16"), "one of auto"), (dict(device="tpu"), "tpu"),
    (dict(schedule="foo"), "cosine, triangular"), (dict(widths=[1, 2]), "three whole numbers"),
    (dict(model="nonesuch"), "unknown model 'nonesuch': known are resnet18"), (dict(momentum=0), "add --no-nesterov"),
    (dict(min_lr=1), "--min-lr 1.0 is above"), (dict(epoch=3), "no setting epoch"), (dict(depth=3), "no setting depth"),
    (dict(seen_folds=(1,)), "no setting seen_folds"), (dict(augment="flip"), "leave flip out"),
])
def test_python_is_told_of_what_the_command_line_refuses(changes, told):
    with pytest.raises(UserError, match=told):
        config(QUICK, **changes)
