"""One of several gloo processes: searches edits by queries and saves what it got: python query_worker.py FOLDER."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from queried import CHECKERS, SIZE, Encoder, config, make_task
from torch import distributed, nn

from evenhand.methods.editing.gezo import GeZO
from evenhand.models import ImageClassifier, LocalEmbedder, PaidEmbedder
from evenhand.models.shared import Relay, SharedEmbedder

OPTIMIZERS = ("gezo", "spsa", "cma", "surrogate")


class Network(nn.Module):
    """The black box of `queried` as a classifier's features."""

    num_features, num_classes, pretrained_cfg = Encoder.dim, 1, {"classifier": "head"}

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(Encoder.dim, 1)
        self.register_buffer("checkers", CHECKERS)

    def forward_features(self, images):
        return Encoder()(images)

    def forward_head(self, features, pre_logits):
        return features


def model():
    return ImageClassifier(Network(), mean=(0.0,), std=(1.0,), input_size=(SIZE, SIZE), name="toy")


def searched(optimizer, embedder):
    options = config(optimizer=optimizer, budget=900, validation_images=0 if optimizer == "surrogate" else 60)
    with PaidEmbedder(embedder, None, 900) as paid:
        task = replace(make_task(), embed=embedder.embed_images, embedder=paid)
        outcome = GeZO(options).fit_edit(task)
        found = outcome.report["search"]
        said = {"vector": outcome.edit.vector(), "history": [dict(record) for record in outcome.history], "n_sent": paid.n_sent}
        return said | {"images": found["images"], "kept": found["kept_round"], "wrote": bool(task.store.values)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    relay = Relay(torch.device("cpu"))
    if relay.rank > 0:
        helper = LocalEmbedder(model(), "fp32")
        relay.serve(lambda: helper)
        found = {"n_images": helper.n_images}
    else:
        with relay:
            shared = SharedEmbedder(relay, model(), "fp32")
            found = {name: searched(name, shared) for name in OPTIMIZERS} | {"n_images": shared.n_images}
    torch.save(found, Path(sys.argv[1]) / f"out{relay.rank}.pt")
    distributed.destroy_process_group()
