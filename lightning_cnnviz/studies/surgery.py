"""Network surgery: layers left out or resized in a copy, whose other layers are rebuilt where shapes have changed."""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_cnnviz.core.network.hooks import Site, analysis_mode, hooked, model_device
from lightning_cnnviz.core.network.layers import LayerNotFoundError, select_layers

__all__ = ["Ablated", "LayerChange", "ablate"]

_Conv = nn.modules.conv._ConvNd
_Norm = nn.modules.batchnorm._NormBase
_Transposed = nn.modules.conv._ConvTransposeNd
_ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Hardtanh, nn.Tanh, nn.Sigmoid, nn.Softplus),
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
# What torch stretches in silence, where two shapes differ and one side is 1.
_SUMS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__", "sub", "sub_", "__sub__", "__isub__", "__rsub__"})
_PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__imul__", "__rmul__", "multiply", "div", "div_", "__truediv__"})


@dataclass(frozen=True)
class LayerChange:
    """What has become of one layer.

    Attributes:
        name: Its name in `named_modules()`.
        action: `"removed"` and `"resized"` as was asked; `"repaired"` as its input has changed.
        old: The layer as it was.
        new: As it is.
        parameters: Their number before and after.
    """

    name: str
    action: Literal["removed", "resized", "repaired"]
    old: str
    new: str
    parameters: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Ablated:
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
) -> Ablated:
    """Return a copy of a network in which layers are left out or have another number of outputs (Zeiler & Fergus, 4.1).

    The copy is run on an image, and whatever layer is given features of another width than it takes is rebuilt: a
    convolution (one that is depthwise stays so), a linear layer, a norm. Rebuilt layers have fresh weights, torch's
    own default, which depend on the seed and the layer's name alone; all others keep theirs. What has to do with an
    auxiliary head that runs in training alone is rebuilt, too.

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
    changed = copy.deepcopy(getattr(model, "_orig_mod", model))
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
        self._met: dict[str, int] = {}
        self._trains = False

    # What there is.

    def examine(self) -> None:
        """Run the network as it is."""
        self.before = _Pass(self.model)
        try:
            self.before.run(self.image)
        except Exception as error:
            raise ValueError(
                f"{self._who} cannot be run on an image of shape {tuple(self.image.shape)}: {error}"
            ) from error
        # Not before: lazy layers have parameters only now.
        self.parameters = _count(self.model)
        self.modules = {name: module for name, module in self.model.named_modules() if name}
        self.order = list(self.modules)
        weighted = [name for name in self.before.left if isinstance(self.modules.get(name), (_Conv, nn.Linear))]
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
                _Pass(self.model).run(self.image.repeat(2, 1, 1, 1))
        except Exception:
            return False
        return True

    # The cuts.

    def cut(self, remove: Sequence[str], resize: Mapping[str, int]) -> None:
        """Leave layers out and resize others, without a thought for their neighbors."""
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
        found: list[str] = []
        if isinstance(self.modules[name], (_Conv, nn.Linear)) and len(self.before.calls[name]) == 1:
            follower = self.before.follower(name)
            if follower is not None and self._is_norm(follower):
                found.append(follower)
                follower = self.before.follower(follower)
            if follower is not None and isinstance(self.modules[follower], _ACTIVATIONS):
                found.append(follower)
        return found

    def _is_norm(self, name: str) -> bool:
        module = self.modules[name]
        # By name, too: torchvision's frozen and timm's fused BatchNorms are no subclasses of torch's.
        return isinstance(module, (_Norm, nn.GroupNorm, nn.LayerNorm)) or "BatchNorm" in type(module).__name__

    def _resize(self, name: str, width: int) -> None:
        module = self.modules[name]
        if not isinstance(module, (_Conv, nn.Linear)):
            raise TypeError(
                f"resize: {self._named(name)} has no number of outputs of its own; give a convolution or a linear layer"
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"resize: '{name}' cannot have {width!r} outputs; give 1 or more")
        if isinstance(module, _Conv) and width != module.out_channels:
            if _is_depthwise(module):
                raise ValueError(
                    f"resize: {self._named(name)} is depthwise: it has as many outputs as its input has channels; "
                    "resize the layer before it"
                )
            if width % module.groups:
                raise ValueError(f"resize: {self._named(name)} has {module.groups} groups, {width} cannot be divided")
        if width != _outputs(module):
            self._rebuild(name, module, _inputs(module), width)
            self._resized.add(name)

    # The repair.

    def repair(self) -> None:
        """Run it, rebuild whatever meets another width than it takes, and see whether all of it fits together."""
        after = _Pass(self.model, self._on_enter)
        self._run(after, self.image)
        before = _shapes(self.before.output)
        if _shapes(after.output) != before:
            raise _MisfitError(
                f"{self._who} would return {_shapes(after.output)}, where it returned {before}: what is behind the "
                "layer counts on its shape, as a view(-1, n) does"
            )
        for (name, operation), shapes in after.stretched.items():
            if len(shapes) > len(self.before.stretched.get((name, operation), ())):
                raise _MisfitError(f"{self._named(name)} cannot be repaired: {_sides(operation, shapes[-1])}")
        for name in after.met_dropouts - self.before.met_dropouts:
            self._removed[name] = self.modules[name]
            _replace(self.model, self.modules[name])
        if self._trains:
            with _as_in_training(self.model):
                self._run(_Pass(self.model, self._on_enter), self.image.repeat(2, 1, 1, 1))
            for name in self._old:
                reset = getattr(self.modules[name], "reset_running_stats", None)
                if reset is not None:
                    reset()

    def _run(self, run: _Pass, image: Tensor) -> None:
        try:
            run.run(image)
        except _MisfitError:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            shapes = "" if run.failed is None else f"{_sides(*run.failed)}: "
            raise _MisfitError(f"{self._named(run.inside)} cannot be repaired: {shapes}{reason}") from error

    def _on_enter(self, name: str, value: Any) -> None:
        module = self.modules.get(name)
        width = None if module is None or not isinstance(value, Tensor) else _width(module, value)
        if module is None or width is None:
            return
        met = self._met.setdefault(name, width)
        if met != width:
            raise _MisfitError(
                f"{self._named(name)} cannot be repaired: it runs more than once, and is given {met} features and "
                f"{width} features"
            )
        if width != _inputs(module):
            outputs = _outputs(module)
            if isinstance(module, _Conv):
                if _is_depthwise(module):
                    outputs = outputs // module.groups * width
                elif width % module.groups:
                    raise _MisfitError(
                        f"{self._named(name)} cannot be repaired: it has {module.groups} groups, and the {width} "
                        f"channels that it is given (shape {tuple(value.shape)}) cannot be divided among them"
                    )
            if isinstance(module, nn.GroupNorm) and width % module.num_groups:
                raise _MisfitError(
                    f"{self._named(name)} cannot be repaired: it has {module.num_groups} groups, and the {width} "
                    f"channels that it is given (shape {tuple(value.shape)}) cannot be divided among them"
                )
            self._rebuild(name, module, width, outputs)

    def _rebuild(self, name: str, module: nn.Module, inputs: int, outputs: int) -> None:
        shared = [
            other
            for other, module_ in self.modules.items()
            if module_ is not module and _own(module) & _own(module_) and other not in self._removed
        ]
        if shared:
            raise _MisfitError(f"{self._named(name)} cannot be rebuilt: '{shared[0]}' shares its weights")
        computed = [tensor for tensor in ("weight", "bias") if tensor not in module._parameters]
        if computed:
            raise _MisfitError(
                f"{self._named(name)} cannot be rebuilt: its {computed[0]} is no parameter of its own but computed, as "
                "by weight_norm or another parametrization"
            )
        self._old.setdefault(name, (_text(module), _count(module)))
        _rebuild(module, inputs, outputs, _number(f"{self.seed}/{name}"))

    # What has come of it.

    def result(self) -> Ablated:
        """Say what has changed."""
        changes = []
        for name in self.order:
            if name in self._removed:
                module = self._removed[name]
                old, count = self._old.get(name, (_text(module), _count(module)))
                changes.append(LayerChange(name, "removed", old, "Identity", (count, 0)))
            elif name in self._old and not any(name.startswith(f"{gone}.") for gone in self._removed):
                module, (old, count) = self.modules[name], self._old[name]
                action: Literal["resized", "repaired"] = "resized" if name in self._resized else "repaired"
                changes.append(LayerChange(name, action, old, _text(module), (count, _count(module))))
        for module in self.model.modules():
            if isinstance(module, _LeftOut):
                module.take_place()
        return Ablated(self.model, self.parameters, _count(self.model), tuple(changes))

    def _named(self, name: str) -> str:
        return f"{type(self.modules[name]).__name__} '{name}'" if name in self.modules else f"{self._who} itself"


class _Pass(TorchFunctionMode):
    """One pass through a network: which modules run on what, and where it ends if it fails."""

    def __init__(self, model: nn.Module, on_enter: Callable[[str, Any], None] = lambda _name, _value: None) -> None:
        super().__init__()
        self.calls: dict[str, list[tuple[Any, Any]]] = {}  # name -> (input, output), both kept alive
        self.left: list[str] = []
        self.failed: tuple[str, list[tuple[int, ...]]] | None = None
        # Where torch has stretched one side of an operation to the other's shape: (module, operation) -> shapes.
        self.stretched: dict[tuple[str, str], list[list[tuple[int, ...]]]] = {}
        self.met_dropouts: set[str] = set()
        self.output: Any = None
        self._model, self._enter = model, on_enter
        self._modules = dict(model.named_modules())
        self._entered: list[tuple[str, Any]] = []
        self._inside: list[tuple[str, Any]] = []
        self._last_dropout: Any = None

    @property
    def inside(self) -> str:
        """The innermost module that is running."""
        return self._inside[-1][0] if self._inside else ""

    def run(self, image: Tensor) -> None:
        """Make the pass."""
        sites = {}
        for name, module in self._modules.items():
            sites[f"in:{name}"] = Site(module, "input")
            sites[f"out:{name}"] = Site(module)
        with hooked(sites, self._on_value), self:
            self.output = self._model(image)

    def follower(self, name: str) -> str | None:
        """The layer that is first given what another one returns, if it runs once."""
        ((_, output),) = self.calls[name]
        place = next(place for place, (entered, _) in enumerate(self._entered) if entered == name)
        for other, value in self._entered[place + 1 :]:
            module = self._modules[other]
            # A container is first given what its first layer is; timm's BatchNorms have children, and are none.
            if value is output and (not _has_children(module) or "BatchNorm" in type(module).__name__):
                return other if len(self.calls.get(other, ())) == 1 else None
        return None

    def _on_value(self, key: str, value: Any) -> None:
        side, _, name = key.partition(":")
        if side == "in":
            self._inside.append((name, value))
            self._entered.append((name, value))
            if isinstance(self._modules[name], _DROPOUTS) and value is self._last_dropout:
                self.met_dropouts.add(name)
            self._enter(name, value)
            return
        _, given = self._inside.pop()
        self.calls.setdefault(name, []).append((given, value))
        self.left.append(name)
        module = self._modules[name]
        if isinstance(module, _DROPOUTS):
            self._last_dropout = value
        elif value is self._last_dropout and not _has_children(module) and not isinstance(module, nn.Identity):
            self._last_dropout = None  # changed in place

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", str(func))
        try:
            result = func(*args, **(kwargs or {}))
        except Exception:
            shapes = [tuple(tensor.shape) for tensor in _tensors(args)]
            if self.failed is None and shapes:
                self.failed = (name, shapes)
            raise
        if name in _SUMS or name in _PRODUCTS:
            sides = [tuple(value.shape) for value in args[:2] if isinstance(value, Tensor)]
            if len(sides) == 2 and _is_stretched(*sides, sums=name in _SUMS):
                self.stretched.setdefault((self.inside, name.strip("_")), []).append(sides)
        return result


class _LeftOut(nn.Identity):
    """Stands where a layer was, until the copy is done."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.__dict__["_instead_of"] = module  # no submodule

    def take_place(self) -> None:
        """Become a plain Identity, in the layer's mode."""
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


