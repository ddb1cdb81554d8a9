"""The joints of face models that have none: exported files are read back and their joints turned."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from gltf_files import accessor, read, skinned
from helpers import tiny_model, tiny_result
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from fitkit.export.gltf import write_glb
from fitkit.export.morphs import morphs_of, track_of
from fitkit.export.rig import rig_of
from fitkit.models.registry import load_model


@pytest.fixture(scope="module")
def model():
    """`generic` without texture, so that vertices of files are those of the model."""
    return replace(load_model("generic"), uv=None, uv_triangles=None)


@pytest.fixture(scope="module")
def person(model):
    identity = torch.randn(1, model.num_identity, generator=torch.Generator().manual_seed(3))
    return model.vertices(identity, torch.zeros(1, model.num_expression))[0]


@pytest.fixture(scope="module")
def file(model, person, tmp_path_factory):
    path = tmp_path_factory.mktemp("rig") / "a.glb"
    return read(write_glb(path, person, model, morphs=[], rig=rig_of(model, person)))


def in_regions(model, *names):
    return np.isin(model.region, [model.region_names.index(name) for name in names])


def end_of_neck(model):
    """[V] bool: on an edge of one triangle alone."""
    edges = Counter(
        tuple(sorted(e)) for a, b, c in model.triangles.tolist() for e in ((a, b), (b, c), (c, a))
    )
    ends = {v for edge, count in edges.items() if count == 1 for v in edge}
    return np.isin(np.arange(model.num_vertices), list(ends)) & in_regions(model, "neck")


def rigid_turn(before, after):
    """The rotation [3, 3] that explains most of a motion of points [N, 3], and how far it is off at most."""
    a, b = before - before.mean(0), after - after.mean(0)
    turn = Rotation.align_vectors(b, a)[0]
    return turn, np.linalg.norm(turn.apply(a) - b, axis=1).max()


def ball_of(points):
    """Middle and radius of a sphere: the least squares of distances from its surface."""
    start = [*points.mean(0), 10.0]
    found = least_squares(lambda s: np.linalg.norm(points - s[:3], axis=1) - s[3], start).x
    return found[:3], found[3]


def test_the_face_at_rest_is_the_person(file, person):
    names = [node["name"] for node in file[0]["nodes"][1:]]
    assert names == ["root", "neck", "head", "eye_left", "eye_right"]
    children = {
        node["name"]: [names[c - 1] for c in node.get("children", [])] for node in file[0]["nodes"][1:]
    }
    assert children == {
        "root": ["neck"],
        "neck": ["head"],
        "head": ["eye_left", "eye_right"],
        "eye_left": [],
        "eye_right": [],
    }
    np.testing.assert_allclose(skinned(*file, {}), person, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_eye_turns_about_its_middle_and_nothing_else_moves(file, model, person, side):
    turn = np.radians([12.0, 16.0, 0.0])  # 20 degrees
    points, moved = person.numpy(), skinned(*file, {f"eye_{side}": turn})
    ball = in_regions(model, f"eye_{side}")
    assert points[ball, 0].mean() * {"left": 1, "right": -1}[side] > 20
    np.testing.assert_allclose(moved[~ball], points[~ball], atol=1e-4)
    found, off = rigid_turn(points[ball], moved[ball])
    np.testing.assert_allclose(found.as_rotvec(), turn, atol=1e-5)
    assert off < 1e-3
    (before, radius), (after, _) = ball_of(points[ball]), ball_of(moved[ball])
    assert 10 < radius < 18 and np.linalg.norm(after - before) < 0.05


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_head_turns_as_one_and_the_end_of_the_neck_stays(file, model, person, axis):
    turn = np.radians(30.0) * np.eye(3)[axis]
    points, moved = person.numpy(), skinned(*file, {"head": turn})
    end = end_of_neck(model)
    assert end.sum() > 30
    np.testing.assert_allclose(moved[end], points[end], atol=1e-4)
    head = ~in_regions(model, "neck")
    found, off = rigid_turn(points[head], moved[head])
    np.testing.assert_allclose(found.as_rotvec(), turn, atol=1e-5)
    assert off < 1e-3


def test_the_skin_of_the_neck_follows_smoothly(model, person):
    rig = rig_of(model, person)
    points, weights = person.numpy(), rig.weights[:, :3]
    a, b = np.concatenate([model.triangles.numpy()[:, k] for k in ([0, 1], [1, 2], [2, 0])]).T
    sheet = ~in_regions(model, "eye_left", "eye_right")
    a, b = a[sheet[a]], b[sheet[a]]
    change = np.abs(weights[a] - weights[b]).max(1)
    assert (change / np.linalg.norm(points[a] - points[b], axis=1)).max() < 0.05  # in a millimetre
    # Each joint has skin of its own, and left and right are alike.
    assert (weights.max(0) > [0.99, 0.25, 0.99]).all()
    mirror = cKDTree(model.mean).query(model.mean * torch.tensor([-1.0, 1.0, 1.0]))[1]
    np.testing.assert_allclose(weights[mirror][sheet], weights[sheet], atol=0.02)


def test_the_neck_carries_the_head(file, model, person):
    turn = np.radians([20.0, 0.0, 0.0])
    points, moved = person.numpy(), skinned(*file, {"neck": turn})
    end, head = end_of_neck(model), ~in_regions(model, "neck")
    np.testing.assert_allclose(moved[end], points[end], atol=1e-4)
    found, off = rigid_turn(points[head], moved[head])
    np.testing.assert_allclose(found.as_rotvec(), turn, atol=1e-5)
    assert off < 1e-3


def test_joints_are_where_they_are_in_a_body(model, person):
    rig = rig_of(model, person)
    root, neck, head = rig.places[:3]
    low = person.numpy()[end_of_neck(model)]
    assert np.linalg.norm(root - low.mean(0)) < 6 and root[1] < neck[1] < head[1]
    marks = model.landmarks.points(person[None], model.triangles)[0].numpy()
    assert marks[8, 1] < head[1] < marks[33, 1] and abs(head[0]) < 5  # between chin and nose, in the middle
    assert head[2] < marks[8, 2] - 50


def with_neck_and_eyes(seed=0, **changes):
    """The tiny model with regions of its own: `neck` below the chin, eyes around two points."""
    model = tiny_model(seed)
    low = model.mean[:, 1] < model.mean[:, 1].quantile(0.2)
    eyes = [(model.mean - model.mean.new_tensor([x, 35.0, 80.0])).norm(dim=1) < 30 for x in (35.0, -35.0)]
    region = torch.zeros(model.num_vertices, dtype=torch.int64)
    for number, rows in enumerate((low, *eyes), 1):
        assert rows.sum() > 3
        region[rows] = number
    return replace(model, region=region, region_names=("face", "neck", "eye_left", "eye_right"), **changes)


def test_models_without_neck_or_eyes_have_fewer_joints(tmp_path):
    whole = with_neck_and_eyes()
    neutral = whole.mean
    assert rig_of(whole, neutral).names == ("root", "neck", "head", "eye_left", "eye_right")
    without_eyes = replace(whole, region_names=("face", "neck", "cheek", "cheek2"))
    assert rig_of(without_eyes, neutral).names == ("root", "neck", "head")
    without_neck = rig_of(replace(whole, region_names=("face", "chin", "eye_left", "eye_right")), neutral)
    assert (without_neck.names, without_neck.parents) == (("root", "eye_left", "eye_right"), (-1, 0, 0))
    missing = whole.landmarks.triangle.clone()
    missing[8] = -1
    no_chin = replace(whole, landmarks=replace(whole.landmarks, triangle=missing))
    assert rig_of(no_chin, neutral).names == without_neck.names
    bare = rig_of(tiny_model(), neutral)
    assert bare.names == ("root",) and not bare.places.any() and (bare.weights == 1).all()
    document, _ = read(write_glb(tmp_path / "a.glb", neutral, tiny_model(), rig=bare))
    assert "skins" not in document
    for rig in (rig_of(whole, neutral), without_neck):
        assert (rig.weights >= 0).all()
        np.testing.assert_allclose(rig.weights.sum(1), 1)


def test_photos_move_the_root(tmp_path):
    model = with_neck_and_eyes(uv=None, uv_triangles=None)
    result = tiny_result(seed=2, model=model)
    state = result.state.replace(expression=torch.zeros_like(result.state.expression))
    result = replace(result, state=state)
    morphs, neutral = morphs_of(model), result.neutral
    rig = rig_of(model, neutral)
    assert np.linalg.norm(rig.places[0]) > 20
    path = write_glb(tmp_path / "a.glb", neutral, model, None, "a", morphs, track_of(result, morphs), rig=rig)
    document, binary = read(path)
    moves, animation = {}, document["animations"][0]
    for channel in animation["channels"]:
        at = channel["target"]["node"], channel["target"]["path"]
        moves[at] = accessor(document, binary, animation["samplers"][channel["sampler"]]["output"])
    assert set(moves) == {(0, "weights"), (1, "rotation"), (1, "translation")}
    for i, posed in enumerate(state.posed(model).numpy()):
        document["nodes"][1]["translation"] = moves[1, "translation"][i]
        turn = Rotation.from_quat(moves[1, "rotation"][i]).as_rotvec()
        np.testing.assert_allclose(skinned(document, binary, {"root": turn}), posed * [1, -1, -1], atol=0.01)
