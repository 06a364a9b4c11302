"""Deconvnet projection the slow way: every operation of the net written down, then gone back through, one by one.

Nothing here asks autograd: each operation has its forward line and, beside it, the rule by which a signal goes back.
What has no rule raises. The whole image goes forward and back for every unit, in float64.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

METHODS = ("deconvnet", "guided", "gradient")


def explicit_projection(
    model: nn.Module,
    image: Tensor,
    layer: str,
    channel: int,
    row: int,
    column: int,
    method: str = "deconvnet",
) -> Tensor:
    """One unit back to the pixels `(C, H, W)`, times its activation.

    Args:
        model: Any net that torch.fx can trace; a copy of it in float64 and eval mode is looked at.
        image: `(1, C, H, W)`.
        layer: The module whose output the unit is in, as it is before anything writes to it.
        channel: The unit's channel.
        row: The unit's row.
        column: The unit's column.
        method: What a signal that meets a rectifier becomes: "deconvnet" its positive part, "guided" its positive part
            times the rectifier's slope there, "gradient" itself times that slope.
    """
    return Recording(model, image, layer).projection(channel, row, column, method)


class Recording:
    """One forward pass up to a layer with all its values, from which any unit of the layer can be projected."""

    def __init__(self, model: nn.Module, image: Tensor, layer: str) -> None:
        model = copy.deepcopy(model).double().eval().requires_grad_(False)
        module = model.get_submodule(layer)
        tracer = _Tracer()
        graph = tracer.trace(model)
        returns = tracer.returns.get(id(module), [])
        if len(returns) != 1:
            raise NotImplementedError(f"{layer} is called {len(returns)} times")
        with torch.no_grad():
            self._forward(model, graph, image.detach().double(), *returns[0])

    def _forward(self, model: nn.Module, graph: fx.Graph, image: Tensor, layer: fx.Node, last: fx.Node) -> None:
        self._values: list[_Value] = []
        self._of_node: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            self._of_node[node] = self._result(model, node, image)
            if node is last:
                break
        self._image: _Value = self._values[0]  # as it was given, whatever was written into it
        self._layer: _Value = self._of_node[layer]
        self.activations = self._layer.tensor[0]

    def _result(self, model: nn.Module, node: fx.Node, image: Tensor) -> Any:
        if node.op == "placeholder":
            return self._keep(_Value(image))
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(model)
        args = fx.node.map_arg(node.args, self._of_node.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self._of_node.__getitem__)
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            rule = _MODULES.get(type(module))
            if rule is None:
                raise NotImplementedError(f"no rule for the module {node.target}: {type(module).__name__}")
            result = self._keep(rule(module, *args, **kwargs))
            if getattr(module, "inplace", False):
                self._write(args[0], result)
            return result
        name = str(node.target) if node.op == "call_method" else node.target.__name__
        return self._call(name, node.target, args, kwargs)

    def _call(self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = list(_values_in((args, tuple(kwargs.values()))))
        if not inputs or (target is operator.getitem and not isinstance(args[0], _Value)):
            return getattr(args[0], name)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
        if name in ("size", "dim") and isinstance(target, str):
            return getattr(inputs[0].tensor, name)(*args[1:], **kwargs)
        if target is getattr:
            return getattr(inputs[0].tensor, *args[1:])
        in_place = name.endswith("_") or name in ("iadd", "isub", "imul", "itruediv")
        name = name.rstrip("_").removeprefix("i") if in_place else name
        rule = _FUNCTIONS.get(name.removeprefix("_"))
        if rule is None:
            raise NotImplementedError(f"no rule for {target}")
        bound = inspect.signature(rule).bind(*args, **kwargs)
        result = self._keep(rule(*args, **kwargs))
        if in_place or bound.arguments.get("inplace", False):
            self._write(args[0], result)
        return result

    def _keep(self, result: Any) -> Any:
        self._values += [value for value in _values_in(result) if not any(value is kept for kept in self._values)]
        return result

    def _write(self, old: _Value, new: _Value) -> None:
        """From now on, whoever reads the old value gets the new one, under whatever name."""
        if any(value is not old and value is not new and value.base is old.base for value in self._values):
            raise NotImplementedError("an in-place operation on a value that has views")
        self._of_node = {node: new if value is old else value for node, value in self._of_node.items()}

    def projection(self, channel: int, row: int, column: int, method: str = "deconvnet") -> Tensor:
        """One unit back to the pixels `(C, H, W)`, times its activation."""
        if method not in METHODS:
            raise ValueError(f"no method {method}")
        start = torch.zeros_like(self._layer.tensor)
        start[0, channel, row, column] = 1
        signals = {self._layer: start}
        for value in reversed(self._values):
            if value in signals and value.back is not None:
                for source, signal in value.back(signals.pop(value), method):
                    if signal.shape != source.tensor.shape:
                        raise RuntimeError(f"a signal {tuple(signal.shape)} for a value {tuple(source.tensor.shape)}")
                    signals[source] = signals[source] + signal if source in signals else signal
        pixels = signals.get(self._image, torch.zeros_like(self._image.tensor))
        return (pixels * self._layer.tensor[0, channel, row, column])[0]


class _Tracer(fx.Tracer):
    """Notes for each module which node it returned, and which node was the last when it did."""

    def __init__(self) -> None:
        super().__init__()
        self.returns: dict[int, list[tuple[fx.Node, fx.Node]]] = {}

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(m, forward, args, kwargs)
        if isinstance(result, fx.Proxy):
            self.returns.setdefault(id(m), []).append((result.node, next(iter(reversed(self.graph.nodes)))))
        return result


_Back = Callable[[Tensor, str], "list[tuple[_Value, Tensor]]"]


@dataclass(eq=False)
class _Value:
    """A tensor that depends on the image, and how a signal at it goes on to those it was computed from."""

    tensor: Tensor
    back: _Back | None = None
    view_of: _Value | None = None

    @property
    def base(self) -> _Value:
        return self if self.view_of is None else self.view_of.base


def _values_in(nested: Any) -> Iterator[_Value]:
    if isinstance(nested, _Value):
        yield nested
    elif isinstance(nested, list | tuple):
        for item in nested:
            yield from _values_in(item)


def _linear(x: _Value, tensor: Tensor, back: Callable[[Tensor], Tensor]) -> _Value:
    """A value for which the methods do not differ."""
    return _Value(tensor, lambda signal, _method: [(x, back(signal))])


def _view(x: _Value, tensor: Tensor, back: Callable[[Tensor], Tensor]) -> _Value:
    return _Value(tensor, lambda signal, _method: [(x, back(signal))], view_of=x)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


# Filters


def _conv2d(
    x: _Value,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> _Value:
    stride, dilation = _pair(stride), _pair(dilation)
    height, width = x.tensor.shape[2:]
    if padding == "valid":
        padding = 0
    if padding == "same":
        spare = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        top, left = spare[0] // 2, spare[1] // 2
        bottom, right = spare[0] - top, spare[1] - left
    else:
        (top, left) = (bottom, right) = _pair(padding)
    # The border of the image is added beforehand, so that the convolution itself has none.
    around = (left, right, top, bottom)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = F.pad(x.tensor, around, mode)
    # Where each position of the padded image was taken from; zero for none, and the pixels from one.
    origins = F.pad(torch.arange(1.0, 1 + height * width).double().view(1, 1, height, width), around, mode).long()

    def back(signal: Tensor) -> Tensor:
        missing = [
            size - ((out - 1) * step + spread * (kernel - 1) + 1)
            for size, out, step, spread, kernel in zip(
                padded.shape[2:], signal.shape[2:], stride, dilation, weight.shape[2:], strict=True
            )
        ]
        whole = F.conv_transpose2d(
            signal, weight, None, stride, 0, output_padding=missing, groups=groups, dilation=dilation
        )
        image = torch.zeros(*whole.shape[:2], 1 + height * width, dtype=whole.dtype)
        image.scatter_add_(2, origins.flatten().expand(*whole.shape[:2], -1), whole.flatten(2))
        return image[:, :, 1:].view(*whole.shape[:2], height, width)

    return _linear(x, F.conv2d(padded, weight, bias, stride, 0, dilation, groups), back)


def _conv_module(module: nn.Conv2d, x: _Value) -> _Value:
    return _conv2d(
        x,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        module.padding_mode,
    )


def _conv_transpose_module(module: nn.ConvTranspose2d, x: _Value) -> _Value:
    def back(signal: Tensor) -> Tensor:
        found = F.conv2d(signal, module.weight, None, module.stride, module.padding, module.dilation, module.groups)
        # Padding of the output as wide as a stride has room for positions that the input has not.
        return found[..., : x.tensor.shape[-2], : x.tensor.shape[-1]]

    return _linear(x, module(x.tensor), back)


def _fully_connected(x: _Value, weight: Tensor, bias: Tensor | None = None) -> _Value:
    return _linear(x, F.linear(x.tensor, weight, bias), lambda signal: signal @ weight)


# Normalization


def _batch_norm(module: nn.BatchNorm2d, x: _Value) -> _Value:
    mean, variance = module.running_mean, module.running_var
    if mean is None or variance is None:
        raise NotImplementedError("batch normalization by the batch")
    weight = torch.ones_like(mean) if module.weight is None else module.weight
    bias = torch.zeros_like(mean) if module.bias is None else module.bias
    scale = (weight / (variance + module.eps).sqrt()).view(1, -1, 1, 1)
    shifted = (x.tensor - mean.view(1, -1, 1, 1)) * scale + bias.view(1, -1, 1, 1)
    return _linear(x, shifted, lambda signal: signal * scale)


def _layer_norm(
    x: _Value, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> _Value:
    axes = list(range(-len(normalized_shape), 0))
    centered = x.tensor - x.tensor.mean(axes, keepdim=True)
    deviation = (centered.square().mean(axes, keepdim=True) + eps).sqrt()
    unit = centered / deviation
    result = unit * (1 if weight is None else weight) + (0 if bias is None else bias)

    def back(signal: Tensor) -> Tensor:
        signal = signal * (1 if weight is None else weight)
        along = (signal * unit).mean(axes, keepdim=True)
        return (signal - signal.mean(axes, keepdim=True) - unit * along) / deviation

    return _linear(x, result, back)


# Pooling


def _unpool(x: _Value, pooled: Tensor, switches: Tensor) -> _Value:
    def back(signal: Tensor) -> Tensor:
        # Where windows overlap one place may be the maximum of several: their signals add up.
        places = torch.zeros_like(x.tensor).flatten(2)
        places.scatter_add_(2, switches.flatten(2), signal.flatten(2))
        return places.view_as(x.tensor)

    return _linear(x, pooled, back)


def _max_pool2d(
    x: _Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> _Value:
    if return_indices:
        raise NotImplementedError("max pooling that returns its switches")
    stride = kernel_size if stride is None or stride == [] else stride
    return _unpool(x, *F.max_pool2d(x.tensor, kernel_size, stride, padding, dilation, ceil_mode, return_indices=True))


def _adaptive_max_pool2d(x: _Value, output_size: Any, return_indices: bool = False) -> _Value:
    if return_indices:
        raise NotImplementedError("max pooling that returns its switches")
    return _unpool(x, *F.adaptive_max_pool2d(x.tensor, output_size, return_indices=True))


_Window = tuple[slice, int]  # the positions in the image, and how many to divide by


def _spread(x: _Value, pooled: Tensor, rows: list[_Window], columns: list[_Window], divisor: int | None) -> _Value:
    def back(signal: Tensor) -> Tensor:
        places = torch.zeros_like(x.tensor)
        for i, (row, height) in enumerate(rows):
            for j, (column, width) in enumerate(columns):
                places[:, :, row, column] += signal[:, :, i : i + 1, j : j + 1] / (divisor or height * width)
        return places

    return _linear(x, pooled, back)


def _avg_pool2d(
    x: _Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> _Value:
    stride = kernel_size if stride is None or stride == [] else stride
    pooled = F.avg_pool2d(x.tensor, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    def windows(axis: int) -> list[_Window]:
        size, kernel, step, border = (
            x.tensor.shape[2 + axis],
            _pair(kernel_size)[axis],
            _pair(stride)[axis],
            _pair(padding)[axis],
        )
        found = []
        for i in range(pooled.shape[2 + axis]):
            first = i * step - border
            # A window that ceil_mode lets reach beyond the padding is cut there, and counts as the smaller one.
            last = min(first + kernel, size + border)
            inside = slice(max(first, 0), min(last, size))
            found.append((inside, last - first if count_include_pad else inside.stop - inside.start))
        return found

    return _spread(x, pooled, windows(0), windows(1), divisor_override)


def _adaptive_avg_pool2d(x: _Value, output_size: Any) -> _Value:
    pooled = F.adaptive_avg_pool2d(x.tensor, output_size)

    def windows(axis: int) -> list[_Window]:
        size, outputs = x.tensor.shape[2 + axis], pooled.shape[2 + axis]
        bounds = [(i * size // outputs, math.ceil((i + 1) * size / outputs)) for i in range(outputs)]
        return [(slice(first, last), last - first) for first, last in bounds]

    return _spread(x, pooled, windows(0), windows(1), None)


def _mean(x: _Value, dim: Any, keepdim: bool = False) -> _Value:
    kept = x.tensor.mean(dim, keepdim=True)
    share = kept.numel() / x.tensor.numel()
    return _linear(
        x,
        x.tensor.mean(dim, keepdim=keepdim),
        lambda signal: (signal.reshape(kept.shape) * share).expand_as(x.tensor),
    )


# Activations


def _rectifier(x: _Value, tensor: Tensor, slope: Tensor) -> _Value:
    """The one place where the methods differ."""

    def back(signal: Tensor, method: str) -> list[tuple[_Value, Tensor]]:
        if method == "deconvnet":
            return [(x, signal.clamp(min=0))]
        return [(x, (signal.clamp(min=0) if method == "guided" else signal) * slope)]

    return _Value(tensor, back)


def _relu(x: _Value, inplace: bool = False) -> _Value:
    return _rectifier(x, F.relu(x.tensor), (x.tensor > 0).double())


def _hardtanh(x: _Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Value:
    tensor, slope = F.hardtanh(x.tensor, min_val, max_val), ((x.tensor > min_val) & (x.tensor < max_val)).double()
    return _rectifier(x, tensor, slope) if min_val == 0 else _linear(x, tensor, lambda signal: signal * slope)


def _relu6(x: _Value, inplace: bool = False) -> _Value:
    return _hardtanh(x, 0.0, 6.0)


def _clamp(x: _Value, min: float | None = None, max: float | None = None) -> _Value:
    low, high = -math.inf if min is None else min, math.inf if max is None else max
    # At the bounds themselves torch lets a clamp's gradient pass.
    tensor, slope = x.tensor.clamp(low, high), ((x.tensor >= low) & (x.tensor <= high)).double()
    return _rectifier(x, tensor, slope) if low == 0 else _linear(x, tensor, lambda signal: signal * slope)


def _leaky_relu(x: _Value, negative_slope: float = 0.01, inplace: bool = False) -> _Value:
    # Not `where` of two numbers: that would know the slope in single precision only.
    slope = torch.full_like(x.tensor, negative_slope).masked_fill_(x.tensor > 0, 1)
    return _rectifier(x, x.tensor * slope, slope)


def _prelu(x: _Value, weight: Tensor) -> _Value:
    slope = torch.where(x.tensor > 0, 1.0, weight.view(1, -1, 1, 1))
    return _rectifier(x, x.tensor * slope, slope)


def _elu(x: _Value, alpha: float = 1.0, inplace: bool = False) -> _Value:
    below = alpha * x.tensor.clamp(max=0).exp()
    above = x.tensor > 0
    return _rectifier(x, torch.where(above, x.tensor, below - alpha), torch.where(above, 1.0, below))


def _selu(x: _Value, inplace: bool = False) -> _Value:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    below = alpha * x.tensor.clamp(max=0).exp()
    above = x.tensor > 0
    return _rectifier(x, scale * torch.where(above, x.tensor, below - alpha), scale * torch.where(above, 1.0, below))


def _celu(x: _Value, alpha: float = 1.0, inplace: bool = False) -> _Value:
    below = (x.tensor.clamp(max=0) / alpha).exp()
    above = x.tensor > 0
    return _rectifier(x, torch.where(above, x.tensor, alpha * (below - 1)), torch.where(above, 1.0, below))


def _gelu(x: _Value, approximate: str = "none") -> _Value:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x.tensor + 0.044715 * x.tensor**3)
        inner_slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x.tensor**2)
        share = (1 + inner.tanh()) / 2
        slope = share + x.tensor * (1 - inner.tanh() ** 2) * inner_slope / 2
    else:
        share = (1 + torch.erf(x.tensor / math.sqrt(2))) / 2
        slope = share + x.tensor * torch.exp(-(x.tensor**2) / 2) / math.sqrt(2 * math.pi)
    return _rectifier(x, x.tensor * share, slope)


def _silu(x: _Value, inplace: bool = False) -> _Value:
    gate = x.tensor.sigmoid()
    return _rectifier(x, x.tensor * gate, gate * (1 + x.tensor * (1 - gate)))


def _mish(x: _Value, inplace: bool = False) -> _Value:
    gate = F.softplus(x.tensor).tanh()
    return _rectifier(x, x.tensor * gate, gate + x.tensor * (1 - gate**2) * x.tensor.sigmoid())


def _hardswish(x: _Value, inplace: bool = False) -> _Value:
    gate = (x.tensor / 6 + 0.5).clamp(0, 1)
    slope = torch.where(x.tensor <= -3, 0.0, torch.where(x.tensor < 3, x.tensor / 3 + 0.5, 1.0))
    return _rectifier(x, x.tensor * gate, slope)


def _softplus(x: _Value, beta: float = 1.0, threshold: float = 20.0) -> _Value:
    slope = torch.where(x.tensor * beta > threshold, 1.0, (x.tensor * beta).sigmoid())
    return _rectifier(x, F.softplus(x.tensor, beta, threshold), slope)


def _sigmoid(x: _Value) -> _Value:
    result = x.tensor.sigmoid()
    return _linear(x, result, lambda signal: signal * result * (1 - result))


def _tanh(x: _Value) -> _Value:
    result = x.tensor.tanh()
    return _linear(x, result, lambda signal: signal * (1 - result**2))


def _hardsigmoid(x: _Value, inplace: bool = False) -> _Value:
    slope = ((x.tensor > -3) & (x.tensor < 3)).double() / 6
    return _linear(x, (x.tensor / 6 + 0.5).clamp(0, 1), lambda signal: signal * slope)


# Arithmetic


def _tensor_of(x: Any) -> Any:
    return x.tensor if isinstance(x, _Value) else x


def _sum_to(signal: Tensor, shape: torch.Size) -> Tensor:
    """Undo broadcasting: the copies' signals add up."""
    while signal.dim() > len(shape):
        signal = signal.sum(0)
    for axis, size in enumerate(shape):
        if size == 1 and signal.shape[axis] > 1:
            signal = signal.sum(axis, keepdim=True)
    return signal


