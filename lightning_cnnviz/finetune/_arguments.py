"""The arguments of FineTuner: what is refused, and what of them is saved with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch

from lightning_cnnviz.core.network.suggestions import suggestion
from lightning_cnnviz.finetune.freezing import Mode
from lightning_cnnviz.finetune.optimization import check_options, find_class

__all__ = ["check_class_options", "check_mode", "check_numbers", "check_optimizer", "image_size_of", "plain_settings"]

_SIZE = (3, 224, 224)
_MODES = get_args(Mode)


def check_numbers(lr: float, layer_decay: float, warmup_epochs: float, label_smoothing: float, mixup: float) -> None:
    if not lr > 0:
        raise ValueError(f"lr={lr}: give a learning rate above 0")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay={layer_decay}: give a factor in (0, 1]; 1 for one learning rate everywhere")
    if not 0 <= warmup_epochs < float("inf"):
        raise ValueError(f"warmup_epochs={warmup_epochs}: give 0 or more")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: give a fraction in [0, 1)")
    if not 0 <= mixup < float("inf"):
        raise ValueError(f"mixup={mixup}: give 0 for none, or the parameter of Beta(mixup, mixup), 0.2 say")


def check_mode(mode: str, unfreeze_at: Sequence[int] | None, cache_features: bool, mixup: float) -> None:
    if mode not in _MODES:
        raise ValueError(f'mode={mode!r}: give "head", "full" or "staged". {suggestion(str(mode), _MODES)}'.rstrip())
    if mode != "staged" and unfreeze_at is not None:
        raise ValueError(f'unfreeze_at={list(unfreeze_at)} is for mode="staged"; the mode is "{mode}"')
    if mode == "staged":
        epochs = list(unfreeze_at or ())
        whole = all(isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= 0 for epoch in epochs)
        if not epochs or not whole or epochs != sorted(epochs):
            raise ValueError(
                f"unfreeze_at={unfreeze_at}: give the epochs, ascending and counted from 0, at which the next stage "
                "from the top is unfrozen, for example [2, 4, 6]"
            )
    if cache_features and mode != "head":
        raise ValueError(f'cache_features=True needs mode="head", where the backbone does not change; got "{mode}"')
    if cache_features and mixup:
        raise ValueError(f"cache_features=True: images that are mixed (mixup={mixup}) have no features of their own")


def check_class_options(
    num_classes: int, class_weights: Sequence[float] | None, class_names: Sequence[str] | None
) -> None:
    for name, values in (("class_weights", class_weights), ("class_names", class_names)):
        if values is not None and len(values) != num_classes:
            raise ValueError(f"{name} has {len(values)} entries for num_classes={num_classes}; give one a class")
    if class_weights is not None and (min(class_weights) < 0 or not any(class_weights)):
        raise ValueError(f"class_weights={list(class_weights)}: give weights of 0 or more, not all of them 0")


def check_optimizer(optimizer: str | Callable[..., Any], lr: float, options: dict[str, Any] | None) -> None:
    if isinstance(optimizer, str):
        kind = find_class(optimizer, torch.optim, torch.optim.Optimizer, "optimizer")
        check_options(kind, {"lr": lr, **(options or {})}, f"optimizer_options of {optimizer}")
    elif options:
        raise ValueError(f"optimizer_options={options}: give them to your callable itself (functools.partial)")


def image_size_of(image_size: Sequence[int] | None) -> tuple[int, int, int]:
    """`(C, H, W)`, checked; by default that of ImageNet."""
    size = tuple(_SIZE if image_size is None else image_size)
    if len(size) != 3 or any(not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"image_size={image_size}: give (channels, height, width), for example {_SIZE}")
    return (size[0], size[1], size[2])


def plain_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those arguments that a checkpoint read with `weights_only=True` can hold; tuples as lists."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
        if name != "sinks" and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (str, int, float, bool))
