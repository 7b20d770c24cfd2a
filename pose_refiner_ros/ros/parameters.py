# SPDX-License-Identifier: Apache-2.0
"""Every parameter of the node, in one table.

The table drives the declaration in rclpy, the checks, `docs/parameters.md` and
`config/refine.yaml`. Write the last two anew with

    python -m pose_refiner_ros.ros.parameters --write
"""

import difflib
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

from pose_refiner_ros.ros.declaration import (
    ACTIVATE,
    EFFECT,
    NOW,
    RELOAD,
    START,
    Declaration,
    ParameterError,
    declare_one,
)
from pose_refiner_ros.settings import CHOICES

QUALITIES = ("good", "ambiguous", "partial", "poor")
TF_NAME = r"[A-Za-z0-9_.-][A-Za-z0-9_./-]*"

# A row a parameter: name, default, meaning, the rest.
# fmt: off
GROUPS = {
    "Objects and device": [
        Declaration("objects_file", "",
            "The object library: a YAML file, or the models folder of a BOP dataset. Empty: the "
            "vehicles that come with the package, one each for sedan, suv and cargo.", RELOAD),
        Declaration("encoder_file", "",
            "Weights of the encoder, which names masks whose class is unknown and guesses the "
            "first poses of objects that have a `category`. Empty: those of the package, where the "
            "library has a category that they know. none: no encoder.", RELOAD),
        Declaration("device", "auto",
            "Where to compute: auto takes the first CUDA device and falls back to the CPU.",
            RELOAD, pattern=r"auto|cpu|cuda(:\d+)?"),
        Declaration("autostart", True,
            "Configure and activate at start. With false a lifecycle manager does it.", START),
    ],
    "Inputs": [
        Declaration("image_transport", "raw",
            "raw: sensor_msgs/Image on `image`. compressed: sensor_msgs/CompressedImage on "
            "`image/compressed`.", ACTIVATE, choices=("raw", "compressed")),
        Declaration("image_is_rectified", False,
            "The masks belong to rectified images (image_rect): use P of camera_info and no "
            "distortion, instead of K and D."),
        Declaration("cameras", [""],
            "Names of several cameras that see the same objects, such as [left, right]: each has "
            "the inputs below its name, `left/masks`, `left/camera_info` and so on, and a frame in "
            "TF (needs tf2_ros). Objects get poses in the first camera's frame, by all cameras "
            "that see them. Empty: one camera, without a name.",
            ACTIVATE, pattern=r"/?[A-Za-z][A-Za-z0-9_/]*"),
        Declaration("depth", "auto",
            "Whether depths are used: auto, where they come on `depth` (registered to the colour "
            "camera, stamped like the masks) or as a point cloud on `points`; never.",
            ACTIVATE, choices=CHOICES["depth"]),
        Declaration("depth_transport", "raw",
            "raw: sensor_msgs/Image on `depth`, 16UC1 millimetres or 32FC1 metres. "
            "compressedDepth: sensor_msgs/CompressedImage on `depth/compressedDepth`.",
            ACTIVATE, choices=("raw", "compressedDepth")),
        Declaration("points_max_age", 0.1,
            "A cloud on `points` is used while its stamp differs from that of the masks by no more "
            "than this many seconds. It may be in any frame that tf2 knows (needs tf2_ros).",
            minimum=0.0, maximum=10.0),
        Declaration("require_image", False,
            "Answer only masks that have an image with their stamp. The poses come from the masks; "
            "the image gives the header of the results and the background of the overlay, and "
            "refines objects that have a radiance field. With false, masks without an image are "
            "answered under their own header."),
        Declaration("sync_slop", 0.01,
            "Messages belong together if their stamps differ by no more than this many seconds. An "
            "equal stamp is always preferred; 0.0 takes equal stamps only.",
            minimum=0.0, maximum=1.0),
        Declaration("sync_timeout", 0.2,
            "How many seconds masks wait for an image or detections that are still expected.",
            minimum=0.0, maximum=10.0),
        Declaration("buffer_size", 60,
            "Messages kept per input while they wait for their partners. Raise it if masks come "
            "later than this many images.", minimum=1, maximum=1000),
        Declaration("buffer_megabytes", 256,
            "Memory for waiting images; the same again for waiting masks. The oldest are dropped.",
            minimum=8, maximum=16384),
        Declaration("use_detections", "auto",
            "Whether the topic `detections` names the labels in the masks. auto: if someone "
            "publishes it. always: masks without detections are skipped. never: they are ignored.",
            choices=("auto", "always", "never")),
        Declaration("label_names", [""],
            "Names for labels when no detection names them, each `label:object`, for example "
            '["1:mug", "2:box"]. Without it, the labels of the object library are used, and with '
            "one object in the library every label is that object.", pattern=r"\d+:.+"),
        Declaration("labels_are_ids", False,
            "The labels in the masks stay the same from frame to frame (a tracker made them): "
            "publish them as ids. With false the node follows the objects itself."),
        Declaration("initial_pose_max_age", 1.0,
            "A message on `initial_poses` is used while its stamp differs from that of the masks "
            "by no more than this many seconds.", minimum=0.0, maximum=60.0),
    ],
    "Moving camera": [
        Declaration("fixed_frame", "",
            "A TF frame in which the world stands still and the camera moves without jumps, such "
            "as odom (needs tf2_ros): objects are followed through the camera's motion, and those "
            "that are found to stand still get poses by several frames. Empty: each frame for "
            "itself.",
            ACTIVATE, pattern=TF_NAME),
        Declaration("still_frames", 5,
            "By how many frames at most, this one and earlier ones that were taken from other "
            "places. 1: only follow objects through the camera's motion.", minimum=1, maximum=16),
        Declaration("still_objects", [""],
            "Names of objects that never move. All others are found to stand still where the poses "
            "of single frames agree, within their covariances."),
    ],
    "Estimation": [
        Declaration("max_hypotheses", 16,
            "Views that are tried for an object when nothing is known of its pose; each at up to "
            "three places where part of it may be hidden. More are surer and slower.",
            minimum=1, maximum=200),
        Declaration("keep_hypotheses", 4,
            "Of those, how many different ones are refined to the end.", minimum=1, maximum=16),
        Declaration("search", "auto",
            "When to try poses beside the given ones (last frame, `initial_poses`). auto: where "
            "there is none or it fits badly. always: slower, never caught in a wrong pose. never: "
            "only objects with a given pose are found.", choices=CHOICES["search"]),
        Declaration("init", "auto",
            "Where an object begins of which nothing is known, if it has a radiance field and an "
            "image comes with its mask. features: what the image shows is found again among the "
            "features (SIFT) that the field keeps of its training's photos. views: views of its "
            "outline. auto: features, and views where these lead nowhere. The camera in "
            "`scene_field` is found by features without a start, or when it is lost, unless this "
            "is views.",
            RELOAD, choices=CHOICES["init"]),
        Declaration("refinement", "solver",
            "How poses are refined. solver: the package's own, milliseconds an object. "
            "gradient_pose and gradient_encoder: the procedures of Palazzi et al., 30 steps of "
            "gradient descent on the pose or on a copy of the encoder's weights, for comparison; "
            "they take seconds an object.",
            RELOAD, choices=tuple(choice for choice in CHOICES["refinement"] if choice != "none")),
        Declaration("use_last_pose", True,
            "Start also from where the object was in the last frame. Keeps the poses of symmetric "
            "and ambiguous objects from flipping."),
        Declaration("min_score", 0.0,
            "Poses with a lower score are not published.", minimum=0.0, maximum=1.0),
        Declaration("publish_qualities", list(QUALITIES),
            "Qualities that are published. ambiguous: another pose fits nearly as well, the class "
            "is not sure, or the colours are not those of the object's field. partial: over a "
            "quarter of the outline is hidden. poor: the silhouette does not fit the mask.",
            choices=QUALITIES),
    ],
    "Radiance fields": [
        Declaration("photometric", "auto",
            "Whether objects that have a field in the library are refined by the image as well. "
            "auto: where an image comes with the masks. never: by their silhouettes alone.",
            choices=CHOICES["photometric"]),
        Declaration("photo_rays", 1024,
            "Rays that are compared for each object, and for the scene. More are surer and slower.",
            RELOAD, minimum=64, maximum=8192),
        Declaration("photo_sampling", "interest_region",
            "Which pixels they go through: anywhere, where corners are, or around corners.",
            RELOAD, choices=CHOICES["sampling"]),
        Declaration("photo_exposure", True,
            "Solve for brightness and white balance of an image too: the light may be another than "
            "that of the photos that the field was trained from.", RELOAD),
        Declaration("scene_field", "",
            "A radiance field of the scene, from `pose-refiner field train`: the camera itself is "
            "localised in it, by `image` and `camera_info`, without masks. Empty: none.", RELOAD),
        Declaration("scene_field_frame", "scene",
            "The TF frame of that field: frame of `~/camera_pose`, parent of the camera in TF.",
            pattern=TF_NAME),
        Declaration("scene_tf_child", "",
            "The frame whose pose in the scene is sent to TF, and which initial poses are of. "
            "Empty: the image's. A frame has one parent only: where the camera hangs on a robot, "
            "give the root of its tree, such as odom or base_link (needs tf2_ros).",
            ACTIVATE, pattern=TF_NAME),
        Declaration("scene_initial_pose", [0.0] * 7,
            "Where the camera (or scene_tf_child) begins in the scene: x y z in metres and a "
            "quaternion x y z w. All zeros: not known; `init` or `initialpose` tells.",
            ACTIVATE, length=7),
    ],
    "Outputs": [
        Declaration("target_frame", "",
            "Publish poses in this frame instead of the camera's, by tf2 at the stamp of the image "
            "(needs tf2_ros).", ACTIVATE, pattern=TF_NAME),
        Declaration("publish_alternatives", False,
            "List the other poses that were found, too, as results[1], results[2]… of a "
            "detection."),
        Declaration("publish_tf", True,
            "Publish a transform from the camera to every object, and with scene_field from "
            "scene_field_frame to the camera (or scene_tf_child)."),
        Declaration("tf_prefix", "",
            "Put before the frame names `<class>_<id>`. Give each node its own where two cameras "
            "see the same objects: a frame has one parent only.", pattern=TF_NAME),
        Declaration("marker_meshes", "auto",
            "resource: markers name the mesh file, so RViz must be able to read it. triangles: "
            "markers carry a simplified mesh. auto: resource if the object has a file that RViz "
            "reads.", choices=("auto", "resource", "triangles")),
        Declaration("marker_opacity", 0.6,
            "Opacity of the meshes on `~/markers`.", minimum=0.05, maximum=1.0),
    ],
    "Scene": [
        Declaration("scene.camera_height", 1.5,
            "Height of the camera above the ground in metres, for `~/scene_view`: all objects in "
            "one frame, whose origin is on the ground under the camera.",
            minimum=0.01, maximum=1000.0),
        Declaration("scene.camera_pitch", 0.0,
            "By how much the camera looks down, in radians (0.1 is 5.7 degrees).",
            minimum=-1.5708, maximum=1.5708),
        Declaration("scene.camera_roll", 0.0,
            "By how much the camera leans to its right, in radians.",
            minimum=-3.1416, maximum=3.1416),
        Declaration("scene.frame", "",
            "A TF frame with z up and the ground at z = 0, such as base_footprint or map: the "
            "scene lies in it, by tf2 at the stamp of the image (needs tf2_ros). Empty: the scene "
            "follows from scene.camera_height, scene.camera_pitch and scene.camera_roll.",
            pattern=TF_NAME),
        Declaration("scene.view", "birds_eye",
            "Where `~/scene_view` is seen from. birds_eye: from above, x up in the picture. chase: "
            "from behind and above the camera. camera: through the camera. custom: from scene.eye "
            "towards scene.target.", choices=("birds_eye", "chase", "camera", "custom")),
        Declaration("scene.eye", [-8.0, 0.0, 5.0],
            "View custom: x, y, z of where to look from, metres in the scene: ahead of the camera, "
            "to its left, above the ground; with scene.frame in that frame.", length=3),
        Declaration("scene.target", [10.0, 0.0, 0.0],
            "View custom: x, y, z of what to look at.", length=3),
        Declaration("scene.width", 640,
            "Width of `~/scene_view` in pixels.", minimum=64, maximum=4096),
        Declaration("scene.height", 480,
            "Height of `~/scene_view` in pixels.", minimum=64, maximum=4096),
    ],
    "Monitoring": [
        Declaration("diagnostics_period", 1.0,
            "Seconds between messages on /diagnostics.", START, minimum=0.1, maximum=60.0),
        Declaration("watchdog_seconds", 5.0,
            "With no pose published for so long the log says why. 0.0 switches this off.",
            minimum=0.0, maximum=3600.0),
    ],
}
# fmt: on

