"""Image edits: small stored functions from image to image, their bounds, their files, and how visible they are.

`build_edit` makes a new edit; `save_edit` and `load_edit` keep it in a file; `EditedImages` shows images through it.
"""

from evenhand.edits.artifact import (
    StoredEdit,
    check_encoder,
    check_grid,
    edit_fingerprint,
    encoder_names,
    load_edit,
    save_edit,
)
from evenhand.edits.base import Bounds, Edit, check_range
from evenhand.edits.build import build_edit
from evenhand.edits.composition import Composition
from evenhand.edits.images import EditedImages
from evenhand.edits.planes import BorderEdit, DCTEdit, LowResEdit, PixelEdit
from evenhand.edits.projection import project
from evenhand.edits.quality import Visibility, psnr, ssim, visibility
from evenhand.edits.residual import ResidualEdit
from evenhand.edits.spectral import SpectralEdit
from evenhand.edits.tone import ToneEdit

__all__ = [
    "BorderEdit",
    "Bounds",
    "Composition",
    "DCTEdit",
    "Edit",
    "EditedImages",
    "LowResEdit",
    "PixelEdit",
    "ResidualEdit",
    "SpectralEdit",
    "StoredEdit",
    "ToneEdit",
    "Visibility",
    "build_edit",
    "check_encoder",
    "check_grid",
    "check_range",
    "edit_fingerprint",
    "encoder_names",
    "load_edit",
    "project",
    "psnr",
    "save_edit",
    "ssim",
    "visibility",
]
