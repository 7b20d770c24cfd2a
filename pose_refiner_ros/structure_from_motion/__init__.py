# SPDX-License-Identifier: Apache-2.0
"""From photos alone to photos with poses, by structure from motion (pycolmap, optional).

photos.py which photos there are; reconstruct.py pycolmap's part; mask_agreement.py which poses
masks rule out; metric_scale.py how long a unit is; upright.py where up and the origin are;
photos_to_poses.py all of it in order, to a file in the transforms layout.
"""

from pose_refiner_ros.structure_from_motion.photos import StructureFromMotionError
from pose_refiner_ros.structure_from_motion.photos_to_poses import find_photo_poses

__all__ = ["StructureFromMotionError", "find_photo_poses"]
