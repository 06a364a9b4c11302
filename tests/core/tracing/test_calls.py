from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cnnviz.core.deconvnet import choosing
from lightning_cnnviz.core.tracing import _bounds_rules, _operation_rules, calls
from lightning_cnnviz.core.tracing.calls import Call, OperationReader, Operator, functional_twin, read_operator

aten = torch.ops.aten
KINDS = {name: kind for name, kind in vars(calls).items() if isinstance(kind, frozenset)}

# Not in every version of torch, or not in every build of it.
MAY_BE_ABSENT = {"_upsample_lanczos2d_aa": "new: not in torch 2.6"}

# Why a user has no rule for a kind, or for some of its operations.
BY_AUTOGRAD = "goes back by its own gradient, over whole maps"
POINTWISE = "has no row: it changes values, not sizes"
MOVES = "has no row: it moves values about"
WHOLE = "depends on all of its inputs, which is what holds without a rule"
WITHOUT_RULE: dict[str, dict[str, str]] = {
    "receptive field": {
        "RECTIFIED_CONVOLUTIONS": "runs in graphs that torch.jit has optimized only; taken as a whole, for safety",
        "POOLS_BY_INDEX": WHOLE,
        "SUMS": "pointwise by its tag",
        "PRODUCTS": "pointwise by its tag",
        "RECTIFIERS": "pointwise by its tag, or by UNTAGGED_POINTWISE",
        "CLAMPS": "pointwise by its tag, or by UNTAGGED_POINTWISE",
        "THRESHOLDS": "pointwise by its tag, or by UNTAGGED_POINTWISE",
        "UNTAGGED_POINTWISE": "pointwise by this list",
        "CONSTANTS": "reaches nothing, before any rule is asked",
        "FILLS": "reaches nothing, before any rule is asked",
    },
    "layer table": {
        "BATCH_NORMS": "a row of kind norm comes of its parameters",
        "LAYER_NORMS": "a row of kind norm comes of its parameters",
        "GROUP_NORMS": "a row of kind norm comes of its parameters",
        **dict.fromkeys(["UNFOLDINGS", "FOLDINGS", "COMPLEX_VIEWS"], MOVES),
        **dict.fromkeys(["SAMPLERS", "FOURIER_TRANSFORMS", "RUNNING"], POINTWISE),
        "POOLS_BY_INDEX": "their windows lie where chance or other values say: no arithmetic",
        "div": POINTWISE,
        **dict.fromkeys(
            ["COPIES", "RESHAPES", "PERMUTATIONS", "SPLITS", "SLICES", "OTHER_MOVES", "WRITES_AT_PLACES"], MOVES
        ),
        **dict.fromkeys(["RECTIFIERS", "CLAMPS", "THRESHOLDS", "UNTAGGED_POINTWISE", "TRIANGLES"], POINTWISE),
        **dict.fromkeys(calls.REDUCTIONS - {"mean", "amax"}, "is no pooling"),
        "ALONG_A_LINE": POINTWISE,
        "CONSTANTS": "does not depend on the image",
        "FILLS": "does not depend on the image",
    },
    "projection": {
        **dict.fromkeys(["LAYER_NORMS", "GROUP_NORMS", "POOLS_3D", "ADAPTIVE_POOLS", "POOLS_BY_INDEX"], BY_AUTOGRAD),
        **dict.fromkeys(["NEAREST_UPSAMPLINGS", "INTERPOLATIONS", "EDGE_PADS", "OTHER_MOVES"], BY_AUTOGRAD),
        **dict.fromkeys(["REDUCTIONS", "ALONG_A_LINE", "ATTENTIONS", "FOURIER_TRANSFORMS"], BY_AUTOGRAD),
        **dict.fromkeys(["ADAPTIVE_POOLS_3D", "UNFOLDINGS", "FOLDINGS", "SAMPLERS"], BY_AUTOGRAD),
        **dict.fromkeys(["RUNNING", "COMPLEX_VIEWS", "TRIANGLES", "WRITES_AT_PLACES"], BY_AUTOGRAD),
        **dict.fromkeys(["MATRIX_PRODUCTS", "MATRIX_PRODUCTS_ADDED"], BY_AUTOGRAD),
        "mkldnn_max_pool2d": "its tensors have no places to put switches in; goes back by its own gradient",
        "stack": BY_AUTOGRAD,
        "native_dropout": "a product with a mask, in training only; goes back by its own gradient",
        "CONSTANTS": "ends the way back, before any rule is asked",
        "FILLS": "a gradient of zero, by autograd",
    },
}
USERS: dict[str, Collection[str]] = {
    "receptive field": _bounds_rules.RULES,
    "layer table": _operation_rules.RULES,
    "projection": choosing.RULES,
}


