"""`distill/student.py`: the recipe of its own architecture, taught by a file, by teachers, or by nobody."""

import copy
import re

import pandas as pd
import pytest
import torch
import toy
from untrained import write_weights

import models
from augment.basic import normalize
from distill import labels, student
from distill.loss import distillation_loss, soft_targets_of
from distill.table import read_labels, write_labels
from train import ROOT, UserError, baseline, evaluate, flatse, pyramidnet, quick, seresnet, shakeshake
from train.data import cifar10
from train.engine import checkpoint, loop
from train.engine.device import autocast, faster_in_bfloat16
from train.engine.flags import config, parse
from train.engine.network import Frozen, load


@pytest.fixture
def teachers(toy_set, tmp_path):
    """Two teachers that have seen all images."""
    files = [tmp_path / f"teacher{seed}.pt" for seed in range(2)]
    for seed, file in enumerate(files):
        write_weights(file, toy_set, seed, fold=None)
    return files


@pytest.fixture
def csv(toy_set, tmp_path):
    """csv(name, seen_folds): a file that passes for a strong teacher's."""
    dataset = cifar10.load(toy_set)
    noise = torch.randn(60, 10, generator=torch.Generator().manual_seed(0))

    def write(name="good", seen_folds=range(5)):
        logits = noise + 4 * cifar10.one_hot(dataset.labels)
        write_labels(tmp_path / f"{name}.csv", dataset.ids, dataset.labels.numpy(), logits, seen_folds)
        return tmp_path / f"{name}.csv"

    return write


@pytest.fixture
def call(toy_set, tmp_path, typed):
    """call(name, words...) -> (exit code, stdout, stderr) of a trial of the command, which writes NAME.pt."""

    def run(name, *words, main=student.main):
        out = ("--out", tmp_path / f"{name}.pt", "--data", toy_set, "--device", "cpu", "--precision", "float32")
        return typed(main, "--epochs", 1, "-b", 20, *words, *out)

    return run


@pytest.fixture
def train(tmp_path, call):
    """train(name, words...): the content of the weights of such a trial, or with code=2 what it complains of."""

    def run(name, *words, main=student.main, code=0):
        found, _, err = call(name, *words, main=main)
        assert found == code and err.count("\n") == bool(code), err
        return err if code else checkpoint.load_weights(tmp_path / f"{name}.pt")

    return run


def quick_main():
    loop.run(parse(quick.__doc__, quick.RECIPE))


def log(tmp_path, name):
    return pd.read_csv(tmp_path / f"{name}.csv")


# ---------------------------------------------------------------- the recipe of its own architecture


def taught(words):
    return student.configuration(f"--alpha 0 {words}".split())


@pytest.mark.parametrize("name, recipe", {
    "resnet18": baseline.STAGES["augmented"], "resnet20x4": baseline.STAGES["augmented"] | {"blocks": 3},
    "shakeshake26-32": shakeshake.RECIPE, "shakeshake26-40": shakeshake.RECIPE | {"width": 40},
    "shakeshake26-40-se": shakeshake.RECIPE | {"width": 40, "se": True}, "seresnet164": seresnet.RECIPE,
    "seresnet20": seresnet.RECIPE | {"depth": 20}, "pyramidnet": pyramidnet.RECIPE, "flatse": flatse.RECIPE,
    "fastnet": quick.RECIPE, "fastnet-s": quick.RECIPE | {"columns": 1}, "fastnet-m": quick.RECIPE,
    "fastnet-l": quick.RECIPE | {"widths": (96, 192, 224), "residual": True},
}.items())
def test_a_student_has_the_configuration_of_its_architecture(name, recipe):
    own = vars(config(recipe | {"model": name, "allow_over_budget": False}))
    args = taught(f"--model {name}")
    found = vars(args)
    assert {key: found[key] for key in own} == own | {"out": found["out"]}
    with torch.device("meta"):
        assert loop.build(args).name == {"fastnet": "fastnet-m"}.get(name, name)
    assert found.keys() - own.keys() <= {"labels", "teachers", "images", "objective", "temperature", "alpha"}


