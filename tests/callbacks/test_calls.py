"""Networks of several inputs, and LightningModules without `forward`: looked at as they are used."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from callbacks.littlenet import quiet_trainer
from callbacks.recorded_occlusion import Occlusion
from callbacks.user_modules import Detector, as_lists, boxes
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_cnnviz.callbacks.attribution import AttributionMonitor
from lightning_cnnviz.callbacks.deconvnet import DeconvnetMonitor
from lightning_cnnviz.callbacks.invariance import InvarianceMonitor
from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor
from lightning_cnnviz.callbacks.layer_table import LayerTableMonitor
from lightning_cnnviz.callbacks.maximization import MaximizationMonitor
from lightning_cnnviz.callbacks.online_probe import OnlineProbeMonitor
from lightning_cnnviz.callbacks.top_patches import TopPatchesMonitor
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.top_patches.search import mine_top_patches
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.report import Scalar
from lightning_cnnviz.sinks.memory import MemorySink
from lightning_cnnviz.sinks.page import PageSink


class Studies(Dataset[Any]):
    """Images with three numbers each."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(count, 1, 12, 12, generator=generator)
        self.meta = torch.randn(count, 3, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return {"image": self.images[index], "meta": self.meta[index], "label": index % 3}


class Base(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.make()

    def make(self) -> None:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.scores(batch), batch["label"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Conditioned(Base):
    """Takes the numbers too."""

    def make(self) -> None:
        self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(7, 3)

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.conv(images).relu().mean((2, 3)), meta], 1))
        return scores

    def scores(self, batch: Any) -> Tensor:
        return self(batch["image"], batch["meta"])  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.scores(batch)


class Parts(Base):
    """Has a backbone and a head, and puts them together in its steps."""

    def make(self) -> None:
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
        self.head = nn.Linear(5, 3)
        self.accuracy = MulticlassAccuracy(3)
        self.seen: list[int] = []
        self.counted: list[int] = []

    def scores(self, batch: Any) -> Tensor:
        scores: Tensor = self.head(F.relu(self.backbone(2 * batch["image"] - 1)).mean((2, 3)))
        return scores

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        scores = self.scores(batch)
        self.seen.append(batch_idx)
        self.accuracy.update(scores, batch["label"])
        self.log("loss", F.cross_entropy(scores, batch["label"]))

    def on_validation_epoch_end(self) -> None:
        self.counted.append(len(self.seen))
        self.log("accuracy", self.accuracy.compute())
        self.accuracy.reset()
        self.seen.clear()


def fit(monitors: Any, model: Any) -> Any:
    loader = DataLoader(Studies(), batch_size=8)
    trainer = quiet_trainer(callbacks=monitors, max_epochs=1)
    trainer.fit(model, loader, loader)
    return trainer


def monitors(**options: Any) -> list[Any]:
    options = {"on_error": "raise", **options}
    sinks = [MemorySink() for _ in range(6)]
    return [
        Occlusion(**options),
        TopPatchesMonitor(k=2, sinks=[sinks[0]], **options),
        LayerTableMonitor(sinks=[sinks[1]], **options),
        LayerProbeMonitor(every_n_epochs=1, heads=["softmax"], sinks=[sinks[2]], **options),
        MaximizationMonitor(features=1, starts=1, steps=2, invariance=0, images=8, sinks=[sinks[3]], **options),
        AttributionMonitor(images=3, sinks=[sinks[4]], **options),
        OnlineProbeMonitor(sinks=[sinks[5]], **options),
    ]


def two_inputs(network: nn.Module, batch: Any) -> Any:
    return network(batch["image"], batch["meta"])


def test_a_network_of_two_inputs_is_run_as_forward_fn_says() -> None:
    model, looks = Conditioned(), monitors(forward_fn=two_inputs)
    fit(looks, model)
    data, chosen = Studies(), looks[0].sample.indices
    p = model(data.images[chosen], data.meta[chosen]).softmax(1).detach()
    result = looks[0].results[-1]
    torch.testing.assert_close(result.untouched.probabilities, p[range(4), chosen % 3])
    assert all(look.sinks[0].reports for look in looks)


def test_what_cannot_be_told_without_the_other_inputs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DeconvnetMonitor projects images of which it keeps the pixels alone"):
        fit([DeconvnetMonitor(k=1, forward_fn=two_inputs, sinks=[MemorySink()], on_error="raise")], Conditioned())


