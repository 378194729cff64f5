"""The Makefile, with a stand-in for Python that writes what it was asked for; the scripts' parsers read its notes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from distill import labels, student
from train import ROOT, baseline, evaluate, flatse, pyramidnet, quick, report, seresnet, shakeshake
from train.engine.flags import RUNTIME, parse

RECIPES = {"train/baseline.py": (baseline.STAGES, "stage"), "train/seresnet.py": (seresnet.RECIPE, None),
           "train/shakeshake.py": (shakeshake.RECIPE, None), "train/quick.py": (quick.RECIPE, None),
           "train/pyramidnet.py": (pyramidnet.RECIPE, None), "train/flatse.py": (flatse.RECIPE, None)}
TOOLS = {"distill/labels.py": labels, "train/evaluate.py": evaluate, "train/report.py": report}
STAND_IN = """#!/bin/bash
call=$(printf '%q ' "$@"); echo "$call" >> calls  # in one write, for the jobs of -j share the file
for word; do [[ $last = --out && $1 != train/report.py ]] && touch "$word"; last=$word; done
if [[ $1 = train/evaluate.py && $* != *--limit* ]]; then
  for word; do [[ $word = *.pt ]] && touch "${word%.pt}.json"; done
fi
echo "stand-in: done"
"""
SEVEN = [f"teacher-{part}" for part in ("fold0", "fold1", "fold2", "fold3", "fold4", "all", "wide")]


@pytest.fixture
def make(tmp_path):
    """make(words...): run make in a copy; returns (exit code, output, [words of every Python call])."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "weights").mkdir()

    def run(*words, data="synthetic", **environment):
        (tmp_path / "calls").unlink(missing_ok=True)
        line = ["make", f"PYTHON={tmp_path}/python", *[f"DATA={data}"] * bool(data), *words]
        # A make that runs the tests hands its own variables down; locks of GPUs lie in TMPDIR.
        clean = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), **environment}
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=clean)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done.returncode, done.stdout + done.stderr, [shlex.split(call) for call in calls]

    return run


@pytest.fixture
def understood(monkeypatch):
    """understood(call): what a call means to its script, whose real parser refuses a flag that it does not know."""
    monkeypatch.setattr(student, "seen_folds", lambda file: ())

    def parsed(call):
        script, *words = call
        if script == "distill/student.py":
            return student.configuration(words)
        if script in TOOLS:
            return TOOLS[script].flags().parse_args(words)
        recipe, by = RECIPES[script]
        return parse("", recipe, by, words)

    return parsed


def out_of(call):
    return call[call.index("--out") + 1] if "--out" in call else None


def scripts(calls):
    return [Path(call[0]).stem for call in calls]


def decisions(args):
    """What of a configuration decides how a network is trained, but for the fold and where its teaching comes from."""
    return {name: value for name, value in vars(args).items() if name not in (*RUNTIME, "fold", "labels", "alpha")}


# ---------------------------------------------------------------- help, and what is refused


def test_help_lists_every_target_and_variable_with_what_it_does(make):
    code, out, _ = make("help")
    text = (ROOT / "Makefile").read_text()
    known = re.search(r"^known := ((?:.*\\\n)*.*)$", text, re.MULTILINE)[1].replace("\\\n", " ").split()
    targets, _, variables = out.partition("Variables")
    told = dict(re.findall(r"^  make (\S+) +(.+)$", targets, re.MULTILINE))
    assert code == 0 and {"setup", "data", "demo", "quick", "submission", "test-faults"} <= set(told)
    assert set(told) == set(re.findall(r"^([a-z-]+)[ :].*## ", text, re.MULTILINE))
    assert set(re.findall(r"^  ([A-Z]+) +\S", variables, re.MULTILINE)) == set(known)


