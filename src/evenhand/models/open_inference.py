"""Embeddings from any server of the Open Inference Protocol v2: this project's, Triton, KServe, MLServer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from evenhand.errors import InputError, ProtocolError, ServerError
from evenhand.models.connection import Answer, Connection
from evenhand.models.image_formats import Values, levels_of, normalised, to_files, to_levels
from evenhand.models.protocol import (
    HEADER,
    REPOSITORY_INDEX,
    Message,
    ModelMetadata,
    Tensor,
    TensorMetadata,
    decode_response,
    encode_request,
    files_array,
    model_path,
    read_header_length,
    read_json,
)

DEFAULT_INPUT = "images"
"""What the input is called of a model that does not say it."""
_EMBEDDING = ("embedding", "embeddings")
_OF_THE_SERVER = ("max_batch", "datatypes", "dim")
_WANTED = {"binary": "FP32", "json": "FP32", "binary_uint8": "UINT8", "json_uint8": "UINT8", "png": "BYTES", "jpeg": "BYTES"}


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a remote model before the first image.

    Attributes:
        name, version: as the server calls it.
        fingerprint: hash of what the server says of the model, its address apart.
        dim: width of an embedding, None where it is not said.
        channels: 1 or 3.
        input_size: (height, width); images are resized to it here where ``fixed``.
        fixed: the server takes no other size.
        max_batch: most images a request, None where it is not said.
        levels: grey levels that reach the model, None: any float.
        weights: fingerprint of the weights, as a local encoder has it (`named_weights`), None where the server does not say it.
        weights_size: (height, width) that the weights see, None where the server does not say it.
    """

    name: str
    version: str
    fingerprint: str
    dim: int | None
    channels: int
    input_size: tuple[int, int]
    fixed: bool
    max_batch: int | None
    levels: int | None
    weights: str | None = None
    weights_size: tuple[int, int] | None = None


class Api(Protocol):
    """How one kind of server is spoken to; ``max_bytes``: largest request, None where nothing is known of a limit."""

    facts: ModelFacts
    max_bytes: int | None

    def encode(self, images: Values) -> tuple[str, Message]:
        """Path and body of a request; images (n, c, h, w) float32."""

    def decode(self, answer: Answer) -> npt.NDArray[Any]:
        """The embeddings in an answer, unchecked.

        Raises:
            ProtocolError: there are none, or they cannot be read.
        """