def missing(kinds: Mapping[str, Collection[str]], rules: Collection[str], reasons: Mapping[str, str]) -> list[str]:
    """Operations that have neither a rule nor a reason."""
    return [
        f"{kind}: {name}"
        for kind, names in kinds.items()
        for name in sorted(names)
        if name not in rules and name not in reasons and kind not in reasons
    ]


def idle(kinds: Mapping[str, Collection[str]], rules: Collection[str], reasons: Mapping[str, str]) -> list[str]:
    """Reasons that excuse nothing: all that they speak of have a rule, or do not exist."""
    return [reason for reason in reasons if all(name in rules for name in kinds.get(reason, [reason]))]


@pytest.mark.parametrize("user", USERS)
def test_each_operation_has_a_rule_or_a_stated_reason(user: str) -> None:
    assert not missing(KINDS, USERS[user], WITHOUT_RULE[user])
    assert not idle(KINDS, USERS[user], WITHOUT_RULE[user])


@pytest.mark.parametrize("user", USERS)
def test_no_rule_is_for_an_operation_that_is_in_no_list(user: str) -> None:
    listed = {name for kind in KINDS.values() for name in kind}
    alone = {"as_strided", "copy", "neg", "torchvision::deform_conv2d"}  # one operation each, under one name
    assert set(USERS[user]) - listed <= alone