@pytest.mark.parametrize("words, told", [
    (("baseline", "EPOCH=3"), "no variable EPOCH"), (("teachers", "data=here"), "no variable data"),
    (("distill", "HOW=view"), "no variable HOW"), (("distill", "FOLD=3"), "make distill does not use FOLD"),
    (("SIZE=quick", "teachers", "STAGE=basic"), "make teachers does not use STAGE"),
    (("evaluate", "SEED=3"), "make evaluate does not use SEED"),
    (("demo", "STAGE=basic"), "make demo does not use STAGE"),
    (("teachers", "SEEDS=0 1"), "make teachers does not use SEEDS"),
    (("control", "IMAGES=a.pkl"), "does not use IMAGES"),
    (("evaluate", "LIMIT=70"), "does not use LIMIT"), (("report", "WEIGHTS=a.pt"), "does not use WEIGHTS"),
    (("quick", "SEED=1", "SEEDS=1 2"), "SEED or SEEDS"), (("teachers", "ARGS=--depth 20"), "ARGS are for one"),
    (("labels", "distill", "ARGS=-b 8"), "ARGS are for one script"), (("submission",), "IMAGES is not set"),
    (("teachers", "SIZE=small"), "SIZE=small"), (("teachers", "SIZE="), "SIZE= is empty"),
    (("ladder", "SIZE=demo"), "should be one of quick full"), (("ladder", "report"), "make ladder goes alone"),
    (("demo", "ladder"), "make ladder goes alone"), (("ladder", "ARGS=-b 8"), "ARGS are for one"),
    (("weights/full/ladder/seresnet164.json", "ARGS=--lr 1"), "ARGS are for one script"),
    (("demo", "SIZE=quick"), "SIZE=quick: should be"), (("demo", "quick"), "SIZE=demo quick"),
    (("baseline", "DATA="), "DATA= is empty"), (("setup", "VENV="), "VENV= is empty"),
    (("report", "LIMIT=70"), "make report does not use LIMIT"), (("quick", "SEED=0 1"), "SEED=0 1: should be one word"),
    (("teachers", "EPOCHS=1 2"), "EPOCHS=1 2: should be one word"), (("teachers", "GPUS=0,1"), "should be a number"),
    (("teachers", "GPUS=0"), "should be a number"), (("report", "SIZE=quick"), "weights/quick does not exist: name"),
    (("baseline", "ARGS=--lr 1 --out a.pt"), "make baseline chooses --out itself"),
    (("labels", "ARGS=--out=a.csv"), "make labels chooses --out itself"),
])
def test_what_has_no_meaning_runs_nothing(make, tmp_path, words, told):
    code, out, calls = make(*words)
    assert code == 2 and not calls and told in out and not list(tmp_path.rglob("*.pt"))


def test_an_exported_variable_counts_and_is_told(make):
    code, out, [call, _] = make("quick", data="", DATA="elsewhere")
    assert code == 0 and call[call.index("--data") + 1] == "elsewhere" and "DATA=elsewhere comes from the env" in out
    assert "environment" not in make("quick", "ARGS=-b 8", "SEEDS=0 1")[1]
    assert make("quick", "SEEDS=2 3", data="", DATA="elsewhere")[1].count("comes from the environment") == 1


def test_an_exported_variable_that_is_empty_is_none(make, tmp_path):
    (tmp_path / "python").write_text(STAND_IN.replace("for word", 'env | grep OMP_NUM_THREADS >> threads; for word', 1))
    code, _, [call, _] = make("quick", SEED="", LIMIT="", EPOCHS="", GPUS="", IMAGES="", SEEDS="", ARGS="")
    assert code == 0 and call == ["train/quick.py", "--noval", "--data", "synthetic", "--device", "auto", "--out",
                                  "weights/quick/teacher-all.pt"]
    assert (tmp_path / "threads").read_text() == ""  # which only the demo sets


# ---------------------------------------------------------------- three sizes of one pipeline


@pytest.mark.parametrize("size, model, teaching", [
    ("full", "seresnet164", (4, 0.9)), ("quick", "fastnet", (1, 1)), ("demo", "seresnet20", (4, 0.9))])
