"""TopPatchesMonitor on real trainers: when it looks, on what, what it shows, and what bad input gets."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from callbacks.littlenet import LittleNet, dataset, quiet_trainer, train_loader, val_loader
from sinks.harness import page_text
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_cnnviz import MemorySink, PageSink, TopPatchesMonitor, WandbSink, mine_top_patches
from lightning_cnnviz.core.top_patches.results import TopPatches
from lightning_cnnviz.report import Gallery, Scalar, Table


class Recording(TopPatchesMonitor):
    """Keeps the results too."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("sinks", [MemorySink()])
        super().__init__(**options, on_error="raise")
        self.results: list[TopPatches] = []

    def render(self, result: TopPatches) -> Any:
        self.results.append(result)
        return super().render(result)

    @property
    def reports(self) -> list[Any]:
        assert self.sinks is not None
        sink = self.sinks[0]
        assert isinstance(sink, MemorySink)
        return sink.reports


def assert_same(first: TopPatches, second: TopPatches) -> None:
    assert [layer.layer for layer in first] == [layer.layer for layer in second]
    for one, other in zip(first, second, strict=True):
        for name in ("activations", "images", "labels", "rows", "columns", "boxes"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        assert one.features == other.features
        for mine, theirs in zip(one.patches, other.patches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def fit(monitor: Any, model: Any = None, *, val: Any = None, package: Any = pl, **options: Any) -> Any:
    model = LittleNet() if model is None else model
    quiet_trainer(package, callbacks=[monitor], **options).fit(
        model, train_loader(), val_loader() if val is None else val
    )
    return model


def test_needs_no_argument(tmp_path: Path) -> None:
    trainer = quiet_trainer(callbacks=[TopPatchesMonitor()], default_root_dir=tmp_path)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    page = tmp_path / "cnnviz" / "index.html"
    assert "features.0" in page_text(page)


def test_mines_from_the_validation_passes_what_a_pass_of_its_own_finds() -> None:
    monitor = Recording(k=4)
    model = fit(monitor, max_epochs=1)
    assert_same(monitor.results[-1], mine_top_patches(model, val_loader(), k=4))


def test_no_second_pass_over_the_data() -> None:
    def passes(monitors: list[Any]) -> list[int]:
        model, counts = LittleNet(), []
        model.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
        trainer = quiet_trainer(callbacks=monitors, max_epochs=2)
        trainer.fit(model, train_loader(), val_loader())
        return counts

    plain, watched = passes([]), passes([Recording()])
    # One image more at each look, the sanity check too: its first one, traced for the receptive fields.
    assert sorted(watched) == sorted([*plain, 1, 1, 1])


def test_validate_and_test() -> None:
    monitor, model = Recording(k=3), LittleNet()
    trainer = quiet_trainer(callbacks=[monitor])
    trainer.validate(model, val_loader(), verbose=False)
    trainer.test(model, val_loader(17), verbose=False)
    assert_same(monitor.results[0], mine_top_patches(model, val_loader(), k=3))
    assert_same(monitor.results[1], mine_top_patches(model, val_loader(17), k=3))
    assert [step.stage for step, _ in monitor.reports] == ["validate", "validate", "test", "test"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"every_n_epochs": 2}, [2, 4, 5]),
        ({"epochs": [1, 4, 9]}, [1, 4]),
        ({"epochs": "last"}, [5]),
    ],
)
@pytest.mark.parametrize("own_data", [False, True], ids=["validation", "own data"])
def test_schedule(options: dict[str, Any], expected: list[int], own_data: bool) -> None:
    data = {"data": val_loader()} if own_data else {}
    monitor = Recording(layers="features.0", **options, **data)
    fit(monitor, max_epochs=5)
    looks = [(step.epoch, step.global_step) for step, report in monitor.reports if isinstance(report.items[0], Gallery)]
    assert looks == [(epoch, 5 * epoch) for epoch in expected]
    assert len([report for _, report in monitor.reports if isinstance(report.items[0], Table)]) == 1


