"""Monitors on other data than one class an image: what the loader gives reaches the views, and reports say of what."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from callbacks.littlenet import quiet_trainer
from callbacks.recorded_occlusion import Occlusion
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz.callbacks._base.sample import DisplayedSample
from lightning_cnnviz.callbacks.deconvnet import DeconvnetMonitor
from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor
from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor
from lightning_cnnviz.callbacks.top_patches import TopPatchesMonitor
from lightning_cnnviz.core.data.sample import Sample
from lightning_cnnviz.core.images.attribution import AttributionMaps, attribute, check_attribution
from lightning_cnnviz.core.network.heads import ByHead, join_by_head
from lightning_cnnviz.core.probing.probe import LayerProbe, probe_layers
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.core.probing.tap import tap_features
from lightning_cnnviz.record.frames import table_frame
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.display import Display
from lightning_cnnviz.show import show
from lightning_cnnviz.sinks.memory import MemorySink
from lightning_cnnviz.sinks.page import PageSink

SIZE = 12


class Module(pl.LightningModule):
    """A small network whose loss is told."""

    def __init__(self, loss: Any = F.cross_entropy, scores: int = 3, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.loss = loss
        self.body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU())
        self.head = nn.Linear(5, scores)

    def forward(self, images: Tensor) -> Any:
        scaled = images.float() / 255 if images.dtype == torch.uint8 or images.amax() > 2 else images
        return self.head(self.body(scaled).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images_of(count: int = 24, channels: int = 1) -> Tensor:
    return torch.rand(count, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def loader(images: Tensor, labels: Tensor) -> Any:
    return DataLoader(TensorDataset(images, labels), batch_size=8)


def fit(monitors: Any, model: Any, data: Any) -> None:
    quiet_trainer(callbacks=monitors, max_epochs=1).fit(model, data, data)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32, torch.bool])
def test_rows_of_labels_make_it_multilabel(kind: Any) -> None:
    rows = (torch.arange(24)[:, None] % torch.tensor([2, 3, 4]) == 0).to(kind)
    model = Module(lambda scores, labels: F.binary_cross_entropy_with_logits(scores, labels.float()))
    monitor = Occlusion()
    fit([monitor], model, loader(images_of(), rows))
    result = monitor.results[-1]
    assert result.untouched.task.kind == "multilabel"
    chosen = monitor.sample.indices
    p = model(images_of()[chosen]).sigmoid().detach()
    assert result.untouched.present is not None
    assert torch.equal(result.untouched.present, rows[chosen] > 0)
    assert result.untouched.all_probabilities is not None
    torch.testing.assert_close(result.untouched.all_probabilities, p)
    drawn = rows[chosen].to(torch.int64)
    assert len(drawn.unique(dim=0)) == 4  # of different kinds


def test_values_make_it_regression() -> None:
    labels = torch.arange(24) / 7
    model = Module(lambda scores, labels: F.mse_loss(scores[:, 0], labels), scores=1)
    monitor = Occlusion()
    fit([monitor], model, loader(images_of(), labels))
    result = monitor.results[-1]
    assert result.untouched.task.kind == "regression"
    torch.testing.assert_close(
        result.untouched.probabilities, model(images_of()[monitor.sample.indices])[:, 0].detach()
    )


def test_ignored_labels_are_no_class() -> None:
    labels = torch.arange(24) % 3
    labels[::4] = -100
    model = Module(lambda scores, labels: F.cross_entropy(scores, labels, ignore_index=-100))
    sinks = [MemorySink() for _ in range(3)]
    options: dict[str, Any] = {"on_error": "raise"}
    monitor = Occlusion(images=8)
    probe = LayerProbeMonitor(every_n_epochs=1, heads=["softmax"], sinks=[sinks[0]], **options)
    online = OnlineProbeMonitor(sinks=[sinks[1]], **options)
    patches = TopPatchesMonitor(sinks=[sinks[2]], k=24, **options)
    fit([monitor, probe, online, patches], model, loader(images_of(), labels))
    assert online.probes is not None
    assert online.probes.classes == 3
    assert bool(monitor.results[-1].untouched.has_label.all())  # those without one come last
    plan = None if probe.plans is None else probe.plans.alone
    assert plan is not None
    learned = plan.read(model)[0]
    assert learned.labels.tolist() == labels[labels >= 0].tolist()
    told = {
        tile.numbers["label"]
        for item in sinks[2].reports[0][1].items
        for row in getattr(item, "rows", ())
        for tile in getattr(row, "tiles", ())
    }
    assert told == {0, 1, 2, "none"}


def test_pixels_of_8_bits_are_covered_and_projected_as_the_network_takes_them() -> None:
    pixels = (images_of() * 255).to(torch.uint8)
    model = Module()
    sink = MemorySink()
    monitor = Occlusion()
    project = DeconvnetMonitor(k=1, features=2, sinks=[sink], on_error="raise")
    fit([monitor, project], model, loader(pixels, torch.arange(24) % 3))
    result, chosen = monitor.results[-1], monitor.sample.indices
    p = model(pixels[chosen]).softmax(1).detach()
    torch.testing.assert_close(result.untouched.probabilities, p[range(4), result.untouched.targets])
    assert torch.equal(monitor.display.pixels[0], pixels[chosen[0]].expand(3, -1, -1))
    assert len(sink.reports) == 1


@pytest.mark.parametrize("channels", [2, 4, 12])
def test_which_channels_are_shown_is_said(channels: int) -> None:
    images = images_of(24, channels)
    sinks = [MemorySink() for _ in range(4)]
    some = (1, 0, channels - 1)
    monitors = [
        Occlusion(sinks=[sinks[0]]),
        Occlusion(name="some", display_channels=some, sinks=[sinks[1]]),
        TopPatchesMonitor(k=1, sinks=[sinks[2]], on_error="raise"),
        TopPatchesMonitor(name="one", k=1, display_channels=1, sinks=[sinks[3]], on_error="raise"),
    ]
    fit(monitors, Module(channels=channels), loader(images, torch.arange(24) % 3))
    said = [" ".join(sink.reports[0][1].notes) for sink in sinks]
    for which in (0, 2):
        assert f"Of {channels} channels the mean is shown" in said[which]
    assert f"Of {channels} channels, {', '.join(map(str, some))} are shown as red, green and blue." in said[1]
    assert f"Of {channels} channels, 1 is shown, in gray." in said[3]
    first = images[monitors[0].sample.indices[0]]
    expected = (first * 255).round().mean(0)
    assert float((monitors[0].display.pixels[0].float() - expected).abs().max()) <= 1
    assert torch.equal(monitors[1].display.pixels[0], (first[list(some)] * 255).round().to(torch.uint8))


class Dense(Module):
    """A class for each pixel."""

    def __init__(self) -> None:
        super().__init__(lambda scores, maps: F.cross_entropy(scores["out"], maps))
        self.head = nn.Conv2d(5, 3, 1)  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Any:
        return {"out": F.interpolate(self.head(self.body(images)), size=(SIZE, SIZE)), "aux": images}


def test_label_maps_make_it_segmentation_with_p_at_each_pixel(tmp_path: Any) -> None:
    maps = torch.zeros(24, SIZE, SIZE, dtype=torch.int64)
    maps[:, 2:7, 2:7], maps[::2, 2:7, 2:7], maps[0, 0] = 1, 2, -100
    model = Dense()
    sink = MemorySink()
    monitor = Occlusion(images=2, sinks=[sink, PageSink(tmp_path)])
    fit([monitor], model, loader(images_of(), maps))
    found, chosen = monitor.results[-1], monitor.sample.indices
    assert isinstance(found, ByHead)
    every = model(images_of()[chosen])["out"].softmax(1).detach()
    is_two, place = chosen % 2 == 0, torch.arange(len(chosen))
    those = {"class 1": place[~is_two].tolist(), "class 2": place[is_two].tolist(), "class 0": place.tolist()}
    assert set(found.names) == {name for name, numbers in those.items() if numbers}
    assert found.names[-1] == "class 0"
    for name, of_class in zip(found.names, found.results, strict=True):
        result, target = of_class.untouched, int(name[-1])
        assert result.task.kind == "segmentation"
        assert result.numbers.tolist() == those[name]
        p = every[those[name], target]
        torch.testing.assert_close(result.pixel_probabilities, p)
        inside = maps[chosen][those[name]] == target
        torch.testing.assert_close(result.probabilities, (p * inside).sum((1, 2)) / inside.sum((1, 2)))
    record = Record(next(tmp_path.rglob("record")))
    (look,) = record.looks()
    assert look.result.names == found.names
    assert torch.equal(look.result.results[0].untouched.numbers, found.results[0].untouched.numbers)
    assert torch.equal(look.result.results[0].probabilities, found.results[0].probabilities)
    table = table_frame(record.looks())
    for name, of_class in zip(found.names, found.results, strict=True):
        own = table[table["of"] == name]
        assert set(own["image"]) == set(chosen[those[name]].tolist())
        assert own["occluded_probability"].tolist() == pytest.approx(of_class.probabilities.flatten().tolist())
    of_class, numbers = f"{found.names[0]}", those[found.names[0]]
    report = sink.reports[0][1]
    pictures = [item.name for item in report.items if item.name.startswith(f"{of_class}/image ")]
    assert pictures == [f"{of_class}/image {int(chosen[number])}" for number in numbers]
    (drawn,) = [item for item in report.items if item.name == f"{of_class}/p by pixel"]
    assert len(drawn.rows) == len(numbers)
    brightest = drawn.rows[0].tiles[1].pixels.float().sum(0)
    shown = every[numbers[0], int(of_class[-1])].flatten().argsort()
    assert float(brightest.flatten()[shown[-1]]) > float(brightest.flatten()[shown[0]])


def test_probes_of_label_maps_have_the_accuracy_of_each_class() -> None:
    """A class that the features tell, and two that they do not tell apart."""
    there = torch.arange(24)[:, None] % 3
    maps = there[..., None].expand(-1, SIZE, SIZE).clone()
    images = (maps == 2).float()[:, None]
    features = tap_features(Dense().body, loader(images, maps), ["0"])
    found = probe_layers(features, Protocol(splits=2, heads=("svm", "knn")), test=features).scores[0]
    assert (found.pixels, found.class_numbers) == (8, (0, 1, 2))
    assert found.class_accuracy is not None
    assert found.class_accuracy.shape == (2, 2, 3)
    assert found.class_accuracy[..., 2].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    torch.testing.assert_close(found.class_accuracy[..., :2].sum(-1), torch.ones(2, 2, dtype=torch.float64))
    torch.testing.assert_close(found.class_accuracy.mean(-1), found.accuracy)
    (table,) = [item for item in show(LayerProbe(scores=(found,))).items if item.name == "accuracy by class"]
    assert table.columns == ("layer", "classifier", "class 0", "class 1", "class 2")
    assert [row[4] for row in table.rows] == [100.0, 100.0]


def test_ranks_share_the_images_of_each_class() -> None:
    maps = torch.zeros(5, SIZE, SIZE, dtype=torch.int64)
    maps[1, 2:7], maps[:, 8:] = 1, 2
    model, sample = Dense(), Sample(images=images_of(5), labels=maps, indices=torch.arange(5))

    def look(rank: int, ranks: int) -> Any:
        drawn = DisplayedSample(5)
        drawn._drawn = sample, Display(class_names=("ground", "a/b", "sky"), indices=tuple(range(5)))
        drawn._rank, drawn._ranks = rank, ranks
        drawn.settle_heads(model, lambda head, task: check_attribution(model, sample.images, maps, "saliency"))
        return drawn.for_each_head(
            model,
            lambda part, head, task: attribute(
                model, part.images, head.labels, "saliency", task=task, follow=head.follow
            ),
        )

    whole, parts = look(0, 1), [look(rank, 2) for rank in (0, 1)]
    assert whole.names == ("sky", "a b", "ground")
    assert [part.results[1] is None for part in parts] == [False, True]
    joined = join_by_head(parts, AttributionMaps.joined)
    for one, other in zip(whole.results, joined.results, strict=True):
        assert torch.equal(one.maps, other.maps)
        assert torch.equal(one.untouched.numbers, other.untouched.numbers)
    assert whole.results[1].untouched.numbers.tolist() == [1]
