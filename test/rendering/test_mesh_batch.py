# SPDX-License-Identifier: Apache-2.0
"""Which edges of a mesh can be its outline, and several meshes in one set of arrays."""

import numpy as np
import pytest
from shapes import box, cylinder, ell, plate

from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.rendering.mesh_batch import MeshBatch, outline_edges


def pairs(outline) -> set[tuple[int, int]]:
    return {tuple(sorted(edge)) for edge in outline.edges[:, :2].tolist()}


def test_a_box_has_its_twelve_edges_and_no_diagonals():
    mesh = box()
    outline = outline_edges(mesh.vertices, mesh.faces)
    assert outline.closed
    length = np.linalg.norm(
        mesh.vertices[outline.edges[:, 0]] - mesh.vertices[outline.edges[:, 1]], axis=1
    )
    np.testing.assert_allclose(np.sort(length), np.repeat([0.08, 0.12, 0.2], 4), rtol=1e-5)


def test_planes_face_outwards():
    mesh = box(1.0, 2.0, 3.0)
    planes = outline_edges(mesh.vertices, mesh.faces).planes
    np.testing.assert_allclose(np.linalg.norm(planes[:, :3], axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.unique(planes[:, 3]), [0.5, 1.0, 1.5], rtol=1e-6)


def test_the_vertices_of_an_edge_come_in_the_order_of_its_first_face():
    mesh = ell()
    for i, j, first, _ in outline_edges(mesh.vertices, mesh.faces).edges:
        face = mesh.faces[first].tolist()
        at = face.index(i)
        assert face[(at + 1) % 3] == j


def test_a_concave_edge_of_a_closed_mesh_is_never_outline():
    mesh = ell()
    outline = outline_edges(mesh.vertices, mesh.faces)
    inner = {(3, 9)}  # where post and foot meet
    assert not pairs(outline) & inner
    holed = outline_edges(mesh.vertices, mesh.faces[1:])  # now one looks in, and it may be
    assert not holed.closed
    assert inner <= pairs(holed)


def test_open_borders_and_crowded_edges_are_tried_from_everywhere():
    sheet = plate()
    outline = outline_edges(sheet.vertices, sheet.faces)
    assert not outline.closed
    assert (outline.edges[:, 3] == -1).all() and len(outline.edges) == 4  # not the flat diagonal

    fin = Mesh(
        np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1.0)]),
        np.array([(0, 1, 2), (1, 0, 3), (0, 1, 4)]),
    )
    spine = [e for e in outline_edges(fin.vertices, fin.faces).edges if set(e[:2]) == {0, 1}]
    assert len(spine) == 1 and spine[0][3] == -1


def test_faces_wound_against_each_other_share_an_edge_without_a_rule():
    mesh = box()
    faces = mesh.faces.copy()
    faces[0] = faces[0, ::-1]
    outline = outline_edges(mesh.vertices, faces)
    assert not outline.closed
    assert (outline.edges[:, 3] == -1).sum() == 3


@pytest.mark.parametrize("given", [False, True], ids=["middles", "given"])
def test_meshes_lie_one_after_the_other(given):
    """Each told of its pivot."""
    far = np.array([1e6, -5e5, 30.0])
    meshes = [ell(), box(), cylinder(), Mesh(ell().vertices + far, ell().faces)]
    pivots = np.array([mesh.vertices[3] for mesh in meshes]) if given else None
    batch = MeshBatch(meshes, pivots=pivots)
    if not given:
        pivots = np.array([mesh.bounds.mean(axis=0) for mesh in meshes])
    np.testing.assert_array_equal(batch.pivots, pivots)
    assert len(batch) == 4
    assert batch.max_vertices == len(meshes[2].vertices)
    assert batch.max_faces == len(meshes[2].faces)
    first = batch.arrays.first_vertex.numpy()
    vertices = batch.arrays.vertices.numpy()
    for k, mesh in enumerate(meshes):
        expected = (mesh.vertices - pivots[k]).astype(np.float32)
        np.testing.assert_array_equal(vertices[first[k] : first[k + 1]], expected)
    # however far the origin is, nothing of the shape is lost
    near, away = (vertices[first[k] : first[k + 1]] for k in (0, 3))
    np.testing.assert_allclose(near, away, atol=1e-9 if given else 1e-8)
    assert batch.arrays.closed.numpy().tolist() == [1, 1, 1, 1]


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one mesh"):
        MeshBatch([])
