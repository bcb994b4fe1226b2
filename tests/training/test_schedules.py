"""Learning rates against torch's schedulers and MAE's formula."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from evenhand.config.schema import TrainerConfig
from evenhand.training.schedules import Plateau, learning_rate


def torch_rates(make, epochs, *values):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, rates = make(optimizer), []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*[column[epoch] for column in values])
    return rates


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"schedule": "cosine", "min_lr": 1e-3}, lambda o: lr_scheduler.CosineAnnealingLR(o, 12, 1e-3)),
        ({"schedule": "step", "step_size": 4, "gamma": 0.3}, lambda o: lr_scheduler.StepLR(o, 4, 0.3)),
        ({"schedule": "exponential", "gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    ],
)
def test_schedules_are_torchs_at_whole_epochs(options, make):
    trainer = TrainerConfig(max_epochs=12, **options)
    assert [learning_rate(epoch, trainer, 0.1) for epoch in range(12)] == pytest.approx(torch_rates(make, 12))


def test_the_published_dne_schedule_is_maes():
    trainer = TrainerConfig(max_epochs=50, warmup_epochs=5, min_lr=1e-5, base_lr=2.5e-4)
    peak = 2.5e-4 * 128 / 256
    for epoch in (0.0, 1.3, 4.999, 5.0, 17.25, 49.9):
        warm, cold = peak * epoch / 5, 1e-5 + (peak - 1e-5) * 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 45))
        assert learning_rate(epoch, trainer, peak) == pytest.approx(warm if epoch < 5 else cold)


def test_constant_warm_up_then_the_schedule_starts_from_its_beginning():
    trainer = TrainerConfig(schedule="step", step_size=2, gamma=0.5, warmup="constant", warmup_epochs=1, warmup_lr=1e-4)
    assert [learning_rate(epoch, trainer, 0.4) for epoch in (0, 0.5, 1, 2.9, 3, 5)] == pytest.approx([1e-4, 1e-4, 0.4, 0.4, 0.2, 0.1])


@pytest.mark.parametrize(("warmup", "torchs"), [("linear", lr_scheduler.LinearLR), ("constant", lr_scheduler.ConstantLR)])
def test_a_warm_up_from_a_share_of_the_peak_is_torchs(warmup, torchs):
    """The published recipe: LinearLR or ConstantLR with a factor of 0.01, then the schedule."""
    trainer = TrainerConfig(schedule="step", step_size=2, gamma=0.5, warmup=warmup, warmup_epochs=4, warmup_share=0.01, max_epochs=9)
    first = "start_factor" if warmup == "linear" else "factor"

    def make(optimizer):
        warm = torchs(optimizer, **{first: 0.01}, total_iters=4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own call of a deprecated argument
            return lr_scheduler.SequentialLR(optimizer, [warm, lr_scheduler.StepLR(optimizer, 2, 0.5)], [4])

    assert [learning_rate(epoch, trainer, 0.1) for epoch in range(9)] == pytest.approx(torch_rates(make, 9))


@given(st.lists(st.floats(0.01, 1, allow_nan=False), min_size=1, max_size=30), st.booleans(), st.integers(0, 3))
def test_plateau_is_torchs(values, maximise, patience):
    ours, rates = Plateau(0.5, patience, maximise), []
    for value in values:
        rates.append(0.1 * ours.factor)
        ours.update(value)
    mode = "max" if maximise else "min"
    expected = torch_rates(lambda o: lr_scheduler.ReduceLROnPlateau(o, mode, 0.5, patience, eps=0), len(values), values)
    assert rates == pytest.approx(expected)


def test_plateau_continues_from_its_state():
    one, values = Plateau(0.1, 1, True), [0.5, 0.4, 0.3, 0.2, 0.6, 0.5, 0.5]
    for value in values[:3]:
        one.update(value)
    two = Plateau(0.1, 1, True)
    two.load_state_dict(one.state_dict())
    for value in values[3:]:
        one.update(value)
        two.update(value)
    assert one.state_dict() == two.state_dict()


def test_a_peak_below_the_floor_does_not_rise_to_it():
    trainer = TrainerConfig(max_epochs=10, min_lr=1e-6)
    assert [learning_rate(epochs, trainer, 1e-7) for epochs in (0, 5, 10)] == [1e-7] * 3
