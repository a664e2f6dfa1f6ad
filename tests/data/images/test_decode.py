"""Every kind of image that people's files hold: what a network gets to see of it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from bitexp.common.errors import UserError
from bitexp.data.images.decode import decode

GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
COLOUR = np.stack([GREY, GREY.T, 255 - GREY], -1)
CLEAR = np.where(GREY < 100, 0, np.where(GREY < 180, 128, 255)).astype(np.uint8)  # transparency


def over_white(values):
    """Values behind `CLEAR` on a white page, within a rounding."""
    alpha = CLEAR / 255 if values.ndim == 2 else CLEAR[..., None] / 255
    return values * alpha + 255 * (1 - alpha)


def seen(path, channels=3):
    image = decode(path, channels)
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    return np.asarray(image).astype(int)


@pytest.fixture
def save(tmp_path):
    """Writes an image to a file and returns its path."""

    def write(image, ending="png", **options):
        path = tmp_path / f"image.{ending}"
        image.save(path, **options)
        return path

    return write


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_of_grey_keep_their_shades(save, ending):
    path = save(Image.fromarray(GREY.astype(np.uint16) * 256 + 77), ending)
    assert np.array_equal(seen(path, 1), GREY)
    assert np.array_equal(seen(path, 3), np.repeat(GREY[..., None], 3, -1))


def test_16_bits_in_the_other_order_of_bytes(tmp_path):
    values = (GREY.astype(np.uint16) * 256).astype(">u2")
    Image.frombytes("I;16B", (8, 8), values.tobytes()).save(tmp_path / "image.tif")
    assert np.array_equal(seen(tmp_path / "image.tif", 1), GREY)


def test_16_bits_where_zero_is_white(save):
    path = save(Image.fromarray(GREY.astype(np.uint16) * 257), "tif", tiffinfo={262: 0})
    assert np.array_equal(seen(path, 1), 255 - GREY)


def test_16_bits_with_a_transparent_shade(save):
    path = save(Image.fromarray(GREY.astype(np.uint16) * 257), transparency=100 * 257)
    assert np.array_equal(seen(path, 1), np.where(GREY == 100, 255, GREY))


@pytest.mark.parametrize("ending", ["png", "tif", "gif", "bmp", "webp", "pgm"])
def test_8_bits_of_grey(save, ending):
    options = {"lossless": True} if ending == "webp" else {}
    assert np.array_equal(seen(save(Image.fromarray(GREY), ending, **options), 1), GREY)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp", "ppm"])
def test_colour(save, ending):
    options = {"lossless": True} if ending == "webp" else {}
    path = save(Image.fromarray(COLOUR), ending, **options)
    assert np.array_equal(seen(path), COLOUR)
    assert np.array_equal(seen(path, 1), np.asarray(Image.fromarray(COLOUR).convert("L")))


def test_floats_from_black_to_white(save):
    assert np.array_equal(seen(save(Image.fromarray(GREY.astype(np.float32) / 255), "tif"), 1), GREY)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GREY.astype(np.float32), "holds floats from 0 to 252, which do not say what is white"),
        (GREY.astype(np.float32) / 255 - 0.5, "holds floats from -0.5 to 0.488"),
        (np.full((2, 2), np.nan, np.float32), "holds floats from nan to nan"),
        (GREY.astype(np.int32), "holds whole numbers of 32 bits or with signs, from 0 to 252"),
    ],
)
def test_numbers_that_do_not_say_what_is_white_are_refused(save, values, message):
    path = save(Image.fromarray(values), "tif")
    with pytest.raises(UserError, match=message) as caught:
        decode(path, 3)
    assert str(caught.value).startswith(f"{path} ")
    assert "save it with 8 or 16 bits" in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_colour_stands_on_a_white_page(save, ending):
    options = {"lossless": True, "exact": True} if ending == "webp" else {}
    path = save(Image.fromarray(np.dstack([COLOUR, CLEAR])), ending, **options)
    assert np.abs(seen(path) - over_white(COLOUR)).max() <= 1


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_stands_on_a_white_page(save, ending):
    path = save(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(CLEAR)]), ending)
    for channels, expected in ((1, over_white(GREY)), (3, over_white(GREY)[..., None])):
        assert np.abs(seen(path, channels) - expected).max() <= 1


def palette(transparent=None):
    """An image of three colours, and what is seen of it."""
    places = (np.arange(64).reshape(8, 8) % 3).astype(np.uint8)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    image = Image.fromarray(places).convert("P")
    image.putpalette(colours.astype(np.uint8).flatten().tolist())
    expected = colours[places]
    if transparent is not None:
        image.info["transparency"] = transparent
        expected[places == transparent] = 255
    return image, expected


@pytest.mark.parametrize("ending", ["png", "gif"])
@pytest.mark.parametrize("transparent", [None, 1])
def test_a_palette_with_and_without_a_transparent_colour(save, ending, transparent):
    image, expected = palette(transparent)
    assert np.array_equal(seen(save(image, ending)), expected)


def test_a_palette_with_a_transparency_of_each_colour(save):
    image, expected = palette()
    path = save(image, transparency=bytes([255, 0, 128]))
    opaque = np.array([255, 0, 128])[np.asarray(image)][..., None] / 255
    assert np.abs(seen(path) - (expected * opaque + 255 * (1 - opaque))).max() <= 1


def test_a_palette_beside_a_transparency(save):
    image, expected = palette()
    both = image.convert("PA")
    both.putalpha(Image.fromarray(CLEAR))
    assert np.abs(seen(save(both, "tif")) - over_white(expected)).max() <= 1


@pytest.mark.parametrize(("pixels", "transparent"), [(COLOUR, (100, 44, 155)), (GREY, 100)])
def test_one_colour_of_a_png_may_be_transparent(save, pixels, transparent):
    at = np.unravel_index(25, (8, 8))  # the one place that has it
    assert np.array_equal(pixels[at], transparent)
    expected = np.repeat(GREY[..., None], 3, -1) if pixels.ndim == 2 else COLOUR.copy()
    expected[at] = 255
    assert np.array_equal(seen(save(Image.fromarray(pixels), transparency=transparent)), expected)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "pbm"])
def test_black_and_white(save, ending):
    path = save(Image.fromarray(GREY).point(lambda value: 255 * (value > 99), "1"), ending)
    if ending == "pbm":
        path = path.rename(path.with_suffix(".pgm"))
    assert np.array_equal(seen(path, 1), 255 * (GREY > 99))


@pytest.mark.parametrize(("ending", "tolerance"), [("tif", 0), ("jpg", 12)])
def test_four_inks(save, ending, tolerance):
    path = save(Image.fromarray(COLOUR).resize((64, 64)).convert("CMYK"), ending, quality=100)
    expected = np.asarray(Image.fromarray(COLOUR).resize((64, 64))).astype(int)
    assert np.abs(seen(path) - expected).max() <= tolerance


def test_lab_becomes_colour_and_grey(save):
    path = save(Image.fromarray(COLOUR).convert("LAB"), "tif")
    assert np.abs(seen(path) - COLOUR).mean() < 10
    assert np.array_equal(seen(path, 1), np.asarray(decode(path, 3).convert("L")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_images_stand_upright(save, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(COLOUR[:4], np.ones((8, 8, 1), np.uint8)))  # not a square
    lossless = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
    path = save(image, ending, exif=exif, **lossless)
    turned = image.copy()
    turned.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(turned)).astype(int)
    assert (expected.shape[0] > expected.shape[1]) == (orientation > 4)
    assert np.abs(seen(path) - expected).max() <= (12 if ending == "jpg" else 0)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_seen(save, ending):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    lossless = {"webp": {"lossless": True}}.get(ending, {})
    path = save(frames[0], ending, save_all=True, append_images=frames[1:], **lossless)
    with Image.open(path) as opened:
        assert opened.n_frames == 3
    assert np.array_equal(seen(path), np.broadcast_to([255, 0, 0], (8, 8, 3)))


def test_a_transparent_first_frame(save):
    image, expected = palette(2)
    path = save(image, "gif", save_all=True, append_images=[palette()[0].rotate(90)])
    assert np.array_equal(seen(path), expected)


def test_files_that_cannot_be_seen_are_named(tmp_path, monkeypatch):
    path = tmp_path / "image.png"
    with pytest.raises(UserError, match=r"image\.png cannot be read \(No such file or directory\)$"):
        decode(path, 3)
    content = io.BytesIO()
    Image.fromarray(COLOUR).save(content, "png")
    for damaged in (b"", b"text", content.getvalue()[:60]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"image\.png cannot be decoded \(.*\)\. Repair or remove"):
            decode(path, 3)
    path.write_bytes(content.getvalue())

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", no_memory)
    with pytest.raises(MemoryError):  # no fault of the file
        decode(path, 3)
