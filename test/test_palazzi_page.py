# SPDX-License-Identifier: Apache-2.0
"""docs/palazzi.md and README.md show what the last full run measured, and nothing else."""

import json
import re
from pathlib import Path

import pytest

from pose_refiner_ros.evaluation import palazzi_tables

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "docs" / "results"
REPORT = json.loads((RESULTS / "palazzi.json").read_text(encoding="utf-8"))


def body(text: str) -> str:
    """Without its title, pictures named as from docs/."""
    return re.sub(r"\]\((\w+\.png)\)", r"](results/\1)", text.split("\n", 1)[1]).strip()


def test_the_page_has_the_tables_of_the_last_run():
    written = body(palazzi_tables.markdown(REPORT))
    assert written == body((RESULTS / "palazzi.md").read_text(encoding="utf-8"))
    assert written in (REPOSITORY / "docs" / "palazzi.md").read_text(encoding="utf-8")


def test_the_pages_text_has_the_speed_of_the_last_run():
    page = (REPOSITORY / "docs" / "palazzi.md").read_text(encoding="utf-8")
    speed = REPORT["speed"]["medoid"]
    first = speed["gradient_pose_ms"] / speed["solver_first_call_ms"]
    assert f"first call after other work it is {first:.0f}." in page
    assert f"takes about {speed['gradient_pose_ms'] / 30:.0f} ms a step" in page


def test_the_readme_has_the_targets_of_the_last_run():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert palazzi_tables.target_table(REPORT) in readme


@pytest.mark.parametrize("block", ["medoid", "true_mesh"])
@pytest.mark.parametrize("row", ["encoder", "gradient_pose", "gradient_encoder", "solver"])
def test_the_report_is_whole(block, row):
    keys = ("accuracy", "miou", "mve_deg", "acc_pi_6", "median_translation_error_m")
    figures = REPORT["table1"][block][row]
    assert all(isinstance(figures[key], float) for key in (*keys, "ms_per_object"))


def test_pictures_are_there():
    page = (REPOSITORY / "docs" / "palazzi.md").read_text(encoding="utf-8")
    for name in re.findall(r"\]\((results/\w+\.png)\)", page):
        assert (REPOSITORY / "docs" / name).stat().st_size > 10_000
