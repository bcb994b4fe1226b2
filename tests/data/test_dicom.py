"""DICOM against pydicom's own pipeline on written files and on the files that pydicom brings, and refusals."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, apply_windowing, convert_color_space, pixel_array
from pydicom.uid import (
    JPEG2000,
    MPEG4HP41,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from evenhand.data import dicom
from evenhand.data.dicom import decode_dicom, dicom_grey
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
    colour = pixels.shape[-1] == 3
    data.Rows, data.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    if pixels.ndim - colour == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
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


@pytest.mark.parametrize("tags", [
    {}, {"WindowCenter": 100, "WindowWidth": 900}, {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 7},
    {"RescaleSlope": -2, "RescaleIntercept": 5, "WindowCenter": -300, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"},
])
@pytest.mark.parametrize("signed", [False, True])
def test_many_pixels_are_shown_as_few(tmp_path: Path, tags: dict[str, Any], signed: bool) -> None:
    """More pixels than values: each value is computed once, and looked up."""
    pixels = np.random.default_rng(0).integers(-512 * signed, 1024 - 512 * signed, (40, 60)).astype(np.int16 if signed else np.uint16)
    pixels[0, 0] = 4000  # outside its bits, as old overlays in the high bits leave it
    data = write(tmp_path / "a.dcm", pixels, stored=10, **tags)
    assert np.array_equal(read_image(tmp_path / "a.dcm"), np.rint(dicom_grey(data, pixel_array(data)) * 65535))


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


def reference(path: str | Path, frame: int | None = None, index: int = 0) -> np.ndarray:
    """pydicom's own steps: pixels, palette, modality, values of interest; on [0, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dcmread(path, force=True)
        stored = pixel_array(data, index=frame)
        if data.PhotometricInterpretation == "PALETTE COLOR":
            return apply_color_lut(stored, data) / (2.0 ** data.RedPaletteColorLookupTableDescriptor[2] - 1)
        if data.SamplesPerPixel == 3:
            return stored / (2.0**data.BitsStored - 1)
        shown = apply_voi_lut(apply_modality_lut(stored, data), data, index, prefer_lut=False).astype(float)
    bits = data.BitsStored
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if data.PixelRepresentation else (0, 2**bits - 1)
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    if data.get("VOILUTSequence") and "WindowWidth" not in data:
        low, high, slope, intercept = 0, 2 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1, 1, 0
    grey = np.clip((shown - low * slope - intercept) / ((high - low) * slope), 0, 1)
    return 1 - grey if data.PhotometricInterpretation == "MONOCHROME1" else grey


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels / float(np.iinfo(pixels.dtype).max)


def levels(path: str | Path, tail: str = "", **how: Any) -> float:
    """Largest difference to pydicom's pipeline, in steps of the type that comes out."""
    pixels = read_image(f"{path}{tail}")
    header = probe_image(f"{path}{tail}")
    assert header == Header(pixels.dtype.itemsize * 8, 3 if pixels.ndim == 3 else 1)
    return float(np.abs(unit(pixels) - reference(path, **how)).max() * np.iinfo(pixels.dtype).max)


