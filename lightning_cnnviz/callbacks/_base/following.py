"""What a LightningModule without `forward` computes: the call that its `validation_step` makes is followed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.callbacks._base.trainer import defines

__all__ = ["FollowedStep", "parts_of_step"]


def parts_of_step(pl_module: Any) -> list[str]:
    """Return the children with weights that a LightningModule's steps put together; none where no step tells.

    A module whose only child with weights is the network has nothing to follow, nor has one of which several children
    have convolutions: which of them is the network is for its user to say.
    """
    if not defines(pl_module, "validation_step"):
        return []
    weighted = {name: child for name, child in pl_module.named_children() if next(child.parameters(), None) is not None}
    convolving = [
        name for name, child in weighted.items() if any(isinstance(each, nn.Conv2d) for each in child.modules())
    ]
    return list(weighted) if len(weighted) > 1 and len(convolving) == 1 else []


class FollowedStep:
    """Runs `validation_step` as far as the output of its last child with weights, and returns that.

    So nothing of what follows is done: no metric counts, nothing is logged. The first time the whole step may have to
    run, to see which child is the last: with metrics and `log` switched off. What the module itself holds, numbers,
    lists and buffers, is afterwards as it was before.

    Args:
        parts: The names of the children with weights.
    """

    def __init__(self, parts: list[str]) -> None:
        self._parts = parts
        self._last: int | None = None  # the number of the call whose output is wanted

    def __call__(self, network: Any, batch: Any) -> Any:
        """Run it on a batch."""
        calls: list[Any] = []
        names = set()

        def after(name: str, output: Any) -> None:
            calls.append(output)
            names.add(name)
            # All parts have been called: what comes then is loss and bookkeeping.
            if len(calls) - 1 == self._last or (self._last is None and len(names) == len(self._parts)):
                raise _Reached

        with ExitStack() as stack:
            stack.enter_context(_quiet(network))
            for name in self._parts:
                child = network.get_submodule(name)
                handle = child.register_forward_hook(lambda _m, _i, output, name=name: after(name, output))
                stack.callback(handle.remove)
            with suppress(_Reached):
                network.validation_step(batch, *[0] * (_arguments(network.validation_step) - 1))
        if not calls:
            raise ValueError(
                f"{type(network).__name__} defines no forward, and its validation_step calls none of "
                f'{", ".join(self._parts)}: define forward, or give model="<name>" or forward_fn=...'
            )
        self._last = len(calls) - 1 if self._last is None else self._last
        return calls[-1]


class _Reached(BaseException):
    """The output is there. No `except Exception` of the user's stops it."""


def _arguments(step: Any) -> int:
    """How many arguments without a default a step takes."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    given = [each for each in inspect.signature(step).parameters.values() if each.kind in positional]
    return max(1, sum(each.default is inspect.Parameter.empty for each in given))


@contextmanager
def _quiet(module: Any) -> Iterator[None]:
    """Let a step log nothing and count nothing, and give the module back all that it holds itself as it was."""
    metrics = [each for each in module.modules() if hasattr(each, "add_state") and hasattr(each, "update")]
    held = dict(vars(module))
    kept = {name: type(value)(value) for name, value in held.items() if type(value) in (list, dict, set)}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers(recurse=False)]
    silenced = {"log": _nothing, "log_dict": _nothing, "print": _nothing}
    unmeasured = {"update": _nothing, "forward": _zero}
    with ExitStack() as stack:
        for each in (module, *metrics):
            for name, stand_in in (silenced if each is module else unmeasured).items():
                stack.callback(_restore, each, name, vars(each).get(name))
                each.__dict__[name] = stand_in
        try:
            yield
        finally:
            for name in vars(module).keys() - held.keys() - silenced.keys():
                del module.__dict__[name]
            module.__dict__.update({name: value for name, value in held.items() if name not in silenced})
            for name, value in kept.items():
                there = held[name]
                there.clear()
                there.extend(value) if isinstance(there, list) else there.update(value)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _restore(thing: Any, name: str, before: Any) -> None:
    if before is None:
        thing.__dict__.pop(name, None)
    else:
        thing.__dict__[name] = before


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _zero(*_: Any, **__: Any) -> Tensor:
    return torch.zeros(())