class OpenInference:
    """The protocol's client, on one model.

    Args:
        connection: to the server.
        model: its name; None: the only one there is.
        version: None: the server's choice.
        format: how images are sent.
        mean, std: normalise before sending, for a server that wants it; None: images go as they are, in [0, 1].
        input_size: (height, width), where the server takes any.
        lossy: round to 8-bit levels what lies between them.
        tensors: names of input and output, each None where there is no choice; a model that declares no inputs is given
            (n, c, h, w) under the first name, or `DEFAULT_INPUT`.

    Raises:
        ServerError: the server cannot be reached, or has no such model.
        InputError: the model does not take what ``format`` sends, or is not an encoder of images.
    """

    def __init__(
        self, connection: Connection, model: str | None, version: str | None, format: str, mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None, input_size: tuple[int, int] | None = None, lossy: bool = False,
        tensors: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.connection, self.format, self.lossy = connection, format, lossy
        self.max_bytes: int | None = None
        self.mean, self.std = mean, std
        if (mean is not None or std is not None) and levels_of(format) is not None:
            raise InputError(f"model.mean and model.std cannot be applied to 8-bit images; use model.api_format=binary, not {format}")
        name = model or self._only_model()
        self.metadata = self._read_metadata(name, version)
        self.input = _input_of(self.metadata, format, tensors[0])
        self.output = _output_of(self.metadata, tensors[1])
        self.last_channels = self.input.datatype != "BYTES" and _is_channels_last(self.input.shape)
        self._path = model_path(name, version, "infer")
        self._datatype = _WANTED[format] if _WANTED[format] in ("UINT8", "BYTES") else self.input.datatype
        self.facts = self._facts(name, version, input_size)

    def encode(self, images: Values) -> tuple[str, Message]:
        """See `Api`."""
        data: npt.NDArray[Any]
        if self.mean is not None or self.std is not None:
            images = normalised(images, self.mean or (0.0,), self.std or (1.0,))
        if self._datatype == "BYTES":
            files = files_array(to_files(to_levels(images, self.lossy), self.format))
            data = files.reshape(len(files), *[1] * (len(self.input.shape) - 1)) if self.input.datatype == "BYTES" else files
        elif self._datatype == "UINT8":
            data = to_levels(images, self.lossy)
        else:
            data = images.astype(np.float64, copy=False) if self._datatype == "FP64" else images
        if self.last_channels and self._datatype != "BYTES":
            data = np.ascontiguousarray(np.moveaxis(data, 1, -1))
        binary = self.format not in ("json", "json_uint8")
        outputs = [self.output.name] if self.output.name else []
        return self._path, encode_request([Tensor(self.input.name, data)], binary=binary, outputs=outputs, binary_outputs=binary)

    def decode(self, answer: Answer) -> npt.NDArray[Any]:
        """See `Api`; refuses an answer of another version of the model."""
        response = decode_response(answer.body, read_header_length(answer.headers.get(HEADER), len(answer.body)))
        if response.model_version and self.facts.version and response.model_version != self.facts.version:
            raise ServerError(
                f"{self.connection.shown} answered with version {response.model_version} of {self.facts.name}, but at the start it had "
                f"{self.facts.version}; set model.api_version, and start again", maybe_billed=True,
            )
        names = [tensor.name for tensor in response.outputs]
        chosen = _chosen(names, self.output.name or None)
        if chosen is not None:
            return response.outputs[names.index(chosen)].data
        if self.metadata.outputs:
            raise ProtocolError(f"output '{self.output.name}' is not in it")
        wanted = f"none called '{self.output.name}'" if self.output.name else "none called 'embeddings'"
        text = f"{self.connection.shown} answered with {len(names)} outputs ({_some(names)}), {wanted}; choose one with model.api_output"
        raise ServerError(text, maybe_billed=True)

    def _only_model(self) -> str:
        listed = self._models()
        if listed is None:
            raise InputError(f"{self.connection.shown} does not say which models it has; give one with model.api_model")
        if len(listed) != 1:
            raise InputError(f"{self.connection.shown} has {len(listed)} models ({_some(listed)}); choose one with model.api_model")
        return listed[0]

    def _models(self) -> list[str] | None:
        """Names of the server's models, None where it does not tell."""
        empty = Message((b"{}",))
        try:
            said = self.connection.post(REPOSITORY_INDEX, empty, lambda answer: read_json(answer.body), patient=False)
        except ServerError as error:
            if error.status is None or error.status in (401, 403, 429, 500, 502, 503, 504):
                raise
            return None
        if not isinstance(said, list):
            return None
        return sorted({str(one["name"]) for one in said if isinstance(one, dict) and one.get("name")})

    def _read_metadata(self, name: str, version: str | None) -> ModelMetadata:
        try:
            answer = self.connection.get(model_path(name, version))
            return ModelMetadata.from_json(read_json(answer.body))
        except ProtocolError as error:
            text = f"what {self.connection.shown} says of model {name} cannot be read: {error.summary}; is it a v2 server?"
            raise ServerError(text) from error
        except ServerError as error:
            if error.status not in (400, 404):
                raise
            listed = self._models()
            known = f"it has {_some(listed)}" if listed else "it does not say which models it has"
            wanted = f"model '{name}'" + (f" of version {version}" if version else "")
            text = f"{self.connection.shown} has no {wanted}: {known}; set model.api_model and model.api_version"
            raise ServerError(text, [error.summary], error.status) from error

    def _facts(self, name: str, version: str | None, input_size: tuple[int, int] | None) -> ModelFacts:
        said = self.metadata.parameters
        shape = self.input.shape
        channels, height, width = (shape[-1], *shape[1:3]) if self.last_channels else shape[1:4] if len(shape) == 4 else (-1, -1, -1)
        fixed = height > 0 and width > 0
        if fixed and input_size is not None and input_size != (height, width):
            raise InputError(f"model.input_size is {list(input_size)}, but {name} on the server takes {[height, width]}; leave it out")
        seen = _pair(said.get("input_size"))
        nominal = seen or (224, 224)
        dim = self.output.shape[-1] if len(self.output.shape) > 1 else -1
        version = version or _newest(self.metadata.versions)
        return ModelFacts(
            name=name, version=version, fingerprint=_fingerprint(self.metadata, name, version, self.input, self.output),
            dim=dim if dim > 0 else _positive(said.get("dim")), channels=channels if channels > 0 else _positive(said.get("channels")) or 3,
            input_size=(height, width) if fixed else input_size or nominal, fixed=fixed or input_size is not None,
            max_batch=_max_batch(shape, said), levels=levels_of(self.format), weights_size=seen,
            weights=named_weights(self.metadata) if self.mean is None and self.std is None else None,
        )


def remote_fingerprints(metadata: ModelMetadata, name: str, version: str | None = None) -> set[str]:
    """Every `RemoteEmbedder.fingerprint` that a model may have by its metadata: one for each choice of an input and an output."""
    version = version or _newest(metadata.versions)
    return {_fingerprint(metadata, name, version, tensor, output) for tensor in metadata.inputs for output in metadata.outputs}


def named_weights(metadata: ModelMetadata) -> str | None:
    """The fingerprint of the weights behind a model, as `evenhand.models.LocalEmbedder` has it.

    None where the server does not say it, or edits images first: then the weights alone do not answer.

    Example:
        >>> named_weights(ModelMetadata("cxr", (), (), parameters={"encoder": "0af1"}))
        '0af1'
    """
    said = metadata.parameters
    weights = said.get("encoder")
    return weights if isinstance(weights, str) and weights and not said.get("edit") else None


def _fingerprint(metadata: ModelMetadata, name: str, version: str, tensor: TensorMetadata, output: TensorMetadata) -> str:
    said = metadata.parameters
    keyed = {
        "name": name, "version": version, "platform": metadata.platform, "inputs": tensor.to_json(),
        "outputs": output.to_json(), "parameters": {key: said[key] for key in said if key not in _OF_THE_SERVER},
    }
    return hashlib.sha256(json.dumps(keyed, sort_keys=True).encode()).hexdigest()


def _input_of(metadata: ModelMetadata, format: str, asked: str | None) -> TensorMetadata:
    """The input for images, which must take what ``format`` sends; made up where the model declares none (as with MLServer)."""
    if not metadata.inputs:
        return TensorMetadata(asked or DEFAULT_INPUT, _WANTED[format], (-1,) if _WANTED[format] == "BYTES" else (-1, -1, -1, -1))
    names = [tensor.name for tensor in metadata.inputs]
    if asked is not None and asked not in names:
        raise InputError(f"{metadata.name} on the server has no input '{asked}', but {_some(names)}; set model.api_input to one of them")
    if asked is None and len(names) != 1:
        takes = f"{metadata.name} on the server takes {len(names)} inputs ({_some(names)})"
        raise InputError(f"{takes}, but an encoder of images takes one; choose it with model.api_input")
    tensor, wanted = metadata.inputs[names.index(asked) if asked is not None else 0], _WANTED[format]
    also = metadata.parameters.get("datatypes")
    taken = {tensor.datatype, *(also if isinstance(also, list) else [])}
    if wanted not in taken and not (wanted == "FP32" and "FP64" in taken):
        fitting = [key for key, datatype in _WANTED.items() if datatype in taken]
        advice = f"set model.api_format to one of {', '.join(fitting)}" if fitting else "this client cannot send that"
        takes = f"{metadata.name} on the server takes {', '.join(sorted(taken))}"
        raise InputError(f"model.api_format={format} sends {wanted}, but {takes}; {advice}")
    if tensor.datatype != "BYTES" and (len(tensor.shape) != 4 or not ({tensor.shape[1], tensor.shape[3]} & {1, 3, -1})):
        raise InputError(f"{metadata.name} on the server takes shape {list(tensor.shape)}, but images are (n, c, h, w) with c = 1 or 3")
    return tensor


def _output_of(metadata: ModelMetadata, asked: str | None) -> TensorMetadata:
    """The embedding among the outputs; where the model declares none, what was asked for, or a name of "": it shows in the answer."""
    if not metadata.outputs:
        return TensorMetadata(asked or "", "FP32", ())
    names = [tensor.name for tensor in metadata.outputs]
    chosen = _chosen(names, asked)
    if chosen is None:
        has = f"{metadata.name} on the server has {len(names)} outputs ({_some(names)})"
        raise InputError(f"{has}, none of them called '{asked or 'embeddings'}'; choose one with model.api_output")
    return metadata.outputs[names.index(chosen)]


def _chosen(names: Sequence[str], asked: str | None) -> str | None:
    """The output to take: what was asked for, else the only one, else the one called embedding(s); None: there is none such."""
    if asked is not None:
        return asked if asked in names else None
    called = names if len(names) == 1 else [name for name in names if name.lower() in _EMBEDDING]
    return called[0] if len(called) == 1 else None


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)


def _max_batch(shape: tuple[int, ...], said: Mapping[str, Any]) -> int | None:
    fixed = [size for size in (shape[0], _positive(said.get("max_batch")) or _positive(said.get("max_batch_size"))) if size and size > 0]
    return min(fixed) if fixed else None


def _newest(versions: Sequence[str]) -> str:
    numbers = [version for version in versions if version.isdigit()]
    return max(numbers, key=int) if numbers else (versions[-1] if versions else "")


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, list) and len(value) == 2 and all(_positive(size) for size in value):
        return value[0], value[1]
    return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "none"
