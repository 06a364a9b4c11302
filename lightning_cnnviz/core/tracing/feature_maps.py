"""The feature maps of chosen layers: where they are read, how large they are, and what their units see."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.classification import refused
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked
from lightning_cnnviz.core.network.layers import LayerNotFoundError, SelectedLayer
from lightning_cnnviz.core.tracing.layouts import LayoutReader, Layouts, is_channels_last
from lightning_cnnviz.core.tracing.readable import check_readable
from lightning_cnnviz.core.tracing.receptive_field import BoundsMode, ReceptiveField

__all__ = ["FeatureMaps", "channel_means", "trace_feature_maps"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureMaps:
    """The feature maps of one layer, as one traced pass found them.

    Attributes:
        layer: The layer's name.
        site: Where to read them, and in which layout they are. For a convolution that was chosen by kind and is
            directly followed by a BatchNorm, behind the BatchNorm: as the nonlinearity reads them.
        shape: Channels, height and width; of a signal channels and length, of a volume channels, depth, height and
            width. A layer without spatial output counts as one position.
        field: The receptive fields of its units, for the traced size of input.
    """

    layer: str
    site: Site
    shape: tuple[int, ...]
    field: ReceptiveField


def trace_feature_maps(
    model: nn.Module, image: Tensor, layers: Sequence[SelectedLayer], *, guess: bool = False
) -> list[FeatureMaps]:
    """Run one image through the network and return the feature maps of `layers`, in the order in which they run.

    A layer that was chosen by kind is left out where it does not run, and where it runs twice in a pass (with a
    warning): which of its two feature maps would be meant?

    Args:
        model: The network.
        image: `(1, C, H, W)`, a signal `(1, C, L)` or a volume `(1, C, D, H, W)`, on the network's device.
        layers: From `select_layers`.
        guess: Whether rows and columns that could not be followed to a layer's maps are told by their proportions, with
            a warning; else they lie as `SelectedLayer.channels_last` says.

    Raises:
        LayerNotFoundError: A layer chosen by name does not run, or runs more than once; or no layer is left.
        ValueError: The network does not take such an image, is frozen by `torch.jit`, or quantized.
        TypeError: A layer chosen by name does not return a tensor `(N, C)`, or one with as many axes as the image,
            `(N, C, H, W)`.
    """
    check_readable(model)
    by_name = {layer.name: layer for layer in layers}
    outputs = {layer.name: Site(layer.module) for layer in layers}
    norms = _norm_sites(model)
    with analysis_mode(model):
        # The copy is ours, so that following it leaves the caller's tensor out of it.
        image = image.detach().clone()
        reader, size = LayoutReader(image), tuple(image.shape[2:])
        trace = _Trace(BoundsMode(), reader.layouts, {layer.name: layer.channels_last for layer in layers}, guess, size)
        with (
            refused(model, image),
            trace.bounds.follow(image),
            reader,
            hooked(outputs, trace.on_layer),
            hooked(norms, trace.on_norm),
        ):
            model(image)
    fired = [name for name, _, _, _ in trace.seen]
    repeated = {name for name in fired if fired.count(name) > 1}
    _check_runs(model, by_name, set(fired), repeated)
    traced = []
    for name, shape, field, norm in trace.seen:
        layer = by_name[name]
        if name in repeated:
            continue
        if shape is None or field is None:
            if layer.literal:
                raise TypeError(
                    f"layer '{name}' ({type(layer.module).__name__}) returns no feature maps computed from the image: "
                    f"it takes a tensor {_MAPS[image.ndim]} or (N, C)"
                )
            continue
        # A BatchNorm that runs behind two convolutions would be read twice: then each is read by itself.
        behind = None if layer.literal or trace.norms.count(norm) != 1 else norm
        site = norms[behind] if behind else outputs[name]._replace(channels_last=trace.channels_last[name])
        traced.append(FeatureMaps(layer=name, site=site, shape=shape, field=field))
    if not traced:
        raise LayerNotFoundError(
            f"none of the {len(layers)} chosen layers of {type(model).__name__} runs exactly once in a pass"
        )
    return traced


def channel_means(maps: Tensor) -> Tensor:
    """Return the mean of each feature map of `(N, C, ...)` or `(N, C)`: `(N, C)` in float32 or float64."""
    maps = maps if maps.dtype == torch.float64 else maps.float()
    return maps.mean(tuple(range(2, maps.ndim))) if maps.ndim > 2 else maps.clone()


# Feature maps, by how many dimensions the image has.
_MAPS = {3: "(N, C, L)", 4: "(N, C, H, W)", 5: "(N, C, D, H, W)"}


@dataclass
class _Trace:
    """What the hooks of one traced pass have seen."""

    bounds: BoundsMode
    layouts: Layouts
    # Of each layer whether its maps are (N, H, W, C); at first as it was given, for where that cannot be followed.
    channels_last: dict[str, bool]
    guess: bool
    image_size: tuple[int, ...]

    def __post_init__(self) -> None:
        self.seen: list[tuple[str, tuple[int, ...] | None, ReceptiveField | None, str | None]] = []
        self.norms: list[str | None] = []
        self._last: Any = None  # kept alive, so that no other tensor can take its identity
        self._entered: tuple[str, int] = ("", -1)

    def on_layer(self, name: str, output: Any) -> None:
        self._last = output
        # Where a module makes many images of one (its windows, say), its feature maps are none of the image.
        axes = len(self.image_size)
        if not isinstance(output, Tensor) or output.ndim not in (2, axes + 2) or len(output) != 1:
            self.seen.append((name, None, None, None))
            return
        if output.ndim > 2:
            known = self.layouts.is_channels_last(output)
            if known is None and self.guess and axes == 2:
                known = self._guessed(name, output)
            self.channels_last[name] = last = self.channels_last[name] if known is None else known
            output = output.movedim(-1, 1) if last else output
        shape = (output.shape[1], *output.shape[2:]) if output.ndim > 2 else (output.shape[1], *[1] * axes)
        self.seen.append((name, shape, self.bounds.receptive_field(name, output), None))

    def _guessed(self, name: str, maps: Tensor) -> bool:
        last = is_channels_last(maps.shape, self.image_size)
        if 1 not in maps.shape[1:]:
            log.warning(
                "layer '%s': where the image's rows and columns lie in its maps %s could not be followed through the "
                "network; by their proportions they are taken to be %s",
                *(name, tuple(maps.shape), "(N, H, W, C)" if last else "(N, C, H, W)"),
            )
        return last

    def on_norm(self, name: str, value: Any) -> None:
        marker, _, key = name.partition(":")
        if marker == "in":
            # The layer just before it: a BatchNorm that was chosen, too, is seen itself before its result is read.
            before = len(self.seen) - 1 if value is self._last else -1
            self._entered = (key, before)
            return
        self.norms.append(name)
        entered, before = self._entered
        if entered == key and before >= 0 and self.seen[before][1] is not None:
            self.seen[before] = (*self.seen[before][:3], name)
        self._last = None


def _norm_sites(model: nn.Module) -> dict[str, Site]:
    """Where each BatchNorm is entered ("in:...") and where its result is read ("out:...")."""
    sites = {}
    for name, module in model.named_modules():
        # By name, since torchvision's FrozenBatchNorm2d and timm's fused ones are no subclasses of torch's.
        if "BatchNorm" not in type(module).__name__:
            continue
        sites[f"in:{name}"] = Site(module, "input")
        # timm's BatchNormAct2d holds the nonlinearity as a child: what its first child is given is our feature map.
        inner = next(iter(module.children()), None)
        sites[f"out:{name}"] = Site(module) if inner is None else Site(inner, "input")
    return sites


def _check_runs(model: nn.Module, layers: Mapping[str, SelectedLayer], fired: set[str], repeated: set[str]) -> None:
    who = type(model).__name__
    for name, layer in layers.items():
        if name not in fired:
            if layer.literal:
                raise LayerNotFoundError(f"layer '{name}' of {who} does not run in a forward pass (in eval mode)")
            log.debug("layer '%s' does not run in a forward pass and is left out", name)
        elif name in repeated and layer.literal:
            raise LayerNotFoundError(
                f"layer '{name}' of {who} runs more than once in a forward pass, so 'its' feature maps are not one "
                "thing; choose a layer that runs once, or give each use a module of its own"
            )
    skipped = sorted(name for name in repeated if not layers[name].literal)
    if skipped:
        names = ", ".join(f"'{name}'" for name in skipped)
        warnings.warn(f"left out, since they run more than once in a forward pass of {who}: {names}", stacklevel=3)
