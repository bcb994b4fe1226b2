"""Decoders of compressed DICOM: one that the DICOM library lacks, and the order in which they are loaded and asked.

The library asks GDCM for 8-bit JPEG Extended only; GDCM decodes 12 bits as well, so a decoder for it is added here. GDCM is Apache-2.0;
the library's other way to 12-bit JPEG is a GPL package, which is used where a user has installed it and never asked for.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

if sys.platform == "linux":
    # GDCM brings a zlib of its own under the same names. Where it is loaded before the system's zlib, that one calls into GDCM's, and
    # the process aborts in the next compressed archive.
    with suppress(OSError):
        ctypes.CDLL("libz.so.1")

EXTENDED = "1.2.840.10008.1.2.4.51"
_BASELINE = "1.2.840.10008.1.2.4.50"
_PACKAGES = ("gdcm", "openjpeg", "jpeg_ls")
DECODER_DEPENDENCIES = {EXTENDED: ("gdcm>=3.0.10",)}
"""Asked for by the DICOM library."""
_LABEL = "gdcm, 12 bits"
_lock = threading.Lock()


def all_installed() -> bool:
    """Whether every decoder of the extra ``dicom`` is installed."""
    return all(find_spec(package) for package in _PACKAGES)


def is_available(uid: str) -> bool:
    """Whether the added decoder can be used for a transfer syntax; asked by the DICOM library."""
    return uid == EXTENDED and find_spec("gdcm") is not None


def find_decoder(syntax: Any) -> Any:
    """The library's decoder for a transfer syntax.

    Raises:
        NotImplementedError: it knows none.
    """
    from pydicom.pixels.decoders.base import get_decoder

    decoder = get_decoder(syntax)
    if syntax == EXTENDED:
        with _lock, suppress(ValueError):  # ValueError: it is there already
            decoder.add_plugin(_LABEL, (__name__, "decode_frame"))
    return decoder


def decode(dataset: Any, frame: int | None) -> npt.NDArray[Any]:
    """Decoded values of one frame, or with None of all; colours as RGB.

    8-bit JPEG is decoded by Pillow, which is always there: decoders differ by a grey level, and what else is installed should not show
    in the pixels.
    """
    from pydicom.pixels.utils import pixel_array

    return _decoded(dataset.file_meta.TransferSyntaxUID, lambda plugin: pixel_array(dataset, index=frame, decoding_plugin=plugin))


def decode_open(file: BinaryIO, options: dict[str, Any], frame: int) -> npt.NDArray[Any]:
    """As `decode`, of a file that stands where its pixels begin: only the frame that is asked for is read.

    Args:
        file: stands there again afterwards.
        options: of the header, as the DICOM library asks for them.
        frame: from 0.
    """
    syntax = options["transfer_syntax_uid"]
    decoder, start = find_decoder(syntax), file.tell()

    def frame_by(plugin: str) -> Any:
        file.seek(start)
        return decoder.as_array(file, index=frame, validate=True, raw=False, decoding_plugin=plugin, **options)[0]

    return _decoded(syntax, frame_by)


def _decoded(syntax: Any, decode_by: Callable[[str], Any]) -> npt.NDArray[Any]:
    if syntax == _BASELINE:
        with suppress(AttributeError, NotImplementedError, OSError, RuntimeError, ValueError):
            return np.asarray(decode_by("pillow"))
    try:
        return np.asarray(decode_by(""))
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # decoders in Rust raise it beside all classes of exceptions
            raise
        raise RuntimeError(f"the decoder gave up: {error}") from error


def decode_frame(src: bytes, runner: Any) -> bytes:
    """One frame of 12-bit JPEG; called by the DICOM library with its own record of the header."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(src)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str.__str__(runner.transfer_syntax))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits = runner.bits_stored
    image.SetPixelFormat(gdcm.PixelFormat(runner.samples_per_pixel, 16, bits, bits - 1, runner.pixel_representation))
    with _silent():
        values = image.GetBuffer()
    if values is None:
        raise ValueError("GDCM cannot decode the JPEG data")
    runner.set_option("bits_allocated", 16)
    return bytes(values.encode("utf-8", "surrogateescape"))


@contextmanager
def _silent() -> Iterator[None]:
    """GDCM tries 8 bits first and writes a complaint about every frame to standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
