from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.layer_probe import LayerProbeMonitor
from lightning_cnnviz.core.network.layers import evenly, select_layers
from lightning_cnnviz.core.probing.probe import probe_layers
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.core.probing.tap import tap_features
from lightning_cnnviz.report import Curve, Report, Scalar, Table


def corners(count: int, seed: int = 0) -> TensorDataset:
    """Noise, and of each class a bright corner."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 14, 14, generator=generator)
    for place, label in enumerate(labels.tolist()):
        row, column = 7 * (label // 2), 7 * (label % 2)
        images[place, 0, row : row + 7, column : column + 7] += 0.4
    return TensorDataset(images, labels)


def loader(count: int = 60, seed: int = 0, **options: Any) -> DataLoader[Any]:
    return DataLoader(corners(count, seed), batch_size=10, **options)


def fitted(monitor: LayerProbeMonitor, train: Any = None, val: Any = None, **options: Any) -> LittleNet:
    pl.seed_everything(4, verbose=False)
    model = LittleNet()
    trainer = quiet_trainer(callbacks=[monitor], **options)
    trainer.fit(model, loader(shuffle=True) if train is None else train, loader(24, 1) if val is None else val)
    return model


def table_of(report: Report, name: str = "accuracy") -> Table:
    return next(item for item in report.items if isinstance(item, Table) and item.name == name)


def numbers(report: Report) -> dict[str, float]:
    return {item.name: item.value for item in report.items if isinstance(item, Scalar)}


def test_probes_learn_from_the_training_set_and_are_tested_on_the_validation_set() -> None:
    sink = MemorySink()
    model = fitted(LayerProbeMonitor(every_n_epochs=1, heads=("svm", "softmax", "knn"), sinks=[sink], on_error="raise"))
    assert [step.epoch for step, _ in sink.reports] == [1, 2]
    report = sink.reports[-1][1]
    known, test = tap_features(model, loader(), pool=4096), tap_features(model, loader(24, 1), pool=4096)
    expected = probe_layers(known, Protocol(heads=("svm", "softmax", "knn")), test=test)
    heads = ("svm", "softmax", "knn")
    assert numbers(report) == pytest.approx(
        {f"{scores.layer}/{head}": scores.mean(head) for scores in expected for head in heads}
    )
    assert list(numbers(report)) == [f"features.{layer}/{head}" for layer in (0, 4) for head in heads]
    assert min(numbers(report).values()) > 0.5
    assert [row[0] for row in table_of(report).rows] == ["features.0", "features.4"]
    assert table_of(report).columns[3] == "std of svm"
    assert expected.scores[0].digest[:16] in report.notes[1]
    # The same splits at every look.
    assert sink.reports[0][1].notes[1] == report.notes[1]


def test_by_default_every_fifth_epoch_and_the_last() -> None:
    sink = MemorySink()
    fitted(LayerProbeMonitor(splits=1, sinks=[sink], on_error="raise"), max_epochs=6)
    assert [step.epoch for step, _ in sink.reports] == [5, 6]


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages_draw_both_sets_from_one(stage: str) -> None:
    sink = MemorySink()
    monitor = LayerProbeMonitor(per_class=6, splits=2, sinks=[sink])
    trainer = quiet_trainer(callbacks=[monitor])
    getattr(trainer, stage)(LittleNet(), loader(40), verbose=False)
    ((step, report),) = sink.reports
    assert step.stage == stage
    assert "Features of 40 images." in report.notes
    assert "learned from 6 images of each of 4 classes, 2 splits" in table_of(report).caption.lower()


def test_given_loaders_are_used() -> None:
    for data, note in (
        (loader(32, 7), "Features of 32 images."),
        ((loader(32, 7), loader(12, 8)), "Features of 32 images to learn from and 12 to test on."),
    ):
        sink = MemorySink()
        fitted(LayerProbeMonitor(data=data, every_n_epochs=2, sinks=[sink], on_error="raise"))
        assert note in sink.reports[0][1].notes


def test_a_random_control_is_drawn_once_and_stays() -> None:
    sink = MemorySink()
    fitted(LayerProbeMonitor(control="random", every_n_epochs=1, splits=2, sinks=[sink], on_error="raise"))
    tables = [table_of(report) for _, report in sink.reports]
    assert "softmax, random weights in %" in tables[0].columns
    assert [row[-2:] for row in tables[0].rows] == [row[-2:] for row in tables[1].rows]
    curve = next(item for item in sink.reports[0][1].items if isinstance(item, Curve))
    assert [series.name for series in curve.series][2:4] == ["SVM, random weights", "softmax, random weights"]


def test_how_many_images_are_read() -> None:
    for options, count in (
        ({"images": 12}, 12),
        ({"images": "all", "splits": 1}, 60),
        ({}, 60),
        ({"protocol": "full"}, 60),
    ):
        sink = MemorySink()
        given: dict[str, Any] = {"heads": ["knn"], "every_n_epochs": 2, **options}
        fitted(LayerProbeMonitor(sinks=[sink], on_error="raise", **given))
        assert f"Features of {count} images to learn from and {min(count, 24)} to test on." in sink.reports[0][1].notes
    assert LayerProbeMonitor()._limit == 1000
    assert LayerProbeMonitor(per_class=30)._limit is None
    assert LayerProbeMonitor(protocol="caltech101-30")._limit is None
    assert LayerProbeMonitor(protocol="caltech101-30", images=5)._limit == 5


def test_published_protocols_bring_their_papers_row() -> None:
    sink = MemorySink()
    monitor = LayerProbeMonitor("features.4", protocol="caltech101-15", splits=1, sinks=[sink], on_error="raise")
    quiet_trainer(callbacks=[monitor]).validate(LittleNet(), loader(100), verbose=False)
    report = sink.reports[0][1]
    assert "Protocol caltech101-15: learned from 15 images" in table_of(report).caption
    assert "pretrained convnet 83.8" in str(table_of(report, "paper").rows[0][1])


def test_whole_maps_are_read_through_files() -> None:
    results = []
    for pool in (None, 10_000):
        sink = MemorySink()
        monitor = LayerProbeMonitor(pool=pool, splits=2, sinks=[sink], on_error="raise")
        quiet_trainer(callbacks=[monitor]).validate(_seeded(), loader(40), verbose=False)
        results.append((table_of(sink.reports[0][1]).rows, numbers(sink.reports[0][1])))
    assert results[0] == results[1]


def _seeded() -> LittleNet:
    torch.manual_seed(0)
    return LittleNet()


class Soft(LittleNet):
    """Takes labels of any kind."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images = batch if isinstance(batch, Tensor) else batch[0]
        return self(images).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (TensorDataset(corners(20).tensors[0], torch.full((20,), torch.nan)), "the labels are torch.float32"),
        (
            TensorDataset(corners(20).tensors[0], corners(20).tensors[0]),
            r"the labels are torch.float32 of shape \(5, 1",
        ),
        (corners(20).tensors[0], "needs the class of each image, but the batch has no labels"),
    ],
    ids=["none known", "images", "none"],
)
def test_labels_that_cannot_be_learned_are_refused_before_the_first_step(data: Any, match: str) -> None:
    monitor = LayerProbeMonitor(sinks=[MemorySink()], on_error="raise")
    model, trainer = Soft(), quiet_trainer(callbacks=[monitor])
    with pytest.raises(ValueError, match=match):
        trainer.fit(model, DataLoader(data, batch_size=5), DataLoader(data, batch_size=5))
    assert trainer.global_step == 0


