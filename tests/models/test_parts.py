import numpy as np
import torch

import fitkit
from fitkit.models.formats.parts import at_vertices, parts_of

GENERIC = fitkit.load_model("generic")


def test_landmarks_at_vertices():
    triangles = np.array([[0, 1, 2], [2, 1, 3], [3, 4, 0]])
    marks = at_vertices(triangles, [3, 0, -1, *[1] * 65])
    assert marks.triangle[:4].tolist() == [1, 0, -1, 0] and marks.missing == (2,)
    vertices = torch.arange(15.0).reshape(1, 5, 3)
    torch.testing.assert_close(
        marks.points(vertices, torch.from_numpy(triangles))[0, :2], vertices[0, [3, 0]]
    )


def test_parts_of_another_mesh_of_the_same_head():
    """Every triangle of `generic` in four, moved and bent: parts are known."""
    mean, triangles = GENERIC.mean.numpy(), GENERIC.triangles.numpy()
    edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1)
    pairs, at = np.unique(edges, axis=0, return_inverse=True)
    middle = at.reshape(-1, 3) + len(mean)
    ab, bc, ca = middle.T
    a, b, c = triangles.T
    fine = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    points = np.concatenate([mean, mean[pairs].mean(1)])
    points = points * [1.1, 0.95, 1.05] + [0.0, 4.0, -3.0]
    corner = GENERIC.landmarks.triangle.numpy()  # the first quarter of each triangle holds its corner a
    marks = at_vertices(fine, triangles[corner, GENERIC.landmarks.barycentric.argmax(1).numpy()])
    parts = parts_of(points, fine, marks)
    assert parts.region_names == GENERIC.region_names
    same = parts.region[: len(mean)] == GENERIC.region
    assert float(same.float().mean()) > 0.97
    assert float((parts.skin[: len(mean)] == GENERIC.skin).float().mean()) > 0.97


def test_shoulders_are_no_skin():
    far = GENERIC.mean.numpy() + [0, -400, 0]
    points = np.concatenate([GENERIC.mean.numpy(), far])
    triangles = GENERIC.triangles.numpy()
    parts = parts_of(points, np.concatenate([triangles, triangles + len(far)]), GENERIC.landmarks)
    below = parts.region[len(far) :]
    assert not parts.skin[len(far) :].any() and bool((below == GENERIC.region_names.index("neck")).all())
    torch.testing.assert_close(parts.skin[: len(far)], GENERIC.skin)
