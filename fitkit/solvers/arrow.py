"""Normal equations with an arrow shape: shared parameters, and blocks that one view owns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class ArrowSystem:
    """H step = -g with H = [[S, C_1 .. C_B], [C_v', V_v]] plus optional coupling between the blocks of two
    views.

    shared [P, P], cross [B, P, Q], own [B, Q, Q], gradient_shared [P], gradient_own [B, Q];
    coupling: [B, Q, B, Q] or None. Without coupling the view blocks are eliminated one by one (Schur
    complement), so the cost grows linearly with B. With coupling and up to `dense_limit` parameters owned by
    the views the whole matrix is factorised. Beyond, coupling is kept as the factors it is made of (`pairs`,
    `commons`) and the system is solved by conjugate gradients, preconditioned with the arrow of the rest:
    linear in B again.
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
        # (where_a [G, n], where_b [G, n], block [G, n, n]): blocks of H between parameters of two views, as
        # step positions
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.commons: list[Tensor] = []  # C [R, P + B Q] of each eliminated latent: H contains -C'C

    @staticmethod
    def zeros(num_views: int, num_shared: int, num_own: int, dtype=torch.float64, device=None) -> ArrowSystem:
        def z(*shape):
            return torch.zeros(*shape, dtype=dtype, device=device)

        return ArrowSystem(
            z(num_shared, num_shared),
            z(num_views, num_shared, num_own),
            z(num_views, num_own, num_own),
            z(num_shared),
            z(num_views, num_own),
        )

    @property
    def factored(self) -> bool:
        """True when coupling is kept as factors."""
        return self.num_views * self.num_own > self.dense_limit

    @property
    def num_shared(self) -> int:
        return self.shared.shape[0]

    @property
    def num_own(self) -> int:
        return self.own.shape[-1]

    @property
    def num_views(self) -> int:
        return self.own.shape[0]

    # ---- assembly: `index` [B, n] gives the step position of each view's local parameters, its own ones last
    # ----

    def add_view(self, view: Tensor, index: Tensor, hessian: Tensor, gradient: Tensor) -> None:
        """Add local systems hessian [G, n, n], gradient [G, n] that belong to the views `view` [G]."""
        if len(view) == 0:
            return
        n, q = hessian.shape[-1], self.num_own
        s = n - q
        hessian, gradient = hessian.to(self.own.dtype), gradient.to(self.own.dtype)
        where = index.to(view.device)[view, :s]  # [G, s]
        self.gradient_own.index_add_(0, view, gradient[:, s:])
        self.gradient_shared.index_add_(0, where.reshape(-1), gradient[:, :s].reshape(-1))
        self.own.index_add_(0, view, hessian[:, s:, s:])
        if bool((where == where[:1]).all()):  # every view uses the same shared parameters: plain sums
            at = where[0]
            self.shared[at[:, None], at] += hessian[:, :s, :s].sum(0)
            part = self.cross[:, at]
            part.index_add_(0, view, hessian[:, :s, s:])
            self.cross[:, at] = part
        else:
            for g, v in enumerate(view.tolist()):
                at = where[g]
                self.shared[at[:, None], at] += hessian[g, :s, :s]
                self.cross[v, at] += hessian[g, :s, s:]

    def add_pair(self, view_a: Tensor, view_b: Tensor, index: Tensor, block: Tensor) -> None:
        """Add block [G, n, n] = J_a' W J_b and its transpose for residuals that depend on views a and b."""
        if len(view_a) == 0:
            return
        q = self.num_own
        s = block.shape[-1] - q
        block = block.to(self.own.dtype)
        index = index.to(view_a.device)
        if self.factored:
            self.pairs.append((index[view_a], index[view_b], block))
            return
        self._need_coupling()
        for g, (a, b) in enumerate(zip(view_a.tolist(), view_b.tolist())):
            at, bt = index[a, :s], index[b, :s]
            ss = block[g, :s, :s]
            self.shared[at[:, None], bt] += ss
            self.shared[bt[:, None], at] += ss.T
            self.cross[b, at] += block[g, :s, s:]
            self.cross[a, bt] += block[g, s:, :s].T
            self.coupling[a, :, b] += block[g, s:, s:]
            self.coupling[b, :, a] += block[g, s:, s:].T

    def add_common(self, view: Tensor, index: Tensor, columns: Tensor) -> None:
        """Subtract C'C with C = the sum over views of columns [G, R, n] placed in the step: an eliminated
        latent."""
        q, B = self.num_own, self.num_views
        G, R, n = columns.shape
        s = n - q
        common = columns.new_zeros(R, self.num_shared)
        where = index.to(view.device)[view, :s]
        if bool((where == where[:1]).all()):
            common[:, where[0]] = columns[:, :, :s].sum(0)
        else:
            for g in range(G):
                common[:, where[g]] += columns[g, :, :s]
        own = columns.new_zeros(B, R, q).index_add_(0, view, columns[:, :, s:])
        if self.factored:
            self.commons.append(torch.cat([common, own.permute(1, 0, 2).reshape(R, B * q)], 1))
            return
        self.shared -= (common.T @ common).to(self.shared.dtype)
        self.cross -= torch.matmul(common.T, own).to(self.cross.dtype)
        flat = own.permute(1, 0, 2).reshape(R, B * q)
        self._need_coupling()
        self.coupling -= (flat.T @ flat).to(self.own.dtype).reshape(B, q, B, q)

    def _need_coupling(self) -> None:
        if self.coupling is None:
            B, q = self.num_views, self.num_own
            self.coupling = torch.zeros(B, q, B, q, dtype=self.own.dtype, device=self.own.device)

    # ---- use ----

    @property
    def gradient(self) -> Tensor:
        """[P + B Q]"""
        return torch.cat([self.gradient_shared, self.gradient_own.reshape(-1)])

    def dense(self) -> Tensor:
        """The whole matrix, [P + B Q, P + B Q]."""
        P, B, Q = self.num_shared, self.num_views, self.num_own
        H = self.shared.new_zeros(P + B * Q, P + B * Q)
        H[:P, :P] = self.shared
        cross = self.cross.permute(1, 0, 2).reshape(P, B * Q)
        H[:P, P:], H[P:, :P] = cross, cross.T
        block = self.shared.new_zeros(B, Q, B, Q) if self.coupling is None else self.coupling.clone()
        i = torch.arange(B, device=block.device)
        block[i, :, i] += self.own
        H[P:, P:] = block.reshape(B * Q, B * Q)
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
            i = torch.arange(self.num_views, device=own.device)
            own = own + self.coupling[i, :, i].diagonal(dim1=1, dim2=2)
        total = torch.cat([self.shared.diagonal(), own.reshape(-1)])
        for where_a, where_b, block in self.pairs:
            same = where_a == where_b  # shared parameters, the only ones that two views have in common
            total = total.index_add(0, where_a[same], 2 * block.diagonal(dim1=1, dim2=2)[same])
        for C in self.commons:
            total = total - (C * C).sum(0).to(total.dtype)
        return total

    def solve(self, damping: Tensor) -> Tensor | None:
        """Step [P + B Q] of (H + diag(damping)) step = -g, or None when the matrix is not positive
        definite."""
        step = self.solve_columns(-self.gradient[:, None], damping)
        return None if step is None else step[:, 0]

    def solve_columns(self, right: Tensor, damping: Tensor) -> Tensor | None:
        """(H + diag(damping))^-1 right for the columns of right [P + B Q, R]; None when the matrix is not
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
        """A function that solves (arrow + diag(damping)) x = right side [P + B Q, R], or None when that is
        not positive definite."""
        P, B, Q = self.num_shared, self.num_views, self.num_own
        own = self.own + torch.diag_embed(damping[P:].reshape(B, Q))
        factor, info = torch.linalg.cholesky_ex(own)
        if Q and int(info.max()):
            return None
        inner = torch.cholesky_solve(self.cross.transpose(1, 2), factor)  # [B, Q, P]
        schur = self.shared + torch.diag(damping[:P]) - torch.matmul(self.cross, inner).sum(0)
        outer, info = torch.linalg.cholesky_ex(schur)
        if P and int(info):
            return None

        def solve(right: Tensor) -> Tensor:
            R = right.shape[1]
            top, bottom = right[:P], right[P:].reshape(B, Q, R)
            bottom = torch.cholesky_solve(bottom, factor)
            shared = torch.cholesky_solve(top - torch.matmul(self.cross, bottom).sum(0), outer)
            return torch.cat([shared, (bottom - inner @ shared).reshape(B * Q, R)])

        return solve

    def _conjugate_gradients(
        self, right: Tensor, precondition, damping: Tensor, tolerance: float = 1e-3, most: int = 200
    ) -> Tensor | None:
        """Preconditioned conjugate gradients, all columns of right [P + B Q, R] side by side; None when the
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
        """H x for x [P + B Q] or the columns of x [P + B Q, R]."""
        if x.ndim == 1:
            return self.multiply(x[:, None])[:, 0]
        P, B, Q = self.num_shared, self.num_views, self.num_own
        R = x.shape[1]
        a, b = x[:P], x[P:].reshape(B, Q, R)
        top = self.shared @ a + torch.einsum("bpq,bqr->pr", self.cross, b)
        bottom = torch.einsum("bpq,pr->bqr", self.cross, a) + self.own @ b
        if self.coupling is not None:
            bottom = bottom + (self.coupling.reshape(B * Q, B * Q) @ b.reshape(B * Q, R)).reshape(B, Q, R)
        total = torch.cat([top, bottom.reshape(B * Q, R)])
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
