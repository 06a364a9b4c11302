"""The layer of a network that classifies: found by running the network, and replaced."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_cnnviz.core.network.endings import Ending, EndingMode, sums_to_one
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.layers import other_dimensions
from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.core.tracing.default_layers import find_default_layers

__all__ = [
    "ClassifyingLayer",
    "ClassifyingLayers",
    "HeadKind",
    "find_classifiers",
    "find_endings",
    "install_heads",
    "read_logits",
    "sample_images",
]

log = logging.getLogger("lightning_cnnviz")

HeadKind = Literal["linear", "mlp"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_WAY_OUT = (
    "FineTuner replaces layers that make all logits by themselves. Give a network that ends in one: "
    "torch.nn.Sequential(BODY, torch.nn.Linear(FEATURES, CLASSES)), where BODY is yours without its head and returns "
    "(N, FEATURES)"
)
_HIDDEN = 512
_DROPOUT = 0.5


@dataclass(frozen=True, kw_only=True)
class ClassifyingLayer:
    """A layer that makes logits.

    Attributes:
        name: Its name in the network.
        key: Which part of the network's output is its logits: a place, a name, or None for the output as a whole.
    """

    name: str
    key: int | str | None


@dataclass(frozen=True, kw_only=True)
class ClassifyingLayers:
    """The layers of a network that classify.

    Attributes:
        main: The one whose logits count.
        joined: Further ones whose outputs are averaged or summed with the main one's: levit's and deit's second head.
        auxiliary: Those that only help in training: inception's and googlenet's, and heads of other outputs that were
            named.
        training_key: Which part of the output is the main one's logits in training, as `ClassifyingLayer.key`.
        makers: All layers with weights that the logits that count are made by.
        beside: Layers that classify for other outputs alone: they are no stage of the network.
        whole: Whether each of the makers makes all logits; not where some make one class and some another.
    """

    main: ClassifyingLayer
    joined: tuple[str, ...] = ()
    auxiliary: tuple[ClassifyingLayer, ...] = ()
    training_key: int | str | None = None
    makers: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    whole: bool = True

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the layers that make the logits that count."""
        return (self.main.name, *self.joined)

    @property
    def replaced(self) -> tuple[str, ...]:
        """The names of all layers that give way to new ones, each once."""
        return tuple(dict.fromkeys((*self.heads, *(extra.name for extra in self.auxiliary))))


def sample_images(model: nn.Module, size: tuple[int, int, int], count: int = 1) -> Tensor:
    """Return noise images `(count, C, H, W)` where the network is; no random state is touched."""
    images = torch.rand(count, *size, generator=torch.Generator().manual_seed(0))
    dtype = next((value.dtype for value in model.parameters() if value.is_floating_point()), images.dtype)
    return images.to(model_device(model), dtype)


def find_classifiers(
    model: nn.Module, size: tuple[int, int, int], name: str | Sequence[str] | None = None
) -> ClassifyingLayers:
    """Run a network and say which of its layers (Linear or 1x1 convolution) make its logits.

    From the output its computation is followed back to the layers with weights that are met first; their names say
    nothing. Several that have as many outputs as there are logits are one head. A second pass, in training mode, finds
    auxiliary classifiers.

    Args:
        model: The network; left as it is.
        size: `(C, H, W)` of the images that it takes.
        name: The classifying layer, where several could be meant; or several: the logits of the first one's output
            count, and those of other outputs are auxiliary.

    Raises:
        ValueError: The network cannot be run; no layer or several layers could be meant.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
        >>> find_classifiers(model, (1, 8, 8)).main.name
        '3'
    """
    try:
        output_layers = _frontiers(model, size, training=False)
    except _CannotRunError as error:
        why = other_dimensions(model)
        if why:
            raise ValueError(
                f"{type(model).__name__} does not take an image of {_words(size)}, and FineTuner trains networks of "
                f"images (C, H, W) alone: {why} ({error})"
            ) from error
        raise ValueError(
            f"{type(model).__name__} cannot be run on an image of {_words(size)}: {error}; "
            "give image_size=(C, H, W) of the images that it takes"
        ) from error
    names = [name] if isinstance(name, str) else list(name or [])
    main, joined = _chosen(model, size, output_layers, names)
    try:
        in_training = _frontiers(model, size, training=True)
    except _CannotRunError as error:
        raise ValueError(
            f"{type(model).__name__} runs on an image of {_words(size)}, but not in training mode: {error}; "
            "give image_size=(C, H, W) of the images that it will be trained on"
        ) from error
    # In training mode an output may have parts that it has not otherwise.
    own = next((key for key, part in in_training.items() if main.name in part.layers), None)
    auxiliary = tuple(
        ClassifyingLayer(name=part.layers[0], key=key)
        for key, part in in_training.items()
        if key != own
        and len(part.layers) == 1
        and part.layers[0] != main.name
        and (key not in output_layers or part.layers[0] in names)
    )
    told = {main.name, *joined, *(extra.name for extra in auxiliary)}
    for other in names:
        if other not in told:
            raise ValueError(
                f"classifier={names}: '{other}' makes no output of {type(model).__name__} by itself that could be an "
                f"auxiliary one beside that of '{main.name}'; leave it out"
            )
    makers = tuple(output_layers[main.key].layers) if main.key in output_layers else ()
    beside = {layer for part in output_layers.values() for layer in part.layers} - {*makers, main.name, *joined}
    return ClassifyingLayers(
        main=main,
        joined=joined,
        auxiliary=auxiliary,
        training_key=own,
        makers=makers,
        whole=not makers or _makes_logits(model, output_layers[main.key]),
        beside=tuple(sorted(layer for layer in beside if _classifies(model.get_submodule(layer)))),
    )