class Counting(Parts):
    """Counts in every way that a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.newest = 0, None
        self._outputs: list[Tensor] = []
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.steps += 1
        self.newest = batch_idx
        self._outputs.append(batch["label"])
        self.total += 1
        self.mean = self.mean + 1
        super().validation_step(batch, batch_idx)


def test_what_a_followed_step_counts_is_its_own() -> None:
    def counts(looks: list[Any]) -> list[Any]:
        model = Counting()
        fit(looks, model)
        return [model.steps, model.newest, len(model._outputs), float(model.total), float(model.mean)]

    assert counts(monitors()) == counts([])


def test_a_module_without_forward_is_looked_at_as_its_validation_step_uses_it() -> None:
    bare = Parts()
    without = fit([], bare)
    model, looks = Parts(), [*monitors(), DeconvnetMonitor(k=1, sinks=[MemorySink()], on_error="raise")]
    trainer = fit(looks, model)
    chosen = looks[0].sample.indices
    p = model.scores({"image": Studies().images[chosen]}).softmax(1).detach()
    result = looks[0].results[-1]
    assert result.untouched.classes == 3
    torch.testing.assert_close(result.untouched.probabilities, p[range(4), chosen % 3])
    assert all(look.sinks[0].reports for look in looks)
    layers = [row[0] for item in looks[2].sinks[0].reports[0][1].items for row in getattr(item, "rows", ())]
    assert {"backbone.0", "backbone.2", "head"} <= {str(name) for name in layers}
    # And what the step counts and logs is its own.
    assert model.counted == bare.counted
    logged = {name: trainer.callback_metrics.get(name) for name in without.callback_metrics}
    assert logged == without.callback_metrics
    for own, other in zip(model.parameters(), bare.parameters(), strict=True):
        assert torch.equal(own, other)
    assert not {"log", "log_dict", "print"} & vars(model).keys()


class TwoTasks(Base):
    """Says two things of an image, of which the batch tells both."""

    def make(self) -> None:
        self.conv, self.species, self.marks = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Any:
        features = self.conv(images).relu().mean((2, 3))
        return {"features": features, "species": self.species(features), "marks": self.marks(features)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        said = self(batch[0])
        marks = F.binary_cross_entropy_with_logits(said["marks"], batch[1]["marks"])
        return F.cross_entropy(said["species"], batch[1]["species"]) + marks

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


class TwoLabels(Studies):
    def __getitem__(self, index: int) -> Any:
        marks = torch.tensor([float(index % 2), float(index % 3 == 0)])
        return self.images[index], {"species": index % 3, "marks": marks}


def test_each_head_is_looked_at_by_itself_under_its_name(tmp_path: Any) -> None:
    sinks = [MemorySink() for _ in range(3)]
    looks = [
        Occlusion(sinks=[sinks[0], PageSink(tmp_path)]),
        AttributionMonitor(images=3, sinks=[sinks[1]], on_error="raise"),
        InvarianceMonitor(images=2, transforms=["brightness"], sinks=[sinks[2]], on_error="raise"),
    ]
    model, loader = TwoTasks(), DataLoader(TwoLabels(), batch_size=8)
    quiet_trainer(callbacks=looks, max_epochs=1).fit(model, loader, loader)
    for sink in sinks:
        (_, report) = sink.reports[0]
        assert {item.name.split("/")[0] for item in report.items} == {"species", "marks"}
        said = " ".join(report.notes)
        assert "species: Task: one class an image (multiclass" in said
        assert "marks: Task: several classes an image (multilabel" in said
    chosen = looks[0].sample.indices
    result = looks[0].results[-1]
    assert isinstance(result, ByHead)
    said = model(TwoLabels().images[chosen])
    of_species, of_marks = result.results
    expected = said["species"].softmax(1).detach()[range(4), chosen % 3]
    torch.testing.assert_close(of_species.untouched.probabilities, expected)
    assert of_marks.untouched.all_probabilities is not None
    torch.testing.assert_close(of_marks.untouched.all_probabilities, said["marks"].sigmoid().detach())
    (look,) = Record(next(tmp_path.rglob("record"))).looks()
    kept = look.result
    assert isinstance(kept, ByHead)
    assert torch.equal(kept.results[1].probabilities, of_marks.probabilities)


def one_head(name: str) -> Any:
    return lambda batch: (batch[0], batch[1][name])


class Unnamed(TwoTasks):
    """Its heads have other names than the labels."""

    def forward(self, images: Tensor) -> Any:
        said = super().forward(images)
        return {"features": said["features"], "a": said["species"], "b": said["marks"]}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        said = self(batch[0])
        marks = F.binary_cross_entropy_with_logits(said["b"], batch[1]["marks"])
        return F.cross_entropy(said["a"], batch[1]["species"]) + marks


def test_online_probes_learn_for_each_head_as_they_learn_for_it_alone(tmp_path: Any) -> None:
    sink, names = MemorySink(), ("species", "marks")
    both = OnlineProbeMonitor(sinks=[sink, PageSink(tmp_path)], on_error="raise")
    alone = {
        name: OnlineProbeMonitor(batch_fn=one_head(name), name=name, sinks=[MemorySink()], on_error="raise")
        for name in names
    }
    train, test = (DataLoader(TwoLabels(), batch_size=size) for size in (4, 8))
    model, trainer = TwoTasks(), quiet_trainer(callbacks=[both], max_epochs=3)
    trainer.fit(model, train, test)
    quiet_trainer(callbacks=[*alone.values()], max_epochs=3).fit(Unnamed(), train, test)
    (_, report) = sink.reports[-1]
    keys = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    assert keys.keys() == {"species/conv/accuracy", "marks/conv/mean average precision"}
    for name, own in alone.items():
        of_one = {item.name: item.value for item in own.sinks[0].reports[-1][1].items if isinstance(item, Scalar)}
        assert {key: keys[f"{name}/{key}"] for key in of_one} == of_one
    state = both.state_dict()
    resumed = OnlineProbeMonitor()
    resumed.setup(trainer, model, "fit")
    resumed.load_state_dict(state)
    for name, probes in resumed._learning.learned.items():
        assert torch.equal(probes._weights, alone[name].probes._weights)
        assert probes.batches == alone[name].probes.batches > 0
    looks = Record(next(tmp_path.rglob("record"))).looks()
    assert isinstance(looks[-1].result, ByHead)
    assert looks[-1].result.names == names


def test_classes_of_each_head_are_maximized_under_its_name(tmp_path: Any) -> None:
    sinks = [MemorySink(), PageSink(tmp_path)]
    few: dict[str, Any] = {"images": 6, "features": 1, "classes": [1], "steps": 3, "invariance": 0}
    look = MaximizationMonitor(**few, sinks=sinks, on_error="raise")
    model, loader = TwoTasks(), DataLoader(TwoLabels(), batch_size=8)
    quiet_trainer(callbacks=[look], max_epochs=1).fit(model, loader, loader)
    notes = " ".join(sinks[0].reports[0][1].notes)
    assert "species/classes: Task: one class an image (multiclass" in notes
    assert "marks/classes: Task: several classes an image (multilabel" in notes
    (kept,) = Record(next(tmp_path.rglob("record"))).looks()
    assert [layer.name for layer in kept.result] == ["conv", "species/classes", "marks/classes"]
    for layer, name in zip(kept.result[1:], ("species", "marks"), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(layer.optima.activations, model(layer.optima.images)[name][:, 1])
            real = model(look.sample.images)[name][:, 1]
        torch.testing.assert_close(layer.strongest.activations, real.amax(0, keepdim=True))
    wrong = MaximizationMonitor(**{**few, "classes": [2]}, sinks=[MemorySink()])
    trainer = quiet_trainer(callbacks=[wrong], max_epochs=1)
    with pytest.raises(ValueError, match=r"the head 'marks': classes=\[2\]: the network has 2 classes"):
        trainer.fit(TwoTasks(), loader, loader)


def test_the_backbone_of_a_detector_is_looked_at_as_its_message_says(tmp_path: Any) -> None:
    train, loader = (DataLoader(boxes(8, seed), batch_size=4, collate_fn=as_lists) for seed in (0, 1))
    with pytest.raises(TypeError, match=r'data=<a loader>, model="<the backbone>", batch_fn=lambda batch: torch.stack'):
        quiet_trainer(callbacks=[TopPatchesMonitor(on_error="raise")], max_epochs=1).fit(Detector(), train, loader)
    told: dict[str, Any] = {"data": loader, "model": "backbone", "batch_fn": lambda batch: torch.stack(batch[0])}
    sink = MemorySink()
    looks = [TopPatchesMonitor(**told, sinks=[PageSink(tmp_path)], on_error="raise")]
    looks += [kind(**told, sinks=[sink], on_error="raise") for kind in (DeconvnetMonitor, MaximizationMonitor)]
    model = Detector()
    quiet_trainer(callbacks=looks, max_epochs=1).fit(model, train, loader)
    assert {report.source for _, report in sink.reports} == {"deconvnet", "maximization"}
    (kept,) = Record(next(tmp_path.rglob("record"))).looks()
    expected = mine_top_patches(model.backbone, [torch.stack(images) for images, _ in loader])
    for layer, plain in zip(kept.result, expected, strict=True):
        torch.testing.assert_close(layer.activations, plain.activations)
