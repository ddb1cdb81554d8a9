"""fitkit-init: one encoder for any number of views; what they say is fused without regard to their order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from fitkit.errors import InputError
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.geometry.weak_perspective import lay_onto
from fitkit.io.options import Positive, Range, check_options
from fitkit.models.face_model import FaceModel
from fitkit.nets.mvfnet.convention import rotation_of_angles
from fitkit.nets.predictor import Prediction, Predictor, ViewSlot, frames_of, table_of
from fitkit.observe.crop import CropOptions
from fitkit.observe.landmarks.face_crop import MARGIN
from fitkit.observe.landmarks.network import (
    NUM_OUTPUTS,
    NUM_POINTS,
    LandmarkNetwork,
    NetworkOptions,
    NetworkOutput,
)
from fitkit.observe.landmarks.types import Landmarks
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

RESIDUAL_MM = 5.0  # of landmarks from the posed mean face, per unit of input
SQUEEZED = 32  # channels of the deepest feature map that a view's token is made of
ANGLE = math.pi / 2  # rad per unit of output
SIGMA_LIMITS = (0.05, 1.2)  # of a predicted identity coefficient; 1 is what is known without a photo
INITIAL_STD = 1e-3


@dataclass(frozen=True)
class FitkitInitOptions:
    """size: side of the pictures, px, a multiple of 32; token: length of the feature of a view; heads: of the
    attention between views; hidden: width of the hidden layers; expression: blend-shape weight, or standard
    deviations of a Gaussian coefficient, per unit of output; up: of the crop, see CropOptions."""

    size: Annotated[int, Range(32, 2048, multiple=32)] = 128
    token: Annotated[int, Range(1, 4096)] = 192
    heads: Annotated[int, Range(1, 4096)] = 4
    hidden: Annotated[int, Range(1, 16384)] = 256
    expression: Positive = 0.3
    up: Annotated[float, Range(-5.0, 5.0)] = 0.0

    def __post_init__(self):
        check_options(self, "net fitkit_init")
        if self.token % self.heads:
            raise InputError(
                f"net fitkit_init: token: expected a multiple of heads ({self.heads}), got {self.token}"
            )


class _Exchange(nn.Module):
    """Each view looks at all views of its person."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.own = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))

    def forward(self, tokens: Tensor, absent: Tensor) -> Tensor:
        """tokens [S, V, C]; absent [S, V] bool, views that nobody sees."""
        x = self.before(tokens)
        tokens = tokens + self.attention(x, x, x, key_padding_mask=absent, need_weights=False)[0]
        return tokens + self.own(self.between(tokens))