def test_own_data_shuffled_or_a_list_of_batches_gives_the_same() -> None:
    results = []
    for data in (val_loader(shuffle=True), list(val_loader()), val_loader(batch_size=23)):
        torch.manual_seed(0)
        monitor = Recording(data=data, epochs="last", k=5)
        model = fit(monitor, max_epochs=1)
        results.append(monitor.results[-1])
        assert results[-1].indices_known
        assert torch.equal(
            results[-1]["features.0"].images, mine_top_patches(model, val_loader(), k=5)["features.0"].images
        )


def test_two_monitors_share_one_page(tmp_path: Path) -> None:
    monitors = [TopPatchesMonitor("features.0"), TopPatchesMonitor("features.4", name="deep")]
    trainer = quiet_trainer(callbacks=monitors, default_root_dir=tmp_path)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    text = page_text(tmp_path / "cnnviz" / "index.html")
    assert "features.0" in text
    assert "features.4" in text


def test_what_is_shown() -> None:
    monitor = Recording(k=4, features={"features.0": [5, 2], "features.4": 3})
    fit(monitor, max_epochs=2)
    (_, first), (_, second), (_, end) = monitor.reports
    galleries = [item for item in second.items if isinstance(item, Gallery)]
    assert [second.key(gallery) for gallery in galleries] == ["top_patches/features.0", "top_patches/features.4"]
    assert [row.caption for row in galleries[0].rows] == ["feature 2", "feature 5"]
    assert [len(row.tiles) for row in galleries[1].rows] == [4, 4, 4]
    scalars = {second.key(item): item for item in second.items if isinstance(item, Scalar)}
    assert {key.split("/")[0] for key in scalars} == {"top_patches_stats"}
    assert 0 <= scalars["top_patches_stats/features.0/stability"].value <= 1
    assert 0.25 <= scalars["top_patches_stats/features.0/label_purity"].value <= 1
    assert not next(item for item in first.items if item.name == "features.0/stability").measured
    (table,) = end.items
    assert table.columns[:6] == ("layer", "feature", "rank", "activation", "dataset index", "label")
    result = monitor.results[-1]["features.4"]
    line = next(row for row in table.rows if row[:3] == ("features.4", 1, 2))
    assert line[3] == pytest.approx(float(result.activations[1, 1]))
    assert line[4:8] == (
        int(result.images[1, 1]),
        int(result.labels[1, 1]),
        int(result.rows[1, 1]),
        int(result.columns[1, 1]),
    )
    assert len(table.rows) == (2 + 3) * 4


class Normalized(Dataset[Any]):
    classes = ("ant", "bee", "cat", "dog")

    def __init__(self) -> None:
        from torchvision.transforms.v2 import Compose, Normalize

        self.transform = Compose([Normalize([0.4], [0.2])])
        self.inner = dataset(12)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        image, label = self.inner[index]
        return self.transform(image), label


def test_normalization_is_undone_and_classes_are_named() -> None:
    monitor = Recording(layers="features.0", k=2)
    fit(monitor, val=DataLoader(torch.utils.data.Subset(Normalized(), range(12)), batch_size=5), max_epochs=1)
    _, report = monitor.reports[0]
    assert "mean 0.4, std 0.2" in report.notes[0]
    found = monitor.results[0]["features.0"]
    tile = report.items[0].rows[0].tiles[0]
    top, left, bottom, right = found.boxes[0, 0].tolist()
    original = dataset(12)[int(found.images[0, 0])][0][:, top:bottom, left:right]
    if tuple(original.shape[1:]) == tuple(tile.pixels.shape[1:]):
        assert torch.equal(tile.pixels[:1], (original * 255).round().to(torch.uint8))
    assert tile.numbers["label"] in Normalized.classes