class Silent(Dataset[tuple[Tensor, Tensor]]):
    """Does not tell its labels without being read."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.data[index]
        return images, labels


def few(telling: bool) -> DataLoader[Any]:
    data = TensorDataset(*(part[:11] for part in corners(20).tensors))
    return DataLoader(data if telling else Silent(data), batch_size=5)


def test_too_few_images_are_named_unless_fewer_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    match = "only class 0: 3, class 1: 3, class 2: 3, class 3: 2: give Protocol.allow_fewer=True"
    monitor = LayerProbeMonitor(per_class=8, every_n_epochs=1, sinks=[MemorySink()])
    model = LittleNet()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=match):
        quiet_trainer(callbacks=[monitor]).fit(model, few(telling=True), loader(24, 1))
    # Before the first step, where the data set tells its labels.
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fitted(monitor, train=few(telling=False))
    assert "LayerProbeMonitor steps aside: protocol 'custom' needs" in caplog.text
    sink = MemorySink()
    monitor = LayerProbeMonitor(per_class=8, allow_fewer=True, every_n_epochs=2, sinks=[sink], on_error="raise")
    fitted(monitor, train=few(telling=True))
    assert len(sink.reports) == 1
    one = DataLoader(TensorDataset(corners(20).tensors[0], torch.ones(20, dtype=torch.int64)), batch_size=5)
    with pytest.raises(ValueError, match=r"all 20 images are of class \[1\]"):
        fitted(LayerProbeMonitor(every_n_epochs=1, sinks=[MemorySink()], on_error="raise"), train=one, val=one)


@pytest.mark.parametrize("own_test", [True, False])
def test_where_labels_are_known_only_what_is_drawn_is_read(own_test: bool) -> None:
    sinks = [MemorySink(), MemorySink()]
    protocol = Protocol(per_class=3, test_per_class=2, splits=2)
    models = []
    for sink, telling in zip(sinks, (True, False), strict=True):
        data: dict[str, Any] = {"data": None if own_test else loader(60)}
        monitor = LayerProbeMonitor(protocol=protocol, every_n_epochs=2, sinks=[sink], on_error="raise", **data)
        if not own_test and not telling:
            monitor.data = DataLoader(Silent(corners(60)), batch_size=10)
        train = loader() if telling else DataLoader(Silent(corners(60)), batch_size=10)
        pl.seed_everything(4, verbose=False)
        models.append(Counting())
        trainer = quiet_trainer(callbacks=[monitor], max_epochs=2, num_sanity_val_steps=0)
        trainer.fit(models[-1], train, loader(24, 1))
    known, unknown = models
    # Of four classes three training images (and two to test on) in each of two splits, instead of all.
    assert unknown.images - known.images >= 60 - 2 * 4 * (3 if own_test else 5)
    one, other = (sink.reports[-1][1] for sink in sinks)
    assert numbers(one) == pytest.approx(numbers(other))
    assert one.notes[1] == other.notes[1]  # the same splits


def test_features_that_are_not_finite_are_named_and_nothing_is_fitted_on_them() -> None:
    images, labels = corners(40).tensors
    images[23, 0, 5, 5] = torch.inf
    broken = DataLoader(TensorDataset(images, labels), batch_size=10)
    sink = MemorySink()
    quiet_trainer(callbacks=[LayerProbeMonitor(sinks=[sink])]).validate(LittleNet(), broken, verbose=False)
    ((_, report),) = sink.reports
    assert report.notes[0].startswith("Not finite: features are NaN or infinite at features.0 (image 23)")
    assert all(value != value for value in numbers(report).values())


def test_wrong_arguments_are_refused() -> None:
    for options, match in (
        ({"control": "imagenet"}, "control='imagenet'"),
        ({"heads": ("svc",)}, r"heads=\('svc',\)"),
        ({"protocol": "caltech"}, "protocol='caltech': there are"),
        ({"per_class": 0}, "per_class=0"),
        ({"images": 0}, 'images=0: give 1 or more, or "all"'),
        ({"pool": 0}, "pool=0"),
    ):
        with pytest.raises(ValueError, match=match):
            LayerProbeMonitor(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no layer of LittleNet matches 'features\.9'"):
        fitted(LayerProbeMonitor("features.9", sinks=[MemorySink()]))


def test_six_layers_from_the_first_to_the_last() -> None:
    net = torch.nn.Sequential(*(torch.nn.Conv2d(1, 1, 1) for _ in range(17)))
    layers = select_layers(net)
    assert [layer.name for layer in evenly(layers, 6)] == ["0", "3", "6", "10", "13", "16"]
    assert evenly(layers[:5], 6) == layers[:5]


class Counting(LittleNet):
    """Counts the images that pass through it while it does not train."""

    images = 0

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.images += len(images)
        return super().forward(images)


def counted(monitors: list[Any], val: Any, **options: Any) -> Counting:
    pl.seed_everything(4, verbose=False)
    model = Counting()
    trainer = quiet_trainer(callbacks=monitors, max_epochs=2, num_sanity_val_steps=0, **options)
    trainer.fit(model, loader(shuffle=True), val)
    return model


def expected_scores(model: LittleNet, limit: int | None = None) -> dict[str, float]:
    known, test = (tap_features(model, images, pool=4096, limit=limit) for images in (loader(), loader(24, 1)))
    found = probe_layers(known, Protocol(), test=test)
    return {f"{scores.layer}/{head}": scores.mean(head) for scores in found for head in ("svm", "softmax")}


@pytest.mark.parametrize("limit", [None, 16])
def test_validation_images_are_read_in_validations_own_pass(limit: int | None) -> None:
    sink = MemorySink()
    monitor = LayerProbeMonitor(every_n_epochs=2, images=limit, sinks=[sink], on_error="raise")
    model, plain = counted([monitor], loader(24, 1)), counted([], loader(24, 1))
    # Beside those of validation: what is tried before training and traced, and the training images.
    assert model.images - plain.images < 24 + (limit or 60) + 8
    assert numbers(sink.reports[-1][1]) == pytest.approx(expected_scores(model, limit))


class Otherwise(Counting):
    """Is called with halves of each batch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for half in batch[0].chunk(2):
            self(half)


