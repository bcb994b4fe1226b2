"""`evenhand power`: what is printed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evenhand.metrics.power import Plan, detectable_gap, needed_patients


def test_a_plan_is_printed_group_by_group(say: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = say(
        "power", "--metric", "auc", "--gap", "0.1", "--value", "0.85", "--prevalence", "0.1", "--share", "0.3",
        "--images-per-patient", "2", "--icc", "0.5", "--patients", "1000",
    )
    plan = Plan("auc", 0.85, (0.3, 0.7), 0.1, 2, 0.5)
    small, large = needed_patients(0.1, plan)
    assert code == 0
    assert f"with {small + large:,} patients" in out
    assert f"{small:,}" in out
    assert f"{large:,}" in out
    assert f"With 1,000 patients the smallest gap seen with a chance of 80% is {detectable_gap((300, 700), plan):.3f}." in out


def test_a_hopeless_study_is_told_so(say: Callable[..., tuple[int, str, str]]) -> None:
    assert "With 8 patients no gap can be seen." in say("power", "--patients", "8", "--prevalence", "0.2")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--share", "half"], "--share is 'half', but must be a number"),
        (["--share", "0.2,0.2"], "sum to 1"),
        (["--share", "1.5"], "shares of the groups are 1.5, -0.5"),
        (["--metric", "acu"], "no plan can be made for the metric 'acu'"),
        (["--gap", "0.9"], "a gap of 0.9 from auc 0.85 ends at -0.05"),
        (["--patients", "0"], "--patients is 0, which leaves a group without a patient"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(say: Callable[..., tuple[int, str, str]], words: list[str], says: str) -> None:
    code, _, err = say("power", *words)
    assert code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1