class FitkitInit(Predictor):
    """See README.md beside this file. Takes photos in any order and number; has no named views.

    The encoder is the network of the built-in landmark detector. Rotation, expression, identity and the
    standard deviation of each identity coefficient come from layers behind it; scale and place in the picture
    are those that lay the predicted face onto the network's own landmarks (weighted least squares, in closed
    form).
    """

    gives = ("state", "identity_sigma", "landmarks")
    camera_kind = "orthographic"
    feature_parts = ("encoder",)

    def __init__(
        self,
        model: FaceModel,
        views: tuple[ViewSlot, ...] = (),
        options: FitkitInitOptions = FitkitInitOptions(),
    ):
        super().__init__()
        if views:
            raise InputError(
                "net fitkit_init: takes any photos in any order; expected no named 'views', "
                f"got {', '.join(v.name for v in views)}"
            )
        self.options, self.views, self.size = options, (), options.size
        self.crop = CropOptions(MARGIN, options.up, options.size, options.size)
        self.model_name, self.num_identity, self.num_expression = (
            model.name,
            model.num_identity,
            model.num_expression,
        )
        self.encoder = LandmarkNetwork(NetworkOptions(size=options.size))
        deepest = self.encoder.options.widths[-1]
        self.squeeze = nn.Conv2d(deepest, SQUEEZED, 1)
        inputs = SQUEEZED * (options.size // 32) ** 2 + deepest + 4 * NUM_OUTPUTS
        self.describe = nn.Sequential(
            nn.LayerNorm(inputs), nn.Linear(inputs, options.hidden), nn.ReLU(inplace=True)
        )
        self.first_pose = _head(options.hidden, options.hidden // 2, 3)
        self.compare = nn.Sequential(
            nn.Linear(options.hidden + 2 * NUM_POINTS + 9, options.hidden),
            nn.ReLU(inplace=True),
            nn.Linear(options.hidden, options.token),
        )
        self.exchange = _Exchange(options.token, options.heads)
        self.view_head = _head(2 * options.token, options.hidden, 3 + self.num_expression)
        self.identity_head = _head(options.token, options.hidden, self.num_identity)
        self.sigma_head = _head(options.token, options.hidden // 2, self.num_identity)
        basis = model.landmark_basis
        self.register_buffer("points_mean", basis.mean.detach().float().cpu().clone(), persistent=False)
        self.register_buffer("points_present", model.landmarks.present.float().cpu(), persistent=False)
        self.register_buffer("points_rows", basis.rows.detach().float().cpu().clone(), persistent=False)
        unit = options.expression * model.coefficients["expression"].unit(self.points_mean)
        self.register_buffer("expression_unit", unit, persistent=False)

    def forward(self, images: Tensor, valid: Tensor, padded: bool = False) -> Prediction:
        frames, subject = frames_of(images, valid, padded)
        found, features = self.encoder.locate(frames)
        tokens, angles = self._describe(found, features)
        codes, views, log_sigma = self._fuse(table_of(tokens, valid, padded, tokens.new_zeros(())), valid)
        own = views.flatten(0, 1) if padded else views[valid]
        return self._prediction(found, codes, angles, own, log_sigma, subject)

    def features(self, images: Tensor) -> Tensor:
        return self.encoder.locate(images)[1].mean((2, 3))

    def _describe(self, found: NetworkOutput, features: Tensor) -> tuple[Tensor, Tensor]:
        """Token [B, C] and first angles [B, 3] of each view.

        From the deepest features and the landmarks relative to their own middle and size follows a first
        rotation; how far the landmarks lie from the mean face in that pose says more about the person than
        where they lie.
        """
        points, log_sigma = found.points.float(), found.log_sigma.float()
        centered = points - points.mean(1, keepdim=True)
        size = centered.square().sum(-1).mean(1).sqrt()[:, None]
        numbers = torch.cat(
            [
                (centered / size[..., None]).flatten(1),
                log_sigma - size.log(),
                found.visibility.float().sigmoid(),
            ],
            1,
        )
        hidden = self.describe(
            torch.cat(
                [self.squeeze(features).flatten(1), features.mean((2, 3)), numbers.to(features.dtype)], 1
            )
        )
        angles = self.first_pose(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            rotation = rotation_of_angles(ANGLE * angles.float())
            seen, sigma = found.on_skin()
            mean = (self.points_mean @ rotation.transpose(1, 2))[..., :2]
            scale, shift = lay_onto(mean, seen, sigma.detach() ** -2 * self.points_present)
            apart = (seen - shift[:, None]) / scale[:, None, None] - mean
        offsets = torch.cat([apart.flatten(1) / RESIDUAL_MM, rotation.flatten(1)], 1).to(hidden.dtype)
        return self.compare(torch.cat([hidden, offsets], 1)), angles

    def _fuse(self, own: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """own: [S, V, C] tokens; those of missing views have no say -> identity [S, K_id]; change of the
        angles and expression [S, V, 3 + K_ex]; logarithm of the standard deviations of the identity [S,
        K_id]."""
        seen = self.exchange(own, ~valid)
        share = valid.to(seen)[..., None]
        person = (seen * share).sum(1) / share.sum(1)
        low, high = (math.log(s) for s in SIGMA_LIMITS)
        # Starts near the sigma of no photo at all.
        log_sigma = high - (high - low) * torch.sigmoid(self.sigma_head(person) - 2.5)
        return self.identity_head(person), self.view_head(torch.cat([own, seen], -1)), log_sigma

    def _prediction(
        self,
        found: NetworkOutput,
        identity: Tensor,
        angles: Tensor,
        views: Tensor,
        log_sigma: Tensor,
        subject: Tensor,
    ) -> Prediction:
        """angles: [B, 3], the first ones; views: [B, 3 + K_ex] change of them and expression, in units of
        output."""
        with torch.autocast(
            angles.device.type, enabled=False
        ):  # positions need more digits than half precision has
            return self._placed(
                found,
                identity.float(),
                angles.float() + views[:, :3].float(),
                self.expression_unit.float() * views[:, 3:].float(),
                log_sigma.float(),
                subject,
            )

    def _placed(
        self,
        found: NetworkOutput,
        identity: Tensor,
        angles: Tensor,
        expression: Tensor,
        log_sigma: Tensor,
        subject: Tensor,
    ) -> Prediction:
        rotation = rotation_of_angles(ANGLE * angles)
        coefficients = torch.cat([identity[subject], expression], 1)
        head = self.points_mean + torch.einsum("bk,ndk->bnd", coefficients, self.points_rows)
        points, sigma = found.on_skin()
        scale, shift = lay_onto(
            (head @ rotation.transpose(1, 2))[..., :2], points, sigma.detach() ** -2 * self.points_present
        )
        middle = torch.full_like(shift, (self.size - 1) / 2)
        translation = torch.cat(
            [(shift - middle) / scale[:, None], torch.full_like(shift[:, :1], Camera.REFERENCE_DEPTH)], 1
        )
        camera = Camera(scale * Camera.REFERENCE_DEPTH, middle, torch.ones_like(scale), self.camera_kind)
        light = angles.new_zeros(angles.shape[0], 9, 1)
        light[:, 0] = 1 / Y0  # white from everywhere: nothing is predicted about it
        state = SceneState(identity, subject, expression, Pose(rotation, translation), camera, light)
        seen = (
            torch.cat([found.visibility[:, NUM_POINTS:], found.visibility[:, 17:NUM_POINTS]], 1)
            .float()
            .sigmoid()
        )
        marks = Landmarks(points, sigma, torch.ones_like(sigma, dtype=torch.bool), seen, "surface")
        return Prediction(state, log_sigma.exp(), marks)

    def load_encoder(self, network: LandmarkNetwork, where: str) -> None:
        """Take over a landmark network; `where` names its file.

        Raises:
            InputError: one with other layers.
        """
        if network.options != self.encoder.options:
            raise InputError(
                f"{where}: expected a landmark network with the options {self.encoder.options}, got "
                f"{network.options}"
            )
        self.encoder.load_state_dict(network.state_dict())

    def parts(self) -> dict[str, tuple[nn.Module | nn.Parameter, ...]]:
        heads = (
            self.squeeze,
            self.describe,
            self.first_pose,
            self.compare,
            self.exchange,
            self.view_head,
            self.identity_head,
        )
        return {"encoder": (self.encoder,), "heads": heads, "sigma": (self.sigma_head,)}


def _head(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    head = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs))
    nn.init.normal_(head[-1].weight, std=INITIAL_STD)
    nn.init.zeros_(head[-1].bias)
    return head
