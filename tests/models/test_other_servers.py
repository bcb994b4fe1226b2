"""The v2 client against servers that say and answer what Triton, KServe's Python runtime and MLServer do.

What each says was written down from their documentation and sources, not recorded from a running one.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from evenhand.config.schema import ModelConfig
from evenhand.errors import InputError, ServerError
from evenhand.models.open_inference import remote_fingerprints
from evenhand.models.protocol import HEADER, ModelMetadata
from evenhand.models.remote import RemoteEmbedder
from tests.models import faulty_server as faulty


class Speaks:
    """One kind of server behind `faulty_server`: its metadata, and an answer to every request that was read by hand."""

    def __init__(self, monkeypatch, server, metadata, answer, binary=False):
        self.server, self.requests, self.headers = server, [], []
        server.metadata, server.models = metadata, None

        def infer(handler, body, fault):
            length = handler.headers.get(HEADER)
            said = json.loads(body[: int(length)] if length else body)
            self.requests.append(said)
            self.headers.append(dict(handler.headers))
            (tensor,) = said["inputs"]
            if length:
                values = np.frombuffer(body[int(length) :], {"FP32": "<f4", "UINT8": "u1"}[tensor["datatype"]])
                assert values.nbytes == tensor["parameters"]["binary_data_size"]
            else:
                values = np.array(tensor["data"])
                assert values.ndim == 1
            reply = answer(said, faulty.embed(values.reshape(tensor["shape"])))
            handler.reply(200, *(reply if binary else (json.dumps(reply).encode(),)))

        monkeypatch.setattr(faulty.Handler, "infer", infer)

    def connect(self, **options):
        return RemoteEmbedder.from_config(ModelConfig(url=self.server.url, api_model=self.server.metadata["name"], retries=0, **options))


@pytest.fixture
def server():
    with faulty.serving() as running:
        yield running


def draw(n, channels=3):
    return torch.randint(0, 256, (n, channels, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 255


def right(images):
    return torch.from_numpy(faulty.embed(images.expand(-1, 3, -1, -1).numpy()))


def flat(name, rows, datatype="FP32", parameters=None):
    return {"name": name, "shape": list(rows.shape), "datatype": datatype, "parameters": parameters, "data": rows.ravel().tolist()}


def triton_says(said, rows):
    """Two outputs; those that were asked for come as bytes, each with its size, and the length of the JSON is in a header."""
    assert all(output["parameters"]["binary_data"] for output in said["outputs"])
    every = {"logits": rows[:, :1].astype("<f4"), "pooled": rows.astype("<f4")}
    chosen = {output["name"]: every[output["name"]] for output in said["outputs"]}
    outputs = [
        {"name": name, "datatype": "FP32", "shape": list(value.shape), "parameters": {"binary_data_size": value.nbytes}}
        for name, value in chosen.items()
    ]
    header = json.dumps({"model_name": "chest", "model_version": "3", "outputs": outputs}).encode()
    return header + b"".join(value.tobytes() for value in chosen.values()), {
        "Content-Type": "application/octet-stream", HEADER: str(len(header)),
    }


TRITON = {
    "name": "chest", "versions": ["1", "3"], "platform": "onnxruntime_onnx",
    "inputs": [{"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
    "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 1]}, {"name": "pooled", "datatype": "FP32", "shape": [-1, 3]}],
}


def test_triton(monkeypatch, server):
    speaks = Speaks(monkeypatch, server, TRITON, triton_says, binary=True)
    with pytest.raises(InputError, match=r"2 outputs \(logits, pooled\), none of them called 'embeddings'; choose .* model\.api_output"):
        speaks.connect()
    with pytest.raises(InputError, match=r"none of them called 'other'"):
        speaks.connect(api_output="other")
    with pytest.raises(InputError, match=r"no input 'x', but pixel_values; set model.api_input"):
        speaks.connect(api_input="x", api_output="pooled")
    pooled, logits = (speaks.connect(api_output=name) for name in ("pooled", "logits"))
    images = draw(4)
    torch.testing.assert_close(pooled(images), right(images))
    torch.testing.assert_close(logits(images), right(images)[:, :1])
    assert (pooled.dim, logits.dim, pooled.api.facts.version) == (3, 1, "3")
    assert pooled.fingerprint != logits.fingerprint
    assert {pooled.fingerprint, logits.fingerprint} == remote_fingerprints(ModelMetadata.from_json(TRITON), "chest")
    assert speaks.requests[0]["inputs"][0]["name"] == "pixel_values"
    assert speaks.headers[0][HEADER]
    torch.testing.assert_close(pooled(draw(2, 1)), right(draw(2, 1)))


def test_kserve(monkeypatch, server):
    """The Python runtime: no versions, nulls in the answer, outputs as flat lists under generated names."""
    metadata = {
        "name": "custom", "versions": None, "platform": "", "inputs": [{"name": "input-0", "datatype": "FP32", "shape": [-1, 3, 8, 8]}],
        "outputs": [{"name": "output-0", "datatype": "FP32", "shape": [-1, 3]}],
    }

    def says(said, rows):
        return {
            "model_name": "custom", "model_version": None, "id": "d2d2b1c8-6ef2", "parameters": None, "outputs": [flat("output-0", rows)],
        }

    speaks = Speaks(monkeypatch, server, metadata, says)
    images = draw(3)
    for form in ("json", "binary"):
        embedder = speaks.connect(api_format=form)
        torch.testing.assert_close(embedder(images), right(images))
        assert (embedder.dim, embedder.input_size, embedder.api.facts.version) == (3, (8, 8), "")
    server.metadata = {"name": "custom", "platform": "", "inputs": [], "outputs": []}
    torch.testing.assert_close(speaks.connect(api_format="json", api_input="input-0")(images), right(images))
    assert speaks.requests[-1]["inputs"][0]["name"] == "input-0"
    assert "outputs" not in speaks.requests[-1]


def mlserver_says(said, rows):
    """numpy's codec: float64, a content type on the answer and on every output."""
    outputs = [flat("features", rows.astype(np.float64), "FP64", {"content_type": "np"})]
    return {
        "model_name": "derm", "model_version": None, "id": "6d9c6e2e-3f0a", "parameters": {"content_type": "np", "headers": None},
        "outputs": outputs,
    }


