# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node. The only folder that imports rclpy or message types.

A frame's way through the files:

    inputs.py           subscriptions; callbacks only put messages away
    frame_assembler.py  pairs messages by stamp, in bounded memory; camera_set.py those of cameras
    worker.py           the thread that takes the newest complete frame
    frame_processor.py  messages -> core types -> pipeline -> poses with ids; across_cameras.py
                        which objects in two cameras are the same
    outputs.py          publishes poses, TF (transforms.py), markers (markers.py) and the overlay

Beside objects, where the scene has a radiance field:

    scene_camera.py     images -> where the camera is in the scene, published and sent to TF

Around it:

    node.py             the process: signals, executor
    lifecycle_node.py   the node: states, services, monitoring; loading.py is its slow part
    parameters.py       the table of all parameters; docs/parameters.md is made from it;
                        declaration.py what one of them is
    qos.py              publishers and subscriptions whose QoS can be overridden
    conversions.py      cameras and poses; images.py pictures; measured.py depths and points;
                        labels.py which label is which object
    watchdog.py         says why nothing is published; diagnostics.py /diagnostics;
                        statistics.py counts and times; reports.py throttles the log;
                        log_bridge.py passes on what the core logs
    compat.py           what differs between a ROS installation and the wheels

Beside it, without the node:

    demo_camera.py      the demo's simulated camera; demo_printer.py prints, sums up and records,
                        demo_report.py compares poses with the truth; process.py their frame
    bag.py              the command `pose-refiner bag`: frame_assembler.py and frame_processor.py
                        on a recorded bag, without ROS; bag_topics.py finds its topics,
                        bag_messages.py makes its messages
    recording.py        writes MCAP bags; message_types.py the definitions that takes
"""