def _combination(tensor: Tensor, *terms: tuple[Any, Any]) -> _Value:
    """A value that grows by each term's factor as the term grows."""

    def back(signal: Tensor, _method: str) -> list[tuple[_Value, Tensor]]:
        return [(x, _sum_to(signal * factor, x.tensor.shape)) for x, factor in terms if isinstance(x, _Value)]

    return _Value(tensor, back)


def _add(x: Any, other: Any) -> _Value:
    return _combination(_tensor_of(x) + _tensor_of(other), (x, 1), (other, 1))


def _sub(x: Any, other: Any) -> _Value:
    return _combination(_tensor_of(x) - _tensor_of(other), (x, 1), (other, -1))


def _mul(x: Any, other: Any) -> _Value:
    return _combination(_tensor_of(x) * _tensor_of(other), (x, _tensor_of(other)), (other, _tensor_of(x)))


def _truediv(x: _Value, other: Any) -> _Value:
    if isinstance(other, _Value):
        raise NotImplementedError("division by a value that depends on the image")
    return _combination(x.tensor / other, (x, 1 / other))


# Moving values about


def _cat(tensors: Sequence[_Value], dim: int = 0) -> _Value:
    def back(signal: Tensor, _method: str) -> list[tuple[_Value, Tensor]]:
        parts, start = [], 0
        for x in tensors:
            parts.append((x, signal.narrow(dim, start, x.tensor.shape[dim])))
            start += x.tensor.shape[dim]
        return parts

    return _Value(torch.cat([x.tensor for x in tensors], dim), back)


