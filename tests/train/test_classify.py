"""`train/classify.py`: what it makes of every picture, and the folder reader that it shares with distillation."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import EpsImagePlugin, Image

from distill.unlabelled import load_images
from train import classify
from train.engine import checkpoint, data, predict, sources
from train.engine.command import UserError
from untrained import weights, write_weights  # noqa: F401


@pytest.fixture
def run(typed, weights):
    """run(*words) -> (exit code, stdout, stderr) of the command with the toy weights."""
    return lambda *words: typed(classify.main, *words, "--weights", weights, "--device", "cpu")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(file, pixels=None, **options):
    Image.fromarray(noise(32, 32, 3) if pixels is None else pixels).save(file, **options)
    return file


# ---------------------------------------------------------------- reading


def test_a_small_picture_keeps_its_bytes(tmp_path):
    pixels = noise(32, 32, 3)
    for name in ("a.png", "a.bmp", "a.tif"):
        assert np.array_equal(classify.centre(sources.read_picture(picture(tmp_path / name, pixels))), pixels)


@pytest.mark.parametrize("width, height, box", [(96, 64, (16, 0, 80, 64)), (65, 97, (0, 16, 65, 81))])
def test_the_centre_square_is_what_is_resized(width, height, box):
    pixels = noise(height, width, 3)
    left, top, right, bottom = box
    wanted = Image.fromarray(pixels[top:bottom, left:right]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(classify.centre(Image.fromarray(pixels)), np.asarray(wanted))


def test_resizing_is_antialiased():
    y, x = np.mgrid[:256, :256]
    board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, 2)  # grey from afar
    assert abs(classify.centre(Image.fromarray(board)).astype(int) - 127).max() <= 2


def test_a_picture_is_read_as_its_orientation_shows_it(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:5, :5] = 255  # in the top left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = np.asarray(sources.read_picture(picture(tmp_path / "a.png", pixels, exif=exif)))
    assert found.shape == (30, 20, 3) and np.array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize("mode, value, wanted", [
    ("L", 200, (200, 200, 200)), ("1", 1, (255, 255, 255)), ("LA", (10, 0), (255, 255, 255)),
    ("I;16", 32_896, (128,) * 3),
    ("RGBA", (255, 0, 0, 0), (255, 255, 255)), ("RGBA", (255, 0, 0, 255), (255, 0, 0)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("F", 0.5, (128,) * 3), ("F", 200.0, (200,) * 3), ("I", 65_535, (255,) * 3), ("I", 200, (200,) * 3),
])
def test_every_mode_becomes_rgb_with_transparency_on_white(tmp_path, mode, value, wanted):
    file = tmp_path / ("a.tif" if mode in ("F", "I") else "a.png")
    Image.new(mode, (8, 6), value).save(file)
    found = sources.read_picture(file)
    assert found.mode == "RGB" and found.getpixel((3, 3)) == wanted


def test_a_transparent_palette_and_cmyk(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "a.gif", transparency=0)
    found = sources.read_picture(tmp_path / "a.gif")
    assert found.getpixel((3, 3)) == (255, 255, 255) and found.getpixel((1, 1)) == (255, 0, 0)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert min(sources.read_picture(tmp_path / "a.jpg").getpixel((3, 3))) > 250


def test_postscript_is_a_program_and_no_picture(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    with pytest.raises(UserError, match=r"a.png is not a picture that can be read \(no known format\)"):
        sources.read_picture(tmp_path / "a.png")


def test_of_an_animated_picture_it_is_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert sources.read_picture(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


# ---------------------------------------------------------------- answers


def test_the_three_likeliest_on_one_line_a_picture(run, weights, tmp_path):
    files = [picture(tmp_path / f"{seed}.png", noise(50, 32, 3, seed=seed)) for seed in range(3)]
    code, out, err = run(*files, "--json", tmp_path / "answers.json", "--csv", tmp_path / "answers.csv")
    assert code == 0 and err.count("\n") == 1 and "also one that shows none of them" in err
    images = np.stack([classify.centre(sources.read_picture(file)) for file in files])
    logits = predict.logits(predict.load([weights])[0].model, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    chances = logits.double().softmax(1)
    lines = out.splitlines()
    for file, line, row in zip(files, lines, chances, strict=True):
        best = row.argsort(descending=True)[:3]
        assert line == f"{file}: " + ", ".join(f"{data.CLASSES[k]} {100 * row[k]:.1f} %" for k in best)
    listed, table = json.loads((tmp_path / "answers.json").read_text()), pd.read_csv(tmp_path / "answers.csv")
    for row, item, wanted in zip(table.to_dict("records"), listed, chances, strict=True):
        assert row["class"] == item["class"] == data.CLASSES[wanted.argmax()] and row["file"] == item["file"]
        assert list(item["probabilities"]) == list(data.CLASSES) == list(table)[2:]
        assert list(item["probabilities"].values()) == pytest.approx(wanted.tolist(), abs=1e-6)
        assert [row[name] for name in data.CLASSES] == pytest.approx(wanted.tolist(), abs=1e-6)


def test_the_stored_temperature_divides_the_logits_of_one_network(weights, toy_set, tmp_path):
    images = torch.from_numpy(noise(5, 3, 32, 32))
    [network] = predict.load([weights])
    logits = predict.logits(network.model, images).double()
    assert torch.allclose(classify.probabilities([network], images), logits.softmax(1))
    checkpoint.save(weights, network.content | {"temperature": 4.0})
    [cooled] = predict.load([weights])
    assert torch.allclose(classify.probabilities([cooled], images), (logits / 4).softmax(1))
    write_weights(tmp_path / "other.pt", toy_set, seed=1)
    both = [cooled, *predict.load([tmp_path / "other.pt"])]
    mean = (logits + predict.logits(both[1].model, images)) / 2
    assert torch.allclose(classify.probabilities(both, images), mean.softmax(1), atol=1e-6)


def test_folders_and_files_in_order_and_what_is_no_picture(run, tmp_path):
    folder = tmp_path / "holiday ä"
    folder.mkdir()
    for name in ("10.JPG", "2.png", "1.webp"):
        picture(folder / name)
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden.png").write_text("nor this")
    (tmp_path / "fake.png").write_text("this is no picture")
    picture(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    last = picture(tmp_path / "last.png")
    code, out, err = run(*(tmp_path / name for name in ("fake.png", "none.png", "empty")), folder, tmp_path / "cut.png",
                         last, "--json", tmp_path / "a.json")
    assert code == 2 and [line.split(": ")[0].split("/")[-1] for line in out.splitlines()] == [
        "1.webp", "2.png", "10.JPG", "last.png"]
    told = sorted(line.removeprefix(f"classify.py: {tmp_path}/") for line in err.splitlines()[1:])
    for line, start in zip(told, ["cut.png is not a picture that can be read (", "empty holds no .png, ",
                                  "fake.png is not a picture that can be read (no known format)",
                                  "none.png does not exist"], strict=True):
        assert line.startswith(start)
    assert len(json.loads((tmp_path / "a.json").read_text())) == 4


def test_nothing_but_damaged_files(run, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    code, out, err = run(tmp_path / "a.png", "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert json.loads((tmp_path / "a.json").read_text()) == [] and len(pd.read_csv(tmp_path / "a.csv")) == 0


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
    code, out, err = typed(classify.main, file, "--weights", shapes)
    assert code == 0 and err.count("\n") == 2 and err.count("generated shapes") == 1
    assert any(name in out for name in sources.SHAPES) and not any(name in out for name in data.CLASSES)
    write_weights(tmp_path / "other.pt", toy_set, seed=1)
    code, out, err = typed(classify.main, file, "--weights", shapes, "--weights", tmp_path / "other.pt")
    assert (code, out) == (2, "") and "some on generated shapes" in err and err.count("\n") == 1


def test_a_picture_may_come_before_and_behind_the_weights(typed, weights, tmp_path):
    file = picture(tmp_path / "a.png")
    answers = {typed(classify.main, *words, "--device", "cpu")[:2]
               for words in ([file, "--weights", weights], ["--weights", weights, file])}
    assert len(answers) == 1 and answers.pop()[0] == 0


def test_the_shapes_are_named_as_they_are_drawn():
    images, labels = sources.synthetic("test")
    names = np.array(sources.SHAPES)[labels]
    border = images[:, (0, 31)].mean((1, 2), keepdims=True)
    stray = abs(images.astype(float) - border).mean(3)  # from the background

    def middle(shape):
        return stray[np.char.endswith(names, shape), 15:17, 15:17].mean()

    assert middle("ring") < 0.8 * middle("disk")  # a ring is hollow
    assert len(set(names)) == 10 and names[0] == "striped disk" and names[9] == "checked cross"


@pytest.mark.parametrize("flags, words", [
    (["--json", "x.csv"], "should end in .json"), (["--csv", "nowhere/x.csv"], "does not exist"),
    (["--weights", "none.pt"], "none.pt does not exist"),
])
def test_a_mistake_is_one_line_before_any_work(typed, weights, tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr(sources, "read_picture", lambda *_: pytest.fail("worked before it refused"))
    code, out, err = typed(classify.main, tmp_path / "a.png", *(flags if "--weights" in flags else [
        "--weights", weights, *flags]))
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


# ---------------------------------------------------------------- the same reader for distillation


def test_unlabelled_images_may_be_jpegs_of_the_right_size_alone(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    picture(folder / "2.jpg"), picture(folder / "10.png", noise(32, 32, 3, seed=1))
    images, ids = load_images(folder)
    assert ids.tolist() == ["2", "10"] and np.array_equal(images[1], noise(32, 32, 3, seed=1))
    assert np.array_equal(images[0], np.asarray(Image.open(folder / "2.jpg")))
    picture(folder / "11.jpeg", noise(32, 40, 3))
    with pytest.raises(UserError, match="11.jpeg is 40x32 pixels, and should be 32x32"):
        load_images(folder)
    (folder / "11.jpeg").write_text("no picture")
    with pytest.raises(UserError, match="11.jpeg is not a picture"):
        load_images(folder)
