"""What a person finds in a W&B run with every monitor, read back from its file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sinks.offline_run import (
    keep_wandb_inside,
    read_offline_aliases,
    read_offline_artifacts,
    read_offline_axes,
    read_offline_config,
    read_offline_run,
)
from sinks.picture_letters import measured_letters
from sinks.whole_run import figures, fit, loader, small_network
from torchvision import models
from workspace.documented import documented_keys

from lightning_cnnviz.report import Report, Scalar, Step
from lightning_cnnviz.sinks.wandb import WandbSink
from lightning_cnnviz.workspace.products import CHART, CHART_FIELDS
from lightning_cnnviz.workspace.sections import SECTIONS


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    import wandb

    keep_wandb_inside(tmp_path, monkeypatch)
    monkeypatch.setenv("CNNVIZ_DRAWING", "inline")
    wandb.teardown()  # the mode is remembered until then
    yield tmp_path
    wandb.finish()
    wandb.teardown()


def test_a_run_with_every_monitor_has_the_documented_keys(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    letters = measured_letters(monkeypatch)
    fit(small_network(), inside, side=24).logger.experiment.finish()
    found = figures(inside)

    # All that is written on pictures can be read in a panel of 400 pixels.
    assert {key for key, size in letters.items() if size < 8} == set()
    assert len(letters) > 10
    assert {key.removesuffix("_table") for key in found.keys} == documented_keys().keys()
    assert all(re.fullmatch(r"[_a-zA-Z0-9/]+", key) for key in found.keys)
    assert len(found.keys) < 60

    # One row a look, under the numbers of Lightning's own row.
    losses = [(row["epoch"], row["trainer/global_step"]) for row in read_offline_run(inside) if "val/loss" in row]
    looks = [(row["epoch"], row["trainer/global_step"]) for row in found.rows if row["cnnviz/epoch"] > 0]
    assert looks == losses
    assert [row["cnnviz/epoch"] for row in found.rows] == [0, 1, 2]

    axes = read_offline_axes(inside)
    assert {key: axes[key][0] for key in found.keys} == {
        key: "" if key == "cnnviz/epoch" else "cnnviz/epoch" for key in found.keys
    }
    assert axes["layer_probe/svm"][1] == {"max"}
    assert axes["top_patches/dead_features"][1] == {"last"}

    config = read_offline_config(inside)
    facts = config["cnnviz/TopPatchesMonitor"]
    assert facts["looked at"]["layers"] == ["network.0", "network.3"]
    assert {"torch", "lightning_cnnviz"} <= set(facts["versions"])
    # What the workspace's panels ask for is there, and charts are drawn as this wandb has it.
    studies = documented_keys(studies=True)
    panels = [panel for section in SECTIONS for panel in section.panels if not {*panel.keys} & studies.keys()]
    assert {key for panel in panels for key in panel.keys} == documented_keys().keys() - {"cnnviz/epoch"}
    charts = [panel for panel in panels if panel.kind == "chart"]
    assert {f"{panel.keys[0]}_table" for panel in charts} <= found.keys
    for panel in charts:
        drawn = config[f"_wandb/visualize/{panel.keys[0]}"]["panel_config"]
        assert (drawn["panelDefId"], drawn["fieldSettings"]) == (CHART, CHART_FIELDS)
        assert drawn["stringSettings"]["xname"] == panel.x

    # The legend says what each key shows, and of each view how to read it.
    (legend, *_) = (row["cnnviz/legend"] for row in reversed(found.rows) if "cnnviz/legend" in row)
    (folder,) = inside.glob("wandb/offline-run-*/files")
    said = dict(json.loads((folder / legend["path"]).read_text())["data"])
    assert documented_keys().keys() - {"cnnviz/epoch", "cnnviz/legend", "cnnviz/page"} <= said.keys()
    assert "It is no gradient and no heat map of importance" in said["deconvnet"]

    told = config["cnnviz/page"]
    assert Path(told["file"]).is_file()
    assert 0 < told["megabytes of the newest looks"] < 10
    (page,) = inside.glob("wandb/offline-run-*/files/media/html/**/*.html")
    text = page.read_text()
    assert "cnnviz.list(" in text
    assert "wandb" not in text.partition("<body>")[0]

    records = [files for files in read_offline_artifacts(inside) if any("looks" in path for path in files)]
    assert len(records) == 1
    assert read_offline_aliases(inside)[f"cnnviz-record-{told_id(inside)}"] == {"latest", "epoch-2"}


def told_id(folder: Path) -> str:
    (log,) = folder.rglob("run-*.wandb")
    return log.stem.removeprefix("run-")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a machine with others
def test_each_stage_has_keys_of_its_own_and_what_does_not_change_is_there_once(inside: Path) -> None:
    trainer = fit(small_network(), inside, side=24, epochs=1)
    for evaluate in (trainer.validate, trainer.test):
        evaluate(trainer.lightning_module, loader(16, 24), verbose=False)
    trainer.logger.experiment.finish()
    keys = {key.removesuffix("_table") for key in figures(inside).keys} - {"test/loss"}
    stages = {stage: {key for key in keys if key.startswith(f"{stage}/")} for stage in ("validate", "test")}
    # What does not change, and what goes from look to look, is of fit alone.
    once = {key for key in documented_keys() if key.startswith(("layer_table/", "cnnviz/"))}
    found = [{key.removeprefix(f"{stage}/") for key in keys} for stage, keys in stages.items()]
    assert [keys - documented_keys().keys() for keys in found] == [set(), set()]
    assert [keys & once for keys in found] == [set(), set()]
    assert keys - stages["validate"] - stages["test"] <= documented_keys().keys()
    assert [len(keys) for keys in found] == [50, 50]


@pytest.mark.slow
@pytest.mark.timeout(7200)  # 6 minutes of one processor; on a machine with others much longer
@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_a_deep_network_gives_no_more_keys_than_a_small_one(name: str, inside: Path) -> None:
    epochs = 2
    fit(getattr(models, name)(weights=None, num_classes=4), inside, side=64, epochs=epochs).logger.experiment.finish()
    found = figures(inside)
    print(f"{name}: {len(found.keys)} keys, {found.files} files, {found.megabytes:.1f} MB, {found.table_rows} rows")
    # The page of the newest looks may be too large to be logged.
    assert {key.removesuffix("_table") for key in found.keys} | {"cnnviz/page"} == documented_keys().keys()
    assert len(found.keys) < 60
    assert found.files < 60 * epochs
    assert found.megabytes < 10 * epochs
    assert found.table_rows < 2000


def written(logger: Any, stage: str = "fit") -> None:
    sink = WandbSink()
    sink.open([logger], Path("unused"))
    report = Report("layer_probe", title="Probes", items=(Scalar("conv.1/svm", 0.5, layer="conv.1"),))
    sink.describe("LayerProbeMonitor", {"seed": 3})
    sink.write(report, Step(epoch=2, global_step=8, stage=stage, logged=(1, 7)))
    sink.close()


@pytest.mark.parametrize("package", ["lightning.pytorch.loggers", "pytorch_lightning.loggers"])
def test_a_run_that_the_user_has_made_gets_the_axis_too(package: str, inside: Path) -> None:
    import wandb

    run = wandb.init(project="own", dir=inside, mode="offline", config={"lr": 0.1})  # as in a sweep
    written(pytest.importorskip(package).WandbLogger(experiment=run))
    run.finish()
    assert read_offline_axes(inside)["layer_probe/svm"] == ("cnnviz/epoch", {"max"})
    config = read_offline_config(inside)
    assert (config["lr"], config["cnnviz/LayerProbeMonitor"]["seed"]) == (0.1, 3)


def test_a_prefix_stands_before_our_keys_and_lightnings_epoch(inside: Path) -> None:
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(project="test", save_dir=inside, offline=True, prefix="run a")
    logger.log_metrics({"epoch": 1, "val/loss": 0.5}, step=7)
    written(logger, stage="validate")
    logger.experiment.finish()
    lightnings, ours = read_offline_run(inside)
    common = {key for key in lightnings if not key.startswith("_")} - {"run a-val/loss"}
    assert {key: ours[key] for key in common} == {key: lightnings[key] for key in common}
    assert ours["run_a/validate/layer_probe/svm"] == 0.5
