import csv
import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.figure
import pytest
import torch
from PIL import Image

from lightning_cnnviz import MemorySink
from lightning_cnnviz.record import ReportFigure
from lightning_cnnviz.render.figures import figure_pixels, new_figure
from lightning_cnnviz.render.vector import figure_svg
from lightning_cnnviz.report import Curve, Gallery, ImageCrop, Picture, Report, Row, Scalar, Series, Step, Table, Tile

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert('x')</script>"


def gallery(name: str = "conv1", rows: int = 4, side: int = 8) -> Gallery:
    def tile(row: int, rank: int) -> Tile:
        pixels = torch.randint(0, 256, (3, side, side), dtype=torch.uint8)
        return Tile(pixels, f"{row + rank / 10:.1f}", {"activation": row + rank / 10, "label": "cat, tabby"})

    lines = tuple(
        Row(f"feature {row}", tuple(tile(row, rank) for rank in range(9)), {"max activation": float(row)})
        for row in range(rows)
    )
    return Gallery(name, lines, caption=f"{rows} of {rows} feature maps", numbers={"dead": 0})


def curve(name: str = "accuracy") -> Curve:
    line = Series("SVM", x=(1, 2, 3), y=(0.25, math.nan, 0.75), low=(0.2, math.nan, 0.7), high=(0.3, math.nan, 0.8))
    return Curve(name, (line, Series("softmax", x=(1, 2), y=(0.5, 0.625))), x_label="layer", y_label="of all images")


def report(*items: Any, **options: Any) -> ReportFigure:
    items = items or (gallery(), curve(), Table("sizes", ("layer", "item"), (("conv1", 23232),)), Scalar("best", 0.5))
    options = {"title": "Top-9 patches", "notes": ("Blue is outside.",), **options}
    return ReportFigure.of(Report("top_patches", items=items, **options))


def pdf_texts(path: Path) -> list[str]:
    pypdf = pytest.importorskip("pypdf")
    return [page.extract_text() for page in pypdf.PdfReader(path).pages]


