"""Unlabelled images in each form a competition uses: read right or refused with the reason, and nothing is run."""

import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
import toy
from PIL import Image

from train import UserError
from train.data import cifar10
from train.data.unlabelled import channel_order, load_images, with_unlabelled

IMAGES = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
IDS = [str(k) for k in range(11)]


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def read(path):
    """(images, ids, the lines that are said)."""
    lines = []
    images, ids = load_images(path, lines.append)
    return images, ids.tolist(), [line.removeprefix(str(path)) for line in lines]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("ids", [np.arange(11), [name.encode() for name in IDS]])
def test_pickle_of_every_protocol(tmp_path, protocol, ids):
    path = write(tmp_path / "images.pkl", {b"data": IMAGES, b"ids": ids}, protocol)
    images, names, said = read(path)
    assert np.array_equal(images, IMAGES) and names == IDS and not said


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_any_order_and_kind_of_ids(tmp_path, protocol):
    orders = (np.asfortranarray(IMAGES), IMAGES.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1), IMAGES[::-1][::-1],
              list(IMAGES))
    kinds = (np.arange(11, dtype=">u8"), np.array(IDS), np.array(IDS, "S"), np.array(IDS, object), tuple(np.arange(11)),
             np.arange(11)[:, None].astype("i2"), np.array(IDS).astype(">U3"))
    for images, ids in [*((images, IDS) for images in orders), *((IMAGES, ids) for ids in kinds)]:
        content = {"data": images, "ids": ids, "taken": np.zeros(11, "datetime64[s]"), "": np.zeros(0)}
        found, names, said = read(write(tmp_path / "images.pkl", content, protocol))
        assert np.array_equal(found, IMAGES) and names == IDS and said == [": not read: , taken"]


def test_npz_and_folder_of_pictures(tmp_path):
    with open(tmp_path / "misnamed.pkl", "wb") as handle:
        np.savez(handle, images=IMAGES, ids=np.arange(11))
    folder = tmp_path / "bilder mit ä"
    folder.mkdir()
    for name, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{name}.{'png' if name % 2 else 'ppm'}")
    for path in (tmp_path / "misnamed.pkl", folder):
        images, names, said = read(path)
        assert np.array_equal(images, IMAGES) and names == IDS and not said


@pytest.mark.parametrize("content", [IMAGES, {b"data": IMAGES}, "npy"], ids=["array", "dict", "npy"])
def test_images_without_ids_are_numbered_and_it_is_said(tmp_path, content):
    path = write(tmp_path / "images.npy", content)
    if isinstance(content, str):
        np.save(path, IMAGES)
    images, names, said = read(path)
    assert np.array_equal(images, IMAGES) and names == IDS
    assert said == [" has no `ids`: the images are numbered from 0 to 10"]


def test_entries_that_are_not_read_are_told(tmp_path):
    path = write(tmp_path / "batch", {b"data": IMAGES, b"labels": [0] * 11, b"images": IMAGES, b"ids": IDS})
    assert read(path)[2] == [": not read: images, labels"]


# ---------------------------------------------------------------- ids


@pytest.mark.parametrize("ids", [
    [0x9E3779B97F4A7C15 * (k + 1) % 2**64 for k in range(11)], [2**64 - 1, -1, *range(9)], [10**30, *range(10)],
    np.arange(11, dtype=np.uint64) + np.uint64(2**64 - 11), np.arange(11)[:, None] - 2**62,
    list(np.arange(11, dtype=np.uint64) + np.uint64(2**63)), np.array([2**64 - 1, -1, *range(9)], dtype=object),
    ["NA", "null", "nan", "None", "007", "1e5", "ä", "a,b", 'c"d', " e", "f "], tuple("abcdefghijk")])
def test_ids_are_exact_to_the_last_digit(tmp_path, ids):
    wanted = [str(value) for value in np.ravel(np.array(ids, dtype=object)).tolist()]
    assert read(write(tmp_path / "images.pkl", {"data": IMAGES, "ids": ids}))[1] == wanted


