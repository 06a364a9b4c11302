"""The record: what is added is there again, equal, once, for any number of readers and writers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from record.looks import MEAN_STD, NET, identity, mined, patches_seen, photographs, tree_of
from torch import nn

from lightning_cnnviz.core.layer_table.table import layer_table
from lightning_cnnviz.record.identity import DataIdentity, LookIdentity, NetworkIdentity, network_identity
from lightning_cnnviz.record.store import Record
from lightning_cnnviz.render.views import Seen
from lightning_cnnviz.report import Gallery, Report, Scalar


def test_small_patches_come_back_to_the_bit_and_large_ones_within_jpegs_error(tmp_path: Path) -> None:
    seen = patches_seen()
    Record(tmp_path / "record").add(identity(arguments={"k": 3}), seen)
    (look,) = Record(tmp_path / "record").looks()
    found = look.result
    std = torch.tensor(MEAN_STD.std).view(3, 1, 1)
    errors = []
    for layer, again in zip(seen.result, found, strict=True):
        assert tree_of(layer.activations) == tree_of(again.activations)
        for line, line_again in zip(layer.patches, again.patches, strict=True):
            for patch, patch_again in zip(line, line_again, strict=True):
                if layer.layer == "0":  # 3 x 3
                    assert torch.equal(patch, patch_again)
                else:  # up to 41 x 41
                    errors.append((patch - patch_again).mul(std).abs().mean() * 255)
    # Of JPEG at quality 88 with full color resolution.
    assert 0 < max(map(float, errors)) < 3
    assert [source.index for source in found.sources] == [source.index for source in seen.result.sources]
    assert tree_of(look.display) == tree_of(seen.display)
    assert dict(look.arguments) == {"k": 3}


@pytest.mark.parametrize("channels", [1, 3])
def test_large_patches_of_values_that_no_normalization_shows_come_back_too(tmp_path: Path, channels: int) -> None:
    images = photographs(8, 64)[:, :channels]  # from about -2 to 2.6
    net = nn.Sequential(nn.Conv2d(channels, 2, 41, padding=20))
    seen = Seen(result=mined(images, net))
    look = Record(tmp_path).add(identity(), seen)
    errors = [
        (one - other).abs().mean()
        for one, other in zip(seen.result.all_patches(), look.result.all_patches(), strict=True)
    ]
    assert float(torch.stack(errors).max()) < 4.7 * 3 / 255


def test_patches_of_small_images_are_exact(tmp_path: Path) -> None:
    seen = patches_seen(side=24)
    look = Record(tmp_path).add(identity(), seen)
    assert tree_of(look.result.layers) == tree_of(seen.result.layers)
    assert tree_of(Record(tmp_path).looks()[0].result.layers) == tree_of(seen.result.layers)


def test_what_did_not_change_is_not_stored_again(tmp_path: Path) -> None:
    record, seen = Record(tmp_path), patches_seen()
    first, second = record.add(identity(), seen), record.add(identity(epoch=1), seen)
    assert len(list((tmp_path / "packs").iterdir())) == 1
    assert second.bytes < first.bytes / 3  # its description alone
    # Nor by another process.
    third = Record(tmp_path).add(identity(epoch=2), seen)
    assert abs(third.bytes - second.bytes) < 50
    assert tree_of(third.result) == tree_of(first.result)


def test_several_writers_see_each_others_looks(tmp_path: Path) -> None:
    one, other = Record(tmp_path), Record(tmp_path)
    for epoch in range(3):
        one.add(identity(epoch=epoch), patches_seen(seed=epoch))
        other.add(identity("layer_table", epoch=epoch), Seen(result=layer_table(NET, (3, 32, 32))))
    for record in (one, other, Record(tmp_path)):
        assert [look.epoch for look in record.looks(view="top_patches")] == [0, 1, 2]
        assert [look.epoch for look in record.looks(view="layer_table")] == [0, 1, 2]
        assert record.check() == []


def test_stability_goes_on_in_another_process(tmp_path: Path) -> None:
    Record(tmp_path).add(identity(epoch=1), patches_seen())
    Record(tmp_path).add(identity(epoch=1, stage="test"), patches_seen(seed=3))
    look = Record(tmp_path).add(identity(epoch=2), patches_seen())
    stability = {item.name: item.value for item in look.report().items if isinstance(item, Scalar)}
    assert stability["0/stability"] == 1.0
    first, test, _ = Record(tmp_path).looks()
    for alone in (first, test):  # another stage is another series
        values = {item.name: item.value for item in alone.report().items if isinstance(item, Scalar)}
        assert values["0/stability"] != values["0/stability"]


def test_a_report_alone_is_kept_too(tmp_path: Path) -> None:
    report = Report("confusion", title="Which", items=(Scalar("accuracy", float("nan")),), notes=("a", "b"))
    Record(tmp_path).add(identity("confusion"), report)
    (look,) = Record(tmp_path).looks()
    assert tree_of(look.report()) == tree_of(report)
    with pytest.raises(ValueError, match="has a report alone"):
        _ = look.result


def test_a_look_is_drawn_as_it_was(tmp_path: Path) -> None:
    seen = patches_seen(side=24)
    look = Record(tmp_path).add(identity(name="mine"), seen)
    (gallery, *_) = (item for item in look.report().items if isinstance(item, Gallery))
    assert look.report().name == "mine"
    source = gallery.rows[0].tiles[0].source
    assert source is not None
    assert torch.equal(source.pixels, MEAN_STD.to_pixels(photographs(8, 24)[source.index]))


def test_what_cannot_be_kept_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    record = Record(tmp_path)
    with pytest.raises(TypeError, match="only results, tensors and plain values"):
        record.add(identity("filters"), Seen(result=object()))
    assert record.looks() == []


@pytest.mark.parametrize(
    "head", ['{"format": "else", "schema": 1}', "[]", "{", '{"format": "lightning_cnnviz record"}']
)
def test_a_foreign_folder_is_refused(tmp_path: Path, head: str) -> None:
    (tmp_path / "record.json").write_text(head)
    with pytest.raises(ValueError, match=r"is no record|is damaged"):
        Record(tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(ValueError, match="it has other files"):
        Record(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        Record(tmp_path / "thesis.tex")


def test_a_newer_record_is_refused_with_the_version_it_needs(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.add(identity(), patches_seen())
    head = json.loads((tmp_path / "record.json").read_text())
    (tmp_path / "record.json").write_text(json.dumps(head | {"schema": 99, "version": "7.1"}))
    with pytest.raises(ValueError, match=r"needs lightning_cnnviz 7\.1 or newer \(schema 99\)"):
        Record(tmp_path)
    with pytest.raises(ValueError, match=r"needs lightning_cnnviz 7\.1"):
        record.add(identity(), patches_seen())


def damaged(tmp_path: Path, change: Any) -> list[str]:
    """What `check` says of a record in whose one look something was changed."""
    Record(tmp_path).add(identity(), patches_seen(side=64))
    (file,) = (tmp_path / "looks").iterdir()
    content = json.loads(file.read_text())
    change(content, tmp_path)
    if content is not None:
        file.write_text(json.dumps(content))
    return Record(tmp_path).check()


def _point_outside(content: Any, folder: Path) -> None:
    content["tensors"] = dict.fromkeys(content["tensors"], "../../elsewhere")


def _image_outside(content: Any, folder: Path) -> None:
    images = content["crops"]["dict"]
    for pair in images:
        if pair[0] == "images":
            pair[1] = {"dict": [[index, "../../../etc/passwd"] for index, _ in pair[1]["dict"]]}


def _pickle(content: Any, folder: Path) -> None:
    (pack,) = (folder / "packs").iterdir()
    pack.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")


def _claims(content: Any, folder: Path) -> None:
    (pack,) = (folder / "packs").iterdir()
    pack.write_bytes((10 * 2**30).to_bytes(8, "little") + b"{}")


def _other_content(content: Any, folder: Path) -> None:
    (pack,) = (folder / "packs").iterdir()
    pack.write_bytes(pack.read_bytes()[:-1] + b"\xff")


def _no_images(content: Any, folder: Path) -> None:
    for image in (folder / "images").iterdir():
        image.write_bytes(b"GIF89a")


def _another_type(content: Any, folder: Path) -> None:
    content["result"] = {"type": "os.system", "fields": {"command": "true"}}


def _no_identity(content: Any, folder: Path) -> None:
    content["identity"] = 3


@pytest.mark.parametrize(
    "change",
    [_point_outside, _image_outside, _pickle, _claims, _other_content, _no_images, _another_type, _no_identity],
)
def test_what_is_hostile_or_damaged_is_named_and_harmless(tmp_path: Path, change: Any) -> None:
    (problem,) = damaged(tmp_path, change)
    assert str(tmp_path) in problem or "image" in problem


def test_a_damaged_look_does_not_hide_the_others(tmp_path: Path) -> None:
    record = Record(tmp_path)
    for epoch in range(3):
        record.add(identity(epoch=epoch), patches_seen(seed=epoch))
    sorted((tmp_path / "looks").iterdir())[1].write_text("{")
    assert [look.epoch for look in Record(tmp_path).looks()] == [0, 2]
    assert len(Record(tmp_path).check()) == 1


def test_the_network_is_known_by_its_weights() -> None:
    torch.manual_seed(0)
    first, second = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(3, 4, 3))
    before = network_identity(first)
    assert (before.type, before.parameters) == ("Sequential", 4 * 27 + 4 + 8)
    assert network_identity(first) == before
    assert network_identity(second).checksum != before.checksum
    assert isinstance(first[1], nn.BatchNorm2d)
    assert first[1].running_mean is not None
    first[1].running_mean[0] += 1e-6
    assert network_identity(first).checksum != before.checksum
    network_identity(nn.Sequential(nn.LazyConv2d(4, 3)))


def test_looks_of_one_line_share_stage_data_name_and_run() -> None:
    base = identity(data=DataIdentity(dataset="Digits", images=10))
    assert (
        identity(epoch=3, data=DataIdentity(dataset="Digits", images=9), network=NetworkIdentity()).series
        == base.series
    )
    others = [
        identity(stage="test"),
        identity(name="a"),
        identity("filters"),
        LookIdentity(view="top_patches", run="s"),
        identity(data=DataIdentity(dataset="Digits", loader=1)),
    ]
    assert base.series not in {other.series for other in others}


def test_a_size_that_the_user_states_is_kept_by_taking_inner_looks_away(tmp_path: Path) -> None:
    record, writer = Record(tmp_path), Record(tmp_path)
    for epoch in range(1, 24):
        writer.add(identity(epoch=epoch, global_step=epoch), patches_seen(seed=epoch // 2))
        writer.add(identity("layer_table", epoch=epoch, global_step=epoch), Seen(result=layer_table(NET, (3, 32, 32))))
    before = {look.id: tree_of(look.result) for look in record.looks()}
    assert record.thin(1000) == []
    size = record.size()
    some = record.thin(size * 0.8 / 1e6)
    assert 0 < len(some) < 23
    assert record.size() <= size * 0.8
    more = record.thin(0)
    assert record.check() == []
    assert Record(tmp_path).check() == []
    for view in ("top_patches", "layer_table"):
        assert [look.epoch for look in record.looks(view=view)] == [1, 2, 5, 10, 20, 23]
    assert [look.id for look in record.looks() if tree_of(look.result) != before[look.id]] == []
    assert set(some) | set(more) == before.keys() - {look.id for look in record.looks()}
    # Who was there meanwhile goes on, and refers to nothing that is gone.
    again = writer.add(identity(epoch=24, global_step=24), patches_seen(seed=2))
    assert Record(tmp_path).check() == []
    assert tree_of(again.result.layers[0]) == tree_of(patches_seen(seed=2).result.layers[0])


def test_a_record_is_found_within_the_folder_of_its_run_or_page(tmp_path: Path) -> None:
    Record(tmp_path / "cnnviz" / "record").add(identity(), patches_seen())
    (tmp_path / "cnnviz" / "looks").mkdir()  # as a page has
    for folder in (tmp_path, tmp_path / "cnnviz", tmp_path / "cnnviz" / "record"):
        assert Record.within(folder).folder.samefile(tmp_path / "cnnviz" / "record")
    with pytest.raises(ValueError, match="there is no record in"):
        Record.within(tmp_path / "cnnviz" / "looks")
