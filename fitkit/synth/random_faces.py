"""Rendered photos of random people with exact 68 landmarks, to train and to test landmark networks.

A random member of a face model, with painted skin and a shell of hair, is lit and photographed by the
building blocks of `synth.studio`; then come glasses, things in front of it, and what a camera does to a
picture. Everything follows from the seed. See `synth.shards` for many of them in files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import torch
from torch import Tensor

from fitkit.errors import InputError
from fitkit.geometry.normals import vertex_normals
from fitkit.io.options import Degrees, Range, Share
from fitkit.models.coefficients import Coefficients
from fitkit.models.face_model import FaceModel
from fitkit.render.rasterizer import pick_backend, rasterize
from fitkit.render.shading import Surface, average_blocks
from fitkit.scene.pose import yaw_pitch_roll
from fitkit.scene.state import SceneState
from fitkit.synth.paint import (
    HairLook,
    HairShell,
    HeadMap,
    SkinLook,
    hair_shell,
    hairline_margin,
    head_map,
    lamp_reaches,
    look_up,
    map_place,
    paint_eyes,
    paint_skin,
)
from fitkit.synth.photo_effects import background, camera, occluder, random_color
from fitkit.synth.studio import Scene, head_shot_state, light

NEAREST_MM, FARTHEST_MM = 250.0, 6000.0  # depth maps of 16 bits in 0.1 mm end at 6.5 m
Distance = Annotated[float, Range(NEAREST_MM, FARTHEST_MM)]
Strength = Annotated[float, Range(0.0, 100.0)]
SUPERSAMPLE = 2
# A landmark may lie this far behind the nearest surface of its sample: surfaces are seen at a slant.
VISIBLE_MM = 5.0
OUTLINE_YAW = 10.0  # degrees: below, the jaw's outline is the jaw
OUTLINE_HIDDEN_MM = 3.0  # a jaw point this far behind the face's own surface is hidden
HAIR_NEARER_MM = 1.5  # a fading edge of hair that lies on the skin must not fall behind it
COVERED = 0.5  # share of its sample that something in front must cover to hide a landmark


@dataclass(frozen=True)
class FaceVariation:
    """How much random faces differ. Ranges are (least, most), drawn evenly unless said otherwise; shares are
    probabilities.

    Pose and camera: yaw: most in degrees; frontal: share of faces drawn from a normal distribution of 18
    degrees instead of evenly over +-yaw; pitch, roll: most in degrees (normal with half of it, cut);
    distance: mm, log-even, which sets the perspective; fill: size of the picture over the larger side of the
    landmark box; shift: most shift of that box's middle over the size of the picture; cut: share of faces
    that are shifted three times as far, beyond the edge.
    Shape: identity: range of the standard deviation of the coefficients, cut at 2.7; neutral: share without
    expression; expression: range of the strength of the shapes that are on, or of the standard deviation of
    Gaussian coefficients, and of joints, over the model's; asymmetry: most difference between the sides.
    Light: ambient, lamp: strengths; lamp_share: share of faces with a lamp; color_cast: most log change of a
    channel; gloss: strength of the lamp's highlight;
    exposure: mean linear brightness of the face; adapt: 1 = exposed for the face alone, 0 = for a mean face.
    Person: melanin: 0 light to 1 dark; then shares: stubble, beard, make_up, freckles, moles, bald,
    long_hair, fringe, gray, hat. In front: glasses, dark_glasses, occluded: shares; occluders: most of them.
    Camera: noise: sRGB standard deviation; blur: px; motion: share and most length in px; jpeg: quality,
    jpeg_share; reduce: enlarged from a smaller picture, reduce_share; monochrome: share; backgrounds: folder
    of pictures or None.
    """

    yaw: Degrees = 90.0
    frontal: Share = 0.45
    pitch: Degrees = 35.0
    roll: Degrees = 25.0
    distance: tuple[Distance, Distance] = (350.0, 2500.0)
    fill: tuple[Annotated[float, Range(1.0, 100.0)], Annotated[float, Range(1.0, 100.0)]] = (1.25, 1.7)
    shift: Annotated[float, Range(0.0, 10.0)] = 0.05
    cut: Share = 0.06
    identity: tuple[Strength, Strength] = (0.7, 1.25)
    neutral: Share = 0.15
    expression: tuple[Strength, Strength] = (0.1, 1.0)
    asymmetry: Share = 0.35
    ambient: tuple[Strength, Strength] = (0.15, 0.9)
    lamp: tuple[Strength, Strength] = (0.15, 1.6)
    lamp_share: Share = 0.75
    color_cast: Annotated[float, Range(0.0, 3.0)] = 0.11
    gloss: tuple[Strength, Strength] = (0.0, 0.16)
    exposure: tuple[Annotated[float, Range(1e-06, 10.0)], Annotated[float, Range(1e-06, 10.0)]] = (0.10, 0.48)
    adapt: Share = 0.65
    melanin: tuple[Share, Share] = (0.0, 1.0)
    stubble: Share = 0.25
    beard: Share = 0.22
    make_up: Share = 0.3
    freckles: Share = 0.2
    moles: Share = 0.35
    bald: Share = 0.10
    long_hair: Share = 0.42
    fringe: Share = 0.35
    gray: Share = 0.15
    hat: Share = 0.07
    glasses: Share = 0.17
    dark_glasses: Share = 0.05
    occluded: Share = 0.25
    occluders: Annotated[int, Range(0, 1000)] = 2
    noise: tuple[Share, Share] = (0.0, 0.04)
    blur: tuple[Annotated[float, Range(0.0, 100.0)], Annotated[float, Range(0.0, 100.0)]] = (0.0, 1.3)
    motion: tuple[Share, Annotated[float, Range(0.0, 1000.0)]] = (0.12, 6.0)
    jpeg: tuple[Annotated[float, Range(1.0, 100.0)], Annotated[float, Range(1.0, 100.0)]] = (30.0, 96.0)
    jpeg_share: Share = 0.6
    reduce: tuple[Annotated[float, Range(1.0, 100.0)], Annotated[float, Range(1.0, 100.0)]] = (1.2, 2.5)
    reduce_share: Share = 0.2
    monochrome: Share = 0.05
    backgrounds: str | Path | None = None


@dataclass(frozen=True)
class RandomFace:
    """image: uint8 [S, S, 3] RGB. landmarks: float32 [68, 2] px, fixed points of the model, hidden ones
    included, pixel (0, 0) = centre of the top-left pixel. visible: bool [68], inside the picture and covered
    neither by the head itself nor by hair, glasses or an occluder. outline: float32 [17, 2] px, the jaw
    points as annotators of photos set them: on the side that is turned away, hidden ones lie on the visible
    contour of the face instead. yaw_pitch_roll: float32 [3] degrees, signs as `scene.pose.yaw_pitch_roll`."""

    image: np.ndarray
    landmarks: np.ndarray
    visible: np.ndarray
    outline: np.ndarray
    yaw_pitch_roll: np.ndarray


def _streams(seed: int) -> dict[str, np.random.Generator]:
    """Independent random numbers for each concern: a change of one leaves the others as they were."""
    names = ("state", "expression", "skin", "hair", "light", "front", "background", "camera")
    return {
        n: np.random.default_rng(s) for n, s in zip(names, np.random.SeedSequence(seed).spawn(len(names)))
    }


def face_state(
    model: FaceModel, seed: int, size: int = 160, variation: FaceVariation = FaceVariation()
) -> SceneState:
    """The geometry of `random_face`: one view whose camera shows the landmark box as wide as asked for; no
    illumination."""
    streams = _streams(seed)
    rng = streams["state"]
    if rng.random() < variation.frontal:
        yaw = float(np.clip(rng.normal() * 18, -variation.yaw, variation.yaw))
    else:
        yaw = rng.uniform(-1, 1) * variation.yaw
    pitch, roll = (
        float(np.clip(rng.normal() * most / 2, -most, most)) for most in (variation.pitch, variation.roll)
    )
    identity = np.clip(rng.normal(size=model.num_identity) * rng.uniform(*variation.identity), -2.7, 2.7)
    gaze = random_gaze(rng)
    expression = random_expression(streams["expression"], model.coefficients["expression"], gaze, variation)
    distance = np.exp(rng.uniform(*np.log(variation.distance)))
    state = head_shot_state(
        model,
        torch.from_numpy(identity).float(),
        torch.from_numpy(expression).float()[None],
        torch.tensor([[yaw, pitch, roll]], dtype=torch.float32),
        (size, size),
        distance=float(distance),
    )
    points = _landmarks(model, state).double().numpy()
    low, high = points.min(0), points.max(0)
    wanted = size / rng.uniform(*variation.fill)
    far = 3.0 if rng.random() < variation.cut else 1.0
    middle = (size - 1) / 2 + rng.uniform(-1, 1, 2) * variation.shift * far * size
    scale = wanted / float((high - low).max())
    offset = (low + high) / 2 - middle / scale
    return replace(
        state,
        camera=state.camera.scaled(torch.tensor([scale]).float(), torch.from_numpy(offset)[None].float()),
    )


def _landmarks(model: FaceModel, state: SceneState) -> Tensor:
    """[68, 2] px."""
    head = model.landmark_basis.points(*state.coefficients())
    return state.camera.project(state.pose.apply(head))[0][0]


def random_gaze(rng: np.random.Generator) -> np.ndarray:
    """Degrees to the subject's left and up, [2]."""
    return np.clip(rng.normal(size=2) * [12, 8], [-30, -22], [30, 22])


