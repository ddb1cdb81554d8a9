import filecmp
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
import yaml

from fitkit.errors import InputError
from fitkit.evaluate.bench.scores import same_topology, vertex_error
from fitkit.evaluate.bench.truth import load_truth, subject_names
from fitkit.fitting.cameras import rigs_of
from fitkit.fitting.run import fit
from fitkit.geometry.spherical_harmonics import sh_basis
from fitkit.io.landmark_files import read_landmarks
from fitkit.io.mesh_files import read_mesh
from fitkit.io.progress import Progress
from fitkit.io.subject import load_subject
from fitkit.models.correspondence import Correspondence
from fitkit.models.registry import load_model
from fitkit.observe.face_parts import PARSE, PARTS, numbers
from fitkit.observe.labels import LARGE
from fitkit.render.rasterizer import interpolate, rasterize
from fitkit.synth.dataset import CarriedFolder, SynthDataset, SynthFolder, open_folder
from fitkit.synth.folder import (
    DEPTH_UNIT,
    encode_normals,
    read_classes,
    read_depth,
    read_normals,
    skin_mesh,
    subject_name,
    write_subjects,
)
from fitkit.synth.paint import PIXEL_MM, brow_outlines, head_map, lamp_shadow, map_place
from fitkit.synth.parse import (
    LEFT_EYE,
    LOWER_LIP,
    MOUTH,
    NOSE,
    RIGHT_EYE,
    SKIN,
    UPPER_LIP,
    parse_outlines,
)
from fitkit.synth.random_faces import is_cap, random_scene, scalp_cover
from fitkit.synth.raster import light_samples, sample_mesh
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.studio import light
from fitkit.synth.subject import draw_subject, render_subject

SIZE = 96
PLAIN = [
    "variation.bald=1.0",
    "variation.hat=0",
    "variation.glasses=0",
    "variation.dark_glasses=0",
    "variation.occluded=0",
]


def recipe_of(*overrides, **changes):
    return load_synth_recipe("default", overrides, {"views": 2, "size": SIZE, **changes})