class Averaging(pl.Callback):
    """Validates with other weights, written behind autograd's back."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.kept = [parameter.data.clone() for parameter in pl_module.parameters()]
        for parameter in pl_module.parameters():
            parameter.data.mul_(0.5)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for parameter, kept in zip(pl_module.parameters(), self.kept, strict=True):
            parameter.data.copy_(kept)


@pytest.mark.filterwarnings("ignore:Your `val_dataloader`'s sampler has shuffling enabled")
@pytest.mark.parametrize("why", ["shuffled", "halves", "middle", "part", "averaged"])
def test_where_validations_pass_does_not_serve_there_is_one_more(why: str) -> None:
    sink = MemorySink()
    monitor = LayerProbeMonitor(every_n_epochs=2, sinks=[sink], on_error="raise")
    options: dict[str, Any] = {"middle": {"val_check_interval": 4}, "part": {"limit_val_batches": 2}}.get(why, {})
    pl.seed_everything(4, verbose=False)
    model = Otherwise() if why == "halves" else LittleNet()
    callbacks = [monitor, Averaging()] if why == "averaged" else [monitor]
    trainer = quiet_trainer(callbacks=callbacks, max_epochs=2, **options)
    trainer.fit(model, loader(shuffle=True), loader(24, 1, shuffle=why == "shuffled"))
    assert numbers(sink.reports[-1][1]) == pytest.approx(expected_scores(model))


def test_in_validate_the_pass_serves_too() -> None:
    sink = MemorySink()
    monitor = LayerProbeMonitor(sinks=[sink], splits=2, on_error="raise")
    torch.manual_seed(0)
    model = Counting()
    quiet_trainer(callbacks=[monitor]).validate(model, loader(), verbose=False)
    assert model.images < 2 * 60
    expected = probe_layers(tap_features(model, loader(), pool=4096), Protocol(splits=2))
    assert numbers(sink.reports[-1][1]) == pytest.approx(
        {f"{scores.layer}/{head}": scores.mean(head) for scores in expected for head in ("svm", "softmax")}
    )


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_another_stage_after_fit_draws_from_its_own_images(stage: str) -> None:
    sink = MemorySink()
    protocol = Protocol(per_class=2, test_per_class=1, splits=2)
    monitor = LayerProbeMonitor(protocol=protocol, every_n_epochs=2, sinks=[sink], on_error="raise")
    pl.seed_everything(4, verbose=False)
    model = LittleNet()
    trainer = quiet_trainer(callbacks=[monitor])
    trainer.fit(model, loader(80, shuffle=True), loader(24, 1))
    getattr(trainer, stage)(model, loader(36, 2), verbose=False)
    expected = probe_layers(tap_features(model, loader(36, 2), pool=4096), protocol)
    step, report = sink.reports[-1]
    assert step.stage == stage
    assert numbers(report) == pytest.approx(
        {f"{scores.layer}/{head}": scores.mean(head) for scores in expected for head in ("svm", "softmax")}
    )
    assert expected.scores[0].digest[:16] in " ".join(report.notes)


class Named(Dataset[dict[str, Tensor]]):
    """Each image has a kind, and a size; nobody is told the age."""

    def __init__(self, count: int, seed: int) -> None:
        self.images, self.labels = corners(count, seed).tensors

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "kind": self.labels[index], "size": self.labels[index] * 0.5 + 3}


class TwoHeads(Soft):
    """Says something of each under its name."""

    def forward(self, images: Tensor) -> Any:
        scores = super().forward(images)
        return {"kind": scores, "size": scores[:, :1], "age": scores}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum((each.square().mean() for each in self(batch["image"]).values()), torch.zeros(()))


def test_each_head_that_has_labels_has_series_of_its_own() -> None:
    sink, model = MemorySink(), TwoHeads()
    monitor = LayerProbeMonitor(["features.0"], sinks=[sink], splits=2, on_error="raise")
    loaders = [DataLoader(Named(count, seed), batch_size=10) for count, seed in ((40, 0), (20, 1))]
    quiet_trainer(callbacks=[monitor], max_epochs=1).fit(model, *loaders)
    (_, report) = sink.reports[-1]
    values = {item.name: item.value for item in report.items if isinstance(item, Scalar)}
    assert values.keys() == {"kind/features.0/svm", "kind/features.0/softmax", "size/features.0/ridge"}
    features = [tap_features(model, [corners(*of).tensors], ["features.0"], pool=4096) for of in ((40, 0), (20, 1))]
    kinds = probe_layers(features[0], Protocol(splits=2), test=features[1])["features.0"]
    sizes = [replace(each, labels=each.labels[:, None] * 0.5 + 3) for each in features]
    ridge = probe_layers(sizes[0], Protocol(splits=2), test=sizes[1])["features.0"]
    assert values["kind/features.0/svm"] == pytest.approx(kinds.mean("svm"))
    assert values["size/features.0/ridge"] == pytest.approx(ridge.mean("ridge"), abs=1e-6)
