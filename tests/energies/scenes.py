"""One small scene for each energy of the registry: a person or depth maps whose truth is known, what is seen
of them, and a way from a vector of parameters to a state, with 0 at the truth. Used by the training and the
requirement tests beside this file."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from helpers import LucasKanade, observe, photograph, tiny_model, tiny_state
from test_features import Encoder
from test_parsing import ALBEDO, BACKGROUND, Parser

from fitkit.energies.appearance_priors import AlbedoPrior, AlbedoVariance, LightMono
from fitkit.energies.census import CensusOptions, CrossViewCensus
from fitkit.energies.depth import (
    DepthAgreement,
    DepthPrior,
    DepthSupervision,
    DepthWarpPhotometric,
    DepthWarpStructure,
    NormalSupervision,
    SuitabilityPrior,
)
from fitkit.energies.epipolar import EpipolarLandmarks
from fitkit.energies.features import FeatureOptions, SemanticFeatures
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowImages, FlowOptions
from fitkit.energies.flow_magnitude import FlowMagnitude, FlowMagnitudeOptions
from fitkit.energies.flow_triangulated import TriangulatedFlow, TriangulationOptions
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import (
    LandmarkLikelihood,
    LandmarkReprojection,
    eye_offsets,
    lip_offsets,
    offset_sigma,
)
from fitkit.energies.landmarks3d import (
    PositionMapLandmarks,
    PositionMapSupervision,
    landmark_places,
    lmk3d_align,
    lmk_guided,
    vertex_places,
)
from fitkit.energies.objective import Objective, Term
from fitkit.energies.parsing import ParsedRendering, ParseOptions, ParseSupervision
from fitkit.energies.photo_model import ModelPhotometric, ModelPhotometricOptions
from fitkit.energies.photo_pairs import PhotoPairs, PhotoPairsOptions
from fitkit.energies.photometric import CrossViewPhotometric, PhotometricOptions
from fitkit.energies.priors import (
    AspectPrior,
    ExpressionPrior,
    FocalPrior,
    IdentityPrior,
    JointPrior,
    LandmarkOffsetPrior,
    LightPrior,
    MeanCoefficientPrior,
    PrincipalPrior,
    SizePrior,
)
from fitkit.energies.supervision import (
    CodeConsistency,
    ExpressionSupervision,
    IdentityLikelihood,
    IdentitySupervision,
    PoseSupervision,
    VertexSupervision,
)
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.rotation import so3_exp
from fitkit.geometry.spherical_harmonics import Y0
from fitkit.observe.label_crops import in_crop
from fitkit.observe.labels import Labels
from fitkit.observe.observations import Observations
from fitkit.render.lit import render_lit
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.scene.depth_state import DepthState
from fitkit.scene.layout import ParameterLayout, retract
from fitkit.scene.pose import Pose
from fitkit.scene.position_map import PositionMap
from fitkit.scene.state import SceneState

MODEL = tiny_model(dtype=torch.float64)
SIDE = 96
SCALE = {
    "identity": 1.0,
    "expression": 0.2,
    "joints": 0.1,
    "landmarks": 1.0,
    "pose": 1.0,
    "principal": 0.02,
    "aspect": 0.05,
    "focal": 0.2,
    "illumination": 0.2,
}


@dataclass(frozen=True)
class Scene:
    """prepare: observations -> the energy, not frozen; make: parameters [P] -> state, 0 = the truth; start:
    [P], wrong parameters; error: of a state, in a unit of its own, 0 at the truth; hide: a content for the
    hidden part -> observations a part of which is hidden; blank: observations with nothing to see; both None
    where an energy looks at nothing."""

    prepare: Callable[[Observations], Any]
    observations: Observations
    make: Callable[[torch.Tensor], Any]
    start: torch.Tensor
    error: Callable[[Any], float]
    hide: Callable[[float], Observations] | None = None
    blank: Observations | None = None
    kernel: Kernel = Kernel()

    def cost(self, parameters, observations=None, at=None, weight=1.0):
        """The cost with everything discrete frozen at the parameters `at` (default: the same)."""
        objective = self.objective(parameters if at is None else at, observations, weight)
        return objective.cost(self.make(parameters), observations or self.observations)[0].sum()

    def objective(self, at, observations=None, weight=1.0):
        observations = observations or self.observations
        return Objective([Term(self.prepare(observations), weight, self.kernel)]).freeze(
            self.make(at.detach()), observations
        )


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- people ----


def person(size=SIDE, views=2, seed=0, light=None):
    """A person seen from 20 degrees left and right (three views: from 40 too), one expression, flat light."""
    state = tiny_state(MODEL, views, size, seed)
    if views == 2:
        nearer = torch.tensor([[0.0, 0.35, 0, 0, 0, 0], [0.0, -0.35, 0, 0, 0, 0]], dtype=torch.float64)
        state = state.replace(pose=state.pose.retract(nearer))
    flat = torch.zeros(views, 9, 1, dtype=torch.float64)
    flat[:, 0] = 0.9 / Y0
    return state.replace(
        expression=state.expression[:1].expand(views, -1).clone(),
        illumination=flat if light is None else light(views),
    )


def labels(state):
    vertices = state.pose.apply(state.vertices(MODEL))
    points = MODEL.landmark_basis.points(state.identity[state.subject], state.expression)
    turned = 0.1 * points @ so3_exp(normal(1, 3, seed=3)).transpose(1, 2) + 2.0
    return Labels(
        state=state,
        vertices=vertices,
        points3d=turned,
        person=torch.zeros(state.num_views, dtype=torch.int64),
        moment=torch.zeros(state.num_views, dtype=torch.int64),
    )


def vertex_error(truth, frame="camera"):
    """Mean distance of the face's vertices, mm. frame: 'camera', 'head', or 'aligned', after the best
    similarity."""

    def place(state):
        head = state.vertices(MODEL)[:, MODEL.face]
        if frame == "aligned":
            target = truth.vertices(MODEL)[:, MODEL.face]
            best = similarity_align(head, target, torch.ones(head.shape[:2], dtype=torch.bool))
            return (
                best.scale[:, None, None] * head @ best.rotation.transpose(1, 2) + best.translation[:, None]
            )
        return head if frame == "head" else state.pose.apply(head)

    return lambda state: float((place(state) - place(truth)).norm(dim=-1).mean().detach())


def of_person(
    prepare,
    free,
    images=None,
    size=SIDE,
    seed=0,
    views=2,
    amount=1.0,
    truth=None,
    error=None,
    looks="",
    kernel=Kernel(),
    frame="camera",
    labelled=None,
):
    """looks: 'images', 'landmarks' or a label of points, what is hidden; free: blocks of the state that are
    predicted."""
    truth = truth or person(size, views, seed)
    obs = observe(MODEL, truth, size, None if images is None else images(truth, size))
    obs = replace(obs, labels=(labelled or labels)(truth))
    layout = ParameterLayout.of(truth, free)
    scale = torch.zeros(layout.total, dtype=torch.float64)
    for view in range(truth.num_views):
        scale[layout.index[view]] = torch.cat(
            [
                torch.full((layout.sizes[n],), SCALE[n])
                if n != "pose"
                else torch.tensor([0.02, 0.02, 0.02, 2.0, 2.0, 5.0])
                for n in layout.order
            ]
        ).double()
    return Scene(
        prepare,
        obs,
        lambda p: retract(truth, scale * p, layout),
        amount * normal(layout.total, seed=seed + 1),
        error or vertex_error(truth, frame),
        *hidden(obs, looks),
        kernel,
    )


def hidden(obs, looks):
    if looks == "images":
        mask = obs.mask.clone()
        width = mask.shape[2]
        mask[0, :, : width // 3], mask[1, : width // 3] = False, False
        nothing = torch.zeros_like(mask)
        return (
            lambda fill: replace(obs, mask=mask, images=torch.where(mask[:, None], obs.images, fill))
        ), replace(obs, mask=nothing)
    if looks == "landmarks":
        marks = obs.landmarks
        valid = marks.valid.clone()
        valid[0, ::3], valid[1, 1::4] = False, False

        def content(fill):
            return replace(
                obs,
                landmarks=replace(
                    marks, valid=valid, points=torch.where(valid[..., None], marks.points, fill)
                ),
            )

        return content, replace(obs, landmarks=replace(marks, valid=torch.zeros_like(valid)))
    if looks in (
        "points3d",
        "crop_points",
        "crop_vertices",
    ):  # not known is NaN there, so the hidden ones have no content to vary but their other coordinates
        points = getattr(obs.labels, looks).clone()
        points[0, ::7, 0] = torch.nan

        def content(fill):
            other = points.clone()
            other[0, ::7, 1] = fill
            return replace(obs, labels=replace(obs.labels, **{looks: other}))

        return content, None
    return None, None


def twice(truth):
    """The cameras of pictures with twice the pixels per side, whose blocks of four are averaged."""
    camera = truth.camera.scaled(
        torch.full_like(truth.camera.focal, 2.0), torch.full_like(truth.camera.principal, -0.25)
    )
    return truth.replace(camera=camera)


def painted(truth, size):
    return F.avg_pool2d(photograph(MODEL, twice(truth), 2 * size, (1.0, 0.9, 0.8)), 2)


def patches(model):
    """Grey albedo [V, 3] of waves of about 50 mm: light and dark, and smooth on the mesh, so that all views
    agree on it."""
    x, y, z = (model.mean / 8).unbind(-1)
    return (
        0.32 + 0.08 * (torch.sin(x + 0.3 * z) + torch.cos(0.8 * y - 0.4 * x) + torch.sin(0.7 * z + 0.5 * y))
    )[:, None].expand(-1, 3)


def with_albedo(model):
    """The model with a mean albedo of large patches and a basis of two smooth waves."""
    x, y, z = (model.mean / 25).unbind(-1)
    mean = 0.35 + 0.12 * torch.stack([torch.sin(x + 0.5), torch.sin(1.3 * y + x), torch.cos(y - 0.7 * x)], -1)
    tint = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    basis = 0.05 * torch.stack([torch.sin(x)[:, None].expand(-1, 3), torch.cos(y)[:, None] * tint])
    return replace(model, albedo_mean=mean, albedo_basis=basis)


COLORED = with_albedo(MODEL)
UNIFORM = replace(COLORED, albedo_basis=None)


def soft_light(views):
    light = torch.zeros(views, 9, 3, dtype=torch.float64)
    light[:, 0], light[:, 2], light[:, 3, 0] = 2.6, 0.5, 0.3
    return light


def rendered(model, albedo, background):
    def images(truth, size):
        lit = render_lit(model, twice(truth), (2 * size, 2 * size), albedo)
        return F.avg_pool2d(
            lit.over(torch.tensor(background, dtype=torch.float64)[:, None, None].expand_as(lit.colors)), 2
        )

    return images


def sigma(obs):
    return torch.full((obs.num_views, 68), 1.5 * obs.pixel_unit, dtype=torch.float64)


def level(obs):
    return max(0, round(float(torch.tensor(max(obs.size) / 224).log2())))


def cross_view(prepare, size, seed, images=painted, amount=0.35):
    return of_person(prepare, ("identity",), images, size, seed, amount=amount, looks="images", frame="head")


def of_albedo(make_energy, model, size, seed):
    truth = person(size, 2, seed)
    obs = replace(observe(MODEL, truth, size), labels=labels(truth))
    start = normal(len(model.albedo_basis), seed=seed)
    return Scene(
        lambda o: make_energy(model),
        obs,
        lambda p: truth.replace(albedo=p.reshape(1, -1)),
        start,
        lambda s: float(s.albedo.norm().detach()),
    )


def of_frames(block, size, seed):
    """Codes that a network predicts for each of three frames by itself; the errors of the frames add up to
    0."""
    truth = person(size, 3, seed)
    obs = replace(observe(MODEL, truth, size), labels=labels(truth))
    K = truth.identity.shape[1] if block == "identity" else truth.expression.shape[1]
    start = 0.5 * normal(3, K, seed=seed + 1)
    start = (start - start.mean(0)) * (1.0 if block == "identity" else 0.3)

    def make(p):
        p = p.reshape(3, K)
        if block == "identity":
            return truth.replace(identity=truth.identity + p, subject=torch.arange(3))
        return truth.replace(expression=truth.expression + p)

    return Scene(lambda o: CodeConsistency(block), obs, make, start.reshape(-1), vertex_error(truth, "head"))


def of_relative_pose(size, seed):
    truth = person(size, 2, seed)
    obs = replace(observe(MODEL, truth, size), labels=labels(truth))

    def make(p):
        turn = so3_exp(torch.stack([0 * p, 0.05 * p]))
        return truth.replace(pose=Pose(truth.pose.rotation @ turn, truth.pose.translation))

    return Scene(
        lambda o: EpipolarLandmarks(1.5 * o.pixel_unit),
        obs,
        make,
        normal(3, seed=seed + 1),
        vertex_error(truth),
        *hidden(obs, "landmarks"),
    )


def of_position_map(size, seed):
    truth = person(size, 2, seed)
    points = truth.pose.apply(truth.vertices(MODEL))
    obs = replace(
        observe(MODEL, truth, size),
        labels=Labels(state=truth, crop_points=MODEL.landmarks.points(points, MODEL.triangles)),
    )
    # A map that is right at the landmarks and smooth between them: each texel holds the nearest landmark's
    # point.
    places = landmark_places(MODEL, (64, 64))
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    nearest = (torch.stack([x, y], -1).reshape(-1, 1, 2).double() - places).norm(dim=-1).argmin(1)
    right = obs.labels.crop_points[:, nearest].transpose(1, 2).reshape(2, 3, 64, 64)

    def make(p):
        return PositionMap(
            right + 3 * F.interpolate(p.reshape(2, 3, 5, 5), (64, 64), mode="bicubic", align_corners=True)
        )

    face = torch.zeros(64 * 64, dtype=torch.bool)
    face[(places.round().long() @ torch.tensor([1, 64])).clamp(0, 64 * 64 - 1)] = True
    return Scene(
        lambda o: PositionMapLandmarks(places),
        obs,
        make,
        normal(2 * 3 * 25, seed=seed + 1),
        lambda s: float((s.points - right).detach().norm(dim=1).flatten(1)[:, face].mean()),
        *hidden(obs, "crop_points"),
    )


def of_dense_map(size, seed):
    """A map with the right point at each vertex; wrong parameters bend it smoothly."""
    truth = person(size, 2, seed)
    points = truth.pose.apply(truth.vertices(MODEL))
    right = in_crop(points, truth.camera)
    obs = replace(observe(MODEL, truth, size), labels=Labels(state=truth, crop_vertices=right))
    places, owner = vertex_places(MODEL, (64, 64), "all")
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    nearest = (torch.stack([x, y], -1).reshape(-1, 1, 2).double() - places).norm(dim=-1).argmin(1)
    drawn = right[:, owner[nearest]].transpose(1, 2).reshape(2, 3, 64, 64)

    def make(p):
        return PositionMap(
            drawn + 3 * F.interpolate(p.reshape(2, 3, 5, 5), (64, 64), mode="bicubic", align_corners=True)
        )

    return Scene(
        lambda o: PositionMapSupervision(places, owner),
        obs,
        make,
        normal(2 * 3 * 25, seed=seed + 1),
        lambda s: float((s.points - drawn).detach().norm(dim=1).mean()),
        *hidden(obs, "crop_vertices"),
    )


def of_parse(size, seed):
    """Stripes of the ten parts, of which a network is sure; wrong parameters bend its logits smoothly."""
    obs = observe(MODEL, person(size, 2, seed), size)
    stripes = (torch.arange(size)[None, :, None] * 10 // size).expand(2, size, size)
    obs = replace(obs, labels=Labels(parse=stripes))
    right = 8 * F.one_hot(stripes, 10).movedim(-1, 1).double()
    unknown = torch.zeros_like(stripes, dtype=torch.bool)
    some = ~unknown
    some[0, :, : size // 3] = False

    def make(p):
        return right + 4 * F.interpolate(
            p.reshape(2, 10, 5, 5), (size, size), mode="bicubic", align_corners=True
        )

    def with_labels(known, fill):
        filled = torch.where(known, stripes, -1 if math.isnan(fill) else int(10 * fill))
        return replace(obs, labels=Labels(parse=filled, parse_valid=known))

    return Scene(
        lambda o: ParseSupervision(),
        obs,
        make,
        normal(2 * 10 * 25, seed=seed + 1),
        lambda s: float(1 - s.detach().softmax(1).gather(1, stripes[:, None]).mean()),
        lambda fill: with_labels(some, fill),
        with_labels(unknown, 0.1),
    )


def of_found_landmarks(size, seed):
    """Landmarks of a network that is sure of them: the logarithm of its small sigma is a constant here, which
    is to be small beside the squares."""
    obs = observe(MODEL, person(size, 2, seed), size)
    marks = obs.landmarks

    def make(p):
        sigma = torch.full_like(marks.points[..., 0], size / 1600)
        return replace(
            marks, points=marks.points + size / 32 * p.reshape(2, 68, 2), sigma=sigma, jaw="surface"
        )

    return Scene(
        lambda o: LandmarkLikelihood(MODEL.landmarks.present),
        obs,
        make,
        normal(2 * 68 * 2, seed=seed + 1),
        lambda s: float((s.points - marks.points).detach().norm(dim=-1).mean()),
        *hidden(obs, "landmarks"),
    )


# ---- depth maps ----


def of_depth(energy, size=64, seed=0, suitability=False, amount=4.0, images=painted, relief=False):
    """relief: the error leaves out each frame's mean, which the energy does not feel."""
    truth = person(size, 2, seed)
    vertices = truth.pose.apply(truth.vertices(MODEL))
    fragments = rasterize(truth.camera.clip(vertices), MODEL.triangles, (size, size))
    depth = fragments.depth
    cosine = -(vertex_normals(vertices, MODEL.triangles) * F.normalize(vertices, dim=-1)).sum(
        -1, keepdim=True
    )
    facing = interpolate(fragments, MODEL.triangles, cosine)
    # Without the rim, of which pixels of another size show another part.
    known = torch.where(facing[..., 0] > 0.5, depth, 0)
    obs = replace(
        observe(MODEL, truth, size, images(truth, size)),
        labels=replace(labels(truth), depth=known, prior_depth=known),
    )
    there = depth > 0

    def make(p):
        bump = F.interpolate(p.reshape(2, 1, 5, 5), (size, size), mode="bicubic", align_corners=True)[:, 0]
        if suitability:
            return DepthState(depth, truth.pose, truth.camera, truth.subject, 1 + 0.2 * bump)
        return DepthState(
            torch.where(there, depth + amount * bump, depth), truth.pose, truth.camera, truth.subject
        )

    def error(state):
        gap = torch.where(known > 0, state.suitability - 1 if suitability else state.depth - depth, 0)
        if relief:
            gap = gap - gap.sum((1, 2), keepdim=True) / (known > 0).sum((1, 2), keepdim=True)
        return float(gap[known > 0].abs().mean().detach())

    hide, blank = hidden(obs, "images")
    if blank is not None:
        nothing = torch.zeros_like(depth)
        blank = replace(blank, labels=replace(obs.labels, depth=nothing, prior_depth=nothing))
    return Scene(lambda o: energy, obs, make, normal(2 * 25, seed=seed + 1), error, hide, blank)


