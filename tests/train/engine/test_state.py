"""What finished weights say of how they came about."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch

import toy
from train.engine import checkpoint, data, loop, state
from train.engine.state import Stopped


@pytest.fixture
def provenance(toy_set, tmp_path):
    """provenance(**hooks): what the weights of a run with these hooks say."""

    def trained(**hooks):
        recipe = toy.Toy(data=str(toy_set), out=str(tmp_path / "run.pt"), fresh=True)
        return checkpoint.load_weights(loop.run(toy.hook(recipe, **hooks)))["provenance"]

    return trained


def test_threads_hardware_and_commit_are_told(provenance, monkeypatch):
    monkeypatch.setattr(loop, "commit", lambda: "abc+")
    told = provenance()
    assert told["threads"] == torch.get_num_threads() == 1 and told["hardware"].endswith("), 1 thread")
    assert told["commit"] == "abc+" and told["unlabelled"] == 0 and told["images"] == 40


@pytest.mark.usefixtures("handlers")
def test_all_processes_of_a_run_are_told_of(recipe, monkeypatch):
    def process(commit, hardware, loss=None):
        monkeypatch.setattr(loop, "commit", lambda: commit)
        monkeypatch.setattr(state, "hardware", lambda device: hardware)
        return loop.run(toy.hook(recipe("run"), **({"loss": loss} if loss else {})))

    for commit, hardware, steps in (("a", "abacus", 1), ("b", "abacus", 2)):
        with pytest.raises(Stopped):
            process(commit, hardware, toy.terminate(steps))
    told = checkpoint.load_weights(process("b", "slate"))["provenance"]
    assert (told["commit"], told["hardware"]) == ("a; b", "abacus; slate")
    assert told["threads"] == torch.get_num_threads() and told["torch"] == str(torch.__version__)


@pytest.mark.usefixtures("handlers")
def test_an_older_state_tells_of_its_threads_alone(recipe, tmp_path, capsys):
    with pytest.raises(Stopped):
        loop.run(toy.hook(recipe("run"), loss=toy.terminate(2)))
    content = checkpoint.load(tmp_path / "run.last.pt")
    del content["places"]
    checkpoint.save(tmp_path / "run.last.pt", content | {"threads": 7})
    told = checkpoint.load_weights(loop.run(recipe("run")))["provenance"]
    assert "1 thread instead of 7: the last bits will differ" in capsys.readouterr().out
    assert told["threads"] == "7; 1" and told["hardware"].endswith("), 1 thread")


@pytest.mark.usefixtures("handlers")
def test_a_run_that_goes_on_on_another_device_takes_the_optimizer_kernel_of_this_one(recipe, tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        loop.run(toy.hook(recipe("run"), loss=toy.terminate(2)))
    content = checkpoint.load(tmp_path / "run.last.pt")
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = True  # as it is saved on CUDA
    checkpoint.save(tmp_path / "run.last.pt", content)
    states, fit = [], loop.fit
    monkeypatch.setattr(loop, "fit", lambda state, *images: states.append(state) or fit(state, *images))
    loop.run(recipe("run"))
    assert states[0].optimizer.param_groups and not any(g["fused"] for g in states[0].optimizer.param_groups)


def test_images_without_a_label_are_counted_and_not_part_of_the_digest(provenance, toy_set):
    def with_unlabelled(train, model):
        more = data.load(toy_set, "test").select(slice(5))
        return data.join(train, replace(more, labels=torch.full((5,), -1))), ()

    before, told = provenance(), provenance(prepare=with_unlabelled)
    assert (told["unlabelled"], told["images"]) == (5, 45) and told["train_digest"] == before["train_digest"]


def git(folder, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_told_with_a_mark_when_files_were_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert state.commit() == ""
    file = tmp_path / "file"
    git(tmp_path, "init", "-q"), file.write_text("1"), git(tmp_path, "add", "."), git(tmp_path, "commit", "-qm", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag, which is not what is told")
    first = git(tmp_path, "rev-parse", "HEAD")
    assert re.fullmatch("[0-9a-f]{12}", state.commit()) and first.startswith(state.commit())
    file.write_text("2")
    assert state.commit() == first[:12] + "+"
    monkeypatch.setenv("PATH", "")
    assert state.commit() == ""
