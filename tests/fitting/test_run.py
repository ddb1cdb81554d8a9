"""The whole chain from landmarks to a result, on data made with the model itself."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_result, tiny_state

from fitkit.energies.landmarks import outline_vertices
from fitkit.errors import FitError, InputError, MissingWeightsError
from fitkit.fitting.choose_start import choose_start
from fitkit.fitting.initialize import to_photos
from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit, fit_observed
from fitkit.fitting.stages import StageRunner, at_start
from fitkit.geometry.alignment import similarity_align
from fitkit.geometry.rotation import so3_exp
from fitkit.io.progress import Progress
from fitkit.io.subject import KnownCamera, Subject, View
from fitkit.models.io import load_model_file
from fitkit.observe.crop import crop_views
from fitkit.scene.camera import Camera
from fitkit.scene.pose import Pose, yaw_pitch_roll
from fitkit.scene.projection import project_points
from fitkit.scene.state import SceneState

SIZE = 400


@pytest.fixture(scope="module")
def model():
    """The shipped model with its 10 strongest identity and 6 expression shapes: what 68 points in 3 views can
    tell."""
    full = load_model_file(Path(__file__).parents[2] / "assets" / "generic.npz")
    names = ("jawOpen", "mouthSmile_L", "mouthSmile_R", "eyeBlink_L", "eyeBlink_R", "mouthPucker")
    pick = [full.expression_names.index(n) for n in names]
    return replace(
        full,
        identity_basis=full.identity_basis[:10],
        expression_basis=full.expression_basis[pick],
        expression_names=names,
    )


def person(model, seed=0, yaws=(-35.0, 0.0, 35.0), size=SIZE):
    gen = torch.Generator().manual_seed(seed)
    B = len(yaws)
    turn = torch.deg2rad(torch.tensor([[2.0, y, -3.0] for y in yaws]))
    translation = torch.tensor([0.0, 0, 1000]) + torch.randn(B, 3, generator=gen) * torch.tensor(
        [10.0, 10, 30]
    )
    camera = Camera(torch.full((B,), 3.0 * size), torch.full((B, 2), (size - 1) / 2), torch.ones(B))
    return SceneState(
        torch.randn(1, model.num_identity, generator=gen).clamp(-2, 2),
        torch.zeros(B, dtype=torch.int64),
        0.5 * torch.rand(B, model.num_expression, generator=gen),
        Pose(torch.diag(torch.tensor([1.0, -1, -1])) @ so3_exp(turn), translation),
        camera,
        torch.zeros(B, 9, 1),
    )


def photos(views, size=SIZE):
    return Subject(
        "test", tuple(View(f"view{i}", np.full((size, size, 3), 128, np.uint8)) for i in range(views))
    )


def seen(model, state, jaw="surface", size=SIZE):
    marks = observe(model, state, size).landmarks
    return replace(marks, sigma=torch.full_like(marks.sigma, torch.nan), jaw=jaw)


def run(model, marks, overrides=(), size=SIZE, recipe="landmarks"):
    return fit_observed(photos(len(marks.points), size), marks, model, load_recipe(recipe, overrides))


def shape_error(result, truth, model):
    """Mean distance of the neutral face area after a similarity, mm."""
    got, expected = result.neutral[model.face][None], truth.neutral(model)[:, model.face]
    return float((similarity_align(got, expected).apply(got) - expected).norm(dim=-1).mean())


@pytest.fixture(scope="module")
def exact(model):
    truth = person(model)
    return truth, run(model, seen(model, truth))


def test_coefficients_used_to_make_the_landmarks_are_found_again(model, exact):
    truth, result = exact
    assert result.status == "ok" and result.warnings == ()
    assert max(v["reprojection_share"] for v in result.metrics["views"]) < 0.005
    start = similarity_align(model.mean[model.face][None], truth.neutral(model)[:, model.face])
    before = float(
        (start.apply(model.mean[model.face][None]) - truth.neutral(model)[:, model.face]).norm(dim=-1).mean()
    )
    assert before > 1 and shape_error(result, truth, model) < 0.2
    gap = (result.state.identity - truth.identity).norm()
    assert float(gap) < 0.4 * float(truth.identity.norm())  # the priors pull towards the mean
    turned = (yaw_pitch_roll(result.state.pose.rotation) - yaw_pitch_roll(truth.pose.rotation)).abs()
    assert float(turned.max()) < 1.5
    assert float((result.state.expression - truth.expression).abs().mean()) < 0.12


def test_report_of_the_fit(model, exact):
    truth, result = exact
    metrics = result.metrics
    assert [v["name"] for v in metrics["views"]] == ["view0", "view1", "view2"] and metrics["num_views"] == 3
    assert [s["name"] for s in metrics["stages"]] == ["pose", "shape", "landmarks"] and metrics[
        "jaw"
    ] == "surface"
    assert not metrics["scale"]["metric"] and result.camera_source == ("estimated",) * 3
    points = project_points(model.landmark_basis, result.state).pixels[:, 17:]
    error = (points - result.landmarks.points[:, 17:]).norm(dim=-1).mean(1)
    for i, view in enumerate(metrics["views"]):
        assert view["reprojection_px"] == pytest.approx(float(error[i]), rel=1e-3)
        assert 0.005 < view["focal_relative_sigma"] < 0.3 and view["landmarks"] == 68
    for stage in metrics["stages"]:
        assert (
            stage["status"] in ("converged", "max_iterations") and stage["terms"]["lmk2d"]["valid"] == 3 * 68
        )


def test_the_same_again(model, exact):
    truth, result = exact
    again = run(model, seen(model, truth))
    assert torch.equal(again.state.identity, result.state.identity) and torch.equal(
        again.state.pose.rotation, result.state.pose.rotation
    )


def test_a_masked_landmark_changes_nothing(model, exact):
    truth, _ = exact
    marks = seen(model, truth)
    valid = marks.valid.clone()
    valid[0, 20] = valid[1, 60] = valid[2, 3] = False
    results = []
    for fill in (torch.nan, 0.0, 399.0):
        points = torch.where(valid[..., None], marks.points, fill)
        results.append(run(model, replace(marks, points=points, valid=valid)))
    for other in results[1:]:
        # bit for bit with current torch; older ones sum in another order
        torch.testing.assert_close(other.state.identity, results[0].state.identity, atol=1e-3, rtol=0)
        torch.testing.assert_close(other.state.camera.focal, results[0].state.camera.focal, atol=0, rtol=1e-4)


def test_a_wrong_landmark_barely_changes_the_result(model, exact):
    truth, result = exact
    marks = seen(model, truth)
    points = marks.points.clone()
    points[0, 33] += torch.tensor([35.0, 36.0])  # 50 px
    wrong = run(model, replace(marks, points=points))
    moved = (wrong.neutral - result.neutral)[model.face].norm(dim=-1).mean()
    assert float(moved) < 1.0 and shape_error(wrong, truth, model) < shape_error(result, truth, model) + 0.3
    assert (
        float(
            (yaw_pitch_roll(wrong.state.pose.rotation) - yaw_pitch_roll(result.state.pose.rotation))
            .abs()
            .max()
        )
        < 1.0
    )


@pytest.mark.parametrize("scale", [0.6, 2.5])
def test_scaling_the_photos_scales_the_camera_and_nothing_else(model, exact, scale):
    truth, result = exact
    size = int(SIZE * scale)
    marks = seen(model, truth)
    large = replace(marks, points=(marks.points + 0.5) * scale - 0.5)
    other = run(model, large, size=size)
    # Crops are cut at whole pixels.
    torch.testing.assert_close(other.state.identity, result.state.identity, atol=0.02, rtol=0)
    torch.testing.assert_close(other.state.camera.focal / scale, result.state.camera.focal, rtol=0.01, atol=0)
    for a, b in zip(result.metrics["views"], other.metrics["views"]):
        assert b["reprojection_share"] == pytest.approx(a["reprojection_share"], abs=2e-4)


def test_shifting_the_head_in_a_larger_photo_leaves_the_shape(model, exact):
    # Camera and head move together: the same picture at another place, with the principal point that moves
    # along.
    truth, result = exact
    marks = seen(model, truth)
    shifted = run(model, replace(marks, points=marks.points + 100), size=SIZE + 200)
    # float32, stops at 1e-3 of the cost.
    torch.testing.assert_close(shifted.state.identity, result.state.identity, atol=3e-3, rtol=0)
    torch.testing.assert_close(shifted.state.pose.rotation, result.state.pose.rotation, atol=1e-4, rtol=0)


def outline_marks(model, state):
    """Jaw points where an annotator of visible outlines would put them: the silhouette, on the profile
    lines."""
    marks = seen(model, state, "auto")
    vertex = outline_vertices(model, state)
    pixels, _ = state.camera.project(state.pose.apply(state.vertices(model)))
    slid = pixels.gather(1, vertex.clamp_min(0)[..., None].expand(-1, -1, 2))
    points = marks.points.clone()
    points[:, :17] = torch.where((vertex >= 0)[..., None], slid, points[:, :17])
    assert float((points - marks.points).norm(dim=-1)[:, :17].amax()) > 5  # the two conventions differ
    return replace(marks, points=points)


def test_jaw_rule_is_found_from_the_data(model):
    truth = person(model, 1, yaws=(-40.0, 0.0, 40.0))
    by_surface = run(model, seen(model, truth, "auto"))
    by_outline = run(model, outline_marks(model, truth))
    assert by_surface.metrics["jaw"] == "surface" and by_outline.metrics["jaw"] == "outline"
    for result in (by_surface, by_outline):
        assert result.status == "ok" and shape_error(result, truth, model) < 0.8
    # A fit goes on from the trial under its rule.
    given = run(model, outline_marks(model, truth), ["landmarks.jaw=outline"])
    assert torch.equal(given.state.identity, by_outline.state.identity)
    assert [s["name"] for s in given.metrics["stages"]] == [s["name"] for s in by_outline.metrics["stages"]]
    assert given.metrics["start"]["iterations"] < by_outline.metrics["start"]["iterations"]
    wrong = run(model, outline_marks(model, truth), ["landmarks.jaw=surface"])
    assert shape_error(wrong, truth, model) > shape_error(by_outline, truth, model)


def test_calibrated_rig_gives_metric_shape(model):
    truth = person(model, 2)
    subject = Subject(
        "rig",
        tuple(
            v.replace(camera=KnownCamera(K.numpy(), R.numpy(), t.numpy()))
            for v, K, R, t in zip(
                photos(3).views, truth.camera.matrix(), truth.pose.rotation, truth.pose.translation
            )
        ),
    )
    result = fit_observed(subject, seen(model, truth), model, load_recipe("landmarks"))
    assert (
        result.metrics["scale"]["metric"]
        and result.camera_source == ("cameras.json",) * 3
        and result.status == "ok"
    )
    R = [p.rotation[2] @ p.rotation[0].T for p in (truth.pose, result.state.pose)]
    torch.testing.assert_close(R[0], R[1], atol=1e-4, rtol=0)
    face = model.face
    assert (
        float((result.neutral - truth.neutral(model)[0])[face].norm(dim=-1).mean()) < 1.5
    )  # without any alignment, mm
    torch.testing.assert_close(result.state.camera.focal, truth.camera.focal, rtol=0.005, atol=0)


@pytest.mark.parametrize("share, source, noted", [(1.0, "exif", 0), (0.4, "estimated", 1)])
def test_exif_of_a_cropped_photo_is_not_believed_against_the_perspective(model, share, source, noted):
    truth = person(model, 2)
    focal = share * float(truth.camera.focal[0])
    subject = Subject("exif", tuple(v.replace(focal_px=focal) for v in photos(3).views))
    result = fit_observed(subject, seen(model, truth), model, load_recipe("landmarks"))
    assert result.camera_source == (source,) * 3
    assert (
        sum("the perspective of the landmarks contradicts it" in n for n in result.metrics["notes"]) == noted
    )
    torch.testing.assert_close(result.state.camera.focal, truth.camera.focal, rtol=0.1, atol=0)
    assert shape_error(result, truth, model) < 0.8


def test_one_expression_for_all_views(model):
    truth = person(model, 3)
    truth = truth.replace(expression=truth.expression[:1].expand(3, -1).clone())
    result = run(model, seen(model, truth), ["expression.shared=true"])
    assert float((result.state.expression - result.state.expression[:1]).abs().max()) == 0
    assert shape_error(result, truth, model) < 0.8


@pytest.mark.parametrize(
    "overrides",
    [
        ["camera.kind=orthographic"],
        ["camera.share_focal=no"],
        ["stages.landmarks.solver.name=adam", "stages.landmarks.solver.max_iterations=15"],
    ],
    ids=["orthographic", "own focal", "adam"],
)
def test_other_ways_to_fit(model, exact, overrides):
    truth, _ = exact
    result = run(model, seen(model, truth), overrides)
    assert max(v["reprojection_share"] for v in result.metrics["views"]) < 0.01
    assert (
        shape_error(result, truth, model) < 1.5
    )  # a scaled-orthographic camera cannot explain the perspective of 1 m


@pytest.mark.parametrize("views", [1, 2])
def test_multiview_recipe_with_pictures(views):
    truth = tiny_result(views=views, size=200)
    marks = replace(truth.landmarks, sigma=torch.full((views, 68), torch.nan))
    result = fit_observed(truth.subject, marks, truth.model, load_recipe("multiview"))
    assert result.status == "ok" and max(v["reprojection_share"] for v in result.metrics["views"]) < 0.02
    names = [s["name"] for s in result.metrics["stages"]]
    assert names[:3] == ["pose", "shape", "landmarks"] and (len(names) > 3) == (views > 1)


def test_camera_of_the_crop_and_of_the_photo():
    model = tiny_model(dtype=torch.float64)
    state = tiny_state(model, 3)
    scale, offset = (
        torch.tensor([2.0, 0.5, 1.25], dtype=torch.float64),
        torch.tensor([[10.0, -4], [100, 50], [0, 7.5]], dtype=torch.float64),
    )
    obs = replace(observe(model, state), scale=scale, offset=offset)
    in_crop = project_points(model.landmark_basis, state).pixels
    in_photo = project_points(model.landmark_basis, to_photos(state, obs)).pixels
    torch.testing.assert_close((in_photo - offset[:, None]) * scale[:, None, None], in_crop)


def test_refusals(model, exact):
    truth, _ = exact
    marks = seen(model, truth)
    recipe = load_recipe(
        "landmarks", ["stages.pose.min_views=4", "stages.shape.min_views=4", "stages.landmarks.min_views=4"]
    )
    with pytest.raises(FitError, match=r"recipe 'landmarks' has no stage for 3 view\(s\)"):
        fit_observed(photos(3), marks, model, recipe)
    others = [f"stages.{name}.start=regressor" for name in ("pose", "shape", "landmarks")]
    with pytest.raises(
        FitError, match=r"recipe 'landmarks' has no stage for 3 view\(s\) and a start from landmarks"
    ):
        fit_observed(photos(3), marks, model, load_recipe("landmarks", [*others, "init.source=landmarks"]))
    with pytest.raises(
        InputError, match="overrides, model, seed and share_expression change a recipe given by name or path"
    ):
        fit(photos(1), recipe=recipe, seed=1)
    with pytest.raises(InputError, match="device 'nonsense': cannot be used here"):
        fit(photos(1), device="nonsense")


def test_backend_of_the_recipe_draws_in_the_fit(monkeypatch):
    truth = tiny_result(views=2, size=120)
    marks = replace(truth.landmarks, sigma=torch.full((2, 68), torch.nan))
    drawn = {"torch": 0, "numba": 0}
    for name in drawn:
        draw = import_module(f"fitkit.render.backends.{name}_backend").winning_triangles

        def counted(*args, name=name, draw=draw):
            drawn[name] += 1
            return draw(*args)

        monkeypatch.setattr(f"fitkit.render.backends.{name}_backend.winning_triangles", counted)
    usual = fit_observed(truth.subject, marks, truth.model, load_recipe("multiview"))
    assert drawn["numba"] > 0 and drawn["torch"] == 0
    used, recipe = drawn["numba"], load_recipe("multiview", ["render.backend=torch"])
    result = fit_observed(truth.subject, marks, truth.model, recipe)
    assert drawn == {"torch": used, "numba": used}
    torch.testing.assert_close(result.neutral, usual.neutral, atol=1e-4, rtol=0)

    monkeypatch.setattr("fitkit.render.rasterizer.find_spec", lambda name: None)
    with pytest.raises(MissingWeightsError, match="backend 'pytorch3d' is not installed here; PyPI has no"):
        fit(truth.subject, overrides=["render.backend=pytorch3d"])


def test_a_solution_stays_as_it_is_while_stages_go_on_from_it(model):
    """The trials of both jaw rules begin at one solution, and so can any other fit."""
    marks = seen(model, person(model), jaw="auto")
    subject, recipe = photos(3), load_recipe("landmarks", ["init.source=landmarks"])
    crops = crop_views([v.image for v in subject.views], [None] * 3, marks, recipe.crop)
    begun = at_start(choose_start(subject, marks, model, recipe, crops), model, recipe)
    before, runner = begun.state, StageRunner(recipe)
    one, two = runner.solve(begun), runner.solve(begun)
    assert torch.equal(one.state.identity, two.state.identity) and one.state.identity.any()
    assert begun.state is before and begun.jaw_rule == "auto" and not begun.stages and begun.last is None
    assert not begun.state.identity.any() and begun.sigma is not one.sigma
    assert one.jaw_rule == two.jaw_rule == "surface" and one.iterations == two.iterations
    # The steps of both trials count, of the stages only those of the one that won are kept.
    assert [s.name for s in one.stages] == ["pose", "shape", "landmarks"]
    assert one.shape is one.last and one.shape[1] is one.state


def test_one_view_and_progress(model):
    truth = person(model, 4, yaws=(15.0,))
    told = []
    result = fit_observed(
        photos(1),
        seen(model, truth),
        model,
        load_recipe("landmarks"),
        progress=Progress(lambda step: told.append((step.text, step.share))),
    )
    assert result.status == "ok" and told[-1] == ("done", 1.0)
    shares = [share for _, share in told]
    assert shares == sorted(shares) and [t for t, _ in told][:2] == ["cropping", "stage pose"]


def test_stated_noise_is_only_raised_and_assumed_noise_is_measured(model, exact):
    """Of exact points an assumed noise falls to its lower limit, a stated one stays, and one that is far too
    small grows."""
    marks = seen(model, exact[0])
    size = (marks.points.amax(1) - marks.points.amin(1)).prod(-1).sqrt().numpy()

    def noise(share, points=marks.points):
        sigma = torch.from_numpy(share * size).float()[:, None].expand(-1, 68)
        result = run(model, replace(marks, sigma=sigma, points=points))
        return np.array([v["landmark_sigma_px"] for v in result.metrics["views"]]) / size

    assert (noise(float("nan")) < 0.0035).all()
    assert noise(0.03) == pytest.approx(0.03, rel=1e-3)
    shaken = marks.points + 0.02 * float(size.mean()) * torch.randn(
        marks.points.shape, generator=torch.Generator().manual_seed(0)
    )
    assert (noise(0.002, shaken) > 0.008).all()


@pytest.mark.parametrize(
    "name", ["fitkit.fitting.metrics.view_agreement", "fitkit.fitting.metrics.error_bars"]
)
def test_an_error_while_a_fit_is_judged_does_not_cost_the_fit(model, monkeypatch, name):
    def broken(*args, **options):
        raise TypeError("'>' not supported between instances of 'complex' and 'float'")

    monkeypatch.setattr(name, broken)
    result = run(
        model,
        seen(model, person(model)),
        ("stages.shape.solver.max_iterations=2", "stages.landmarks.solver.max_iterations=2"),
    )
    assert result.status == "doubtful" and any(
        "could not be computed (unexpected TypeError: '>' not" in w for w in result.warnings
    )
    assert len(result.metrics["not_computed"]) == 1


def test_a_fit_in_which_no_step_is_taken(model):
    stages = [f"stages.{stage.name}.solver.max_iterations=0" for stage in load_recipe("landmarks").stages]
    result = run(model, seen(model, person(model, yaws=(0.0,))), stages)
    assert result.state.landmark_offset is None and not result.state.identity.any()
