"""Names, exact sizes, and the budget gate."""

import re

import pytest
import torch
import torch.nn as nn

from models import BUDGET, MODELS, build, check_budget, macs, options_of, parameter_count

# name: (parameters, multiply-accumulates for one image)
SIZES = {
    "resnet18": (2_777_674, 421_202_432),
    "resnet20x4": (4_327_754, 647_694_848),
    "shakeshake26-32": (2_923_162, 426_689_792),
    "shakeshake26-40": (4_561_354, 663_340_608),
    "shakeshake26-40-se": (4_597_010, 663_373_888),
    "shakeshake26-64-se": (11_743_802, 1_685_592_576),
    "seresnet164": (2_488_378, 248_420_864),
    "seresnet20": (307_514, 33_823_232),
    "pyramidnet": (4_993_281, 949_374_718),
    "flatse": (4_800_974, 1_079_921_664),
    "fastnet-s": (1_972_792, 118_147_360),
    "fastnet-m": (3_945_272, 236_017_952),
    "fastnet-l": (4_623_544, 308_653_216),
}


def test_the_options_of_a_model_may_be_annotated_in_quotes(monkeypatch):
    def mine(depth: "int" = 20, num_classes: "int" = 10):  # as after `from __future__ import annotations`
        pass

    monkeypatch.setitem(MODELS, "mine", mine)
    assert [option.annotation for option in options_of("mine").values()] == [int]


@pytest.mark.parametrize("name", SIZES)
def test_documented_model_has_its_name_parameters_and_macs(name):
    with torch.device("meta"):
        model = build(name)
    assert (model.name, parameter_count(model), macs(model)) == (name, *SIZES[name])


def test_only_the_teacher_is_above_the_budget():
    assert BUDGET == 5_000_000 and {*SIZES} == {*MODELS} - {"fastnet"}  # which is fastnet-s
    assert [name for name, (count, _) in SIZES.items() if count > BUDGET] == ["shakeshake26-64-se"]


@pytest.mark.parametrize(
    "name, options, expected",
    (
        ("resnet18", {"width": 16}, "resnet18-16"),
        ("resnet18", {"zero_init": True}, "resnet18"),
        ("resnet18", {"blocks": 3}, "resnet20x4"),
        ("resnet20x4", {"blocks": 4, "width": 8}, "resnet26x4-8"),
        ("shakeshake26-32", {"width": 8}, "shakeshake26-8"),
        ("shakeshake26-32", {"width": 40, "se": True}, "shakeshake26-40-se"),
        ("shakeshake26-40-se", {"se": False}, "shakeshake26-40"),
        ("shakeshake26-40-se", {"shake": False}, "shakeshake26-40-se-no-shake"),
        ("seresnet164", {"depth": 20}, "seresnet20"),
        ("seresnet164", {"width": 8}, "seresnet164-8"),
        ("seresnet20", {"width": 8, "reduction": 16}, "seresnet20-8-r16"),
        ("seresnet20", {"zero_init": False, "head_std": 1e-3}, "seresnet20"),
        ("pyramidnet", {"depth": 20, "widening": 24}, "pyramidnet20-a24"),
        ("pyramidnet", {"depth": 164, "widening": 101, "bottleneck": True}, "pyramidnet164-a101-bottleneck"),
        ("pyramidnet", {"bottleneck": True}, "pyramidnet110-a99-bottleneck"),
        ("pyramidnet", {"shakedrop": 1.0}, "pyramidnet-p1"),
        ("flatse", {"width": 16}, "flatse-16"),
        ("flatse", {"depth": 16, "drop_path": 0.1}, "flatse-d16"),
        ("fastnet", {"width": 32}, "fastnet-32"),
        ("fastnet", {"widths": [64, 256, 256]}, "fastnet-s"),
        ("fastnet", {"width": 96, "widths": [96, 384, 384]}, "fastnet-96"),
        ("fastnet", {"widths": [64, 256, 384]}, "fastnet-64-256-384"),
        ("fastnet", {"widths": [128, 256, 352]}, "fastnet-128-256-352"),
        ("fastnet", {"residual": True}, "fastnet-64-res"),
        ("fastnet", {"widths": [128, 256, 352], "residual": True}, "fastnet-128-256-352-res"),
        ("fastnet", {"columns": 2}, "fastnet-m"),
        ("fastnet", {"columns": 2, "widths": [96, 192, 224], "residual": True}, "fastnet-l"),
        ("fastnet", {"columns": 3, "width": 32, "residual": True}, "fastnet-3x32-res"),
    ),
)
def test_a_name_follows_from_the_options_and_the_options_rebuild_the_model(name, options, expected):
    with torch.device("meta"):
        model = build(name, num_classes=7, **options)
        again = type(model)(**model.options)
    assert model.name == again.name == expected
    assert model.options.items() >= {"num_classes": 7, **options}.items()
    assert str(again) == str(model)


