"""`train/classify.py`: the three likeliest classes of every picture, and a line for what is none."""

import pandas as pd
import pytest
from PIL import Image
from toy import noise, picture
from untrained import write_weights

from train import classify
from train.data import cifar10, pictures
from train.data.synthetic import SHAPES
from train.engine import checkpoint, network


@pytest.fixture
def run(typed, weights):
    """run(*words) -> (exit code, stdout, stderr) of the command with the toy weights."""
    return lambda *words: typed(classify.main, *words, "--weights", weights, "--device", "cpu")


def test_the_three_likeliest_on_one_line_a_picture(run, weights, tmp_path):
    files = [picture(tmp_path / f"{seed}.png", noise(50, 32, 3, seed=seed)) for seed in range(3)]
    code, out, err = run(*files, "--csv", tmp_path / "answers.csv")
    assert code == 0 and err.count("\n") == 1 and "even if it shows none of them" in err
    _, images, _ = pictures.read_pictures(files)
    logits = network.logits(network.load(weights).model, images)
    chances = logits.double().softmax(1)
    lines = out.splitlines()
    for file, line, row in zip(files, lines, chances, strict=True):
        best = row.argsort(descending=True)[:3]
        assert line == f"{file}: " + ", ".join(f"{cifar10.CLASSES[k]} {100 * row[k]:.1f} %" for k in best)
    table = pd.read_csv(tmp_path / "answers.csv")
    assert list(table) == ["file", "class", *cifar10.CLASSES] and list(table["file"]) == list(map(str, files))
    for row, wanted in zip(table.to_dict("records"), chances, strict=True):
        assert row["class"] == cifar10.CLASSES[wanted.argmax()]
        assert [row[name] for name in cifar10.CLASSES] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_folders_and_files_in_order_and_what_is_no_picture(run, tmp_path):
    folder = tmp_path / "holiday ä"
    folder.mkdir()
    for name in ("10.JPG", "2.png", "1.webp", "3.ppm"):
        picture(folder / name)
    (folder / "notes.txt").write_text("not looked at")
    (folder / "sub").mkdir()
    (tmp_path / "fake.png").write_text("this is no picture")
    picture(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    last = picture(tmp_path / "last.png")
    code, out, err = run(*(tmp_path / name for name in ("fake.png", "none.png", "empty")), folder, tmp_path / "cut.png",
                         last, "--csv", tmp_path / "a.csv")
    assert code == 2 and [line.split(": ")[0].split("/")[-1] for line in out.splitlines()] == [
        "1.webp", "2.png", "3.ppm", "10.JPG", "last.png"]
    left_out, _, *told = (line.removeprefix(f"classify.py: {tmp_path}/") for line in err.splitlines())
    assert left_out == "holiday ä: 4 pictures; left out: 1 subfolder (sub) and 1 other file (notes.txt)"
    for line, start in zip(sorted(told), ["cut.png is not a picture that can be read (", "empty holds no pictures",
                                  "fake.png is not a picture that can be read (no known format)",
                                  "none.png does not exist"], strict=True):
        assert line.startswith(start)
    assert len(pd.read_csv(tmp_path / "a.csv")) == 5


def test_nothing_but_damaged_files(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    code, out, err = run(tmp_path / "a.png", "--csv", tmp_path / "a.csv")
    assert (code, out) == (2, "") and err.count("\n") == 1 and not (tmp_path / "a.csv").exists()


@pytest.mark.parametrize("limit", [500, 900])  # Pillow warns of the one and refuses the other
def test_a_bomb_is_refused_in_one_line(run, tmp_path, monkeypatch, limit):
    file = picture(tmp_path / "huge.png", noise(32, 32, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    code, out, err = run(file, picture(tmp_path / "small.png", noise(8, 8, 3)))
    assert code == 2 and out.count("\n") == 1 and err.count("\n") == 2 and "million pixels" in err


def test_generated_shapes_are_called_so(typed, weights, toy_set, tmp_path):
    content = checkpoint.load(weights)
    content["provenance"]["source"] = "synthetic"
    shapes = tmp_path / "shapes.pt"
    checkpoint.save(shapes, content)
    file = picture(tmp_path / "a.png")
    code, out, err = typed(classify.main, file, "--weights", shapes, "--device", "cpu")
    assert code == 0 and err.count("\n") == 2 and err.count("generated shapes") == 1
    assert any(name in out for name in SHAPES) and not any(name in out for name in cifar10.CLASSES)
    write_weights(tmp_path / "other.pt", toy_set, seed=1)
    code, out, err = typed(classify.main, file, "--weights", shapes, "--weights", tmp_path / "other.pt")
    assert (code, out) == (2, "") and "some on generated shapes" in err and err.count("\n") == 1


def test_repeated_weights_answer_together(typed, weights, toy_set, tmp_path):
    file, other = picture(tmp_path / "a.png"), tmp_path / "other.pt"
    write_weights(other, toy_set, seed=1)
    one, both = (typed(classify.main, *words, file, "--device", "cpu") for words in (
        ["--weights", weights], ["--weights", weights, "--weights", other]))
    assert one[0] == both[0] == 0 and one[1] != both[1]
    typed(classify.main, "--weights", weights, "--weights", other, file, "--csv", tmp_path / "both.csv",
          "--device", "cpu")
    [row] = pd.read_csv(tmp_path / "both.csv").to_dict("records")
    images = pictures.read_pictures([file])[1]
    mean = network.mean_logits(network.load_all([weights, other]), images, bars=False).double().softmax(1)[0]
    assert [row[name] for name in cifar10.CLASSES] == pytest.approx(mean.tolist(), abs=1e-6)


@pytest.mark.parametrize("flags, words", [
    (["--csv", "x.json"], "should end in .csv"), (["--csv", "nowhere/x.csv"], "does not exist"),
    (["--weights", "none.pt"], "none.pt does not exist"), (["--weights", "none"], "none does not exist"),
])
def test_a_mistake_is_one_line_before_any_work(typed, weights, tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr(pictures, "read_picture", lambda *_: pytest.fail("worked before it refused"))
    code, out, err = typed(classify.main, tmp_path / "a.png", *(flags if "--weights" in flags else [
        "--weights", weights, *flags]))
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


def test_answers_replace_answers_and_nothing_else(run, tmp_path):
    file, answers = picture(tmp_path / "a.png"), tmp_path / "a.csv"
    for _ in range(2):
        assert run(file, "--csv", answers)[0] == 0
    assert run(tmp_path / "mistyped.png", "--csv", answers)[0] == 2 and len(pd.read_csv(answers)) == 1
    answers.write_text("ID,Labels\n")
    code, out, err = run(file, "--csv", answers)
    assert (code, out) == (2, "") and "holds something else" in err and err.count("\n") == 1
    assert answers.read_text() == "ID,Labels\n"
