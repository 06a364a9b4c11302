"""What a monitor needs to know of the trainer and the LightningModule that it was given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch import nn

from lightning_cnnviz.core.network.arguments import WrongArgumentError
from lightning_cnnviz.report import Step

__all__ = [
    "averaging_callback",
    "batch_limit",
    "chosen_loader",
    "data_loaders",
    "defines",
    "defines_forward",
    "find_network",
    "is_compiled",
    "is_tuning",
    "late_weights",
    "learning_loaders",
    "makes_layers_late",
    "mixed_precision",
    "of_one_size",
    "refuse_compiled",
    "refuse_sharded",
    "source_of",
    "step_of",
    "validated_weights",
]

_PACKAGES = ("lightning.", "pytorch_lightning.")


def find_network(who: str, pl_module: Any, model: str | None, *, called: bool = True) -> nn.Module:
    """Return the network of a LightningModule: the one that is named, itself where it has a forward, or its only child.

    Args:
        who: Names the asker in messages.
        pl_module: The LightningModule.
        model: The submodule's name; None where it is to be found.
        called: Whether the asker calls the network, so that it can be told how, by `forward_fn`.

    Raises:
        ValueError: There is no such submodule, or it is not clear which is meant.
    """
    kind = type(pl_module).__name__
    if model is not None:
        named: dict[str, nn.Module] = dict(pl_module.named_modules())
        if model not in named:
            there = ", ".join(f'"{name}"' for name, _ in pl_module.named_children())
            raise WrongArgumentError(f'{who}(model="{model}"): {kind} has no such submodule; it has {there or "none"}')
        return named[model]
    if defines_forward(pl_module):
        assert isinstance(pl_module, nn.Module)
        return pl_module
    children: dict[str, nn.Module] = dict(pl_module.named_children())
    convnets = {
        name: child
        for name, child in children.items()
        if any(isinstance(module, nn.Conv2d) for module in child.modules())
    }
    if len(convnets) == 1:
        return next(iter(convnets.values()))
    if len(children) == 1:
        return next(iter(children.values()))
    there = ", ".join(f'"{name}"' for name in convnets or children) or "none"
    problem = "several of its submodules may be the network" if convnets else "none of its submodules has a Conv2d"
    mend = 'define forward, or give model="<name>"' + (" or forward_fn=lambda network, batch: ..." if called else "")
    raise ValueError(f"{who}: {kind} defines no forward, and {problem} ({there}); {mend}")


def defines_forward(pl_module: Any) -> bool:
    """Tell whether a LightningModule has a `forward` of its own."""
    return defines(pl_module, "forward")


def makes_layers_late(pl_module: Any) -> bool:
    """Return whether a LightningModule may make its layers after set-up: in `configure_model`."""
    return defines(pl_module, "configure_model")


def defines(pl_module: Any, method: str) -> bool:
    """Tell whether a LightningModule has a method of its own, and not Lightning's."""
    owner = next((base for base in type(pl_module).__mro__ if method in vars(base)), None)
    return owner is not None and not owner.__module__.startswith(_PACKAGES)


def chosen_loader(loaders: Any, dataloader_idx: int) -> Any:
    """Return one of several loaders, given as a loader, a list or a mapping of them.

    Raises:
        ValueError: There are not so many.
    """
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if not isinstance(loaders, (list, tuple)):
        loaders = [loaders]
    if dataloader_idx >= len(loaders):
        raise WrongArgumentError(f"dataloader_idx={dataloader_idx}: there are {len(loaders)} loaders")
    return loaders[dataloader_idx]


def data_loaders(trainer: Any) -> Any:
    """Return the loaders of the stage's own images: test's in `trainer.test`, else validation's; None without any."""
    if trainer.state.fn == "test":
        return trainer.test_dataloaders
    if trainer.val_dataloaders is None and trainer.state.fn == "fit" and trainer.enable_validation:
        # Without a sanity check, Lightning makes them only when the first validation is due.
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return trainer.val_dataloaders