# ---- the table ----


def _at_level(options):
    return lambda o: replace(options, level=level(o))


CENSUS = _at_level(CensusOptions(points=400, spacing_mm=2.5, sigmas=(8.0,), min_cosine=0.5))
PHOTO = _at_level(PhotometricOptions(points=400, floor=1e-3, min_cosine=0.5))
PATCHES = rendered(MODEL, patches(MODEL), (0.2, 0.2, 0.2))
MODELED = _at_level(ModelPhotometricOptions(points=400, albedo="mean"))
BLAND = replace(COLORED, albedo_mean=torch.full_like(MODEL.mean, 0.4))


def working(o):
    """Side of the images that flow and networks see: the same for crops of 224 and 448 px."""
    return 112 if max(o.size) >= 224 else SIDE


def flow_options(o):
    return FlowOptions(size=working(o), points=400, normalize=0.0)


def flow_corr(o):
    options = flow_options(o)
    return FlowCorrespondence(
        MODEL, options, LucasKanade(), options.sigma_px * o.pixel_unit, FlowImages.of(o, options)
    )


def flow_triangulated(o):
    return TriangulatedFlow(flow_corr(o), TriangulationOptions(size=working(o), points=400, normalize=0.0))


def flow_magnitude(o):
    return FlowMagnitude.prepare(
        MODEL, o, LucasKanade(), FlowMagnitudeOptions(size=working(o), rim=3, consistent=False)
    )


