"""The stages of a network, from its first layers to its head, and what it means that some are frozen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked
from lightning_cnnviz.finetune.heads import ClassifyingLayers, sample_images

__all__ = ["Mode", "Stages", "find_stages", "freeze", "is_norm", "lowest_trained", "settle_modes"]

Mode = Literal["head", "full", "staged"]

_PARAMETRIZATIONS = "parametrizations"
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Stages:
    """The parts of a network that are trained or frozen together.

    Attributes:
        parameters: Names of each stage's parameters, from the lowest stage to the head; a parameter that two stages
            share is the higher one's.
        modules: The stage of each module that has parameters of its own, or no parts.
        heads: Names of the layers that make up the head.
    """

    parameters: tuple[tuple[str, ...], ...]
    modules: dict[str, int]
    heads: tuple[str, ...]

    @property
    def top(self) -> int:
        """The head's number."""
        return len(self.parameters) - 1


def find_stages(model: nn.Module, classifiers: ClassifyingLayers, size: tuple[int, int, int]) -> Stages:
    """Run a network and divide it: each downsampling begins a stage, each fully connected layer is one.

    Layers count in the order in which they run. What does not run belongs to the part of the network that encloses it
    and runs, or to the lowest stage. Parameters are told apart by identity.

    Args:
        model: The network, with its new head.
        classifiers: Its classifying layers.
        size: `(C, H, W)` of its images.

    Example:
        >>> layers = [nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3)]
        >>> model = nn.Sequential(*layers)
        >>> from lightning_cnnviz.finetune.heads import find_classifiers
        >>> find_stages(model, find_classifiers(model, (1, 8, 8)), (1, 8, 8)).parameters
        (('0.weight', '0.bias'), ('2.weight', '2.bias'), ('4.weight', '4.bias'))
    """
    heads, beside = classifiers.heads, (*(extra.name for extra in classifiers.auxiliary), *classifiers.beside)
    modules = {name: module for name, module in model.named_modules() if name}
    parts = {name: owner for name in modules if (owner := _owner_of(name)) is not None}
    own = {
        name: module
        for name, module in model.named_modules()
        if name not in parts and (_has_own(module) or not list(module.children()))
    }
    ran = _run(model, own, size)
    body = [(name, extent) for name, extent in ran if not _inside_any(name, (*heads, *beside))]
    numbers = _numbers([item for item in body if _is_layer(own[item[0]])], own)
    top = max(numbers.values(), default=-1) + 1
    stage = _by_module(body, numbers)
    for name in own:
        if _inside_any(name, heads):
            stage[name] = top
        elif _inside_any(name, beside):
            stage[name] = max(0, top - 1)
        elif name not in stage:
            around = [name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1)]
            enclosing = (_highest(stage, outer, modules) for outer in around)
            near = next((number for number in enclosing if number is not None), 0)
            stage[name] = min(near, max(0, top - 1)) if top else 0
    # What computes a layer's weights is part of the layer.
    stage |= {name: stage[owner] for name, owner in parts.items() if owner in stage}
    return Stages(_grouped(model, stage, top + 1), stage, heads)


def lowest_trained(mode: Mode, unfreeze_at: Sequence[int], epoch: int, top: int) -> int:
    """Return the lowest stage that is trained in an epoch, counted from 0; all above it are trained, too."""
    if mode == "full":
        return 0
    return top if mode == "head" else max(0, top - sum(begin <= epoch for begin in unfreeze_at))


def freeze(model: nn.Module, stages: Stages, lowest: int, never: Collection[str] = ()) -> None:
    """Let gradients flow into the stages from `lowest` on alone, and into no parameter named in `never`.

    A frozen parameter has no `.grad`, so that an optimizer leaves it and its state alone.
    """
    parameters = dict(model.named_parameters())
    for number, names in enumerate(stages.parameters):
        for name in names:
            trained = number >= lowest and name not in never
            parameters[name].requires_grad_(trained)
            if not trained:
                parameters[name].grad = None


