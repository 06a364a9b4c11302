"""Small LightningModules as users write them, and their data: what the contract of all monitors is tried with."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

CLASSES, SIZE = 3, 10


# Networks, and parts of them.


def backbone(channels: int = 1, **options: Any) -> nn.Sequential:
    """Two convolutions."""
    return nn.Sequential(nn.Conv2d(channels, 3, 3, **options), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU())


def head(outputs: int = CLASSES) -> nn.Sequential:
    """Pools, and classifies."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs))


def convnet(outputs: int = CLASSES, channels: int = 1) -> nn.Sequential:
    """A backbone and a head."""
    return nn.Sequential(*backbone(channels), *head(outputs))


class Sum(nn.Module):
    """Adds a line to what a part returns."""

    def __init__(self, part: nn.Module, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.part, self._change = part, change

    def forward(self, images: Tensor) -> Any:
        return self._change(self.part(images))


@dataclass
class Output:
    """A dataclass, as some networks return."""

    logits: Tensor
    features: Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """A mapping with attributes, as Hugging Face's."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class VisionTransformer(nn.Module):
    """One convolution cuts patches; all else is attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 5, stride=5)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))
        return logits


class UNet(nn.Module):
    """Down and up, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        wide = F.relu(self.down(images))
        low = F.interpolate(F.relu(self.deep(F.max_pool2d(wide, 2))), size=wide.shape[-2:])
        scores: Tensor = self.up(torch.cat([wide, low], 1))
        return scores


class Metadata(nn.Module):
    """Takes an image and numbers that go with it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.pool = backbone(), nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(4 + 2, CLASSES)

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.cat([self.pool(self.backbone(images)).flatten(1), meta], 1))
        return logits


# LightningModules.


class Base(pl.LightningModule):
    """Trains by its `loss`; each is SGD with momentum."""

    def loss(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Classifier(Base):
    """Has a network, and a loss of its output and labels."""

    def __init__(self, net: nn.Module | None = None, loss_of: Callable[[Any, Any], Tensor] = F.cross_entropy) -> None:
        super().__init__()
        self.net = convnet() if net is None else net
        self._loss_of = loss_of

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def loss(self, batch: Any) -> Tensor:
        return self._loss_of(self(batch[0]), batch[1])


class WithoutForward(Base):
    """Backbone and head are its children, and each step calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = backbone(), head()

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.head(self.backbone(batch[0])), batch[1])


class OneChild(Base):
    """One child, which each step calls."""

    def __init__(self) -> None:
        super().__init__()
        self.model = convnet()

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])


class Heads(Base):
    """Two tasks share a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.heads = nn.ModuleDict({"species": head(3), "age": head(2)})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        return {name: each(features) for name, each in self.heads.items()}

    def loss(self, batch: Any) -> Tensor:
        output = self(batch[0])
        return F.cross_entropy(output["species"], batch[1]) + F.cross_entropy(output["age"], batch[1] % 2)


class Autoencoder(Base):
    """Returns what it is given, as well as it can."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU())
        self.decoder = nn.ConvTranspose2d(4, 1, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.decoder(self.encoder(images))
        return output

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[0])


class Generative(Base):
    """Two networks, two optimizers and steps by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, SIZE * SIZE), nn.Unflatten(1, (1, SIZE, SIZE)))
        self.discriminator = convnet(1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[attr-defined]
        noise = torch.randn(len(batch[0]), 4)
        for optimizer, real in ((first, False), (second, True)):
            made = self.discriminator(self.generator(noise))
            loss = F.softplus(made if real else -made).mean()
            if real:
                loss = loss + F.softplus(-self.discriminator(batch[0])).mean()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.discriminator(batch[0])

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.generator, self.discriminator)]


class Detector(Base):
    """Takes a list of images of any size, and gives boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.box = backbone(), head(4)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"boxes": self.box(self.backbone(image[None]))} for image in images]

    def loss(self, batch: Any) -> Tensor:
        images, targets = batch
        pairs = zip(self(images), targets, strict=True)
        return torch.stack([F.l1_loss(found["boxes"], target["boxes"]) for found, target in pairs]).mean()


class ByName(Base):
    """Batches are mappings."""

    def __init__(self, images: str = "image", labels: str = "label") -> None:
        super().__init__()
        self.net, self._images, self._labels = convnet(), images, labels

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[self._images]), batch[self._labels])


class WithMetadata(Base):
    """Its network takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Metadata()

    def forward(self, images: Tensor, meta: Tensor) -> Tensor:
        logits: Tensor = self.net(images, meta)
        return logits

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch["image"], batch["meta"]), batch["label"])


