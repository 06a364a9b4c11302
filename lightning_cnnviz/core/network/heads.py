"""Networks of several heads: each is looked at by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_cnnviz.core.network.calling import GivenBatch, rows_of
from lightning_cnnviz.core.network.classification import run_network
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.task import OutputFn, named_scores

__all__ = ["ByHead", "NetworkHead", "find_heads", "join_by_head"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ByHead:
    """A result for each head of a network, of segmentation for each class.

    Attributes:
        names: Of the heads, as the network's output calls them; of the classes; of both `"<head>/<class>"`.
        results: Of each.
    """

    names: tuple[str, ...]
    results: tuple[Any, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.results):
            raise ValueError(f"heads {self.names}, and {len(self.results)} results")


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkHead:
    """One head of a network.

    Attributes:
        name: What the network's output calls it; empty where there are not several.
        output_fn: Takes what the network returns, and returns the head's scores.
        labels: `(N, ...)`, its own labels, or None.
        follow: Of segmentation: the class that is followed; None for each image's own.
    """

    name: str = ""
    output_fn: OutputFn | None = None
    labels: Tensor | None = None
    follow: int | None = None


def find_heads(
    model: nn.Module, images: Tensor, labels: Tensor | None = None, given: GivenBatch | None = None
) -> list[NetworkHead]:
    """Return a network's heads: several where its output is a mapping, or the like, of scores without a usual name.

    Args:
        model: The network; it is left as it was.
        images: `(N, C, H, W)`, on its device.
        labels: Theirs, for a network of one head.
        given: The batch that they are from: labels of a head are looked for under its name.

    Example:
        >>> class Two(nn.Module):
        ...     def forward(self, images):
        ...         return {"species": images.mean((2, 3)), "sex": images.amax((2, 3))}
        >>> import torch
        >>> [head.name for head in find_heads(Two(), torch.rand(1, 2, 4, 4))]
        ['species', 'sex']
    """
    with analysis_mode(model), rows_of(model, 0):
        names = named_scores(run_network(model, images[:1]))
    if len(names) < 2:
        return [NetworkHead(labels=labels)]
    return [
        NetworkHead(name=name, output_fn=_part_of(name), labels=None if given is None else given.labels_of(name))
        for name in names
    ]


def join_by_head(parts: Sequence[Any], join: Callable[[Sequence[Any]], Any]) -> Any:
    """Join the parts of several ranks, head by head; of a network of one head as they are.

    A class of segmentation may be in too few images for each rank to have one: its result there is None.
    """
    if not isinstance(parts[0], ByHead):
        return join(parts)
    by_head = zip(*(part.results for part in parts), strict=True)
    results = tuple(join([part for part in own if part is not None]) for own in by_head)
    return ByHead(names=parts[0].names, results=results)


def _part_of(name: str) -> OutputFn:
    def part(output: Any) -> Any:
        return output[name] if isinstance(output, Mapping) else getattr(output, name)

    return part
