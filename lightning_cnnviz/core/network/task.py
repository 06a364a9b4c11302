"""How a network's output becomes scores of classes, and what a label means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.endings import Ending, EndingMode, sums_to_one, within_one
from lightning_cnnviz.core.network.hooks import analysis_mode

__all__ = [
    "IGNORED",
    "OutputFn",
    "Scores",
    "Task",
    "TaskKind",
    "find_ending",
    "find_task",
    "named_scores",
    "output_tensor",
]

TaskKind = Literal["multiclass", "multilabel", "binary", "segmentation", "regression"]
"""One class an image; any number of them; one logit for a yes or no; a class for each pixel; plain numbers."""

OutputFn = Callable[[Any], Any]
"""Takes what the network returns, and returns the tensor of scores: `lambda output: output["species"]`."""

IGNORED = (-1, -100)
"""Whole-number labels that stand for no label: the usual signs of data without labels, and of torch's losses."""

_PARTS = (
    "logits",
    "out",
    "scores",
    "output",
    "outputs",
    "predictions",
    "prediction",
    "probabilities",
    "probs",
    "preds",
)
_FEATURES = (
    "features",
    "feature",
    "feats",
    "feat",
    "embedding",
    "embeddings",
    "hidden",
    "hidden_states",
    "latent",
    "z",
)
_NAMES = {
    "multiclass": "one class an image",
    "multilabel": "several classes an image",
    "binary": "yes or no",
    "segmentation": "a class for each pixel",
    "regression": "a value",
}


