"""Tiny copies of the folders of training sets, of people whose poses and points are known."""

import cv2
import numpy as np
import scipy.io
import torch
from helpers import observe, photograph, tiny_model, tiny_state, write_pts

from fitkit.geometry.rotation import so3_exp
from fitkit.nets.mvfnet.convention import labels_of_pose
from fitkit.nets.weak_perspective import to_orthographic
from fitkit.scene.pose import Pose

MODEL = tiny_model()
SIZE = 160


def views(yaws, seed=1, expression=0.0):
    """A tiny person seen under these yaw angles (degrees, positive: nose to the right) by scaled-orthographic
    cameras."""
    state = tiny_state(MODEL, len(yaws), SIZE, seed, expression)
    turn = so3_exp(torch.stack([torch.tensor([0.05, np.radians(y), -0.03]) for y in yaws]).float())
    pose = Pose(torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ turn, state.pose.translation)
    state = state.replace(pose=pose, expression=state.expression[:1].expand(len(yaws), -1))
    return to_orthographic(state, MODEL)


def save_picture(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), (image.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8))


def lp_source(folder, name, yaws, seed=1, shape=None, expression=None, state=None):
    """One source of 300W-LP: NAME_0.jpg ... with .mat files in its own conventions: pt2d is that of the first
    picture in all of them, the points of each lie in the folder landmarks."""
    state = views(yaws, seed) if state is None else state
    images = photograph(MODEL, state, SIZE).expand(-1, 3, -1, -1)
    points = observe(MODEL, state, SIZE).landmarks.points.double().numpy()
    pose = labels_of_pose(state.pose, state.camera, SIZE).double().numpy()
    for k, (image, p, parameters) in enumerate(zip(images, points, pose)):
        save_picture(folder / f"{name}_{k}.jpg", image)
        scipy.io.savemat(
            folder / f"{name}_{k}.mat",
            {
                "Pose_Para": parameters[None],
                "pt2d": points[0].T + 1,
                "Shape_Para": np.zeros((199, 1)) if shape is None else shape[:, None],
                "Exp_Para": np.zeros((29, 1)) if expression is None else expression[:, None],
                "Color_Para": np.zeros((1, 7)),
                "Tex_Para": np.zeros((199, 1)),
                "Illum_Para": np.zeros((1, 10)),
                "roi": np.array([[1, 1, SIZE, SIZE]]),
            },
        )
        marks = folder.parent / "landmarks" / folder.name / f"{name}_{k}_pts.mat"
        marks.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(marks, {"pts_3d": p + 1, "pts_2d": p + 1.5})
    return state


def pie_tree(root):
    """One instant of one person in the layout of Multi-PIE, with landmark files -> points [7, 68, 2]."""
    yaws = {"05_1": 0, "13_0": -30, "08_0": -45, "14_0": -15, "04_1": 30, "20_0": 60, "24_0": 90}
    state = views(list(yaws.values()))
    images, points = (
        photograph(MODEL, state, SIZE).expand(-1, 3, -1, -1),
        observe(MODEL, state, SIZE).landmarks.points.numpy(),
    )
    for (camera, _), image, p in zip(yaws.items(), images, points):
        for shot in ("00", "07"):
            path = (
                root
                / "session02/multiview/001/02"
                / camera
                / f"001_02_02_{camera.replace('_', '')}_{shot}.png"
            )
            save_picture(path, image)
            if shot == "07":
                write_pts(path.with_suffix(".pts"), p)
    (root / "session03").mkdir()
    return points
