"""`cameras.json`: the estimated cameras in the layout that a subject folder accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fitkit.scene.camera import Camera
from fitkit.scene.pose import yaw_pitch_roll

if TYPE_CHECKING:
    from fitkit.fitting.result import FitResult

CONVENTION = (
    "OpenCV: x_cam = R x_head + t (mm), x right, y down, z forward; pixel (0, 0) is the centre of the "
    "top-left pixel; head: x to the subject's left, y up, z out of the face"
)


def camera_table(result: FitResult) -> dict[str, Any]:
    """Content of cameras.json: per view K, R, t (camera_from_head), image size, source, head angles in
    degrees.

    A scaled-orthographic camera has no K: its views are marked kind 'orthographic', and K, R, t describe the
    pinhole camera at Camera.REFERENCE_DEPTH from the head origin that has the same scale there. A view that
    was undistorted has the `distortion` of its photo; `moment` and `camera_id` stand where they were
    given; `unit` 'unknown' where positions were given in one: the mm are those of the face model.
    """
    state = result.state.to(dtype=torch.float64)
    K, R, t = state.camera.matrix(), state.pose.rotation, state.pose.translation.clone()
    if state.camera.kind != "perspective":
        t[:, 2] = Camera.REFERENCE_DEPTH
    angles = yaw_pitch_roll(R)
    views = []
    for i, view in enumerate(result.subject.views):
        views.append(
            {
                "image": view.path.name if view.path is not None else view.name,
                "K": K[i].tolist(),
                "R": R[i].tolist(),
                "t": t[i].tolist(),
                "width": view.size[0],
                "height": view.size[1],
                "source": result.camera_source[i],
                "kind": state.camera.kind,
                "yaw_pitch_roll_deg": angles[i].tolist(),
            }
        )
        names = {"moment": view.moment, "camera_id": view.camera.name if view.camera is not None else ""}
        views[-1] |= {key: name for key, name in names.items() if name}
        lens = view.camera.removed if view.camera is not None else None
        if lens is not None:
            views[-1] |= {
                "camera_model": "OPENCV_FISHEYE" if lens.fisheye else "OPENCV",
                "distortion": lens.coefficients.tolist(),
            }
    known = {v.camera.metric for v in result.subject.views if v.camera is not None}
    unit = {"unit": "unknown"} if False in known else {}
    return {"convention": CONVENTION, **unit, "views": views}
