"""The sections of a workspace, in the order in which a network is read: which keys stand where, and as what."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lightning_cnnviz.render.how_to_read import HOW_TO_READ

__all__ = ["SECTIONS", "Panel", "Section", "chosen_sections", "how_to_read", "sections_text"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What one panel shows.

    Attributes:
        kind: `"numbers"` over epochs, the newest `"chart"` or `"table"`, or `"pictures"` with a slider over looks.
        title: What stands above it.
        keys: Of the run; of charts and tables one.
        x: What a chart's axis is.
    """

    kind: Literal["numbers", "chart", "table", "pictures"]
    title: str
    keys: tuple[str, ...]
    x: str = "layer, in order of depth"

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its keys are of."""
        parts = (key.removeprefix("test/").split("/")[0] for key in self.keys)
        return tuple(dict.fromkeys(parts))


@dataclass(frozen=True, kw_only=True)
class Section:
    """Panels that are read together.

    Attributes:
        name: Its heading.
        asks: The question that it answers.
        panels: In reading order.
        is_open: Whether its panels are seen at once.
    """

    name: str
    asks: str
    panels: tuple[Panel, ...]
    is_open: bool = False

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its panels show."""
        return tuple(dict.fromkeys(view for panel in self.panels for view in panel.views))


def _numbers(title: str, *keys: str) -> Panel:
    return Panel(kind="numbers", title=title, keys=keys)


def _chart(title: str, key: str, **axis: str) -> Panel:
    return Panel(kind="chart", title=title, keys=(key,), **axis)


def _table(title: str, key: str) -> Panel:
    return Panel(kind="table", title=title, keys=(key,))


def _pictures(title: str, key: str) -> Panel:
    return Panel(kind="pictures", title=title, keys=(key,))


SECTIONS: tuple[Section, ...] = (
    Section(
        name="Health",
        asks="Does the network still learn, and does all of it take part?",
        is_open=True,
        panels=(
            _numbers("Feature maps that never fire", "top_patches/dead_features"),
            _numbers("Feature maps keep their images", "top_patches/stability"),
            _numbers("Patches of one class", "top_patches/label_purity"),
            _numbers("Probes, mean over layers", "layer_probe/svm", "layer_probe/softmax", "online_probe/accuracy"),
            _numbers("Redundant channels", "correlation/redundant"),
            _numbers("First filters", "filters/dominant_fraction", "filters/near_zero_fraction"),
            _numbers("RMS of the first filters", "filters/max_rms", "filters/median_rms"),
        ),
    ),
    Section(
        name="Probes by depth",
        asks="Where in the network can the classes be told apart?",
        is_open=True,
        panels=(
            _chart("Probes by depth, with one standard deviation", "layer_probe/accuracy_by_depth"),
            _chart("Probes that learn along, by depth", "online_probe/accuracy_by_depth"),
            _table("Probes, layer by layer", "layer_probe/layers"),
            _table("Probes that learn along, layer by layer", "online_probe/layers"),
        ),
    ),
    Section(
        name="Patches and projections",
        asks="What drives each feature map, and what in it?",
        is_open=True,
        panels=(
            _pictures("Strongest patches", "top_patches/pictures"),
            _pictures("Projected to pixels", "deconvnet/pictures"),
            _pictures("Projections, look by look", "deconvnet/evolution"),
            _pictures("Feature maps of one image", "activation_maps/pictures"),
            _pictures("Filters", "filters/pictures"),
            _chart("RMS of the filters", "filters/rms", x="filters, strongest first"),
            _chart("Feature maps that never fire, by depth", "top_patches/dead_fraction_by_depth"),
            _chart("Stability by depth", "top_patches/stability_by_depth"),
            _chart("Purity by depth", "top_patches/label_purity_by_depth"),
            _table("Feature maps, layer by layer", "top_patches/layers"),
            _table("Strongest units", "top_patches/table"),
        ),
    ),
    Section(
        name="Invariance",
        asks="How far may an image be shifted, scaled and turned?",
        panels=(
            _pictures("The probability along each transform, image by image", "invariance/pictures"),
            _pictures("Features along each transform, image by image", "invariance/distances"),
            _chart("How far features move, by depth", "invariance/area_relative_by_depth"),
            _numbers(
                "How far features move",
                *(f"invariance/{name}/area_relative" for name in ("translation", "scale", "rotation")),
            ),
            _numbers(
                "Probability of the true class",
                *(f"invariance/{name}/p_true/area" for name in ("translation", "scale", "rotation")),
            ),
            _table("Every number", "invariance/layers"),
        ),
    ),
    Section(
        name="Occlusion and attribution",
        asks="Which part of an image does the answer depend on?",
        panels=(
            _pictures("What an occluder does", "occlusion/pictures"),
            _pictures("What speaks for the class", "attribution/gradcam"),
            _numbers("Largest drop by an occluder", "occlusion/largest_drop", "occlusion/p_true/largest_drop"),
            _numbers("Places where the class stays the most probable", "occlusion/p_true/most_probable_share"),
        ),
    ),
    Section(
        name="Maximization",
        asks="What would the network itself draw?",
        panels=(
            _pictures("Inputs that maximize feature maps", "maximization/pictures"),
            _pictures("Inputs that maximize classes", "maximization/classes"),
            _pictures("An optimum while it is turned", "maximization/invariance_pictures"),
            _numbers("Against the strongest real images", "maximization/of_strongest_real"),
            _chart("The same by depth", "maximization/of_strongest_real_by_depth"),
            _chart("Activation step by step", "maximization/steps", x="step"),
            _chart(
                "Activation while the optimum is turned",
                "maximization/invariance",
                x="angle from the optimum, in degrees",
            ),
            _table("Layer by layer", "maximization/layers"),
        ),
    ),
    Section(
        name="Architecture",
        asks="What is the network made of, and is there too much of it?",
        panels=(
            _table("Layers", "layer_table/layers"),
            _table("Where rows and columns are lost", "layer_table/does_not_fit"),
            _pictures("Channels that go together", "correlation/pictures"),
            _chart("Redundant channels by depth", "correlation/redundant_by_depth"),
            _table("Pairs of channels that are most alike", "correlation/most_correlated"),
            _table("Redundant channels, layer by layer", "correlation/layers"),
            _table("What each key shows", "cnnviz/legend"),
            _pictures("The page of the newest looks", "cnnviz/page"),
        ),
    ),
    Section(
        name="Study",
        asks="What do images and layers do for accuracy?",
        panels=(
            _chart(
                "Accuracy against images a class",
                "test/sample_efficiency/accuracy_by_images",
                x="training images a class",
            ),
            _table("Accuracy by images a class", "test/sample_efficiency/accuracy"),
            _table("The same as numbers", "test/sample_efficiency/numbers"),
            _table("What layers are worth", "test/ablation/variants"),
            _table("What layers are worth, as numbers", "test/ablation/numbers"),
            _table("What was done to the layers", "test/ablation/changes"),
        ),
    ),
)
"""All sections, with the keys of monitors without a name, in fit; a study's keys are those of its summary run."""