def test_the_walk_over_the_lists_can_fail() -> None:
    kinds = {**KINDS, "NEW": {"new_thing"}, "OLD": {"mm"}}
    assert missing(kinds, USERS["layer table"], WITHOUT_RULE["layer table"]) == ["NEW: new_thing"]
    without = {name: reason for name, reason in WITHOUT_RULE["projection"].items() if name != "stack"}
    assert missing(KINDS, USERS["projection"], without) == ["JOINS: stack"]
    assert idle(kinds, USERS["layer table"], {"OLD": "none", "CONVOLUTIONS": "none", "div": "one"}) == [
        "OLD",
        "CONVOLUTIONS",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_listed_operations_exist_and_are_not_made_of_others(kind: str) -> None:
    assert KINDS[kind]
    for name in KINDS[kind]:
        packet = getattr(aten, name, None)
        if packet is None:
            assert name in MAY_BE_ABSENT
            continue
        overloads = [getattr(packet, overload) for overload in packet.overloads() if overload not in ("t", "str")]
        # One that torch makes of others is never handed on under its own name: a rule for it would be dead.
        assert not all(read_operator(overload).composite for overload in overloads), name


def test_what_a_name_is() -> None:
    for func, name, in_place, writes in [
        (aten.add.Tensor, "add", False, False),
        (aten.add_.Tensor, "add", True, True),
        (aten.add.out, "add", False, True),
        (aten.unsqueeze_.default, "unsqueeze", True, False),  # it writes to no values
        (aten.__and__.Tensor, "__and__", False, False),
        (aten._native_batch_norm_legit.default, "_native_batch_norm_legit", False, False),  # to its statistics alone
        (torch.ops.prims.sin.default, "prims::sin", False, False),
    ]:
        operator = read_operator(func)
        assert (operator.name, operator.in_place, operator.writes) == (name, in_place, writes)
    assert read_operator(aten.cat.out).written_to == {"out"}


def test_functional_twins() -> None:
    assert functional_twin(aten.mul_.Scalar) is aten.mul.Scalar
    assert functional_twin(aten.native_batch_norm.out) is aten.native_batch_norm.default
    assert functional_twin(aten.relu.default) is aten.relu.default
    assert functional_twin(aten.set_.source_Storage) is aten.set.source_Storage
    assert functional_twin(aten.retain_grad.default) is None


class Log(OperationReader):
    """Keeps what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Call] = []

    def on_operation(self, operator: Operator, args: Any, kwargs: Any) -> Any:
        given = calls.input_tensors(operator, args, kwargs)
        self.read.append(Call(operator, args, calls.without_results(operator, kwargs), given))
        return operator.func(*args, **kwargs)


def read(function: Callable[[], Any], *, inference: bool = False) -> list[Call]:
    log = Log()
    with torch.inference_mode(inference), torch.no_grad(), log:
        function()
    return log.read


x, weight = torch.rand(1, 4, 9, 9), torch.rand(6, 2, 3, 3)


def test_an_argument_is_found_by_its_name_wherever_it_is_given() -> None:
    (call,) = read(lambda: aten.convolution.default(x, weight, None, [2, 1], [1], [1, 1], False, [0], groups=2))
    assert call.argument("groups") == 2
    assert call.argument("weight") is weight
    assert call.argument("bias", "given as None") is None
    assert call.argument("no such argument", 3) == 3
    assert call.numbers("padding", 2) == (1, 1)
    assert call.window(2) == call.window_2d == ((3, 3), (2, 1), (1, 1), (1, 1))
    (call,) = read(lambda: aten.add.Tensor(x, x))
    assert call.argument("alpha", 5) == 1  # the schema's own default
    assert not call.only_first


@pytest.mark.parametrize(
    ("pool", "window"),
    [
        (lambda: F.max_pool2d(x, 3), ((3, 3), (3, 3), (0, 0), (1, 1))),
        (lambda: F.max_pool2d(x, (2, 3), 2, (0, 1), (1, 2)), ((2, 3), (2, 2), (0, 1), (1, 2))),
        (lambda: F.avg_pool2d(x, 2, (1, 2)), ((2, 2), (1, 2), (0, 0), (1, 1))),
    ],
)
def test_windows_of_pooling(pool: Callable[[], Tensor], window: Any) -> None:
    assert read(pool)[-1].window_2d == window


@pytest.mark.parametrize(
    ("function", "transposed"),
    [
        (lambda: F.conv2d(x, weight, groups=2), False),
        (lambda: F.conv_transpose2d(x, torch.rand(4, 2, 3, 3)), True),
        (lambda: aten.slow_conv_transpose2d.default(x, torch.rand(4, 2, 3, 3), [3, 3]), True),
    ],
)
def test_transposed_convolutions_under_any_name(function: Callable[[], Tensor], transposed: bool) -> None:
    assert read(function)[-1].is_transposed is transposed


def test_batch_statistics_under_any_name() -> None:
    mean, var = torch.zeros(4), torch.ones(4)
    for function, anew in [
        (lambda: F.batch_norm(x, mean, var), False),
        (lambda: F.batch_norm(x, mean.clone(), var.clone(), training=True), True),
        (lambda: F.instance_norm(x), True),
        (lambda: aten._batch_norm_no_update.default(x, None, None, mean, var, 0.1, 1e-5), False),
        (lambda: aten._batch_norm_with_update.default(x, None, None, mean.clone(), var.clone(), 0.1, 1e-5), True),
    ]:
        call = next(call for call in read(function) if call.name in calls.BATCH_NORMS)
        assert call.uses_batch_statistics is anew


def test_in_inference_mode_the_same_operations_are_read() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU6(), nn.MaxPool2d(2), nn.SELU(), nn.Dropout())
    network.extend([nn.PReLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Flatten(), nn.Linear(144, 2)]).eval()
    names = [call.name for call in read(lambda: network(x)) if call.name != "empty"]
    assert names == [call.name for call in read(lambda: network(x), inference=True) if call.name != "empty"]
    assert set(names) >= {"convolution", "native_batch_norm", "hardtanh", "elu", "max_pool2d_with_indices", "addmm"}


def test_results_that_are_given_are_no_inputs() -> None:
    out = torch.empty(2, 4, 9, 9)
    (call,) = read(lambda: torch.cat([x, x], out=out))
    assert all(tensor is x for tensor in call.dependent)
    assert call.kwargs == {}
    torch.testing.assert_close(call.functional(*call.args), out)
