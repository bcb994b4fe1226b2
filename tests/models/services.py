"""The two medical embedding services on a `faulty_server`: they take and give exactly the documented JSON."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from tests.models import faulty_server as faulty


def open_png(text, mode):
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    assert (image.format, image.mode) == ("PNG", mode)
    pixels = np.asarray(image) / 255
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def cxr_service(server, fail=()):
    """Answers as the published predictor does: one object an instance, embeddings nested, errors in their place."""

    def handle(said):
        assert set(said) == {"instances"}
        predictions = []
        for k, instance in enumerate(said["instances"]):
            assert set(instance) == {"input_bytes"}
            row = faulty.embed(open_png(instance["input_bytes"], "L")[None])[0].tolist()
            server.n_images += 1
            good = {"general_img_emb": [row, [1.0, 2.0, 3.0]], "contrastive_img_emb": [row]}
            predictions.append({"error": {"description": "Failed to get prediction for instance."}} if k in fail else good)
        return 200, {"predictions": predictions, "deployedModelId": "1", "model": "projects/1/locations/x/models/1"}

    server.handle_json = handle


def azure_service(server, as_list):
    """Answers as documented (one object), or as deployed endpoints do (a list with an object an image)."""

    def handle(said):
        table = said["input_data"]
        assert set(said) == {"input_data", "params"}
        assert table["columns"] == ["image", "text"]
        assert table["index"] == list(range(len(table["data"])))
        images = np.stack([open_png(image, "RGB") for image, text in table["data"] if text == ""])
        server.n_images += len(images)
        server.images.append(images)
        rows = faulty.embed(images).tolist()
        return 200, [{"image_features": [row]} for row in rows] if as_list else {"image_features": rows}

    server.handle_json = handle
