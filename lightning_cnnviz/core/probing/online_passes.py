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
from lightning_cnnviz.core.probing.online import OnlineProbes, OnlineScores

__all__ = ["OnlineLearner", "OnlineTest"]

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

    @contextmanager
    def batch(self, images: Tensor, labels: Tensor) -> Iterator[None]:
        """Learn from the forward pass that is made inside.

        Leave it before the backward pass: gradient checkpointing runs layers again there.

        Args:
            images: `(N, C, H, W)`.
            labels: `(N,)` int64, below 0 for none: such images are left out.

        Raises:
            ValueError: See `MapReader.reading`, and `OnlineProbes.update`.
        """
        with self._reader.reading(images, watched):
            yield
        known = labels >= 0
        if not bool(known.any()):
            return
        features = {maps.layer: self._reader.values[maps.layer] for maps in self._reader.maps}
        if not bool(known.all()):
            features, labels = {layer: rows[known] for layer, rows in features.items()}, labels[known]
        if self.probes is None:
            self.probes = OnlineProbes({layer: rows.shape[1] for layer, rows in features.items()})
        self.probes.update(features, labels)


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
        self._reader, self._probes = reader, probes
        self._right: list[Tensor] = []  # (N, L) uint8 of each batch: right, or lost since features are not finite
        self._indices: list[Tensor] = []
        self._left_out = torch.empty(0, dtype=torch.int64) if probes is None else probes.left_out

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None) -> Iterator[None]:
        """Test the probes on the forward pass that is made inside; hooks are gone on leaving.

        Args:
            images: `(N, C, H, W)` on the network's device.
            indices: `(N,)` int64.
            labels: `(N,)` int64, below 0 for none: such images are left out.

        Raises:
            ValueError: There are no labels; see `MapReader.reading`.
        """
        if labels is None:
            raise ValueError(NO_LABELS)
        with self._reader.reading(images):
            yield
        if self._probes is not None:
            guesses = self._probes.predict(self._reader.values)
            right = (guesses == labels.to(guesses.device)).to(torch.uint8)
            known = labels.cpu() >= 0
            self._right.append(right.masked_fill(guesses < 0, _LOST).T.cpu()[known])
            self._indices.append(indices.cpu()[known])

    def merge(self) -> None:
        """Bring the ranks together, each of which calls this."""
        if self._probes is None:
            return
        layers = len(self._probes.layers)
        right = torch.cat([torch.empty(0, layers, dtype=torch.uint8), *self._right])
        self._right = gathered(right.contiguous())
        self._indices = gathered(torch.cat([torch.empty(0, dtype=torch.int64), *self._indices]))
        self._left_out = torch.stack(gathered(self._probes.left_out)).sum(0)

    def compute(self) -> OnlineScores:
        """Return the accuracies over all images, each image once; NaN at layers where features are not finite.

        Raises:
            ValueError: There was no image to learn from, or none to be tested on.
        """
        if self._probes is None or not sum(len(indices) for indices in self._indices):
            raise ValueError("online probes had no batch to learn from, or none to be tested on")
        once = first_of_each(torch.cat(self._indices))
        right = torch.cat(self._right)[once]
        return OnlineScores(
            layers=self._probes.layers,
            accuracy=right.double().mean(0).masked_fill((right == _LOST).any(0), torch.nan),
            images=len(once),
            classes=self._probes.classes,
            batches=self._probes.batches,
            left_out=self._left_out,
        )
