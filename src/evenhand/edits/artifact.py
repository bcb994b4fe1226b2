"""An edit as a file: one safetensors file that says what it is, what it was made with, and for which images.

The header's metadata hold three texts: ``schema`` ("evenhand.edit/1"), ``edit`` (JSON: kind, options, grid, bounds, value range) and
``facts`` (JSON, see `FACTS`). Reading never runs code from a file; the published ``noise_layer.pt`` is read as plain tensors.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from evenhand import __version__
from evenhand.edits.base import VALUE_RANGE, Bounds, Edit
from evenhand.edits.build import rebuild_edit
from evenhand.edits.planes import PixelEdit
from evenhand.errors import CheckpointError, InputError

SCHEMA = "evenhand.edit/1"
FILE = "edit.safetensors"

FACTS = {
    "encoder": "fingerprint of the encoder that the edit was trained against: of its weights, also behind a server that names them",
    "data": "fingerprint of the data set that it was trained on",
    "attributes": "list of the sensitive attributes that it hides",
    "method": "registry name of the method",
    "objective": "name of the objective",
    "seed": "seed of the run",
    "package": "version of this package; filled in when saved",
    "written": "time of writing, ISO 8601, UTC; filled in when saved",
    "visibility": "numbers of `Visibility` on validation images",
    "history": "list of records, one an epoch or a round",
}
"""What facts tell besides anything else that fits JSON; a key that is not known is null."""

_AGAIN = "copy or make it again"


@dataclass(frozen=True)
class StoredEdit:
    """An edit from a file.

    Attributes:
        edit: with its parameters, on the CPU, frozen.
        facts: see `FACTS`; null where not known.
        fingerprint: `edit_fingerprint` of the edit.
    """

    edit: Edit
    facts: dict[str, Any]
    fingerprint: str


def save_edit(edit: Edit, facts: Mapping[str, Any]) -> bytes:
    """The bytes of an edit file.

    Args:
        edit: any; its parameters must be finite.
        facts: JSON-serialisable; keys of `FACTS` that are absent become null, ``package`` and ``written`` are filled in.

    Raises:
        InputError: parameters are not finite, or facts do not fit JSON.

    Example:
        >>> from evenhand.edits import PixelEdit
        >>> data = save_edit(PixelEdit((1, 8, 8)), {"method": "dne", "seed": 0})
        >>> data[8:9]
        b'{'
    """
    tensors = _tensors(edit)
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"parameter '{name}' of the edit is not finite, so it is not saved; train it again with a smaller step")
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    said = {**dict.fromkeys(FACTS), "package": __version__, "written": now, **facts}
    try:
        text = json.dumps(said, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"facts of the edit do not fit JSON ({error}); give texts, finite numbers, lists and dictionaries") from error
    header = {"schema": SCHEMA, "edit": json.dumps(_description(edit), sort_keys=True), "facts": text}
    data: bytes = save_tensors(tensors, metadata=header)
    return data


def edit_fingerprint(edit: Edit) -> str:
    """sha256 over kind, options, grid, bounds and the bits of all parameters: equal fingerprints edit alike. Facts do not count.

    Example:
        >>> from evenhand.edits import PixelEdit
        >>> edit_fingerprint(PixelEdit((1, 8, 8))) == edit_fingerprint(PixelEdit((1, 8, 8)))
        True
    """
    digest = hashlib.sha256(json.dumps(_description(edit), sort_keys=True).encode())
    for name, tensor in sorted(_tensors(edit).items()):
        digest.update(f"{name} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def load_edit(path: str | Path) -> StoredEdit:
    """Read an edit.

    Args:
        path: an edit file, a folder that holds ``edit.safetensors``, or a published ``noise_layer.pt``: a torch file of
            ``{"noise": (h, w)}``, also saved from a parallel module. The published edit is kept as published: added to every
            channel, neither clamped nor rounded; its facts say so.

    Raises:
        InputError: there is no such file.
        CheckpointError: truncated, damaged, of another schema or an unknown family, with tensors that do not fit or are not
            finite, or a torch file that holds anything else.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        data = file.read_bytes()
    except OSError as error:
        what = f"folder '{path.name}' holds no {FILE}" if path.is_dir() else f"edit '{path}' cannot be read ({error.strerror or error})"
        raise InputError(f"{what}; give {FILE}, a run folder that holds one, or a published noise_layer.pt") from error
    if data[:2] in (b"PK", b"\x80\x02") or file.suffix in (".pt", ".pth"):
        edit, facts = _published(data, file.name)
    else:
        edit, facts = _stored(data, file.name)
    edit.requires_grad_(False).eval()
    return StoredEdit(edit, facts, edit_fingerprint(edit))


