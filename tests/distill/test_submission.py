"""`distill/submission.py`: complete answers in two forms, the mean of several networks, nothing replaced unasked."""

import gzip
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
import toy
from untrained import write_weights

from distill import submission
from train.data.cifar10 import CLASSES
from train.data.synthetic import SHAPES
from train.engine import checkpoint, network


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
    return sum(network.logits(network.load(file).model, images, tta) for file in weights) / len(weights)


def change(file, temperature=None, **provenance):
    content = checkpoint.load(file)
    content["provenance"] |= provenance
    checkpoint.save(file, content | ({"temperature": temperature} if temperature else {}))


def test_a_submission_is_complete_and_the_ensemble_is_the_mean(files, run):
    weights, _, out = files
    code, printed, err = run(weights, "--tta")
    table, answers = pd.read_csv(out), mean_logits(weights, tta=True).argmax(1)
    assert (code, err) == (0, "") and "20 predictions by net0.pt, net1.pt" in printed
    assert list(table.columns) == ["ID", "Labels"] and table["ID"].tolist() == list(range(100, 120))
    assert table["Labels"].tolist() == answers.tolist()
    # The longest bar is that of the most answers.
    bars, counts = [line.split() for line in printed.splitlines()[:10]], np.bincount(answers, minlength=10)
    assert [(bar[0], int(bar[1])) for bar in bars] == list(zip(CLASSES, counts))
    assert [len("".join(bar[2:])) for bar in bars] == [round(40 * count / counts.max()) for count in counts]


def test_the_released_network_answers_an_array_alone(files, typed, tmp_path, monkeypatch):
    weights, _, out = files
    np.save(tmp_path / "images.npy", toy.arrays("test")[0])
    monkeypatch.setattr(network, "RELEASED", weights[0])
    monkeypatch.chdir(tmp_path)
    code, printed, err = typed(submission.main, "--images", "images.npy", "--device", "cpu")
    assert code == 0 and "submission.csv: 20 predictions by net0.pt" in printed
    assert err == "submission.py: images.npy has no `ids`: the images are numbered from 0 to 19\n"
    assert pd.read_csv(out)["ID"].tolist() == list(range(20))


def test_kaggles_form_has_the_names_of_the_classes(files, run):
    weights, _, out = files
    assert run(weights, "--names")[0] == 0
    table = pd.read_csv(out)
    assert list(table.columns) == ["id", "label"] and table["id"].tolist() == list(range(100, 120))
    assert table["label"].tolist() == [CLASSES[k] for k in mean_logits(weights).argmax(1)]
    code, printed, err = run(weights, "--names", "--probabilities")
    assert (code, printed) == (2, "") and "not allowed with" in err and err.count("\n") == 1


@pytest.mark.parametrize("ids", [["NA", "null", "nan", "None"], [2**64 - 1, -1, 0, 10**19], ["07", "1e5", "a,b", 'c"']])
def test_every_id_comes_back_as_it_was(files, run, ids):
    weights, images, out = files
    images.write_bytes(pickle.dumps({"data": toy.arrays("test")[0][:4], "ids": ids}))
    for form in ((), ("--names",)):
        assert run(weights[:1], *form)[0] == 0
        table = pd.read_csv(out, dtype=str, na_filter=False)
        assert table[table.columns[0]].tolist() == [str(name) for name in ids]
        assert "on 100.00 %" in run(weights[:1], "--compare", out)[1]


# ---------------------------------------------------------------- --compare


def test_two_submissions_are_compared_in_any_order_and_either_form(files, run):
    weights, _, out = files
    run(weights)
    table = pd.read_csv(out)
    table["Labels"] = (table["Labels"] + (table["ID"] >= 115)) % 10
    other = out.with_name("other.csv")
    table.sample(frac=1, random_state=0).to_csv(other, index=False)
    assert "on 75.00 %" in run(weights, "--compare", other)[1]
    named = table.assign(Labels=[CLASSES[k] for k in table["Labels"]])
    named.set_axis(["id", "label"], axis=1).to_csv(other, index=False, encoding="utf-8-sig")  # as Excel writes it
    assert "on 75.00 %" in run(weights, "--compare", other)[1]
    pd.concat([table, pd.DataFrame({"ID": [7, 8], "Labels": [0, 0]})]).to_csv(other, index=False)
    code, printed, err = run(weights, "--compare", other)
    assert code == 0 and "on 75.00 %" in printed and "has 2 ids that are not in the images: they are left out" in err


