"""What people say of the test images: the CSV from its four sources, and kept logits scored by it, on toy files."""

import errno
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
import toy

from train import humans
from train.data import cifar10
from train.scores.results import FORMAT, write_result

COUNT = toy.SIZES["test"]


def vote(given=0, guessed=0, neither=0, both=0):
    return {"given": given, "guessed": guessed, "neither": neither, "both": both}


def suspicious(place, label, guessed, votes):
    """An entry of the study; the published file has more keys, which are not read."""
    return {"id": place, "given_original_label": int(label), "our_guessed_label": guessed, "mturk": votes}


STUDY = [(1, vote(given=3, both=2)), (2, vote(given=1, guessed=4)), (5, vote(2, 2, 1)), (7, vote(neither=4, given=1)),
         (8, vote(guessed=3, neither=2)), (9, vote(both=5))]


@pytest.fixture
def sources(tmp_path):
    """A folder with the four files as they are published, of the toy test images in the archive's order."""
    folder = tmp_path / "public"
    folder.mkdir()
    _, labels = toy.arrays("test")
    votes = np.random.default_rng(0).integers(0, 9, (COUNT, 10))
    votes[np.arange(COUNT), labels] += 40
    np.save(folder / humans.COUNTS, votes)
    np.save(folder / humans.ORIGINAL, labels.astype(np.uint16))
    study = [suspicious(place, labels[place], (int(labels[place]) + 1) % 10, votes) for place, votes in STUDY]
    (folder / humans.STUDY).write_text(json.dumps(study))
    (folder / humans.DUPLICATES).write_text("TestID,TrainID,Distance,Judgment\n3,59,0.1,1\n4,7,0.2,2\n3,8,0.3,0\n")
    return folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    toy.use(monkeypatch.setattr)
    return toy.write_archive(tmp_path / "archive", monkeypatch.setattr)


@pytest.fixture
def make(sources, archive, tmp_path, typed):
    """make(*words) -> (exit code, stdout, stderr) of the command that writes humans.csv."""
    out = tmp_path / "humans.csv"
    return lambda *words: typed(humans.main, "build", sources, "--data", archive, "--out", out, *words)


@pytest.fixture
def csv(make, tmp_path):
    assert make()[0] == 0
    return tmp_path / "humans.csv"


def test_the_csv_joins_the_four_files_by_their_place_in_the_archive(make, sources, tmp_path):
    code, out, err = make()
    assert (code, err) == (0, "") and "2 labels corrected, 3 with no majority, 2 with a near duplicate" in out
    table = pd.read_csv(tmp_path / "humans.csv", dtype={"duplicate": "Int64"})
    images, labels = toy.arrays("test")
    assert list(table) == humans.COLUMNS and table["official_index"].tolist() == list(range(COUNT))
    assert table["id"].tolist() == list(cifar10.image_ids(images)) and table["label"].tolist() == labels.tolist()
    corrected = {2: labels[2] + 1, 8: labels[8] + 1, 5: -1, 7: -1, 9: -1}
    assert table["corrected"].tolist() == [corrected.get(place, label) for place, label in enumerate(labels)]
    assert table["duplicate"].dropna().to_dict() == {3: 0, 4: 2}  # the stronger of two judgements
    assert np.array_equal(table[humans.VOTES].to_numpy(), np.load(sources / humans.COUNTS))
    assert ",0,0,0,,4" in (tmp_path / "humans.csv").read_text()  # whole numbers, and nothing for no twin


@pytest.mark.parametrize("damage, words", [
    (lambda f: (f / humans.STUDY).unlink(), "lacks cifar10_mturk.json"),
    (lambda f: (f / humans.STUDY).write_text(json.dumps([suspicious(1, 7, 8, vote(given=5))])), "label, 1, of test"),
    (lambda f: np.save(f / humans.COUNTS, np.ones((COUNT, 9))), "counts of votes (20, 10)"),
    (lambda f: (f / humans.COUNTS).write_bytes(b""), "is not what --help names (EOFError"),
    (lambda f: np.save(f / humans.ORIGINAL, np.roll(np.arange(COUNT) % 10, 1)), "labels in the archive's order"),
])
def test_a_file_that_is_another_is_named_in_one_line(make, sources, tmp_path, damage, words):
    damage(sources)
    code, out, err = make()
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1 and not (tmp_path / "humans.csv").exists()


def test_labels_are_not_replaced(make, tmp_path):
    (tmp_path / "humans.csv").write_text("id,label,airplane\n")
    code, out, err = make()
    assert (code, out) == (2, "") and "holds something else" in err
    assert (tmp_path / "humans.csv").read_text() == "id,label,airplane\n"


