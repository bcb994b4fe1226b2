"""What the brain MR sets share: the picture that is taken out of a volume."""

from __future__ import annotations

from evenhand.data.sources.base import Option

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Plane -> the axis it lies across, where axes run to the patient's right, front and top."""
PLANE = Option("plane", tuple(PLANES), "the direction in which the volume is cut or projected")
VIEW = Option(
    "view", ("middle", "mean", "max"),
    "the picture of a volume: its middle slice (n // 2), or the mean or maximum over all slices; the same rule for every scan",
)


def picture(path: str, axis: int, view: str, upright: bool = True) -> str:
    """The reference of a volume's picture; MR has no units, so values run from the volume's 0.5 to its 99.5 percentile.

    Example:
        >>> picture("scan.nii", 2, "middle")
        'scan.nii#axis=2&slice=middle&scale=percentile&orient=ras'
        >>> picture("series/", 0, "max", upright=False)
        'series/#axis=0&project=max&scale=percentile'
    """
    taken = "slice=middle" if view == "middle" else f"project={view}"
    return f"{path}#axis={axis}&{taken}&scale=percentile" + ("&orient=ras" if upright else "")