@pytest.mark.parametrize("ids, message", [
    (np.arange(11.0), r"the id of image 0 is '0.0' \(float64\), and should be a whole number or text in UTF-8"),
    (np.arange(11) > 4, r"'False' \(bool"), (np.arange(11).astype("datetime64[ns]"), "an array of M8"),
    ([*range(10), float("nan")], r"image 10 is 'nan' \(float\)"), ([True, *range(10)], r"image 0 is 'True' \(bool\)"),
    (np.array([None, *range(10)], dtype=object), "image 0 is 'None'"), ([[k] for k in range(11)], r"'\[0\]' \(list"),
    ([b"\xff", *range(10)], r"image 0 is .* \(bytes\)"), (["\ud800", *range(10)], "image 0 is"),
    (["a\nb", *range(10)], "image 0 is 'a.nb'"), (["", *range(10)], "image 0 is ''"),
    (dict.fromkeys(range(11)), "the ids are a dict"), ("abcdefghijk", "the ids are a str"),
    (np.arange(22).reshape(11, 2), r"image 0 is '\[0 1\]'"), ([1, 2], "11 images, but 2 ids"),
    ([10**5000, *range(10)], "the ids cannot be read as text .Exceeds the limit"),
    ([1, "1", *range(2, 11)], "images.pkl: 1 ids occur more than once, the first is 1$"),
])
def test_ids_that_are_not_are_refused(tmp_path, ids, message):
    with pytest.raises(UserError, match=message) as caught:
        read(write(tmp_path / "images.pkl", {"data": IMAGES, "ids": ids}))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the order of the bytes


@pytest.fixture(scope="module")
def smooth():
    """uint8 (40, 32, 32, 3): clouds with a little noise, whose colours have something in common."""
    g = torch.Generator().manual_seed(0)
    clouds = torch.rand(40, 3, 6, 6, generator=g) * 90 + torch.rand(40, 1, 6, 6, generator=g) * 150
    images = torch.nn.functional.interpolate(clouds, 32, mode="bicubic") + 4 * torch.randn(40, 3, 32, 32, generator=g)
    return images.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("order", ["CHW", "HWC"])
def test_neighbouring_pixels_tell_the_order_of_rows(tmp_path, smooth, order):
    rows = (smooth.transpose(0, 3, 1, 2) if order == "CHW" else smooth).reshape(40, 3072)
    images, _, said = read(write(tmp_path / "rows", {"data": rows, "ids": list(range(40))}))
    assert np.array_equal(images, smooth)
    assert said == [f": the rows of 3,072 bytes are read in {order} order, as neighbouring pixels tell"]
    assert [channel_order(row[None]) for row in rows] == [order] * 40  # each of them alone, too


def test_grey_images_have_an_order_too(smooth):
    grey = smooth.mean(3, keepdims=True).astype(np.uint8).repeat(3, 3)
    assert channel_order(grey.reshape(40, 3072)) == "HWC"
    assert channel_order(grey.transpose(0, 3, 1, 2).reshape(40, 3072)) == "CHW"


HORIZON = np.zeros_like(IMAGES) + 8 * np.arange(32, dtype=np.uint8)[:, None, None]


@pytest.mark.parametrize("images", [IMAGES, np.full_like(IMAGES, 7), HORIZON], ids=["noise", "one colour", "horizon"])
def test_rows_whose_order_is_not_plain_are_refused(tmp_path, images):
    with pytest.raises(UserError, match="do not tell whether the rows .* CHW or HWC"):
        read(write(tmp_path / "rows", images.reshape(11, 3072)))


def test_rows_that_somebody_reshaped_the_wrong_way_are_refused(tmp_path, smooth):
    wrong = smooth.transpose(0, 3, 1, 2).reshape(40, 32, 32, 3)
    with pytest.raises(UserError, match="its bytes lie in CHW order"):
        read(write(tmp_path / "images", wrong))
    assert np.array_equal(read(write(tmp_path / "images", smooth))[0], smooth)


# ---------------------------------------------------------------- what is refused


def test_a_file_that_runs_a_command_is_refused_and_leaves_no_mark(tmp_path):
    trap, file = toy.Bomb(tmp_path / "mark"), tmp_path / "images"
    array = np.array([trap], dtype=object)
    for content in (trap, {b"data": trap, b"ids": [1]}, {b"data": array, b"ids": [1]}):
        with pytest.raises(UserError, match="not a plain pickle"):
            load_images(write(file, content))
    for save in (lambda handle: np.savez(handle, data=array), lambda handle: np.save(handle, array)):
        with open(file, "wb") as handle:
            save(handle)
        with pytest.raises(UserError, match="there are pickles in it"):
            load_images(file)
    assert not trap.mark.exists()


