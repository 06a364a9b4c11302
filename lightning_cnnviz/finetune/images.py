"""Images as a network is given them, in an order and with random changes that depend on a seed and the epoch alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, get_worker_info
from torchvision.transforms.v2.functional import to_image

from lightning_cnnviz.finetune.sources import ImageList
from lightning_cnnviz.finetune.splits import seed_of

__all__ = ["EpochOrder", "LabeledImages"]

_MOST_WORKERS = 256  # of which it is noted what they read


class LabeledImages(Dataset[tuple[Tensor, int]]):
    """Images of a list, transformed, and their labels.

    Attributes:
        indices: Of each image, its number in the list.
        targets: Of each image, its place in `classes`; -1 for none.
        classes: Names of the classes.
        transform: From a PIL image, or a tensor, to the network's input.
        augmented: Whether the transform is random: then an image changes from epoch to epoch.
        name: What the images are called, for people; "" for nothing.

    With `enough`, so many pixels along an image's shorter side are enough for the transform; large files are then
    decoded in part.
    """

    def __init__(
        self,
        images: ImageList,
        indices: Sequence[int],
        targets: Sequence[int],
        classes: Sequence[str],
        transform: Callable[[Any], Tensor],
        *,
        channels: int = 3,
        augmented: bool = False,
        seed: int = 0,
        enough: int | None = None,
        name: str = "",
    ) -> None:
        self.name = name
        self.indices, self.targets, self.classes = list(indices), list(targets), list(classes)
        self.transform, self.augmented = transform, augmented
        self._images, self._channels, self._seed, self._enough = images, channels, seed, enough
        # Shared, so that workers which outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # What each worker is reading, and its process: one that is killed can no longer say it.
        self._reading = torch.full((_MOST_WORKERS, 2), -1).share_memory_()

    @property
    def files(self) -> list[str] | None:
        """The images' files, where they are files of their own."""
        return None if self._images.files is None else [self._images.files[index] for index in self.indices]

    def checksum(self) -> str:
        """Return 16 hexadecimal digits that tell these images, as the network is given them, from others.

        Files are told apart by name, size and time of change; of images and transform, eight images are looked at.
        """
        digest = hashlib.blake2b(digest_size=8)
        for place, file in enumerate(self.files or ()):
            status = Path(file).stat()
            digest.update(f"{place} {file} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogatepass"))
        digest.update(repr((self.indices, self.targets, list(self.classes))).encode(errors="surrogatepass"))
        for place in sorted({number * (len(self) - 1) // 7 for number in range(8)} if len(self) else ()):
            image = self[place][0].contiguous()
            digest.update(f"{image.dtype} {tuple(image.shape)}".encode())
            digest.update(image.numpy().data)
        return digest.hexdigest()

    def without_classes(self) -> LabeledImages:
        """Return the same images without their classes."""
        return LabeledImages(
            self._images,
            self.indices,
            [-1] * len(self.indices),
            (),
            self.transform,
            channels=self._channels,
            augmented=self.augmented,
            seed=self._seed,
            enough=self._enough,
            name=self.name,
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the random changes of an epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = self.indices[index]
        worker = get_worker_info()
        noted = worker is not None and worker.id < _MOST_WORKERS
        if worker is not None and noted:
            self._reading[worker.id] = torch.tensor((os.getpid(), number))
        image = self._images.read(number, self._enough)
        try:
            found = self._transformed(_in_channels(image, self._channels), number), self.targets[index]
        except Exception as error:
            # Of hundreds of images that workers read, which one?
            kind = MemoryError if isinstance(error, MemoryError) else ValueError
            raise kind(f"{self._named(number)} cannot be transformed ({type(error).__name__}: {error})") from error
        if worker is not None and noted:
            self._reading[worker.id, 1] = -1
        return found

    def readers(self) -> list[int]:
        """Return the processes of the workers that are reading an image, or were when they ended."""
        return [worker for worker, number in self._reading.tolist() if number >= 0]

    def read_by(self, process: int) -> str | None:
        """Return what a worker was reading when it was killed, by its process; None where it was reading nothing."""
        numbers = [number for worker, number in self._reading.tolist() if worker == process and number >= 0]
        return self._named(numbers[0]) if numbers else None

    def _named(self, number: int) -> str:
        return f"image {number}" if self._images.files is None else self._images.files[number]

    def _transformed(self, image: Any, number: int) -> Tensor:
        if not self.augmented:
            return self.transform(image)
        with _drawing(f"{self._seed}/{int(self._epoch)}/{number}"):
            return self.transform(image)


class EpochOrder(DistributedSampler[tuple[Tensor, int]]):
    """An order of its own for each epoch, and for each seed; the images' random changes go along with it."""

    def __init__(self, images: LabeledImages, seed: int, ranks: int, rank: int) -> None:
        # torch adds the epoch to the seed: another seed's epochs are to be others.
        super().__init__(images, num_replicas=ranks, rank=rank, shuffle=True, seed=seed_of(f"order/{seed}") >> 16)
        self._images = images

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        super().set_epoch(epoch)
        self._images.set_epoch(epoch)


@contextmanager
def _drawing(key: str) -> Iterator[None]:
    """Draw random numbers by a key; the random state stays as it was."""
    # The CPU's alone: torch.manual_seed would also start a GPU's numbers anew, on which dropout may draw.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed_of(key))
    try:
        yield
    finally:
        generator.set_state(state)


def _in_channels(image: Any, channels: int) -> Any:
    """Return a PIL image, or a tensor `(C, H, W)`, with 1 or 3 channels."""
    if not isinstance(image, Tensor):
        return image.convert("L" if channels == 1 else "RGB")
    return to_image(image.mean(0, keepdim=True) if channels < len(image) else image.expand(channels, -1, -1))
