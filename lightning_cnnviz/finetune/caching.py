"""A frozen backbone's features, computed once an image instead of once an epoch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm

from lightning_cnnviz.core.data.batches import class_labels, read_batch
from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, keep_random_state, model_device

__all__ = ["CachedBatch", "FeatureCache", "Tail", "cached_loader", "find_tail"]

log = logging.getLogger("lightning_cnnviz")

Tail = Callable[[Tensor], Tensor]

_TRIED = 3


class CachedBatch(NamedTuple):
    """A batch of what the classifying layer is given, in place of images."""

    features: Tensor
    labels: Tensor


class _CachedFeatures(Dataset[CachedBatch]):
    """Features and labels by the index of their image."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features, self.labels = features, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> CachedBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> CachedBatch:
        chosen = torch.as_tensor(indices)
        return CachedBatch(self.features[chosen], self.labels[chosen])


class FeatureCache:
    """A network's classifying layer, trained on features that take the images' places in a trainer's loaders.

    Args:
        network: The network.
        classifier: Name of its classifying layer.
    """

    def __init__(self, network: nn.Module, classifier: str) -> None:
        self._network, self._classifier = network, classifier
        self._tail: Tail | None = None
        self._replaced: list[tuple[Any, list[Any]]] = []

    def logits(self, batch: CachedBatch) -> Tensor:
        """Return the network's logits `(N, classes)`."""
        assert self._tail is not None
        return self._tail(self._network.get_submodule(self._classifier)(batch.features))

    def install(self, trainer: Any, images: Tensor) -> None:
        """Compute the features of all training images, and of validation's unless a callback looks at its batches.

        Args:
            trainer: At the start of its training.
            images: With which to find out what the network does behind the classifying layer.

        Raises:
            ValueError: Images change from epoch to epoch, or cannot be told apart; or what the network does behind the
                layer is not understood.
        """
        if trainer.reload_dataloaders_every_n_epochs:
            raise ValueError(
                "cache_features=True: images that are loaded anew (reload_dataloaders_every_n_epochs) have no features "
                "that could be kept; train with cache_features=False"
            )
        self._tail = find_tail(self._network, self._classifier, images)
        self._replace(trainer, trainer.fit_loop._combined_loader, "training")
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        # The first epoch's iterator was made over images, and has drawn its random numbers.
        with keep_random_state():
            iter(fetcher)
        watching = [type(callback).__name__ for callback in trainer.callbacks if _watches_validation(callback)]
        if watching:
            log.info("validation images run through the whole network, since %s looks on", ", ".join(watching))
        elif trainer.fit_loop.epoch_loop.val_loop._combined_loader is not None:
            self._replace(trainer, trainer.fit_loop.epoch_loop.val_loop._combined_loader, "validation")

    def remove(self) -> None:
        """Give the trainer its own loaders back."""
        for combined, loaders in self._replaced:
            combined.flattened = loaders
        self._replaced = []

    def _replace(self, trainer: Any, combined: Any, what: str) -> None:
        loaders = list(combined.flattened)
        generators = {generator for loader in loaders if (generator := getattr(loader, "generator", None))}
        states = [(generator, generator.get_state()) for generator in generators]
        bar = trainer.progress_bar_callback
        shown = bool(trainer.is_global_zero and getattr(bar, "is_enabled", False))
        combined.flattened = [
            cached_loader(loader, self._network, self._classifier, what, progress=shown) for loader in loaders
        ]
        for generator, state in states:
            generator.set_state(state)
        self._replaced.append((combined, loaders))


