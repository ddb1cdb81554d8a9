"""Checks that every energy must pass, used by the tests beside this file."""

from __future__ import annotations

import torch

from fitkit.energies.base import Linearization
from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term, linearization
from fitkit.scene.layout import BLOCKS, ParameterLayout, retract

KERNELS = (Kernel("sq"), Kernel("l1", 0.1), Kernel("huber", 1.0), Kernel("cauchy", 1.5), Kernel("gm", 2.0))


def layouts(state, free=BLOCKS):
    """All blocks owned by their views; and everything shared that can be."""
    B = state.num_views
    yield ParameterLayout.of(state, free)
    one = torch.zeros(B, dtype=torch.int64)
    lens = torch.arange(B) > 0
    owners = {"expression": one, "pose": one, "focal": lens, "principal": lens}
    yield ParameterLayout.of(state, free, owners)


def whole_jacobian(lin: Linearization, layout: ParameterLayout) -> torch.Tensor:
    """d value / d step [G, M, D, total], put together from the slots by the positions of `layout`."""
    G, M, D = lin.residuals.value.shape
    J = lin.residuals.value.new_zeros(G, M, D, layout.total)
    for slot in lin.slots:
        at = 0
        for name in layout.order:
            width = layout.sizes[name]
            for g, view in enumerate(slot.view.tolist()):
                if name in slot.columns:
                    J[g][..., layout.index[view, at : at + width]] += slot.columns[name][g]
            at += width
    if lin.center is not None:
        J = J - (lin.center[..., None, None] * J).sum(0)
    return J


def check_jacobian(energy, state, observations, layout, kinks=False):
    """`linearize` against autograd through `retract`, and against central differences along random
    directions.

    kinks: the residual samples an image, whose bilinear surface has kinks where a few points may step over
    one.
    """
    lin = linearization(energy, state, observations, layout)
    assert torch.equal(lin.residuals.value, energy.residuals(state, observations).value)
    valid = lin.residuals.valid
    J = whole_jacobian(lin, layout)[valid]
    zero = torch.zeros(layout.total, dtype=state.identity.dtype)

    def value(step):
        return energy.residuals(retract(state, step, layout), observations).value[valid]

    torch.testing.assert_close(J, torch.func.jacfwd(value)(zero), rtol=1e-8, atol=1e-8)
    gen = torch.Generator().manual_seed(0)
    h = 1e-6
    for _ in range(4):
        direction = torch.randn(layout.total, generator=gen, dtype=zero.dtype)
        numeric = (value(h * direction) - value(-h * direction)) / (2 * h)
        error = (J @ direction - numeric).abs()
        assert (
            float(error.flatten().quantile(0.95) if kinks else error.max())
            < 1e-5 * float(numeric.abs().max()) + 1e-6
        )


def check_system(energy, state, observations, layout, kernel, weight=0.7):
    """Objective's gradient against autograd of its cost; its matrix against J' W J put together by hand."""
    objective = Objective([Term(energy, weight, kernel)])
    system = objective.linearize(state, observations, layout)
    step = torch.zeros(layout.total, dtype=state.identity.dtype, requires_grad=True)
    cost, report = objective.cost(retract(state, step, layout), observations)
    (gradient,) = torch.autograd.grad(cost, step)
    cost = float(cost.detach())
    torch.testing.assert_close(system.gradient, gradient, rtol=1e-8, atol=1e-8 * float(gradient.abs().max()))

    lin = linearization(energy, state, observations, layout)
    r = lin.residuals
    value = torch.where(r.valid[..., None], r.value, 0)
    trust = torch.where(r.valid, torch.ones_like(value[..., 0]) if r.weight is None else r.weight, 0)
    scale = weight if energy.reduction == "sum" else weight / max(1.0, float(trust.sum()))
    assert abs(cost - float(scale * (trust * kernel.cost(value)).sum() / 2)) < 1e-9 * cost
    assert (
        report[energy.name].valid == int(r.valid.sum())
        and abs(report[energy.name].value - cost) < 1e-9 * cost
    )
    w = scale * trust[..., None] * kernel.weights(value).expand_as(value)
    if lin.center is not None:  # the mean that this kernel's weights give
        one = w[..., 0]  # such items have one component
        lin = Linearization(r, lin.slots, one / one.sum(0).clamp_min(1e-30))
    J = whole_jacobian(lin, layout)
    J = torch.where(r.valid[..., None, None], J, 0)
    H = torch.einsum("gmd,gmdp,gmdq->pq", w, J, J)
    torch.testing.assert_close(system.dense(), H, rtol=1e-8, atol=1e-8 * float(H.abs().max()))


def check_everything(energy, state, observations, free=BLOCKS, kinks=False, kernels=KERNELS):
    if energy.linearize(state, observations).mixed:
        kernels = [k for k in kernels if not k.by_component]
    for layout in layouts(state, free):
        check_jacobian(energy, state, observations, layout, kinks)
        for kernel in kernels:
            check_system(energy, state, observations, layout, kernel)
