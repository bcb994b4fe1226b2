"""Volumes out of a folder of one DICOM series, and out of one file of several frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from evenhand.data import dicom_series, volumes
from evenhand.data.images import Header, probe_image, read_image
from evenhand.errors import ImageError

HU = np.random.default_rng(0).integers(-1000, 2000, (5, 8, 9)).astype(np.int16)
AXIAL = [1, 0, 0, 0, 1, 0]


def write_slice(path: Path, pixels: np.ndarray, **tags: Any) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    data.SeriesInstanceUID = "1.2.3.4"
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelData = (pixels + 1024).astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    syntax = tags.pop("syntax", None)
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax is not None:
        data.compress(syntax, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Five slices in an order that neither names nor instance numbers tell, and other files beside."""
    folder = tmp_path / "ct"
    folder.mkdir()
    for k, name in enumerate(("d", "b", "e", "a", "c")):
        syntax = RLELossless if k == 2 else None
        place = [0, 0, -50 + 2.5 * k]
        tags = {"ImagePositionPatient": place, "ImageOrientationPatient": AXIAL, "InstanceNumber": 9 - k}
        write_slice(folder / f"{name}.dcm", HU[k], syntax=syntax, **tags)
    (folder / "readme.txt").write_text("not a slice")
    (folder / ".hidden").write_bytes(b"x")
    return folder


def lung(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) + 1350) / 1500, 0, 1) * 65535).astype(np.uint16)


def test_slices_lie_by_their_place_along_the_normal(series: Path) -> None:
    for axis in range(3):
        for at in (0, 3):
            assert np.array_equal(read_image(f"{series}/#axis={axis}&slice={at}&window=-600,1500"), lung(HU.take(at, axis)))
        assert np.array_equal(read_image(f"{series}#axis={axis}&project=max&window=-600,1500"), lung(HU.max(axis)))
    assert np.array_equal(read_image(f"{series}/#axis=0&slice=middle&window=-600,1500"), lung(HU[2]))
    assert probe_image(f"{series}/#axis=0&slice=middle&window=-600,1500") == Header(16, 1)


def test_one_slice_decodes_one_file(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    plain = dicom_series.DicomSeries._slice
    monkeypatch.setattr(dicom_series.DicomSeries, "_slice", lambda self, k: read.append(k) or plain(self, k))
    volumes._open.cache_clear()
    probe_image(f"{series}/#axis=0&slice=3&scale=0,1")
    assert read == []
    read_image(f"{series}/#axis=0&slice=3&scale=0,1")
    assert read == [3]
    for tail in ("axis=1&slice=3&scale=0,1", "axis=2&project=max&scale=0,1", "axis=0&slice=1&scale=percentile"):
        read_image(f"{series}/#{tail}")
    assert len(read) == 6  # the whole volume once


def test_instance_numbers_count_where_positions_are_absent(tmp_path: Path) -> None:
    for k, name in enumerate("cab"):
        write_slice(tmp_path / name, HU[k], InstanceNumber=k + 1)
    assert np.array_equal(read_image(f"{tmp_path}/#axis=0&slice=2&window=-600,1500"), lung(HU[2]))


def test_a_tilted_normal_is_followed(tmp_path: Path) -> None:
    coronal = [1, 0, 0, 0, 0, -1]  # the normal runs to the back
    for k, name in enumerate("cab"):
        write_slice(tmp_path / name, HU[k], ImagePositionPatient=[5, 7.0 + k, 3], ImageOrientationPatient=coronal)
    assert np.array_equal(read_image(f"{tmp_path}/#axis=0&slice=0&window=-600,1500"), lung(HU[0]))


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"SeriesInstanceUID": "1.2.9"}, "holds 2 DICOM series"),
        ({"ImagePositionPatient": [0, 0, -50]}, "two slices of the series lie at one place"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "not parallel"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "of several kinds"),
    ],
)
def test_what_is_no_volume_is_said(series: Path, tags: dict[str, Any], words: str) -> None:
    place = {"ImagePositionPatient": [0, 0, 10], "ImageOrientationPatient": AXIAL, "InstanceNumber": 10}
    write_slice(series / "z.dcm", HU[0], **(place | tags))
    for read in (probe_image, read_image):
        with pytest.raises(ImageError, match=words):
            read(f"{series}/#axis=0&slice=0&scale=0,1")


def test_other_folders_are_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no DICOM images"):
        probe_image(f"{tmp_path}/#axis=0&slice=0&scale=0,1")
    with pytest.raises(ImageError, match="file is missing"):
        probe_image(f"{tmp_path}/none/#axis=0&slice=0&scale=0,1")
    with pytest.raises(ImageError, match="'frame' is not a key for a folder of DICOM files"):
        probe_image(f"{tmp_path}/#frame=0")
    write_slice(tmp_path / "a", HU[0], InstanceNumber=1)
    write_slice(tmp_path / "b", HU[0][:4], InstanceNumber=2)
    with pytest.raises(ImageError, match="have 2 sizes"):
        probe_image(f"{tmp_path}/#axis=0&slice=0&scale=0,1")
    (tmp_path / "b").unlink()
    write_slice(tmp_path / "b", HU[0])
    with pytest.raises(ImageError, match="neither positions nor instance numbers"):
        probe_image(f"{tmp_path}/#axis=0&slice=0&scale=0,1")


@pytest.mark.parametrize("syntax", [None, RLELossless])
def test_frames_of_one_file_are_a_volume_too(tmp_path: Path, syntax: Any) -> None:
    write_slice(tmp_path / "a.dcm", HU, syntax=syntax)
    for axis in range(3):
        assert np.array_equal(read_image(f"{tmp_path}/a.dcm#axis={axis}&slice=2&window=-600,1500"), lung(HU.take(2, axis)))
        assert np.array_equal(read_image(f"{tmp_path}/a.dcm#axis={axis}&project=max&window=-600,1500"), lung(HU.max(axis)))
    write_slice(tmp_path / "b.dcm", HU[0])
    with pytest.raises(ImageError, match="one frame, so it is an image"):
        probe_image(f"{tmp_path}/b.dcm#axis=0&slice=0&scale=0,1")


def test_monochrome1_volumes_are_turned_round(tmp_path: Path) -> None:
    write_slice(tmp_path / "a.dcm", HU, PhotometricInterpretation="MONOCHROME1")
    read = read_image(f"{tmp_path}/a.dcm#axis=0&slice=2&window=-600,1500").astype(int)
    assert np.abs(read - (65535 - lung(HU[2]).astype(int))).max() <= 1
