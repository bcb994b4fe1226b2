"""The Open Inference Protocol's messages: round trips, tritonclient as the oracle, and everything malformed refused."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http._utils import _get_inference_request

from evenhand.errors import ProtocolError
from evenhand.models.protocol import (
    HEADER,
    InferRequest,
    InferResponse,
    ModelMetadata,
    Tensor,
    TensorMetadata,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    error_body,
    files_array,
    model_path,
    read_error,
    read_header_length,
    wants_binary,
)
from evenhand.models.wire import DTYPES

NUMBERS = [name for name in DTYPES if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def number_arrays(draw, finite=False):
    dtype = DTYPES[draw(st.sampled_from(NUMBERS))]
    options = {"allow_nan": not finite, "allow_infinity": not finite} if dtype.kind == "f" else {}
    return draw(hnp.arrays(dtype, SHAPES, elements=hnp.from_dtype(dtype, **options)))


def same(first, second):
    assert first.dtype == second.dtype
    assert first.shape == second.shape
    assert first.tobytes() == second.tobytes()


@given(st.lists(number_arrays(), min_size=1, max_size=3), st.binary(max_size=9))
def test_binary_tensors_come_back_bit_by_bit(arrays, file):
    tensors = [Tensor(f"t{k}", array, {"k": k}) for k, array in enumerate(arrays)] + [Tensor("files", files_array([file, b""]))]
    message = encode_request(tensors, id="a", outputs=["x"], parameters={"p": 1})
    body = message.join()
    assert message.length == len(body) == int(message.headers["Content-Length"])
    assert b"".join(message.chunks()) == body
    request = decode_request(body, read_header_length(message.headers[HEADER], len(body)))
    assert (request.id, request.outputs, request.binary_outputs, request.parameters) == ("a", (("x", True),), True, {"p": 1})
    assert request.inputs[-1].data.tolist() == [file, b""]
    for tensor, array in zip(request.inputs, arrays, strict=False):
        same(tensor.data, array)
    assert [tensor.parameters for tensor in request.inputs[:-1]] == [{"k": k} for k in range(len(arrays))]


@given(number_arrays(finite=True))
def test_json_tensors_come_back_bit_by_bit(array):
    message = encode_request([Tensor("t", array)], binary=False)
    assert message.header_length is None
    assert HEADER not in message.headers
    back = decode_request(message.join()).inputs[0].data
    assert np.array_equal(back, array)
    assert back.dtype == array.dtype
    nested = json.dumps({"inputs": [{"name": "t", "datatype": Tensor("t", array).datatype, "shape": array.shape, "data": array.tolist()}]})
    if array.ndim and array.size:
        assert np.array_equal(decode_request(nested.encode()).inputs[0].data, array)


@given(st.lists(st.binary(max_size=12), max_size=5))
def test_files_come_back_in_json_and_binary(files):
    for binary in (True, False):
        message = encode_request([Tensor("files", files_array(files))], binary=binary)
        assert decode_request(message.join(), message.header_length).inputs[0].data.tolist() == files


@given(number_arrays())
def test_a_request_is_what_tritonclient_sends(array):
    """Both directions: our server side reads tritonclient's body, and our body has its JSON and its bytes."""
    theirs = triton.InferInput("t", list(array.shape), Tensor("t", array).datatype)
    theirs.set_data_from_numpy(array)
    body, length = _get_inference_request([theirs], "id7", None, 0, False, False, 0, None, None)
    request = decode_request(body, length)
    same(request.inputs[0].data, array)
    assert request.id == "id7"
    assert wants_binary(request, "any")
    ours = encode_request([Tensor("t", array)], id="id7")
    assert json.loads(ours.join()[: ours.header_length]) == json.loads(body[:length])
    assert ours.join()[ours.header_length :] == body[length:]


@pytest.mark.parametrize("binary", [True, False])
def test_text_and_json_of_tritonclient(binary):
    words = np.array([b"ab", "ö".encode(), b""], dtype=object)
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
    inputs = [triton.InferInput("w", [3], "BYTES"), triton.InferInput("n", [2, 3], "FP32")]
    inputs[0].set_data_from_numpy(words, binary_data=binary)
    inputs[1].set_data_from_numpy(numbers, binary_data=binary)
    wanted = [triton.InferRequestedOutput("z", binary_data=binary)]
    request = decode_request(*_get_inference_request(inputs, "", wanted, 0, False, False, 0, None, None))
    assert request.inputs[0].data.tolist() == words.tolist()
    same(request.inputs[1].data, numbers)
    assert wants_binary(request, "z") is binary


