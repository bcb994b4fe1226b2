"""Counts in sentences: one row was, two rows were."""

from __future__ import annotations


def counted(n: int, one: str, many: str, of: int | None = None) -> str:
    """A count with the words that agree with it.

    Args:
        n: how many.
        one: what follows a 1, as ``row was``.
        many: what follows any other count, as ``rows were``.
        of: out of how many; the words then follow this number, as in "1 of 24 images is".

    Example:
        >>> counted(1, "row was", "rows were"), counted(2000, "row was", "rows were")
        ('1 row was', '2,000 rows were')
        >>> counted(1, "images is", "images are", of=24)
        '1 of 24 images is'
    """
    share = "" if of is None else f"of {of:,} "
    return f"{n:,} {share}{one if n == 1 else many}"
