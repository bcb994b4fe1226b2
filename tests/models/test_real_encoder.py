"""The real encoder on real images: frozen features must carry the published signal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evenhand.config.schema import ModelConfig
from evenhand.models import LocalEmbedder, build_classifier


@pytest.mark.slow
def test_mobilenet_features_of_skin_lesions(shared, ham10000, make_images):
    path = shared / "weights" / "mobilenet_v1_075" / "mobilenet_v1_075_224_imagenet.safetensors"
    if not path.is_file():
        pytest.skip("the MobileNet weights are not in the shared folder")
    table = pd.read_csv(ham10000 / "metadata.csv")
    pixels = np.stack([np.asarray(Image.open(ham10000 / "images" / name.removeprefix("images/"))) for name in table["image"]])

    class Stored(type(make_images(pixels))):
        def batch(self, positions):
            return torch.from_numpy(self.pixels[positions]).permute(0, 3, 1, 2).float() / 255

    model = build_classifier(ModelConfig(name="mobilenetv1_075", checkpoint=str(path)), 1, 0)
    features = LocalEmbedder(model, "fp32").embed_images(Stored(pixels))
    train, test = (table["split"] == "train").to_numpy(), (table["split"] == "test").to_numpy()
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (0.1 * train.sum()), max_iter=2000))
    probe.fit(features[train], table["malignant"][train])
    assert 0.87 < roc_auc_score(table["malignant"][test], probe.decision_function(features[test])) < 0.92
