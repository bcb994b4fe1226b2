"""`evenhand power`: how many patients a study needs to see a gap, before there are data."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def power_command(
    metric: Annotated[str, typer.Option("--metric", help="auc, tpr, fnr, fpr, tnr, accuracy or positive_rate.")] = "auc",
    gap: Annotated[float, typer.Option("--gap", help="Difference between the two groups furthest apart.")] = 0.1,
    value: Annotated[float, typer.Option("--value", help="The metric in the better group.")] = 0.85,
    prevalence: Annotated[str, typer.Option("--prevalence", help="Share of positive images; one number, or one a group.")] = "0.5",
    share: Annotated[
        str, typer.Option("--share", help="Share of the patients in a group: one number for two groups, or one a group, as 0.2,0.3,0.5.")
    ] = "0.5",
    images: Annotated[float, typer.Option("--images-per-patient", help="Images a patient, on average.")] = 1.0,
    icc: Annotated[float, typer.Option("--icc", help="Correlation of two images of one patient (0 to 1).")] = 0.0,
    tests: Annotated[int, typer.Option("--tests", help="Tests in the corrected family (metrics x attributes x labels).")] = 1,
    alpha: Annotated[float, typer.Option("--alpha", help="Chance of a false claim in the whole family.")] = 0.05,
    power: Annotated[float, typer.Option("--power", help="Wanted chance to claim the gap when it is there.")] = 0.8,
    patients: Annotated[
        Optional[int], typer.Option("--patients", help="Patients there are in all: also says which gap can be seen with them.")
    ] = None,
) -> None:
    """Plan a study: how many patients it takes to see a gap of a given size, between whichever two groups it is.

    Example: evenhand power --metric auc --value 0.85 --gap 0.1 --prevalence 0.1 --share 0.3 --images-per-patient 2 --icc 0.5
    """
    from evenhand.errors import ConfigError
    from evenhand.metrics.power import Plan, detectable_gap, needed_patients

    shares = _numbers("--share", share)
    if len(shares) == 1:
        shares = (shares[0], 1 - shares[0])
    rates = _numbers("--prevalence", prevalence)
    plan = Plan(metric, value, shares, rates if len(rates) > 1 else rates[0], images, icc, alpha, tests, power)
    groups = needed_patients(gap, plan)
    typer.echo(
        f"{metric} {value:g} in one group and {plan.worse(gap):g} in another: a gap of {gap:g} is claimed with a chance of {power:.0%}\n"
        f"(adjusted p < {alpha:g}, {len(shares)} groups, {tests} test{'s' * (tests != 1)} in the family) with {sum(groups):,} patients\n"
    )
    typer.echo(f"{'group':>8}{'share':>8}{'patients':>12}{'images':>12}{'positive':>12}")
    for k, (n, part, rate) in enumerate(zip(groups, shares, plan.prevalences, strict=True), 1):
        typer.echo(f"{k:>8}{part:>8.0%}{n:>12,}{n * images:>12,.0f}{n * images * rate:>12,.0f}")
    if patients is not None:
        counts = [round(patients * part) for part in shares]
        if min(counts) < 1:
            raise ConfigError(f"--patients is {patients}, which leaves a group without a patient")
        seen = detectable_gap(counts, plan)
        said = "no gap can be seen" if seen is None else f"the smallest gap seen with a chance of {power:.0%} is {seen:.3f}"
        typer.echo(f"\nWith {patients:,} patients {said}.")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    from evenhand.errors import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} is '{text}', but must be a number or several separated by commas, as 0.2,0.3,0.5") from error
