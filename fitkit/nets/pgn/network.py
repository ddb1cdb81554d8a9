"""PGN: an encoder and a position map as in PRNet; pose from the map's landmarks, in closed form; light heads
for identity and expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from fitkit.energies.landmarks3d import landmark_places
from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.io.options import Positive, Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.nets.pgn.placing import place_affine, place_similarity
from fitkit.nets.pgn.prnet import REDUCTION, decoder, encoder, logit, normed, scaled, start_from_random
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of, table_of
from fitkit.observe.crop import CropOptions
from fitkit.observe.sampling import sample
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.position_map import PositionMap
from fitkit.scene.state import SceneState

RANGE = 1.1  # largest value of the map, sides of the picture
HEAD = 512  # channels and hidden units of a head, width 1
NUM_POINTS = 68
PLACERS = {"similarity": place_similarity, "affine": place_affine}


@dataclass(frozen=True)
class PgnOptions:
    """size: side of the pictures, px, a multiple of 32; map: side of the position map, size / 32 times 2 to
    32; width: factor on all channel numbers, 1 = as published; output: 'map', or 'points', 204 numbers from
    fully connected layers in its place; last: layers of three channels that the decoder ends with, 3 as
    published; pose: what lays the face onto the points, 'affine' as published;
    start: 'mean': the map of the mean face is added, so that it starts there; 'none' as published;
    expression: blend-shape weight, or standard deviations of a Gaussian coefficient, per unit of output;
    margin, up: of the crop, see CropOptions."""

    size: Annotated[int, Range(32, 2048, multiple=32)] = 128
    map: Annotated[int, Range(2, 2048, multiple=2)] = 64
    width: Annotated[float, Range(0.001, 16.0)] = 0.375
    output: Literal["map", "points"] = "map"
    last: Annotated[int, Range(1, 3)] = 1
    pose: Literal["similarity", "affine"] = "similarity"
    start: Literal["mean", "none"] = "mean"
    expression: Positive = 0.3
    margin: Annotated[float, Range(0.1, 20.0)] = 1.6
    up: Annotated[float, Range(-5.0, 5.0)] = 0.0

    def __post_init__(self):
        check_options(self, "net pgn")
        if self.map not in self.sides:
            raise InputError(
                f"net pgn: map: expected one of {', '.join(map(str, self.sides))} for pictures of "
                f"{self.size} px, got {self.map}"
            )

    @property
    def sides(self) -> list[int]:
        """That a map may have."""
        return [self.size // REDUCTION * 2**n for n in range(1, 6)]

    @property
    def doublings(self) -> int:
        return self.sides.index(self.map) + 1


class Pgn(Predictor):
    """See README.md beside this file. Takes photos in any order and number; has no named views."""

    gives = ("state", "position_map")
    camera_kind = "orthographic"
    feature_parts = ("encoder",)

    def __init__(
        self, model: FaceModel, views: tuple[ViewSlot, ...] = (), options: PgnOptions = PgnOptions()
    ):
        super().__init__()
        if views:
            raise InputError(
                "net pgn: takes any photos in any order; expected no named 'views', "
                f"got {', '.join(v.name for v in views)}"
            )
        self.options, self.views, self.size, o = options, (), options.size, options
        self.crop = CropOptions(o.margin, o.up, o.size, o.size)
        self.model_name, self.num_identity, self.num_expression = (
            model.name,
            model.num_identity,
            model.num_expression,
        )
        self.encoder, channels = encoder(o.width)
        side = o.size // REDUCTION
        if o.output == "map":
            self.decoder = decoder(o.width, channels, o.doublings, o.last)
        else:
            hidden = scaled(HEAD, o.width)
            self.decoder = nn.Sequential(
                nn.Flatten(),
                nn.Linear(channels * side**2, hidden),
                nn.ReLU(inplace=True),
                nn.Linear(hidden, 3 * NUM_POINTS),
                nn.Unflatten(1, (3, 1, NUM_POINTS)),
            )
        self.identity_head = _head(channels, scaled(HEAD, o.width), self.num_identity)
        self.expression_head = _head(channels, scaled(HEAD, o.width), self.num_expression)
        for part in (self.encoder, self.decoder, self.identity_head, self.expression_head):
            start_from_random(part)
        if o.start == "mean":  # and nothing is added to it at first
            last = [m for m in self.decoder.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self._remember(model)

    def _remember(self, model: FaceModel) -> None:
        """What of the face model the network needs. It is no weight: the model's file has it."""
        o, basis = self.options, model.landmark_basis
        places = self._places(model)
        fixed = {
            "points_mean": basis.mean,
            "points_rows": basis.rows,
            "points_present": model.landmarks.present,
            "expression_unit": o.expression * model.coefficients["expression"].unit(basis.mean),
            "places": torch.nan_to_num(places),
            "start": self._start(model),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    def _places(self, model: FaceModel) -> Tensor:
        """[68, 2] px (x, y), where the landmarks are in the map."""
        if self.options.output == "map":
            return landmark_places(model, (self.options.map,) * 2)
        return torch.stack([torch.arange(NUM_POINTS), torch.zeros(NUM_POINTS)], -1)

    def _start(self, model: FaceModel) -> Tensor:
        """[3, H, W], what is added to the map before the sigmoid."""
        o, marks = self.options, model.landmark_basis.mean.detach().cpu()
        if o.start == "none":
            return torch.zeros(3, 1, 1)
        low, high = marks.amin(0), marks.amax(0)
        scale = o.size / (o.margin * float((high - low)[:2].max()))  # px per mm
        head = mean_map(model, o.map) if o.output == "map" else marks.T[:, None]
        away = torch.stack([(low + high)[0] / 2, (low + high)[1] / 2, high[2]])[:, None, None]
        turned = (head - away) * head.new_tensor([1.0, -1.0, -1.0])[:, None, None]
        middle = (o.size - 1) / 2
        at = scale * turned + head.new_tensor([middle, middle, 0.0])[:, None, None]
        return logit(at / (RANGE * o.size))

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        seen = self.encoder(frames)
        person = table_of(seen.flatten(1), valid, padded, seen.new_zeros(()))
        share = valid.to(seen)[..., None]
        person = ((person * share).sum(1) / share.sum(1)).unflatten(1, seen.shape[1:])
        identity, expression = self.identity_head(person), self.expression_head(seen)
        maps = self.decoder(seen)
        with torch.autocast(
            seen.device.type, enabled=False
        ):  # positions need more digits than half precision has
            found = PositionMap(
                RANGE * self.size * torch.sigmoid(maps.float() + self.start.float()),
                self.places if self.options.output == "points" else None,
            )
            expression = self.expression_unit.float() * expression.float()
            state = self._state(found.points, identity.float(), expression, subject)
            return Prediction(state, position_map=found)

    def features(self, images: Tensor) -> Tensor:
        return self.encoder(images).mean((2, 3))

    def landmarks(self, maps: Tensor) -> Tensor:
        """The 68 points of position maps [B, 3, H, W], [B, 68, 3] px."""
        places = self.places.to(maps)
        return sample(maps, places[None].expand(maps.shape[0], -1, -1))[0]

    def _state(self, maps: Tensor, identity: Tensor, expression: Tensor, subject: Tensor) -> SceneState:
        coefficients = torch.cat([identity[subject], expression], 1)
        head = self.points_mean + torch.einsum("bk,ndk->bnd", coefficients, self.points_rows)
        scale, rotation, shift = PLACERS[self.options.pose](head, self.landmarks(maps), self.points_present)
        middle = torch.full_like(shift[:, :2], (self.size - 1) / 2)
        translation = torch.cat(
            [
                (shift[:, :2] - middle) / scale[:, None],
                torch.full_like(shift[:, :1], Camera.REFERENCE_DEPTH),
            ],
            1,
        )
        camera = Camera(scale * Camera.REFERENCE_DEPTH, middle, torch.ones_like(scale), self.camera_kind)
        light = scale.new_zeros(scale.shape[0], 9, 1)
        light[:, 0] = 1 / Y0  # white from everywhere: nothing is predicted about it
        return SceneState(identity, subject, expression, Pose(rotation, translation), camera, light)

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        return {
            "encoder": (self.encoder,),
            "decoder": (self.decoder,),
            "heads": (self.identity_head, self.expression_head),
        }


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A convolution, its mean over the picture, three layers, of which the last starts at 0."""
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        *normed(nn.Conv2d(inputs, hidden, 3, padding=1, bias=False), hidden),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        last,
    )


def mean_map(model: FaceModel, size: int) -> Tensor:
    """The mean face over the model's texture coordinates, [3, size, size] mm in the head frame; texels that
    no triangle covers take the position of the nearest vertex."""
    from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

    assert model.uv is not None and model.uv_triangles is not None  # landmark_places has refused others
    uv = model.uv.detach().cpu().double().numpy()
    owner = np.zeros(len(uv), int)
    owner[model.uv_triangles.cpu().numpy().ravel()] = model.triangles.cpu().numpy().ravel()
    points = model.mean.detach().cpu().double().numpy()[owner]
    texels = (np.arange(size) + 0.5) / size
    u, v = np.meshgrid(texels, 1 - texels)
    near = NearestNDInterpolator(uv, points)(u, v)
    between = LinearNDInterpolator(uv, points)(u, v)
    drawn = np.where(np.isnan(between), near, between)
    return torch.from_numpy(drawn).float().permute(2, 0, 1)
