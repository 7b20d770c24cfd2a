#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A BOP scene whose camera moves as a ROS 2 bag with masks, depth and TF, and what becomes of it.

    python tools/bag_of_bop.py DATASET OUT [--object 1] [--rate 15]

Writes OUT/recorded, and OUT/alone and OUT/fixed by `pose-refiner bag` without and with
`--fixed-frame world`, and prints how far the object's poses, which stands still in the world, lie
from their middle: without truth that is what can be told.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from pose_refiner_ros.datasets.bop import BopDataset
from pose_refiner_ros.geometry.pose import inverse, rigid
from pose_refiner_ros.ros import bag_messages
from pose_refiner_ros.ros.bag import BagOptions, run_bag, summary_lines
from pose_refiner_ros.ros.conversions import matrix_from_pose, nanoseconds
from pose_refiner_ros.ros.message_types import typestore
from pose_refiner_ros.ros.recording import BagRecorder

IMAGE, INFO = "sensor_msgs/msg/Image", "sensor_msgs/msg/CameraInfo"


def write_bag(data: BopDataset, path: Path, number: int, rate: float) -> dict[int, np.ndarray]:
    """A bag with /masks, /depth, /camera_info and /tf; stamp -> world_from_camera (4, 4)."""
    make, cameras = typestore().types, {}

    def message(kind, header, **fields):
        stamp = make["builtin_interfaces/msg/Time"](**vars(header.stamp))
        header = make["std_msgs/msg/Header"](stamp=stamp, frame_id=header.frame_id)
        return typestore().serialize_cdr(make[kind](header=header, **fields), kind)

    def picture(header, pixels):
        size = {"height": pixels.shape[0], "width": pixels.shape[1], "step": 2 * pixels.shape[1]}
        raw = np.ascontiguousarray(pixels.astype("<u2")).view(np.uint8).ravel()
        return message(IMAGE, header, encoding="16UC1", is_bigendian=0, data=raw, **size)

    with BagRecorder(path, overwrite=True) as bag:
        for count, image in enumerate(data):
            scene = json.loads((image.scene / "scene_camera.json").read_text())[str(image.im_id)]
            rotation = np.reshape(scene["cam_R_w2c"], (3, 3))
            camera_from_world = rigid(rotation, 1e-3 * np.array(scene["cam_t_w2c"]))
            now = int(1e9 * (100.0 + count / rate))
            stamp = SimpleNamespace(sec=now // 10**9, nanosec=now % 10**9)
            camera = SimpleNamespace(stamp=stamp, frame_id="camera")
            world = SimpleNamespace(stamp=stamp, frame_id="world")
            masks = np.zeros(image.camera.size, np.uint16)
            for instance in image.instances:
                mask = image.mask(instance)
                # of a scene without truth it is the number of its mask
                if mask is not None and number in (instance.obj_id, instance.index + 1):
                    masks[mask] = number
            info = message(
                INFO,
                camera,
                height=image.camera.height,
                width=image.camera.width,
                distortion_model="plumb_bob",
                d=np.zeros(5),
                k=image.camera.intrinsics.ravel(),
                r=np.eye(3).ravel(),
                p=np.hstack([image.camera.intrinsics, np.zeros((3, 1))]).ravel(),
                binning_x=0,
                binning_y=0,
                roi=make["sensor_msgs/msg/RegionOfInterest"](0, 0, 0, 0, False),
            )
            cameras[now] = inverse(camera_from_world)
            move = bag_messages.serialize_transforms(world, {"camera": cameras[now]})
            bag.write("/tf", bag_messages.TRANSFORMS, now, move)
            bag.write("/camera_info", INFO, now, info)
            bag.write("/depth", IMAGE, now, picture(camera, 1e3 * image.depth()))
            bag.write("/masks", IMAGE, now + 1, picture(camera, masks))
    return cameras


def spread(path: Path, cameras: dict[int, np.ndarray]) -> str:
    """How the poses on /object_poses lie about their middle in the world."""
    poses = []
    with AnyReader([path], default_typestore=typestore()) as reader:
        chosen = [one for one in reader.connections if one.topic == "/object_poses"]
        for connection, _, raw in reader.messages(chosen):
            found = reader.deserialize(raw, connection.msgtype)
            for one in found.detections:
                stamp = nanoseconds(found.header.stamp)
                poses.append(cameras[stamp] @ matrix_from_pose(one.results[0].pose.pose))
    poses = np.array(poses)
    off = np.linalg.norm(poses[:, :3, 3] - np.median(poses[:, :3, 3], axis=0), axis=1)
    turns = Rotation.from_matrix(poses[:, :3, :3])
    apart = np.degrees((turns.mean().inv() * turns).magnitude())
    return (
        f"{len(poses)} poses; from their middle {1e3 * np.median(off):.1f} mm (9 of 10 within "
        f"{1e3 * np.quantile(off, 0.9):.1f}), {np.median(apart):.1f} degrees "
        f"({np.quantile(apart, 0.9):.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--object", type=int, default=1)
    parser.add_argument("--rate", type=float, default=15.0)
    options = parser.parse_args()
    data = BopDataset(options.dataset, "test")
    mesh = (data.models_path / f"obj_{options.object:06d}.ply").resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    library = options.out / "objects.yaml"
    library.write_text(f"objects:\n  object: {{mesh: '{mesh}', unit: mm}}\n")
    cameras = write_bag(data, options.out / "recorded", options.object, options.rate)
    for name, frame in (("alone", ""), ("fixed", "world")):
        chosen = BagOptions(library, device="cpu", overwrite=True, fixed_frame=frame)
        summary = run_bag(options.out / "recorded", options.out / name, chosen)
        for line in summary_lines(summary):
            print(f"{name}: {line}")
        print(f"{name}: {spread(options.out / name, cameras)}")


if __name__ == "__main__":
    main()
