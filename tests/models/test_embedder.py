"""The frozen encoder on this machine."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch.autograd import gradcheck

from evenhand.config.schema import ModelConfig
from evenhand.errors import InputError, RunError
from evenhand.methods.base import Embedder
from evenhand.models import ImageClassifier, LocalEmbedder, build_classifier
from evenhand.models.conformance import EmbedderConformance


class TestVitConforms(EmbedderConformance):
    @pytest.fixture(autouse=True)
    def _network(self, make_classifier):
        self.make_classifier = make_classifier

    def make_embedder(self):
        return LocalEmbedder(self.make_classifier(), precision="fp32")


class TestConvolutionalConforms(EmbedderConformance):
    def make_embedder(self):
        torch.manual_seed(0)
        network = timm.create_model("resnet10t", num_classes=1)
        model = ImageClassifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="resnet10t")
        return LocalEmbedder(model, precision="fp32")


def test_is_an_embedder(classifier):
    assert isinstance(LocalEmbedder(classifier), Embedder)


def test_embed_images_is_the_bare_network(classifier, images):
    expected = classifier.embed(torch.from_numpy(images.pixels)).detach().numpy()
    embedder = LocalEmbedder(classifier, precision="fp32", batch_size=3)
    np.testing.assert_allclose(embedder.embed_images(images), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_images(images, batch_size=7, progress=True), expected, rtol=1e-4, atol=1e-5)
    assert embedder.n_images == 20


def test_gradient_with_respect_to_images(make_classifier):
    embedder = LocalEmbedder(make_classifier().double(), precision="fp32")
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plane = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def shifted(shift):
        return embedder.classifier.embed(pixels + shift.sum())

    assert gradcheck(shifted, (plane,), eps=1e-6, atol=1e-4)
    assert all(parameter.grad is None for parameter in embedder.classifier.parameters())


def test_fingerprint_is_that_of_the_encoder_not_of_the_head():
    config = ModelConfig(name="mobilenetv3_small_050", input_size=[32, 32])
    first = build_classifier(config, 2, 0)
    second = build_classifier(config, 2, 0)
    with torch.no_grad():
        second.network.classifier.weight.add_(1)
    assert LocalEmbedder(first).fingerprint == LocalEmbedder(second).fingerprint
    with torch.no_grad():
        second.network.conv_stem.weight.add_(1)
    assert LocalEmbedder(first).fingerprint != LocalEmbedder(second).fingerprint


def test_auto_takes_bf16_only_where_it_agrees(monkeypatch, classifier, images):
    monkeypatch.setattr("evenhand.models.embedder.has_fast_bf16", lambda device: True)
    embedder = LocalEmbedder(classifier)
    assert embedder.settled is None
    chosen = embedder.settle(images)
    assert embedder.agreement is not None
    assert chosen == ("bf16" if embedder.agreement.accepted else "fp32")

    def noisy(exact, approximate):
        from evenhand.models import measure_agreement

        return measure_agreement(exact, -exact)

    monkeypatch.setattr("evenhand.models.embedder.measure_agreement", noisy)
    refused = LocalEmbedder(classifier)
    assert refused.settle(images) == "fp32"
    assert not refused.agreement.accepted
    assert str(refused.agreement) == "of 10 images the cosine is at least -1.0000, and scores correlate by -1.0000"


def test_auto_without_the_instructions_is_fp32(monkeypatch, classifier, images):
    monkeypatch.setattr("evenhand.models.embedder.has_fast_bf16", lambda device: False)
    embedder = LocalEmbedder(classifier)
    assert embedder.settle(images) == "fp32"
    assert embedder.agreement is None


def test_bf16_is_close(classifier, images):
    exact = LocalEmbedder(classifier, "fp32").embed_images(images)
    half = LocalEmbedder(classifier, "bf16").embed_images(images)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


def test_not_finite_embeddings_stop_the_run(classifier, images):
    with torch.no_grad():
        classifier.network.norm.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="10 of 10 embeddings are not finite"):
        LocalEmbedder(classifier, "fp32").embed_images(images)


def test_no_images_and_bad_arguments(classifier, make_images):
    empty = make_images(np.zeros((0, 3, 32, 32), np.float32))
    assert LocalEmbedder(classifier).embed_images(empty).shape == (0, 32)
    with pytest.raises(InputError, match="precision is 'fp8'"):
        LocalEmbedder(classifier, precision="fp8")
    with pytest.raises(InputError, match="batch_size is 0"):
        LocalEmbedder(classifier, batch_size=0)


def test_reading_fails_as_itself(classifier, images, monkeypatch):
    def broken(positions):
        raise OSError("gone")

    monkeypatch.setattr(images, "batch", broken)
    with pytest.raises(OSError, match="gone"):
        LocalEmbedder(classifier, "fp32").embed_images(images)