def test_each_size_trains_seven_teachers_labels_student_and_control(make, understood, size, model, teaching):
    code, out, calls = make(f"SIZE={size}", "teachers", "labels", "distill", "control", "report")
    place = f"weights/{size}"
    assert code == 0, out
    assert [out_of(call) for call in calls[:7]] == [f"{place}/{name}.pt" for name in SEVEN]
    *six, wide = map(understood, calls[:7])
    assert [args.fold for args in (*six, wide)] == [0, 1, 2, 3, 4, None, None]
    assert all(decisions(args) == decisions(six[0]) for args in six) and decisions(wide) != decisions(six[0])

    asked, taught, _, control, _, scores, shown = calls[7:]
    assert scripts(calls[7:]) == ["labels", "student", "evaluate", "student", "evaluate", "evaluate", "report"]
    csv = f"{place}/distillation_labels.csv"
    assert [out_of(call) for call in (asked, taught, control)] == [csv, f"{place}/student.pt", f"{place}/control.pt"]
    assert [str(file) for file in understood(asked).weights] == [out_of(call) for call in calls[:7]]
    taught, control = understood(taught), understood(control)
    assert (str(taught.labels), control.labels, control.alpha) == (csv, None, 0)
    assert (taught.temperature, taught.alpha) == teaching
    assert size != "quick" or (wide.columns, wide.widths, wide.residual, wide.epochs, wide.batch_size, wide.lr) == (
        1, (128, 256, 352), True, 28, 1024, 1.5)
    assert decisions(taught) == decisions(control) and taught.fold is None and taught.model == model
    assert understood(asked).limit == taught.limit == six[0].limit == (1000 if size == "demo" else None)
    # What has no score yet is scored in one process, before the report.
    assert understood(scores).each and {file.stem for file in understood(scores).weights} == set(SEVEN)
    assert understood(shown).out is None and understood(shown).results == [Path(place)]
    assert scripts(make(f"SIZE={size}", "report")[2]) == ["report"]


def test_the_documented_sizes_add_few_flags(make):
    calls, common = make("teachers")[2], ["--data", "synthetic", "--device", "auto", "--out"]
    assert calls[0] == ["train/seresnet.py", "--fold", "0", *common, "weights/full/teacher-fold0.pt"]
    wide = ["train/shakeshake.py", "--width", "64", "--se", "--noval"]
    assert calls[6] == [*wide, *common, "weights/full/teacher-wide.pt"]
    quick = ["train/quick.py", "--noval", *common, "weights/quick/teacher-all.pt"]
    assert make("quick")[2] == [quick, ["train/evaluate.py", quick[-1], *common[:-1]]]


def test_a_stage_of_your_own_keeps_its_recipe(make):
    [call, _] = make("baseline", "SIZE=quick", "STAGE=mine")[2]
    assert call == ["train/baseline.py", "--stage", "mine", "--fold", "0", "--data", "synthetic", "--device", "auto",
                    "--out", "weights/quick/baseline-mine.pt"]


@pytest.mark.parametrize("stage, row", [(stage, f"resnet18-{stage}") for stage in ("basic", "optimized", "augmented")] +
                         [("tuned", "resnet20x4")])
@pytest.mark.parametrize("size", ["quick", "full"])
def test_the_baseline_of_a_size_trains_as_its_row_of_the_ladder(make, understood, size, stage, row):
    baseline = understood(make("baseline", f"SIZE={size}", f"STAGE={stage}", "FOLD=noval")[2][0])
    expected = understood(make(f"SIZE={size}", f"weights/{size}/ladder/{row}.pt")[2][0])
    assert decisions(baseline) == decisions(expected)


ROWS = ["resnet18-basic", "resnet18-optimized", "resnet18-augmented", "shakeshake26-32", "shakeshake26-40",
        "shakeshake26-40-se", "seresnet164", "seresnet164-distilled", "resnet20x4", "pyramidnet", "flatse"]


@pytest.mark.parametrize("size, count", [("quick", 23), ("full", 31)])
def test_the_ladder_trains_and_scores_its_rows_in_turn_then_shows_them(make, tmp_path, understood, size, count):
    (tmp_path / "weights" / "distillation_labels.csv.gz").touch()
    code, out, calls = make("ladder", f"SIZE={size}")
    place = f"weights/{size}/ladder"
    trained = [call for call in calls if (out_of(call) or "").startswith(place)]
    assert code == 0 and len(calls) == count, out
    assert [out_of(call) for call in trained] == [f"{place}/{row}.pt" for row in ROWS]
    assert [call[1] for call in calls if call[0] == "train/evaluate.py"] == [out_of(call) for call in trained]
    rows = dict(zip(ROWS, map(understood, trained), strict=True))
    assert all(args.fold is None for args in rows.values())
    student, shown = rows["seresnet164-distilled"], understood(calls[-1])
    assert vars(student) | decisions(rows["seresnet164"]) == vars(student), "the row before is its control"
    assert str(student.labels) == ("weights/distillation_labels.csv.gz" if size == "quick" else
                                   "weights/full/distillation_labels.csv")
    assert (student.temperature, student.alpha) == (4, 0.9)
    assert shown.results == [Path(place)]
    assert list(rows) == [row for row in pd.read_csv(report.DOCUMENTED)["run"] if row != "mean"]
    (tmp_path / place / "shakeshake26-40.pt").unlink()
    assert scripts(make("ladder", f"SIZE={size}")[2]) == ["shakeshake", "evaluate", "report"]
    (tmp_path / place / "seresnet164-distilled.pt").unlink()
    assert trained[7] == make(f"SIZE={size}", f"{place}/seresnet164-distilled.pt")[2][0], "one row, by its file"
    (tmp_path / "mine.csv").touch()
    again = make("ladder", f"SIZE={size}", "LABELS=mine.csv")[2]  # the student compares them with what is there
    assert scripts(again) == ["student", "evaluate", "report"] and understood(again[0]).labels == Path("mine.csv")