DECLARATIONS = [declaration for group in GROUPS.values() for declaration in group]
BY_NAME = {declaration.name: declaration for declaration in DECLARATIONS}


def defaults():
    return SimpleNamespace(**{d.attribute: d.default for d in DECLARATIONS})


def declare(node):
    """Declare the table on `node` and refuse values that it does not allow, now and later."""
    for declaration in DECLARATIONS:
        declare_one(node, declaration)
        problem = declaration.problem(node.get_parameter(declaration.name).value)
        if problem:
            raise ParameterError(problem)
    node.add_on_set_parameters_callback(_check)


def unknown_overrides(node):
    """What was set at start but is no parameter of this node, with what was probably meant.

    rclpy takes no notice of them, so that a slip of the pen in a file stays unseen.
    """
    texts = []
    for name in getattr(node, "_parameter_overrides", {}):
        if not node.has_parameter(name) and not name.startswith("qos_overrides."):
            close = difflib.get_close_matches(name, BY_NAME, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            texts.append(f"there is no parameter {name}{hint}")
    return texts


def _check(parameters):
    """Refuse bad values. Has no other effect: the node reads the values when it needs them."""
    from rcl_interfaces.msg import SetParametersResult

    for parameter in parameters:
        declaration = BY_NAME.get(parameter.name)
        problem = declaration.problem(parameter.value) if declaration else None
        if problem:
            return SetParametersResult(successful=False, reason=problem)
    return SetParametersResult(successful=True)


def read(node):
    """All values as they are now, as attributes of one object, with _ for a dot. Empty items of
    lists are left out."""
    values = {}
    for declaration in DECLARATIONS:
        value = node.get_parameter(declaration.name).value
        is_list = isinstance(declaration.default, list)
        values[declaration.attribute] = [v for v in value if v != ""] if is_list else value
    return SimpleNamespace(**values)


def _yaml_value(value):
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml_value, value)) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comment(text):
    prefix = "    # "
    return textwrap.wrap(
        text, 98, initial_indent=prefix, subsequent_indent=prefix, break_on_hyphens=False
    )