def settle_modes(model: nn.Module, stages: Stages, lowest: int) -> None:
    """Put what is frozen into eval mode: its BatchNorms use and keep their statistics, its dropout does nothing.

    So is a layer whose parameters are all frozen for another reason. A container is in training mode where a part of it
    outside the head is.
    """
    live: set[str] = set()
    for name, module in model.named_modules():
        number = stages.modules.get(name)
        if number is None or _inside_any(name, stages.heads):
            continue
        parameters = list(module.parameters(recurse=False))
        if number >= lowest and (not parameters or any(value.requires_grad for value in parameters)):
            live.add(name)
            live.update(name.rsplit(".", cut)[0] for cut in range(1, name.count(".") + 1))
            live.add("")
    for name, module in model.named_modules():
        if name not in live and not _inside_any(name, stages.heads):
            module.training = False


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes, of whatever library."""
    return isinstance(module, _NORMS) or "Norm" in type(module).__name__


def _run(model: nn.Module, own: dict[str, nn.Module], size: tuple[int, int, int]) -> list[tuple[str, int | None]]:
    """What runs, in the order in which it ends, each with the number of places of its output."""
    ran: list[tuple[str, int | None]] = []

    def on_output(name: str, output: Any) -> None:
        ran.append((name, _extent(own[name], output)))

    with analysis_mode(model), hooked({name: Site(module) for name, module in own.items()}, on_output):
        model(sample_images(model, size))
    return ran


def _extent(module: nn.Module, output: Any) -> int | None:
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        return None
    if output.ndim <= 2:
        return 1
    # A Linear's and a LayerNorm's are tokens (N, ..., C); torchvision's LayerNorm2d, a subclass, takes (N, C, H, W).
    last = type(module) is nn.LayerNorm or isinstance(module, (nn.Linear, nn.MultiheadAttention))
    return prod(output.shape[1:-1] if last else output.shape[2:])


def _numbers(layers: list[tuple[str, int | None]], own: dict[str, nn.Module]) -> dict[str, int]:
    """The stage of each layer that has parameters."""
    # A squeeze-and-excitation is one place amid many: not its size counts, but the largest from here on.
    extents, largest = [], 0
    for _, extent in reversed(layers):
        largest = max(largest, extent or 1)
        extents.append(largest)
    numbers: dict[str, int] = {}
    current, reached = -1, 0
    for (name, _), extent in zip(layers, reversed(extents), strict=True):
        if name in numbers:
            continue
        connected = extent == 1 and isinstance(own[name], nn.Linear)
        if current < 0 or extent < reached or connected:
            current += 1
        reached = extent
        numbers[name] = current
    return numbers


def _by_module(body: list[tuple[str, int | None]], numbers: dict[str, int]) -> dict[str, int]:
    """The stage of everything that runs: of layers theirs, of all else the stage behind which it runs."""
    stage, current = dict(numbers), 0
    for name, _ in body:
        if name in numbers:
            current = max(current, numbers[name])
        else:
            stage[name] = current
    return stage


def _highest(stage: dict[str, int], outer: str, modules: dict[str, nn.Module]) -> int | None:
    if outer not in modules:
        return None
    return max((number for name, number in stage.items() if _inside(name, outer)), default=None)


def _grouped(model: nn.Module, stage: dict[str, int], count: int) -> tuple[tuple[str, ...], ...]:
    of: dict[int, int] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            # By identity: `==` compares values, and freshly made layers are often equal.
            of[id(parameter)] = max(of.get(id(parameter), 0), stage[name])
    groups: list[list[str]] = [[] for _ in range(count)]
    for name, parameter in model.named_parameters():
        groups[of[id(parameter)]].append(name)
    return tuple(tuple(group) for group in groups)


def _has_own(module: nn.Module) -> bool:
    return is_parametrized(module) or any(value is not None for value in module._parameters.values())


def _is_layer(module: nn.Module) -> bool:
    children = [name for name, _ in module.named_children() if name != _PARAMETRIZATIONS]
    return _has_own(module) and (not children or isinstance(module, nn.MultiheadAttention))


def _owner_of(name: str) -> str | None:
    """The layer whose weights a module computes, as `torch.nn.utils.parametrize` names it."""
    parts = name.split(".")
    return ".".join(parts[: parts.index(_PARAMETRIZATIONS)]) if _PARAMETRIZATIONS in parts else None


def _inside_any(name: str, outers: Sequence[str]) -> bool:
    return any(_inside(name, outer) for outer in outers)


def _inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
