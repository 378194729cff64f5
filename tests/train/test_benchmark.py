"""The benchmark: what it feeds is what training sees, and its figures follow from what was measured."""

import json
from collections import Counter
from itertools import count, islice, repeat

import pytest
import torch

import augment
from augment.basic import normalize
from train import benchmark
from train.engine import data
from train.engine.recipe import Recipe
from train.engine.state import State

pytestmark = pytest.mark.usefixtures("toy_set")
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """Batches of 5 images, two to a chunk; one chunk a measurement."""
    monkeypatch.setattr(augment, "CHUNK", 10)
    monkeypatch.setattr(benchmark, "SECONDS", 0)
    monkeypatch.setattr(benchmark, "SETTLE", 0)
    return Recipe(batch_size=5, augment=("crop", "erase"), mix="ricap", precision="float32")


@pytest.fixture
def run(typed, toy_set, small, tmp_path):
    """run(*words) -> (exit code, stdout, stderr, the JSON or None) of the command on the toy set."""

    def call(*words):
        file = tmp_path / "b.json"
        told = typed(benchmark.main, "--data", toy_set, "--device", "cpu", "--batch-size", 5, "--repeats", 1,
                     "--workers", 0, "--json", file, *words)
        return *told, json.loads(file.read_text()) if file.exists() else None

    return call


def cells_of(out):
    """The cells of the table's rows, header and rule left out."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")][2:]


def test_without_augmentation_the_loader_gives_what_training_sees(toy_set):
    dataset = data.load(toy_set)
    images, labels = next(benchmark.feed_loader(dataset, Recipe(batch_size=60, augment=()), 0)[0])
    seen = normalize(dataset.images)
    rows = torch.cdist(images.flatten(1), seen.flatten(1)).argmin(1)
    assert torch.equal(labels, dataset.labels[rows]) and len(set(rows.tolist())) > 20
    torch.testing.assert_close(images, seen[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", benchmark.V2)
def test_torchvisions_form_of_an_augmentation_is_one_of_ours(toy_set, small, name):
    assert name in augment.AUGMENTATIONS
    images, labels = next(benchmark.feed_loader(data.load(toy_set), Recipe(batch_size=3, augment=(name,)), 0)[0])
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32 and labels.shape == (3,)


def test_a_strength_reaches_torchvision(toy_set):
    def erased(name):
        source, _ = benchmark.feed_loader(data.load(toy_set), Recipe(batch_size=60, augment=(name,)), 0)
        return (next(source)[0] == 0).all(1).flatten(1).any(1).sum()

    assert erased("erase:0") == 0 and erased("erase:1") > 50


def test_what_torchvision_lacks_leaves_its_columns_empty(run, monkeypatch):
    monkeypatch.delitem(benchmark.V2, "crop")
    code, out, _, figures = run("--models", "resnet18:2", "--augment", "crop,flip")
    assert code == 0 and "torchvision lacks" in out and cells_of(out)[0][5:7] == ["", ""]
    assert set(figures["rows"][0]["images_per_second"]) == {"step", "loop"}


def test_the_loops_batches_come_epoch_after_epoch(toy_set, small):
    dataset = data.load(toy_set).select(slice(20))
    source = benchmark.feed_loop(dataset, small, CPU)
    first, second = list(islice(source, 4)), list(islice(source, 4))
    assert [len(images) for images, _ in first] == [5, 5, 5, 5]
    assert sorted(labels.argmax(1).tolist() for _, labels in first) and not torch.equal(first[0][0], second[0][0])


def test_what_a_loader_has_in_store_is_dropped_before_the_clock_starts(toy_set, small):
    assert benchmark.feed_loader(data.load(toy_set), small, 0)[1] == 0
    source, queued = benchmark.feed_loader(data.load(toy_set), small, 1)
    assert queued == 2 and len(next(source)[0]) == 5
    taken = []
    benchmark.rate(5, taken.append, zip(count()), queued=4, steps=2)
    assert taken == [4, 5]


def test_the_rate_counts_whole_chunks(small, monkeypatch):
    taken, clock = [], iter([0.0, 1.0, 3.0, 4.0])  # at the start, after each chunk of two steps, at the end
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(benchmark, "SECONDS", 2.0)
    assert benchmark.rate(5, taken.append, repeat((0,))) == 4 * 5 / 4.0 and len(taken) == 4
    clock = iter(range(100))
    assert benchmark.rate(5, taken.append, repeat((0,)), steps=3) and len(taken) == 7


def test_every_way_trains(toy_set, small, monkeypatch):
    model, states = benchmark.build("resnet18:2"), []
    monkeypatch.setattr(benchmark, "build", lambda name: model)
    monkeypatch.setattr(benchmark, "State", lambda *given, **named: states.append(State(*given, **named)) or states[0])
    dataset = data.load(toy_set).select(slice(20))
    _, ways = benchmark.prepare("it", small, False, dataset, benchmark.feed_loader(dataset, small, 0), CPU)
    for way, run in ways.items():
        before, step = [p.clone() for p in model.parameters()], states[0].step
        assert run() > 0 and states[0].step - step == (0 if way == "usual" else 2)
        assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters()))
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"


def test_the_bound_by_hand():
    """resnet18: 421 M multiplications; 5 outputs of 65,536, 5 of 32,768 and 5 of 16,384 numbers of two bytes."""
    bound = benchmark.bound("resnet18")
    assert 50_000 / bound["compute"] == pytest.approx(0.16, abs=0.005)
    assert bound["memory"] == pytest.approx(4.3e12 / (8 * 2 * 5 * (65_536 + 32_768 + 16_384)))


def test_the_command_writes_a_table_and_the_same_figures_as_json(run):
    code, out, _, figures = run("--models", "resnet18:2,seresnet20:2")
    assert code == 0 and [row["model"] for row in figures["rows"]] == ["resnet18-2", "seresnet20-2"]
    rows = cells_of(out)
    assert {len(cells) for cells in rows} == {12} and len(rows) == 2
    for cells, row in zip(rows, figures["rows"]):
        rates = row["images_per_second"]
        assert cells[0] == row["model"] and cells[10] == row["compiler"] == "eager"
        assert [float(cell.replace(",", "")) for cell in cells[3:7]] == [
            round(rates[way]) for way in ("step", "loop", "torchvision", "usual")]
        assert cells[7] == f"{1 - rates['loop'] / rates['step']:.1%}"
        assert cells[8] == "" and row["peak_bytes"] is row["compile_seconds"] is None


def test_strengths_and_both_precisions_in_turns(run, monkeypatch):
    order, precisions, rate, train_step = [], [], benchmark.rate, benchmark.train_step

    def note_precision(network, optimizer, recipe, *batch):
        precisions.append(recipe.precision)
        return train_step(network, optimizer, recipe, *batch)

    def note_step(size, step, *rest, **steps):
        found = rate(size, step, *rest, **steps)
        order.append((precisions[-1], step.__name__))
        return found

    monkeypatch.setattr(benchmark, "train_step", note_precision)
    monkeypatch.setattr(benchmark, "rate", note_step)
    code, out, _, figures = run("--models", "resnet18:2", "--precisions", "--augment", "crop,erase:0.5",
                                "--mix", "cutmix:1.0", "--repeats", 2)
    assert code == 0 and [row["precision"] for row in figures["rows"]] == ["float32", "bfloat16"]
    steps = ["step", "step", "step_mixed", "step_usual"]
    assert order[-16:] == [(p, step) for p in ("float32", "bfloat16") for step in steps] * 2


@pytest.mark.parametrize("words, told", [
    (("--models", "nonesuch"), "unknown model"),
    (("--models", "resnet18:wide"), "a width is a whole number, 1 or more, not wide"),
    (("--models", "resnet18:0"), "1 or more, not 0"),
    (("--models", "pyramidnet:4"), "no option width"),
    (("--augment", "crop,blur"), "blur"),
    (("--mix", "cutout"), "cutout"),
    (("--json", "b.txt"), "should end in .json"),
])
def test_a_mistake_is_one_line(run, words, told):
    code, out, err, figures = run(*words)
    assert code == 2 and not out and told in err and err.count("\n") == 1 and not figures


def test_bounds_of_an_epoch_need_no_data(typed):
    """resnet18 by hand: 6 x 421 M x 50,000 operations; 8 passes over 2 bytes of each convolution's output."""
    code, out, err = typed(benchmark.main, "--bounds", "--models", "resnet18,seresnet164", "--data", "/nowhere")
    outputs = 32 * 32 * 64 * 5 + 16 * 16 * 128 * 5 + 8 * 8 * 256 * 5
    memory = 50_000 * 8 * 2 * outputs / 4.3e12
    assert code == 0 and not err and f"| resnet18 | 421 M | 0.16 s | {memory:.2f} s |" in out and out.count("\n") == 4