def as_yaml():
    """The text of `config/refine.yaml`."""
    lines = [
        "# Every parameter of pose_refiner with its default. Copy it, keep the lines you change.",
        "# Written by `python -m pose_refiner_ros.ros.parameters --write`, where the table is.",
        "/**:",
        "  ros__parameters:",
    ]
    for group, declarations in GROUPS.items():
        lines += ["", f"    # ---- {group} ----"]
        for declaration in declarations:
            notes = [declaration.description]
            if declaration.allowed and not declaration.pattern:
                notes.append(f"Allowed: {declaration.allowed}.")
            if declaration.effect != NOW:
                notes.append(f"A change takes effect {EFFECT[declaration.effect]}.")
            lines += ["", *_comment(" ".join(notes))]
            lines.append(f"    {declaration.name}: {_yaml_value(declaration.default)}")
    return "\n".join(lines) + "\n"


_MARKDOWN_HEAD = """\
# Parameters of `pose_refiner`

Written by `python -m pose_refiner_ros.ros.parameters --write` from the declarations in
[`pose_refiner_ros/ros/parameters.py`](../pose_refiner_ros/ros/parameters.py). The same list as a
file to start from: [`config/refine.yaml`](../config/refine.yaml).

Set one at start with `--ros-args -p min_score:=0.5`, while running with
`ros2 param set /pose_refiner min_score 0.5`.
"""

