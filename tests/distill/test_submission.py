"""`distill/submission.py`: complete answers, the mean of several networks, probabilities by name, and one warning."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from distill import submission
from train.engine import checkpoint, data, predict, sources
from untrained import write_weights


@pytest.fixture
def files(toy_set, tmp_path):
    """Two networks and the toy test images as a competition hands them out."""
    for seed in range(2):
        write_weights(tmp_path / f"net{seed}.pt", toy_set, seed)
    images, _ = toy.arrays("test")
    (tmp_path / "images.pkl").write_bytes(pickle.dumps({b"data": images, b"ids": np.arange(100, 120)}))
    return [tmp_path / "net0.pt", tmp_path / "net1.pt"], tmp_path / "images.pkl", tmp_path / "submission.csv"


@pytest.fixture
def run(files, typed):
    return lambda weights, *words: typed(submission.main, *weights, "--images", files[1], "--out", files[2],
                                         "--device", "cpu", *words)


def mean_logits(weights, tta=False):
    images = torch.from_numpy(toy.arrays("test")[0].transpose(0, 3, 1, 2).copy())
    return sum(predict.logits(network.model, images, tta) for network in predict.load(weights)) / len(weights)


def test_a_submission_is_complete_and_the_ensemble_is_the_mean(files, run):
    weights, images, out = files
    code, printed, err = run(weights, "--tta")
    table = pd.read_csv(out)
    assert code == 0 and "warning" not in err and all(name in printed for name in data.CLASSES)
    assert list(table.columns) == ["ID", "Labels"] and table["ID"].tolist() == list(range(100, 120))
    assert table["Labels"].tolist() == mean_logits(weights, tta=True).argmax(1).tolist()
    assert "20 answers of 2 networks" in printed
    assert "on 100.00 %" in run(weights, "--compare", out, "--tta")[1]
    other, twice, part = (out.with_name(f"{name}.csv") for name in ("other", "twice", "part"))
    changed = table.assign(Labels=(table["Labels"] + (table["ID"] >= 115)) % 10)
    changed.sample(frac=1, random_state=0).to_csv(other, index=False)  # in any order
    assert "on 75.00 %" in run(weights, "--compare", other, "--tta")[1]
    pd.concat([table, table]).to_csv(twice, index=False), table[:5].to_csv(part, index=False)
    for earlier, wrong in ((images, "not a submission"), (twice, "not a submission"), (part, "has 5 of the 20 ids")):
        code, printed, err = run(weights, "--compare", earlier)
        assert (code, printed) == (2, "") and err.count("\n") == 1 and wrong in err


def test_generated_classes_have_names_of_their_own(files, run):
    content = checkpoint.load(files[0][0])
    content["provenance"]["source"] = "synthetic"
    checkpoint.save(files[0][0], content)
    code, printed, err = run(files[0][:1], "--probabilities")
    assert code == 0 and "generated shapes" in err and "airplane" not in printed
    assert list(pd.read_csv(files[2])) == ["ID", "Labels", *sources.SHAPES] and sources.SHAPES[9] in printed


def test_probabilities_stand_under_the_names_of_the_classes(files, run):
    weights, _, out = files
    assert run(weights[:1], "--probabilities")[0] == 0
    table, wanted = pd.read_csv(out), mean_logits(weights[:1]).softmax(1).numpy()
    assert list(table.columns) == ["ID", "Labels", *data.CLASSES]
    np.testing.assert_allclose(table[list(data.CLASSES)].to_numpy(), wanted, atol=6e-7)
    assert (table[list(data.CLASSES)].to_numpy().argmax(1) == table["Labels"]).all()
    cells = out.read_text().splitlines()[1].split(",")[2:]
    assert all(len(cell.partition(".")[2]) == 6 for cell in cells)
    assert "on 100.00 %" in run(weights[:1], "--probabilities", "--compare", out)[1]


def test_weights_that_are_together_above_the_budget_are_warned_of(files, run, monkeypatch):
    monkeypatch.setattr("models.BUDGET", 3_000)
    assert "budget" not in run(files[0][:1])[2]
    code, _, err = run(files[0])
    assert code == 0 and "these weights have 5,976 parameters, above the budget of 3,000" in err


def test_weights_of_generated_shapes_that_answer_photographs_are_warned_of(files, run, tmp_path):
    weights, _, out = files
    content = checkpoint.load_weights(weights[1])
    content["provenance"]["source"] = "synthetic with images without labels"
    checkpoint.save(weights[1], content)
    code, printed, err = run(weights)
    assert code == 0 and out.exists() and "20 answers" in printed
    [line] = [line for line in err.splitlines() if "warning" in line]
    assert "net1.pt learned from generated shapes" in line and "net0.pt" not in line and "photographs" in line


def test_and_the_other_way_round(files, typed, tmp_path):
    weights, _, out = files
    code, _, err = typed(submission.main, weights[0], "--images", "synthetic", "--out", out, "--device", "cpu")
    assert code == 0 and len(pd.read_csv(out)) == 2_000
    assert "warning: net0.pt learned from photographs, and of generated shapes" in err