def chosen_sections(views: Iterable[str] | None = None, *, prefix: str = "") -> tuple[Section, ...]:
    """Return the sections, with what shows some views alone.

    Args:
        views: By default all.
        prefix: What stands before every key, as `WandbLogger(prefix=...)`, or the stage `"test"`.

    Raises:
        ValueError: No section shows such a view.
    """
    there = list(dict.fromkeys(view for section in SECTIONS for view in section.views if view != "cnnviz"))
    wanted = there if views is None else list(views)
    wrong = [view for view in wanted if view not in there]
    if wrong:
        raise ValueError(f"no panel shows {', '.join(map(repr, wrong))}; there are {', '.join(there)}")
    sections = []
    for section in SECTIONS:
        panels = [panel for panel in section.panels if {*panel.views} & {*wanted, "cnnviz"}]
        kept = tuple(_with_prefix(panel, wanted, prefix) for panel in panels)
        if any(panel.views != ("cnnviz",) for panel in panels):
            sections.append(replace(section, panels=kept))
    return tuple(sections)


def _with_prefix(panel: Panel, views: Sequence[str], prefix: str) -> Panel:
    kept = [key for key in panel.keys if {*Panel(kind=panel.kind, title="", keys=(key,)).views} & {*views, "cnnviz"}]
    return replace(panel, keys=tuple(f"{prefix}/{key}" if prefix else key for key in kept))


def sections_text(sections: Sequence[Section], *, explained: bool = False) -> str:
    r"""Return sections for a terminal; on wish with how to read what they show.

    Example:
        >>> print(sections_text(chosen_sections(["online_probe"])).split("\n\n")[0])
        Health: Does the network still learn, and does all of it take part?
          Probes, mean over layers
            numbers   online_probe/accuracy
    """
    parts = []
    for section in sections:
        lines = [f"{section.name}: {section.asks}"]
        for paragraph in how_to_read(section) if explained else ():
            lines += textwrap.wrap(paragraph, 110, initial_indent="  ", subsequent_indent="  ")
        for panel in section.panels:
            lines += [f"  {panel.title}", *(f"    {panel.kind:<9} {key}" for key in panel.keys)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def how_to_read(section: Section) -> list[str]:
    """Return a paragraph for each view of a section: what it shows, how it is made, what it cannot tell."""
    texts = {view: HOW_TO_READ[view] for view in section.views if view in HOW_TO_READ}
    return [f"{view.replace('_', ' ').capitalize()}: {text}" for view, text in texts.items()]
