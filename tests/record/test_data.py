"""Results go to files and come back equal to the bit; what is no such file is refused."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
import threading
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from record.examples import examples, loader, network, without_data
from test_results import ROOMS, results_of
from torch import Tensor, nn

import lightning_cnnviz as cnnviz
from lightning_cnnviz import load, report, save
from lightning_cnnviz.core.network.classification import Classified
from lightning_cnnviz.core.probing.protocols import Protocol
from lightning_cnnviz.record import _tree, data
from lightning_cnnviz.record._kinds import kind_names
from lightning_cnnviz.record.data import from_tree, to_tree


def differences(one: Any, other: Any, where: str = "value") -> list[str]:
    """Where two values differ, to the bit: types, orders of keys, dtypes, shapes and NaNs too."""
    if isinstance(other, report.LateTile):
        other = pickle.loads(pickle.dumps(other))
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
        return [] if same else [f"{where}: {one.dtype} {tuple(one.shape)} and {other.dtype} {tuple(other.shape)}"]
    if is_dataclass(one):
        pairs = [(field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(one)]
        return [found for name, *two in pairs for found in differences(*two, f"{where}.{name}")]
    if isinstance(one, dict):
        return differences(list(one.items()), list(other.items()), where)
    if isinstance(one, (tuple, list)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} parts"]
        both = enumerate(zip(one, other, strict=True))
        return [found for place, two in both for found in differences(*two, f"{where}[{place}]")]
    if isinstance(one, float):
        return [] if struct.pack(">d", one) == struct.pack(">d", other) else [f"{where}: {one} and {other}"]
    if isinstance(one, complex):
        return differences((one.real, one.imag), (other.real, other.imag), where)
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def through_tree(value: Any) -> Any:
    tree, tensors = to_tree(value)
    return from_tree(tree, tensors.__getitem__)


@pytest.fixture(scope="module")
def kept() -> dict[str, list[Any]]:
    return examples()


def test_every_type_that_can_be_kept_has_an_example(kept: dict[str, list[Any]]) -> None:
    # A new result is added to examples.py, so that the next test sees it; the others are no results.
    others = {name.partition(".")[0] for name in without_data()} | {
        "Along",
        "DefaultLayers",
        "DrawnPixels",
        "GivenBatch",
        "NetworkHead",
        "Operator",
        "ProbedClasses",
        "ProbedLabels",
        "ProbedValues",
        "Site",
        "WeightSource",
    }
    assert sorted(set(kind_names()) - set(kept) - others) == []


@pytest.mark.parametrize("room", ROOMS)
def test_every_result_of_core_can_be_kept(room: str) -> None:
    assert [kind.__name__ for kind in results_of(room) if kind.__name__ not in kind_names()] == []


@pytest.mark.parametrize("name", kind_names())
def test_every_type_comes_back_equal_to_the_bit(kept: dict[str, list[Any]], name: str, tmp_path: Path) -> None:
    for value in kept.get(name, []):
        assert differences(load(save(value, tmp_path / name)), value) == []


@pytest.mark.parametrize("said", list(without_data()))
def test_what_holds_a_network_is_refused_by_name(said: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=f"^{said}"):
        save(without_data()[said], tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_files_are_named_as_asked(tmp_path: Path) -> None:
    assert save(1, tmp_path / "conv1.2") == tmp_path / "conv1.2.safetensors"
    assert save(2, str(tmp_path / "a.safetensors")) == tmp_path / "a.safetensors"
    assert load(tmp_path / "conv1.2") == 1
    assert load(tmp_path / "a") == 2
    with pytest.raises(FileNotFoundError, match=r"b\.safetensors"):
        load(tmp_path / "b")


def test_equal_tensors_are_there_once() -> None:
    one = torch.arange(12.0).reshape(3, 4)
    tree, tensors = to_tree([one, one.t().contiguous().t(), one.clone(), one[:2], one.double(), one.reshape(4, 3)])
    assert len(tensors) == 4
    assert [part["tensor"] for part in tree[:3]] == [tree[0]["tensor"]] * 3


PLAIN_KEYS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=())) | st.floats()
PLAIN = st.recursive(
    PLAIN_KEYS | st.complex_numbers() | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(PLAIN_KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
@settings(deadline=None)
def test_plain_values_are_kept_to_the_bit(value: Any) -> None:
    assert differences(through_tree(value), value) == []


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (2**5000, 2**5000),
        (-0.0, -0.0),
        (Fraction(-1, 3), Fraction(-1, 3)),
        (torch.Size([2, 0]), torch.Size([2, 0])),
        (torch.bfloat16, torch.bfloat16),
        ("\ud83d\ude00", "\ud83d\ude00"),
        ("\udcff.png", "\udcff.png"),
    ],
)
def test_special_values(value: Any, read: Any) -> None:
    assert differences(through_tree(value), read) == []


@pytest.mark.parametrize(
    "name",
    [
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128"),
        *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool", "complex32"),
    ],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3, 4), (2, 3, 4, 1)], ids=str)
def test_tensors_of_every_dtype(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    size = torch.empty((), dtype=dtype).itemsize * torch.Size(shape).numel()
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8)
    value = raw.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    assert differences(load(save((value, value.T if len(shape) == 2 else value), tmp_path / "x"))[0], value) == []


def test_only_what_a_view_shows_is_kept(tmp_path: Path) -> None:
    storage = torch.rand(1000, 100)
    views = [storage[3], storage[:, 5], storage[0, 0], storage[2].expand(4, 100), storage[::2, ::50], storage[:0]]
    tree, tensors = to_tree(views)
    assert max(tensor.nbytes for tensor in tensors.values()) == 4 * 1000
    assert save(tuple(views), tmp_path / "x").stat().st_size < 12_000
    assert differences(from_tree(tree, tensors.__getitem__), [view.contiguous() for view in views]) == []


@pytest.mark.parametrize(
    "value",
    [
        nn.Parameter(torch.rand(3)),
        torch.rand(3, requires_grad=True) * 2,
        torch.view_as_complex(torch.rand(3, 2)).conj(),
        torch.rand(2, 3).as_subclass(type("Image", (Tensor,), {})),
    ],
    ids=["parameter", "with a gradient", "conjugate", "of a class of its own"],
)
def test_tensors_are_kept_as_their_values(value: Tensor) -> None:
    found = through_tree(value)
    assert type(found) is Tensor
    assert not found.requires_grad
    assert differences(found, value.detach().resolve_conj().as_subclass(Tensor)) == []


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.empty(3, device="meta"), "meta"),
        (lambda: torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.quint8), "quint8"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_without_values_of_their_own_are_refused(make: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=rf"^value\[0\] is a tensor whose values cannot be read.*{said}"):
        to_tree([make()])


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1, 2}, Path("/etc"), len, np.arange(3), np.longdouble(1)], ids=lambda v: str(type(v))
)
def test_what_is_no_data_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^value\['a'\] is a .*: only results, tensors and plain values"):
        to_tree({"a": value})


def test_values_that_hold_themselves_are_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="more than 64 deep"):
        to_tree(value)


def test_features_on_disk_are_refused(tmp_path: Path) -> None:
    features = cnnviz.tap_features(network(), loader(), layers=["0"], pool=None, folder=tmp_path)
    with pytest.raises(ValueError, match=r"^Features\.layers\[0\]: the features of layer '0' lie in a file"):
        save(features, tmp_path / "x")
    few = features.among(torch.tensor([1, 4]))
    assert differences(load(save(few, tmp_path / "x")), few) == []


# Files of others.


def patches() -> cnnviz.TopPatches:
    """Small, and the same for ever."""
    numbers = torch.arange(4).reshape(2, 2)
    boxes = torch.tensor([0, 1, 2, 3]).expand(2, 2, 4).clone()
    layer = cnnviz.LayerTopPatches(
        layer="features.0",
        scores=numbers / 4,
        activations=torch.tensor([[0.75, -0.0], [float("inf"), -float("inf")]]),
        images=numbers + 7,
        labels=None,
        rows=numbers,
        columns=numbers.clone(),
        boxes=boxes,
        maxima=torch.tensor([0.75, float("nan")]),
        features=(1,),
        patches=((torch.arange(12).reshape(3, 2, 2) / 16,),),
        nonfinite=2**60,
    )
    source = cnnviz.SourceImage(
        index=9, levels=torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2), low=torch.zeros(3), high=torch.ones(3)
    )
    return cnnviz.TopPatches(layers=(layer,), k=2, indices_known=False, sources=(source,))


def written(path: Path, tree: Any, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    """A file as `save` writes it, of whatever tree."""
    content = {"schema": data.SCHEMA, "version": "0.1.0", "value": tree} | changes
    return raw(path, json.dumps(content), tensors)


def raw(path: Path, text: str, tensors: dict[str, Tensor] | None = None) -> Path:
    safetensors.torch.save_file(tensors or {}, path, metadata={"lightning_cnnviz": text})
    return path


def refused(path: Path, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said) as error:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600
    assert peak < 2**28


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "harm")))
    refused(path, "no safetensors file, or is cut off")
    torch.save(patches().layers[0].scores, path)
    refused(path, "no safetensors file, or is cut off")
    assert not (tmp_path / "harm").exists()


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = save(patches(), tmp_path / "x")
    whole = path.read_bytes()
    for length in [*range(0, 12), *range(12, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path, "cannot be loaded")


@pytest.mark.parametrize(
    ("claimed", "size", "said"),
    [(10_000_000_000, 100, "cut off"), (2**64 - 1, 100, "cut off"), (200_000_000, 300_000_000, "200000000 bytes")],
)
def test_a_header_too_large_is_not_read(claimed: int, size: int, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(claimed.to_bytes(8, "little"))
        file.truncate(size)
    refused(path, said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000 + "]" * 100_000, "recursion|deep"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "recursion|deep"),
        ("[" * 200 + "]" * 200, "more than 64 deep"),
        ("[" + "[]," * 2_000_000 + "1]", "4000004 parts of JSON; at most 64000000 and 4000000 are read"),
        ('"' + "x" * 65_000_000 + '"', "at most 64000000 and 4000000 are read"),
        ("NaN", "the number NaN"),
        ("1" * 5000, "4300 digits"),
    ],
    ids=["lists", "objects", "deep", "nodes", "long", "nan", "digits"],
)
def test_a_tree_too_large_or_too_deep_is_refused(text: str, said: str, tmp_path: Path) -> None:
    refused(raw(tmp_path / "x.safetensors", f'{{"schema": 1, "version": "0", "value": {text}}}'), said)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"type": "os.system", "fields": {"command": "touch harm"}}, "names the type 'os.system'"),
        ({"type": "Monitor", "fields": {}}, "names the type 'Monitor'"),
        ({"type": "Kind", "fields": {}}, "names the type 'Kind'"),
        ({"type": ["Step"], "fields": {}}, r"names the type \['Step'\]"),
        ({"type": "Step", "fields": []}, "has no fields"),
        ({"type": "Step", "fields": {"epoch": 1}}, "Step lacks global_step"),
        ({"type": "Step", "fields": {"epoch": 1, "global_step": 1, "x": 1}}, "Step has no field 'x'"),
        ({"type": "Step", "fields": {"epoch": 0.5, "global_step": 1}}, "Step.epoch is a float, not int"),
        ({"type": "Step", "fields": {"epoch": True, "global_step": 1}}, "Step.epoch is a bool, not int"),
        ({"type": "Scalar", "fields": {"name": "a", "value": None}}, "Scalar.value is a NoneType, not float"),
        ({"type": "LayerFeatures", "fields": {"file": "/etc/passwd"}}, "features name a file"),
        ({"type": "LayerFeatures", "fields": {"_keeper": 1}}, "no field '_keeper'"),
        ({"tensor": "0" * 20}, "tensor 0{20} is not there"),
        ({"tensor": "../../etc/passwd"}, "no name of a tensor"),
        ({"tensor": 3}, "3 is no name of a tensor"),
        ({"tuple": 1, "dict": []}, "stands for no value"),
        ({}, "stands for no value"),
        ({"tuple": 1}, "stands for no value"),
        ({"dict": [[1]]}, "mapping"),
        ({"dict": [[[], 1]]}, "mapping"),
        ({"dict": 3}, "stands for no value"),
        ({"float": "1e5"}, "stands for no value"),
        ({"float": "3ff0000000000000"}, "stands for no value"),
        ({"float": "7ff800000000000100"}, "stands for no value"),
        ({"float": 3}, "stands for no value"),
        ({"int": "zz"}, "stands for no value"),
        ({"fraction": [1, 0]}, "stands for no value"),
        ({"fraction": [1, 2, 3]}, "stands for no value"),
        ({"fraction": [{"str": []}, 1]}, "stands for no value"),
        ({"complex": ["a", 1]}, "stands for no value"),
        ({"str": [-1]}, "stands for no value"),
        ({"str": [2**70]}, "stands for no value"),
        ({"size": ["a"]}, "stands for no value"),
        ({"dtype": "load"}, "stands for no value"),
        ({"dtype": ["a"]}, "stands for no value"),
    ],
)
def test_a_tree_that_is_none_is_refused(tree: Any, said: str, tmp_path: Path) -> None:
    refused(written(tmp_path / "x.safetensors", tree), said)
    refused(written(tmp_path / "x.safetensors", [tree]), said)


@pytest.mark.parametrize("content", ["1", "{}", '{"schema": "1", "value": 1}', '{"schema": 1}', "{"])
def test_a_description_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    refused(raw(tmp_path / "x.safetensors", content), "cannot be loaded")


def test_weights_are_no_result(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.rand(2)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "not written by lightning_cnnviz.save")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda layer: layer.update(layer=5), "layer is a int, not str"),
        (lambda layer: layer.update(scores=0.5), "scores is a float, not Tensor"),
        (lambda layer: layer.update(labels="none"), "labels is a str"),
        (lambda layer: layer.update(scores=layer["maxima"]), r"scores must be \(C, k\)"),
        (lambda layer: layer.update(features={"tuple": [0.5]}), "features is a tuple"),
        (lambda layer: layer.update(features={"tuple": []}), "lists of patches"),
        (lambda layer: layer.update(patches=layer["features"]), "patches is a tuple"),
        (lambda layer: layer.update(boxes=layer["boxes"] | {"as": "float64"}), r"(?s)cannot be loaded"),
        (lambda layer: layer.update(boxes=layer["boxes"] | {"as": "complex128"}), "cannot be read as"),
        (lambda layer: layer.update(boxes=layer["boxes"] | {"as": "load"}), "cannot be read as"),
        (lambda layer: layer.pop("scores"), "lacks scores"),
    ],
)
def test_wrong_fields_are_refused(change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path) -> None:
    tree, tensors = to_tree(patches())
    layers = tree["fields"]["layers"]["tuple"]
    change(layers[0]["fields"])
    refused(written(tmp_path / "x.safetensors", tree, tensors), said)


def test_a_tensor_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = save(patches(), tmp_path / "x")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(path, "is damaged: its content has changed")


@given(draw=st.data())
@settings(max_examples=300)
def test_whatever_is_changed_is_refused_or_read(draw: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    content = bytearray(save(patches(), path).read_bytes())
    for _ in range(draw.draw(st.integers(1, 3))):
        content[draw.draw(st.integers(0, len(content) - 1))] = draw.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        found = load(path)
    except ValueError as error:
        assert "changed.safetensors cannot be loaded" in str(error)  # noqa: PT017
    else:
        assert isinstance(found, cnnviz.TopPatches)


# Other versions.


def test_a_newer_version_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"new": 1}, schema=99, version="0.7.1")
    refused(path, rf"it needs lightning_cnnviz 0\.7\.1 or newer \(schema 99\); this is .* \(schema {data.SCHEMA}\)")


def test_an_older_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"epoch": 1, "global_step": 2, "minutes": {"a kind that is no more": 3}}
    path = written(tmp_path / "x.safetensors", {"type": "Step", "fields": fields})
    refused(path, "no field 'minutes'")
    newer = data.SCHEMA + 1
    for module in (data, _tree):
        monkeypatch.setattr(module, "SCHEMA", newer)
    assert load(path) == report.Step(epoch=1, global_step=2, stage="fit")


def stored() -> dict[str, Any]:
    """What lies in fixtures/version_1.safetensors."""
    half = torch.tensor([[0.5, 1.0]], dtype=torch.float64)
    scores = cnnviz.ProbeScores(
        layer="features.0",
        heads=("softmax",),
        accuracy=half,
        C=half.clone(),
        converged=torch.tensor([[True, False]]),
        dimensions=12,
        classes=3,
        protocol=Protocol(name="few", per_class=5, splits=2, heads=("softmax",), Cs=(0.1, 1.0), paper={"a": "12.5 %"}),
        digest="ab12",
    )
    fit = cnnviz.WindowFit(
        size=8,
        exact=Fraction(7, 2),
        output=3,
        unread=1,
        lost=1,
        overhang=0,
        fitting_sizes=(7, 9),
        fitting_padding=None,
        preserving_padding=1,
    )
    row = cnnviz.LayerRow(
        layer="features.0",
        use=1,
        type="Conv2d",
        kind="conv",
        input_shape=(3, 8, 8),
        output_shape=(4, 3, 3),
        formula="(8 - 3) / 2 + 1 = 3.5, so 3",
        kernel=(3, 3),
        stride=(2, 2),
        padding=(0, 0),
        dilation=(1, 1),
        groups=1,
        parameters=112,
        parameter_formula="4 * (3 * 3 * 3 + 1)",
        shared=False,
        macs=972,
        activation_bytes=144,
        jump=(2.0, 2.0),
        receptive_field=(3, None),
        clipped=False,
        first_center=None,
        fit=(fit, fit),
    )
    pixels = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    crop = report.ImageCrop(pixels=pixels, box=(0, 0, 1, 2), offset=(1, 0), index=3, file="a.png")
    tile = report.Tile(pixels, "one", {"activation": 0.5, "image": 3}, source=crop)
    line = report.Series("mean", x=(0.0, 1.0), y=(0.25, float("nan")))
    items = (
        report.Gallery("features.0", (report.Row("feature 1", (tile,)),), caption="strongest first", columns=1),
        report.Curve("depth", (line,), x_label="layer", y_label="accuracy in %"),
        report.Table("layers", ("name", "size", "tile"), (("a", 3, tile), ("b", None, None))),
        report.Scalar("features.0/dead", 0.125),
        report.Picture("image 3", torch.full((3, 2, 3), 7, dtype=torch.uint8)),
    )
    return {
        "patches": patches(),
        "probe": cnnviz.LayerProbe(scores=(scores,), control=None, images=(10, 6)),
        "table": cnnviz.LayerTable(
            model="Sequential", input_size=(3, 8, 8), rows=(row,), parameters=114, unused=(("a", 2),)
        ),
        "report": report.Report("top_patches", title="Patches", items=items, notes=("A note.",)),
        "classified": Classified(
            targets=torch.tensor([1]),
            labeled=True,
            probabilities=torch.tensor([0.75], dtype=torch.bfloat16),
            predictions=torch.tensor([2]),
            classes=3,
        ),
        "plain": [None, True, 2**80, Fraction(1, 3), 1j, "caf\u00e9 \udcff", {1: ("a",)}, torch.Size([2])],
        "complex": torch.tensor([1 + 2j]),
    }


FIXTURE = Path(__file__).parent / "fixtures" / "version_1.safetensors"  # made by save(stored(), FIXTURE); never again


def test_the_file_of_version_1_is_read_for_ever() -> None:
    assert differences(load(FIXTURE), stored()) == []
    assert FIXTURE.stat().st_size < 30_000


# Writing.


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("old", tmp_path / "x")

    def fails(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="No space left"):
            save("new", path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert load(path) == "old"
    save("new", path)
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
    assert load(path) == "new"


def test_a_reader_beside_a_writer_sees_whole_files(tmp_path: Path) -> None:
    values = [(number, torch.full((50_000,), number)) for number in range(4)]
    path = save(values[0], tmp_path / "x")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for value in values:
                save(value, path)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            number, tensor = load(path)
            assert torch.equal(tensor, values[number][1])
    finally:
        stop.set()
        writer.join()


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.safetensors could not be read again, and is not written"):
        save([0] * 4_000_001, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_saving_changes_nothing(tmp_path: Path) -> None:
    found = patches()
    before = replace(found)
    save(found, tmp_path / "x")
    assert differences(found, before) == []
    loaded = load(tmp_path / "x")
    (tmp_path / "x.safetensors").write_bytes(b"")  # what was loaded does not live in the file
    assert differences(loaded, found) == []