_MARKDOWN_TAIL = """
## Quality of service

Inputs are subscribed with the sensor-data profile (best effort, volatile, keep last 10), which
matches every publisher of live data. `object_poses`, `~/markers`, `~/overlay` and `~/scene_view`
are published reliable, which matches every subscriber. Each policy can be overridden at start, by
the full name of the topic after remapping:

| parameter | values |
|---|---|
| `qos_overrides./masks.subscription.reliability` | best_effort, reliable |
| `qos_overrides./masks.subscription.durability` | volatile, transient_local |
| `qos_overrides./masks.subscription.history` | keep_last, keep_all |
| `qos_overrides./masks.subscription.depth` | messages kept before the node reads them |
| `qos_overrides./object_poses.publisher.reliability` … | likewise, for what is published |

`ros2 param list /pose_refiner` shows them all. A publisher whose policies do not fit is named in
the log and in `/diagnostics`, with the override that would mend it.
"""


def as_markdown():
    """The text of `docs/parameters.md`."""
    lines = [_MARKDOWN_HEAD]
    for group, declarations in GROUPS.items():
        lines += [
            f"## {group}\n",
            "| name | type | default | meaning | a change takes effect |",
            "|---|---|---|---|---|",
        ]
        for declaration in declarations:
            meaning = declaration.description
            if declaration.allowed and not declaration.pattern:
                meaning += f" ({declaration.allowed})"
            cells = [
                f"`{declaration.name}`",
                declaration.type_name,
                f"`{_yaml_value(declaration.default)}`",
                meaning,
                EFFECT[declaration.effect],
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines) + _MARKDOWN_TAIL


def generated_files(root):
    """Path and text of each file that is written from the table."""
    return {
        Path(root) / "docs" / "parameters.md": as_markdown(),
        Path(root) / "config" / "refine.yaml": as_yaml(),
    }


def main(arguments):
    """Print docs/parameters.md, or with --write update both files in the source tree."""
    if arguments == ["--write"]:
        for path, text in generated_files(Path(__file__).parents[2]).items():
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path}\n")
    else:
        sys.stdout.write(as_markdown())


if __name__ == "__main__":
    main(sys.argv[1:])
