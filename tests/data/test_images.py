"""Reading files: what is in them comes out, or one line says why not."""

from __future__ import annotations

import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torchvision.transforms.v2 import functional as tv

from evenhand.data.images import Header, fit_grid, probe_image, read_image, resize_image
from evenhand.errors import ImageError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (12, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (12, 9), dtype=np.uint16)


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG written by hand, because Pillow cannot write colour ones."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = pixels.shape[:2]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR])
def test_eight_bits_come_back_as_they_were(tmp_path: Path, suffix: str, pixels: np.ndarray) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    assert np.array_equal(read_image(path), pixels)
    assert probe_image(path) == Header(8, 1 if pixels.ndim == 2 else 3)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_grey_is_not_clipped_as_pillow_does(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP).save(path)
    assert np.array_equal(read_image(path), DEEP)
    assert probe_image(path) == Header(16, 1)
    # the trap: the mean of converted values is far above that of the image
    eight = fit_grid(read_image(path), channels=1, bits=8)
    assert abs(eight.mean() / 255 - DEEP.mean() / 65535) < 0.005


@pytest.mark.parametrize(("colour_type", "n"), [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colour_and_alpha_keep_their_low_byte(tmp_path: Path, colour_type: int, n: int) -> None:
    pixels = RNG.integers(0, 65536, (5, 7, n), dtype=np.uint16)
    if n in (2, 4):
        pixels[..., -1] = 65535
    path = tmp_path / "a.png"
    path.write_bytes(png16(pixels, colour_type))
    expected = pixels[..., 0] if n == 2 else pixels[..., :3]
    assert np.array_equal(read_image(path), expected)
    assert probe_image(path) == Header(16, 1 if n == 2 else 3)


def test_palette_alpha_cmyk_bilevel(tmp_path: Path) -> None:
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "p.png")
    assert np.array_equal(read_image(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))

    alpha = np.dstack([COLOUR, np.full((12, 9), 255, np.uint8)])
    alpha[0, 0, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert (read[0, 0] == 0).all()
    assert np.array_equal(read[1:], COLOUR[1:])

    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "c.tiff")
    assert read_image(tmp_path / "c.tiff")[0, 0].tolist() == [255, 0, 0]

    Image.fromarray(GREY > 127).save(tmp_path / "b.png")
    assert np.array_equal(read_image(tmp_path / "b.png"), np.where(GREY > 127, 255, 0))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.repeat(COLOUR[:4, :2], 8, 0), 8, 1))
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rows run right to left
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (16, 32, 3)


@pytest.mark.parametrize("missing", [2, 40, 0.3, 0.7])
def test_a_cut_jpeg_is_found_even_by_its_last_two_bytes(tmp_path: Path, missing: float) -> None:
    buffer = BytesIO()
    Image.fromarray(np.repeat(np.repeat(COLOUR, 10, 0), 10, 1)).save(buffer, "JPEG")
    data = buffer.getvalue()
    cut = missing if missing >= 1 else int(len(data) * missing)
    (tmp_path / "a.jpg").write_bytes(data[: -int(cut)])
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # another library may have set it
    try:
        with pytest.raises(ImageError, match=r"truncated|not an image|Truncated|broken"):
            read_image(tmp_path / "a.jpg")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def test_a_cut_png_and_tiff_are_found(tmp_path: Path) -> None:
    for suffix in ("png", "tiff"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.repeat(np.repeat(COLOUR, 10, 0), 10, 1)).save(path)
        data = path.read_bytes()
        for cut in (12, len(data) // 2):
            path.write_bytes(data[:-cut])
            with pytest.raises(ImageError):
                read_image(path)


def test_numpy_layouts_and_types(tmp_path: Path) -> None:
    for array, expected in (
        (GREY, GREY), (GREY[..., None], GREY), (COLOUR, COLOUR), (COLOUR.transpose(2, 0, 1), COLOUR), (DEEP, DEEP),
        (GREY > 9, (GREY > 9) * 255), (np.linspace(0, 1, 6).reshape(2, 3), np.rint(np.linspace(0, 65535, 6)).reshape(2, 3)),
    ):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(read_image(tmp_path / "a.npy"), expected)
        assert probe_image(tmp_path / "a.npy").channels == (1 if expected.ndim == 2 else 3)
    np.savez(tmp_path / "a.npz", image=GREY, other=COLOUR)
    assert np.array_equal(read_image(tmp_path / "a.npz"), GREY)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((3, 3), 1.5), "must lie in"),
        (np.full((3, 3), np.nan), "must lie in"),
        (np.zeros((3, 3), np.int32), "must be uint8"),
        (np.zeros((4, 3, 5), np.uint8), "has shape"),
        (np.zeros((0, 3), np.uint8), "is empty"),
    ],
)
def test_numpy_that_is_no_image(tmp_path: Path, array: np.ndarray, words: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImageError, match=words):
        read_image(tmp_path / "a.npy")