@pytest.mark.parametrize("content, told", [
    (b"\x80\x04\x95\x00", "is not a submission"), (b"", "is not a submission"),
    (b"name,class\na,b\n", "its columns should be ID,Labels or id,label and are name,class"),
    (b"ID,Labels\n100,3\n100,3\n", "1 ids occur more than once, the first is 100"),
    (b"ID,Labels\n100,3\n", "has 1 of the 20 ids"),
    (b"ID,Labels\n100,lynx\n101,cat\n", "1 labels are neither 0 to 9 nor one of airplane, .*, the first is 'lynx'"),
    (b"ID,Labels\n100,10\n", "the first is '10'"), (b"ID,Labels\n100,3.0\n", "the first is '3.0'"),
    (b"ID,Labels\n100,3\n,\n", "the first is ''"), (b"ID,Labels\n100\n", "the first is ''"),
    (b"ID,Labels\n100,3,4\n", "is not a submission"), (gzip.compress(b"ID,Labels\n100,3\n"), "is not a submission"),
])
def test_what_is_no_submission_is_not_compared(files, run, content, told):
    weights, _, out = files
    earlier = out.with_name("earlier.csv.gz" if content[:2] == b"\x1f\x8b" else "earlier.csv")
    earlier.write_bytes(content)
    code, printed, err = run(weights, "--compare", earlier)
    assert (code, printed, err.count("\n")) == (2, "", 1) and not out.exists()
    assert re.search(told, err)


# ---------------------------------------------------------------- --out


@pytest.mark.parametrize("header", ["id,label," + ",".join(CLASSES), "epoch,lr,train_loss", "ID,Label", ""])
def test_a_file_that_is_no_submission_is_not_replaced(files, run, header):
    weights, _, out = files
    out.write_text(f"{header}\n1,2\n")
    code, printed, err = run(weights)
    assert (code, printed) == (2, "") and "exists and holds something else" in err and err.count("\n") == 1
    assert out.read_text() == f"{header}\n1,2\n"


def test_a_submission_is_replaced_in_any_form_and_a_link_is_followed(files, run):
    weights, _, out = files
    out.touch()
    for words in ((), ("--names",), ("--probabilities",), ()):
        assert run(weights, *words)[0] == 0
    elsewhere = out.rename(out.with_name("elsewhere.csv"))
    elsewhere.write_text("ID,Labels\n1,2\n")
    out.symlink_to(elsewhere)
    assert run(weights)[0] == 0
    assert out.is_symlink() and len(pd.read_csv(elsewhere)) == 20


# ---------------------------------------------------------------- probabilities and warnings


def test_generated_classes_have_names_of_their_own(files, run):
    change(files[0][0], source="synthetic")
    code, printed, _ = run(files[0][:1], "--probabilities")
    assert code == 0 and "airplane" not in printed and SHAPES[9] in printed
    assert list(pd.read_csv(files[2])) == ["ID", "Labels", *SHAPES]


def test_probabilities_stand_under_the_names_of_the_classes(files, run):
    """Those of one network are calibrated by the temperature that is stored with it."""
    weights, _, out = files
    change(weights[0], temperature=4.0)
    for chosen, cooled in ((weights[:1], 4.0), (weights[1:], 1.0), (weights, 1.0)):
        assert run(chosen, "--probabilities")[0] == 0
        table, wanted = pd.read_csv(out), (mean_logits(chosen).double() / cooled).softmax(1).numpy()
        assert list(table.columns) == ["ID", "Labels", *CLASSES]
        np.testing.assert_allclose(table[list(CLASSES)].to_numpy(), wanted, atol=6e-7)
        assert (table[list(CLASSES)].to_numpy().argmax(1) == table["Labels"]).all()
    assert "on 100.00 %" in run(weights, "--probabilities", "--compare", out)[1]


def test_weights_that_are_together_above_the_budget_are_warned_of(files, run, monkeypatch):
    monkeypatch.setattr("models.BUDGET", 3_000)
    assert "budget" not in run(files[0][:1])[2]
    code, _, err = run(files[0])
    assert code == 0 and "these weights have 5,976 parameters, above the budget of 3,000" in err


def test_weights_of_another_kind_of_images_are_warned_of(files, run, typed):
    weights, _, out = files
    code, _, err = typed(submission.main, weights[0], "--images", "synthetic", "--out", out, "--device", "cpu")
    assert code == 0 and len(pd.read_csv(out)) == 2_000 and "warning: net0.pt learned from photographs" in err
    change(weights[1], source="synthetic with images without labels")
    code, printed, err = run(weights)
    assert code == 0 and "20 predictions" in printed and "warning: net1.pt learned from generated shapes" in err
