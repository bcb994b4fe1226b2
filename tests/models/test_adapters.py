"""CXR Foundation and MedImageInsight against a local server that speaks exactly their documented JSON."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenhand.config.schema import ModelConfig
from evenhand.errors import InputError, ServerError
from evenhand.models import PaidEmbedder
from evenhand.models.remote import RemoteEmbedder
from tests.models import faulty_server as faulty
from tests.models.services import azure_service, cxr_service


@pytest.fixture
def server():
    with faulty.serving() as running:
        yield running


def draw(n, channels, size=8, seed=0):
    return torch.randint(0, 256, (n, channels, size, size), generator=torch.Generator().manual_seed(seed)).float() / 255


def test_cxr_foundation(server, monkeypatch):
    cxr_service(server)
    server.token = "gcloud"
    monkeypatch.setenv("EVENHAND_TOKEN", "gcloud")
    url = server.url + "/v1/projects/p/locations/l/endpoints/1:predict"
    embedder = RemoteEmbedder(url, api="cxr_foundation")
    images = draw(5, 1)
    out = embedder(images)
    expected = faulty.embed(images.numpy())
    assert np.allclose(out[:, :3], expected, atol=1e-6)
    assert np.allclose(out[:, 3:], [1, 2, 3])
    assert (embedder.dim, embedder.channels, embedder.levels, embedder.differentiable) == (6, 1, 256, False)
    assert server.seen == ["/v1/projects/p/locations/l/endpoints/1:predict"]
    contrastive = RemoteEmbedder(url, api="cxr_foundation", api_model="contrastive_img_emb")
    assert np.allclose(contrastive(images), expected, atol=1e-6)
    assert contrastive.fingerprint != embedder.fingerprint
    with pytest.raises(InputError, match="general_img_emb and contrastive_img_emb"):
        RemoteEmbedder(url, api="cxr_foundation", api_model="elixr")


def test_cxr_foundation_keeps_requests_small(server, monkeypatch):
    cxr_service(server)
    embedder = RemoteEmbedder(server.url, api="cxr_foundation")
    embedder.api.max_bytes = 600
    images = draw(9, 1)
    assert np.allclose(embedder(images)[:, :3], faulty.embed(images.numpy()), atol=1e-6)
    assert len(server.seen) >= 3
    assert server.n_images == 9


def test_cxr_foundation_instances_that_failed(server):
    cxr_service(server, fail=(1,))
    with pytest.raises(ServerError, match=r"could not embed 1 of 3 images: Failed to get prediction") as caught:
        RemoteEmbedder(server.url, api="cxr_foundation")(draw(3, 1))
    assert caught.value.maybe_billed


@pytest.mark.parametrize("as_list", [False, True], ids=["documented", "deployed"])
def test_medimageinsight(server, as_list):
    azure_service(server, as_list)
    embedder = RemoteEmbedder(server.url + "/score", api="medimageinsight")
    colour, grey = draw(3, 3), draw(2, 1)
    assert np.allclose(embedder(colour), faulty.embed(colour.numpy()), atol=1e-6)
    assert np.allclose(server.images[-1], colour.numpy())
    assert np.allclose(embedder(grey), faulty.embed(grey.numpy()), atol=1e-6)
    assert (embedder.dim, embedder.levels, server.seen) == (3, 256, ["/score", "/score"])
    embedder(draw(40, 1))
    assert [len(images) for images in server.images[2:]] == [32, 8]


def test_the_width_is_asked_for_once_and_counted(server, tmp_path):
    azure_service(server, True)
    with PaidEmbedder(RemoteEmbedder(server.url, api="medimageinsight"), tmp_path, budget=5) as paid:
        assert (paid.dim, paid.n_sent) == (3, 1)
        paid(draw(4, 3))
        assert (paid.n_sent, server.n_images) == (5, 5)


@pytest.mark.parametrize("api", ["cxr_foundation", "medimageinsight"])
def test_images_off_the_8_bit_grid_are_refused(server, api):
    with pytest.raises(InputError, match=r"8-bit levels.*model\.api_lossy=true"):
        RemoteEmbedder(server.url, api=api)(draw(2, 1) * 0.999)
    assert server.seen == []


@pytest.mark.parametrize("api", ["cxr_foundation", "medimageinsight"])
def test_16_bit_images_are_rounded_where_that_was_asked_for(server, api):
    cxr_service(server) if api == "cxr_foundation" else azure_service(server, True)
    embedder = RemoteEmbedder.from_config(ModelConfig(url=server.url, api=api, api_lossy=True))
    images = torch.randint(0, 65536, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).float() / 65535
    rounded = np.rint(images.numpy() * 255) / 255
    assert np.allclose(embedder(images)[:, :3], faulty.embed(rounded), atol=1e-6)
    assert not np.allclose(faulty.embed(images.numpy()), faulty.embed(rounded), atol=1e-6)
    assert embedder.notes


BAD = {
    "empty": {}, "list": [], "null": None, "text": "x", "no features": [{"text_features": [[1]]}], "no predictions": {"predictions": 3},
    "not objects": {"predictions": [1]}, "other key": {"predictions": [{"img_emb": [1.0]}]},
    "ragged": {"predictions": [{"general_img_emb": [[1.0], [2.0, 3.0]]}], "image_features": [[1.0], [2.0, 3.0]]},
    "words": {"predictions": [{"general_img_emb": ["a"]}], "image_features": [["a"]]},
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("api", ["cxr_foundation", "medimageinsight"])
def test_answers_of_another_form_are_refused(server, api, said):
    server.handle_json = lambda request: (200, said)
    with pytest.raises(ServerError, match="cannot be read"):
        RemoteEmbedder(server.url, api=api, sleep=lambda seconds: None)(draw(1, 1))
