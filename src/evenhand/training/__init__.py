"""One training loop for every method, with its losses, schedules and checkpoints."""

from evenhand.training.loop import TrainOutcome, predict_model, train_model
from evenhand.training.losses import GroupDROLoss, Loss, MaskedLoss, balanced_class_weights
from evenhand.training.settings import Setup, TrainSetup

__all__ = [
    "GroupDROLoss",
    "Loss",
    "MaskedLoss",
    "Setup",
    "TrainOutcome",
    "TrainSetup",
    "balanced_class_weights",
    "predict_model",
    "train_model",
]
