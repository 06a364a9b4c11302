"""Which layers a user means: a keyword, a name, a glob or a type, and the closest names where nothing matches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import nn

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.suggestions import closest_names, did_you_mean

__all__ = [
    "FeatureSpec",
    "LayerNotFoundError",
    "LayerSpec",
    "SelectedLayer",
    "check_axes",
    "check_convolutional",
    "evenly",
    "image_axes",
    "one_piece",
    "other_dimensions",
    "patch_embedding",
    "quantized_part",
    "resolve_features",
    "select_for_views",
    "select_layers",
    "why_no_convolution",
]

LayerSpec = str | type[nn.Module] | Sequence[str | type[nn.Module]]
"""A keyword ("conv", "relu", "pool", "linear"), a layer's name, a glob, a module type, or several of these."""

FeatureSpec = int | Sequence[int] | Mapping[str, int | Sequence[int] | None] | None
"""Feature maps: the first n of each layer, a list for each layer, either of them by layer, or None for all."""

_KEYWORDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (),  # those of the network's own kind, see `image_axes`
    "linear": (nn.Linear,),
    "pool": (
        *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
    ),
    "relu": (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.ELU),
}
# By how many axes of space they have.
_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_COMPILED_PREFIX = "_orig_mod."
_Layer = TypeVar("_Layer")


class LayerNotFoundError(WrongArgumentError):
    """No layer of the network is what was asked for."""


@dataclass(frozen=True)
class SelectedLayer:
    """One chosen layer.

    Attributes:
        name: Its name in `named_modules()`, without the prefix that `torch.compile` adds.
        module: The module itself.
        literal: Whether the user wrote its name (or a glob). A convolution that was chosen by kind is read after the
            BatchNorm that directly follows it; one that was named is read as it is.
        channels_last: Whether its maps are `(N, H, W, C)`, as transformers have them.
        layers_behind: Of the default layer of a view: how many layers with weights work on more than one position
            between it and the head, on tokens as a rule. 0 where the head pools its maps.
    """

    name: str
    module: nn.Module
    literal: bool
    channels_last: bool = False
    layers_behind: int = 0


def select_layers(model: nn.Module, layers: LayerSpec = "conv") -> list[SelectedLayer]:
    """Return the layers that `layers` means, in the order of `named_modules()`, each once.

    Args:
        model: The network.
        layers: A keyword (`"conv"`, `"relu"`, `"pool"`, `"linear"`), a name, a glob such as `"features.*"`, a module
            type, or a sequence of these.

    Raises:
        LayerNotFoundError: A part of `layers` matches nothing.
        TypeError: `layers` is neither text, a module type nor a sequence of these.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        >>> [layer.name for layer in select_layers(model, "conv")]
        ['0', '2']
    """
    parts = [layers] if isinstance(layers, (str, type)) else layers
    if not isinstance(parts, Iterable):
        raise TypeError(f"layers={layers!r} is a {type(layers).__name__}; give a name, a glob, a module type or a list")
    parts = list(parts)
    if not parts:
        raise LayerNotFoundError("[] chooses no layer; leave it out for the view's own choice")
    # Every name counts, also the second name of a module that is used in two places.
    named = {_plain(name): module for name, module in model.named_modules(remove_duplicate=False) if name}
    chosen: dict[int, SelectedLayer] = {}
    for part in parts:
        for layer in _match(model, named, part):
            kept = chosen.setdefault(id(layer.module), layer)
            if layer.literal and not kept.literal:
                chosen[id(layer.module)] = layer
    order = {name: position for position, name in enumerate(named)}
    return sorted(chosen.values(), key=lambda layer: order[layer.name])


def resolve_features(layer: str, channels: int, features: FeatureSpec) -> tuple[int, ...]:
    """Return which feature maps of a layer with `channels` of them are meant, ascending.

    Raises:
        ValueError: One is out of range, or none is asked for.
    """
    chosen = features.get(layer, 0) if isinstance(features, Mapping) else features
    if chosen is None:
        return tuple(range(channels))
    if isinstance(chosen, int):
        if chosen < 0 or (chosen == 0 and not isinstance(features, Mapping)):
            raise WrongArgumentError(
                f"features={chosen}: at least one feature map is shown of each layer; None for all"
            )
        return tuple(range(min(chosen, channels)))
    wrong = [feature for feature in chosen if not 0 <= feature < channels]
    if wrong:
        raise WrongArgumentError(
            f"features={wrong} asked for, but layer '{layer}' has {channels} feature maps (0 to {channels - 1}); "
            "features={'layer': [...]} chooses them layer by layer"
        )
    return tuple(sorted(set(chosen)))