def random_expression(
    rng: np.random.Generator, meaning: Coefficients, gaze: np.ndarray, variation: FaceVariation
) -> np.ndarray:
    """Coefficients [K_ex]: of blend shapes some groups that belong together, with sides that differ, in [0,
    1]; Gaussian ones as they are spread."""
    if meaning.sigma is not None:
        if rng.random() < variation.neutral:
            return np.zeros(meaning.size)
        sigmas = np.clip(rng.normal(size=meaning.size) * rng.uniform(*variation.expression), -2.7, 2.7)
        return sigmas * meaning.sigma.double().numpy()
    on: dict[str, float] = {}

    def strength(power: float = 1.0) -> float:
        low, high = variation.expression
        return low + (high - low) * rng.random() ** power

    def pair(name: str, value: float) -> None:
        tilt = rng.uniform(-1, 1) * variation.asymmetry * (3 if rng.random() < 0.15 else 1)
        for side, factor in (("_L", 1 + min(0, tilt)), ("_R", 1 - max(0, tilt))):
            on[name + side] = value * max(0.0, factor)

    if rng.random() >= variation.neutral:
        if rng.random() < 0.45:
            on["jawOpen"] = strength(1.6)
        if rng.random() < 0.12:
            on[str(rng.choice(["jawLeft", "jawRight", "jawForward"]))] = 0.7 * strength()
        mouth = rng.choice(
            ["none", "smile", "pucker", "frown", "stretch", "press", "sneer", "mixed"],
            p=[0.15, 0.33, 0.12, 0.08, 0.08, 0.08, 0.06, 0.1],
        )
        if mouth in ("smile", "mixed"):
            value = strength(0.8)
            pair("mouthSmile", value)
            pair("cheekSquint", 0.6 * value * rng.random())
            if rng.random() < 0.5:
                pair("mouthUpperUp", 0.6 * strength())
            if rng.random() < 0.3:
                pair("mouthDimple", strength())
        if mouth in ("pucker", "mixed") and not (mouth == "mixed" and rng.random() < 0.6):
            on["mouthPucker" if rng.random() < 0.6 else "mouthFunnel"] = strength(0.9)
        if mouth == "frown":
            pair("mouthFrown", strength())
            on["mouthShrugLower"] = 0.8 * rng.random()
        if mouth == "stretch":
            pair("mouthStretch", strength())
            pair("mouthLowerDown", strength())
        if mouth == "press":
            pair("mouthPress", strength())
            on["mouthRollLower"], on["mouthRollUpper"] = 0.7 * rng.random(), 0.7 * rng.random()
        if mouth == "sneer":
            pair("noseSneer", strength())
            pair("mouthUpperUp", strength())
        if rng.random() < 0.12:
            on[str(rng.choice(["mouthLeft", "mouthRight"]))] = strength()
        if rng.random() < 0.08:
            pair("cheekPuff", strength())
        brows = rng.choice(["none", "up", "down", "sad", "outer"], p=[0.4, 0.25, 0.2, 0.08, 0.07])
        if brows in ("up", "sad"):
            pair("browInnerUp", strength())
        if brows in ("up", "outer"):
            pair("browOuterUp", strength())
        if brows == "down":
            pair("browDown", strength())
        eyes = rng.choice(
            ["none", "blink", "half", "wide", "squint", "wink"], p=[0.42, 0.14, 0.14, 0.1, 0.14, 0.06]
        )
        if eyes == "blink":
            on["eyeBlink_L"] = on["eyeBlink_R"] = rng.uniform(0.8, 1.0)
        if eyes == "half":
            pair("eyeBlink", rng.uniform(0.1, 0.7))
        if eyes == "wide":
            pair("eyeWide", strength())
        if eyes == "squint":
            pair("eyeSquint", strength())
        if eyes == "wink":
            on["eyeBlink" + str(rng.choice(["_L", "_R"]))] = rng.uniform(0.8, 1.0)
    # Lids follow the eyes; 28 degrees is about what the full shapes show.
    across, up = gaze / 28
    for side, sign in (("_L", 1), ("_R", -1)):
        room = 1 - on.get("eyeBlink" + side, 0.0)
        on["eyeLookOut" + side], on["eyeLookIn" + side] = max(0, across * sign), max(0, -across * sign)
        on["eyeLookUp" + side], on["eyeLookDown" + side] = max(0, up) * room, max(0, -up) * room
        if "eyeSquint" + side in on:
            on["eyeSquint" + side] *= room
    return np.array([min(1.0, on.get(n, 0.0)) for n in meaning.names])