def test_a_full_disk_and_a_mistyped_name_are_not_blamed_on_the_folder(make, typed, tmp_path, monkeypatch):
    def full(file, _):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(humans, "write_text", full)
    code, out, err = make()
    assert (code, out) == (1, "") and err.endswith("humans.csv: No space left on device\n")
    np.savez(tmp_path / "x.logits.npz", ids=["a"], logits=np.zeros((1, 10)), labels=[0], fingerprint="x")
    code, out, err = typed(humans.main, "score", tmp_path / "humans.cvs", tmp_path / "x.logits.npz")
    assert (code, out) == (2, "") and err.endswith("humans.cvs: No such file or directory\n")


def test_an_npz_has_no_official_order(make, toy_set):
    code, _, err = make("--data", toy_set)
    assert code == 2 and "holds an npz, whose images may be in any order" in err and err.count("\n") == 1


@pytest.fixture
def kept(csv, tmp_path, toy_set):
    """(logits float32 (20, 10), the CSV's rows in their order, x.logits.npz) of the toy test images."""
    test = cifar10.load(toy_set, "test")
    logits = torch.randn(COUNT, 10, generator=torch.Generator().manual_seed(0)) + 2 * cifar10.one_hot(test.labels)
    write_result(tmp_path / "x.json", {"format": FORMAT, "fingerprint": "x"}, test, logits)
    return logits, pd.read_csv(csv).sort_values("id"), tmp_path / "x.logits.npz"


def test_scores_are_those_counted_by_hand(csv, kept, typed):
    logits, table, npz = kept
    found, predicted = humans.score(csv, npz), logits.argmax(1).numpy()
    decided, apart = table["corrected"].to_numpy() >= 0, table["duplicate"].isna().to_numpy()
    assert (found["images"], found["undecided"], found["duplicates"]) == (COUNT, 3, 2)
    assert found["top1"] == pytest.approx(100 * np.mean(predicted == table["label"]))
    assert found["corrected"] == pytest.approx(100 * np.mean((predicted == table["corrected"])[decided]))
    assert found["apart"] == pytest.approx(100 * np.mean((predicted == table["label"])[apart]))
    votes = table[humans.VOTES].to_numpy()
    shares, chances = votes / votes.sum(1, keepdims=True), logits.double().softmax(1).numpy()
    assert found["votes"] == pytest.approx(-(shares * np.log(chances)).sum(1).mean())
    assert found["nll"] == pytest.approx(-np.log(chances[np.arange(COUNT), table["label"]]).mean())
    for name, classes in (("agreement", predicted), ("label_agreement", table["label"])):
        assert found[name] == pytest.approx(100 * np.mean([row[k] for row, k in zip(shares, classes, strict=True)]))
    code, out, err = typed(humans.main, "score", csv, npz)
    assert (code, err) == (0, "") and f"top-1 {found['corrected']:.2f} % on corrected labels, without 3 images" in out


def test_ids_name_the_rows_not_their_order_and_a_part_of_the_images_will_do(csv, kept, toy_set, tmp_path):
    logits, table, npz = kept
    before = humans.score(csv, npz)
    pd.read_csv(csv, dtype={"duplicate": "Int64"}).sample(frac=1, random_state=1).to_csv(csv, index=False)
    assert humans.score(csv, npz) == before
    some = cifar10.load(toy_set, "test").select(slice(12))
    write_result(tmp_path / "part.json", {"fingerprint": "x"}, some, logits[:12])
    found = humans.score(csv, tmp_path / "part.logits.npz")
    assert found["images"] == 12 and found["undecided"] == (table["corrected"][:12] < 0).sum()


@pytest.mark.parametrize("damage, words", [
    (lambda t: t.drop(columns=["h3", "corrected"]), "the columns id, official_index"),
    (lambda t: pd.concat([t, t[4:6]]), "images of"), (lambda t: t[3:], "each of the 20 images"),
    (lambda t: t.assign(label=9), "the labels of"), (lambda t: t.assign(corrected=10), "corrected labels -1 to 9"),
    (lambda t: t.assign(h3=-1), "counts of votes"),
    (lambda t: t.assign(**dict.fromkeys(humans.VOTES, 0)), "counts of votes"),
])
def test_another_csv_is_refused_in_one_line(csv, kept, typed, damage, words):
    damage(pd.read_csv(csv)).to_csv(csv, index=False)
    code, out, err = typed(humans.main, "score", csv, kept[2])
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
