"""Every monitor, without arguments, on modules and trainers of users: runs end as without; what is shown is right."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from callbacks.littlenet import quiet_trainer
from callbacks.test_contract import MONITORS
from callbacks.user_cases import CASES, VIEWS, Case
from callbacks.user_modules import Classifier, labelled
from module_table import PAGE, page
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cnnviz import (
    DeconvnetMonitor,
    LayerProbeMonitor,
    LayerTableMonitor,
    MemorySink,
    OcclusionMonitor,
    OnlineProbeMonitor,
    TopPatchesMonitor,
)
from lightning_cnnviz.callbacks import maximization
from lightning_cnnviz.callbacks._base.monitor import Monitor
from lightning_cnnviz.core.maximization.plan import maximize_plan
from lightning_cnnviz.core.network.heads import ByHead
from lightning_cnnviz.core.probing.probe import probe


class Shown(NamedTuple):
    """One look that was shown."""

    monitor: Any
    result: Any
    stage: str
    network: str
    source: str


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Shown]:
    """What is shown; nothing is drawn, and images that maximize are climbed to for two steps."""
    looks: list[Shown] = []

    def keep(self: Monitor, result: Any, drawn: Any) -> None:
        identity = self._identity(result)
        looks.append(Shown(self, result, identity.stage, identity.network.sentence, identity.data.source))

    def few_steps(*arguments: Any, **options: Any) -> Any:
        return maximize_plan(*arguments, **{**options, "steps": 2, "invariance": 0})

    monkeypatch.setattr(Monitor, "_show", keep)
    monkeypatch.setattr(maximization, "maximize_plan", few_steps)
    return looks


def run(case: Case, folder: Any, monitors: list[Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return the module, and all that training has left behind."""
    pl.seed_everything(3, verbose=False)
    module = case.module()
    trainer = quiet_trainer(callbacks=[*case.callbacks(), *monitors], default_root_dir=folder, **case.trainer)
    case.run(trainer, module, *case.loaders())
    values = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    left = {name: value.dequantize() if value.is_quantized else value.clone() for name, value in values.items()}
    return module, left | {"random state": torch.get_rng_state()}


QUIET = (
    "ignore:.*sync_dist",
    "ignore:Total length of",
    "ignore:You defined a `validation_step`",
    "ignore:.*Lazy modules are a new feature",
    "ignore:.*a parameter that is not",
    "ignore:.*torch.ao.quantization",
    "ignore:.*reduce_range",
    "ignore:.*Swapping scheduler",
    "ignore:Trying to infer the `batch_size`",
    "ignore:.*is an uninitialized parameter",
    "ignore:.*The total number of parameters detected may be inaccurate",
    "ignore:You requested to overfit",
    "ignore:.*enable_nested_tensor",
    "ignore::UserWarning:torch.*",
    "ignore::FutureWarning:torch.*",
    "ignore::UserWarning:lightning.*",
)


def every(cases: list[Case]) -> list[Any]:
    return [pytest.param(case, id=case.name, marks=() if case.quick else pytest.mark.slow) for case in cases]


def warnings_of_others(test: Any) -> Any:
    for text in QUIET:
        test = pytest.mark.filterwarnings(text)(test)
    return test