def _getitem(x: _Value, index: Any) -> _Value:
    def back(signal: Tensor) -> Tensor:
        places = torch.zeros_like(x.tensor)
        places[index] = signal
        return places

    return _view(x, x.tensor[index], back)


def _chunk(x: _Value, chunks: int, dim: int = 0) -> tuple[_Value, ...]:
    return _split(x, math.ceil(x.tensor.shape[dim] / chunks), dim)


def _split(x: _Value, split_size: int | Sequence[int], dim: int = 0) -> tuple[_Value, ...]:
    parts, start = [], 0
    for part in x.tensor.split(split_size, dim):
        index = [slice(None)] * x.tensor.dim()
        index[dim] = slice(start, start + part.shape[dim])
        parts.append(_getitem(x, tuple(index)))
        start += part.shape[dim]
    return tuple(parts)


def _reshaped(name: str) -> Callable[..., _Value]:
    def rule(x: _Value, *args: Any, **kwargs: Any) -> _Value:
        return _view(x, getattr(x.tensor, name)(*args, **kwargs), lambda signal: signal.reshape(x.tensor.shape))

    return rule


def _transpose(x: _Value, dim0: int, dim1: int) -> _Value:
    return _view(x, x.tensor.transpose(dim0, dim1), lambda signal: signal.transpose(dim0, dim1))


