"""Arrays of MATLAB files against scipy's reader, on files that MATLAB itself has written and on scipy's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from evenhand.data.matlab5 import matlab_arrays
from evenhand.errors import ImageError

SCIPY = find_spec("scipy")
WRITTEN = Path(str(SCIPY.origin if SCIPY else "")).parent / "io" / "matlab" / "tests" / "data"
KINDS = ("bool8", "double", "matrix", "minus", "multi", "3dmatrix", "bool")
FILES = sorted(path for kind in KINDS for path in WRITTEN.glob(f"test{kind}_[5-9]*.mat"))
"""MATLAB 6.1 on Solaris (values high byte first) to 8 on Windows, packed from 7 on."""


@pytest.mark.skipif(not FILES, reason="scipy is installed without its tests")
def test_files_that_matlab_has_written() -> None:
    orders, packed = set(), set()
    for path in FILES:
        expected = {name: values for name, values in scipy.io.loadmat(path, mat_dtype=True).items() if not name.startswith("__")}
        arrays = matlab_arrays(str(path))
        assert set(arrays) == {name for name, values in expected.items() if not np.iscomplexobj(values)}
        for name, array in arrays.items():
            values = array.read(str(path))
            assert array.dtype == (bool if "bool" in path.name else expected[name].dtype.newbyteorder("="))
            assert np.array_equal(values, expected[name])
            assert np.array_equal(np.concatenate(list(array.blocks(str(path), 2))), values.ravel(order="F"))
            orders.add(array.stored.byteorder)
            packed.add(array.packed)
    assert packed == {False, True}
    assert ">" in orders


@pytest.mark.parametrize("packed", [False, True])
def test_every_type_and_what_is_passed_over(tmp_path: Path, packed: bool) -> None:
    rng = np.random.default_rng(0)
    path = str(tmp_path / "a.mat")
    types = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?")
    arrays = {f"v_{k}": rng.integers(0, 2, (2, 3, 5 + k)).astype(dtype) for k, dtype in enumerate(types)}
    others = {"text": "abc", "cell": np.array(["a", 1], object), "complex": np.ones((2, 2)) * 1j, "struct": {"x": np.ones((3, 3))}}
    scipy.io.savemat(path, {**others, **arrays, "empty": np.zeros((0, 3))}, do_compression=packed)
    found = matlab_arrays(path)
    assert set(found) == {*arrays, "empty"}
    for name, expected in arrays.items():
        assert found[name].dtype == expected.dtype
        assert found[name].in_place != packed or expected.dtype == bool
        assert np.array_equal(found[name].read(path), expected)


def test_damage_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"images": np.random.default_rng(0).integers(0, 256, (50, 50, 50), dtype=np.uint8)}, do_compression=True)
    array, data = matlab_arrays(str(path))["images"], path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="cut off in the array 'images'"):
        array.read(str(path))
    path.write_bytes(data[:-4] + bytes(4))  # the checksum
    with pytest.raises(Exception, match="incorrect data check"):
        array.read(str(path))
    path.write_bytes(data[:150])
    with pytest.raises(ImageError, match="damaged"):
        matlab_arrays(str(path))
    path.write_bytes(b"MATLAB 5.0".ljust(200))
    with pytest.raises(ImageError, match="no readable header"):
        matlab_arrays(str(path))
