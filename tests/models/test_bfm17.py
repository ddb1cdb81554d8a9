"""The Basel Face Models of 2017 and 2019, in small files of their layout."""

import sys

import h5py
import numpy as np
import pytest
import torch
from model_files_bfm import LAST, NAMED, NUMBERS, small_face, write_bfm17

from fitkit.errors import InputError
from fitkit.geometry.color import linear_from_srgb
from fitkit.geometry.normals import triangle_normals
from fitkit.io import foreign
from fitkit.models.formats import FORMATS, bfm17
from fitkit.models.formats.bfm17 import import_bfm17
from fitkit.models.io import load_model_file, save_model_file

FACE = small_face()
KNOWN = {k for n, k in NAMED.items() if n in bfm17.NAMED}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model2017-1_small.h5"
    write_bfm17(path)
    return path


@pytest.fixture
def model(path):
    return import_bfm17(path)


def change(path, **arrays):
    """Replace arrays of a file; names with '__' for '/'."""
    with h5py.File(path, "r+") as file:
        for key, value in arrays.items():
            name = key.replace("__", "/")
            if name in file:
                del file[name]
            if value is not None:
                file[name] = value


def test_vertices_are_those_of_the_published_formula(tmp_path):
    arrays = write_bfm17(tmp_path / "a.h5")
    model, rng = import_bfm17(tmp_path / "a.h5"), np.random.default_rng(0)
    a, b, c = rng.normal(size=6), rng.normal(size=4), rng.normal(size=2)

    def part(name, coefficients):
        mean, basis, variance = (arrays[f"{name}/model/{k}"] for k in ("mean", "pcaBasis", "pcaVariance"))
        return mean + basis @ (np.sqrt(variance) * coefficients)

    got = model.vertices(torch.tensor(a[None]).float(), torch.tensor(b[None]).float())[0]
    np.testing.assert_allclose(got.reshape(-1), part("shape", a) + part("expression", b), atol=2e-4)
    assert model.coefficients["expression"].sigma.tolist() == [1] * 4 and model.num_identity == 6
    assert (model.triangles.numpy() == FACE.triangles).all()
    # Colours: exact at the mean, to first order beside it.
    assert torch.allclose(model.albedo_mean, linear_from_srgb(torch.tensor(FACE.colors)).float(), atol=1e-6)
    small = 1e-3 * c
    color = torch.tensor(part("color", small).reshape(-1, 3))
    albedo = model.albedo_mean + torch.einsum("k,kvc->vc", torch.tensor(small).float(), model.albedo_basis)
    np.testing.assert_allclose(albedo, linear_from_srgb(color), atol=2e-6)
    assert "standard-normal" in model.notes and "no neutral face" in model.notes


@pytest.mark.parametrize("text", ["fixed", "variable", "bytes"])
def test_landmarks_by_their_names_in_the_file(tmp_path, text):
    write_bfm17(tmp_path / "a.h5", text=text)
    model = import_bfm17(tmp_path / "a.h5")
    assert set(range(68)) - set(model.landmarks.missing) == KNOWN and len(KNOWN) == 17
    corners = model.triangles[model.landmarks.triangle]
    at = corners[torch.arange(68), model.landmarks.barycentric.argmax(1)].numpy()
    there = sorted(KNOWN)
    assert (at[there] == FACE.landmarks[there]).all()


def test_landmarks_on_the_reference_mesh(tmp_path, path):
    """Where the mean is another mesh than the reference, the places are vertices of the latter."""
    change(path, shape__representer__points=np.float32(FACE.mean.T + [[3.0], [1.0], [-20.0]]))
    places = {n: FACE.mean[FACE.landmarks[k]] + [3, 1, -20] for n, k in NAMED.items()}
    other = tmp_path / "b.h5"
    write_bfm17(other, landmarks={n: p.tolist() for n, p in places.items()})
    with h5py.File(other) as file:
        change(path, metadata__landmarks__json=file["metadata/landmarks/json"][()])
    points = import_bfm17(path).landmarks.points(
        torch.tensor(FACE.mean[None]).float(), torch.tensor(FACE.triangles)
    )
    np.testing.assert_allclose(points[0, sorted(KNOWN)], FACE.mean[FACE.landmarks[sorted(KNOWN)]], atol=1e-4)


