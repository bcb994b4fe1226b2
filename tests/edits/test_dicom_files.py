"""Edited copies of DICOM files: the picture, the stored units, the header, and what it says of the derivation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from evenhand.data.images import fit_grid, read_image, resize_image
from evenhand.edits import Edit, StoredEdit, edit_fingerprint
from evenhand.edits.files import apply_edit

SIZE = 24


def kept(edit: Edit) -> StoredEdit:
    return StoredEdit(edit.requires_grad_(False), {}, edit_fingerprint(edit))


def ramp(height: int = 30, width: int = 40, bits: int = 12, signed: bool = False) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = np.add.outer(np.linspace(0, 0.6, height), np.linspace(0, 0.4, width)) + 0.03 * rng.standard_normal((height, width))
    stored = np.rint(values.clip(0, 1) * (2**bits - 1)).astype(np.int64) - (2 ** (bits - 1) if signed else 0)
    return stored.astype(("int" if signed else "uint") + ("8" if bits <= 8 else "16"))


def write(path: Path, pixels: np.ndarray, bits: int = 12, syntax: Any = ExplicitVRLittleEndian, **tags: Any) -> Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.1"
    data.PatientName, data.PatientID, data.BurnedInAnnotation = "Doe^Jane", "secret-17", "NO"
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    block = data.private_block(0x0011, "HOUSE", create=True)
    block.add_new(0x01, "LO", "private words")
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    data.BitsAllocated, data.BitsStored, data.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    raw = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data.add_new("PixelData", "OW" if pixels.dtype.itemsize == 2 else "OB", raw)
    for name, value in tags.items():
        setattr(data, name, value)
    if syntax in (RLELossless, JPEG2000Lossless):
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.compress(syntax, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return data


def edited_greys(edit: Edit, file: Path, resize: Any = "crop") -> np.ndarray:
    pixels = read_image(file)
    top = np.iinfo(pixels.dtype).max
    cached = fit_grid(resize_image(pixels, SIZE, resize), 3 if pixels.ndim == 3 else 1, 16 if top > 255 else 8)
    with torch.no_grad():
        edited = edit(torch.from_numpy(cached.astype(np.float32) / top)[None])[0].clamp(0, 1).double().numpy()
    return edited[0] if pixels.ndim == 2 else edited.transpose(1, 2, 0)


def shown(file: Path) -> np.ndarray:
    pixels = read_image(file)
    return pixels / np.iinfo(pixels.dtype).max


def voi_table() -> Dataset:
    table = Dataset()
    table.add_new(0x00283002, "US", [4096, 0, 16])
    table.add_new(0x00283006, "US", (np.arange(4096) ** 2 // 257).clip(0, 65535).tolist())
    return table


def frame_window() -> Dataset:
    """As an enhanced file says it."""
    window, group = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 2000, 3000
    group.FrameVOILUTSequence = [window]
    return group


KINDS: dict[str, tuple[dict[str, Any], float]] = {  # how the file is written, and half its largest step in grey
    "twelve bits": ({}, 0.5 / 4095),
    "eight bits": ({"pixels": ramp(bits=8), "bits": 8}, 0.5 / 255),
    "sixteen bits": ({"pixels": ramp(bits=16), "bits": 16}, 0.5 / 65535),
    "ten bits": ({"pixels": ramp(bits=10), "bits": 10}, 0.5 / 1023),
    "monochrome1": ({"PhotometricInterpretation": "MONOCHROME1"}, 0.5 / 4095),
    "rescale and window": (
        {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": [1500, 40], "WindowWidth": [3000, 400]}, 0.5 * 2 / 2999
    ),
    "signed, exact window": (
        {"pixels": ramp(signed=True), "WindowCenter": -100, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"}, 0.5 / 2000
    ),
    "sigmoid": ({"WindowCenter": 2000, "WindowWidth": 600, "VOILUTFunction": "SIGMOID"}, 0.5 / 600),
    "narrow window, monochrome1": ({"WindowCenter": 2000, "WindowWidth": 101, "PhotometricInterpretation": "MONOCHROME1"}, 0.5 / 100),
    "window of the frame": ({"SharedFunctionalGroupsSequence": [frame_window()]}, 0.5 / 2999),
    "table": ({"VOILUTSequence": [voi_table()]}, 0.5 * 32 / 65535),
    "padding": ({"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 0}, 0.5 / 4095 + 1 / 4095),
    "implicit": ({"syntax": ImplicitVRLittleEndian}, 0.5 / 4095),
    "big endian": ({"syntax": ExplicitVRBigEndian}, 0.5 / 4095),
    "deflated": ({"syntax": DeflatedExplicitVRLittleEndian}, 0.5 / 4095),
    "run length": ({"syntax": RLELossless}, 0.5 / 4095),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_shows_the_edited_image_to_half_a_stored_step(name, make, moved, tmp_path) -> None:
    options, half = KINDS[name]
    options = {"pixels": ramp(), **options}
    write(tmp_path / "in" / "a.dcm", **options)
    edit = moved(make(["tone", "pixel"], (1, SIZE, SIZE)), size=4)
    report = apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    assert report.failed == {}
    copy = dcmread(tmp_path / "out" / "a.dcm")
    assert copy.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (copy.Rows, copy.Columns) == (SIZE, SIZE)
    original = dcmread(tmp_path / "in" / "a.dcm")
    for tag in ("BitsStored", "BitsAllocated", "PixelRepresentation", "PhotometricInterpretation", "WindowCenter", "RescaleSlope"):
        assert copy.get(tag) == original.get(tag)
    if name == "run length":  # the reader takes uncompressed files only
        original.decompress(generate_instance_uid=False)
        original.save_as(tmp_path / "in" / "a.dcm", enforce_file_format=True)
    levels = 0.5 / np.iinfo(read_image(tmp_path / "in" / "a.dcm").dtype).max
    wanted = edited_greys(edit, tmp_path / "in" / "a.dcm")
    assert float(np.abs(shown(tmp_path / "out" / "a.dcm") - wanted).max()) <= half + levels + 1e-6
    assert float(np.abs(wanted - resize_image(read_image(tmp_path / "in" / "a.dcm"), SIZE) * 2 * levels).max()) > 4 / 255
    assert any("too few stored values" in note for note in report.notes) is ("narrow" in name)


def test_pydicom_shows_the_same_picture(make, moved, tmp_path) -> None:
    """Another viewer, through modality and window, sees the edited image too."""
    write(tmp_path / "in" / "a.dcm", ramp(), RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=1000, WindowWidth=3000)
    edit = moved(make(["tone"], (1, SIZE, SIZE)), size=4)
    apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    copy = dcmread(tmp_path / "out" / "a.dcm")
    seen = apply_voi_lut(apply_modality_lut(copy.pixel_array, copy), copy)
    low, high = -1024.0, 4095 - 1024.0
    assert np.abs((seen - low) / (high - low) - edited_greys(edit, tmp_path / "in" / "a.dcm")).max() < 1e-3


@pytest.mark.parametrize("bits", [8, 16])
def test_colour(bits, make, moved, tmp_path) -> None:
    pixels = np.dstack([ramp(bits=bits), ramp(bits=bits)[::-1], ramp(bits=bits)[:, ::-1]])
    write(tmp_path / "in" / "a.dcm", pixels, bits)
    edit = moved(make(["residual"], (3, SIZE, SIZE)), size=4)
    assert apply_edit(kept(edit), tmp_path / "in", tmp_path / "out").failed == {}
    wanted = edited_greys(edit, tmp_path / "in" / "a.dcm")
    assert np.abs(shown(tmp_path / "out" / "a.dcm") - wanted).max() <= 0.5 / (2**bits - 1) + 1e-6


def test_a_compressed_colour_file_is_read(make, moved, tmp_path) -> None:
    pixels = np.dstack([ramp(bits=8)] * 3)
    write(tmp_path / "in" / "a.dcm", pixels, 8)
    write(tmp_path / "packed" / "a.dcm", pixels, 8, RLELossless)
    edit = kept(moved(make(["tone"], (3, SIZE, SIZE)), size=4))
    for folder in ("in", "packed"):
        apply_edit(edit, tmp_path / folder, tmp_path / f"{folder}-out")
    assert np.array_equal(read_image(tmp_path / "in-out" / "a.dcm"), read_image(tmp_path / "packed-out" / "a.dcm"))


def test_the_header_is_kept_and_says_that_pixels_were_derived(make, moved, tmp_path, caplog) -> None:
    before = write(
        tmp_path / "in" / "a.dcm", ramp(), WindowCenter=2000, WindowWidth=4000, DerivationDescription="Cropped", PixelSpacing=[0.2, 0.2],
        SmallestImagePixelValue=0, LargestImagePixelValue=4095,
    )
    edit = moved(make(["tone"], (1, SIZE, SIZE)), size=4)
    with caplog.at_level(logging.DEBUG):
        apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
        apply_edit(kept(edit), tmp_path / "in", tmp_path / "again")
    assert not any(word in caplog.text for word in ("Doe", "secret", "private words"))
    copy = dcmread(tmp_path / "out" / "a.dcm")
    changed = {
        "ImageType", "DerivationDescription", "SOPInstanceUID", "SourceImageSequence", "Rows", "Columns", "PixelData", "PixelSpacing",
        "SmallestImagePixelValue", "LargestImagePixelValue",
    }
    for element in before:
        if element.keyword not in changed:
            assert copy[element.tag].value == element.value
    assert {element.keyword for element in copy} - {element.keyword for element in before} == {"SourceImageSequence"}
    assert list(copy.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]
    assert copy.DerivationDescription.startswith("Cropped; Pixels changed by evenhand")
    assert edit_fingerprint(edit)[:16] in copy.DerivationDescription
    assert copy.BurnedInAnnotation == "NO"
    assert copy.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.3.4"
    assert copy.SourceImageSequence[0].ReferencedSOPClassUID == before.SOPClassUID
    assert copy.SOPInstanceUID not in ("1.2.3.4", "")
    assert copy.SOPInstanceUID.is_valid
    assert copy.file_meta.MediaStorageSOPInstanceUID == copy.SOPInstanceUID
    assert (copy.SmallestImagePixelValue, copy.LargestImagePixelValue) == (copy.pixel_array.min(), copy.pixel_array.max())
    assert (tmp_path / "out" / "a.dcm").read_bytes() == (tmp_path / "again" / "a.dcm").read_bytes()


def test_millimetres_follow_the_crop(make, tmp_path) -> None:
    write(
        tmp_path / "in" / "a.dcm", ramp(48, 96), PixelSpacing=[0.5, 0.25], ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
        ImagePositionPatient=[10, 20, 30],
    )
    apply_edit(kept(make(["tone"], (1, SIZE, SIZE))), tmp_path / "in", tmp_path / "out")
    copy = dcmread(tmp_path / "out" / "a.dcm")
    assert [float(value) for value in copy.PixelSpacing] == [1.0, 0.5]
    # the crop starts at column 24; the first new pixel covers two old ones, so its centre lies half an old pixel further in
    assert [float(value) for value in copy.ImagePositionPatient] == [10 + 24.5 * 0.25, 20 + 0.5 * 0.5, 30]


def test_what_an_edit_leaves_alone_keeps_its_stored_value(make, tmp_path) -> None:
    """Outside the window all values look black or white; they are still there where the pixel was not changed."""
    pixels = ramp(SIZE, SIZE)
    write(tmp_path / "in" / "a.dcm", pixels, WindowCenter=2000, WindowWidth=500)
    edit = make(["border"], (1, SIZE, SIZE), border=0.1)
    with torch.no_grad():
        edit.values += 0.3
    apply_edit(kept(edit), tmp_path / "in", tmp_path / "out")
    copy = dcmread(tmp_path / "out" / "a.dcm").pixel_array
    assert np.array_equal(copy[2:-2, 2:-2], pixels[2:-2, 2:-2])
    assert not np.array_equal(copy, pixels)
    assert np.abs(shown(tmp_path / "out" / "a.dcm") - edited_greys(edit, tmp_path / "in" / "a.dcm")).max() < 0.51 / 499 + 1e-5


def test_native_keeps_size_and_geometry(make, moved, tmp_path) -> None:
    pixels = ramp(48, 60)
    write(tmp_path / "in" / "a.dcm", pixels, PixelSpacing=[0.2, 0.2])
    edit = moved(make(["lowres"], (1, SIZE, SIZE), resolution=4), size=6)
    apply_edit(kept(edit), tmp_path / "in", tmp_path / "out", native=True)
    copy = dcmread(tmp_path / "out" / "a.dcm")
    assert copy.pixel_array.shape == (48, 60)
    assert copy.PixelSpacing == [0.2, 0.2]
    assert np.array_equal(copy.pixel_array[:, :6], pixels[:, :6])  # outside the centre square
    again = resize_image(read_image(tmp_path / "out" / "a.dcm"), SIZE) / 65535
    assert np.abs(again - edited_greys(edit, tmp_path / "in" / "a.dcm")).mean() < 2 / 255


def test_files_that_cannot_be_copied_say_why_without_the_header(make, moved, tmp_path, caplog) -> None:
    folder = tmp_path / "in"
    write(folder / "good.dcm", ramp())
    write(folder / "frames.dcm", ramp(), NumberOfFrames=3)
    write(folder / "cut.dcm", ramp())
    (folder / "cut.dcm").write_bytes((folder / "cut.dcm").read_bytes()[:-100])
    broken = write(folder / "broken.dcm", ramp())
    broken.file_meta.TransferSyntaxUID = JPEG2000Lossless
    from pydicom.encaps import encapsulate

    broken.PixelData = encapsulate([b"\xff\x4f" + bytes(20)])
    broken["PixelData"].is_undefined_length = True
    broken.save_as(folder / "broken.dcm", enforce_file_format=True)
    (folder / "no-ending").write_bytes((folder / "good.dcm").read_bytes())
    (folder / "plain.dcm").write_bytes((folder / "good.dcm").read_bytes()[132:])
    tables = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in ("Red", "Green", "Blue")}
    tables |= {f"{name}PaletteColorLookupTableData": bytes(range(256)) for name in ("Red", "Green", "Blue")}
    write(folder / "palette.dcm", ramp(bits=8), bits=8, PhotometricInterpretation="PALETTE COLOR", **tables)
    report = apply_edit(kept(moved(make(["tone"], (1, SIZE, SIZE)))), folder, tmp_path / "out")
    assert report.written == ["good.dcm", "no-ending"]
    assert sorted(report.failed) == ["broken.dcm", "cut.dcm", "frames.dcm", "palette.dcm", "plain.dcm"]
    assert "JPEG 2000" in report.failed["broken.dcm"]
    assert "frames" in report.failed["frames.dcm"]
    assert "in a palette" in report.failed["palette.dcm"]
    assert "DICOM without a preamble" in report.failed["plain.dcm"]
    assert not any(word in str(report.failed) + caplog.text for word in ("Doe", "secret", "private words"))
    colour = kept(moved(make(["residual"], (3, SIZE, SIZE))))
    assert "makes colour images" in apply_edit(colour, folder / "good.dcm", tmp_path / "other").failed["good.dcm"]


def test_a_file_without_a_name_or_a_type_is_completed(make, tmp_path) -> None:
    write(tmp_path / "in" / "a.dcm", ramp())
    data = dcmread(tmp_path / "in" / "a.dcm")
    for tag in ("SOPInstanceUID", "SOPClassUID", "ImageType"):
        del data[tag]
    data.save_as(tmp_path / "in" / "a.dcm")
    assert apply_edit(kept(make(["tone"], (1, SIZE, SIZE))), tmp_path / "in", tmp_path / "out").failed == {}
    copy = dcmread(tmp_path / "out" / "a.dcm")
    assert copy.SOPInstanceUID.is_valid
    assert "SourceImageSequence" not in copy
    assert list(copy.ImageType) == ["DERIVED", "PRIMARY"]


def test_words_of_a_big_endian_header_are_turned_round(make, tmp_path) -> None:
    nested = Dataset()
    nested.add_new(0x00091001, "OW", np.array([1, 258], ">u2").tobytes())
    tags = {"RequestAttributesSequence": [nested], "RedPaletteColorLookupTableData": np.array([7, 1000], ">u2").tobytes()}
    write(tmp_path / "in" / "a.dcm", ramp(), syntax=ExplicitVRBigEndian, **tags)
    assert apply_edit(kept(make(["tone"], (1, SIZE, SIZE))), tmp_path / "in", tmp_path / "out").failed == {}
    copy = dcmread(tmp_path / "out" / "a.dcm")
    assert np.frombuffer(copy.RedPaletteColorLookupTableData, "<u2").tolist() == [7, 1000]
    assert np.frombuffer(copy.RequestAttributesSequence[0][0x00091001].value, "<u2").tolist() == [1, 258]
    assert copy.PatientName == "Doe^Jane"