def encoder_names(embedder: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The fingerprints that an encoder goes by, first the one that is kept with what is made for it.

    Weights have one name wherever they run: behind a server that names them (``weights_for``) that name comes first, and
    after it the fingerprint of what the server says of its model.

    Args:
        embedder: an encoder, with its ``fingerprint``.
        shape: (c, h, w) of the images that it is given.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder_names(SimpleNamespace(fingerprint="ab", weights_for=lambda size: "0af1"), (1, 32, 32))
        ('0af1', 'ab')
    """
    weights_for = getattr(embedder, "weights_for", None)
    weights = None if weights_for is None else weights_for(shape[-2:])
    return tuple(dict.fromkeys(name for name in (weights, str(embedder.fingerprint)) if name))


def check_encoder(stored: StoredEdit, *fingerprints: str, strict: bool = False) -> str | None:
    """Whether an edit was made for an encoder: None where it was, else the reason why it may not work.

    Args:
        stored: the edit.
        fingerprints: of the encoder that edited images will go to; all of `encoder_names`, where there are several.
        strict: raise where another encoder is named; measuring transfer is the use that is not strict.

    Raises:
        InputError: ``strict`` and another encoder.
    """
    made_for = stored.facts.get("encoder")
    if made_for in fingerprints:
        return None
    if not made_for:
        return "the edit does not say which encoder it was trained against, so what it hides here has to be measured"
    reason = f"the edit was trained against encoder {str(made_for)[:12]}, but this one is {fingerprints[0][:12]}"
    if strict:
        raise InputError(f"{reason}; use the encoder it was made for, or train an edit for this one: evenhand edit train")
    return f"{reason}; what it hides there need not be hidden here, see `evenhand edit measure`"


def check_grid(edit: Edit | StoredEdit, shape: tuple[int, ...]) -> None:
    """Refuse images of another grid before any is read.

    Raises:
        InputError: (c, h, w) differs from the edit's.
    """
    made = edit.edit if isinstance(edit, StoredEdit) else edit
    if not made.takes(tuple(shape)):
        c, h, w = made.grid
        raise InputError(
            f"images are {' x '.join(map(str, shape))} (channels, height, width), but the edit was made for {c} x {h} x {w}; "
            f"prepare the data with --size {h}{'' if h == w else ' (and that shape)'} and {c} channel{'s' if c > 1 else ''}, "
            "or train an edit on this grid"
        )


def _description(edit: Edit) -> dict[str, Any]:
    said = {"kind": edit.kind, "options": edit.options(), "grid": list(edit.grid), "bounds": asdict(edit.bounds)}
    return {**said, "value_range": list(VALUE_RANGE)}


def _tensors(edit: Edit) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in edit.named_parameters()}


def _stored(data: bytes, name: str) -> tuple[Edit, dict[str, Any]]:
    try:
        tensors = load_tensors(data)
        header = _header(data)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"edit file '{name}' is truncated or is not safetensors ({error}); {_AGAIN}") from error
    if header.get("schema") != SCHEMA:
        found = header.get("schema")
        raise CheckpointError(f"file '{name}' has schema {found!r}, but {SCHEMA!r} is read; it is no edit, or of another version")
    try:
        said, facts = json.loads(header["edit"]), json.loads(header["facts"])
        if not isinstance(facts, dict) or list(said["value_range"]) != list(VALUE_RANGE):
            raise InputError(f"value range {said['value_range']} is not {list(VALUE_RANGE)}")
        arguments = (str(said["kind"]), tuple(said["grid"]), Bounds(**said["bounds"]), said["options"])
        with torch.device("meta"):  # shapes first: a file cannot ask for more memory than it brings
            expected = {key: tuple(value.shape) for key, value in rebuild_edit(*arguments).named_parameters()}
        _check_tensors(tensors, expected, name)
        edit = rebuild_edit(*arguments)
    except CheckpointError:
        raise
    except (InputError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        reason = error.summary if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"the description in edit file '{name}' cannot be used ({reason}); {_AGAIN}") from error
    edit.load_state_dict(tensors)
    return edit, {**dict.fromkeys(FACTS), **facts}


def _header(data: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", data[:8])
    said = json.loads(data[8 : 8 + length])
    metadata = said.get("__metadata__") or {}
    return dict(metadata)


def _check_tensors(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], name: str) -> None:
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors or key not in expected:
            what = "lacks" if key not in tensors else "has the unknown"
            raise CheckpointError(f"edit file '{name}' {what} tensor '{key}'; its description names another edit, {_AGAIN}")
        tensor = tensors[key]
        if tuple(tensor.shape) != expected[key] or tensor.dtype != torch.float32:
            raise CheckpointError(
                f"tensor '{key}' in edit file '{name}' is {tensor.dtype} {tuple(tensor.shape)}, but its description asks for "
                f"float32 {expected[key]}; {_AGAIN}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"tensor '{key}' in edit file '{name}' is not finite; {_AGAIN}")


def _published(data: bytes, name: str) -> tuple[Edit, dict[str, Any]]:
    rule = "a published noise_layer.pt is a torch file of {'noise': tensor (h, w)}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            held = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"'{name}' holds other objects than tensors, which are not loaded; {rule}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        first = (str(error).splitlines() or [repr(error)])[0][:160]
        raise CheckpointError(f"'{name}' is truncated or is not a torch file ({first}); {rule}") from error
    keys = sorted(held) if isinstance(held, Mapping) and all(isinstance(key, str) for key in held) else []
    noise = held[keys[0]] if len(keys) == 1 and keys[0] in ("noise", "module.noise") else None
    if not isinstance(noise, torch.Tensor) or noise.ndim != 2 or not noise.is_floating_point() or 0 in noise.shape:
        raise CheckpointError(f"'{name}' holds {keys or type(held).__name__} instead; {rule}")
    if not bool(torch.isfinite(noise).all()):
        raise CheckpointError(f"the noise in '{name}' is not finite; train it again")
    try:
        edit = rebuild_edit("pixel", (3, *noise.shape), Bounds(clamp=False), {})
    except InputError as error:
        raise CheckpointError(f"the noise in '{name}' cannot be used ({error.summary}); {rule}") from error
    if isinstance(edit, PixelEdit):
        edit.load_state_dict({"values": noise.float()[None]})
    facts = {
        **dict.fromkeys(FACTS), "method": "dne", "objective": "published", "imported": name,
        "note": "published noise: added to every channel as it is, neither clamped to [0, 1] nor rounded to the levels of an image file",
    }
    return edit, facts
