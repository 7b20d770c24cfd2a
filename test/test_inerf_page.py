# SPDX-License-Identifier: Apache-2.0
"""docs/inerf.md and README.md show what the last full run measured, and nothing else."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from pose_refiner_ros.evaluation import inerf_tables
from pose_refiner_ros.evaluation.inerf import FULL, FULL_SCENE, SCENE_TARGETS, TARGETS
from pose_refiner_ros.evaluation.report import target_table, targets

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"
REPORT = json.loads((RESULTS / "inerf.json").read_text(encoding="utf-8"))
FERN = json.loads((RESULTS / "inerf_fern.json").read_text(encoding="utf-8"))
PAGE = (REPOSITORY / "docs" / "inerf.md").read_text(encoding="utf-8")


def body(text: str) -> str:
    """Without its title, pictures named as from docs/."""
    return re.sub(r"\]\((\w+\.png)\)", r"](results/\1)", text.split("\n", 1)[1]).strip()


@pytest.mark.parametrize(("report", "place"), [(REPORT, "tables"), (FERN, "fern")])
def test_the_page_has_the_tables_of_the_last_run(report, place):
    written = body(inerf_tables.markdown(report))
    file = RESULTS / f"{inerf_tables.stem_of(report)}.md"
    assert written == body(file.read_text(encoding="utf-8"))
    if place == "fern":  # a part of a section of the page
        written = re.sub("^## ", "### ", written, flags=re.MULTILINE)
    assert f"<!-- {place} -->\n\n{written}\n\n<!-- /{place} -->" in PAGE


def test_the_readme_has_the_targets_of_the_last_run():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"<!-- inerf -->\n\n{target_table(REPORT)}\n\n<!-- /inerf -->" in readme
    on_cpu = [target for target in TARGETS if not target[0].endswith("GPU")]
    assert REPORT["targets"] == targets(REPORT, on_cpu)


def test_what_the_page_says_in_words_is_what_was_measured():
    fast, adam = (REPORT["methods"][name]["share_both"] for name in ("fast", "adam_grid"))
    assert fast == 1.0 and 0.63 <= adam <= 0.83  # all; about as many as in the paper
    speed = REPORT["speed"]["levels"]
    assert max(speed[name]["times"] for name in speed) < 50 and "that target is missed" in PAGE
    assert 20 < REPORT["methods"]["fast"]["median_iterations"] < 40  # some thirty looks
    cells = REPORT["figure_6a"]["cells"]
    for rays in (512, 1024):  # most of all where rays are few
        assert (
            cells[f"interest_region_{rays}"]["share_both"] > cells[f"random_{rays}"]["share_both"]
        )
    more = cells["random_2048"]["share_both"] - cells["interest_region_2048"]["share_both"]
    assert round(25 * more) == 6
    share = REPORT["figure_6a"]["mean_share_both"]
    assert min(share, key=share.get) == "interest_point"
    assert abs(share["random"] - share["interest_region"]) < 0.03
    rows = REPORT["light"]["rows"]
    assert all(rows[kind]["fast"]["share_both"] == 1.0 for kind in rows)
    assert rows["exposure"]["fast_no_exposure"]["share_both"] == 0.5


def test_what_the_page_says_of_fern_is_what_was_measured():
    assert FERN["data"] == {"name": "fern", "photos": 3, "size": [378, 504]}
    on_cpu = [target for target in SCENE_TARGETS if not target[0].endswith("GPU")]
    assert FERN["targets"] == targets(FERN, on_cpu)
    scale = FERN["scene"]["scale"]
    assert scale < 0.1  # the file's unit is the smaller one
    quarter = FERN["table1"]["rows"][-1]
    assert [quarter[name] for name in ("estimated", "right", "kept")] == [13, 7, 13]
    assert quarter["psnr_with"] - quarter["psnr_without"] == pytest.approx(3.8, abs=0.05)


@pytest.mark.parametrize(
    ("report", "counts"),
    [(REPORT, FULL), (FERN, FULL_SCENE)],
)
def test_the_run_was_a_full_one(report, counts):
    assert report["counts"] == asdict(counts)
    assert inerf_tables.MISSING not in inerf_tables.markdown(report)


@pytest.mark.parametrize("report", [REPORT, FERN])
def test_no_block_has_failed(report):
    assert not [name for name, block in report["blocks"].items() if block["failed"]]


@pytest.mark.parametrize(
    ("report", "method"),
    [
        *((REPORT, method) for method in ("fast", "adam_grid", "adam_mlp")),
        *((FERN, method) for method in ("fast", "adam_grid")),
    ],
)
def test_the_report_is_whole(report, method):
    keys = ("share_5deg", "share_5cm", "share_both", "median_rotation_error_deg",
            "median_translation_error_m", "seconds_per_pose")  # fmt: skip
    assert all(isinstance(report["methods"][method][key], float) for key in keys)


def test_pictures_are_there():
    for name in re.findall(r"\]\((results/\w+\.png)\)", PAGE):
        assert (REPOSITORY / "docs" / name).stat().st_size > 10_000
