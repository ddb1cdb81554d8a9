"""Tiny copies of the folders of public data sets, all of one tiny person whose exact fit is known."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
import torch
import trimesh
from helpers import tiny_model, tiny_result, tiny_state, write_pts
from PIL import Image

from fitkit.data.facescape import PUPIL_MM
from fitkit.data.pixel_face import ANCHORS, TABLE
from fitkit.evaluate.facescape import wild_frame
from fitkit.evaluate.scan_to_mesh import NOW_POINTS
from fitkit.fitting.result import FitResult
from fitkit.io.resources import asset_path
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose

SEVEN = list(NOW_POINTS)
FLIP = np.diag([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Person:
    """result: an exact fit; scan [V, 3] mm, points [68, 3] mm: its neutral face in the frame of a scanner,
    which is another one."""

    result: FitResult
    scan: np.ndarray
    points: np.ndarray

    @property
    def triangles(self) -> np.ndarray:
        return self.result.model.triangles.numpy()

    def posed(self, view: int = 0) -> np.ndarray:
        return self.result.state.pose.apply(self.result.vertices)[view].double().numpy()

    def photo(self, path: Path, view: int = 0, points: bool = True) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.result.subject.views[view].image).save(path)
        if points:
            write_pts(path.with_suffix(".pts"), self.result.landmarks.points[view].numpy())

    def mesh(self, path: Path, vertices: np.ndarray | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        trimesh.Trimesh(self.scan if vertices is None else vertices, self.triangles, process=False).export(
            path
        )


def person(
    seed: int = 1,
    views: int = 3,
    expression: float = 0.0,
    frontal: bool = False,
    kind: str = "perspective",
    size: int = 160,
) -> Person:
    model = tiny_model()
    state = tiny_state(model, views, size, seed, expression)
    if frontal or kind == "orthographic":
        rotation = torch.from_numpy(FLIP).float().expand(views, 3, 3) if frontal else state.pose.rotation
        state = state.replace(
            pose=Pose(rotation, state.pose.translation),
            camera=Camera(state.camera.focal, state.camera.principal, state.camera.aspect, kind),
        )
    result = tiny_result(seed, views, size, model, state=state)
    turn = trimesh.transformations.rotation_matrix(0.3, [1, 2, 0.5])[:3, :3]
    scan, points = (
        (x.double().numpy() @ turn.T + [5, -20, 80]) for x in (result.neutral, result.landmarks3d)
    )
    return Person(result, scan, points)


def now(root: Path, p: Person) -> Path:
    for challenge in ("multiview_neutral", "selfie"):
        p.photo(root / "iphone_pictures" / "FaMoS_1" / challenge / "IMG_0001.jpg")
    p.mesh(root / "scans" / "FaMoS_1" / "natural_head.obj")
    picks = root / "scans_lmks_onlypp" / "FaMoS_1" / "natural_head_picked_points.pp"
    picks.parent.mkdir(parents=True)
    tags = "\n".join(
        f' <point x="{x!r}" y="{y!r}" active="1" name="{i}" z="{z!r}"/>'
        for i, (x, y, z) in enumerate(p.points[SEVEN].tolist())
    )
    head = (
        '<!DOCTYPE PickedPoints>\n<PickedPoints>\n <DocumentData>\n  <DataFileName name="a.obj"/>\n '
        "</DocumentData>\n"
    )
    picks.write_text(f"{head}{tags}\n</PickedPoints>\n")
    (root / "imagepathsvalidation.txt").write_text(
        "".join(f"FaMoS_1/{c}/IMG_0001.jpg\n" for c in ("multiview_neutral", "selfie"))
    )
    return root


def micc(root: Path, p: Person) -> Path:
    for number in ("01", "02"):
        for sequence in ("indoor-cooperative", "PTZ-indoor"):
            for view in range(3):
                p.photo(root / f"subject_{number}" / sequence / f"frame{view}.png", view)
        p.mesh(root / f"subject_{number}" / "frontal1.obj")
        np.savetxt(
            root / f"subject_{number}" / "frontal1_points.txt",
            np.concatenate([p.points[SEVEN], p.points[30:31]]),
        )
    return root


def facescape_wild(root: Path, p: Person) -> Path:
    camera, size = p.result.state.camera, p.result.subject.views[0].size
    posed = p.posed()
    scale = float(camera.focal[0]) / posed[:, 2].mean()
    p.photo(root / "wild_img" / "399.jpg")
    p.mesh(root / "wild_gt_mesh" / "399.obj", wild_frame(posed, scale, camera.principal[0].numpy(), size))
    (root / "predef").mkdir()
    unit, shift = 2 * scale / size[0], (2 * (camera.principal[0].numpy() + 0.5) - size) / size[0]
    origin = p.result.state.pose.translation[0].double().numpy() * [1, -1, -1]
    middle = unit * origin + [shift[0], -shift[1], unit * posed[:, 2].mean() - 2]
    np.save(root / "predef" / "wild_pupil_scales.npy", np.full(400, size[0] / (2 * scale)))
    np.save(
        root / "predef" / "wild_rotations.npy",
        np.tile(FLIP @ p.result.state.pose.rotation[0].double().numpy(), (400, 1, 1)),
    )
    np.save(root / "predef" / "wild_head_centers.npy", np.tile(middle, (400, 1)))
    return root


def facescape_lab(root: Path, p: Person) -> Path:
    pose, camera = p.result.state.pose, p.result.state.camera
    (root / "lab_cam").mkdir(parents=True)
    (root / "predef").mkdir()
    p.mesh(root / "lab_gt_mesh" / "00.obj", p.result.vertices[0].double().numpy() / PUPIL_MM)
    rotations, centers = np.tile(np.eye(3), (11, 1, 1)), np.zeros((3, 3))
    for view in range(3):
        R, t = pose.rotation[view].double().numpy(), pose.translation[view].double().numpy()
        K = camera.matrix()[view].double().numpy()
        K[:2, 2] += 0.5  # the benchmark counts from the corner of the first pixel
        (root / "lab_cam" / f"00_0_{view:02d}.json").write_text(
            json.dumps([K.tolist(), np.column_stack([R, t / PUPIL_MM]).tolist()])
        )
        p.photo(root / "lab_img" / f"00_0_{view:02d}.jpg", view)
        rotations[view] = R
    centers[0] = pose.translation[0].numpy()
    np.save(root / "predef" / "lab_rotations.npy", rotations)
    np.save(root / "predef" / "lab_head_centers.npy", centers)
    return root


def pixel_face(root: Path, p: Person, place: str = "val/00001/01") -> Path:
    """The photos lie on their side and are mirrored, as in the release; the mesh has vertices at ANCHORS, and
    106 points in units of 100 mm, of which those that are none of the 68 lie at 0."""
    folder = root / place / "Images"
    for number, view in enumerate((0, 1, 2)):
        path = folder / str(number) / "t.jpg"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.rot90(p.result.subject.views[view].image[:, ::-1], 1)).save(path, quality=95)
    vertices = np.full((max(ANCHORS) + 1, 3), 1e4)  # what fills the numbers lies far away
    vertices[: len(p.scan)] = p.scan
    vertices[list(ANCHORS)] = p.points[SEVEN]
    (folder / "fusion").mkdir()
    trimesh.Trimesh(vertices, p.triangles, process=False).export(folder / "fusion" / "mesh.obj")
    table = [line.split(",") for line in asset_path(TABLE).read_text().splitlines() if line[0].isdigit()]
    points = np.array([p.points[int(ibug)] if ibug else np.zeros(3) for _, _, ibug in table])
    np.savetxt(folder / "fusion" / "nicp_106_pts.txt", points / 100)
    return root


def bosphorus(root: Path, p: Person) -> Path:
    """Range images of the upright neutral face; the R45 scan is there for its picture only."""
    folder = root / "bs000"
    folder.mkdir(parents=True)
    upright, marks = p.result.neutral.double().numpy(), p.result.landmarks3d.double().numpy()
    x, y = np.meshgrid(np.arange(-70, 71, 2.5), np.arange(-100, 101, 2.5))
    mesh = trimesh.Trimesh(upright, p.triangles, process=False)
    place, ray, _ = mesh.ray.intersects_location(
        np.column_stack([x.ravel(), y.ravel(), np.full(x.size, 500.0)]),
        np.tile([0, 0, -1.0], (x.size, 1)),
        multiple_hits=False,
    )
    z = np.full(x.size, -1e9)
    z[ray] = place[:, 2]
    table = np.stack([x.ravel(), y.ravel(), z, x.ravel(), y.ravel()])
    data = (
        struct.pack("<HHdH", *x.shape, -1e9, 5)
        + b"a.png"
        + struct.pack("<I", table.size)
        + table.astype("<f8").tobytes()
    )
    names = {
        "Outer left eye corner": marks[45],
        "Inner left eye corner": marks[42],
        "Inner right eye corner": marks[39],
        "Outer right eye corner": marks[36],
        "Nose tip": marks[33] + [0, 4.0, 0],
        "Upper lip outer middle": marks[33] - [0, 4.0, 0],
        "Left mouth corner": marks[54],
        "Right mouth corner": marks[48],
    }
    text = "# Landmarks\n8 landmarks:\n" + "".join(f"{k}\n{v[0]} {v[1]} {v[2]}\n" for k, v in names.items())
    for stem in ("bs000_N_N_0", "bs000_E_HAPPY_0", "bs000_YR_R45_0"):
        (folder / f"{stem}.bnt").write_bytes(data)
        (folder / f"{stem}.lm3").write_text(text)
        p.photo(folder / f"{stem}.png", 1)
    return root


def bu3dfe(root: Path, p: Person) -> Path:
    """p is frontal; the scan has the axes of the picture, mm."""
    marks = p.result.model.landmarks.points(p.result.vertices, p.result.model.triangles)
    scan, marks = p.posed() @ FLIP, p.result.state.pose.apply(marks)[0].double().numpy() @ FLIP
    folder = root / "F0001"
    for name in ("F0001_NE00WH", "F0001_HA01WH"):
        p.photo(folder / f"{name}_F2D.bmp")
        points = "point [\n" + ",\n".join(f"{x} {y} {z}" for x, y, z in scan) + "\n]"
        index = "coordIndex [\n" + ",\n".join(f"{a}, {b}, {c}, -1" for a, b, c in p.triangles) + "\n]"
        (folder / f"{name}_F3D.wrl").write_text(
            "#VRML V2.0 utf8\nShape { geometry IndexedFaceSet { coord Coordinate { "
            + points
            + " }\n"
            + index
            + " } }\n"
        )
        rows = np.concatenate(
            [
                marks[[36, 37, 38, 38, 39, 40, 41, 41]],
                marks[[42, 43, 44, 44, 45, 46, 47, 47]],
                marks[17:27],
                marks[17:27],
                marks[[31, 32, 33, 34, 35, 27, 28, 31, 35, 32, 33, 34]],
                marks[48:68],
                marks[[*range(0, 15)]],
            ]
        )
        np.savetxt(
            folder / f"{name}_F3D.bnd",
            np.column_stack([np.arange(83), rows]),
            fmt=["%d", "%.8f", "%.8f", "%.8f"],
        )
    return root


def florence_renders(root: Path, p: Person) -> Path:
    p.mesh(root / "subject_01" / "scan.obj")
    np.savetxt(root / "subject_01" / "scan_points.txt", p.points[SEVEN])
    for number in (0, 10):
        p.photo(root / "subject_01" / "renders" / f"{number:02d}.png")
    return root


def aflw2000(root: Path, p: Person, yaws: tuple[float, ...] = (10.0, -45.0, 80.0)) -> Path:
    """The same photo under several labelled yaws."""
    for number, yaw in enumerate(yaws):
        p.photo(root / f"image{number:05d}.jpg", points=False)
        marks = p.result.landmarks.points[0].double().numpy() + 1.0
        scipy.io.savemat(
            root / f"image{number:05d}.mat",
            {
                "pt3d_68": np.vstack([marks.T, np.zeros(68)]),
                "Pose_Para": np.radians([[0.0, yaw, 0, 0, 0, 0, 0]]),
            },
        )
    return root


def aflw2000_model(root: Path, p: Person, target: Path) -> None:
    """Give the first photo of `aflw2000` the exact labels of an orthographic fit, and write the model of
    these labels into `target`, as 3DDFA packs it, in micrometres."""
    model, state = p.result.model, p.result.state

    def padded(values: torch.Tensor, columns: int) -> np.ndarray:
        values = values.double().numpy()
        return np.pad(values, ((0, 0), (0, columns - values.shape[1])))

    V = model.num_vertices
    scipy.io.savemat(
        target / "Model_Shape.mat",
        {
            "mu_shape": model.mean.reshape(-1, 1).double().numpy() * 1000,
            "w": padded(model.identity_basis.reshape(-1, 3 * V).T, 199) * 1000,
            "tri": model.triangles.numpy().T + 1,
            "keypoints": np.arange(1, 69)[None],
        },
    )
    scipy.io.savemat(
        target / "Model_Exp.mat",
        {
            "mu_exp": np.zeros((3 * V, 1)),
            "w_exp": padded(model.expression_basis.reshape(-1, 3 * V).T, 29) * 1000,
        },
    )
    # Picture y is down and z towards the viewer: R of the file is diag(1, -1, -1) camera_from_head, angles of
    # Rx Ry Rz.
    R = FLIP @ state.pose.rotation[0].double().numpy()
    pitch, yaw, roll = np.arctan2(R[1, 2], R[2, 2]), np.arcsin(-R[0, 2]), np.arctan2(R[0, 1], R[0, 0])
    scale = float(state.camera.focal[0]) / 1000
    t = state.pose.translation[0].double().numpy()
    x, y = state.camera.principal[0].numpy() + scale * t[:2]
    pose = [pitch, yaw, roll, x + 1, p.result.subject.views[0].size[1] - y, 0.0, scale / 1000]
    content = scipy.io.loadmat(root / "image00000.mat") | {
        "Pose_Para": np.array([pose]),
        "Shape_Para": padded(state.identity, 199).T,
        "Exp_Para": padded(state.expression[:1], 29).T,
    }
    scipy.io.savemat(root / "image00000.mat", {k: v for k, v in content.items() if not k.startswith("_")})


def facewarehouse(root: Path, p: Person) -> Path:
    for number in range(2):
        p.photo(root / "Tester_3" / "TrainingPose" / f"pose_{number}.png", number)
        p.mesh(
            root / "Tester_3" / "TrainingPose" / f"pose_{number}.obj",
            p.result.vertices[number].double().numpy() * 10 + 3,
        )
    return root


def realy(root: Path, p: Person) -> Path:
    p.photo(root / "1.png")
    p.photo(root / "2.png", 1)
    return root


def held_out(root: Path, p: Person) -> Path:
    for view in range(len(p.result.subject.views)):
        p.photo(root / "anna" / f"view{view}.png", view)
    return root


def bench(root: Path, p: Person) -> Path:
    for name in ("multiview_00", "multiview_01"):
        for view in range(len(p.result.subject.views)):
            p.photo(root / name / f"view{view}.png", view)
        truth = root / "ground_truth" / name
        p.mesh(truth / "neutral.ply")
        np.save(truth / "landmarks3d_neutral.npy", p.points)
        np.save(truth / "face_region.npy", p.result.model.face.nonzero()[:, 0].numpy().astype(np.int32))
    return root


# Part of CelebAMask-HQ -> our name, and its box x0, y0, x1, y1 in masks of 64 px; the subject's left is right
# in the picture.
CELEBA_PARTS = {
    "hair": ("hair", (4, 2, 60, 12)),
    "skin": ("skin", (14, 14, 18, 50)),
    "l_ear": ("ears", (54, 30, 58, 36)),
    "r_brow": ("right_brow", (20, 22, 28, 24)),
    "l_brow": ("left_brow", (36, 22, 44, 24)),
    "r_eye": ("right_eye", (20, 27, 27, 30)),
    "l_eye": ("left_eye", (37, 27, 44, 30)),
    "eye_g": ("glasses", (28, 27, 36, 29)),
    "nose": ("nose", (30, 32, 34, 40)),
    "mouth": ("mouth", (28, 47, 36, 49)),
    "u_lip": ("upper_lip", (28, 44, 36, 46)),
    "l_lip": ("lower_lip", (28, 50, 36, 52)),
    "neck": ("neck", (24, 56, 40, 59)),
    "cloth": ("clothes", (4, 60, 60, 64)),
}


def celebamask(root: Path) -> Path:
    """CelebAMask-HQ with two pictures; number 1 wears no glasses."""
    pictures = root / "CelebA-HQ-img"
    pictures.mkdir(parents=True)
    for number in (1, 2001):
        Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(pictures / f"{number}.jpg")
        masks = root / "CelebAMask-HQ-mask-anno" / str(number // 2000)
        masks.mkdir(parents=True)
        for name, (_, (x0, y0, x1, y1)) in CELEBA_PARTS.items():
            if number == 1 and name == "eye_g":
                continue
            mask = np.zeros((64, 64, 3), np.uint8)  # the published ones have three channels
            mask[y0:y1, x0:x1] = 255
            Image.fromarray(mask).save(masks / f"{number:05d}_{name}.png")
    return root