def mask_parse(o):
    return ParsedRendering.prepare(MODEL, o, Parser(), ParseOptions(working(o)), ALBEDO)


def focal_prior(o):
    every = torch.ones(o.num_views, dtype=torch.bool)
    return FocalPrior(o.labels.state.camera.focal, 0.1 * every.double(), every)


def aspect_prior(o):
    every = torch.ones(o.num_views, dtype=torch.bool)
    return AspectPrior(o.labels.state.camera.aspect, 0.05 * every.double(), every)


def principal_prior(o):
    every = torch.ones(o.num_views, dtype=torch.bool)
    return PrincipalPrior(o.labels.state.camera.principal, 0.1 * max(o.size) * every.double(), every)


def of_prior(prepare, block, size, seed, error, kernel=Kernel(), truth=None):
    truth = truth or person(size, 2, seed)
    blocks = (block,) if isinstance(block, str) else block
    zero = {b: torch.zeros_like(getattr(truth, b)) for b in blocks if b in ("identity", "expression")}
    return of_person(
        prepare, blocks, None, size, seed, truth=truth.replace(**zero), error=error, kernel=kernel
    )


def length_of(block):
    return lambda state: float(getattr(state, block).detach().abs().mean())


def distance_of(read, truth):
    return lambda state: float((read(state) - read(truth)).detach().abs().mean())


