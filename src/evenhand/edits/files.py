"""Edited copies of image files: the same names and folders, the same kinds of files, other pixels."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import UnidentifiedImageError

from evenhand.data.images import RESIZES, Pixels, Resize, fit_grid, read_image, resize_image
from evenhand.edits.artifact import StoredEdit
from evenhand.edits.base import Edit
from evenhand.edits.dicom_files import DicomImage, Placement
from evenhand.edits.raster import encode_raster, raster_format
from evenhand.errors import ImageError, InputError
from evenhand.files import check_folder, write_atomic, write_text

log = logging.getLogger(__name__)

SCHEMA = "evenhand.edited/1"
SAID = "edited.json"
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".ima")
NATIVE_WARNING = (
    "native=true: each file keeps its own size and the edit's change was resized to it; the encoder's own resizing does not give "
    "the edited grid image back exactly, bounds hold on the grid only, and what the edit hides in these files has not been measured"
)


@dataclass
class Applied:
    """What `apply_edit` did; paths are relative to the folder of images.

    Attributes:
        written: files of which an edited copy was written.
        existing: files left alone because ``out`` has one of that name.
        failed: file -> why there is no copy.
        skipped: number of files that are no images (by their name).
        notes: sentences that the user should see.
    """

    written: list[str] = field(default_factory=list)
    existing: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """JSON."""
        return {
            "written": self.written, "existing": self.existing, "failed": self.failed, "skipped": self.skipped, "notes": self.notes,
        }


def apply_edit(
    stored: StoredEdit,
    images_path: str | Path,
    out: str | Path,
    *,
    native: bool = False,
    resize: Resize = "crop",
    quality: int = 95,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Applied:
    """Write edited copies of image files.

    Each file is read and brought to the edit's grid as `evenhand prepare` does, edited, and written as the same kind of file, in its
    own number of bits, at the same place under ``out``: reading the copy again gives the edited image, to rounding (JPEG: to its
    loss). Transparency lies on black and the EXIF orientation is applied, as when read. Grey files stay grey where the edit
    treats channels alike, and become colour where it does not; colour files become grey where it is a filter of grey images, which is
    said. DICOM: see `evenhand.edits.dicom_files`.

    A file that fails is reported and the others go on. Files are written atomically; a killed run goes on where it stopped when
    it is called again, since what ``out`` already holds is left alone. ``out/edited.json`` says which edit and settings its files
    were made with; another edit is refused there.

    Args:
        stored: the edit.
        images_path: an image file, or a folder of PNG, JPEG, TIFF, BMP and DICOM files (also in folders below it).
        out: folder of the copies; not the folder of the originals, nor inside it.
        native: keep each file's own size: the change is computed on the grid, enlarged bilinearly and added.
        resize: crop, pad or stretch, as in `evenhand prepare`.
        quality: of JPEG files, 1 to 100.
        overwrite: replace files that exist in ``out``.
        progress: called with files done and files in all.

    Raises:
        InputError: nothing to edit, an ``out`` that cannot be used, or a grid that files cannot be brought to.
        DiskFullError: no space is left; whole files stay.
    """
    if resize not in RESIZES or not 1 <= quality <= 100:
        raise InputError(f"resize is '{resize}' and quality {quality}, but must be one of {', '.join(RESIZES)}, and 1 to 100")
    _, height, width = stored.edit.grid
    if height != width:
        raise InputError(f"the edit's grid is {height} x {width}, but files are brought to a square only; train an edit on a square grid")
    root, files, skipped = _find(Path(images_path))
    out = Path(out)
    _check_out(root, out, Path(images_path).is_dir())
    _claim(out, stored, {"native": native, "resize": resize, "quality": quality}, overwrite)
    report = Applied(skipped=skipped)
    coarse, greyed = 0.0, 0
    for done, file in enumerate(files, start=1):
        name = file.relative_to(root).as_posix()
        target = out / name
        if target.exists() and not overwrite:
            report.existing.append(name)
        else:
            try:
                data, error, lost = _edited_file(stored, file, native, resize, quality)
            except (ImageError, MemoryError) as problem:
                report.failed[name] = str(problem) or "image is too large for the memory of this machine"
            else:
                write_atomic(target, data)
                report.written.append(name)
                coarse, greyed = max(coarse, error), greyed + lost
        progress(done, len(files))
    report.notes += _notes(report, native, coarse, greyed, stored.edit)
    return report


def _notes(report: Applied, native: bool, coarse: float, greyed: int, edit: Edit) -> list[str]:
    notes = []
    if greyed:
        notes.append(
            f"{greyed} colour files became grey, because the edit's grid is grey, as were the images it was trained on; "
            "native=true adds its change to the colours"
        )
    if native and report.written:
        log.warning(NATIVE_WARNING)
        notes.append(NATIVE_WARNING)
    if coarse > 0.5 / 255 + 1e-4:
        notes.append(
            "some DICOM files hold too few stored values under their window to show every grey: the edit was rounded by up to "
            f"{coarse * 255:.2g} grey levels there"
        )
    if not edit.bounds.clamp and report.written:
        notes.append("the edit is not clamped to [0, 1], but files are: values outside became black or white")
    if report.existing:
        notes.append(f"files that existed were left as they are ({len(report.existing)}); replace them with overwrite=true")
    return notes


def _find(path: Path) -> tuple[Path, list[Path], int]:
    if path.is_file():
        return path.parent, [path], 0
    if not path.is_dir():
        raise InputError(f"images '{path}' is neither a file nor a folder; give an image file, or a folder of them")
    found, skipped = [], 0
    for file in sorted(path.rglob("*")):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(path).parts):
            continue
        if file.suffix.lower() in SUFFIXES or _is_dicom(file):
            found.append(file)
        else:
            skipped += 1
    if not found:
        raise InputError(f"folder '{path}' holds no PNG, JPEG, TIFF, BMP or DICOM file ({skipped} other files)")
    return path, found, skipped


def _is_dicom(file: Path) -> bool:
    """DICOM files often have no or another ending."""
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _check_out(root: Path, out: Path, folder: bool) -> None:
    here, there = root.resolve(), out.resolve()
    if here == there or (folder and here in there.parents):
        raise InputError(f"out={out} is the folder of the originals or inside it; choose another one, so that originals stay as they are")
    check_folder(out)


def _claim(out: Path, stored: StoredEdit, settings: dict[str, Any], overwrite: bool) -> None:
    """Say which edit the folder's files are made with; refuse a folder of another edit's files."""
    said = {"schema": SCHEMA, "edit": stored.fingerprint, **settings}
    file = out / SAID
    if file.is_file() and not overwrite:
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            before = None
        if before != said:
            raise InputError(f"{out} holds copies made with another edit or other settings; choose another folder, or set overwrite=true")
        return
    write_text(file, json.dumps(said, indent=1) + "\n")


def _edited_file(stored: StoredEdit, file: Path, native: bool, resize: Resize, quality: int) -> tuple[bytes, float, bool]:
    """The bytes of one copy, how far a DICOM file's stored steps are from the edited greys, and whether colours were lost."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ImageError(f"file cannot be opened ({error.strerror or error})") from error
    if data[128:132] == b"DICM":
        image = DicomImage(data)
        edited, placement = _edited(stored.edit, image.pixels, native, resize)
        return *image.copy(edited, placement, stored.fingerprint), _greyed(image.pixels, edited)
    pixels = read_image(file)
    if data[:6] == b"\x93NUMPY" or data[:4] == b"PK\x03\x04":
        raise ImageError("NumPy files are read but not written; convert the file to PNG first")
    try:
        kind, profile = raster_format(data)
    except UnidentifiedImageError:
        raise ImageError("files of this kind are read but not written (DICOM without a preamble, volumes); convert them first") from None
    edited, _ = _edited(stored.edit, pixels, native, resize)
    top = np.iinfo(pixels.dtype).max
    coded = encode_raster(np.rint(edited * top).astype(pixels.dtype), kind, quality, profile)
    return coded, 0.0, _greyed(pixels, edited)


