# SPDX-License-Identifier: Apache-2.0
"""What is called good does not depend on where the refinement started: rivals were looked at."""

import numpy as np
import pytest
from shapes import angle_deg, box, ell, model, pinhole_camera, pose, random_turn, silhouette, turned

from pose_refiner_ros.frame import Frame
from pose_refiner_ros.objects.symmetry import Symmetries
from pose_refiner_ros.pipeline import Pipeline
from pose_refiner_ros.refinement.codebook import ViewCodebook
from pose_refiner_ros.settings import Settings

CAMERA = pinhole_camera(256, 300.0)
TRUTH = pose((0.6, -0.7, 0.4), (0.03, -0.02, 0.6))
HALF_TURNS = [pose(np.pi * axis, (0, 0, 0)) for axis in np.eye(3)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSE_REFINER_CACHE", str(tmp_path_factory.mktemp("cache")))
        shapes = [
            model("box", box()),
            model("ell", ell()),
            model("told", box(), symmetries=Symmetries(np.array(HALF_TURNS))),
        ]
        yield Pipeline({shape.name: shape for shape in shapes}, device="cpu")


def process(pipeline, name, start=None, truth=TRUTH, **more):
    mask = silhouette(pipeline.library[name].mesh, truth, CAMERA)
    starts = {} if start is None else {1: [start]}
    (found,) = pipeline.process(Frame(mask, CAMERA, {1: name}, starts, **more), lambda *_: None)
    return found


@pytest.mark.parametrize("degrees", [2, 10, 20, 30])
def test_a_box_is_ambiguous_from_wherever_it_started(pipeline, degrees):
    """From behind it looks as from the front."""
    rng = np.random.default_rng(degrees)
    start = turned(TRUTH, random_turn(rng, np.radians(degrees)), rng.normal(size=3) * 0.005)
    found = process(pipeline, "box", start)
    searched = process(pipeline, "box")
    assert found.quality == searched.quality == "ambiguous"
    assert found.belief == pytest.approx(searched.belief, abs=0.15)
    half = min(angle_deg(a.camera_from_object, TRUTH @ h) for a in found.alternatives
               for h in HALF_TURNS)  # fmt: skip
    assert half < 3.0
    assert angle_deg(found.camera_from_object, TRUTH) < 3.0  # the start decides among them


@pytest.mark.parametrize("name", ["ell", "told"])
@pytest.mark.parametrize("degrees", [2, 20])
def test_what_has_no_rival_stays_good(pipeline, name, degrees):
    rng = np.random.default_rng(degrees)
    found = process(pipeline, name, turned(TRUTH, random_turn(rng, np.radians(degrees))))
    assert found.quality == "good" and found.belief > 0.9


def test_of_poses_that_look_the_same_the_nearest_to_the_start_is_told(pipeline):
    for half in HALF_TURNS:
        start = turned(TRUTH @ half, (0.05, -0.04, 0.03))
        found = process(pipeline, "told", start)
        assert angle_deg(found.camera_from_object, TRUTH @ half) < 1.0
        assert (np.linalg.eigvalsh(found.covariance) > 0).all()


def test_a_track_is_not_asked_again_and_never_means_never(pipeline, monkeypatch):
    asked = []
    monkeypatch.setattr(ViewCodebook, "similar_views", lambda *_: asked.append(1) or [])
    start = turned(TRUTH, (0.02, 0.01, 0.0))
    process(pipeline, "box", start, tracked={1})
    assert not asked
    pipeline.settings = Settings(search="never")
    process(pipeline, "box", start)
    pipeline.settings = Settings()
    assert not asked
    process(pipeline, "box", start)
    assert asked


def test_a_fresh_look_at_a_cut_track_that_fits_does_not_look_beyond_the_cut(pipeline, monkeypatch):
    """It comes three times a second, and would take longer than a frame."""
    asked, match = [], ViewCodebook.match
    monkeypatch.setattr(ViewCodebook, "match", lambda *args: asked.append(args[-1]) or match(*args))
    cut = pose((0.6, -0.7, 0.4), (0.3, -0.02, 0.6))
    process(pipeline, "ell", cut, cut, tracked={1}, search={1})
    process(pipeline, "ell", None, cut)
    assert asked == [False, True]