@given(number_arrays(finite=True), st.booleans())
def test_tritonclient_reads_an_answer(array, binary):
    request = InferRequest((), binary_outputs=binary)
    answer = InferResponse("net", (Tensor("first", np.ones(3, np.float32)), Tensor("z", array)), "2", "id7")
    message = encode_response(answer, request)
    theirs = triton.InferResult.from_response_body(message.join(), header_length=message.header_length)
    if array.dtype.kind != "b" or binary:
        assert np.array_equal(theirs.as_numpy("z"), array)
    assert theirs.get_response()["id"] == "id7"
    ours = decode_response(message.join(), message.header_length)
    assert (ours.model_name, ours.model_version, ours.id) == ("net", "2", "id7")
    same(ours.outputs[1].data, array)


def test_a_big_tensor_is_not_copied():
    images = np.zeros((4, 3, 32, 32), np.float32)
    message = encode_request([Tensor("images", images)])
    assert np.shares_memory(np.frombuffer(message.pieces[1], np.uint8), images)
    body = message.join()
    back = decode_request(body, message.header_length).inputs[0].data
    assert np.shares_memory(back, np.frombuffer(body, np.uint8))
    assert back.flags.aligned
    assert not back.flags.writeable


def test_an_unaligned_tensor_is_read_all_the_same():
    header = json.dumps({"inputs": [{"name": "t", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}}]}).encode()
    for pad in range(8):
        body = header + b" " * pad + np.array([1.5, -2]).tobytes()
        back = decode_request(body, len(header) + pad).inputs[0].data
        assert back.tolist() == [1.5, -2]
        assert back.flags.aligned


def test_not_finite_numbers():
    bad = Tensor("z", np.array([1, np.nan, np.inf], np.float32))
    with pytest.raises(ProtocolError, match="not finite") as caught:
        encode_response(InferResponse("net", (bad,)), binary=False)
    assert caught.value.status == 500
    message = encode_response(InferResponse("net", (bad,)), binary=True)
    assert np.isnan(decode_response(message.join(), message.header_length).outputs[0].data[1])
    text = b'{"model_name":"n","outputs":[{"name":"z","datatype":"FP32","shape":[2],"data":[NaN,-Infinity]}]}'
    assert not np.isfinite(decode_response(text).outputs[0].data).any()


