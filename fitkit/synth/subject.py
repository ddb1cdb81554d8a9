"""Random people in several views with exact truth: what `fitkit synth` writes and `synth.dataset` trains on.

`draw_subject` decides everything about one subject, `render_subject` makes its pictures and labels. The parts
(people, light, paint, photos) are those of `random_faces`; here they stand in one scene that several cameras
see. Everything follows from the recipe, its seed and the subject's number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.rotation import so3_exp
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.io.images import to_rgb
from fitkit.models.face_model import FaceModel
from fitkit.models.makehuman import Traits
from fitkit.models.skinned import Bones, SkinnedModel
from fitkit.render.shading import average_blocks
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState
from fitkit.synth.paint import (
    HairLook,
    HairShell,
    LampShadow,
    SkinLook,
    hair_shell,
    head_map,
    lamp_shadow,
    paint_skin,
)
from fitkit.synth.parse import (
    CLOTHES,
    GLASSES,
    HAIR,
    NECK,
    OCCLUDER,
    ParsePlan,
    beard_cover,
    parse_plan,
    parse_samples,
    part_samples,
    person_classes,
)
from fitkit.synth.people import aged, other_day, random_identity, suited
from fitkit.synth.photo_effects import background, blurred, camera, occluder
from fitkit.synth.random_faces import (
    HAIR_NEARER_MM,
    SUPERSAMPLE,
    add_glasses,
    add_shoulders,
    gaze_of,
    grown_on,
    hair_colors,
    hair_scene,
    head_colors,
    is_cap,
    outline_points,
    photo_look,
    random_expression,
    random_gaze,
    random_hair,
    random_joints,
    random_person,
    random_scene,
    visible_landmarks,
)
from fitkit.synth.raster import FineLayers, light_samples, sample_mesh
from fitkit.synth.recipe import SynthRecipe
from fitkit.synth.studio import Scene, head_shot_state, light

STREAMS = (
    "person",
    "poses",
    "expression",
    "light",
    "hair",
    "front",
    "background",
    "photo",
    "landmarks",
    "paint",
    "shell",
    "glasses",
    "tracing",
)
JPEG_QUALITY = 95  # where the photo's own is not drawn
PIVOT = (0.0, -80.0, -40.0)  # mm of the head frame: the head turns about this point from frame to frame
PIXEL_COVERED = 0.5  # share of a pixel beyond which the face does not show there
THIN = 0.3  # the same for the rims of glasses, which are thinner than a pixel


@dataclass(frozen=True, eq=False)
class SubjectPlan:
    """Everything about one subject, B pictures, picture b shows frame moment[b] through camera viewpoint[b].

    neutral: [V, 3] mm, the face without expression. state: B views of one person; its illumination is the
    surroundings and the lamp without shadows and highlights, in the head frame. gaze: [B, 2] degrees to the
    subject's left and up; pupil: radius over the iris's; scenes: light of each view, one object
    where it is shared; scene_from_head: [B, 3, 3], the frame of the light; exposure: [B] mean linear
    brightness; photos: [B] arguments of `photo_effects.camera`; glasses: 'no', 'clear' or 'dark'; hairs: [B]
    where the hair differs between views, of which `hair` is the common part, else None; traits: of a person
    whose model knows age and sex.
    """

    index: int
    state: SceneState
    neutral: Tensor
    moment: np.ndarray
    viewpoint: np.ndarray
    person: SkinLook
    hair: HairLook
    gaze: np.ndarray
    pupil: float
    scenes: tuple[Scene, ...]
    scene_from_head: Tensor
    exposure: np.ndarray
    photos: tuple[dict, ...]
    glasses: str
    hairs: tuple[HairLook, ...] | None = None
    traits: Traits | None = None

    def hair_of(self, b: int) -> HairLook:
        """The hair of picture b."""
        return self.hair if self.hairs is None else self.hairs[b]


@dataclass(frozen=True, eq=False)
class SubjectView:
    """One picture with its truth, all in its pixels; (0, 0) is the centre of the top-left one.

    jpeg: the file; landmarks: [68, 2] px, exact, hidden ones included; given: [68, 2] px, with the recipe's
    noise and jaw; visible: [68] bool as in `random_faces.RandomFace`; depth: [H, W] float32 mm of the bare
    model, 0 = nothing; normals: [H, W, 3] float32, camera frame, smooth normals of the mesh, 0 = nothing;
    parse: [H, W] uint8, numbers of `face_parts.PARSE`; parts: [H, W] uint8, numbers of `face_parts.PARTS`, of
    all that the picture shows; region: [H, W] uint8, the model's region + 1, 0 = nothing; covered: [H, W]
    uint8, 255 = hair, glasses or a thing in front hide all of the pixel.
    """

    jpeg: bytes
    landmarks: np.ndarray
    given: np.ndarray
    visible: np.ndarray
    depth: np.ndarray
    normals: np.ndarray
    parse: np.ndarray
    region: np.ndarray
    covered: np.ndarray
    parts: np.ndarray

    @property
    def image(self) -> np.ndarray:
        """The decoded file, uint8 [H, W, 3] sRGB."""
        with Image.open(BytesIO(self.jpeg)) as picture:
            return to_rgb(picture)


# Another picture of the head and its hair: (plan, view) -> linear RGB [S, S, 3], share of each pixel that is
# head or hair [S, S], and the surroundings that light it, as seen behind it [S, S, 3], or None for a drawn
# background.
HeadRenderer = Callable[["SubjectPlan", int], tuple[np.ndarray, np.ndarray, np.ndarray | None]]


def stream(recipe: SynthRecipe, index: int, name: str, view: int | None = None) -> np.random.Generator:
    """Random numbers of one concern of subject `index`, or of one of its views; independent of all others."""
    key = (STREAMS.index(name), 0 if view is None else view + 1)
    return np.random.default_rng(np.random.SeedSequence([recipe.seed, index], spawn_key=key))


# ---- what is drawn ----


@torch.no_grad()
def draw_subject(model: FaceModel, recipe: SynthRecipe, index: int) -> SubjectPlan:
    """The subject with this number, 0 or more; the same for the same model, recipe and number."""
    vary, B = recipe.variation, recipe.pictures
    moment, viewpoint = np.divmod(np.arange(B), recipe.views)
    rng = stream(recipe, index, "person")
    identity, traits = random_identity(model, rng, vary)
    vary = vary if traits is None else suited(vary, traits)
    person = random_person(rng, vary)
    person = person if traits is None else aged(person, traits)
    pupil = float(rng.uniform(0.25, 0.6))
    hair = grown_on(head_map(model), random_hair(stream(recipe, index, "hair"), person, vary))
    hairs = None
    if recipe.hair == "per_view":
        hairs = tuple(other_day(stream(recipe, index, "hair", view), hair, vary) for view in range(B))
    expression, gaze, joints = _expressions(model, recipe, index, moment)
    identity = torch.from_numpy(identity).float()
    neutral = model.mean + (identity @ model.identity_basis.reshape(model.num_identity, -1)).reshape(-1, 3)
    state = _cameras(model, recipe, index, identity, neutral, expression, joints, moment, viewpoint)
    turned = torch.stack([_head_turn(recipe, index, int(f)) for f in moment])
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    scene_from_head = turned if recipe.setup == "rig" else flip @ state.pose.rotation
    scenes = _per_view(recipe.light, B, lambda view: random_scene(stream(recipe, index, "light", view), vary))
    light_in_head = torch.stack([_in_head(scene, frame) for scene, frame in zip(scenes, scene_from_head)])
    shared = recipe.camera == "shared" and recipe.light == "shared"
    exposure = np.array(
        _per_view(
            "shared" if shared else "per_view",
            B,
            lambda view: stream(recipe, index, "photo", view).uniform(*vary.exposure),
        )
    )
    front = stream(recipe, index, "front")
    glasses = "no"
    if front.random() < vary.glasses + vary.dark_glasses:
        glasses = (
            "dark" if front.random() < vary.dark_glasses / (vary.glasses + vary.dark_glasses) else "clear"
        )
    return SubjectPlan(
        index,
        state.replace(illumination=light_in_head),
        neutral,
        moment,
        viewpoint,
        person,
        hair,
        gaze,
        pupil,
        scenes,
        scene_from_head,
        exposure,
        _photos(recipe, index),
        glasses,
        hairs,
        traits,
    )


def _per_view(option: str, count: int, draw: Callable) -> tuple:
    """count values: one drawn without a view, or one for each."""
    return (draw(None),) * count if option == "shared" else tuple(draw(view) for view in range(count))


def _expressions(
    model: FaceModel, recipe: SynthRecipe, index: int, moment: np.ndarray
) -> tuple[Tensor, np.ndarray, Tensor | None]:
    """Coefficients [B, K_ex], gaze [B, 2] degrees and joints [B, J, 3] rad of a model that has some: each
    frame, or each picture, its own; without expression the eyes look ahead, and the joints are at rest."""
    if recipe.expression == "neutral":
        return torch.zeros(len(moment), model.num_expression), np.zeros((len(moment), 2)), None
    rows, gazes, joints = [], [], []
    for number in moment if recipe.expression == "shared" else range(len(moment)):
        rng = stream(recipe, index, "expression", int(number))
        gazes.append(random_gaze(rng))
        rows.append(random_expression(rng, model.coefficients["expression"], gazes[-1], recipe.variation))
        if model.num_joints:
            joints.append(random_joints(rng, model.coefficients["joints"], recipe.variation))
    turned = torch.from_numpy(np.stack(joints)).float() if joints else None
    return torch.from_numpy(np.stack(rows)).float(), np.stack(gazes), turned


def _head_turn(recipe: SynthRecipe, index: int, frame: int) -> Tensor:
    """[3, 3], how the head of a rig has turned since the first frame."""
    if frame == 0 or recipe.setup == "turning":
        return torch.eye(3)
    rng = stream(recipe, index, "poses", 10_000 + frame)
    return so3_exp(torch.from_numpy(np.radians(rng.uniform(-1, 1, 3) * recipe.movement)).float())


def _cameras(
    model: FaceModel,
    recipe: SynthRecipe,
    index: int,
    identity: Tensor,
    neutral: Tensor,
    expression: Tensor,
    joints: Tensor | None,
    moment: np.ndarray,
    viewpoint: np.ndarray,
) -> SceneState:
    """Poses and cameras of all pictures; the principal point is the middle of the picture."""
    vary, size, B = recipe.variation, recipe.size, len(moment)
    # Different poses; further frames of a rig follow from them.
    own = B if recipe.setup == "turning" else recipe.views
    angles = torch.from_numpy(_angles(recipe, index, own)).float()

    def drawn(start: int, span: tuple[float, float]) -> tuple:
        return _per_view(
            recipe.camera, own, lambda view: stream(recipe, index, "poses", _at(view, start)).uniform(*span)
        )

    distances = np.exp(drawn(1000, np.log(vary.distance)))
    fills = drawn(2000, vary.fill)
    shifts = np.stack([_shift(recipe, stream(recipe, index, "poses", 3000 + view)) for view in range(own)])
    marks = model.landmarks.points(neutral[None], model.triangles)[0]
    aimed = head_shot_state(
        model, identity, expression[:own], angles, (size, size), distance=1000.0, points=marks
    )
    away = torch.from_numpy(distances).float() - 1000.0
    rotation, lens = aimed.pose.rotation, aimed.camera
    translation = aimed.pose.translation + torch.stack([torch.zeros(own), torch.zeros(own), away], 1)
    points = model.landmark_basis.points(
        identity.expand(own, -1), expression[:own], None if joints is None else joints[:own]
    )
    for _ in range(2):  # moving the head sideways changes its box a little
        xy = lens.project(Pose(rotation, translation).apply(points))[0]
        low, high = xy.amin(1), xy.amax(1)
        scale = size / torch.tensor(fills) / (high - low).amax(1)
        scale = scale.amin().expand(own) if recipe.camera == "shared" else scale
        wanted = torch.from_numpy(shifts).float() * size
        off = ((low + high) / 2 - lens.principal) * scale[:, None] - wanted
        lens = replace(lens, focal=lens.focal * scale)
        translation = translation - torch.cat([off, torch.zeros(own, 1)], 1) * (
            translation[:, 2:] / lens.focal[:, None]
        )
    if own < B:
        turn = torch.stack([_head_turn(recipe, index, int(f)) for f in moment])
        neck = torch.tensor(PIVOT)
        rotation, translation = rotation[viewpoint], translation[viewpoint]
        translation = translation + (rotation @ (neck - turn @ neck)[..., None])[..., 0]
        rotation = rotation @ turn
        lens = lens.select(torch.from_numpy(viewpoint))
    return SceneState(
        identity[None],
        torch.zeros(B, dtype=torch.int64),
        expression,
        Pose(rotation, translation),
        lens,
        torch.zeros(B, 9, 3),
        joints=joints,
    )


def _at(view: int | None, start: int) -> int | None:
    return start if view is None else start + 1 + view


def _angles(recipe: SynthRecipe, index: int, count: int) -> np.ndarray:
    """Yaw, pitch, roll of `count` views, [count, 3] degrees."""
    vary, rng = recipe.variation, stream(recipe, index, "poses")
    if recipe.poses == "spread" and count > 1:
        yaw = np.linspace(-vary.yaw, vary.yaw, count) + rng.uniform(-1, 1, count) * recipe.jitter
    elif recipe.poses == "spread":
        yaw = rng.uniform(-1, 1, 1) * vary.yaw
    else:
        frontal = rng.random(count) < vary.frontal
        yaw = np.where(
            frontal,
            np.clip(rng.normal(size=count) * 18, -vary.yaw, vary.yaw),
            rng.uniform(-1, 1, count) * vary.yaw,
        )
    pitch, roll = (
        np.clip(rng.normal(size=count) * most / 2, -most, most) for most in (vary.pitch, vary.roll)
    )
    return np.stack([yaw, pitch, roll], 1)


def _shift(recipe: SynthRecipe, rng: np.random.Generator) -> np.ndarray:
    far = 3.0 if rng.random() < recipe.variation.cut else 1.0
    return rng.uniform(-1, 1, 2) * recipe.variation.shift * far


def _photos(recipe: SynthRecipe, index: int) -> tuple[dict, ...]:
    """What the camera does to each picture; a shared camera keeps its colours, tone curve and compression."""
    looks = [
        photo_look(stream(recipe, index, "photo", 1000 + view), recipe.variation, recipe.size)
        for view in range(recipe.pictures)
    ]
    if recipe.camera == "shared":
        same = {
            key: looks[0][key]
            for key in ("quality", "reduce", "contrast", "saturation", "curve", "white", "noise")
        }
        looks = [{**look, **same} for look in looks]
    return tuple(looks)


def _in_head(scene: Scene, scene_from_head: Tensor) -> Tensor:
    """Illumination [9, 3] in the head frame: the surroundings plus the lamp's unshadowed share, the nearest
    in bands 0 to 2."""
    k = torch.arange(400, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * k / 400, k * 2.399963229728653  # a spiral of even density
    towards = torch.stack([(1 - z * z).sqrt() * turn.cos(), z, (1 - z * z).sqrt() * turn.sin()], -1)
    in_scene = towards @ scene_from_head.double().T
    lamp = torch.nn.functional.normalize(torch.tensor(scene.lamp, dtype=torch.float64), dim=0)
    lamplight = (
        scene.lamp_strength
        * ((in_scene @ lamp + 0.15) / 1.15).clamp_min(0)[:, None]
        * torch.tensor(scene.lamp_color)
    )
    shade = sh_basis(in_scene) @ scene.illumination.double() + lamplight
    return torch.linalg.lstsq(sh_basis(towards), shade).solution.float()


# ---- pictures ----


@torch.no_grad()
def render_subject(
    model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan, renderer: HeadRenderer | None = None
) -> list[SubjectView]:
    """All pictures of a subject with their truth.

    renderer: makes the head and its hair instead of the own shading; geometry, truth and photo effects stay.
    """
    studio = _Studio(model, recipe, plan)
    views, gain = [], None
    for b in range(recipe.pictures):
        view, gain = studio.photograph(b, renderer, gain)
        views.append(view)
        if recipe.light != "shared" or recipe.camera != "shared":
            gain = None
    return views


class _Studio:
    """What the views of one subject share."""

    def __init__(self, model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan):
        self.model, self.recipe, self.plan, self.head = model, recipe, plan, head_map(model)
        self.skin = paint_skin(self.head, plan.person, stream(recipe, plan.index, "paint"))
        self.parse: ParsePlan = parse_plan(model)
        self.classes = person_classes(self.parse, self.head, plan.person)
        self.shell, self.shell_of = None, (-1, b"")
        self.beard = beard_cover(self.head, plan.person)
        self.folder = None if not recipe.variation.backgrounds else Path(recipe.variation.backgrounds)
        self.shapes: dict[bytes, tuple[Tensor, np.ndarray]] = {}
        self.shadows: dict[tuple, LampShadow] = {}

    def comb(self, b: int) -> None:
        """The hair of picture b."""
        state = self.plan.state
        turned = b"" if state.joints is None else state.joints[b].numpy().tobytes()
        which = (b if self.plan.hairs is not None else 0, turned)
        if which == self.shell_of:
            return
        self.shell, self.shell_of = subject_hair(self.model, self.recipe, self.plan, b), which
        if self.shell is not None:
            normals = vertex_normals(
                torch.from_numpy(self.shell.points).float()[None], torch.from_numpy(self.shell.triangles)
            )[0].numpy()
            self.shell_table = np.concatenate(
                [normals, self.shell.place, self.shell.inside[:, None]], 1
            ).astype(np.float32)

    def shape(self, state: SceneState) -> tuple[Tensor, np.ndarray]:
        """Vertices [V, 3], head frame, and what is interpolated [V, 12]: rest 3, normal 3, vertex 3, open
        sky, lower lip, depth."""
        key = _face_key(state)
        if key not in self.shapes:
            model = self.model
            vertices = plan_vertices(model, self.plan, state)
            lower = np.zeros(len(vertices), np.float32) if self.parse.lower is None else self.parse.lower
            table = np.concatenate(
                [
                    model.mean.numpy(),
                    vertex_normals(vertices[None], model.triangles)[0].numpy(),
                    vertices.numpy(),
                    self.head.open_sky.numpy(),
                    lower[:, None],
                    np.zeros((len(vertices), 1), np.float32),
                ],
                1,
            )
            self.shapes = {key: (vertices, table)}  # neighbouring views share it or none does
        return self.shapes[key]

    def shadow(self, state: SceneState, b: int) -> LampShadow | None:
        scene = self.plan.scenes[b]
        if scene.lamp_strength <= 0.25:
            return None
        lamp = self.plan.scene_from_head[b].T @ torch.nn.functional.normalize(torch.tensor(scene.lamp), dim=0)
        key = (_face_key(state), lamp.numpy().tobytes())
        if key not in self.shadows:
            self.shadows = {key: lamp_shadow(self.shape(state)[0], self.head.outer, lamp)}
        return self.shadows[key]

    def photograph(
        self, b: int, renderer: HeadRenderer | None, gain: float | None
    ) -> tuple[SubjectView, float]:
        recipe, plan, model = self.recipe, self.plan, self.model
        self.comb(b)
        size, fine = recipe.size, recipe.size * SUPERSAMPLE
        state = plan.state.select([b])
        vertices, table = self.shape(state)
        points = state.pose.apply(vertices[None])
        table[:, 11] = points[0, :, 2].numpy()
        lens = state.camera.resized(1 / SUPERSAMPLE)
        surface = sample_mesh(lens.clip(points)[0], model.triangles, (fine, fine), table)

        ground_stream = stream(recipe, plan.index, "background", None if recipe.background == "shared" else b)
        ground = background(ground_stream, size, self.folder)
        if recipe.defocus[1] > 0:
            ground = blurred(ground, max(0.3, ground_stream.uniform(*recipe.defocus) * size))
        behind = add_shoulders(ground, ground_stream, state, plan.person, samples=1)
        layers = FineLayers(np.repeat(np.repeat(ground, SUPERSAMPLE, 0), SUPERSAMPLE, 1))
        scene = plan.scenes[b]
        rgb = None
        if renderer is None:
            rgb, mean_skin = self._head(b, state, surface.values, surface.triangle)
            level = float(rgb.mean())
        else:
            traced, alpha, surroundings = renderer(plan, b)
            level = float(traced[alpha > 0.5].mean()) if (alpha > 0.5).any() else 0.1
            mean_skin = level
        if gain is None:
            adapt = recipe.variation.adapt
            gain = float(plan.exposure[b] / max(level**adapt * max(mean_skin, 1e-3) ** (1 - adapt), 1e-3))
        layers.put(
            surface.pixel,
            np.zeros((len(surface.pixel), 3)) if rgb is None else rgb * np.float32(gain),
            surface.values[:, 11],
        )
        bare = layers.depth.copy()
        self._hair(layers, b, state, lens, scene, gain)
        if renderer is not None:
            share = alpha[..., None].astype(np.float32)
            # A drawn background is exposed already.
            far = ground if surroundings is None else surroundings * np.float32(gain)
            mixed = traced * np.float32(gain) * share + far * (1 - share)
            if surroundings is not None:
                behind = {}
            layers.rgb = np.repeat(np.repeat(mixed.astype(np.float32), SUPERSAMPLE, 0), SUPERSAMPLE, 1)
        front = np.zeros((fine, fine), np.float32)
        marks, marks_depth = _landmarks(model, state)
        worn = self._things_in_front(layers, front, b, state, lens, marks, gain)

        linear = average_blocks(torch.from_numpy(layers.rgb), SUPERSAMPLE).numpy()
        look = dict(plan.photos[b])
        quality = look.pop("quality")
        photo = camera(linear, stream(recipe, plan.index, "photo", 2000 + b), quality=None, **look)
        jpeg = cv2.imencode(
            ".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY if quality is None else quality]
        )[1].tobytes()

        hidden = _of_pixels(np.maximum(layers.cover, front))
        *truth, parts = self._pixels(b, state, points, table, hidden)
        parts = self._all_parts(b, parts, truth[0] > 0, behind, layers.cover, worn, front)
        given = marks.copy()
        if recipe.jaw == "outline":
            given[:17] = outline_points(model, state, size, bare)
        given = (
            given
            + stream(recipe, plan.index, "landmarks", b).normal(size=given.shape) * recipe.landmark_noise
        )
        visible = visible_landmarks(marks, marks_depth, layers.depth, front)
        covered = np.round(hidden * 255).astype(np.uint8)
        return SubjectView(jpeg, marks, given, visible, *truth, covered, parts), gain

    def _head(
        self, b: int, state: SceneState, values: np.ndarray, triangle: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """Linear RGB of the head's samples [N, 3], and the mean brightness of a mean skin in this light."""
        plan, scene = self.plan, self.plan.scenes[b]
        gaze = np.zeros(2) if self.head.eyes_turn else gaze_of(self.model, state)
        albedo, shine = head_colors(
            self.head, self.skin, plan.person, plan.hair_of(b), values[:, :3], triangle, gaze, plan.pupil
        )
        rgb = light_samples(
            albedo,
            values[:, 3:6],
            scene,
            *self._frames(b),
            shine,
            values[:, 9],
            values[:, 6:9],
            self.shadow(state, b),
        )
        pale = light(torch.full((1, 3), 0.3), torch.tensor([[0.0, 0.0, 1.0]]), scene)
        return rgb, float(pale.mean())

    def _frames(self, b: int) -> tuple[np.ndarray, np.ndarray]:
        return self.plan.scene_from_head[b].numpy(), self.plan.state.pose.rotation[b].numpy()

    def _hair(self, layers: FineLayers, b: int, state: SceneState, lens, scene: Scene, gain: float) -> None:
        if self.shell is None:
            return
        plan, shell = self.plan, self.shell
        points = state.pose.apply(torch.from_numpy(shell.points).float()[None])
        table = np.concatenate([self.shell_table, points[0, :, 2:].numpy()], 1)
        surface = sample_mesh(
            lens.clip(points)[0], torch.from_numpy(shell.triangles), layers.depth.shape, table
        )
        albedo, alpha, shine = hair_colors(
            shell, plan.hair_of(b), surface.values[:, 5], surface.values[:, 3:5]
        )
        rgb = light_samples(
            albedo, surface.values[:, :3], hair_scene(scene, plan.hair_of(b)), *self._frames(b), shine
        )
        layers.put(surface.pixel, rgb * np.float32(gain), surface.values[:, 6] - HAIR_NEARER_MM, alpha)

    def _things_in_front(
        self,
        layers: FineLayers,
        front: np.ndarray,
        b: int,
        state: SceneState,
        lens,
        marks: np.ndarray,
        gain: float,
    ) -> np.ndarray:
        """Glasses, the same in all views, and occluders of this view; in place. Returns what the glasses
        alone hide, [H, W] in [0, 1]."""
        recipe, plan = self.recipe, self.plan
        if plan.glasses != "no":
            add_glasses(
                layers,
                front,
                stream(recipe, plan.index, "glasses"),
                self.model,
                state,
                lens,
                plan.glasses == "dark",
            )
        worn = front.copy()
        rng = stream(recipe, plan.index, "front", b)
        if rng.random() < recipe.variation.occluded:
            box = np.concatenate([marks.min(0), marks.max(0)]) * SUPERSAMPLE
            for _ in range(rng.integers(1, recipe.variation.occluders + 1)):
                color, mask = occluder(rng, len(front), box, plan.person.skin * gain * 0.8)
                layers.rgb += mask[..., None] * (color - layers.rgb)
                np.maximum(front, mask, out=front)
                worn *= 1 - mask
        return worn

    def _all_parts(
        self,
        b: int,
        head: np.ndarray,
        on_head: np.ndarray,
        behind: dict[str, np.ndarray],
        hair: np.ndarray,
        worn: np.ndarray,
        front: np.ndarray,
    ) -> np.ndarray:
        """[H, W] uint8, numbers of `face_parts.PARTS`, from what stands behind and before the bare head.

        head: [H, W] parts of the bare head where on_head [H, W]; behind: see `add_shoulders`; hair, worn,
        front: of the finer samples, what hides them in [0, 1]: hair, glasses, anything in front.
        """
        out = np.where(on_head, head, 0).astype(np.uint8)
        for name, number in (("neck", NECK), ("clothes", CLOTHES)):
            if name in behind:
                out[behind[name] & ~on_head] = number
        look = self.plan.hair_of(b)
        on_top = OCCLUDER if is_cap(look) else HAIR
        if not look.bald:
            out[out == HAIR] = on_top
        out[_of_pixels(hair) > PIXEL_COVERED] = on_top
        out[_of_pixels(worn) > THIN] = GLASSES
        out[_of_pixels(np.maximum(front - worn, 0)) > PIXEL_COVERED] = OCCLUDER
        return out

    def _pixels(
        self, b: int, state: SceneState, points: Tensor, table: np.ndarray, hidden: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Depth, normals, parse classes and regions at the pixel centres, as in SubjectView, and parts [H, W]
        of the bare head."""
        size = self.recipe.size
        surface = sample_mesh(state.camera.clip(points)[0], self.model.triangles, (size, size), table)
        depth, parse, region = (
            np.zeros(size * size, np.float32),
            np.zeros(size * size, np.uint8),
            np.zeros(size * size, np.uint8),
        )
        normals = np.zeros((size * size, 3), np.float32)
        values = surface.values
        depth[surface.pixel] = values[:, 11]
        turned = values[:, 3:6] @ state.pose.rotation[0].numpy().T
        normals[surface.pixel] = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-12)
        lower = None if self.parse.lower is None else values[:, 10]
        classes = parse_samples(
            self.parse, self.classes, self.plan.hair_of(b), values[:, :3], surface.triangle, lower
        )
        parse[surface.pixel] = np.where(hidden.reshape(-1)[surface.pixel] > PIXEL_COVERED, 0, classes)
        region[surface.pixel] = (
            self.model.region.numpy()[self.model.triangles[:, 0].numpy()][surface.triangle] + 1
        )
        parts = np.zeros(size * size, np.uint8)
        parts[surface.pixel] = part_samples(
            self.parse, classes, self.beard, self.plan.hair_of(b), values[:, :3], surface.triangle
        )
        maps = (depth, parse, region, parts)
        depth, parse, region, parts = (m.reshape(size, size) for m in maps)
        return depth, normals.reshape(size, size, 3), parse, region, parts


def _of_pixels(samples: np.ndarray) -> np.ndarray:
    """Mean [H, W] of the samples of each pixel."""
    return average_blocks(torch.from_numpy(samples)[..., None], SUPERSAMPLE)[..., 0].numpy()


def _face_key(state: SceneState) -> bytes:
    """What the shape of one view of a subject depends on."""
    joints = b"" if state.joints is None else state.joints.numpy().tobytes()
    return state.expression.numpy().tobytes() + joints


def subject_hair(model: FaceModel, recipe: SynthRecipe, plan: SubjectPlan, b: int = 0) -> HairShell | None:
    """The hair of picture b over the scalp of the head without expression, head frame; None for a bald
    one."""
    look = plan.hair_of(b)
    if look.bald:
        return None
    rng = stream(recipe, plan.index, "shell", None if plan.hairs is None else b)
    head = _turned(model, plan.state.select([b]), plan.neutral)
    shell = hair_shell(head_map(model), (head - model.mean).double().numpy(), look, rng)
    return shell if len(shell.triangles) else None


def plan_vertices(model: FaceModel, plan: SubjectPlan, state: SceneState) -> Tensor:
    """Head-frame vertices [V, 3] of one view; what `state.vertices` gives, without the identity's part
    again."""
    moved = state.expression[0] @ model.expression_basis.reshape(model.num_expression, -1)
    return _turned(model, state, plan.neutral + moved.reshape(-1, 3))


def _turned(model: FaceModel, state: SceneState, shaped: Tensor) -> Tensor:
    """Vertices [V, 3] as the joints of one view carry them."""
    identity, expression, joints = state.coefficients()
    if joints is None or not isinstance(model, SkinnedModel):
        return shaped
    return model.skinning.posed(shaped[None], Bones.of(model, identity, expression, joints))[0]


def _landmarks(model: FaceModel, state: SceneState) -> tuple[np.ndarray, np.ndarray]:
    """[68, 2] px and depth [68] mm of one view, from float64."""

    def double(x: Tensor) -> np.ndarray:
        return x.double().numpy()

    head = double(model.landmark_basis.points(*state.coefficients())[0])
    placed = head @ double(state.pose.rotation[0]).T + double(state.pose.translation[0])
    return placed[:, :2] / placed[:, 2:] * double(state.camera.focal) + double(
        state.camera.principal[0]
    ), placed[:, 2]