def install_heads(
    model: nn.Module,
    classifiers: ClassifyingLayers,
    num_classes: int,
    head: HeadKind | nn.Module,
    size: tuple[int, int, int],
) -> None:
    """Put new heads into a network, in the place of its classifying layers.

    Args:
        model: The network; changed.
        classifiers: From `find_classifiers`.
        num_classes: How many logits an image has from now on.
        head: `"linear"`: a layer of the same kind as the old one; `"mlp"`: two of them, with a ReLU and dropout
            between; or a module of your own, which is put in as it is.
        size: `(C, H, W)` of the images.

    Raises:
        ValueError: `head` is neither, or what it takes and returns does not fit.
    """
    old = model.get_submodule(classifiers.main.name)
    if not isinstance(head, nn.Module) and head not in ("linear", "mlp"):
        raise ValueError(
            f'head={head!r}: give "linear", "mlp" or a module.{suggestion(str(head), ["linear", "mlp"], " ")}'
        )
    given = _input_shape(model, classifiers.main.name, size)
    ending = "" if isinstance(head, nn.Module) else f". {_WAY_OUT}"
    if classifiers.whole and not set(classifiers.makers) <= set(classifiers.heads):
        ending = _told_together(model, classifiers.makers)
    _replace(model, classifiers.main.name, head if isinstance(head, nn.Module) else _new(old, num_classes, head))
    for name in classifiers.replaced[1:]:
        kind = head if name in classifiers.joined else "linear"
        new = copy.deepcopy(kind) if isinstance(kind, nn.Module) else _new(model.get_submodule(name), num_classes, kind)
        _replace(model, name, new)
    what = f"head={head!r}" if isinstance(head, str) else f"head={type(head).__name__}(...)"
    where = f"layer '{classifiers.main.name}' is given features of shape {given}"
    for training in (False, True):
        count = 2 if training else 1
        try:
            output = _run(model, sample_images(model, size, count), training=training)
        except _CannotRunError as error:
            message = f"{what} does not fit: {where}, and the network fails with it: {error}{ending}"
            raise ValueError(message) from error
        logits, auxiliary = read_logits(output, classifiers, training=training)
        for made in (logits, *auxiliary):
            if not isinstance(made, Tensor) or tuple(made.shape) != (count, num_classes):
                returned = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
                raise ValueError(
                    f"{what} does not fit: {where}, and the network returns {returned} for {count} images; "
                    f"num_classes={num_classes} needs {(count, num_classes)}{ending}"
                )


def _told_together(model: nn.Module, makers: Sequence[str]) -> str:
    return f"; its output is made by {_listed(model, makers)} together: leave classifier out, or give {list(makers)}"


def read_logits(output: Any, classifiers: ClassifyingLayers, *, training: bool) -> tuple[Tensor, list[Tensor]]:
    """Return the logits `(N, classes)` of what a network returned, and those of its auxiliary classifiers."""
    parts = _parts(output)
    if training and len(parts) > 1 and classifiers.auxiliary:
        return parts[classifiers.training_key], [parts[extra.key] for extra in classifiers.auxiliary]
    key = classifiers.main.key if classifiers.main.key in parts else next(iter(parts), None)
    if key not in parts:
        raise ValueError(f"the network returns {type(output).__name__}, in which there are no logits")
    return parts[key], []


