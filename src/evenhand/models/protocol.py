"""The Open Inference Protocol v2 over HTTP, for its client and its server: addresses, metadata, requests, responses.

The protocol is the one of KServe, Triton and MLServer ("predict protocol, version 2"), with Triton's binary tensor data extension: a body
is JSON, or JSON followed by the bytes of the tensors whose parameters say ``binary_data_size``, in the order of the JSON; then the header
``Inference-Header-Content-Length`` is the length of the JSON.

Nothing here opens a connection. What arrives is checked completely before it is used; a message that breaks the protocol is a
`ProtocolError` with the HTTP status that a server gives for it.

Example:
    >>> import numpy as np
    >>> message = encode_request([Tensor("images", np.zeros((2, 1, 4, 4), np.float32))])
    >>> request = decode_request(message.join(), message.header_length)
    >>> request.inputs[0].datatype, request.inputs[0].data.shape
    ('FP32', (2, 1, 4, 4))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from evenhand.errors import ProtocolError
from evenhand.models.wire import DTYPES, Buffer, Tensor, decode_binary, decode_json, encode_binary, encode_json, files_array, read_shape

__all__ = [
    "HEADER", "LIVE", "MAX_JSON", "READY", "REPOSITORY_INDEX", "SERVER", "InferRequest", "InferResponse", "Message", "ModelMetadata",
    "Tensor", "TensorMetadata", "decode_request", "decode_response", "encode_request", "encode_response", "error_body", "files_array",
    "model_path", "read_error", "read_header_length", "read_json", "wants_binary",
]

HEADER = "Inference-Header-Content-Length"
SERVER = "/v2"
LIVE = "/v2/health/live"
READY = "/v2/health/ready"
REPOSITORY_INDEX = "/v2/repository/index"
MAX_JSON = 128 * 2**20
_ALIGN = 64
_PIECE = 2**20


def model_path(name: str, version: str | None = None, action: str = "") -> str:
    """The address of a model; ``action`` is "" for its metadata, "ready" or "infer".

    Example:
        >>> model_path("my net", "1", "infer")
        '/v2/models/my%20net/versions/1/infer'
    """
    parts = ["/v2/models", quote(name, safe="")]
    parts += ["versions", quote(version, safe="")] if version else []
    return "/".join([*parts, action] if action else parts)


@dataclass(frozen=True)
class TensorMetadata:
    """What a model says of one input or output; -1 in ``shape`` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As it stands in the model's metadata."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class ModelMetadata:
    """What a server says of a model.

    Attributes:
        name, versions, platform, inputs, outputs: as in the protocol.
        parameters: more that a server says; this project's server gives fingerprint, max_batch, mean, std and input_size there.
    """

    name: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    versions: tuple[str, ...] = ()
    platform: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The body of the answer to a request for metadata."""
        return {
            "name": self.name, "versions": list(self.versions), "platform": self.platform,
            "inputs": [tensor.to_json() for tensor in self.inputs], "outputs": [tensor.to_json() for tensor in self.outputs],
            **({"parameters": dict(self.parameters)} if self.parameters else {}),
        }

    @classmethod
    def from_json(cls, said: Any) -> ModelMetadata:
        """Read a server's answer.

        Raises:
            ProtocolError: a part that the protocol asks for is missing or of another type.
        """
        if not isinstance(said, dict) or not isinstance(said.get("name"), str):
            raise ProtocolError("model metadata must be an object with a name")
        versions, parameters = said.get("versions") or [], said.get("parameters") or {}
        if not isinstance(versions, list) or not isinstance(parameters, dict):
            raise ProtocolError("model metadata: versions must be a list and parameters an object")
        return cls(
            name=said["name"], inputs=_read_tensors(said, "inputs"), outputs=_read_tensors(said, "outputs"),
            versions=tuple(str(version) for version in versions), platform=str(said.get("platform") or ""), parameters=parameters,
        )


def _read_tensors(said: Mapping[str, Any], key: str) -> tuple[TensorMetadata, ...]:
    listed = [] if key in said and said[key] is None else said.get(key)
    if not isinstance(listed, list) or not all(isinstance(tensor, dict) for tensor in listed):
        raise ProtocolError(f"model metadata: {key} must be a list of objects")
    out = []
    for tensor in listed:
        name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
        sizes = isinstance(shape, list) and all(type(size) is int and size >= -1 for size in shape)
        if not isinstance(name, str) or not isinstance(datatype, str) or not sizes or not isinstance(shape, list):
            raise ProtocolError(f"model metadata: one of {key} lacks a name, a datatype or a shape of whole numbers from -1 up")
        out.append(TensorMetadata(name, datatype, tuple(shape)))
    return tuple(out)


@dataclass(frozen=True)
class Message:
    """An encoded body, in pieces that are not copied until they are sent.

    Attributes:
        pieces: JSON first, then the bytes of the binary tensors.
        header_length: length of the JSON where anything follows it, else None.
    """

    pieces: tuple[Buffer, ...]
    header_length: int | None = None

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return sum(len(piece) for piece in self.pieces)

    @property
    def headers(self) -> dict[str, str]:
        """Content-Type, Content-Length, and the length of the JSON where anything follows it."""
        binary = self.header_length is not None
        headers = {"Content-Type": "application/octet-stream" if binary else "application/json", "Content-Length": str(self.length)}
        return {**headers, HEADER: str(self.header_length)} if binary else headers

    def join(self) -> bytes:
        """The body in one piece."""
        return b"".join(self.pieces)

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces of at most 1 MiB, as a client or server streams it; begins anew at every call."""
        for piece in self.pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _PIECE):
                yield bytes(view[start : start + _PIECE])


