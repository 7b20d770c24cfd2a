"""Is what was set up what others on the network expect, and does the package say one thing?"""

import importlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import pose_refiner_ros

REPOSITORY = Path(__file__).resolve().parent.parent

# RIHS01 hashes of the original definitions: geometry2 (jazzy) and vision_msgs 4.1.1. Where they
# come from is said in interfaces/README.md. Humble and older ROS have no such hashes.
TYPE_HASHES = {
    "tf2_msgs/action/LookupTransform": (
        "0b8adf6bc0b5958879e3265b41a457e03558fe523890a81252c70eba97a82c5d"
    ),
    "tf2_msgs/msg/TF2Error": "db2485e7d6a0ec75bf087e058ee45df682acc3a621ca7780503d10aac141809a",
    "tf2_msgs/msg/TFMessage": "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
    "tf2_msgs/srv/FrameGraph": "0d1fbc6222c018ba5f33822904a2fdd4063705289956d3fdde07cd8c50fe8067",
    "vision_msgs/msg/BoundingBox2D": (
        "008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f"
    ),
    "vision_msgs/msg/BoundingBox2DArray": (
        "2464e82838009386d371b523211c21c91d74d313fcdd6788223c531d621cf691"
    ),
    "vision_msgs/msg/BoundingBox3D": (
        "bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698"
    ),
    "vision_msgs/msg/BoundingBox3DArray": (
        "a81938db9576b10c2eecd7c5a5da3eac496efd00221b25ed051dfbc81fb56da6"
    ),
    "vision_msgs/msg/Classification": (
        "f74db28d0eaef3afb78f48bf2161cd709a1383a0309d3454383b25be11345143"
    ),
    "vision_msgs/msg/Detection2D": (
        "0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea"
    ),
    "vision_msgs/msg/Detection2DArray": (
        "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    ),
    "vision_msgs/msg/Detection3D": (
        "ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b"
    ),
    "vision_msgs/msg/Detection3DArray": (
        "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"
    ),
    "vision_msgs/msg/LabelInfo": (
        "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783"
    ),
    "vision_msgs/msg/ObjectHypothesis": (
        "51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90"
    ),
    "vision_msgs/msg/ObjectHypothesisWithPose": (
        "41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc"
    ),
    "vision_msgs/msg/Point2D": "eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247",
    "vision_msgs/msg/Pose2D": "b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648",
    "vision_msgs/msg/VisionClass": (
        "1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a"
    ),
    "vision_msgs/msg/VisionInfo": (
        "95d3116a17484ad91c9a2686e1d54890bbfc3ff6c6a2de137738c4950d45d284"
    ),
}

# The wire format is the order of the fields.
FIELDS = {
    "tf2_msgs/msg/TF2Error": ["error", "error_string"],
    "tf2_msgs/msg/TFMessage": ["transforms"],
    "vision_msgs/msg/BoundingBox2D": ["center", "size_x", "size_y"],
    "vision_msgs/msg/BoundingBox2DArray": ["header", "boxes"],
    "vision_msgs/msg/BoundingBox3D": ["center", "size"],
    "vision_msgs/msg/BoundingBox3DArray": ["header", "boxes"],
    "vision_msgs/msg/Classification": ["header", "results"],
    "vision_msgs/msg/Detection2D": ["header", "results", "bbox", "id"],
    "vision_msgs/msg/Detection2DArray": ["header", "detections"],
    "vision_msgs/msg/Detection3D": ["header", "results", "bbox", "id"],
    "vision_msgs/msg/Detection3DArray": ["header", "detections"],
    "vision_msgs/msg/LabelInfo": ["header", "class_map", "threshold"],
    "vision_msgs/msg/ObjectHypothesis": ["class_id", "score"],
    "vision_msgs/msg/ObjectHypothesisWithPose": ["hypothesis", "pose"],
    "vision_msgs/msg/Point2D": ["x", "y"],
    "vision_msgs/msg/Pose2D": ["position", "theta"],
    "vision_msgs/msg/VisionClass": ["class_id", "class_name"],
    "vision_msgs/msg/VisionInfo": ["header", "method", "database_location", "database_version"],
}


def message_class(type_name):
    package, kind, name = type_name.split("/")
    return getattr(importlib.import_module(f"{package}.{kind}"), name)


def uses_generated_messages():
    """Whether the messages come from interfaces/, not from a ROS installation."""
    module = importlib.import_module("vision_msgs")
    return Path(module.__file__).is_relative_to(sys.prefix)


@pytest.fixture(scope="module")
def ros():
    pytest.importorskip("rclpy", reason="neither the wheels of `make setup` nor a ROS installation")


@pytest.fixture(scope="module")
def node(ros):
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("test_setup", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("type_name", FIELDS)
def test_fields_come_in_the_order_of_the_original(ros, type_name):
    fields = message_class(type_name).get_fields_and_field_types()
    assert list(fields) == FIELDS[type_name]


@pytest.mark.parametrize("type_name", [name for name in TYPE_HASHES if "/msg/" in name])
def test_endpoint_announces_the_type_hash_of_the_original(node, type_name):
    topic = "/test_setup/" + type_name.replace("/", "_").lower()
    publisher = node.create_publisher(message_class(type_name), topic, 1)
    try:
        (endpoint,) = node.get_publishers_info_by_topic(topic)
    finally:
        node.destroy_publisher(publisher)
    assert endpoint.topic_type == type_name
    if not hasattr(endpoint, "topic_type_hash"):
        pytest.skip("this ROS distribution has no type hashes")
    assert str(endpoint.topic_type_hash) == f"RIHS01_{TYPE_HASHES[type_name]}"


@pytest.mark.parametrize("type_name", TYPE_HASHES)
def test_installed_description_has_the_type_hash_of_the_original(ros, type_name):
    from ament_index_python.packages import get_package_share_directory

    package, kind, name = type_name.split("/")
    description = Path(get_package_share_directory(package)) / kind / f"{name}.json"
    if not description.exists():
        pytest.skip("this ROS distribution has no type hashes")
    type_hashes = json.loads(description.read_text())["type_hashes"]
    hashes = {row["type_name"]: row["hash_string"] for row in type_hashes}
    assert hashes[type_name] == f"RIHS01_{TYPE_HASHES[type_name]}"


def test_rosbags_computes_the_same_hashes_from_our_definitions():
    """rosbags has an implementation of its own, so rosidl and we cannot be wrong together."""
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    definitions = {}
    for path in sorted((REPOSITORY / "interfaces").glob("*/msg/*.msg")):
        type_name = f"{path.parent.parent.name}/msg/{path.stem}"
        definitions.update(get_types_from_msg(path.read_text(), type_name))
    assert sorted(definitions) == sorted(name for name in TYPE_HASHES if "/msg/" in name)
    for type_name in definitions:
        store.fielddefs.pop(type_name, None)
        store.types.pop(type_name, None)
    store.register(definitions)
    for type_name in definitions:
        assert store.hash_rihs01(type_name) == f"RIHS01_{TYPE_HASHES[type_name]}", type_name


def test_detections_survive_serialisation(ros):
    from geometry_msgs.msg import PoseWithCovariance
    from rclpy.serialization import deserialize_message, serialize_message
    from vision_msgs.msg import (
        Detection3D,
        Detection3DArray,
        ObjectHypothesis,
        ObjectHypothesisWithPose,
    )

    pose = PoseWithCovariance()
    pose.pose.position.x = 1.25
    pose.pose.orientation.w = 0.5
    pose.covariance = [float(i) for i in range(36)]
    hypothesis = ObjectHypothesis(class_id="größe", score=0.75)
    result = ObjectHypothesisWithPose(hypothesis=hypothesis, pose=pose)
    message = Detection3DArray(detections=[Detection3D(results=[result], id="7")])
    message.header.frame_id = "camera"
    message.header.stamp.sec = 12
    message.detections[0].bbox.size.z = 2.0

    assert deserialize_message(serialize_message(message), Detection3DArray) == message


def test_transforms_survive_serialisation(ros):
    from geometry_msgs.msg import TransformStamped
    from rclpy.serialization import deserialize_message, serialize_message
    from tf2_msgs.msg import TFMessage

    transform = TransformStamped(child_frame_id="car_1")
    transform.transform.translation.z = 3.5
    message = TFMessage(transforms=[transform, TransformStamped()])

    assert deserialize_message(serialize_message(message), TFMessage) == message


def test_error_constants_are_those_of_the_original(ros):
    from tf2_msgs.msg import TF2Error

    names = ["NO", "LOOKUP", "CONNECTIVITY", "EXTRAPOLATION", "INVALID_ARGUMENT", "TIMEOUT"]
    assert [getattr(TF2Error, f"{name}_ERROR") for name in names] == list(range(6))
    assert TF2Error.TRANSFORM_ERROR == 6


def test_imports_need_no_environment_variables(ros):
    if not uses_generated_messages():
        pytest.skip("a ROS installation is set up by its setup.bash")
    code = (
        "import rclpy, tf2_msgs.msg, vision_msgs.msg\n"
        "from ament_index_python.packages import get_package_share_directory as share\n"
        "rclpy.init(); rclpy.create_node('bare'); print(share('pose_refiner_ros'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home())},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert (Path(result.stdout.strip()) / "package.xml").exists()


def test_version_is_the_same_everywhere():
    version = pose_refiner_ros.__version__
    assert ET.parse(REPOSITORY / "package.xml").findtext("version") == version
    assert f'version="{version}"' in (REPOSITORY / "setup.py").read_text()


def test_every_pinned_requirement_agrees_with_the_constraints():
    def pins(path):
        lines = (line.split("#")[0].split(";")[0].strip() for line in path.read_text().splitlines())
        return dict(line.split("==") for line in lines if line)

    folder = REPOSITORY / "requirements"
    constraints = pins(folder / "constraints.txt")
    for name in ("core", "training", "messages", "ros", "test"):
        for package, version in pins(folder / f"{name}.txt").items():
            assert constraints[package] == version, f"{package} in {name}.txt"


def test_commands_lead_to_something_that_can_be_called(ros):
    try:
        entry_points = importlib.metadata.distribution("pose_refiner_ros").entry_points
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is not installed")
    commands = {point.name: point for point in entry_points if point.group == "console_scripts"}
    assert set(commands) == {"pose-refiner", "pose_refiner", "demo_camera", "demo_printer"}
    for point in commands.values():
        assert callable(point.load()), point


def test_set_up_is_quick_when_there_is_nothing_to_do():
    if shutil.which("make") is None or not (REPOSITORY / ".venv" / "steps_done.json").exists():
        pytest.skip("only in a checkout that `make setup` made")
    result = subprocess.run(
        ["make", "--no-print-directory", "setup"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert not re.search("^==", result.stdout, re.MULTILINE), result.stdout


def test_front_door_needs_neither_torch_nor_rclpy():
    """The README's names, in a process where both cannot be imported."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['rclpy'] = None\n"
        "from pose_refiner_ros import Camera, Frame, ObjectLibrary, Pipeline, load_field\n"
        "import pose_refiner_ros as package\n"
        "assert set(package.__all__) <= set(dir(package))\n"
        "for name in package.__all__: getattr(package, name)\n"
        "try: package.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise SystemExit('no AttributeError')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
