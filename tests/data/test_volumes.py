"""Slices and projections of volumes in every format, against the array that was written."""

from __future__ import annotations

import tracemalloc
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import scipy.io

from evenhand.data import volumes
from evenhand.data.images import Header, probe_image, read_image
from evenhand.errors import ImageError

RNG = np.random.default_rng(0)
VOLUME = RNG.integers(-1000, 2000, (5, 6, 7)).astype(np.int16)
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])


def npz(path: Path, array: np.ndarray) -> str:
    np.savez(path, scan=array, other=array[0])
    return f"{path}.npz#array=scan&"


def npz_packed(path: Path, array: np.ndarray) -> str:
    np.savez_compressed(path, scan=np.asfortranarray(array), other=array[0])
    return f"{path}.npz#array=scan&"


def npy(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return f"{path}.npy#"


def matlab5(path: Path, array: np.ndarray) -> str:
    scipy.io.savemat(f"{path}.mat", {"images": array, "age": 50, "names": np.array(["a", "b"], object)}, do_compression=True)
    return f"{path}.mat#"


def matlab73(path: Path, array: np.ndarray) -> str:
    """As MATLAB writes it: HDF5 behind 512 bytes of text, axes turned round."""
    with h5py.File(f"{path}.mat", "w", userblock_size=512) as file:
        file.create_dataset("images", data=array.transpose(range(array.ndim)[::-1])).attrs["MATLAB_class"] = np.bytes_(array.dtype.name)
        file.create_dataset("#refs#/a", data=np.zeros((2, 2)))
    with open(f"{path}.mat", "r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b"\0"))
    return f"{path}.mat#array=images&"


def hdf5(path: Path, array: np.ndarray) -> str:
    with h5py.File(f"{path}.h5", "w") as file:
        file.create_dataset("scans/t1", data=array, compression="gzip")
        file["label"] = np.zeros(3)
    return f"{path}.h5#array=scans/t1&"


def nifti(path: Path, array: np.ndarray) -> str:
    nibabel.Nifti1Image(array, AFFINE).to_filename(f"{path}.nii")
    return f"{path}.nii#"


def nifti_packed(path: Path, array: np.ndarray) -> str:
    nibabel.Nifti1Image(array, AFFINE).to_filename(f"{path}.nii.gz")
    return f"{path}.nii.gz#"


def analyze(path: Path, array: np.ndarray) -> str:
    """As OASIS-1 lies on disk: four axes, the last of length 1."""
    nibabel.AnalyzeImage(array[..., None], None).to_filename(f"{path}.img")
    return f"{path}.img#"


def matlab5_plain(path: Path, array: np.ndarray) -> str:
    scipy.io.savemat(f"{path}.mat", {"images": array}, do_compression=False)
    return f"{path}.mat#"


WRITERS = [matlab5_plain, npz, npz_packed, npy, matlab5, matlab73, hdf5, nifti, nifti_packed, analyze]
Writer = Callable[[Path, np.ndarray], str]


def on_scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 65535).astype(np.uint16)


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_slices_and_projections(tmp_path: Path, write: Writer) -> None:
    start = write(tmp_path / "a", VOLUME)
    for axis in range(3):
        for at in (0, VOLUME.shape[axis] - 1):
            expected = on_scale(VOLUME.take(at, axis), -160, 240)
            assert np.array_equal(read_image(f"{start}axis={axis}&slice={at}&window=40,400"), expected)
        middle = on_scale(VOLUME.take(VOLUME.shape[axis] // 2, axis), -1000, 2000)
        assert np.array_equal(read_image(f"{start}axis={axis}&slice=middle&scale=-1000,2000"), middle)
        assert np.array_equal(read_image(f"{start}axis={axis}&project=max&scale=0,2000"), on_scale(VOLUME.max(axis), 0, 2000))
        mean = read_image(f"{start}axis={axis}&project=mean&scale=0,2000")
        assert np.array_equal(mean, on_scale(VOLUME.mean(axis, dtype=float), 0, 2000))
    ends = np.percentile(VOLUME, (0.5, 99.5))
    assert np.array_equal(read_image(f"{start}axis=1&slice=2&scale=percentile"), on_scale(VOLUME[:, 2], *ends))
    assert probe_image(f"{start}axis=1&slice=2&scale=percentile") == Header(16, 1)


@pytest.mark.parametrize("write", [npz, npz_packed, npy, matlab5, matlab5_plain, matlab73, hdf5])
def test_rows_are_images_volumes_or_colours(tmp_path: Path, write: Writer) -> None:
    eight = RNG.integers(0, 256, (3, 4, 5, 6), dtype=np.uint8)
    start = write(tmp_path / "a", eight)
    assert np.array_equal(read_image(f"{start}row=1&axis=0&slice=2"), eight[1, 2])
    assert np.array_equal(read_image(f"{start}row=2&axis=2&project=max"), eight[2].max(2))
    assert np.array_equal(read_image(f"{start}row=0&axis=2&project=mean"), on_scale(eight[0].mean(2, dtype=float), 0, 255))
    assert probe_image(f"{start}row=1&axis=0&slice=2") == Header(8, 1)
    assert probe_image(f"{start}row=1&axis=0&project=mean") == Header(16, 1)
    colours = write(tmp_path / "b", eight[..., :3])
    assert np.array_equal(read_image(f"{colours}row=2"), eight[2, ..., :3])
    assert probe_image(f"{colours}row=2") == Header(8, 3)
    stack = write(tmp_path / "c", eight[0])
    assert np.array_equal(read_image(f"{stack}row=3"), eight[0, 3])
    assert np.array_equal(read_image(f"{stack}row=3&scale=0,100"), on_scale(eight[0, 3], 0, 100))


def test_logical_matlab_arrays_and_floats(tmp_path: Path) -> None:
    start = matlab73(tmp_path / "a", (VOLUME > 0).astype(np.uint8))
    with h5py.File(tmp_path / "a.mat", "a") as file:
        file["images"].attrs["MATLAB_class"] = np.bytes_("logical")
    assert np.array_equal(read_image(f"{start}axis=0&slice=1"), (VOLUME[1] > 0) * 255)
    unit = RNG.random((4, 5, 6))
    assert np.array_equal(read_image(f"{npy(tmp_path / 'b', unit)}axis=0&slice=1"), np.rint(unit[1] * 65535))
    with pytest.raises(ImageError, match="must lie in"):
        read_image(f"{npy(tmp_path / 'c', unit + 1)}axis=0&slice=1")


def test_nan_is_black_and_counts_in_no_projection(tmp_path: Path) -> None:
    values = VOLUME.astype(np.float32)
    values[0, 0, 0] = np.nan
    values[:, 1, 1] = np.nan
    start = nifti_packed(tmp_path / "a", values)
    top, mean = (read_image(f"{start}axis=0&project={how}&scale=-1000,2000") for how in ("max", "mean"))
    assert top[1, 1] == mean[1, 1] == 0
    assert top[0, 0] == on_scale(VOLUME[1:, 0, 0].max(), -1000, 2000)
    assert mean[0, 0] == on_scale(VOLUME[1:, 0, 0].mean(dtype=float), -1000, 2000)
    low, high = np.nanpercentile(values, (0.5, 99.5))
    expected = np.nan_to_num(np.clip((values[0].astype(float) - low) / (high - low), 0, 1), nan=0.0)
    assert np.abs(read_image(f"{start}axis=0&slice=0&scale=percentile") - expected * 65535).max() <= 1


@pytest.mark.parametrize("write", [nifti, nifti_packed])
def test_ras_stands_upright(tmp_path: Path, write: Writer) -> None:
    """Written with x to the left: in canonical axes the first axis is turned round."""
    canonical = VOLUME[::-1]
    start = write(tmp_path / "a", VOLUME)
    axial = read_image(f"{start}axis=2&slice=4&orient=ras&scale=-1000,2000")
    assert np.array_equal(axial, on_scale(canonical[:, :, 4].T[::-1], -1000, 2000))  # rows from the front down, columns from the left
    sagittal = read_image(f"{start}axis=0&slice=1&orient=ras&scale=-1000,2000")
    assert np.array_equal(sagittal, on_scale(canonical[1].T[::-1], -1000, 2000))


def test_ras_agrees_with_nibabel_for_every_orientation(tmp_path: Path) -> None:
    for code in ("LPS", "SPL", "PIR", "ARS", "ILA"):
        transform = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
        )
        image = nibabel.Nifti1Image(VOLUME, np.eye(4)).as_reoriented(transform)
        image.to_filename(tmp_path / f"{code}.nii")
        assert "".join(nibabel.aff2axcodes(image.affine)) == code
        for axis in range(3):
            for at in (0, 3):
                read = read_image(f"{tmp_path}/{code}.nii#axis={axis}&slice={at}&orient=ras&scale=-1000,2000")
                assert np.array_equal(read, np.rot90(on_scale(VOLUME.take(at, axis), -1000, 2000)))
        top = read_image(f"{tmp_path}/{code}.nii#axis=1&project=max&orient=ras&scale=-1000,2000")
        assert np.array_equal(top, np.rot90(on_scale(VOLUME.max(1), -1000, 2000)))


def test_nifti_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME, AFFINE)
    image.header.set_slope_inter(0.5, 10)
    for name in ("a.nii", "a.nii.gz"):
        nibabel.Nifti1Image(image.dataobj, AFFINE, image.header).to_filename(tmp_path / name)
        read = read_image(f"{tmp_path}/{name}#axis=0&slice=1&scale=-500,1000")
        wanted = np.asarray(nibabel.load(tmp_path / name).dataobj)[1]
        assert np.abs(read.astype(int) - on_scale(wanted, -500, 1000)).max() <= 1


def test_projections_by_blocks_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = npy(tmp_path / "a", VOLUME)
    monkeypatch.setattr(volumes, "_BLOCK", 2 * 6 * 7)
    for axis in range(3):
        assert np.array_equal(read_image(f"{start}axis={axis}&project=max&scale=-1000,2000"), on_scale(VOLUME.max(axis), -1000, 2000))
        mean = on_scale(VOLUME.mean(axis, dtype=float), -1000, 2000)
        assert np.array_equal(read_image(f"{start}axis={axis}&project=mean&scale=-1000,2000"), mean)


def matlab73_logical(path: Path, array: np.ndarray) -> str:
    start = matlab73(path, (array != 0).astype(np.uint8))
    with h5py.File(f"{path}.mat", "a") as file:
        file["images"].attrs["MATLAB_class"] = np.bytes_("logical")
    return start


@pytest.mark.parametrize("write", [npz, npy, hdf5, nifti, matlab5_plain, matlab73_logical])
def test_a_slice_does_not_load_the_volume(tmp_path: Path, write: Writer) -> None:
    big = np.zeros((64, 128, 128), np.int16)  # 2 MiB
    start = write(tmp_path / "a", big)
    read_image(f"{write(tmp_path / 'b', VOLUME)}axis=0&slice=0&scale=0,1")  # imports, and the last volume is another one
    tracemalloc.start()
    read_image(f"{start}axis=2&slice=5&scale=0,100")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < big.nbytes / 2


@pytest.mark.parametrize("write", [npz_packed, matlab5, nifti_packed])
def test_the_last_volume_is_kept_for_its_next_rows(tmp_path: Path, write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    start = write(tmp_path / "a", VOLUME)
    volumes._open.cache_clear()
    loads = []
    late = volumes.Late.__init__

    def count(self: volumes.Late, shape: tuple[int, ...], dtype: object, load: Callable[[], np.ndarray]) -> None:
        late(self, shape, dtype, lambda: loads.append(1) or load())  # type: ignore[func-returns-value]

    monkeypatch.setattr(volumes.Late, "__init__", count)
    for at in range(5):
        probe_image(f"{start}axis=0&slice={at}&scale=percentile")
        assert len(loads) == (at > 0)
        read_image(f"{start}axis=0&slice={at}&scale=percentile")
    assert len(loads) == 1
    write(tmp_path / "a", VOLUME[:4])
    with pytest.raises(ImageError, match="slice 4 is out of range, axis 0 has 4 slices"):
        read_image(f"{start}axis=0&slice=4&scale=percentile")


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ("axis=0&slice=5&scale=0,1", "slice 5 is out of range, axis 0 has 5 slices"),
        ("axis=3&slice=0", "axis is 3"),
        ("slice=0", "needs 'axis' with either"),
        ("axis=0", "needs 'axis' with either"),
        ("axis=0&slice=0&project=max", "needs 'axis' with either"),
        ("axis=0&project=min", "max or mean"),
        ("axis=0&slice=0&scale=0,1&window=1,1", "not both"),
        ("axis=0&slice=0&scale=5,5", "white must be above black"),
        ("axis=0&slice=0&window=40,0", "white must be above black"),
        ("axis=0&slice=0&window=40", "two numbers"),
        ("axis=0&slice=-1", "whole number"),
        ("axis=0&slice=0", "array has type int16; give window="),
        ("scale=0,1", r"shape \(5, 6, 7\) and is no image; say which slice"),
        ("row=9&scale=0,1", "row 9 is out of range"),
        ("row=0&axis=0&slice=0&scale=0,1", "a volume has three axes"),
        ("axis=0&slice=0&orient=ras", "'orient' is not a key for a file of arrays"),
        ("frame=0", "'frame' is not a key"),
    ],
)
def test_what_is_wrong_in_a_rule_is_said_from_the_header(tmp_path: Path, tail: str, words: str) -> None:
    start = npy(tmp_path / "a", VOLUME)
    for read in (probe_image, read_image):
        with pytest.raises(ImageError, match=words):
            read(start + tail)


