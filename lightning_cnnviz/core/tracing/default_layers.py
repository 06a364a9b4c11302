"""The layers of a network that a view means without being told: its first, its last feature maps, its classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, takes_hooks
from lightning_cnnviz.core.network.layers import (
    LayerNotFoundError,
    LayerSpec,
    SelectedLayer,
    one_piece,
    patch_embedding,
    select_layers,
)
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps
from lightning_cnnviz.core.tracing.layouts import LayoutReader, Layouts, is_channels_last

__all__ = ["DefaultLayers", "NoFeatureMapsError", "find_default_layers", "layer_maps", "layer_site"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
# They pass on what another layer has computed; feature maps are read before them.
_POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_PASSING = (nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.Identity)


class NoFeatureMapsError(LayerNotFoundError):
    """A network, of which no layer was named, has none whose feature maps are what it has learned."""


@dataclass(frozen=True, kw_only=True)
class DefaultLayers:
    """The layers that a view takes where none is named.

    Attributes:
        first: The first convolution that runs, as if chosen by kind: read behind a BatchNorm that directly follows it.
        deep: The last layer before the classifier that returns feature maps of more than one position, `(N, C, H, W)`
            or `(N, H, W, C)`: those that the head pools. Pooling and dropout do not count. None where there is none.
            Where layers behind it work on tokens, as in many hybrids with transformers, the head pools these: its
            `layers_behind` says how many do.
        classifier: The last layer with weights that runs: a linear layer or a convolution. None where there is none, or
            where the last is a convolution to other channels than there are scores: a head of functions follows it.
        only_patches: Whether `deep` is a vision transformer's patches: of the layers with weights up to it there is but
            the network's one convolution, which cuts the image into them, and others work on tokens behind it.
    """

    first: SelectedLayer | None
    deep: SelectedLayer | None
    classifier: SelectedLayer | None
    only_patches: bool = False


def find_default_layers(model: nn.Module, image: Tensor) -> DefaultLayers:
    """Run one image `(1, C, H, W)` through a network and say which of its layers it meets first and last.

    Only layers that run exactly once in a pass count.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(3))
        >>> layers = find_default_layers(model, torch.rand(1, 1, 8, 8))
        >>> layers.first.name, layers.deep.name, layers.classifier.name
        ('0', '1', '4')
    """
    modules = {name: module for name, module in model.named_modules() if name}
    sites = {name: Site(module) for name, module in modules.items() if takes_hooks(module)}
    with analysis_mode(model):
        image = image.detach().clone()
        reader = LayoutReader(image)
        walk = _Walk(modules, image, reader.layouts)
        with hooked(sites, walk.on_output), reader:
            scores = model(image)
    once = [name for name in walk.ran if walk.ran.count(name) == 1]
    weighted = [name for name in once if isinstance(modules[name], _WEIGHTED)]
    first = next((name for name in weighted if isinstance(modules[name], nn.Conv2d)), None)
    classifier = weighted[-1] if weighted else None
    if classifier is not None and _makes_other_channels(modules[classifier], scores, walk.is_spatial(classifier)):
        classifier = None
    end = len(walk.ran) if classifier is None else walk.ran.index(classifier)
    # The same maps under their narrowest name that is no other's, too: a ReLU that a block uses twice is not theirs.
    narrowest = (next((name for name in names if name in once), None) for names in walk.spatial)
    before = [name for name in narrowest if name is not None and walk.ran.index(name) < end]
    deep = before[-1] if before else None
    behind = 0 if deep is None else sum(name in walk.on_positions for name in walk.ran[walk.ran.index(deep) + 1 : end])

    def chosen(name: str | None, literal: bool, behind: int = 0) -> SelectedLayer | None:
        if name is None:
            return None
        return SelectedLayer(name, modules[name], literal, walk.channels_last.get(name, False), behind)

    until_deep = [name for name in weighted if deep is not None and walk.ran.index(name) <= walk.ran.index(deep)]
    return DefaultLayers(
        first=chosen(first, False),
        deep=chosen(deep, True, behind),
        classifier=chosen(classifier, True),
        only_patches=behind > 0 and until_deep == [first] and bool(patch_embedding(model)[0]),
    )


class _Walk:
    """What runs, in the order in which it ends."""

    def __init__(self, modules: dict[str, nn.Module], image: Tensor, layouts: Layouts) -> None:
        self.ran: list[str] = []
        # Each feature maps' names, the narrowest first.
        self.spatial: list[list[str]] = []
        self.channels_last: dict[str, bool] = {}
        # Layers with weights whose output has more than one position, maps or tokens.
        self.on_positions: set[str] = set()
        self._modules, self._size, self._layouts = modules, tuple(image.shape[-2:]), layouts
        self._last: Any = None
        self._pooled: Any = None
        self._pool = ""

    def on_output(self, name: str, output: Any) -> None:
        self.ran.append(name)
        if not isinstance(output, Tensor):
            return
        if isinstance(self._modules[name], _WEIGHTED) and _positions(output) > 1:
            self.on_positions.add(name)
        if output.ndim != 4:
            return
        channels_last = self._layouts.is_channels_last(output)
        if channels_last is None:
            channels_last = is_channels_last(output.shape, self._size)
        rows, columns = output.shape[1:3] if channels_last else output.shape[2:]
        if rows * columns <= 1 or isinstance(self._modules[name], _PASSING):
            return
        # With its version: what was written into it since is another thing under the same name.
        state = (output, output._version)
        if isinstance(self._modules[name], _POOLING):
            self._pooled, self._pool = state, name
            return
        # A container that returns what its last part has returned is the same layer under a wider name. (An in-place
        # ReLU returns its convolution's very tensor, too, but is no container of it.)
        if _same(self._last, state) and self.spatial[-1][-1].startswith(f"{name}."):
            self.spatial[-1].append(name)
        elif not (_same(self._pooled, state) and self._pool.startswith(f"{name}.")):
            self.spatial.append([name])
            self._last = state
        else:
            return
        self.channels_last[name] = channels_last

    def is_spatial(self, name: str) -> bool:
        """Whether a layer returned maps of more than one position."""
        return any(name in names for names in self.spatial)


def _positions(output: Tensor) -> int:
    """How many positions maps, or tokens `(N, T, C)`, have at least."""
    return min(output.shape[1:]) if output.ndim == 3 else output.shape[2:].numel() if output.ndim > 3 else 1


def _makes_other_channels(module: nn.Module, scores: Any, spatial: bool) -> bool:
    """Whether a convolution makes maps of other channels than a network, in the end, scores."""
    if not (isinstance(module, nn.Conv2d) and spatial and isinstance(scores, Tensor) and scores.ndim == 2):
        return False
    return module.out_channels != scores.shape[1]


def _same(one: Any, other: Any) -> bool:
    return one is not None and one[0] is other[0] and one[1] == other[1]


def _no_maps(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} has no layer that returns feature maps (N, C, H, W) of more than one position before "
        "its classifier"
    )


def layer_site(model: nn.Module, image: Tensor, layer: LayerSpec | None) -> tuple[str, Site, SelectedLayer]:
    """Return the one layer with feature maps that is meant, and where they are read; see `layer_maps`."""
    maps, chosen = layer_maps(model, image, layer)
    return maps.layer, maps.site, chosen


def layer_maps(model: nn.Module, image: Tensor, layer: LayerSpec | None) -> tuple[FeatureMaps, SelectedLayer]:
    """Return the feature maps of the one layer that is meant, in the layout that they have.

    Args:
        model: The network.
        image: `(1, C, H, W)`, on the network's device.
        layer: Its name, or anything that chooses one layer; None for the last before the classifier.

    Raises:
        NoFeatureMapsError: None was named, and there is none but a vision transformer's patches, if those.
        LayerNotFoundError: There is no such layer, or it does not run exactly once.
        ValueError: Several layers are meant, or the layer has no feature maps `(N, C, H, W)` or `(N, H, W, C)`.
        TypeError: The layer does not return a tensor.
    """
    if layer is None:
        found = find_default_layers(model, image)
        deep = found.deep
        if deep is None and one_piece(model):
            raise LayerNotFoundError(f"{_no_maps(model)}; {one_piece(model)}")
        if deep is None:
            raise NoFeatureMapsError(f'{_no_maps(model)}; name one with layer="..."')
        if found.only_patches:
            raise NoFeatureMapsError(
                f"{patch_embedding(model)[1]}. Name a layer that returns feature maps (N, C, H, W) or (N, H, W, C), or "
                f'this one, as layer="{deep.name}"'
            )
        chosen = [deep]
    else:
        chosen = select_layers(model, layer)
    if len(chosen) != 1:
        names = ", ".join([f"'{one.name}'" for one in chosen[:6]] + ["..."] * (len(chosen) > 6))
        raise WrongArgumentError(f"layer={layer!r} means {len(chosen)} layers ({names}); give the name of one")
    (maps,) = trace_feature_maps(model, image, chosen, guess=chosen[0].literal)
    if maps.shape[1] * maps.shape[2] <= 1:
        raise (ValueError if layer is None else WrongArgumentError)(
            f"layer '{maps.layer}' has features of shape {maps.shape}: a convolution, or another layer with feature "
            "maps of more than one position, is needed"
        )
    return maps, replace(chosen[0], channels_last=maps.site.channels_last)
