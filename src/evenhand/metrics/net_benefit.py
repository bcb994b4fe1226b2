"""Net benefit: what decisions at a threshold are worth when the threshold itself says how harms and benefits weigh."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evenhand.errors import ConfigError


def threshold_odds(threshold: float | None) -> float:
    """t / (1 - t); NaN where there is no threshold, or where it is not in [0, 1).

    Example:
        >>> threshold_odds(0.2), threshold_odds(None)
        (0.25, nan)
    """
    return threshold / (1 - threshold) if threshold is not None and 0 <= threshold < 1 else float("nan")


def why_no_net_benefit(threshold: float | None) -> str:
    """Why net benefit is not defined at a threshold; empty where it is."""
    if threshold is None:
        return "decisions were given without a threshold, so harms and benefits have no weights"
    return "" if 0 <= threshold < 1 else f"the threshold is {threshold:g}, and its odds are not defined"


def net_benefit(y_true: npt.ArrayLike, decision: npt.ArrayLike, threshold: float, weight: npt.ArrayLike | None = None) -> float:
    r"""Cases found, less false alarms weighted by the odds of the threshold, per case.

    :math:`P(D=1, Y=1) - P(D=1, Y=0) \, t / (1 - t)`: whoever acts from a probability t on says that one case found is
    worth (1 - t) / t false alarms. To treat nobody has 0; to treat everybody has :math:`P(Y=1) - P(Y=0) \, t / (1 - t)`.

    It depends on the prevalence, so groups of different prevalence differ under the best of models. More than two groups:
    the gap is the largest minus the smallest group's value; it may be negative, so there is no ratio. scikit-learn,
    fairlearn and torchmetrics do not have it.

    Args:
        y_true: (n,) in {0, 1}.
        decision: (n,) in {0, 1}.
        threshold: t in [0, 1), a probability.
        weight: (n,) not negative; default: all 1.

    Returns:
        A number in [-t / (1 - t), 1], NaN without rows.

    Raises:
        ConfigError: the threshold is not in [0, 1).

    Example:
        >>> net_benefit([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], 0.5)
        0.0
        >>> round(net_benefit([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], 0.2), 3)
        0.15

    References:
        Vickers and Elkin, Decision curve analysis, Medical Decision Making 26 (2006) 565.
    """
    if not 0 <= threshold < 1:
        raise ConfigError(f"the threshold is {threshold:g}, but net benefit needs one in [0, 1), as 0.2")
    y, d = np.asarray(y_true) == 1, np.asarray(decision) == 1
    weights = np.ones(len(y)) if weight is None else np.asarray(weight, float)
    total = float(weights.sum())
    if total <= 0:
        return float("nan")
    return float((weights @ (y & d) - weights @ (~y & d) * threshold_odds(threshold)) / total)
