"""What docstrings say of a class and of its arguments, for help that is printed."""

from __future__ import annotations

import inspect
import re
import textwrap

__all__ = ["argument_texts", "first_sentence"]

_ENTRY = re.compile(r"^(\w+): *", re.MULTILINE)


def argument_texts(text: str | None) -> dict[str, str]:
    """Return what a docstring says of each argument, on one line each.

    Example:
        >>> argument_texts(first_sentence.__doc__)
        {'text': 'The docstring, or a part of one.'}
    """
    _, _, section = f"\n{inspect.cleandoc(text or '')}".partition("\nArgs:\n")
    section = textwrap.dedent(re.split(r"\n(?=\S)", section, maxsplit=1)[0])
    starts = [*_ENTRY.finditer(section)]
    ends = [*(start.start() for start in starts), len(section)][1:]
    return {start[1]: " ".join(section[start.end() : end].split()) for start, end in zip(starts, ends, strict=True)}


def first_sentence(text: str | None) -> str:
    """Return the first sentence of a docstring.

    Args:
        text: The docstring, or a part of one.

    Example:
        >>> first_sentence("Shows an image (Zeiler & Fergus 2013, Fig. 7). The same one at every look.")
        'Shows an image (Zeiler & Fergus 2013, Fig. 7).'
    """
    whole = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", whole, maxsplit=1)[0]
