"""Synthetic subjects path-traced by Mitsuba 3: principled skin under pictures of surroundings. Needs the
extra fitkit[synth].

Geometry, cameras, paint and truth are those of `synth.subject`; only light and shading differ. Mitsuba is
imported when the first renderer is made and seen nowhere else. Source: Burley, "Physically based shading at
Disney", SIGGRAPH 2012 course, for the skin.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from fitkit.errors import InputError, MissingWeightsError
from fitkit.geometry.normals import vertex_normals
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.io.foreign import DATA_BYTES, foreign_file
from fitkit.models.face_model import FaceModel
from fitkit.synth.paint import MAP_SIZE, HairShell, head_map, map_place, paint_eyes, paint_skin
from fitkit.synth.random_faces import gaze_of, hair_colors, scalp_cover
from fitkit.synth.recipe import SynthRecipe
from fitkit.synth.studio import Scene
from fitkit.synth.subject import HeadRenderer, SubjectPlan, plan_vertices, stream, subject_hair

SURROUNDINGS = (".exr", ".hdr", ".jpg", ".jpeg", ".png")
STUDIO_SIZE = (128, 256)  # rows, columns of the procedural surroundings
LAMP_RADIUS = np.radians(14.0)  # of the soft box that stands for the scene's lamp
EYE_SIZE = 192  # px, texture of an eyeball's front
HAIR_FINER = 5  # cells per cell of the hair's grid
FROM_OPENCV = np.diag([-1.0, -1.0, 1.0])  # Mitsuba's camera: x left, y up, z forward


class MitsubaRenderer:
    """Pictures of a subject's head and hair, a `synth.subject.HeadRenderer`; deterministic by the recipe's
    seed."""

    def __init__(self, model: FaceModel, recipe: SynthRecipe):
        """
        Raises:
            MissingWeightsError: mitsuba is not installed. InputError: the folder of surroundings holds none.
        """
        if find_spec("mitsuba") is None:
            raise MissingWeightsError(
                "renderer 'mitsuba' is not installed here; install it with pip install 'fitkit[synth]', "
                "or take renderer 'own'"
            )
        import mitsuba

        # Compiled variants need an LLVM library or a GPU that may not be there, and give other bytes on other
        # machines.
        if mitsuba.variant() != "scalar_rgb":
            mitsuba.set_variant("scalar_rgb")
        self.mi, self.model, self.recipe, self.head = mitsuba, model, recipe, head_map(model)
        folder = recipe.path_tracing.environments
        self.surroundings = (
            sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SURROUNDINGS) if folder else []
        )
        if folder and not self.surroundings:
            raise InputError(
                f"{folder}: no pictures of surroundings here; expected {', '.join(SURROUNDINGS)}"
            )

    def __call__(self, plan: SubjectPlan, b: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Linear RGB [S, S, 3] of head and hair, their share of each pixel [S, S], and the surroundings
        behind [S, S, 3] or None."""
        mi, recipe = self.mi, self.recipe
        light, turn = self._light(plan, b)
        head_from_light = np.eye(4)
        head_from_light[:3, :3] = plan.scene_from_head[b].double().numpy().T @ turn
        scene = {
            "type": "scene",
            "integrator": {
                "type": "path",
                "max_depth": recipe.path_tracing.bounces + 1,
                "hide_emitters": True,
            },
            "sensor": self._sensor(plan, b),
            "light": {
                "type": "envmap",
                "bitmap": mi.Bitmap(light),
                "to_world": mi.ScalarTransform4f(head_from_light),
            },
            **self._meshes(plan, b),
        }
        seed = int(stream(recipe, plan.index, "tracing", b).integers(2**31))
        rgba = np.array(
            mi.render(mi.load_dict(scene), spp=recipe.path_tracing.samples, seed=seed), dtype=np.float32
        )
        alpha = rgba[..., 3].clip(0, 1)
        behind = None
        if stream(recipe, plan.index, "tracing").random() < recipe.path_tracing.visible:
            behind = self._behind(plan, b, light, head_from_light[:3, :3])
        return rgba[..., :3] / np.maximum(alpha, 1e-4)[..., None], alpha, behind

    def _sensor(self, plan: SubjectPlan, b: int) -> dict[str, Any]:
        mi, size, state = self.mi, self.recipe.size, plan.state
        rotation, translation = (x[b].double().numpy() for x in (state.pose.rotation, state.pose.translation))
        head_from_sensor = np.eye(4)
        head_from_sensor[:3, :3] = rotation.T @ FROM_OPENCV
        head_from_sensor[:3, 3] = -rotation.T @ translation
        view = 2 * np.degrees(np.arctan(size / 2 / float(state.camera.focal[b])))
        return {
            "type": "perspective",
            "fov": float(view),
            "fov_axis": "x",
            "near_clip": 10.0,
            "far_clip": 20000.0,
            "to_world": mi.ScalarTransform4f(head_from_sensor),
            "sampler": {"type": "independent"},
            "film": {
                "type": "hdrfilm",
                "width": size,
                "height": size,
                "pixel_format": "rgba",
                "component_format": "float32",
                "rfilter": {"type": "box"},
            },
        }

    # ---- surfaces, in the head frame ----

    def _meshes(self, plan: SubjectPlan, b: int) -> dict[str, Any]:
        head, model, recipe = self.head, self.model, self.recipe
        state = plan.state.select([b])
        vertices = plan_vertices(model, plan, state)
        normals = vertex_normals(vertices[None], model.triangles)[0].numpy()
        points, triangles, rest = vertices.numpy(), model.triangles.numpy(), model.mean.numpy()
        rng = stream(recipe, plan.index, "tracing")
        rng.random()  # whether the surroundings show
        roughness, specular = (
            float(rng.uniform(*span))
            for span in (recipe.path_tracing.roughness, recipe.path_tracing.specular)
        )
        place = map_place(rest)
        uv = (place + 0.5) / np.array([MAP_SIZE[1], MAP_SIZE[0]])
        skin = triangles[head.kind == 0]
        seam = np.ptp(uv[skin][..., 0], axis=1) > 0.5  # at the back of the head, where the map begins again
        uv = uv.clip(0.001, 0.999)
        paint = paint_skin(head, plan.person, stream(recipe, plan.index, "paint"))
        scalp = (
            np.zeros(len(points), np.float32)
            if plan.hair.bald
            else scalp_cover(rest, plan.hair).astype(np.float32)
        )
        surface = {
            "type": "principled",
            "base_color": self._texture(paint),
            "roughness": roughness,
            "specular": specular,
            "clearcoat": 0.08,
            "clearcoat_gloss": 0.4,
        }
        hair_color = {
            "type": "principled",
            "base_color": _rgb(plan.hair.color),
            "roughness": 0.7,
            "specular": 0.3,
        }
        covered = {
            "type": "blendbsdf",
            "weight": {"type": "mesh_attribute", "name": "vertex_scalp"},
            "skin": surface,
            "hair": hair_color,
        }
        out = {"skin": self._mesh("skin", points, skin[~seam], normals, covered, uv, {"vertex_scalp": scalp})}
        if seam.any():
            back = {
                "type": "principled",
                "base_color": _rgb(plan.person.skin if plan.hair.bald else plan.hair.color),
                "roughness": 0.7,
            }
            out["back"] = self._mesh("back", points, skin[seam], normals, back)
        gaze = np.zeros(2) if head.eyes_turn else gaze_of(model, state)
        for k, name in enumerate(("right", "left")):
            ball = triangles[(head.kind == 1) & ((rest[triangles].mean(1)[:, 0] > 0) == bool(k))]
            if len(ball):
                used = np.unique(ball)
                center, radius = (
                    head.eyes[k],
                    float(np.linalg.norm(rest[used] - head.eyes[k], axis=1).max()) * 1.02,
                )
                eye_uv = (rest - center)[:, :2] / radius * np.array([0.5, -0.5]) + 0.5
                wet = {
                    "type": "principled",
                    "base_color": self._texture(_eye(head, plan, center, radius, gaze)),
                    "roughness": 0.12,
                    "specular": 0.5,
                }
                out[f"eye_{name}"] = self._mesh(name, points, ball, normals, wet, eye_uv.clip(0, 1))
        other = head.kind == 2
        if other.any():
            wet = {
                "type": "principled",
                "base_color": {"type": "mesh_attribute", "name": "face_color"},
                "roughness": 0.35,
                "specular": 0.4,
            }
            out["lining"] = self._mesh(
                "lining", points, triangles[other], normals, wet, None, {"face_color": head.lining[other]}
            )
        shell = subject_hair(model, recipe, plan, b)
        hair = None if shell is None else self._hair(shell, plan)
        return out if hair is None else {**out, "hair": hair}

    def _hair(self, shell: HairShell, plan: SubjectPlan) -> Any:
        """The shell with its strands; its ragged edge is cut out of a finer grid, because light that passes
        through a half transparent surface would have to be found by chance and leave noise."""
        columns = self.head.scalp.shape[1]
        rows = len(shell.points) // columns
        height, width = (rows - 1) * HAIR_FINER + 1, (columns - 1) * HAIR_FINER + 1
        y, x = np.meshgrid(
            np.linspace(0, rows - 1, height, dtype=np.float32),
            np.linspace(0, columns - 1, width, dtype=np.float32),
            indexing="ij",
        )

        def finer(values: np.ndarray) -> np.ndarray:
            grid = np.ascontiguousarray(values.reshape(rows, columns, -1), np.float32)
            return cv2.remap(grid, x, y, cv2.INTER_LINEAR).reshape(height * width, -1)

        inside, place = finer(shell.inside)[:, 0], np.ascontiguousarray(finer(shell.place))
        color, alpha, _ = hair_colors(shell, plan.hair, inside, place)
        index = np.arange(height * width).reshape(height, width)
        a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
        triangles = np.concatenate(
            [np.stack([a, c, b], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)]
        )
        triangles = triangles[(alpha[triangles] > 0.5).all(1)]
        if not len(triangles):
            return None
        normals = vertex_normals(torch.from_numpy(shell.points)[None], torch.from_numpy(shell.triangles))[
            0
        ].numpy()
        uv = (np.stack([index % width, index // width], -1).reshape(-1, 2) + 0.5) / [width, height]
        strands = {
            "type": "principled",
            "base_color": self._texture(color.reshape(height, width, 3).clip(0, 0.9)),
            "roughness": 0.55,
            "specular": 0.4,
        }
        return self._mesh(
            "hair",
            finer(shell.points),
            triangles,
            finer(normals),
            {"type": "twosided", "strands": strands},
            uv,
        )

    def _mesh(
        self,
        name: str,
        points: np.ndarray,
        triangles: np.ndarray,
        normals: np.ndarray,
        surface: dict,
        uv: np.ndarray | None = None,
        attributes: dict[str, np.ndarray] | None = None,
    ) -> Any:
        mi = self.mi
        properties = mi.Properties()
        properties["bsdf"] = mi.load_dict(surface)
        used, inverse = np.unique(triangles, return_inverse=True)
        mesh = mi.Mesh(
            name,
            len(used),
            len(triangles),
            has_vertex_normals=True,
            has_vertex_texcoords=uv is not None,
            props=properties,
        )
        for key, values in (attributes or {}).items():
            values = values[used] if key.startswith("vertex_") else values
            mesh.add_attribute(
                key,
                1 if values.ndim == 1 else values.shape[1],
                np.ascontiguousarray(values, np.float32).ravel(),
            )
        parameters = mi.traverse(mesh)
        parameters["vertex_positions"] = np.ascontiguousarray(points[used], np.float32).ravel()
        parameters["vertex_normals"] = np.ascontiguousarray(normals[used], np.float32).ravel()
        parameters["faces"] = np.ascontiguousarray(inverse.reshape(-1), np.uint32)
        if uv is not None:
            parameters["vertex_texcoords"] = np.ascontiguousarray(uv[used], np.float32).ravel()
        parameters.update()
        return mesh

    def _texture(self, picture: np.ndarray) -> dict[str, Any]:
        """Linear values; row 0 at v = 0."""
        bitmap = self.mi.Bitmap(np.ascontiguousarray(picture, np.float32))
        return {"type": "bitmap", "bitmap": bitmap, "raw": True, "wrap_mode": "clamp"}

    # ---- light ----

    def _light(self, plan: SubjectPlan, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Linear radiance [H, W, 3] all around, and its turn about the vertical [3, 3]; the columns run as
        `_directions` says."""
        if not self.surroundings:
            return studio_picture(plan.scenes[b]), np.eye(3)
        view = None if self.recipe.light == "shared" else b
        rng = stream(self.recipe, plan.index, "light", 5000 if view is None else 5001 + view)
        path = self.surroundings[rng.integers(len(self.surroundings))]
        with foreign_file(path, "not a readable picture of surroundings", limit=DATA_BYTES):
            bitmap = self.mi.Bitmap(str(path)).convert(
                self.mi.Bitmap.PixelFormat.RGB, self.mi.Struct.Type.Float32, False
            )
        picture = np.array(bitmap)
        if picture.shape[1] > 1024:
            picture = cv2.resize(picture, (1024, 512), interpolation=cv2.INTER_AREA)
        turn = rng.uniform(0, 2 * np.pi)
        return np.maximum(picture, 1e-4), np.array(
            [[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]]
        )

    def _behind(
        self, plan: SubjectPlan, b: int, light: np.ndarray, head_from_light: np.ndarray
    ) -> np.ndarray:
        size, state = self.recipe.size, plan.state
        y, x = np.mgrid[:size, :size].astype(np.float64)
        focal, principal = float(state.camera.focal[b]), state.camera.principal[b].double().numpy()
        ray = np.stack([(x - principal[0]) / focal, (y - principal[1]) / focal, np.ones_like(x)], -1)
        ray = ray @ state.pose.rotation[b].double().numpy() @ head_from_light
        ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
        height, width = light.shape[:2]
        column = (0.5 - np.arctan2(ray[..., 0], ray[..., 2]) / (2 * np.pi)) * width - 0.5
        row = np.arccos(ray[..., 1].clip(-1, 1)) / np.pi * height - 0.5
        return cv2.remap(
            light,
            column.astype(np.float32),
            row.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )


def studio_picture(scene: Scene) -> np.ndarray:
    """Surroundings [H, W, 3] that light a diffuse surface about as the scene does: its harmonics, and a soft
    box for the lamp.

    Column u of the width looks to azimuth pi (1 - 2 u) about y, from +z towards +x; rows from +y down, as
    Mitsuba's envmap.
    """
    towards = _directions(*STUDIO_SIZE)
    # The scene's numbers contain the clamped cosine (1, 2/3, 1/4 by band); radiance does not.
    band = torch.tensor([1.0, *[2 / 3] * 3, *[1 / 4] * 5])[:, None]
    sky = (sh_basis(torch.from_numpy(towards).float()) @ (scene.illumination / band)).clamp_min(0.02).numpy()
    lamp = np.asarray(scene.lamp) / np.linalg.norm(scene.lamp)
    box = np.clip((LAMP_RADIUS - np.arccos(np.clip(towards @ lamp, -1, 1))) / np.radians(1.5) + 0.5, 0, 1)
    # A disc of radius r lights a facing surface with pi sin(r)^2.
    radiance = scene.lamp_strength / np.sin(LAMP_RADIUS) ** 2
    return (sky + box[..., None] * radiance * np.asarray(scene.lamp_color)).astype(np.float32)


def _directions(height: int, width: int) -> np.ndarray:
    azimuth = np.pi * (1 - 2 * (np.arange(width) + 0.5) / width)
    polar = np.pi * (np.arange(height) + 0.5) / height
    polar = polar[:, None]
    return np.stack(
        [np.sin(polar) * np.sin(azimuth), np.cos(polar) + 0 * azimuth, np.sin(polar) * np.cos(azimuth)], -1
    )


def _eye(head, plan: SubjectPlan, center: np.ndarray, radius: float, gaze: np.ndarray) -> np.ndarray:
    """The front of an eyeball, seen along its axis, [EYE_SIZE, EYE_SIZE, 3]."""
    across, up = np.radians(gaze)
    towards = np.array([np.sin(across) * np.cos(up), np.sin(up), np.cos(across) * np.cos(up)])
    y, x = np.mgrid[:EYE_SIZE, :EYE_SIZE]
    x, y = (x + 0.5) / EYE_SIZE * 2 - 1, 1 - (y + 0.5) / EYE_SIZE * 2
    ball = np.stack([x, y, np.sqrt(np.clip(1 - x * x - y * y, 0, 1))], -1).reshape(-1, 3) * radius + center
    return paint_eyes(ball, head, plan.person, towards, plan.pupil).reshape(EYE_SIZE, EYE_SIZE, 3)


def _rgb(color: np.ndarray) -> dict[str, Any]:
    return {"type": "rgb", "value": [float(v) for v in np.clip(color, 0, 0.95)]}


def head_renderer(model: FaceModel, recipe: SynthRecipe) -> HeadRenderer | None:
    """What the recipe's renderer asks for: None for the own one.

    Raises:
        MissingWeightsError: mitsuba is not installed; InputError: the model lacks landmarks, which are part
            of the truth.
    """
    if model.landmarks.missing:
        raise InputError(
            f"rendered people: expected a face model with all 68 landmarks, but '{model.name}' lacks "
            f"{len(model.landmarks.missing)} of them; take another one, as generic"
        )
    if recipe.renderer == "own":
        return None
    return MitsubaRenderer(model, recipe)
