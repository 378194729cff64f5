"""`distill/student.py`: the recipe of its own architecture, taught by a file, by teachers, or by nobody."""

import copy
import re
from dataclasses import fields

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import models
import toy
from distill import labels, student
from distill.loss import distillation_loss, soft_targets_of
from distill.table import write_labels
from models import MODELS
from train import quick
from train.baseline import STAGES, Baseline
from train.engine import checkpoint, data, predict
from train.engine.device import autocast, faster_in_bfloat16
from train.engine.recipe import Recipe
from train.flatse import FlatSE
from train.pyramidnet import PyramidNet
from train.quick import Quick
from train.seresnet import SEResNet
from train.shakeshake import ShakeShake
from untrained import write_weights

OWN = {
    "flatse": FlatSE(), "seresnet164": SEResNet(), "fastnet": Quick(), "resnet18": Baseline(),
    "pyramidnet": PyramidNet(), "shakeshake26-40": ShakeShake(model="shakeshake26-40", width=40),
    "seresnet20": SEResNet(model="seresnet20", depth=20),
}


@pytest.fixture
def teachers(toy_set, tmp_path):
    files = [tmp_path / f"teacher{seed}.pt" for seed in range(2)]
    for seed, file in enumerate(files):
        write_weights(file, toy_set, seed, fold=None)
    return files


@pytest.fixture
def csv(toy_set, tmp_path):
    """A CSV that passes for a strong teacher's."""
    dataset = data.load(toy_set)
    noise = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))
    write_labels(tmp_path / "good.csv", dataset.ids, dataset.labels.numpy(), noise + 4 * data.one_hot(dataset.labels))
    return tmp_path / "good.csv"


@pytest.fixture
def train(toy_set, tmp_path, typed):
    """train(name, words...): the content of the weights that a trial of the command leaves, of two steps."""

    def run(name, *words, main=student.main, code=0):
        out = ("--out", tmp_path / f"{name}.pt", "--data", toy_set, "--device", "cpu", "--precision", "float32")
        found, _, err = typed(main, *words, "--epochs", 1, "-b", 20, *out)
        assert found == code and err.count("\n") == bool(code), err
        return err if code else checkpoint.load_weights(tmp_path / f"{name}.pt")

    return run


def log(tmp_path, name):
    return pd.read_csv(tmp_path / f"{name}.csv")


# ---------------------------------------------------------------- the recipe of its own architecture


@pytest.mark.parametrize("name", OWN)
def test_a_student_has_the_defaults_the_hooks_and_the_network_of_its_architecture(name):
    own, taught = OWN[name], student.student_of(name)()
    different = {f.name for f in fields(own) if getattr(own, f.name) != getattr(taught, f.name)}
    assert not different
    with torch.device("meta"):
        assert models.build(taught.model, **taught.options).options == models.build(own.model, **own.options).options
    for hook in ("learning_rate", "parameter_groups", "warmup_steps"):
        assert getattr(type(taught), hook) is getattr(type(own), hook)
    assert (taught.temperature, taught.alpha, taught.objective) == (4.0, 0.9, "kd")


@pytest.mark.parametrize("name, wanted", {
    "flatse": dict(lr=0.1, weight_decay=5e-4, epochs=300, ema_decay=0.999, batch_size=128, warmup_epochs=5.0,
                   augment=("crop", "flip", "autoaugment"), mix="cutmix:1.0:0.5", drop_path=0.1, width=80, depth=30),
    "shakeshake26-40": dict(lr=0.2, weight_decay=1e-4, epochs=300, mix="ricap", width=40, se=False),
    "shakeshake26-40-se": dict(lr=0.2, width=40, se=True),
    "seresnet164": dict(lr=0.1, weight_decay=1e-4, epochs=300, warmup_epochs=30.0, zero_init=True, depth=164),
    "seresnet20": dict(warmup_epochs=30.0, zero_init=True, depth=20, width=16),
    "fastnet": dict(lr=0.75, momentum=0.85, weight_decay=1.3e-3, epochs=14, batch_size=512, smoothing=0.2, small=0.5,
                    augment=("shift",), alternate_flip=True, warmup_epochs=2.0, width=64, columns=2),
    "resnet18": dict(lr=0.2, epochs=200, weight_decay=5e-4, zero_init=True),
    "pyramidnet": dict(epochs=300, weight_decay=1e-4, mix="ricap", depth=110, shakedrop=0.5),
}.items())
def test_the_documented_numbers(name, wanted):
    taught = student.student_of(name)()
    assert {field: getattr(taught, field) for field in wanted} == wanted


def test_an_architecture_without_a_recipe_of_its_own_trains_by_the_plain_one(monkeypatch):
    monkeypatch.setitem(MODELS, "plain", lambda num_classes=10: None)
    assert student.student_of("plain").__mro__[2] is Recipe and student.student_of("plain")().lr == Recipe().lr


