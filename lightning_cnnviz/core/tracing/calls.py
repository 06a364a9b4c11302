"""One reading of torch's operations, as torch dispatches them: names, arguments by name, and which are of one kind.

Whoever follows a pass (receptive fields, the layer table, projections) gives rules to the kinds that are listed here,
so that an operation under another name, of another backend say, is known to all of them or to none.

Operations that torch makes of others (`conv2d`, `batch_norm`, `linear`, `flatten`) have no place in the lists: they
are always read as the operations that they are made of. Otherwise they would be seen only where a network switches to
inference mode in the middle of its pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "Call",
    "OperationReader",
    "Operator",
    "functional_twin",
    "input_tensors",
    "read_operator",
    "tensors_in",
    "without_results",
]

# Kinds. The names are those of `torch.ops.aten`, of which some exist for one kind of device alone.

CONVOLUTIONS = frozenset(
    [
        # Some of these are transposed: see `is_transposed`. A traced network dispatches `_convolution`.
        *("convolution", "_convolution", "convolution_overrideable"),
        *("cudnn_convolution", "miopen_convolution", "miopen_depthwise_convolution", "mkldnn_convolution"),
        *("_mps_convolution", "_nnpack_spatial_convolution", "_slow_conv2d_forward", "slow_conv_dilated2d"),
        *("_conv_depthwise2d", "conv_depthwise3d", "slow_conv3d_forward", "slow_conv_dilated3d"),
        *("cudnn_convolution_transpose", "miopen_convolution_transpose", "_mps_convolution_transpose"),
        *("slow_conv_transpose2d", "slow_conv_transpose3d"),
    ]
)
# A convolution and the ReLU behind it as one operation, as `torch.jit.optimize_for_inference` makes them.
RECTIFIED_CONVOLUTIONS = frozenset(
    [
        *("cudnn_convolution_relu", "cudnn_convolution_add_relu"),
        *("miopen_convolution_relu", "miopen_convolution_add_relu"),
    ]
)
BATCH_NORMS = frozenset(
    [
        *("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"),
        *("_native_batch_norm_legit", "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training"),
        *("_batch_norm_with_update", "_batch_norm_with_update_functional", "_batch_norm_no_update"),
    ]
)
LAYER_NORMS = frozenset(["native_layer_norm"])
GROUP_NORMS = frozenset(["native_group_norm"])
MAX_POOLS = frozenset(["max_pool2d_with_indices", "mkldnn_max_pool2d"])
AVERAGE_POOLS = frozenset(["avg_pool2d"])
POOLS_3D = frozenset(["avg_pool3d", "max_pool3d_with_indices", "mkldnn_max_pool3d"])
ADAPTIVE_POOLS = frozenset(["_adaptive_avg_pool2d", "adaptive_max_pool2d", "mkldnn_adaptive_avg_pool2d"])
ADAPTIVE_POOLS_3D = frozenset(["_adaptive_avg_pool3d", "adaptive_max_pool3d"])
# They put values in places that other values name.
POOLS_BY_INDEX = frozenset(["fractional_max_pool2d", "max_unpool2d"])
NEAREST_UPSAMPLINGS = frozenset(
    [
        *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"),
        *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    ]
)
INTERPOLATIONS = frozenset(
    [
        *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
        *("upsample_linear1d", "upsample_trilinear3d", "_upsample_lanczos2d_aa"),
    ]
)
CONSTANT_PADS = frozenset(["constant_pad_nd"])
EDGE_PADS = frozenset(
    [
        *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
        *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
    ]
)
JOINS = frozenset(["cat", "stack"])
SUMS = frozenset(["add", "sub"])
PRODUCTS = frozenset(["mul", "div"])
# Windows as columns, and columns back to windows.
UNFOLDINGS = frozenset(["im2col"])
FOLDINGS = frozenset(["col2im"])
# They read where values say, between pixels.
SAMPLERS = frozenset(["grid_sampler_2d", "_grid_sampler_2d_cpu_fallback", "cudnn_grid_sampler"])
# The same values in the same places.
COPIES = frozenset(["clone", "_to_copy", "detach", "alias", "lift_fresh"])
# Views and copies that move values about without mixing them.
RESHAPES = frozenset(["view", "_unsafe_view", "_reshape_alias"])
PERMUTATIONS = frozenset(["permute", "transpose"])
SPLITS = frozenset(["split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"])
SLICES = frozenset(["slice"])
OTHER_MOVES = frozenset(
    [
        *("t", "select", "unbind", "expand", "unsqueeze", "squeeze", "diagonal", "unfold"),
        *("repeat", "flip", "roll", "rot90", "index", "index_select", "gather"),
        *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
    ]
)
# Zeros in place of all that is above, or below, a diagonal.
TRIANGLES = frozenset(["tril", "triu"])
# They write into a copy at places that an index or a slice names, or add to what is there.
WRITES_AT_PLACES = frozenset(
    [
        *("scatter", "scatter_add", "scatter_reduce", "index_put", "index_copy", "index_add", "index_fill"),
        *("slice_scatter", "select_scatter", "diagonal_scatter"),
    ]
)
# A deconvnet rectifies at these. Clamps and thresholds are such where they cut at zero.
RECTIFIERS = frozenset(
    [
        *("relu", "leaky_relu", "elu", "celu", "gelu", "silu", "mish", "hardswish", "softplus"),
        *("_prelu_kernel", "rrelu_with_noise"),
    ]
)
CLAMPS = frozenset(["clamp", "clamp_min", "hardtanh"])
THRESHOLDS = frozenset(["threshold", "maximum"])
REDUCTIONS = frozenset(
    [
        *("mean", "sum", "amax", "amin", "max", "min", "argmax", "argmin", "prod", "any", "all"),
        *("var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm"),
        *("median", "nanmedian", "kthvalue", "mode"),
    ]
)
# Every element of a line depends on the whole line.
ALONG_A_LINE = frozenset(["_softmax", "_log_softmax", "_safe_softmax", "sort", "topk"])
# Every element of a line depends on those before it, and on itself.
RUNNING = frozenset(["cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"])
# Two real numbers as a complex one, and back.
COMPLEX_VIEWS = frozenset(["view_as_real", "view_as_complex"])
FOURIER_TRANSFORMS = frozenset(["_fft_r2c", "_fft_c2r", "_fft_c2c"])
MATRIX_PRODUCTS = frozenset(["mm", "bmm", "mv", "dot"])
MATRIX_PRODUCTS_ADDED = frozenset(["addmm", "baddbmm", "addmv"])
# On shapes alone, and on devices without these, attention runs as matrix products.
ATTENTIONS = frozenset(
    [
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
        *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
        "_scaled_dot_product_fused_attention_overrideable",
    ]
)
# What comes out does not depend on the values that went in.
CONSTANTS = frozenset(
    [
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_strided"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    ]
)
# Likewise in place, where what a tensor is filled with does not depend on the image.
FILLS = frozenset(["zero", "fill", "bernoulli", "normal", "uniform"])
# Pointwise, though torch has no such tag on them.
UNTAGGED_POINTWISE = frozenset(
    ["hardswish", "hardtanh", "leaky_relu", "native_dropout", "rrelu_with_noise", "_prelu_kernel", "threshold"]
)

# Reading


class Operator(NamedTuple):
    """What there is to know of one operation of torch, whatever it is given.

    Attributes:
        func: The operation as it is dispatched.
        name: Its name without overload, and for a twin that writes in place (`add_`) without the underscore; with its
            namespace, unless that is `aten`.
        in_place: Whether it is such a twin.
        composite: Whether torch makes it of other operations.
        pointwise: Whether every element depends on the elements in the same place.
        writes: Whether it returns memory that it was given and has written to.
        written_to: Names of the arguments that serve for the results alone: `out`.
        places: For each argument its position and its default value.
    """

    func: Any
    name: str
    in_place: bool
    composite: bool
    pointwise: bool
    writes: bool
    written_to: frozenset[str]
    places: Mapping[str, tuple[int, Any]]


@cache
def read_operator(func: Any) -> Operator:
    """Read an operation's schema; once for each.

    Example:
        >>> operator = read_operator(torch.ops.aten.add_.Tensor)
        >>> operator.name, operator.in_place, operator.writes
        ('add', True, True)
    """
    schema, full_name = func._schema, func.name()
    name = full_name.removeprefix("aten::").split(".")[0]
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.removesuffix("_") if in_place else name
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(full_name, _COMPOSITE)
    returns_memory = any(result.alias_info is not None and result.alias_info.is_write for result in schema.returns)
    return Operator(
        func=func,
        name=name,
        in_place=in_place,
        composite=composite,
        pointwise=torch.Tag.pointwise in func.tags or name in UNTAGGED_POINTWISE,
        writes=returns_memory and torch.Tag.inplace_view not in func.tags,
        written_to=frozenset(argument.name for argument in schema.arguments if argument.is_out),
        places={
            argument.name: (place, argument.default_value if argument.has_default_value() else _NO_DEFAULT)
            for place, argument in enumerate(schema.arguments)
        },
    )


_NO_DEFAULT = object()
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@cache
def functional_twin(func: Any) -> Any:
    """Return the operation that does the same and writes to nothing; None where there is none.

    Example:
        >>> functional_twin(torch.ops.aten.relu_.default), functional_twin(torch.ops.aten.cat.out)
        (<OpOverload(op='aten.relu', overload='default')>, <OpOverload(op='aten.cat', overload='default')>)
    """
    if not func._schema.is_mutable:
        return func
    packet = getattr(getattr(torch.ops, func.namespace), read_operator(func).name, None)
    arguments = _signature(func)
    twins = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    twins = [twin for twin in twins if not twin._schema.is_mutable and _signature(twin) == arguments]
    return twins[0] if twins else None


def _signature(func: Any) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in func._schema.arguments if not argument.is_out]


@dataclass(eq=False)
class Call:
    """One operation with what it is given.

    Attributes:
        operator: Which operation.
        args: Its positional arguments.
        kwargs: The others, without those that serve for the results alone.
        dependent: Those of its inputs that depend on the image, in order, each as often as it is given.
    """

    operator: Operator
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    dependent: Sequence[Tensor]

    @property
    def name(self) -> str:
        """The operation's name, see `Operator`."""
        return self.operator.name

    @property
    def functional(self) -> Any:
        """The same operation, writing to nothing; None where there is none."""
        return functional_twin(self.operator.func)

    @property
    def only_first(self) -> bool:
        """Whether the first argument alone depends on the image."""
        return len(self.dependent) == 1 and self.dependent[0] is self.args[0]

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name, with the schema's own default; `default` where there is no such argument."""
        place, own_default = self.operator.places.get(name, (len(self.args), _NO_DEFAULT))
        if place < len(self.args):
            return self.args[place]
        return self.kwargs.get(name, default if own_default is _NO_DEFAULT else own_default)

    def numbers(self, name: str, dims: int, default: int = 0) -> tuple[int, ...]:
        """An argument that has a number for each spatial dimension, or one for all."""
        value = self.argument(name, default)
        values = [value] if isinstance(value, int) else list(value)
        return tuple(int(v) for v in (values * dims if len(values) == 1 else values))

    def window(self, dims: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Kernel, stride, padding and dilation of a convolution or of pooling, each a number a spatial dimension."""
        weight = self.argument("weight")
        kernel = self.numbers("kernel_size", dims) if weight is None else tuple(weight.shape[2:])
        stride = self.numbers("stride", dims) if self.argument("stride") else kernel  # of pooling, that is the default
        return kernel, stride, self.numbers("padding", dims), self.numbers("dilation", dims, 1)

    @property
    def window_2d(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
        """The same for rows and columns."""
        kernel, stride, padding, dilation = ((numbers[0], numbers[-1]) for numbers in self.window(2))
        return kernel, stride, padding, dilation

    @property
    def is_transposed(self) -> bool:
        """Whether a convolution is a transposed one."""
        return bool(self.argument("transposed", "transpose" in self.name))

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether a batch norm computes means and variances anew, from all positions of a channel."""
        return bool(self.argument("training", "with_update" in self.name))


def input_tensors(operator: Operator, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that an operation reads, in order, each as often as it is given."""
    if operator.written_to:
        kwargs = without_results(operator, kwargs)
    return [*tensors_in(args), *tensors_in(kwargs)]


def without_results(operator: Operator, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the arguments without those that serve for the results alone."""
    if not operator.written_to:
        return kwargs
    return {name: value for name, value in kwargs.items() if name not in operator.written_to}


def tensors_in(values: Any) -> list[Tensor]:
    """Return the tensors in what an operation is given or has returned."""
    # Operations know no other containers. (Torch's own trees take longer than a small operation does.)
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


class OperationReader(TorchDispatchMode):
    """Hands each operation that is not made of others to `on_operation`, which runs it and returns its result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = read_operator(func)
        if operator.composite:
            # Not `func.decompose`, which may prefer a decomposition in Python that is none of the network's.
            with self:
                return func._op_dk(_COMPOSITE, *args, **(kwargs or {}))
        return self.on_operation(operator, args, kwargs or {})

    def on_operation(self, operator: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation and return its result."""
        raise NotImplementedError
