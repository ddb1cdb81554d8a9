"""The built-in landmark detector: boxes from Haar cascades, then our own network, which also says whether
there is a face."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fitkit.errors import InputError, MissingWeightsError
from fitkit.io.foreign import DATA_BYTES, foreign_file, parse_json
from fitkit.io.resources import asset_path
from fitkit.io.weights import network_from
from fitkit.observe.landmarks.boxes import propose, same_place
from fitkit.observe.landmarks.face_crop import MARGIN, FaceSquare, cut, square_of_points
from fitkit.observe.landmarks.face_shape import INNER, head_roll, shape_residual
from fitkit.observe.landmarks.network import (
    MIRRORED_OUTPUTS,
    NUM_POINTS,
    LandmarkNetwork,
    NetworkOptions,
    NetworkOutput,
)
from fitkit.observe.landmarks.types import EveryFaceDetector, Landmarks

WEIGHTS = "landmarks68.safetensors"
MOST_LAYERS = 1000  # that a weight file may ask for
OTHERWISE = (
    "install fitkit again, or put the 68 points beside each image (IMAGE.pts; see docs/subject_folder.md)"
)


@dataclass(frozen=True)
class JudgeOptions:
    """What makes a face. Each doubt is a number divided by what is usual; the score of a face is exp(-sum of
    squares / 2).

    spread: mean standard deviation of the inner points over the side of their box; shape: residual of the
    inner points against the mean face (affine, so at any pose) over that side; shift, zoom: how far the
    square of the found points lies from the square that was looked at, over its side and as logarithm;
    agreement: mean distance of the inner points between two looks at the same face, or between the face and
    its mirror image, the larger of the two, over that side. Where there is no face, no two looks agree: on
    pictures of faces68 the agreement is below 0.03 for 99 % of the faces, and above 0.04 for 99 % of other
    places. roll: lean of the head in radians; upright heads are likelier. hidden: mean probability of the
    inner points to be hidden. keep: score from which a first look is followed by another; accept: score that
    makes a face; sure: score that ends the search;
    large: side of a face's square over the longer side of the photo from which no larger face is expected
    beside it.
    """

    spread: float = 0.1
    shape: float = 0.1  # an open mouth has 0.07
    shift: float = 0.25
    zoom: float = 0.4
    agreement: float = 0.045
    roll: float = 2.0
    hidden: float = 0.5
    keep: float = 0.02
    accept: float = 0.38
    sure: float = 0.5
    large: float = 0.3


@dataclass(frozen=True)
class BuiltinOptions:
    """most: places of one search that are looked at; passes: looks at each face after the first; mirror: the
    last look is the mean of the face and its mirror image; floor_share, floor_px: standard deviation that no
    point falls below, as share of the face's square and in px of the photo (added in quadrature)."""

    judge: JudgeOptions = JudgeOptions()
    most: int = 8
    passes: int = 2
    mirror: bool = True
    floor_share: float = 0.003
    floor_px: float = 0.3


@dataclass(frozen=True)
class Look:
    """What the network sees in one square. points: [85, 2] px of the photo; sigma: [85] px of the photo;
    seen: [85] probability; square: where it looked; score: 0 to 1, that this is a face; roll: radians,
    clockwise lean of the head."""

    points: np.ndarray
    sigma: np.ndarray
    seen: np.ndarray
    square: FaceSquare
    score: float
    roll: float

    @property
    def own_square(self) -> FaceSquare:
        """The upright square around the found points."""
        return square_of_points(self.points[:NUM_POINTS], angle=self.roll)


