"""Runs whose images go through a stored edit first: where the edit comes from, whether it suits, and what is recorded of it."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evenhand.config.editing import DNEConfig, EditMethodConfig, GeZOConfig
from evenhand.config.patch_methods import PatchMethodConfig
from evenhand.edits.artifact import FILE, StoredEdit, check_encoder, load_edit, save_edit
from evenhand.edits.base import Edit
from evenhand.edits.composition import Composition
from evenhand.edits.images import EditedImages
from evenhand.edits.quality import visibility
from evenhand.errors import CheckpointError, ConfigError
from evenhand.files import find_file, write_atomic
from evenhand.runs.folder import RunFolder

if TYPE_CHECKING:
    from evenhand.methods.base import Images
    from evenhand.runs.task import Encoder

log = logging.getLogger(__name__)

EDIT_FILE = FILE
EDIT_RUN_SCHEMA = "evenhand.edit_run/1"
"""Of the run.json of `evenhand edit train`: a run folder with an edit and no classifier."""
N_IMAGES = 256
"""Images on which a run measures how visible its edit is."""


def find_edit(path: str | Path) -> Path:
    """The file of an edit: the path itself, or the edit.safetensors in that run folder.

    Raises:
        InputError: neither.
    """
    return find_file(
        path, EDIT_FILE, "edit", folder="a run folder of dne or gezo, or the file",
        file="an edit.safetensors, a run folder with one, or a published noise_layer.pt",
    )


def open_edit(path: str | Path) -> StoredEdit:
    """Load an edit from what was typed after ``edit=``.

    Raises:
        InputError: there is no such file.
        CheckpointError: the file is damaged, or no edit.
    """
    return load_edit(find_edit(path))


def check_method(method: Any, edit: str | None, url: str | None) -> None:
    """Refuse what cannot go together: an edit in front of a method that trains one, white-box editing without weights.

    Raises:
        ConfigError: what to do instead.
    """
    name = getattr(method, "name", "")
    if isinstance(method, PatchMethodConfig):
        raise ConfigError(
            f"method={name} patches a finished classifier and trains none; use evenhand patch make method={name} model=RUN_OR_CHECKPOINT"
        )
    if edit is not None and isinstance(method, EditMethodConfig):
        raise ConfigError(
            f"edit={edit} puts a finished edit on every image, and method={name} trains one: leave edit= out, or train a head on the "
            f"finished edit, as method=linear_probe edit={edit}; several edits in a row are method.family=[…]"
        )
    if url is not None and isinstance(method, DNEConfig):
        raise ConfigError(
            f"method={name} needs the encoder's gradient, which a server at model.url does not give; use method=gezo, which asks for "
            "embeddings only"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if url is not None and isinstance(method, GeZOConfig) and processes > 1:
        raise ConfigError(
            f"method={name} asks the server at model.url and counts its queries in one process, but {processes} were started, which make "
            "no server faster; start it without torchrun (method.concurrency= sends several requests at once)"
        )


def edited_embed(encoder: Encoder, stored: StoredEdit) -> Callable[[Images], npt.NDArray[np.float32]]:
    """Images -> embeddings of the edited images, cached on disk under the edit's hash; edited where the encoder runs."""
    edit = copy.deepcopy(stored.edit).to(encoder.device)

    def embed(images: Images) -> npt.NDArray[np.float32]:
        return encoder.embed(EditedImages(images, edit))

    return embed


def edit_record(stored: StoredEdit, images: Images | None = None) -> dict[str, Any]:
    """What run.json says of an edit; with images also how visible it is on them.

    Args:
        stored: the edit with its facts.
        images: up to `N_IMAGES` of these, evenly spread, are edited and compared with themselves.
    """
    edit = stored.edit
    record = {
        "hash": stored.fingerprint,
        "kind": edit.kind,
        "parts": [part.kind for part in parts_of(edit)],
        "grid": list(edit.grid),
        "n_parameters": edit.n_parameters,
        "bounds": asdict(edit.bounds),
        "facts": {key: value for key, value in stored.facts.items() if key != "history"},
    }
    if images is not None and len(images):
        record["visibility"] = visibility(edit, images, spread(len(images), N_IMAGES)).to_json()
    return record


def parts_of(edit: Edit) -> list[Edit]:
    """The edits that a composition is made of, in order; any other edit alone."""
    return [part for part in edit.parts if isinstance(part, Edit)] if isinstance(edit, Composition) else [edit]


def spread(n: int, most: int) -> npt.NDArray[np.int64]:
    """At most ``most`` positions of n, evenly spread.

    Example:
        >>> spread(9, 3).tolist(), spread(2, 3).tolist()
        ([0, 4, 8], [0, 1])
    """
    return np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64))


def warn_of_other_encoder(stored: StoredEdit, encoder: Encoder) -> str | None:
    """Why an edit may not work on this encoder, None where it was made for it: a transfer is legitimate, but it is said."""
    reason = check_encoder(stored, *encoder.names(stored.edit.grid))
    if reason is not None:
        log.warning("%s", reason)
    return reason


def keep_edit(run: RunFolder, stored: StoredEdit, record: Mapping[str, Any]) -> None:
    """Write a run's own copy of its edit, and what is known of it into run.json."""
    write_atomic(run.root / EDIT_FILE, save_edit(stored.edit, stored.facts))
    run.update(edit=dict(record))


def edit_of(run: RunFolder) -> StoredEdit | None:
    """The edit that a finished run puts on its images, None where it has none.

    Raises:
        CheckpointError: the run's copy is gone, damaged, or another edit than the one it was trained with.
    """
    said = run.info.get("edit")
    if not (run.root / EDIT_FILE).exists():
        if said is None:
            return None
        raise CheckpointError(f"the run {run.root} was trained on edited images, but its {EDIT_FILE} is gone; train it again")
    stored = load_edit(run.root / EDIT_FILE)
    if said is not None and stored.fingerprint != said["hash"]:
        raise CheckpointError(
            f"{run.root / EDIT_FILE} is not the edit that run was trained with (sha256 {stored.fingerprint[:12]}, expected "
            f"{said['hash'][:12]}); put the same file back, or train again"
        )
    return stored
