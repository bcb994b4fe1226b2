"""Arrays are found in pickles of every protocol that NumPy writes; anything else is named and never run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evenhand.data.images import Header, probe_image, read_image
from evenhand.data.sources.safe_pickle import PickledArrays, open_pickled, read_pickled_row
from evenhand.errors import ImageError

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (7, 5 + k, 3), dtype=np.uint8) for k in range(4)]


def dumped(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "images.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_list_of_images_is_read_in_every_protocol_since_python_3(tmp_path: Path, protocol: int) -> None:
    arrays = PickledArrays(dumped(tmp_path, IMAGES, protocol))
    assert len(arrays) == 4
    for k, image in enumerate(IMAGES):
        np.testing.assert_array_equal(arrays[k], image)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "stack",
    [
        np.arange(2 * 3 * 4, dtype=">u2").reshape(2, 3, 4),
        np.asfortranarray(RNG.random((3, 4, 5)).astype(np.float32)),
        RNG.integers(0, 2, (2, 3, 4, 1)).astype(bool),
        RNG.integers(0, 99, (4, 6, 5))[::2, ::-1],
    ],
)
def test_a_stack_keeps_type_order_and_values(tmp_path: Path, stack: np.ndarray[Any, Any], protocol: int) -> None:
    arrays = PickledArrays(dumped(tmp_path, stack, protocol))
    assert len(arrays) == len(stack)
    for row in range(len(stack)):
        np.testing.assert_array_equal(arrays[row], stack[row])
        assert arrays[row].dtype == stack.dtype


def test_an_image_that_stands_twice_is_stored_once_and_found_twice(tmp_path: Path) -> None:
    arrays = PickledArrays(dumped(tmp_path, (IMAGES[0], IMAGES[1], IMAGES[0])))
    np.testing.assert_array_equal(arrays[2], IMAGES[0])


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_a_malicious_pickle_is_named_and_not_run(tmp_path: Path, protocol: int) -> None:
    harm = tmp_path / "harm"
    path = dumped(tmp_path, [IMAGES[0], Malicious(f"touch {harm}")], protocol)
    with pytest.raises(ImageError, match=r"system|old protocol|which arrays do not need"):
        PickledArrays(path)
    assert not harm.exists()
    pickle.loads(path.read_bytes())  # the check itself: an unpickler does run it
    assert harm.exists()


def test_the_names_of_what_is_refused_are_said(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"names '(posix|nt|os)\.system', which is refused"):
        PickledArrays(dumped(tmp_path, Malicious("true")))
    with pytest.raises(ImageError, match=r"pathlib\.\S*Path'"):
        PickledArrays(dumped(tmp_path, [tmp_path]))
    with pytest.raises(ImageError, match="protocol=4"):
        PickledArrays(dumped(tmp_path, IMAGES, protocol=2))


def test_a_call_of_an_allowed_name_with_other_arguments_makes_nothing(tmp_path: Path) -> None:
    """Hand-written opcodes: ``numpy.ndarray((10**9,))`` would take a gigabyte."""
    path = tmp_path / "images.pkl"
    path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93J\x00\xca\x9a;\x85R.")
    with pytest.raises(ImageError, match=r"calls 'numpy\.ndarray'"):
        PickledArrays(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": IMAGES[0]}, "EMPTY_DICT"),
        ([IMAGES[0], "text"], "a list with str in it"),
        (b"bytes", "holds bytes"),
        ([np.array([None, 1], dtype=object)], "array of objects"),
        (np.zeros((3, 4)), "shape"),
        ([np.array(["a", "b"])], "only numbers"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        PickledArrays(dumped(tmp_path, content))


def test_a_cut_off_file_and_one_that_is_no_pickle(tmp_path: Path) -> None:
    path = dumped(tmp_path, IMAGES)
    whole = path.read_bytes()
    for length in (1, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"cut off|not a pickle"):
            PickledArrays(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n rest")
    with pytest.raises(ImageError):
        PickledArrays(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="opened"):
        PickledArrays(path)
    with pytest.raises(ImageError, match="missing"):
        read_pickled_row(tmp_path / "none.pkl", 0)


def test_a_changed_shape_does_not_read_beyond_its_values(tmp_path: Path) -> None:
    path = dumped(tmp_path, [np.zeros((2, 3), np.uint8)])
    path.write_bytes(path.read_bytes().replace(b"K\x02K\x03\x86", b"K\xffK\xff\x86"))
    with pytest.raises(ImageError, match="do not fill it"):
        PickledArrays(path)


def test_rows_are_read_one_by_one_and_a_changed_file_is_looked_through_again(tmp_path: Path) -> None:
    path = dumped(tmp_path, IMAGES)
    np.testing.assert_array_equal(read_pickled_row(path, 3), IMAGES[3])
    assert open_pickled(path) is open_pickled(path)
    with pytest.raises(ImageError, match="row 4 is out of range, the pickle has 4 images"):
        read_pickled_row(path, 4)
    dumped(tmp_path, IMAGES[:1])
    assert len(open_pickled(path)) == 1


def test_a_reference_reads_one_image_of_a_pickle(tmp_path: Path) -> None:
    path = dumped(tmp_path, [*IMAGES, IMAGES[0][..., 0]])
    np.testing.assert_array_equal(read_image(f"{path}#row=1"), IMAGES[1])
    np.testing.assert_array_equal(read_image(f"{path}#row=1&colours=bgr"), IMAGES[1][..., ::-1])
    np.testing.assert_array_equal(read_image(f"{path}#row=4&colours=bgr"), IMAGES[0][..., 0])
    assert probe_image(f"{path}#row=1") == Header(8, 3)
    assert probe_image(f"{path}#row=4") == Header(8, 1)
    for reference, words in (("", "must give its row"), ("#row=9", "out of range"), ("#row=0&colours=rgb", "must be bgr"),
                             ("#row=0&array=x", "'array' is not a key for a pickle; its keys are row, colours")):
        with pytest.raises(ImageError, match=words):
            read_image(f"{path}{reference}")
    harm = tmp_path / "harm"
    dumped(tmp_path, [Malicious(f"touch {harm}")])
    with pytest.raises(ImageError, match="is refused"):
        probe_image(f"{path}#row=0")
    assert not harm.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_damaged_files_are_refused_in_words(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(protocol)
    path = dumped(tmp_path, [np.zeros((2, 3), np.uint8), np.ones((2, 2), np.float32)], protocol)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(50):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 2)] = rng.integers(0, 256, 2)
        path.write_bytes(damaged.tobytes())
        try:
            arrays = PickledArrays(path)
            assert all(arrays[row].size >= 0 for row in range(min(len(arrays), 3)))
        except ImageError:
            refused += 1
    assert refused > 15
