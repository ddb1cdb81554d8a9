"""`fitkit model correspondence`: the table that a protocol with meshes of another topology needs."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from model_files_own import write_landmarks, write_obj

from fitkit.cli.main import main
from fitkit.evaluate.vertex_error import corresponding_distances, read_correspondence
from fitkit.models.registry import load_model


@pytest.mark.slow
def test_a_table_of_another_topology(tmp_path, monkeypatch):
    """The same head with its vertices in another order and in another frame and unit: each comes back to its
    place."""
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path / "models"))
    model = load_model("generic")
    V = model.num_vertices
    order = np.random.default_rng(0).permutation(V)
    place = np.argsort(order)  # of our vertex in the file
    vertices = model.mean.numpy()[order] * 0.01 + [0.3, -0.2, 1.0]
    write_obj(tmp_path / "pose_0.obj", vertices, place[model.triangles.numpy()])
    table_file = tmp_path / "table.npz"

    def run(*arguments):
        return CliRunner().invoke(main, ["model", "correspondence", *map(str, arguments)])

    marks = write_landmarks(tmp_path / "marks.txt", model.landmarks)  # the triangles kept their order
    made = run("generic", tmp_path / "pose_0.obj", "-o", table_file, "--landmarks", marks)
    assert made.exit_code == 0, made.output
    table = read_correspondence(table_file)
    assert f"{len(table.vertex)} of {V} vertices lie on generic" in made.output
    face = set(np.flatnonzero(model.face.numpy()))
    ours = order[table.vertex]  # what they are
    assert len(face & set(ours.tolist())) > 0.9 * len(face)
    corners = model.mean.double().numpy()[model.triangles.numpy()[table.triangle]]
    away = np.linalg.norm((table.barycentric[..., None] * corners).sum(1) - model.mean.numpy()[ours], axis=1)
    assert np.median(away) < 0.5 and np.percentile(away, 95) < 3.0  # mm
    # The exact mesh of another person scores next to nothing, the mean face more.
    coefficients = torch.zeros(1, model.num_identity)
    coefficients[0, :3] = torch.tensor([2.0, -2.0, 1.5])
    person = model.vertices(coefficients, torch.zeros(1, model.num_expression))[0].double().numpy()
    faces = model.triangles.numpy()
    exact = corresponding_distances(person, faces, person[order] * 0.01, table).mean()
    mean = corresponding_distances(model.mean.double().numpy(), faces, person[order] * 0.01, table).mean()
    assert exact < 0.2 * mean


def test_refusals(tmp_path):
    def output(*arguments):
        result = CliRunner().invoke(main, ["model", "correspondence", *map(str, arguments)])
        assert result.exit_code == 1
        return result.output

    assert "got nothing there" in output("generic", tmp_path / "no.obj", "-o", tmp_path / "t.npz")
    said = output("generic", "generic", "-o", tmp_path / "t.npz", "--landmarks", tmp_path / "marks.txt")
    assert "--landmarks: expected with a mesh file only, generic is a model that has its own" in said
    assert not (tmp_path / "t.npz").exists()
