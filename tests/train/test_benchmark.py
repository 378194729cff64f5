"""The benchmark: what it feeds is what training sees, and its figures follow from what was measured."""

import inspect
from itertools import count, islice, pairwise, repeat

import pytest
import torch
import toy
from torchvision.transforms import v2

import augment
from augment.basic import normalize
from train import benchmark
from train.data import cifar10

pytestmark = pytest.mark.usefixtures("toy_set")
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Batches of 5 images, two to a chunk; one chunk a measurement; no further process."""
    for name, value in (("SECONDS", 0), ("SETTLE", 0), ("WORKERS", 0), ("TURNS", 1)):
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setattr(augment, "CHUNK", 10)
    return toy.configure(batch_size=5, augment="crop,erase", mix="ricap", ema_decay=0)


@pytest.fixture
def run(typed, toy_set, small):
    """run(*words) -> (exit code, stdout, stderr) of the command on the toy set."""
    return lambda *words: typed(benchmark.main, "--data", toy_set, "--device", "cpu", "--batch-size", 5, "--precision",
                                "float32", *words)


def test_without_augmentation_the_loader_gives_what_training_sees(toy_set, small, monkeypatch):
    dataset, steps = cifar10.load(toy_set), benchmark.TRANSFORM.transforms
    monkeypatch.setattr(benchmark, "TRANSFORM", v2.Compose(steps[3:6]))  # to floats, and normalized
    images, labels = next(benchmark.usual_batches(dataset, 60)[0])
    seen = normalize(dataset.images)
    rows = torch.cdist(images.flatten(1), seen.flatten(1)).argmin(1)
    assert torch.equal(labels, dataset.labels[rows]) and len(set(rows.tolist())) > 20
    torch.testing.assert_close(images, seen[rows], rtol=0, atol=1e-6)


def test_the_usual_transforms_are_those_of_the_loop():
    crop, flip, auto, *_, erase = benchmark.TRANSFORM.transforms
    ours = {name: {parameter.name: parameter.default for parameter in inspect.signature(function).parameters.values()}
            for name, function in augment.AUGMENTATIONS.items()}
    assert benchmark.RECIPE["augment"] == "crop,flip,autoaugment,erase"
    assert {*crop.padding} == {ours["crop"]["padding"]} and flip.p == ours["flip"]["p"]
    assert auto.policy == v2.AutoAugmentPolicy.CIFAR10
    assert [erase.p, *erase.scale, *erase.ratio] == [ours["erase"][name] for name in (
        "p", "smallest", "largest", "flattest", "tallest")]


def test_the_loops_batches_come_epoch_after_epoch(toy_set, small):
    dataset = cifar10.load(toy_set).select(slice(20))
    source = benchmark.loop_batches(dataset, small, CPU)
    first, second = list(islice(source, 4)), list(islice(source, 4))
    assert [len(images) for images, _ in first] == [5, 5, 5, 5] and not torch.equal(first[0][0], second[0][0])


def test_what_a_loader_has_in_store_is_dropped_before_the_clock_starts(toy_set, small, monkeypatch):
    assert benchmark.usual_batches(cifar10.load(toy_set), 5)[1] == 0
    monkeypatch.setattr(benchmark, "WORKERS", 1)
    source, queued = benchmark.usual_batches(cifar10.load(toy_set), 5)
    assert queued == 2 and len(next(source)[0]) == 5
    taken = []
    benchmark.rate(5, taken.append, zip(count()), queued=4)
    assert taken == [4, 5]


def test_the_rate_counts_whole_chunks(small, monkeypatch):
    taken, clock = [], iter([0.0, 1.0, 3.0, 4.0])  # at the start, after each chunk of two steps, at the end
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark, "SECONDS", 2.0)
    assert benchmark.rate(5, taken.append, repeat((0,))) == 4 * 5 / 4.0 and len(taken) == 4


def test_every_way_trains_and_the_row_has_the_medians(toy_set, small, monkeypatch):
    models, weights, rates = [], [], iter([7.0, 1.0, 5.0, 9.0, 3.0, 4.0, 8.0, 2.0, 6.0])
    build, rate = benchmark.build, benchmark.rate

    def noted(*way):
        weights.append([parameter.clone() for parameter in models[0].parameters()])
        rate(*way)
        return next(rates)

    def watched(*given, **named):
        tf32.append(torch.backends.cudnn.allow_tf32)
        return cross_entropy(*given, **named)

    tf32, cross_entropy = [], torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", watched)
    monkeypatch.setattr(benchmark, "build", lambda args: models.append(build(args)) or models[0])
    monkeypatch.setattr(benchmark, "rate", noted)
    monkeypatch.setattr(benchmark, "TURNS", 3)
    dataset = cifar10.load(toy_set).select(slice(20))
    row = benchmark.measure(small, False, dataset, benchmark.usual_batches(dataset, 5), CPU)
    assert row[:5] == ["resnet18-2", "float32", 8.0, 2.0, 5.0] and row[5] > 0 and row[6] == 0
    weights.append([*models[0].parameters()])
    for before, after in pairwise(weights):
        assert all(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert tf32[:5] == [False] * 3 + [True, False]  # the usual script, after three steps of ours


def test_the_command_prints_a_table(run):
    code, out, _ = run("--models", "resnet18:2,fastnet:2")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    assert code == 0 and {len(row) for row in rows} == {7} and rows[0][2:5] == ["step", "loop", "usual"]
    assert [row[:2] for row in rows[2:]] == [["resnet18-2", "float32"], ["fastnet-2", "float32"]]
    assert all(float(cell.replace(",", "")) > 0 for row in rows[2:] for cell in row[2:5])


@pytest.mark.parametrize("words, told", [
    (("--models", "nonesuch"), "unknown model"), (("--models", "resnet18:0"), "1 or more"),
    (("--models", "pyramidnet:4"), "width"), (("--precision", "int8"), "int8"),
    (("--batch-size", "61"), "--batch-size 61 is above the 60 images")])
def test_a_mistake_is_one_line(run, words, told):
    code, out, err = run(*words)
    assert code == 2 and not out and told in err and err.count("\n") == 1