@pytest.mark.parametrize("name, wanted", {
    "flatse": dict(lr=0.1, weight_decay=5e-4, epochs=300, ema_decay=0.999, batch_size=128, warmup_epochs=5.0,
                   augment=("crop", "flip", "autoaugment"), mix="cutmix:1.0:0.5", drop_path=0.1, width=80, depth=30),
    "shakeshake26-40": dict(lr=0.2, weight_decay=1e-4, epochs=300, mix="ricap", width=40, se=False,
                            augment=("crop", "flip", "autoaugment", "erase")),
    "seresnet164": dict(lr=0.1, weight_decay=1e-4, epochs=300, warmup_epochs=30.0, zero_init=True, depth=164,
                        augment=("crop", "flip", "autoaugment", "erase"), mix="ricap"),
    "fastnet": dict(lr=0.75, momentum=0.85, weight_decay=1.3e-3, epochs=14, batch_size=512, smoothing=0.2, low_res=0.5,
                    augment=("shift",), alternate_flip=True, warmup_epochs=2.0, width=64, columns=2, norm_bias_lr=64,
                    schedule="triangular"),
    "resnet18": dict(lr=0.2, epochs=200, weight_decay=5e-4, zero_init=True, schedule="cosine"),
    "pyramidnet": dict(epochs=300, weight_decay=1e-4, mix="ricap", depth=110, shakedrop=0.5,
                       augment=("crop", "flip", "autoaugment", "erase")),
}.items())
def test_the_documented_numbers(name, wanted):
    found = vars(student.configuration(["--model", name, "--teachers", "a.pt"]))
    assert {key: found[key] for key in wanted} == wanted
    assert (found["temperature"], found["alpha"], found["objective"]) == (4.0, 0.9, "kd")


def test_a_model_of_no_family_is_no_student_and_leaves_the_others(monkeypatch):
    monkeypatch.setitem(models.MODELS, "mine", models.MODELS["resnet18"])
    assert taught("--model resnet18").model == "resnet18"
    with pytest.raises(UserError, match="should be one of"):
        taught("--model mine")


def test_a_control_begins_with_no_weights_that_go_back_to_a_student(toy_set, tmp_path, train):
    content = write_weights(tmp_path / "plain.pt", toy_set, fold=None)
    run = load(tmp_path / "plain.pt").history[0]
    content["provenance"]["before"] = [run | {"config": run["config"] | {"alpha": 0.9}}]
    checkpoint.save(tmp_path / "plain.pt", content)
    words = ("--model", "resnet18", "--width", 2, "--noval", "--alpha", 0, "--init", tmp_path / "plain.pt")
    assert "plain.pt has learned from teachers" in train("control", *words, code=2)


def test_help_shows_the_defaults_of_the_architecture(typed):
    code, out, _ = typed(student.main, "--model", "flatse", "--help")
    shown = re.sub(r"\s+", " ", out)
    for flag, default in [("--epochs N", "300"), ("--ema-decay X", "0.999"), ("--drop-path X", "0.1"),
                          ("--mix NAME[:STRENGTH]", "cutmix:1.0:0.5"), ("--alpha X", "0.9")]:
        assert re.search(rf"{re.escape(flag)} ((?! --).)*\[{re.escape(default)}\]", shown), flag
    assert code == 0 and "--shakedrop" not in out


@pytest.mark.parametrize("words, name", [
    ("", "student-control-fold0"), ("--noval", "student-control"), ("--fold 2 --seed 1", "student-control-fold2-seed1"),
    ("--teachers a.pt --alpha 0.9", "student-fold0"), ("--teachers a.pt --alpha 1 --noval --seed 1", "student-seed1"),
])
def test_runs_by_hand_are_named_by_what_teaches_fold_and_seed(words, name):
    assert taught(words).out == ROOT / "weights" / f"{name}.pt"


# ---------------------------------------------------------------- FastNet: whitened, and with groups of its own

FASTNET = ("--model", "fastnet", "--width", 4, "--lr", 0.1, "--noval")


