"""Tiny synthetic people for tests: a seeded face model and results made from it; rendered subject folders."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import torch

from fitkit.fitting.report import FitReport, ViewReport
from fitkit.fitting.result import FitResult
from fitkit.geometry.rotation import so3_exp
from fitkit.io.subject import Subject, View
from fitkit.models.face_model import FaceModel, LandmarkEmbedding
from fitkit.models.skinned import SkinnedModel
from fitkit.observe.flow.types import Flow
from fitkit.observe.landmarks.types import Landmarks
from fitkit.observe.observations import Observations
from fitkit.observe.sampling import gaussian_blur
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState

RADII = (74.0, 112.0, 92.0)  # mm, half axes of the ellipsoid that stands for a head
LONGITUDES, LATITUDES = np.radians(np.linspace(-115, 115, 21)), np.radians(np.linspace(-75, 75, 15))
EXPRESSIONS = {  # name: centre (x, y) mm, displacement mm, radius mm
    "jawOpen": ((0, -85), (0, -14, -4), 32),
    "mouthSmile_L": ((26, -62), (5, 7, -1), 18),
    "mouthSmile_R": ((-26, -62), (-5, 7, -1), 18),
    "eyeBlink_L": ((31, 3), (0, -7, 1), 14),
    "eyeBlink_R": ((-31, 3), (0, -7, 1), 14),
    "browInnerUp": ((0, 24), (0, 8, 1), 20),
}


def _surface(lon, lat):
    a, b, c = RADII
    x, y = a * np.cos(lat) * np.sin(lon), b * np.sin(lat)
    nose = 22 * np.exp(-((x / 13) ** 2 + ((y + 28) / 22) ** 2)) * (np.cos(lon) > 0)
    return np.stack([x, y, c * np.cos(lat) * np.cos(lon) + nose], -1)


def _landmarks_xy() -> np.ndarray:
    """(longitude, latitude) of 68 plausible points, in radians; iBUG order starts at the subject's right (x <
    0)."""
    a, b, _ = RADII
    right_brow = [(-52, 18), (-45, 24), (-36, 26), (-26, 25), (-16, 21)]
    right_eye = [(-45, 0), (-37, 5), (-26, 5), (-17, 0), (-26, -5), (-37, -5)]
    nose = [(0, 2), (0, -8), (0, -19), (0, -30), (-14, -38), (-7, -40), (0, -42), (7, -40), (14, -38)]
    outer = [
        (-26, -64),
        (-17, -59),
        (-6, -56),
        (0, -58),
        (6, -56),
        (17, -59),
        (26, -64),
        (17, -72),
        (7, -75),
        (0, -76),
        (-7, -75),
        (-17, -72),
    ]
    inner = [(-21, -64), (-7, -63), (0, -64), (7, -63), (21, -64), (7, -67), (0, -68), (-7, -67)]

    def mirror(points, order):
        return [(-points[i][0], points[i][1]) for i in order]

    xy = np.array(
        right_brow
        + mirror(right_brow, (4, 3, 2, 1, 0))
        + nose
        + right_eye
        + mirror(right_eye, (3, 2, 1, 0, 5, 4))
        + outer
        + inner,
        float,
    )
    lat = np.arcsin(xy[:, 1] / b)
    lon = np.arcsin(xy[:, 0] / (a * np.cos(lat)))
    s = np.linspace(-1, 1, 17)
    jaw = np.stack(
        [np.radians(88) * np.sign(s) * np.abs(s) ** 0.9, np.radians(-64 + 58 * np.abs(s) ** 2.2)], -1
    )
    return np.concatenate([jaw, np.stack([lon, lat], -1)])


def tiny_model(seed: int = 0, num_identity: int = 8, dtype: torch.dtype = torch.float32) -> FaceModel:
    """A face-like shell of 315 vertices (half ellipsoid with a nose), 560 triangles, 8 identity and 6
    expression shapes.

    Identity shapes are smooth random waves of 1 to 3 mm, expression shapes bumps; same seed, same model.
    Outer eye corners are 90 mm apart. UV is the longitude/latitude grid, without seams.
    """
    rng = np.random.default_rng(seed)
    nu, nv = len(LONGITUDES), len(LATITUDES)
    lon, lat = np.meshgrid(LONGITUDES, LATITUDES)
    mean = _surface(lon, lat).reshape(-1, 3)
    cell = (np.arange(nv - 1)[:, None] * nu + np.arange(nu - 1)).reshape(-1)
    triangles = np.stack(
        [np.stack([cell, cell + 1, cell + nu + 1], -1), np.stack([cell, cell + nu + 1, cell + nu], -1)], 1
    ).reshape(-1, 3)
    uv = np.stack([np.tile(np.linspace(0.03, 0.97, nu), nv), np.repeat(np.linspace(0.03, 0.97, nv), nu)], -1)

    identity = np.zeros((num_identity, len(mean), 3))
    for k in range(num_identity):
        for _ in range(3):
            wave = rng.normal(size=3) * (0.6 + 0.35 * k) / 90
            identity[k] += np.sin(mean @ wave + rng.uniform(0, 2 * np.pi))[:, None] * rng.normal(size=3)
        identity[k] *= 3.0 / (1 + 0.25 * k) / np.sqrt((identity[k] ** 2).sum(-1).mean())
    front = mean[:, 2] > 0
    expression = np.stack(
        [
            np.exp(-((mean[:, :2] - centre) ** 2).sum(-1) / radius**2)[:, None]
            * front[:, None]
            * np.array(move, float)
            for centre, move, radius in EXPRESSIONS.values()
        ]
    )
    expression[np.abs(expression) < 0.01] = 0

    points = _landmarks_xy()
    gu = (points[:, 0] - LONGITUDES[0]) / (LONGITUDES[1] - LONGITUDES[0])
    gv = (points[:, 1] - LATITUDES[0]) / (LATITUDES[1] - LATITUDES[0])
    iu, iv = np.clip(gu.astype(int), 0, nu - 2), np.clip(gv.astype(int), 0, nv - 2)
    fu, fv = gu - iu, gv - iv
    lower = fu >= fv
    bary = np.where(lower[:, None], np.stack([1 - fu, fu - fv, fv], -1), np.stack([1 - fv, fu, fv - fu], -1))
    triangle = 2 * (iv * (nu - 1) + iu) + ~lower

    face = (np.abs(lon) < np.radians(65)).ravel() & (np.abs(lat) < np.radians(60)).ravel()
    skin = (np.abs(lon) < np.radians(95)).ravel()
    albedo = np.array([0.55, 0.36, 0.27]) * (1 + 0.1 * rng.normal(size=(1, 3)))
    lips = (np.abs(mean[:, 0]) < 28) & (np.abs(mean[:, 1] + 66) < 11) & front
    albedo = np.where(lips[:, None], albedo * [0.9, 0.55, 0.6], albedo)

    def real(x):
        return torch.from_numpy(np.ascontiguousarray(x)).to(dtype)

    return FaceModel(
        name="tiny",
        mean=real(mean),
        identity_basis=real(identity),
        expression_basis=real(expression),
        expression_names=tuple(EXPRESSIONS),
        triangles=torch.from_numpy(triangles),
        landmarks=LandmarkEmbedding(
            tuple(f"ibug68/{i}" for i in range(68)), torch.from_numpy(triangle), real(bary)
        ),
        region=torch.from_numpy((~face).astype(np.int64)),
        region_names=("face", "head"),
        skin=torch.from_numpy(skin),
        face=torch.from_numpy(face),
        uv=real(uv),
        uv_triangles=torch.from_numpy(triangles.copy()),
        albedo_mean=real(np.clip(albedo, 0.02, 0.98)),
        source="tests/helpers.py",
        license="MIT",
    )


# name: parent, middle and radius in mm of what it carries (0: the front of the head), mm where it turns about
JOINTS = {
    "neck": ("root", (0, 0, 0), 0, (0, -80, -10)),
    "jaw": ("neck", (0, -85, 60), 34, (0, -25, 15)),
    "eye_L": ("neck", (31, 3, 78), 13, (31, 3, 58)),
    "eye_R": ("neck", (-31, 3, 78), 13, (-31, 3, 58)),
}


def with_joints(plain: FaceModel, joints: dict = JOINTS, front: float = 8.0, seed: int = 0) -> SkinnedModel:
    """A model with joints added: a neck that turns what lies before z = `front` mm against the rest, and what
    else `joints` name; corrective shapes are smooth random waves of 0.5 mm."""
    rng = np.random.default_rng(seed + 100)
    mean, names = plain.mean.double().numpy(), ["root", *joints]
    carried = np.zeros((len(mean), len(names)))
    for j, (_, middle, radius, _) in enumerate(joints.values(), 1):
        if radius:
            carried[:, j] = np.exp(-((mean - middle) ** 2).sum(1) / radius**2)
    neck = 1 / (1 + np.exp(-(mean[:, 2] - front) / 6))
    carried[:, 1] = 1 - carried[:, 2:].sum(1)  # what no other joint carries
    weights = neck[:, None] * carried
    weights[:, 0] = 1 - neck
    homogeneous, regressor = np.concatenate([mean, np.ones((len(mean), 1))], 1), []
    for place in [(0.0, -100.0, -20.0), *(pivot for *_, pivot in joints.values())]:
        near = np.exp(-((mean - place) ** 2).sum(1) / 70**2)
        moments = (homogeneous * near[:, None]).T @ homogeneous
        regressor.append(near * (homogeneous @ np.linalg.solve(moments, [*place, 1.0])))
    waves = np.zeros((9 * len(joints), len(mean), 3))
    for wave in waves:
        phase = mean @ (rng.normal(size=3) / 60) + rng.uniform(0, 2 * np.pi)
        wave[:] = 0.5 * np.sin(phase)[:, None] * rng.normal(size=3)

    def real(x):
        return torch.from_numpy(np.ascontiguousarray(x)).to(plain.mean)

    return SkinnedModel(
        **{f.name: getattr(plain, f.name) for f in fields(plain)} | {"name": f"{plain.name}_skinned"},
        joint_names=tuple(joints),
        joint_regressor=real(np.stack(regressor)),
        joint_parents=(-1, *(names.index(parent) for parent, *_ in joints.values())),
        skinning_weights=real(weights),
        joint_sigma=torch.full((len(joints), 3), 0.15).to(plain.mean),
        pose_basis=real(waves),
    )


def tiny_skinned_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> SkinnedModel:
    """`tiny_model` with the joints of FLAME."""
    return with_joints(tiny_model(seed, dtype=torch.float64), seed=seed).to(dtype=dtype)


def tiny_joints(model: SkinnedModel, frames: int, amount: float = 0.15, seed: int = 0) -> torch.Tensor:
    """Random rotation vectors of the joints, [frames, J, 3] rad."""
    generator = torch.Generator().manual_seed(seed)
    shape = frames, model.num_joints, 3
    return amount * torch.randn(shape, generator=generator, dtype=torch.float64).to(model.mean)


def tiny_state(
    model: FaceModel, views: int = 3, size: int = 160, seed: int = 0, expression: float = 0.4
) -> SceneState:
    """Random person of `model` seen by `views` perspective cameras, yaw spread over -40 to 40 degrees, face
    about 0.7 of the image."""
    gen = torch.Generator().manual_seed(seed)
    dtype = model.mean.dtype

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=torch.float64).to(dtype)

    yaw = torch.linspace(-40, 40, views, dtype=dtype) if views > 1 else torch.zeros(1, dtype=dtype)
    turn = torch.stack([0.05 * normal(views), torch.deg2rad(yaw), 0.05 * normal(views)], -1)
    rotation = torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=dtype)) @ so3_exp(turn)
    translation = torch.tensor([0.0, 0.0, 900.0], dtype=dtype) + normal(views, 3) * torch.tensor(
        [4.0, 4.0, 30.0], dtype=dtype
    )
    camera = Camera(
        torch.full((views,), 900 * 0.7 * size / 220, dtype=dtype),
        torch.full((views, 2), (size - 1) / 2, dtype=dtype),
        torch.ones(views, dtype=dtype),
    )
    illumination = torch.zeros(views, 9, 1, dtype=dtype)
    illumination[:, 0], illumination[:, 2] = 2.6, 0.6
    return SceneState(
        normal(1, model.num_identity),
        torch.zeros(views, dtype=torch.int64),
        expression * torch.rand(views, model.num_expression, generator=gen, dtype=torch.float64).to(dtype),
        Pose(rotation, translation),
        camera,
        illumination,
    )


def picture(
    vertices: torch.Tensor,
    triangles: torch.Tensor,
    colors: torch.Tensor,
    camera: Camera,
    size: tuple[int, int],
    background: float = 0.35,
) -> np.ndarray:
    """Unlit pictures of meshes: vertices [B, V, 3] camera frame, sRGB colours [V, 3] in [0, 1] -> uint8 [B,
    H, W, 3]."""
    from fitkit.render.rasterizer import interpolate, rasterize

    fragments = rasterize(camera.clip(vertices.float()), triangles, size)
    rgb = interpolate(fragments, triangles, colors.float()[None].expand(len(vertices), -1, -1))
    rgb = torch.where(fragments.covered[..., None], rgb, torch.full_like(rgb, background))
    return (rgb * 255).round().clamp(0, 255).byte().numpy()


def tiny_colors(model: FaceModel) -> torch.Tensor:
    """Smooth colours [V, 3], sRGB in [0.25, 0.9]: skin-like with large patches, so that places can be told
    apart."""
    x, y, z = (model.mean / 40).unbind(-1)
    waves = torch.stack([torch.sin(x + 0.5), torch.sin(1.3 * y + x), torch.cos(y - 0.7 * x)], -1)
    return (torch.tensor([0.72, 0.55, 0.47]) + 0.16 * waves).clamp(0.25, 0.9).to(model.mean)


def tiny_result(
    seed: int = 0,
    views: int = 3,
    size: int = 160,
    model: FaceModel | None = None,
    expression: float = 0.4,
    state: SceneState | None = None,
    colors: torch.Tensor | None = None,
) -> FitResult:
    """A perfect fit of a tiny person to its own pictures (painted with `colors`, default `tiny_colors`)."""
    model = model or tiny_model(seed)
    state = state or tiny_state(model, views, size, seed, expression)
    views = state.num_views
    vertices = state.pose.apply(state.vertices(model))
    images = picture(
        vertices,
        model.triangles,
        tiny_colors(model) if colors is None else colors,
        state.camera,
        (size, size),
    )
    points, _ = state.camera.project(model.landmarks.points(vertices, model.triangles))
    subject = Subject("tiny", tuple(View(f"view{i}", image) for i, image in enumerate(images)))
    landmarks = Landmarks(
        points,
        torch.ones(views, 68),
        torch.ones(views, 68, dtype=torch.bool),
        torch.ones(views, 68),
        "surface",
    )
    report = FitReport(
        status="ok",
        model="tiny",
        num_views=views,
        reprojection_px=float("nan"),
        views=tuple(ViewReport(f"view{i}", part_shift_share={"nose": np.float32(1.5)}) for i in range(views)),
    )
    return FitResult(
        model,
        subject,
        state,
        landmarks,
        report,
        {"model": "tiny", "stages": [{"name": "pose", "free": ["pose"]}]},
        ("estimated",) * views,
        torch.eye(model.num_identity) * 0.25,
        torch.linspace(0.1, 2.5, model.num_vertices),
    )


def write_pts(path: Path, points: np.ndarray) -> None:
    """Points [68, 2], counted from 0, as an iBUG .pts file, which counts from 1."""
    lines = [f"{x + 1:.3f} {y + 1:.3f}" for x, y in points]
    path.write_text("version: 1\nn_points: 68\n{\n" + "\n".join(lines) + "\n}\n")


def rendered_subject(folder: Path, views: int = 3, size: int = 192, seed: int = 1) -> Path:
    """Write a subject folder: a random person of the model `generic`, shaded, as view0.png ... with .pts
    beside them."""
    from fitkit.models.registry import load_model
    from fitkit.render.shading import render_shaded

    model = load_model("generic")
    state = tiny_state(model, views, size, seed, expression=0.0)
    state = state.replace(identity=0.7 * state.identity)
    vertices = state.pose.apply(state.vertices(model))
    points, _ = state.camera.project(model.landmarks.points(vertices, model.triangles))
    folder.mkdir(parents=True)
    picture = render_shaded(vertices, model.triangles, state.camera, (size, size), color=model.albedo_mean)
    rgb = torch.where(picture.alpha[..., None] > 0, picture.rgb, torch.tensor(0.35))
    for i in range(views):
        image = (rgb[i].numpy() * 255).round().astype(np.uint8)
        cv2.imwrite(str(folder / f"view{i}.png"), image[..., ::-1])
        write_pts(folder / f"view{i}.pts", points[i].numpy())
    return folder


def observe(
    model: FaceModel,
    state: SceneState,
    size: int = 160,
    images: torch.Tensor | None = None,
    jaw: str = "surface",
) -> Observations:
    """What the cameras of `state` see, exactly: the model's own landmarks, and `images` [B, 3, size, size]
    (default grey)."""
    views, dtype = state.num_views, model.mean.dtype
    points, _ = state.camera.project(
        state.pose.apply(model.landmarks.points(state.vertices(model), model.triangles))
    )
    marks = Landmarks(
        points,
        torch.ones(views, 68, dtype=dtype),
        torch.ones(views, 68, dtype=torch.bool),
        torch.ones(views, 68, dtype=dtype),
        jaw,
    )
    images = torch.full((views, 3, size, size), 0.5, dtype=dtype) if images is None else images
    return Observations(
        images,
        marks,
        torch.ones(views, size, size, dtype=torch.bool),
        torch.ones(views, dtype=dtype),
        torch.zeros(views, 2, dtype=dtype),
    )


def skin_pattern(place: torch.Tensor) -> torch.Tensor:
    """Smooth grey noise on the skin as a function of the place on the mean head [..., 3] mm: waves of 12 to
    40 mm."""
    gen = torch.Generator().manual_seed(4)
    total = 0.0
    for _ in range(14):
        direction = torch.nn.functional.normalize(torch.randn(3, generator=gen), dim=0).to(place)
        length, phase = (
            12 + 28 * float(torch.rand((), generator=gen)),
            6.28 * float(torch.rand((), generator=gen)),
        )
        total = total + torch.sin((place @ direction) * (6.2832 / length) + phase)
    return 0.5 + 0.07 * total


def photograph(
    model: FaceModel, state: SceneState, size: int, tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> torch.Tensor:
    """Unlit pictures [B, 3, size, size] of a person painted with `skin_pattern`, before grey 0.4."""
    from fitkit.render.rasterizer import interpolate, rasterize

    fragments = rasterize(
        state.camera.clip(state.pose.apply(state.vertices(model))), model.triangles, (size, size)
    )
    grey = torch.where(
        fragments.covered, skin_pattern(interpolate(fragments, model.triangles, model.mean[None])), 0.4
    ).clamp(0, 1)
    return (grey[:, None] * torch.tensor(tint)[:, None, None]).contiguous()


class LucasKanade:
    """A differentiable stand-in for a flow network: one step of windowed least squares, exact for small
    shifts."""

    name = "lucas_kanade"

    def __init__(self, window=3.0):
        self.window = window

    def displacement(self, source, target):
        a, b = source.mean(1, keepdim=True), target.mean(1, keepdim=True)
        mean = torch.nn.functional.pad((a + b) / 2, (1, 1, 1, 1), mode="replicate")
        x, y = (
            (mean[..., 1:-1, 2:] - mean[..., 1:-1, :-2]) / 2,
            (mean[..., 2:, 1:-1] - mean[..., :-2, 1:-1]) / 2,
        )
        moments = gaussian_blur(torch.cat([x * x, x * y, y * y, x * (a - b), y * (a - b)], 1), self.window)
        xx, xy, yy, xd, yd = moments.unbind(1)
        xx, yy = xx + 1e-5, yy + 1e-5
        return torch.stack([yy * xd - xy * yd, xx * yd - xy * xd], 1) / (xx * yy - xy * xy)[:, None]

    def estimate(self, source, target):
        flow = self.displacement(source, target).detach()
        return Flow(flow, torch.isfinite(flow).all(1))


def face_points(center, size, turn=0.0):
    """68 points [68, 2] px in the order of iBUG that look like a face of this size (px), turned by
    radians."""
    jaw = np.linspace(np.pi, 0, 17)
    brow, eye, lip = (
        np.linspace(-0.16, 0.16, 5),
        np.linspace(0, 2 * np.pi, 7)[:6] + np.pi,
        np.linspace(0, 2 * np.pi, 13)[:12] + np.pi,
    )
    mouth = np.linspace(0, 2 * np.pi, 9)[:8] + np.pi
    parts = [np.stack([0.5 * np.cos(jaw), 0.55 * np.sin(jaw)], 1)]
    parts += [np.stack([s * 0.22 + brow, np.full(5, -0.28) + brow**2], 1) for s in (-1, 1)]
    parts += [
        np.stack([np.zeros(4), np.linspace(-0.12, 0.1, 4)], 1),
        np.stack([np.linspace(-0.1, 0.1, 5), np.full(5, 0.15)], 1),
    ]
    parts += [np.stack([s * 0.22 + 0.1 * np.cos(eye), -0.12 + 0.04 * np.sin(eye)], 1) for s in (-1, 1)]
    parts += [
        np.stack([0.2 * np.cos(lip), 0.32 + 0.08 * np.sin(lip)], 1),
        np.stack([0.14 * np.cos(mouth), 0.32 + 0.03 * np.sin(mouth)], 1),
    ]
    turned = np.concatenate(parts) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return turned * size + np.asarray(center)


def dotted_faces(folder, people, frames):
    """A tree FOLDER/PERSON/N.png + .pts: a bright disc with a dark dot at each point, a fifth of the picture
    wide."""
    import cv2

    rng = np.random.default_rng(0)
    for person in people:
        (folder / person).mkdir(parents=True)
        for n in range(frames):
            points = face_points(rng.uniform(120, 180, 2), rng.uniform(80, 110), rng.uniform(-0.3, 0.3))
            image = np.full((300, 300, 3), 160, np.uint8)
            cv2.circle(image, [int(v) for v in points[30]], 75, (235, 205, 190), -1)
            for x, y in points:
                cv2.circle(image, (round(x), round(y)), 1, (30, 20, 20), -1)
            cv2.imwrite(str(folder / person / f"{n}.png"), image[..., ::-1])
            write_pts(folder / person / f"{n}.pts", points)
