# SPDX-License-Identifier: Apache-2.0
"""What inerf.json holds, as Markdown for people. A block that has not run says so."""

from __future__ import annotations

from typing import Any

from pose_refiner_ros.evaluation.report import cells, heads, number, table, target_table

METHODS = {
    "fast": "fast, on the grid",
    "adam_grid": "Adam, on the grid",
    "adam_mlp": "Adam, in a network",
}
COLUMNS = (  # head, key of a summary, how it is written
    ("n", "n", "{:.0f}"),
    ("under 5°", "share_5deg", "{:.3f}"),
    ("under 5 cm", "share_5cm", "{:.3f}"),
    ("both", "share_both", "{:.3f}"),
    ("median °", "median_rotation_error_deg", "{:.3f}"),
    ("median m", "median_translation_error_m", "{:.4f}"),
    ("s / pose", "seconds_per_pose", "{:.2f}"),
)
ELSEWHERE = (  # from the papers; all but iNeRF's with the stricter measure, on an RTX 4090
    ("iNeRF, the paper, 1,024 rays", "0.71", "0.73", "–", "20 per 100 steps"),
    ("Parallel iNeRF", "–", "–", "0.719", "13.6"),
    ("iComMa", "–", "–", "0.790", "16.7"),
    ("GSFeatLoc: render once, match, PnP", "–", "–", "0.909", "0.09"),
)
PAPER_STEP_MS = 200  # 20 s per 100 steps
SAMPLINGS = {
    "random": "random",
    "interest_point": "interest points",
    "interest_region": "interest regions",
}
LEVELS = {
    "5deg_5cm": "5° and 5 cm",
    "half_degree_5cm": "0.5° and 5 cm",
    "own": "where the fast method ends",
}
LIGHTS = {
    "as_trained": "as in training",
    "exposure": "other exposure",
    "white_balance": "other exposure, white and black level",
}
LIGHT_ROWS = {
    "fast": "fast",
    "fast_exposure": "fast, exposure solved for",
    "adam_rgb": "Adam, RGB",
    "adam_uv": "Adam, U and V alone",
}
SHARE_COLUMNS = (
    ("PSNR without, dB", "psnr_without", "{:.2f}"),
    ("PSNR with, dB", "psnr_with", "{:.2f}"),
    ("poses estimated", "estimated", "{:.0f}"),
    ("right", "right", "{:.0f}"),
    ("kept", "kept", "{:.0f}"),
    ("kept and right", "kept_right", "{:.0f}"),
)
MISSING = "Not run."


