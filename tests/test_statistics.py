"Intervals know of seeds and patients, ratios may be unbounded, and a verdict is what the interval says."
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from cssgan.experiments.statistics import (
    Estimate,
    crossed_bootstrap,
    family_verdicts,
    holm,
    mean_estimate,
    paired_scores,
    ratio_estimate,
    spread_of_means,
)
from cssgan.guard import InputError

RNG = np.random.default_rng(0)
CROSSED = 1 + RNG.normal(0, 1, (4, 1)) + RNG.normal(0, 3, (1, 20)) + RNG.normal(0, 2, (4, 20))


# ---- the same for all methods

def records(*cells): return pd.DataFrame(cells, columns=["method", "seed", "patient", "mean"])


def test_cells_are_paired_by_seed_and_patient_and_not_by_order():
    frame = records(("b", 1, "P", 4.), ("a", 0, "Q", 7.), ("a", 1, "P", 1.), ("b", 0, "P", 3.), ("b", 0, "Q", 9.),
                    ("a", 0, "P", 0.), ("a", 1, "Q", 8.), ("b", 1, "Q", 10.))
    a, b = paired_scores(frame, ["a", "b"])
    assert a.tolist() == [[0, 7], [1, 8]] and b.tolist() == [[3, 9], [4, 10]]


def test_what_one_method_lacks_is_left_out_for_all():
    frame = records(*((m, s, p, 1.) for m in "ab" for s in (0, 1) for p in "PQ"), ("a", 2, "P", 1.))
    frame.loc[0, "mean"] = None
    assert paired_scores(frame, ["a", "b"]).shape == (2, 2, 1)


def test_several_scans_of_a_patient_are_one_witness():
    assert paired_scores(records(("a", 0, "P", 1.), ("a", 0, "P", 3.)), ["a"]).tolist() == [[[2.]]]


def test_means_over_patients_are_one_column():
    frame = records(("a", 0, "P", 1.), ("a", 1, "P", 3.)).drop(columns="patient")
    assert paired_scores(frame, ["a"]).shape == (1, 2, 1)


def test_a_method_that_was_not_run_is_named():
    with pytest.raises(InputError, match="all of a, b; run"): paired_scores(records(("a", 0, "P", 1.)), ["a", "b"])


# ---- differences

@pytest.mark.parametrize("shape", [(5, 1), (1, 5)])
def test_with_one_column_or_row_the_interval_is_students(shape):
    ours, other = RNG.normal(70, 3, 5), RNG.normal(68, 3, 5)
    found, expected = mean_estimate((ours - other).reshape(shape)), ttest_rel(ours, other)
    assert found[1:3] == pytest.approx(tuple(expected.confidence_interval()))
    assert shape[0] == 1 or math.isclose(found.p, expected.pvalue)


@pytest.mark.parametrize("estimate", [
    mean_estimate(np.full((1, 71), 5.) + RNG.normal(0, 1, 71)),
    ratio_estimate(np.full((1, 71), 5.) + RNG.normal(0, 1, 71), np.full((1, 71), 6.) + RNG.normal(0, 1, 71), 10.)])
def test_a_single_training_run_gets_no_verdict_however_many_patients_it_is_tested_on(estimate):
    assert math.isfinite(estimate.low) and estimate.low > estimate.against, "the interval over patients may be shown"
    assert estimate.verdict == "undecided" and math.isnan(estimate.p) and estimate.basis == "1 seed (71 patients)"
    assert family_verdicts([estimate]) == ["undecided"]


def test_of_crossed_data_the_spread_is_hillis():
    "By the mean squares of a two-way table, with the sums written out."
    S, P = CROSSED.shape
    by_seed, by_patient, every = CROSSED.mean(1), CROSSED.mean(0), CROSSED.mean()
    seeds = P * sum((by_seed - every) ** 2) / (S - 1)
    patients = S * sum((by_patient - every) ** 2) / (P - 1)
    rest = sum((CROSSED[s, p] - by_seed[s] - by_patient[p] + every) ** 2 for s in range(S) for p in range(P))
    rest /= (S - 1) * (P - 1)
    seeds = max(seeds, rest)  # he has no such floor
    total = seeds + patients - rest
    covariance, freedom = spread_of_means(CROSSED[None], np.ones(1))
    assert covariance.item() == pytest.approx(total / (S * P)) and freedom == pytest.approx(3 * (total / seeds) ** 2)


def test_patients_widen_an_interval_that_knew_of_seeds_alone():
    known, blind = mean_estimate(CROSSED), mean_estimate(CROSSED.mean(1, keepdims=True))
    assert known.value == pytest.approx(blind.value) and known.patients == 20 and blind.patients == 1
    covariance, _ = spread_of_means(CROSSED[None], np.ones(1))
    assert covariance.item() > CROSSED.mean(1).var(ddof=1) / 4


def test_a_single_number_has_no_interval_and_no_verdict():
    found = mean_estimate(np.array([[5.]]))
    assert math.isnan(found.low) and math.isnan(found.p) and found.verdict == "undecided" and found.interval() == "none"


