"""Copies of a network: as it is, also where a pass has left tensors in it; and with all of its weights made anew."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList, type_before_parametrizations

from lightning_cnnviz.core.network.hooks import keep_random_state
from lightning_cnnviz.core.network.weights import WeightSource, parametrizations_of, weight_source

__all__ = ["copy_network", "random_twin"]

_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_SEEDS = 0x7_111  # or a network that was made with the same seed would be its own twin
_POWER_ITERATIONS = 50  # of a spectral norm: its vectors are those of other weights


def copy_network(model: nn.Module) -> nn.Module:
    """Return a copy of a network of its own.

    `copy.deepcopy` refuses tensors that were computed with gradients, such as the `.weight` that weight_norm's hook
    leaves at a layer, or activations that a network keeps: of these, the values are copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in _tensors(module.__dict__.values()):
            if not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


def random_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy of a network with all weights made anew: what a result owes to the architecture alone.

    Layers are initialized by their own `reset_parameters`, and so is what `.weight` is computed from: by
    parametrizations, and by the hooks of weight_norm, spectral_norm and pruning, whose masks stay. Parameters that no
    layer says how to initialize have their values shuffled; one that is the same everywhere stays as it is. Running
    statistics begin anew. No random number generator notices.

    Raises:
        ValueError: The network has no weights that could be made anew.

    Example:
        >>> model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU())
        >>> images = torch.rand(2, 3)
        >>> torch.equal(model(images), random_twin(model)(images))
        False
    """
    # A copy that is made in inference mode could not tell what was written to; and leaving that mode allows gradients.
    with torch.inference_mode(False), torch.no_grad():
        return _renewed_twin(model, seed)


def _renewed_twin(model: nn.Module, seed: int) -> nn.Module:
    twin = copy_network(model)
    before = {id(value): (value, value.clone(), value._version) for value in _weights(twin)}
    with keep_random_state():
        torch.manual_seed(_SEEDS + seed)
        renewed: set[int] = set()
        for module in twin.modules():
            renewed |= _renew(module)
        for value, old, version in before.values():
            if id(value) not in renewed and value._version == version and torch.equal(value, old):
                _shuffle(value)
        _settle_spectral_norms(twin)
    if not renewed and all(torch.equal(value, old) for value, old, _ in before.values()):
        raise ValueError(
            f"{type(model).__name__} has no weights that could be made anew: there is no random control of it"
        )
    return twin


def _weights(model: nn.Module) -> list[Tensor]:
    return [value for value in model.parameters() if not is_lazy(value)]


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among some values and in lists and dictionaries of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _renew(module: nn.Module) -> set[int]:
    """Initialize a layer's own tensors; returns the identities of those of which nothing else can tell."""
    if isinstance(module, ParametrizationList):
        return set()  # its owner's
    reset = _reset_of(module)
    if reset is None:
        _begin_statistics(module)
        return set()
    computed = {name: source for name in _computed(module) if (source := weight_source(module, name))}
    if not computed:
        reset(module)
        return set()
    plain = _without_computation(module, computed)
    reset(plain)
    done: set[int] = set()
    for name, source in computed.items():
        if _give_back(module, name, source, plain._parameters[name]):
            done |= {id(value) for value in source.parameters.values()}
    return done


def _reset_of(module: nn.Module) -> Callable[[Any], Any] | None:
    """How a layer initializes itself, if it says so; nn.MultiheadAttention says it under its breath."""
    kind = type_before_parametrizations(module)
    for name in ("reset_parameters", "_reset_parameters"):
        method: Callable[[Any], Any] | None = getattr(kind, name, None)
        if method is not None:
            others = list(inspect.signature(method).parameters.values())[1:]
            if all(other.default is not other.empty or other.kind in _VARIABLE for other in others):
                return method
    return None