@pytest.mark.parametrize("widths", ((64, 256, 256), (128, 256, 352), (4, 7, 5)))
@pytest.mark.parametrize("residual", (False, True))
@pytest.mark.parametrize("columns", (1, 2, 3))
def test_the_parameters_of_fastnet_by_hand(widths, residual, columns):
    """3x3 convolutions between widths, a frozen scale and a shift for each norm, the head; one whitening for all."""
    width, middle, top = widths
    convolutions = 9 * (24 * width + width**2 + width * middle + middle**2 + middle * top + top**2)
    convolutions += 9 * (width**2 + middle**2 + top**2) * residual
    norms = 2 * (2 + residual) * (width + middle + top)
    with torch.device("meta"):
        model = build("fastnet", widths=widths, residual=residual, columns=columns)
        alone = build("fastnet", widths=widths, residual=residual)
    assert parameter_count(model) == 24 * 3 * 4 + 24 + columns * (convolutions + norms + 10 * top)
    whitening = 24 * 3 * 4 * 31**2
    assert macs(model) - whitening == columns * (macs(alone) - whitening)


def test_the_keys_of_a_fastnet_stay_and_a_residual_adds_to_them():
    with torch.device("meta"):
        plain, residual = (build("fastnet", residual=residual).state_dict().keys() for residual in (False, True))
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers = ("0.weight", *(f"2.{key}" for key in norm), "4.weight", *(f"5.{key}" for key in norm))
    stages = [f"stage{stage}.{layer}" for stage in (1, 2, 3) for layer in layers]
    assert list(plain) == ["whitening.weight", "whitening.bias", *stages, "head.weight"]
    added = ("7.0.weight", *(f"7.1.{key}" for key in norm))
    assert residual - plain == {f"stage{stage}.{layer}" for stage in (1, 2, 3) for layer in added}


def test_the_parameters_of_a_pyramid_of_bottlenecks_by_hand():
    """Three blocks of 20, 24 and 28 planes, which leave with four times as many."""
    total = 27 * 16 + 2 * 16 + 2 * 112 + 112 * 10 + 10  # the stem, the last normalization, the head
    for channels, planes in ((16, 20), (80, 24), (96, 28)):
        total += channels * planes + 9 * planes**2 + 4 * planes**2 + 2 * (channels + planes + planes + 4 * planes)
    assert parameter_count(build("pyramidnet", depth=11, widening=12, bottleneck=True)) == total


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="resnet19.*" + ".*".join(MODELS)):
        build("resnet19")


@pytest.mark.parametrize("name, takes", (
    ("resnet18", "width, blocks, zero_init"), ("shakeshake26-40", "width, se, shake")))
def test_an_unknown_option_is_answered_with_the_known_ones(name, takes):
    with pytest.raises(ValueError, match=f"{name} has no option colour; it takes {takes}$"):
        build(name, colour=3)


@pytest.mark.parametrize(
    "name, options",
    (
        ("resnet18", {"width": 0}),
        ("resnet20x4", {"blocks": 0}),
        ("shakeshake26-32", {"width": 1}),
        ("seresnet164", {"depth": 18}),
        ("seresnet164", {"depth": 2}),
        ("seresnet20", {"reduction": 0}),
        ("seresnet20", {"head_std": 0}),
        ("seresnet20", {"head_std": float("nan")}),
        ("pyramidnet", {"depth": 112}),
        ("pyramidnet", {"widening": 0}),
        ("pyramidnet", {"shakedrop": 1.5}),
        ("flatse", {"depth": 20}),
        ("flatse", {"drop_path": 1.0}),
        ("fastnet", {"columns": 0}),
        ("fastnet", {"widths": [64, 0, 64]}),
        ("fastnet", {"width": 32, "widths": [64, 128, 128]}),
    ),
)
def test_an_impossible_option_is_refused(name, options):
    with pytest.raises(ValueError):
        build(name, **options)


def of_size(count):
    module = nn.Module()
    module.name = "toy"
    module.weight = nn.Parameter(torch.empty(count, device="meta"))
    return module


def test_the_budget_itself_passes_and_one_more_parameter_fails():
    check_budget(of_size(5_000_000))
    with pytest.raises(ValueError, match="5,000,001 parameters, 1 above the budget of 5,000,000"):
        check_budget(of_size(5_000_001))


def test_a_budget_error_says_where_the_parameters_are():
    with torch.device("meta"):
        model = build("flatse", width=96)
    with pytest.raises(ValueError, match=r"^flatse-96 has [\d,]+ parameters, ") as error:
        check_budget(model)
    stages = re.findall(r"(?:stem|stage\d|norm|head) ([\d,]+)", str(error.value))
    assert sum(int(count.replace(",", "")) for count in stages) == parameter_count(model)


def test_the_default_pyramid_is_the_widest_that_fits():
    with torch.device("meta"), pytest.raises(ValueError, match="above the budget"):
        check_budget(build("pyramidnet", widening=build("pyramidnet").options["widening"] + 1))


@pytest.mark.parametrize("training", (False, True))
def test_counting_macs_leaves_the_model_as_it_was(training):
    model = build("shakeshake26-32", width=8).train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    macs(model)
    assert torch.equal(torch.get_rng_state(), state) and all(part.training == training for part in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_macs_of_one_convolution_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(5 * 16 * 16, 7))
    assert macs(model) == 16 * 16 * 5 * 3 * 9 + 5 * 16 * 16 * 7