class Configured(Base):
    """Its layers are made in `configure_model`."""

    def __init__(self) -> None:
        super().__init__()
        self.net: nn.Module | None = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = convnet()

    def forward(self, images: Tensor) -> Tensor:
        assert self.net is not None
        logits: Tensor = self.net(images)
        return logits

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


class OfBytes(Classifier):
    """Takes uint8, and normalises inside."""

    def forward(self, images: Tensor) -> Any:
        return self.net(images.float() / 127.5 - 1)


class Tuned(Classifier):
    """What the tuner changes."""

    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 4

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(labelled(12), batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(labelled(7, seed=1), batch_size=4)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Tied(nn.Module):
    """One convolution runs twice, and two layers share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.copy = (nn.Conv2d(n, 4, 3, padding=1) for n in (1, 4, 4))
        self.copy.weight = self.twice.weight
        self.head = head()

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.twice(F.relu(self.twice(F.relu(self.first(images))))))
        logits: Tensor = self.head(F.relu(self.copy(features)))
        return logits


def frozen_batch_norm() -> nn.Sequential:
    """BatchNorm, one of them in eval mode for good."""
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head()
    )
    net[4].eval()
    return net


def lazy() -> nn.Sequential:
    """Layers that learn their shapes from the first batch."""
    return nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.LazyConv2d(4, 3), nn.ReLU(), *head())


def weight_normed() -> nn.Sequential:
    """Weights that are computed."""
    wrap = nn.utils.parametrizations.weight_norm
    return nn.Sequential(wrap(nn.Conv2d(1, 3, 3)), nn.ReLU(), wrap(nn.Conv2d(3, 4, 3)), nn.ReLU(), *head())


def quantized() -> nn.Module:
    """Convolutions in whole numbers, under a layer that learns."""
    part = nn.Sequential(torch.ao.quantization.QuantStub(), *backbone(), torch.ao.quantization.DeQuantStub()).eval()
    part.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    torch.ao.quantization.prepare(part, inplace=True)
    part(torch.rand(4, 1, SIZE, SIZE))
    torch.ao.quantization.convert(part, inplace=True)
    return nn.Sequential(part, *head())


def dense_net() -> nn.Sequential:
    """No convolution."""
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def of_signals() -> nn.Sequential:
    """One dimension."""
    pool = (nn.AdaptiveAvgPool1d(1), nn.Flatten())
    return nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Conv1d(3, 4, 3), nn.ReLU(), *pool, nn.Linear(4, CLASSES))


def of_volumes() -> nn.Sequential:
    """Three dimensions."""
    pool = (nn.AdaptiveAvgPool3d(1), nn.Flatten())
    return nn.Sequential(nn.Conv3d(1, 3, 3), nn.ReLU(), nn.Conv3d(3, 4, 3), nn.ReLU(), *pool, nn.Linear(4, CLASSES))


# Data.


def images(count: int = 12, channels: int = 1, *, seed: int = 0, size: tuple[int, ...] = (SIZE, SIZE)) -> Tensor:
    """Random ones, the same for a seed."""
    return torch.rand(count, channels, *size, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 12) -> Tensor:
    """Each class in turn."""
    return torch.arange(count) % CLASSES


def labelled(count: int = 12, channels: int = 1, *, seed: int = 0, **options: Any) -> TensorDataset:
    """Images with the class of each."""
    return TensorDataset(images(count, channels, seed=seed, **options), labels(count))


def pairs(second: Callable[[Tensor], Tensor]) -> Callable[[int, int], TensorDataset]:
    """Images, and what is made of them."""
    return lambda count, seed: TensorDataset(images(count, seed=seed), second(images(count, seed=seed)))


class Listed(Dataset[Any]):
    """A data set of whatever is listed."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Streamed(IterableDataset[Any]):
    """Gives images one after the other."""

    def __init__(self, count: int, seed: int = 0) -> None:
        self.data = labelled(count, seed=seed)

    def __iter__(self) -> Iterator[Any]:
        return iter([self.data[index] for index in range(len(self.data))])


def mappings(count: int, seed: int, names: tuple[str, str] = ("image", "label"), meta: bool = False) -> Listed:
    """Items that are mappings."""
    items = []
    for image, label in labelled(count, seed=seed):
        items.append({names[0]: image, names[1]: label} | ({"meta": torch.ones(2)} if meta else {}))
    return Listed(items)


def boxes(count: int, seed: int) -> Listed:
    """Images with a box each."""
    return Listed([(image, {"boxes": torch.rand(1, 4)}) for image in images(count, seed=seed)])


def as_lists(items: list[Any]) -> tuple[list[Any], list[Any]]:
    """How detectors are given batches."""
    return [image for image, _ in items], [target for _, target in items]