def log_focal(state):
    return state.camera.focal.log()


def light_of(state):
    return state.illumination


def saturation(state):
    light = state.illumination.detach()
    return float((light - light.mean(-1, keepdim=True)).abs().mean())


def slope_of_size(state):
    return float((state.identity.detach() @ SizePrior.of(MODEL, 0.01).slope).abs())


def grey_in_three(size, seed):
    return person(
        size, 2, seed, lambda views: soft_light(views).mean(-1, keepdim=True).expand(-1, -1, 3).contiguous()
    )


ALL = ("identity", "expression", "pose")
SCENES: dict[str, Callable[[int, int], Scene]] = {
    "photo_xview": lambda n, k: cross_view(
        lambda o: CrossViewPhotometric.prepare(MODEL, o, PHOTO(o)), max(n, 160), k, PATCHES, 0.8
    ),
    "photo_pairs": lambda n, k: cross_view(
        lambda o: PhotoPairs.prepare(MODEL, o, PhotoPairsOptions(working(o))), max(n, 160), k, PATCHES, 0.8
    ),
    "photo_warp_depth": lambda n, k: of_depth(DepthWarpPhotometric(), n, k, images=PATCHES),
    "census_xview": lambda n, k: cross_view(
        lambda o: CrossViewCensus.prepare(MODEL, o, CENSUS(o)), max(n, 160), k, PATCHES, 0.8
    ),
    "flow_mag": lambda n, k: cross_view(flow_magnitude, n, k),
    "flow_corr": lambda n, k: cross_view(flow_corr, n, k),
    "flow_triangulated": lambda n, k: cross_view(flow_triangulated, n, k),
    "sem_feat": lambda n, k: cross_view(
        lambda o: SemanticFeatures.prepare(MODEL, o, Encoder(), FeatureOptions(working(o))), n, k
    ),
    "photo_model": lambda n, k: of_person(
        lambda o: ModelPhotometric.prepare(UNIFORM, o, MODELED(o)),
        ("identity", "pose"),
        rendered(COLORED, None, (0.3, 0.3, 0.3)),
        n,
        k,
        looks="images",
        truth=person(n, 2, k, soft_light),
    ),
    "mask_parse": lambda n, k: of_person(
        mask_parse, ("identity", "pose"), rendered(MODEL, ALBEDO, BACKGROUND), n, k, looks="images"
    ),
    "lmk2d": lambda n, k: of_person(
        lambda o: LandmarkReprojection(MODEL, sigma(o), "surface"), ALL, None, n, k, looks="landmarks"
    ),
    "landmark_nll": of_found_landmarks,
    "lmk2d_eye": lambda n, k: of_person(
        lambda o: eye_offsets(MODEL, sigma(o)), ("expression",), None, n, k, looks="landmarks"
    ),
    "lmk2d_lip": lambda n, k: of_person(
        lambda o: lip_offsets(MODEL, sigma(o)), ("expression",), None, n, k, looks="landmarks"
    ),
    "lmk3d_align": lambda n, k: of_person(
        lambda o: lmk3d_align(MODEL, 0.1), ALL[:2], None, n, k, looks="points3d", frame="aligned"
    ),
    "lmk_posmap": of_position_map,
    "posmap_sup": of_dense_map,
    "parse_sup": of_parse,
    "lmk_guided": lambda n, k: of_person(
        lambda o: lmk_guided(MODEL, 0.1), ALL[:2], None, n, k, looks="points3d", frame="aligned"
    ),
    "identity_sup": lambda n, k: of_person(lambda o: IdentitySupervision(), ("identity",), None, n, k),
    # A small sigma: the logarithm of it is a constant here, which is to be small beside the squares.
    "identity_nll": lambda n, k: of_person(
        lambda o: IdentityLikelihood(torch.full_like(o.labels.state.identity, 0.02)),
        ("identity",),
        None,
        n,
        k,
    ),
    "expression_sup": lambda n, k: of_person(lambda o: ExpressionSupervision(), ("expression",), None, n, k),
    "pose_sup": lambda n, k: of_person(lambda o: PoseSupervision(), ("pose", "focal"), None, n, k),
    "vertex_sup": lambda n, k: of_person(lambda o: VertexSupervision(MODEL), ALL, None, n, k),
    "identity_consistency": lambda n, k: of_frames("identity", n, k),
    "expression_consistency": lambda n, k: of_frames("expression", n, k),
    "depth_sup": lambda n, k: of_depth(DepthSupervision(), n, k),
    "normal_sup": lambda n, k: of_depth(NormalSupervision(), n, k, relief=True),
    "depth_3dmm": lambda n, k: of_depth(DepthPrior(), n, k),
    "suitability_reg": lambda n, k: of_depth(SuitabilityPrior(), n, k, True),
    "identity_prior": lambda n, k: of_prior(
        lambda o: IdentityPrior(), "identity", n, k, length_of("identity")
    ),
    "expression_prior": lambda n, k: of_prior(
        lambda o: ExpressionPrior(), "expression", n, k, length_of("expression")
    ),
    "joint_prior": lambda n, k: of_prior(
        lambda o: JointPrior(torch.full((12,), 0.15)),
        "joints",
        n,
        k,
        length_of("joints"),
        truth=person(n, 2, k).replace(joints=torch.zeros(2, 4, 3, dtype=torch.float64)),
    ),
    "albedo_prior": lambda n, k: of_albedo(lambda m: AlbedoPrior(), COLORED, n, k),
    "prior_l1": lambda n, k: of_prior(
        lambda o: MeanCoefficientPrior(), ALL[:2], n, k, length_of("identity"), Kernel("l1", 0.01)
    ),
    "light_mono": lambda n, k: of_prior(
        lambda o: LightMono(), "illumination", n, k, saturation, truth=grey_in_three(n, k)
    ),
    "albedo_var": lambda n, k: of_albedo(AlbedoVariance, BLAND, n, k),
    "ssim_xview": lambda n, k: of_depth(DepthWarpStructure(), n, k),
    "depth_xview": lambda n, k: of_depth(DepthAgreement(), n, k, relief=True),
    "epi_lmk": of_relative_pose,
    "landmark_prior": lambda n, k: of_prior(
        lambda o: LandmarkOffsetPrior(offset_sigma()),
        "landmarks",
        n,
        k,
        lambda state: float(state.landmark_offset.detach().abs().mean()),
    ),
    "aspect_prior": lambda n, k: of_prior(
        aspect_prior, "aspect", n, k, distance_of(lambda s: s.camera.aspect, person(n, 2, k))
    ),
    "principal_prior": lambda n, k: of_prior(
        principal_prior, "principal", n, k, distance_of(lambda s: s.camera.principal, person(n, 2, k))
    ),
    "focal_prior": lambda n, k: of_prior(focal_prior, "focal", n, k, distance_of(log_focal, person(n, 2, k))),
    "light_prior": lambda n, k: of_prior(
        lambda o: LightPrior(o.labels.state.illumination),
        "illumination",
        n,
        k,
        distance_of(light_of, person(n, 2, k)),
    ),
    "size_prior": lambda n, k: of_prior(lambda o: SizePrior.of(MODEL, 0.01), "identity", n, k, slope_of_size),
}


