"""The Makefile, with a stand-in for Python that notes its arguments and writes the file that it was asked for."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from distill import student
from train import baseline, quick, recipe, seresnet, shakeshake
from train.recipe import ROOT

SCRIPTS = {
    "train/baseline.py": lambda words: recipe.parse(baseline.Baseline, baseline.__doc__, words, stage=baseline.STAGES),
    "train/seresnet.py": lambda words: recipe.parse(seresnet.SEResNet, seresnet.__doc__, words),
    "train/shakeshake.py": lambda words: recipe.parse(shakeshake.ShakeShake, shakeshake.__doc__, words),
    "train/quick.py": lambda words: recipe.parse(quick.Quick, quick.__doc__, words),
    "distill/student.py": lambda words: recipe.parse(student.Student, student.__doc__, words),
}
STAND_IN = """#!/bin/bash
echo "$@" >> calls
while [ $# -gt 0 ]; do [ "$1" = --out ] && touch "$2"; shift; done
echo "stand-in: done"
"""
TEACHERS = [f"seresnet164-fold{fold}" for fold in range(5)] + ["seresnet164-noval", "shakeshake26-64-se-noval"]


@pytest.fixture
def make(tmp_path):
    """make(words...): run make in a copy; returns (exit code, output, [words of every Python call])."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "weights").mkdir()

    def run(*words):
        (tmp_path / "calls").unlink(missing_ok=True)
        line = ["make", "VENV=", f"PYTHON={tmp_path}/python", "DATA=synthetic", *words]
        clean = {"PATH": os.environ["PATH"]}  # a make that runs the tests hands its own variables down
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=clean)
        calls = (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []
        return done.returncode, done.stdout + done.stderr, [shlex.split(call) for call in calls]

    return run


def understood(call):
    """The recipe that a training call describes; the real parser exits on a flag that it does not know."""
    return SCRIPTS[call[0]](call[1:])


def test_help_lists_every_phony_target_with_what_it_does(make):
    code, out, _ = make("help")
    phony = (ROOT / "Makefile").read_text().replace("\\\n", " ").split(".PHONY:")[1].splitlines()[0].split()
    listed = {line.split()[1]: line.split()[2:] for line in out.splitlines() if line.startswith("  make ")}
    assert code == 0 and set(listed) == set(phony) and all(listed.values())


def test_teachers_are_built_when_missing_and_never_again(make, tmp_path):
    _, _, calls = make("teachers", "GPUS=3", "-j1")
    asked, calls = calls[::2], calls[1::2]  # before each training the time left over all of them
    files = [f"weights/{name}.pt" for name in TEACHERS]
    assert all(call == ["train/remaining.py", *files, "--jobs", "1", "3"] for call in asked)
    assert [call[-1] for call in calls] == [f"weights/{name}.pt" for name in TEACHERS]
    recipes = [understood(call) for call in calls]
    assert [r.fold for r in recipes] == [0, 1, 2, 3, 4, None, None] and {r.epochs for r in recipes[:6]} == {300}
    assert (recipes[6].width, recipes[6].se) == (64, True)

    (tmp_path / "requirements.txt").touch()
    assert make("teachers")[2] == []
    (tmp_path / "weights/seresnet164-fold3.pt").unlink()
    assert [call[-1] for call in make("teachers")[2][1:]] == ["weights/seresnet164-fold3.pt"]
    assert [call[0] for call in make("distill")[2]] == ["distill/labels.py", "distill/student.py", "train/evaluate.py"]
    assert [call[0] for call in make("distill")[2]] == ["train/evaluate.py"]


def test_a_variable_becomes_a_flag_only_when_it_is_set(make):
    (bare, *_), (full, *_) = make("quick")[2], make("-B", "quick", "EPOCHS=3", "SEED=2", "LIMIT=70", "DEVICE=cpu",
                                                   "ARGS=--mix ricap -b 64")[2]
    assert bare == "train/quick.py --noval --data synthetic --out weights/fastnet-noval.pt".split()
    got = understood(full)
    assert (got.epochs, got.seed, got.limit, got.device, got.mix, got.batch_size) == (3, 2, 70, "cpu", "ricap", 64)
    assert understood(make("baseline", "STAGE=basic", "ARGS=--noval")[2][0]).lr == 0.1
    for words in ("--fold 2", "-b 64 --fold=2"):
        call = make("-B", "baseline", f"ARGS={words}")[2][0]
        assert understood(call).fold == 2 and call[-1] == "weights/resnet18-fold2.pt"


@pytest.mark.parametrize("words", [("DEVICE=gpu",), ("STAGE=best",), ("evaluate",), ("submission",)])
def test_a_wrong_or_missing_value_runs_nothing(make, words):
    code, out, calls = make(*words)
    assert code == 2 and not calls and words[0].split("=")[0].lower() in out.lower()


def test_the_demo_asks_for_what_the_scripts_know(make, tmp_path):
    code, out, calls = make("demo", "SEED=4")
    assert code == 0, out
    training = {call[-1]: understood(call) for call in calls if call[0] in SCRIPTS}
    folder = "weights/demo-seed4"
    roles = ["shakeshake", "all", *(f"fold{fold}" for fold in range(5)), "baseline", "control", "student"]
    assert set(training) == {f"{folder}/{role}.pt" for role in roles}
    assert all(r.seed == 4 and r.data == "synthetic" and r.limit == 1000 for r in training.values())
    student, control = (dict(vars(training[f"{folder}/{role}.pt"])) for role in ("student", "control"))
    assert {key for key in student if student[key] != control[key]} <= {"labels", "alpha", "out", "identity"}
    others = [call[0] for call in calls if call[0] not in SCRIPTS]
    assert others[0] == "distill/labels.py" and len(others) == 4
    assert set(others[1:]) == {"distill/submission.py", "train/report.py", "distill/compare.py"}
    # A second time nothing trains again: the files that the stand-in did not write are asked for, no others.
    assert {call[0] for call in make("demo", "SEED=4")[2]} <= set(others[1:])


def test_the_study_trains_each_network_at_three_seeds_and_its_teachers_first(make, tmp_path):
    code, out, calls = make("study", "-j1")
    assert code == 0, out
    order = [Path(call[call.index("--out") + 1]).name for call in calls]
    training = {Path(call[-1]).stem: understood(call) for call in calls if call[0] in SCRIPTS}
    assert len(training) == 43 and all(call[call.index("--data") + 1] == "synthetic" for call in calls)
    assert order.index("few-teacher-fold4.pt") < order.index("few-oof.csv") < order.index("few-oof-seed0.pt")
    assert order.index("teacher-fold4.pt") < order.index("labels.csv") < order.index("student-seed0.pt")
    for few, names in [("", ["student", "control"]), ("half-", ["student", "control"]), ("few-", ["control", "mean", "oof", "view"])]:
        for seed in range(3):
            alike = [{k: v for k, v in vars(training[f"{few}{name}-seed{seed}"]).items()
                      if k not in ("labels", "teachers", "alpha", "out", "identity")} for name in names]
            assert all(one == alike[0] for one in alike) and alike[0]["seed"] == seed
    assert [training[f"{stage}-seed1"].augment for stage in ("basic", "optimized")] == [(), ("crop", "flip")]
    assert {r.epochs for name, r in training.items() if "few" not in name and "half" not in name} == {4}
    assert calls[-1][0] == "train/report.py"
    for name in ("teacher", "few-teacher"):
        place = calls[-1].index(f"{name}s")
        assert calls[-1][place - 1:place + 6] == ["--ensemble", f"{name}s", *(
            f"weights/study/{name}-fold{fold}.pt" for fold in range(5))]
    assert [call[0] for call in make("study")[2]] == ["train/report.py"]


def test_a_stage_of_the_demo_that_fails_shows_its_output_and_ends_it(make, tmp_path):
    (tmp_path / "python").write_text("#!/bin/bash\necho some trouble >&2\nexit 3\n")
    code, out, _ = make("demo")
    assert code == 2 and "some trouble" in out and not list(tmp_path.rglob("*.pt"))


def test_several_jobs_share_gpus_without_ever_sharing_one(make, tmp_path):
    (tmp_path / "python").write_text(STAND_IN.replace("while", 'echo "$CUDA_VISIBLE_DEVICES in" >> gpus; sleep 0.2; '
                                                      'echo "$CUDA_VISIBLE_DEVICES out" >> gpus\nwhile'))
    code, out, calls = make("-j5", "GPUS=2", "teachers")
    assert code == 0 and len(calls) == 14, out
    busy, events = {"0": 0, "1": 0}, [line.partition(" ") for line in (tmp_path / "gpus").read_text().splitlines()]
    assert {gpu for gpu, *_ in events} == {"", "0", "1"} and sum(gpu == "" for gpu, *_ in events) == 14  # remaining.py
    for gpu, _, event in events:
        if not gpu:
            continue
        busy[gpu] += 1 if event == "in" else -1
        assert 0 <= busy[gpu] <= 1
