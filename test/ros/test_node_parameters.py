# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.parameter import Parameter

from pose_refiner_ros.ros import parameters

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def context():
    context = rclpy.Context()
    rclpy.init(context=context)
    yield context
    rclpy.shutdown(context=context)


@pytest.fixture
def make_node(context):
    nodes = []

    def make(**overrides):
        node = rclpy.create_node(
            "parameters_test",
            context=context,
            parameter_overrides=[Parameter(name, value=v) for name, v in overrides.items()],
        )
        nodes.append(node)
        parameters.declare(node)
        return node

    yield make
    for node in nodes:
        node.destroy_node()


@pytest.mark.parametrize("path", parameters.generated_files(ROOT), ids=lambda path: path.name)
def test_generated_file_is_up_to_date(path):
    text = parameters.generated_files(ROOT)[path]
    assert path.read_text() == text, "run python -m pose_refiner_ros.ros.parameters --write"


def test_config_file_holds_the_defaults():
    values = yaml.safe_load((ROOT / "config/refine.yaml").read_text())["/**"]["ros__parameters"]
    assert values == {d.name: d.default for d in parameters.DECLARATIONS}
    assert vars(parameters.defaults()) == {d.attribute: d.default for d in parameters.DECLARATIONS}


@pytest.mark.parametrize("declaration", parameters.DECLARATIONS, ids=lambda d: d.name)
def test_declaration_is_complete(declaration):
    assert declaration.problem(declaration.default) is None
    assert declaration.description.endswith(".")
    if isinstance(declaration.default, (int, float)) and not isinstance(declaration.default, bool):
        assert declaration.minimum <= declaration.default <= declaration.maximum


def test_defaults_are_read_back(make_node):
    values = parameters.read(make_node())
    assert values.label_names == []  # rclpy knows no empty list: [""] stands for it
    assert values.sync_slop == parameters.BY_NAME["sync_slop"].default


def test_described_typed_and_ranged(make_node):
    node = make_node()
    for declaration in parameters.DECLARATIONS:
        descriptor = node.describe_parameter(declaration.name)
        assert descriptor.description == declaration.description
        assert not descriptor.dynamic_typing
        assert bool(descriptor.floating_point_range or descriptor.integer_range) == (
            declaration.minimum is not None
        )


@pytest.mark.parametrize(
    "name, value",
    [
        ("min_score", 1.5),
        ("buffer_size", 0),
        ("use_detections", "maybe"),
        ("use_detections", ""),
        ("label_names", ["mug"]),
        ("label_names", ["1:mug", "two:box"]),
        ("publish_qualities", ["good", "excellent"]),
        ("device", "gpu"),
        ("tf_prefix", "left camera"),
        ("target_frame", "/map"),
        ("scene.camera_height", -1.5),
        ("scene.camera_pitch", 5.0),  # degrees
        ("scene.frame", "/map"),
        ("scene.view", "side"),
        ("scene.eye", [1.0, 2.0]),
        ("scene.target", [1.0, 2.0, float("nan")]),
        ("scene.width", 10),
    ],
)
def test_bad_value_is_refused_at_start_and_later(make_node, name, value):
    with pytest.raises(parameters.ParameterError, match=name):
        make_node(**{name: value})
    node = make_node()
    before = node.get_parameter(name).value
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert not result.successful
    assert name in result.reason
    assert node.get_parameter(name).value == before


def test_wrong_type_is_refused_with_the_right_one(make_node):
    with pytest.raises(parameters.ParameterError, match="publish_tf is of type bool"):
        make_node(publish_tf="yes")


def test_integer_for_a_number_with_decimals(make_node):
    assert parameters.read(make_node(watchdog_seconds=3)).watchdog_seconds == 3.0
    with pytest.raises(parameters.ParameterError, match="min_score"):
        make_node(min_score=2)
    node = make_node(**{"scene.eye": [-5, 0, 3], "scene.camera_height": 2})
    assert parameters.read(node).scene_eye == [-5.0, 0.0, 3.0]
    assert parameters.read(node).scene_camera_height == 2.0


def test_slips_of_the_pen_are_noticed(make_node):
    node = make_node(min_scoer=0.5, use_sim_time=True, foo=1)
    assert parameters.unknown_overrides(node) == [
        "there is no parameter min_scoer; did you mean min_score?",
        "there is no parameter foo",
    ]


def test_read_only_parameters_cannot_change(make_node):
    node = make_node()
    assert not node.set_parameters([Parameter("autostart", value=False)])[0].successful


def test_change_is_seen_at_once(make_node):
    node = make_node()
    assert node.set_parameters([Parameter("label_names", value=["7:mug"])])[0].successful
    assert parameters.read(node).label_names == ["7:mug"]