@pytest.fixture(scope="module")
def model():
    return load_model("generic")


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Three subjects of two views with cameras.json and exact landmarks, written by one process."""
    folder = tmp_path_factory.mktemp("synth") / "people"
    write_subjects(recipe_of(cameras=True, landmark_noise=0.0), 3, folder)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def same_bytes(a: Path, b: Path) -> bool:
    return files(a) == files(b) and all(filecmp.cmp(a / f, b / f, shallow=False) for f in files(a))


# ---- the folder ----


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_workers(people, tmp_path):
    told = []
    write_subjects(
        recipe_of(cameras=True, landmark_noise=0.0),
        3,
        tmp_path / "two",
        workers=2,
        progress=Progress(lambda step: told.append((step.done, step.count))),
    )
    assert same_bytes(people, tmp_path / "two")
    assert told == [(k, 3) for k in range(4)]


def test_resume_makes_what_is_missing_and_nothing_else(people, tmp_path):
    folder, recipe = tmp_path / "copy", recipe_of(cameras=True, landmark_noise=0.0)
    shutil.copytree(people, folder)
    shutil.rmtree(folder / "subject_00001")  # its truth stays, as after a stop between the two moves
    shutil.rmtree(folder / "subject_00002")
    shutil.rmtree(folder / "ground_truth" / "subject_00002")
    (folder / ".partial" / "subject_00002" / "photos").mkdir(parents=True)
    (folder / ".partial" / "subject_00002" / "photos" / "view0.jpg").write_bytes(b"half a picture")
    before = (folder / "subject_00000" / "view0.jpg").stat().st_mtime_ns
    write_subjects(recipe, 3, folder, resume=True)
    assert same_bytes(people, folder)
    assert (folder / "subject_00000" / "view0.jpg").stat().st_mtime_ns == before


def test_subjects_differ_from_each_other_and_by_seed(people, model):
    images = [(people / f"subject_0000{i}" / "view0.jpg").read_bytes() for i in range(3)]
    assert len(set(images)) == 3
    first = draw_subject(model, recipe_of(), 0)
    other = draw_subject(model, recipe_of(seed=1), 0)
    assert (first.state.identity - other.state.identity).abs().max() > 0.5


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["veiws=3"], "default.yaml: unknown key 'veiws'; did you mean 'views'?"),
        (["variation.yaws=3"], "unknown key 'yaws'; did you mean 'yaw'?"),
        (["views=0"], "default.yaml: views: expected a whole number from 1 to 500, got 0"),
        (["frames=0"], "frames: expected a whole number from 1 to 500, got 0"),
        (["views=30", "frames=30"], "expected at most 500 pictures of one subject, got 900"),
        (["size=8"], "size: expected a whole number from 32 to 2048, got 8"),
        (["seed=-1"], "seed: expected a whole number from 0 to 9223372036854775807, got -1"),
        (["landmark_noise=-1"], "landmark_noise: expected a number from 0 to less than 50, got -1.0"),
        (["setup=other"], "setup: expected one of rig, turning; got 'other'"),
        (["defocus=[0.5, 0.1]"], r"defocus: expected \[least, most\], got \[0.5, 0.1\]"),
        (["variation.bald=2"], "variation.bald: expected a number from 0 to 1, got 2.0"),
        (["variation.fill=[1.5]"], "variation.fill: expected a list of 2 items"),
        (["variation.noise=[0.2, 0.1]"], r"variation.noise: expected \[least, most\]"),
        (
            ["variation.distance=[100, 900]"],
            "variation.distance: expected a number from 250 to 6000, got 100.0",
        ),
        (["variation.fill=[0.5, 2]"], "variation.fill: expected a number from 1 to 100, got 0.5"),
        (
            ["variation.backgrounds=/no/such"],
            "variation.backgrounds: expected a folder of pictures, got /no/such",
        ),
        (
            ["path_tracing.samples=0"],
            "path_tracing.samples: expected a whole number from 1 to 1000000, got 0",
        ),
    ],
)
def test_recipes_that_make_no_pictures_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        load_synth_recipe("default", overrides)


def test_folders_that_hold_something_else_are_refused(people, tmp_path):
    recipe = recipe_of(cameras=True, landmark_noise=0.0)
    with pytest.raises(
        InputError, match=r"holds subjects of another recipe \(different: seed, variation.yaw\)"
    ):
        write_subjects(
            replace(recipe, seed=4, variation=replace(recipe.variation, yaw=20.0)), 3, people, resume=True
        )
    with pytest.raises(
        InputError, match="holds subjects of this recipe already; add the missing ones with --resume"
    ):
        write_subjects(recipe, 4, people)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and holds no synth.yaml"):
        write_subjects(recipe, 1, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        write_subjects(recipe, 1, tmp_path / "notes.txt")
    with pytest.raises(InputError, match="at least one subject and one worker, got 0 subjects and 1 workers"):
        write_subjects(recipe, 0, tmp_path / "new")
    with pytest.raises(InputError, match="unknown model 'nobody'"):
        write_subjects(replace(recipe, model="nobody"), 1, tmp_path / "new")
    assert files(tmp_path) == [Path("notes.txt")]


def test_what_others_put_among_the_truth_is_not_removed(people, tmp_path):
    out = shutil.copytree(people, tmp_path / "out")
    shutil.rmtree(out / subject_name(0))  # as if stopped between the two moves
    (out / "ground_truth" / subject_name(0) / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="subject_00000: holds 'notes.txt', which synth does not write"):
        write_subjects(recipe_of(cameras=True, landmark_noise=0.0), 1, out, resume=True)
    assert (out / "ground_truth" / subject_name(0) / "notes.txt").read_text() == "mine"


def test_pictures_of_the_truth_that_cannot_be_read_are_refused(people, tmp_path):
    truth = people / "ground_truth" / "subject_00000"
    with pytest.raises(InputError, match="16 bits and 1 channel.*got uint8"):
        read_depth(truth / "view0_parse.png")
    with pytest.raises(InputError, match="8 bits and 1 channel.*got uint16"):
        read_classes(truth / "view0_depth.png")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="16 bits and 3 channel.*got no picture"):
        read_normals(tmp_path / "broken.png")
    with pytest.raises(InputError, match="no.png: cannot be read"):
        read_normals(tmp_path / "no.png")


def test_the_files_are_those_a_fit_and_the_benchmark_read(people, model):
    assert subject_names(people) == [f"subject_0000{i}" for i in range(3)]
    subject = load_subject(people / "subject_00001")
    assert [v.name for v in subject.views] == ["view0", "view1"] and not subject.notes
    truth_folder = people / "ground_truth" / "subject_00001"
    cameras = json.loads((truth_folder / "cameras.json").read_text())["views"]
    for view, camera in zip(subject.views, cameras):
        assert view.image.shape == (SIZE, SIZE, 3)
        np.testing.assert_allclose(view.camera.K, camera["K"])
        np.testing.assert_allclose(view.camera.t, camera["t"])
    truth = load_truth(truth_folder)
    assert same_topology(model.triangles.numpy(), truth)
    assert set(truth.face) == set(np.flatnonzero(model.face.numpy()))
    record = yaml.safe_load((people / "synth.yaml").read_text())
    assert record["recipe"]["views"] == 2 and len(record["model_sha256"]) == 64
    parameters = json.loads((truth_folder / "params.json").read_text())
    identity = torch.tensor([parameters["identity"]])
    on = parameters["expression_per_view"][0]
    expression = torch.tensor([[on.get(n, 0.0) for n in model.expression_names]])
    for name, coefficients in (("neutral", torch.zeros_like(expression)), ("mesh", expression)):
        vertices = model.vertices(identity, coefficients)[0].numpy()
        np.testing.assert_allclose(
            read_mesh(truth_folder / f"{name}.ply")[0], vertices[: len(truth.vertices)], atol=1e-4
        )
    points = model.landmark_points(identity, expression)[0].numpy()
    np.testing.assert_allclose(np.load(truth_folder / "landmarks3d.npy"), points, atol=1e-4)


def test_another_expression_in_each_view_writes_a_mesh_for_each(tmp_path, model):
    write_subjects(recipe_of(expression="per_view", light="per_view", camera="per_view"), 1, tmp_path / "out")
    truth = tmp_path / "out" / "ground_truth" / "subject_00000"
    assert not (truth / "mesh.ply").exists()
    meshes = [read_mesh(truth / f"view{b}.ply")[0] for b in range(2)]
    assert np.abs(meshes[0] - meshes[1]).max() > 0.5
    np.testing.assert_array_equal(
        np.load(truth / "landmarks3d.npy"), np.load(truth / "landmarks3d_neutral.npy")
    )
    cameras = json.loads((truth / "cameras.json").read_text())["views"]
    assert [c["mesh"] for c in cameras] == ["view0.ply", "view1.ply"]
    assert cameras[0]["K"] != cameras[1]["K"]


# ---- the truth, by independent means ----


def vertices_of(model, truth: Path, b: int) -> tuple[np.ndarray, dict]:
    """Camera-frame vertices [V, 3] in float64 and the camera, from params.json and cameras.json alone."""
    parameters = json.loads((truth / "params.json").read_text())
    camera = json.loads((truth / "cameras.json").read_text())["views"][b]
    on = parameters["expression_per_view"][b]
    expression = np.array([on.get(n, 0.0) for n in model.expression_names])
    head = (
        model.mean.double().numpy()
        + np.tensordot(np.array(parameters["identity"]), model.identity_basis.double().numpy(), 1)
        + np.tensordot(expression, model.expression_basis.double().numpy(), 1)
    )
    return head @ np.array(camera["R"]).T + np.array(camera["t"]), camera


def first_hit(ray: np.ndarray, corners: np.ndarray) -> tuple[int, np.ndarray, float] | None:
    """Triangle, barycentric weights and depth where the ray from the origin first meets triangles [F, 3, 3];
    Moeller and Trumbore, 1997."""
    a, ab, ac = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    h = np.cross(ray, ac)
    det = (ab * h).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = -(a * h).sum(1) / det
        q = np.cross(-a, ab)
        v = (q @ ray) / det
        t = (ac * q).sum(1) / det
        hit = np.flatnonzero((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0))
    if not len(hit):
        return None
    k = hit[np.argmin(t[hit])]
    return int(k), np.array([1 - u[k] - v[k], u[k], v[k]]), float(t[k] * ray[2])


def test_landmarks_are_the_models_points_in_the_cameras_and_files(people, model):
    for b in range(2):
        truth = people / "ground_truth" / "subject_00000"
        vertices, camera = vertices_of(model, truth, b)
        corners = vertices[model.triangles[model.landmarks.triangle].numpy()]
        placed = (model.landmarks.barycentric.double().numpy()[..., None] * corners).sum(1) @ np.array(
            camera["K"]
        ).T
        pixels = placed[:, :2] / placed[:, 2:]
        # float32 coefficients and geometry.
        np.testing.assert_allclose(np.load(truth / "landmarks2d.npy")[b], pixels, atol=2e-3)
        np.testing.assert_allclose(
            read_landmarks(people / "subject_00000" / f"view{b}.pts")[:, :2], pixels, atol=3e-3
        )
        assert ((pixels > 0) & (pixels < SIZE - 1)).all(1).mean() > 0.9


def test_landmark_noise_has_the_standard_deviation_that_was_asked_for(model):
    recipe = recipe_of(landmark_noise=2.0, size=32)
    off = np.concatenate(
        [
            v.given - v.landmarks
            for i in range(6)
            for v in render_subject(model, recipe, draw_subject(model, recipe, i))
        ]
    )
    assert off.std() == pytest.approx(2.0, rel=0.08)  # 816 points, two coordinates
    assert abs(off.mean()) < 0.2


def test_outline_points_replace_hidden_jaw_points(model):
    recipe = recipe_of("variation.yaw=50", "jitter=0", landmark_noise=0.0, jaw="outline")
    views = render_subject(model, recipe, draw_subject(model, recipe, 0))
    for view in views:
        moved = np.abs(view.given - view.landmarks).max(1) > 0.5
        assert moved[:17].sum() >= 3 and not moved[17:].any()


def test_depth_normals_and_regions_are_those_of_rays_through_the_pixels(people, model):
    rng = np.random.default_rng(0)
    triangles = model.triangles.numpy()
    hits = 0
    for subject in ("subject_00000", "subject_00002"):
        truth = people / "ground_truth" / subject
        vertices, camera = vertices_of(model, truth, 1)
        corners = vertices[triangles]
        face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        normal = np.zeros_like(vertices)
        for k in range(3):
            np.add.at(normal, triangles[:, k], face)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        depth, normals, region = (
            read(truth / f"view1_{name}.png")
            for read, name in ((read_depth, "depth"), (read_normals, "normals"), (read_classes, "region"))
        )
        for x, y in rng.integers(0, SIZE, (60, 2)):
            hit = first_hit(np.linalg.inv(camera["K"]) @ [x, y, 1.0], corners)
            if hit is None:
                assert depth[y, x] == 0 and region[y, x] == 0 and not normals[y, x].any()
                continue
            triangle, weights, z = hit
            assert depth[y, x] == pytest.approx(z, abs=0.5 * DEPTH_UNIT + 0.02)  # rounding; float32 geometry
            smooth = weights @ normal[triangles[triangle]]
            assert normals[y, x] @ smooth / np.linalg.norm(smooth) > np.cos(np.radians(0.5))
            assert region[y, x] == int(model.region[triangles[triangle, 0]]) + 1
            hits += 1
    assert hits > 40


def test_parse_classes_are_those_of_rays_and_outlines_on_the_mean_head(model):
    """The hit of each pixel's ray, carried to the mean head, against the outlines there; 0.5 px beside an
    edge either class is right."""
    recipe = recipe_of("variation.neutral=0", *PLAIN)
    plan = draw_subject(model, recipe, 1)
    view = render_subject(model, recipe, plan)[1]
    state = plan.state.select([1])
    vertices = state.pose.apply(state.vertices(model))[0].double().numpy()
    triangles, rest, head = model.triangles.numpy(), model.mean.double().numpy(), head_map(model)
    outlines = {PARSE.index(name): outline for name, outline in parse_outlines(head).items()}
    right, left = brow_outlines(head, plan.person)
    outlines[PARSE.index("right_brow")], outlines[PARSE.index("left_brow")] = right, left
    focal, principal = float(state.camera.focal[0]), state.camera.principal[0].double().numpy()
    rng, checked, seen = np.random.default_rng(1), 0, set()
    for y, x in rng.permutation(np.argwhere(view.depth > 0))[:350]:
        hit = first_hit(
            np.array([(x - principal[0]) / focal, (y - principal[1]) / focal, 1.0]), vertices[triangles]
        )
        if hit is None:  # exactly on the silhouette
            continue
        triangle, weights, z = hit
        if head.kind[triangle]:
            name = model.region_names[int(model.region[triangles[triangle, 0]])]
            assert view.parse[y, x] == {"eye_left": LEFT_EYE, "eye_right": RIGHT_EYE}.get(name, MOUTH)
            continue
        place = map_place(weights @ rest[triangles[triangle]])
        signed = {
            k: cv2.pointPolygonTest(outline.astype(np.float32), tuple(map(float, place)), True)
            for k, outline in outlines.items()
        }
        half_pixel = 0.5 * z / focal / PIXEL_MM
        surely = max((k for k, d in signed.items() if d > half_pixel), key=list(outlines).index, default=0)
        possible = {k for k, d in signed.items() if abs(d) <= half_pixel} | {surely}
        if possible & {UPPER_LIP, LOWER_LIP}:
            possible |= {UPPER_LIP, LOWER_LIP}  # the jaw tells them apart, see the next test
        assert int(view.parse[y, x]) in possible, (x, y, signed)
        checked += 1
        seen.add(int(view.parse[y, x]))
    assert checked > 250 and {SKIN, NOSE} <= seen


def test_parse_classes_lie_on_the_landmarks_they_are_named_after(model):
    recipe = recipe_of(
        "variation.yaw=5",
        "variation.pitch=0",
        "variation.roll=0",
        "variation.neutral=0",
        "variation.expression=[0.8, 1.0]",
        *PLAIN,
        size=224,
    )
    opened = 0
    for index in range(12):
        plan = draw_subject(model, recipe, index)
        view = render_subject(model, recipe, plan)[0]
        p = view.landmarks

        def at(point, view=view):
            x, y = np.round(point).astype(int)
            return PARSE[view.parse[y, x]]

        assert at(p[30]) == "nose" and at((p[28] + p[29]) / 2) == "nose"
        assert at((p[1] + p[31]) / 2) == "skin" and at((p[15] + p[35]) / 2) == "skin"
        assert at((p[51] + p[62]) / 2) == "upper_lip" and at((p[57] + p[66]) / 2) == "lower_lip"
        if np.linalg.norm(p[62] - p[66]) > 8:
            assert at((p[62] + p[66]) / 2) == "mouth"
            opened += 1
        for name, corners in (("right_eye", slice(36, 42)), ("left_eye", slice(42, 48))):
            if p[corners][[4, 5], 1].mean() - p[corners][[1, 2], 1].mean() > 6:
                assert at(p[corners].mean(0)) == name
    assert opened >= 2


def test_hair_glasses_and_occluders_are_background_and_hide_landmarks(model):
    recipe = recipe_of(
        "variation.glasses=1.0",
        "variation.dark_glasses=0.0",
        "variation.occluded=1.0",
        "variation.bald=0",
        "variation.occluders=2",
    )
    hidden = 0
    for index in range(4):
        plan = draw_subject(model, recipe, index)
        bare = replace(plan, glasses="no", hair=replace(plan.hair, bald=True))
        free = render_subject(model, recipe_of(*PLAIN), bare)
        for view, other in zip(render_subject(model, recipe, plan), free):
            np.testing.assert_array_equal(view.depth, other.depth)
            covered = view.covered > 128
            assert covered.any() and not view.parse[covered].any()
            assert other.covered.max() == 0
            assert not (view.visible & ~other.visible).any()
            hidden += int((other.visible & ~view.visible).sum())
    assert hidden > 10


def test_parts_tell_hair_glasses_occluders_neck_and_clothes_apart(model):
    seen = set()
    for index in range(6):
        recipe = recipe_of(
            "variation.occluded=0.5", "variation.glasses=0.7", "variation.beard=0.5", "variation.hat=0.2"
        )
        plan = draw_subject(model, recipe, index)
        for b, view in enumerate(render_subject(model, recipe, plan)):
            free = view.covered == 0
            inner = free & (view.parse >= PARSE.index("left_brow"))
            np.testing.assert_array_equal(view.parts[inner], view.parse[inner])
            skin = free & (view.parse == PARSE.index("skin"))
            assert set(np.unique(view.parts[skin])) <= set(numbers(("skin", "beard", "hair", "ears", "neck")))
            hidden = np.isin(view.parts[view.covered > 230], numbers(("hair", "glasses", "occluder")))
            assert hidden.all()
            away = (view.depth == 0) & (view.covered == 0)
            assert set(np.unique(view.parts[away])) <= set(numbers(("background", "neck", "clothes")))
            seen |= {PARTS[i] for i in np.unique(view.parts)}
            cap = is_cap(plan.hair_of(b)) and not plan.hair_of(b).bald
            assert not (cap and (view.parts == PARTS.index("hair")).any())
            assert plan.glasses == "no" or index or (view.parts == PARTS.index("glasses")).any()
    assert {"hair", "beard", "glasses", "occluder", "neck", "ears", "clothes"} <= seen


def test_scalp_hair_is_no_skin(model):
    recipe = recipe_of("variation.bald=0", "variation.hat=0")
    plan = draw_subject(model, recipe, 2)
    view = render_subject(model, recipe, plan)[0]
    state = plan.state.select([0])
    drawn = rasterize(
        state.camera.clip(state.pose.apply(state.vertices(model))),
        model.triangles,
        (SIZE, SIZE),
        backend="torch",
    )
    rest = interpolate(drawn, model.triangles, model.mean[None])[0].numpy()
    hairy = (
        drawn.covered[0].numpy()
        & (scalp_cover(rest, plan.hair) > 0.55)
        & (rest[..., 2] > 0)
        & (rest[..., 1] > 60)
    )
    assert hairy.sum() > 30 and not view.parse[hairy].any()


# ---- the scene ----


def test_cameras_of_a_rig_keep_their_places_when_the_head_moves(model):
    plan = draw_subject(model, recipe_of(frames=2, views=3), 0)
    pose = plan.state.pose
    assert plan.moment.tolist() == [0, 0, 0, 1, 1, 1] and plan.viewpoint.tolist() == [0, 1, 2, 0, 1, 2]
    for view in (1, 2):
        between = [pose.rotation[f + view] @ pose.rotation[f].T for f in (0, 3)]
        offset = [pose.translation[f + view] - r @ pose.translation[f] for f, r in zip((0, 3), between)]
        torch.testing.assert_close(between[0], between[1], atol=1e-5, rtol=0)
        torch.testing.assert_close(offset[0], offset[1], atol=0.02, rtol=0)  # mm at about a metre, float32
    assert (pose.rotation[0] - pose.rotation[3]).abs().max() > 0.005
    assert (plan.state.expression[0] - plan.state.expression[3]).abs().max() > 0
    assert len(set(plan.state.camera.focal.tolist())) == 1


@pytest.mark.parametrize("setup", ["rig", "turning"])
def test_light_in_the_head_frame_is_the_scenes(model, setup):
    plan = draw_subject(model, recipe_of("variation.lamp_share=0", setup=setup, frames=2), 3)
    towards = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    for b, scene in enumerate(plan.scenes):
        in_head = sh_basis(towards) @ plan.state.illumination[b]
        in_scene = sh_basis(towards @ plan.scene_from_head[b].T) @ scene.illumination
        torch.testing.assert_close(in_head, in_scene, atol=1e-4, rtol=1e-4)
    if setup == "turning":  # the camera sees the scene's axes: y up, z towards it
        camera_from_scene = plan.state.pose.rotation @ plan.scene_from_head.transpose(1, 2)
        torch.testing.assert_close(
            camera_from_scene, torch.diag(torch.tensor([1.0, -1, -1])).expand(4, 3, 3), atol=1e-5, rtol=0
        )
    else:
        assert (plan.scene_from_head[:2] == torch.eye(3)).all()
        assert (plan.scene_from_head[2] - torch.eye(3)).abs().max() > 0.005


def test_light_that_is_shared_is_one_and_else_differs(model):
    assert len({id(s) for s in draw_subject(model, recipe_of(), 0).scenes}) == 1
    assert len({s.lamp for s in draw_subject(model, recipe_of(light="per_view"), 0).scenes}) == 2


def test_poses_and_sizes_are_those_of_the_recipe(model):
    recipe = recipe_of(
        "variation.yaw=40", "jitter=2", "variation.fill=[1.4, 1.4]", "variation.shift=0.0", views=3
    )
    for index in range(4):
        plan = draw_subject(model, recipe, index)
        truth = render_subject(
            model, replace(recipe, size=64), draw_subject(model, replace(recipe, size=64), index)
        )
        sizes = [np.ptp(v.landmarks, axis=0).max() for v in truth]
        assert max(sizes) == pytest.approx(64 / 1.4, rel=0.02)
        yaw = [np.degrees(np.arctan2(r[0, 2], -r[2, 2])) for r in plan.state.pose.rotation.numpy()]
        np.testing.assert_allclose(yaw, [-40, 0, 40], atol=2.01)
        for view in truth:
            np.testing.assert_allclose((view.landmarks.min(0) + view.landmarks.max(0)) / 2, 31.5, atol=0.5)


# ---- the compiled parts against the plain ones ----


def test_samples_are_those_of_the_rasterizer(model):
    plan = draw_subject(model, recipe_of(), 0)
    state = plan.state.select([0])
    clip = state.camera.clip(state.pose.apply(state.vertices(model)))
    drawn = rasterize(clip, model.triangles, (SIZE, SIZE), backend="torch")
    found = sample_mesh(clip[0], model.triangles, (SIZE, SIZE), model.mean.numpy())
    np.testing.assert_array_equal(found.pixel, np.flatnonzero(drawn.covered[0].numpy()))
    np.testing.assert_array_equal(found.triangle, drawn.triangle[0][drawn.covered[0]].numpy())
    np.testing.assert_allclose(
        found.values,
        interpolate(drawn, model.triangles, model.mean[None])[0][drawn.covered[0]].numpy(),
        atol=5e-3,
    )


def test_a_plate_shades_what_lies_behind_it():
    square = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    ground, plate = 100 * square, 30 * square + 20
    points = torch.cat([ground, plate], 0)
    points = torch.cat([points, torch.tensor([0.0] * 4 + [40.0] * 4)[:, None]], 1)
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    lamp = torch.nn.functional.normalize(torch.tensor([0.5, 0.0, 1.0]), dim=0)
    shadow = lamp_shadow(points, triangles, lamp)
    x, y = torch.meshgrid(torch.arange(-80.0, 81, 5), torch.arange(-80.0, 81, 5), indexing="ij")
    place = torch.stack([x, y, 0 * x], -1).reshape(-1, 3)
    # the lamp's rays come down on the ground 20 mm to the left of where they pass the plate, 40 mm above it
    off = (place[:, :2] - torch.tensor([0.0, 20])).abs().amax(1) - 30
    reaches = shadow.reaches(place)[:, 0]
    assert bool((reaches[off < -6] == 0).all()) and bool((reaches[off > 6] == 1).all())
    assert bool((shadow.reaches(torch.tensor([[20.0, 20, 40], [0, 0, 40]])) == 1).all())


def test_the_lamp_reaches_all_of_a_ball_that_looks_to_it():
    ball = trimesh.creation.icosphere(5, 90.0)
    points, triangles = torch.from_numpy(ball.vertices).float(), torch.from_numpy(np.array(ball.faces))
    lamp = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8]), dim=0)
    reaches, facing = lamp_shadow(points, triangles, lamp).reaches(points)[:, 0], points @ lamp / 90
    assert bool((reaches[facing > 0.3] == 1).all()) and float(reaches[facing < -0.5].max()) == 0


def test_hollows_see_less_of_the_sky(model):
    sky, points = head_map(model).open_sky[:, 0], model.mean
    skin = model.region == model.region_names.index("face")
    marks = model.landmarks.points(points[None], model.triangles)[0]

    def around(mark, reach):
        return sky[skin & ((points - marks[mark]).norm(dim=-1) < reach)].mean()

    assert float(around(30, 5)) > 0.9  # the nose tip
    assert float(around(66, 5)) < 0.7 and float(sky.min()) < 0.2  # between the lips


def test_compiled_light_is_the_plain_one(model):
    rng = np.random.default_rng(0)
    plan = draw_subject(model, recipe_of(), 0)
    frame, rotation = plan.scene_from_head[1].numpy(), plan.state.pose.rotation[1].numpy()
    scene = replace(random_scene(rng, recipe_of().variation), lamp_strength=0.8, gloss=0.1)
    albedo, normal, shine = rng.uniform(0, 1, (400, 3)), rng.normal(size=(400, 3)), rng.uniform(0, 1, 400)
    sky, place = rng.uniform(0, 1, 400), rng.uniform(-80, 80, (400, 3))
    lamp = torch.from_numpy(frame.T) @ torch.nn.functional.normalize(torch.tensor(scene.lamp), dim=0)
    shadow = lamp_shadow(model.mean, head_map(model).outer, lamp)
    found = light_samples(albedo, normal, scene, frame, rotation, shine, sky, place, shadow)
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    unit[unit @ rotation[2] > 0.15] *= -1
    args = [
        torch.from_numpy(x).float()
        for x in (albedo, unit @ frame.T, sky[:, None], shine, -frame @ rotation[2], place)
    ]
    wanted = light(args[0], args[1], scene, args[2], shadow.reaches(args[5]), args[3], args[4])
    away = np.abs((normal / np.linalg.norm(normal, axis=1, keepdims=True)) @ rotation[2] - 0.15) > 1e-6
    # float32; faint highlights are left out.
    np.testing.assert_allclose(found[away], wanted.numpy()[away], atol=2e-4)


def test_normals_survive_their_code():
    normals = np.random.default_rng(0).normal(size=(5, 7, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[0, 0] = 0
    code = encode_normals(normals)
    assert code.dtype == np.uint16 and not code[0, 0].any() and (code[1] > 0).all()
    np.testing.assert_allclose((code[1].astype(float) - 32768) / 32767, normals[1], atol=2e-5)


# ---- in memory ----


def test_in_memory_subjects_are_those_of_the_folder(people):
    recipe = recipe_of(cameras=True, landmark_noise=0.0)
    data = SynthDataset(recipe, 3)
    assert len(data) == 3
    sample = data[2]
    subject, truth = load_subject(people / sample.id), people / "ground_truth" / sample.id
    observations, labels = sample.observations, sample.truth
    assert labels is observations.labels and observations.images.shape == (2, 3, SIZE, SIZE)
    for b, view in enumerate(subject.views):
        np.testing.assert_array_equal(
            (observations.images[b].permute(1, 2, 0).numpy() * 255).round(), view.image
        )
        np.testing.assert_allclose(
            observations.landmarks.points[b].numpy(), view.landmarks[:, :2], atol=6e-4
        )  # 3 decimals
        np.testing.assert_allclose(
            labels.depth[b].numpy(), read_depth(truth / f"view{b}_depth.png"), atol=0.51 * DEPTH_UNIT
        )
        np.testing.assert_allclose(
            labels.normals[b].permute(1, 2, 0).numpy(),
            read_normals(truth / f"view{b}_normals.png"),
            atol=2e-5,
        )
        np.testing.assert_array_equal(labels.parse[b].numpy(), read_classes(truth / f"view{b}_parse.png"))
    np.testing.assert_array_equal(labels.visible.numpy(), np.load(truth / "visible.npy"))
    np.testing.assert_allclose(labels.points3d[0].numpy(), np.load(truth / "landmarks3d.npy"), atol=1e-4)
    torch.testing.assert_close(labels.vertices[1], data[-1].truth.vertices[1], rtol=0, atol=0)
    assert labels.person.tolist() == [2, 2] and len(set(labels.moment.tolist())) == 1
    with pytest.raises(IndexError, match="subject 3 of 3"):
        data[3]
    with pytest.raises(InputError, match="expected at least 1 subject, got 0"):
        SynthDataset(recipe, 0)


def test_a_fit_with_the_same_model_finds_the_person_again(tmp_path, model):
    """Exact landmarks and known cameras; far closer than the mean face, which is 3.4 mm away on average."""
    write_subjects(load_synth_recipe("clean", (), {"cameras": True, "size": 160}), 1, tmp_path / "out")
    truth = load_truth(tmp_path / "out" / "ground_truth" / "subject_00000")
    result = fit(tmp_path / "out" / "subject_00000", recipe="landmarks")
    found, mean_face = (
        vertex_error(x.double().numpy(), truth, with_scale=False) for x in (result.neutral, model.mean)
    )
    assert found < 1.6 and found < 0.5 * mean_face


def test_a_fit_uses_the_rig_and_the_moments(tmp_path, model):
    recipe = load_synth_recipe("clean", (), {"cameras": True, "size": 160, "views": 3, "frames": 2})
    write_subjects(recipe, 1, tmp_path / "out")
    folder, plan = tmp_path / "out" / "subject_00000", draw_subject(model, recipe, 0)
    subject = load_subject(folder)
    assert [(v.moment, v.camera.name) for v in subject.views] == [(f, c) for f in "01" for c in "012"]
    assert rigs_of(subject.views) == [[0, 1, 2], [3, 4, 5]]
    for key in ("K", "R", "t"):  # the cameras stand still
        first, again = ([getattr(v.camera, key) for v in subject.views[i : i + 3]] for i in (0, 3))
        np.testing.assert_array_equal(first, again)
    for view, R, t in zip(subject.views, plan.state.pose.rotation[:3], plan.state.pose.translation):
        np.testing.assert_allclose(view.camera.R, R, atol=1e-7)
        np.testing.assert_allclose(view.camera.t.reshape(3), t, rtol=1e-6)
    result = fit(folder, recipe="landmarks")
    assert result.metrics["scale"]["metric"] and "camera_contradictions" not in result.metrics
    found, truth = result.state, plan.state
    assert torch.equal(found.expression[:3], found.expression[:1].expand(3, -1))
    assert torch.equal(found.expression[3:], found.expression[3:4].expand(3, -1))
    assert not torch.equal(found.expression[0], found.expression[3])
    for a, b in ((0, 1), (3, 5)):  # the rig is that of the files
        between = [s.pose.rotation[b] @ s.pose.rotation[a].T for s in (found, truth)]
        torch.testing.assert_close(*between, atol=1e-4, rtol=0)
    turned = [s.pose.rotation[3].T @ s.pose.rotation[0] for s in (found, truth)]
    torch.testing.assert_close(*turned, atol=0.02, rtol=0)  # about a degree
    measured = load_truth(tmp_path / "out" / "ground_truth" / "subject_00000")
    assert vertex_error(result.neutral.double().numpy(), measured, with_scale=False) < 1.6


@pytest.mark.parametrize("change", ["setup=turning", "expression=per_view", "frames=1"])
def test_photos_that_share_no_moment_state_none(tmp_path, change):
    write_subjects(recipe_of("frames=2", change, cameras=True), 1, tmp_path / "out")
    given, true = (
        json.loads((tmp_path / "out" / folder / "cameras.json").read_text())["views"]
        for folder in ("subject_00000", "ground_truth/subject_00000")
    )
    for view, camera in zip(given, true):
        assert {k: camera[k] for k in view} == view and "moment" not in view and "camera_id" not in view


# ---- read back for training ----


def test_a_folder_read_back_is_the_subject_that_was_rendered(people, model):
    read, made = (
        SynthFolder(people, model),
        SynthDataset(recipe_of(cameras=True, landmark_noise=0.0), 3, model),
    )
    assert len(read) == 3 and read.ids == ("subject_00000", "subject_00001", "subject_00002")
    for index in range(3):
        a, b = read[index].observations, made[index].observations
        assert torch.equal(a.images, b.images) and torch.allclose(
            a.landmarks.points, b.landmarks.points, atol=2e-3
        )
        assert a.landmarks.jaw == b.landmarks.jaw == "surface" and bool(a.landmarks.valid.all())
        mine, theirs = a.labels.state, b.labels.state
        for get in (
            lambda s: s.identity,
            lambda s: s.expression,
            lambda s: s.pose.rotation,
            lambda s: s.pose.translation,
            lambda s: s.camera.focal,
            lambda s: s.camera.principal,
            lambda s: s.illumination,
        ):
            assert torch.allclose(get(mine), get(theirs), rtol=1e-5, atol=1e-5)
        mine, theirs = a.labels, b.labels
        assert mine.parts == theirs.parts
        for name in ("parse", "visible", "person", "moment"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
        for name, close in (("points3d", 1e-4), ("crop_points", 1e-3), ("depth", 0.06), ("normals", 1e-4)):
            assert torch.allclose(getattr(mine, name), getattr(theirs, name), rtol=0, atol=close), name
        skin = skin_mesh(model)[0]
        assert torch.allclose(mine.vertices[:, skin], theirs.vertices[:, skin], rtol=0, atol=2e-3)
        assert torch.allclose(mine.crop_vertices[:, skin], theirs.crop_vertices[:, skin], rtol=0, atol=5e-3)
    assert len(SynthFolder(people, model, 2)) == 2
    few = SynthFolder(people, model, labels=("parse",))[0].truth.parts
    assert "parse" in few and not few & {"depth", "normals", "vertices", "crop_vertices"}
    assert (
        SynthDataset(recipe_of(landmark_noise=0.0), 1, model, ()).__getitem__(0).truth.parts & set(LARGE)
        == set()
    )


def test_people_of_another_model_keep_what_needs_no_coefficients(people, model):
    other = replace(model, name="other")
    read = open_folder(people, other, 2, {"depth"})
    assert isinstance(read, CarriedFolder) and len(read) == 2
    mine, own = read[1].truth, SynthFolder(people, model, labels={"depth"})[1].truth
    same = {"depth", "points3d", "crop_points", "visible", "person", "moment"}
    assert mine.parts == same | {"pose"}
    assert all(torch.equal(getattr(mine, name), getattr(own, name)) for name in same)
    assert mine.state.pose.rotation.shape == own.state.pose.rotation.shape
    assert isinstance(open_folder(people, model, 1, ()), SynthFolder)


def test_vertices_of_people_are_carried_over_to_another_model(people, model):
    # Vertex i of the other model is the middle of triangle 3 i of this one; the first is nowhere.
    triangle = torch.arange(0, len(model.triangles), 3)
    weight = torch.ones(len(triangle))
    weight[0], triangle[0] = 0, -1
    places = Correspondence(triangle, torch.full((len(triangle), 3), 1 / 3), weight)
    read = SynthFolder(people, model, labels={"crop_vertices"})
    carried = CarriedFolder(read, places, model)[0]
    there = read[0].truth.crop_vertices[:, model.triangles[triangle]].mean(2)
    assert carried.truth is carried.observations.labels
    # The pose is that of the other head frame, which is the same one here; the coefficients say nothing.
    mine, own = carried.truth.state, read[0].truth.state
    torch.testing.assert_close(mine.pose.rotation, own.pose.rotation, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.pose.translation, own.pose.translation, atol=1e-2, rtol=0)
    assert not mine.identity.any() and not mine.expression.any() and "state" not in carried.truth.parts
    assert bool(carried.truth.crop_vertices[:, 0].isnan().all())
    torch.testing.assert_close(carried.truth.crop_vertices[:, 1:], there[:, 1:])


def test_folders_that_cannot_be_read_back(people, model, tmp_path):
    with pytest.raises(
        InputError, match="expected a folder that fitkit synth has written; it holds no synth.yaml"
    ):
        SynthFolder(tmp_path, model)
    copy = shutil.copytree(people, tmp_path / "people")
    truth = copy / "ground_truth" / "subject_00001"
    np.save(truth / "visible.npy", np.ones((2, 5), bool))
    with pytest.raises(
        InputError, match=r"visible.npy: expected \[2, 68\], got \[2, 5\]; render the subject again"
    ):
        SynthFolder(copy, model)[1]
    (truth / "visible.npy").write_bytes(b"no numpy")
    with pytest.raises(InputError, match="visible.npy: not readable as written by fitkit synth"):
        SynthFolder(copy, model)[1]
    shutil.copy(people / "ground_truth/subject_00001/visible.npy", truth)
    with pytest.raises(
        InputError, match="made of face model 'generic', the training has 'tiny'; train with model=generic"
    ):
        SynthFolder(copy, replace(model, name="tiny"))[1]
    cameras = json.loads((truth / "cameras.json").read_text())
    del cameras["views"][0]["K"]
    (truth / "cameras.json").write_text(json.dumps(cameras))
    with pytest.raises(
        InputError,
        match=r"params.json and cameras.json do not tell the scene \(no entry 'K'\); render the subject "
        r"again",
    ):
        SynthFolder(copy, model)[1]
    cameras = json.loads((people / "ground_truth/subject_00001/cameras.json").read_text())
    cameras["views"][0]["image"] = "../subject_00000/view0.jpg"
    (truth / "cameras.json").write_text(json.dumps(cameras))
    with pytest.raises(
        InputError, match="expected the name of something below .*subject_00001, without '..'"
    ):
        SynthFolder(copy, model)[1]
    (truth / "params.json").write_text("[]")
    with pytest.raises(
        InputError, match="params.json: expected an object as fitkit synth writes it, got a list"
    ):
        SynthFolder(copy, model)[1]
    (truth / "params.json").write_text("{")
    with pytest.raises(InputError, match="params.json: not readable as JSON of fitkit synth"):
        SynthFolder(copy, model)[1]
    (copy / "synth.yaml").write_text("a: 1")
    with pytest.raises(InputError, match="synth.yaml: not a recipe that fitkit synth has written"):
        SynthFolder(copy, model)
    (copy / "synth.yaml").write_text((people / "synth.yaml").read_text())
    for name in ("subject_00000", "subject_00001", "subject_00002"):
        shutil.rmtree(copy / name)
    with pytest.raises(InputError, match="no subject in it; render some with fitkit synth"):
        SynthFolder(copy, model)