def scene(name: str, size: int = SIDE, seed: int = 0) -> Scene:
    """The scene of an energy by the energy's name; crops of `size` pixels, another person for another
    seed."""
    return SCENES[name](size, seed)


def train(example: Scene, steps: int, rate: float):
    """Adam on a network that predicts the parameters from a fixed input: costs of all steps and the last
    state."""
    torch.manual_seed(0)
    code = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
    network = torch.nn.Linear(3, len(example.start), dtype=torch.float64)
    with torch.no_grad():
        network.weight.mul_(0.1)
        network.bias.copy_(example.start - network.weight @ code)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    energy, costs = example.prepare(example.observations), []
    for _ in range(steps):
        state = example.make(network(code))
        objective = Objective([Term(energy, 1.0, example.kernel)])
        with torch.no_grad():
            objective = objective.freeze(example.make(network(code)), example.observations)
        cost = objective.cost(state, example.observations)[0].sum()
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(float(cost.detach()))
    with torch.no_grad():
        return costs, example.make(network(code)), network


def joined(one: SceneState, two: SceneState) -> SceneState:
    """The people of two states in one."""

    def cat(a, b):
        return torch.cat([a, b])

    camera = replace(
        one.camera,
        focal=cat(one.camera.focal, two.camera.focal),
        principal=cat(one.camera.principal, two.camera.principal),
        aspect=cat(one.camera.aspect, two.camera.aspect),
    )
    return one.replace(
        identity=cat(one.identity, two.identity),
        subject=cat(one.subject, two.subject + len(one.identity)),
        expression=cat(one.expression, two.expression),
        camera=camera,
        illumination=cat(one.illumination, two.illumination),
        pose=Pose(cat(one.pose.rotation, two.pose.rotation), cat(one.pose.translation, two.pose.translation)),
        albedo=None if one.albedo is None else cat(one.albedo, two.albedo),
        landmark_offset=None
        if one.landmark_offset is None
        else cat(one.landmark_offset, two.landmark_offset),
        joints=None if one.joints is None else cat(one.joints, two.joints),
    )
