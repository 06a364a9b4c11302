"""A network whose weights become NaN, or infinite, and heal: no number is made up, the report says so, looks go on."""

from __future__ import annotations

import copy
import math
from typing import Any

import lightning.pytorch as pl
import pytest
from callbacks.littlenet import LittleNet, quiet_trainer, train_loader, val_loader
from callbacks.test_contract import MONITORS

from lightning_cnnviz import (
    AttributionMonitor,
    DeconvnetMonitor,
    FilterMonitor,
    InvarianceMonitor,
    LayerProbeMonitor,
    LayerTableMonitor,
    MaximizationMonitor,
    MemorySink,
    Monitor,
    OcclusionMonitor,
)
from lightning_cnnviz.report import Report, Scalar, Table

Looks = dict[str, dict[int, list[Report]]]
# Of each view, numbers of what lies before the broken layer; every other number is of the broken network.
SOUND = ("features.0", "translation/features.0")


class Sickness(pl.Callback):
    """Breaks a layer's weights after the second epoch, and heals the network after the third."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.well: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not trainer.is_last_batch:
            return
        if trainer.current_epoch == 0:
            self.well = copy.deepcopy(pl_module.state_dict())
        elif trainer.current_epoch == 1:
            pl_module.features[4].weight.data.fill_(self.value)
        else:
            pl_module.load_state_dict(self.well)
            trainer.optimizers[0].state.clear()


def made(kind: type[Monitor], sink: MemorySink) -> Monitor:
    options: dict[type[Monitor], dict[str, Any]] = {
        FilterMonitor: {"layers": "conv"},
        AttributionMonitor: {"images": 2},
        DeconvnetMonitor: {"layers": ["features.4"], "k": 1, "features": 2},
        InvarianceMonitor: {"images": 2, "transforms": "translation"},
        OcclusionMonitor: {"images": 2},
        LayerProbeMonitor: {"every_n_epochs": 1, "splits": 2},
        MaximizationMonitor: {"every_n_epochs": 1, "features": 2, "classes": 2, "steps": 4},
    }
    return kind(sinks=[sink], **options.get(kind, {}))


# By name: NaN is not equal to itself, and pytest would take each test's for another.
@pytest.fixture(scope="module", params=["nan", pytest.param("inf", marks=pytest.mark.slow)])
def looks(request: pytest.FixtureRequest) -> Looks:
    """By view and epoch, what all monitors have shown."""
    sink = MemorySink()
    pl.seed_everything(0, verbose=False)
    monitors = [made(kind, sink) for kind in MONITORS if kind is not LayerTableMonitor]
    trainer = quiet_trainer(callbacks=[Sickness(float(request.param)), *monitors], max_epochs=3)
    trainer.fit(LittleNet(), train_loader(), val_loader())
    assert not any(monitor.failed for monitor in monitors)
    shown: Looks = {monitor.view: {} for monitor in monitors}
    for step, report in sink.reports:
        shown[report.view].setdefault(step.epoch, []).append(report)
    return shown


def numbers(reports: list[Report]) -> dict[str, float]:
    return {item.name: item.value for report in reports for item in report.items if isinstance(item, Scalar)}


@pytest.mark.fault(
    "numbers",
    "weights become NaN or infinite after an epoch, and heal in the next",
    "every number of every view that depends on them is NaN, every report says what is not finite, and no monitor is "
    "switched off: the next look shows the healed network",
)
@pytest.mark.parametrize("view", sorted({kind.view for kind in MONITORS if kind is not LayerTableMonitor}))
def test_a_network_that_breaks_and_heals(looks: Looks, view: str) -> None:
    by_epoch = looks[view]
    assert sorted(by_epoch) == [1, 2, 3]
    well, broken, healed = (numbers(by_epoch[epoch]) for epoch in (1, 2, 3))
    assert well.keys() >= broken.keys()
    made_up = {name: value for name, value in broken.items() if not math.isnan(value) and not name.startswith(SOUND)}
    assert made_up == {}
    sound = [name for name in well if name.startswith(SOUND) and math.isfinite(well[name])]
    assert [name for name in sound if not math.isfinite(broken[name])] == []
    assert [name for name, value in well.items() if math.isfinite(value) != math.isfinite(healed[name])] in (
        [],
        # compared with the look before, which has nothing to compare with
        ["features.0/stability"],
    )
    said = [note for note in by_epoch[2][0].notes if note.startswith("Not finite: ")]
    assert said
    for epoch in (1, 3):
        assert not [note for report in by_epoch[epoch] for note in report.notes if note.startswith("Not finite")]
    captions = " ".join(str(getattr(item, "caption", "")) for report in by_epoch[2] for item in report.items)
    for finding in ("classified correctly", "8 dead", "8 dominate"):
        assert finding not in captions


def test_tables_of_what_is_not_finite_say_so(looks: Looks) -> None:
    (table,) = (item for item in looks["layer_probe"][2][0].items if isinstance(item, Table))
    assert None in table.rows[1]
    assert None not in table.rows[0]
