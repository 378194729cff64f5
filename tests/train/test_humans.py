"""What people say of the test images: the CSV from its four sources, and scores beside it, on toy files."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import toy
from train import evaluate, humans
from train.engine import data, people, predict
from train.engine.command import UserError
from untrained import write_weights

COUNT = toy.SIZES["test"]


def vote(given=0, guessed=0, neither=0, both=0):
    return {"given": given, "guessed": guessed, "neither": neither, "both": both}


def suspicious(place, label, guessed, votes):
    """An entry of the study, with all that the published file has."""
    return {"id": place, "url": f"https://labelerrors.com/static/cifar10/{place}.png",
            "given_original_label": int(label), "given_original_label_name": data.CLASSES[label],
            "our_guessed_label": guessed, "our_guessed_label_name": data.CLASSES[guessed], "mturk": votes}


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
    (folder / humans.TWINS).write_text("TestID,TrainID,Distance,Judgment\n3,59,0.1,1\n4,7,0.2,2\n3,8,0.3,0\n")
    return folder


@pytest.fixture
def archive(tmp_path, monkeypatch):
    toy.use(monkeypatch.setattr)
    return toy.write_archive(tmp_path / "archive", monkeypatch.setattr)


@pytest.fixture
def make(sources, archive, tmp_path, typed):
    """make(*words) -> (exit code, stdout, stderr) of the command that writes humans.csv."""
    return lambda *words: typed(humans.main, sources, "--data", archive, "--out", tmp_path / "humans.csv", *words)


@pytest.fixture
def csv(make, tmp_path):
    assert make()[0] == 0
    return tmp_path / "humans.csv"


# ---------------------------------------------------------------- the CSV


def test_the_csv_joins_the_four_files_by_their_place_in_the_archive(make, sources, tmp_path):
    code, out, err = make()
    assert (code, err) == (0, "") and "2 labels corrected, 3 with no majority, 2 with a near twin" in out
    table = pd.read_csv(tmp_path / "humans.csv", dtype={"duplicate": "Int64"})
    images, labels = toy.arrays("test")
    assert list(table) == people.COLUMNS and table["official_index"].tolist() == list(range(COUNT))
    assert table["id"].tolist() == list(data.image_ids(images)) and table["label"].tolist() == labels.tolist()
    corrected = {2: labels[2] + 1, 8: labels[8] + 1, 5: -1, 7: -1, 9: -1}
    assert table["corrected"].tolist() == [corrected.get(place, label) for place, label in enumerate(labels)]
    assert table["duplicate"].dropna().to_dict() == {3: 0, 4: 2}  # the stronger of two judgements
    assert np.array_equal(table[people.VOTES].to_numpy(), np.load(sources / humans.COUNTS))
    assert ",0,0,0,,4" in (tmp_path / "humans.csv").read_text()  # whole numbers, and nothing for no twin


def edit(file, change):
    listed = json.loads(file.read_text())
    change(listed)
    file.write_text(json.dumps(listed))


@pytest.mark.parametrize("damage, words", [
    (lambda f: (f / humans.STUDY).unlink(), "lacks cifar10_mturk.json"),
    (lambda f: (f / humans.STUDY).write_text("{"), "cifar10_mturk.json cannot be read"),
    (lambda f: (f / humans.STUDY).write_text('{"id": 1}'), "not the study's list"),
    (lambda f: edit(f / humans.STUDY, lambda s: s[0].pop("mturk")), "KeyError: 'mturk'"),
    (lambda f: edit(f / humans.STUDY, lambda s: s.append(s[0])), "every id once"),
    (lambda f: edit(f / humans.STUDY, lambda s: s[0].update(id=COUNT)), "every id once"),
    (lambda f: edit(f / humans.STUDY, lambda s: s[0].update(our_guessed_label=10)), "labels 0 to 9"),
    (lambda f: edit(f / humans.STUDY, lambda s: s[0].update(given_original_label=7)), "the official label, 1, of test"),
    (lambda f: np.save(f / humans.COUNTS, np.ones((COUNT, 9))), "counts of votes (20, 10)"),
    (lambda f: np.save(f / humans.COUNTS, np.full((COUNT, 10), 0.1)), "a vote an image or more"),
    (lambda f: np.save(f / humans.COUNTS, np.array([print], dtype=object)), "cannot be read"),
    (lambda f: np.save(f / humans.ORIGINAL, np.roll(np.arange(COUNT) % 10, 1)), "labels in the archive's order"),
    (lambda f: (f / humans.TWINS).write_text("TestID,Judgment\n1,1\n"), "the columns TestID, TrainID"),
    (lambda f: (f / humans.TWINS).write_text("TestID,TrainID,Distance,Judgment\n1,1,0.1,3\n"), "judgements 0 to 2"),
    (lambda f: (f / humans.TWINS).write_text("TestID,TrainID,Distance,Judgment\n20,1,0.1,1\n"), "places of test"),
])
def test_a_file_that_is_another_is_named_in_one_line(make, sources, tmp_path, damage, words):
    damage(sources)
    code, out, err = make()
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1 and not (tmp_path / "humans.csv").exists()


def test_an_npz_has_no_official_order(make, toy_set):
    code, _, err = make("--data", toy_set)
    assert code == 2 and "holds an npz, whose order may be any" in err and err.count("\n") == 1


# ---------------------------------------------------------------- scores beside it


def by_hand(csv, limit=None):
    """The rows of the CSV in the order of the ids, as plain lists."""
    return pd.read_csv(csv).sort_values("id")[:limit]


def test_scores_are_those_counted_by_hand(toy_set, csv):
    test, table = data.load(toy_set, "test"), by_hand(csv)
    logits = torch.randn(COUNT, 10, generator=torch.Generator().manual_seed(0)) + 2 * data.one_hot(test.labels)
    found = people.figures(logits, test.labels, people.read(csv, test))
    answer = logits.argmax(1).numpy()
    kept, apart = table["corrected"].to_numpy() >= 0, table["duplicate"].isna().to_numpy()
    assert found["undecided"] == 3 and found["twins"] == 2
    assert found["top1"] == pytest.approx(100 * np.mean(answer == table["label"]))
    assert found["top1_corrected"] == pytest.approx(100 * np.mean((answer == table["corrected"])[kept]))
    assert found["top1_apart"] == pytest.approx(100 * np.mean((answer == table["label"])[apart]))
    votes = table[people.VOTES].to_numpy()
    shares, chances = votes / votes.sum(1, keepdims=True), logits.double().softmax(1).numpy()
    assert found["nll_votes"] == pytest.approx(-(shares * np.log(chances)).sum(1).mean())
    assert found["nll"] == pytest.approx(-np.log(chances[np.arange(COUNT), table["label"]]).mean())
    assert found["agreement"] == pytest.approx(100 * np.mean([row[k] for row, k in zip(shares, answer)]))
    assert found["label_agreement"] == pytest.approx(100 * np.mean([row[k] for row, k in zip(shares, table["label"])]))


@pytest.mark.parametrize("limit", [None, 12])
def test_evaluate_prints_and_writes_them(toy_set, csv, tmp_path, typed, limit):
    write_weights(tmp_path / "net.pt", toy_set)
    table = by_hand(csv, limit)
    shuffled = tmp_path / "shuffled.csv"  # ids name the rows, not their order
    pd.read_csv(csv, dtype={"duplicate": "Int64"}).sample(frac=1, random_state=1).to_csv(shuffled, index=False)
    words = ["--limit", limit] if limit else []
    code, out, err = typed(evaluate.main, tmp_path / "net.pt", "--data", toy_set, "--device", "cpu",
                           "--humans", shuffled, "--json", tmp_path / "f.json", *words)
    figures = json.loads((tmp_path / "f.json").read_text())
    found = figures["humans"]
    assert code == 0 and found["top1"] == figures["top1"] and found["nll"] == figures["nll"]
    assert found["undecided"] == (table["corrected"] < 0).sum() and found["twins"] == table["duplicate"].notna().sum()
    assert f"{found['top1_corrected']:.2f} % on corrected labels, without {found['undecided']} that have" in out
    assert f"cross-entropy {found['nll_votes']:.4f} against people's votes" in out
    test = data.load(toy_set, "test").select(slice(limit))
    logits = predict.logits(predict.load([tmp_path / "net.pt"])[0].model, test.images)
    apart = torch.tensor(table["duplicate"].isna().tolist())
    assert found["top1_apart"] == pytest.approx(predict.accuracy(logits[apart], test.labels[apart]))


def change(table, column, value, row=0):
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize("damage, words", [
    (lambda t: t.drop(columns=["h3", "corrected"]), "lacks the columns corrected, h3"),
    (lambda t: change(t, "id", "0" * 16), "1 id not of a test image, the first is 0000000000000000"),
    (lambda t: pd.concat([t, t[4:6]]), "2 ids given again"), (lambda t: t[3:], "3 ids missing"),
    (lambda t: change(t, "label", 9), "label of 1 image,"), (lambda t: change(t, "label", "cat"), "label of 1 image,"),
    (lambda t: change(t, "h3", -1), "counts of votes"), (lambda t: change(t, "h3", "many"), "counts of votes"),
    (lambda t: t.assign(**dict.fromkeys(people.VOTES, 0)), "at least one an image"),
    (lambda t: change(t, "corrected", 10), "0 to 9, or -1"), (lambda t: change(t, "corrected", None), "0 to 9, or -1"),
    (lambda t: t.assign(duplicate=1), "none is left"), (lambda t: t.assign(corrected=-1), "none is left"),
    (lambda t: None, "cannot be read as a CSV"),
])
def test_another_csv_is_refused_in_one_line_before_the_work(toy_set, csv, tmp_path, typed, monkeypatch, damage, words):
    write_weights(tmp_path / "net.pt", toy_set)
    changed = damage(pd.read_csv(csv))
    csv.write_bytes(b"\xff\xfe\x00" if changed is None else changed.to_csv(index=False).encode())
    monkeypatch.setattr(predict, "logits", lambda *_: pytest.fail("worked before it refused"))
    code, out, err = typed(evaluate.main, tmp_path / "net.pt", "--data", toy_set, "--humans", csv, "--device", "cpu")
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_a_csv_that_is_not_there(toy_set):
    with pytest.raises(UserError, match="none.csv cannot be read"):
        people.read("none.csv", data.load(toy_set, "test"))