def svg_texts(path: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_it_is_a_report_that_every_sink_takes() -> None:
    sink, shown = MemorySink(), report()
    sink.write(shown, Step(epoch=1, global_step=10))
    assert sink.reports[0][1] is shown
    assert repr(shown) == (
        "ReportFigure 'Top-9 patches': conv1 (gallery of 4 rows), accuracy (curve), sizes (table of 1 rows), best = 0.5"
    )


# PDF


def test_a_pdf_has_a_page_an_item_and_its_text_is_text(tmp_path: Path) -> None:
    texts = pdf_texts(report().save(tmp_path / "fig.pdf"))
    assert len(texts) == 4
    assert all("Blue is outside." in text for text in texts)
    first, second, third, fourth = texts
    assert all(f"feature {row}" in first for row in range(4))
    assert "Top-9 patches · conv1" in first
    assert "3.8" in first
    assert all(word in second for word in ("accuracy", "SVM", "softmax", "of all images", "layer"))
    assert "23,232" in third
    assert "best" in fourth


def test_every_font_of_a_pdf_is_embedded_as_truetype(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    fonts = []
    for page in pypdf.PdfReader(report().save(tmp_path / "fig.pdf")).pages:
        for font in page["/Resources"].get("/Font", {}).values():
            fonts += [inner.get_object() for inner in font.get_object().get("/DescendantFonts", [font])]
    assert fonts
    assert all(font.get_object()["/Subtype"] in ("/CIDFontType2", "/TrueType") for font in fonts)
    assert all("/FontFile2" in font.get_object()["/FontDescriptor"].get_object() for font in fonts)


def test_pages_have_the_width_that_was_asked_for_and_end_where_a_journals_do(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    path = report(gallery(rows=60), curve()).save(tmp_path / "fig.pdf", width=3.5)
    pages = pypdf.PdfReader(path).pages
    assert {round(float(page.mediabox.width) / 72, 2) for page in pages} == {3.5}
    assert max(float(page.mediabox.height) / 72 for page in pages) < 9.8
    texts = "\n".join(pdf_texts(path)).split("\n")
    assert [f"feature {row}" in texts for row in range(60)] == [True] * 60


def test_tiles_stand_in_a_pdf_as_pictures_of_the_asked_resolution(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    shown = report(gallery(rows=1, side=200))
    (page,) = pypdf.PdfReader(shown.save(tmp_path / "fig.pdf", dpi=300)).pages
    # Three tiles of an inch side by side, a picture a line.
    assert [image.image.size for image in page.images] == [(912, 306)] * 3


# SVG


def test_an_svg_has_every_text_as_text_with_its_letters(tmp_path: Path) -> None:
    path = report().save(tmp_path / "fig.svg")
    texts = svg_texts(path)
    for text in ("Top-9 patches · conv1", "feature 3", "3.8", "accuracy", "SVM", "23,232", "best", "Blue is outside."):
        assert text in texts
    assert texts.count("Blue is outside.") == 1
    assert len(re.findall(r"font-weight: (400|700); src: url\(data:font/woff;base64,", path.read_text())) == 2


def test_ids_of_an_svg_are_unique_and_what_it_refers_to_is_there(tmp_path: Path) -> None:
    text = report(curve("a"), curve("b"), gallery()).save(tmp_path / "fig.svg").read_text()
    groups = re.findall(r'<g id="([^"]*)"', text)
    assert len(groups) == len(set(groups)) > 10
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]*)', text))
    assert wanted <= set(re.findall(r' id="([^"]*)"', text))


def test_an_svg_is_as_wide_as_was_asked_for_and_pictures_are_pictures(tmp_path: Path) -> None:
    root = ElementTree.parse(report(gallery(rows=2)).save(tmp_path / "fig.svg", width=5)).getroot()
    assert root.attrib["width"] == "360.00pt"
    images = list(root.iter(f"{SVG}image"))
    assert len(images) == 2 * 3
    assert all("data:image/png;base64," in image.attrib["{http://www.w3.org/1999/xlink}href"] for image in images)


@pytest.mark.browser
def test_an_svg_is_drawn_with_the_letters_it_brings(tmp_path: Path, browser_page: Any) -> None:
    path = report(title=f"{EVIL} & ½ ≤ Ω").save(tmp_path / "fig.svg")
    browser_page.goto(f"file://{path}")
    browser_page.wait_for_function("document.fonts.status == 'loaded'")
    assert browser_page.evaluate("[...document.fonts].map(font => font.status)") == ["loaded", "loaded"]


# PNG


def test_a_png_has_the_asked_width_and_says_its_resolution(tmp_path: Path) -> None:
    with Image.open(report().save(tmp_path / "fig.png", width=4, dpi=150)) as image:
        assert image.width == 600
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)


def test_small_tiles_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    tile = torch.zeros(3, 2, 2, dtype=torch.uint8)
    tile[:, 0, 0], tile[0, 1, 1] = 200, 100
    path = report(Gallery("g", (Row("", (Tile(tile),)),))).save(tmp_path / "fig.png", titles=False)
    with Image.open(path) as image:
        counted = {color: count for count, color in image.convert("RGB").getcolors() or []}
    # White paper, the gray frame of the tile, and its own three colors.
    assert set(counted) == {(255, 255, 255), (226, 226, 226), (0, 0, 0), (200, 200, 200), (100, 0, 0)}
    assert [counted[200, 200, 200], counted[100, 0, 0], counted[0, 0, 0]] == [150**2, 150**2, 2 * 150**2]


# HTML


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def evil_report() -> ReportFigure:
    tile = Tile(torch.zeros(3, 4, 4, dtype=torch.uint8), EVIL, {EVIL: EVIL})
    line = Series(EVIL, x=(1,), y=(1,))
    return report(
        Gallery(f'"{EVIL}', (Row(EVIL, (tile,), {EVIL: EVIL}),), caption=EVIL, numbers={EVIL: 1.0}),
        Curve(EVIL, (line, line), x_label=EVIL, y_label=EVIL, caption=EVIL),
        Table(EVIL, (EVIL, "tile"), ((EVIL, tile),), caption=EVIL),
        Picture(EVIL, torch.zeros(3, 9, 9, dtype=torch.uint8), caption=f"' onload={EVIL}"),
        Scalar(EVIL, 1.0),
        title=EVIL,
        notes=(EVIL,),
    )


def test_every_text_is_escaped_in_html() -> None:
    found = Tags(evil_report()._repr_html_())
    names = {name for name, _ in found.tags}
    assert "script" not in names
    assert {"svg", "img", "table", "h2"} <= names
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert "".join(found.said).count(EVIL) >= 12


def test_every_text_is_escaped_in_svg_and_written_in_pdf(tmp_path: Path) -> None:
    assert "script" not in {element.tag for element in ElementTree.parse(evil_report().save(tmp_path / "a.svg")).iter()}
    assert all(EVIL in text for text in pdf_texts(evil_report().save(tmp_path / "a.pdf")))


@pytest.mark.parametrize("name", ["\ud800 broken", "漢字", "a\x00b\x07", "$x$ _{y}"])
def test_names_that_no_font_can_show_break_nothing(name: str, tmp_path: Path) -> None:
    tile = Tile(torch.zeros(3, 4, 4, dtype=torch.uint8), name, {name: name})
    line = Series(name, x=(1,), y=(1,))
    shown = report(
        Gallery(name, (Row(name, (tile,)),)),
        Curve(name, (line, line), x_label=name, y_label=name),
        Table(name, (name,), ((name,),)),
        title=name,
        notes=(name,),
    )
    for suffix in ("pdf", "svg", "png", "html", "csv"):
        assert shown.save(tmp_path / f"a.{suffix}").stat().st_size > 50
    ElementTree.parse(tmp_path / "a.svg")
    assert shown._repr_html_().encode()


def test_a_notebook_gets_the_first_rows_and_a_file_all(tmp_path: Path) -> None:
    shown = report(gallery(rows=40))
    part = shown._repr_html_()
    assert "First 32 of 40; a saved file has all." in part
    assert ("feature 31" in part, "feature 32" in part) == (True, False)
    page = shown.save(tmp_path / "fig.html").read_text()
    assert ("feature 39" in page, "First 32" in page) == (True, False)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1600])