def test_equal_differences_are_sure():
    found = mean_estimate(np.full((3, 1), 2.), against=1.)
    assert found[:3] == (2, 2, 2) and found.p == 0 and found.verdict == "holds"


# ---- the bootstrap

def test_the_bootstrap_repeats_itself_and_hears_its_seed():
    mean = lambda means: means[0]
    one, again, other = (crossed_bootstrap(CROSSED[None], mean, 500, seed) for seed in (0, 0, 1))
    assert one == again != other


def test_the_bootstrap_of_patients_alone_is_that_of_scipy():
    from scipy.stats import bootstrap
    values = RNG.normal(0, 1, 40)
    expected = bootstrap((values,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
    assert crossed_bootstrap(values[None, None], lambda means: means[0]) == pytest.approx(tuple(expected), abs=.03)


# ---- ratios

def test_a_ratio_to_a_certain_whole_is_a_mean():
    part = RNG.normal(3, 1, (5, 1))
    found, mean = ratio_estimate(part, np.full((5, 1), 4.)), ttest_1samp(25 * part[:, 0], 0)
    assert found[1:3] == pytest.approx(tuple(mean.confidence_interval())) and math.isclose(found.p, mean.pvalue)


@pytest.mark.parametrize("gain, way", [
    ([1.6, .3, 1.1, 1.7, 1.1], [2.2, 3.5, 1.9, 3.2, 3.5]), ([1.6, .3], [2.2, 3.5]), (CROSSED, CROSSED[::-1] + 5)])
def test_at_the_ends_of_fiellers_interval_p_is_a_twentieth(gain, way):
    gain, way = (np.reshape(side, (len(side), -1)) for side in (gain, way))
    found = ratio_estimate(gain, way)
    ends = [ratio_estimate(gain, way, against=end).p for end in found[1:3]]
    assert ends == pytest.approx([.05, .05])


def test_a_whole_that_may_be_zero_leaves_the_ratio_unbounded_and_says_so():
    two = ratio_estimate(np.array([[1.6], [.3]]), np.array([[2.2], [3.5]]), against=61.)
    assert two.low > two.high and two.interval(0) == "unbounded: all but -170 to -66" and two.verdict == "undecided"
    nothing = ratio_estimate(np.array([[1.], [-1.], [.1]]), np.array([[-.5], [-.6], [1.2]]))
    assert nothing.interval() == "unbounded: any number" and nothing.verdict == "undecided"


def test_a_ratio_of_one_seed_has_no_interval():
    found = ratio_estimate(np.array([[1.]]), np.array([[2.]]), against=61.)
    assert found.value == 50 and found.interval() == "none" and found.verdict == "undecided"


def test_a_ratio_to_nothing_at_all_is_no_number_and_no_error():
    found = ratio_estimate(np.array([[1.], [2.]]), np.array([[1.], [-1.]]), against=61.)
    assert math.isnan(found.value) and found.verdict == "undecided" and found.interval() == "none"


# ---- verdicts

@pytest.mark.parametrize("low, high, verdict", [
    (2.1, 5., "holds"), (2., 5., "holds"), (1.9, 5., "undecided"), (0., 1.9, "does not hold"), (3., 1., "undecided"),
    (-math.inf, math.inf, "undecided"), (math.nan, math.nan, "undecided")])
def test_the_interval_decides_and_not_the_mean(low, high, verdict):
    assert Estimate(3., low, high, against=2., p=.5, seeds=3, patients=1).verdict == verdict


def test_a_basis_without_patients_says_so():
    e = Estimate(3., 2., 4., 0., .01, seeds=3, patients=1)
    assert e.basis == "3 seeds only" and e._replace(patients=71).basis == "3 seeds, 71 patients"


# ---- several claims

def test_holm_is_what_the_paper_says():
    assert holm([.01, .04, .03, .005]) == pytest.approx([.03, .06, .06, .02])


def test_what_was_not_tested_belongs_to_the_family():
    assert holm([.03, math.nan]) == pytest.approx([.06, 1.])


def test_a_family_gives_a_verdict_only_to_what_survives():
    one = Estimate(3., 2., 4., against=1., p=.001, seeds=3, patients=1)
    claims = [one, one._replace(p=.04), one._replace(against=5.), one._replace(low=0., p=.3)]
    assert family_verdicts(claims) == ["holds", "undecided", "does not hold", "undecided"]


def test_claims_that_were_not_run_are_named_and_count():
    one = Estimate(3., 2., 4., against=1., p=.02, seeds=3, patients=71)
    assert family_verdicts([one, one._replace(p=.001)]) == ["holds", "holds"]
    assert family_verdicts([one, None, None]) == ["undecided", "not run", "not run"]


def test_two_seeds_that_agree_by_chance_are_not_sure_of_it():
    "The scatter of single numbers is a floor: were all of them independent, the mean would be no surer."
    noise = np.random.default_rng(0).normal(1., 4., (2, 71))
    noise -= noise.mean(1, keepdims=True) - 1.4  # both seeds have the same mean
    found = mean_estimate(noise)
    assert found.high - found.value > 1.96 * noise.std() / noise.size ** .5
    assert found.p > .001