class ChildOnly(LittleNet):
    """Defines no forward of its own; its step runs its one convnet."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(self.features, nn.Flatten(), nn.LazyLinear(4))
        self.net(torch.zeros(2, 1, 14, 14))
        del self.features, self.head

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.net(batch[0])


def test_network_is_the_only_child_or_the_named_one() -> None:
    # As users write it: without the forward that LittleNet has.
    plain = type("Plain", (pl.LightningModule,), {**vars(ChildOnly), "__init__": _child_only_init})
    model = plain()
    monitor = Recording()
    quiet_trainer(callbacks=[monitor], max_epochs=1).fit(model, train_loader(), val_loader())
    assert [layer.layer for layer in monitor.results[0]] == ["0.0", "0.4"]
    named = Recording(model="net.0")
    fit(named, ChildOnly(), max_epochs=1)
    assert [layer.layer for layer in named.results[0]] == ["0", "4"]
    with pytest.raises(ValueError, match=r'model="nett".*no such submodule.*"net"'):
        fit(Recording(model="nett"), ChildOnly())


def _child_only_init(self: Any) -> None:
    pl.LightningModule.__init__(self)
    inner = LittleNet()
    self.net = nn.Sequential(inner.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    self.configure_optimizers = lambda: torch.optim.SGD(self.parameters(), 0.1)


def test_pytorch_lightning_trainer() -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = LittleNet().features

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images).mean((2, 3))  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    monitor = Recording()
    fit(monitor, Other(), package=pytorch_lightning)
    assert len(monitor.results) == 2


def test_lightning_cli_from_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return train_loader()

        def val_dataloader(self) -> Any:
            return val_loader()

    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
trainer:
  accelerator: cpu
  max_epochs: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {tmp_path}
  callbacks:
    - class_path: lightning_cnnviz.TopPatchesMonitor
      init_args:
        layers: [features.0]
        k: 3
        features: [0, 5]
        epochs: [1, 2]
        normalization: [[0.5], [0.25]]
        sinks:
          - class_path: lightning_cnnviz.PageSink
            init_args: {{directory: {tmp_path / "page"}}}
"""
    )
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(LittleNet, Data, args=["fit", "--config", str(config)], save_config_callback=None)
    (monitor,) = [callback for callback in cli.trainer.callbacks if isinstance(callback, TopPatchesMonitor)]
    assert (monitor.k, monitor.features, monitor.epochs) == (3, [0, 5], [1, 2])
    assert "features.0" in page_text(tmp_path / "page" / "index.html")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"layers": "features.9"}, r"no layer of LittleNet matches 'features.9'. Did you mean 'features.\d'"),
        ({"k": 0}, "k=0"),
        ({"per_image": 0}, "per_image=0"),
        ({"features": [6]}, r"features=\[6\].*'features.0' has 6 feature maps"),
        ({"features": {"features.1": [0]}}, r"features.1.*not among those chosen"),
        ({"layers": "pool2"}, "no layer"),
        ({"sinks": [WandbSink()]}, "no WandbLogger"),
        ({"dataloader_idx": 2}, "dataloader_idx=2: there are 1 loaders"),
        ({"batch_fn": lambda batch: "text"}, "no images found in a batch of form str"),
        ({"batch_fn": lambda batch: batch[0].flatten(1)}, r"shape \(6, 196\).*batch_fn"),
        ({"batch_fn": lambda batch: batch[0][..., :9]}, "run on other images than the batch's"),
        ({"data": []}, "empty"),
        ({"data": DataLoader(dataset(0))}, "empty"),
    ],
)
def test_wrong_arguments_raise_before_training(options: dict[str, Any], match: str) -> None:
    sinks = {"sinks": [MemorySink()]}
    model = LittleNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises((ValueError, TypeError), match=match):
        fit(TopPatchesMonitor(**{**sinks, **options}), model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_validation_raises_at_set_up_where_that_is_asked_for() -> None:
    monitor = TopPatchesMonitor(sinks=[MemorySink()], on_error="raise")
    with pytest.raises(ValueError, match=r"limit_val_batches=0.*data="):
        fit(monitor, limit_val_batches=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own, on the empty loader
        with pytest.raises(ValueError, match=r"no validation.*data="):
            quiet_trainer(callbacks=[monitor]).fit(LittleNet(), train_loader())
        with pytest.raises(ValueError, match="loader is empty"):
            fit(monitor, val=DataLoader(dataset(0)))
        with pytest.raises(ValueError, match=r"saw no batch.*trainer.validate"):
            quiet_trainer(callbacks=[monitor]).validate(LittleNet(), DataLoader(dataset(0)), verbose=False)
    with pytest.raises(ValueError, match="after none of these"):
        fit(TopPatchesMonitor(epochs=[1, 3], sinks=[MemorySink()]), check_val_every_n_epoch=2)


def test_no_convolution_raises_at_set_up_where_that_is_asked_for() -> None:
    class Dense(LittleNet):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Flatten(2), nn.Linear(196, 8), nn.Unflatten(1, (8, 1)), nn.Flatten(3))

    with pytest.raises(ValueError, match="Dense has no Conv2d; it is made of"):
        fit(TopPatchesMonitor(sinks=[MemorySink()], on_error="raise"), Dense())


class Compiled(LittleNet):
    """Compiled for validation before any hook is there."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.compile(self.features, backend="eager")  # type: ignore[assignment]
        self.eval()
        with torch.no_grad():
            self(torch.zeros(6, 1, 14, 14))
        self.train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("data", [None, val_loader()], ids=["validation's", "given"])
def test_a_compiled_network_is_looked_at_in_passes_that_run_uncompiled(data: Any) -> None:
    monitor = Recording(data=data)
    fit(monitor, Compiled(), max_epochs=2)
    assert [layer.layer for layer in monitor.results[0]] == ["features.0", "features.4"]
    assert len(monitor.results) == 2


def test_failure_in_training_is_reported_once_and_the_run_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(TopPatchesMonitor):
        def render(self, result: Any) -> Any:
            raise RuntimeError("cannot draw")

    model = fit(Failing(sinks=[MemorySink()]), max_epochs=4)
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "switched off" in errors[0].message
    assert errors[0].exc_info is not None
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "Failing was switched off during the run: RuntimeError: cannot draw"
    ]
    assert model.trainer.current_epoch == 4


def test_failure_inside_a_hook_does_not_reach_the_users_forward_pass(caplog: pytest.LogCaptureFixture) -> None:
    class Resizes(LittleNet):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            images = batch[0] if self.trainer.sanity_checking else F.interpolate(batch[0], scale_factor=2)
            self.log("loss", self(images).sum())

    fit(TopPatchesMonitor(sinks=[MemorySink()]), Resizes(), max_epochs=2)
    lines = [record.message for record in caplog.records if record.message.startswith("TopPatchesMonitor steps aside")]
    assert len(lines) == 1
    assert "other images than the batch's" in lines[0]


def test_shuffled_validation_is_numbered_by_arrival_and_says_so() -> None:
    monitor = Recording(layers="features.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning advises against it
        fit(monitor, val=val_loader(shuffle=True))
    assert not monitor.results[0].indices_known
    assert any("numbered as they arrived" in note for note in monitor.reports[0][1].notes)


def test_iterable_validation_data() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(list(dataset(9)))

    monitor = Recording(layers="features.0", k=3)
    fit(monitor, val=DataLoader(Stream(), batch_size=4), max_epochs=1)
    assert (monitor.results[0]["features.0"].images < 9).all()


def test_several_validation_loaders_and_mapping_batches() -> None:
    class Named(Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> Any:
            image, label = dataset(10, seed=5)[index]
            return {"pixel_values": image, "label": label}

    class Both(LittleNet):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch["pixel_values"] if isinstance(batch, dict) else batch[0])

    monitor = Recording(dataloader_idx=1, k=3)
    model = fit(monitor, Both(), val=[val_loader(), DataLoader(Named(), batch_size=4)], max_epochs=1)
    assert_same(monitor.results[0], mine_top_patches(model, DataLoader(Named(), batch_size=4), k=3))


def test_a_page_that_cannot_be_written_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    memory = MemorySink()
    with pytest.raises(ValueError, match=r"PageSink cannot write to .*Give another folder"):
        fit(TopPatchesMonitor(sinks=[PageSink(tmp_path / "file" / "page"), memory]), max_epochs=2)
    assert memory.reports == []


def test_resuming_from_a_checkpoint(tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    trainer = quiet_trainer(callbacks=[Recording()], max_epochs=1)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = Recording()
    trainer = quiet_trainer(callbacks=[again], max_epochs=3)
    trainer.fit(LittleNet(), train_loader(), val_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert [step.epoch for step, _ in again.reports] == [2, 3, 3]
