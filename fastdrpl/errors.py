"""What can stop a run, with the exit code: 2 request, 3 data, 4 non-finite, 5 collapse, 75 preempted."""

from fastdrpl.loaders.errors import DataError, UserError

__all__ = ["CollapseError", "DataError", "NonFiniteError", "PreemptedError", "UserError"]


class NonFiniteError(UserError):
    """A loss or gradient stopped being a number; the update was not applied (exit code 4)."""

    exit_code = 4


class CollapseError(UserError):
    """The detection left fewer labelled samples than there are classes (exit code 5).

    `adjustable`: the settings (dotted names) with another value of which the run goes on from here.
    """

    exit_code = 5
    adjustable: tuple[str, ...] = ()


class PreemptedError(UserError):
    """A signal asked the run to stop; a checkpoint was written and the same command continues it (exit code 75)."""

    exit_code = 75
