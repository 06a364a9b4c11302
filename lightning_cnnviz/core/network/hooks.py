"""Looking into a network during a pass, and leaving it as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.jit import ScriptModule
from torch.jit._trace import TopLevelTracedModule
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from lightning_cnnviz.core.network.layers import LayerNotFoundError

__all__ = [
    "Site",
    "analysis_mode",
    "hooked",
    "hooks_within",
    "keep_random_state",
    "model_device",
    "takes_hooks",
    "watched",
]

# Which analysis is under way: hooks fire in the one that made them, so that no look takes another's pass for its own.
_ANALYSIS: ContextVar[object | None] = ContextVar("analysis", default=None)
# What hooks that are made now will run within, whoever's pass it is in which they fire.
_AROUND: ContextVar[Callable[[], AbstractContextManager[Any]]] = ContextVar("around", default=nullcontext)


class Site(NamedTuple):
    """Where feature maps are read: what a module returns, or the first argument it is given.

    Attributes:
        module: The module.
        side: Which of the two.
        channels_last: Whether the maps are `(N, H, W, C)`; readers are handed them as `(N, C, H, W)`, a view. Those of
            signals and volumes likewise.
    """

    module: nn.Module
    side: Literal["input", "output"] = "output"
    channels_last: bool = False


def model_device(model: nn.Module) -> torch.device:
    """Return where a network is."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def takes_hooks(module: nn.Module) -> bool:
    """Return whether hooks on a module run: not in what `torch.jit` has traced or scripted, where a graph runs."""
    return not isinstance(module, ScriptModule) or isinstance(module, TopLevelTracedModule)


@contextmanager
def analysis_mode(model: nn.Module) -> Iterator[None]:
    """Run a network for analysis: every module in eval mode, no gradients, no compiled code, and no trace left.

    On leaving, also through an exception, the training flag of *every* submodule and the state of every random number
    generator are as before. Open it before touching a data loader: iterating one draws from the global generator.

    Inference mode is switched off inside, so that tensors made here can be kept and written to later; and attention
    runs in its single steps, not as one fused operation that has no derivative and passes by the hooks of its layers.
    """
    # What torch.jit has frozen has no such flag, and is in eval mode for good.
    flags = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    with (
        keep_random_state(),
        _single_steps_of_attention(),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        token = _ANALYSIS.set(object())
        try:
            for module, _ in flags:
                # Not model.eval(): users override it, and restoring with train(flag) wakes frozen BatchNorms.
                module.training = False
            yield
        finally:
            for module, flag in flags:
                module.training = flag
            _ANALYSIS.reset(token)


@contextmanager
def _single_steps_of_attention() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def keep_random_state() -> Iterator[None]:
    """Restore Python's, numpy's and torch's (CPU and GPU) random states on leaving."""
    python_state, numpy_state, cpu_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpu_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu_state)
        if gpu_states is not None:
            torch.cuda.set_rng_state_all(gpu_states)


@contextmanager
def hooks_within(around: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Let each call of a hook that `hooked` makes inside run within a context of its own, also later: to time it."""
    token = _AROUND.set(around)
    try:
        yield
    finally:
        _AROUND.reset(token)


@contextmanager
def hooked(sites: Mapping[str, Site], on_value: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `on_value(name, value)` whenever the value at one of `sites` has been computed; no hook stays on leaving.

    Hooks that are made inside `analysis_mode` fire inside that very block alone; those made outside, outside.

    The value is the network's own, live: an in-place operation that follows overwrites it, so clone what is kept. In a
    pass that somebody else makes, an error of `on_value` does not interrupt the pass: it is raised on leaving.

    Raises:
        LayerNotFoundError: A site is inside of what `torch.jit` has traced, scripted or frozen, where no hook runs.
    """
    for name, (module, *_) in sites.items():
        if not takes_hooks(module):
            who = f"layer '{name}' is part of a network that" if name else "the network is one that"
            raise LayerNotFoundError(
                f"{who} torch.jit has traced, scripted or frozen, which runs as one piece: its layers cannot be read. "
                "Give the network that it was made from"
            )
    handles = []
    analysis, around = _ANALYSIS.get(), _AROUND.get()
    errors: list[Exception] = []

    def tell(name: str, value: Any) -> None:
        if _ANALYSIS.get() is analysis and not errors:
            try:
                with around():
                    on_value(name, _by_channel(value) if sites[name].channels_last else value)
            except Exception as error:
                if analysis is not None:
                    raise
                errors.append(error)

    def after(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: tell(name, output)

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _module, inputs: tell(name, inputs[0] if inputs else None)

    try:
        for name, (module, side, _) in sites.items():
            if side == "output":
                handles.append(module.register_forward_hook(after(name)))
            else:
                handles.append(module.register_forward_pre_hook(before(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if errors:
        raise errors[0]


def _by_channel(maps: Any) -> Any:
    return maps.movedim(-1, 1) if isinstance(maps, torch.Tensor) and maps.ndim > 2 else maps


@contextmanager
def watched(sites: Mapping[str, Site], on_value: Callable[[str, Any], None]) -> Iterator[None]:
    """Call `on_value(name, value)` whenever the value at one of `sites` has been computed, as `hooked` does.

    The hooks are torch's own for all modules of the process, and nothing is attached to the network: during a training
    step it belongs to its owner, who may copy it whole (an average of weights) or look at its hooks.
    """
    errors: list[Exception] = []

    def tell(name: str, value: Any) -> None:
        if not errors:
            try:
                on_value(name, value)
            except Exception as error:
                errors.append(error)

    after: dict[nn.Module, list[str]] = {}
    before: dict[nn.Module, list[str]] = {}
    for name, site in sites.items():
        (after if site.side == "output" else before).setdefault(site.module, []).append(name)

    def on_output(module: nn.Module, _inputs: Any, output: Any) -> None:
        for name in after.get(module, ()):
            tell(name, output)

    def on_input(module: nn.Module, inputs: Any) -> None:
        for name in before.get(module, ()) if inputs else ():
            tell(name, inputs[0])

    handles = []
    try:
        handles.append(register_module_forward_hook(on_output))
        if before:
            handles.append(register_module_forward_pre_hook(on_input))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if errors:
        raise errors[0]