def test_help_shows_the_defaults_of_the_architecture(typed):
    code, out, _ = typed(student.main, "--model", "flatse", "--help")
    shown = re.sub(r"\s+", " ", out)
    assert code == 0 and max(map(len, out.splitlines())) <= 110
    for flag, default in [("--epochs N", "300"), ("--wd X", "0.0005"), ("--ema-decay X", "0.999"),
                          ("--drop-path X", "0.1"), ("--width N", "80"), ("--temperature X", "4.0"),
                          ("--alpha X", "0.9"), ("--mix NAME[:STRENGTH]", "cutmix:1.0:0.5")]:
        assert re.search(rf"{re.escape(flag)} ((?! --).)*\[{re.escape(default)}\]", shown), flag
    assert "--shakedrop" not in out and "--shakedrop" in typed(student.main, "--model", "pyramidnet", "--help")[1]


def test_a_stage_of_the_baseline_sets_the_defaults_of_its_student(typed, monkeypatch):
    parsed = []
    monkeypatch.setattr(student, "run", parsed.append)
    typed(student.main, "--model", "resnet18", "--stage", "basic", "--alpha", 0)
    assert {field: getattr(parsed[0], field) for field in STAGES["basic"]} == STAGES["basic"]
    assert parsed[0].run_name("resnet18") == "student-control-basic-fold0"


@pytest.mark.parametrize("changes, name", [
    ({}, "student-fold0"), ({"fold": None}, "student"), ({"fold": None, "seed": 1}, "student-seed1"),
    ({"fold": 3, "seed": 2}, "student-fold3-seed2"), ({"fold": None, "alpha": 0}, "student-control"),
    ({"fold": 2, "seed": 1, "alpha": 0}, "student-control-fold2-seed1"),
])
def test_runs_are_named_by_fold_and_seed(changes, name):
    assert student.student_of("flatse")(**changes).run_name("flatse") == name


# ---------------------------------------------------------------- FastNet: whitened, and with groups of its own

FASTNET = ("--model", "fastnet", "--width", 4, "--lr", 0.1, "--noval")


def test_the_control_is_the_run_of_the_architecture_to_the_last_bit(train):
    taught = train("control", *FASTNET, "--alpha", 0)
    own = train("own", *FASTNET[2:], main=quick.main)
    assert toy.different(taught["state"], own["state"]) is None
    wanted = models.build("fastnet", width=4, columns=2)
    wanted.whiten(predict.normalize(data.as_dataset(*toy.arrays("train"), "toy").images))
    assert torch.equal(taught["state"]["whitening.weight"], wanted.whitening.weight)


def test_the_control_has_the_loss_of_its_architecture(tmp_path, train):
    recipe, logits, hard = student.student_of("fastnet")(alpha=0), torch.randn(4, 10), data.one_hot(torch.arange(4))
    found = recipe.loss(logits, None, hard)
    assert found == {"loss": F.cross_entropy(logits, hard, label_smoothing=0.2)}
    taught = student.student_of("fastnet")(labels="file").loss(logits, None, hard, soft_targets_of(3 * logits, 4.0))
    assert taught == distillation_loss(logits, soft_targets_of(3 * logits, 4.0), hard, smoothing=0.2)
    train("control", *FASTNET, "--alpha", 0)
    assert "train_soft" not in log(tmp_path, "control")


def test_a_fastnet_learns_from_labels_by_its_own_groups_and_triangle(tmp_path, train, csv):
    content = train("taught", *FASTNET, "--labels", csv, "--epochs", 5)
    assert content["provenance"]["unlabelled"] == 0 and content["state"]["whitening.weight"].any()
    row = log(tmp_path, "taught").iloc[0]
    assert row["train_loss"] == pytest.approx(0.9 * row["train_soft"] + 0.1 * row["train_hard"], rel=1e-6)
    recipe = student.student_of("fastnet")(width=4, epochs=15)
    assert [group.get("lr_scale") for group in recipe.parameter_groups(models.build("fastnet", width=4))] == [None, 64]
    assert recipe.learning_rate(0, 150) == pytest.approx(0.15) and recipe.learning_rate(20, 150) == 0.75


def test_teachers_and_the_file_that_they_wrote_teach_the_same(toy_set, tmp_path, train, teachers, typed, monkeypatch):
    """Without augmentation the teachers see in the batch what they saw for the file, also while the student is shown
    small images."""
    monkeypatch.setattr("distill.table.check_rows", lambda *_: None)  # nobody trained them: they answer by chance
    typed(labels.main, *teachers, "--data", toy_set, "--device", "cpu", "--out", tmp_path / "labels.csv")
    still = (*FASTNET, "--augment", "none", "--no-alternate-flip")
    train("file", *still, "--labels", tmp_path / "labels.csv")
    train("view", *still, "--teachers", *teachers)
    for column in ("train_loss", "train_soft", "train_hard"):
        assert log(tmp_path, "view")[column].tolist() == pytest.approx(log(tmp_path, "file")[column].tolist(), rel=1e-4)


# ---------------------------------------------------------------- what is learned from

RESNET = ("--model", "resnet18", "--width", 2, "--augment", "flip")


def test_shuffled_labels_give_the_same_student_bit_for_bit(tmp_path, train, csv):
    table = pd.read_csv(csv, dtype=str, keep_default_na=False)
    table.sample(frac=1, random_state=1).to_csv(tmp_path / "shuffled.csv", index=False)
    one, two = (train(f"by-{file.stem}", *RESNET, "--labels", file) for file in (csv, tmp_path / "shuffled.csv"))
    assert toy.different(one["state"], two["state"]) is None