@pytest.mark.parametrize("nothing", [[], None], ids=["empty", "null"])
def test_mlserver(monkeypatch, server, nothing):
    """Neither inputs nor outputs stand in model-settings.json."""
    metadata = {"name": "derm", "versions": nothing, "platform": "", "inputs": nothing, "outputs": nothing, "parameters": nothing and {}}
    speaks = Speaks(monkeypatch, server, metadata, mlserver_says)
    embedder = speaks.connect(api_format="json", input_size=[8, 8])
    images = draw(3)
    assert (embedder.channels, embedder.input_size) == (3, (8, 8))
    torch.testing.assert_close(embedder(images), right(images))
    torch.testing.assert_close(embedder(draw(2, 1)), right(draw(2, 1)))
    sent = speaks.requests[-1]["inputs"][0]
    assert {key: sent[key] for key in ("name", "datatype", "shape")} == {"name": "images", "datatype": "FP32", "shape": [2, 3, 8, 8]}
    assert embedder.dim == 3
    large = torch.nn.functional.interpolate(images, scale_factor=2)
    embedder(large)
    assert speaks.requests[-1]["inputs"][0]["shape"] == [3, 3, 8, 8], "brought to model.input_size"
    levels = speaks.connect(api_format="json_uint8", api_input="x", api_output="features")
    levels(images)
    assert [speaks.requests[-1]["inputs"][0][key] for key in ("name", "datatype")] == ["x", "UINT8"]
    assert speaks.requests[-1]["outputs"][0]["name"] == "features"


def test_outputs_that_no_metadata_declared_are_chosen_from_the_answer(monkeypatch, server):
    several = ["logits", "features"]

    def says(said, rows):
        return {"model_name": "derm", "outputs": [flat(name, rows[:, : 1 + 2 * k], "FP64") for k, name in enumerate(several)]}

    speaks = Speaks(monkeypatch, server, {"name": "derm", "inputs": [], "outputs": []}, says)
    with pytest.raises(ServerError, match=r"2 outputs \(logits, features\), none called 'embeddings'; .* model\.api_output") as caught:
        speaks.connect(api_format="json")(draw(1))
    assert caught.value.maybe_billed
    with pytest.raises(ServerError, match=r"none called 'z'; choose one with model\.api_output"):
        speaks.connect(api_format="json", api_output="z")(draw(1))
    torch.testing.assert_close(speaks.connect(api_format="json", api_output="features")(draw(2)), right(draw(2)))
    several[1] = "Embeddings"
    torch.testing.assert_close(speaks.connect(api_format="json")(draw(2)), right(draw(2)))


def test_a_model_of_several_inputs(monkeypatch, server):
    pixels = {"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 8, 8]}
    optional = {"name": "text", "datatype": "BYTES", "shape": [-1]}
    metadata = {"name": "two", "inputs": [optional, pixels], "outputs": [{"name": "z", "datatype": "FP32", "shape": [-1, 3]}]}
    speaks = Speaks(monkeypatch, server, metadata, lambda said, rows: {"model_name": "two", "outputs": [flat("z", rows)]})
    with pytest.raises(InputError, match=r"2 inputs \(text, pixels\).*model.api_input"):
        speaks.connect()
    torch.testing.assert_close(speaks.connect(api_format="json", api_input="pixels")(draw(2)), right(draw(2)))
