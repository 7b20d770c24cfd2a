# SPDX-License-Identifier: Apache-2.0
"""Objects as meshes for RViz."""

from pathlib import PurePosixPath

from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from pose_refiner_ros.geometry.pose import about_point
from pose_refiner_ros.objects.simplify import simplify_for_silhouette
from pose_refiner_ros.ros.conversions import pose_from_matrix

RVIZ_READS = (".stl", ".dae", ".obj", ".ply", ".mesh", ".gltf", ".glb")
ROUGH_PX = 4.0  # how far off the outline may be of a mesh that is sent in every message
TRIANGLES = 500  # per marker that carries its own mesh: a message has to stay small


class ObjectMarkers:
    """Makes the markers of a frame, and those that delete what is gone."""

    def __init__(self, library):
        self._library = library
        self._shown = set()  # (namespace, id)
        self._triangles = {}  # object name -> [Point]

    def update(self, header, poses, ids, meshes, opacity):
        """poses: {label: (name, 4x4 pose of the object in the header's frame)}; ids: {label: int};
        meshes: auto | resource | triangles."""
        array = MarkerArray()
        shown = set()
        for label, (name, pose) in poses.items():
            marker = Marker(header=header, ns=name, id=int(ids[label]), action=Marker.ADD)
            model = self._library[name]
            red, green, blue = (float(channel) for channel in model.color)
            marker.color = ColorRGBA(r=red, g=green, b=blue, a=float(opacity))
            if self._by_resource(model, meshes):
                marker.type = Marker.MESH_RESOURCE
                marker.mesh_resource = model.mesh_resource
                scale = float(model.mesh_resource_scale)
                marker.pose = pose_from_matrix(pose @ model.object_from_mesh)
            else:
                marker.type = Marker.TRIANGLE_LIST
                marker.points = self._points(model)
                scale = 1.0
                marker.pose = pose_from_matrix(about_point(pose, model.box_center))
            marker.scale.x = marker.scale.y = marker.scale.z = scale
            shown.add((marker.ns, marker.id))
            array.markers.append(marker)
        for namespace, number in sorted(self._shown - shown):
            array.markers.append(
                Marker(header=header, ns=namespace, id=number, action=Marker.DELETE)
            )
        self._shown = shown
        return array

    def clear(self):
        """Delete all of them."""
        self._shown = set()
        return MarkerArray(markers=[Marker(action=Marker.DELETEALL)])

    @staticmethod
    def _by_resource(model, meshes):
        if meshes == "triangles" or not model.mesh_resource:
            return False
        suffix = PurePosixPath(model.mesh_resource).suffix.lower()
        return meshes == "resource" or suffix in RVIZ_READS

    def _points(self, model):
        if model.name not in self._triangles:
            mesh = model.silhouette_mesh
            if len(mesh.faces) > TRIANGLES:
                mesh = _simplified(model.mesh, max_faces=TRIANGLES)
            if model.mesh_path is None and len(mesh.faces) > TRIANGLES:  # made of a field
                mesh = _simplified(model.silhouette_mesh, tolerance_px=ROUGH_PX)
            # RViz has single precision: about the object's middle, wherever its origin is
            corners = (mesh.vertices - model.box_center)[mesh.faces.ravel()].tolist()
            self._triangles[model.name] = [Point(x=x, y=y, z=z) for x, y, z in corners]
        return self._triangles[model.name]


def _simplified(mesh, **limits):
    """Without a warning: the limits are the markers' own, not the user's."""
    return simplify_for_silhouette(mesh, **limits, warn=lambda _: None)
