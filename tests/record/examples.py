"""One value, and more, of every type that a file can hold: made by a tiny network where that is easy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_cnnviz as cnnviz
from lightning_cnnviz import report
from lightning_cnnviz.core.data.batches import NumberedBatch
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.deconvnet.windowed_signal import Seed, Signal, Window
from lightning_cnnviz.core.images.activation_maps import activation_maps
from lightning_cnnviz.core.images.filters import layer_filters
from lightning_cnnviz.core.images.transforms import PixelScale
from lightning_cnnviz.core.layer_table.unclipped_fields import Field
from lightning_cnnviz.core.maximization import objectives, parametrization, regularization
from lightning_cnnviz.core.maximization.maximize import strongest_images
from lightning_cnnviz.core.maximization.optimum import optimum_invariance
from lightning_cnnviz.core.maximization.plan import MaximizationPlan, MaximizedLayer
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.network.task import Task
from lightning_cnnviz.core.probing.lbfgs import Vector
from lightning_cnnviz.core.probing.online import OnlineScores
from lightning_cnnviz.core.probing.protocols import draw_splits, find_protocol
from lightning_cnnviz.core.probing.solvers import fit_features
from lightning_cnnviz.core.top_patches.search import diagnose
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps
from lightning_cnnviz.core.tracing.receptive_field import ReceptiveField
from lightning_cnnviz.record.identity import DataIdentity, LookIdentity, network_identity, versions
from lightning_cnnviz.render.deconvnet import FirstRanked
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.render.layer_probe import layer_probe_report
from lightning_cnnviz.render.layer_table import layer_table_report
from lightning_cnnviz.render.normalization import Normalization
from lightning_cnnviz.render.top_patches import top_patches_report
from lightning_cnnviz.render.views import Seen
from lightning_cnnviz.studies.results import StudyResult

CLASSES = 3
SIZE = (3, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*convolutions, nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(20, CLASSES))


def images(count: int = 12) -> Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(0))


def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(images(), torch.arange(12) % CLASSES), 5)


def measured() -> list[Any]:
    """What the public functions return."""
    model, some, labels = network(), images(2), torch.tensor([0, 2])
    found = cnnviz.mine_top_patches(model, loader(), layers=["0", "3"], k=3)
    features = cnnviz.tap_features(model, loader(), layers=["0", "3"])
    protocol = find_protocol(None, per_class=2, splits=2, heads=("softmax",), Cs=(0.1, 1.0), test_per_class=2)
    best = [cnnviz.UnitActivation("3", 0), cnnviz.ClassScore(1, "jay")]
    optima = cnnviz.maximize(model, best, SIZE, starts=1, steps=4)
    strongest = strongest_images(model, best, some)
    turned = optimum_invariance(model, best[1], optima.images[1], directions=1, points=3, settle=2, iterations=8)
    return [
        found,
        cnnviz.layer_table(model, SIZE),
        cnnviz.project(model, some, [cnnviz.Unit(0, "3", 1), cnnviz.Unit(1, "0", 2, 1, 1)]),
        cnnviz.attribute(model, some, labels),
        cnnviz.channel_correlation(model, loader(), ["0", "3"]),
        cnnviz.compare_units(model, network(), loader(), ["0", "3"]),
        cnnviz.measure_invariance(model, some, labels, ["3"], ["rotation", "brightness"]),
        cnnviz.occlude(model, some, labels, size=4, stride=4),
        activation_maps(model, some, ["0", "3"], k=2),
        layer_filters(model),
        MaximizedLayer(name="3", captions=("a", "b"), optima=optima, strongest=strongest, invariances=((1, turned),)),
        features,
        cnnviz.probe_layers(features, protocol),
        draw_splits(features.labels, protocol),
        fit_features(features["3"].dense(), features.labels, CLASSES, head="softmax"),
        diagnose(found),
        Task().read(torch.rand(2, 3)),
    ]


def drawn(results: list[Any]) -> list[Any]:
    """Reports, and what they are made with."""
    found = next(result for result in results if isinstance(result, cnnviz.TopPatches))
    scores = next(result for result in results if isinstance(result, cnnviz.LayerProbe))
    table = next(result for result in results if isinstance(result, cnnviz.LayerTable))
    shown = Normalization((0.5,), (0.25, 0.5, 1.0), "given")
    picture = report.Picture("an image", torch.zeros(3, 4, 5, dtype=torch.uint8), caption="as it is")
    crop = report.ImageCrop(pixels=picture.pixels, box=(0, 1, 2, 3), offset=(1, 0), index=7, file="a/7\udcff.png")
    strips = {"perturbed": ((picture.pixels, picture.pixels),)}
    display = Display(
        normalization=shown,
        fill=torch.rand(3),
        pixels=(picture.pixels,),
        indices=(7,),
        labels=(2,),
        class_names=("hen", "jay"),
        files={7: "a/7.png"},
        examples=strips,
    )
    return [
        shown,
        top_patches_report(found, diagnose(found), shown),
        layer_probe_report(scores),
        layer_table_report(table),
        report.Report("filters", title="Filters", items=(picture,), notes=("A note.",), name="mine"),
        report.NamedCells(
            box=(0.1, 0.2, 0.5, 0.5), row="true", rows=("a", "b"), column="taken for", columns=("a", "b")
        ),
        report.ColorScale(("#000000", "#ffffff"), "0", "the largest", "half"),
        report.Step(epoch=3, global_step=70, stage="validate"),
        crop,
        report.Tile(picture.pixels, "a", {"image": 7}, source=crop),
        Seen(result=found, display=display, arguments={"k": 3}, epoch=2),
        LookIdentity(
            view="top_patches",
            data=DataIdentity(dataset="Digits", images=12),
            network=network_identity(network()),
            arguments={"layers": ["0", "3"], "k": 3},
            versions=versions(),
            time=1.7e9 + 0.25,
        ),
        FirstRanked(epoch=2, activation=0.5, box=torch.tensor([0, 0, 2, 2]), pixels=torch.rand(3, 2, 2)),
    ]


def made() -> list[Any]:
    """What is within running computations, settings, and the results of studies."""
    numbers = torch.arange(4)
    maps = {"3": torch.rand(2, 5, 2, 2)}
    study: dict[str, Any] = {"data": "d", "backbone": "b", "seeds": (0, 1), "classes": 3, "test_images": 9}
    variants = (cnnviz.AblationVariant(name="whole", parameters=9, resize={"0": 2}, paper=38.1),)
    errors = torch.rand(1, 2, dtype=torch.float64)
    tried = {"variants": ("scratch",), "per_class": (1, 5), "steps": torch.ones(1, 2, dtype=torch.int64)}
    accuracy = torch.rand(1, 2, 2, dtype=torch.float64)
    return [
        NumberedBatch(images(1), None, numbers[:1], True, None),
        Sample(images=images(1), labels=None, indices=numbers[:1]),
        Signal(images(1), Window((1, 2), (0, 0))),
        Seed(slots=numbers, channels=numbers, rows=numbers, columns=numbers),
        PixelScale(mean=(0.0, 0.5), std=(1.0, 2.0)),
        ByHead(names=("species", "color"), results=(PixelScale(mean=(0.5,), std=(1.0,)), numbers)),
        Field(size=(3, None), jump=(1.0, 2.0), center=None, clipped=True),
        objectives.Reading(images=images(1), maps=maps, centers={"3": (1, 1)}, scores=None),
        MaximizationPlan(name="3", captions=("a",), objectives=(objectives.ChannelActivation("3", 1),), size=SIZE),
        objectives.UnitActivation("3", 0, 1, 1),
        parametrization.Parametrization(parametrization.Pixels(), parametrization.Sphere(2.0), torch.eye(3)),
        parametrization.Parametrization(parametrization.Fourier(), parametrization.Box((0.0, 0.1), (1.0, 1.0)), None),
        (regularization.L2(), regularization.TotalVariation(), regularization.Jitter(2), regularization.Rotate(3.0)),
        (regularization.Scale(0.9, 1.0), regularization.Blur(0.5), objectives.ClassScore(1)),
        cnnviz.SourceImage.of(5, images(1)[0]),
        Vector(torch.rand(2), torch.rand(2), torch.rand(2)),
        OnlineScores(layers=("3",), accuracy=torch.rand(1), images=9, classes=3, batches=2, left_out=numbers[:1]),
        ReceptiveField(layer="3", image_size=(8, 8), boxes=torch.zeros(1, 2, 2, 4, dtype=torch.int16)),
        StudyResult(**study, budget="1 epoch", notes=("A note.",)),
        cnnviz.AblationStudy(**study, budget="1 epoch", variants=variants, error=errors, class_error=errors),
        cnnviz.SampleEfficiency(**study, budget="1 epoch", **tried, class_mean=accuracy, top1=1 - accuracy),
    ]


def without_data() -> dict[str, Any]:
    """Those that hold a network or a function, by what is said to be in the way."""
    layer = network()[3]
    site = cnnviz.Site(layer, "output")
    field = ReceptiveField(layer="3", image_size=(8, 8), boxes=torch.zeros(1, 2, 2, 4, dtype=torch.int16))
    return {
        "FeatureMaps.site.module is a torch": FeatureMaps(layer="3", site=site, shape=(5, 2, 2), field=field),
        "Transform.apply is a builtins.function": cnnviz.Transform("none", lambda x, _: x, (0.0, 1.0)),
        "SelectedLayer.module is a torch": cnnviz.SelectedLayer("3", layer, True),
        "UnitActivation.layer is a torch": cnnviz.UnitActivation(layer, 0),
    }


def parts(value: Any) -> Iterator[Any]:
    """A value and all dataclasses and named tuples in it."""
    if is_dataclass(value):
        yield value
        inner = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, (tuple, list)):
        if hasattr(value, "_fields"):
            yield value
        inner = list(value)
    else:
        inner = list(value.values()) if isinstance(value, dict) else []
    for part in inner:
        yield from parts(part)


def examples() -> dict[str, list[Any]]:
    """Values of each type by its name."""
    results = measured()
    found: dict[str, list[Any]] = {}
    for part in parts([results, drawn(results), made()]):
        found.setdefault(type(part).__name__, []).append(part)
    return found