def test_pickled_arrays_are_refused_and_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.npy")


def test_what_is_no_image_says_so(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        read_image(tmp_path / "none.png")
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ImageError, match="0 bytes"):
        read_image(tmp_path / "a.png")
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(ImageError, match="not an image"):
        probe_image(tmp_path / "a.png")
    Image.fromarray(GREY).save(tmp_path / "a.tiff", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(ImageError, match="2 pages"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("shape", [(40, 60), (60, 40, 3), (31, 50)])
def test_crop_agrees_with_torchvision(shape: tuple[int, ...]) -> None:
    smooth = Image.fromarray(RNG.integers(0, 256, (5, 5, *shape[2:]), dtype=np.uint8)).resize((shape[1], shape[0]))
    pixels = np.asarray(smooth)
    tensor = torch.from_numpy(fit_grid(pixels, 3, 8).copy())
    expected = tv.center_crop(tv.resize(tensor, [16], antialias=True), [16]).numpy()
    ours = fit_grid(resize_image(pixels, 16, "crop"), 3, 8)
    assert np.abs(ours.astype(int) - expected).mean() < 4  # centres may differ by half a pixel of the source


def test_pad_keeps_the_aspect_ratio_and_stretch_does_not() -> None:
    pixels = np.full((20, 40), 200, np.uint8)
    padded = resize_image(pixels, 10, "pad")
    assert padded.shape == (10, 10)
    assert (padded[:2] == 0).all()
    assert (padded[3:7] == 200).all()
    assert (resize_image(pixels, 10, "stretch") == 200).all()
    assert (resize_image(pixels, 10, "crop") == 200).all()


def test_sixteen_bits_are_resized_as_finely_as_eight() -> None:
    eight = np.asarray(Image.fromarray(GREY).resize((40, 40)))
    deep = eight.astype(np.uint16) * 257
    assert np.abs(resize_image(deep, 10).astype(float) / 257 - resize_image(eight, 10)).max() <= 1.0
    assert resize_image(np.full((30, 20), 65535, np.uint16), 7).min() == 65535


def test_the_grid_maps_white_to_white() -> None:
    white8, white16 = np.full((2, 2), 255, np.uint8), np.full((2, 2, 3), 65535, np.uint16)
    assert (fit_grid(white8, 3, 16) == 65535).all()
    assert (fit_grid(white16, 1, 8) == 255).all()
    assert fit_grid(white8, 3, 16).shape == (3, 2, 2)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(fit_grid(fit_grid(every, 1, 16)[0], 1, 8)[0], every)


def test_damaged_arrays_are_unreadable_images(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, image=GREY)
    data = bytearray(path.read_bytes())
    start = data.index(b"image.npy") + 9 + int.from_bytes(data[28:30], "little")
    data[start : start + 8] = b"\xff" * 8  # no deflate stream begins so: zlib.error
    path.write_bytes(data)
    for read in (probe_image, read_image):
        with pytest.raises(ImageError, match="invalid"):
            read(path)
    np.save(tmp_path / "b.npy", GREY)
    data = bytearray((tmp_path / "b.npy").read_bytes())
    data[data.index(b"}")] = ord("(")  # a header that is no dictionary
    (tmp_path / "b.npy").write_bytes(data)
    with pytest.raises(ImageError):
        probe_image(tmp_path / "b.npy")


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_are_probed_by_their_header_and_have_a_largest_size(tmp_path: Path, suffix: str) -> None:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)})
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        path.write_bytes(header.getvalue())
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("image.npy", header.getvalue())
    assert probe_image(path) == Header(16, 1)
    with pytest.raises(ImageError, match=r"is no image: 1,099,511,627,776 values"):
        read_image(path)
