"""Normal equations with an arrow shape: shared parameters, and blocks that one view owns."""
from __future__ import annotations

import torch
from torch import Tensor


class ArrowSystem:
    """H step = -g with H = [[S, C_1 .. C_B], [C_v', V_v]] plus optional coupling between the blocks of two views.

    shared [P, P], cross [B, P, Q], own [B, Q, Q], gradient_shared [P], gradient_own [B, Q];
    coupling: [B, Q, B, Q] or None. Without coupling the view blocks are eliminated one by one (Schur complement), so
    the cost grows linearly with B; with coupling the whole matrix is factorised.
    """

    def __init__(self, shared: Tensor, cross: Tensor, own: Tensor, gradient_shared: Tensor, gradient_own: Tensor,
                 coupling: Tensor | None = None):
        self.shared, self.cross, self.own = shared, cross, own
        self.gradient_shared, self.gradient_own, self.coupling = gradient_shared, gradient_own, coupling

    @staticmethod
    def zeros(num_views: int, num_shared: int, num_own: int, dtype=torch.float64, device=None) -> "ArrowSystem":
        def z(*shape):
            return torch.zeros(*shape, dtype=dtype, device=device)

        return ArrowSystem(z(num_shared, num_shared), z(num_views, num_shared, num_own), z(num_views, num_own, num_own),
                           z(num_shared), z(num_views, num_own))

    @property
    def num_shared(self) -> int:
        return self.shared.shape[0]

    @property
    def num_own(self) -> int:
        return self.own.shape[-1]

    @property
    def num_views(self) -> int:
        return self.own.shape[0]

    # ---- assembly: `index` [B, n] gives the step position of each view's local parameters, its own ones last ----

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
        """Subtract C'C with C = the sum over views of columns [G, R, n] placed in the step: an eliminated latent."""
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
        self.shared -= (common.T @ common).to(self.shared.dtype)
        own = columns.new_zeros(B, R, q).index_add_(0, view, columns[:, :, s:])
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
        return H

    def diagonal(self) -> Tensor:
        own = self.own.diagonal(dim1=1, dim2=2)
        if self.coupling is not None:
            i = torch.arange(self.num_views, device=own.device)
            own = own + self.coupling[i, :, i].diagonal(dim1=1, dim2=2)
        return torch.cat([self.shared.diagonal(), own.reshape(-1)])

    def solve(self, damping: Tensor) -> Tensor | None:
        """Step [P + B Q] of (H + diag(damping)) step = -g, or None when the matrix is not positive definite."""
        if self.coupling is not None:
            H = self.dense()
            H.diagonal().add_(damping)
            factor, info = torch.linalg.cholesky_ex(H)
            return None if int(info) else -torch.cholesky_solve(self.gradient[:, None], factor)[:, 0]
        P, B, Q = self.num_shared, self.num_views, self.num_own
        own = self.own + torch.diag_embed(damping[P:].reshape(B, Q))
        factor, info = torch.linalg.cholesky_ex(own)
        if Q and int(info.max()):
            return None
        right = torch.cholesky_solve(torch.cat([self.cross.transpose(1, 2), self.gradient_own[..., None]], -1), factor)
        schur = self.shared + torch.diag(damping[:P]) - torch.matmul(self.cross, right[..., :P]).sum(0)
        gradient = self.gradient_shared - torch.matmul(self.cross, right[..., P:]).sum(0)[:, 0]
        factor, info = torch.linalg.cholesky_ex(schur)
        if P and int(info):
            return None
        shared = -torch.cholesky_solve(gradient[:, None], factor)[:, 0]
        own = -(right[..., P] + right[..., :P] @ shared)
        return torch.cat([shared, own.reshape(-1)])

    def multiply(self, x: Tensor) -> Tensor:
        """H x."""
        P, B, Q = self.num_shared, self.num_views, self.num_own
        a, b = x[:P], x[P:].reshape(B, Q)
        top = self.shared @ a + torch.einsum("bpq,bq->p", self.cross, b)
        bottom = torch.einsum("bpq,p->bq", self.cross, a) + (self.own @ b[..., None])[..., 0]
        if self.coupling is not None:
            bottom = bottom + torch.einsum("aqbr,br->aq", self.coupling, b)
        return torch.cat([top, bottom.reshape(-1)])