# ---------------------------------------------------------------- what the compiler did is told


@pytest.fixture
def compiler(monkeypatch):
    """compiler(change): torch.compile without code generation, of networks whose input goes through `change` first."""

    def use(change=lambda images: images):
        def compiled(network, device):
            return torch.compile(lambda images: network(change(images)), backend="aot_eager", dynamic=False)

        monkeypatch.setattr(benchmark, "compiled", compiled)

    return use


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_whole_graph_and_a_broken_one_are_told_apart(run, compiler):
    compiler()
    _, out, _, figures = run("--models", "resnet18:2", "--compile")
    assert [cells[10] for cells in cells_of(out)] == ["eager", "1 graph(s)"]
    assert figures["rows"][0]["compile_seconds"] is None and figures["rows"][1]["compile_seconds"] > 0

    def peek(images):
        torch._dynamo.graph_break()
        return images

    compiler(peek)
    assert " GRAPH BREAK(S)" in run("--models", "resnet18:2", "--compile")[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_model_that_does_not_compile_is_told_and_the_others_go_on(run, monkeypatch):
    def broken(graph, inputs):
        raise AssertionError("no such instruction")

    monkeypatch.setattr(benchmark, "compiled", lambda network, device: torch.compile(network, backend=broken))
    with torch._dynamo.config.patch(suppress_errors=True):  # as TORCHDYNAMO_SUPPRESS_ERRORS=1 sets it
        code, out, _, figures = run("--models", "resnet18:2,seresnet20:2", "--compile")
    assert code == 0 and out.count("DOES NOT COMPILE") == 2 and "no such instruction" in out
    assert [row["compiler"] for row in figures["rows"]] == ["eager", "eager"]


def test_what_went_wrong_in_capitals(monkeypatch):
    monkeypatch.setattr(benchmark, "counters", {
        "stats": Counter(), "graph_break": Counter(), "frames": Counter(total=2),
        "inductor": Counter(cudagraph_skips=3)})
    assert benchmark.explain_compilation() == "2 LEFT TO EAGER, 3 NO CUDA GRAPH"
    benchmark.counters["frames"]["ok"] = 2
    benchmark.counters["inductor"].clear()
    assert benchmark.explain_compilation() == "NOTHING COMPILED"
