"""One exception tree: every error a user can cause or meet carries its exit code.

An error is one summary line (what arrived, what the rule is, what to do) and any number of details. The command line
prints the summary and at most ten details; ``--problems FILE`` writes all of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class EvenhandError(Exception):
    """Base of all errors raised on purpose. Exit code 4: the environment or a run failed.

    Args:
        summary: one line: what arrived, what the rule is, what to do.
        details: further lines, one problem each; all of them are kept.
    """

    exit_code = 4

    def __init__(self, summary: str, details: Sequence[str] = ()) -> None:
        super().__init__(summary)
        self.summary = summary
        self.details = tuple(details)

    def __str__(self) -> str:
        shown = [f"  {line}" for line in self.details[:10]]
        hidden = len(self.details) - len(shown)
        more = [f"  … and {hidden} more"] if hidden > 0 else []
        return "\n".join([self.summary, *shown, *more])


class InputError(EvenhandError):
    """The input is wrong (exit code 2); nothing was written."""

    exit_code = 2


class ConfigError(InputError):
    """An option is unknown, of the wrong type, or contradicts another one."""


class TableError(InputError):
    """A table breaks the table contract; ``details`` holds every problem found."""


class ImageError(InputError):
    """Images are missing, unreadable, truncated or of a kind that is not supported."""


class CheckpointError(InputError):
    """A checkpoint is unsafe, truncated, or does not fit the architecture."""


class MethodError(InputError):
    """A method cannot be applied to this task (for example: multi-label where only binary makes sense)."""


class GateError(EvenhandError):
    """A gate given with ``--fail-if`` did not hold, or could not be estimated (exit code 3)."""

    exit_code = 3


class RunError(EvenhandError):
    """A run failed after it had started: state is kept and the same command continues (exit code 4)."""


class NonFiniteLossError(RunError):
    """The loss became NaN or infinite."""


class DiskFullError(RunError):
    """No space is left where a result was to be written; nothing half-written is left behind."""


class BudgetError(RunError):
    """The next request would send more images than the budget allows: nothing was sent, what was paid for is kept."""


class ServerError(RunError):
    """A server gave no usable answer: unreachable, refusing, too slow, or answering nonsense. Images answered before are kept.

    Args:
        summary: one line: what arrived, what the rule is, what to do.
        details: further lines.
        status: the HTTP status of the last answer, None where there was none.
        maybe_billed: the server may have done the work although no answer arrived.
    """

    def __init__(self, summary: str, details: Sequence[str] = (), status: int | None = None, maybe_billed: bool = False) -> None:
        super().__init__(summary, details)
        self.status = status
        self.maybe_billed = maybe_billed


class NotFiniteError(ServerError):
    """A server answered, and may bill it, but with embeddings that are NaN or infinite."""


class ProtocolError(InputError):
    """A message does not keep to the Open Inference Protocol.

    Args:
        summary: what is wrong with it.
        status: the HTTP status a server gives for it.
    """

    def __init__(self, summary: str, status: int = 400) -> None:
        super().__init__(summary)
        self.status = status


class DependencyError(EvenhandError):
    """A package is missing, too old, or two packages do not match (torch and torchvision)."""


def nearest(name: str, known: Sequence[str], cutoff: float = 0.6, otherwise: str | None = None) -> str:
    """What to do about an unknown name: the nearest known one, or all of them.

    Args:
        name: what arrived.
        known: the names there are.
        cutoff: least likeness, in [0, 1], of `difflib.get_close_matches`.
        otherwise: what is said when nothing is near; default: the known names.

    Example:
        >>> nearest("tprr", ["tpr", "auc"]), nearest("x", ["tpr", "auc"])
        ("did you mean 'tpr'?", 'known are tpr, auc')
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else otherwise or f"known are {', '.join(known)}"