def test_tables_of_all_points(path, monkeypatch):
    """A list beside the file, or a table for its mesh; both must agree with the points the file names."""
    monkeypatch.setitem(bfm17.TABLES, len(FACE.mean), tuple(FACE.landmarks.tolist()))
    assert import_bfm17(path).landmarks.missing == ()
    change(path, metadata__landmarks__json=None)
    assert import_bfm17(path).landmarks.missing == ()
    beside = path.with_name("Landmarks68_model2017-1_small.anl")
    beside.write_text("\n".join(map(str, [-1, *FACE.landmarks[1:]])))
    assert import_bfm17(path).landmarks.missing == (0,)
    write_bfm17(path)
    beside.write_text("\n".join(map(str, np.roll(FACE.landmarks, 1))))
    with pytest.raises(InputError, match=r"small.anl: landmark \d+ is \d+\.?\d* mm from where .* marks it"):
        import_bfm17(path)
    for text, message in (
        ("1\n2\n", f"expected 68 numbers in -1..{LAST}, got 2"),
        ("a\n", "not a list of 68"),
    ):
        beside.write_text(text)
        with pytest.raises(InputError, match=message):
            import_bfm17(path)


def test_a_table_of_another_mesh_is_not_used(path, monkeypatch):
    monkeypatch.setitem(bfm17.TABLES, len(FACE.mean), tuple(np.roll(FACE.landmarks, 1).tolist()))
    assert set(range(68)) - set(import_bfm17(path).landmarks.missing) == KNOWN
    some = [v if k in (*KNOWN, 49) and k != 33 else -1 for k, v in enumerate(FACE.landmarks.tolist())]
    monkeypatch.setitem(bfm17.TABLES, len(FACE.mean), tuple(some))
    assert set(range(68)) - set(import_bfm17(path).landmarks.missing) == KNOWN | {49}, "33 by its name"


def test_the_tables_have_68_points_of_their_mesh():
    for count, table in bfm17.TABLES.items():
        there = [v for v in table if v >= 0]
        assert len(table) == 68 and len(there) == len(set(there)) and min(there) > 0 and max(there) < count
    assert min(bfm17.TABLES[28588]) > 0 and sum(v >= 0 for v in bfm17.TABLES[53149]) == 26


def test_no_landmarks(path):
    change(path, metadata__landmarks__json=None)
    with pytest.raises(
        InputError, match="nothing says where its landmarks are; .* Landmarks68_model2017-1_small.anl"
    ):
        import_bfm17(path)


def test_clockwise_triangles_are_turned(path):
    change(path, shape__representer__cells=FACE.triangles.T[[0, 2, 1]].astype(np.int32))
    model = import_bfm17(path)
    nose = model.landmarks.triangle[30]
    assert triangle_normals(model.mean[None], model.triangles)[0, nose, 2] > 0


def test_a_model_without_colours(path):
    with h5py.File(path, "r+") as file:
        del file["color"]
    model = import_bfm17(path)
    assert model.albedo_mean is None and model.albedo_basis is None


