"""What surgery knows of each kind of layer: its widths, how it is rebuilt with others, how it is described."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import remove_parametrizations, type_before_parametrizations

from lightning_cnnviz.core.network.weights import parametrizations_of, weight_source

__all__ = [
    "Conv",
    "Norm",
    "count_parameters",
    "describe",
    "given_width",
    "inputs_of",
    "is_depthwise",
    "is_rebuildable",
    "outputs_of",
    "rebuild",
]

Conv = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._NormBase
_Transposed = nn.modules.conv._ConvTransposeNd


def given_width(module: nn.Module, value: Tensor) -> int | None:
    """How many features a layer is given, if it is one that counts on their number."""
    if isinstance(module, Conv):
        place = -1 - len(module.kernel_size)
    elif isinstance(module, nn.Linear):
        place = -1
    elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        # torchvision's and timm's LayerNorm2d go along the channels.
        place = 1 if type(module) is not nn.LayerNorm and "2d" in type(module).__name__ else -1
    elif isinstance(module, nn.PReLU):
        place = 1 if module.num_parameters > 1 else value.ndim
    elif isinstance(module, (Norm, nn.GroupNorm)):
        place = 1
    else:
        return None
    return int(value.shape[place]) if -value.ndim <= place < value.ndim else None


def inputs_of(module: nn.Module) -> int:
    """How many features a layer takes."""
    if isinstance(module, Conv):
        return module.in_channels
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[0])
    return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)  # type: ignore[arg-type]


def outputs_of(module: nn.Module) -> int:
    """How many features a layer returns."""
    if isinstance(module, Conv):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else inputs_of(module)


def is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, Conv) and module.groups == module.in_channels and module.groups > 1


def is_rebuildable(module: nn.Module, name: str) -> bool:
    """Whether a tensor is a layer's own, or computed in a way that can be put on again."""
    source = weight_source(module, name)
    if source.kind == "parametrized":
        parts = parametrizations_of(module, name)
        return len(parts) == 1 and isinstance(parts[0], (_SpectralNorm, _WeightNorm))
    return source.kind in ("weight_norm", "spectral_norm") or name in module._parameters


def rebuild(module: nn.Module, inputs: int, outputs: int, seed: int) -> None:
    """Give a layer other numbers of inputs and outputs, and fresh parameters; norms of its weights are put on again."""
    with torch.enable_grad():  # or torch makes buffers of what is to learn
        norms = [_take_off(module, name) for name in ("weight", "bias") if name not in module._parameters]
    if isinstance(module, Conv):
        if is_depthwise(module):
            module.groups = inputs
        module.in_channels, module.out_channels = inputs, outputs
        first, second = (inputs, outputs) if isinstance(module, _Transposed) else (outputs, inputs)
        shapes = {"weight": (first, second // module.groups, *module.kernel_size), "bias": (outputs,)}
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
        shapes = {"weight": (outputs, inputs), "bias": (outputs,)}
    else:
        if isinstance(module, nn.GroupNorm):
            module.num_channels = inputs
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (inputs,)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = inputs
        else:
            module.num_features = inputs  # type: ignore[assignment]
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (inputs,))
    places = {}
    for name, shape in shapes.items():
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            places[name] = tensor.device
            # Drawn on the CPU: the same weights on whatever device.
            fresh = torch.empty(shape, dtype=tensor.dtype)
            setattr(module, name, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
    # Within analysis_mode, which puts it back; not torch.manual_seed, which would seed GPUs as well.
    torch.default_generator.manual_seed(seed)
    module.reset_parameters()  # type: ignore[operator]
    for name, device in places.items():
        fresh = getattr(module, name)
        moved = fresh.detach().to(device)
        setattr(module, name, nn.Parameter(moved) if isinstance(fresh, nn.Parameter) else moved)
    with torch.enable_grad():
        for put_on in norms:
            put_on()


def _take_off(module: nn.Module, name: str) -> Callable[[], Any]:
    """Make a tensor that a norm computes a parameter; returns what puts the norm on again."""
    source, utils = weight_source(module, name), nn.utils
    if source.kind == "parametrized":
        norm: Any = parametrizations_of(module, name)[0]
        # Taking it off changes the class, which a copy has in common with the network that it was made of.
        kind = type(module)
        module.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))
        remove_parametrizations(module, name)
        if isinstance(norm, _SpectralNorm):
            options = (getattr(norm, "n_power_iterations", 1), norm.eps, norm.dim)
            return lambda: utils.parametrizations.spectral_norm(module, name, *options)
        return lambda: utils.parametrizations.weight_norm(module, name, norm.dim)
    hook = source.hook
    if source.kind == "spectral_norm":
        utils.remove_spectral_norm(module, name)
        return lambda: utils.spectral_norm(module, name, hook.n_power_iterations, hook.eps, hook.dim)
    utils.remove_weight_norm(module, name)

    def put_on() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of whoever chose the hook
            utils.weight_norm(module, name, hook.dim)

    return put_on


def describe(module: nn.Module) -> str:
    """A layer in a few words."""
    kind = type_before_parametrizations(module).__name__
    if isinstance(module, Conv):
        kernel = "x".join(map(str, module.kernel_size))
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        return f"{kind}({module.in_channels} to {module.out_channels}, {kernel}{groups})"
    if isinstance(module, nn.Linear):
        return f"{kind}({module.in_features} to {module.out_features})"
    if isinstance(module, (Norm, nn.GroupNorm)) or (isinstance(module, nn.LayerNorm) and count_parameters(module)):
        return f"{kind}({inputs_of(module)})"
    return kind


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
