"""Pages of a TIFF file and frames of a DICOM file are read from a file that stays open, not from the whole file for each."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from PIL.TiffImagePlugin import AppendingTiffWriter
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless

from evenhand.data import dicom_frames, images
from evenhand.data.dicom import View, decode_dicom
from evenhand.data.images import decode_image, probe_image, read_image
from evenhand.errors import ImageError
from tests.data.test_dicom import write

N = 12
FRAMES = np.random.default_rng(0).integers(0, 256, (N, 360, 256), dtype=np.uint8)
counters = hasattr(psutil.Process(), "io_counters")


def tiff(path: Path, compression: str | None) -> Path:
    pages = [Image.fromarray(frame) for frame in FRAMES]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression=compression)
    return path


def dicom(path: Path, syntax: str = RLELossless) -> Path:
    if syntax not in (RLELossless, JPEGBaseline8Bit):
        write(path, FRAMES, syntax, 8)
        return path
    dataset = write(path, FRAMES, stored=8)
    if syntax == RLELossless:
        dataset.compress(RLELossless, FRAMES)
    else:
        buffers = [BytesIO() for _ in FRAMES]
        for frame, buffer in zip(FRAMES, buffers, strict=True):
            Image.fromarray(frame).save(buffer, "JPEG")
        dataset.PixelData = encapsulate([buffer.getvalue() for buffer in buffers], has_bot=False)
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


def bytes_read(work: Callable[[], Any]) -> int:
    before = psutil.Process().io_counters().read_chars
    work()
    return int(psutil.Process().io_counters().read_chars - before)


@pytest.mark.skipif(not counters, reason="the system does not count what a process reads")
@pytest.mark.parametrize("make", [lambda path: tiff(path, "tiff_lzw"), lambda path: tiff(path, None), dicom])
def test_the_file_is_read_once_for_all_its_pages(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path / "a.tif")
    read_image(f"{make(tmp_path / 'b.tif')}#frame=1")  # imports

    def every() -> None:
        for k in range(N):
            probe_image(f"{path}#frame={k}")
            assert np.array_equal(read_image(f"{path}#frame={k}"), FRAMES[k])

    size = path.stat().st_size
    assert bytes_read(every) < 2.5 * size  # each time anew: 12 times
    assert bytes_read(lambda: read_image(f"{path}#frame=5")) < size / 2


SYNTAXES = [RLELossless, JPEGBaseline8Bit, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_frames_are_those_of_the_whole_file(tmp_path: Path, syntax: str) -> None:
    path = dicom(tmp_path / "a.dcm", syntax)
    data = path.read_bytes()
    for k in (*range(N), 3, 0):
        assert np.array_equal(read_image(f"{path}#frame={k}"), decode_dicom(data, View(k)))
    if syntax != DeflatedExplicitVRLittleEndian:
        assert dicom_frames.open_frames.cache_info().currsize == 1
        assert dicom_frames.open_frames(str(path), (path.stat().st_size, path.stat().st_mtime_ns))._whole is None


@pytest.mark.parametrize("syntax", [RLELossless, ImplicitVRLittleEndian])
def test_a_cut_file_loses_the_frames_that_are_gone(tmp_path: Path, syntax: str) -> None:
    path = dicom(tmp_path / "a.dcm", syntax)
    path.write_bytes(path.read_bytes()[: -FRAMES[0].size * 2])
    for k in (N - 1, N - 1):
        with pytest.raises(ImageError):
            read_image(f"{path}#frame={k}")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError):
        read_image(f"{path}#frame=0")


def test_pages_of_several_kinds_in_any_order(tmp_path: Path) -> None:
    """Each as it is when the file is opened for it alone: orientation, palette, 16 bits, and a page that is refused."""
    path, buffer = tmp_path / "a.tif", BytesIO()
    turned, palette = Image.fromarray(FRAMES[0]), Image.fromarray(FRAMES[1]).convert("P")
    deep, colour = Image.fromarray(FRAMES[2].astype(np.uint16) * 257), Image.fromarray(np.stack([FRAMES[3]] * 3, 2))
    with AppendingTiffWriter(buffer) as out:
        for image, orientation in ((deep, 1), (turned, 6), (palette, 1), (colour, 3), (deep, 1)):
            image.save(out, "TIFF", tiffinfo={0x0112: orientation})
            out.newFrame()
    data = buffer.getvalue()
    path.write_bytes(data)
    assert read_image(f"{path}#frame=1").shape == FRAMES[0].T.shape
    for k in (0, 1, 2, 3, 4, 1, 0, 3, 2, 1):
        alone = decode_image(data, k)
        kept = read_image(f"{path}#frame={k}")
        assert kept.dtype == alone.dtype
        assert np.array_equal(kept, alone)
    with pytest.raises(ImageError, match="frame 5 is out of range, the TIFF file has 5 pages"):
        read_image(f"{path}#frame=5")
    assert np.array_equal(read_image(f"{path}#frame=4"), decode_image(data, 4))


def test_a_file_that_is_written_over_is_read_anew(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", "tiff_lzw")
    assert np.array_equal(read_image(f"{path}#frame=1"), FRAMES[1])
    pages = [Image.fromarray(frame[:50]) for frame in FRAMES[::-1]]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert np.array_equal(read_image(f"{path}#frame=1"), FRAMES[-2][:50])
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ImageError):
        read_image(f"{path}#frame=1")
    assert images._kept_file.cache_info().currsize == 0