def named(place):
    return np.array([f'[{{"id": "center.nose.tip", "coordinates": {place}}}]'.encode()])


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"expression__model__mean": None}, "it lacks expression/model/mean"),
        ({"color__model__pcaBasis": None}, "expected color/model/pcaBasis with color/model/mean"),
        ({"shape__model__pcaVariance": np.full(6, -1.0)}, "expected numbers of 0 or more, got -1"),
        ({"shape__model__pcaVariance": np.ones(5)}, r"pcaVariance: expected shape \[6\], got \[5\]"),
        ({"expression__model__mean": np.zeros(30)}, rf"expression/model/mean: expected shape \[{NUMBERS}\]"),
        ({"shape__representer__cells": np.ones((4, 3), int)}, r"cells: expected shape \[3, 'F'\]"),
        ({"shape__representer__cells": np.full((3, 4), 9e9)}, "cells: expected whole numbers"),
        (
            {"shape__representer__cells": np.full((3, 4), 10**6)},
            f"triangles: expected .*indices in 0..{LAST}",
        ),
        ({"shape__model__mean": np.full(NUMBERS, np.nan)}, "shape/model/mean holds values that are not fin"),
        ({"color__model__mean": np.full(NUMBERS, 128.0)}, "expected a mean of 0 to 1, got 128 to 128"),
        ({"metadata__landmarks__json": np.array([b"{"])}, "expected a list of landmarks with id"),
        ({"metadata__landmarks__json": named("[0, 0, 900]")}, "center.nose.tip is .* mm from all vertices"),
        ({"metadata__landmarks__json": named("[NaN, 0, 9]")}, "not all numbers are finite"),
    ],
)  # fmt: skip
def test_broken_files(path, arrays, message):
    change(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        import_bfm17(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x89HDF\r\n\x1a\n" + b"\0" * 40, b"no HDF5 at all"])
def test_no_hdf5(path, data):
    path.write_bytes(data)
    with pytest.raises(InputError, match="not a Basel Face Model of 2017 or 2019"):
        import_bfm17(path)


def test_what_is_declared_is_not_made(path):
    """10^9 vertices that take no room in the file."""
    with h5py.File(path, "r+") as file:
        del file["shape/model/mean"]
        file.create_dataset("shape/model/mean", (3 * 10**9,), "f4", chunks=(1000,), compression="gzip")
    assert path.stat().st_size < 10**7
    with pytest.raises(InputError, match="shape/model/mean: the header states 1.14e.04 MB"):
        import_bfm17(path)


def test_other_files_are_not_read(path, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\1" * 4 * NUMBERS)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["mean"] = np.zeros(NUMBERS)

    def outside(file):
        file.create_dataset("shape/model/mean", (NUMBERS,), "f4", external=[(str(secret), 0, 4 * NUMBERS)])

    def virtual(file):
        layout = h5py.VirtualLayout((NUMBERS,), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "mean", (NUMBERS,))
        file.create_virtual_dataset("shape/model/mean", layout)

    def external(file):
        file["shape/model/mean"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "mean")

    def soft(file):
        file["shape/model/mean"] = h5py.SoftLink("/color/model/mean")

    def group(file):
        file.create_group("shape/model/mean")

    def references(file):
        file.create_dataset("shape/model/mean", data=[file["shape"].ref], dtype=h5py.ref_dtype)

    for make, message in (
        (outside, "its numbers are in another file"),
        (virtual, "its numbers are in another file"),
        (external, "it is a link to another place"),
        (soft, "it is a link to another place"),
        (group, "expected an array"),
        (references, "expected numbers or one text, got 1 values of object"),
    ):
        write_bfm17(path)
        with h5py.File(path, "r+") as file:
            del file["shape/model/mean"]
            make(file)
        with pytest.raises(InputError, match=f"shape/model/mean: {message}"):
            import_bfm17(path)


def test_several_texts_are_none(path):
    with h5py.File(path, "r+") as file:
        del file["metadata/landmarks/json"]
        file["metadata/landmarks/json"] = ["a", "b"]
    with pytest.raises(InputError, match="expected numbers or one text, got 2 values"):
        import_bfm17(path)


def test_the_package_is_missing(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"HDF5 files need the package h5py; .* 'fitkit\[hdf5\]'"):
        import_bfm17(path)


def test_arrays_have_room_for_the_published_ones():
    """The largest, model2019_fullHead.h5: 58,203 vertices, 199 + 100 + 199 shapes in single precision."""
    assert 4 * 3 * 58203 * (199 + 100 + 199 + 4) + 3 * 4 * 116160 < foreign.ARRAY_BYTES


def test_kinds_and_storage(path, model, tmp_path):
    assert FORMATS["bfm17"].read(path).name == "bfm17" and FORMATS["bfm19"].read(path, "x").name == "x"
    assert FORMATS["bfm19"].read(path).name == "bfm19"
    again = load_model_file(save_model_file(model, tmp_path / "a.npz"))
    assert again.expression_kind == "gaussian" and again.landmarks.missing == model.landmarks.missing
    torch.testing.assert_close(again.albedo_basis, model.albedo_basis, atol=1e-4, rtol=1e-3)
