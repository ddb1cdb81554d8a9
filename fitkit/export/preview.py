"""`preview.png`: the neutral face from five sides, as clay and with its texture; `uncertainty.png`: its error
bars in colour; `detail.png`: its displacement beyond the face model; error maps of scans."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.rotation import so3_exp
from fitkit.models.face_model import FaceModel
from fitkit.render.shading import (
    Shaded,
    Surface,
    average_blocks,
    average_surface,
    lit_surface,
    shade,
    surface_normals,
)
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose

YAWS = (-90, -45, 0, 45, 90)  # degrees; positive: the nose points to the right side of the picture
TILE = (384, 320)  # (H, W) px of one picture
DISTANCE = 1200.0  # mm from the camera to the middle of the face
SUPERSAMPLE = 2
HIDDEN_MM = 4.0  # points deeper than this behind the nearest surface are hidden
CHIN = 8  # landmark
SIGMA_YAWS = (-90, -40, 0, 40, 90)
SIGMA_LARGEST = 2.0  # mm; one scale for all fits, so that pictures can be compared
ERROR_LARGEST = 5.0  # mm
DETAIL_LARGEST = 2.0  # mm
BLUE_TO_RED = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))  # sRGB
WIRE, WIRE_PX = (0.10, 0.16, 0.25), 0.9  # sRGB and width of drawn edges
UNKNOWN = (0.4, 0.4, 0.4)  # linear RGB of vertices without a value
TOP, BOTTOM = (246, 247, 249), (214, 218, 224)  # background


@dataclass(frozen=True)
class Side:
    """What one side shows of a mesh: its surface, supersampled, and the light on it [N], see `shade`."""

    surface: Surface
    diffuse: Tensor
    gloss: Tensor


class Sides:
    """A mesh before a camera that goes round it; each side is found once, by whichever thread asks first.

    vertices: [V, 3] mm, y up, z out of the face; triangles: [F, 3]; shown: middle of the tiles [3], and the
    height in mm that they show; tile: (H, W) px.
    """

    def __init__(
        self,
        vertices: Tensor,
        triangles: Tensor,
        shown: tuple[Tensor, float],
        tile: tuple[int, int] = TILE,
    ):
        self.vertices, self.triangles, self.shown, self.tile = vertices, triangles, shown, tile
        self._found: dict[float, Side] = {}
        self._locks = {yaw: threading.Lock() for yaw in {*YAWS, *SIGMA_YAWS}}

    @classmethod
    def of_head(cls, vertices: Tensor, model: FaceModel, tile: tuple[int, int] = TILE) -> Sides:
        """The head without most of the neck and shoulders; vertices [V, 3] mm, head frame."""
        return cls(vertices, model.triangles, _shown_part(vertices, model), tile)

    def at(self, yaw: int) -> Side:
        """The side at this yaw, one of YAWS or SIGMA_YAWS."""
        with self._locks[yaw]:
            if yaw not in self._found:
                self._found[yaw] = self.look(yaw)
            return self._found[yaw]

    def project(self, points: Tensor, yaw: int) -> tuple[Tensor, Tensor]:
        """Head-frame points [N, 3] mm -> their places [N, 2] px in the tile of this side, and whether the
        mesh leaves them visible [N]."""
        there = self._turned(points, math.radians(yaw))
        pixels = self._camera().project(there)[0][0]
        surface = self.at(yaw).surface
        depth = surface.interpolate(self._turned(self.vertices, math.radians(yaw))[0, :, 2:][self.triangles])
        nearest = depth.new_full((surface.size[0] * surface.size[1],), torch.inf)
        nearest[surface.pixel] = depth[:, 0]
        H, W = surface.size
        x, y = ((pixels + 0.5) * SUPERSAMPLE - 0.5).round().long().unbind(-1)
        inside = (x >= 0) & (y >= 0) & (x < W) & (y < H)
        front = nearest[y.clamp(0, H - 1) * W + x.clamp(0, W - 1)]
        return pixels, inside & (there[0, :, 2] < front + HIDDEN_MM)

    def _turned(self, points: Tensor, yaw: float) -> Tensor:
        """Head-frame points [N, 3] -> [1, N, 3] of the camera."""
        flip = torch.diag(points.new_tensor([1.0, -1.0, -1.0]))
        rotation = (flip @ so3_exp(points.new_tensor([0.0, yaw, 0.0])))[None]
        translation = points.new_tensor([[0.0, 0.0, DISTANCE]]) - self.shown[0] @ rotation[0].T
        return Pose(rotation, translation).apply(points[None])

    def _camera(self) -> Camera:
        H, W = self.tile
        like = self.vertices
        return Camera(
            like.new_tensor([DISTANCE * H / self.shown[1]]),
            like.new_tensor([[(W - 1) / 2, (H - 1) / 2]]),
            like.new_ones(1),
        )

    def look(self, yaw: float) -> Side:
        """The side at any yaw, degrees, found anew."""
        points = self._turned(self.vertices, math.radians(yaw))
        H, W = self.tile
        clip = self._camera().resized(1 / SUPERSAMPLE).clip(points)[0]
        surface = Surface.visible(clip, self.triangles, (H * SUPERSAMPLE, W * SUPERSAMPLE))
        return Side(surface, *shade(surface_normals(surface, points[0], self.triangles)))


@torch.no_grad()
def draw_preview(sides: Sides, model: FaceModel, texture: np.ndarray | None = None) -> np.ndarray:
    """Contact sheet of a head, uint8 [H, W, 3]; one column per yaw.

    First row clay, second row textured (or, without texture, coloured by the model's albedo; no second row
    without either).
    """
    rows = 1 if texture is None and model.albedo_mean is None else 2
    return np.concatenate([_column(sides.at(yaw), model, texture, sides.tile, rows) for yaw in YAWS], 1)


@torch.no_grad()
def draw_turn(
    vertices: Tensor,
    model: FaceModel,
    texture: np.ndarray | None = None,
    edges: np.ndarray | None = None,
    frames: int = 120,
    size: int = 720,
) -> Iterator[np.ndarray]:
    """A head that turns round once, from the front to the right side of the picture: uint8 [size, size, 3].

    vertices: [V, 3] mm, head frame; texture: uint8 sRGB, or None: the albedo of the model, or clay; edges:
    [F, 3] bool, which edges of the model's triangles are drawn, those opposite of each corner, or None: none.
    """
    sides = Sides.of_head(vertices, model, (size, size))
    for k in range(frames):
        side = sides.look(360.0 * k / frames)
        picture = _coloured_head(side, model, texture)
        yield _on_ground([picture if edges is None else _with_wires(side, picture, edges)], size)


def preview_front(picture: np.ndarray) -> np.ndarray:
    """The face from the front, with its colours if it has any, of what `draw_preview` gives, [h, w, 3].

    Raises:
        ValueError: a picture of another layout.
    """
    height, width = picture.shape[:2]
    tile = width // len(YAWS)
    row = round(tile * TILE[0] / TILE[1])
    if width % len(YAWS) or row == 0 or height not in (row, 2 * row):
        raise ValueError(f"expected one or two rows of {len(YAWS)} pictures, got {width} x {height} px")
    column = YAWS.index(0)
    return picture[height - row :, column * tile : (column + 1) * tile]


def _shown_part(vertices: Tensor, model: FaceModel) -> tuple[Tensor, float]:
    """Middle of the head [3] and the height in mm that a tile shows: the head without most of the neck and
    shoulders."""
    skin = vertices[model.skin | model.face]
    marks = model.landmarks.points(vertices[None], model.triangles)[0]
    # Without a point on the chin, the lowest one there is, on the lower lip at worst.
    chin = marks[:, 1].min() if CHIN in model.landmarks.missing else marks[CHIN, 1]
    top = vertices[:, 1].max()
    bottom = torch.maximum(vertices[:, 1].min(), chin - 0.22 * (top - chin))
    height = float(top - bottom)
    width = float(2 * vertices[:, [0, 2]].sub(skin[:, [0, 2]].mean(0)).norm(dim=-1).quantile(0.98))
    low, high = vertices.amin(0), vertices.amax(0)
    center = torch.stack([(low[0] + high[0]) / 2, (top + bottom) / 2, (low[2] + high[2]) / 2])
    return center, max(height, width * TILE[0] / TILE[1] * 0.8) * 1.12


@torch.no_grad()
def draw_uncertainty(sides: Sides, sigma: Tensor) -> np.ndarray:
    """A head coloured by sigma [V] mm from both sides and the front, with the scale at the right, uint8
    [H, W, 3]: dark blue 0 mm, yellow SIGMA_LARGEST and more."""
    return _coloured(sides, sigma, SIGMA_LARGEST, "sigma mm")


@torch.no_grad()
def draw_detail(sides: Sides, displacement: Tensor) -> np.ndarray:
    """A head coloured by its displacement [V] mm, as `draw_uncertainty`: red DETAIL_LARGEST and more
    outwards, white 0, blue inwards."""
    return _coloured(sides, displacement, DETAIL_LARGEST, "detail mm", signed=True)


@torch.no_grad()
def draw_error_map(
    vertices: Tensor,
    triangles: Tensor,
    errors: Tensor,
    largest: float = ERROR_LARGEST,
    label: str = "error mm",
    tile: tuple[int, int] = TILE,
) -> np.ndarray:
    """A scan [V, 3] mm (y up, z out of the face), triangles [F, 3], coloured by the error [V] of its vertices
    from five sides, with the scale at the right, uint8 [H, W, 3]: dark blue 0, yellow `largest` and more,
    grey where NaN. The scale does not depend on the errors, so that pictures can be compared."""
    known = vertices[torch.isfinite(errors)]
    low, high = known.amin(0), known.amax(0)
    shown = (
        (low + high) / 2,
        1.15 * float(torch.maximum(high[1] - low[1], (high - low)[[0, 2]].norm() * tile[0] / tile[1] * 0.8)),
    )
    return _coloured(Sides(vertices, triangles, shown, tile), errors, largest, label)


def _coloured(sides: Sides, values: Tensor, largest: float, label: str, signed: bool = False) -> np.ndarray:
    share = (values / largest / 2 + 0.5 if signed else values / largest).clamp(0, 1)
    colour = linear_from_srgb(
        torch.from_numpy(scale_colour(share.nan_to_num().numpy(), signed)).to(sides.vertices) / 255
    )
    colour = torch.where(torch.isfinite(values)[:, None], colour, colour.new_tensor(UNKNOWN))
    columns = []
    for side in map(sides.at, SIGMA_YAWS):
        own = side.surface.interpolate(colour[sides.triangles])
        own = own * (0.7 + 0.3 * side.diffuse[:, None] / 0.8).clamp_max(1)
        columns.append(_on_ground([_flat(side.surface, own)], sides.tile[0]))
    return np.concatenate([*columns, _colour_bar(sides.tile[0], largest, label, signed)], 1)


def _flat(surface: Surface, colour: Tensor) -> Shaded:
    """Linear colours [N, 3] of the supersamples as a picture."""
    rgba = torch.cat([colour.clamp(0, 1), torch.ones_like(colour[:, :2])], -1)
    return average_surface(surface, rgba, SUPERSAMPLE)


def scale_colour(share: np.ndarray, signed: bool = False) -> np.ndarray:
    """Shares in [0, 1] of the scale, [N], as sRGB [N, 3] uint8; signed: from blue over white to red."""
    if signed:
        return (
            np.stack(
                [np.interp(share, np.linspace(0, 1, 5), channel) for channel in np.transpose(BLUE_TO_RED)], 1
            )
            .round()
            .astype(np.uint8)
        )
    return cv2.applyColorMap((share * 255).round().astype(np.uint8)[:, None], cv2.COLORMAP_VIRIDIS)[
        :, 0, ::-1
    ].copy()


def _colour_bar(height: int, largest: float, title: str, signed: bool = False) -> np.ndarray:
    """The scale with its numbers, uint8 [height, W, 3]."""
    bar = np.full((height, 92, 3), 255, np.uint8)
    top, bottom = round(0.12 * height), round(0.92 * height)
    bar[top:bottom, 12:34] = scale_colour(np.linspace(1, 0, bottom - top), signed)[:, None]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = round(bottom + (top - bottom) * share)
        label = (f"{largest * (2 * share - 1):+.1f}" if signed else f"{largest * share:.1f}") + (
            "+" if share == 1 else ""
        )
        cv2.line(bar, (34, y), (39, y), (0, 0, 0), 1)
        cv2.putText(bar, label, (43, y + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    cv2.putText(bar, title, (8, top - 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return bar


def _column(side: Side, model: FaceModel, texture: np.ndarray | None, tile, rows: int) -> np.ndarray:
    pictures = [lit_surface(side.surface, side.diffuse, side.gloss, supersample=SUPERSAMPLE)]
    if rows == 2:
        pictures.append(_coloured_head(side, model, texture))
    return _on_ground(pictures, tile[0])


def _coloured_head(side: Side, model: FaceModel, texture: np.ndarray | None) -> Shaded:
    """With its texture or, without one, the albedo of the model; clay without either."""
    surface, diffuse, gloss = side.surface, side.diffuse, side.gloss
    if texture is not None:
        # The texture has the photos' light in it, so only a touch of shape is added.
        own = _texture_colour(surface, model, texture) * (0.72 + 0.28 * diffuse[:, None] / 0.8)
        return _flat(surface, own)
    if model.albedo_mean is None:
        return lit_surface(surface, diffuse, gloss, supersample=SUPERSAMPLE)
    colour = surface.interpolate(model.albedo_mean.to(diffuse)[model.triangles])
    return lit_surface(surface, diffuse, gloss, colour, supersample=SUPERSAMPLE)


def _with_wires(side: Side, picture: Shaded, edges: np.ndarray) -> Shaded:
    """The picture with the edges [F, 3] bool of each triangle on it, those opposite of its corners."""
    near = side.surface.edge_distances() / SUPERSAMPLE
    near = torch.where(torch.from_numpy(edges)[side.surface.triangle], near, torch.inf).amin(1)
    ink = (0.5 * WIRE_PX + 0.5 - near).clamp(0, 1)[:, None]
    share = average_blocks(side.surface.image(ink), SUPERSAMPLE) / picture.alpha.clamp_min(1e-6)[..., None]
    return replace(picture, rgb=picture.rgb + share.clamp(0, 1) * (torch.tensor(WIRE) - picture.rgb))


def _on_ground(pictures: list[Shaded], height: int) -> np.ndarray:
    """The pictures of one column below each other, before the background, uint8."""
    ramp = torch.linspace(0, 1, height)[:, None, None]
    ground = (torch.tensor(TOP) * (1 - ramp) + torch.tensor(BOTTOM) * ramp) / 255
    out = [(p.rgb * p.alpha[..., None] + ground * (1 - p.alpha[..., None])) for p in pictures]
    return (torch.cat(out, 0) * 255).round().clamp(0, 255).byte().numpy()


def _texture_colour(surface: Surface, model: FaceModel, texture: np.ndarray) -> Tensor:
    """Linear texture colour at the covered samples, [N, 3]."""
    size = texture.shape[0]
    uv = surface.interpolate(model.uv[model.uv_triangles]).numpy()
    n, columns = len(uv), 4096
    pad = ((0, -n % columns), (0, 0))
    x, y = np.pad(
        np.stack([uv[:, 0] * size - 0.5, (1 - uv[:, 1]) * size - 0.5], -1).astype(np.float32), pad
    ).T.reshape(2, -1, columns)
    if n == 0:
        return torch.zeros(0, 3)
    colour = cv2.remap(
        texture,
        np.ascontiguousarray(x),
        np.ascontiguousarray(y),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return linear_from_srgb(torch.from_numpy(colour.reshape(-1, 3)[:n]).float() / 255)