BUNDLED = [
    "693_J2KI.dcm", "CT_small.dcm", "ExplVR_BigEnd.dcm", "GDCMJ2K_TextGBR.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG-lossy.dcm",
    "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm", "JPEGLSNearLossless_16.dcm", "JPGExtended.dcm", "MR_small.dcm", "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm", "MR_small_expb.dcm", "MR_small_implicit.dcm", "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm", "MR_small_padded.dcm", "SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_dcmtk_+eb+cy+n1.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jls_lossy_sample.dcm",
    "SC_rgb_jpeg_app14_dcmd.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm",
    "SC_rgb_rle_32bit.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd_jpeg.dcm",
    "SC_ybr_full_422_uncompressed.dcm", "examples_jpeg2k.dcm", "examples_overlay.dcm", "examples_palette.dcm", "examples_rgb_color.dcm",
    "image_dfl.dcm", "rtdose_rle_1frame.dcm",
]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_files_that_pydicom_brings_agree_with_its_pipeline(name: str) -> None:
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip("this release of pydicom does not bring the file")
    assert levels(path) <= 1


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("kind", ["8", "12", "16", "signed", "colour"])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: Any, kind: str) -> None:
    rng = np.random.default_rng(0)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 255, (6, 5), dtype=np.uint8)).resize((72, 64)))
    tags: dict[str, Any] = {"WindowCenter": 900, "WindowWidth": 2000} if kind in ("12", "signed") else {}
    pixels, stored = {
        "8": (smooth, 8), "12": (smooth.astype(np.uint16) * 16 + 3, 12), "16": (smooth.astype(np.uint16) * 257, 16),
        "signed": (smooth.astype(np.int16) * 16 - 2000, 16), "colour": (np.dstack([smooth, smooth[::-1], smooth[:, ::-1]]), 8),
    }[kind]
    data = write(tmp_path / "a.dcm", pixels, stored=stored, **tags)
    plain = read_image(tmp_path / "a.dcm")
    if syntax == JPEGLosslessSV1:
        compress_by_gdcm(tmp_path / "a.dcm", tmp_path / "b.dcm")
    else:
        data.compress(syntax, generate_instance_uid=False)
        data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_image(tmp_path / "b.dcm"), plain)
    assert levels(tmp_path / "b.dcm") <= 1


def compress_by_gdcm(source: Path, target: Path) -> None:
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(target))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(("syntax", "options", "most"), [(JPEGLSNearLossless, {"jls_error": 3}, 3), (JPEG2000, {"j2k_psnr": [60]}, 25)])
def test_lossy_compression_changes_as_much_as_was_asked(tmp_path: Path, syntax: Any, options: dict[str, Any], most: int) -> None:
    ramp = np.linspace(0, 4095, 64 * 72).astype(np.uint16).reshape(64, 72)
    data = write(tmp_path / "a.dcm", ramp)
    data.compress(syntax, generate_instance_uid=False, **options)
    data.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    read = np.rint(read_image(tmp_path / "b.dcm") / 65535 * 4095)
    assert 0 < np.abs(read - ramp).max() <= most
    assert levels(tmp_path / "b.dcm") <= 1


@pytest.mark.parametrize("colour", [False, True])
def test_baseline_jpeg_is_decoded_by_pillow(tmp_path: Path, colour: bool) -> None:
    smooth = np.asarray(Image.fromarray(np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize((32, 24)))
    pixels = smooth if colour else smooth[..., 0]
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90, subsampling="4:2:2")
    tags = {"PhotometricInterpretation": "YBR_FULL_422"} if colour else {}
    data = write(tmp_path / "a.dcm", pixels, stored=8, **tags)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].is_undefined_length = True
    data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    expected = np.asarray(Image.open(BytesIO(buffer.getvalue())))
    assert np.abs(read_image(tmp_path / "a.dcm").astype(int) - expected).max() <= (1 if colour else 0)


