"""What the labels of all images together say is to be told, and the splits that suit it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_cnnviz.core.probing.image_splits import draw_image_splits
from lightning_cnnviz.core.probing.probed import Probed, ProbedClasses, ProbedLabels, ProbedValues
from lightning_cnnviz.core.probing.protocols import Manifest, Protocol, check_classes, draw_splits
from lightning_cnnviz.core.probing.targets import have_targets, probe_targets, settled_targets

__all__ = ["drawn_splits", "probed_of", "settled"]


def settled(labels: Tensor, test_labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the targets of training and test images, of one form, see `settled_targets`.

    Raises:
        ValueError: They have different forms, or one that probes do not learn from.
    """
    labels = _formed(labels)
    if test_labels is None:
        return settled_targets(labels), None
    test_labels = _formed(test_labels)
    if labels.shape[1:] != test_labels.shape[1:]:
        raise ValueError(
            f"labels to learn from are {labels.dtype} of shape {tuple(labels.shape)}, those to test on "
            f"{test_labels.dtype} of shape {tuple(test_labels.shape)}: give both in one form"
        )
    if labels.ndim == 1:
        return labels, test_labels
    both = settled_targets(torch.cat([labels, test_labels]))
    return both[: len(labels)], both[len(labels) :]


def drawn_splits(
    targets: Tensor,
    protocol: Protocol,
    *,
    indices: Tensor | None = None,
    test_targets: Tensor | None = None,
    test_indices: Tensor | None = None,
    pixels: int = 0,
) -> Manifest:
    """Draw splits: of classes of images class by class, else by image; see `draw_splits` and `draw_image_splits`.

    Args:
        targets: What `settled` returned.
        protocol: See there.
        indices: `(N,)` data-set indices; by default places.
        test_targets: Of a test set of its own.
        test_indices: Likewise.
        pixels: As `Features.pixels`.
    """
    if targets.ndim == 1 and not pixels:
        return draw_splits(targets, protocol, indices=indices, test_labels=test_targets, test_indices=test_indices)
    images = torch.arange(len(targets)) if indices is None else indices
    tested = test_indices
    if tested is None and test_targets is not None:
        tested = torch.arange(len(test_targets))
    step = max(pixels, 1)
    drawn = draw_image_splits(images // step, protocol, test_images=None if tested is None else tested // step)
    if targets.ndim == 2 or test_targets is None:
        return drawn
    # Pixels of a class that no probe has learned are not asked for.
    known = torch.isin(test_targets, targets)
    return replace(drawn, splits=tuple(replace(one, test=one.test[known[one.test]]) for one in drawn.splits))


def probed_of(targets: Tensor, test_targets: Tensor | None, protocol: Protocol) -> tuple[Probed, Tensor, Tensor | None]:
    """Return what is told, and the targets as it takes them.

    Args:
        targets: What `settled` returned.
        test_targets: Of a test set of its own.
        protocol: Says how accuracies are averaged.

    Returns:
        What is told; targets to learn from; targets to test on, -1 for a class that is not learned.

    Raises:
        ValueError: All images have the same class, labels or values; or see `check_classes`.
    """
    if targets.ndim != 2:
        check_classes(targets)
        names, numbers = targets.unique(return_inverse=True)
        wanted = None
        if test_targets is not None:
            wanted = torch.searchsorted(names, test_targets).masked_fill(~torch.isin(test_targets, names), -1)
        told = ProbedClasses(count=len(names), average=protocol.average, numbers=tuple(names.tolist()))
        return told, numbers, wanted
    varies = targets.amin(0) != targets.amax(0)
    if test_targets is not None:
        varies &= test_targets.amin(0) != test_targets.amax(0)
    if not bool(varies.any()):
        raise ValueError(
            f"a probe tells images apart, but all {len(targets)} have the same "
            + ("values" if targets.is_floating_point() else "labels")
            + ", or those that are tested on have"
        )
    targets, test_targets = targets[:, varies], None if test_targets is None else test_targets[:, varies]
    count = int(varies.sum())
    if targets.is_floating_point():
        return ProbedValues(count=count), targets, test_targets
    often = (targets if test_targets is None else test_targets).double().mean(0)
    return ProbedLabels(count=count, chance=float(often.mean())), targets, test_targets


def _formed(labels: Tensor) -> Tensor:
    """Labels of the caller in one of the forms of targets."""
    if labels.ndim == 1 and labels.dtype == torch.int64:
        return labels
    targets = labels if labels.dtype == torch.int8 and labels.ndim == 2 else probe_targets(labels)
    if targets is None or targets.ndim > 2 or not bool(have_targets(targets).all()):
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: a probe needs one class number an image, (N,) "
            "int64, or zeros and ones (N, K), or finite values (N,) or (N, V)"
        )
    return targets
