# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
from ros_messages import header, write_library
from visualization_msgs.msg import Marker

from pose_refiner_ros.objects.library import ObjectLibrary
from pose_refiner_ros.objects.mesh import Mesh
from pose_refiner_ros.objects.model import ObjectModel
from pose_refiner_ros.ros.markers import ObjectMarkers


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return ObjectLibrary.load(write_library(tmp_path_factory.mktemp("objects")))


def update(markers, names, ids, meshes="auto", opacity=0.5):
    poses = {label: (name, np.eye(4)) for label, name in names.items()}
    return markers.update(header(stamp=7), poses, ids, meshes, opacity).markers


def test_mesh_by_its_file(library):
    (marker,) = update(ObjectMarkers(library), {1: "mug"}, {1: 5})
    assert (marker.ns, marker.id, marker.action) == ("mug", 5, Marker.ADD)
    assert marker.type == Marker.MESH_RESOURCE
    assert marker.mesh_resource.startswith("file:///") and marker.mesh_resource.endswith("box.obj")
    assert marker.scale.x == marker.scale.y == marker.scale.z == 1.0
    assert marker.header == header(stamp=7)
    assert marker.color.a == 0.5 and type(marker.color.r) is float


def test_units_and_axes_of_the_file():
    model = replace(
        _model(),
        mesh_resource="package://objects/mug.dae",
        mesh_resource_scale=0.001,
        object_from_mesh=np.array([[0, -1, 0, 0.5], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    (marker,) = update(ObjectMarkers({"mug": model}), {1: "mug"}, {1: 1})
    assert marker.mesh_resource == "package://objects/mug.dae"
    assert marker.scale.x == 0.001
    assert marker.pose.position.x == 0.5
    assert marker.pose.orientation.z == pytest.approx(np.sqrt(0.5))


def _model():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    return ObjectModel("mug", Mesh(vertices, faces))


def test_triangles_where_there_is_no_file():
    (marker,) = update(ObjectMarkers({"mug": _model()}), {1: "mug"}, {1: 1}, meshes="resource")
    assert marker.type == Marker.TRIANGLE_LIST
    assert len(marker.points) == 3 * 4
    assert marker.scale.x == 1.0


def test_triangles_on_demand_and_for_files_that_rviz_cannot_read(library):
    (marker,) = update(ObjectMarkers(library), {1: "mug"}, {1: 1}, meshes="triangles")
    assert marker.type == Marker.TRIANGLE_LIST
    model = replace(library["mug"], mesh_resource="file:///mug.step")
    (marker,) = update(ObjectMarkers({"mug": model}), {1: "mug"}, {1: 1}, meshes="auto")
    assert marker.type == Marker.TRIANGLE_LIST


def test_what_is_gone_is_deleted_once(library):
    markers = ObjectMarkers(library)
    update(markers, {1: "mug", 2: "box"}, {1: 1, 2: 2})
    kept, deleted = update(markers, {1: "mug"}, {1: 1})
    assert (kept.ns, kept.action) == ("mug", Marker.ADD)
    assert (deleted.ns, deleted.id, deleted.action) == ("box", 2, Marker.DELETE)
    assert len(update(markers, {1: "mug"}, {1: 1})) == 1
    assert [m.action for m in update(markers, {}, {})] == [Marker.DELETE]
    assert update(markers, {}, {}) == []


def test_clear(library):
    markers = ObjectMarkers(library)
    update(markers, {1: "mug"}, {1: 1})
    assert [m.action for m in markers.clear().markers] == [Marker.DELETEALL]
    assert update(markers, {}, {}) == []
