"""One training loop for every method, with its losses, schedules and checkpoints."""

from evenhand.training.loop import TrainOutcome, predict_model, train_model
from evenhand.training.losses import GroupDROLoss, Loss, MaskedLoss, balanced_class_weights, batch_class_weights
from evenhand.training.settings import Setup, TrainSetup
from evenhand.training.watching import EpochFacts, StopTraining, Watch

__all__ = [
    "EpochFacts",
    "GroupDROLoss",
    "Loss",
    "MaskedLoss",
    "Setup",
    "StopTraining",
    "TrainOutcome",
    "TrainSetup",
    "Watch",
    "balanced_class_weights",
    "batch_class_weights",
    "predict_model",
    "train_model",
]
