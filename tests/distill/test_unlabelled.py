"""Unlabelled images in each form a competition uses, and the pickles that must not be run."""

import pickle

import numpy as np
import pytest
from PIL import Image

from distill.unlabelled import load_images
from train.engine import data
from train.engine.command import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("ids", [np.arange(11), list(range(11)), [str(k) for k in range(11)],
                                 [b"%d" % k for k in range(11)]])
def test_pickle_of_every_protocol(tmp_path, protocol, ids):
    path = tmp_path / "images.pkl"
    path.write_bytes(pickle.dumps({b"data": IMAGES, b"ids": ids}, protocol))
    images, names = load_images(path)
    assert np.array_equal(images, IMAGES) and names.tolist() == [str(k) for k in range(11)]


def test_rows_of_3072_are_channel_first(tmp_path):
    path = tmp_path / "images.pkl"
    rows = IMAGES.transpose(0, 3, 1, 2).reshape(11, 3072)
    path.write_bytes(pickle.dumps({b"data": rows, b"ids": list(range(11))}))
    assert np.array_equal(load_images(path)[0], IMAGES)


def test_npz_and_folder_of_pngs(tmp_path):
    np.savez(tmp_path / "images.npz", images=IMAGES, ids=np.arange(11))
    folder = tmp_path / "bilder mit ä"
    folder.mkdir()
    for name, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{name}.png")
    for path in (tmp_path / "images.npz", folder):
        images, names = load_images(path)
        assert np.array_equal(images, IMAGES) and names.tolist() == [str(k) for k in range(11)]


class Trap:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("wrap", [
    lambda trap: trap, lambda trap: {b"data": trap, b"ids": [1]},
    lambda trap: {b"data": np.array([trap], dtype=object), b"ids": [1]},
])
def test_a_pickle_that_runs_a_command_is_refused_and_leaves_no_mark(tmp_path, wrap):
    mark = tmp_path / "mark"
    path = tmp_path / "images.pkl"
    path.write_bytes(pickle.dumps(wrap(Trap(f"touch '{mark}'"))))
    with pytest.raises(UserError, match="not a plain pickle"):
        load_images(path)
    np.savez(tmp_path / "images.npz", data=np.array([Trap(f"touch '{mark}'")], dtype=object), ids=np.arange(1))
    with pytest.raises(UserError, match="npz of plain arrays"):
        load_images(tmp_path / "images.npz")
    assert not mark.exists()


@pytest.mark.parametrize("content, message", [
    ({b"data": IMAGES}, "has no 'ids'"),
    ({b"ids": [1]}, "has no 'data'"),
    ({b"data": IMAGES, b"ids": [1, 2]}, "11 images, but 2 ids"),
    ({b"data": IMAGES, b"ids": [0] * 11}, "10 ids occur more than once"),
    ({b"data": IMAGES, b"ids": [b"\xff"] + [b"a"] * 10}, "the ids are not one list of names in UTF-8"),
    ({b"data": IMAGES, b"ids": [[1], [2, 3]]}, "the ids are not one list of names in UTF-8"),
    ({b"data": IMAGES.astype(np.float32), b"ids": list(range(11))}, "should be uint8"),
    ({b"data": IMAGES[:, :16], b"ids": list(range(11))}, "should be uint8"),
    ([1, 2, 3], "not a plain pickle"),
])
def test_wrong_content_is_named(tmp_path, content, message):
    path = tmp_path / "images.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        load_images(path)


def test_missing_empty_and_damaged_files(tmp_path):
    for name, content in [("empty.pkl", b""), ("text.pkl", b"hello"), ("bad.npz", b"PK\x03\x04 no")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError):
            load_images(tmp_path / name)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no .png"):
        load_images(tmp_path / "folder")
    with pytest.raises(UserError, match="does not exist"):
        load_images(tmp_path / "nothing")


def test_the_generated_test_images_are_there_by_name():
    images, ids = load_images("synthetic")
    dataset = data.load("synthetic", "test")
    assert images.shape == (2_000, 32, 32, 3) and images.dtype == np.uint8 and list(ids) == list(dataset.ids)
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2), dataset.images.numpy())
