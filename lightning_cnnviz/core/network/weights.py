"""The weights that a layer uses, where they are computed anew at each pass, and whether weights have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_cnnviz.core.network.hooks import analysis_mode

__all__ = [
    "WeightSource",
    "parametrizations_of",
    "scale_filters_",
    "used_weight",
    "weight_source",
    "weights_fingerprint",
]

Conv = nn.modules.conv._ConvNd
_AS_TORCH = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)}
_AS_TORCH_INSIDE = {kind._conv_forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d)} | {None}


@dataclass(frozen=True, eq=False, kw_only=True)
class WeightSource:
    """What a tensor that a layer uses is computed from.

    Attributes:
        kind: `"parameter"`: from nothing, it is one; `"parametrized"`: by `torch.nn.utils.parametrize`;
            `"weight_norm"`, `"spectral_norm"`, `"pruned"`: by torch's hooks of these names; `"hook"`: by another.
        parameters: Those that it is computed from, by the names that they have for their owner.
        hook: The hook, of torch's kinds.
    """

    kind: Literal["parameter", "parametrized", "weight_norm", "spectral_norm", "pruned", "hook"]
    parameters: dict[str, Tensor]
    hook: Any = None


def weight_source(module: nn.Module, name: str = "weight") -> WeightSource:
    """Return what a layer's tensor is computed from at each pass: `.weight` may be what an earlier one has left.

    Example:
        >>> weight_source(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))).kind
        'parametrized'
    """
    if is_parametrized(module, name):
        own = dict(parametrizations_of(module, name).named_parameters(recurse=False))
        return WeightSource(kind="parametrized", parameters=own)
    own = {key: value for key, value in module._parameters.items() if value is not None}
    if name in own or not isinstance(module.__dict__.get(name), Tensor):
        return WeightSource(kind="parameter", parameters={key: value for key, value in own.items() if key == name})
    own = {key: value for key, value in own.items() if key.startswith(f"{name}_")}
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == name:
            return WeightSource(kind="weight_norm", parameters=own, hook=hook)
        if isinstance(hook, SpectralNorm) and hook.name == name:
            return WeightSource(kind="spectral_norm", parameters=own, hook=hook)
        if isinstance(hook, BasePruningMethod) and getattr(hook, "_tensor_name", None) == name:
            return WeightSource(kind="pruned", parameters=own, hook=hook)
    return WeightSource(kind="hook", parameters=own)


def parametrizations_of(module: nn.Module, name: str = "weight") -> Any:
    """Return torch's `ParametrizationList` of a tensor that is parametrized."""
    every: Any = module.parametrizations
    return every[name]


def used_weight(module: nn.Module) -> Tensor:
    """Return a copy of the weights with which a convolution works in eval mode, on its device and without a gradient.

    They are those of its next pass, whatever computes them: a parametrization, a hook of weight_norm, spectral_norm,
    pruning or of your own, or the layer itself, as weight standardization does it. The layer is left as it is.

    Args:
        module: A convolution; or a linear layer, whose own `forward` is torch's.

    Raises:
        ValueError: It multiplies by no weights, or by several.

    Example:
        >>> conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3))
        >>> torch.equal(used_weight(conv), conv.weight)
        True
    """
    source, as_torch = weight_source(module), _works_as_torch(module)
    if source.kind == "parameter" and as_torch:
        return module.weight.detach().clone()  # type: ignore[operator]
    with analysis_mode(module), _restored(module):
        trial = _trial(module)
        if source.kind not in ("parameter", "parametrized"):
            _run_hooks(module, trial)
        weight: Any = module.weight
        return (weight if as_torch else _weight_of_a_pass(module, trial)).detach().clone()


@torch.no_grad()
def scale_filters_(module: nn.Module, factors: Tensor) -> None:
    """Multiply, in place, the weights that each filter of a convolution uses by a factor of its own.

    What they are computed from is changed so that the next pass uses them; a filter whose factor is one stays as it is.

    Args:
        module: The convolution.
        factors: `(F,)`.

    Raises:
        ValueError: What computes the weights undoes the change, as spectral_norm does. Nothing has changed then.
    """
    source, before = weight_source(module), used_weight(module)
    shaped = factors.view(-1, *[1] * (before.ndim - 1))
    if source.kind == "parameter" and _works_as_torch(module):
        source.parameters["weight"].mul_(shaped.to(before))
        return
    wanted = before * shaped.to(before)
    saved = {name: value.clone() for name, value in source.parameters.items()}
    scaled = _scale(module, source, wanted, shaped)
    if scaled and torch.allclose(used_weight(module), wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max())):
        return
    for name, value in saved.items():
        source.parameters[name].copy_(value)
    raise ValueError(
        f"the weights that {type(module).__name__} uses are computed {_computed_by(module, source)}, so that its "
        "filters cannot be scaled: choose other layers, or remove what computes them"
    )