def evenly(layers: Sequence[_Layer], count: int) -> list[_Layer]:
    """Return at most `count` of some layers, 2 or more, from the first to the last, evenly.

    Example:
        >>> evenly("abcdefg", 4)
        ['a', 'c', 'e', 'g']
    """
    if len(layers) <= count:
        return list(layers)
    return [layers[round(place * (len(layers) - 1) / (count - 1))] for place in range(count)]


def _plain(name: str) -> str:
    return name.replace(_COMPILED_PREFIX, "")


def _match(model: nn.Module, named: dict[str, nn.Module], part: object) -> list[SelectedLayer]:
    if isinstance(part, type) and issubclass(part, nn.Module):
        chosen = [SelectedLayer(name, module, False) for name, module in named.items() if isinstance(module, part)]
        if not chosen:
            raise LayerNotFoundError(f"{_who(model)} has no {part.__name__}; {one_piece(model) or _kinds(named)}")
        return chosen
    if not isinstance(part, str):
        raise TypeError(f"a layer is chosen by a name, a glob or a module type, not by {part!r}")
    # First, since many networks have a part of that name: "conv" is every convolution all the same.
    if part in _KEYWORDS:
        types = _KEYWORDS[part] if part != "conv" else (_CONVOLUTIONS[image_axes(model)],)
        chosen = [SelectedLayer(name, module, False) for name, module in named.items() if isinstance(module, types)]
        if not chosen:
            kinds = " or ".join(kind.__name__ for kind in types)
            why = one_piece(model) or (why_no_convolution(model) if part == "conv" else _kinds(named))
            raise LayerNotFoundError(f'"{part}": {_who(model)} has no {kinds}; {why}')
        return chosen
    if part in named:
        return [SelectedLayer(part, named[part], True)]
    matched = [name for name in named if fnmatchcase(name, part)]
    if not matched:
        raise LayerNotFoundError(
            f"no layer of {_who(model)} matches '{part}'. {one_piece(model) or _suggest(part, list(named))}"
        )
    return [SelectedLayer(name, named[name], True) for name in matched]


def why_no_convolution(model: nn.Module) -> str:
    """Say what a network without a convolution of images has instead."""
    named = {name: module for name, module in model.named_modules() if name}
    return other_dimensions(model) or f'{_kinds(named)}; "linear" or names choose others'


def one_piece(model: nn.Module) -> str:
    """Say why the layers of a network cannot be read, since `torch.jit` or quantization has made it; else nothing."""
    made = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if not made:
        return quantized_part(model)
    which = f"'{made[0]}'" if made[0] else "it"
    return (
        f"torch.jit has traced, scripted or frozen {which}, which runs as one piece: its layers cannot be read. Give "
        "the network that it was made from"
    )


def quantized_part(model: nn.Module) -> str:
    """Say which layer is quantized to whole numbers, and the way out; nothing where none is."""
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__ and hasattr(module, "_packed_params"):
            who = f"'{name}' of {type(model).__name__}" if name else "the network"
            return (
                f"{who} ({type(module).__name__}) is quantized: its weights are packed, and its operations, on whole "
                "numbers, are none that can be followed. Give the network in floating point that it was made from"
            )
    return ""


def _who(model: nn.Module) -> str:
    return type(model).__name__


