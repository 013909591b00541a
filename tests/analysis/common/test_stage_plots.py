import math

import pytest

from seal_fast.analysis.common.stage_plots import by_stage, draw_curves, draw_rows, several_stages, stage_place
from seal_fast.runs.stats import Interval, student

ORDER = ["generation-0", "generation-1-ascent", "generation-1", "generation-10"]


def test_stages_stand_where_they_arose():
    assert [stage_place(stage) for stage in ORDER] == [0, 0.5, 1, 10]


def test_only_kept_stages_make_a_curve():
    assert several_stages([{"stage": ORDER[0]}, {"stage": ORDER[1]}])
    assert not several_stages([{"stage": "last"}, {"stage": ""}, {"stage": ORDER[0]}])


def test_several_networks_have_a_mean_and_one_has_its_own_interval():
    own = Interval(4.0, 3.0, 5.0, 9)
    points = [("seal", ORDER[2], 3.0), ("seal", ORDER[0], 1.0), ("seal", ORDER[2], 5.0), ("seal", ORDER[0], 2.0)]
    points += [("llf", ORDER[0], own), ("llf", ORDER[1], None), ("llf", ORDER[2], math.nan)]
    found = by_stage([{"group": g, "stage": s, "value": v} for g, s, v in points], lambda result: result["value"])
    assert list(found["seal"]) == [ORDER[0], ORDER[2]]
    assert found["seal"][ORDER[2]] == student([3.0, 5.0])
    assert found["llf"] == {ORDER[0]: own}


def test_the_curve_shows_means_intervals_and_ascents(tmp_path):
    from matplotlib.figure import Figure

    curves = {"seal": {stage: Interval(i, i - 1, i + 1, 5) for i, stage in enumerate(ORDER)}}
    axis = Figure().subplots()
    draw_curves(axis, curves, {"seal": "#003d5b"})
    line = axis.get_lines()[0]
    assert list(line.get_xdata()) == [0, 0.5, 1, 10] and list(line.get_ydata()) == [0, 1, 2, 3]
    assert [list(mark.get_xdata()) for mark in axis.get_lines()[1:]] == [[0.5, 0.5]]
    shaded = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert (shaded.min(), shaded.max()) == pytest.approx((-1, 4))
    assert [text.get_text() for text in axis.get_xticklabels()] == ["0", "1\nascent", "1", "10"]
    draw_rows([[("depth", curves), ("without", curves)], [("more", {})]], tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
