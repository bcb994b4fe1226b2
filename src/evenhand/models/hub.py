"""Weights from the Hugging Face hub, with errors that can be read offline."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evenhand.errors import CheckpointError, EvenhandError

logger = logging.getLogger(__name__)

HUB_PREFIX = "hf-hub:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?")
_FILE_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".safetensors", ".npz", ".pkl")


def is_hub_id(text: str) -> bool:
    """Whether a text reads as a hub id: ``hf-hub:org/name``, or ``org/name`` that has no ending of a weights file.

    Example:
        >>> is_hub_id("timm/resnet18.a1_in1k"), is_hub_id("weights/mae.pth")
        (True, False)
    """
    if text.startswith((HUB_PREFIX, "hf_hub:")):
        return True
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(_FILE_ENDINGS)


@contextmanager
def readable_download(what: str) -> Iterator[None]:
    """Turn every way a download fails into one line.

    Raises:
        CheckpointError: the hub has no such repository, revision or file.
        EvenhandError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import errors

    # The hub's client has changed its HTTP library twice; its own error class always derives from that library's.
    transport_error: type[BaseException] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError, errors.HFValidationError) as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise EvenhandError(_offline(what)) from error
        raise CheckpointError(f"{what}: the hub has no such repository or file; check the id, or log in if it is private") from error
    except (errors.OfflineModeIsEnabled, ConnectionError, TimeoutError) as error:
        raise EvenhandError(_offline(what)) from error
    except (transport_error, OSError) as error:
        if isinstance(error, transport_error) and not isinstance(error, errors.HfHubHTTPError):
            raise EvenhandError(_offline(what)) from error
        first = (str(error).splitlines() or [repr(error)])[0]
        raise EvenhandError(f"{what} could not be downloaded ({first}); download it elsewhere and give model.checkpoint=DIR") from error


def _offline(what: str) -> str:
    return (
        f"{what} cannot be reached and is not in the local cache; connect to the network once, or copy the folder "
        "(config.json, model.safetensors) here and give model.checkpoint=DIR"
    )


def hub_folder(identifier: str) -> Path:
    """Download (or find in the local cache) config.json and the weights of a hub id; returns their folder.

    Raises:
        CheckpointError: see `readable_download`, or the repository holds no weights that are read.
        EvenhandError: the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = identifier.removeprefix(HUB_PREFIX).removeprefix("hf_hub:").partition("@")
    logger.info("taking weights from the hub: %s", repository)
    with readable_download(f"hub id {repository}"):
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=["config.json", "model.safetensors", "pytorch_model.bin"]
        )
    return Path(folder)