@pytest.mark.parametrize("write", [npz, matlab73, hdf5])
def test_an_absent_array_is_said_with_the_nearest(tmp_path: Path, write: Writer) -> None:
    path = write(tmp_path / "a", VOLUME).partition("#")[0]
    with pytest.raises(ImageError, match=r"no array 'scan/t1'; (did you mean|known are)"):
        probe_image(f"{path}#array=scan/t1&axis=0&slice=0")


def test_a_file_of_several_arrays_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"holds the arrays scan, other; say which, as in '#array=scan'"):
        probe_image(npz(tmp_path / "a", VOLUME).partition("#")[0] + "#axis=0&slice=0")
    with pytest.raises(ImageError, match="without a name"):
        probe_image(npy(tmp_path / "a", VOLUME) + "array=x&row=0")


def test_a_volume_without_a_rule_is_said(tmp_path: Path) -> None:
    for write in (nifti_packed, matlab5, analyze):
        with pytest.raises(ImageError, match="say which slice"):
            read_image(write(tmp_path / write.__name__, VOLUME).partition("#")[0])


def test_analyze_tells_no_orientation_and_time_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="orient=ras needs a NIfTI file"):
        probe_image(analyze(tmp_path / "a", VOLUME) + "axis=0&slice=0&orient=ras")
    nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), AFFINE).to_filename(tmp_path / "b.nii.gz")
    with pytest.raises(ImageError, match="three axes"):
        probe_image(f"{tmp_path}/b.nii.gz#axis=0&slice=0&scale=0,1")