def test_a_page_is_readable_on_any_screen_and_asks_for_nothing(
    tmp_path: Path, browser_page: Any, scheme: str, width: int
) -> None:
    names = tuple(f"column {number}" for number in range(30))
    wide = Table("wide", names, (names,))
    strip = Gallery("strip", (Row("r", gallery().rows[0].tiles * 4),), columns=36)
    picture = Picture("panels", torch.zeros(3, 300, 1900, dtype=torch.uint8))
    path = report(gallery(), strip, curve(), wide, picture).save(tmp_path / "fig.html")
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.emulate_media(color_scheme=scheme)
    browser_page.goto(f"file://{path}")
    assert browser_page.evaluate("document.documentElement.scrollWidth") == width
    broken = "[...document.images].filter(image => { image.loading = 'eager'; return !image.naturalWidth }).length"
    browser_page.evaluate("Promise.all([...document.images].map(image => (image.loading = 'eager', image.decode())))")
    assert browser_page.evaluate(broken) == 0
    assert browser_page.evaluate("document.querySelector('.picture').clientWidth") >= 640
    assert contrast(browser_page, "h2", "color") > 7
    assert contrast(browser_page, ".soft", "color") > 4.5
    assert contrast(browser_page, ".chart text", "fill") > 7


@pytest.mark.browser
def test_the_notebooks_theme_counts_and_not_the_systems(tmp_path: Path, browser_page: Any) -> None:
    path = tmp_path / "notebook.html"
    with new_figure(7, 1) as figure:
        figure.add_subplot().plot([0, 1], [0, 1])
        lines = Picture("lines", figure_pixels(figure), svg=figure_svg(figure))
    shown = report(gallery(), curve(), lines)
    for system, light in (("dark", "true"), ("light", "false")):
        path.write_text(f'<body data-jp-theme-light="{light}">{shown._repr_html_()}', encoding="utf-8")
        browser_page.emulate_media(color_scheme=system)
        browser_page.goto(f"file://{path}")
        paper = browser_page.evaluate("getComputedStyle(document.querySelector('.cnnviz')).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 600) is (light == "true")
        with Image.open(io.BytesIO(browser_page.locator(".picture img").screenshot())) as picture:
            assert (sum(picture.convert("RGB").getpixel((4, 4))) > 600) is (light == "true")
        assert contrast(browser_page, "h2", "color") > 7


def contrast(page: Any, selector: str, ink: str) -> float:
    """WCAG's contrast of a text with the paper it stands on."""
    texts = page.evaluate(
        f"[getComputedStyle(document.querySelector('{selector}')).{ink},"
        "getComputedStyle(document.querySelector('.cnnviz')).backgroundColor]"
    )
    lights = []
    for text in texts:
        parts = [int(part) / 255 for part in re.findall(r"\d+", text)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


# CSV


def lines_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_csv_has_every_number_once(tmp_path: Path) -> None:
    lines = lines_of(report().save(tmp_path / "numbers.csv"))
    assert [(line["item"], line["kind"]) for line in lines[:3]] == [
        ("conv1", "gallery"),
        ("conv1", "row"),
        ("conv1", "tile"),
    ]
    tiles = [line for line in lines if line["kind"] == "tile"]
    assert len(tiles) == 4 * 9
    assert tiles[10] | {"group": "feature 1", "place": "2", "activation": "1.1", "label": "cat, tabby"} == tiles[10]
    points = [line for line in lines if line["kind"] == "point"]
    assert [(line["group"], line["x"], line["y"]) for line in points] == [
        ("SVM", "1", "0.25"),
        ("SVM", "2", ""),
        ("SVM", "3", "0.75"),
        ("softmax", "1", "0.5"),
        ("softmax", "2", "0.625"),
    ]
    # The table has a column of the name of one of ours.
    (row,) = [line for line in lines if line["kind"] == "line"]
    assert (row["item"], row["layer"], row["item_"]) == ("sizes", "conv1", "23232")
    assert lines[-1] | {"item": "best", "kind": "scalar", "value": "0.5"} == lines[-1]


def test_the_file_of_the_image_that_a_tile_was_cut_from_is_named(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 4, 4, dtype=torch.uint8)
    crop = ImageCrop(pixels=pixels, box=(0, 0, 2, 2), index=7, file="cats/7.jpg")
    shown = report(Gallery("g", (Row("r", (Tile(pixels[:, :2, :2], source=crop),)),)))
    (line,) = lines_of(shown.save(tmp_path / "a.csv"))
    assert line["file"] == "cats/7.jpg"
    assert "cats/7.jpg" in shown._repr_html_()


# Choosing, and what is refused


def test_items_are_chosen_by_name_in_the_asked_order(tmp_path: Path) -> None:
    lines = lines_of(report().save(tmp_path / "a.csv", item=["best", "sizes"]))
    assert [line["item"] for line in lines] == ["best", "sizes"]
    assert len(pdf_texts(report().save(tmp_path / "a.pdf", item="accuracy"))) == 1


def test_a_name_that_is_not_there_is_refused_with_the_closest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'Top-9 patches' has no item 'conv'. Did you mean 'conv1'\?"):
        report().save(tmp_path / "a.pdf", item="conv")
    with pytest.raises(ValueError, match=r"has no item 'zzz'\. There are conv1, accuracy, sizes, best\."):
        report().figure("zzz")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.jpg' \(a\.jpg\); there are \.pdf, \.svg, \.png, \.html, \.csv"):
        report().save(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"called '' \(a\)"):
        report().save(tmp_path / "a")


@pytest.mark.parametrize("options", [{"width": 0}, {"width": math.nan}, {"dpi": 10}, {"dpi": 10**6}])
def test_sizes_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"width is from 0\.5 to 100 inches and dpi from 30 to 2400"):
        report().save(tmp_path / "a.pdf", **options)


def test_a_report_without_items_has_nothing_to_save(tmp_path: Path) -> None:
    empty = ReportFigure.of(Report("deconvnet", title="Projections", items=()))
    assert "Projections" in empty._repr_html_()
    with pytest.raises(ValueError, match="'Projections' has no items"):
        empty.save(tmp_path / "a.pdf")


def test_empty_items_are_shown_as_empty(tmp_path: Path) -> None:
    shown = report(Gallery("conv1", ()), Gallery("conv2", (Row("feature 0", ()),)), Table("t", ("a",), ()))
    texts = pdf_texts(shown.save(tmp_path / "a.pdf"))
    assert ["Nothing to show." in text for text in texts] == [True, False, True]
    assert shown.save(tmp_path / "a.png").stat().st_size > 0
    assert "feature 0" in shown._repr_html_()


# Files


def test_what_stood_there_stays_until_the_new_file_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "a.csv"
    before = report().save(str(path)).read_bytes()

    def fails(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("lightning_cnnviz.record.figures.os.replace", fails)
        with pytest.raises(OSError, match="disk full"):
            report(Scalar("other", 1.0)).save(path)
    assert [found.name for found in path.parent.iterdir()] == ["a.csv"]
    assert path.read_bytes() == before


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png", "html", "csv"])
def test_the_same_report_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    shown = report()
    first, second = (shown.save(tmp_path / f"{name}.{suffix}").read_bytes() for name in ("a", "b"))
    assert (len(first), hash(first)) == (len(second), hash(second))


def test_titles_can_be_left_to_the_paper(tmp_path: Path) -> None:
    shown = report(curve("first"), curve("second"), gallery())
    text = " ".join(svg_texts(shown.save(tmp_path / "a.svg", titles=False)))
    assert not [word for word in ("Top-9", "first", "second", "Blue", "of 4 feature maps") if word in text]
    assert "feature 3" in text
    assert "SVM" in text


# Figures to go on with


def test_a_figure_to_go_on_with_is_not_pyplots() -> None:
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure = report().figure("accuracy", width=5)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert figure.get_figwidth() == 5
    assert [line.get_color() for line in figure.axes[0].lines] == ["#0072B2", "#D55E00"]
    assert plt.get_fignums() == before
    assert report(gallery(), Scalar("best", 0.5)).figure().get_figwidth() == pytest.approx(7.16)


def test_of_several_items_one_must_be_named() -> None:
    with pytest.raises(ValueError, match="which item of 'Top-9 patches' is to be the figure"):
        report().figure()


def test_a_picture_that_matplotlib_drew_keeps_its_lines_and_letters(tmp_path: Path) -> None:
    drawing = matplotlib.figure.Figure(figsize=(12, 3))
    drawing.add_subplot().set_title("occluded here")
    picture = Picture("image 3", torch.zeros(3, 30, 120, dtype=torch.uint8))
    shown = ReportFigure.of(report(picture, Picture("image 4", picture.pixels)), {"image 3": drawing})
    assert shown.figure("image 3") is drawing
    assert "occluded here" in pdf_texts(shown.save(tmp_path / "a.pdf"))[0]
    root = ElementTree.parse(shown.save(tmp_path / "a.svg")).getroot()
    assert root.attrib["width"] == f"{7.16 * 72:.2f}pt"
    assert "occluded here" in svg_texts(tmp_path / "a.svg")
    with Image.open(shown.save(tmp_path / "a.png")) as image:
        assert image.width == 2148
