"""A network's word on a few images: its scores, the class whose score is followed, and its probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network._labels import Meaning, read_labels
from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.calling import rows_of
from lightning_cnnviz.core.network.layers import other_dimensions
from lightning_cnnviz.core.network.memory import in_chunks, is_out_of_memory
from lightning_cnnviz.core.network.task import OutputFn, Scores, Task, TaskKind, find_ending, find_task, output_tensor
from lightning_cnnviz.core.network.wrong_images import no_images, other_dtype

__all__ = [
    "Classified",
    "ImagesRefusedError",
    "ScoreReader",
    "Scorer",
    "check_images",
    "classes_present",
    "classify",
    "fill_values",
    "interleave",
    "most_probable",
    "refused",
    "run_network",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class Classified:
    """What a network makes of some untouched images.

    Attributes:
        targets: `(N,)` int64, the class whose probability is followed: the label; of several, the one that is most
            probable by the network; of a label map, the class of the most pixels, other than class 0 where there is
            another, since that is mostly the background. Where there are no labels, the most probable class, -1 where
            there is none. For regression the number of the output, 0.
        labeled: Whether the targets are labels, at least of some images.
        probabilities: `(N,)` float, 0 to 1, of the target; for regression the value. NaN where the network's scores are
            not finite.
        predictions: `(N,)` int64, the most probable class; -1 where the scores are not finite.
        classes: How many classes there are.
        task: What outputs and labels mean.
        unlabeled: `(N,)` bool, the images without a label among images that have some; None where there are none.
        present: `(N, classes)` bool, of several labels an image, or a label map: the classes that are there.
        all_probabilities: `(N, classes)`, where there are several labels an image: of each class.
        regions: `(N, height, width)` bool, of segmentation: the target's pixels in the network's output, over which
            scores and probabilities are means.
        pixel_probabilities: `(N, height, width)` float, 0 to 1, of segmentation: p of the target at each pixel of the
            network's output; NaN where its scores are not finite.
        numbers: `(N,)` int64, where one class of segmentation is followed: which of the images that were given these
            are, namely those that have it; None where they are all.
    """

    targets: Tensor
    labeled: bool
    probabilities: Tensor
    predictions: Tensor
    classes: int
    task: Task = field(default_factory=Task)
    unlabeled: Tensor | None = None
    present: Tensor | None = None
    all_probabilities: Tensor | None = None
    regions: Tensor | None = None
    pixel_probabilities: Tensor | None = None
    numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def rows(self) -> Tensor | slice:
        """Which of the images that were given these are, as an index."""
        return slice(None) if self.numbers is None else self.numbers

    def of_those(self, values: Sequence[Any]) -> Any:
        """Return of values, one for each image that was given, those of the images that these are."""
        return values if self.numbers is None else tuple(values[number] for number in self.numbers.tolist())

    @property
    def scored(self) -> Tensor:
        """Of which images the network's scores are finite, `(N,)` bool."""
        return self.predictions >= 0

    @property
    def has_label(self) -> Tensor:
        """Which images have a label, `(N,)` bool."""
        return torch.full((len(self),), self.labeled) if self.unlabeled is None else ~self.unlabeled

    @property
    def target_name(self) -> str:
        """What is followed."""
        if not self.task.has_classes:
            return "value" if self.classes == 1 else f"value 0 of {self.classes}"
        if not self.labeled:
            return "predicted class"
        return "true class" if self.unlabeled is None else "true class, predicted where there is no label"

    @property
    def quantity(self) -> str:
        """What `probabilities` are, for titles: `p(true class)`, or `value`."""
        return f"p({self.target_name})" if self.task.has_classes else self.target_name

    @property
    def key(self) -> str:
        """What `probabilities` are, for keys: `p_true`, `p_predicted` or `value`."""
        if not self.task.has_classes:
            return "value"
        return "p_true" if self.labeled else "p_predicted"

    @classmethod
    def joined(cls, parts: Sequence[Classified]) -> Classified:
        """Join the parts of several ranks; see `interleave`."""
        whole = {
            entry.name: interleave([getattr(part, entry.name) for part in parts])
            for entry in fields(cls)
            if all(isinstance(getattr(part, entry.name), Tensor) for part in parts)
        }
        unlabeled = ~interleave([part.has_label for part in parts])
        labeled = any(part.labeled for part in parts)
        whole["unlabeled"] = unlabeled if labeled and bool(unlabeled.any()) else None  # type: ignore[assignment]
        return cls(labeled=labeled, classes=parts[0].classes, task=parts[0].task, **whole)


class Scorer:
    """A network whose output is read as scores.

    Args:
        model: The network.
        task: What its output means.
        output_fn: Takes what the network returns, and returns the tensor of scores.
    """

    def __init__(self, model: nn.Module, task: Task, output_fn: OutputFn | None = None) -> None:
        self.model, self.task, self._output_fn = model, task, output_fn

    def __call__(self, images: Tensor, regions: Tensor | None = None) -> Scores:
        """Run images through the network, in whatever mode it is; see `Task.read`.

        Raises:
            ValueError: The network does not take such images, or does not return scores.
        """
        output = run_network(self.model, images)
        with _said_of(self.model, images):
            scored = self.task.read(output if self._output_fn is None else self._output_fn(output), regions)
            scored = Scores(*(part.float() for part in scored))
            if len(scored.scores) != len(images):
                raise ValueError(f"scores of {len(scored.scores)}")
        return scored