def weights_fingerprint(network: nn.Module) -> Tensor:
    """Return one number for each parameter and buffer, `(P,)` float64 on the CPU, which changes when its values do.

    It also tells of values that were written behind autograd's back, as averaging callbacks do it.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> before = weights_fingerprint(network)
        >>> network.weight.data[0, 0] += 1
        >>> torch.equal(before, weights_fingerprint(network))
        False
    """
    weights = chain(network.parameters(), network.buffers())
    sums = [weight.detach().sum(dtype=torch.float64) for weight in weights]
    return torch.stack(sums).cpu() if sums else torch.empty(0, dtype=torch.float64)


def _works_as_torch(module: nn.Module) -> bool:
    kind: Any = type(module)
    own = "forward" in module.__dict__ or "_conv_forward" in module.__dict__
    return not own and kind.forward in _AS_TORCH and getattr(kind, "_conv_forward", None) in _AS_TORCH_INSIDE


def _computed_by(module: nn.Module, source: WeightSource) -> str:
    if source.kind == "parametrized":
        kinds = [type(part).__name__.lstrip("_") for part in parametrizations_of(module)]
        return f"by {' and '.join(kinds)} (a parametrization)"
    others = {"parameter": "by its own forward", "hook": "by a forward_pre_hook", "pruned": "by pruning"}
    return others.get(source.kind, f"by {source.kind}")


def _scale(module: nn.Module, source: WeightSource, wanted: Tensor, shaped: Tensor) -> bool:
    """Change what the weights are computed from; whether there was anything to change."""
    values = source.parameters
    parts = list(parametrizations_of(module)) if source.kind == "parametrized" else []
    # How far they are divided again is known at the next passes alone, while its vectors follow.
    if source.kind == "spectral_norm" or any(isinstance(part, _SpectralNorm) for part in parts):
        return False
    normed = source.kind == "weight_norm" or (len(parts) == 1 and isinstance(parts[0], _WeightNorm))
    if normed:
        dim = source.hook.dim if source.hook is not None else parts[0].dim
        lengths, directions = [values[name] for name in sorted(values)]  # g and v, original0 and original1
        if dim == 0:
            lengths.mul_(shaped.to(lengths))
        else:
            directions.copy_(wanted)
            lengths.copy_(torch.norm_except_dim(wanted, 2, dim))
        return True
    name = {"parameter": "weight", "parametrized": "original"}.get(source.kind, "weight_orig")
    if name not in values or values[name].shape != wanted.shape:
        return False
    values[name].mul_(shaped.to(values[name]))
    return True


def _trial(module: nn.Module) -> Tensor:
    """The smallest input of a layer, of zeros."""
    weight: Any = module.weight
    sides: list[int] = []
    if isinstance(module, Conv):
        sides = [gap * (side - 1) + 1 for side, gap in zip(module.kernel_size, module.dilation, strict=True)]
    inputs: Any = module.in_channels if isinstance(module, Conv) else module.in_features
    return torch.zeros(1, inputs, *sides, dtype=weight.dtype, device=weight.device)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Put back the tensors that a pass leaves at a layer, and its buffers."""
    left = {name: value for name, value in module.__dict__.items() if isinstance(value, Tensor)}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        module.__dict__.update(left)
        for buffer, value in buffers:
            buffer.copy_(value)


def _run_hooks(module: nn.Module, trial: Tensor) -> None:
    for number, hook in list(module._forward_pre_hooks.items()):
        run: Callable[..., Any] = hook
        if number in module._forward_pre_hooks_with_kwargs:
            run(module, (trial,), {})
        else:
            run(module, (trial,))


class _Convolutions(TorchDispatchMode):
    """Collects the weights of the convolutions that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weights: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket is torch.ops.aten.convolution:
            self.weights.append(args[1])
        return func(*args, **(kwargs or {}))


def _weight_of_a_pass(module: nn.Module, trial: Tensor) -> Tensor:
    """The weights that a layer with a forward of its own works with."""
    seen = _Convolutions()
    try:
        with seen:
            module.forward(trial)
        problem = f"it runs {len(seen.weights)} convolutions"
    except Exception as error:
        problem = f"it cannot be run by itself ({type(error).__name__}: {error})"
    else:
        if len(seen.weights) == 1:
            return seen.weights[0]
    raise ValueError(f"the weights that {type(module).__name__} uses are not known: {problem}")
