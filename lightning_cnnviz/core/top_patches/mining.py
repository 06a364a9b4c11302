"""Mines the strongest units of every feature map from forward passes that somebody else makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.core.network.hooks import hooked
from lightning_cnnviz.core.network.layers import FeatureSpec, SelectedLayer, resolve_features
from lightning_cnnviz.core.top_patches._batch import Batch, size_of
from lightning_cnnviz.core.top_patches._lists import RunningLists, Wanted
from lightning_cnnviz.core.top_patches._reading import Reading, read_at_once, read_later
from lightning_cnnviz.core.top_patches.results import RankBy, TopPatches
from lightning_cnnviz.core.top_patches.top_k import TopK
from lightning_cnnviz.core.tracing.feature_maps import FeatureMaps, trace_feature_maps

__all__ = ["PatchMiner"]


class PatchMiner:
    """Mines top-k patches from forward passes that somebody else makes; a running computation, for one look.

    Hooks are on the network inside `batch` alone:

        miner = PatchMiner(model, layers)
        for images, indices, labels in batches:
            with miner.batch(images, indices, labels):
                model(images)
        miner.merge()
        result = miner.compute()

    Each feature map is read once, for its maximum, and with `rank_by="mean"` once more, for its mean. Positions, boxes
    and patches are looked up only for the units that enter a list. Apart from one byte an image, memory does not grow
    with the number of images.

    Args:
        model: The network.
        layers: From `select_layers`.
        k: Number of units of each feature map.
        features: See `mine_top_patches`.
        per_image: See `mine_top_patches`.
        rank_by: See `mine_top_patches`.
        whole_images: Whether the images behind kept patches are kept whole, see `images`.
        sources: Whether they are kept in 8 bits, see `TopPatches.sources`.
        at_once: Whether hooks look up positions themselves, for the few maps that may enter a list. If not, they do so
            for all maps, and ranking waits for the end of the batch, so that no hook waits for the device. By default
            True on the CPU and False elsewhere.

    Attributes:
        indices_known: Whether the indices given to `batch` are those of the data set; set it before `compute`.

    Raises:
        ValueError: k, per_image, rank_by or features are out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[SelectedLayer],
        *,
        k: int = 9,
        features: FeatureSpec = 16,
        per_image: int | None = 1,
        rank_by: RankBy = "max",
        whole_images: bool = False,
        sources: bool = False,
        at_once: bool | None = None,
    ) -> None:
        TopK(0, k, per_image=per_image)  # refuses wrong numbers before anything runs
        if rank_by not in get_args(RankBy):
            raise WrongArgumentError(f"rank_by={rank_by!r}: images rank by one of {get_args(RankBy)}")
        _check_features(layers, features)
        self.indices_known = True
        self._model, self._layers = model, {layer.name: layer for layer in layers}
        self._wanted = [Wanted(frozenset(self._layers), k, features, whole_images, sources)]
        self._per_image, self._rank_by, self._at_once = per_image, rank_by, at_once
        self._traced: dict[tuple[int, ...], dict[str, FeatureMaps]] = {}  # by the images' size
        self._lists: RunningLists | None = None
        self._merged = False

    def absorb(self, other: object) -> bool:
        """Take over the work of another miner before the first batch: the result will hold what both would find.

        `TopPatches.narrowed` then takes out the part that each of them wanted.

        Returns:
            True if it was taken over. False if the two differ in the network, in how they read a layer or in how they
            rank, or if either has had a batch.
        """
        if not isinstance(other, PatchMiner) or self._lists is not None or other._lists is not None:
            return False
        terms = [(id(miner._model), miner._per_image, miner._rank_by, miner._at_once) for miner in (self, other)]
        both = self._layers.keys() & other._layers.keys()
        if terms[0] != terms[1] or any(self._layers[name] != other._layers[name] for name in both):
            return False
        self._layers = {**self._layers, **other._layers}
        self._wanted += other._wanted
        return True

    @contextmanager
    def batch(self, images: Tensor, indices: Tensor, labels: Tensor | None = None) -> Iterator[None]:
        """Watch one forward pass over some images; of several passes inside, the first one counts.

        An error in a hook does not interrupt the network's pass: it is raised on leaving. If the pass itself raises,
        the batch does not count.

        Args:
            images: `(N, C, H, W)`, at least one; or signals `(N, C, L)`, or volumes `(N, C, D, H, W)`.
            indices: `(N,)` int64, each image's index in the data set.
            labels: `(N,)` int64, or None.

        Raises:
            LayerNotFoundError: At the first batch: a named layer does not run exactly once in a pass.
            ValueError: A feature index is out of range, or the network was run on other images than the batch's.
            RuntimeError: A chosen layer has not run, for example in a network that was compiled before; or the ranks
                have been merged.
        """
        if self._merged:
            raise RuntimeError("the ranks have been merged: no batch can follow; each look takes a new PatchMiner")
        traced = self._trace(images)
        lists = self._lists = self._lists or self._start(traced)
        # A copy: in a pass of somebody else's, the network may write into its images before patches are cut from them.
        batch = Batch(images.clone(), indices.cpu(), None if labels is None else labels.cpu(), lists.seen)
        watch = _Watch(batch, traced, partial(self._read, lists, batch))
        with hooked({layer: maps.site for layer, maps in traced.items()}, watch):
            yield
        if watch.error is not None:
            raise watch.error
        missing = [layer for layer in lists.layers if layer not in watch.readings]
        if missing:
            raise RuntimeError(_why_never_ran(self._model, missing))
        with torch.inference_mode(False), torch.no_grad():
            lists.take(batch, {layer: reading() for layer, reading in watch.readings.items()}, traced)

    def merge(self) -> None:
        """Merge the lists of all ranks; every rank calls this, after its last batch.

        Raises:
            ValueError: There was no image.
        """
        self._found_so_far().merge()
        self._merged = True

    def compute(self) -> TopPatches:
        """Return the result so far: that of this rank, and after `merge` that of all ranks.

        Raises:
            ValueError: There was no image.
        """
        lists = self._found_so_far()
        return TopPatches(
            layers=lists.results(self._rank_by),
            k=lists.top.k,
            indices_known=self.indices_known,
            sources=lists.store.sources,
        )

    @property
    def images(self) -> Mapping[int, Tensor]:
        """By index, whole images, in their own shape, that this rank has seen: those asked for, and some more."""
        return {} if self._lists is None else self._lists.store.whole

    def _trace(self, images: Tensor) -> dict[str, FeatureMaps]:
        size = size_of(images)
        if size not in self._traced:
            traced = trace_feature_maps(self._model, images[:1], list(self._layers.values()))
            self._traced[size] = {maps.layer: maps for maps in traced}
        return self._traced[size]

    def _start(self, traced: Mapping[str, FeatureMaps]) -> RunningLists:
        wide = any(parameter.dtype == torch.float64 for parameter in self._model.parameters())
        dtype = torch.float64 if wide else torch.float32
        with torch.inference_mode(False):  # tensors made in inference mode could not be written to later
            return RunningLists(list(traced.values()), self._wanted, self._per_image, dtype)

    def _read(self, lists: RunningLists, batch: Batch, layer: str, maps: Tensor) -> Callable[[], Reading]:
        """Read a layer's feature maps inside its hook; the function that is returned finishes it after the pass."""
        admit = partial(lists.admits, layer, batch=batch)
        if self._at_once is False or (self._at_once is None and maps.device.type != "cpu"):
            return partial(read_later(maps, self._rank_by, lists.top.per_image), admit)
        reading = read_at_once(maps, self._rank_by, lists.top.per_image, admit)
        return lambda: reading

    def _found_so_far(self) -> RunningLists:
        if self._lists is None:
            raise ValueError("no image was seen")
        return self._lists


