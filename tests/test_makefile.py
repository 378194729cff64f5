"""The Makefile, with a stand-in for Python that writes what it was asked for; the scripts' parsers read its notes."""

import argparse
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import models
from distill import labels, student
from train import baseline, evaluate, quick, seresnet, shakeshake
from train.engine import recipe
from train.engine.command import ROOT


SCRIPTS = {
    "train/baseline.py": lambda words: recipe.parse(baseline.Baseline, baseline.__doc__, words, stage=baseline.STAGES),
    "train/seresnet.py": lambda words: recipe.parse(seresnet.SEResNet, seresnet.__doc__, words),
    "train/shakeshake.py": lambda words: recipe.parse(shakeshake.ShakeShake, shakeshake.__doc__, words),
    "train/quick.py": lambda words: recipe.parse(quick.Quick, quick.__doc__, words),
    "distill/student.py": lambda words: recipe.parse(
        student.student_of(recipe.peek("--model", tuple(student.MODELS), "seresnet164", words)),
        student.__doc__, words),
}
TOOLS = {"distill/labels.py": labels.flags, "train/evaluate.py": evaluate.flags}
STAND_IN = """#!/bin/bash
echo "$@" >> calls
while [ $# -gt 0 ]; do [ "$1" = --out ] && touch "$2"; shift; done
echo "stand-in: done"
"""
FOLDS = [*(f"fold{fold}" for fold in range(5)), "noval"]
SIZES = {  # the place of the files, the name of the six, the name of the other, the student's architecture
    "full": ("weights", "seresnet164", "shakeshake26-64-se", "seresnet164"),
    "quick": ("weights/quick", "fastnet-2x64", "fastnet-128-256-352-res", "fastnet"),
    "demo": ("weights/demo", "seresnet20-8", "shakeshake26-8", "seresnet20"),
}


