"""The benchmark: what it feeds is what training sees, and its figures follow from what was measured."""

import json

import pytest
import torch

import augment
import toy
from augment.basic import normalize
from train import benchmark, data
from train.recipe import Recipe

pytestmark = pytest.mark.usefixtures("toy_set")


@pytest.fixture
def small(monkeypatch):
    """Four steps of 5 images a measurement, two to a chunk."""
    monkeypatch.setitem(benchmark.STEPS, "cpu", 3)
    monkeypatch.setattr(augment, "CHUNK", 10)
    monkeypatch.setattr(benchmark, "SETTLE", 0)
    return Recipe(batch_size=5, augment=("crop", "erase"), mix="ricap")


def test_without_augmentation_the_loader_gives_what_training_sees(toy_set):
    dataset = data.load(toy_set)
    images, labels = zip(*benchmark.PerImage(dataset, ()))
    torch.testing.assert_close(torch.stack(images), normalize(dataset.images), rtol=0, atol=1e-6)
    assert torch.equal(torch.stack(labels), dataset.labels)


def test_every_augmentation_has_its_per_image_form(toy_set):
    assert set(benchmark.V2) == set(augment.AUGMENTATIONS)
    image, _ = benchmark.PerImage(data.load(toy_set), tuple(benchmark.V2))[0]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32


def test_an_epoch_of_the_benchmark_is_whole_chunks_of_whole_batches(toy_set, small):
    assert benchmark.steps_of(small, torch.device("cpu")) == 4
    dataset = benchmark.repeated(data.load(toy_set).select(slice(7)), 20)
    assert len(dataset) == 20 and torch.equal(dataset.images[14:], dataset.images[:6])
    epochs = benchmark.looped(dataset, small, torch.device("cpu"))
    first, second = list(epochs()), list(epochs())
    assert [len(images) for images, _ in first] == [5, 5, 5, 5]
    assert not torch.equal(first[0][0], second[0][0])  # another epoch, not the same one again


def test_a_loaders_store_is_emptied_before_the_clock_starts():
    class Loader(list):
        num_workers, prefetch_factor = 2, 2

    source = benchmark.steady(Loader(range(20)), 3)
    assert list(source()) == [4, 5, 6] and list(source()) == [11, 12, 13]


def test_runs_take_turns_and_the_first_turn_does_not_count():
    order, figures = [], {"a": iter([1000, 3, 1, 2]), "b": iter([0, 7, 7, 9])}
    ways = {way: lambda way=way: (order.append(way), next(figures[way]))[1] for way in figures}
    assert benchmark.in_turn(ways, 3, "") == {"a": 2, "b": 7} and "".join(order) == "abababab"


def test_the_roofline_by_hand():
    """resnet18: 421 M multiplications; 5 outputs of 65,536, 5 of 32,768 and 5 of 16,384 numbers of two bytes."""
    bound = benchmark.roofline("resnet18")
    assert 50_000 / bound["compute"] == pytest.approx(0.16, abs=0.005)
    assert bound["memory"] == pytest.approx(4.3e12 / (8 * 2 * 5 * (65_536 + 32_768 + 16_384)))


def test_the_step_trains(toy_set, small):
    subject = benchmark.Subject("resnet18:2", small, torch.device("cpu"), compiling=False)
    before = [p.clone() for p in subject.model.parameters()]
    loop = benchmark.looped(benchmark.repeated(data.load(toy_set), 20), small, torch.device("cpu"))
    assert subject.rate(loop) > 0 and subject.state.step == 4
    assert all(not torch.equal(p, q) for p, q in zip(before, subject.model.parameters()))


def test_the_command_writes_a_table_and_the_same_figures_as_json(toy_set, small, tmp_path, typed):
    words = ("--data", toy_set, "--device", "cpu", "--models", "resnet18:2,seresnet20:2", "--batch-size", 5,
             "--repeats", 1, "--workers", 0, "--json", tmp_path / "b.json")
    code, out, _ = typed(benchmark.main, *words)
    figures = json.loads((tmp_path / "b.json").read_text())
    lines = [line.split("|") for line in out.splitlines() if line.startswith("| ")]
    assert code == 0 and [row["model"] for row in figures["rows"]] == ["resnet18-2", "seresnet20-2"]
    assert {len(cells) for cells in lines} == {14} and len(lines) == 4
    for cells, row in zip(lines[2:], figures["rows"]):
        rates = row["images_per_second"]
        assert cells[1].strip() == row["model"] and cells[3].strip() == "eager"
        assert [float(cell.replace(",", "")) for cell in cells[4:7]] == [
            round(rates[way]) for way in ("step", "loop", "torchvision")]
        assert row["loader_share"] == pytest.approx(1 - rates["loop"] / rates["step"])
        assert row["over_torchvision"] == pytest.approx(rates["loop"] / rates["torchvision"])
        assert row["peak_bytes"] > 2**20 and row["compile_seconds"] is None


@pytest.mark.parametrize("words, told", [
    (("--models", "nonesuch"), "unknown model"),
    (("--models", "resnet18:wide"), "whole number"),
    (("--models", "pyramidnet:4"), "no option width"),
    (("--json", "b.txt"), "should end in .json"),
])
def test_a_mistake_is_one_line(typed, words, told):
    code, out, err = typed(benchmark.main, "--data", "synthetic", "--device", "cpu", *words)
    assert code == 2 and not out and told in err and err.count("\n") == 1


def test_trainings_at_once_are_summed(toy_set, small, monkeypatch):
    monkeypatch.setattr(benchmark.multiprocessing, "get_context", lambda _: toy.CONTEXT)  # starts them faster
    what = ("resnet18:2", benchmark.repeated(data.load(toy_set), 20), small, torch.device("cpu"), False)
    row = benchmark.folds_row(2, *what)
    assert row["processes"] == 2 and row["alone"] > 0 and row["together"] > 0
    text = benchmark.told({"model": "m", "processes": 5, "alone": 100.0, "together": 250.0})
    assert "5 trainings at once 250 images/s, one alone 100" in text and "0.40 of the time" in text


def test_bounds_of_an_epoch_need_no_data(typed):
    """resnet18 by hand: 6 x 421 M x 50,000 operations; 8 passes over 2 bytes of each convolution's output."""
    code, out, err = typed(benchmark.main, "--bounds", "--models", "resnet18,seresnet164", "--data", "/nowhere")
    outputs = 32 * 32 * 64 * 5 + 16 * 16 * 128 * 5 + 8 * 8 * 256 * 5
    memory = 50_000 * 8 * 2 * outputs / 4.3e12
    assert code == 0 and not err and f"| resnet18 | 421 M | 0.16 s | {memory:.2f} s |" in out and out.count("\n") == 4
