"""DICOM against pydicom's own windowing, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_windowing
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from evenhand.data.images import Header, probe_image, read_image
from evenhand.errors import ImageError

RAMP = np.linspace(0, 4095, 12 * 10).astype(np.uint16).reshape(12, 10)


def write(path: Path, pixels: np.ndarray, syntax: Any = ExplicitVRLittleEndian, stored: int = 12, **tags: Any) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = Dataset()
    data.file_meta = meta
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    data.BitsAllocated = pixels.dtype.itemsize * 8
    data.BitsStored = stored
    data.HighBit = stored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data["PixelData"].VR = "OW" if pixels.dtype.itemsize == 2 else "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return data


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_twelve_bits_without_a_window_use_their_whole_range(tmp_path: Path, syntax: Any) -> None:
    write(tmp_path / "a.dcm", RAMP, syntax)
    assert probe_image(tmp_path / "a.dcm") == Header(16, 1)
    assert np.array_equal(read_image(tmp_path / "a.dcm"), np.rint(RAMP / 4095 * 65535))


def test_monochrome1_is_turned_round(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_image(tmp_path / "a.dcm"), np.rint((1 - RAMP / 4095) * 65535))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_after_rescale_agrees_with_pydicom(tmp_path: Path, function: str) -> None:
    data = write(
        tmp_path / "a.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[1500, 40], WindowWidth=[3000, 400],
        VOILUTFunction=function,
    )
    reference = apply_windowing(RAMP * 2.0 - 1000, data)
    low, high = -1000.0, 4095 * 2 - 1000.0  # the output range that pydicom maps to
    expected = np.clip((reference - low) / (high - low), 0, 1)
    assert np.abs(read_image(tmp_path / "a.dcm") / 65535 - expected).max() < 2e-5


def test_signed_values(tmp_path: Path) -> None:
    pixels = (RAMP.astype(np.int16) - 2048).astype(np.int16)
    write(tmp_path / "a.dcm", pixels, WindowCenter=0, WindowWidth=2, VOILUTFunction="LINEAR_EXACT")
    assert np.array_equal(read_image(tmp_path / "a.dcm"), np.rint(np.clip(pixels / 2 + 0.5, 0, 1) * 65535))


def test_eight_bits_and_colour(tmp_path: Path) -> None:
    grey = (RAMP // 16).astype(np.uint8)
    write(tmp_path / "a.dcm", grey, stored=8)
    assert read_image(tmp_path / "a.dcm").dtype == np.uint8
    assert np.array_equal(read_image(tmp_path / "a.dcm"), grey)
    colour = np.dstack([grey, grey[::-1], grey])
    write(tmp_path / "b.dcm", colour, stored=8)
    assert np.array_equal(read_image(tmp_path / "b.dcm"), colour)
    assert probe_image(tmp_path / "b.dcm") == Header(8, 3)


def test_voi_table(tmp_path: Path) -> None:
    table = Dataset()
    table.add_new(0x00283002, "US", [4096, 0, 16])
    table.add_new(0x00283006, "US", (np.arange(4096) ** 2 // 257).clip(0, 65535).tolist())
    write(tmp_path / "a.dcm", RAMP, VOILUTSequence=[table])
    expected = (RAMP.astype(np.int64) ** 2 // 257).clip(0, 65535)
    assert np.abs(read_image(tmp_path / "a.dcm").astype(int) - expected).max() <= 1


def test_compressed_syntax_is_named(tmp_path: Path) -> None:
    data = write(tmp_path / "a.dcm", RAMP)
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    from pydicom.encaps import encapsulate

    data.PixelData = encapsulate([b"\xff\x4f" + bytes(20)])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(ImageError, match=r"JPEG 2000.*1\.2\.840\.10008\.1\.2\.4\.90.*compressed"):
        read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("tags", "words"), [({"NumberOfFrames": 3}, "3 frames"), ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE")]
)
def test_frames_and_palettes_are_refused(tmp_path: Path, tags: dict[str, Any], words: str) -> None:
    write(tmp_path / "a.dcm", RAMP, **tags)
    with pytest.raises(ImageError, match=words):
        probe_image(tmp_path / "a.dcm")


@pytest.mark.filterwarnings("ignore")
def test_cut_files(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP)
    data = (tmp_path / "a.dcm").read_bytes()
    for keep in (140, 200, len(data) - 100):
        (tmp_path / "a.dcm").write_bytes(data[:keep])
        with pytest.raises(ImageError):
            read_image(tmp_path / "a.dcm")
