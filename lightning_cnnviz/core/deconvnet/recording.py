"""Recording a forward pass as torch dispatches it: which operations depend on the image, and what rule each follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from lightning_cnnviz.core.deconvnet._places import Place
from lightning_cnnviz.core.deconvnet.choosing import RunningCall, choose_rule
from lightning_cnnviz.core.deconvnet.rules import INPUT, Autograd, Method, Node, ProjectionError
from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing.calls import OperationReader, Operator, input_tensors, tensors_in, without_results

__all__ = ["FarEnough", "Recorder"]


class FarEnough(BaseException):
    """Ends a pass of which enough has been recorded. It is no `Exception`, so that no network catches it."""


@dataclass(frozen=True, eq=False)
class _Write:
    """Something that was written into memory.

    Attributes:
        time: When.
        place: Through which view.
        value: The value that it holds since; None for constants.
        shape: That value's.
        reserved: A reference that keeps the memory's address from being given to others.
    """

    time: int
    place: Place
    value: int | None
    shape: tuple[int, ...]
    reserved: Any


class Recorder(OperationReader):
    """Runs each operation, and notes those that depend on the image.

    Args:
        method: What happens at a nonlinearity.
        batch: Number of images.
        axes: How many axes of space they have: 1 of signals, 3 of volumes.
        nodes: Grows by one for each such operation.
        shapes: Grows by one for each value; the images are the first.
        enough: The number of nodes at which `FarEnough` ends the pass; by default it goes on.

    Attributes:
        paused: Whether operations run without being noted: those of whoever looks on.
    """

    def __init__(
        self,
        method: Method,
        batch: int,
        nodes: list[Node],
        shapes: list[tuple[int, ...]],
        enough: int | None = None,
        *,
        axes: int = 2,
    ) -> None:
        super().__init__()
        self._enough, self.paused, self._axes = enough, False, axes
        self._method, self._batch, self._nodes, self._shapes = method, batch, nodes, shapes
        self._own, self._time = WeakTensorKeyDictionary(), 0
        # By the address of memory, what was written into it, in order; of one view only the last counts.
        self._written: dict[int, list[_Write]] = {}

    def new(self, tensor: Tensor) -> int:
        """A new value, which a tensor holds from now on."""
        value = len(self._shapes)
        self._shapes.append(tuple(tensor.shape))
        self._register(tensor, value)
        return value

    def _register(self, tensor: Tensor, value: int) -> None:
        self._time += 1
        self._own[tensor] = (value, self._time)

    def value(self, tensor: Tensor) -> int | None:
        """The value that a tensor holds now; None where it does not depend on the image."""
        own = self._own.get(tensor)
        value, time = (None, -1) if own is None else (int(own[0]), own[1])
        newer = [write for write in self._written.get(_address(tensor), ()) if write.time > time]
        if not newer:
            return value
        place = Place.of(tensor)
        # What was written through the very same view counts, and nothing before it.
        same = max((number for number, write in enumerate(newer) if write.place == place), default=None)
        if same is not None:
            value = newer[same].value
        later = newer if same is None else newer[same + 1 :]
        for write in later:
            value = self._partly_overwritten(tensor, place, value, write)
        if later and value is not None:
            self._register(tensor, value)
        return value

    def _partly_overwritten(self, tensor: Tensor, place: Place, value: int | None, write: _Write) -> int | None:
        """The value of a tensor into whose memory something was written through another view: a slice, say."""
        if place.dtype != write.place.dtype:
            raise ProjectionError("the network writes in place into memory that it reads as another kind of number")
        source = write.place.elements_at(place.indices())
        written = source >= 0
        if not bool(written.any()) or (value is None and write.value is None):
            return value
        given = [
            (known, shape) for known, shape in ((value, place.shape), (write.value, write.shape)) if known is not None
        ]
        args = tuple(None if known is None else INPUT for known in (value, write.value))
        # It is linear: the values themselves say nothing of the way back.
        saved = tuple(torch.zeros(shape, dtype=tensor.dtype, device=tensor.device) for _, shape in given)
        call = partial(_overwrite, source.clamp_(min=0).to(tensor.device), written.to(tensor.device))
        rule = Autograd(call, list(args), {}, saved, self._batch)
        result = len(self._shapes)
        self._shapes.append(place.shape)
        inputs = tuple(known for known, _ in given)
        shapes = tuple(shape for _, shape in given)
        self._nodes.append(Node("overwrite", rule, inputs, (result,), shapes, (place.shape,)))
        return result

    @override
    def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.paused:
            return operator.func(*args, **kwargs)
        given = input_tensors(operator, args, kwargs)
        read = [(tensor, value) for tensor in given if (value := self.value(tensor)) is not None]
        if not read:
            result = operator.func(*args, **kwargs)
            if operator.writes:
                self._note_writes([tensor for tensor in tensors_in(result) if self._is_known(tensor)], None)
            return result
        if operator.name in calls.CONSTANTS:
            return operator.func(*args, **kwargs)
        if operator.func._schema.is_mutable and not operator.func._schema.returns:
            # It does not say what holds what from now on: nobody could follow it.
            raise ProjectionError(f"the network runs {operator.func}, which cannot be followed back to the pixels")
        dependent = [tensor for tensor, _ in read]
        shapes_in = tuple(tuple(tensor.shape) for tensor in dependent)
        unchanged = without_results(operator, kwargs)
        rule = choose_rule(RunningCall(operator, args, unchanged, dependent, self._method, self._batch, self._axes))
        result = operator.func(*args, **kwargs) if rule.made is None or operator.writes else rule.made
        rule.made = None
        outputs = tensors_in(result)
        values = tuple(self.new(tensor) for tensor in outputs)
        shapes_out = tuple(tuple(tensor.shape) for tensor in outputs)
        inputs = tuple(value for _, value in read)
        self._nodes.append(Node(operator.name, rule, inputs, values, shapes_in, shapes_out))
        if operator.writes:
            self._note_writes(outputs, values)
        if len(self._nodes) == self._enough:
            raise FarEnough
        return result

    def _is_known(self, tensor: Tensor) -> bool:
        return self._own.get(tensor) is not None or _address(tensor) in self._written

    def _note_writes(self, tensors: Sequence[Tensor], values: Sequence[int] | None) -> None:
        """Remember what memory holds from now on: values of the pass, or constants."""
        self._time += 1
        for number, tensor in enumerate(tensors):
            place, reserved = Place.of(tensor), StorageWeakRef(tensor.untyped_storage())
            value = None if values is None else values[number]
            if values is None:
                self._own.pop(tensor, None)
            else:
                self._own[tensor] = (value, self._time)
            before = [write for write in self._written.get(_address(tensor), ()) if write.place != place]
            write = _Write(self._time, place, value, tuple(tensor.shape), reserved)
            self._written[_address(tensor)] = [*before, write]


def _overwrite(source: Tensor, written: Tensor, before: Tensor | None, values: Tensor | None) -> Tensor:
    """Put values over what was there before, where something was written; constants are zeros."""
    some = next(tensor for tensor in (before, values) if tensor is not None)
    zero = some.new_zeros(())
    return torch.where(
        written, zero if values is None else values.flatten()[source], zero if before is None else before
    )


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