def test_the_control_is_the_run_of_the_architecture_to_the_last_bit(tmp_path, train):
    control = train("control", *FASTNET, "--alpha", 0)
    own = train("own", *FASTNET[2:], main=quick_main)
    assert toy.different(control["state"], own["state"]) is None and "train_soft" not in log(tmp_path, "control")
    wanted = models.build("fastnet", width=4, columns=2)
    wanted.whiten(normalize(cifar10.as_dataset(*toy.arrays("train"), "toy").images))
    assert torch.equal(control["state"]["whitening.weight"], wanted.whitening.weight)


def test_a_fastnet_learns_from_labels_with_what_is_typed_and_the_smoothing_of_its_recipe(toy_set, tmp_path, train, csv):
    words = "--temperature 2 --alpha 0.5 --objective standardized".split()
    args = student.configuration(["--model", "fastnet", "--labels", str(csv()), "--data", str(toy_set), *words])
    logits, hard, data = torch.randn(4, 10), cifar10.one_hot(torch.arange(4)), cifar10.load(toy_set)
    soft = soft_targets_of(3 * logits, 2.0, "standardized")
    wanted = distillation_loss(logits, soft, hard, 2.0, 0.5, "standardized", 0.2)
    assert student.loss(args, logits, hard, soft)["loss"] == wanted["loss"]
    _, (found,) = student.targets(args, data)
    assert torch.equal(found, soft_targets_of(read_labels(csv(), data), 2.0, "standardized"))
    args.teachers = ("t.pt",)  # then the last target is their logits
    assert student.loss(args, logits, hard, 3 * logits)["loss"] == wanted["loss"]
    content = train("taught", *FASTNET, "--labels", csv(), "--epochs", 2)
    assert content["config"]["alpha"] == 0.9 and content["provenance"]["unlabelled"] == 0
    rows = log(tmp_path, "taught")
    pd.testing.assert_series_equal(rows["train_loss"], 0.9 * rows["train_soft"] + 0.1 * rows["train_hard"], rtol=1e-6,
                                   check_names=False)


def test_teachers_and_the_file_that_they_wrote_teach_the_same(toy_set, tmp_path, train, teachers, typed, monkeypatch):
    """Without augmentation the teachers see in the batch what they saw for the file, also while the student is shown
    small images."""
    monkeypatch.setattr("distill.table.check_rows", lambda *_: None)  # nobody trained them: they predict by chance
    typed(labels.main, *teachers, "--data", toy_set, "--device", "cpu", "--out", tmp_path / "labels.csv")
    still = (*FASTNET, "--augment", "none", "--no-alternate-flip")
    train("file", *still, "--labels", tmp_path / "labels.csv")
    train("view", *still, "--teachers", *teachers)
    for column in ("train_loss", "train_soft", "train_hard"):
        assert log(tmp_path, "view")[column].tolist() == pytest.approx(log(tmp_path, "file")[column].tolist(), rel=1e-4)


# ---------------------------------------------------------------- what is learned from

RESNET = ("--model", "resnet18", "--width", 2, "--augment", "flip")


def test_shuffled_labels_give_the_same_student_bit_for_bit(tmp_path, call, train, csv):
    table = pd.read_csv(csv(), dtype=str, keep_default_na=False)
    table.sample(frac=1, random_state=1).to_csv(tmp_path / "shuffled.csv", index=False)
    one, two = (train(f"by-{file.stem}", *RESNET, "--labels", file) for file in (csv(), tmp_path / "shuffled.csv"))
    assert toy.different(one["state"], two["state"]) is None
    code, out, _ = call("by-good", *RESNET, "--labels", csv("elsewhere"))  # it is the content that counts
    assert code == 0 and "is finished" in out
    assert "(labels " in train("by-good", *RESNET, "--labels", tmp_path / "shuffled.csv", code=2)


def test_a_student_of_a_file_reads_the_training_images_once(train, csv, monkeypatch):
    reads, official, file = [], cifar10.official, csv()
    monkeypatch.setattr(cifar10, "LOADED", {})
    monkeypatch.setattr(cifar10, "official", lambda *given: reads.append(given[-1]) or official(*given))
    train("student", *RESNET, "--labels", file)
    assert reads == ["train"]