def _permute(x: _Value, *dims: Any) -> _Value:
    order = list(dims if isinstance(dims[0], int) else dims[0])
    back = [order.index(axis) for axis in range(len(order))]
    return _view(x, x.tensor.permute(order), lambda signal: signal.permute(back))


def _moved(x: _Value, move: Callable[[Tensor], Tensor]) -> _Value:
    """Values that go elsewhere, some to several places, some to none; what comes from nowhere is zero."""
    # Where each value was taken from; zero for nowhere, and the first place is one.
    origins = move(torch.arange(1.0, 1 + x.tensor.numel()).double().view(x.tensor.shape)).long().flatten()

    def back(signal: Tensor) -> Tensor:
        places = torch.zeros(1 + x.tensor.numel(), dtype=signal.dtype)
        places.scatter_add_(0, origins, signal.flatten())
        return places[1:].view(x.tensor.shape)

    return _linear(x, move(x.tensor), back)


def _pad(x: _Value, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> _Value:
    if value:
        raise NotImplementedError(f"padding with {value}")
    return _moved(x, lambda tensor: F.pad(tensor, list(pad), mode))


def _interpolate(x: _Value, *args: Any, **kwargs: Any) -> _Value:
    """Each channel by itself, times a matrix whose columns are what becomes of single pixels."""
    rows, columns = x.tensor.shape[2:]
    pixels = torch.eye(rows * columns, dtype=x.tensor.dtype).view(-1, 1, rows, columns)
    matrix = F.interpolate(pixels, *args, **kwargs).flatten(1)

    def back(signal: Tensor) -> Tensor:
        return (signal.flatten(2) @ matrix.T).view(x.tensor.shape)

    return _linear(x, F.interpolate(x.tensor, *args, **kwargs), back)


def _contiguous(x: _Value) -> _Value:
    return x if x.tensor.is_contiguous() else _linear(x, x.tensor.contiguous(), lambda signal: signal)


def _same(x: _Value, *_args: Any, **_kwargs: Any) -> _Value:
    # The very object, not a copy: what writes to the one writes to the other.
    return x


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv2d": _conv2d,
    "linear": _fully_connected,
    "layer_norm": _layer_norm,
    "max_pool2d": _max_pool2d,
    "adaptive_max_pool2d": _adaptive_max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "mean": _mean,
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "leaky_relu": _leaky_relu,
    "prelu": _prelu,
    "elu": _elu,
    "selu": _selu,
    "celu": _celu,
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "hardswish": _hardswish,
    "softplus": _softplus,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "hardsigmoid": _hardsigmoid,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _truediv,
    "truediv": _truediv,
    "cat": _cat,
    "concat": _cat,
    "getitem": _getitem,
    "chunk": _chunk,
    "split": _split,
    "view": _reshaped("view"),
    "reshape": _reshaped("reshape"),
    "flatten": _reshaped("flatten"),
    "squeeze": _reshaped("squeeze"),
    "unsqueeze": _reshaped("unsqueeze"),
    "transpose": _transpose,
    "permute": _permute,
    "pad": _pad,
    "interpolate": _interpolate,
    "pixel_shuffle": lambda x, factor: _moved(x, lambda tensor: F.pixel_shuffle(tensor, factor)),
    "pixel_unshuffle": lambda x, factor: _moved(x, lambda tensor: F.pixel_unshuffle(tensor, factor)),
    "roll": lambda x, shifts, dims: _moved(x, lambda tensor: tensor.roll(shifts, dims)),
    "clone": lambda x: _linear(x, x.tensor.clone(), lambda signal: signal),
    "contiguous": _contiguous,
    "dropout": _same,
    "dropout2d": _same,
    "feature_dropout": _same,
    "stochastic_depth": _same,
}