def _computed(module: nn.Module) -> list[str]:
    """Names of a layer's tensors that are computed from parameters."""
    parametrizations: Any = getattr(module, "parametrizations", None)
    names = list(parametrizations) if isinstance(parametrizations, nn.ModuleDict) else []
    for name, value in module.__dict__.items():
        if isinstance(value, Tensor) and weight_source(module, name).parameters:
            names.append(name)
    return names


def _without_computation(module: nn.Module, computed: Iterable[str]) -> nn.Module:
    """The same layer with parameters of its own where tensors are computed; it shares all others."""
    kind: Any = type_before_parametrizations(module)
    plain: nn.Module = kind.__new__(kind)
    plain.__dict__ = {name: value for name, value in module.__dict__.items() if name not in computed}
    fresh = {name: nn.Parameter(torch.empty_like(getattr(module, name))) for name in computed}
    plain.__dict__["_parameters"] = {**module._parameters, **fresh}
    plain.__dict__["_modules"] = {name: part for name, part in module._modules.items() if name != "parametrizations"}
    return plain


def _give_back(module: nn.Module, name: str, source: WeightSource, fresh: Any) -> bool:
    """Set what a tensor is computed from, as it was set where the computation was put on; whether that is known."""
    values = source.parameters
    if source.kind == "parametrized":
        parts = parametrizations_of(module, name)
        made: Any = fresh.detach()
        try:
            for part in reversed(parts):
                if hasattr(part, "right_inverse"):
                    made = part.right_inverse(made)
        except NotImplementedError:
            return False
        made = [made] if isinstance(made, Tensor) else list(made)
        for value, new in zip(values.values(), made, strict=True):
            value.copy_(new)
    elif source.kind == "weight_norm":
        values[f"{name}_v"].copy_(fresh)
        values[f"{name}_g"].copy_(torch.norm_except_dim(fresh, 2, source.hook.dim))
    elif source.kind in ("spectral_norm", "pruned"):
        values[f"{name}_orig"].copy_(fresh)
    else:
        return False
    return True


def _begin_statistics(module: nn.Module) -> None:
    """Set running statistics of a norm that cannot do it itself, and what it is multiplied by where that is frozen."""
    buffers = module._buffers
    if isinstance(buffers.get("running_mean"), Tensor) and isinstance(buffers.get("running_var"), Tensor):
        for name, value in (("running_mean", 0), ("running_var", 1), ("weight", 1), ("bias", 0)):
            buffer = buffers.get(name)
            if buffer is not None:
                buffer.fill_(value)


def _shuffle(value: Tensor) -> None:
    flat = value.flatten()
    shuffled = flat[torch.randperm(len(flat)).to(flat.device)]
    # Of few values, some order may be drawn that says the same.
    value.copy_((flat.roll(1) if torch.equal(shuffled, flat) else shuffled).view_as(value))


def _settle_spectral_norms(model: nn.Module) -> None:
    """Let the vectors of spectral norms follow their new weights, as they do over many steps of training."""
    for module in model.modules():
        for name in _computed(module):
            source = weight_source(module, name)
            if source.kind == "spectral_norm":
                _draw_vectors([module._buffers[f"{name}_u"], module._buffers[f"{name}_v"]])
                for _ in range(_POWER_ITERATIONS):
                    source.hook.compute_weight(module, do_power_iteration=True)
            elif source.kind == "parametrized":
                _settle(parametrizations_of(module, name))


def _settle(parts: Any) -> None:
    flags = [(part, part.training) for part in parts.modules()]
    vectors = [part._buffers.get(name) for part in parts for name in ("_u", "_v")]
    if not any(isinstance(vector, Tensor) for vector in vectors):
        return
    _draw_vectors(vectors)
    for part, _ in flags:
        part.training = True
    for _ in range(_POWER_ITERATIONS):
        parts()
    for part, flag in flags:
        part.training = flag


def _draw_vectors(vectors: Iterable[Any]) -> None:
    for vector in vectors:
        if isinstance(vector, Tensor):
            vector.copy_(nn.functional.normalize(torch.randn(vector.shape), dim=0))