# What is known of each kind of layer.


def _width(module: nn.Module, value: Tensor) -> int | None:
    """How many features a layer is given, if it is one that counts on their number."""
    if isinstance(module, _Conv):
        place = -1 - len(module.kernel_size)
    elif isinstance(module, nn.Linear):
        place = -1
    elif isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        # torchvision's and timm's LayerNorm2d go along the channels.
        place = 1 if type(module) is not nn.LayerNorm and "2d" in type(module).__name__ else -1
    elif isinstance(module, nn.PReLU):
        place = 1 if module.num_parameters > 1 else value.ndim
    elif isinstance(module, (_Norm, nn.GroupNorm)):
        place = 1
    else:
        return None
    return int(value.shape[place]) if -value.ndim <= place < value.ndim else None


def _inputs(module: nn.Module) -> int:
    if isinstance(module, _Conv):
        return module.in_channels
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[0])
    return int(module.num_parameters if isinstance(module, nn.PReLU) else module.num_features)  # type: ignore[arg-type]


def _outputs(module: nn.Module) -> int:
    if isinstance(module, _Conv):
        return module.out_channels
    return module.out_features if isinstance(module, nn.Linear) else _inputs(module)


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _Conv) and module.groups == module.in_channels and module.groups > 1


def _rebuild(module: nn.Module, inputs: int, outputs: int, seed: int) -> None:
    """Give a layer other numbers of inputs and outputs, and fresh parameters."""
    if isinstance(module, _Conv):
        if _is_depthwise(module):
            module.groups = inputs
        module.in_channels, module.out_channels = inputs, outputs
        first, second = (inputs, outputs) if isinstance(module, _Transposed) else (outputs, inputs)
        shapes = {"weight": (first, second // module.groups, *module.kernel_size), "bias": (outputs,)}
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = inputs, outputs
        shapes = {"weight": (outputs, inputs), "bias": (outputs,)}
    else:
        if isinstance(module, nn.GroupNorm):
            module.num_channels = inputs
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (inputs,)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = inputs
        else:
            module.num_features = inputs  # type: ignore[assignment]
        shapes = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (inputs,))
    places = {}
    for name, shape in shapes.items():
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            places[name] = tensor.device
            # Drawn on the CPU: the same weights on whatever device.
            fresh = torch.empty(shape, dtype=tensor.dtype)
            setattr(module, name, nn.Parameter(fresh) if isinstance(tensor, nn.Parameter) else fresh)
    # Within analysis_mode, which puts it back; not torch.manual_seed, which would seed GPUs as well.
    torch.default_generator.manual_seed(seed)
    module.reset_parameters()  # type: ignore[operator]
    for name, device in places.items():
        fresh = getattr(module, name)
        moved = fresh.detach().to(device)
        setattr(module, name, nn.Parameter(moved) if isinstance(fresh, nn.Parameter) else moved)


def _text(module: nn.Module) -> str:
    """A layer in a few words."""
    kind = type(module).__name__
    if isinstance(module, _Conv):
        kernel = "x".join(map(str, module.kernel_size))
        groups = f", {module.groups} groups" if module.groups > 1 else ""
        return f"{kind}({module.in_channels} to {module.out_channels}, {kernel}{groups})"
    if isinstance(module, nn.Linear):
        return f"{kind}({module.in_features} to {module.out_features})"
    if isinstance(module, (_Norm, nn.GroupNorm)) or (isinstance(module, nn.LayerNorm) and _count(module)):
        return f"{kind}({_inputs(module)})"
    return kind


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _own(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters(recurse=False)}


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _number(key: str) -> int:
    """A seed of 63 bits; like keys have unlike ones."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


# Shapes, and words for them.


def _is_stretched(first: tuple[int, ...], second: tuple[int, ...], *, sums: bool) -> bool:
    """Whether features of one shape are stretched to another's; a gate of 1 x 1 in a product is meant to be."""
    if len(first) != len(second) or len(first) < 2:
        return False
    return first[1:] != second[1:] if sums else first[1] != second[1]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _shapes(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, Mapping):
        return {key: _shapes(value) for key, value in output.items()}
    return [_shapes(value) for value in output] if isinstance(output, (list, tuple)) else type(output).__name__


def _sides(operation: str, shapes: Sequence[tuple[int, ...]]) -> str:
    name = operation.strip("_").removeprefix("i") if operation.startswith("__i") else operation.strip("_")
    counted = Counter(shapes)
    words = {"add": "the sum of", "cat": "joining", "mul": "the product of"}
    return f"{words.get(name, f'{name} of')} {' and '.join(map(str, counted if len(counted) > 1 else shapes))}"