def test_other_teachers_are_another_configuration(train, teachers):
    train("student", *RESNET, "--teachers", teachers[0], "--mix", "ricap")
    told = train("student", *RESNET, "--teachers", *teachers, "--mix", "ricap", code=2)
    assert "the saved run differs from this command (teachers" in told


def test_a_teacher_is_not_the_file_that_the_student_writes(train, teachers):
    before = teachers[1].read_bytes()
    for fresh in ((), ("--fresh",)):
        told = train(teachers[1].stem, *RESNET, "--teachers", *teachers, *fresh, code=2)
        assert f"--teachers {teachers[1]} is the file that this run writes" in told
    assert teachers[1].read_bytes() == before


def test_a_student_may_begin_with_weights_and_its_control_with_those_of_no_student(tmp_path, train, csv):
    plain = train("plain", *FASTNET[2:], main=quick_main)
    still = (*FASTNET, "--init", tmp_path / "plain.pt", "--lr", 1e-30)
    for content in (train("student", *still, "--labels", csv()), train("control", *still, "--alpha", 0)):
        torch.testing.assert_close(content["state"]["head.weight"], plain["state"]["head.weight"])
        assert content["provenance"]["before"][0]["run"] == "plain"
    told = train("other", *FASTNET, "--alpha", 0, "--init", tmp_path / "student.pt", code=2)
    assert "student.pt has learned from teachers" in told


def test_teachers_of_other_images_are_refused(toy_set, tmp_path, train):
    content = write_weights(tmp_path / "other.pt", toy_set)
    content["provenance"]["train_digest"] = "0" * 64
    checkpoint.save(tmp_path / "other.pt", content)
    told = train("student", *RESNET, "--teachers", tmp_path / "other.pt", code=2)
    assert "was trained on other images than those of" in told and not (tmp_path / "student.last.pt").exists()


# ---------------------------------------------------------------- the fold that it holds out


@pytest.fixture(params=["--teachers", "--labels"])
def held_out(request, toy_set, tmp_path, csv):
    """held_out(fold): flags that name a teacher that has held out this fold, or none, or a file of such teachers."""

    def source(fold):
        if request.param == "--labels":
            return "--labels", csv("by", [k for k in range(5) if k != fold])
        write_weights(tmp_path / "by.pt", toy_set, fold=fold)
        return "--teachers", tmp_path / "by.pt"

    return source


def test_a_student_of_teachers_that_held_out_the_same_fold_has_a_validation(tmp_path, call, held_out):
    code, out, err = call("student", *RESNET, *held_out(3), "--fold", 3)
    assert code == 0 and re.search(r", validation [\d.]+ % of 10 images", out), err
    network = load(tmp_path / "student.pt")
    assert log(tmp_path, "student")["val_accuracy"].notna().all()
    assert network.fold == 3 and network.provenance["seen_folds"] == [0, 1, 2, 4]


@pytest.mark.parametrize("fold", [None, 1])
def test_a_student_of_teachers_that_saw_its_fold_has_none(toy_set, tmp_path, call, held_out, typed, fold):
    """It trains and says so; no command takes its fold for one that it has not seen."""
    code, out, err = call("student", *RESNET, *held_out(fold), "--fold", 3)
    assert code == 0 and "NO VALIDATION (the teachers" in out and ", validation" not in out, err
    assert log(tmp_path, "student")["val_accuracy"].isna().all()
    file, common = tmp_path / "student.pt", ("--data", toy_set, "--device", "cpu")
    network = load(file)
    assert network.config["fold"] == 3 and network.provenance["seen_folds"] == [0, 1, 2, 3, 4]
    assert network.fold is None and "fold 3 held out, which its teachers" in network.describe()
    code, _, err = typed(evaluate.main, file, "--calibrate", *common)
    assert code == 2 and f"{file} has held out no fold" in err
    code, _, err = typed(labels.main, file, "--average", "oof", *common, "--out", tmp_path / "oof.csv")
    assert code == 2 and "60 images are held out by no teacher" in err
    code, _, err = call("further", *RESNET, *held_out(3), "--init", file, "--fold", 3)
    assert code == 2 and f"--init {file} was trained on images that --fold 3 holds out" in err