class _Watch:
    """The hooks of one pass: they read each layer's feature maps once, and keep the first error.

    Attributes:
        readings: By layer, a function that finishes its reading after the pass.
        error: The first error: it must not interrupt the network's own pass.
    """

    def __init__(
        self,
        batch: Batch,
        traced: Mapping[str, FeatureMaps],
        read: Callable[[str, Tensor], Callable[[], Reading]],
    ) -> None:
        self._batch, self._traced, self._read = batch, traced, read
        self.readings: dict[str, Callable[[], Reading]] = {}
        self.error: Exception | None = None

    def __call__(self, layer: str, maps: Any) -> None:
        if self.error is not None or layer in self.readings:
            return
        try:
            self.readings[layer] = self._read(layer, self._checked(layer, maps))
        except Exception as error:
            self.error = error

    def _checked(self, layer: str, maps: Any) -> Tensor:
        expected = (len(self._batch), *self._traced[layer].shape)
        if isinstance(maps, Tensor) and maps.ndim == 2:
            maps = maps.view(*maps.shape, *[1] * (len(expected) - 2))
        if not isinstance(maps, Tensor) or tuple(maps.shape) != expected:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ValueError(
                f"layer '{layer}' gave {got} where the batch's images give {expected}: the network was run on other "
                "images than the batch's. Give batch_fn=... that returns the images that the network is given"
            )
        return maps.detach()


def _check_features(layers: Sequence[SelectedLayer], features: FeatureSpec) -> None:
    for layer in layers:
        channels = getattr(layer.module, "out_channels", None)
        if isinstance(channels, int) and channels > 0:
            resolve_features(layer.name, channels, features)
    if isinstance(features, Mapping):
        names = [layer.name for layer in layers]
        strange = [name for name in features if name not in names]
        if strange:
            raise WrongArgumentError(f"features names the layers {strange}, which are not among those chosen: {names}")


def _why_never_ran(model: nn.Module, missing: list[str]) -> str:
    names = ", ".join(f"'{name}'" for name in missing[:4]) + (", ..." if len(missing) > 4 else "")
    compiled = any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    if compiled:
        return (
            f"the hooks on layer {names} were never called: the network is compiled (torch.compile), and compiled code "
            "does not see hooks. Compile the network only for training; a monitor with data=<a loader> makes a pass of "
            "its own that runs uncompiled"
        )
    return (
        f"layer {names} did not run when this batch was processed, although it runs in the network's forward pass: "
        "a monitor with model=<its name> watches the network that the step runs, and one with data=<a loader> makes a "
        "pass of its own"
    )
