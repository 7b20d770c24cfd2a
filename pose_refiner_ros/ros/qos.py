# SPDX-License-Identifier: Apache-2.0
"""Publishers and subscriptions with qualities of service that users can override and understand."""

from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    ReliabilityPolicy,
    qos_policy_name_from_kind,
)
from rclpy.qos_overriding_options import QoSOverridingOptions

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

OVERRIDABLE = (
    QoSPolicyKind.HISTORY,
    QoSPolicyKind.DEPTH,
    QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)


def sensor_data():
    """ROS's sensor-data profile, a little deeper: Python reads images in fits and starts."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=10,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def reliable(depth):
    """For what is published: fits every subscriber, reliable or not."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)


def create_subscription(node, message_type, topic, callback, on_incompatible):
    """A sensor-data subscription; on_incompatible(topic, explanation) hears of publishers that
    cannot be received."""
    name = node.resolve_topic_name(topic)

    def incompatible(event):
        on_incompatible(name, explain_incompatible(node, name, event.last_policy_kind))

    return node.create_subscription(
        message_type,
        topic,
        callback,
        sensor_data(),
        event_callbacks=SubscriptionEventCallbacks(incompatible_qos=incompatible),
        qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
    )


def create_publisher(node, message_type, topic, depth):
    """A reliable lifecycle publisher."""
    return node.create_lifecycle_publisher(
        message_type,
        topic,
        reliable(depth),
        qos_overriding_options=QoSOverridingOptions(OVERRIDABLE),
    )


def explain_incompatible(node, topic, policy_kind):
    """What a publisher of `topic` offers that our subscription does not take, and the remedy."""
    policy = qos_policy_name_from_kind(policy_kind).lower()
    offered = sorted(
        {
            getattr(info.qos_profile, policy).name.lower()
            for info in node.get_publishers_info_by_topic(topic)
            if hasattr(getattr(info.qos_profile, policy, None), "name")
        }
    )
    requested = node.get_parameter_or(f"qos_overrides.{topic}.subscription.{policy}")
    remedy = f"set the parameter qos_overrides.{topic}.subscription.{policy} to what they offer"
    return (
        f"publishers of {topic} are not received because of their {policy}: they offer "
        f"{' and '.join(offered) or 'something else'}, this node requests {requested.value}; "
        f"{remedy} and start the node again"
    )