class Scores(NamedTuple):
    """What a network says of some images.

    Attributes:
        scores: `(N, classes)` float, as the network gives them: mostly logits.
        probabilities: `(N, classes)`, 0 to 1; for regression the values themselves. All of an image's are NaN where one
            of its scores is NaN or above all bounds.
    """

    scores: Tensor
    probabilities: Tensor


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network's output and a label mean.

    Attributes:
        kind: See `TaskKind`.
        normalized: Whether the network returns probabilities already, instead of logits.
        part: The name of the part of the output that holds the scores; empty where the output is a tensor.
        told: Whether the kind was told by the user, not found.

    Example:
        >>> Task(kind="binary").read(torch.tensor([[0.0], [2.0]])).probabilities
        tensor([[0.5000, 0.5000],
                [0.1192, 0.8808]])
    """

    kind: TaskKind = "multiclass"
    normalized: bool = False
    part: str = ""
    told: bool = False

    @property
    def has_classes(self) -> bool:
        """Whether its scores are of classes, and not plain values."""
        return self.kind != "regression"

    def sentence(self) -> str:
        """Return what a report says of it."""
        function = "softmax" if self.kind in ("multiclass", "segmentation") else "sigmoid"
        source = f"the output's '{self.part}'" if self.part else "the network's output"
        made = f"{source} as it is" if self.normalized or not self.has_classes else f"the {function} of {source}"
        what = "values are" if not self.has_classes else "probabilities are"
        how = "as told" if self.told else "as found; task=... or output_fn=... says otherwise"
        return f"Task: {_NAMES[self.kind]} ({self.kind}, {how}); {what} {made}."

    def read(self, output: Any, regions: Tensor | None = None) -> Scores:
        """Return scores and probabilities of what the network returned.

        A single logit z stands for two classes, with the scores -z and z. Of maps, scores are means over the pixels of
        a region, and probabilities means of the pixels' probabilities.

        Args:
            output: The network's output, or what the user's `output_fn` made of it.
            regions: `(N, H, W)` bool, of segmentation: the pixels of each image that count; all, where it is None.
        """
        scores, probabilities = self.by_pixel(output)
        if self.kind != "segmentation":
            return Scores(scores, probabilities)
        return Scores(_mean(scores, regions), _mean(probabilities, regions))

    def by_pixel(self, output: Any) -> Scores:
        """Return scores and probabilities, of segmentation as maps `(N, classes, H, W)`."""
        values, _ = output_tensor(output)
        values = self._columns(values)
        values = values if values.dtype == torch.float64 else values.float()
        if self.kind == "regression":
            return Scores(values, values)
        if values.shape[1] == 1 and self.kind in ("binary", "segmentation"):
            values = torch.cat([1 - values if self.normalized else -values, values], 1)
            # The two are one logit: each has its own sigmoid.
            return Scores(values, _lost(values, values if self.normalized else values.sigmoid()))
        if self.normalized:
            return Scores(values, _lost(values, values))
        return Scores(values, _lost(values, values.sigmoid() if self.kind == "multilabel" else values.softmax(1)))

    def _columns(self, values: Tensor) -> Tensor:
        if self.kind == "segmentation":
            return values
        return values[:, None] if values.ndim == 1 else values.flatten(1)


def output_tensor(output: Any) -> tuple[Tensor, str]:
    """Return the tensor of scores in what a network returned, and the name of the part that it is.

    Raises:
        ValueError: There is none, or there are several that it could be.

    Example:
        >>> output_tensor({"logits": torch.zeros(2, 3), "features": torch.zeros(2, 8)})[1]
        'logits'
    """
    if isinstance(output, Tensor):
        return output, ""
    parts = dict(_parts(output))
    name: str | int | None = next((name for name in _PARTS if name in parts), None)
    if name is None and len(parts) == 1:
        name = next(iter(parts))
    if name is not None:
        return parts[name], str(name)
    form = type(output).__name__
    if not parts:
        raise ValueError(f"{form}, in which there is no tensor of scores; output_fn=... takes it and returns one")
    example = next(iter(parts))
    raise ValueError(
        f"{form} of {len(parts)} tensors ({', '.join(map(repr, list(parts)[:6]))}), none of a name that says which are "
        f"the scores; tell it, for example output_fn=lambda output: output[{example!r}]"
    )


def named_scores(output: Any) -> list[str]:
    """Return the names of several scores in an output, none of which has a usual name for scores; else none.

    Scores are `(N, classes)` or `(N,)`, for some N. What has a usual name for features is none, and what has a place
    instead of a name is not known to be.

    Example:
        >>> named_scores({"species": torch.zeros(2, 3), "sex": torch.zeros(2)})
        ['species', 'sex']
    """
    if isinstance(output, Tensor):
        return []
    parts = dict(_parts(output))
    if any(name in parts for name in _PARTS) or not all(isinstance(name, str) for name in parts):
        return []
    named = {str(name): value for name, value in parts.items() if name not in _FEATURES}
    counts = {len(value) if value.ndim in (1, 2) else -1 for value in named.values()}
    return list(named) if len(named) > 1 and len(counts) == 1 and -1 not in counts else []


def _parts(output: Any) -> Iterator[tuple[str | int, Tensor]]:
    """The floating tensors in an output, by name or place."""
    pairs: Any = ()
    if isinstance(output, Mapping):
        pairs = output.items()
    elif hasattr(output, "_asdict"):
        pairs = output._asdict().items()
    elif isinstance(output, (list, tuple)):
        pairs = enumerate(output)
    elif hasattr(output, "__dict__"):
        # A property, or what belongs to its class, is no part of `vars`.
        usual = ((name, getattr(output, name)) for name in _PARTS if hasattr(output, name))
        pairs = [*usual, *vars(output).items()]
    for name, value in pairs:
        if isinstance(value, Tensor) and value.is_floating_point():
            yield name, value


def find_task(
    output: Any,
    labels: Tensor | None = None,
    *,
    kind: TaskKind | None = None,
    ending: Callable[[], Ending] | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Task:
    """Say what a network's output means, from the first outputs and labels.

    Found are: a column of whole numbers as labels, or none, and two scores or more (multiclass; so are one-hot labels);
    labels of zeros and ones for each score (multilabel); one score and labels of 0 and 1, or one that a sigmoid made
    (binary); maps of scores (segmentation); all else is a value (regression). Outputs are probabilities where each
    image's lie within 0 and 1 and sum to one, or where a sigmoid made them.

    Args:
        output: What the network returned for N images, or what the user's `output_fn` made of it.
        labels: Theirs, as the data has them.
        kind: What the user says, instead of finding it.
        ending: Tells the function that the network ends in; it is asked only where values leave it open.
        image_shape: `(C, H, W)` of the images, to tell an autoencoder.

    Raises:
        ValueError: The output is of no such form, or the kind that was told does not fit it.

    Example:
        >>> find_task(torch.tensor([[3.0, -2.0, 2.9]]), torch.tensor([[1.0, 0.0, 1.0]])).kind
        'multilabel'
    """
    if kind is not None and kind not in get_args(TaskKind):
        raise WrongArgumentError(f"task={kind!r}: it is one of {', '.join(map(repr, get_args(TaskKind)))}")
    values, part = output_tensor(output)
    if not values.is_floating_point() or values.ndim not in (1, 2, 4):
        raise ValueError(f"{_form(values)}; scores are floats (N, classes), (N,) or (N, classes, height, width)")
    if values.ndim == 4 and values.shape[2:] == (1, 1) and kind != "segmentation":
        values = values[:, :, 0, 0]
    asked = _once(ending)
    within = within_one(values)
    found = kind or _found(values, labels, asked if within else _nothing, image_shape)
    _check(found, values)
    normalized = within and (sums_to_one(values, _tolerance(values)) or asked() == "sigmoid") and found != "regression"
    return Task(kind=found, normalized=normalized, part=part, told=kind is not None)


def _found(
    values: Tensor, labels: Tensor | None, ending: Callable[[], Ending], image_shape: tuple[int, ...] | None
) -> TaskKind:
    if values.ndim == 4:
        if labels is not None and labels.ndim < 3:
            raise ValueError(
                f"{_form(values)}: a score for each pixel, where labels are {tuple(labels.shape)}; give "
                'task="segmentation" where a pixel has a class, and else output_fn=... that returns scores (N, classes)'
            )
        pictures = labels is not None and labels.is_floating_point() and not _whole(labels)
        if pictures or (labels is None and image_shape == tuple(values.shape[1:])):
            beside = "with labels that are pictures" if pictures else "of the images' own shape"
            raise ValueError(
                f"{_form(values)}, {beside}, as an autoencoder has: no scores of classes; "
                'give task="segmentation" where a pixel has a class'
            )
        return "segmentation"
    known = None if labels is None else _known(labels)
    if values.ndim == 1 or values.shape[1] == 1:
        if known is None or not len(known):
            return "binary" if ending() == "sigmoid" else "regression"
        return "binary" if _zeros_and_ones(known) else "regression"
    if labels is None or known is None or labels.shape != values.shape:
        return "multiclass"
    rows = labels.float()
    if _zeros_and_ones(known):
        one_hot = bool((rows.clamp(min=0).sum(1) == 1).all()) and ending() != "sigmoid"
        return "multiclass" if one_hot else "multilabel"
    soft = bool((known >= 0).all()) and torch.allclose(rows.sum(1), torch.ones(len(rows)).to(rows), atol=1e-3)
    return "multiclass" if soft else "regression"


def _check(kind: TaskKind, values: Tensor) -> None:
    """Refuse a kind that an output cannot be of."""
    dense, single = values.ndim == 4, values.ndim == 1 or values.shape[1] == 1
    if dense and kind == "segmentation":
        return
    if dense or kind == "segmentation":
        raise WrongArgumentError(
            f'{_form(values)}, which does not fit task="{kind}": maps of scores are of "segmentation"'
        )
    if kind == "multiclass" and single:
        raise WrongArgumentError(
            f'{_form(values)}: one score is no choice between classes; task="binary" makes it a yes or no'
        )
    if kind == "binary" and not single:
        raise WrongArgumentError(
            f'{_form(values)}: a yes or no has one score; several are task="multiclass" or "multilabel"'
        )


def find_ending(model: nn.Module, images: Tensor, output_fn: OutputFn | None = None) -> Ending:
    """Run a network and say whether its output is made by a softmax or a sigmoid; it is left as it was.

    Whatever moves, picks, joins, averages, multiplies or scales probabilities may follow, as far as they stay within 0
    and 1.

    Args:
        model: The network, in whatever mode it is.
        images: `(N, C, H, W)`, on its device.
        output_fn: Takes what the network returns, and returns the tensor of scores.

    Example:
        >>> find_ending(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1)), torch.zeros(1, 1, 2, 2))
        'softmax'
    """
    given = images.clone()
    endings = EndingMode(given)
    with analysis_mode(model), endings:
        output = model(given)
        values, _ = output_tensor(output if output_fn is None else output_fn(output))
        return endings.of(values)


def _once(ending: Callable[[], Ending] | None) -> Callable[[], Ending]:
    found: list[Ending] = []

    def asked() -> Ending:
        if not found:
            found.append("" if ending is None else ending())
        return found[0]

    return asked


def _nothing() -> Ending:
    return ""


def _known(labels: Tensor) -> Tensor:
    """The labels that are there, as a flat tensor of floats."""
    flat = labels.detach().flatten().double()
    for sign in IGNORED if not labels.is_floating_point() else ():
        flat = flat[flat != sign]
    return flat[~flat.isnan()]


def _whole(values: Tensor) -> bool:
    return bool((values == values.round())[~values.isnan()].all())


def _zeros_and_ones(values: Tensor) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _tolerance(values: Tensor) -> float:
    return max(1e-3, torch.finfo(values.dtype).eps)


def _lost(scores: Tensor, probabilities: Tensor) -> Tensor:
    """NaN for all classes of an image, or pixel, one of whose scores is NaN or above all bounds."""
    lost = ~probabilities.isfinite() | (scores == torch.inf)
    # Of NaN among the scores, argmax would make a class, and a sum a number.
    return probabilities.masked_fill(lost.any(1, keepdim=True), torch.nan)


def _mean(maps: Tensor, regions: Tensor | None) -> Tensor:
    """Means `(N, classes)` over each image's region; 0 where it is empty."""
    if regions is None:
        return maps.mean((2, 3))
    inside = regions.to(maps.device)[:, None]
    return torch.where(inside, maps, 0).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)


def _form(values: Tensor) -> str:
    kind = "" if values.is_floating_point() else f"{values.dtype} "
    return f"a {kind}tensor of shape {tuple(values.shape)}"
