"""Where the images lie in a request of the two medical embedding services: found, taken out as files, put back edited.

The shapes are those of `evenhand.models.adapters`, which says where they are documented. What is not known to hold no image is refused, so
that none passes unedited: an instance that names its image by an address, a table with further columns.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evenhand.models.protocol import Tensor, files_array, read_json
from evenhand.serve.images import bad

_INSTANCE = {"input_bytes", "bearer_token"}
_TABLE = {"columns", "index", "data"}
_COLUMNS = {"image", "text"}


@dataclass(frozen=True)
class Vendor:
    """A service.

    Attributes:
        ending: of the addresses that predict.
        find: the places of the images in a request, each a container and a key; raises `Refusal`.
        forth, back: further headers that go along, and that come back.
    """

    ending: str
    find: Callable[[dict[str, Any]], list[tuple[Any, Any]]]
    forth: tuple[str, ...]
    back: tuple[str, ...] = ()


def _instances(said: dict[str, Any]) -> list[tuple[Any, Any]]:
    """CXR Foundation: ``{"instances": [{"input_bytes": BASE64_FILE}, …]}``; ``parameters`` may stand beside them."""
    _only(said, {"instances", "parameters"}, "the request")
    instances = said.get("instances")
    if not isinstance(instances, list) or not all(isinstance(one, dict) for one in instances):
        raise bad("instances must be a list of objects")
    for position, one in enumerate(instances):
        _only(one, _INSTANCE, f"instance {position + 1} of {len(instances)}")
        if "input_bytes" not in one:
            raise bad(f"instance {position + 1} of {len(instances)} has no input_bytes, a PNG or JPEG file in base64")
    return [(one, "input_bytes") for one in instances]


def _table(said: dict[str, Any]) -> list[tuple[Any, Any]]:
    """MedImageInsight: ``{"input_data": {"columns": ["image", "text"], "index": […], "data": [[BASE64_FILE, ""], …]}, "params": {…}}``.

    A row whose image is "" has a text alone, which passes as it is.
    """
    _only(said, {"input_data", "params"}, "the request")
    table = said.get("input_data")
    if not isinstance(table, dict):
        raise bad("input_data must be an object with columns, index and data")
    _only(table, _TABLE, "input_data")
    columns, rows = table.get("columns"), table.get("data")
    named = isinstance(columns, list) and all(isinstance(name, str) for name in columns)
    if not named or not isinstance(columns, list) or len(set(columns)) != len(columns) or not {"image"} <= set(columns) <= _COLUMNS:
        raise bad("columns of input_data must be image, or image and text")
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise bad(f"data of input_data must be a list of rows of {len(columns)}, one entry for each column")
    place = columns.index("image")
    return [(row, place) for row in rows if row[place] != ""]


VENDORS = {
    "cxr_foundation": Vendor(":predict", _instances, ("x-goog-user-project",)),
    "medimageinsight": Vendor("/score", _table, ("azureml-model-deployment", "x-ms-client-request-id"), ("x-ms-request-id",)),
}
"""Names as of ``model.api``."""


def _only(said: dict[str, Any], known: set[str], what: str) -> None:
    others = sorted(set(said) - known)
    if others:
        listed = ", ".join(sorted(known))
        raise bad(f"{what} has '{others[0][:100]}', which may hold an image that is not edited, so it is not passed on; known are {listed}")


class VendorRequest:
    """A request of a service, read and checked.

    Args:
        body: JSON.
        vendor: whose.

    Attributes:
        n: images in it.

    Raises:
        ProtocolError: not JSON.
        Refusal: not a request of the service.
    """

    def __init__(self, body: bytes, vendor: Vendor) -> None:
        said = read_json(body)
        if not isinstance(said, dict):
            raise bad("the body must be a JSON object")
        self._said = said
        self._places = vendor.find(said)
        self.n = len(self._places)

    def files(self) -> Tensor:
        """The images as files, (n).

        Raises:
            Refusal: one that is not base64.
        """
        found = []
        for position, (holder, key) in enumerate(self._places):
            try:
                found.append(base64.b64decode("".join(holder[key].split()), validate=True))
            except (AttributeError, ValueError, binascii.Error) as error:
                raise bad(f"image {position + 1} of {self.n} is not a file in base64; send a PNG or JPEG file, not an address") from error
        return Tensor("images", files_array(found))

    def with_files(self, files: Tensor) -> bytes:
        """The request anew, with these files in place of its own; all else is as it came.

        Raises:
            Refusal: numbers too large for JSON.
        """
        for (holder, key), file in zip(self._places, files.data, strict=True):
            holder[key] = base64.b64encode(file).decode("ascii")
        try:
            return json.dumps(self._said, allow_nan=False, separators=(",", ":")).encode()
        except (ValueError, RecursionError) as error:
            raise bad("the request holds numbers that are not finite, or is nested too deeply") from error
