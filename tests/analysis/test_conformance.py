import math
import warnings

import pytest
import torch
import torch.nn.functional as F

from husai.analysis.conformance import DEFINITIONS, cases, conformance

BY_HAND = {
    "identical": (1, 1, 1, 1),
    "permuted": (1, 1, 1, 1),
    "flipped": (0, 1, 1, 0),  # signed, an atom is better off with another than with its mirror image
    "flipped, one atom each": (-1, 1, 1, 0),
    "scaled": (1, 1, 1, 1),
    "duplicates": (1 / 4, 1 / 4, (1 + 1 / 4) / 2, (1 + 1 / 4) / 2),
    "dead atoms": (1, 1, 1, 1),
    "unequal numbers": (1, 1, (1 / 2 + 1) / 2, (1 / 2 + 1) / 2),
    "greedy": (0.5, 0.5, (0.55 + 0.55) / 2, 0),
    "turned plane": (*(math.sqrt(1 / 2),) * 3, 1),  # .707 is just above the .7 from which atoms count as one
    "orthogonal": (0, 0, 0, 0),
}
REFUSED = ("NaN", "all dead", "other width")


def test_our_values_are_those_worked_out_by_hand():
    report = conformance(lambda A, B: 0.0)
    assert [case.name for case in report.cases] == [*BY_HAND, *REFUSED]
    assert all(len(values) == len(DEFINITIONS) for values in BY_HAND.values())
    for position, name in enumerate(DEFINITIONS):
        for case, outcome in zip(report.cases, report.expected[name], strict=True):
            if case.name in REFUSED:
                assert outcome.error, case.name
            else:
                assert outcome.value == pytest.approx(BY_HAND[case.name][position], abs=1e-6), (name, case.name)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_conforms_to_itself_alone(name):
    report = conformance(DEFINITIONS[name])
    assert report.conforms
    assert report.nearest == name
    assert [other for other, cases in report.differing.items() if not cases] == [name]


def unit(rows):
    return F.normalize(rows[rows.norm(dim=1) > 0], dim=1)


def greedy(A, B):
    """Pairs the largest cosine, then the next of what is left."""
    left, taken = (unit(A) @ unit(B).T).abs(), []
    for _ in range(min(left.shape)):
        at = divmod(int(left.argmax()), left.shape[1])
        taken.append(float(left[at]))
        left[at[0]], left[:, at[1]] = -1, -1
    return sum(taken) / len(taken)


@pytest.mark.parametrize(
    ("measure", "told_by"),
    [
        (greedy, "greedy"),
        (lambda A, B: float((unit(A) @ unit(B).T).abs().max(1).values.mean()), "duplicates"),
        (lambda A, B: DEFINITIONS["pwmcc, absolute"](A, B) * len(unit(B)) / len(unit(A)), "unequal numbers"),
        (lambda A, B: float((unit(A)[: len(unit(B))] * unit(B)[: len(unit(A))]).sum(1).abs().mean()), "permuted"),
        (lambda A, B: torch.tensor(1.0), "orthogonal"),
    ],
)
def test_each_departure_is_told_by_its_case(measure, told_by):
    report = conformance(measure)
    assert not report.conforms
    assert all(told_by in names for name, names in report.differing.items() if name.startswith("pwmcc"))
    assert report.nearest in report.sentence


def test_errors_and_things_that_are_no_numbers_are_outcomes():
    def broken(A, B):
        raise RuntimeError("no")

    assert {outcome.error for outcome in conformance(broken).found} == {"RuntimeError"}
    assert {outcome.error for outcome in conformance(lambda A, B: "text").found} == {"TypeError"}


def test_what_saelens_measures():
    """Its mean correlation coefficient is absolute and one-to-one; rows of zeros count as atoms that match nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SAELens' own imports
        from sae_lens.synthetic.evals import mean_correlation_coefficient

    report = conformance(mean_correlation_coefficient)
    assert report.nearest == "pwmcc, absolute"
    assert report.differing["pwmcc, absolute"] == ["dead atoms", "all dead"]
    values = {case.name: outcome.value for case, outcome in zip(report.cases, report.found, strict=True)}
    assert (values["dead atoms"], values["all dead"]) == (0.5, 0.0)


def test_a_measure_cannot_change_the_cases():
    def spoil(A, B):
        A.zero_()
        return 0.0

    conformance(spoil)
    assert cases()[0].A.sum() == 4
