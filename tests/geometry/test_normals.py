import torch

from fitkit.geometry.normals import triangle_normals, vertex_normals


def test_counter_clockwise_seen_from_outside_points_outside():
    vertices = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 3, 0]]], dtype=torch.float64)
    triangles = torch.tensor([[0, 1, 2]])
    assert torch.equal(
        triangle_normals(vertices, triangles), torch.tensor([[[0.0, 0, 1]]], dtype=torch.float64)
    )
    assert torch.equal(
        triangle_normals(vertices, triangles, unit=False)[0, 0], torch.tensor([0.0, 0, 6]).double()
    )  # twice the area


def test_vertex_normals_are_area_weighted():
    # Vertex 0 joins a triangle of area 1 in the xy plane and one of area 2 in the yz plane.
    vertices = torch.tensor([[[0.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 4]]], dtype=torch.float64)
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3]])
    expected = torch.nn.functional.normalize(torch.tensor([2.0, 0, 1]).double(), dim=0)
    torch.testing.assert_close(vertex_normals(vertices, triangles)[0, 0], expected)


def test_a_batch_is_what_its_parts_are():
    generator = torch.Generator().manual_seed(0)
    vertices = torch.randn(3, 6, 3, generator=generator)
    triangles = torch.tensor([[0, 1, 2], [2, 3, 4], [4, 5, 0], [1, 3, 5]])
    parts = torch.cat([vertex_normals(v[None], triangles) for v in vertices])
    torch.testing.assert_close(vertex_normals(vertices, triangles), parts)


def test_degenerate_triangles_and_loose_vertices_give_zero_and_finite_derivatives():
    vertices = torch.tensor(
        [[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 5, 5]]], dtype=torch.float64, requires_grad=True
    )
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2]]))
    assert torch.equal(normals, torch.zeros_like(normals))
    normals.sum().backward()
    assert torch.isfinite(vertices.grad).all()


def test_derivative():
    vertices = torch.randn(
        1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    triangles = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4]])
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, triangles), (vertices,))
