"""One of several gloo processes: scores, trains, and saves what it got: python distributed_worker.py FOLDER."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import FolderStore, make_model, make_setup, make_split
from torch import distributed, nn

from evenhand.training import GroupDROLoss, predict_model, train_model

OPTIONS = {"max_epochs": 2, "accumulate": 2, "clip_norm": 1.0, "lr": 0.05, "weight_decay": 0.0}


def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 1))


def exact(store):
    """A model without random parts, under a loss with state: the same function on any number of processes."""
    cells = np.arange(45) % 2
    loss = GroupDROLoss("binary", np.bincount(cells), step_size=0.5)
    setup = make_setup(store=store, batch_size=7, **OPTIONS)
    outcome = train_model(linear(), make_split(45), make_split(21, seed=1), setup, loss=loss, cells=cells)
    return outcome, loss


def main(folder):
    rank = os.environ["RANK"]
    distributed.init_process_group("gloo")
    scores = predict_model(make_model(), make_split(23).x, 4, torch.device("cpu"), "binary")
    outcome, loss = exact(FolderStore(folder / f"exact{rank}"))
    noisy = make_setup(store=FolderStore(folder / f"noisy{rank}"), augment="chest_film", mixup=0.2, ema_decay=0.5, max_epochs=2)
    trained = train_model(make_model(), make_split(30), make_split(21, seed=1), noisy)
    again = train_model(make_model(), make_split(30), make_split(21, seed=1), noisy)
    saved = {"scores": torch.from_numpy(scores), "history": outcome.history, "exact": outcome.model.state_dict(), "q": loss.q}
    saved |= {"noisy": trained.model.state_dict(), "noisy_history": trained.history, "again": again.model.state_dict()}
    torch.save(saved, folder / f"out{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
