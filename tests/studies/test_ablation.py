from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from studies.study_parts import QUICK, TinyNet, TinyResidual, image_folder

from lightning_cnnviz.studies import study as study_module
from lightning_cnnviz.studies.ablation import ablation_study
from lightning_cnnviz.studies.options import StudyError
from lightning_cnnviz.studies.results import AblationStudy, load_study

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore::FutureWarning:lightning.*")
EXAMPLE = Path(__file__).parents[2] / "examples" / "ablation_table3.yaml"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "photos")


def study(photos: Path, folder: Path, net: Any = None, **options: Any) -> AblationStudy:
    small: dict[str, Any] = {"seeds": [0, 1], "steps": 2, "folder": folder / "study", **QUICK}
    return ablation_study(photos, TinyNet() if net is None else net, **{**small, **options})


def test_variants_and_their_parameters(photos: Path, tmp_path: Path) -> None:
    found = study(photos, tmp_path, remove=[["features.4"], ["hidden"]], resize=[{"features.0": 7}], seeds=[0])
    whole, without_conv, without_hidden, wider = (variant.parameters for variant in found.variants)
    conv, hidden, head = 4 * 6 * 9 + 6, 6 * 5 + 5, 5 * 3 + 3
    assert whole == (3 * 4 * 9 + 4) + 8 + conv + hidden + head
    assert without_conv == whole - conv - hidden + (4 * 5 + 5)
    assert without_hidden == whole - hidden - head + (6 * 3 + 3)
    assert wider == whole + 3 * (3 * 9 + 1) + 2 * 3 + 3 * 6 * 9
    assert [variant.name for variant in found.variants] == [
        "the whole network", "without features.4", "without hidden", "features.0 of 7"
    ]  # fmt: skip
    assert found.variants[1].changes[0] == "features.4 removed: Conv2d(4 to 6, 3x3) → Identity"
    assert found.error.shape == found.class_error.shape == (4, 1)
    # Saved, and found again; nothing is trained for it.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("[0-9a-f]*.json")}
    again = study(photos, tmp_path, remove=[["features.4"], ["hidden"]], resize=[{"features.0": 7}], seeds=[0])
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if not path.name.startswith("ablation") and before[path] != after[path]} == set()
    loaded = load_study(AblationStudy, tmp_path / "study")
    assert torch.equal(again.error, found.error)
    assert torch.equal(loaded.error, found.error)
    assert (loaded.variants, loaded.seeds, loaded.notes) == (found.variants, found.seeds, found.notes)


def test_all_variants_are_trained_alike(photos: Path, tmp_path: Path) -> None:
    """Resized to what it is, a layer is as it was: then so is the error, seed by seed."""
    found = study(photos, tmp_path, resize=[{"features.4": 6}], steps=5)
    assert torch.equal(found.error[0], found.error[1])
    assert torch.equal(found.rise, torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"nothing to compare: give remove=\[\[<layers>\], ...\]"),
        ({"remove": ["hidden"]}, r"remove=\['hidden'\]: give a list of names for each variant, as \[\['hidden'\]\]"),
        ({"remove": [[]]}, r"remove has the entry \[\]"),
        ({"resize": [{}]}, "resize has the entry {}"),
        ({"remove": [["hidden"], ["hidden"]]}, "the variant 'without hidden' is given twice"),
        ({"remove": [["hiden"]]}, "no layer of TinyNet matches 'hiden'. Did you mean 'hidden'"),
        ({"remove": [["head"]]}, "'head' is the classifier of TinyNet"),
        (
            {"net": "residual", "resize": [{"inner": 3}]},
            r"TinyResidual itself cannot be repaired: the sum of \(1, 4, 16",
        ),
        (
            {"remove": [["hidden"]], "paper": {"remove": [1.0, 2.0]}},
            "paper has 2 figures under remove, but there are 1",
        ),
        ({"remove": [["hidden"]], "paper": {"hole": 1.0}}, r"paper has \['hole'\]; it takes source, whole, remove"),
        ({"remove": [["hidden"]], "paper": {"whole": "x"}}, "paper has 'x' among its figures"),
        ({"remove": [["hidden"]], "weights": "DEFAULT"}, "has no option 'weights'"),
        ({"remove": [["hidden"]], "per_class": 2}, "has no option 'per_class'"),
    ],
)
def test_refusals(photos: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    net = TinyResidual() if options.pop("net", None) else TinyNet()
    with pytest.raises(StudyError, match=message):
        study(photos, tmp_path, net, **options)
    assert not (tmp_path / "study").exists()


def test_the_example_is_table_3(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the trainings, whose results are made up."""
    asked: list[Any] = []

    def made_up(work: Any, *_: Any, **options: Any) -> list[dict[str, Any]]:
        asked.extend(work)
        return [{"top1": 0.5, "class_mean": 0.5, "classes": 3, "test_images": 12} for _ in work]

    monkeypatch.setattr(study_module, "run_jobs", made_up)
    options = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    found = ablation_study(photos, **options, folder=tmp_path, image_size=64, progress=False)
    assert len(asked) == 9 * 3
    assert len({job.key for job in asked}) == 27
    head = 4096 * 3 + 3
    conv3, conv4, conv5 = 192 * 384 * 9 + 384, 384 * 256 * 9 + 256, 256 * 256 * 9 + 256
    fc6, fc7 = 9216 * 4096 + 4096, 4096 * 4096 + 4096
    whole, no34, no7, no67, no3467, *resized = (variant.parameters for variant in found.variants)
    assert whole == 61_100_840 - (4096 * 1000 + 1000) + head
    assert whole - no34 == conv3 + conv4 + conv5 - (192 * 256 * 9 + 256)
    assert whole - no7 == fc7
    assert whole - no67 == fc6 + fc7 + head - (9216 * 3 + 3)
    assert whole - no3467 == (whole - no34) + (whole - no67)
    for width, parameters in zip((2048, 8192), resized, strict=False):
        assert whole - parameters == fc6 + fc7 + head - (9217 * width + (width + 1) * width + (width + 1) * 3)
    assert [variant.paper for variant in found.variants] == [40.5, 45.4, 40.0, 44.8, 71.3, 41.7, 40.0, None, None]