def batch_limit(trainer: Any, dataloader_idx: int) -> int | None:
    """Return how many batches of a loader of the stage's own are looked at in a pass; None for all of it."""
    limits = trainer.num_test_batches if trainer.state.fn == "test" else trainer.num_val_batches
    limit = limits[dataloader_idx] if dataloader_idx < len(limits) else float("inf")
    return None if limit == float("inf") else int(limit)


def source_of(trainer: Any, dataloader_idx: int) -> str:
    """Return which of the trainer's own images are looked at, for people: the stage's, and of several loaders which."""
    stage = "test" if trainer.state.fn == "test" else "validation"
    loaders = data_loaders(trainer)
    names = list(loaders) if isinstance(loaders, dict) else []
    count = len(loaders) if isinstance(loaders, (dict, list, tuple)) else 1
    if count < 2:
        return f"{stage} images"
    name = f' "{names[dataloader_idx]}"' if names else ""
    return f"{stage} loader {dataloader_idx}{name} of {count}"


def averaging_callback(trainer: Any) -> Any:
    """Return the callback that validates averaged weights while training goes on with others; None without one."""
    if trainer.state.fn != "fit":
        return None
    averaging = (each for each in trainer.callbacks if getattr(each, "_average_model", None) is not None)
    return next((each for each in averaging if hasattr(each, "_swap_models")), None)


def late_weights(trainer: Any) -> str:
    """Say where the network that a fit leaves is none that was looked at; "" where it is."""
    averaging = any(isinstance(each, StochasticWeightAveraging) and each._initialized for each in trainer.callbacks)
    if trainer.state.fn != "fit" or not averaging:
        return ""
    return (
        "StochasticWeightAveraging has put its averaged weights into the network when all looks were made: "
        "trainer.validate(model, loader) looks at them"
    )


@contextmanager
def validated_weights(trainer: Any) -> Iterator[None]:
    """Look at the weights that validation uses: between validations, Lightning's `WeightAveraging` keeps others."""
    averaging = averaging_callback(trainer)
    if averaging is None:
        yield
        return
    averaging._swap_models(trainer.lightning_module)
    try:
        yield
    finally:
        averaging._swap_models(trainer.lightning_module)