def random_joints(rng: np.random.Generator, meaning: Coefficients, variation: FaceVariation) -> np.ndarray:
    """Rotation vectors [J, 3] rad of a model's joints, as they are spread."""
    if rng.random() < variation.neutral:
        return np.zeros((meaning.size // 3, 3))
    sigmas = np.clip(rng.normal(size=meaning.size) * rng.uniform(*variation.expression), -2.7, 2.7)
    return (sigmas * meaning.unit(torch.zeros(1)).double().numpy()).reshape(-1, 3)


def random_person(rng: np.random.Generator, variation: FaceVariation) -> SkinLook:
    """Skin, lips, brows, beard and make-up."""
    low, high = variation.melanin
    # The light half of the scale holds more of the tones that look different.
    dark = low + (high - low) * rng.random() ** 1.4
    # Log-linear between light and dark skin, then more or less blood; after measured skin reflectances.
    skin = np.exp(
        (1 - dark) * np.log([0.62, 0.41, 0.32]) + dark * np.log([0.065, 0.034, 0.021]) + rng.normal() * 0.12
    )
    skin = skin * np.exp(
        rng.normal() * np.array([0.03, -0.07, -0.05]) + rng.normal() * np.array([0.02, 0.01, -0.09])
    )
    hair = _hair_color(rng, dark)
    make_up = rng.random() < variation.make_up
    lips = skin * np.array([rng.uniform(0.75, 1.1), rng.uniform(0.40, 0.68), rng.uniform(0.42, 0.75)])
    lip_strength = rng.uniform(0.6, 1.0)
    if make_up and rng.random() < 0.7:
        lips = (
            np.array([0.40, 0.07, 0.08])
            * (0.35 + 0.65 * (1 - dark))
            * np.exp(rng.normal(size=3) * [0.35, 0.5, 0.5])
        )
        lip_strength = rng.uniform(0.5, 0.95)
    bearded = not make_up and rng.random() < variation.beard / max(1e-6, 1 - variation.make_up)
    stubble = not make_up and rng.random() < variation.stubble / max(1e-6, 1 - variation.make_up)
    irises = np.array([(0.06, 0.03, 0.015), (0.11, 0.06, 0.03), (0.10, 0.14, 0.20), (0.12, 0.14, 0.07)])
    iris = irises[rng.choice(4, p=[0.4, 0.3, 0.18, 0.12] if dark < 0.4 else [0.75, 0.25, 0, 0])]
    return SkinLook(
        skin=skin,
        lips=lips.clip(0.01, 0.9),
        lip_strength=lip_strength,
        hair=hair,
        brow_color=np.minimum(hair, 0.25) * rng.uniform(0.3, 0.9),
        iris=iris * np.exp(rng.normal() * 0.25),
        blotch=rng.uniform(0.02, 0.09),
        red=rng.uniform(0, 0.85) * (1 - 0.4 * dark),
        freckles=int(rng.integers(40, 300)) if rng.random() < variation.freckles else 0,
        freckle_depth=rng.uniform(0.15, 0.6),
        moles=int(rng.integers(1, 9)) if rng.random() < variation.moles else 0,
        brow=rng.uniform(0.35, 1.1),
        brow_width=rng.uniform(0.65, 1.35),
        brow_drop=rng.uniform(-0.3, 1.2),
        stubble=rng.uniform(0.1, 0.6) if stubble else 0.0,
        beard=rng.uniform(0.4, 1.0) if bearded else 0.0,
        beard_area=str(rng.choice(["beard", "goatee", "moustache"], p=[0.6, 0.22, 0.18])),
        eye_shadow=np.array([random_color(rng) * 0.6, skin * [0.7, 0.5, 0.5]][int(rng.random() < 0.6)]),
        eye_shadow_strength=rng.uniform(0.1, 0.7) if make_up else 0.0,
        liner=rng.uniform(0.4, 1.0) if make_up else rng.uniform(0, 0.5),
        pore=rng.uniform(0.0, 0.05),
        tired=rng.uniform(0, 0.3),
        age=rng.uniform(0, 0.5) * rng.random() + (rng.random() < 0.15) * 0.3,
        lid_crease=rng.uniform(0, 0.6),
    )


def _hair_color(rng: np.random.Generator, dark: float) -> np.ndarray:
    palette = np.array(
        [
            (0.010, 0.008, 0.007),
            (0.035, 0.020, 0.012),
            (0.10, 0.055, 0.028),
            (0.30, 0.19, 0.085),
            (0.20, 0.065, 0.022),
            (0.42, 0.40, 0.38),
        ]
    )
    share = (
        np.array([0.25, 0.25, 0.2, 0.15, 0.06, 0.09])
        if dark < 0.35
        else np.array([0.65, 0.22, 0.03, 0.02, 0.01, 0.07])
    )
    return palette[rng.choice(len(palette), p=share / share.sum())] * np.exp(rng.normal() * 0.3)


def random_hair(rng: np.random.Generator, person: SkinLook, variation: FaceVariation) -> HairLook:
    """Hair on the head, or a cap."""
    long = rng.random() < variation.long_hair
    if rng.random() < variation.hat:  # a cap of wool is a shell that begins lower
        return HairLook(
            random_color(rng),
            thickness=rng.uniform(5, 18),
            recede=rng.uniform(-26, -5),
            length=0.0,
            open_angle=90.0,
            fringe=None,
            fringe_width=0.0,
            fringe_middle=0.0,
            curl=0.0,
            gray=0.0,
            ragged=0.2,
        )
    return HairLook(
        color=person.hair,
        thickness=rng.uniform(6, 30) if long else rng.uniform(1, 30) * rng.uniform(0.3, 1),
        recede=rng.normal() * 5 + (rng.random() < 0.15) * 14,
        length=rng.uniform(10, 230) if long else 0.0,
        open_angle=rng.uniform(50, 100),
        fringe=rng.uniform(52, 88) if rng.random() < variation.fringe else None,
        fringe_width=rng.uniform(25, 60),
        fringe_middle=rng.normal() * 14,
        curl=rng.uniform(0, 1) ** 2,
        gray=rng.uniform(0.2, 1) if rng.random() < variation.gray else 0.0,
        ragged=rng.uniform(1, 8),
        bald=rng.random() < variation.bald,
    )


def grown_on(head: HeadMap, hair: HairLook) -> HairLook:
    """The hair, or none on a model that has no scalp."""
    return hair if head.has_scalp else replace(hair, bald=True)


def is_cap(look: HairLook) -> bool:
    """Whether `random_hair` drew a cap."""
    return look.ragged < 0.5  # hair has at least 1


def random_scene(rng: np.random.Generator, variation: FaceVariation) -> Scene:
    """Light of the surroundings and of a lamp."""
    ambient = rng.uniform(*variation.ambient)
    cast = np.exp(rng.uniform(-1, 1, 3) * variation.color_cast)
    sh = np.zeros((9, 3))
    sh[0] = ambient / 0.28209479177387814
    # Order y, z, x: more often from above and in front.
    turn = rng.normal(size=3) * [0.8, 0.9, 1.0] + [0.5, 0.5, 0]
    turn *= rng.uniform(0.05, 0.6) / np.linalg.norm(turn)
    sh[1:4] = turn[:, None] * ambient / 0.48860251190291992 * np.exp(rng.normal(size=(3, 3)) * 0.12)
    sh[4:] = rng.normal(size=(5, 1)) * 0.10 * ambient * np.exp(rng.normal(size=(5, 3)) * 0.2)
    lamp = rng.normal(size=3) * [1.0, 0.7, 0.6] + [0, 0.45, 0.7]
    strength = rng.uniform(*variation.lamp) if rng.random() < variation.lamp_share else 0.0
    warm = rng.normal() * variation.color_cast
    return Scene(
        torch.from_numpy(sh * cast).float(),
        lamp=(float(lamp[0]), float(lamp[1]), float(lamp[2])),
        lamp_strength=strength,
        lamp_color=(float(np.exp(warm)), 1.0, float(np.exp(-warm))),
        gloss=float(rng.uniform(*variation.gloss) * min(1.0, strength + 0.2)),
        shininess=float(rng.uniform(8, 45)),
        noise=0.0,
    )


class _Layers:
    """The picture so far at `SUPERSAMPLE` samples per pixel side: rgb [H, H, 3] linear, depth [H, H] mm (far
    = nothing)."""

    def __init__(self, ground: np.ndarray):
        self.rgb = ground
        self.depth = np.full(ground.shape[:2], 1e9, np.float32)

    def put(
        self, surface: Surface, rgb: np.ndarray, depth: np.ndarray, alpha: np.ndarray | None = None
    ) -> None:
        """Samples of a surface, where they are nearer than what is there."""
        pixel = surface.pixel.numpy()
        rows, far = self.rgb.reshape(-1, 3), self.depth.reshape(-1)
        nearer = depth < far[pixel]
        alpha = np.ones(len(pixel), np.float32) if alpha is None else alpha
        at, a = pixel[nearer], alpha[nearer][:, None]
        rows[at] = rows[at] * (1 - a) + rgb[nearer] * a
        solid = alpha[nearer] > COVERED
        far[at[solid]] = depth[nearer][solid]


def _front_facing(normal: Tensor) -> Tensor:
    """Camera-frame normals [N, 3] turned towards the camera, then y up and z towards the viewer."""
    normal = torch.nn.functional.normalize(normal, dim=-1)
    # 0.15: smooth normals lean over at the silhouette.
    normal = torch.where(normal[:, 2:] > 0.15, -normal, normal)
    return normal * torch.tensor([1.0, -1.0, -1.0])


@torch.no_grad()
def random_face(
    model: FaceModel, seed: int, size: int = 160, variation: FaceVariation = FaceVariation()
) -> RandomFace:
    """A random person of the model in a square picture, with exact landmarks; the same for the same
    arguments.

    Args:
        model: with the 68 landmarks; its own albedo is not used, all colours are painted here.
        seed: 0 or more; size: px, the face fills it as `variation.fill` says.
    Raises:
        InputError: seed or size out of range, or the folder of backgrounds is missing.
    """
    if size < 32 or seed < 0:
        raise InputError(
            f"random_face: expected size of 32 px or more and a seed of 0 or more, got size {size} and seed "
            f"{seed}"
        )
    if variation.backgrounds is not None and not Path(variation.backgrounds).is_dir():
        raise InputError(f"{variation.backgrounds}: no such folder of background pictures")
    streams = _streams(seed)
    state = face_state(model, seed, size, variation)
    fine = size * SUPERSAMPLE
    head = head_map(model)
    person = random_person(streams["skin"], variation)
    hair = grown_on(head, random_hair(streams["hair"], person, variation))
    scene = random_scene(streams["light"], variation)
    shape = model.vertices(state.identity, state.expression)
    points = state.pose.apply(shape)[0]
    marks = _landmarks(model, state).double().numpy()
    lens = state.camera.resized(1 / SUPERSAMPLE)
    clip = lens.clip(points[None])[0]

    ground = background(
        streams["background"], fine, None if variation.backgrounds is None else Path(variation.backgrounds)
    )
    add_shoulders(ground, streams["background"], state, person)
    layers = _Layers(ground)
    triangles, which = _seen_triangles(clip, model.triangles, fine)
    surface = Surface.visible(clip, triangles, (fine, fine))
    gaze = np.zeros(2) if head.eyes_turn else gaze_of(model, state)
    rgb, depth, pale = _head_samples(
        model, head, surface, triangles, which, points, person, hair, scene, gaze, streams
    )
    # Exposed partly for this face, partly for a mean one; `pale` is what a mean skin would show in this
    # light.
    rng = streams["camera"]
    level = float(rgb.mean()) ** variation.adapt * max(pale, 1e-3) ** (1 - variation.adapt)
    gain = rng.uniform(*variation.exposure) / max(level, 1e-3)
    layers.put(surface, rgb * gain, depth)
    bare_depth = layers.depth.copy()
    if not hair.bald:
        _add_hair(layers, model, head, state, shape, hair, scene, gain, lens, streams["hair"])
    cover = np.zeros((fine, fine), np.float32)
    front = streams["front"]
    if front.random() < variation.glasses + variation.dark_glasses:
        dark = front.random() < variation.dark_glasses / (variation.glasses + variation.dark_glasses)
        add_glasses(layers, cover, front, model, state, lens, dark)
    if front.random() < variation.occluded:
        box = np.concatenate([marks.min(0), marks.max(0)]) * SUPERSAMPLE
        for _ in range(front.integers(1, variation.occluders + 1)):
            color, mask = occluder(front, fine, box, person.skin * gain * 0.8)
            layers.rgb += mask[..., None] * (color - layers.rgb)
            cover = np.maximum(cover, mask)

    linear = average_blocks(torch.from_numpy(layers.rgb), SUPERSAMPLE).numpy()
    image = _photo(linear, rng, variation, size)
    depths = state.pose.apply(model.landmark_basis.points(state.identity, state.expression))[0, :, 2].numpy()
    visible = visible_landmarks(marks, depths, layers.depth, cover)
    outline = outline_points(model, state, size, bare_depth)
    angles = _angles(state)
    return RandomFace(image, marks.astype(np.float32), visible, outline.astype(np.float32), angles)


def _angles(state: SceneState) -> np.ndarray:
    return yaw_pitch_roll(state.pose.rotation)[0].numpy()


def gaze_of(model: FaceModel, state: SceneState) -> np.ndarray:
    """Degrees to the subject's left and up that the lids' shapes stand for, [2]."""
    on = dict(zip(model.expression_names, state.expression[0].tolist()))
    across = on.get("eyeLookOut_L", 0.0) - on.get("eyeLookIn_L", 0.0)
    up = max(on.get("eyeLookUp_L", 0), on.get("eyeLookUp_R", 0)) - max(
        on.get("eyeLookDown_L", 0), on.get("eyeLookDown_R", 0)
    )
    return 28 * np.array([across, up])


def _seen_triangles(clip: Tensor, triangles: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Those that show in the picture [M, 3], and their numbers [M]: what follows costs much less for them
    alone."""
    backend = import_module(f"fitkit.render.backends.{pick_backend(clip.device)}_backend")
    index = backend.winning_triangles(clip[None], triangles, (size, size))
    which = index[index >= 0].unique()
    return triangles[which], which


def _head_samples(
    model: FaceModel,
    head: HeadMap,
    surface: Surface,
    triangles: Tensor,
    which: Tensor,
    points: Tensor,
    person: SkinLook,
    hair: HairLook,
    scene: Scene,
    gaze: np.ndarray,
    streams: dict,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Linear RGB [N, 3], depth [N] mm, and the mean brightness of a mean skin in the same light."""
    table = torch.cat(
        [model.mean, vertex_normals(points[None], model.triangles)[0], points, head.open_sky], -1
    )
    values = surface.interpolate(table[triangles])
    rest, normal, place, sky = (
        values[:, :3].numpy(),
        _front_facing(values[:, 3:6]),
        values[:, 6:9],
        values[:, 9:],
    )
    number = which[surface.triangle].numpy()
    rng = streams["skin"]
    skin_map = paint_skin(head, person, rng)
    albedo, shine = head_colors(
        head, skin_map, person, hair, rest, number, gaze, float(rng.uniform(0.25, 0.6))
    )
    lamp = torch.nn.functional.normalize(torch.tensor(scene.lamp), dim=0)
    reaches = None
    if scene.lamp_strength > 0.25:
        reaches = lamp_reaches(points, head.outer, lamp * torch.tensor([1.0, -1.0, -1.0]), place)
    rgb = light(
        torch.from_numpy(albedo).float(), normal, scene, sky, reaches, torch.from_numpy(shine).float()
    )
    pale = light(torch.full((1, 3), 0.3), torch.tensor([[0.0, 0.0, 1.0]]), scene)
    return rgb.numpy(), place[:, 2].numpy(), float(pale.mean())


def head_colors(
    head: HeadMap,
    skin_map: np.ndarray,
    person: SkinLook,
    hair: HairLook,
    rest: np.ndarray,
    number: np.ndarray,
    gaze: np.ndarray,
    pupil: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Linear RGB [N, 3] and factor on the gloss [N] of samples of the head.

    Args:
        skin_map: from `paint_skin`; rest: [N, 3] mm, where on the mean head the samples lie; number: [N]
            their triangles;
        gaze: [2] degrees to the subject's left and up; pupil: its radius over that of the iris.
    """
    kind = head.kind[number]
    albedo = look_up(skin_map, map_place(rest))
    if not hair.bald:
        strength = scalp_cover(rest, hair) * (kind == 0)
        albedo += strength[:, None] * (hair.color.astype(np.float32) - albedo)
    else:
        fade = np.clip(hairline_margin(rest, -4.0) / 25, 0, 1) * (kind == 0) * 0.35 * person.stubble
        albedo += fade[:, None] * (hair.color.astype(np.float32) - albedo)
    eye = kind == 1
    if eye.any():
        across, up = np.radians(gaze)
        towards = np.array([np.sin(across) * np.cos(up), np.sin(up), np.cos(across) * np.cos(up)])
        albedo[eye] = paint_eyes(rest[eye], head, person, towards, pupil)
    other = kind == 2
    albedo[other] = head.lining[number[other]]
    return albedo, np.where(
        eye, 0.7, np.where(other, 0.5, 0.6 + 0.8 * np.clip(1.2 - np.abs(rest[:, 0]) / 45, 0, 1))
    )


def scalp_cover(rest: np.ndarray, hair: HairLook) -> np.ndarray:
    """How far the hair hides the skin below the shell at places [..., 3] of the mean head, 0 to 0.92."""
    # Below the shell the scalp is as dark as the hair, and hair grows thinner towards its line.
    margin = hairline_margin(rest, hair.recede)
    out = np.zeros(margin.shape, margin.dtype)
    above = margin > 0
    place = rest[above]
    edge = margin[above] - 3 + 3 * np.sin(place[..., 0] * 0.9) * np.sin(place[..., 1] * 0.7)
    out[above] = np.clip(edge / 12, 0, 0.92)
    return out


def _add_hair(
    layers: _Layers,
    model: FaceModel,
    head: HeadMap,
    state: SceneState,
    shape: Tensor,
    look: HairLook,
    scene: Scene,
    gain: float,
    lens,
    rng: np.random.Generator,
) -> None:
    neutral = model.vertices(state.identity, torch.zeros_like(state.expression))[0]
    shell = hair_shell(head, (neutral - model.mean).double().numpy(), look, rng)
    if len(shell.triangles) == 0:
        return
    points = state.pose.apply(torch.from_numpy(shell.points).float()[None])[0]
    triangles = torch.from_numpy(shell.triangles)
    surface = Surface.visible(lens.clip(points[None])[0], triangles, layers.depth.shape)
    table = torch.cat(
        [
            vertex_normals(points[None], triangles)[0],
            points[:, 2:],
            torch.from_numpy(shell.inside).float()[:, None],
            torch.from_numpy(shell.place),
        ],
        -1,
    )
    values = surface.interpolate(table[triangles])
    albedo, alpha, shine = hair_colors(shell, look, values[:, 4].numpy(), values[:, 5:].numpy())
    normal = _front_facing(values[:, :3])
    depth = values[:, 3].numpy()
    rgb = light(torch.from_numpy(albedo), normal, hair_scene(scene, look), shine=torch.from_numpy(shine))
    layers.put(surface, rgb.numpy() * gain, depth - HAIR_NEARER_MM, alpha)


def hair_colors(
    shell: HairShell, look: HairLook, inside: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear RGB [N, 3], cover [N] and factor on the gloss [N] of samples of the shell, from its fields
    there."""
    texture = look_up(shell.texture, place)
    alpha = np.clip((inside + texture[:, 1] * 1.6) / 2.5 + 0.5, 0, 1).astype(np.float32)
    return look.color.astype(np.float32) * texture[:, :1], alpha, np.clip(texture[:, 0], 0, 2) ** 2 * 0.8


def hair_scene(scene: Scene, look: HairLook) -> Scene:
    """The scene for hair, which is lit softly: light passes between the strands."""
    return replace(
        scene,
        gloss=0.05 + 0.5 * float(look.color.mean()),
        shininess=9.0,
        lamp_strength=scene.lamp_strength * 0.85,
    )


def add_shoulders(
    ground: np.ndarray,
    rng: np.random.Generator,
    state: SceneState,
    person: SkinLook,
    samples: int = SUPERSAMPLE,
) -> dict[str, np.ndarray]:
    """Neck and clothes behind the head, drawn flat; in place. samples: of the ground per pixel side. Returns
    where each of the two was drawn, [H, W] bool."""
    fine, drawn = len(ground), {}
    base = state.pose.apply(torch.tensor([[[0.0, -80.0, 10.0]]]))[0, 0]
    side = [[46, -60], [50, 60], [110, 95], [190, 130], [230, 420]]  # x, y down from the neck, mm
    shape = np.array([[-x, y] for x, y in side] + side[::-1], float)
    shape[:, 0] *= rng.uniform(0.85, 1.2)

    def draw(name: str, outline: np.ndarray, color: np.ndarray) -> None:
        points = (
            torch.from_numpy(np.concatenate([outline, np.zeros((len(outline), 1))], 1)).float()
            + base
            + torch.tensor([0.0, 0.0, 30.0])
        )
        xy = (state.camera.project(points[None])[0][0].numpy() + 0.5) * samples - 0.5
        mask = np.zeros((fine, fine), np.uint8)
        cv2.fillPoly(mask, [np.round(xy.clip(-4000, 4000) * 8).astype(np.int32)], 255, cv2.LINE_AA, 3)
        soft = cv2.GaussianBlur(mask, (0, 0), 1.0 + fine / 200).astype(np.float32)[..., None] / 255
        ground[:] = ground * (1 - soft) + np.float32(color) * soft
        drawn[name] = mask > 127

    draw("neck", shape, person.skin * 0.25)
    collar = shape[2:-2].copy()
    collar = np.concatenate(
        [
            [[-52, 80 + rng.uniform(-25, 20)]],
            collar,
            [[52, 80 + rng.uniform(-25, 20)]],
            [[0, rng.uniform(80, 150)]],
        ]
    )
    draw("clothes", collar, random_color(rng) * 0.8)
    return drawn


def add_glasses(
    layers: _Layers,
    cover: np.ndarray,
    rng: np.random.Generator,
    model: FaceModel,
    state: SceneState,
    lens,
    dark: bool,
) -> None:
    """Rims, bridge and temples as lines at their places in space, hidden by what is nearer; in place."""
    still = state.replace(expression=torch.zeros_like(state.expression))
    face = model.landmark_basis.points(*still.coefficients())[0].double().numpy()
    wide, high = rng.uniform(22, 29), rng.uniform(15, 24)
    square = rng.uniform(2.0, 5.0)
    front = face[27, 2] + rng.uniform(2, 6)
    turn = np.linspace(0, 2 * np.pi, 48)
    unit = np.stack(
        [
            np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** (2 / square),
            np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** (2 / square),
        ],
        -1,
    )
    lines, rims = [], []
    for corner, ear, sign in ((slice(36, 42), face[0], -1), (slice(42, 48), face[16], 1)):
        middle = face[corner].mean(0)
        x = middle[0] + sign * 1.5 + unit[:, 0] * wide
        rim = np.stack([x, middle[1] - 2 + unit[:, 1] * high, front - 0.004 * x**2], -1)
        rims.append(rim)
        lines.append(rim)
        hinge = rim[np.argmax(rim[:, 0] * sign)] + [0, high * 0.3, 0]
        end = np.array([ear[0] * 1.06, hinge[1] + 1, ear[2] - 25])
        lines.append(hinge + np.linspace(0, 1, 30)[:, None] * (end - hinge))
    bridge = np.stack(
        [
            np.linspace(rims[0][:, 0].max(), rims[1][:, 0].min(), 9),
            face[27, 1] + 1 + 2 * np.sin(np.linspace(0, np.pi, 9)),
            np.full(9, front + 1.5),
        ],
        -1,
    )
    lines.append(bridge)

    def project(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        placed = state.pose.apply(torch.from_numpy(points).float()[None])
        return lens.project(placed)[0][0].numpy(), placed[0, :, 2].numpy()

    H = layers.depth.shape[0]

    def free(xy: np.ndarray, depth: np.ndarray) -> np.ndarray:
        at = np.round(xy).astype(int)
        ok = (at >= 0).all(1) & (at < H).all(1)
        at = at.clip(0, H - 1)
        return ok & (depth < layers.depth[at[:, 1], at[:, 0]] + 4)

    px_per_mm = float(lens.focal[0] / state.pose.translation[0, 2])
    thick = max(1, round(px_per_mm * rng.choice([rng.uniform(0.7, 1.6), rng.uniform(1.8, 4.5)])))
    color = random_color(rng) * rng.choice([0.15, 1.0])
    tint = np.full(3, rng.uniform(0.0, 0.03)) if dark else np.ones(3)
    opaque = rng.uniform(0.8, 1.0) if dark else rng.uniform(0.0, 0.15)
    for rim in rims:
        xy, depth = project(rim)
        mask = np.zeros((H, H), np.uint8)
        cv2.fillPoly(mask, [np.round(xy * 8).astype(np.int32)], 255, cv2.LINE_AA, 3)
        depth_ok = layers.depth > float(depth.mean()) - 12  # the nose may stand before the far lens
        glass = mask.astype(np.float32) / 255 * depth_ok
        y = np.linspace(1.0, 0.3, H, dtype=np.float32)[:, None]
        share = (glass * opaque * (1 if dark else y))[..., None]
        layers.rgb += share * ((tint * (0.3 if not dark else 1)).astype(np.float32) - layers.rgb)
        np.maximum(cover, glass * opaque, out=cover)
    frame = np.zeros((H, H), np.uint8)
    for line in lines:
        xy, depth = project(line)
        seen = free(xy, depth)
        for k in np.flatnonzero(seen[:-1] & seen[1:]):
            cv2.line(
                frame,
                tuple(int(v) for v in xy[k] * 8),
                tuple(int(v) for v in xy[k + 1] * 8),
                255,
                thick,
                cv2.LINE_AA,
                3,
            )
    mask = frame.astype(np.float32) / 255
    layers.rgb += mask[..., None] * (color.astype(np.float32) - layers.rgb)
    np.maximum(cover, mask, out=cover)


def _photo(linear: np.ndarray, rng: np.random.Generator, variation: FaceVariation, size: int) -> np.ndarray:
    return camera(linear, rng, **photo_look(rng, variation, size))


def photo_look(rng: np.random.Generator, variation: FaceVariation, size: int) -> dict:
    """What `photo_effects.camera` does to a picture of this size, drawn at random: its arguments by name."""
    scale = size / 160
    motion = rng.uniform(1.5, variation.motion[1]) * scale if rng.random() < variation.motion[0] else 0.0
    quality = int(rng.uniform(*variation.jpeg)) if rng.random() < variation.jpeg_share else None
    reduce = rng.uniform(*variation.reduce) if rng.random() < variation.reduce_share else 1.0
    low, high = variation.noise
    return {
        "noise": low + (high - low) * rng.random() ** 2.5,
        "blur_px": rng.uniform(*variation.blur) * rng.random() * scale,
        "motion_px": motion,
        "quality": quality,
        "reduce": reduce,
        "contrast": rng.uniform(0.8, 1.2),
        "saturation": 0.0 if rng.random() < variation.monochrome else rng.uniform(0.75, 1.45),
        "curve": rng.uniform(0.0, 0.8),
        "white": np.exp(rng.normal(size=3) * variation.color_cast / 3),
    }


def visible_landmarks(
    marks: np.ndarray, depths: np.ndarray, nearest: np.ndarray, cover: np.ndarray
) -> np.ndarray:
    """[68] bool from the depth of the picture's samples [H, H] mm and what covers them [H, H]."""
    H = len(nearest)
    size = H // SUPERSAMPLE
    inside = ((marks >= -0.5) & (marks <= size - 0.5)).all(1)
    at = np.round((marks + 0.5) * SUPERSAMPLE - 0.5).astype(int).clip(0, H - 1)
    # A point on the edge of the head may fall beside it: the deepest of the 3 x 3 samples decides, background
    # left out.
    deepest = np.zeros(len(marks))
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            x, y = (at[:, 0] + dx).clip(0, H - 1), (at[:, 1] + dy).clip(0, H - 1)
            value = nearest[y, x]
            deepest = np.maximum(deepest, np.where(value < 1e8, value, 0))
    return inside & (depths <= deepest + VISIBLE_MM) & (cover[at[:, 1], at[:, 0]] <= COVERED)


def outline_points(
    model: FaceModel, state: SceneState, size: int, depth: np.ndarray | None = None
) -> np.ndarray:
    """Jaw points [17, 2] px in the annotators' convention, one view.

    The hidden ones of the side that is turned away march outwards in the picture, at their height along the
    head's up axis, to the contour of the face without nose (landmark marching, Zhu et al., CVPR 2015, along
    lines of equal height in the picture instead of on the model, so that a point does not jump when it gets
    hidden in a view from above or below). `energies.landmarks` slides them on lines to the face centre; those
    end at the cheek, and in a profile the points would crowd there.

    Args:
        size: side of the picture, px; depth: [size * SUPERSAMPLE] * 2 mm, of the nearest surface of the head
            alone.
    """
    marks = _landmarks(model, state).double().numpy()
    depths = state.pose.apply(model.landmark_basis.points(*state.coefficients()))[0, :, 2].numpy()
    if depth is None:
        side = size * SUPERSAMPLE
        points = state.posed(model)
        drawn = rasterize(state.camera.resized(1 / SUPERSAMPLE).clip(points), model.triangles, (side, side))
        depth = torch.where(drawn.covered, drawn.depth, torch.full_like(drawn.depth, 1e9))[0].numpy()
    jaw = marks[:17].copy()
    yaw = float(_angles(state)[0])
    if abs(yaw) <= OUTLINE_YAW:
        return jaw
    H = len(depth)
    far = np.zeros(17, bool)
    far[slice(9, 17) if yaw > 0 else slice(0, 8)] = True
    at = np.round((jaw + 0.5) * SUPERSAMPLE - 0.5).astype(int)
    inside = ((at >= 0) & (at < H)).all(1)
    at = at.clip(0, H - 1)
    # Nothing was drawn outside the picture; points there march like their neighbours inside.
    hidden = far & np.where(
        inside, depths[:17] > depth[at[:, 1], at[:, 0]] + OUTLINE_HIDDEN_MM, abs(yaw) > 30
    )
    if not hidden.any():
        return jaw
    contour = face_contour(model, state, size)
    up = state.pose.rotation[0, :2, 1].double().numpy()
    up = up / max(float(np.linalg.norm(up)), 1e-6)
    outwards = np.array([-up[1], up[0]]) * np.sign(yaw)
    heights, reach = contour @ up, contour @ outwards
    for j in np.flatnonzero(hidden):
        level = np.abs(heights - jaw[j] @ up) <= 0.75
        if level.any():
            jaw[j] = contour[np.where(level, reach, -np.inf).argmax()]
        else:  # below the chin or above the forehead
            jaw[j] = contour[np.linalg.norm(contour - jaw[j], axis=1).argmin()]
    return jaw


CONTOUR_MARGIN = 0.5  # of the picture's size on each side


def face_contour(model: FaceModel, state: SceneState, size: int) -> np.ndarray:
    """Edge of the picture of the face without the nose, points [N, 2] px, half a sample apart or less; one
    view."""
    triangles = model.triangles[_face_without_nose(model)]
    pad = int(size * CONTOUR_MARGIN)
    lens = state.camera.scaled(torch.ones(1), torch.full((1, 2), -float(pad))).resized(1 / SUPERSAMPLE)
    points = state.posed(model)
    side = (size + 2 * pad) * SUPERSAMPLE
    covered = (
        rasterize(lens.clip(points), triangles, (side, side), backend=pick_backend(points.device))
        .covered[0]
        .numpy()
    )
    loops = cv2.findContours(covered.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
    edge = max(loops, key=len)[:, 0].astype(np.float64)
    return (edge + 0.5) / SUPERSAMPLE - 0.5 - pad


def _face_without_nose(model: FaceModel) -> Tensor:
    """[F] bool."""
    mean, marks = model.mean, model.landmarks.points(model.mean[None], model.triangles)[0]
    y = mean[:, 1]
    low, high = float(marks[33, 1]) - 3, float(marks[27, 1]) - 4
    # From the narrow bridge to the wings, which reach half as far again as the landmark below them.
    half = 7 + (1.6 * float(marks[35, 0]) - 7) * ((high - y) / (high - float(marks[30, 1]))).clamp(0, 1)
    nose = (y > low) & (y < high) & (mean[:, 0].abs() < half)
    keep = model.face & ~nose
    return keep[model.triangles].all(1)
