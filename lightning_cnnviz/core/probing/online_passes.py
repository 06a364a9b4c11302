"""Passes that online probes learn from and are tested on, whoever makes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_cnnviz.core.data.distributed import gathered
from lightning_cnnviz.core.network.hooks import watched
from lightning_cnnviz.core.probing.dataset import NO_LABELS
from lightning_cnnviz.core.probing.features import first_of_each
from lightning_cnnviz.core.probing.map_reader import MapReader
from lightning_cnnviz.core.probing.measures import average_precision, mean_of, r2_scores
from lightning_cnnviz.core.probing.online import OnlineKind, OnlineProbes, OnlineScores, kind_of
from lightning_cnnviz.core.probing.probed import Measure
from lightning_cnnviz.core.probing.targets import draw_pixels, have_targets, pixel_numbers, settled_targets

__all__ = ["OnlineLearner", "OnlineTest", "as_kind"]

_LOST = 2


class OnlineLearner:
    """Lets online probes learn from training steps.

        with learner.batch(images, labels):
            network(images)  # and whatever else the step does, up to its backward pass

    Args:
        reader: Of the features that the probes learn from.
        probes: To go on with; by default new ones.

    Attributes:
        probes: None before the first step.
    """

    def __init__(self, reader: MapReader, probes: OnlineProbes | None = None) -> None:
        self._reader, self.probes = reader, probes
        self._seen = 0

    @contextmanager
    def batch(self, images: Tensor, targets: Tensor) -> Iterator[None]:
        """Learn from the forward pass that is made inside.

        Leave it before the backward pass: gradient checkpointing runs layers again there.

        Args:
            images: `(N, C, H, W)`.
            targets: What `probe_targets` made of the labels; images that have none are left out. Of maps of classes,
                some pixels are learned from, see `draw_pixels`.

        Raises:
            ValueError: See `MapReader.reading`, and `OnlineProbes.update`.
        """
        places, targets = _pixels(targets, torch.arange(self._seen, self._seen + len(images)))
        self._seen += len(images)
        with self._reader.reading(images, watched, places=places):
            yield
        known = have_targets(targets)
        if not bool(known.any()):
            return
        features = {maps.layer: self._reader.values[maps.layer] for maps in self._reader.maps}
        if not bool(known.all()):
            there = known.to(next(iter(features.values())).device)
            features, targets = {layer: rows[there] for layer, rows in features.items()}, targets[known]
        targets = self._in_kind(targets)
        if self.probes is None:
            sizes = {layer: rows.shape[1] for layer, rows in features.items()}
            self.probes = OnlineProbes(sizes, kind_of(targets))
        self.probes.update(features, targets)

    def _in_kind(self, targets: Tensor) -> Tensor:
        """Targets as the probes learn them; they begin anew where zeros and ones turn out to be values."""
        if self.probes is not None and self.probes.kind == "values":
            return as_kind(targets, "values")
        if targets.ndim == 2 and targets.shape[1] == 1:
            targets = settled_targets(targets)
        if self.probes is not None and kind_of(targets) != self.probes.kind:
            if kind_of(targets) != "values":
                raise ValueError(f"labels are of {kind_of(targets)}, where they were of {self.probes.kind}")
            self.probes = None
        return targets


class OnlineTest:
    """Tests online probes, batch by batch, in passes that somebody else makes.

        with test.batch(images, indices, labels):
            network(images)

    On several ranks, probes should be one and the same by then: see `OnlineProbes.average`.

    Args:
        reader: Of the features that the probes have learned from.
        probes: None where there are none yet: then features are read, and there is no result.
    """

    def __init__(self, reader: MapReader, probes: OnlineProbes | None) -> None:
        self._reader, self._probes, self._pixels = reader, probes, 0
        # Of each batch (N, L) uint8: right, or lost since features are not finite; or scores (N, L, K), and targets.
        self._said: list[Tensor] = []
        self._wanted: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._left_out = torch.empty(0, dtype=torch.int64) if probes is None else probes.left_out

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> Iterator[None]:
        """Test the probes on the forward pass that is made inside; hooks are gone on leaving.

        Args:
            images: `(N, C, H, W)` on the network's device.
            indices: `(N,)` int64.
            labels: What `probe_targets` made of them; images that have none are left out.

        Raises:
            ValueError: There are no labels, or labels of another form than were learned; see `MapReader.reading`.
        """
        if labels is None:
            raise ValueError(NO_LABELS)
        places, targets = _pixels(labels.cpu(), indices)
        with self._reader.reading(images, places=places):
            yield
        if self._probes is None:
            return
        if places is not None:
            self._pixels = places.shape[1]
            indices = pixel_numbers(indices.cpu(), self._pixels)
        known = have_targets(targets)
        self._indices.append(indices.cpu()[known])
        targets = as_kind(targets[known], self._probes.kind)
        scores = self._probes.scores(self._reader.values).transpose(0, 1).cpu()[known]
        if self._probes.kind == "classes":
            right = (scores.argmax(-1) == targets[:, None]).to(torch.uint8)
            self._said.append(right.masked_fill(scores[..., 0].isnan(), _LOST))
        else:
            self._said.append(scores)
            self._wanted.append(targets.float())

    def merge(self) -> None:
        """Bring the ranks together, each of which calls this."""
        if self._probes is None:
            return
        layers, count = len(self._probes.layers), self._probes.classes
        if self._probes.kind == "classes":
            self._said = gathered(torch.cat([torch.empty(0, layers, dtype=torch.uint8), *self._said]).contiguous())
        else:
            self._said = gathered(torch.cat([torch.empty(0, layers, count), *self._said]).contiguous())
            self._wanted = gathered(torch.cat([torch.empty(0, count), *self._wanted]))
        self._indices = gathered(torch.cat([torch.empty(0, dtype=torch.int64), *self._indices]))
        self._pixels = max(int(count) for count in gathered(torch.tensor(self._pixels)))
        self._left_out = torch.stack(gathered(self._probes.left_out)).sum(0)

    def compute(self) -> OnlineScores:
        """Return the measure over all images, each image once; NaN at layers where features are not finite.

        Raises:
            ValueError: There was no image to learn from, or none to be tested on.
        """
        if self._probes is None or not sum(len(indices) for indices in self._indices):
            raise ValueError("online probes had no batch to learn from, or none to be tested on")
        once = first_of_each(torch.cat(self._indices))
        said = torch.cat(self._said)[once]
        measure, values, chance = self._measured(said, once)
        images = torch.cat(self._indices)[once] // max(self._pixels, 1)
        return OnlineScores(
            layers=self._probes.layers,
            accuracy=values,
            images=len(images.unique()),
            classes=self._probes.classes,
            batches=self._probes.batches,
            left_out=self._left_out,
            measure=measure,
            chance=chance,
            pixels=self._pixels,
        )

    def _measured(self, said: Tensor, once: Tensor) -> tuple[Measure, Tensor, float]:
        """What is measured, of each layer, and by chance."""
        assert self._probes is not None
        if self._probes.kind == "classes":
            right = said.double().mean(0).masked_fill((said == _LOST).any(0), torch.nan)
            return "accuracy", right, 1 / self._probes.classes
        wanted = torch.cat(self._wanted)[once]
        values = self._probes.kind == "values"
        each = r2_scores if values else average_precision
        means = [
            torch.nan if bool(scores.isnan().any()) else mean_of(each(scores, wanted)) for scores in said.unbind(1)
        ]
        varies = wanted.amin(0) != wanted.amax(0)
        chance = 0.0 if values else float(wanted[:, varies].double().mean())
        return "R2" if values else "mean average precision", torch.tensor(means, dtype=torch.float64), chance


def as_kind(targets: Tensor, kind: OnlineKind) -> Tensor:
    """Return targets as probes of a kind take them.

    Raises:
        ValueError: They are of another kind.

    Example:
        >>> as_kind(torch.tensor([[1.0], [0.0]]), "classes")
        tensor([1, 0])
    """
    if kind == "values":
        return targets.float().view(len(targets), -1)
    if kind == "classes" and targets.ndim == 2 and targets.shape[1] == 1:
        targets = settled_targets(targets)
    if kind_of(targets) != kind:
        raise ValueError(f"labels are of {kind_of(targets)}, but probes have learned to tell {kind}")
    return targets


def _pixels(targets: Tensor, numbers: Tensor) -> tuple[Tensor | None, Tensor]:
    """Of maps: the places of some pixels, and their classes."""
    if targets.ndim < 3:
        return None, targets
    drawn = draw_pixels(targets, numbers)
    return drawn.places, drawn.classes.flatten()
