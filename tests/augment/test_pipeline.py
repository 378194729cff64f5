"""What every augmentation promises; NAME[:STRENGTH...]: what a strength sets, what stays without, what is refused."""

import inspect
from functools import partial

import pytest
import torch
from toy import generator

from augment import AUGMENTATIONS, MIXES, STRENGTHS, describe, mixing, pipeline
from augment.basic import crop, cutout, erase, flip
from augment.mix import cutmix, mixup, ricap
from augment.policies import augmix, trivialaugment


@pytest.fixture
def images():
    return torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=generator(1))


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_the_input_stays_and_the_generator_decides(pictures, augment):
    before = pictures.clone()
    first, again = augment(pictures, generator(7)), augment(pictures, generator(7))
    assert torch.equal(pictures, before) and first.data_ptr() != pictures.data_ptr()
    assert torch.equal(first, again) and not torch.equal(first, augment(pictures, generator(8)))
    assert first.dtype == torch.uint8 and first.shape == pictures.shape


@pytest.mark.parametrize("augment", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_one_image_and_any_memory_format(pictures, augment):
    assert augment(pictures[:1], generator(4)).shape == (1, 3, 32, 32)
    last = pictures.to(memory_format=torch.channels_last)
    assert torch.equal(augment(last, generator(4)), augment(pictures, generator(4)))


def test_an_empty_pipeline_changes_nothing(images):
    assert pipeline(())(images, generator(4)) is images


# ---- strengths ----


@pytest.mark.parametrize("text, function", (
    ("flip:0.9", partial(flip, p=0.9)),
    ("crop:2", partial(crop, padding=2)),
    ("shift:4", partial(crop, padding=4, mode="reflect")),
    ("cutout:8", partial(cutout, size=8)),
    ("erase:0.9", partial(erase, p=0.9)),
    ("erase:0.9:0.125:0.2", partial(erase, p=0.9, smallest=0.125, largest=0.2)),
    ("erase:0.9:0.125:0.2:0.99:1", partial(erase, p=0.9, smallest=0.125, largest=0.2, flattest=0.99, tallest=1.0)),
    ("augmix:9", partial(augmix, severity=9)),
    ("augmix:3:2", partial(augmix, width=2)),
    ("augmix:3:3:1", partial(augmix, alpha=1.0)),
    ("trivial:0.3", partial(trivialaugment, p=0.3)),
))
def test_the_strengths_of_an_augmentation_are_its_parameters_in_order(images, text, function):
    out = pipeline([text])(images, generator(4))
    assert torch.equal(out, function(images, generator(4)))
    assert not torch.equal(out, pipeline([text.split(":")[0]])(images, generator(4)))


@pytest.mark.parametrize("text, function", (
    ("ricap:0.9", partial(ricap, beta=0.9)),
    ("mixup:0.2", partial(mixup, alpha=0.2)),
    ("cutmix:0.7", partial(cutmix, alpha=0.7)),
    ("cutmix:1.0:0.5", partial(cutmix, alpha=1.0, p=0.5)),
))
def test_the_strengths_of_a_mix_are_its_parameters_in_order(images, text, function):
    targets = torch.eye(24)
    out = mixing(text)(generator(4), images, targets, batch=6)
    expected = function(generator(4), images, targets, batch=6)
    plain = MIXES[text.split(":")[0]](generator(4), images, targets, batch=6)
    assert all(torch.equal(*pair) for pair in zip(out, expected, strict=True)) and not torch.equal(out[1], plain[1])


def test_without_a_strength_nothing_changes(images):
    names = tuple(AUGMENTATIONS)
    drawn, g, expected = generator(4), generator(4), images
    out = pipeline(names)(images, drawn)
    for name in names:
        expected = AUGMENTATIONS[name](expected, g)
    assert torch.equal(out, expected) and torch.equal(drawn.get_state(), g.get_state())
    assert all(mixing(name) is MIXES[name] for name in MIXES)


def test_the_strengths_without_a_number_are_those_of_the_papers_or_documented():
    assert describe(AUGMENTATIONS) == (
        "crop[:padding=4], shift[:padding=2], flip[:p=0.5], autoaugment, erase[:p=0.25:smallest=0.02:largest=0.4:"
        "flattest=0.3:tallest=3.3], cutout[:size=16], trivial[:p=1.0], augmix[:severity=3:width=3:alpha=0.4]")
    assert describe(MIXES) == "none, ricap[:beta=0.3], cutmix[:alpha=1.0:p=1.0], mixup[:alpha=1.0]"


def test_the_defaults_written_out_are_the_defaults(images):
    """As `describe` gives them, so that its text is a valid command line."""
    for text in describe(AUGMENTATIONS).split(", "):
        name, *strengths = text.rstrip("]").replace("[", "").split(":")
        spelled = ":".join([name, *(strength.split("=")[1] for strength in strengths)])
        assert torch.equal(pipeline([spelled])(images, generator(4)), pipeline([name])(images, generator(4)))


def test_every_strength_has_bounds_around_its_default_and_a_parameter():
    taken = set()
    for function in (*AUGMENTATIONS.values(), *MIXES.values()):
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name in STRENGTHS:
                taken.add(parameter.name)
                low, high = STRENGTHS[parameter.name]
                assert low <= parameter.default <= high and type(parameter.default) in (int, float)
    assert taken == set(STRENGTHS)


@pytest.mark.parametrize("text", ("crop:0", "crop:16", "shift:0", "shift:16", "flip:0", "cutout:1", "cutout:32",
                                  "erase:1:0:1:0.01:100", "augmix:1:1:0.01", "augmix:10:10:100"))
def test_the_bounds_themselves_work(images, text):
    assert pipeline([text])(images, generator(4)).shape == images.shape


@pytest.mark.parametrize("text", ("ricap:0.01", "ricap:100", "mixup:0.01", "cutmix:0.01:0", "cutmix:100:1"))
def test_the_bounds_of_a_mix_themselves_work(images, text):
    _, targets = mixing(text)(generator(4), images, torch.eye(24))
    torch.testing.assert_close(targets.sum(1), torch.ones(24))


@pytest.mark.parametrize("text, message", (
    ("foo:1", "unknown augmentation 'foo': known are crop, "),
    ("cutout:8:8", r"'cutout:8:8' has too many strengths: it may be cutout\[:size=16\]"),
    ("cutout:8.5", "size of 'cutout:8.5' should be a whole number from 1 to 32, not '8.5'"),
    ("cutout:33", "should be a whole number from 1 to 32, not '33'"),
    ("flip:", "p of 'flip:' should be a number from 0 to 1, not ''"),
    ("erase:0.5:nan", "smallest of 'erase:0.5:nan' should be a number from 0 to 1, not 'nan'"),
))
def test_an_impossible_strength_is_answered_with_what_is_possible(text, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(("crop", text))
    assert "\n" not in str(error.value)


def test_a_mix_is_refused_alike():
    for text, message in (("foo:1", "unknown mix 'foo': known are .*none, ricap"), ("none:1", "'none:1' has too many"),
                          ("mixup:0", "alpha of 'mixup:0' should be a number from 0.01 to 100, not '0'")):
        with pytest.raises(ValueError, match=message):
            mixing(text)
