import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import torch

from lightning_cnnviz.render.charts import curve_figure, curve_svg, draw_curve
from lightning_cnnviz.report import Curve, Series

NAN = math.nan
COLORS = [(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)]


def curve(count: int = 3, points: int = 50, band: bool = True) -> Curve:
    x = tuple(map(float, range(points)))
    made = []
    for number in range(count):
        y = np.asarray(x) * (number + 1)
        low, high = (tuple((y - 2).tolist()), tuple((y + 2).tolist())) if band else (None, None)
        made.append(Series(f"layer {number}", x=x, y=tuple(y.tolist()), low=low, high=high))
    return Curve(
        "features.0", tuple(made), x_label="translation (pixels)", y_label="distance", caption="Mean of 5 images."
    )


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def lines(svg: str, color: str) -> list[str]:
    """The paths of the lines of one color that were drawn as data, the legend's left out."""
    found = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: ([^;"]*)', svg)
    return [path for path, stroke in found if stroke == color.lower() and path.count("L") > 1]


def test_a_picture_shows_every_series_in_its_color() -> None:
    pixels = draw_curve(curve())
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    assert tuple(pixels[:, 0, 0].tolist()) == (255, 255, 255)
    for color in COLORS:
        here = (pixels == torch.tensor(color, dtype=torch.uint8)[:, None, None]).all(0)
        assert here.any(0).sum() > 300  # a line across the axes, not only its mark in the legend


def test_a_chart_says_what_it_shows() -> None:
    svg = curve_svg(curve())
    expected = {"features.0", "Mean of 5 images.", "translation (pixels)", "distance", "layer 0", "layer 1", "layer 2"}
    assert expected <= set(texts(svg))
    assert 'aria-label="features.0: Mean of 5 images."' in svg


def test_a_single_series_needs_no_legend() -> None:
    assert "layer 0" not in texts(curve_svg(curve(1)))


def test_bands_are_drawn_where_there_are_any() -> None:
    assert curve_svg(curve(band=True)).count("fill-opacity: 0.18") == 3
    assert curve_svg(curve(band=False)).count("fill-opacity: 0.18") == 0


def test_nan_leaves_a_gap() -> None:
    x = tuple(map(float, range(50)))
    gap = tuple(NAN if 20 <= value < 30 else 1.0 for value in x)
    (whole,) = lines(curve_svg(Curve("c", (Series("s", x=x, y=(1.0,) * 50),), x_label="x", y_label="y")), "#0072B2")
    (broken,) = lines(
        curve_svg(Curve("c", (Series("s", x=x, y=gap, low=gap, high=gap),), x_label="x", y_label="y")), "#0072B2"
    )
    assert (whole.count("M"), broken.count("M")) == (1, 2)


def test_a_point_between_two_gaps_is_marked() -> None:
    y = (1.0,) * 40 + (NAN, 1.0, NAN) + (1.0,) * 7

    def marks(values: tuple[float, ...]) -> int:
        series = Series("s", x=tuple(map(float, range(50))), y=values)
        return len(
            re.findall(r'<use [^>]*style="fill: #0072b2', curve_svg(Curve("c", (series,), x_label="x", y_label="y")))
        )

    assert marks(y) == 1
    assert marks((1.0,) * 50) == 0


@pytest.mark.parametrize("series", [(), (Series("s", x=(1.0, 2.0), y=(NAN, NAN)),), (Series("s", x=(), y=()),)])
def test_nothing_measured_never_passes_for_an_empty_picture(series: tuple[Series, ...]) -> None:
    assert "nothing measured" in texts(curve_svg(Curve("c", series, x_label="x", y_label="y")))
    assert draw_curve(Curve("c", series, x_label="x", y_label="y")).shape[0] == 3


def test_whole_numbers_get_whole_ticks() -> None:
    epochs = Curve("c", (Series("s", x=(1, 2, 3), y=(0.1, 0.2, 0.3)),), x_label="epoch", y_label="accuracy")
    below = [text for text in texts(curve_svg(epochs)) if re.fullmatch(r"[\d.]+", text)][:3]
    assert below == ["1", "2", "3"]


def test_the_same_curve_gives_the_same_drawing_in_any_style() -> None:
    svg, pixels = curve_svg(curve()), draw_curve(curve())
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "svg.hashsalt": "other"}):
        assert curve_svg(curve()) == svg
        assert torch.equal(draw_curve(curve()), pixels)


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    draw_curve(curve())
    curve_svg(curve())
    assert dict(matplotlib.rcParams) == before
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert pyplot.get_fignums() == []