def markdown(report: dict[str, Any]) -> str:
    """All tables, and the plots beside them."""
    parts = [
        "# iNeRF, measured here",
        _header(report),
        "## Targets",
        target_table(report),
        "## Methods",
        "Starts are off by up to 40° about a random axis and up to 0.2 m along each axis. Share of "
        "poses whose rotation is less than 5° off, whose camera is less than 5 cm off (in the "
        "object's frame, as in the paper), and both; medians; mean time of a pose.",
        method_table(report),
        origin_text(report),
        "For scale, from the papers, on NeRF's synthetic scenes:",
        table([["method", "under 5°", "under 5 cm", "both", "s / pose"], *ELSEWHERE]),
        *_pictures(report),
        "## Time to the same accuracy",
        speed_table(report),
        "## Fig. 6a: samplings and batches of rays, Adam",
        figure_6a_table(report),
        "## Any direction about the up axis",
        half_turn_text(report),
        "## Another light than in training",
        light_table(report),
        "## Several at once",
        batch_table(report),
        "## Self-supervision (Table I)",
        self_supervision_table(report),
    ]
    failed = [
        f"- `{name}`: {block['failed']}"
        for name, block in report["blocks"].items()
        if block["failed"]
    ]
    if failed:
        parts += ["## Failed", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _pictures(report: dict[str, Any]) -> list[str]:
    parts = []
    if "fast" in report["methods"]:
        parts.append("![Errors before and after](inerf_9_errors.png)")
    if not report["blocks"].get("examples", {"failed": True})["failed"]:
        parts += [
            "Photo; the field at the start, half over the photo; at the fast method's result:",
            "![Photos, starts and results](inerf_examples.png)",
        ]
    return parts


def method_table(report: dict[str, Any]) -> str:
    rows = report["methods"]
    lines = [["method", "rays", "steps", *heads(COLUMNS)]]
    for name, shown in METHODS.items():
        if name in rows:
            row = rows[name]
            steps = row.get("steps", row.get("median_iterations"))
            lines.append([shown, str(row["rays"]), f"{steps:g}", *cells(row, COLUMNS)])
    return table(lines) if len(lines) > 1 else MISSING


def origin_text(report: dict[str, Any]) -> str:
    """The other measure of translation."""
    rows = report["methods"]
    said = [
        f"{METHODS[name]} {row['share_both_origin']:.3f}, median {row['median_origin_error_m']:.4f}"
        for name in METHODS
        if (row := rows.get(name))
    ]
    return (
        "Measured as object poses are, by the place of the model's origin in the camera's frame, "
        f"the share under both and the median in metres are: {'; '.join(said)}."
        if said
        else MISSING
    )


def speed_table(report: dict[str, Any]) -> str:
    data = report.get("speed")
    if data is None:
        return MISSING
    lines = [
        ["to", "fast gets there", "Adam gets there", "Adam s", "fast s", "times faster",
         "with those that Adam never gets to"]
    ]  # fmt: skip
    for key, name in LEVELS.items():
        level = data["levels"][key]
        never = level["times_with_never"]
        lines.append(
            [
                name,
                f"{level['fast_reaches']} of {data['n']}",
                f"{level['adam_reaches']} of {data['n']}",
                number(level["adam_seconds"], "{:.2f}"),
                number(level["fast_seconds"], "{:.2f}"),
                number(level["times"], "{:.1f}"),
                "more than half never" if never is None else f"{never:.1f}",
            ]
        )
    text = (
        f"{table(lines)}\n\nBoth methods refined the same {data['n']} starts in turn, in one "
        f"process, on the same grid; Adam with {data['steps']} steps of "
        f"{data['adam_ms_per_step']:.1f} ms (the paper: {PAPER_STEP_MS:g} ms on a GPU). Medians "
        "over the runs in which both get there. The fast method's time is always its whole time. "
        "Adam's is that of the first recorded step from which on both errors stay below; in the "
        "last row, until the first step at which both are as small as the fast method's in that "
        "run. In the last column a run that Adam never ends rightly takes longer than any other."
    )
    if data["times_per_right_pose"] is not None:
        text += (
            f" All the time spent, divided by the poses that are right in the end: Adam "
            f"{data['adam_seconds_per_right_pose']:.2f} s, fast "
            f"{data['fast_seconds_per_right_pose']:.2f} s, {data['times_per_right_pose']:.1f} "
            "times faster."
        )
    return f"{text}\n\n![Share of right poses by time](inerf_time.png)"


def figure_6a_table(report: dict[str, Any]) -> str:
    data = report.get("figure_6a")
    if data is None:
        return MISSING
    runs = data["cells"]
    lines = [["sampling", "rays", *heads(COLUMNS)]]
    for sampling, shown in SAMPLINGS.items():
        for name, run in runs.items():
            if name.startswith(f"{sampling}_"):
                lines.append([shown, str(run["rays"]), *cells(run, COLUMNS)])
    means = ", ".join(f"{SAMPLINGS[s]} {v:.3f}" for s, v in data["mean_share_both"].items())
    return (
        f"{table(lines)}\n\nAfter {next(iter(runs.values()))['steps']} steps. Under both, mean of "
        f"the three sizes: {means}. Interest regions minus random: "
        f"{data['region_minus_random']:+.3f}.\n\n"
        "![Share of right poses by steps of Adam](inerf_6a_steps.png)"
    )


def half_turn_text(report: dict[str, Any]) -> str:
    data = report.get("half_turn")
    if data is None:
        return MISSING
    return (
        f"{data['hypotheses']} hypotheses evenly around the up axis from a random direction, each "
        f"moved by up to 0.2 m along each axis; the likeliest in the end is right (5° and 5 cm) in "
        f"{data['share_both']:.3f} of {data['n']} trials, with a median error of "
        f"{data['median_rotation_error_deg']:.3f}°, in {data['seconds_per_pose']:.2f} s for all "
        f"{data['hypotheses']} (at most {data['slowest_seconds']:.2f} s)."
    )


def light_table(report: dict[str, Any]) -> str:
    data = report.get("light")
    if data is None:
        return MISSING
    lines = [["light", "method", *heads(COLUMNS)]]
    for kind, name in LIGHTS.items():
        for row, shown in LIGHT_ROWS.items():
            figures = data["rows"][kind][row]
            lines.append([name, shown, *cells(figures, COLUMNS)])
    low, high = data["gains"]
    return (
        f"{table(lines)}\n\nOther exposure: all channels times one factor from {low:g} to "
        f"{high:g}. White and black level as well: each channel times its own factor, plus up to "
        f"±{data['bias']:g}. The whole photo changes, its white ground too, and is clipped at 1. "
        f"Adam has {data['steps']} steps."
    )


def batch_table(report: dict[str, Any]) -> str:
    data = report.get("batch")
    if data is None:
        return MISSING
    lines = [["at once", "hypotheses of one photo, s", "s each", "photos, s each"]]
    for row in data["rows"]:
        total = row["one_photo_seconds"]
        each, photos = total / row["size"], row["photos_seconds_each"]
        lines.append([str(row["size"]), f"{total:.3f}", f"{each:.3f}", f"{photos:.3f}"])
    return (
        f"{table(lines)}\n\nMedians of {data['repeats']}. Of several hypotheses of one photo all "
        "are looked at in the coarsest level, the best six go through the coarse levels, and two "
        "of them to the end; photos with a start each all go to the end."
    )


def self_supervision_table(report: dict[str, Any]) -> str:
    data = report.get("self_supervision")
    if data is None:
        return MISSING
    lines = [["photos with poses", *heads(SHARE_COLUMNS)]]
    for row in data["rows"]:
        photos = f"{100 * row['share']:.0f} % ({row['labelled']})"
        lines.append([photos, *cells(row, SHARE_COLUMNS)])
    size = "×".join(str(n) for n in data["size"])
    return (
        f"{table(lines)}\n\n{data['photos']} photos with masks, made smaller to {size} pixels; "
        f"fields of {data['steps']} steps of {data['rays']} rays; mean PSNR of the test photos. "
        f"{data['rule']}"
    )


def summary_lines(report: dict[str, Any]) -> list[list[str]]:
    """The methods, short, for a terminal."""
    lines = [["method", *heads(COLUMNS)]]
    lines += [[name, *cells(row, COLUMNS)] for name, row in report["methods"].items()]
    return lines


def _header(report: dict[str, Any]) -> str:
    machine, data, field = report["machine"], report["data"], report["field"]
    size = "×".join(str(n) for n in data["size"])
    where = machine.get("gpu", machine["device"])
    text = (
        f"Written by `pose-refiner evaluate inerf` {report['version']} on {report['date'][:10]}: "
        f"{machine['cores']} cores ({machine['processor']}), device {where}, "
        f"{report['minutes']:.0f} minutes, seed {report['seed']}. {data['photos']} test photos of "
        f"`{data['name']}`, {size} pixels, in front of white, no masks. {_field(field)}"
    )
    network = report["methods"].get("adam_mlp", {}).get("field")
    return text + ("" if network is None else f" {_field(network)}")


def _field(field: dict[str, Any]) -> str:
    settings, record = field["settings"], field["record"]
    if field["kind"] == "grid":
        shape = "×".join(str(n) for n in settings["shape"])
        what = f"The grid has {shape} nodes {1e3 * settings['voxel']:.3g} mm apart"
    else:
        samples = f"{settings['coarse_samples']} + {settings['fine_samples']}"
        what = f"The network has {settings['depth']}×{settings['width']} and {samples} samples"
    said = []
    if "seconds" in record:
        said.append(f"trained for {record['seconds']:.0f} s")
    if "test" in record:
        said.append(f"test PSNR {record['test']['mean_psnr']:.2f} dB")
    return ", ".join([what, *said]) + "."