class ScoreReader:
    """Reads scores `(N, classes)`, differentiable, from what a network returns; what they mean is settled once.

    Args:
        task: What outputs mean, as told or found; by default it is found from the first output.
        output_fn: Takes what the network returns, and returns the tensor of scores.
    """

    def __init__(self, task: TaskKind | Task | None = None, output_fn: OutputFn | None = None) -> None:
        self._task, self._output_fn = task, output_fn

    def __call__(self, model: nn.Module, output: Any, images: Tensor) -> Tensor:
        """Read the scores in what a network has returned for images.

        Raises:
            ValueError: There are none.
        """
        with _said_of(model, images):
            made = output if self._output_fn is None else self._output_fn(output)
            if not isinstance(self._task, Task):
                values, _ = output_tensor(made)
                self._task = find_task(values.detach(), kind=self._task, image_shape=tuple(images.shape[1:]))
            scores = self._task.read(made).scores
            if len(scores) != len(images):
                raise ValueError(f"scores of {len(scores)}")
        return scores


def classify(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    task: TaskKind | Task | None = None,
    output_fn: OutputFn | None = None,
    follow: int | None = None,
    batch_size: int = 32,
) -> Classified:
    """Run untouched images through a network, in whatever mode it is, and settle what its outputs mean.

    Args:
        model: The network.
        images: `(N, C, H, W)`, on the network's device.
        labels: As `read_labels` takes them; None where there are none.
        task: What outputs and labels mean, or what an earlier call has found; by default it is found, see `find_task`.
        output_fn: Takes what the network returns, and returns the tensor of scores; by default it is found, see
            `output_tensor`.
        follow: Of segmentation: the class that is followed. The result is of the images that have it.
        batch_size: Images of one pass.

    Raises:
        ValueError: The network does not take the images, or returns no scores; labels do not fit the images or are no
            class of the network's; no image has the class that is to be followed, or it is no segmentation.
    """
    parts: list[str] = []

    def scores_of(chosen: slice) -> Tensor:
        with rows_of(model, chosen):
            output = run_network(model, images[chosen])
        with _said_of(model, images[chosen]):
            values, part = output_tensor(output if output_fn is None else output_fn(output))
            if values.shape[:1] != images[chosen].shape[:1]:
                raise ValueError(f"a tensor of shape {tuple(values.shape)}")
        parts.append(part)
        return values

    whole = torch.cat(in_chunks(scores_of, len(images), batch_size))
    if isinstance(task, Task):
        return _classified(whole, labels, task, follow)
    # Settled here, once, for all images: the single row of another pass may look like probabilities by chance.
    with _said_of(model, images), rows_of(model, 0):
        found = find_task(
            whole,
            labels,
            kind=task,
            ending=lambda: find_ending(model, images[:1], output_fn),
            image_shape=tuple(images.shape[1:]),
        )
    return _classified(whole, labels, replace(found, part=parts[0]), follow)


def classes_present(classified: Classified, most: int) -> list[int]:
    """Return the classes that are in some of the images, of segmentation: those in the most images first, class 0 last.

    Args:
        classified: What a network makes of them.
        most: How many at most.

    Example:
        >>> maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]]])
        >>> classes_present(classify(nn.Identity(), maps, task="segmentation"), most=4)
        [1, 0]
    """
    if classified.present is None or classified.task.kind != "segmentation":
        return []
    counts = classified.present.sum(0)
    there = counts.nonzero().flatten().tolist()
    return sorted(there, key=lambda number: (number == 0, -int(counts[number]), number))[:most]


def _classified(output: Tensor, labels: Tensor | None, task: Task, follow: int | None) -> Classified:
    output = output.detach().float()
    scored = task.by_pixel(output)
    classes = scored.probabilities.shape[1]
    if follow is not None and not (task.kind == "segmentation" and 0 <= follow < classes):
        raise WrongArgumentError(
            f"follow={follow}: it is one of the network's {classes} classes (0 to {classes - 1}), of segmentation; the "
            f"task is {task.kind}"
        )
    meaning = read_labels(labels, scored.probabilities, task, follow)
    whole = _of_meaning(output, scored, meaning, task)
    return whole if follow is None else _those_with(whole, follow)


