"""Normal equations with an arrow shape: shared parameters, and those that one view or moment owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ArrowSystem:
    """H step = -g with H = [[S, C_1 .. C_T], [C_t', V_t]] plus optional coupling between the blocks of two
    owners.

    shared [P, P], cross [T, P, Q], own [T, Q, Q], gradient_shared [P], gradient_own [T, Q];
    coupling: [T, Q, T, Q] or None. Without coupling the blocks of the owners are eliminated one by one (Schur
    complement), so the cost grows linearly with T. With coupling and up to `dense_limit` own parameters
    the whole matrix is factorised. Beyond, coupling is kept as the factors it is made of (`pairs`,
    `commons`) and the system is solved by conjugate gradients, preconditioned with the arrow of the rest:
    linear in T again.
    """

    def __init__(
        self,
        shared: Tensor,
        cross: Tensor,
        own: Tensor,
        gradient_shared: Tensor,
        gradient_own: Tensor,
        coupling: Tensor | None = None,
        dense_limit: int = 2048,
    ):
        self.shared, self.cross, self.own = shared, cross, own
        self.gradient_shared, self.gradient_own, self.coupling = gradient_shared, gradient_own, coupling
        self.dense_limit = dense_limit
        # (where_a [G, n], where_b [G, n], block [G, n, n]): blocks of H between parameters of two owners, as
        # step positions
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.commons: list[Tensor] = []  # C [R, P + T Q] of each eliminated latent: H contains -C'C

    @staticmethod
    def zeros(
        num_owners: int, num_shared: int, num_own: int, dtype=torch.float64, device=None
    ) -> ArrowSystem:
        def z(*shape):
            return torch.zeros(*shape, dtype=dtype, device=device)

        return ArrowSystem(
            z(num_shared, num_shared),
            z(num_owners, num_shared, num_own),
            z(num_owners, num_own, num_own),
            z(num_shared),
            z(num_owners, num_own),
        )

    @property
    def factored(self) -> bool:
        """True when coupling is kept as factors."""
        return self.num_owners * self.num_own > self.dense_limit

    @property
    def num_shared(self) -> int:
        return self.shared.shape[0]

    @property
    def num_own(self) -> int:
        return self.own.shape[-1]

    @property
    def num_owners(self) -> int:
        return self.own.shape[0]

    # ---- assembly: `index` [B, n] gives the step position of the local parameters of each view: those that
    # its owner has stand last, and all of them belong to one owner ----

    def add_view(self, view: Tensor, index: Tensor, hessian: Tensor, gradient: Tensor) -> None:
        """Add local systems hessian [G, n, n], gradient [G, n] that belong to the views `view` [G]."""
        if len(view) == 0:
            return
        at, s = self._positions(view, index)
        gradient = gradient.to(self.own.dtype)
        _scatter(self.gradient_shared, at[:, :s], gradient[:, :s])
        _scatter(self.gradient_own, at[:, s:] - self.num_shared, gradient[:, s:])
        self._add(at, at, s, hessian)

    def add_pair(self, view_a: Tensor, view_b: Tensor, index: Tensor, block: Tensor) -> None:
        """Add block [G, n, n] = J_a' W J_b and its transpose for residuals that depend on views a and b."""
        if len(view_a) == 0:
            return
        (a, s), (b, _) = self._positions(view_a, index), self._positions(view_b, index)
        apart = self._owner(a) != self._owner(b)
        if self.factored and bool(apart.any()):
            self.pairs.append((a[apart], b[apart], block[apart].to(self.own.dtype)))
            a, b, block, apart = a[~apart], b[~apart], block[~apart], apart[~apart]
        row, column = torch.cat([a, b]), torch.cat([b, a])
        self._add(row, column, s, torch.cat([block, block.transpose(1, 2)]), apart.repeat(2))

    def add_common(self, view: Tensor, index: Tensor, columns: Tensor) -> None:
        """Subtract C'C with C = the sum over views of columns [G, R, n] placed in the step: an eliminated
        latent."""
        P, T, Q, R = self.num_shared, self.num_owners, self.num_own, columns.shape[1]
        at, _ = self._positions(view, index)
        common = columns.new_zeros(P + T * Q, R)
        common = common.index_add_(0, at.reshape(-1), columns.transpose(1, 2).reshape(-1, R)).T
        if self.factored:
            self.commons.append(common)
            return
        top, bottom = common[:, :P], common[:, P:]
        self.shared -= (top.T @ top).to(self.shared.dtype)
        self.cross -= (top.T @ bottom).to(self.cross.dtype).reshape(P, T, Q).transpose(0, 1)
        self._coupled().sub_((bottom.T @ bottom).to(self.own.dtype).reshape(T, Q, T, Q))

    def _positions(self, view: Tensor, index: Tensor) -> tuple[Tensor, int]:
        """Step positions [G, n] of the local parameters of `view` [G], and how many of them are shared."""
        return index.to(view.device)[view], int((index[0] < self.num_shared).sum())

    def _owner(self, at: Tensor) -> Tensor:
        """[G] int64, the owner of the positions at [G, n], whose last one it has; 0 where all are shared."""
        last = at[:, -1] - self.num_shared
        return torch.div(last, max(1, self.num_own), rounding_mode="floor").clamp_min(0)

    def _add(self, row: Tensor, column: Tensor, s: int, block: Tensor, apart: Tensor | None = None) -> None:
        """Add block [G, n, n] where the rows `row` [G, n] of H meet the columns `column` [G, n].

        The first s of both are shared. Where shared and own parameters meet, only the half with shared rows
        is kept. apart: [G] bool, rows and columns are of two owners; None: never.
        """
        if len(row) == 0:
            return
        P, T, Q = self.num_shared, self.num_owners, self.num_own
        block = block.to(self.own.dtype)
        top, left = row[:, :s, None], column[:, None, :s]
        if bool((top == top[:1]).all()) and bool((left == left[:1]).all()):  # all in one place: plain sums
            self.shared[top[0], left[0]] += block[:, :s, :s].sum(0)
        else:
            _scatter(self.shared, top * P + left, block[:, :s, :s])
        owner = self._owner(column)[:, None, None]
        bottom, right = row[:, s:, None] - P, column[:, None, s:] - P  # among all own parameters
        place = right - owner * Q  # among those of the owner
        _scatter(self.cross, (owner * P + top) * Q + place, block[:, :s, s:])
        own = block[:, s:, s:]
        if apart is not None and bool(apart.any()):
            _scatter(self._coupled(), (bottom * (T * Q) + right)[apart], own[apart])
            bottom, place, own = bottom[~apart], place[~apart], own[~apart]
        _scatter(self.own, bottom * Q + place, own)

    def _coupled(self) -> Tensor:
        """`coupling`, made when it is first needed."""
        if self.coupling is None:
            T, Q = self.num_owners, self.num_own
            self.coupling = self.own.new_zeros(T, Q, T, Q)
        return self.coupling

    # ---- use ----

    @property
    def gradient(self) -> Tensor:
        """[P + T Q]"""
        return torch.cat([self.gradient_shared, self.gradient_own.reshape(-1)])

    def dense(self) -> Tensor:
        """The whole matrix, [P + T Q, P + T Q]."""
        P, T, Q = self.num_shared, self.num_owners, self.num_own
        H = self.shared.new_zeros(P + T * Q, P + T * Q)
        H[:P, :P] = self.shared
        cross = self.cross.permute(1, 0, 2).reshape(P, T * Q)
        H[:P, P:], H[P:, :P] = cross, cross.T
        block = self.shared.new_zeros(T, Q, T, Q) if self.coupling is None else self.coupling.clone()
        i = torch.arange(T, device=block.device)
        block[i, :, i] += self.own
        H[P:, P:] = block.reshape(T * Q, T * Q)
        for where_a, where_b, block in self.pairs:
            for at, bt, part in zip(where_a, where_b, block):
                H[at[:, None], bt] += part
                H[bt[:, None], at] += part.T
        for C in self.commons:
            H -= (C.T @ C).to(H.dtype)
        return H

    def diagonal(self) -> Tensor:
        own = self.own.diagonal(dim1=1, dim2=2)
        if self.coupling is not None:
            i = torch.arange(self.num_owners, device=own.device)
            own = own + self.coupling[i, :, i].diagonal(dim1=1, dim2=2)
        total = torch.cat([self.shared.diagonal(), own.reshape(-1)])
        for where_a, where_b, block in self.pairs:
            same = where_a == where_b  # shared parameters, the only ones that two owners have in common
            total = total.index_add(0, where_a[same], 2 * block.diagonal(dim1=1, dim2=2)[same])
        for C in self.commons:
            total = total - (C * C).sum(0).to(total.dtype)
        return total

    def solve(self, damping: Tensor) -> Tensor | None:
        """Step [P + T Q] of (H + diag(damping)) step = -g, or None when the matrix is not positive
        definite."""
        step = self.solve_columns(-self.gradient[:, None], damping)
        return None if step is None else step[:, 0]

    def solve_columns(self, right: Tensor, damping: Tensor) -> Tensor | None:
        """(H + diag(damping))^-1 right for the columns of right [P + T Q, R]; None when the matrix is not
        positive definite."""
        if self.coupling is not None:
            H = self.dense()
            H.diagonal().add_(damping)
            factor, info = torch.linalg.cholesky_ex(H)
            return None if int(info) else torch.cholesky_solve(right, factor)
        arrow = self._factor_arrow(damping)
        if arrow is None:
            return None
        if not self.pairs and not self.commons:
            return arrow(right)
        return self._conjugate_gradients(right, arrow, damping)

    def _factor_arrow(self, damping: Tensor):
        """A function that solves (arrow + diag(damping)) x = right side [P + T Q, R], or None when that is
        not positive definite."""
        P, T, Q = self.num_shared, self.num_owners, self.num_own
        own = self.own + torch.diag_embed(damping[P:].reshape(T, Q))
        factor, info = torch.linalg.cholesky_ex(own)
        if Q and int(info.max()):
            return None
        inner = torch.cholesky_solve(self.cross.transpose(1, 2), factor)  # [T, Q, P]
        cross = self.cross.transpose(0, 1).reshape(P, T * Q)
        schur = self.shared + torch.diag(damping[:P]) - cross @ inner.reshape(T * Q, P)
        outer, info = torch.linalg.cholesky_ex(schur)
        if P and int(info):
            return None

        def solve(right: Tensor) -> Tensor:
            R = right.shape[1]
            top, bottom = right[:P], right[P:].reshape(T, Q, R)
            bottom = torch.cholesky_solve(bottom, factor)
            shared = torch.cholesky_solve(top - cross @ bottom.reshape(T * Q, R), outer)
            return torch.cat([shared, (bottom - inner @ shared).reshape(T * Q, R)])

        return solve

    def _conjugate_gradients(
        self, right: Tensor, precondition, damping: Tensor, tolerance: float = 1e-3, most: int = 200
    ) -> Tensor | None:
        """Preconditioned conjugate gradients, all columns of right [P + T Q, R] side by side; None when the
        matrix shows a direction of negative curvature.

        Source: Nocedal and Wright, "Numerical Optimization", 2006, algorithm 5.3.
        """
        x = torch.zeros_like(right)
        r = -right
        y = precondition(r)
        p, ry = -y, (r * y).sum(0)
        first = ry
        active = first > 0  # no right side, no step
        for _ in range(most):
            if not bool(active.any()):
                break
            Hp = self.multiply(p) + damping[:, None] * p
            curvature = (p * Hp).sum(0)
            if not bool((curvature[active] > 0).all()):
                return None
            step = torch.where(active, ry / curvature, torch.zeros_like(ry))
            x, r = x + step * p, r + step * Hp
            y = precondition(r)
            before, ry = ry, (r * y).sum(0)
            active = active & (ry > tolerance**2 * first)
            p = -y + torch.where(active, ry / before, torch.zeros_like(ry)) * p
        return x

    def multiply(self, x: Tensor) -> Tensor:
        """H x for x [P + T Q] or the columns of x [P + T Q, R]."""
        if x.ndim == 1:
            return self.multiply(x[:, None])[:, 0]
        P, T, Q = self.num_shared, self.num_owners, self.num_own
        R = x.shape[1]
        a, b = x[:P], x[P:].reshape(T, Q, R)
        top = self.shared @ a + torch.einsum("tpq,tqr->pr", self.cross, b)
        bottom = torch.einsum("tpq,pr->tqr", self.cross, a) + self.own @ b
        if self.coupling is not None:
            bottom = bottom + (self.coupling.reshape(T * Q, T * Q) @ b.reshape(T * Q, R)).reshape(T, Q, R)
        total = torch.cat([top, bottom.reshape(T * Q, R)])
        for where_a, where_b, block in self.pairs:
            total.index_add_(0, where_a.reshape(-1), (block @ x[where_b]).reshape(-1, R))
            total.index_add_(0, where_b.reshape(-1), (block.transpose(1, 2) @ x[where_a]).reshape(-1, R))
        for C in self.commons:
            total -= (C.T @ (C @ x.to(C.dtype))).to(total.dtype)
        return total

    @staticmethod
    def sum(systems: Sequence[ArrowSystem]) -> ArrowSystem:
        """The system of all terms together; the parts have one layout and stay as they are."""
        first = systems[0]
        parts = {
            name: torch.stack([getattr(s, name) for s in systems]).sum(0)
            for name in ("shared", "cross", "own", "gradient_shared", "gradient_own")
        }
        coupled = [s.coupling for s in systems if s.coupling is not None]
        total = ArrowSystem(
            **parts, coupling=torch.stack(coupled).sum(0) if coupled else None, dense_limit=first.dense_limit
        )
        total.pairs = [p for s in systems for p in s.pairs]
        total.commons = [c for s in systems for c in s.commons]
        return total


def _scatter(target: Tensor, at: Tensor, values: Tensor) -> None:
    """Add values to the elements `at` of the contiguous `target`, counted through, where several may meet."""
    target.view(-1).index_add_(0, at.reshape(-1), values.reshape(-1))
