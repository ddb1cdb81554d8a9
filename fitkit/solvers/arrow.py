"""Normal equations with an arrow shape: shared parameters, and those that one view or moment owns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Right sides from which on, and unknowns up to which, the whole matrix is factorised: 100 photos have 7,000
# unknowns, which take 0.4 GB.
MANY, MOST_DENSE = 32, 8192


class ArrowSystem:
    """H step = -g of S people who have nothing in common, each with H = [[S, C_1 .. C_T], [C_t', V_t]] plus
    optional coupling between the blocks of two owners.

    shared [S, P, P], cross [S, T, P, Q], own [S, T, Q, Q], gradient [S N], N = P + T Q: that of all people in
    turn, as the step and every other vector; coupling: [S, T, Q, T, Q] or None. Without coupling the blocks
    of the owners are eliminated one by one (Schur complement), so the cost grows linearly with T. With
    coupling and up to `dense_limit` own parameters the whole matrix of each person is factorised. Beyond,
    coupling is kept as the factors it is made of (`pairs`, `commons`) and the system is solved by conjugate
    gradients, preconditioned with the arrow of the rest: linear in T again.
    places: where rows and gradients go, kept by whoever makes several systems of one layout: finding out
    takes longer than adding the numbers of a few views.
    """

    def __init__(
        self,
        shared: Tensor,
        cross: Tensor,
        own: Tensor,
        gradient: Tensor,
        coupling: Tensor | None = None,
        dense_limit: int = 2048,
        places: dict | None = None,
    ):
        self.shared, self.cross, self.own = shared, cross, own
        self.gradient, self.coupling = gradient, coupling
        self.dense_limit = dense_limit
        self._places = {} if places is None else places
        # (where_a [G, n], where_b [G, n], block [G, n, n]): blocks of H between parameters of two owners, as
        # step positions
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        self.commons: list[Tensor] = []  # C [R, S N] of each eliminated latent: H contains -C'C

    @staticmethod
    def zeros(
        num_owners: int,
        num_shared: int,
        num_own: int,
        dtype=torch.float64,
        device=None,
        num_people: int = 1,
        places: dict | None = None,
    ) -> ArrowSystem:
        def z(*shape):
            return torch.zeros(num_people, *shape, dtype=dtype, device=device)

        return ArrowSystem(
            z(num_shared, num_shared),
            z(num_owners, num_shared, num_own),
            z(num_owners, num_own, num_own),
            z(num_shared + num_owners * num_own).reshape(-1),
            places=places,
        )

    @property
    def factored(self) -> bool:
        """True when coupling is kept as factors."""
        return self.num_owners * self.num_own > self.dense_limit

    @property
    def num_people(self) -> int:
        return self.shared.shape[0]

    @property
    def num_shared(self) -> int:
        return self.shared.shape[-1]

    @property
    def num_own(self) -> int:
        return self.own.shape[-1]

    @property
    def num_owners(self) -> int:
        return self.own.shape[1]

    @property
    def each(self) -> int:
        """Parameters of each person."""
        return self.num_shared + self.num_owners * self.num_own

    # ---- assembly: `index` [B, n] gives the step position of the local parameters of each view: those that
    # its owner has stand last, and all of them belong to one owner of one person ----

    def add_rows(self, views: Sequence[Tensor], index: Tensor, rows: Sequence[Tensor]) -> None:
        """Add the Hessian of sum_g |sum_k rows_k[g] x_k|^2 / 2: rows_k [G, R, n] by the local parameters of
        the views views_k [G]."""
        if len(rows[0]) == 0:
            return
        places = self._rows_of(views, index)
        if places is None:
            self._add_products(views, index, rows)
            return
        # All views of a group have the same shared parameters, so their derivatives add up before they are
        # squared.
        s = places.num_shared
        shared, own = rows[0][..., :s].contiguous(), [r[..., s:] for r in rows]
        for more in rows[1:]:
            shared = shared + more[..., :s]
        if places.stacked:
            stacked = shared.flatten(0, 1)
            self._put_shared(places.shared, (stacked.T @ stacked)[None])
        else:
            self._put_shared(places.shared, shared.mT @ shared)
        for k, (cross, tied) in enumerate(zip(places.cross, places.tied)):
            self._put_cross(cross, shared.mT @ own[k])
            self._put_tied(tied, own[k].mT @ own[k])
            for other in range(k + 1, len(rows)):
                block = own[k].mT @ own[other]
                self._put_tied(places.both[k, other], torch.cat([block, block.mT]))

    def _rows_of(self, views: Sequence[Tensor], index: Tensor) -> _Rows | None:
        """Where rows by the local parameters of these views go, None: see `_add_products`."""
        key = "rows", id(index), *(tuple(view.tolist()) for view in views)
        if key not in self._places:
            self._places[key] = (
                index,
                self._find_rows(views, index),
            )  # index: kept, so that no other has its id
        return self._places[key][1]

    def _find_rows(self, views: Sequence[Tensor], index: Tensor) -> _Rows | None:
        (first, s), *others = (self._positions(view, index) for view in views)
        if self.factored or any(not torch.equal(at[:, :s], first[:, :s]) for at, _ in others):
            return None
        top, positions = first[:, :s], [first, *(at for at, _ in others)]
        stacked = self.num_people == 1 and bool((top == top[0]).all())
        pairs = [(k, other) for k in range(len(positions)) for other in range(k + 1, len(positions))]
        both = [torch.cat([positions[k], positions[o]]) for k, o in pairs]
        turned = [torch.cat([positions[o], positions[k]]) for k, o in pairs]
        return _Rows(
            s,
            stacked,
            self._shared_place(top[:1] if stacked else top),
            [self._cross_place(at[:, :s], at, at.shape[1] - s) for at in positions],
            [self._tied_place(at, at, s) for at in positions],
            {pair: self._tied_place(a, b, s) for pair, a, b in zip(pairs, both, turned)},
        )

    def _add_products(self, views: Sequence[Tensor], index: Tensor, rows: Sequence[Tensor]) -> None:
        """`add_rows` view by view and pair by pair."""
        for k, view in enumerate(views):
            at, s = self._positions(view, index)
            self._add(at, at, s, rows[k].mT @ rows[k])
            for other in range(k + 1, len(rows)):
                self.add_pair(view, views[other], index, rows[k].mT @ rows[other])

    def add_squares(self, view: Tensor, index: Tensor, squares: Tensor) -> None:
        """Add the Hessian of sum_g sum_n squares[g, n] x_n^2 / 2, squares [G, n], by the local parameters of
        the views `view` [G]."""
        key = "squares", id(index), tuple(view.tolist())
        if key not in self._places:
            self._places[key] = index, self._find_squares(view, index)
        squares = squares.to(self.own.dtype).reshape(-1)
        for target, chosen, at in zip((self.shared, self.own), *self._places[key][1]):
            if len(at):
                _scatter(target, at, squares if len(at) == len(squares) else squares[chosen])

    def _find_squares(
        self, view: Tensor, index: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Which of the squares, counted through, are of shared and of own parameters, and the elements of
        these matrices that they go to."""
        P, Q = self.num_shared, max(1, self.num_own)
        at = self._positions(view, index)[0].reshape(-1)
        person, place = torch.div(at, self.each, rounding_mode="floor"), at % self.each
        shared, own = (place < P).nonzero()[:, 0], (place >= P).nonzero()[:, 0]
        top, bottom = place[shared], place[own] - P
        owner = person[own] * self.num_owners + torch.div(bottom, Q, rounding_mode="floor")
        return (shared, own), (
            (person[shared] * P + top) * P + top,
            (owner * Q + bottom % Q) * Q + bottom % Q,
        )

    def add_gradient(self, view: Tensor, index: Tensor, gradient: Tensor) -> None:
        """Add gradients [G, n] by the local parameters of the views `view` [G]."""
        key = "gradient", id(index), tuple(view.tolist())
        if key not in self._places:
            self._places[key] = index, self._positions(view, index)[0]
        _scatter(self.gradient, self._places[key][1], gradient.to(self.own.dtype))

    def add_view(self, view: Tensor, index: Tensor, hessian: Tensor, gradient: Tensor) -> None:
        """Add local systems hessian [G, n, n], gradient [G, n] that belong to the views `view` [G]."""
        if len(view) == 0:
            return
        at, s = self._positions(view, index)
        self.add_gradient(view, index, gradient)
        self._add(at, at, s, hessian)

    def add_pair(self, view_a: Tensor, view_b: Tensor, index: Tensor, block: Tensor) -> None:
        """Add block [G, n, n] = J_a' W J_b and its transpose for residuals that depend on views a and b."""
        if len(view_a) == 0:
            return
        (a, s), (b, _) = self._positions(view_a, index), self._positions(view_b, index)
        if self.factored:
            apart = self._owner(a) != self._owner(b)
            if bool(apart.any()):
                self.pairs.append((a[apart], b[apart], block[apart].to(self.own.dtype)))
                a, b, block = a[~apart], b[~apart], block[~apart]
        row, column, both = torch.cat([a, b]), torch.cat([b, a]), torch.cat([block, block.mT])
        if len(row):
            self._add_ends(row, column, s, both)
            self._add_tied(row, column, s, both[:, s:, s:])

    def add_common(self, view: Tensor, index: Tensor, columns: Tensor) -> None:
        """Subtract C'C with C = the sum over views of columns [G, R, n] placed in the step: a latent of one
        person that is eliminated."""
        R = columns.shape[1]
        at, _ = self._positions(view, index)
        common = columns.new_zeros(self.num_people * self.each, R)
        common = common.index_add_(0, at.reshape(-1), columns.transpose(1, 2).reshape(-1, R)).T
        if self.factored:
            self.commons.append(common)
            return
        P, T, Q, S = self.num_shared, self.num_owners, self.num_own, self.num_people
        common = common.reshape(R, S, self.each).transpose(0, 1)
        top, bottom = common[..., :P], common[..., P:]
        self.shared -= (top.mT @ top).to(self.shared.dtype)
        self.cross -= (top.mT @ bottom).to(self.cross.dtype).reshape(S, P, T, Q).transpose(1, 2)
        self._coupled().sub_((bottom.mT @ bottom).to(self.own.dtype).reshape(S, T, Q, T, Q))

    def _positions(self, view: Tensor, index: Tensor) -> tuple[Tensor, int]:
        """Step positions [G, n] of the local parameters of `view` [G], and how many of them are shared."""
        return index.to(view.device)[view], int((index[0] % self.each < self.num_shared).sum())

    def _owner(self, at: Tensor) -> Tensor:
        """[G] int64, the owner of the positions at [G, n], whose last one it has, counted through all
        people; of each person the first where all are shared."""
        person, last = self._person(at), at[:, -1] % self.each - self.num_shared
        owner = torch.div(last, max(1, self.num_own), rounding_mode="floor").clamp_min(0)
        return person * self.num_owners + owner

    def _person(self, at: Tensor) -> Tensor:
        """[G] int64, whose the positions at [G, n] are."""
        return torch.div(at[:, 0], self.each, rounding_mode="floor")

    def _add(self, row: Tensor, column: Tensor, s: int, block: Tensor) -> None:
        """Add block [G, n, n] where the rows `row` [G, n] of H meet the columns `column` [G, n] of the same
        owner.

        The first s of both are shared. Where shared and own parameters meet, only the half with shared rows
        is kept.
        """
        self._add_ends(row, column, s, block)
        self._add_tied(row, column, s, block[:, s:, s:])

    def _add_ends(self, row: Tensor, column: Tensor, s: int, block: Tensor) -> None:
        """The part of `_add` with shared rows."""
        self._add_shared(row[:, :s], block[:, :s, :s], column[:, :s])
        self._add_cross(row[:, :s], column, block[:, :s, s:])

    def _add_shared(self, row: Tensor, block: Tensor, column: Tensor | None = None) -> None:
        """Add block [G, s, s] where shared rows [G, s] meet shared columns, None: the same ones."""
        self._put_shared(self._shared_place(row, column), block)

    def _shared_place(self, row: Tensor, column: Tensor | None = None) -> _Place | None:
        P, column = self.num_shared, row if column is None else column
        if row.shape[1] == 0:
            return None
        person = self._person(row)
        top = (row - person[:, None] * self.each)[:, :, None]
        left = (column - person[:, None] * self.each)[:, None, :]
        if bool((top == top[:1]).all()) and bool((left == left[:1]).all()):  # all in one place: plain sums
            return _Place(person, *(_slices(top, left) or (top[0], left[0])))
        return _Place(person, at=(person[:, None, None] * P + top) * P + left)

    def _put_shared(self, place: _Place | None, block: Tensor) -> None:
        if place is None:
            return
        block = block.to(self.own.dtype)
        if place.at is None:
            self.shared[:, place.rows, place.columns] += _sums(block, place.owner, self.num_people)
        else:
            _scatter(self.shared, place.at, block)

    def _add_cross(self, row: Tensor, column: Tensor, block: Tensor) -> None:
        """Add block [G, s, o] where shared rows [G, s] meet the own parameters, the last o of the columns
        [G, n]."""
        self._put_cross(self._cross_place(row, column, block.shape[2]), block)

    def _cross_place(self, row: Tensor, column: Tensor, o: int) -> _Place | None:
        if row.shape[1] == 0 or o == 0:
            return None
        owner = self._owner(column)
        top = (row - self._person(row)[:, None] * self.each)[:, :, None]
        place = self._place(column[:, -o:], owner)[:, None, :]
        plain = _slices(top, place)
        if plain is not None:
            return _Place(owner, *plain)
        return _Place(owner, at=(owner[:, None, None] * self.num_shared + top) * self.num_own + place)

    def _put_cross(self, place: _Place | None, block: Tensor) -> None:
        if place is not None:
            _put(self.cross, place, block.to(self.own.dtype))

    def _add_tied(self, row: Tensor, column: Tensor, s: int, block: Tensor) -> None:
        """Add block [G, o, o] where the own parameters after the first s of `row` [G, n] meet those of
        `column`."""
        self._put_tied(self._tied_place(row, column, s), block)

    def _tied_place(self, row: Tensor, column: Tensor, s: int) -> _Tied | None:
        if row.shape[1] == s:
            return None
        T, Q = self.num_owners, self.num_own
        owner, other = self._owner(column), self._owner(row)
        bottom, right = self._place(row[:, s:], other)[:, :, None], self._place(column[:, s:], owner)[:, None]
        apart, coupled = owner != other, None
        if bool(apart.any()):
            at = ((other[:, None, None] * Q + bottom) * T + (owner % T)[:, None, None]) * Q + right
            coupled, keep = at[apart], ~apart
            bottom, right, owner = bottom[keep], right[keep], owner[keep]
        plain = _slices(bottom, right) if len(owner) else None
        if plain is not None:
            place = _Place(owner, *plain)
        else:
            place = _Place(owner, at=(owner[:, None, None] * Q + bottom) * Q + right)
        return _Tied(apart, coupled, place)

    def _put_tied(self, place: _Tied | None, block: Tensor) -> None:
        if place is None:
            return
        block = block.to(self.own.dtype)
        if place.coupled is not None:
            _scatter(self._coupled(), place.coupled, block[place.apart])
            block = block[~place.apart]
        _put(self.own, place.place, block)

    def _place(self, at: Tensor, owner: Tensor) -> Tensor:
        """[G, o] which of the parameters of their owner [G] the positions at [G, o] are."""
        start = torch.div(owner, self.num_owners, rounding_mode="floor") * self.each + self.num_shared
        return at - (start + owner % self.num_owners * self.num_own)[:, None]

    def _coupled(self) -> Tensor:
        """`coupling`, made when it is first needed."""
        if self.coupling is None:
            T, Q = self.num_owners, self.num_own
            self.coupling = self.own.new_zeros(self.num_people, T, Q, T, Q)
        return self.coupling

    # ---- use ----

    def dense(self) -> Tensor:
        """The whole matrix, [S N, S N]."""
        H = torch.block_diag(*self._blocks())
        for where_a, where_b, block in self.pairs:
            for at, bt, part in zip(where_a, where_b, block):
                H[at[:, None], bt] += part
                H[bt[:, None], at] += part.T
        for C in self.commons:
            H -= (C.T @ C).to(H.dtype)
        return H

    def _blocks(self) -> Tensor:
        """The matrix of each person without what is kept as factors, [S, N, N]."""
        P, T, Q, S = self.num_shared, self.num_owners, self.num_own, self.num_people
        H = self.shared.new_zeros(S, self.each, self.each)
        H[:, :P, :P] = self.shared
        cross = self.cross.transpose(1, 2).reshape(S, P, T * Q)
        H[:, :P, P:], H[:, P:, :P] = cross, cross.mT
        block = self.shared.new_zeros(S, T, Q, T, Q) if self.coupling is None else self.coupling.clone()
        block.diagonal(dim1=1, dim2=3).add_(self.own.permute(0, 2, 3, 1))
        H[:, P:, P:] = block.reshape(S, T * Q, T * Q)
        return H

    def diagonal(self) -> Tensor:
        """[S N]"""
        own = self.own.diagonal(dim1=2, dim2=3)
        if self.coupling is not None:
            own = own + self.coupling.flatten(1, 2).flatten(2).diagonal(dim1=1, dim2=2).reshape(own.shape)
        total = torch.cat([self.shared.diagonal(dim1=1, dim2=2), own.flatten(1)], 1).reshape(-1)
        for where_a, where_b, block in self.pairs:
            same = where_a == where_b  # shared parameters, the only ones that two owners have in common
            total = total.index_add(0, where_a[same], 2 * block.diagonal(dim1=1, dim2=2)[same])
        for C in self.commons:
            total = total - (C * C).sum(0).to(total.dtype)
        return total

    def solve(self, damping: Tensor) -> Tensor:
        """Step [S N] of (H + diag(damping)) step = -g; not a number for a person whose matrix is not positive
        definite."""
        return self.solve_columns(-self.gradient[:, None], damping)[:, 0]

    def solve_columns(self, right: Tensor, damping: Tensor) -> Tensor:
        """(H + diag(damping))^-1 right for the columns of right [S N, R], as `solve`."""
        S, N = self.num_people, self.each
        right, damping = right.reshape(S, N, -1), damping.reshape(S, N)
        if self.coupling is not None or self._many(right.shape[2]):
            H = self.dense()[None] if self.coupling is None else self._blocks()
            H.diagonal(dim1=1, dim2=2).add_(damping)
            factor, info = torch.linalg.cholesky_ex(H)
            x = _where(info == 0, torch.cholesky_solve(right, factor))
        else:
            arrow, definite = self._factor_arrow(damping)
            if self.pairs or self.commons:
                x, curved = self._conjugate_gradients(right, arrow, damping)
                definite = definite & ~curved
            else:
                x = arrow(right)
            x = _where(definite, x)
        return x.reshape(S * N, -1)

    def _many(self, columns: int) -> bool:
        """Whether one factorisation of the whole matrix serves so many right sides faster than conjugate
        gradients; of one person, as those who ask for many are."""
        gradients = bool(self.pairs or self.commons)
        return gradients and self.num_people == 1 and columns >= MANY and self.each <= MOST_DENSE

    def _factor_arrow(self, damping: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """A function that solves (arrow + diag(damping)) x = right side [S, N, R], and for whom that is
        positive definite, [S] bool."""
        P, T, Q, S = self.num_shared, self.num_owners, self.num_own, self.num_people
        own = self.own.clone()
        own.diagonal(dim1=2, dim2=3).add_(damping[:, P:].reshape(S, T, Q))
        factor, info = torch.linalg.cholesky_ex(own)
        definite = (info == 0).all(1)
        inner = torch.cholesky_solve(self.cross.mT, factor).reshape(S, T * Q, P)
        cross = self.cross.transpose(1, 2).reshape(S, P, T * Q)
        schur = self.shared.clone()
        schur.diagonal(dim1=1, dim2=2).add_(damping[:, :P])
        schur -= cross @ inner
        outer, info = torch.linalg.cholesky_ex(schur)
        definite = definite & (info == 0)

        def solve(right: Tensor) -> Tensor:
            R = right.shape[2]
            top, bottom = right[:, :P], right[:, P:].reshape(S, T, Q, R)
            bottom = torch.cholesky_solve(bottom, factor).reshape(S, T * Q, R)
            shared = torch.cholesky_solve(top - cross @ bottom, outer)
            return torch.cat([shared, bottom - inner @ shared], 1)

        return solve, definite

    def _conjugate_gradients(
        self, right: Tensor, precondition, damping: Tensor, tolerance: float = 1e-3, most: int = 200
    ) -> tuple[Tensor, Tensor]:
        """Preconditioned conjugate gradients, all columns of right [S, N, R] side by side, and whose matrix
        shows a direction of negative curvature, [S] bool.

        Source: Nocedal and Wright, "Numerical Optimization", 2006, algorithm 5.3.
        """
        x = torch.zeros_like(right)
        r = -right
        y = precondition(r)
        p, ry = -y, (r * y).sum(1)
        first = ry
        active = first > 0  # no right side, no step
        curved = torch.zeros_like(active)
        for _ in range(most):
            if not bool(active.any()):
                break
            Hp = self.multiply(p.flatten(0, 1)).reshape(p.shape) + damping[..., None] * p
            curvature = (p * Hp).sum(1)
            curved = curved | (active & ~(curvature > 0))
            active = active & ~curved
            step = torch.where(active, ry / curvature, torch.zeros_like(ry))[:, None]
            x, r = x + step * p, r + step * Hp
            y = precondition(r)
            before, ry = ry, (r * y).sum(1)
            active = active & (ry > tolerance**2 * first)
            p = -y + torch.where(active, ry / before, torch.zeros_like(ry))[:, None] * p
        return x, curved.any(1)

    def multiply(self, x: Tensor) -> Tensor:
        """H x for x [S N] or the columns of x [S N, R]."""
        if x.ndim == 1:
            return self.multiply(x[:, None])[:, 0]
        P, T, Q, S = self.num_shared, self.num_owners, self.num_own, self.num_people
        R = x.shape[1]
        each = x.reshape(S, self.each, R)
        a, b = each[:, :P], each[:, P:].reshape(S, T, Q, R)
        top = self.shared @ a + torch.einsum("stpq,stqr->spr", self.cross, b)
        bottom = (torch.einsum("stpq,spr->stqr", self.cross, a) + self.own @ b).reshape(S, T * Q, R)
        if self.coupling is not None:
            bottom = bottom + self.coupling.reshape(S, T * Q, T * Q) @ b.reshape(S, T * Q, R)
        total = torch.cat([top, bottom], 1).reshape(x.shape)
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
            for name in ("shared", "cross", "own", "gradient")
        }
        coupled = [s.coupling for s in systems if s.coupling is not None]
        total = ArrowSystem(
            **parts, coupling=torch.stack(coupled).sum(0) if coupled else None, dense_limit=first.dense_limit
        )
        total.pairs = [p for s in systems for p in s.pairs]
        total.commons = [c for s in systems for c in s.commons]
        return total


@dataclass(frozen=True)
class _Place:
    """Where blocks [G, r, c] of the owners `owner` [G] go: to the same rows and columns of each, or `at`
    [G, r, c] int64, the element of each number, counted through."""

    owner: Tensor
    rows: slice | Tensor | None = None
    columns: slice | Tensor | None = None
    at: Tensor | None = None


@dataclass(frozen=True)
class _Tied:
    """Where blocks between own parameters go: those of two owners, `apart` [G] bool, to `coupled`, see
    `_Place.at`, None: there are none; the others to `place`."""

    apart: Tensor
    coupled: Tensor | None
    place: _Place


@dataclass(frozen=True)
class _Rows:
    """Where `ArrowSystem.add_rows` puts what; stacked: all groups have the same shared parameters; cross,
    tied: of each view of a group; both: of each two of them."""

    num_shared: int
    stacked: bool
    shared: _Place | None
    cross: list[_Place | None]
    tied: list[_Tied | None]
    both: dict[tuple[int, int], _Tied | None]


def _put(target: Tensor, place: _Place, block: Tensor) -> None:
    """Add block [G, r, c] to target [S, T, ...]."""
    if place.at is None:
        target.flatten(0, 1)[:, place.rows, place.columns].index_add_(0, place.owner, block)
    else:
        _scatter(target, place.at, block)


def _scatter(target: Tensor, at: Tensor, values: Tensor) -> None:
    """Add values to the elements `at` of the contiguous `target`, counted through, where several may meet."""
    target.view(-1).index_add_(0, at.reshape(-1), values.reshape(-1))


def _slices(rows: Tensor, columns: Tensor) -> tuple[slice, slice] | None:
    """Ascending positions rows [G, r, 1] and columns [G, 1, c] as slices, where all groups have the same and
    there are no gaps: what is added there needs no positions of single numbers."""
    found = []
    for at in (rows.flatten(1), columns.flatten(1)):
        begin = at[:1, :1] if at.shape[1] else at.new_zeros(1, 1)
        if not bool((at == begin + torch.arange(at.shape[1], device=at.device)).all()):
            return None
        found.append(slice(int(begin), int(begin) + at.shape[1]))
    return found[0], found[1]


def _sums(values: Tensor, person: Tensor, people: int) -> Tensor:
    """Values [G, ...] of the people `person` [G] summed up for each of them, [S, ...]."""
    if people == 1:
        return values if len(values) == 1 else values.sum(0, keepdim=True)
    return values.new_zeros(people, *values.shape[1:]).index_add_(0, person, values)


def _where(definite: Tensor, x: Tensor) -> Tensor:
    """x [S, N, R], not a number for the people for whom it is no solution."""
    return torch.where(definite[:, None, None], x, torch.full_like(x, torch.nan))
