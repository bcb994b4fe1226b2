"""One of several gloo processes around one encoder: python shared_worker.py FOLDER CASE; what it got is saved in FOLDER."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from torch import distributed

from evenhand.errors import EvenhandError
from evenhand.models import ImageClassifier, LocalEmbedder
from evenhand.models.shared import Relay, SharedEmbedder

SIZES = (1, 2, 5, 8)
CPU = torch.device("cpu")


class Pixels:
    """Thirteen images."""

    shape = (1, 32, 32)
    fingerprint = "pixels"

    def __len__(self):
        return 13

    def batch(self, positions):
        return pictures(13)[np.arange(13)[positions]]


def pictures(n):
    return torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(7))


def model(seed=0):
    torch.manual_seed(seed)
    network = timm.create_model("test_vit", num_classes=1, img_size=32)
    return ImageClassifier(network, mean=(0.5,) * 3, std=(0.5,) * 3, input_size=(32, 32), name="test_vit")


class Picky(LocalEmbedder):
    """Embeds no batch whose first image is black."""

    def __call__(self, images):
        if not images[0].any():
            raise ValueError("a black image came first")
        return super().__call__(images)


def said(action):
    """The error of an action, in words; and whether the next request works all the same."""
    try:
        action()
    except (EvenhandError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def helping(make):
    """The others' side of one relay."""
    return said(lambda: Relay(CPU).serve(make))


def asking(use):
    """The first's side."""
    with Relay(CPU) as relay:
        return use(SharedEmbedder(relay, model(), "fp32", batch_size=2))


def spoilt(rank):
    """Six images, two for each of three processes, of which that of one process begins with a black one."""
    images = pictures(6)
    images[2 * rank] = 0
    return images


def works(rank):
    """Everything that leaves all processes alive: what each of them saw of it."""
    if rank:
        found = [helping(lambda: LocalEmbedder(model(), "fp32"))]
        found.append(helping(lambda: Picky(model(), "fp32")))
        found.append(helping(lambda: LocalEmbedder(model(rank), "fp32")))
        found.append(helping(lambda: LocalEmbedder(model(), "fp64" if rank == 2 else "fp32")))
        return {"helped": [*found, helping(lambda: LocalEmbedder(model(), "fp32"))]}

    def embedded(shared):
        calls = {n: shared(pictures(n)) for n in SIZES}
        return {"calls": calls, "whole": torch.from_numpy(shared.embed_images(Pixels())), "n": shared.n_images, "shared": shared}

    def refused(shared):
        texts = [said(lambda: shared(spoilt(1))), said(lambda: shared(spoilt(2)))]
        own, shared.classifier.features = shared.classifier.features, failing
        texts.append(said(lambda: shared(pictures(6))))
        shared.classifier.features = own
        return [*texts, shared(pictures(6))]

    def failing(_):
        raise ValueError("the first cannot")

    done = asking(embedded)
    done["alone"] = done.pop("shared")(pictures(3))
    done["refused"] = asking(refused)
    done["weights"] = asking(lambda shared: said(lambda: shared(pictures(6))))
    done["unbuilt"] = asking(lambda shared: said(lambda: shared(pictures(6))))
    done["failed"] = said(lambda: asking(lambda shared: failing(shared)))
    return done


def first_dies(rank):
    if rank:
        return {"helped": helping(lambda: LocalEmbedder(model(), "fp32"))}
    return asking(lambda shared: os.kill(os.getpid(), signal.SIGKILL))


def other_dies(rank):
    class Deadly(LocalEmbedder):
        def __call__(self, images):
            os.kill(os.getpid(), signal.SIGKILL)

    if rank:
        return helping(lambda: Deadly(model(), "fp32"))
    return {"said": asking(lambda shared: said(lambda: shared(pictures(6))))}


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(globals()[sys.argv[2]](rank), Path(sys.argv[1]) / f"out{rank}.pt")