@dataclass(frozen=True)
class InferRequest:
    """A request for inference.

    Attributes:
        inputs: the tensors.
        outputs: (name, binary or not or unsaid) of the outputs asked for; empty: all.
        binary_outputs: whether outputs that say nothing else are wanted in binary.
        id: the client's name of the request, to be repeated in the answer.
        parameters: what it says besides.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[tuple[str, bool | None], ...] = ()
    binary_outputs: bool = False
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InferResponse:
    """The answer to a request for inference."""

    model_name: str
    outputs: tuple[Tensor, ...]
    model_version: str = ""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


def wants_binary(request: InferRequest, output: str) -> bool:
    """Whether the client wants this output as bytes."""
    said = dict(request.outputs).get(output)
    return request.binary_outputs if said is None else said


def encode_request(
    inputs: Sequence[Tensor], *, binary: bool = True, outputs: Sequence[str] = (), binary_outputs: bool = True, id: str = "",
    parameters: Mapping[str, Any] | None = None,
) -> Message:
    """A request for inference.

    Args:
        inputs: the tensors.
        binary: send values as bytes, else as JSON.
        outputs: names of the outputs wanted; empty: all.
        binary_outputs: ask for the outputs as bytes.
        id: repeated in the answer.
        parameters: further parameters of the request.
    """
    content: dict[str, Any] = {"id": id} if id else {}
    more = {**(parameters or {}), **({"binary_data_output": True} if binary_outputs else {})}
    if more:
        content["parameters"] = more
    if outputs:
        content["outputs"] = [{"name": name, "parameters": {"binary_data": binary_outputs}} for name in outputs]
    return _encode(content, "inputs", [(tensor, binary) for tensor in inputs])


def encode_response(response: InferResponse, request: InferRequest | None = None, binary: bool = False) -> Message:
    """An answer, each output in the form that ``request`` asks for; without a request, all ``binary`` or not.

    Raises:
        ProtocolError: a value that JSON cannot hold (NaN, infinity), status 500.
    """
    content: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    content.update({"id": response.id} if response.id else {})
    content.update({"parameters": dict(response.parameters)} if response.parameters else {})
    chosen = [(tensor, wants_binary(request, tensor.name) if request is not None else binary) for tensor in response.outputs]
    return _encode(content, "outputs", chosen)


def _encode(content: dict[str, Any], key: str, tensors: Sequence[tuple[Tensor, bool]]) -> Message:
    pieces: list[Buffer] = []
    content[key] = []
    for tensor, binary in tensors:
        said: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.data.shape)}
        parameters = dict(tensor.parameters)
        if binary:
            new = encode_binary(tensor.data)
            parameters["binary_data_size"] = sum(len(piece) for piece in new)
            pieces += new
        else:
            said["data"] = encode_json(tensor.data)
            parameters.update({"content_type": "base64"} if tensor.datatype == "BYTES" else {})
        content[key].append({**said, "parameters": parameters} if parameters else said)
    try:
        header = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise ProtocolError("values that are not finite cannot be sent as JSON; ask for binary tensors", status=500) from error
    if not any(binary for _, binary in tensors):
        return Message((header,))
    # blanks after the JSON put the first tensor on an aligned address, so that the receiver need not copy it
    header += b" " * (-len(header) % _ALIGN)
    return Message((header, *pieces), len(header))


def read_header_length(text: str | None, body_length: int) -> int | None:
    """The value of the header `HEADER`, None where it was not sent.

    Raises:
        ProtocolError: not a whole number from 1 to the length of the body.
    """
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18 or not 1 <= int(text) <= body_length:
        raise ProtocolError(f"{HEADER} must be a whole number from 1 to the length of the body ({body_length})")
    return int(text)


def decode_request(body: Buffer, header_length: int | None = None, max_json: int = MAX_JSON) -> InferRequest:
    """Read and check a request.

    Args:
        body: the whole body; tensors are views of it, read-only where it is `bytes`.
        header_length: what `read_header_length` gave.
        max_json: largest JSON part; in memory it takes up to twenty times as much.

    Raises:
        ProtocolError: it breaks the protocol; values that are not finite in JSON included.
    """
    said, rest = _split(body, header_length, max_json)
    inputs, wanted, parameters = said.get("inputs"), said.get("outputs") or [], _parameters(said, "the request")
    if not isinstance(inputs, list) or not inputs:
        raise ProtocolError("a request must have a list of inputs")
    if not isinstance(wanted, list) or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in wanted):
        raise ProtocolError("outputs must be a list of objects with a name")
    outputs = tuple((one["name"], _flag(_parameters(one, "an output"), "binary_data")) for one in wanted)
    tensors = _read(inputs, rest, finite=True)
    others = {key: value for key, value in parameters.items() if key != "binary_data_output"}
    return InferRequest(tensors, outputs, bool(_flag(parameters, "binary_data_output")), _text(said, "id"), others)


def decode_response(body: Buffer, header_length: int | None = None, max_json: int = 2**30) -> InferResponse:
    """Read and check an answer; NaN and infinities are let through, for the caller to count.

    Raises:
        ProtocolError: it breaks the protocol.
    """
    said, rest = _split(body, header_length, max_json, finite=False)
    outputs = said.get("outputs")
    if not isinstance(outputs, list):
        raise ProtocolError("an answer must have a list of outputs")
    return InferResponse(
        model_name=_text(said, "model_name"), outputs=_read(outputs, rest, finite=False), model_version=_text(said, "model_version"),
        id=_text(said, "id"), parameters=_parameters(said, "the answer"),
    )


def _split(body: Buffer, header_length: int | None, max_json: int, finite: bool = True) -> tuple[dict[str, Any], memoryview | None]:
    """The JSON part, and what follows it: None where there is no binary part."""
    view = memoryview(body)
    length = len(view) if header_length is None else header_length
    if length > len(view):
        raise ProtocolError(f"{HEADER} is {length}, but the body has {len(view)} bytes")
    if length > max_json:
        raise ProtocolError(f"{length} bytes of JSON arrived, at most {max_json} may be; send binary tensors", status=413)
    said = read_json(bytes(view[:length]), finite)
    if not isinstance(said, dict):
        raise ProtocolError("the body must be a JSON object")
    return said, None if header_length is None else view[length:]


def read_json(text: bytes, finite: bool = True) -> Any:
    """JSON, strictly: UTF-8, no NaN (unless asked for), no key twice.

    Raises:
        ProtocolError: not JSON, or nested too deeply.
    """
    try:
        options: dict[str, Any] = {"parse_constant": _refuse_constant} if finite else {}
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, **options)
    except RecursionError as error:
        raise ProtocolError("the JSON is nested too deeply") from error
    except ValueError as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "a text that is not UTF-8, or a number of too many digits"
        raise ProtocolError(f"the body is not JSON: {reason}") from error


def _refuse_constant(name: str) -> Any:
    raise ProtocolError(f"{name} is not a JSON value; send finite numbers, or binary tensors")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ProtocolError("a JSON object has a key twice")
    return out


def _read(listed: list[Any], rest: memoryview | None, finite: bool) -> tuple[Tensor, ...]:
    """All tensors of a message; the binary part must be used up exactly."""
    position = 0
    out: dict[str, Tensor] = {}
    for said in listed:
        if not isinstance(said, dict) or not isinstance(said.get("name"), str) or not said["name"]:
            raise ProtocolError("a tensor must be an object with a name")
        name, datatype = said["name"], said.get("datatype")
        if name in out:
            raise ProtocolError(f"tensor '{name}' stands there twice")
        if not isinstance(datatype, str) or datatype not in DTYPES:
            raise ProtocolError(f"tensor '{name}': datatype must be one of {', '.join(DTYPES)}")
        shape, parameters = read_shape(said.get("shape"), name), dict(_parameters(said, f"tensor '{name}'"))
        size = parameters.pop("binary_data_size", None)
        if size is None:
            strings = parameters.get("content_type") == "base64"
            data = decode_json(said.get("data"), datatype, shape, name, strings, finite)
        else:
            _check_size(size, said, rest, position, name)
            data = decode_binary((rest or memoryview(b""))[position : position + size], datatype, shape, name)
            position += size
        out[name] = Tensor(name, data, parameters)
    if rest is not None and position != len(rest):
        raise ProtocolError(f"{len(rest) - position} bytes are left over after the last binary tensor")
    return tuple(out.values())


def _check_size(size: Any, said: Mapping[str, Any], rest: memoryview | None, position: int, name: str) -> None:
    if type(size) is not int or size < 0:
        raise ProtocolError(f"tensor '{name}': binary_data_size must be a whole number from 0 up")
    if "data" in said:
        raise ProtocolError(f"tensor '{name}' has both data and binary_data_size")
    if rest is None and size:
        raise ProtocolError(f"tensor '{name}' has binary_data_size, but the header {HEADER} was not sent")
    if rest is not None and position + size > len(rest):
        raise ProtocolError(f"tensor '{name}': {size} bytes are said to follow, but {len(rest) - position} are there")


def _parameters(said: Mapping[str, Any], whose: str) -> Mapping[str, Any]:
    parameters = said.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ProtocolError(f"parameters of {whose} must be an object")
    return parameters or {}


def _flag(parameters: Mapping[str, Any], key: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise ProtocolError(f"parameter {key} must be true or false")
    return value


def _text(said: Mapping[str, Any], key: str) -> str:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise ProtocolError(f"{key} must be a text")
    return value or ""


def error_body(text: str) -> bytes:
    """The body of an answer that is an error."""
    return json.dumps({"error": text}).encode()


def read_error(body: bytes, limit: int = 300) -> str:
    """What an error's body says, in one line of at most ``limit`` characters; "" where it says nothing readable."""
    try:
        said = read_json(body[:65_536])
        text = said.get("error", said) if isinstance(said, dict) else said
        text = text.get("message", text) if isinstance(text, dict) else text
    except ProtocolError:
        text = body[:limit].decode("utf-8", "replace") if body.lstrip()[:1] != b"<" else "a page of HTML"
    line = " ".join(str(text).split())
    return "".join(letter for letter in line if letter.isprintable())[:limit]
