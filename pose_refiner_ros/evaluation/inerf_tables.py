# SPDX-License-Identifier: Apache-2.0
"""What inerf.json holds, as Markdown for people. A block that has not run says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pose_refiner_ros.evaluation.report import lines_of, origin, table, target_table

METHODS = {
    "fast": "fast, on the grid",
    "adam_grid": "Adam, on the grid",
    "adam_mlp": "Adam, in a network",
}


@dataclass(frozen=True)
class Words:
    """What lengths are called: of an object metres, of a scene the unit of its frame."""

    near: str  # how far off a right pose may be
    column: str  # the unit behind a column's head
    unit: str
    shift: str  # of starts


OBJECT = Words("5 cm", " m", "metres", "0.2 m")
SCENE = Words("0.05", ", units", "units", "0.1")


def words_of(report: dict[str, Any]) -> Words:
    return SCENE if "scene" in report else OBJECT


def columns(words: Words) -> tuple[tuple[str, str, str], ...]:
    """Head, key of a summary, how it is written."""
    return (
        ("n", "n", "{:.0f}"),
        ("under 5°", "share_5deg", "{:.3f}"),
        (f"under {words.near}", "share_5cm", "{:.3f}"),
        ("both", "share_both", "{:.3f}"),
        ("median °", "median_rotation_error_deg", "{:.3f}"),
        (f"median{words.column}", "median_translation_error_m", "{:.4f}"),
        ("s / pose", "seconds_per_pose", "{:.2f}"),
    )


ELSEWHERE = (  # from the papers; all but iNeRF's with the stricter measure, on an RTX 4090
    ("iNeRF, the paper, 1,024 rays", "0.71", "0.73", "–", "20 per 100 steps"),
    ("Parallel iNeRF", "–", "–", "0.719", "13.6"),
    ("iComMa", "–", "–", "0.790", "16.7"),
    ("GSFeatLoc: render once, match, PnP", "–", "–", "0.909", "0.09"),
)
SCENES_ELSEWHERE = (  # on fern, fortress, horns and room of LLFF
    ("iNeRF, the paper", "0.55", "0.39", "–", "20 per 100 steps"),
    ("iNeRF, run again by others", "–", "–", "0.35", "–"),
    ("a particle filter in the same fields", "–", "–", "0.70", "–"),
)
PAPER_TABLE1 = {1.0: ("24.94", "–"), 0.5: ("24.18", "24.64"), 0.25: ("21.85", "23.89")}
PAPER_STEP_MS = 200  # 20 s per 100 steps
SAMPLINGS = {
    "random": "random",
    "interest_point": "interest points",
    "interest_region": "interest regions",
}
LEVELS = {
    "5deg_5cm": "5° and {}",
    "half_degree_5cm": "0.5° and {}",
    "own": "where the fast method ends",
}
LIGHTS = {
    "as_trained": "as in training",
    "exposure": "other exposure",
    "white_balance": "other exposure, white and black level",
}
LIGHT_ROWS = {
    "fast": "fast",
    "fast_no_exposure": "fast, colours as they are",
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


def stem_of(report: dict[str, Any]) -> str:
    """What the names of its files begin with: those of a scene also have its own name."""
    return f"inerf_{report['data']['name']}" if "scene" in report else "inerf"


def markdown(report: dict[str, Any]) -> str:
    """All tables, and the plots beside them."""
    words, of_scene = words_of(report), "scene" in report
    parts = [
        "# iNeRF, measured here",
        _header(report),
        "## Targets",
        target_table(report),
        "## Methods",
        scene_text(report) if of_scene else OBJECT_TEXT,
        method_table(report),
        field_unit_text(report) if of_scene else origin_text(report),
        "For scale, from the papers, on "
        + ("four scenes of LLFF:" if of_scene else "NeRF's synthetic scenes:"),
        table(
            [
                ["method", "under 5°", f"under {words.near}", "both", "s / pose"],
                *(SCENES_ELSEWHERE if of_scene else ELSEWHERE),
            ]
        ),
        *_pictures(report),
    ]
    for heading, block, text in SCENE_SECTIONS if of_scene else SECTIONS:
        said = text(report[block], words) if block in report else MISSING
        parts += [f"## {heading}", said.replace("](inerf_", f"]({stem_of(report)}_")]
    failed = [
        f"- `{name}`: {block['failed']}"
        for name, block in report["blocks"].items()
        if block["failed"]
    ]
    if failed:
        parts += ["## Failed", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _pictures(report: dict[str, Any]) -> list[str]:
    parts, stem = [], stem_of(report)
    if "fast" in report["methods"]:
        parts.append(f"![Errors before and after]({stem}_9_errors.png)")
    if not report["blocks"].get("examples", {"failed": True})["failed"]:
        parts += [
            "Photo; the field at the start, half over the photo; at the fast method's result:",
            f"![Photos, starts and results]({stem}_examples.png)",
        ]
    return parts


OBJECT_TEXT = (
    "Starts are off by up to 40° about a random axis and up to 0.2 m along each axis. Share of "
    "poses whose rotation is less than 5° off, whose camera is less than 5 cm off (in the "
    "object's frame, as in the paper), and both; medians; mean time of a pose."
)


def scene_text(report: dict[str, Any]) -> str:
    scale = report["scene"]["scale"]
    unit = (
        "NeRF's loader, which is the paper's: here "
        f"{1.0 / scale:.3g} units of the field, so that the nearest depth of any photo is 4/3"
    )
    if scale == 1.0:
        unit = (
            "the field, since the photos' file says no depths from which the paper's would follow"
        )
    return (
        "Cameras start turned in their places by up to 40° about a random axis and moved by up to "
        "0.1 along each. Share of poses whose rotation is less than 5° off, whose camera is less "
        "than 0.05 off, and both; medians; mean time of a pose. Lengths are in the unit of "
        f"{unit}; none of them need be metres. (In the JSON file keys "
        "that end in `_5cm` or `_m` mean 0.05 and units of this kind.)"
    )


def method_table(report: dict[str, Any]) -> str:
    rows = []
    for name, shown in METHODS.items():
        if row := report["methods"].get(name):
            steps = row.get("steps", row.get("median_iterations"))
            rows.append((shown, str(row["rays"]), f"{steps:g}", row))
    heads = ["method", "rays", "steps"]
    return table(lines_of(heads, columns(words_of(report)), rows)) if rows else MISSING


def origin_text(report: dict[str, Any]) -> str:
    """The other measure of translation, of an object."""
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


def field_unit_text(report: dict[str, Any]) -> str:
    """The other measure of translation, of a scene."""
    scale = report["scene"]["scale"]
    said = [
        f"{name} {row['share_both_field_unit']:.3f}, median "
        f"{row['median_translation_error_m'] / scale:.4f}"
        for method, name in METHODS.items()
        if (row := report["methods"].get(method))
    ]
    if not said:
        return MISSING
    return (
        f"In the field's own unit, that of the photos' file, 0.05 is {1.0 / scale:.3g} times less. "
        f"The share under 5° and that, and the median in it, are: {'; '.join(said)}."
    )


def speed_table(data: dict[str, Any], words: Words) -> str:
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
        rows.append((name.format(words.near), {**data["levels"][key], "with_never": with_never}))
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


def figure_6a_table(data: dict[str, Any], words: Words) -> str:
    runs = list(data["cells"].values())
    rows = [(SAMPLINGS[run["sampling"]], str(run["rays"]), run) for run in runs]
    lines = lines_of(["sampling", "rays"], columns(words), rows)
    means = ", ".join(f"{SAMPLINGS[s]} {v:.3f}" for s, v in data["mean_share_both"].items())
    return (
        f"{table(lines)}\n\nAfter {runs[0]['steps']} steps. Under both, mean of "
        f"the three sizes: {means}. Interest regions minus random: "
        f"{data['region_minus_random']:+.3f}.\n\n"
        "![Share of right poses by steps of Adam](inerf_6a_steps.png)"
    )


def figure_6b_table(data: dict[str, Any], words: Words) -> str:
    rows = [(str(run["rays"]), run) for run in data["cells"].values()]
    steps = next(iter(data["cells"].values()))["steps"]
    return (
        f"{table(lines_of(['rays'], columns(words), rows))}\n\nAfter {steps} steps, rays in "
        "interest regions. The paper ends at 0.55 under 5° and 0.39 under 0.05, over its four "
        "scenes.\n\n![Share of right poses by steps of Adam](inerf_6b_steps.png)"
    )


def basin_table(data: dict[str, Any], words: Words) -> str:
    heads = (
        ("n", "n", "{:.0f}"),
        ("right", "right", "{:.0f}"),
        ("of them said to be lost", "right_but_lost", "{:.0f}"),
        ("wrong, said to be lost", "wrong_and_lost", "{:.0f}"),
        ("wrong, and not said", "wrong_and_not_lost", "{:.0f}"),
        ("s / pose", "seconds_per_pose", "{:.2f}"),
    )
    rows = [(f"{row['degrees']:g}°", row) for row in data["rows"]]
    return (
        f"{table(lines_of(['turned by'], heads, rows))}\n\nThe fast method; cameras are turned by "
        f"exactly so much about random axes, and moved by up to {words.shift} along each. Right is "
        f"under 5° and {words.near}. Lost is what `SceneLocaliser` says of a pose from which the "
        "scene has other colours, or is hardly seen."
    )


def half_turn_text(data: dict[str, Any], words: Words) -> str:
    return (
        f"{data['hypotheses']} hypotheses evenly around the up axis from a random direction, each "
        f"moved by up to 0.2 m along each axis; the likeliest in the end is right (5° and 5 cm) in "
        f"{data['share_both']:.3f} of {data['n']} trials, with a median error of "
        f"{data['median_rotation_error_deg']:.3f}°, in {data['seconds_per_pose']:.2f} s for all "
        f"{data['hypotheses']} (at most {data['slowest_seconds']:.2f} s)."
    )


def light_table(data: dict[str, Any], words: Words) -> str:
    rows = [
        (name, shown, data["rows"][kind][row])
        for kind, name in LIGHTS.items()
        for row, shown in LIGHT_ROWS.items()
    ]
    lines = lines_of(["light", "method"], columns(words), rows)
    low, high = data["gains"]
    ground = ", its white ground too" if words is OBJECT else ""
    return (
        f"{table(lines)}\n\nOther exposure: all channels times one factor from {low:g} to "
        f"{high:g}. White and black level as well: each channel times its own factor, plus up to "
        f"±{data['bias']:g}. The whole photo changes{ground}, and is clipped at 1. "
        f"Adam has {data['steps']} steps."
    )


def batch_table(data: dict[str, Any], words: Words) -> str:
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


def self_supervision_table(data: dict[str, Any], words: Words) -> str:
    rows = [(f"{100 * row['share']:.0f} % ({row['labelled']})", row) for row in data["rows"]]
    lines = lines_of(["photos with poses"], SHARE_COLUMNS, rows)
    size = "×".join(str(n) for n in data["size"])
    masks = " with masks" if words is OBJECT else ""
    return (
        f"{table(lines)}\n\n{data['photos']} photos{masks}, made smaller to {size} pixels; "
        f"fields of {data['steps']} steps of {data['rays']} rays; mean PSNR of the test photos. "
        f"{data['rule']}"
    )


def table1(data: dict[str, Any], words: Words) -> str:
    beside = (("the paper's", "paper_without", "{}"), ("the paper's", "paper_with", "{}"))
    without, with_, *others = SHARE_COLUMNS
    rows = []
    for row in data["rows"]:
        paper = PAPER_TABLE1.get(row["share"], ("–", "–"))
        shown = {**row, "paper_without": paper[0], "paper_with": paper[1]}
        rows.append((f"{100 * row['share']:.0f} % ({row['labelled']})", shown))
    heads = (without, beside[0], with_, beside[1], *others)
    size = "×".join(str(n) for n in data["size"])
    return (
        f"{table(lines_of(['photos with poses'], heads, rows))}\n\nThe paper's figures are for the "
        f"scene fern. {data['photos']} photos, made smaller to {size} pixels, in which PSNR is "
        f"measured as well; fields of {data['steps']} steps of {data['rays']} rays; mean of the "
        f"test photos. {data['rule']}"
    )


def summary_lines(report: dict[str, Any]) -> list[list[str]]:
    """The methods, short, for a terminal."""
    return lines_of(["method"], columns(words_of(report)), report["methods"].items())


def _header(report: dict[str, Any]) -> str:
    data = report["data"]
    size = "×".join(str(n) for n in data["size"])
    behind = "no masks" if "scene" in report else "in front of white, no masks"
    text = (
        f"{origin(report, 'inerf')} {data['photos']} test photos of `{data['name']}`, {size} "
        f"pixels, {behind}. {_field(report['field'])}"
    )
    network = report["methods"].get("adam_mlp", {}).get("field")
    return text + ("" if network is None else f" {_field(network)}")


def _field(field: dict[str, Any]) -> str:
    settings, record = field["settings"], field["record"]
    if field["kind"] == "grid":
        shape = "×".join(str(n) for n in settings["shape"])
        apart = f"{1e3 * settings['voxel']:.3g} mm"
        if settings.get("contraction"):
            apart = f"{settings['voxel']:.3g} units of the field"
        what = f"The grid has {shape} nodes {apart} apart"
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
SCENE_SECTIONS = (
    ("How far off a start may be", "basin", basin_table),
    ("Time to the same accuracy", "speed", speed_table),
    ("Fig. 6b: batches of rays, Adam", "figure_6b", figure_6b_table),
    ("Another light than in training", "light", light_table),
    ("Several at once", "batch", batch_table),
    ("Table I: self-supervision", "table1", table1),
)