def test_other_teachers_are_another_recipe(train, teachers):
    train("student", *RESNET, "--teachers", teachers[0], "--mix", "ricap")
    told = train("student", *RESNET, "--teachers", *teachers, "--mix", "ricap", code=2)
    assert "the saved run differs from this command (teachers" in told


def test_a_teacher_is_not_the_file_that_the_student_writes(tmp_path, train, teachers):
    before = teachers[1].read_bytes()
    for fresh in ((), ("--fresh",)):
        told = train(teachers[1].stem, *RESNET, "--teachers", *teachers, *fresh, code=2)
        assert f"--teachers {teachers[1]} is the file that this run writes" in told
    assert teachers[1].read_bytes() == before


def test_a_student_may_begin_with_weights_and_its_control_with_those_of_no_student(tmp_path, train, csv):
    plain = train("plain", *FASTNET[2:], main=quick.main)
    train("student", *FASTNET, "--labels", csv, "--init", tmp_path / "plain.pt", "--lr", 1e-30)
    further = train("control", *FASTNET, "--alpha", 0, "--init", tmp_path / "plain.pt", "--lr", 1e-30)
    for name in ("plain", "student", "control"):
        found = checkpoint.load_weights(tmp_path / f"{name}.pt")
        torch.testing.assert_close(found["state"]["head.weight"], plain["state"]["head.weight"])
    assert further["provenance"]["before"][0]["run"] == "plain"
    told = train("other", *FASTNET, "--alpha", 0, "--init", tmp_path / "student.pt", code=2)
    assert "student.pt has learned from teachers" in told


def test_teachers_of_other_images_are_refused(toy_set, tmp_path, train):
    content = write_weights(tmp_path / "other.pt", toy_set)
    content["provenance"]["train_digest"] = "0" * 64
    checkpoint.save(tmp_path / "other.pt", content)
    told = train("student", *RESNET, "--teachers", tmp_path / "other.pt", code=2)
    assert "was trained on other images than those of" in told and not (tmp_path / "student.last.pt").exists()


def test_teachers_stay_in_evaluation_mode_and_unchanged(teachers):
    teach = student.student_of("resnet18")(teachers=tuple(teachers), device="cpu", precision="float32").teach
    before = [checkpoint.digest(network.state_dict()) for network in teach.networks]
    images = torch.randn(8, 3, 32, 32, requires_grad=True)
    answer = teach(images)
    assert not answer.requires_grad and not any(network.training for network in teach.networks)
    torch.testing.assert_close(answer, sum(network(images) for network in teach.networks) / 2)
    assert before == [checkpoint.digest(network.state_dict()) for network in teach.networks]


SMALL = {"resnet18": dict(width=4), "seresnet20": dict(width=4), "shakeshake26-40-se": dict(width=8),
         "fastnet": dict(width=8), "flatse": dict(width=16, depth=16), "pyramidnet": dict(depth=20, widening=24)}


@pytest.mark.skipif(not faster_in_bfloat16(), reason="this processor is no faster in bfloat16")
@pytest.mark.parametrize("name", SMALL)
def test_teachers_that_are_cast_once_answer_as_those_cast_in_every_step(name):
    torch.manual_seed(0)
    network = models.build(name, **SMALL[name]).train()
    network(torch.randn(64, 3, 32, 32))  # running statistics that are not those of the start
    images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    uncast = copy.deepcopy(network).eval()
    with torch.no_grad(), autocast(images.device, "bfloat16"):
        wanted = uncast(images).float()
    answer = student.Teachers([network], "bfloat16")(images)
    assert answer.dtype == torch.float32 and torch.equal(answer, wanted)
    assert {layer.weight.dtype for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)} == {torch.bfloat16}
    assert not torch.equal(wanted, uncast(images))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("flags, message", [
    ("--labels a.csv --teachers b.pt", "one source"), ("", "one source"),
    ("--alpha 0 --labels a.csv", "leave --labels out"), ("--alpha 0 --teachers a.pt", "leave --teachers out"),
    ("--labels absent.csv", "absent.csv does not exist"), ("--teachers absent.pt", "absent.pt does not exist"),
    ("--alpha 0 --images a.pkl", "they need teachers"),
    ("--labels a.csv --model seresnet164 --width 64", "above the budget"), ("--model nonesuch", "nonesuch"),
    ("--labels a.csv --temperature 0", "above 0"), ("--labels a.csv --alpha 1.5", "0 to 1"),
    ("--labels a.csv --objective magic", "magic"), ("--labels a.csv --fold 1 --noval", "contradict"),
    ("--labels a.csv --model pyramidnet --width 4", "unrecognized arguments: --width"),
])
def test_wrong_flags_end_in_one_line(toy_set, tmp_path, monkeypatch, typed, flags, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = typed(student.main, *flags.split(), "--data", toy_set, "--out", "x.pt", "--device", "cpu")
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "x.pt").exists()