_MODULES: dict[type[nn.Module], Callable[..., _Value]] = {
    nn.Conv2d: _conv_module,
    nn.ConvTranspose2d: _conv_transpose_module,
    nn.Linear: lambda module, x: _fully_connected(x, module.weight, module.bias),
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: lambda m, x: _layer_norm(x, m.normalized_shape, m.weight, m.bias, m.eps),
    nn.MaxPool2d: lambda m, x: _max_pool2d(
        x, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
    nn.AdaptiveMaxPool2d: lambda module, x: _adaptive_max_pool2d(x, module.output_size, module.return_indices),
    nn.AvgPool2d: lambda m, x: _avg_pool2d(
        x, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.AdaptiveAvgPool2d: lambda module, x: _adaptive_avg_pool2d(x, module.output_size),
    nn.ReLU: lambda _module, x: _relu(x),
    nn.ReLU6: lambda _module, x: _relu6(x),
    nn.Hardtanh: lambda module, x: _hardtanh(x, module.min_val, module.max_val),
    nn.LeakyReLU: lambda module, x: _leaky_relu(x, module.negative_slope),
    nn.PReLU: lambda module, x: _prelu(x, module.weight),
    nn.ELU: lambda module, x: _elu(x, module.alpha),
    nn.SELU: lambda _module, x: _selu(x),
    nn.CELU: lambda module, x: _celu(x, module.alpha),
    nn.GELU: lambda module, x: _gelu(x, module.approximate),
    nn.SiLU: lambda _module, x: _silu(x),
    nn.Mish: lambda _module, x: _mish(x),
    nn.Hardswish: lambda _module, x: _hardswish(x),
    nn.Softplus: lambda module, x: _softplus(x, module.beta, module.threshold),
    nn.Sigmoid: lambda _module, x: _sigmoid(x),
    nn.Tanh: lambda _module, x: _tanh(x),
    nn.Hardsigmoid: lambda _module, x: _hardsigmoid(x),
    nn.Flatten: lambda module, x: _FUNCTIONS["flatten"](x, module.start_dim, module.end_dim),
    nn.Identity: lambda _module, x: x,
    nn.Dropout: lambda _module, x: x,
    nn.Dropout2d: lambda _module, x: x,
}
