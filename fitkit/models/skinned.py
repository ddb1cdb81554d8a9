"""Face models with joints: jaw, neck and eyes that turn, as FLAME's."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fitkit.geometry.rotation import skew, so3_exp, so3_left_jacobian
from fitkit.geometry.rows import blend, rows_at
from fitkit.models.coefficients import Coefficients
from fitkit.models.face_model import FaceModel, LandmarkEmbedding, PointBasis, chain, sparse_sums


@dataclass(frozen=True, eq=False)
class SkinnedModel(FaceModel):
    """A face model with J joints: linear blend skinning of the linear model with corrective shapes.

    x = mean + identity @ identity_basis + expression @ expression_basis + (R - I) @ pose_basis, and with the
    joints at regressor @ (the same without pose_basis), each joint turned by its R within its parent:
    vertex = sum over joints of its weight * (x moved by that joint). While all joints are at rest it is the
    linear model. The root, which only carries the others, does not turn: the pose of the head does that.

    joint_names: J names, e.g. 'neck', 'jaw', 'eye_L', 'eye_R'; joint_regressor: [1 + J, V], the root first;
    joint_parents: 1 + J numbers, -1 of the root, of others a smaller one than their own; skinning_weights:
    [V, 1 + J], rows sum to 1; joint_sigma: [J, 3] rad, standard deviations of each joint's rotation vector;
    pose_basis: [9 J, V, 3] mm by the elements of R - I of each joint, row by row, or None.
    Source: Loper et al., "SMPL: a skinned multi-person linear model", 2015, eq. 2 to 10; Li et al., "Learning
    a model of facial shape and expression from 4D scans", 2017, eq. 1 to 5. As in the code of both, joints
    follow all shapes; the paper of FLAME lets them follow the identity alone.
    """

    joint_names: tuple[str, ...] = field(kw_only=True)
    joint_regressor: Tensor = field(kw_only=True)
    joint_parents: tuple[int, ...] = field(kw_only=True)
    skinning_weights: Tensor = field(kw_only=True)
    joint_sigma: Tensor = field(kw_only=True)
    pose_basis: Tensor | None = field(default=None, kw_only=True)

    __repr__ = FaceModel.__repr__

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    @cached_property
    def coefficients(self) -> dict[str, Coefficients]:
        """What 'identity', 'expression' and 'joints' mean."""
        axes = tuple(f"{name}_{axis}" for name in self.joint_names for axis in "xyz")
        sigma = self.joint_sigma.flatten()
        joints = Coefficients("joints", 3 * self.num_joints, "frame", "rotation", sigma, axes)
        return {**self._shape_coefficients(), "joints": joints}

    @cached_property
    def joint_basis(self) -> PointBasis:
        """The places of the joints at rest, the root first."""
        rows = self.joint_regressor @ self.rows.reshape(self.num_vertices, -1)
        rows = rows.reshape(1 + self.num_joints, 3, -1)
        return PointBasis(self.joint_regressor @ self.mean, rows, self.num_identity)

    @cached_property
    def skinning(self) -> Skin:
        """What the joints do to the vertices."""
        shapes = None if self.pose_basis is None else self.pose_basis.permute(1, 2, 0).contiguous()
        return Skin(self.skinning_weights, shapes)

    def vertices(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """identity [B, K_id], expression [B, K_ex], joints [B, J, 3] rad (None: at rest) -> vertices
        [B, V, 3] in mm, head frame."""
        shaped = super().vertices(identity, expression)
        if joints is None:
            return shaped
        return self.skinning.posed(shaped, Bones.of(self, identity, expression, joints))

    def at(self, triangle: Tensor, barycentric: Tensor) -> SkinnedPoints:
        """The model restricted to N surface points: triangle [N] int64, barycentric [N, 3]."""
        return SkinnedPoints(self, self.triangles[triangle], barycentric)

    def on_mesh(self, triangle: Tensor, barycentric: Tensor) -> SkinnedPoints:
        return self.at(triangle, barycentric)

    def at_vertices(self, index: Tensor) -> SkinnedPoints:
        """The model restricted to the vertices `index` [N] int64, or [B, N]: other ones in each frame."""
        return SkinnedPoints(self, index[..., None], torch.ones_like(index, dtype=self.mean.dtype)[..., None])

    @cached_property
    def landmark_basis(self) -> SkinnedPoints:
        """The model restricted to the 68 iBUG points; for those that it lacks see `LandmarkEmbedding`."""
        return replace(self.at(self.landmarks.triangle, self.landmarks.barycentric), landmarks=self.landmarks)

    def with_mean(self, mean: Tensor) -> SkinnedModel:
        """The same shapes and joints around another mean [V, 3] mm; nothing else is made anew."""
        moved = replace(self, mean=mean)
        for name in ("rows", "joint_basis", "skinning"):
            moved.__dict__[name] = getattr(self, name)
        return moved


@dataclass(frozen=True)
class Bones:
    """The joints of a skinned model in B frames, the root first.

    vector: [B, J, 3] rad and local: [B, J, 3, 3], how each but the root is turned; place: [B, 1 + J, 3] mm,
    where they are; turn [B, 1 + J, 3, 3] and shift [B, 1 + J, 3] mm: x -> turn @ x + shift, the motion of
    what each carries; parents: see SkinnedModel.
    """

    vector: Tensor
    local: Tensor
    place: Tensor
    turn: Tensor
    shift: Tensor
    parents: tuple[int, ...]

    @staticmethod
    def of(model: SkinnedModel, identity: Tensor, expression: Tensor, joints: Tensor) -> Bones:
        rest, local = model.joint_basis.points(identity, expression), so3_exp(joints)
        turn = [torch.eye(3).to(local).expand(len(local), 3, 3)]
        place = [rest[:, 0]]
        for j, parent in enumerate(model.joint_parents[1:], 1):
            turn.append(turn[parent] @ local[:, j - 1])
            arm = rest[:, j] - rest[:, parent]
            place.append(place[parent] + (turn[parent] @ arm[..., None])[..., 0])
        turns, places = torch.stack(turn, 1), torch.stack(place, 1)
        shift = places - (turns @ rest[..., None])[..., 0]
        return Bones(joints, local, places, turns, shift, model.joint_parents)

    @property
    def feature(self) -> Tensor:
        """What corrective shapes are driven by: the elements of R - I, [B, 9 J]."""
        return (self.local - torch.eye(3).to(self.local)).flatten(1)

    @property
    def carried(self) -> Tensor:
        """Which joints turn with each but the root, itself among them, [J, 1 + J] of 0 and 1."""
        carried = torch.eye(len(self.parents))
        for joint, parent in enumerate(self.parents[1:], 1):
            carried[:, joint] += carried[:, parent]
        return carried[1:].to(self.turn)

    def shift_rows(self, rows: Tensor) -> Tensor:
        """How `shift` moves with coefficients that move the joints at rest by rows [1 + J, 3, K],
        [B, 1 + J, 3, K]."""
        place = [rows[0].expand(len(self.turn), -1, -1)]
        for j, parent in enumerate(self.parents[1:], 1):
            place.append(place[parent] + self.turn[:, parent] @ (rows[j] - rows[parent]))
        return torch.stack(place, 1) - self.turn @ rows


@dataclass(frozen=True)
class Skin:
    """What joints do to U vertices. weights: [U, 1 + J]; correctives: [U, 3, 9 J] mm, or None."""

    weights: Tensor
    correctives: Tensor | None

    def select(self, index: Tensor) -> Skin:
        return Skin(
            rows_at(self.weights, index),
            None if self.correctives is None else rows_at(self.correctives, index),
        )

    def corrected(self, shaped: Tensor, bones: Bones) -> Tensor:
        """Vertices [B, U, 3] with the corrective shapes."""
        if self.correctives is None:
            return shaped
        moved = bones.feature @ self.correctives.reshape(-1, self.correctives.shape[-1]).T
        return shaped + moved.reshape(len(moved), -1, 3)

    def blended(self, bones: Bones) -> tuple[Tensor, Tensor]:
        """The motion of each vertex, x -> turn @ x + shift: [B, U, 3, 3] and [B, U, 3]."""
        turn = self.weights @ bones.turn.flatten(2)
        return turn.unflatten(2, (3, 3)), self.weights @ bones.shift

    def posed(self, shaped: Tensor, bones: Bones) -> Tensor:
        """Vertices of the linear model [B, U, 3] -> as the joints carry them."""
        turn, shift = self.blended(bones)
        return (turn @ self.corrected(shaped, bones)[..., None])[..., 0] + shift

    def by_joints(self, shaped: Tensor, bones: Bones, turn: Tensor) -> Tensor:
        """Derivatives of `posed` by the rotation vectors, [B, U, 3, 3 J]; turn: of `blended`."""
        x, jacobian = self.corrected(shaped, bones), so3_left_jacobian(bones.vector)  # [B, J, 3, 3]
        (B, U, _), J = x.shape, jacobian.shape[1]
        weights = self.weights * bones.carried[:, None]  # [J, U, 1 + J]
        turns = (weights.flatten(0, 1) @ bones.turn.flatten(2)).reshape(B, J, U, 3, 3)
        shift = (weights.flatten(0, 1) @ bones.shift).reshape(B, J, U, 3)
        arm = (
            (turns @ x[:, None, ..., None])[..., 0]
            + shift
            - weights.sum(2)[..., None] * bones.place[:, 1:, None]
        )
        axes = (bones.turn[:, list(bones.parents[1:])] @ jacobian).transpose(2, 3)  # [B, J, 3 axes, 3]
        moved = torch.linalg.cross(axes[:, :, None], arm[:, :, :, None]).permute(0, 2, 4, 1, 3).flatten(3)
        if self.correctives is None:
            return moved
        spin = skew(jacobian.transpose(2, 3)) @ bones.local[:, :, None]  # d R / d axis, [B, J, 3 axes, 3, 3]
        each, by_axis = torch.arange(J), torch.zeros(B, J, 9, J, 3).to(spin)  # d feature / d joints
        by_axis[:, each, :, each] = spin.flatten(3).permute(1, 0, 3, 2)
        shapes = self.correctives.flatten(0, 1) @ by_axis.reshape(B, 9 * J, 3 * J)
        return moved + turn @ shapes.reshape(B, U, 3, 3 * J)


@dataclass(frozen=True, eq=False)
class SkinnedPoints:
    """The `Points` of a skinned model: N weighted sums of its vertices.

    corner: [N, C] int64 vertices and weights: [N, C] (1 vertex, or the 3 of a triangle), or [B, N, C]: other
    ones in each of the frames; landmarks: the 68 points that these are, some of which the mesh may lack;
    None: other points.
    """

    model: SkinnedModel
    corner: Tensor
    weights: Tensor
    landmarks: LandmarkEmbedding | None = None

    @property
    def num_identity(self) -> int:
        return self.model.num_identity

    @cached_property
    def mean(self) -> Tensor:
        return self._filled(blend(self.model.mean, self.corner, self.weights))

    @cached_property
    def rows(self) -> Tensor:
        return self._filled(blend(self.model.rows, self.corner, self.weights))

    @cached_property
    def _used(self) -> tuple[PointBasis, Skin, Tensor]:
        """The U vertices that the points are sums of, at rest; their skin; which of them each corner is."""
        used, place = self.corner.unique(return_inverse=True)
        model = self.model
        basis = PointBasis(model.mean[used], rows_at(model.rows, used), model.num_identity)
        return basis, model.skinning.select(used), place

    def points(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> Tensor:
        """identity [B, K_id], expression [B, K_ex], joints [B, J, 3] rad -> points [B, N, 3] mm."""
        basis, skin, place = self._used
        vertices = basis.points(identity, expression)
        if joints is not None:
            vertices = skin.posed(vertices, Bones.of(self.model, identity, expression, joints))
        frame = torch.arange(len(vertices), device=place.device)[:, None, None]
        points = (self.weights[..., None] * vertices[frame, place]).sum(-2)
        return self._filled(points.transpose(0, 1)).transpose(0, 1)

    def motion(self, identity: Tensor, expression: Tensor, joints: Tensor | None = None) -> SkinnedMotion:
        """How they move around these values."""
        if joints is None:
            joints = identity.new_zeros(len(identity), self.model.num_joints, 3)
        basis, skin, place = self._used
        bones = Bones.of(self.model, identity, expression, joints)
        turn, _ = skin.blended(bones)
        return SkinnedMotion(
            basis.rows,
            skin.weights[:, 1:],
            turn,
            skin.by_joints(basis.points(identity, expression), bones, turn),
            bones.shift_rows(self.model.joint_basis.rows)[:, 1:].flatten(1, 2),
            place,
            self.weights,
            self.num_identity,
        )

    def select(self, index: Tensor) -> SkinnedPoints:
        return SkinnedPoints(self.model, self.corner[index], self.weights[index])

    def _filled(self, values: Tensor) -> Tensor:
        return values if self.landmarks is None else self.landmarks.filled(values)


@dataclass(frozen=True)
class SkinnedMotion:
    """The `Motion` of N points of a skinned model in B frames: their vertices turn, and follow their joints.

    rows: [U, 3, K] mm, how the vertices move at rest; weights: [U, J] of the joints that turn; turn:
    [B, U, 3, 3]; by_joints: [B, U, 3, 3 J] mm per rad; shift: [B, 3 J, K] mm, how the motions of the joints
    shift with the coefficients; place: [N, C] or [B, N, C] int64, the vertices of each point, and mix, of the
    same shape, their weights. A derivative left by a vertex is left @ turn @ rows + left @ weights @ shift:
    nothing of the size [B, U, 3, K] is made.
    """

    rows: Tensor
    weights: Tensor
    turn: Tensor
    by_joints: Tensor
    shift: Tensor
    place: Tensor
    mix: Tensor
    num_identity: int

    def columns(self, by_head: Tensor, views: Tensor | None = None) -> dict[str, Tensor]:
        frame = torch.arange(len(by_head), device=by_head.device) if views is None else views
        corner, mix = (frame[:, None, None], self.place), self.mix[..., None, None]
        turned = by_head[:, :, None] @ (mix * self.turn[corner])  # [G, N, C, D, 3]
        rows = rows_at(self.rows, self.place).flatten(-3, -2)  # [N, 3 C, K]
        by_shape = chain(turned.transpose(2, 3).flatten(3), rows)
        weights = (self.mix[..., None] * rows_at(self.weights, self.place)).sum(-2)
        hung = weights[..., None, :, None] * by_head[..., None, :]  # [G, N, D, J, 3]
        by_shift = hung.flatten(3).flatten(1, 2) @ self.shift[frame]
        by_joints = by_head @ (mix * self.by_joints[corner]).sum(2)
        return self._named(by_shape + by_shift.reshape(by_shape.shape), by_joints)

    def sums(
        self, values: Tensor, group: Tensor, point: Tensor, groups: int, frame: int
    ) -> dict[str, Tensor]:
        place = self._vertex(point)
        turned = (values[:, None] @ self.turn[frame, place])[:, 0]
        hung = (rows_at(self.weights, place)[..., None] * values[:, None]).flatten(1)
        hung = hung.new_zeros(groups, hung.shape[1]).index_add(0, group, hung)
        by_joints = (values[:, None] @ self.by_joints[frame, place])[:, 0]
        by_joints = by_joints.new_zeros(groups, by_joints.shape[1]).index_add(0, group, by_joints)
        by_shape = sparse_sums(turned, group, place, groups, self.rows)
        return self._named(by_shape + hung @ self.shift[frame], by_joints)

    def at_rest(self, by_head: Tensor, point: Tensor, views: Tensor) -> Tensor:
        return by_head @ self.turn[views[:, None], self._vertex(point)]

    def blended(self, point: Tensor, weights: Tensor) -> SkinnedMotion:
        return replace(self, place=self._vertex(point), mix=weights)

    def select(self, index: Tensor) -> SkinnedMotion:
        return replace(self, place=self.place[index], mix=self.mix[index])

    def with_first(self, other: SkinnedMotion, keep: Tensor) -> SkinnedMotion:
        (B, n), C = keep.shape, self.place.shape[-1]
        place = self.place.expand(B, -1, -1).clone()
        mix = self.mix.expand(B, -1, -1).clone()
        more = C - other.place.shape[-1]  # corners without weight
        theirs = torch.nn.functional.pad(other.place + len(self.rows), (0, more), value=len(self.rows))
        place[:, :n] = torch.where(keep[..., None], theirs, place[:, :n])
        mix[:, :n] = torch.where(keep[..., None], torch.nn.functional.pad(other.mix, (0, more)), mix[:, :n])
        return SkinnedMotion(
            torch.cat([self.rows, other.rows]),
            torch.cat([self.weights, other.weights]),
            torch.cat([self.turn, other.turn], 1),
            torch.cat([self.by_joints, other.by_joints], 1),
            self.shift,
            place,
            mix,
            self.num_identity,
        )

    def _vertex(self, point: Tensor) -> Tensor:
        """The vertices that points of one corner are."""
        assert self.place.shape[-1] == 1, "points between vertices are no vertices"
        return self.place[:, 0][point]

    def _named(self, by_shape: Tensor, by_joints: Tensor) -> dict[str, Tensor]:
        K = self.num_identity
        return {"identity": by_shape[..., :K], "expression": by_shape[..., K:], "joints": by_joints}