def _suggest(asked: str, names: list[str]) -> str:
    close = closest_names(asked, names)
    # A name that lacks its prefix ("features.0" for "net.features.0") is far by letters and near in meaning.
    close += [name for name in names if name.endswith(f".{asked}") and name not in close][:3]
    if close:
        return did_you_mean(close[:4])
    shown = ", ".join(f"'{name}'" for name in names[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"Its layers are {shown}{more}; keywords are " + ", ".join(f'"{word}"' for word in _KEYWORDS)


def select_for_views(
    model: nn.Module, layers: LayerSpec = "conv", *, axes: Sequence[int] = (2,)
) -> list[SelectedLayer]:
    """Select layers whose feature maps are shown, as `select_layers` does.

    Args:
        model: The network.
        layers: See `select_layers`.
        axes: How many axes of space the images may have, see `image_axes`.

    Raises:
        LayerNotFoundError: See `select_layers`.
        ValueError: The network is of other images; or `"conv"` would mean nothing but what cuts images into patches,
            see `check_convolutional`.
    """
    check_axes(model, axes)
    if layers == "conv":
        check_convolutional(model)
    return select_layers(model, layers)


def check_convolutional(model: nn.Module) -> None:
    """Refuse a network whose one convolution only cuts images into patches, as a vision transformer's does.

    Raises:
        ValueError: With the reason and the way out.
    """
    name, why = patch_embedding(model)
    if why:
        raise ValueError(
            f"{why}. Name layers that return feature maps (N, C, H, W) or (N, H, W, C), or this one, as "
            f'layers=["{name}"]'
        )


def patch_embedding(model: nn.Module) -> tuple[str, str]:
    """Return the name of a network's one convolution that only cuts images into patches, and so much; else nothing.

    Example:
        >>> patch_embedding(nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2)))[0]
        '0'
        >>> patch_embedding(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        ('', '')
    """
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if len(found) != 1 or max(found[0][1].kernel_size) == 1 or found[0][1].kernel_size != found[0][1].stride:
        return "", ""
    name, kernel = _plain(found[0][0]), " x ".join(map(str, found[0][1].kernel_size))
    return name, (
        f"the one convolution of {_who(model)}, '{name}', cuts images into patches of {kernel}, as a vision "
        "transformer's does: it is not what the network has learned"
    )


def image_axes(model: nn.Module) -> int:
    """Say how many axes of space a network's images have: 2; 1 where all its convolutions are `Conv1d`, of signals.

    3 where they are `Conv3d`, of clips or volumes. A network with a `Conv2d` is one of images, whatever else it has:
    attention over channels has a `Conv1d`.

    Example:
        >>> image_axes(nn.Sequential(nn.Conv1d(12, 8, 7), nn.ReLU())), image_axes(nn.Linear(2, 2))
        (1, 2)
    """
    modules = list(model.modules())
    there = (axes for axes in (2, 3, 1) if any(isinstance(module, _CONVOLUTIONS[axes]) for module in modules))
    return next(there, 2)


def check_axes(model: nn.Module, served: Sequence[int] = (2,)) -> None:
    """Refuse a network of signals, or of clips and volumes, where only others are served.

    Raises:
        ValueError: With the reason, and what is served.
    """
    if image_axes(model) not in served:
        raise ValueError(f"{_who(model)} is no network of images: {other_dimensions(model)}")


def other_dimensions(model: nn.Module) -> str:
    """Say that a network is one of signals, or of clips and volumes, and what is served; nothing of other networks.

    Example:
        >>> other_dimensions(nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU()))[:49]
        'its convolutions are Conv1d, of signals (N, C, L)'
        >>> other_dimensions(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv1d(1, 1, 3)))
        ''
    """
    axes = image_axes(model)
    if axes == 3:
        return (
            "its convolutions are Conv3d, of clips or volumes (N, C, T, H, W), not of images (N, C, H, W): networks of "
            "single frames can be looked at in every view, those of clips by their table of layers, probes, top "
            "patches, projections and maximization"
        )
    if axes == 1:
        return (
            "its convolutions are Conv1d, of signals (N, C, L), not of images (N, C, H, W): networks of "
            "spectrograms can be looked at in every view, those of signals by their table of layers, probes, top "
            "patches, projections and maximization"
        )
    return ""


def _kinds(named: dict[str, nn.Module]) -> str:
    kinds = sorted({type(module).__name__ for module in named.values() if not list(module.children())})
    if not kinds:
        return "it has no layers at all"
    return "it is made of " + ", ".join(kinds)
