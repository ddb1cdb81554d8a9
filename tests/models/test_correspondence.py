"""Dense correspondence of two face models, against meshes whose correspondence is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_model

from fitkit.errors import InputError
from fitkit.models import correspondence as module
from fitkit.models.correspondence import Correspondence, correspondence, register
from fitkit.models.registry import load_model


@pytest.fixture
def models(tmp_path, monkeypatch):
    """An empty models folder."""
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def warped(points):
    """Another head of the same parts: larger, moved, and bent by waves of 3 mm."""
    waves = torch.stack(
        [torch.sin(points.roll(k, 1) @ torch.tensor([0.03, 0.02, 0.04])) for k in range(3)], 1
    )
    return 1.05 * points + torch.tensor([4.0, -12.0, 7.0]) + 3.0 * waves


def shuffled(model, order):
    """The same model with its vertices in another order."""
    back = order.argsort()
    per_vertex = {name: getattr(model, name)[order] for name in ("mean", "region", "skin", "face")}
    bases = {name: getattr(model, name)[:, order] for name in ("identity_basis", "expression_basis")}
    return replace(
        model, triangles=back[model.triangles], albedo_mean=None, albedo_basis=None, **per_vertex, **bases
    )


@pytest.fixture(scope="module")
def pair():
    """`generic`, the same head warped with its vertices shuffled, and where these were."""
    source = load_model("generic")
    order = torch.randperm(source.num_vertices, generator=torch.Generator().manual_seed(0))
    target = replace(shuffled(source, order), name="warped")
    return source, target.with_mean(warped(target.mean)), order


@pytest.fixture(scope="module")
def found(pair):
    return register(*pair[:2])


def near(source, order, points, reach_mm):
    """[V] bool: vertices of the target near some of the landmarks."""
    marks = source.landmarks.points(source.mean[None], source.triangles)[0][points]
    return torch.cdist(source.mean[order], marks).amin(1) < reach_mm


def test_vertices_are_found_where_they_were(pair, found):
    """Near brows, eyes, nose and mouth; a smooth cheek tells nothing of how it was pulled along itself."""
    source, target, order = pair
    away = (found.carry(source.mean, source) - source.mean[order]).norm(dim=1)
    skin = found.weight == 1
    there = skin & near(source, order, slice(17, 68), 12.0)
    assert skin[target.skin].float().mean() > 0.9
    assert float(away[there].mean()) < 0.7 and float(away[skin].quantile(0.99)) < 8.5


def test_upper_and_lower_lips_and_lids_are_not_mixed(pair, found):
    """Between lips that touch, and lids, what jawOpen and eyeBlink move ends within a millimetre."""
    source, _, order = pair
    for name, points in (("jawOpen", slice(48, 68)), ("eyeBlink_L", slice(42, 48))):
        shape = source.expression_basis[source.expression_names.index(name)]
        wrong = (found.carry(shape, source) - shape[order]).norm(dim=1)
        there = (found.weight == 1) & near(source, order, points, 10.0)
        assert float(shape[order][there].norm(dim=1).max()) > 8 and float(wrong[there].max()) < 2


def test_what_lies_inside_is_left_out(pair, found):
    _, target, _ = pair
    names = ("mouth_interior", "teeth", "gums", "tongue", "eye_left", "eye_right")
    inside = [target.region_names.index(n) for n in names]
    assert float(found.weight[torch.isin(target.region, torch.tensor(inside))].max()) == 0
    assert bool(((found.triangle == -1) == (found.weight == 0)).all())


def test_values_are_carried_within_triangles():
    model = tiny_model()
    weights = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    on = Correspondence(torch.tensor([7, 3]), weights, torch.ones(2))
    corners = model.mean[model.triangles[torch.tensor([7, 3])]]
    assert torch.allclose(on.carry(model.mean, model), (weights[..., None] * corners).sum(1))


def test_found_once_and_kept(models, monkeypatch):
    source, target = tiny_model(0), replace(tiny_model(1), name="other / ä")
    first = correspondence(source, target)
    (file,) = (models / "correspondence").iterdir()
    assert file.name.startswith("tiny-other____-")

    def never(*_):
        raise AssertionError("found anew")

    monkeypatch.setattr(module, "register", never)
    again = correspondence(source, target)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values()))
    with pytest.raises(AssertionError, match="found anew"):  # another mean is another model
        correspondence(source, target.with_mean(target.mean + 1e-3))


@pytest.mark.parametrize("content", [b"no archive", None])
def test_a_damaged_file_is_made_anew(models, content):
    source, target = tiny_model(0), replace(tiny_model(1), name="other")
    first = correspondence(source, target)
    (file,) = (models / "correspondence").iterdir()
    whole = file.read_bytes()
    if content is None:  # of another model: one vertex too few
        np.savez(file, **{k: v.numpy()[:-1] for k, v in vars(first).items()})
    else:
        file.write_bytes(content)
    again = correspondence(source, target)
    assert torch.equal(first.triangle, again.triangle) and file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "file"))
    source, target = tiny_model(0), replace(tiny_model(1), name="other")
    assert torch.equal(correspondence(source, target).triangle, register(source, target).triangle)


def test_surfaces_that_face_the_other_way_are_refused():
    source = tiny_model(0)
    inside_out = replace(source, name="inside out", triangles=source.triangles.flip(1))
    with pytest.raises(
        InputError, match="'tiny' and 'inside out': only 0 % of the face of the second can be found"
    ):
        register(source, inside_out)