def find_tail(model: nn.Module, classifier: str, images: Tensor) -> Tail:
    """Return what a network does behind its classifying layer.

    Raises:
        ValueError: It is none of these: nothing, or a mean over the image, with a ReLU before it or not.
    """
    probe: list[Tensor] = []

    def replace(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        # Of both signs, whatever the network makes of these images: a ReLU is to be seen.
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        probe.append(noise.to(output))
        return probe[0].clone()

    with analysis_mode(model):
        handle = model.get_submodule(classifier).register_forward_hook(replace)
        try:
            output = model(images)
        finally:
            handle.remove()
        for tail in _TAILS:
            logits = tail(probe[0])
            # A softmax or a sigmoid at the end is left out: the loss is that of logits.
            makings = (logits, logits.softmax(1), logits.sigmoid()) if logits.shape == output.shape else ()
            if any(torch.allclose(made, output, rtol=1e-4, atol=1e-6) for made in makings):
                return tail
    raise ValueError(
        f"cache_features=True: {type(model).__name__} goes on behind its classifier '{classifier}' in a way that "
        "is not understood; train it with cache_features=False"
    )


def cached_loader(
    loader: Any, model: nn.Module, classifier: str, what: str, *, progress: bool = False
) -> DataLoader[CachedBatch]:
    """Run all images of a loader's data set through the backbone; return a loader of their features, in its order.

    Images are told apart by their index in the data set. The sampler is the loader's own, so that images come in the
    order in which they would have come.

    Args:
        loader: A DataLoader over a data set with a length.
        model: The network.
        classifier: Its classifying layer, whose input is kept.
        what: Which images these are, for messages.
        progress: Whether to show a bar.

    Raises:
        ValueError: The images have no indices, or change from one reading to the next.
    """
    _check(loader, what)
    features, labels = [], []

    def keep(_: str, value: Tensor) -> None:
        features.append(value.detach().cpu().clone())

    device = model_device(model)
    with analysis_mode(model):
        _check_unchanging(loader.dataset, what)
        plain = DataLoader(
            loader.dataset,
            batch_size=loader.batch_sampler.batch_size,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            worker_init_fn=loader.worker_init_fn,
        )
        with hooked({classifier: Site(model.get_submodule(classifier), "input")}, keep):
            for batch in tqdm(plain, f"features of {what} images", leave=False, disable=not progress):
                images, given = read_batch(batch)
                classes = class_labels(given)
                if given is None:
                    raise ValueError(f"cache_features=True: a batch of {what} images has no labels")
                labels.append(given if classes is None else classes)
                model(images.to(device))
    cached = _CachedFeatures(torch.cat(features), torch.cat(labels))
    if len(cached) != len(loader.dataset) or len(cached.features) != len(cached):
        raise ValueError(
            f"cache_features=True: {len(loader.dataset)} {what} images gave {len(cached.features)} features and "
            f"{len(cached)} labels, so it is not clear which is whose; train with cache_features=False"
        )
    return DataLoader(
        cached,
        batch_sampler=loader.batch_sampler,
        generator=loader.generator,
        collate_fn=_as_is,
        pin_memory=loader.pin_memory,
    )


def _watches_validation(callback: Any) -> bool:
    hooks = ("on_validation_batch_start", "on_validation_batch_end")
    owners = (next(base for base in type(callback).__mro__ if hook in vars(base)) for hook in hooks)
    return any(not owner.__module__.startswith(("lightning.", "pytorch_lightning.")) for owner in owners)


def _as_is(batch: Any) -> Any:
    return batch


def _check(loader: Any, what: str) -> None:
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or not hasattr(loader.batch_sampler, "batch_size")
    ):
        raise ValueError(
            f"cache_features=True: images must be told apart, but the loader of {what} images is no torch "
            "DataLoader that draws batches from a data set by index; train with cache_features=False"
        )


def _check_unchanging(images: Any, what: str) -> None:
    """Refuse augmentation: where the data set says so, or where an image is another one when it is read again."""
    changing = bool(getattr(images, "augmented", False))
    for index in range(min(_TRIED, 0 if changing else len(images))):
        first, again = copy.deepcopy(images[index]), images[index]
        changing = changing or not torch.equal(_pixels(first), _pixels(again))
    if changing:
        raise ValueError(
            f"cache_features=True: {what} images change from one epoch to the next (augmentation), so their features "
            'cannot be computed once; switch it off (augment="none") or train with cache_features=False'
        )


def _pixels(item: Any) -> Tensor:
    image = item[0] if isinstance(item, (tuple, list)) else item
    return image if isinstance(image, Tensor) else torch.empty(0)


def _as_it_is(made: Tensor) -> Tensor:
    return made


def _flat(made: Tensor) -> Tensor:
    return made.flatten(1)


def _mean(made: Tensor) -> Tensor:
    return nn.functional.adaptive_avg_pool2d(made, 1).flatten(1) if made.ndim == 4 else made


def _rectified_mean(made: Tensor) -> Tensor:
    return _mean(made.relu())


_TAILS: tuple[Tail, ...] = (_as_it_is, _flat, _mean, _rectified_mean)
