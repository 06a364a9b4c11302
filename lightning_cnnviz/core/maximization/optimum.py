"""Invariance about an optimum: which changes of the best input a unit minds least and most (Le et al. 2010)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnviz.core.maximization.maximize import cut, home_of, objective_box
from lightning_cnnviz.core.maximization.objectives import Objective, Reader, checked_objectives
from lightning_cnnviz.core.maximization.parametrization import Basis, Pixels, by_channel
from lightning_cnnviz.core.maximization.rectifiers import Rectifiers, softened
from lightning_cnnviz.core.network.gradients import OrderedGradients, gradient_within
from lightning_cnnviz.core.network.hooks import analysis_mode
from lightning_cnnviz.core.network.layers import image_axes

__all__ = ["OptimumInvariance", "lanczos", "optimum_invariance"]

# Random directions whose mean curve is the one to compare with.
_RANDOM = 8
# A vector shorter than this part of the operator's scale is rounding: the Krylov space is exhausted.
_EXHAUSTED = 1e-5

# A function whose curvatures differ by less than this part of a linear function's is one.
_LINEAR = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class OptimumInvariance:
    """How a unit's activation changes as its optimum is turned on the sphere of inputs of its norm.

    With D directions, those that change the activation least come first, then those that change it most, each of them
    strongest first; P is the number of angles.

    Attributes:
        objective: What the input maximizes, in words.
        activation: Its value at the optimum.
        optimum: `(C, H, W)`, in network input values; a signal `(C, L)` or a volume `(C, D, H, W)` likewise.
        alignment: Cosine of the angle between the gradient (of the smoothed network) and the optimum, seen from the
            sphere's center: 1 at an optimum on the sphere; the less, the more there was still to climb.
        least: How many of the directions are those that change it least.
        curvatures: `(D,)`, the activation's second derivative by the angle in radians, along each direction.
        unseen: The same for a direction that the unit does not see at all.
        residuals: `(D,)`, how far each is from an eigenvector: the norm of what is left, in the curvatures' units.
        directions: `(D, C, ...)`, the eigenvectors, of norm 1; in the coordinates of the basis.
        angles: `(P,)` radians, from negative to positive, 0 among them.
        images: `(D, P, C, ...)`, the optimum turned by each angle toward each direction.
        activations: `(D, P)`, of the network as it is.
        random: `(P,)`, the same along random directions, their mean.
        box: `(4,)` int64, the part of the image that the objective can depend on: top, left, bottom, right; of signals
            and volumes as many numbers as `Maximization.boxes` has.
    """

    objective: str
    activation: float
    optimum: Tensor
    alignment: float
    least: int
    curvatures: Tensor
    unseen: float
    residuals: Tensor
    directions: Tensor
    angles: Tensor
    images: Tensor
    activations: Tensor
    random: Tensor
    box: Tensor

    def __post_init__(self) -> None:
        if self.images.shape[:2] != self.activations.shape or len(self.directions) != len(self.curvatures):
            raise ValueError(f"images {tuple(self.images.shape)} for activations {tuple(self.activations.shape)}")

    @property
    def linear(self) -> bool:
        """Whether every direction is as one that the unit does not see: it has no curvature of its own."""
        return bool(((self.curvatures - self.unseen).abs() <= _LINEAR * abs(self.unseen)).all())

    def seen(self, direction: int, point: int) -> Tensor:
        """Return the part `(C, h, w)`, `(C, l)` or `(C, d, h, w)` of an image that the objective can depend on."""
        return cut(self.images[direction, point], self.box)


def optimum_invariance(
    model: nn.Module,
    objective: Objective,
    optimum: Tensor,
    *,
    directions: int = 2,
    angle: float = 45.0,
    points: int = 7,
    basis: Basis | None = None,
    center: float | Sequence[float] = 0.0,
    settle: int = 96,
    smoothing: float = 0.3,
    iterations: int = 48,
    seed: int = 0,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> OptimumInvariance:
    """Find the directions in which an optimum can be changed with the least and with the most effect.

    On the sphere of inputs as far from gray as the optimum, they are the leading eigenvectors of the Hessian of the
    activation (Le et al. 2010, cited by Zeiler & Fergus 2013, section 1.1; Erhan et al. 2010), found by Lanczos'
    method from Hessian-vector products. The Hessian is the sphere's own: a direction that the unit does not see is
    curved, too, since turning toward it takes away from the optimum.

    Args:
        model: Any network that takes images `(N, C, H, W)`, signals `(N, C, L)` or volumes `(N, C, D, H, W)`; left as
            it was.
        objective: What the input maximizes.
        optimum: `(C, H, W)` or as the network's own, for example one of `maximize`'s images.
        directions: How many directions of either kind.
        angle: How far to turn, in degrees, either way.
        points: How many angles; an odd number, so that 0 is among them.
        basis: `Pixels()`, the default: the sphere of pixel values. `Fourier(0.5)`: a sphere on which coarse changes are
            cheaper, whose directions are smoother.
        center: The gray image's value, or one for each channel: where the sphere has its center.
        settle: So many steps are first taken up along the sphere, of the unit that the Hessian is of: elsewhere than
            at an optimum, it says little.
        smoothing: Rectifiers are made smooth to settle and for the Hessian, by this part of the root mean square of
            their inputs: a network of rectifiers is piecewise linear, and its exact Hessian (0) is zero almost
            everywhere.
        iterations: Of Lanczos' method, a Hessian-vector product each.
        seed: Of the random directions.
        progress: Wraps the iterable of steps to show progress, for example `tqdm.tqdm`.

    Raises:
        LayerNotFoundError: There is no such layer, or it does not run exactly once.
        ValueError: An argument is out of range, the optimum is gray all over, or see `maximize`.
    """
    (objective,) = checked_objectives(objective)
    basis = Pixels() if basis is None else basis
    _check(image_axes(model), optimum, directions, points, settle, smoothing, iterations, angle)
    with analysis_mode(model):
        device, dtype = home_of(model)
        own = torch.float64 if dtype == torch.float64 else torch.float32
        image = optimum.detach()[None].to(device, own).clone()
        reader = Reader(model, [objective], image.to(dtype))
        gray = by_channel(center, image.shape[1], image)
        sphere = _Sphere(
            lambda whitened: objective(reader((gray + basis.smooth(whitened)).to(dtype))).to(own),
            basis.smooth(image - gray, inverse=True),
        )
        generator = torch.Generator().manual_seed(seed)
        iterations = min(iterations, sphere.point.numel() - 1)
        steps = range(settle + iterations)
        ticks = iter(steps if progress is None else progress(steps))

        def ticking(vector: Tensor) -> Tensor:
            next(ticks, None)
            return product(vector)

        # All that the Hessian says is of one function: where it is smooth, the optimum is that of the smooth unit. Also
        # where checkpointed parts of the network run again on the way back.
        with Rectifiers(softened(smoothing)) if smoothing else nullcontext(), OrderedGradients():
            sphere.settle(settle, lambda: next(ticks, None))
            slope, gradient_norm = sphere.slope()
            product = sphere.hessian()
            if slope == 0 and gradient_norm == 0:
                raise ValueError(f"{objective} does not change with the image at the optimum: it has no directions")
            curvatures, vectors, residuals = lanczos(
                ticking, lambda: sphere.random(1, generator).flatten(), iterations, product.unit[None]
            )
        for _ in ticks:  # what ended early is done, too
            pass
        kept = min(directions, (len(curvatures) + 1) // 2)
        chosen = [*range(kept), *range(len(curvatures) - 1, max(len(curvatures) - 1 - kept, kept - 1), -1)]
        turns = sphere.unflatten(vectors[chosen])
        angles = torch.linspace(-math.radians(angle), math.radians(angle), points, dtype=own, device=device)
        # Random ones only for their curve; both signs, so that it is symmetric.
        paths = [sphere.path(direction, angles) for direction in [*turns, *sphere.random(_RANDOM, generator)]]
        activations = torch.stack([torch.cat([sphere.value(step[None]) for step in path]) for path in paths])
        images = torch.stack([gray + basis.smooth(path) for path in paths[: len(turns)]])
        random = activations[len(turns) :]
        return OptimumInvariance(
            objective=str(objective),
            activation=float(sphere.value(sphere.point)),
            optimum=(gray + basis.smooth(sphere.point))[0].float().cpu(),
            alignment=slope / max(gradient_norm * sphere.radius, torch.finfo(own).tiny),
            least=kept,
            curvatures=curvatures[chosen].float().cpu(),
            unseen=-slope,
            residuals=residuals[chosen].float().cpu(),
            directions=turns.float().cpu(),
            angles=angles.float().cpu(),
            images=images.float().cpu(),
            activations=activations[: len(turns)].float().cpu(),
            random=((random + random.flip(1)) / 2).mean(0).float().cpu(),
            box=objective_box(reader, objective, image.shape[1:]),
        )


def lanczos(
    product: Callable[[Tensor], Tensor], draw: Callable[[], Tensor], iterations: int, without: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Approximate the extreme eigenvalues of a symmetric operator, reorthogonalizing in full.

    Args:
        product: The operator, on vectors `(n,)`.
        draw: Gives a random vector `(n,)`: where to begin, and where to go on once an invariant subspace is exhausted.
        iterations: How many products at most.
        without: `(d, n)`, orthonormal vectors that the operator maps to nothing, to be kept out: rounding alone would
            bring them in, since zero may well be an extreme eigenvalue.

    Returns:
        Eigenvalues `(m,)` float64, the largest first; eigenvectors `(m, n)` of norm 1; residuals `(m,)`.

    Raises:
        ValueError: `iterations` is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: give 1 or more")
    first, length = _orthogonal(draw(), [*without])
    rows, diagonal, beside = [first / length], [], []
    while True:
        image = product(rows[-1])
        diagonal.append(float(image @ rows[-1]))
        scale = max(float(image.norm()), max(map(abs, diagonal)))
        image, length = _orthogonal(image, [*without, *rows])
        if len(rows) == iterations:
            break
        if length <= _EXHAUSTED * scale:
            length = 0.0
            image, fresh = _orthogonal(draw(), [*without, *rows])
            if fresh <= _EXHAUSTED:
                break  # the vectors span the space
            rows.append(image / fresh)
        else:
            rows.append(image / length)
        beside.append(length)
    off = torch.tensor(beside, dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, weights = (part.flip(-1) for part in torch.linalg.eigh(matrix))
    vectors = weights.T.to(first) @ torch.stack(rows)
    return values, vectors / vectors.norm(dim=1, keepdim=True), (length * weights[-1]).abs()


def _orthogonal(vector: Tensor, rows: list[Tensor]) -> tuple[Tensor, float]:
    """Take away what lies in the span of orthonormal rows; the rest, and its norm."""
    span = torch.stack(rows) if rows else vector.new_zeros(0, len(vector))
    for _ in range(2):  # twice is enough (Parlett)
        vector = vector - span.T @ (span @ vector)
    return vector, float(vector.norm())


class _Tangent:
    """The Hessian of a function on a sphere, by the angle, as an operator on flat vectors.

    `unit` points from the sphere's center to where it is taken: the one direction that leads off the sphere.
    """

    def __init__(self, point: Tensor, gradient: Tensor, where: Tensor) -> None:
        self._point, self._gradient, self._where = point.detach().flatten(), gradient, where
        self._radius: Tensor = self._point.norm()
        self.unit: Tensor = self._point / self._radius
        self._slope = gradient.detach().flatten() @ self._point

    def _project(self, vector: Tensor) -> Tensor:
        """Take away what leads off the sphere."""
        return vector - self.unit * (self.unit @ vector)

    def __call__(self, vector: Tensor) -> Tensor:
        vector = self._project(vector)
        if not self._gradient.requires_grad:  # the function is linear
            return -self._slope * vector
        outer = vector.view_as(self._gradient)
        curved = gradient_within(self._gradient, self._where, outer, retain_graph=True)
        return self._radius.square() * self._project(curved.flatten()) - self._slope * vector


class _Sphere:
    """A function `(1, C, *sides)` -> `(1,)` on the sphere through a point."""

    def __init__(self, function: Callable[[Tensor], Tensor], point: Tensor) -> None:
        self.value, self.point = function, point
        self.radius = float(point.norm())
        if not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError("the optimum is the gray image itself, or not finite: there is no sphere through it")

    def measure(self, point: Tensor) -> tuple[float, Tensor]:
        """The value at a point, and its gradient there."""
        with torch.enable_grad():
            where = point.detach().requires_grad_()
            value = self.value(where).sum()
            if not value.requires_grad:
                raise ValueError("no gradient reaches the image: the network detaches it, or rounds it")
            gradient = gradient_within(value, where)
        return float(value.detach()), gradient

    def settle(self, steps: int, tick: Callable[[], object]) -> None:
        """Climb along the sphere, never down; `tick` is called at each step."""
        length = 0.5
        best, gradient = self.measure(self.point)
        for _ in range(steps):
            tick()
            norm = float(gradient.norm())
            if norm == 0 or not math.isfinite(norm):
                return
            moved = self.point / self.radius + length * gradient / norm
            moved = moved * (self.radius / moved.norm())
            value, there = self.measure(moved)
            if value > best:
                best, self.point, gradient, length = value, moved, there, length * 1.5
            else:
                length /= 3
                if length < 1e-6:
                    return

    def slope(self) -> tuple[float, float]:
        """The gradient along the radius vector, and its norm."""
        _, gradient = self.measure(self.point)
        return float((gradient * self.point).sum()), float(gradient.norm())

    def hessian(self) -> _Tangent:
        """The second derivative by the angle; to be made inside the block that smooths the rectifiers."""
        with torch.enable_grad():
            where = self.point.detach().requires_grad_()
            gradient = gradient_within(self.value(where).sum(), where, create_graph=True)
        return _Tangent(self.point, gradient, where)

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw directions along the sphere, of norm 1."""
        drawn = torch.randn((count, *self.point.shape[1:]), generator=generator, dtype=torch.float32).to(self.point)
        unit = self.point / self.radius
        each = (-1, *[1] * (self.point.ndim - 1))
        drawn = drawn - unit * (drawn * unit).flatten(1).sum(1).view(each)
        norms: Tensor = drawn.flatten(1).norm(dim=1)
        return drawn / norms.view(each)

    def unflatten(self, vectors: Tensor) -> Tensor:
        return vectors.view(-1, *self.point.shape[1:])

    def path(self, direction: Tensor, angles: Tensor) -> Tensor:
        """The great circle through the point toward a direction, `(P, C, *sides)`."""
        cosines, sines = (part.view(-1, *[1] * direction.ndim) for part in (angles.cos(), angles.sin()))
        return cosines * self.point + self.radius * sines * direction


def _check(
    axes: int,
    optimum: Tensor,
    directions: int,
    points: int,
    settle: int,
    smoothing: float,
    iterations: int,
    angle: float,
) -> None:
    if optimum.ndim - 1 not in (2, axes):
        wanted = {1: "one signal (C, L)", 2: "one image (C, H, W)", 3: "one volume (C, D, H, W)"}[axes]
        raise ValueError(f"optimum of shape {tuple(optimum.shape)}: give {wanted}")
    if optimum.numel() < 2:
        raise ValueError("an optimum of one number has no directions to be turned in")
    for name, value in (("directions", directions), ("iterations", iterations)):
        if value < 1:
            raise ValueError(f"{name}={value}: give 1 or more")
    if points < 3 or points % 2 == 0:
        raise ValueError(f"points={points}: give an odd number from 3 on, so that the optimum is among them")
    if settle < 0 or not smoothing >= 0:
        raise ValueError(f"settle={settle}, smoothing={smoothing}: neither can be negative")
    if not 0 < angle <= 180:
        raise ValueError(f"angle={angle}: give degrees above 0, up to 180")
