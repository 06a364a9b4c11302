"""What tells an argument that is wrong from a network, data or a trainer that does not suit."""

from __future__ import annotations

__all__ = ["WrongArgumentError", "is_wrong_argument"]


class WrongArgumentError(ValueError):
    """The caller has asked for what there is not: a name, a number or a choice that another would mend.

    A plain ValueError says that what was given to look at does not suit: nobody has asked for anything wrong.
    """


def is_wrong_argument(error: BaseException) -> bool:
    """Return whether a wrong argument is what an error, or what has caused it, is of; also on another rank.

    Example:
        >>> is_wrong_argument(WrongArgumentError("k=0: give 1 or more")), is_wrong_argument(ValueError("no labels"))
        (True, False)
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, WrongArgumentError) or getattr(cause, "wrong", False):
            return True
        cause = cause.__cause__
    return False