class Reduced:
    """Pickled as a call of a function, and a state."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def array_of(kind, shape, content):
    return Reduced(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, kind, False, content))


FIELDS = Reduced(np.dtype, ("V8", False, True), (3, "|", None, ("x",), {"x": (np.dtype("O"), 0)}, 8, 1, 0))
FLAGS = Reduced(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0))


@pytest.mark.parametrize("ids", [
    Reduced(np.ndarray, ((1,), "O", bytes(8))), array_of(FIELDS, (1,), bytes(8)), array_of(FLAGS, (1,), bytes(8)),
    array_of(np.dtype("O"), (1,), bytes(8)), array_of(np.dtype("O"), (3,), [1]), array_of(np.dtype("u1"), (9,), b"1"),
    array_of("u1", (1,), b"1"), array_of(np.dtype("U1"), (1,), b"\xff\xff\xff\x7f"),
    array_of(np.dtype("O"), (np.uint8(16), np.uint8(17)), [1] * 16), array_of(np.dtype("O"), (-1, -1), [1]),
    Reduced(np.zeros(1).__reduce_ex__(5)[0], (np.array([1], object), np.dtype("u8"), (1,), "C")),
    Reduced(np.zeros(1).__reduce_ex__(5)[0], (bytes(8), np.dtype("O"), (1,), "C"))])
def test_bytes_are_never_taken_for_objects(tmp_path, ids):
    """An address that they pass for would be read; neither is a shape believed that the content does not fill."""
    with pytest.raises(UserError, match="is not a plain pickle of arrays"):
        load_images(write(tmp_path / "images.pkl", {"data": IMAGES[:1], "ids": ids}))


def test_ids_of_an_npz_cost_no_more_than_the_file(tmp_path):
    """2**40 of no bytes each; and a text whose characters are none."""
    for ids, told in ((np.zeros(2**40, "V0"), "1 images, but 1,099,511,627,776 ids"),
                      (np.frombuffer(b"\xff" * 4, "u4").view("U1"), "the ids cannot be read as text")):
        np.savez(tmp_path / "a.npz", data=IMAGES[:1], ids=ids)
        with pytest.raises(UserError, match=told):
            load_images(tmp_path / "a.npz")


def test_what_builds_arrays_has_no_state(tmp_path):
    """Its attributes would be those of all later arrays; with __array_interface__ it would be one, of any address."""
    for word in (b"numeric\n_frombuffer", b"multiarray\n_reconstruct", b"multiarray\nscalar"):
        (tmp_path / "a.pkl").write_bytes(b"cnumpy.core." + word + b"\n}U\x13__array_interface__}sb.")
        with pytest.raises(UserError, match="is not a plain pickle of arrays"):
            load_images(tmp_path / "a.pkl")


@pytest.mark.parametrize("content, message", [
    ({b"ids": [1]}, "has no `data`; in it: ids; expected an npy, an npz or a pickle"),
    ({b"data": IMAGES.astype(np.float32), b"ids": IDS}, "should be uint8 .* and is float32"),
    ({b"data": IMAGES[:, :16], b"ids": IDS}, "should be uint8"),
    ({b"data": IMAGES.transpose(0, 3, 1, 2), b"ids": IDS}, r"and is uint8 \(11, 3, 32, 32\)"),
    ({b"data": IMAGES[:0], b"ids": []}, r"and is uint8 \(0, 32, 32, 3\)"),
    ({b"data": np.uint8(3), b"ids": []}, r"and is uint8 \(\)"),
    ({b"data": [IMAGES[0], IMAGES[0, :5]], b"ids": [0, 1]}, "is not one array of images of one size"),
    ([1, 2, 3], "is a pickled list; expected"), (None, "is a pickled NoneType"),
    (torch.zeros(3), "not a plain pickle .*it asks for torch"),
])
def test_wrong_content_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_images(write(tmp_path / "images.pkl", content))


def as_bytes(save):
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def zipped(buffer):
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("1.png", b"x")


@pytest.mark.parametrize("content, message", [
    (as_bytes(lambda b: torch.save(torch.zeros(3), b)), "has no `data`; in it: .*/data.pkl"),
    (as_bytes(zipped), "has no `data`; in it: 1.png"),
    (as_bytes(lambda b: np.savez(b, IMAGES)), "has no `data`; in it: arr_0"),
    (as_bytes(lambda b: Image.fromarray(IMAGES[0]).save(b, "PNG")), "is one picture"),
    (gzip.compress(pickle.dumps(IMAGES)), "is not a plain pickle of arrays"), (b"", "is not a plain pickle of arrays"),
    ("id,label\n1,ä\n".encode(), "is not a plain pickle"), (pickle.dumps(IMAGES)[:5000], "is not a plain pickle"),
    (as_bytes(lambda b: np.save(b, IMAGES))[:5000], "cannot be read"), (b"PK\x03\x04 no", "cannot be read .* not an"),
], ids=["torch", "zip", "npz", "png", "gzip", "empty", "csv", "damaged pickle", "damaged npy", "damaged zip"])
def test_a_file_of_another_kind_is_refused_with_what_is_wanted(tmp_path, content, message):
    (tmp_path / "file.pkl").write_bytes(content)
    with pytest.raises(UserError, match=f"--images {tmp_path}/file.pkl {message}.*; expected an npy") as caught:
        load_images(tmp_path / "file.pkl")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing does not exist"):
        load_images(tmp_path / "nothing")


def test_pictures_of_the_right_size_alone_and_what_is_left_out_is_said(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, image in zip(("2.png", "10.jfif", "11.x"), IMAGES):
        Image.fromarray(image).save(folder / name, format="PNG")
    images, ids, said = read(folder)
    assert ids == ["2", "10", "11.x"] and np.array_equal(images, IMAGES[:3])
    assert said == [": 3 pictures; left out: 1 subfolder (sub)"]
    Image.fromarray(IMAGES[3]).save(folder / "2.ppm")
    with pytest.raises(UserError, match="1 ids occur more than once, the first is 2$"):
        load_images(folder)
    Image.new("RGB", (40, 32)).save(folder / "2.ppm")
    with pytest.raises(UserError, match=r"2.ppm is 40x32 pixels, and should be 32x32"):
        load_images(folder)
    pages = [Image.fromarray(image) for image in IMAGES[:3]]
    pages[0].save(folder / "1.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=r"1.tif is not a picture that can be read \(it holds 3 pictures\)"):
        load_images(folder)


def test_the_generated_test_images_are_there_by_name():
    images, ids = load_images("synthetic")
    assert images.shape == (2_000, 32, 32, 3) and images.dtype == np.uint8
    assert list(ids) == list(cifar10.image_ids(images))


# ---------------------------------------------------------------- joined with the labelled ones


def join(toy_set, tmp_path, *parts, include_test=False):
    """(the labelled Dataset, the joined one, the lines that are said), of images whose ids are x0, x1 and so on."""
    images, lines = np.concatenate(parts), []
    path = write(tmp_path / "images.pkl", {"data": images, "ids": [f"x{k}" for k in range(len(images))]})
    dataset = cifar10.split(cifar10.load(toy_set), 0)[0]
    if include_test:
        dataset = cifar10.join(dataset, cifar10.load(toy_set, "test"))
    return dataset, with_unlabelled(dataset, path, toy_set, include_test, lines.append), lines


def test_images_without_labels_stand_behind_the_others(toy_set, tmp_path):
    dataset, joined, lines = join(toy_set, tmp_path, IMAGES)
    assert not lines and len(joined) == len(dataset) + 11 and joined.source.endswith("with images without labels")
    assert list(joined.ids) == [*dataset.ids, *sorted(cifar10.image_ids(IMAGES))]
    assert joined.labels.tolist() == [*dataset.labels.tolist(), *[-1] * 11]
    assert list(cifar10.image_ids(joined.images.permute(0, 2, 3, 1).numpy())) == list(joined.ids)


@pytest.mark.parametrize("include_test", [False, True])
def test_training_images_are_refused_those_of_the_held_out_fold_too(toy_set, tmp_path, include_test):
    for fold in (0, 3):
        held_out = cifar10.split(cifar10.load(toy_set), fold)[1].images.permute(0, 2, 3, 1).numpy()
        with pytest.raises(UserError, match=r"4 of them are training images, the first is x1\d$"):
            join(toy_set, tmp_path, IMAGES, held_out[:4], include_test=include_test)


def test_test_images_are_refused_unless_they_take_part_anyhow(toy_set, tmp_path):
    test = toy.arrays("test")[0][:5]
    with pytest.raises(UserError, match=r"5 of them are test images, the first is x1\d; --include-test takes them and"):
        join(toy_set, tmp_path, IMAGES, test)
    dataset, joined, lines = join(toy_set, tmp_path, IMAGES, test, include_test=True)
    assert len(joined) == len(set(joined.ids)) == len(dataset) + 11 and (joined.labels < 0).sum() == 11
    assert [line.partition(": ")[2] for line in lines] == [
        "5 of the 16 images are left out: they are test images, which take part with their labels"]
    assert join(toy_set, tmp_path, test, include_test=True)[1].digest == dataset.digest


def test_an_image_that_is_there_twice_is_named(toy_set, tmp_path):
    with pytest.raises(UserError, match="2 images repeat an earlier one, the first is x11$"):
        join(toy_set, tmp_path, IMAGES, IMAGES[:2])
