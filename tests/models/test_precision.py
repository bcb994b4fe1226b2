"""The check that bf16 gives the same embeddings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evenhand.errors import InputError
from evenhand.models import measure_agreement
from evenhand.models.precision import arithmetic, check_precision


def test_by_hand():
    exact = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    agreement = measure_agreement(exact, torch.tensor([[3.0, 0.3], [0.0, 4.0]]))
    assert agreement.min_cosine == pytest.approx(3 / math.hypot(3, 0.3))
    assert agreement.max_relative_error == pytest.approx(0.1)
    assert agreement.spread_error == pytest.approx(math.sqrt(0.09 / 2) / 2.5)
    assert not agreement.accepted


def test_a_common_offset_does_not_hide_the_error():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(16, 8, generator=generator)
    noisy = signal + 0.5 * torch.randn(16, 8, generator=generator)
    agreement = measure_agreement(signal + 1000, noisy + 1000)
    assert agreement.min_cosine > 0.999
    assert not agreement.accepted


def test_score_correlation_is_that_of_noise_in_standardised_scores():
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(4000, 16, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 16) + 5
    noise = torch.randn(4000, 16, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 16)
    for size, accepted in ((0.03, True), (0.06, False), (0.2, False)):
        agreement = measure_agreement(signal, signal + size * noise)
        assert agreement.score_correlation == pytest.approx(1 / math.sqrt(1 + size**2), abs=0.1 * size**2)
        assert (agreement.score_correlation >= 0.999) is accepted


def test_noise_in_small_dimensions_counts_as_much_as_in_large_ones():
    signal = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0] + [0.01] * 7)
    noisy = signal.clone()
    noisy[:, 1:] = noisy[:, 1:].flip(0)
    agreement = measure_agreement(signal, noisy)
    assert agreement.spread_error < 1e-3
    assert not agreement.accepted


def test_not_finite_is_refused():
    exact = torch.ones(2, 2)
    assert not measure_agreement(exact, exact * float("nan")).accepted


def test_identical_images_have_no_spread():
    agreement = measure_agreement(torch.ones(2, 2), torch.ones(2, 2))
    assert math.isnan(agreement.spread_error)
    assert agreement.accepted
    assert agreement.to_json()["spread_error"] is None


@given(st.integers(2, 20), st.integers(1, 8), st.integers(0, 10))
def test_equal_embeddings_always_agree(n, d, seed):
    drawn = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    agreement = measure_agreement(drawn, drawn)
    assert agreement.accepted
    assert agreement.max_relative_error == 0


def test_arithmetic_and_names():
    with arithmetic("bf16", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with arithmetic("fp32", torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(InputError, match="auto, fp32, bf16"):
        check_precision("fp8")