@warnings_of_others
@pytest.mark.parametrize("case", every(CASES))
def test_what_suits_is_right_and_what_does_not_says_why(
    case: Case, shown: list[Shown], said: list[str], caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    _, expected = run(case, tmp_path, [])
    monitors = [kind() for kind in MONITORS]
    module, left = run(case, tmp_path, monitors)
    assert [name for name in expected if not torch.equal(expected[name].float(), left[name].float())] == []
    assert expected.keys() == left.keys()
    check_what_is_said(case, said, {type(each).__name__: each.view for each in monitors})
    # Outside of fit, a view may show what it does not show in fit, and the other way round.
    views = {look.monitor.view for look in shown}
    assert views | case.aside.keys() == (set(VIEWS) if case.shown else set())
    assert [record.getMessage() for record in caplog.records if record.name == "lightning_cnnviz"] == []
    if case.checked:
        check_values(case, module, {look.monitor.view: look for look in shown if look.stage == "fit"})


def check_what_is_said(case: Case, said: list[str], views: dict[str, str]) -> None:
    """Each that steps aside says so once a run and is listed at its end, with its name, what it found and a way out."""
    lines = [text.split(" steps aside: ") for text in said if " steps aside: " in text]
    reasons = {views[who]: reason for who, reason in lines}
    assert reasons.keys() == case.aside.keys()
    assert {view: reason for view, reason in reasons.items() if case.aside[view] not in reason} == {}
    assert not [reason for reason in reasons.values() if "\n" in reason]
    listed = [line for text in said if "monitors stepped aside:" in text for line in text.splitlines()[1:]]
    assert sorted(listed) == sorted(f"  {who}: {reason}" for who, reason in lines)


def check_values(case: Case, module: Any, looks: dict[str, Shown]) -> None:
    """Against a plain computation with the weights that training has ended with."""
    for view in ("occlusion", "invariance", "attribution"):
        if view in looks:
            check_probabilities(case, module, looks[view])
    if "filters" in looks:
        (filters,) = looks["filters"].result
        convolution = network(looks["filters"], module).get_submodule(filters.layer)
        torch.testing.assert_close(filters.kernels, convolution.weight.detach()[: len(filters.kernels)])
    for view in ("top_patches", "deconvnet"):
        if view in looks:
            patches = looks[view].result if view == "top_patches" else looks[view].result[0]
            check_strongest(case, module, looks[view], patches)
    if "layer_probe" in looks:
        check_probe(case, module, looks["layer_probe"])
    if "maximization" in looks and case.name in ("conv1d", "conv3d"):
        check_optima(module, looks["maximization"])
    if "layer_table" in looks:
        assert looks["layer_table"].result.parameters == sum(
            parameter.numel() for parameter in network(looks["layer_table"], module).parameters()
        )
    if "correlation" in looks:
        layer = looks["correlation"].result[0]
        means = maps_of(case, module, looks["correlation"], layer.layer, lambda maps: maps.mean((2, 3)))
        torch.testing.assert_close(layer.correlation.float(), torch.corrcoef(means.T), atol=1e-3, rtol=1e-3)


def check_probabilities(case: Case, module: Any, look: Shown) -> None:
    sample = look.monitor.sample
    with torch.no_grad():
        output = case.call(module.eval(), sample.images)
    if isinstance(look.result, ByHead) and set(look.result.names) <= set(output):
        for name, result in zip(look.result.names, look.result.results, strict=True):
            check_targets(case.p(output[name]), result.untouched)
        return
    p = case.p(output)
    if p.ndim == 4:
        check_classes(p, sample.labels, look.result)
        return
    check_targets(p, look.result.untouched)


def check_targets(p: Tensor, untouched: Any) -> None:
    wanted = p[torch.arange(len(p)), untouched.targets]
    torch.testing.assert_close(untouched.probabilities, wanted, atol=1e-5, rtol=1e-4)


def check_classes(p: Tensor, maps: Tensor, by_class: ByHead) -> None:
    """Of segmentation, every class of the label maps, over its pixels in the images that have it."""
    assert sorted(by_class.names) == [f"class {number}" for number in maps.unique().tolist()]
    for name, result in zip(by_class.names, by_class.results, strict=True):
        regions = maps == int(name.removeprefix("class "))
        those = regions.flatten(1).any(1)
        wanted = (p[:, int(name[-1])] * regions).sum((1, 2))[those] / regions.sum((1, 2))[those]
        torch.testing.assert_close(result.untouched.probabilities, wanted, atol=1e-5, rtol=1e-4)


def check_optima(module: Any, look: Shown) -> None:
    """Of classes: the network's own scores of the images that were made."""
    (classes,) = (layer.optima for layer in look.result if layer.name == "classes")
    numbers = torch.arange(len(classes)).repeat_interleave(classes.starts)
    with torch.no_grad():
        scores = module.eval()(classes.images)
    torch.testing.assert_close(classes.activations, scores[torch.arange(len(numbers)), numbers])
    assert all(
        layer.optima.images.ndim == scores.ndim + len(look.monitor.sample.images.shape[2:]) for layer in look.result
    )


def check_strongest(case: Case, module: Any, look: Shown, patches: Any) -> None:
    for layer in patches:
        strongest = maps_of(case, module, look, layer.layer, lambda maps: maps.flatten(2).amax(2)).amax(0)
        torch.testing.assert_close(layer.activations[:, 0], strongest, atol=1e-5, rtol=1e-4)


def check_probe(case: Case, module: Any, look: Shown) -> None:
    """The first layer's, where its whole rectified maps are the features."""
    if case.data is None or look.result.images[1] == 0 or look.result.scores[0].pixels:
        return
    first, read = look.result.scores[0], []
    for loader in case.loaders():
        batches = [*(loader[0] if isinstance(loader, list) else loader)]
        if any(batch[1].isnan().any() for batch in batches):
            return
        labels = torch.cat([batch[1] for batch in batches])
        maps = maps_of(case, module, look, first.layer, lambda maps: maps.relu().flatten(1), batches)
        read.append((maps, labels))
    alone = probe(*read[0], first.protocol, test=read[1])
    assert (alone.measure, alone.heads, alone.dimensions) == (first.measure, first.heads, first.dimensions)
    torch.testing.assert_close(alone.accuracy, first.accuracy, atol=1e-6, rtol=1e-6, equal_nan=True)


def network(look: Shown, module: Any) -> nn.Module:
    return look.monitor.network_of(module)


def maps_of(case: Case, module: Any, look: Shown, name: str, read: Any, batches: Any = None) -> Tensor:
    """What is read of a layer's maps, of each validation image; a convolution is read behind its BatchNorm."""
    modules = {key.replace("_orig_mod.", ""): part for key, part in network(look, module).named_modules()}
    following = [*modules][[*modules].index(name) + 1 :][:1]
    name = next((each for each in following if isinstance(modules[each], nn.modules.batchnorm._BatchNorm)), name)
    found: list[Tensor] = []
    handle = modules[name].register_forward_hook(lambda _module, _inputs, output: found.append(read(output)))
    loaders = batches or case.loaders()[1] or module.val_dataloader()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for images, *_ in loaders[0] if isinstance(loaders, list) and batches is None else loaders:
            case.call(module.eval(), images)
    handle.remove()
    return torch.cat(found)


def test_the_table_is_made_of_what_is_tested() -> None:
    assert len(CASES) >= 40
    assert {view for case in CASES for view in case.aside} <= set(VIEWS)
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python tests/module_table.py"


def test_of_averaged_weights_every_view_sees_those_that_validation_uses(shown: list[Shown], tmp_path: Any) -> None:
    (case,) = (case for case in CASES if case.name == "ema")
    run(case, tmp_path, [TopPatchesMonitor(), DeconvnetMonitor(), OcclusionMonitor()])
    sentence = "Classifier, weights averaged by EMAWeightAveraging"
    assert {look.network for look in shown} == {sentence}
    checksums = {look.monitor.view: look.monitor._network.checksum for look in shown}
    assert len(set(checksums.values())) == 1


def test_weights_that_are_averaged_after_the_last_look_are_said(said: list[str], tmp_path: Any) -> None:
    (case,) = (case for case in CASES if case.name == "swa")
    run(case, tmp_path, [LayerTableMonitor(sinks=[MemorySink()])])
    assert sum("put its averaged weights into the network when all looks were made" in text for text in said) == 1
    said.clear()
    (plain,) = (case for case in CASES if case.name == "plain")
    run(plain, tmp_path, [LayerTableMonitor(sinks=[MemorySink()])])
    assert not any("averaged weights" in text for text in said)


def test_the_chosen_one_of_several_loaders_is_named(shown: list[Shown], tmp_path: Any) -> None:
    (case,) = (case for case in CASES if case.name == "two_validations")
    probe = LayerProbeMonitor(dataloader_idx=1)
    run(case, tmp_path, [TopPatchesMonitor(), OcclusionMonitor(dataloader_idx=1), probe])
    assert {look.monitor.view: look.source for look in shown} == {
        "top_patches": "validation loader 0 of 2",
        "occlusion": "validation loader 1 of 2",
        "layer_probe": "training images, validation loader 1 of 2",
    }
    shown.clear()
    loader = DataLoader(labelled(6), batch_size=3)
    quiet_trainer(callbacks=[TopPatchesMonitor(sinks=[MemorySink()])]).test(Classifier(), loader, verbose=False)
    assert [look.source for look in shown] == ["test images"]


def test_each_loader_may_have_a_monitor_and_series_of_its_own(tmp_path: Any) -> None:
    (case,) = (case for case in CASES if case.name == "two_validations")
    kinds: list[Any] = [TopPatchesMonitor, OcclusionMonitor, OnlineProbeMonitor]
    sink = MemorySink()
    monitors = [kind(dataloader_idx=place, sinks=[sink]) for kind in kinds for place in (0, 1)]
    assert [each.name for each in monitors] == ["", "loader_1"] * 3
    assert TopPatchesMonitor(dataloader_idx=1, name="unseen").name == "unseen"
    assert OcclusionMonitor(dataloader_idx=1, images=torch.rand(2, 1, 9, 9)).name == ""
    pl.seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=monitors, default_root_dir=tmp_path, max_epochs=1)
    trainer.fit(case.module(), *case.loaders())
    views = {kind.view for kind in kinds}
    assert {report.source for _, report in sink.reports} == {*views, *(f"{view}/loader_1" for view in views)}
    keys = {key for key in trainer.callback_metrics if key.startswith("online_probe/loader_1/")}
    assert keys


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (partial(TopPatchesMonitor, layers="net.00"), "no layer of Classifier matches 'net.00'. Did you mean 'net.0'"),
        (partial(TopPatchesMonitor, layers=7), "TopPatchesMonitor: layers=7 is a int"),
        (partial(TopPatchesMonitor, layers=nn.MaxPool2d), "has no MaxPool2d"),
        (partial(DeconvnetMonitor, features=[99]), r"features=\[99\] asked for, but layer 'net.0' has 3"),
        (partial(OcclusionMonitor, size=99), "size=.*the occluder"),
        (partial(OcclusionMonitor, task="binary"), 'task="multiclass" or "multilabel"'),
        (partial(OcclusionMonitor, dataloader_idx=3), "dataloader_idx=3: there are 1 loaders"),
        (partial(LayerProbeMonitor, per_class=50), "or the monitor allow_fewer=True"),
    ],
)
def test_a_wrong_argument_raises_before_the_first_step(make: Any, match: str, tmp_path: Any) -> None:
    pl.seed_everything(3, verbose=False)
    module, trainer = Classifier(), quiet_trainer(callbacks=[make()], default_root_dir=tmp_path)
    train, val = CASES[0].loaders()
    with pytest.raises(ValueError, match=match):
        trainer.fit(module, train, val)
    assert trainer.global_step == 0


def test_whoever_wants_to_be_stopped_is(tmp_path: Any) -> None:
    (case,) = (case for case in CASES if case.name == "no_convolution")
    with pytest.raises(ValueError, match=r"^TopPatchesMonitor: .*has no Conv2d"):
        run(case, tmp_path, [TopPatchesMonitor(on_error="raise")])


class Broken(Classifier):
    """Refuses what is not of its batch's size: with torch's own words."""

    def forward(self, images: Tensor) -> Any:
        if len(images) != 4:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return super().forward(images)


def test_errors_of_others_are_shown_with_whose_they_are_and_what_was_done(said: list[str], tmp_path: Any) -> None:
    pl.seed_everything(3, verbose=False)
    trainer = quiet_trainer(callbacks=[LayerProbeMonitor()], default_root_dir=tmp_path)
    trainer.fit(Broken(), DataLoader(labelled(8), batch_size=4), DataLoader(labelled(8, seed=1), batch_size=4))
    (line,) = (text for text in said if "steps aside" in text)
    assert line.startswith("LayerProbeMonitor steps aside: RuntimeError in trying it: mat1 and mat2 shapes")
    assert line.endswith('on_error="raise" stops the run there, with a traceback')