def learning_loaders(trainer: Any, data: Any, dataloader_idx: int) -> tuple[Any, Any]:
    """Return the loader to learn from, and that of a test set of its own or None.

    Given data is a loader or a pair of them. Else it is the trainer's: in fit the training and the validation set,
    elsewhere the stage's own set alone.

    Raises:
        ValueError: There are not so many loaders.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return data[0], data[1]
    if data is not None:
        return data, None
    loaders = data_loaders(trainer)
    if trainer.state.fn != "fit":
        return chosen_loader(loaders, dataloader_idx), None
    without_test = loaders is None or trainer.limit_val_batches == 0
    return chosen_loader(trainer.train_dataloader, 0), None if without_test else chosen_loader(loaders, dataloader_idx)


def learning_source(trainer: Any, data: Any, dataloader_idx: int) -> str:
    """Return which images `learning_loaders` gives, for people; "" for given ones."""
    if data is not None:
        return ""
    if trainer.state.fn != "fit":
        return source_of(trainer, dataloader_idx)
    return "training images" + (f", {source_of(trainer, dataloader_idx)}" if trainer.enable_validation else "")


@contextmanager
def of_one_size() -> Iterator[None]:
    """Say what it means that images which were drawn cannot be put into one batch."""
    try:
        yield
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        raise ValueError(
            "images that are drawn from the data set are of different sizes, and no batch can be made of them: give "
            "data=<a loader> whose transforms make them of one size"
        ) from error


def is_compiled(trainer: Any, network: nn.Module) -> bool:
    """Return whether passes that the trainer makes over a network run compiled code, which does not see hooks."""
    return getattr(trainer.lightning_module, "_compiler_ctx", None) is not None or _has_compiled_parts(network)


def _has_compiled_parts(network: nn.Module) -> bool:
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in network.modules()
    )


def refuse_compiled(who: str, network: nn.Module, *, compiled: bool = False) -> None:
    """Refuse a network whose training steps cannot be read: compiled code does not see hooks, or is compiled with them.

    Raises:
        ValueError: It is compiled, or some module of it is.
    """
    if compiled or _has_compiled_parts(network):
        raise ValueError(
            f"{who} reads features in the training step, which compiled networks (torch.compile) do not show: use "
            "LayerProbeMonitor, which makes passes of its own, or train uncompiled"
        )


def refuse_sharded(who: str, trainer: Any) -> None:
    """Refuse weights that are cut up among processes: by FSDP, tensor parallelism or DeepSpeed's ZeRO stage 3.

    Raises:
        ValueError: They are.
    """
    model = trainer.strategy.model
    whole = all(
        type(module).__name__ != "FullyShardedDataParallel"
        and not any(
            hasattr(weight, "full_tensor") or hasattr(weight, "ds_id") for weight in module._parameters.values()
        )
        for module in model.modules()
    )
    if not whole:
        raise ValueError(
            f"{who} looks at whole weights, and {type(trainer.strategy).__name__} has cut them up among processes (as "
            'FSDP, tensor parallelism and ZeRO stage 3 do): train with strategy="ddp", or look at whole weights that '
            "were saved, with cnnviz explore"
        )


def is_tuning(trainer: Any) -> bool:
    """Return whether a run is the Tuner's, who only looks for a learning rate or a batch size."""
    return any(getattr(callback, "_early_exit", False) for callback in trainer.callbacks)


def step_of(trainer: Any) -> Step:
    """Return when a look is taken."""
    stage = str(trainer.state.fn.value)
    epoch, within = _epochs(trainer.fit_loop) if stage == "fit" else (trainer.current_epoch, 0.0)
    return Step(epoch=epoch, global_step=trainer.global_step, stage=stage, logged=_logged_at(trainer), within=within)


def _logged_at(trainer: Any) -> tuple[int, int]:
    """The epoch and the step under which Lightning logs this moment's numbers, whichever hook we are in."""
    loop = trainer.fit_loop
    stepped, epochs = loop.epoch_loop._batches_that_stepped, loop.epoch_progress.current
    if str(trainer.state.fn.value) != "fit" or epochs.started > epochs.processed:
        return trainer.current_epoch, stepped
    # After its last batch an epoch's numbers still belong to that batch's step.
    return max(epochs.processed - 1, 0), max(stepped - 1, 0)


def _epochs(fit_loop: Any) -> tuple[int, float]:
    """How many epochs have made all their steps, and how much of the one under way: 0 where its length is not known.

    Lightning's own count waits for the hooks and the validation.
    """
    epochs, progress = fit_loop.epoch_progress.current, fit_loop.epoch_loop.batch_progress
    batches, complete = progress.current, int(epochs.processed)
    if epochs.started <= complete:
        return complete, 0.0
    if batches.ready > 0 and batches.processed == batches.ready and fit_loop.epoch_loop.done:
        return complete + 1, 0.0
    length = fit_loop.max_batches
    if not math.isfinite(length):  # a stream: as long as those before it
        length = (progress.total.processed - batches.processed) / max(complete, 1)
    return complete, round(min(batches.processed / length, 0.999999), 6) if length > 0 else 0.0


def mixed_precision(trainer: Any) -> AbstractContextManager[Any]:
    """Run networks as the trainer does where it casts inside a pass.

    Where the trainer has cast the weights themselves there is nothing to do; its own context would also change the
    default dtype of everything that an analysis makes.
    """
    plugin = trainer.precision_plugin
    return plugin.forward_context() if str(plugin.precision).endswith("-mixed") else nullcontext()