def test_an_svg_can_stand_in_a_page() -> None:
    svg = curve_svg(curve())
    assert svg.startswith("<svg ")
    assert "<style" not in svg  # would hold for the page around it
    assert "<metadata" not in svg
    ElementTree.fromstring(svg)


def test_odd_names_are_shown_as_they_are() -> None:
    names = ('$a$ <b> & "c"', "_hidden", "50 %")
    series = tuple(Series(name, x=(1.0, 2.0), y=(1.0, 2.0)) for name in names)
    svg = curve_svg(Curve('<x> "y"', series, x_label="$x$", y_label="y & z", caption="$5 <-> $6"))
    assert {*names, '<x> "y"', "$x$", "y & z", "$5 <-> $6"} <= set(texts(svg))


def test_many_series_and_long_texts_stay_on_the_picture() -> None:
    series = tuple(Series(f"backbone.{n}.a_rather_long_name_of_a_layer", x=(1.0, 2.0), y=(1.0, n)) for n in range(40))
    crowd = Curve("name " * 50, series, x_label="x " * 200, y_label="y " * 200, caption="caption " * 200)
    pixels = draw_curve(crowd)
    edge = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], dim=1)
    assert (edge == 255).all()
    assert "backbone.7.a_r…name_of_a_layer" in " ".join(texts(curve_svg(crowd)))


def test_names_stand_in_place_of_numbers() -> None:
    def named(count: int) -> list[str]:
        places = tuple(float(place) for place in range(1, count + 1))
        series = (Series("softmax", x=places, y=places), Series("chance", x=places, y=(1.0,) * count, reference=True))
        names = tuple(f"layer{place}.conv" for place in range(count))
        svg = curve_svg(Curve("c", series, x_label="layer", y_label="y", x_names=names))
        return [text for text in texts(svg) if text.startswith("layer") and text.endswith("conv")]

    assert named(3) == ["layer0.conv", "layer1.conv", "layer2.conv"]
    assert len(named(24)) == 24
    assert len(named(100)) == 100  # the chart is as wide as they need


def test_on_a_page_of_paper_some_names_stand_evenly() -> None:
    places = tuple(float(place) for place in range(1, 101))
    names = tuple(f"layer{place}.conv" for place in range(100))
    curve = Curve("c", (Series("s", x=places, y=places),), x_label="layer", y_label="y", x_names=names)
    (axes,) = curve_figure(curve, width=6.4).axes
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown == list(names[:: round(100 / len(shown))])
    assert 20 <= len(shown) < 30


@pytest.mark.parametrize(("y", "begins"), [((2.0, 3.0), True), ((0.0, 3.0), False), ((-1.0, 3.0), False)])
def test_a_scale_of_what_is_above_zero_begins_there(y: tuple[float, ...], begins: bool) -> None:
    curve = Curve("c", (Series("s", x=(1.0, 2.0), y=y),), x_label="x", y_label="y")
    (axes,) = curve_figure(curve, width=6.4).axes
    assert bool(axes.get_ylim()[0] == 0) is begins


def test_a_logarithmic_axis_has_its_ticks_where_something_was_measured() -> None:
    counts = (1.0, 3.0, 100.0)
    found = texts(curve_svg(Curve("c", (Series("s", x=counts, y=counts),), x_label="x", y_label="y", x_log=True)))
    assert found[:3] == ["1", "3", "100"]


def test_places_without_a_name_or_a_logarithm_are_refused() -> None:
    series = (Series("s", x=(0.0, 1.0), y=(0.0, 1.0)),)
    with pytest.raises(ValueError, match="names 1 places, and has x"):
        Curve("c", series, x_label="x", y_label="y", x_names=("conv1",))
    with pytest.raises(ValueError, match="on a logarithmic axis"):
        Curve("c", series, x_label="x", y_label="y", x_log=True)