def find_endings(
    model: nn.Module, classifiers: ClassifyingLayers, size: tuple[int, int, int]
) -> dict[bool, tuple[Ending, ...]]:
    """Return which functions make probabilities of a network's logits, and of its auxiliary classifiers'.

    Many networks end in a softmax in eval mode alone.

    Returns:
        By training mode, the endings in the order of `read_logits`.
    """
    endings: dict[bool, tuple[Ending, ...]] = {}
    for training in (False, True):
        images = sample_images(model, size, 2 if training else 1)
        mode = EndingMode(images)
        with mode:
            logits, others = read_logits(_run(model, images, training=training), classifiers, training=training)
        # Also one that is spelled out, which no operation tells.
        endings[training] = tuple("softmax" if sums_to_one(made) else mode.of(made) for made in (logits, *others))
        if mode.never_negative(logits) and not endings[training][0]:
            log.warning(
                "%s: what it returns is computed from softmaxes or sigmoids and never negative, but no probabilities, "
                "as it may exceed 1. It is taken for logits: let the network return these, or scale it to 0 to 1",
                type(model).__name__,
            )
    return endings


class _CannotRunError(Exception):
    """The network raised something of its own."""


def _run(model: nn.Module, images: Tensor, *, training: bool) -> Any:
    """Run images through a network, in eval or training mode; its buffers are as before."""
    with _all_in_mode(model, training=training):
        try:
            return model(images)
        except Exception as error:
            raise _CannotRunError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _all_in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """`analysis_mode`, with every module in the mode that is asked for, and buffers put back."""
    # BatchNorms count and average in training mode.
    buffers = [buffer for buffer in model.buffers() if not is_lazy(buffer)] if training else []
    saved = [buffer.detach().clone() for buffer in buffers]
    with analysis_mode(model):
        for module in model.modules():
            module.training = training
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, saved, strict=True):
                    buffer.copy_(value)


def _parts(output: Any) -> dict[int | str | None, Any]:
    """The tensors of an output: by name, by place, or as a whole."""
    if isinstance(output, Tensor):
        return {None: output}
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        output = output._asdict()
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor) and not isinstance(output, Mapping):
        return {"logits": logits}
    pairs: Any = output.items() if isinstance(output, Mapping) else enumerate(output) if _is_list(output) else ()
    return {key: value for key, value in pairs if isinstance(value, Tensor)}


def _is_list(output: Any) -> bool:
    return isinstance(output, (list, tuple))


class _Part(NamedTuple):
    """A part of an output: the layers with weights that its computation meets first, walking back, and its shape."""

    layers: list[str]
    shape: tuple[int, ...]