def _greyed(pixels: Pixels, edited: npt.NDArray[np.float64]) -> bool:
    return pixels.ndim > edited.ndim and bool((pixels != pixels[..., :1]).any())


def _edited(edit: Edit, pixels: Pixels, native: bool, resize: Resize) -> tuple[npt.NDArray[np.float64], Placement]:
    """Edited greys or colours in [0, 1], (h, w) or (h, w, 3), and where they lie in the original."""
    size = edit.grid[1]
    top = float(np.iinfo(pixels.dtype).max)
    channels = (3 if pixels.ndim == 3 else 1) if edit.any_channels else edit.grid[0]
    grid = fit_grid(resize_image(pixels, size, resize), channels, 16 if pixels.dtype == np.uint16 else 8)
    original = torch.from_numpy(grid.astype(np.float32)).div_(top)[None]
    with torch.no_grad():
        result = edit(original.to(edit.device)).cpu()
    if not bool(torch.isfinite(result).all()):
        raise ImageError("the edit makes pixels that are not finite of this image; train it again with a smaller step")
    height, width = pixels.shape[:2]
    if not native:
        return _as_picture(result[0].double().clamp(0, 1).numpy()), _placement(height, width, size, resize)
    change = _enlarged(result - original, height, width, resize)[0].double().numpy()
    whole = (pixels if pixels.ndim == 3 else pixels[..., None]).astype(np.float64).transpose(2, 0, 1) / top
    return _as_picture((whole + change).clip(0, 1)), Placement()


def _as_picture(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return values[0] if len(values) == 1 else values.transpose(1, 2, 0)


def _enlarged(change: torch.Tensor, height: int, width: int, resize: Resize) -> torch.Tensor:
    """A change on the grid as a change on the file's own pixels, 0 where the grid does not reach."""
    size = change.shape[-1]

    def resized(part: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
        if tuple(part.shape[2:]) == to:
            return part
        return torch.nn.functional.interpolate(part, to, mode="bilinear", align_corners=False, antialias=True)

    if resize == "stretch" or height == width:
        return resized(change, (height, width))
    if resize == "crop":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        whole = change.new_zeros(1, change.shape[1], height, width)
        whole[..., top : top + side, left : left + side] = resized(change, (side, side))
        return whole
    scale = size / max(height, width)
    new_h, new_w = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (size - new_h) // 2, (size - new_w) // 2
    return resized(change[..., top : top + new_h, left : left + new_w], (height, width))


def _placement(height: int, width: int, size: int, resize: Resize) -> Placement:
    """Where the grid lies in the file, as `resize_image` puts it there."""
    if resize == "stretch" or height == width:
        return Placement((height / size, width / size))
    if resize == "crop":
        side = min(height, width)
        return Placement((side / size, side / size), ((height - side) // 2, (width - side) // 2))
    scale = size / max(height, width)
    new = max(1, round(height * scale)), max(1, round(width * scale))
    step = height / new[0], width / new[1]
    return Placement(step, (-((size - new[0]) // 2) * step[0], -((size - new[1]) // 2) * step[1]))
