from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnviz import MemorySink
from lightning_cnnviz.callbacks.layer_table import LayerTableMonitor
from lightning_cnnviz.report import Report, Scalar, Step, Table


def shown(sink: MemorySink) -> tuple[Step, Report]:
    (only,) = sink.reports
    return only


def fitted(monitors: list[Any], loaders: tuple[Any, ...] = (), **options: Any) -> LittleNet:
    pl.seed_everything(5, verbose=False)
    model = LittleNet()
    quiet_trainer(callbacks=monitors, **options).fit(model, *(loaders or (train_loader(), val_loader())))
    return model


def test_the_table_is_shown_once_before_the_first_step() -> None:
    sink = MemorySink()

    class Listener(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            assert len(sink.reports) == 1

    fitted([LayerTableMonitor(sinks=[sink], on_error="raise"), Listener()])
    step, report = shown(sink)
    assert step == Step(epoch=0, global_step=0, stage="fit")
    assert report.title == "LittleNet on an image of 1x14x14"
    table = report.items[0]
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == ["features.0", "features.3", "features.4", "(network)", "head"]
    total = next(item for item in report.items if isinstance(item, Scalar))
    assert total.value == sum(parameter.numel() for parameter in LittleNet().parameters())


def test_training_does_not_notice() -> None:
    def outcome(monitors: list[Any]) -> tuple[dict[str, Tensor], Tensor]:
        model = fitted(monitors)
        return model.state_dict(), torch.rand(3)

    plain, chance = outcome([])
    watched, chance_after = outcome([LayerTableMonitor(sinks=[MemorySink()], on_error="raise")])
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(chance, chance_after)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages(stage: str) -> None:
    sink = MemorySink()
    getattr(quiet_trainer(callbacks=[LayerTableMonitor(sinks=[sink])]), stage)(LittleNet(), val_loader(), verbose=False)
    step, report = shown(sink)
    assert (step.stage, report.view) == (stage, "layer_table")


@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
def test_the_image_is_of_the_size_given_or_of_a_loader_given_or_of_training() -> None:
    given, own, training = MemorySink(), MemorySink(), MemorySink()
    images: DataLoader[Any] = DataLoader(torch.zeros(3, 1, 12, 10))  # type: ignore[arg-type]
    fitted([LayerTableMonitor((1, 20, 18), sinks=[given]), LayerTableMonitor(data=images, name="own", sinks=[own])])
    fitted([LayerTableMonitor(sinks=[training])], (train_loader(),))
    assert [shown(sink)[1].title.rpartition(" ")[2] for sink in (given, own, training)] == [
        *("1x20x18", "1x12x10", "1x14x14")
    ]


def test_half_precision() -> None:
    sink = MemorySink()
    fitted([LayerTableMonitor(sinks=[sink])], precision="bf16-true")
    assert shown(sink)[1].items


def test_a_submodule_and_a_batch_of_unusual_form() -> None:
    sink = MemorySink()
    monitor = LayerTableMonitor(
        data=[{"strange": torch.zeros(2, 1, 9, 9)}],
        batch_fn=lambda batch: batch["strange"],
        model="features",
        sinks=[sink],
    )
    fitted([monitor])
    assert shown(sink)[1].title == "Sequential on an image of 1x9x9"


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input_size=\(14,\): give channels, height and width"):
        LayerTableMonitor((14,))
    with pytest.raises(ValueError, match=r"of a signal, and LittleNet has Conv2d: give channels, height and width"):
        fitted([LayerTableMonitor((14, 14), sinks=[MemorySink()])])
    with pytest.raises(ValueError, match=r"LittleNet does not take an image of 3x14x14: layer 'features\.0' stopped"):
        fitted([LayerTableMonitor((3, 14, 14), sinks=[MemorySink()])])


def test_no_data_names_what_to_give() -> None:
    monitor = LayerTableMonitor(sinks=[MemorySink()])

    class Trainer:
        val_dataloaders = train_dataloader = None
        enable_validation = False

        class state:  # noqa: N801
            fn = "fit"

    with pytest.raises(ValueError, match=r"there is none: give input_size=\(channels, height, width\), or data="):
        monitor._loader(Trainer())


def test_a_network_of_signals() -> None:
    """Its signal comes from the data, or its size is given."""

    class OfSignals(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv1d(12, 4, 5, stride=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)
            )

        def training_step(self, batch: Any, _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)  # type: ignore[no-any-return]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    sinks = [MemorySink(), MemorySink()]
    loader = DataLoader(TensorDataset(torch.rand(4, 12, 50), torch.tensor([0, 1, 0, 1])), 2)
    monitors = [LayerTableMonitor(sinks=sinks[:1]), LayerTableMonitor((12, 80), name="long", sinks=sinks[1:])]
    quiet_trainer(callbacks=monitors).fit(OfSignals(), loader)
    titles = [report.title for sink in sinks for _, report in sink.reports]
    assert titles == ["OfSignals on a signal of 12x50", "OfSignals on a signal of 12x80"]
    ((_, report),) = sinks[0].reports
    table = report.items[0]
    assert isinstance(table, Table)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["output"], row["receptive field"]) for row in rows] == [
        ("4x23", "5"),
        ("4x1", "signal"),
        ("2", "signal"),
    ]
