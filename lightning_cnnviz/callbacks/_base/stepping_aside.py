"""Whether a failure is the caller's, or the network, its data or the trainer does not suit a view; and what is said."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cnnviz.core.data.distributed import OtherRankError
from lightning_cnnviz.core.network.arguments import is_wrong_argument
from lightning_cnnviz.core.network.layers import LayerNotFoundError

__all__ = [
    "chooses_layers_itself",
    "is_callers",
    "is_in_our_words",
    "list_of_those_aside",
    "what_was_found",
    "without_words",
]

# What says on which images, in which form, of which network.
_OF_DATA = ("data", "batch_fn", "normalization", "input_size", "model")
_PACKAGE = str(Path(__file__).parents[2])


def is_callers(monitor: Any, error: Exception) -> bool:
    """Return whether an error is of what a monitor was asked for: another argument would mend it.

    A network without the layers that are looked at by default suits the view no more than one without labels would:
    there, nobody has asked for anything.
    """
    if chooses_layers_itself(monitor) and _has_cause(error, LayerNotFoundError):
        return False
    if is_wrong_argument(error):
        return True
    # Whoever names the data has asked for them, unless it is for all views at once.
    tried = getattr(error, "_doing", "") != "set-up"
    said = isinstance(error, ValueError) or is_in_our_words(error)
    return monitor.is_chosen and tried and said and _was_given_data(monitor)


def is_in_our_words(error: Exception) -> bool:
    """Return whether this package raised an error itself, to say what does not suit: it needs no traceback."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None or not isinstance(error, (ValueError, TypeError)):
        return False
    source = place.tb_frame.f_code.co_filename
    # What torch raises where we call it has its place in our lines, too.
    return source.startswith(_PACKAGE) and linecache.getline(source, place.tb_lineno).lstrip().startswith("raise ")


def what_was_found(who: str, error: Exception) -> str:
    """Return in one line what a monitor says that steps aside; of others' errors, what it was doing."""
    text = " ".join(str(error).removeprefix(who).lstrip(": ").split())
    if is_in_our_words(error) or isinstance(error, OtherRankError):
        return text
    doing = getattr(error, "_doing", "") or "a look"
    text = text or without_words(error)
    return f'{type(error).__name__} in {doing}: {text}. on_error="raise" stops the run there, with a traceback'


def without_words(error: Exception) -> str:
    """Return what an exception means that says nothing."""
    return "memory has run out" if isinstance(error, MemoryError) else "it says no more"


def list_of_those_aside(monitors: Sequence[Any]) -> str:
    """Return which of some monitors have stepped aside and why, as text; "" where none has."""
    lines = [f"  {each.title}: {each.failure}" for each in monitors if each.is_aside]
    return "\n".join([f"{len(lines)} of {len(monitors)} monitors stepped aside:", *lines]) if lines else ""


def chooses_layers_itself(monitor: Any) -> bool:
    """Return whether a monitor was given no layers, or what it takes by default."""
    for kind in type(monitor).__mro__:
        own_init = vars(kind).get("__init__")
        parameters = {} if own_init is None else dict(inspect.signature(own_init).parameters)
        own = [name for name in ("layers", "layer") if name in parameters]
        if own:
            return all(getattr(monitor, name) == parameters[name].default for name in own)
    return True


def _was_given_data(monitor: Any) -> bool:
    given = {name for name in _OF_DATA if monitor.arguments.get(name) is not None}
    return bool(given) or not isinstance(monitor.arguments.get("images", 0), (int, str, type(None)))


def _has_cause(error: BaseException | None, kind: type[Exception]) -> bool:
    return error is not None and (isinstance(error, kind) or _has_cause(error.__cause__, kind))