def test_ybr_and_palettes_become_rgb(tmp_path: Path) -> None:
    grey = (RAMP // 16).astype(np.uint8)
    colour = np.dstack([grey, grey[::-1], grey[:, ::-1]])
    write(tmp_path / "a.dcm", convert_color_space(colour, "RGB", "YBR_FULL"), stored=8, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read_image(tmp_path / "a.dcm").astype(int) - colour).max() <= 2
    tables: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for k, name in enumerate(("Red", "Green", "Blue")):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tables[f"{name}PaletteColorLookupTableData"] = (np.arange(256, dtype=np.uint16) * (257 - 20 * k)).tobytes()
    write(tmp_path / "b.dcm", grey, stored=8, **tables)
    assert np.array_equal(read_image(tmp_path / "b.dcm"), np.dstack([grey.astype(int) * (257 - 20 * k) for k in range(3)]))
    assert probe_image(tmp_path / "b.dcm") == Header(16, 3)
    assert levels(tmp_path / "b.dcm") <= 1


def test_the_window_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    write(path, RAMP, RescaleSlope=1, RescaleIntercept=-1000, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    assert levels(path) <= 1
    assert levels(path, "#window_index=0") <= 1
    assert levels(path, "#window_index=1", index=1) <= 1
    asked = read_image(f"{path}#window=500,1000")
    assert np.array_equal(asked, np.rint(np.clip((RAMP - 1000.0) / 1000, 0, 1) * 65535))
    for tail, words in (
        ("#window_index=2", "window 2 is asked for, but the DICOM header has 2 windows"),
        ("#window_index=0&window=1,2", "not both"),
        ("#scale=0,1", "'scale' is for volumes"),
        ("#window=1,0", "width is 0"),
        ("#row=1", "'row' is not a key for a DICOM file"),
    ):
        with pytest.raises(ImageError, match=words):
            read_image(f"{path}{tail}")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black(tmp_path: Path, photometric: str) -> None:
    write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation=photometric, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
    read = read_image(tmp_path / "a.dcm")
    assert (read[RAMP >= 4000] == 0).all()
    plain = 1 - RAMP / 4095 if photometric == "MONOCHROME1" else RAMP / 4095
    assert np.array_equal(read[RAMP < 4000], np.rint(plain[RAMP < 4000] * 65535))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_one_frame_of_many_is_named(tmp_path: Path, syntax: Any) -> None:
    frames = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1]])
    data = write(tmp_path / "a.dcm", frames)
    if syntax == RLELossless:
        data.compress(syntax, generate_instance_uid=False)
        data.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for read in (probe_image, read_image):
        with pytest.raises(ImageError, match=r"has 3 frames, but one row of the table is one image; name one, as in '#frame=0'"):
            read(tmp_path / "a.dcm")
        with pytest.raises(ImageError, match="frame 3 is out of range, the DICOM file has 3 frames"):
            read(f"{tmp_path}/a.dcm#frame=3")
    for k in range(3):
        assert np.array_equal(read_image(f"{tmp_path}/a.dcm#frame={k}"), np.rint(frames[k] / 4095 * 65535))
        assert levels(tmp_path / "a.dcm", f"#frame={k}", frame=k) <= 1


def test_frames_have_windows_of_their_own(tmp_path: Path) -> None:
    """As enhanced CT and MR files write them: rescale for all frames, a window a frame."""

    def item(**tags: Any) -> Dataset:
        made = Dataset()
        for name, value in tags.items():
            setattr(made, name, value)
        return made

    rescale = item(PixelValueTransformationSequence=[item(RescaleSlope=2, RescaleIntercept=-1000, RescaleType="HU")])
    windows = [item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=1000)]) for centre in (0, 2000)]
    write(
        tmp_path / "a.dcm", np.stack([RAMP, RAMP]), SharedFunctionalGroupsSequence=[rescale], PerFrameFunctionalGroupsSequence=windows,
        VOILUTFunction="LINEAR_EXACT",
    )
    for k, centre in enumerate((0, 2000)):
        expected = np.clip((RAMP * 2.0 - 1000 - centre) / 1000 + 0.5, 0, 1)
        assert np.array_equal(read_image(f"{tmp_path}/a.dcm#frame={k}"), np.rint(expected * 65535))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("lack", ["preamble", "preamble and meta", "syntax"])
def test_files_that_lack_their_beginning(tmp_path: Path, syntax: Any, lack: str) -> None:
    data = write(tmp_path / "a.dcm", RAMP, syntax, SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1")
    plain = read_image(tmp_path / "a.dcm")
    whole = (tmp_path / "a.dcm").read_bytes()
    if lack == "syntax":
        if syntax != ExplicitVRLittleEndian:
            return  # nothing says then how the file is to be read
        del data.file_meta.TransferSyntaxUID
        buffer = BytesIO()
        data.save_as(buffer, implicit_vr=False, little_endian=True)
        whole = buffer.getvalue()
    elif lack == "preamble":
        whole = whole[132:]
    else:
        start = whole.index(b"\x00\x08\x00\x16" if syntax == ExplicitVRBigEndian else b"\x08\x00\x16\x00")
        whole = whole[start:]
    (tmp_path / "b.dcm").write_bytes(whole)
    assert probe_image(tmp_path / "b.dcm") == Header(16, 1)
    assert np.array_equal(read_image(tmp_path / "b.dcm"), plain)


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "waveform_ecg.dcm"])
def test_what_holds_no_image_is_said(name: str) -> None:
    with pytest.raises(ImageError, match=r"DICOM file holds no image but .* Storage"):
        probe_image(str(get_testdata_file(name, download=False)))