@pytest.mark.parametrize("write", WRITERS)
def test_cut_files_are_refused_in_one_line(tmp_path: Path, write: Writer) -> None:
    start = write(tmp_path / "a", VOLUME)
    path = Path(start.partition("#")[0])
    data = path.read_bytes()
    for keep in (len(data) // 3, 40):
        path.write_bytes(data[:keep])
        with pytest.raises(ImageError) as error:
            read_image(f"{start}axis=0&slice=4&scale=0,1")
        assert "\n" not in error.value.summary
    with pytest.raises(ImageError):
        read_image(f"{tmp_path}/none{path.suffix}#axis=0&slice=4&scale=0,1")


def test_objects_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object))
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object))
    for name in ("a.npz", "a.npy"):
        with pytest.raises(ImageError, match=r"objects|Object|object"):
            read_image(f"{tmp_path}/{name}#row=0")


def test_an_absent_library_is_said_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    cases = [("h5py", hdf5(tmp_path / "a", VOLUME)), ("nibabel", nifti(tmp_path / "a", VOLUME))]
    volumes._open.cache_clear()
    for name, start in cases:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImageError, match=rf"needs the package '{name}'.*pip install 'evenhand\[volumes\]'"):
            probe_image(f"{start}axis=0&slice=0&scale=0,1")


