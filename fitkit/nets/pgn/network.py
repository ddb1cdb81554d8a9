"""PGN: an encoder, a decoder of a position map as in PRNet; pose from the map's landmarks, in closed form;
light heads for identity and expression."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from fitkit.observe.landmarks.network import NUM_POINTS, LandmarkNetwork, NetworkOptions, NetworkOutput
from fitkit.observe.sampling import sample
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.position_map import PositionMap
from fitkit.scene.state import SceneState

RANGE = 1.1  # largest value of the map, sides of the picture
HEAD = 512  # channels and hidden units of a head, width 1
RESIDUAL_MM = 5.0  # per unit of the decoder's output, where the map starts at the landmarks
TOLD = 64  # channels that say how the landmarks lie
PLACERS = {"similarity": place_similarity, "affine": place_affine}


@dataclass(frozen=True)
class PgnOptions:
    """size: side of the pictures, px, a multiple of 32; map: side of the position map, size / 32 times 2 to
    32; encoder: 'prnet' as published, or 'landmarks', the network of the built-in landmark detector, which
    may start from its weights; width: factor on all channel numbers but those of 'landmarks', 1 = as
    published; output: 'map', or 'points', 204 numbers from fully connected layers in its place; last: layers
    of three channels that the decoder ends with, 3 as published; pose: what lays the face onto the points,
    'affine' as published;
    start: what the decoder's output is added to: 'landmarks': the mean face, laid onto the landmarks that the
    encoder finds, of encoder 'landmarks' only; 'mean': the mean face as it fills the crop, seen from the
    front; 'none': nothing, as published;
    expression: blend-shape weight, or standard deviations of a Gaussian coefficient, per unit of output;
    margin, up: of the crop, see CropOptions."""

    size: Annotated[int, Range(32, 2048, multiple=32)] = 128
    map: Annotated[int, Range(2, 2048, multiple=2)] = 64
    encoder: Literal["landmarks", "prnet"] = "landmarks"
    width: Annotated[float, Range(0.001, 16.0)] = 0.18
    output: Literal["map", "points"] = "map"
    last: Annotated[int, Range(1, 3)] = 1
    pose: Literal["similarity", "affine"] = "similarity"
    start: Literal["landmarks", "mean", "none"] = "landmarks"
    expression: Positive = 0.3
    margin: Annotated[float, Range(0.1, 20.0)] = 1.6
    up: Annotated[float, Range(-5.0, 5.0)] = 0.0

    def __post_init__(self):
        check_options(self, "net pgn")
        if self.start == "landmarks" and self.encoder != "landmarks":
            raise InputError(
                f"net pgn: start: expected 'mean' or 'none' with encoder '{self.encoder}', got 'landmarks', "
                "which needs encoder 'landmarks'"
            )
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
        if o.encoder == "landmarks":
            self.encoder: nn.Module = LandmarkNetwork(NetworkOptions(size=o.size))
            channels = self.encoder.options.widths[-1]
        else:
            self.encoder, channels = encoder(o.width)
            start_from_random(self.encoder)
        self.tell: nn.Module | None = None
        if o.start == "landmarks":
            self.tell = nn.Sequential(nn.Linear(2 * NUM_POINTS + 9, TOLD), nn.ReLU(inplace=True))
            channels += TOLD
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
        for part in (self.decoder, self.identity_head, self.expression_head):
            start_from_random(part)
        if o.start != "none":  # and nothing is added to it at first
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
            "start": self._head_map(model) if o.start == "landmarks" else self._start(model),
        }
        for name, value in fixed.items():
            self.register_buffer(name, value.detach().float().cpu().clone(), persistent=False)

    def _places(self, model: FaceModel) -> Tensor:
        """[68, 2] px (x, y), where the landmarks are in the map."""
        if self.options.output == "map":
            return landmark_places(model, (self.options.map,) * 2)
        return torch.stack([torch.arange(NUM_POINTS), torch.zeros(NUM_POINTS)], -1)

    def _head_map(self, model: FaceModel) -> Tensor:
        """[3, H, W] mm: the mean face in the head frame."""
        if self.options.output == "map":
            return mean_map(model, self.options.map)
        return model.landmark_basis.mean.detach().cpu().T[:, None]

    def _start(self, model: FaceModel) -> Tensor:
        """[3, H, W], what is added to the map before the sigmoid."""
        o, marks = self.options, model.landmark_basis.mean.detach().cpu()
        if o.start == "none":
            return torch.zeros(3, 1, 1)
        low, high = marks.amin(0), marks.amax(0)
        scale = o.size / (o.margin * float((high - low)[:2].max()))  # px per mm
        head = self._head_map(model)
        away = torch.stack([(low + high)[0] / 2, (low + high)[1] / 2, high[2]])[:, None, None]
        turned = (head - away) * head.new_tensor([1.0, -1.0, -1.0])[:, None, None]
        middle = (o.size - 1) / 2
        at = scale * turned + head.new_tensor([middle, middle, 0.0])[:, None, None]
        return logit(at / (RANGE * o.size))

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        seen, laid = self._seen(frames)
        person = table_of(seen.flatten(1), valid, padded, seen.new_zeros(()))
        share = valid.to(seen)[..., None]
        person = ((person * share).sum(1) / share.sum(1)).unflatten(1, seen.shape[1:])
        identity, expression = self.identity_head(person), self.expression_head(seen)
        maps = self.decoder(seen)
        with torch.autocast(
            seen.device.type, enabled=False
        ):  # positions need more digits than half precision has
            found = PositionMap(
                self._placed(maps.float(), laid), self.places if self.options.output == "points" else None
            )
            expression = self.expression_unit.float() * expression.float()
            state = self._state(found.points, identity.float(), expression, subject)
            return Prediction(state, position_map=found)

    def features(self, images: Tensor) -> Tensor:
        return self._encoded(images)[0].mean((2, 3))

    def _encoded(self, frames: Tensor) -> tuple[Tensor, NetworkOutput | None]:
        """Features [B, C, size / 32, size / 32], and landmarks where the encoder finds some."""
        if isinstance(self.encoder, LandmarkNetwork):
            found, features = self.encoder.locate(frames)
            return features, found
        return self.encoder(frames), None

    def _seen(self, frames: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """What decoder and heads look at, and the pose (scale, rotation, shift) of the mean face on the
        landmarks where the map starts from it."""
        features, found = self._encoded(frames)
        if self.tell is None or found is None:
            return features, None
        with torch.autocast(frames.device.type, enabled=False):
            points, sigma = found.on_skin()
            weight = sigma.detach() ** -2 * self.points_present
            flat = torch.cat([points, torch.zeros_like(points[..., :1])], -1)
            mean = self.points_mean.expand(points.shape[0], -1, -1)
            laid = scale, rotation, shift = place_affine(mean, flat, weight)
            shown = scale[:, None, None] * (mean @ rotation.transpose(1, 2))[..., :2] + shift[:, None, :2]
            apart = (points - shown) / (RESIDUAL_MM * scale[:, None, None])
            told = torch.cat([apart.flatten(1), rotation.flatten(1)], 1)
        told = self.tell(told.to(features.dtype))[..., None, None]
        return torch.cat([features, told.expand(-1, -1, *features.shape[2:])], 1), laid

    def _placed(self, maps: Tensor, laid: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
        """The decoder's output [B, 3, H, W] as positions, px."""
        if laid is None:
            return RANGE * self.size * torch.sigmoid(maps + self.start.float())
        scale, rotation, shift = laid
        head = self.start.float() + RESIDUAL_MM * maps
        posed = scale[:, None, None, None] * torch.einsum("bij,bjhw->bihw", rotation, head)
        # As labels: depth is counted from the nearest of the landmarks.
        marks = scale[:, None] * (self.points_mean @ rotation[:, 2, :, None])[..., 0]
        nearest = torch.where(self.points_present > 0, marks, torch.inf).amin(1)
        return posed + torch.cat([shift[:, :2], -nearest[:, None]], 1)[..., None, None]

    def load_encoder(self, network: LandmarkNetwork, where: str) -> None:
        """Start the encoder from a landmark network; `where` names its file.

        Raises:
            InputError: one with other layers, or the encoder is another one.
        """
        own = self.encoder.options if isinstance(self.encoder, LandmarkNetwork) else None
        # The size of the pictures is none of the layers.
        if own is None or replace(network.options, size=own.size) != own:
            raise InputError(
                f"{where}: expected the weights of the encoder, "
                + (f"a landmark network with {own}" if own else "which is that of PRNet")
                + f"; got a landmark network with {network.options}"
            )
        self.encoder.load_state_dict(network.state_dict())

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
            "decoder": (self.decoder, *([] if self.tell is None else [self.tell])),
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
