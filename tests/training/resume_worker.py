"""Trains in a process of its own, slowly enough to be killed: python resume_worker.py STORE PAUSE."""

import sys
import time

from conftest import FolderStore, make_model, make_setup, make_split

from evenhand.training import train_model


def say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def work(store, pause, report):
    options = {"max_epochs": 4, "ema_decay": 0.6, "mixup": 0.3, "accumulate": 2}
    setup = make_setup(store=FolderStore(store), augment="dermoscopy", report=report, **options)
    train = make_split(48, channels=3)
    read = train.x.batch
    train.x.batch = lambda positions: (time.sleep(pause), read(positions))[1]
    outcome = train_model(make_model(channels=3), train, make_split(20, seed=1, channels=3), setup)
    report(f"done {outcome.best_epoch}")


if __name__ == "__main__":
    work(sys.argv[1], float(sys.argv[2]), say)