def test_a_ladder_checks_its_labels_first_and_has_a_folder_for_each_seed(make, tmp_path):
    code, out, calls = make("ladder", "LABELS=no.csv")
    assert code == 2 and not calls and "no.csv" in out
    for words, teacher in ((["SIZE=quick", "TEACHERS=here"], "here"), (["SEED=1"], "weights/full")):
        code, out, calls = make("ladder", *words)
        assert code == 2 and not calls and f"{teacher}/teacher-fold0.pt does not exist: run make SIZE=" in out
    (tmp_path / "weights" / "full").mkdir(parents=True)
    (tmp_path / "weights" / "full" / "distillation_labels.csv").touch()
    assert len(make("ladder", "SEED=1")[2]) == 23, "the CSV is enough"
    (tmp_path / "mine.csv").touch()
    calls = make("ladder", "SEED=1", "EPOCHS=2", "LABELS=mine.csv")[2]
    place = "weights/full/trial-2-epochs/ladder"
    assert [out_of(call) for call in calls if out_of(call)] == [f"{place}/seed1/{row}.pt" for row in ROWS]
    assert calls[-1] == ["train/report.py", place]
    assert "report" not in scripts(make("ladder", "LIMIT=20", "LABELS=mine.csv")[2])


def test_the_short_rows_differ_by_what_they_are(make, tmp_path, understood):
    (tmp_path / "weights" / "distillation_labels.csv.gz").touch()
    rows = [understood(call) for call in make("ladder", "SIZE=quick")[2] if out_of(call)]
    basic, optimized, augmented, *others = rows
    assert [args.epochs for args in rows] == [16] * 9 + [8] * 2 and (basic.schedule, basic.augment) == ("constant", ())
    short = ("batch_size", "lr", "schedule", "warmup_epochs", "smoothing", "mix", "low_res")
    assert len({tuple(vars(args)[name] for name in short) for args in rows[1:]}) == 1
    assert augmented.augment == ("crop", "flip", "cutout:12")
    assert [args.weight_decay for args in rows] == [0, 5e-4, 5e-4, 1e-4, 1e-4, 1e-4, 3e-4, 3e-4, 5e-4, 1e-4, 5e-4]
    assert {args.augment for args in (optimized, *others)} == {("crop", "flip")}


# ---------------------------------------------------------------- built when missing, and never again


def test_a_teacher_is_trained_when_it_is_missing_and_asked_for(make, tmp_path):
    assert len(make("teachers")[2]) == 7 and make("teachers")[2] == []
    (tmp_path / "weights/full/teacher-fold3.pt").unlink()
    [call] = make("teachers")[2]
    assert out_of(call) == "weights/full/teacher-fold3.pt" and call[call.index("--fold") + 1] == "3"
    assert scripts(make("distill")[2]) == ["labels", "student", "evaluate"]
    (tmp_path / "weights/full/teacher-fold3.pt").unlink()
    assert scripts(make("distill")[2]) == ["student", "evaluate"]  # its logits are in the labels
    assert make("weights/full/student.json")[2] == []
    kept = tmp_path / "weights/full/seed1/teacher-fold0.pt"
    assert len(make("SEED=1", str(kept.with_suffix(".json").relative_to(tmp_path)))[2]) == 2 and kept.exists()


def test_a_typed_target_always_runs_its_script_and_trains_no_teacher(make, tmp_path):
    for goal in ("quick", "baseline", "control"):
        make(goal)
        assert scripts(make(goal)[2])[1:] == ["evaluate"], "the stand-in makes the file anew, a script does not"
    assert scripts(make("control", "evaluate")[2])[0] == "student"
    for folder in ("full", "quick"):
        (tmp_path / f"weights/{folder}/student.pt").touch()
        (tmp_path / f"weights/{folder}/student.json").touch()
    assert make("distill")[2] == []  # there are no labels
    make("SIZE=quick", "teachers")
    calls = make("SIZE=quick", "teachers", "labels", "distill")[2]
    assert "student" in scripts(calls) and out_of(calls[-2]) == "weights/quick/student.pt"