@pytest.fixture
def make(tmp_path):
    """make(words...): run make in a copy; returns (exit code, output, [words of every Python call])."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "weights").mkdir()

    def run(*words, data="synthetic", **more):
        (tmp_path / "calls").unlink(missing_ok=True)
        line = ["make", "VENV=", f"PYTHON={tmp_path}/python", f"DATA={data}", *words]
        clean = {"PATH": os.environ["PATH"], **more}  # a make that runs the tests hands its own variables down
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=clean)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done.returncode, done.stdout + done.stderr, [shlex.split(call) for call in calls]

    return run


def understood(call):
    """What a call means to its script, whose real parser exits on a flag that it does not know."""
    return SCRIPTS[call[0]](call[1:]) if call[0] in SCRIPTS else TOOLS[call[0]]().parse_args(call[1:])


def planned(output):
    """The Python calls among the lines that `make -n` prints, without the redirections of the demo."""
    found = re.findall(r"^@?\S*/python (\S+\.py .*?)(?= > |$)", output, re.MULTILINE)
    return [shlex.split(call) for call in found]


def out_of(call):
    return call[call.index("--out") + 1] if "--out" in call else None


def decisions(made):
    """The fields of a recipe that decide what is trained, but for where its teaching comes from."""
    return {f: v for f, v in vars(made).items() if f not in ("labels", "teachers", "alpha", "out", "identity")}


# ---------------------------------------------------------------- help, and what is refused


def test_help_lists_every_target_and_variable_with_what_it_does(make):
    code, out, _ = make("help")
    text = (ROOT / "Makefile").read_text()
    phony = set(" ".join(re.findall(r"^\.PHONY:(.*)", text.replace("\\\n", " "), re.MULTILINE)).split())
    listed = {line.split()[1]: line.split()[2:] for line in out.splitlines() if line.startswith("  make ")}
    assert code == 0 and set(listed) == phony - {"ask", "one", "pictures"} and all(listed.values())
    variables = out.partition("Variables")[2]
    for name in {*re.findall(r"\$\((?:call one_of,)?([A-Z_]{3,})[):,]", text)} - {
            "SHELL", "MAKE", "MAKECMDGOALS", "MAKEOVERRIDES"}:
        assert re.search(rf"\b{name}=", variables) or name in variables, name


@pytest.mark.parametrize("words, told", [
    (("baseline", "EPOCH=3"), "no variable EPOCH"), (("teachers", "data=here"), "no variable data"),
    (("baseline", "DEVICE=gpu"), "DEVICE=gpu"), (("baseline", "STAGE=best"), "STAGE=best"),
    (("teachers", "SIZE=small"), "SIZE=small"), (("distill", "HOW=teachers"), "HOW=teachers"),
    (("baseline", "FOLD=5"), "FOLD=5"), (("submission",), "set IMAGES"),
    (("teachers", "ARGS=--depth 20"), "ARGS are for one script"), (("demo", "ARGS=-b 8"), "ARGS are for one script"),
    (("labels", "distill", "ARGS=-b 8"), "ARGS are for one script"),
    (("weights/resnet18-fold0.pt", "ARGS=-b 8"), "ARGS are for one script"), (("distill", "FOLD=3"), "of the baseline"),
    (("SIZE=quick", "teachers", "STAGE=basic"), "of the baseline"), (("teachers", "SIZE="), "SIZE= is empty"),
    (("baseline", "LIMIT=1 2"), "LIMIT=1 2: should be a whole number"), (("baseline", "EPOCHS=-3"), "EPOCHS=-3"),
    (("distill", "SEED=one"), "SEED=one"), (("labels", "TEACHER_SEED=1e3"), "TEACHER_SEED=1e3"),
    (("distill", "SEED=007"), "SEED=007"), (("teachers", "GPUS=0"), "GPUS=0: should be 1 or more"),
    (("evaluate", "DATA="), "DATA= is empty"), (("setup", "VENV="), "VENV= is empty"), (("demo", "SIZE=quick"), "demo has a SIZE of its own"),
])
def test_a_wrong_or_missing_value_runs_nothing(make, tmp_path, words, told):
    code, out, calls = make(*words)
    assert code == 2 and not calls and told in out and not list(tmp_path.rglob("*.pt"))


def test_numbers_may_be_large_or_empty(make):
    code, out, _ = make("-n", "baseline", "SEED=1234567890", "GPUS=", "EPOCHS=", "LIMIT=100", data="my data")
    assert code == 0 and "weights/trial-100-images/resnet18-fold0-seed1234567890.pt" in out
    assert make("-n", "distill", "SEED=0", "TEACHER_SEED=10")[0] == 0


# ---------------------------------------------------------------- three sizes of one pipeline


@pytest.mark.parametrize("size", SIZES)
def test_each_size_plans_seven_teachers_labels_student_and_control(make, size):
    place, name, other, model = SIZES[size]
    code, out, calls = make("-n", f"SIZE={size}", "teachers", "labels", "distill", "control", "report")
    assert code == 0 and not calls
    calls = planned(out)
    teachers = [out_of(call) for call in calls if call[0] in SCRIPTS and call[0].startswith("train/")]
    assert len(teachers) == 7 and teachers[:6] == [f"{place}/{name}-{fold}.pt" for fold in FOLDS]
    assert teachers[6] == f"{place}/{other}-noval.pt"
    trained = [understood(call) for call in calls[:7]]
    with torch.device("meta"):  # the files are called as the networks that the flags build
        names = [r.run_name(models.build(r.model, **r.options).name) for r in trained]
    assert [f"{place}/{name}.pt" for name in names] == teachers
    assert [r.fold for r in trained] == [0, 1, 2, 3, 4, None, None] and len({r.run_name("") for r in trained}) == 6
    assert {repr(vars(r) | {"fold": 0, "out": ""}) for r in trained[:6]} == {repr(vars(trained[0]) | {"out": ""})}

    csv = "distillation_labels.csv" if size == "full" else f"{place}/distillation_labels.csv"
    rest = [call for call in calls[7:] if call[0] != "train/evaluate.py"]
    assert [call[0] for call in rest] == ["distill/labels.py", "distill/student.py", "distill/student.py",
                                          "train/report.py"]
    assert list(map(out_of, rest[:3])) == [csv, f"{place}/student.pt", f"{place}/student-control.pt"]
    asked, taught, control = map(understood, rest[:3])
    assert asked.weights == teachers and asked.limit == taught.limit == trained[0].limit
    assert (taught.labels, control.labels, control.alpha) == (csv, None, 0) and taught.alpha > 0
    assert decisions(taught) == decisions(control) and taught.fold is None and taught.model == model
    assert rest[3][1] == place and {trained[0].data, taught.data, asked.data} == {"synthetic"}
    scored = [understood(call) for call in calls if call[0] == "train/evaluate.py"]
    assert [e.weights for e in scored] == [[f"{place}/student.pt"], [f"{place}/student-control.pt"]]
    assert all(e.budget for e in scored)


def test_the_size_of_the_documented_recipes_adds_no_flag(make):
    calls = make("teachers")[2]
    common = ["--data", "synthetic"]
    assert calls[0] == ["train/seresnet.py", *common, "--fold", "0", "--out", "weights/seresnet164-fold0.pt"]
    wide = ["--width", "64", "--se", *common, "--noval", "--out", "weights/shakeshake26-64-se-noval.pt"]
    assert calls[6] == ["train/shakeshake.py", *wide]


def test_what_was_typed_goes_down_to_the_scripts_without_paths(make, tmp_path):
    (tmp_path / "python").write_text(STAND_IN.replace("while", 'echo "$MADE_BY" >> typed; while', 1))
    make("quick", "SEED=3", "ARGS=-b 512", "DEVICE=cpu", "SRC=/here/a.npz", data="/my images")
    assert {*map(frozenset, map(str.split, (tmp_path / "typed").read_text().splitlines()))} == {
        frozenset({"quick", "SEED=3", 'ARGS="-b', '512"', "DEVICE=cpu"})}


def test_quick_is_the_one_network_of_its_size_on_all_images(make):
    first, second = make("quick")[2]
    assert first[0] == "train/quick.py" and understood(first).fold is None
    assert out_of(first) == "weights/quick/fastnet-2x64-noval.pt" == second[1] and understood(second).budget


# ---------------------------------------------------------------- built when missing, and never again


def test_teachers_are_built_when_missing_and_never_again(make, tmp_path):
    assert len(make("teachers")[2]) == 7
    (tmp_path / "requirements.txt").touch()
    assert make("teachers")[2] == []
    (tmp_path / "weights/seresnet164-fold3.pt").unlink()
    [call] = make("teachers")[2]
    assert out_of(call) == "weights/seresnet164-fold3.pt" and understood(call).fold == 3
    assert [call[0] for call in make("distill")[2]] == ["distill/labels.py", "distill/student.py", "train/evaluate.py"]
    assert [call[0] for call in make("distill")[2]] == ["train/evaluate.py"]


def test_a_script_that_fails_leaves_no_file_that_passes_for_finished(make, tmp_path):
    (tmp_path / "python").write_text(STAND_IN + "exit 1\n")
    assert make("baseline")[0] == 2 and not list(tmp_path.rglob("*.pt"))
    finished = tmp_path / "weights" / "resnet18-fold0.pt"
    finished.touch()
    (tmp_path / "python").write_text("#!/bin/bash\nexit 2\n")  # as a script that finds another run's file there
    assert make("baseline", "ARGS=--mix ricap")[0] == 2 and finished.exists()


def test_with_arguments_the_script_is_asked_although_its_file_is_there(make):
    assert [call[0] for call in make("baseline")[2]] == ["train/baseline.py", "train/evaluate.py"]
    assert [call[0] for call in make("baseline")[2]] == ["train/evaluate.py"]
    asked = make("baseline", "ARGS=--mix ricap -b 64")[2][0]
    assert understood(asked).mix == "ricap" and understood(asked).batch_size == 64
    assert out_of(asked) == "weights/resnet18-fold0.pt"


@pytest.mark.parametrize("goal, script, words", [
    ("distill", "distill/student.py", "--temperature 2"), ("control", "distill/student.py", "--smoothing 0.1"),
    ("labels", "distill/labels.py", "--average oof"), ("quick", "train/quick.py", "--mix ricap"),
])
def test_arguments_reach_the_one_script_that_was_asked_for_and_no_teacher(make, goal, script, words):
    for _ in ("everything is missing", "everything is there"):
        calls = make(goal, f"ARGS={words}")[2]
        given = [call for call in calls if set(words.split()) <= set(call)]
        assert [call[0] for call in given] == [script] and understood(given[0])
    assert [call[0] for call in calls if call[0] != "train/evaluate.py"] == [script], "what is there is not made again"


# ---------------------------------------------------------------- variables


def test_a_variable_becomes_a_flag_only_when_it_is_set(make):
    bare = make("baseline")[2][0]
    assert understood(bare) == understood(["train/baseline.py", "--data", "synthetic", "--out", out_of(bare)])
    assert not {"--epochs", "--seed", "--limit", "--device"} & set(bare)
    words = ("EPOCHS=3", "SEED=2", "LIMIT=70", "DEVICE=cpu", "FOLD=noval", "STAGE=basic")
    full = understood(make("baseline", *words)[2][0])
    assert (full.epochs, full.seed, full.limit, full.device, full.fold, full.lr) == (3, 2, 70, "cpu", None, 0.1)


@pytest.mark.parametrize("words, weights", [
    (("FOLD=3",), "resnet18-fold3"), (("FOLD=noval",), "resnet18-noval"), (("SEED=1",), "resnet18-fold0-seed1"),
    (("FOLD=noval", "SEED=12", "STAGE=basic"), "resnet18-basic-noval-seed12"),
])
def test_the_name_of_a_baseline_is_that_which_the_script_would_choose(make, words, weights):
    call = make("baseline", *words)[2][0]
    assert out_of(call) == f"weights/{weights}.pt" and understood(call).run_name("resnet18") == weights


@pytest.mark.parametrize("words, folder", [
    (("LIMIT=200",), "trial-200-images"), (("EPOCHS=2",), "trial-2-epochs"),
    (("LIMIT=200", "EPOCHS=2"), "trial-200-images-2-epochs"),
])
def test_a_trial_stays_away_from_the_documented_files(make, words, folder):
    calls = make("distill", *words)[2]
    written = {out_of(call) for call in calls if out_of(call)}
    assert len(written) == 9 and all(Path(file).parent == Path("weights", folder) for file in written)
    assert not {out_of(call) for call in make("distill")[2]} & written
    calls = make("-n", "SIZE=quick", "teachers", *words)[1]
    assert {str(Path(out_of(call)).parent) for call in planned(calls)} == {f"weights/quick/{folder}"}


def test_seeds_have_files_of_their_own_and_share_the_teachers(make):
    calls = make("distill", "control", "SEED=1")[2]
    assert len(calls) == 7 + 1 + 2 + 2
    assert [out_of(call) for call in calls if "student.py" in call[0]] == [
        "weights/student-seed1.pt", "weights/student-control-seed1.pt"]
    assert {understood(call).seed for call in calls if "student.py" in call[0]} == {1}
    assert {understood(call).seed for call in calls[:7]} == {0} and out_of(calls[7]) == "distillation_labels.csv"
    assert [out_of(call) for call in make("teachers", "SEED=1")[2]][::6] == [
        "weights/seresnet164-fold0-seed1.pt", "weights/shakeshake26-64-se-noval-seed1.pt"]
    calls = make("distill", "SEED=1", "TEACHER_SEED=2", "-B")[2]
    assert {understood(call).seed for call in calls[:7]} == {2}
    assert out_of(calls[7]) == "distillation_labels-seed2.csv" == understood(calls[8]).labels
    assert understood(calls[8]).seed == 1
    calls = make("teachers", "labels", "distill", "SEED=3", "-B")[2]  # the whole pipeline anew
    assert len(calls) == 7 + 1 + 2 and {understood(call).seed for call in calls[:7]} == {3}
    assert out_of(calls[8]) == "weights/student-teachers3-seed3.pt"
    assert understood(calls[8]).labels == out_of(calls[7]) == "distillation_labels-seed3.csv"
    calls = make("quick", "SEED=1", "TEACHER_SEED=2")[2]  # which has no teachers
    assert out_of(calls[0]) == "weights/quick/fastnet-2x64-noval-seed1.pt" == calls[1][1]


def test_teachers_that_answer_on_the_students_own_batch(make):
    calls = make("distill", "HOW=view")[2]
    taught = understood(calls[7])
    assert taught.teachers == tuple(map(out_of, calls[:7])) and taught.labels is None
    assert out_of(calls[7]) == "weights/student-view.pt" == calls[8][1] and len(calls) == 9


def test_images_without_labels_reach_labels_and_student(make, tmp_path):
    calls = make("distill", "IMAGES=my images.pkl")[2]
    assert all(" ".join(call[call.index("--images") + 1:]).startswith("my images.pkl") for call in calls[7:9])
    assert not any("--images" in call for call in calls[:7])
    calls = make("distill", "IMAGES=others.pkl")[2]  # the student's name is the same: it is asked
    assert [call[0] for call in calls] == ["distill/student.py", "train/evaluate.py"] and "others.pkl" in calls[0]
    assert [call[0] for call in make("labels", "IMAGES=others.pkl")[2]] == ["distill/labels.py"]
    [call] = make("submission", "IMAGES=my.pkl", "WEIGHTS=a.pt b.pt", "DEVICE=cpu")[2]
    assert call == ["distill/submission.py", "a.pt", "b.pt", "--images", "my.pkl", "--device", "cpu"]
    assert make("submission", "ARGS=--images my.pkl", "WEIGHTS=a.pt")[2] == [
        ["distill/submission.py", "a.pt", "--images", "my.pkl"]]
    assert make("evaluate", "LIMIT=70")[2][0][-2:] == ["--limit", "70"]


def test_a_folder_of_images_that_is_there_is_not_fetched(make, tmp_path):
    assert make("baseline", data="my images")[2][0] == ["train/data.py", "--data", "my", "images"]
    shutil.rmtree(tmp_path / "weights")
    (tmp_path / "my images").mkdir()
    (tmp_path / "my images" / "cifar10.npz").touch()
    assert make("baseline", data="my images")[2][0][0] == "train/baseline.py"


# ---------------------------------------------------------------- the demo, and GPUs


def test_the_demo_ends_with_answers_and_a_report_of_all_that_it_trained(make):
    code, out, calls = make("demo", "SEED=4")
    assert code == 0, out
    training = {Path(out_of(call)).stem: understood(call) for call in calls if call[0] in SCRIPTS}
    six = [f"seresnet20-8-{fold}-seed4" for fold in FOLDS]
    roles = ["resnet18-basic-noval-seed4", *six, "shakeshake26-8-noval-seed4", "student-teachers4-seed4",
             "student-control-seed4"]
    assert set(training) == set(roles)
    assert {(r.seed, r.data, r.limit, r.device) for r in training.values()} == {(4, "synthetic", 1000, "cpu")}
    assert decisions(training["student-teachers4-seed4"]) == decisions(training["student-control-seed4"])
    files = {role: f"weights/demo/{role}.pt" for role in roles}
    *_, answers, report = calls
    assert answers[:2] == ["distill/submission.py", files["student-teachers4-seed4"]]
    assert report[0] == "train/report.py" and report[1:11] == list(files.values())
    flags = argparse.ArgumentParser()
    for flag in ("--data", "--device", "--out", "--baseline", "--control", "--student"):
        flags.add_argument(flag)
    flags.add_argument("--teachers", nargs="+")
    shown = flags.parse_args(report[11:])
    assert shown.teachers == list(files.values())[1:8] and shown.out == "weights/demo/report"
    assert [shown.baseline, shown.student, shown.control] == [files[roles[k]] for k in (0, 8, 9)]
    assert [call[0] for call in make("demo", "SEED=4")[2]] == ["distill/submission.py", "train/report.py"]


@pytest.mark.parametrize("words, last, count", [
    (("SIZE=quick", "report", "teachers", "labels", "distill", "control"), "train/report.py", 13),
    (("SIZE=quick", "report", "quick"), "train/report.py", 3),
    (("evaluate", "control", "WEIGHTS=weights/student-control.pt"), "train/evaluate.py", 3)])
def test_a_report_waits_for_what_it_is_asked_for_with(make, tmp_path, words, last, count):
    """Every other job takes its time, the scores of a training too."""
    slow = 'case "$*" in train/report.py*) ;; *--out*|*--budget*) sleep 0.1;; esac'
    (tmp_path / "python").write_text(STAND_IN.replace("while", f"{slow}\nwhile", 1))
    code, out, calls = make("-j5", *words)
    assert code == 0, out
    assert calls[-1][0] == last and "--budget" not in calls[-1] and len(calls) == count


def test_a_stage_of_the_demo_that_fails_shows_its_output_and_ends_it(make, tmp_path):
    (tmp_path / "python").write_text("#!/bin/bash\necho some trouble >&2\nexit 3\n")
    code, out, _ = make("demo")
    assert code == 2 and "some trouble" in out and not list(tmp_path.rglob("*.pt"))


def test_several_jobs_share_gpus_without_ever_sharing_one(make, tmp_path):
    noted = 'echo "$CUDA_VISIBLE_DEVICES in" >> gpus; sleep 0.2; echo "$CUDA_VISIBLE_DEVICES out" >> gpus\nwhile'
    (tmp_path / "python").write_text(STAND_IN.replace("while", noted))
    code, out, calls = make("-j5", "GPUS=2", "teachers")
    assert code == 0 and len(calls) == 7, out
    busy, events = {"0": 0, "1": 0}, [line.split() for line in (tmp_path / "gpus").read_text().splitlines()]
    assert {gpu for gpu, _ in events} == {"0", "1"} and len(events) == 14
    for gpu, event in events:
        busy[gpu] += 1 if event == "in" else -1
        assert 0 <= busy[gpu] <= 1
    assert all(call[call.index("--device") + 1] == "cuda" for call in calls)  # or one without a GPU would take the CPU


def test_jobs_stay_on_the_gpus_that_they_may_use(make, tmp_path):
    noted = 'echo "$CUDA_VISIBLE_DEVICES" >> gpus; sleep 0.2\nwhile'
    (tmp_path / "python").write_text(STAND_IN.replace("while", noted))
    for own, seen in (("3,GPU-5", {"3", "GPU-5"}), ("7", {"7", ""}), ("", {""})):
        (tmp_path / "gpus").unlink(missing_ok=True)
        assert make("-j5", "GPUS=2", "teachers", CUDA_VISIBLE_DEVICES=own)[0] == 0
        assert set((tmp_path / "gpus").read_text().split("\n")[:-1]) == seen
        shutil.rmtree(tmp_path / "weights")
        (tmp_path / "weights").mkdir()
