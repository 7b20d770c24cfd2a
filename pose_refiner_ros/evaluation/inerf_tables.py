# SPDX-License-Identifier: Apache-2.0
"""What inerf.json holds, as Markdown for people. A block that has not run says so."""

from __future__ import annotations

from typing import Any

from pose_refiner_ros.evaluation.report import lines_of, origin, table, target_table

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
    ]
    for heading, block, text in SECTIONS:
        parts += [f"## {heading}", text(report[block]) if block in report else MISSING]
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
    rows = []
    for name, shown in METHODS.items():
        if row := report["methods"].get(name):
            steps = row.get("steps", row.get("median_iterations"))
            rows.append((shown, str(row["rays"]), f"{steps:g}", row))
    return table(lines_of(["method", "rays", "steps"], COLUMNS, rows)) if rows else MISSING


def origin_text(report: dict[str, Any]) -> str:
    """The other measure of translation."""
    said = [
        f"{name} {row['share_both_origin']:.3f}, median {row['median_origin_error_m']:.4f}"
        for method, name in METHODS.items()
        if (row := report["methods"].get(method))
    ]
    if not said:
        return MISSING
    return (
        "Measured as object poses are, by the place of the model's origin in the camera's frame, "
        f"the share under both and the median in metres are: {'; '.join(said)}."
    )


def speed_table(data: dict[str, Any]) -> str:
    of_all = f"{{}} of {data['n']}"
    columns = (
        ("fast gets there", "fast_reaches", of_all),
        ("Adam gets there", "adam_reaches", of_all),
        ("Adam s", "adam_seconds", "{:.2f}"),
        ("fast s", "fast_seconds", "{:.2f}"),
        ("times faster", "times", "{:.1f}"),
        ("with those that Adam never gets to", "with_never", "{}"),
    )
    rows = []
    for key, name in LEVELS.items():
        never = data["levels"][key]["times_with_never"]
        with_never = "more than half never" if never is None else f"{never:.1f}"
        rows.append((name, {**data["levels"][key], "with_never": with_never}))
    lines = lines_of(["to"], columns, rows)
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


def figure_6a_table(data: dict[str, Any]) -> str:
    runs = list(data["cells"].values())
    rows = [(SAMPLINGS[run["sampling"]], str(run["rays"]), run) for run in runs]
    lines = lines_of(["sampling", "rays"], COLUMNS, rows)
    means = ", ".join(f"{SAMPLINGS[s]} {v:.3f}" for s, v in data["mean_share_both"].items())
    return (
        f"{table(lines)}\n\nAfter {runs[0]['steps']} steps. Under both, mean of "
        f"the three sizes: {means}. Interest regions minus random: "
        f"{data['region_minus_random']:+.3f}.\n\n"
        "![Share of right poses by steps of Adam](inerf_6a_steps.png)"
    )


def half_turn_text(data: dict[str, Any]) -> str:
    return (
        f"{data['hypotheses']} hypotheses evenly around the up axis from a random direction, each "
        f"moved by up to 0.2 m along each axis; the likeliest in the end is right (5° and 5 cm) in "
        f"{data['share_both']:.3f} of {data['n']} trials, with a median error of "
        f"{data['median_rotation_error_deg']:.3f}°, in {data['seconds_per_pose']:.2f} s for all "
        f"{data['hypotheses']} (at most {data['slowest_seconds']:.2f} s)."
    )


def light_table(data: dict[str, Any]) -> str:
    rows = [
        (name, shown, data["rows"][kind][row])
        for kind, name in LIGHTS.items()
        for row, shown in LIGHT_ROWS.items()
    ]
    lines = lines_of(["light", "method"], COLUMNS, rows)
    low, high = data["gains"]
    return (
        f"{table(lines)}\n\nOther exposure: all channels times one factor from {low:g} to "
        f"{high:g}. White and black level as well: each channel times its own factor, plus up to "
        f"±{data['bias']:g}. The whole photo changes, its white ground too, and is clipped at 1. "
        f"Adam has {data['steps']} steps."
    )


def batch_table(data: dict[str, Any]) -> str:
    columns = (
        ("hypotheses of one photo, s", "one_photo_seconds", "{:.3f}"),
        ("s each", "each", "{:.3f}"),
        ("photos, s each", "photos_seconds_each", "{:.3f}"),
    )
    rows = [
        (str(row["size"]), {**row, "each": row["one_photo_seconds"] / row["size"]})
        for row in data["rows"]
    ]
    lines = lines_of(["at once"], columns, rows)
    return (
        f"{table(lines)}\n\nMedians of {data['repeats']}. Of several hypotheses of one photo all "
        "are looked at in the coarsest level, the best six go through the coarse levels, and two "
        "of them to the end; photos with a start each all go to the end."
    )


def self_supervision_table(data: dict[str, Any]) -> str:
    rows = [(f"{100 * row['share']:.0f} % ({row['labelled']})", row) for row in data["rows"]]
    lines = lines_of(["photos with poses"], SHARE_COLUMNS, rows)
    size = "×".join(str(n) for n in data["size"])
    return (
        f"{table(lines)}\n\n{data['photos']} photos with masks, made smaller to {size} pixels; "
        f"fields of {data['steps']} steps of {data['rays']} rays; mean PSNR of the test photos. "
        f"{data['rule']}"
    )


def summary_lines(report: dict[str, Any]) -> list[list[str]]:
    """The methods, short, for a terminal."""
    return lines_of(["method"], COLUMNS, report["methods"].items())


def _header(report: dict[str, Any]) -> str:
    data = report["data"]
    size = "×".join(str(n) for n in data["size"])
    text = (
        f"{origin(report, 'inerf')} {data['photos']} test photos of `{data['name']}`, {size} "
        f"pixels, in front of white, no masks. {_field(report['field'])}"
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


SECTIONS = (  # heading, block of the report, what is said of it
    ("Time to the same accuracy", "speed", speed_table),
    ("Fig. 6a: samplings and batches of rays, Adam", "figure_6a", figure_6a_table),
    ("Any direction about the up axis", "half_turn", half_turn_text),
    ("Another light than in training", "light", light_table),
    ("Several at once", "batch", batch_table),
    ("Self-supervision (Table I)", "self_supervision", self_supervision_table),
)
