"""One forward pass as surgery sees it: which modules ran on what, and what torch stretched to make shapes fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_cnnviz.core.network.hooks import Site, hooked

__all__ = ["ForwardRecord", "operation_in_words", "shapes_of"]

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# What torch stretches in silence, where two shapes differ and one side is 1.
_SUMS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__", "sub", "sub_", "__sub__", "__isub__", "__rsub__"})
_PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__imul__", "__rmul__", "multiply", "div", "div_", "__truediv__"})


class ForwardRecord(TorchFunctionMode):
    """Records one pass through a network: which modules run on what, and which operation has failed if one has."""

    def __init__(self, model: nn.Module, on_enter: Callable[[str, Any], None] = lambda _name, _value: None) -> None:
        super().__init__()
        self.calls: dict[str, list[tuple[Any, Any]]] = {}  # name -> (input, output), both kept alive
        self.left: list[str] = []  # modules, in the order in which they ended
        self.failed: tuple[str, list[tuple[int, ...]]] | None = None
        # Where torch has stretched one side of an operation to the other's shape: (module, operation) -> shapes.
        self.stretched: dict[tuple[str, str], list[list[tuple[int, ...]]]] = {}
        self.met_dropouts: set[str] = set()
        self.output: Any = None
        self._model, self._enter = model, on_enter
        self._modules = dict(model.named_modules())
        self._entered: list[tuple[str, Any]] = []
        self._inside: list[tuple[str, Any]] = []
        self._last_dropout: Any = None

    @property
    def inside(self) -> str:
        """The innermost module that is running."""
        return self._inside[-1][0] if self._inside else ""

    def run(self, image: Tensor) -> None:
        """Make the pass."""
        sites = {}
        for name, module in self._modules.items():
            sites[f"in:{name}"] = Site(module, "input")
            sites[f"out:{name}"] = Site(module)
        with hooked(sites, self._on_value), self:
            self.output = self._model(image)

    def follower(self, name: str) -> str | None:
        """The layer that is first given what another one returns, if it runs once."""
        ((_, output),) = self.calls[name]
        place = next(place for place, (entered, _) in enumerate(self._entered) if entered == name)
        for other, value in self._entered[place + 1 :]:
            module = self._modules[other]
            # A container is first given what its first layer is; timm's BatchNorms have children, and are none.
            if value is output and (not _has_children(module) or "BatchNorm" in type(module).__name__):
                return other if len(self.calls.get(other, ())) == 1 else None
        return None

    def _on_value(self, key: str, value: Any) -> None:
        side, _, name = key.partition(":")
        if side == "in":
            self._inside.append((name, value))
            self._entered.append((name, value))
            if isinstance(self._modules[name], _DROPOUTS) and value is self._last_dropout:
                self.met_dropouts.add(name)
            self._enter(name, value)
            return
        _, given = self._inside.pop()
        self.calls.setdefault(name, []).append((given, value))
        self.left.append(name)
        module = self._modules[name]
        if isinstance(module, _DROPOUTS):
            self._last_dropout = value
        elif value is self._last_dropout and not _has_children(module) and not isinstance(module, nn.Identity):
            self._last_dropout = None  # changed in place

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        try:
            result = func(*args, **(kwargs or {}))
        except Exception:
            shapes = [tuple(tensor.shape) for tensor in _tensors(args)]
            if self.failed is None and shapes:
                self.failed = (name, shapes)
            raise
        if name in _SUMS or name in _PRODUCTS:
            sides = [tuple(value.shape) for value in args[:2] if isinstance(value, Tensor)]
            if len(sides) == 2 and _is_stretched(*sides, sums=name in _SUMS):
                self.stretched.setdefault((self.inside, name.strip("_")), []).append(sides)
        return result


def _is_stretched(first: tuple[int, ...], second: tuple[int, ...], *, sums: bool) -> bool:
    """Whether features of one shape are stretched to another's; a gate of 1 x 1 in a product is meant to be."""
    if len(first) != len(second) or len(first) < 2:
        return False
    return first[1:] != second[1:] if sums else first[1] != second[1]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def shapes_of(output: Any) -> Any:
    """The shapes of all tensors of a network's output, arranged as they are in it."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        return {key: shapes_of(value) for key, value in output.items()}
    return [shapes_of(value) for value in output] if isinstance(output, (list, tuple)) else type(output).__name__


def operation_in_words(operation: str, shapes: Sequence[tuple[int, ...]]) -> str:
    """An operation on tensors of these shapes, for a message: "the sum of (1, 4, 8, 8) and (1, 8, 8, 8)"."""
    name = operation.strip("_").removeprefix("i") if operation.startswith("__i") else operation.strip("_")
    counted = Counter(shapes)
    words = {"add": "the sum of", "cat": "joining", "mul": "the product of"}
    return f"{words.get(name, f'{name} of')} {' and '.join(map(str, counted if len(counted) > 1 else shapes))}"


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