def compressed(path: Path, syntax: Any) -> None:
    data = write(path, RAMP)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\xff\x4f" + bytes(20)])
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def test_a_syntax_without_a_decoder_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent:
        is_available = False

    compressed(tmp_path / "a.dcm", JPEG2000Lossless)
    monkeypatch.setattr(dicom, "find_decoder", lambda syntax: Absent())
    monkeypatch.setattr(dicom, "all_installed", lambda: False)
    for read in (probe_image, read_image):
        with pytest.raises(ImageError, match=r"JPEG 2000.*1\.2\.840\.10008\.1\.2\.4\.90.*pip install 'evenhand\[dicom\]'"):
            read(tmp_path / "a.dcm")


def test_a_syntax_that_nothing_decodes_is_named(tmp_path: Path) -> None:
    compressed(tmp_path / "a.dcm", MPEG4HP41)
    with pytest.raises(ImageError, match=r"MPEG-4.*compressed in a way that is not read; convert the file first"):
        probe_image(tmp_path / "a.dcm")


def test_damaged_compressed_pixels_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compressed(tmp_path / "a.dcm", JPEG2000Lossless)
    with pytest.raises(ImageError, match="cannot be decoded") as error:
        read_image(tmp_path / "a.dcm")
    assert "\n" not in error.value.summary
    assert not caplog.records  # the library would write a traceback for every decoder
    monkeypatch.setattr(dicom, "all_installed", lambda: False)
    with pytest.raises(ImageError, match=r"pip install 'evenhand\[dicom\]'"):
        decode_dicom((tmp_path / "a.dcm").read_bytes())


def test_an_unknown_photometric_interpretation_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP, PhotometricInterpretation="HSV")
    with pytest.raises(ImageError, match="HSV is not one of MONOCHROME1"):
        probe_image(tmp_path / "a.dcm")


def test_without_any_extra_codec_the_zlib_of_the_system_comes_first() -> None:
    """GDCM loaded before the system's zlib breaks it: the process would abort in the next compressed archive."""
    import subprocess
    import sys

    code = "import evenhand.data.dicom_codecs, gdcm, io, numpy as np; np.savez_compressed(io.BytesIO(), a=np.arange(999), b=np.arange(9))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_cut_files(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", RAMP)
    data = (tmp_path / "a.dcm").read_bytes()
    for keep in (140, 200, len(data) - 100):
        (tmp_path / "a.dcm").write_bytes(data[:keep])
        with pytest.raises(ImageError):
            read_image(tmp_path / "a.dcm")


def test_damage_that_the_decoders_meet_with_classes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.dcm", RAMP, DeflatedExplicitVRLittleEndian)
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-20])  # zlib.error
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4096, 0, 16], bytes(100), "US"
    write(tmp_path / "b.dcm", RAMP, ModalityLUTSequence=[table])  # struct.error
    for name in "ab":
        with pytest.raises(ImageError) as error:
            read_image(tmp_path / f"{name}.dcm")
        assert "\n" not in error.value.summary

    class PanicException(BaseException):
        """As decoders in Rust raise it."""

    def panic(*_: Any, **__: Any) -> None:
        raise PanicException("index out of bounds")

    write(tmp_path / "c.dcm", RAMP)
    monkeypatch.setattr("pydicom.pixels.utils.pixel_array", panic)
    with pytest.raises(ImageError, match="the decoder gave up: index out of bounds"):
        read_image(tmp_path / "c.dcm")
