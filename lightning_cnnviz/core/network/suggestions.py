"""The closest of the names that exist, for messages about a name that does not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = ["closest_names", "did_you_mean", "suggestion"]


def closest_names(asked: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Return at most `count` of the names that are spelled much like the one asked for, the closest first."""
    return difflib.get_close_matches(asked, list(names), n=count, cutoff=0.5)


def did_you_mean(names: Sequence[str]) -> str:
    """Return the question whether one of these names was meant; nothing where there is none.

    Example:
        >>> did_you_mean(["conv1", "conv2"])
        "Did you mean 'conv1' or 'conv2'?"
    """
    return "Did you mean " + " or ".join(f"'{name}'" for name in names) + "?" if names else ""


def suggestion(asked: str, names: Iterable[str], before: str = "") -> str:
    """Return the question whether one of the closest names was meant, after `before`; nothing where none is close."""
    question = did_you_mean(closest_names(asked, names))
    return f"{before}{question}" if question else ""