def test_an_npz_array_that_its_values_do_not_fill_is_refused(tmp_path: Path) -> None:
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (4, 5, 6)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("oct.npy", header.getvalue() + bytes(100))
        archive.writestr("other.npy", header.getvalue() + bytes(120))
    with pytest.raises(ImageError, match=r"has shape \(4, 5, 6\), but its values do not fill it"):
        read_image(f"{tmp_path}/a.npz#array=oct&axis=0&slice=3")
    assert read_image(f"{tmp_path}/a.npz#array=other&axis=0&slice=3").shape == (5, 6)


def test_a_volume_without_a_place_in_space_is_read_as_stored(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(values, None)
    image.header.set_sform(np.zeros((4, 4)), code=1)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(read_image(f"{tmp_path}/a.nii#axis=0&slice=1"), values[1])
    with pytest.raises(ImageError, match="does not tell how it lies"):
        read_image(f"{tmp_path}/a.nii#axis=0&slice=1&orient=ras")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_a_nifti_header_without_an_orientation_makes_none_up(tmp_path: Path, name: str) -> None:
    """sform_code = qform_code = 0: the library takes x to run to the left, which the file does not say."""
    values = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    kind = nibabel.Nifti1Pair if name == "a.hdr" else nibabel.Nifti1Image
    image = kind(values, AFFINE)
    for form in ("sform", "qform"):
        getattr(image, f"set_{form}")(None, code=0)
    nibabel.save(image, tmp_path / name)
    loaded = nibabel.load(tmp_path / name)
    assert (loaded.header["sform_code"], loaded.header["qform_code"]) == (0, 0)
    assert nibabel.aff2axcodes(loaded.affine) == ("L", "A", "S")
    assert np.array_equal(read_image(f"{tmp_path}/{name}#axis=0&slice=1"), values[1])
    with pytest.raises(ImageError, match="an sform or qform: this file does not tell how it lies"):
        read_image(f"{tmp_path}/{name}#axis=0&slice=1&orient=ras")
