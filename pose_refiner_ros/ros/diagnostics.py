# SPDX-License-Identifier: Apache-2.0
"""The messages on /diagnostics (REP 107): one status for the objects, one for the poses, and
one for the camera where there is a scene_field."""

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


def status(name, level, message, values):
    return DiagnosticStatus(
        name=name,
        level=level,
        message=message,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def objects_status(node_name, objects_file, library, load_error, loading, device, encoder=None):
    """What the object library holds and what is wrong with it; what the encoder knows, if any."""
    objects_file = objects_file or "that of the package: vehicles"
    values = {"objects file": objects_file, "device": device or "none yet"}
    if library is not None:
        values["objects"] = ", ".join(library)
        values["encoder"] = f"knows {', '.join(encoder.classes)}" if encoder else "none"
        for name, why in library.problems.items():
            values[f"problem with {name}"] = why
        for name, texts in library.warnings.items():
            values[f"warning about {name}"] = "; ".join(texts)
    name = f"{node_name}: objects"
    if loading:
        return status(name, WARN, "loading objects and compiling kernels", values)
    if load_error:
        return status(name, ERROR, load_error, values)
    if library is None:
        return status(name, OK, "not configured", values)
    if library.problems:
        problems = ", ".join(library.problems)
        return status(name, WARN, f"{len(library)} objects loaded, left out: {problems}", values)
    return status(name, OK, f"{len(library)} objects loaded", values)


def poses_status(node_name, state, statistics, counts, silence, recent_error, now):
    """How the node does: rate, times, what was skipped and why.

    counts: InputCounts of the assembler; silence: why nothing is published, or ""; recent_error:
    an error since the last message.
    """
    values = {"state": state, **statistics.recent(now)}
    for name, count in counts.received.items():
        values[f"{name} received"] = count
    for name, difference in dict(counts.nearest).items():
        if difference is not None:
            values[f"nearest {name}"] = f"{difference:+.3f} s from the last masks"
    values["frames answered"] = statistics.frames
    values["poses published"] = statistics.poses
    if statistics.with_motion:
        joined = f"{statistics.joined} of {statistics.with_motion}"
        values["poses joined with earlier frames"] = joined
    values["frames skipped"] = sum(statistics.skipped.values())
    for reason, count in statistics.skipped.most_common():
        values[f"frames skipped: {reason}"] = count
    for reason, count in statistics.left_out.most_common():
        values[f"objects without pose: {reason}"] = count
    values["errors"] = statistics.errors
    values["last error"] = statistics.last_error or "none"
    name = f"{node_name}: poses"
    if recent_error:
        return status(name, ERROR, statistics.last_error, values)
    if silence:
        return status(name, WARN, silence, values)
    if state != "active":
        return status(name, OK, state, values)
    return status(name, OK, "publishing poses" if statistics.frames else "waiting", values)


def scene_status(node_name, state, camera, silence):
    """How the camera does in its scene. camera: a SceneCamera; silence: why no image was looked at
    lately, or ""."""
    level, message = OK, "the camera is located"
    if state != "active":
        message = state
    elif silence or camera.state:
        level, message = WARN, silence or camera.state
    return status(f"{node_name}: scene", level, message, dict(camera.values))


def array(statuses, stamp):
    message = DiagnosticArray(status=statuses)
    message.header.stamp = stamp
    return message