class BuiltinDetector(EveryFaceDetector):
    """68 points with standard deviation and visibility, from weights that come with fitkit.

    Args:
        device: torch device of the network.
        jaw: 'outline' (points 0-16 on the visible outline) or 'surface' (fixed points of the skin, hidden
            ones too).
        network: takes crops [N, 3, S, S] in [0, 1] and gives NetworkOutput; default: the shipped one.
    Raises:
        MissingWeightsError: the weights are missing or damaged. InputError: unknown jaw.
    """

    def __init__(
        self,
        device: str = "cpu",
        jaw: str = "outline",
        options: BuiltinOptions = BuiltinOptions(),
        network: Callable[[Tensor], NetworkOutput] | None = None,
        size: int = NetworkOptions().size,
    ):
        if jaw not in ("outline", "surface"):
            raise InputError(f"detector 'builtin': jaw must be 'outline' or 'surface', got {jaw!r}")
        self.name = "builtin" if jaw == "outline" else "builtin3d"
        self.jaw, self.device, self.options = jaw, device, options
        self.network, self.size = network, size
        if network is None:
            self.network = load_network(device)
            self.size = self.network.options.size

    def detect_all(self, image: np.ndarray) -> list[Landmarks]:
        """image [H, W, 3] uint8 sRGB -> one Landmarks of one view for each face, the largest face first."""
        return [self.landmarks(face) for face in self.find(image)]

    def find(self, image: np.ndarray) -> list[Look]:
        """All faces of a picture, the largest first."""
        judge, faces = self.options.judge, []
        large = judge.large * max(image.shape[:2])
        for number, candidates in enumerate(propose(image, self.options.most)):
            looks = self.look(image, [c.square for c in candidates])
            looks = distinct([k for k in looks if k.score >= judge.keep])[: self.options.most]
            for turn in range(self.options.passes):
                last = turn == self.options.passes - 1
                looks = self.look(image, [k.own_square for k in looks], looks, self.options.mirror and last)
                looks = distinct([k for k in looks if k.score >= (judge.accept if last else judge.keep)])
            faces = distinct(faces + looks)
            # The first search sees frontal faces only: a larger one may be turned away.
            if any(
                face.score >= judge.sure and (number > 0 or face.own_square.side > large) for face in faces
            ):
                break
        return sorted(faces, key=lambda k: -k.own_square.side)

    @torch.inference_mode()
    def look(
        self,
        image: np.ndarray,
        squares: Sequence[FaceSquare],
        before: Sequence[Look] = (),
        mirror: bool = False,
    ) -> list[Look]:
        """Run the network on squares of a photo.

        Args:
            before: earlier looks at the same faces, one for each square, or none; the new ones should agree
                with them.
            mirror: also on the squares' mirror images; the result is the mean.
        """
        if not squares:
            return []
        size = self.size
        matrices = [s.matrix(size) for s in squares]
        crops = torch.from_numpy(np.stack([cut(image, m, size) for m in matrices])).permute(0, 3, 1, 2)
        crops = crops.to(self.device).float() / 255
        if mirror:
            crops = torch.cat([crops, crops.flip(-1)])
        output = self.network(crops)
        points, sigma, seen = (
            v.double().cpu().numpy() for v in (output.points, output.log_sigma.exp(), output.visibility)
        )
        apart = np.zeros(len(squares))
        if mirror:
            points, sigma, seen, apart = mean_of_mirrored(points, sigma, seen, size)
        seen = 1 / (1 + np.exp(-seen))
        out = []
        for i, (matrix, square) in enumerate(zip(matrices, squares)):
            photo = (points[i] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
            px = square.side / size
            moved = _distance(photo, before[i].points) / px if before else 0.0
            roll = (square.angle + head_roll(points[i]) + np.pi) % (2 * np.pi) - np.pi
            score = face_score(
                points[i], sigma[i], seen[i], max(moved, apart[i]), roll, size, self.options.judge
            )
            floor = np.hypot(self.options.floor_share * square.side, self.options.floor_px)
            out.append(Look(photo, np.hypot(sigma[i] * px, floor), seen[i], square, score, float(roll)))
        return out

    def landmarks(self, face: Look) -> Landmarks:
        """The 68 points with the detector's kind of jaw."""
        rows = np.arange(NUM_POINTS)
        if self.jaw == "surface":
            rows[:17] += NUM_POINTS
        points, sigma, seen = (
            torch.from_numpy(v[rows][None]).float() for v in (face.points, face.sigma, face.seen)
        )
        return Landmarks(points, sigma, torch.ones(1, NUM_POINTS, dtype=torch.bool), seen, self.jaw)


def mean_of_mirrored(
    points: np.ndarray, sigma: np.ndarray, seen: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outputs for crops and their mirror images, [2 N, 85, ...], the latter behind the former -> means [N,
    85, ...], and the mean distance of the two sets of inner points [N].

    The errors of the two agree for the most part, so the variance is their mean, plus that of the two points'
    difference.
    """
    n = len(points) // 2
    other = (points[n:] * [-1, 1] + [size - 1, 0])[:, MIRRORED_OUTPUTS]
    sigma2, seen2 = sigma[n:, MIRRORED_OUTPUTS], seen[n:, MIRRORED_OUTPUTS]
    variance = (sigma[:n] ** 2 + sigma2**2) / 2 + ((points[:n] - other) ** 2).mean(-1) / 4
    apart = np.array([_distance(a, b) for a, b in zip(points[:n], other)])
    return (points[:n] + other) / 2, np.sqrt(variance), (seen[:n] + seen2) / 2, apart


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of the inner points."""
    return float(np.linalg.norm(a[INNER] - b[INNER], axis=1).mean())


def face_score(
    points: np.ndarray,
    sigma: np.ndarray,
    seen: np.ndarray,
    apart: float,
    roll: float,
    size: int,
    options: JudgeOptions = JudgeOptions(),
) -> float:
    """How likely a face is, 0 to 1, see JudgeOptions.

    Args:
        points: [85, 2], sigma: [85] and apart, the distance of two looks: px of the crop; seen: [85]
            probabilities;
        roll: radians, in the photo.
    """
    inner = points[INNER]
    side = float(np.ptp(inner, axis=0).max())
    if not (np.isfinite(points).all() and side > 0.05 * size):
        return 0.0
    own = square_of_points(points[:NUM_POINTS])
    middle = (size - 1) / 2
    doubts = (
        float(sigma[INNER].mean()) / side / options.spread,
        shape_residual(points) / side / options.shape,
        np.hypot(own.center[0] - middle, own.center[1] - middle) / size / options.shift,
        np.log(own.side / size) / options.zoom,
        apart / side / options.agreement,
        roll / options.roll,
        (1 - float(seen[INNER].mean())) / options.hidden,
    )
    return float(np.exp(-0.5 * np.square(doubts).sum()))


def distinct(looks: Sequence[Look]) -> list[Look]:
    """Of looks at the same face the best one; sorted by score."""
    kept: list[Look] = []
    for look in sorted(looks, key=lambda k: -k.score):
        if not any(
            same_place(look.own_square, k.own_square) or _inside(look.own_square, k.own_square) for k in kept
        ):
            kept.append(look)
    return kept


def _inside(a: FaceSquare, b: FaceSquare) -> bool:
    """Whether one face's box holds the centre of the other, which no two faces do."""
    apart = np.abs(np.subtract(a.center, b.center)).max()
    return bool(apart < 0.5 * max(a.side, b.side) / MARGIN)


def load_network(device: str = "cpu", path: Path | None = None) -> LandmarkNetwork:
    """The landmark network with its shipped weights, ready to run; read once per process, so it must not be
    changed. Raises as `read_network`."""
    modified = None
    with suppress(InputError, OSError):  # `read_network` says it
        path = path or asset_path(WEIGHTS)
        modified = os.stat(path).st_mtime_ns
    return _network(str(device), path, modified)


@lru_cache(maxsize=4)
def _network(device: str, path: Path | None, modified: int | None) -> LandmarkNetwork:
    return _fused(read_network(path)).to(device).requires_grad_(False)


def read_network(path: Path | None = None) -> LandmarkNetwork:
    """The landmark network as it was trained, in eval mode; path: None = the shipped weights (half precision,
    options as JSON in the file's metadata).

    Raises:
        MissingWeightsError: file missing, damaged, or of another network.
    """
    with suppress(InputError):  # said below
        path = path or asset_path(WEIGHTS)
    if path is None or not os.path.lexists(path):
        raise MissingWeightsError(
            f"landmark detector 'builtin': its weights {path or WEIGHTS}, which come with fitkit, "
            f"are missing; {OTHERWISE}"
        )
    where = f"landmark detector 'builtin': its weights {path}"
    with foreign_file(path, "are damaged", OTHERWISE, MissingWeightsError, DATA_BYTES, where) as file:
        stored, tensors = parse_json(file.metadata()["network"].encode()), file.tensors()
        options = NetworkOptions(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})
        if sum(options.blocks) + len(options.widths) + len(options.decoder) > MOST_LAYERS:
            raise ValueError(f"its options describe more than {MOST_LAYERS} layers")
        network = network_from(lambda: LandmarkNetwork(options), tensors)
    return network.eval()


def _fused(network: LandmarkNetwork) -> LandmarkNetwork:
    """Each convolution takes in the normalization behind it, which makes the network a tenth faster."""
    for part in network.modules():
        if (
            isinstance(part, nn.Sequential)
            and len(part) > 1
            and isinstance(part[0], nn.Conv2d)
            and isinstance(part[1], nn.BatchNorm2d)
        ):
            part[0] = nn.utils.fusion.fuse_conv_bn_eval(part[0], part[1])
            part[1] = nn.Identity()
    return network