def test_a_score_is_made_again_when_its_weights_are_newer(make, tmp_path):
    score = "weights/full/control.json"
    assert scripts(make("control")[2]) == ["student", "evaluate"] and make(score)[2] == []
    os.utime(tmp_path / "weights/full/control.pt", (2e9, 2e9))
    assert scripts(make(score)[2]) == ["evaluate"]


def test_weights_stay_whatever_fails_after_them(make, tmp_path):
    """A script writes its file whole or not at all, so make has none to delete."""
    for end in ("exit 1", "kill -SEGV $$"):
        (tmp_path / "python").write_text(STAND_IN + end)
        for goal, file in (("baseline", "baseline-augmented"), ("control", "control"), ("teachers", "teacher-fold0")):
            finished = tmp_path / f"weights/full/{file}.pt"
            assert make(goal)[0] == 2 and finished.exists()
            finished.unlink()
    finished = tmp_path / "weights/full/baseline-augmented.pt"
    finished.touch()
    (tmp_path / "python").write_text("#!/bin/bash\nexit 2\n")  # as a script that finds another run's file there
    assert make("baseline", "ARGS=--mix ricap")[0] == 2 and finished.exists()


def test_clean_removes_caches_and_nothing_else(make, tmp_path):
    kept = ["weights/full/a.pt", "weights/full/a.last.pt", "data/cifar10.npz", ".venv/lib/__pycache__/a.pyc"]
    for name in [*kept, "train/__pycache__/a.pyc", ".pytest_cache/x", ".ruff_cache/x"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert make("clean")[0] == 0
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {*kept, "Makefile", "python"}


@pytest.mark.parametrize("goal, script, words", [
    ("distill", "student", "--temperature 2"), ("control", "student", "--smoothing 0.1"),
    ("labels", "labels", "--average oof"), ("quick", "quick", "--mix ricap"), ("baseline", "baseline", "-b 64"),
])
def test_arguments_reach_the_one_script_that_was_asked_for_and_no_teacher(make, understood, goal, script, words):
    for _ in ("everything is missing", "everything is there"):
        calls = make(goal, f"ARGS={words}")[2]
        [given] = [call for call in calls if set(words.split()) <= set(call)]
        assert Path(given[0]).stem == script and understood(given)
    assert [name for name in scripts(calls) if name != "evaluate"] == [script], "what is there is not made again"


# ---------------------------------------------------------------- variables


def test_variables_become_flags(make, understood):
    words = ("EPOCHS=3", "SEED=2", "LIMIT=70", "DEVICE=cpu", "FOLD=noval", "STAGE=basic")
    args = understood(make("baseline", *words)[2][0])
    assert (args.epochs, args.seed, args.limit, args.device, args.fold, args.stage) == (3, 2, 70, "cpu", None, "basic")


@pytest.mark.parametrize("words, file", [
    ((), "full/baseline-augmented"), (("FOLD=3",), "full/baseline-augmented-fold3"),
    (("FOLD=noval", "STAGE=basic"), "full/baseline-basic-noval"), (("SEED=0",), "full/baseline-augmented"),
    (("SEED=12", "SIZE=quick"), "quick/seed12/baseline-augmented"),
    (("LIMIT=200",), "full/trial-200-images/baseline-augmented"),
    (("LIMIT=200", "EPOCHS=2", "SEED=1"), "full/trial-200-images-2-epochs/seed1/baseline-augmented"),
])
def test_a_variant_has_a_file_of_its_own(make, words, file):
    assert out_of(make("baseline", *words)[2][0]) == f"weights/{file}.pt"


def test_a_trial_is_scored_on_as_many_images_as_it_has_and_leaves_no_score(make, tmp_path):
    for _ in range(2):
        assert make("control", "LIMIT=200")[2][-1][-2:] == ["--limit", "200"]
    assert not list(tmp_path.rglob("*.json"))
    make("control", "EPOCHS=1")
    assert list(tmp_path.rglob("*.json")) == [tmp_path / "weights/full/trial-1-epochs/control.json"]


def test_a_report_scores_files_of_any_name_but_no_state(make, tmp_path, understood):
    (tmp_path / "weights/quick/seed1").mkdir(parents=True)
    names = ["student (copy).pt", "seed1/a*.pt", "half.last.pt"]
    for name in names:
        (tmp_path / "weights/quick" / name).touch()
    scores, shown = make("SIZE=quick", "report")[2]
    assert [str(file) for file in understood(scores).weights] == [f"weights/quick/{name}" for name in names[:2]]
    assert shown[:2] == ["train/report.py", "weights/quick"]


def test_a_student_of_other_labels_is_told_before_any_teacher(make, tmp_path):
    (tmp_path / "labels.csv").touch()
    assert len(make("distill", "SIZE=quick", "LABELS=labels.csv")[2]) == 2
    code, out, calls = make("teachers", "labels", "distill", "SIZE=quick")
    assert code == 2 and not calls and "weights/quick/student.pt learned from other labels" in out
    assert len(make("teachers", "labels", "SIZE=quick")[2]) == 8
    assert scripts(make("teachers", "labels", "distill", "SIZE=quick")[2])[0] == "student"  # which compares them


def test_students_of_several_seeds_share_their_teachers(make, understood):
    code, out, calls = make("distill", "SEED=1")
    assert code == 2 and not calls and "weights/full/teacher-fold0.pt does not exist" in out
    assert len(make("teachers")[2]) == 7
    assert [out_of(call) for call in make("distill", "SEED=1")[2]] == [
        "weights/full/distillation_labels.csv", "weights/full/seed1/student.pt", None]
    calls = make("teachers", "labels", "distill", "SEED=3")[2]  # the whole pipeline anew
    assert {Path(out_of(call)).parent for call in calls[:-1]} == {Path("weights/full/seed3")} and len(calls) == 10
    assert {understood(call).seed for call in calls if "labels.py" not in call[0] and out_of(call)} == {3}
    [call, _] = make("distill", "SEED=4", "TEACHERS=weights/full/seed3")[2]
    assert (out_of(call), str(understood(call).labels)) == (
        "weights/full/seed4/student.pt", "weights/full/seed3/distillation_labels.csv")


def test_labels_that_are_named_need_no_teachers_and_are_compared_with_what_is_there(make, tmp_path, understood):
    (tmp_path / "mine.csv.gz").touch()
    for _ in range(2):
        calls = make("distill", "LABELS=mine.csv.gz")[2]
        assert str(understood(calls[0]).labels) == "mine.csv.gz" and out_of(calls[0]) == "weights/full/student.pt"
    assert "no.csv" in make("distill", "LABELS=no.csv")[1]


def test_several_seeds_are_trained_and_scored_and_shown_with_their_mean(make, understood):
    code, out, calls = make("control", "SEEDS=0 1 2", "SIZE=quick", "ARGS=-b 64")
    files = [Path("weights/quick", seed, "control.pt") for seed in ("", "seed1", "seed2")]
    assert code == 0 and scripts(calls) == ["student", "evaluate"] * 3 + ["report"], out
    trained, scored = list(map(understood, calls[:6:2])), list(map(understood, calls[1:6:2]))
    assert [args.out for args in trained] == files == [args.weights[0] for args in scored]
    assert [args.seed for args in trained] == [0, 1, 2] and {args.batch_size for args in trained} == {64}
    assert understood(calls[6]).results == [file.with_suffix(".json") for file in files]
    assert scripts(make("control", "SEEDS=0 1", "LIMIT=20")[2]) == ["student", "evaluate"] * 2
    calls = make("quick", "baseline", "SEEDS=3 4")[2]  # of the size of both, though a goal alone has another
    assert {Path(out_of(call)).parts[1] for call in calls if out_of(call)} == {"quick"} and len(calls) == 10


def test_images_without_labels_have_a_student_of_their_own_that_answers_them(make, tmp_path, understood):
    code, out, calls = make("labels", "IMAGES=a.pkl")
    assert code == 2 and not calls and "IMAGES=a.pkl does not exist" in out, "no teacher is trained before"
    (tmp_path / "my images").mkdir()
    for name in ("a.pkl", "b.pkl", "other.pkl", "my images/a.pkl"):
        (tmp_path / name).touch()
    assert make("submission", "IMAGES=a.pkl")[2] == [["distill/submission.py", "--images", "a.pkl", "--device", "auto"]]
    calls = make("distill", "IMAGES=my images/a.pkl")[2]
    own = "weights/full/images-my-a"
    assert [out_of(call) for call in calls[7:9]] == [f"{own}/distillation_labels.csv", f"{own}/student.pt"]
    assert [str(understood(call).images) for call in calls[7:9]] == ["my images/a.pkl"] * 2
    assert not any("--images" in call for call in calls[:7])
    assert scripts(make("distill", "IMAGES=my images/a.pkl")[2])[0] == "student"  # which compares the images
    assert make("submission", "IMAGES=my images/a.pkl")[2][0][1] == f"{own}/student.pt"
    make("distill")
    assert make("submission", "IMAGES=other.pkl")[2][0][1] == "weights/full/student.pt"
    assert make("submission", "IMAGES=other.pkl", "SIZE=quick")[2][0][1] == "weights/quick/student.pt"  # it is missing
    trial = "weights/full/trial-3-epochs/student.pt"
    assert make("submission", "IMAGES=other.pkl", "EPOCHS=3")[2][0][1] == trial
    words = ("IMAGES=a.pkl", "WEIGHTS=a.pt b.pt", "DEVICE=cpu")
    assert make("submission", *words)[2] == [
        ["distill/submission.py", "a.pt", "b.pt", "--images", "a.pkl", "--device", "cpu"]]
    assert make("distill", "submission", "IMAGES=b.pkl")[2][-1][1] == "weights/full/images-b/student.pt"
    make("distill", "IMAGES=b.pkl", "SEED=1")
    assert understood(make("report")[2][-1]).results == [Path("weights/full", folder) for folder in (
        "", "images-b", "images-my-a", "seed1/images-b")]


def test_the_scripts_themselves_fetch_the_images(make):
    [trained, scored] = make("baseline", data="my images")[2]
    assert all(call[call.index("--data") + 1] == "my images" for call in (trained, scored))
    [fetched] = make("data", "SRC=a.npz", data="my images")[2]
    assert fetched == ["train/download.py", "--data", "my images", "--src", "a.npz"]


def test_setup_begins_anew_what_is_not_complete_and_tells_a_python_that_will_not_do(make, tmp_path):
    (tmp_path / "requirements.txt").touch()
    base = tmp_path / "base"  # answers -c as the real one with this version, and makes a .venv with itself as python
    base.write_text(f"""#!/bin/bash
[ "$1" = -c ] && exec {sys.executable} -c "import sys; sys.hexversion = $(cat {tmp_path}/version); $2"
[ "$2" = venv ] && echo venv >> calls && rm -rf "$6" && mkdir -p "$6/bin" && cp "$0" "$6/bin/python" &&
  echo "prompt = '$5'" > "$6/pyvenv.cfg"
exit 0
""")
    base.chmod(0o755)
    for version in ("0x30a0df0", "0x30f00f0"):
        (tmp_path / "version").write_text(version)
        code, out, calls = make("setup", "VENV=.venv", f"BASE={base}")
        assert code == 2 and not calls and "3.11 to 3.14 is needed" in out and not (tmp_path / ".venv").exists()
    (tmp_path / "version").write_text("0x30c0000")
    (tmp_path / ".venv").mkdir()
    assert make("setup", "VENV=.venv", f"BASE={base}")[2] == [["venv"]]
    assert sorted(os.listdir(tmp_path / ".venv")) == ["bin", "installed", "pyvenv.cfg"]
    assert make("setup", "VENV=.venv", f"BASE={base}")[2] == []
    (tmp_path / ".venv/installed").unlink()  # as of a setup that was killed
    assert make("setup", "VENV=.venv", f"BASE={base}")[2] == [["venv"]]
    (tmp_path / ".venv/bin/python").unlink()
    (tmp_path / ".venv/bin/python").symlink_to("/nowhere/python")
    assert make("setup", "VENV=.venv", f"BASE={base}")[2] == [["venv"]]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/pyvenv.cfg").write_text("version = 3.12\n")
    for words in (("setup", "VENV=mine"), ("lint", "VENV=mine", "PYTHON=mine/bin/python"), ("setup", "VENV=.")):
        code, out, calls = make(*words, f"BASE={base}")
        assert code == 2 and not calls and "was not made by make setup" in out
    assert os.listdir(tmp_path / "mine") == ["pyvenv.cfg"]


# ---------------------------------------------------------------- the demo, and GPUs


def test_the_demo_ends_with_answers_and_a_report_of_all_that_it_trained(make, understood):
    code, out, calls = make("demo", "SEED=4", data=None)
    assert code == 0, out
    names = ["baseline-basic-noval", *SEVEN, "student", "control"]
    *trained, answers, scores, shown = calls
    training = {Path(out_of(call)).stem: understood(call) for call in trained if call[0] != "distill/labels.py"}
    assert set(training) == set(names) and len(trained) == 11
    common = {(args.seed, args.data, args.limit, args.device) for args in training.values()}
    assert common == {(4, "synthetic", 1000, "cpu")}
    assert decisions(training["student"]) == decisions(training["control"])
    assert answers[:4] == ["distill/submission.py", "weights/demo/seed4/student.pt", "--images", "synthetic"]
    assert {str(file) for file in understood(scores).weights} == {f"weights/demo/seed4/{name}.pt" for name in names}
    assert understood(scores).each and understood(shown).results == [Path("weights/demo/seed4")]
    assert all(f"{name:20} done" in out for name in names)
    assert scripts(make("demo", "SEED=4")[2]) == ["submission", "report"]


@pytest.mark.parametrize("words, last, count", [
    (("SIZE=quick", "report", "teachers", "labels", "distill", "control"), "report", 14),
    (("demo", "report"), "report", 15), (("evaluate", "control", "WEIGHTS=a.pt"), "evaluate", 3)])
def test_a_report_waits_for_what_it_is_asked_for_with(make, tmp_path, words, last, count):
    slow = 'case "$*" in train/report.py*) ;; *--out*|*student.pt*|*control.pt*) sleep 0.1;; esac'
    (tmp_path / "python").write_text(STAND_IN.replace("for word", f"{slow}\nfor word", 1))
    code, out, calls = make("-j5", *words)
    assert code == 0, out
    assert scripts(calls)[-1] == last and len(calls) == count
    assert "report" not in scripts(calls)[:-2] and (last == "report" or calls[-1][1] == "a.pt")


def test_a_stage_of_the_demo_that_fails_shows_its_output_and_ends_it(make, tmp_path):
    (tmp_path / "python").write_text("#!/bin/bash\necho some trouble >&2\nexit 3\n")
    code, out, _ = make("demo")
    assert code == 2 and "some trouble" in out and not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("goal, call", [
    ("test", "-m pytest tests -x"), ("test-faults", "-m pytest tests -m faults -x"), ("lint", "-m ruff check -x"),
    ("benchmark", "train/benchmark.py --data synthetic --device auto -x")])
def test_a_tool_is_called_with_its_arguments(make, goal, call):
    assert make(goal, "ARGS=-x")[2] == [call.split()]


def test_several_jobs_share_gpus_without_ever_sharing_one(make, tmp_path):
    noted = 'echo "$CUDA_VISIBLE_DEVICES in" >> gpus; sleep 0.2; echo "$CUDA_VISIBLE_DEVICES out" >> gpus\nfor word'
    (tmp_path / "python").write_text(STAND_IN.replace("for word", noted, 1))
    code, out, calls = make("-j5", "GPUS=2", "teachers")
    assert code == 0 and len(calls) == 7, out
    busy, events = {"0": 0, "1": 0}, [line.split() for line in (tmp_path / "gpus").read_text().splitlines()]
    assert {gpu for gpu, _ in events} == {"0", "1"} and len(events) == 14
    for gpu, event in events:
        busy[gpu] += 1 if event == "in" else -1
        assert 0 <= busy[gpu] <= 1
    assert all(call[call.index("--device") + 1] == "cuda" for call in calls)  # or one without a GPU would take the CPU


def test_jobs_stay_on_the_gpus_that_they_may_use(make, tmp_path):
    noted = 'echo "$CUDA_VISIBLE_DEVICES" >> gpus; sleep 0.2\nfor word'
    (tmp_path / "python").write_text(STAND_IN.replace("for word", noted, 1))
    for own, seen in (("3,GPU-5", {"3", "GPU-5"}), ("7,8,9", {"7", "8"}), ("", {""})):
        (tmp_path / "gpus").unlink(missing_ok=True)
        assert make("-j5", "GPUS=2", "teachers", CUDA_VISIBLE_DEVICES=own)[0] == 0
        assert set((tmp_path / "gpus").read_text().split("\n")[:-1]) == seen
        shutil.rmtree(tmp_path / "weights/full")
    code, out, calls = make("-j5", "GPUS=2", "teachers", CUDA_VISIBLE_DEVICES="7")
    assert code == 2 and "CUDA_VISIBLE_DEVICES=7: fewer than GPUS=2" in out and not calls
