"""Recording a forward pass as torch dispatches it: which operations depend on the image, and what rule each follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import override

from lightning_cnnviz.core.deconvnet.choosing import ProjectionError, RunningCall, choose_rule
from lightning_cnnviz.core.deconvnet.rules import Method, Node
from lightning_cnnviz.core.tracing import calls
from lightning_cnnviz.core.tracing.calls import OperationReader, Operator, input_tensors, tensors_in, without_results

__all__ = ["FarEnough", "ProjectionError", "Recorder"]


class FarEnough(BaseException):
    """Ends a pass of which enough has been recorded. It is no `Exception`, so that no network catches it."""


class Recorder(OperationReader):
    """Runs each operation, and notes those that depend on the image.

    Args:
        method: What happens at a nonlinearity.
        batch: Number of images.
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
    ) -> None:
        super().__init__()
        self._enough, self.paused = enough, False
        self._method, self._batch, self._nodes, self._shapes = method, batch, nodes, shapes
        self._own, self._time = WeakTensorKeyDictionary(), 0
        # Of memory that was written to: when, as which view, the value, and a reference that reserves its address.
        self._written: dict[int, tuple[int, Any, int, Any]] = {}

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
        written = self._written.get(_address(tensor)) if self._written else None
        if written is None or (own is not None and own[1] >= written[0]):
            return None if own is None else int(own[0])
        if written[1] != _view(tensor):
            raise ProjectionError(
                "the network writes in place into memory that it reads through another view (a slice, say), which "
                "cannot be followed back to the pixels"
            )
        return written[2]

    @override
    def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.paused:
            return operator.func(*args, **kwargs)
        given = input_tensors(operator, args, kwargs)
        read = [(tensor, value) for tensor in given if (value := self.value(tensor)) is not None]
        if not read:
            result = operator.func(*args, **kwargs)
            self._check_overwritten(operator, result)
            return result
        if operator.name in calls.CONSTANTS:
            return operator.func(*args, **kwargs)
        dependent = [tensor for tensor, _ in read]
        shapes_in = tuple(tuple(tensor.shape) for tensor in dependent)
        unchanged = without_results(operator, kwargs)
        rule = choose_rule(RunningCall(operator, args, unchanged, dependent, self._method, self._batch))
        result = operator.func(*args, **kwargs) if rule.made is None or operator.writes else rule.made
        rule.made = None
        outputs = tensors_in(result)
        values = tuple(self.new(tensor) for tensor in outputs)
        shapes_out = tuple(tuple(tensor.shape) for tensor in outputs)
        inputs = tuple(value for _, value in read)
        self._nodes.append(Node(operator.name, rule, inputs, values, shapes_in, shapes_out))
        if operator.writes:
            for tensor, value in zip(outputs, values, strict=True):
                reserved = StorageWeakRef(tensor.untyped_storage())
                self._written[_address(tensor)] = (self._time, _view(tensor), value, reserved)
        if len(self._nodes) == self._enough:
            raise FarEnough
        return result

    def _check_overwritten(self, operator: Operator, result: Any) -> None:
        """What is overwritten by constants depends on the image no more, but in other views it may."""
        if not operator.writes:
            return
        for tensor in tensors_in(result):
            if _address(tensor) in self._written or self._own.get(tensor) is not None:
                raise ProjectionError("the network overwrites feature maps in place with constants")


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _view(tensor: Tensor) -> Any:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