def _frontiers(model: nn.Module, size: tuple[int, int, int], *, training: bool) -> dict[int | str | None, _Part]:
    """Each part of the output."""
    modules = {name: module for name, module in model.named_modules() if isinstance(module, _WEIGHTED)}
    made: dict[Any, str] = {}

    def on_output(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            made[output.grad_fn] = name

    # Hooks belong to the analysis in which they are made.
    with _all_in_mode(model, training=training), torch.enable_grad():
        images = sample_images(model, size, 2 if training else 1).requires_grad_()
        with hooked({name: Site(module) for name, module in modules.items()}, on_output):
            try:
                output = model(images)
            except Exception as error:
                raise _CannotRunError(f"{type(error).__name__}: {error}") from error
    return {
        key: _Part(sorted(set(_walk(value.grad_fn, made))), tuple(value.shape)) for key, value in _parts(output).items()
    }


def _walk(start: Any, made: Mapping[Any, str]) -> Iterator[str]:
    waiting, seen = [start], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in made:
            yield made[node]
        else:
            waiting.extend(following for following, _ in node.next_functions)


def _chosen(
    model: nn.Module,
    size: tuple[int, int, int],
    output_layers: dict[int | str | None, _Part],
    asked: Sequence[str],
) -> tuple[ClassifyingLayer, tuple[str, ...]]:
    """The layer whose logits count, and those that are joined with it."""
    who = type(model).__name__
    names = sorted({layer for part in output_layers.values() for layer in part.layers})
    if asked:
        _check_named(model, asked, names)
        # A layer that is named need not be the last one: then the output as a whole is meant.
        first = asked[0]
        key = next(
            (key for key, part in output_layers.items() if first in part.layers), next(iter(output_layers), None)
        )
        joined = [layer for layer in asked[1:] if key in output_layers and layer in output_layers[key].layers]
        return ClassifyingLayer(name=first, key=key), tuple(joined)
    if not names and len(output_layers) == 1:
        # Part of the network hides from autograd: the last layer to run is meant.
        last = find_default_layers(model, sample_images(model, size)).classifier
        if last is not None and _classifies(last.module):
            return ClassifyingLayer(name=last.name, key=next(iter(output_layers))), ()
    able = {key: part.layers for key, part in output_layers.items() if _makes_logits(model, part)}
    if len(able) != 1:
        raise ValueError(_undecided(model, names, several=len(able) > 1))
    ((key, layers),) = able.items()
    if not layers[0]:
        raise ValueError(f"{who} is itself the classifying layer: put it into a torch.nn.Sequential")
    return ClassifyingLayer(name=layers[0], key=key), tuple(layers[1:])


def _undecided(model: nn.Module, names: Sequence[str], *, several: bool) -> str:
    """Say why no layer can be chosen, and what to do: naming one helps where each makes an output alone."""
    who = type(model).__name__
    if several:
        return (
            f"which layer of {who} classifies? several layers make its output (candidates: {_listed(model, names)}); "
            'name the one to replace with classifier="...", or several, of which the first one\'s output counts and '
            f"others are auxiliary: classifier={list(names)}"
        )
    able = [name for name in names if _classifies(model.get_submodule(name))]
    problem = "no Linear or 1x1 convolution makes its output by itself"
    if len(able) > 1:
        problem = "several layers make its output, and none of them all of it"
    return f"no layer of {who} can be replaced: {problem} (it is made by: {_listed(model, names)}). {_WAY_OUT}"


def _check_named(model: nn.Module, asked: Sequence[str], names: Sequence[str]) -> None:
    modules = {layer: module for layer, module in model.named_modules() if layer}
    for name in asked:
        if name not in modules:
            hint = suggestion(name, modules)
            listed = _listed(model, names)
            raise ValueError(
                f"classifier='{name}': {type(model).__name__} has no such layer. {hint} Its output is made by {listed}"
            )
        if not _classifies(modules[name]):
            kind = _describe(modules[name])
            raise ValueError(f"classifier='{name}' is {kind}; a Linear or a 1x1 convolution is needed. {_WAY_OUT}")


def _makes_logits(model: nn.Module, part: _Part) -> bool:
    """Whether layers that classify, each with as many outputs as there are logits, make a part of an output."""
    modules = [model.get_submodule(layer) for layer in part.layers]
    if not modules or not all(_classifies(module) for module in modules):
        return False
    return len(modules) == 1 or (len(part.shape) == 2 and all(_outputs(module) == part.shape[1] for module in modules))


def _outputs(module: nn.Module) -> int:
    return int(module.out_features if isinstance(module, nn.Linear) else module.out_channels)  # type: ignore[arg-type]


def _listed(model: nn.Module, names: Sequence[str]) -> str:
    return ", ".join(f"'{layer}' ({_describe(model.get_submodule(layer))})" for layer in names) or "none"


def _classifies(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        return not module.transposed and set(module.kernel_size) == {1} and module.groups == 1
    return isinstance(module, nn.Linear)


def _describe(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return f"Linear {module.in_features} -> {module.out_features}"
    if isinstance(module, nn.modules.conv._ConvNd):
        kernel = "x".join(str(side) for side in module.kernel_size)
        return f"{kernel} convolution {module.in_channels} -> {module.out_channels}"
    return type(module).__name__


def _new(old: nn.Module, num_classes: int, head: HeadKind) -> nn.Module:
    """A head of the old one's kind, where it is and of its dtype."""
    assert isinstance(old, _WEIGHTED)
    options: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    if isinstance(old, nn.Linear):
        if head == "linear":
            return nn.Linear(old.in_features, num_classes, **options)
        hidden = min(_HIDDEN, old.in_features)
        first: nn.Module = nn.Linear(old.in_features, hidden, **options)
        last: nn.Module = nn.Linear(hidden, num_classes, **options)
    else:
        kind: Any = next(base for base in type(old).__mro__ if base in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        place = {"stride": old.stride, "padding": old.padding}
        if head == "linear":
            made: nn.Module = kind(old.in_channels, num_classes, 1, **place, **options)
            return made
        hidden = min(_HIDDEN, old.in_channels)
        first, last = kind(old.in_channels, hidden, 1, **place, **options), kind(hidden, num_classes, 1, **options)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(_DROPOUT), last)


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module in another's place, under all of its names."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, child_name, new)


def _input_shape(model: nn.Module, name: str, size: tuple[int, int, int]) -> tuple[int | str, ...]:
    shapes: list[tuple[int | str, ...]] = []

    def on_input(_: str, value: Any) -> None:
        shapes.append(("N", *value.shape[1:]))

    with analysis_mode(model), hooked({name: Site(model.get_submodule(name), "input")}, on_input):
        model(sample_images(model, size))
    if not shapes:
        raise ValueError(
            f"layer '{name}' of {type(model).__name__} is not run by itself: a function reads its weights, so that a "
            f"new layer would not be used. {_WAY_OUT}"
        )
    return shapes[-1]


def _words(size: tuple[int, ...]) -> str:
    return " x ".join(str(number) for number in size)