# ---------------------------------------------------------------- teachers of a batch


def test_teachers_stay_in_evaluation_mode_and_unchanged(teachers):
    teach = Frozen([load(file).model for file in teachers])
    before = [checkpoint.digest(network.state_dict()) for network in teach.networks]
    images = torch.randn(8, 3, 32, 32, requires_grad=True)
    logits = teach(images)
    assert not logits.requires_grad and not any(network.training for network in teach.networks)
    torch.testing.assert_close(logits, sum(network(images) for network in teach.networks) / 2)
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
    frozen = Frozen([network], "bfloat16")
    found = frozen(images)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)
    for model, dtype in ((frozen, torch.bfloat16), (network, torch.float32)):  # the network itself stays as it was
        assert {layer.weight.dtype for layer in model.modules() if isinstance(layer, torch.nn.Conv2d)} == {dtype}
    assert network.training and not any(module.training for module in frozen.networks.modules())
    assert not torch.equal(wanted, uncast(images))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("flags, message", [
    ("--labels a.csv --teachers b.pt", "--labels FILE or --teachers"), ("", "--labels FILE or --teachers"),
    ("--alpha 0 --labels a.csv", "leave --labels out"), ("--alpha 0 --teachers a.pt", "leave --teachers out"),
    ("--labels absent.csv", "absent.csv does not exist"), ("--teachers absent.pt", "absent.pt does not exist"),
    ("--alpha 0 --images a.pkl", "they need teachers"),
    ("--alpha 0 --model resnet18 --width 100", "above the budget"),
    ("--alpha 0 --model shakeshake26-64-se", "above the budget"),  # though its recipe admits teachers
    ("--model nonesuch", "nonesuch"),
    ("--labels a.csv --temperature 0", "above 0"), ("--labels a.csv --alpha 1.5", "0 to 1"),
    ("--labels a.csv --objective magic", "magic"), ("--labels a.csv --fold 1 --noval", "not allowed with"),
    ("--labels a.csv --model pyramidnet --width 4", "unrecognized arguments: --width"),
])
def test_wrong_flags_end_in_one_line(toy_set, tmp_path, monkeypatch, typed, flags, message):
    monkeypatch.chdir(tmp_path)
    words = ("--epochs", 1, "--data", toy_set, "--out", "x.pt", "--device", "cpu")
    code, _, err = typed(student.main, *words, *flags.split())
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "x.pt").exists()


def test_the_longest_prefix_of_a_models_name_chooses_its_recipe(monkeypatch):
    monkeypatch.setitem(student.FAMILIES, "resnetv2", {"epochs": 77})
    monkeypatch.setitem(models.MODELS, "resnetv2-18", models.MODELS["resnet18"])
    assert student.recipe_of("resnetv2-18")["epochs"] == 77 and "epochs" not in student.recipe_of("resnet18")


def test_a_student_and_its_teachers_may_be_compiled(monkeypatch, train, teachers):
    """A compiled module has a length that raises, so nothing may ask whether it is there."""
    compile, calls, graphs = torch.compile, [], []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr("train.engine.device.builds_kernels", lambda _: True)
    monkeypatch.setattr(torch, "compile", lambda module, **how: calls.append(how) or compile(module, backend=backend))
    words = ("--noval", "--model", "resnet18", "--width", 2, "--augment", "none", "--teachers", *teachers)
    plain, compiled = train("plain", *words), train("compiled", *words, "--compile")
    assert calls == [{"dynamic": False, "mode": "default"}, *[{"dynamic": False}] * 2]  # the student, its teachers
    assert len(graphs) == 2, "equal teachers share theirs"
    assert plain["log"][0]["train_soft"] == pytest.approx(compiled["log"][0]["train_soft"], rel=1e-5)
