"""Any result, shown: in a notebook by itself, or saved as a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_cnnviz.core.comparison.units import UnitComparison
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.deconvnet.projection import Projection
from lightning_cnnviz.core.images.activation_maps import ActivationMaps
from lightning_cnnviz.core.images.attribution import AttributionMaps
from lightning_cnnviz.core.images.correlation import ChannelCorrelation
from lightning_cnnviz.core.images.filters import LayerFilters
from lightning_cnnviz.core.images.invariance import InvarianceCurves
from lightning_cnnviz.core.images.occlusion import OcclusionMaps
from lightning_cnnviz.core.images.transforms import TRANSFORMS
from lightning_cnnviz.core.layer_table.table import LayerTable
from lightning_cnnviz.core.maximization.maximize import Maximization
from lightning_cnnviz.core.maximization.optimum import OptimumInvariance
from lightning_cnnviz.core.maximization.plan import MaximizedLayer
from lightning_cnnviz.core.network.classification import Classified
from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.probing.probe import LayerProbe, ProbeScores
from lightning_cnnviz.core.top_patches.results import LayerTopPatches, TopPatches
from lightning_cnnviz.record.figures import ReportFigure
from lightning_cnnviz.record.store import RecordedLook
from lightning_cnnviz.render.deconvnet import projection_report
from lightning_cnnviz.render.display import Display, class_names, display_of_sample, file_names
from lightning_cnnviz.render.invariance import transformed_examples
from lightning_cnnviz.render.maximization import invariance_items
from lightning_cnnviz.render.normalization import ChannelSpec, chosen_normalization
from lightning_cnnviz.render.sample import sample_report
from lightning_cnnviz.render.studies import ablation_report, sample_efficiency_report
from lightning_cnnviz.render.views import Seen, draw_view
from lightning_cnnviz.report import Report
from lightning_cnnviz.studies.results import AblationStudy, SampleEfficiency

__all__ = ["show"]


def show(
    result: Any,
    data: Any = None,
    *,
    images: Sample | Tensor | tuple[Tensor, Tensor] | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    class_names: Sequence[str] | None = None,
    display_channels: ChannelSpec = None,
) -> ReportFigure:
    """Draw what any function of this package has found.

    A notebook displays it at the end of a cell, and `save` writes it as a figure, a page or numbers.

    Args:
        result: What such a function returned, or several of one kind; patches and their projection together as
            `(patches, projection)`. Or a look of a record, which brings its images and names.
        data: The loader or data set that it was found on. It is asked for the normalization to undo, names of classes
            and names of files; nothing is read from it.
        images: What `occlude`, `attribute`, `activation_maps` and `measure_invariance` were given, as a tensor
            `(N, C, H, W)`, with labels, or as a `Sample`.
        normalization: `(mean, std)` of the network's input, instead of the data set's. Where none is known, images are
            scaled by their range, and the notes say so.
        class_names: Instead of the data set's.
        display_channels: Which channels of the images are shown: three as red, green and blue, or one in gray; by
            default all, of any other number than one and three the mean in gray.

    Raises:
        TypeError: It is no result that can be drawn, or `data` is neither a loader nor a data set.
        ValueError: It is about images, and they are not given, or are others.

    Example:
        >>> from lightning_cnnviz import mine_top_patches
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> found = mine_top_patches(model, [torch.rand(4, 1, 12, 12)], k=4)
        >>> [item.name for item in show(found).items][:2]
        ['0', '0/dead_features']
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     show(found).save(f"{folder}/fig2.pdf").name
        'fig2.pdf'
    """
    dataset = _dataset(data)
    sample = None if images is None else _as_sample(images)
    asked = _Asked(dataset, sample, normalization, tuple(class_names) if class_names else None, display_channels)
    return ReportFigure.drawn(lambda: _report(result, asked))


@dataclass(frozen=True, eq=False)
class _Asked:
    """What was said of the data."""

    dataset: Any
    sample: Sample | None
    normalization: tuple[Sequence[float], Sequence[float]] | None
    names: tuple[str, ...] | None
    channels: ChannelSpec = None

    def display(self, patches: Sequence[Tensor] = (), indices: Sequence[int] = ()) -> Display:
        """How inputs are shown, of a result that brings its own."""
        return Display(
            normalization=chosen_normalization(self.normalization, self.dataset, patches, self.channels),
            class_names=self.names or class_names(self.dataset),
            files=file_names(self.dataset, indices),
        )

    def of_classified(self, kind: str, classified: Classified, size: tuple[int, ...] | None = None) -> Display:
        """As `of_images`; of a result about some of the images, all of them may be given."""
        count = len(classified)
        if classified.numbers is not None and self.sample is not None:
            given = len(self.sample.images)
            count = given if given > int(classified.numbers.max()) else count
        return self.of_images(kind, count, size)

    def of_images(self, kind: str, count: int, size: tuple[int, ...] | None = None) -> Display:
        """How the images are shown that a result is about.

        Raises:
            ValueError: They are not given, or cannot be those.
        """
        if self.sample is None:
            raise ValueError(f"{kind} is about {count} images and does not hold them: give show(..., images=<them>)")
        found = tuple(self.sample.images.shape)
        if found[0] != count or (size is not None and found[-2:] != tuple(size)):
            of = "" if size is None else f" of {size[0]} x {size[1]} pixels"
            raise ValueError(f"{kind} is about {count} images{of}, not of images {found}: give those it was made of")
        return _displayed(self.sample, self)


def _displayed(sample: Sample, asked: _Asked) -> Display:
    options: Any = {"normalization": asked.normalization, "names": asked.names, "channels": asked.channels}
    return display_of_sample(sample, asked.dataset, **options)


def _dataset(data: Any) -> Any:
    """The data set of a loader, or what is one."""
    if data is None or isinstance(data, Dataset):
        return data
    if isinstance(data, (Tensor, Sample)) or (isinstance(data, (tuple, list)) and not hasattr(data, "dataset")):
        raise TypeError(f"data is a {type(data).__name__}; give a loader or a data set, and images as images=")
    return getattr(data, "dataset", data)


def _as_sample(images: Any) -> Sample:
    if isinstance(images, Sample):
        return images
    images, labels = (images, None) if isinstance(images, Tensor) else images
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError("images: give a tensor (N, C, H, W), (images, labels), or a Sample")
    images = images.detach().cpu()
    labels = None if labels is None else labels.detach().cpu()
    return Sample(images=images, labels=labels, indices=torch.arange(len(images)))


def _report(result: Any, asked: _Asked) -> Report:
    if isinstance(result, Report):
        return result
    if isinstance(result, RecordedLook):
        return result.report()
    several = tuple(result) if isinstance(result, (tuple, list)) else (result,)
    kinds = tuple(type(one) for one in several)
    if kinds in ((TopPatches, Projection), (Projection, TopPatches)):
        patches, projection = sorted(several, key=lambda one: isinstance(one, Projection))
        return _deconvnet((patches, projection), asked)
    if not several or len(set(kinds)) > 1 or kinds[0] not in _DRAWING:
        given = " and ".join(dict.fromkeys(kind.__name__ for kind in kinds)) or f"an empty {type(result).__name__}"
        names = ", ".join(kind.__name__ for kind in _DRAWING)
        raise TypeError(f"show cannot draw {given}; it draws one or several of {names}, or (TopPatches, Projection)")
    draw = _DRAWING[kinds[0]]
    if kinds[0] in _TOGETHER:
        return draw(several, asked)
    if len(several) > 1:
        raise TypeError(f"show draws one {kinds[0].__name__} at a time, not {len(several)}")
    return draw(several[0], asked)


# Each kind of result: from what was found and what was said of the data to a report.


def _top_patches(result: TopPatches, asked: _Asked) -> Report:
    indices = result.shown_images() if result.indices_known else []
    return draw_view("top_patches", Seen(result=result, display=asked.display(list(result.all_patches()), indices)))


def _layer_top_patches(layers: tuple[LayerTopPatches, ...], asked: _Asked) -> Report:
    return _top_patches(TopPatches(layers=layers, k=layers[0].scores.shape[1]), asked)


def _deconvnet(result: tuple[TopPatches, Projection], asked: _Asked) -> Report:
    patches, projection = result
    count = sum(1 for _ in patches.all_patches())
    if count != len(projection.units):
        raise ValueError(
            f"there are {count} patches and {len(projection.units)} projected units: project the units of all kept "
            "patches, layer by layer, in their order"
        )
    indices = patches.shown_images() if patches.indices_known else []
    return draw_view("deconvnet", Seen(result=result, display=asked.display(list(patches.all_patches()), indices)))


def _projection(result: Projection, asked: _Asked) -> Report:
    if asked.sample is None:
        return projection_report(result)
    sample = asked.sample
    needed = 1 + max((unit.image for unit in result.units), default=-1)
    display = asked.of_images("a Projection", max(needed, len(sample)))
    return projection_report(result, display.pixels, display.normalization.sentence())


def _of(view: str) -> Callable[[Any, _Asked], Report]:
    """Draw a result that needs no images."""
    return lambda result, asked: draw_view(view, Seen(result=result, display=asked.display()))


def _activation_maps(results: tuple[ActivationMaps, ...], asked: _Asked) -> Report:
    return draw_view(
        "activation_maps", Seen(result=results, display=asked.of_images("ActivationMaps", len(results[0].maps)))
    )


def _occlusion(result: OcclusionMaps, asked: _Asked) -> Report:
    display = asked.of_classified("OcclusionMaps", result.untouched, result.image_size)
    return draw_view("occlusion", Seen(result=result, display=display))


def _attribution(result: AttributionMaps, asked: _Asked) -> Report:
    display = asked.of_classified("AttributionMaps", result.untouched, tuple(result.maps.shape[-2:]))
    return draw_view("attribution", Seen(result=result, display=display))


def _invariance(result: InvarianceCurves, asked: _Asked) -> Report:
    """Draw curves, with examples where images are given and the transforms are ours."""
    if asked.sample is None:
        return draw_view("invariance", Seen(result=result, display=asked.display()))
    display = asked.of_classified("InvarianceCurves", result.untouched)
    ours = [sweep.transform for sweep in result.sweeps if sweep.transform in TRANSFORMS]
    examples = transformed_examples(ours, asked.sample.images, display) if ours else {}
    return draw_view("invariance", Seen(result=result, display=replace(display, examples=examples)))


def _maximized_layers(layers: tuple[MaximizedLayer, ...], asked: _Asked) -> Report:
    patches = [image for layer in layers for image in layer.optima.images]
    compared = () if asked.sample is None else tuple(asked.sample.indices.tolist())
    display = replace(asked.display(patches), indices=compared)
    return draw_view("maximization", Seen(result=layers, display=display))


def _maximizations(optima: tuple[Maximization, ...], asked: _Asked) -> Report:
    names = ("optima",) if len(optima) == 1 else tuple(f"optima {number + 1}" for number in range(len(optima)))
    layers = (
        MaximizedLayer(name=name, captions=found.objectives, optima=found)
        for name, found in zip(names, optima, strict=True)
    )
    return _maximized_layers(tuple(layers), asked)


def _optimum_invariances(results: tuple[OptimumInvariance, ...], asked: _Asked) -> Report:
    normalization = asked.display([found.optimum for found in results]).normalization
    items = [item for found in results for item in invariance_items(found.objective, found, normalization)]
    return Report(
        "optimum_invariance",
        title="What an optimum does not care about",
        items=tuple(items),
        notes=(normalization.sentence(),),
    )


def _probe_scores(scores: tuple[ProbeScores, ...], asked: _Asked) -> Report:
    return _of("layer_probe")(LayerProbe(scores=scores), asked)


def _sample(result: Sample, asked: _Asked) -> Report:
    display = _displayed(result, asked)
    return sample_report(display)


_DRAWING: dict[type, Callable[[Any, _Asked], Report]] = {
    TopPatches: _top_patches,
    LayerTopPatches: _layer_top_patches,
    Projection: _projection,
    LayerTable: _of("layer_table"),
    LayerFilters: _of("filters"),
    ChannelCorrelation: _of("correlation"),
    UnitComparison: _of("comparison"),
    ActivationMaps: _activation_maps,
    LayerProbe: _of("layer_probe"),
    ProbeScores: _probe_scores,
    OnlineScores: _of("online_probe"),
    InvarianceCurves: _invariance,
    OcclusionMaps: _occlusion,
    AttributionMaps: _attribution,
    MaximizedLayer: _maximized_layers,
    Maximization: _maximizations,
    OptimumInvariance: _optimum_invariances,
    Sample: _sample,
    SampleEfficiency: lambda result, asked: sample_efficiency_report(result),
    AblationStudy: lambda result, asked: ablation_report(result),
}
_TOGETHER = {
    *(LayerTopPatches, LayerFilters, ChannelCorrelation, ActivationMaps),
    *(ProbeScores, MaximizedLayer, Maximization, OptimumInvariance),
}
"""Of these, several are one report."""