def _those_with(whole: Classified, follow: int) -> Classified:
    """The images that have a class."""
    assert whole.present is not None
    numbers = whole.present[:, follow].nonzero().flatten()
    if not len(numbers):
        there = ", ".join(map(str, classes_present(whole, 12)))
        raise WrongArgumentError(f"follow={follow}: none of {len(whole)} images has this class; there are {there}")
    tensors: dict[str, Any] = {
        entry.name: value[numbers]
        for entry in fields(whole)
        if isinstance(value := getattr(whole, entry.name), Tensor) and entry.name != "unlabeled"
    }
    has_label = whole.has_label[numbers]
    unlabeled = ~has_label if bool(has_label.any()) and not bool(has_label.all()) else None
    return replace(whole, **tensors, labeled=bool(has_label.any()), unlabeled=unlabeled, numbers=numbers)


def _of_meaning(output: Tensor, scored: Scores, meaning: Meaning, task: Task) -> Classified:
    probabilities = task.read(output, meaning.regions).probabilities.cpu()
    predictions = most_probable(probabilities)
    classes = probabilities.shape[1]
    followed = meaning.known | (predictions >= 0) if meaning.regions is not None else meaning.known
    targets = torch.where(followed, meaning.targets, predictions)
    if not task.has_classes:
        targets = predictions = torch.zeros_like(predictions).masked_fill(predictions < 0, -1)
    labeled = task.has_classes and bool(meaning.known.any())
    by_pixel = None
    if meaning.regions is not None:
        by_pixel = scored.probabilities.detach().cpu()[torch.arange(len(targets)), targets.clamp(min=0)]
    return Classified(
        targets=targets,
        labeled=labeled,
        probabilities=probabilities.gather(1, targets.clamp(min=0)[:, None])[:, 0],
        predictions=predictions,
        classes=classes,
        task=task,
        unlabeled=~meaning.known if labeled and not bool(meaning.known.all()) else None,
        present=meaning.present,
        all_probabilities=None if meaning.present is None else probabilities,
        regions=meaning.regions,
        pixel_probabilities=by_pixel,
    )


def most_probable(probabilities: Tensor) -> Tensor:
    """Return the most probable class `(N,)` int64, given `(N, classes)`; -1 where there is none, for NaN.

    Example:
        >>> most_probable(torch.tensor([[0.2, 0.8], [float("nan"), 0.5]])).tolist()
        [1, -1]
    """
    return probabilities.argmax(1).masked_fill(~probabilities.isfinite().all(1), -1)


def run_network(model: nn.Module, images: Tensor) -> Any:
    """Return what a network returns for images, whatever it is.

    Raises:
        ValueError: The network does not take such images.
    """
    with refused(model, images):
        return model(images.clone())  # it may write into what it is given


class ImagesRefusedError(ValueError):
    """A network does not take such images."""


@contextmanager
def refused(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Run a network inside the block; what it raises of images is said in our words, with why, where that is known.

    Args:
        model: The network.
        images: `(N, C, H, W)`, what it is given.

    Raises:
        ImagesRefusedError: It does not take them. Arguments that are wrong, and a lack of memory, are told as they are.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if is_out_of_memory(error) or isinstance(error, WrongArgumentError):
            raise
        why = other_dimensions(model) or other_dtype(model, images)
        who, shape = type(model).__name__, tuple(images.shape[1:])
        raise ImagesRefusedError(
            f"{who} does not take images of shape {shape}: {f'{why} ({error})' if why else error}"
        ) from error


@contextmanager
def _said_of(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Say whose output it is that has no scores."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{type(model).__name__} returns, for {len(images)} images, {error}") from error


def check_images(images: Tensor) -> None:
    """Refuse what is no batch of images.

    Raises:
        TypeError: It is no tensor.
        ValueError: It is no float or uint8 tensor `(N, C, H, W)`, or has no image.
    """
    if not isinstance(images, Tensor):
        raise TypeError(no_images(images))
    if images.ndim != 4 or not len(images) or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give one or more as a float or uint8 tensor "
            "(N, C, H, W), in the values that the network is given"
            + ("; clips (N, C, T, H, W) are not served" if images.ndim == 5 else "")
        )


def fill_values(images: Tensor, fill: float | Sequence[float] | Tensor | None) -> Tensor:
    """Return what stands where an image is covered, or ends: one value a channel, in the network's (input) values.

    Args:
        images: `(N, C, H, W)`.
        fill: One value, or one a channel; None for the images' own mean of each channel.

    Raises:
        ValueError: There are not so many channels.
    """
    channels = images.shape[1]
    if fill is None:
        return images.float().mean((0, *range(2, images.ndim))).to(images)
    values = torch.as_tensor(fill, dtype=images.dtype, device=images.device).flatten()
    if len(values) not in (1, channels):
        raise ValueError(
            f"fill has {len(values)} values, but the images have {channels} channels: give 1 or {channels}"
        )
    return values.expand(channels).clone()


def interleave(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join R parts, of which part r holds the entries r, r + R, r + 2 R, ... along a dimension.

    Example:
        >>> interleave([torch.tensor([0, 2, 4]), torch.tensor([1, 3])]).tolist()
        [0, 1, 2, 3, 4]
    """
    count = sum(part.shape[dim] for part in parts)
    order = torch.cat([torch.arange(count)[start :: len(parts)] for start in range(len(parts))])
    return torch.cat(list(parts), dim).index_select(dim, order.argsort())
