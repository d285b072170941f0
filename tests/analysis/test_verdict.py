import pytest

from husai.analysis.stats import Interval
from husai.analysis.verdict import rung_sentence, stable_rungs, standing, symmetry_sentence

NAN = float("nan")
RUNGS = {
    "data_points": Interval(0.75, 0.74, 0.76),
    "ambient": Interval(0.2, 0.19, 0.21),
    "data": Interval(0.6, 0.59, 0.61),
}


def test_all_rungs_exceeded():
    assert (
        rung_sentence(Interval(0.85, 0.8, 0.9), RUNGS)
        == "pwmcc 0.850 [0.800, 0.900] exceeds every rung that needs no training: ambient, data, data_points."
    )


def test_ambient_alone_is_said_to_be_what_needs_no_activations():
    assert (
        rung_sentence(Interval(0.85, 0.8, 0.9), {"ambient": RUNGS["ambient"]})
        == "pwmcc 0.850 [0.800, 0.900] exceeds every rung that needs no activations: ambient."
    )


def test_a_rung_with_an_overlapping_interval_is_not_told_apart():
    assert (
        rung_sentence(Interval(0.7, 0.65, 0.75), RUNGS) == "pwmcc 0.700 [0.650, 0.750] exceeds ambient, data; "
        "is not told apart from data_points (0.750 [0.740, 0.760])."
    )


def test_a_rung_that_lies_above_the_interval_is_fallen_short_of():
    assert (
        rung_sentence(Interval(0.7, 0.68, 0.72), RUNGS)
        == "pwmcc 0.700 [0.680, 0.720] exceeds ambient, data; falls short of data_points (0.750 [0.740, 0.760])."
    )


def test_no_rung_exceeded():
    sentence = rung_sentence(Interval(0.2, 0.1, 0.3), RUNGS)
    assert sentence == (
        "pwmcc 0.200 [0.100, 0.300] exceeds no rung; is not told apart from ambient (0.200 [0.190, 0.210]); "
        "falls short of data (0.600 [0.590, 0.610]), data_points (0.750 [0.740, 0.760])."
    )


@pytest.mark.parametrize(("high", "short"), [(0.73, True), (0.74, False), (0.745, False)])
def test_falling_short_takes_the_whole_interval_and_the_nulls_lower_end(high, short):
    sentence = rung_sentence(Interval(0.7, 0.65, high), {"data_points": RUNGS["data_points"]})
    assert ("falls short" in sentence) is short


@pytest.mark.parametrize(("low", "exceeds"), [(0.6, False), (0.61, False), (0.62, True)])
def test_exceeding_takes_the_whole_interval_and_the_nulls_upper_end(low, exceeds):
    sentence = rung_sentence(Interval(0.9, low, 1.2), {"data": RUNGS["data"]})
    assert ("exceeds every rung" in sentence) is exceeds


def test_without_an_interval_nothing_is_claimed():
    assert (
        rung_sentence(Interval(0.99, NAN, NAN), RUNGS)
        == "pwmcc 0.990: fewer than 3 seeds give no interval, so no rung can be said to be exceeded."
    )


def test_a_rung_without_an_interval_is_named_as_such():
    rungs = {"ambient": RUNGS["ambient"], "untrained": Interval(0.1, NAN, NAN)}
    sentence = rung_sentence(Interval(0.7, 0.65, 0.75), rungs)
    assert sentence.endswith("every rung with an interval: ambient (no interval for untrained (0.100)).")


def test_any_score_is_named_and_rungs_without_intervals_are_no_rungs_to_exceed():
    alone = {"data_relu": Interval(0.3, NAN, NAN)}
    assert (
        rung_sentence(Interval(0.7, 0.65, 0.75), alone, "functional")
        == "functional 0.700 [0.650, 0.750] has no rung with an interval (data_relu (0.300))."
    )


def test_stable_features_must_exceed_turned_planes_only_where_there_are_planes():
    assert set(stable_rungs(True)) - set(stable_rungs(False)) == {"plane_rotated"}
    assert set(stable_rungs(False)) == {"data", "data_points", "surrogate_trained"}


ABOVE = {"aligned": Interval(0.93, 0.92, 0.94), "aligned_null": Interval(0.8, 0.79, 0.81)}


@pytest.mark.parametrize(
    ("score", "shifted", "self_shift", "words"),
    [
        (0.90, 0.70, 0.70, "share absolute phases"),  # a shifted copy agrees less
        (0.90, 0.90, 0.89, "nearly closed under the symmetry"),
        (0.70, 0.70, 0.60, "one dictionary up to the symmetry"),
        (0.92, 0.92, 0.60, "no shift agrees much better"),
    ],
)
def test_symmetry_branches(score, shifted, self_shift, words):
    assert words in symmetry_sentence(score, shifted, self_shift, **ABOVE, moved=1.0)


@pytest.mark.parametrize("score", [0.7, 0.9])
def test_alignment_within_its_null_claims_nothing(score):
    at_null = {"aligned": Interval(0.8, 0.79, 0.81), "aligned_null": Interval(0.79, 0.77, 0.8)}
    assert "beyond data points" in symmetry_sentence(score, 0.7, 0.7, **at_null, moved=1.0)


def test_symmetry_is_not_read_without_an_interval():
    no_interval = {"aligned": Interval(0.93, NAN, NAN), "aligned_null": ABOVE["aligned_null"]}
    assert "fewer than 3 seeds" in symmetry_sentence(0.9, 0.7, 0.7, **no_interval, moved=1.0).lower()


@pytest.mark.parametrize(("moved", "little"), [(0.49, True), (0.5, False)])
def test_shifts_that_move_little_say_little(moved, little):
    sentence = symmetry_sentence(0.9, 0.7, 0.7, **ABOVE, moved=moved)
    assert ("say little" in sentence) is little


def test_the_measured_closed_dictionary_of_the_method_page():
    # k = 1 at resid_post: pwmcc .909, shifted .907, self_shift .899, aligned .933 above its null .806
    sentence = symmetry_sentence(
        0.909, 0.907, 0.899, Interval(0.933, 0.92, 0.94), Interval(0.806, 0.80, 0.81), moved=0.9
    )
    assert "nearly closed under the symmetry" in sentence


def test_the_measured_k_4_dictionary_of_the_method_page():
    # k = 4: aligned .719 below its null .780
    sentence = symmetry_sentence(
        0.705, 0.700, 0.713, Interval(0.719, 0.71, 0.73), Interval(0.780, 0.77, 0.79), moved=0.9
    )
    assert "beyond data points" in sentence


def test_a_score_stands_above_level_with_or_below_its_rungs():
    rungs = {**RUNGS, "untrained": Interval(0.3, NAN, NAN)}
    assert standing(Interval(0.6, 0.55, 0.7), rungs) == (["ambient"], ["data"], ["data_points"])
