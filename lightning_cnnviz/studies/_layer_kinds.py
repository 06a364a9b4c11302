"""What surgery knows of each kind of layer: its widths, how it is rebuilt with others, how it is described."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = [
    "Conv",
    "Norm",
    "count_parameters",
    "describe",
    "given_width",
    "inputs_of",
    "is_depthwise",
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


def rebuild(module: nn.Module, inputs: int, outputs: int, seed: int) -> None:
    """Give a layer other numbers of inputs and outputs, and fresh parameters."""
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


def describe(module: nn.Module) -> str:
    """A layer in a few words."""
    kind = type(module).__name__
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
