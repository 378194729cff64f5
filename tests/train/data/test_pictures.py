"""What is made of a picture of any size and mode, and which files of a folder are pictures."""

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from toy import noise, picture

from train import UserError
from train.data import pictures


def test_a_small_picture_keeps_its_bytes(tmp_path):
    pixels = noise(32, 32, 3)
    assert np.array_equal(pictures.centre(pictures.read_picture(picture(tmp_path / "a.png", pixels))), pixels)


@pytest.mark.parametrize("width, height, box", [(96, 64, (16, 0, 80, 64)), (65, 97, (0, 16, 65, 81))])
def test_the_centre_square_is_what_is_resized(width, height, box):
    pixels = noise(height, width, 3)
    left, top, right, bottom = box
    wanted = Image.fromarray(pixels[top:bottom, left:right]).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(pictures.centre(Image.fromarray(pixels)), np.asarray(wanted))


def test_resizing_is_antialiased():
    y, x = np.mgrid[:256, :256]
    board = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, 2)  # grey from afar
    assert abs(pictures.centre(Image.fromarray(board)).astype(int) - 127).max() <= 2


def test_a_picture_is_read_as_its_orientation_shows_it(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:5, :5] = 255  # in the top left corner
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    found = np.asarray(pictures.read_picture(picture(tmp_path / "a.png", pixels, exif=exif)))
    assert found.shape == (30, 20, 3) and np.array_equal(found, np.rot90(pixels, -1))


@pytest.mark.parametrize("mode, value, wanted", [
    ("L", 200, (200, 200, 200)), ("1", 1, (255, 255, 255)), ("LA", (10, 0), (255, 255, 255)),
    ("I;16", 32_896, (128,) * 3), ("RGBA", (255, 0, 0, 255), (255, 0, 0)), ("RGB", (1, 2, 3), (1, 2, 3)),
    ("F", 0.5, (128,) * 3), ("F", 200.0, (200,) * 3), ("I", 65_535, (255,) * 3), ("I", 200, (200,) * 3),
])
def test_every_mode_becomes_rgb_with_transparency_on_white(tmp_path, mode, value, wanted):
    file = tmp_path / ("a.tif" if mode in ("F", "I") else "a.png")
    Image.new(mode, (8, 6), value).save(file)
    found = pictures.read_picture(file)
    assert found.mode == "RGB" and found.getpixel((3, 3)) == wanted


def test_a_transparent_palette_and_cmyk(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "a.gif", transparency=0)
    found = pictures.read_picture(tmp_path / "a.gif")
    assert found.getpixel((3, 3)) == (255, 255, 255) and found.getpixel((1, 1)) == (255, 0, 0)
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert min(pictures.read_picture(tmp_path / "a.jpg").getpixel((3, 3))) > 250


def test_of_an_animated_picture_it_is_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pictures.read_picture(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


# ---------------------------------------------------------------- folders


def told(folder):
    lines = []
    return [file.name for file in pictures.picture_files(folder, lines.append)], lines


def test_every_format_that_pillow_reads_is_a_picture_by_its_suffix_or_its_content(tmp_path):
    for number, (end, kind) in enumerate([(".png", None), (".ppm", None), (".jfif", "JPEG"), (".jpe", "JPEG"),
                                          (".tga", None), (".qoi", None), (".JP2", "JPEG2000"), ("", "PNG"),
                                          (".upload", "WEBP"), (".mpo", "JPEG")]):
        Image.fromarray(noise(32, 32, 3)).save(tmp_path / f"{number}{end}", format=kind)
    files, lines = told(tmp_path)
    assert files == ["0.png", "1.ppm", "2.jfif", "3.jpe", "4.tga", "5.qoi", "6.JP2", "7", "8.upload", "9.mpo"]
    assert not lines and all(pictures.read_picture(tmp_path / file).size == (32, 32) for file in files)


def test_one_line_tells_what_is_left_out(tmp_path):
    picture(tmp_path / "a.png")
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / "a.bin", format="TGA")  # which to Pillow almost any file is
    assert told(tmp_path) == (["a.png"], [f"{tmp_path}: 1 picture; left out: 2 subfolders (x, ...) and 1 other file "
                                          "(a.bin)"])
    picture(tmp_path / ".hidden.png"), (tmp_path / "movie.mpg").write_bytes(b"\0\0\1\xb3" + bytes(100))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"holds no pictures; left out: 2 subfolders \(x, ...\) and 3 other files \(.h"):
        told(tmp_path)


def test_no_picture_starts_a_program(tmp_path, monkeypatch):
    """PostScript would start Ghostscript, and IPTC may hold PostScript, which Pillow opens in any case."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    records = ((3, 20, b"\0\0\0\x20"), (3, 30, b"\0\0\0\x20"), (3, 60, b"\1\0"), (3, 65, b"\0"), (3, 120, b"\5"),
               (8, 10, script))
    iptc = b"".join(bytes((0x1C, *tag, 0, len(data))) + data for *tag, data in records)
    for content in (script, iptc):
        (tmp_path / "cat.jpg").write_bytes(content)
        with pytest.raises(UserError, match="no known format"):
            pictures.read_picture(tmp_path / "cat.jpg")


def test_a_link_that_leads_nowhere_is_no_other_file(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    files, images, complaints = pictures.read_pictures([tmp_path])
    assert not files and images.shape == (0, 3, 32, 32) and "a.png does not exist" in str(complaints[0])


def test_pictures_of_files_and_folders_in_their_order_with_complaints(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder/10.png", "folder/9.ppm", "last.png"):
        picture(tmp_path / name, noise(32, 32, 3, seed=len(name)))
    (tmp_path / "folder" / "notes.txt").write_text("not a picture")
    (tmp_path / "fake.png").write_text("this is no picture")
    seen, said = [], []
    paths = [tmp_path / "folder", tmp_path / "fake.png", str(tmp_path / "last.png")]
    files, images, complaints = pictures.read_pictures(paths, said.append, lambda files: seen.extend(files) or files)
    assert [file.name for file in files] == ["9.ppm", "10.png", "last.png"] and len(seen) == 4
    for file, image in zip(files, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image.permute(1, 2, 0).numpy())
    assert [str(error) for error in complaints] == [f"{tmp_path}/fake.png is not a picture that can be read (no known "
                                                    "format)"]
    assert said == [f"{tmp_path}/folder: 2 pictures; left out: 1 other file (notes.txt)"]
