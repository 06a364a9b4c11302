"""Network surgery: layers left out or resized in a copy, whose other layers are rebuilt where shapes have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lightning_cnnviz.core.network.hooks import analysis_mode, model_device
from lightning_cnnviz.core.network.layers import LayerNotFoundError, select_layers
from lightning_cnnviz.core.network.twins import copy_network
from lightning_cnnviz.studies._forward_record import ForwardRecord, operation_in_words, shapes_of
from lightning_cnnviz.studies._layer_kinds import (
    Conv,
    Norm,
    count_parameters,
    describe,
    given_width,
    inputs_of,
    is_depthwise,
    is_rebuildable,
    outputs_of,
    rebuild,
)

__all__ = ["AblatedNetwork", "LayerChange", "ablate"]

_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softplus),
)


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """What has become of one layer.

    Attributes:
        name: Its name in `named_modules()`.
        action: `"removed"` or `"resized"`, as was asked; `"repaired"`, since its input has changed.
        old: The layer as it was.
        new: The layer as it is.
        parameters_before: Number of its parameters as it was.
        parameters_after: Number of its parameters as it is.
    """

    name: str
    action: Literal["removed", "resized", "repaired"]
    old: str
    new: str
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True, eq=False, kw_only=True)
class AblatedNetwork:
    """A changed copy of a network.

    Attributes:
        model: The copy; layers that were left out are `nn.Identity`, so that all names stay.
        parameters_before: Number of parameters of the network.
        parameters_after: Number of parameters of the copy.
        changes: Every layer that is not as it was, in the order of `named_modules()`.
    """

    model: nn.Module
    parameters_before: int
    parameters_after: int
    changes: tuple[LayerChange, ...]

    @property
    def dropped(self) -> int:
        """How many parameters the copy has less; negative where it has more."""
        return self.parameters_before - self.parameters_after


def ablate(
    model: nn.Module,
    image: Tensor,
    *,
    remove: Sequence[str] = (),
    resize: Mapping[str, int] | None = None,
    seed: int = 0,
) -> AblatedNetwork:
    """Return a copy of a network in which layers are left out or have another number of outputs (Zeiler & Fergus, 4.1).

    The copy is run on an image, and whatever layer is given features of another width than it takes is rebuilt: a
    convolution (one that is depthwise stays so), a linear layer, a norm. Rebuilt layers have fresh weights, drawn as
    torch does by default from the seed and the layer's name alone; all others keep theirs. An auxiliary head that runs
    in training alone is repaired, too.

    With a convolution or a linear layer goes what belongs to it alone: the norm that directly follows it, and the
    activation that directly follows either, where these are modules that run once. So without AlexNet's
    `classifier.1` its ReLU is gone as well. A functional activation stays: behind another ReLU it does nothing. Where
    two dropouts now meet, the second one is left out. A block or any other layer is left out by itself.

    Args:
        model: The network; it stays as it is, as does all random state.
        image: `(1, C, H, W)`.
        remove: Names of layers to leave out: convolutions, linear layers, or any module that takes a tensor and
            returns one.
        resize: New numbers of outputs, by the names of convolutions and linear layers.
        seed: Of the fresh weights.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run.
        ValueError: Shapes do not fit and cannot be repaired, as in a sum of features of other widths, or in a grouped
            convolution; or the classifier itself would change.
        TypeError: A layer cannot be left out, or has no number of outputs.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
        >>> ablated = ablate(model, torch.rand(1, 3, 8, 8), resize={"0": 4})
        >>> [(change.name, change.action, change.new) for change in ablated.changes][1:]
        [('1', 'repaired', 'BatchNorm2d(4)'), ('4', 'repaired', 'Linear(144 to 5)')]
        >>> ablated.parameters_before, ablated.parameters_after
        (1685, 845)
    """
    widths = dict(resize or {})
    asked = ", ".join(
        [f"remove={list(remove)}"] * bool(remove) + [f"resize={widths}"] * bool(widths or not remove),
    )
    changed = copy_network(getattr(model, "_orig_mod", model))
    surgery = _Surgery(changed, image[:1].detach(), seed)
    with analysis_mode(changed):
        surgery.examine()
        try:
            surgery.cut(remove, widths)
            surgery.repair()
        except _MisfitError as misfit:
            raise ValueError(f"{asked}: {misfit}") from misfit.__cause__
    return surgery.result()


class _MisfitError(Exception):
    """Shapes do not fit; says which, and where."""


class _Surgery:
    """A copy of a network, and what is done to it."""

    def __init__(self, model: nn.Module, image: Tensor, seed: int) -> None:
        self.model, self.seed = model, seed
        self._who = type(model).__name__
        dtype = next((parameter.dtype for parameter in model.parameters()), image.dtype)
        self.image = image.to(model_device(model), dtype if image.is_floating_point() else image.dtype).clone()
        self._removed: dict[str, nn.Module] = {}
        self._old: dict[str, tuple[str, int]] = {}  # of rebuilt layers: as they were
        self._resized: set[str] = set()
        self._widths: dict[str, int] = {}  # what each layer was given
        self._trains = False

    def examine(self) -> None:
        """Run the network as it is."""
        self.before = ForwardRecord(self.model)
        try:
            self.before.run(self.image)
        except Exception as error:
            raise ValueError(
                f"{self._who} cannot be run on an image of shape {tuple(self.image.shape)}: {error}"
            ) from error
        # Not before: lazy layers have parameters only now.
        self.parameters = count_parameters(self.model)
        self.modules = {name: module for name, module in self.model.named_modules() if name}
        self.order = list(self.modules)
        weighted = [name for name in self.before.left if isinstance(self.modules.get(name), (Conv, nn.Linear))]
        self.classifier = weighted[-1] if weighted else None
        idle = any(
            name not in self.before.calls and next(module.parameters(recurse=False), None) is not None
            for name, module in self.modules.items()
        )
        self._trains = idle and self._can_train()

    def _can_train(self) -> bool:
        """Whether it runs in training as it is: then what runs there alone can be repaired, too."""
        try:
            with _as_in_training(self.model):
                ForwardRecord(self.model).run(self.image.repeat(2, 1, 1, 1))
        except Exception:
            return False
        return True

    def cut(self, remove: Sequence[str], resize: Mapping[str, int]) -> None:
        """Leave layers out and resize others; whether their neighbors still fit is for `repair` to see."""
        both = sorted(set(remove) & set(resize))
        if both:
            raise ValueError(f"'{both[0]}' cannot be both removed and resized; name it once")
        for name in remove:
            self._check(name, "remove")
            self._check_removable(name)
            for gone in (name, *self._belonging(name)):
                self._removed.setdefault(gone, self.modules[gone])
        for name, width in resize.items():
            self._check(name, "resize")
            self._resize(name, width)
        for module in list(self._removed.values()):
            _replace(self.model, module)

    def _check(self, name: str, argument: str) -> None:
        if name not in self.modules:
            select_layers(self.model, name)  # raises, with the closest names, or finds several
            raise LayerNotFoundError(f"{argument}: '{name}' is not one layer's name; name layers one by one")
        if name not in self.before.calls:
            raise LayerNotFoundError(
                f"{argument}: layer '{name}' of {self._who} does not run in a forward pass (in eval mode)"
            )
        if self.classifier is not None and (name == self.classifier or self.classifier.startswith(f"{name}.")):
            of = "" if name == self.classifier else f" (in it, '{self.classifier}')"
            raise ValueError(
                f"{argument}: '{name}' is the classifier of {self._who}{of}, whose width is the number of classes; "
                "it stays as it is"
            )

    def _check_removable(self, name: str) -> None:
        if not all(isinstance(value, Tensor) for call in self.before.calls[name] for value in call):
            raise TypeError(
                f"remove: {self._named(name)} cannot be left out: it does not take one tensor and return one"
            )

    def _belonging(self, name: str) -> list[str]:
        """The norm that directly follows a convolution or a linear layer, and the activation after either."""
        belonging: list[str] = []
        if isinstance(self.modules[name], (Conv, nn.Linear)) and len(self.before.calls[name]) == 1:
            follower = self.before.follower(name)
            if follower is not None and self._is_norm(follower):
                belonging.append(follower)
                follower = self.before.follower(follower)
            if follower is not None and isinstance(self.modules[follower], _ACTIVATIONS):
                belonging.append(follower)
        return belonging

    def _is_norm(self, name: str) -> bool:
        module = self.modules[name]
        # By name, too: torchvision's frozen and timm's fused BatchNorms are no subclasses of torch's.
        return isinstance(module, (Norm, nn.GroupNorm, nn.LayerNorm)) or "BatchNorm" in type(module).__name__

    def _resize(self, name: str, width: int) -> None:
        module = self.modules[name]
        if not isinstance(module, (Conv, nn.Linear)):
            raise TypeError(
                f"resize: {self._named(name)} has no number of outputs of its own; give a convolution or a linear layer"
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"resize: '{name}' cannot have {width!r} outputs; give 1 or more")
        if isinstance(module, Conv) and width != module.out_channels:
            if is_depthwise(module):
                raise ValueError(
                    f"resize: {self._named(name)} is depthwise: it has as many outputs as its input has channels; "
                    "resize the layer before it"
                )
            if width % module.groups:
                raise ValueError(f"resize: {self._named(name)} has {module.groups} groups, {width} cannot be divided")
        if width != outputs_of(module):
            self._rebuild(name, module, inputs_of(module), width)
            self._resized.add(name)

    def repair(self) -> None:
        """Run it, rebuild whatever is given another width than it takes, and raise where shapes still do not fit."""
        after = ForwardRecord(self.model, self._on_enter)
        self._run(after, self.image)
        before = shapes_of(self.before.output)
        if shapes_of(after.output) != before:
            raise _MisfitError(
                f"{self._who} would return {shapes_of(after.output)}, where it returned {before}: what is behind the "
                "layer counts on its shape, as a view(-1, n) does"
            )
        for (name, operation), shapes in after.stretched.items():
            if len(shapes) > len(self.before.stretched.get((name, operation), ())):
                raise _MisfitError(
                    f"{self._named(name)} cannot be repaired: {operation_in_words(operation, shapes[-1])}"
                )
        for name in after.met_dropouts - self.before.met_dropouts:
            self._removed[name] = self.modules[name]
            _replace(self.model, self.modules[name])
        if self._trains:
            with _as_in_training(self.model):
                self._run(ForwardRecord(self.model, self._on_enter), self.image.repeat(2, 1, 1, 1))
            for name in self._old:
                reset = getattr(self.modules[name], "reset_running_stats", None)
                if reset is not None:
                    reset()

    def _run(self, run: ForwardRecord, image: Tensor) -> None:
        try:
            run.run(image)
        except _MisfitError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            shapes = "" if run.failed is None else f"{operation_in_words(*run.failed)}: "
            raise _MisfitError(f"{self._named(run.inside)} cannot be repaired: {shapes}{reason}") from error

    def _on_enter(self, name: str, value: Any) -> None:
        module = self.modules.get(name)
        width = None if module is None or not isinstance(value, Tensor) else given_width(module, value)
        if module is None or width is None:
            return
        before = self._widths.setdefault(name, width)
        if before != width:
            raise _MisfitError(
                f"{self._named(name)} cannot be repaired: it runs more than once, and is given {before} features and "
                f"{width} features"
            )
        if width == inputs_of(module):
            return
        outputs, groups = outputs_of(module), 1
        if isinstance(module, Conv) and is_depthwise(module):
            outputs = outputs // module.groups * width
        elif isinstance(module, (Conv, nn.GroupNorm)):
            groups = module.groups if isinstance(module, Conv) else module.num_groups
        if width % groups:
            raise _MisfitError(
                f"{self._named(name)} cannot be repaired: it has {groups} groups, and the {width} channels that it is "
                f"given (shape {tuple(value.shape)}) cannot be divided among them"
            )
        self._rebuild(name, module, width, outputs)

    def _rebuild(self, name: str, module: nn.Module, inputs: int, outputs: int) -> None:
        shared = [
            other
            for other, candidate in self.modules.items()
            if candidate is not module and _own(module) & _own(candidate) and other not in self._removed
        ]
        if shared:
            raise _MisfitError(f"{self._named(name)} cannot be rebuilt: '{shared[0]}' shares its weights")
        computed = [tensor for tensor in ("weight", "bias") if not is_rebuildable(module, tensor)]
        if computed:
            raise _MisfitError(
                f"{self._named(name)} cannot be rebuilt: its {computed[0]} is no parameter of its own but computed, "
                "and neither by torch's weight_norm nor by its spectral_norm"
            )
        self._old.setdefault(name, (describe(module), count_parameters(module)))
        rebuild(module, inputs, outputs, _number(f"{self.seed}/{name}"))

    def result(self) -> AblatedNetwork:
        """Return the copy, and what has changed in it."""
        changes = tuple(change for name in self.order if (change := self._change(name)) is not None)
        for module in self.model.modules():
            if isinstance(module, _LeftOut):
                module.become_identity()
        return AblatedNetwork(
            model=self.model,
            parameters_before=self.parameters,
            parameters_after=count_parameters(self.model),
            changes=changes,
        )

    def _change(self, name: str) -> LayerChange | None:
        module = self._removed.get(name, self.modules[name])
        old, before = self._old.get(name, (describe(module), count_parameters(module)))
        if name in self._removed:
            return LayerChange(
                name=name, action="removed", old=old, new="Identity", parameters_before=before, parameters_after=0
            )
        if name not in self._old or any(name.startswith(f"{gone}.") for gone in self._removed):
            return None
        return LayerChange(
            name=name,
            action="resized" if name in self._resized else "repaired",
            old=old,
            new=describe(module),
            parameters_before=before,
            parameters_after=count_parameters(module),
        )

    def _named(self, name: str) -> str:
        return f"{type(self.modules[name]).__name__} '{name}'" if name in self.modules else f"{self._who} itself"


class _LeftOut(nn.Identity):
    """Stands where a layer was, until the copy is done."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["_instead_of"] = module  # no submodule

    def become_identity(self) -> None:
        """Turn into a plain Identity, in the mode of the layer that it stands for."""
        self.training = self.__dict__.pop("_instead_of").training
        self.__class__ = nn.Identity  # type: ignore[assignment]


def _replace(model: nn.Module, module: nn.Module) -> None:
    """Put an Identity wherever a module stands."""
    identity = _LeftOut(module)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is module:
                parent._modules[name] = identity


@contextmanager
def _as_in_training(model: nn.Module) -> Iterator[None]:
    """Switch every module to training and back; buffers, as the statistics of BatchNorm, are put back."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        for module, _ in flags:
            module.training = True
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for buffer, saved in buffers:
            buffer.copy_(saved)


def _own(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters(recurse=False)}


def _number(key: str) -> int:
    """A seed of 63 bits; like keys have unlike ones."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
