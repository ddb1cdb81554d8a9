"""Time of a fit against the number of moments, or of photos of one camera:

    python benchmarks/moments.py --moments 3 10 30 100
    python benchmarks/moments.py --photos 3 10 30 60

One person and eight cameras that stand still; in each moment the head and the expression are others. Fits the
landmarks of all photos at once, with the moments eliminated one by one and, up to --shared moments, with all
that belongs to them among the shared parameters, where the time grows with the cube.

--photos renders one person before a camera that nothing is known of, who turns the head and has another
expression in each photo, and fits the photos with a recipe, all stages and the report included.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fitkit.energies.landmarks import LandmarkReprojection
from fitkit.energies.objective import LeastSquaresProblem, Objective, Term
from fitkit.energies.priors import ExpressionPrior, IdentityPrior
from fitkit.evaluate.bench.photos import spread_positions
from fitkit.fitting.run import fit as fit_subject
from fitkit.geometry.rotation import so3_exp
from fitkit.io.subject import Subject, load_subject
from fitkit.models.face_model import FaceModel
from fitkit.models.registry import load_model
from fitkit.observe.observations import Landmarks, Observations
from fitkit.scene.camera import Camera
from fitkit.scene.layout import ParameterLayout
from fitkit.scene.pose import Pose
from fitkit.scene.state import SceneState
from fitkit.solvers.levenberg_marquardt import LMOptions, levenberg_marquardt
from fitkit.synth.folder import write_subjects
from fitkit.synth.recipe import load_synth_recipe

CAMERAS, SIZE, FREE = 8, 512, ("identity", "expression", "pose", "focal")


def scene(model: FaceModel, moment: Tensor, camera: Tensor) -> SceneState:
    """A person of the model, whose head and expression are drawn for each moment."""
    gen = torch.Generator().manual_seed(0)
    T, B = int(moment.max()) + 1, len(moment)
    yaw = torch.deg2rad(torch.linspace(-60, 60, CAMERAS))[camera]
    turn = torch.stack([torch.zeros(B), yaw, torch.zeros(B)], 1)
    pose = Pose(
        torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ so3_exp(turn),
        torch.tensor([[0, 0, 900.0]]).repeat(B, 1),
    )
    head = torch.randn(T, 6, generator=gen) * torch.tensor([0.1, 0.1, 0.1, 10, 10, 10])
    optics = Camera(torch.full((B,), 1500.0), torch.full((B, 2), (SIZE - 1) / 2), torch.ones(B))
    identity = torch.randn(1, model.num_identity, generator=gen)
    expression = 0.3 * torch.rand(T, model.num_expression, generator=gen)[moment]
    person = torch.zeros(B, dtype=torch.int64)
    light = torch.zeros(B, 9, 1)
    return SceneState(identity, person, expression, pose.retract(head[moment]), optics, light)


def observe(model: FaceModel, state: SceneState) -> Observations:
    """Its landmarks with noise of one pixel; the pictures themselves are not looked at."""
    head = model.landmarks.points(state.vertices(model), model.triangles)
    points, _ = state.camera.project(state.pose.apply(head))
    points = points + torch.randn(points.shape, generator=torch.Generator().manual_seed(1))
    ones, B = torch.ones(points.shape[:2]), state.num_views
    marks = Landmarks(points, ones, ones > 0, ones, "surface")
    return Observations(
        torch.zeros(B, 3, 1, 1),
        marks,
        torch.ones(B, 1, 1, dtype=torch.bool),
        torch.ones(B),
        torch.zeros(B, 2),
    )


def fit(model: FaceModel, moments: int, eliminate: bool) -> str:
    """Solve from the mean face, with the heads turned and moved away -> one line about it."""
    moment = torch.arange(moments * CAMERAS) // CAMERAS
    camera = torch.arange(moments * CAMERAS) % CAMERAS
    truth = scene(model, moment, camera)
    away = torch.tensor([[0.05, -0.05, 0.03, 5, -5, 5]]).expand(len(moment), -1)
    start = truth.replace(
        identity=0 * truth.identity, expression=0 * truth.expression, pose=truth.pose.retract(away)
    )
    owners = {"expression": moment, "pose": moment, "focal": camera}
    layout = ParameterLayout.of(start, FREE, owners, moment if eliminate else None)
    often = math.sqrt(CAMERAS)  # the prior meets the expression of a moment in each of its photos
    terms = [
        Term(LandmarkReprojection(model, torch.ones(len(moment), 68), "surface")),
        Term(IdentityPrior()),
        Term(ExpressionPrior(0.3 * often, 0.1 * often)),
    ]
    problem = LeastSquaresProblem(Objective(terms), observe(model, truth), layout)
    began = time.perf_counter()
    found = levenberg_marquardt(problem, start, LMOptions(10))
    seconds = time.perf_counter() - began
    apart = (found.x.neutral(model) - truth.neutral(model)).norm(dim=-1).mean()
    return (
        f"{moments:4d} moments {layout.total:6d} unknowns {layout.num_shared:6d} shared "
        f"{1000 * seconds / found.iterations:8.0f} ms per step  {found.status} after {found.iterations}, "
        f"neutral vertices {float(apart):.2f} mm off"
    )


def photographed(folder: Path, photos: int, size: int) -> Subject:
    """A person in so many photos of one camera, without cameras.json; rendered into an empty folder."""
    scene = ["setup=turning", "expression=per_view", "variation.yaw=50"]
    write_subjects(load_synth_recipe("clean", scene, {"views": photos, "size": size}), 1, folder)
    return load_subject(folder / "subject_00000")


def fit_photos(subject: Subject, photos: int, recipe: str) -> str:
    """Fit so many of the photos, spread over all of them -> one line about it."""
    views = tuple(subject.views[i] for i in spread_positions(len(subject.views), photos))
    began = time.process_time()
    result = fit_subject(replace(subject, views=views), recipe=recipe, overrides=["landmarks.source=files"])
    seconds, focal = time.process_time() - began, result.state.camera.focal
    apart = 100 * (float(focal.max() / focal.min()) - 1)
    return (
        f"{photos:4d} photos {seconds:7.1f} s of CPU time, {seconds / photos:5.2f} s a photo, "
        f"{result.report.start.iterations:3d} steps  {result.status}, focal lengths {apart:.3f} % apart"
    )


def time_photos(counts: list[int], size: int, recipe: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subject = photographed(Path(folder) / "people", max(counts), size)
        fit_photos(subject, 2, recipe)  # compiles and loads
        for photos in counts:
            print(fit_photos(subject, photos, recipe), flush=True)


def time_moments(counts: list[int], shared: int) -> None:
    model = load_model()
    for moments in counts:
        print(fit(model, moments, True), flush=True)
    for moments in counts:
        if moments <= shared:
            print("all shared:", fit(model, moments, False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", nargs="+", type=int, help="default without --photos: 3 10 30 100")
    parser.add_argument("--shared", type=int, default=30, help="most moments to solve as shared ones")
    parser.add_argument("--photos", nargs="+", type=int, default=[], help="at least 2 each")
    parser.add_argument("--size", type=int, default=256, help="side of the photos, px")
    parser.add_argument("--recipe", default="multiview", help="that the photos are fitted with")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.photos:
        time_photos(arguments.photos, arguments.size, arguments.recipe)
    if arguments.moments or not arguments.photos:
        time_moments(arguments.moments or [3, 10, 30, 100], arguments.shared)


if __name__ == "__main__":
    main()