def request_text(tensor=None, **more):
    good = {"name": "t", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    return json.dumps({"inputs": [{**good, **(tensor or {})}], **more})


def without(key):
    said = json.loads(request_text())
    del said["inputs"][0][key]
    return json.dumps(said)


MALFORMED = {
    "not JSON": "{", "not an object": "[]", "no inputs": "{}", "inputs empty": '{"inputs":[]}', "inputs not a list": '{"inputs":{}}',
    "input not an object": '{"inputs":[3]}', "no name": without("name"), "no datatype": without("datatype"), "no shape": without("shape"),
    "no data": without("data"), "empty name": request_text({"name": ""}), "unknown datatype": request_text({"datatype": "FP12"}),
    "datatype a list": request_text({"datatype": ["FP32"]}), "negative size": request_text({"shape": [-2]}),
    "size a float": request_text({"shape": [2.0]}), "size a bool": request_text({"shape": [True, 2]}),
    "too many dimensions": request_text({"shape": [1] * 17 + [2]}), "too many values": request_text({"shape": [2**30, 2**30]}),
    "huge beside zero": request_text({"shape": [0, 2**47, 2**47], "data": []}), "another count": request_text({"shape": [3]}),
    "another nesting": request_text({"shape": [2, 1], "data": [[1, 2]]}), "ragged": request_text({"data": [[1], [2, 3]]}),
    "text": request_text({"data": ["1", "2"]}), "null": request_text({"data": [1, None]}), "NaN": request_text({"data": [1, float("nan")]}),
    "Infinity": request_text({"data": [1, float("inf")]}), "1e999": request_text().replace("[1, 2]", "[1, 1e999]"),
    "past float32": request_text({"data": [1, 1e39]}), "past float64": request_text({"data": [1, 10**400]}),
    "digits": request_text().replace("[1, 2]", "[1, " + "9" * 5000 + "]"), "deep": '{"inputs":' + "[" * 100_000,
    "deep data": request_text().replace("[1, 2]", "[" * 70 + "1" + "]" * 70), "bool as number": request_text({"data": [True, False]}),
    "float as uint8": request_text({"datatype": "UINT8", "data": [1, 2.5]}),
    "past uint8": request_text({"datatype": "UINT8", "data": [1, 256]}),
    "negative uint8": request_text({"datatype": "UINT8", "data": [1, -1]}), "data an object": request_text({"data": {}}),
    "key twice": request_text().replace('"name"', '"name": "a", "name"', 1),
    "tensor twice": request_text().replace("}]", '}, {"name":"t"}]'),
    "size without header": request_text({"parameters": {"binary_data_size": 8}}), "parameters a list": request_text({"parameters": []}),
    "request parameters": request_text(parameters=3), "flag a number": request_text(parameters={"binary_data_output": 1}),
    "outputs": request_text(outputs=[3]), "output without name": request_text(outputs=[{}]), "id a number": request_text(id=3),
    "not UTF-8": request_text().encode() + b"\xff", "BYTES numbers": request_text({"datatype": "BYTES"}),
    "BYTES count": request_text({"datatype": "BYTES", "data": ["a"]}),
    "BYTES ragged": request_text({"datatype": "BYTES", "data": [["a"], "b"]}),
    "not base64": request_text({"datatype": "BYTES", "data": ["a", "%%"], "parameters": {"content_type": "base64"}}),
    "lone surrogate": request_text({"datatype": "BYTES"}).replace("[1, 2]", r'["\ud800", ""]'),
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_refused(text):
    with pytest.raises(ProtocolError) as caught:
        decode_request(text if isinstance(text, bytes) else text.encode())
    assert caught.value.status in (400, 413)
    assert "\n" not in caught.value.summary


def binary(size, rest, datatype="FP32", shape=(2,), **more):
    tensor = {"name": "t", "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}, **more}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + rest, len(header)


BAD_BINARY = {
    "too short": binary(8, b"1234567"), "left over": binary(8, b"123456789"), "another size": binary(4, b"1234"),
    "negative": binary(-8, b"12345678"), "a float": binary(8.0, b"12345678"), "a bool": binary(True, b"1"),
    "both": binary(8, b"12345678", data=[1, 2]), "half a float": binary(7, b"1234567"), "bool of 2": binary(2, b"\1\2", "BOOL"),
    "element past end": binary(9, b"\1\0\0\0a\xff\xff\xff\xff", "BYTES"), "too few elements": binary(5, b"\1\0\0\0a", "BYTES"),
    "too many elements": binary(12, bytes(12), "BYTES"), "half a length": binary(2, b"\1\0", "BYTES", (1,)),
    "too many strings": binary(4, bytes(4), "BYTES", (2**20,)),
}


@pytest.mark.parametrize(("body", "length"), BAD_BINARY.values(), ids=BAD_BINARY.keys())
def test_malformed_binary_is_refused(body, length):
    with pytest.raises(ProtocolError):
        decode_request(body, length)


@pytest.mark.parametrize("text", ["0", "-1", "11", "1.0", "", " 1", "x", "9" * 400, "٣"])
def test_header_lengths_that_are_refused(text):
    with pytest.raises(ProtocolError, match=HEADER):
        read_header_length(text, 10)
    assert read_header_length(None, 10) is None
    assert read_header_length("10", 10) == 10


def test_size_limits_carry_413():
    with pytest.raises(ProtocolError) as caught:
        decode_request(request_text().encode(), max_json=10)
    assert caught.value.status == 413
    with pytest.raises(ProtocolError):
        decode_request(b"{}", 3)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_message_is_refused_or_read_never_worse(data):
    """Any flipped or cut byte: a ProtocolError, or a message; no other exception."""
    message = encode_request([Tensor("a", np.arange(3, dtype=np.float32)), Tensor("b", files_array([b"xyz", b""]))])
    body = bytearray(message.join())
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    length = data.draw(st.one_of(st.none(), st.just(message.header_length), st.integers(0, len(body) + 5)))
    for decode in (decode_request, decode_response):
        with contextlib.suppress(ProtocolError):
            decode(bytes(body), length)


def test_metadata_comes_back_and_is_checked():
    images, z = TensorMetadata("images", "FP32", (-1, 3, 8, 8)), TensorMetadata("embeddings", "FP32", (-1, 4))
    metadata = ModelMetadata("net", (images,), (z,), ("1",), "evenhand", {"max_batch": 8})
    assert ModelMetadata.from_json(json.loads(json.dumps(metadata.to_json()))) == metadata
    tensor = {"name": "i", "datatype": "FP32", "shape": [-1]}
    assert ModelMetadata.from_json({"name": "n", "inputs": [tensor], "outputs": []}).versions == ()
    undeclared = {"name": "n", "inputs": None, "outputs": None, "versions": None, "parameters": None}
    assert ModelMetadata.from_json(undeclared) == ModelMetadata("n", (), ())
    for bad in (None, [], {}, {"name": 3}, {"name": "n"}, {"name": "n", "inputs": [3], "outputs": []},
                {"name": "n", "inputs": [{**tensor, "shape": [-2]}], "outputs": []},
                {"name": "n", "inputs": [], "outputs": [], "versions": "1"}):
        with pytest.raises(ProtocolError):
            ModelMetadata.from_json(bad)


def test_addresses_and_error_bodies():
    assert model_path("a/b") == "/v2/models/a%2Fb"
    assert model_path("net", "2", "ready") == "/v2/models/net/versions/2/ready"
    assert read_error(error_body("no such model")) == "no such model"
    assert read_error(b'{"error":{"message":"quota","code":8}}') == "quota"
    assert read_error(b"<html><h1>502</h1>") == "a page of HTML"
    assert read_error(b"plain\n\x1b[31mtext") == "plain [31mtext"
    assert len(read_error(b"x" * 10_000)) == 300
