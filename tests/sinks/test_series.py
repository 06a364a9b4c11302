import math

import pytest

from lightning_cnnviz.report import Scalar
from lightning_cnnviz.sinks.series import distinct, key_part, measured, name_without_layer


def values(*scalars: Scalar, **options: str) -> dict[str, float]:
    return {each.key: each.value for each in measured(scalars, view="view", **options)}


def test_a_key_says_view_monitor_layer_and_number() -> None:
    scalar = Scalar("features.3/svm", 0.5, layer="features.3")
    assert values(scalar) == {"view/features_3/svm": 0.5, "view/svm": 0.5}
    assert "validate/view/ten_classes/features_3/svm" in values(scalar, name="ten classes", stage="validate")
    assert values(Scalar("accuracy", 0.25), stage="test") == {"test/view/accuracy": 0.25}


def test_counts_are_summed_over_layers_and_the_rest_is_averaged_where_measured() -> None:
    scalars = [
        Scalar(f"{layer}/{name}", value, layer=layer)
        for layer, dead, purity in [("a", 3, 0.5), ("b", 4, math.nan), ("c", 0, 1.0)]
        for name, value in [("dead_features", dead), ("label_purity", purity)]
    ]
    found = values(*scalars)
    assert (found["view/dead_features"], found["view/label_purity"]) == (7, 0.75)
    assert "view/b/label_purity" not in found
    assert [each.key for each in measured(scalars, view="view", layers=False)] == [
        "view/dead_features",
        "view/label_purity",
    ]


def test_a_number_of_the_network_is_not_replaced_by_a_mean() -> None:
    assert values(Scalar("accuracy", 0.9), Scalar("a/accuracy", 0.5, layer="a"))["view/accuracy"] == 0.9


def test_infinite_numbers_stay_and_opposite_ones_have_no_mean() -> None:
    scalars = [Scalar(f"{layer}/x", value, layer=layer) for layer, value in [("a", math.inf), ("b", -math.inf)]]
    assert values(*scalars) == {"view/a/x": math.inf, "view/b/x": -math.inf}


@pytest.mark.parametrize(
    ("name", "part"), [("features.0", "features_0"), ("a b/c", "a_b_c"), ("ü\n", "__"), ("", "_"), ("\ud800", "_")]
)
def test_a_part_has_plain_letters_alone(name: str, part: str) -> None:
    assert key_part(name) == part


def test_layers_of_one_plain_name_keep_apart() -> None:
    names = ["a.b", "a_b", "a b", "a-b"]
    assert len(set(distinct(names).values())) == len(names)
    found = values(*(Scalar(f"{layer}/x", at, layer=layer) for at, layer in enumerate(names)))
    assert sorted(found.values()) == [0, 1, 1.5, 2, 3]


@pytest.mark.parametrize(
    ("name", "own"),
    [("conv/svm", "svm"), ("translation/conv/area", "translation/area"), ("conv", "conv"), ("other/x", "other/x")],
)
def test_what_a_number_is_stands_without_its_layer(name: str, own: str) -> None:
    assert name_without_layer(Scalar(name, 0.0, layer="conv")) == own
