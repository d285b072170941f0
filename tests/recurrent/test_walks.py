import pytest
import torch

from husai.config import WalksConfig
from husai.errors import HusaiError
from husai.recurrent.walks import Walks


def walks(p: int = 5, **config: int) -> Walks:
    return Walks(p, WalksConfig(**config))


def test_every_step_is_the_whole_grid_of_state_and_input():
    found = walks(length=3, repeats=2)
    assert found.inputs.shape == (50, 4)
    for time in (1, 2, 3):
        pairs = found.states[:, time - 1] * 5 + found.inputs[:, time]
        assert pairs.bincount(minlength=25).tolist() == [2] * 25
    assert found.states[:, 0].bincount(minlength=5).tolist() == [10] * 5


def test_states_are_running_sums_and_samples_are_in_time_order():
    found = walks(length=3)
    assert len(found.a) == len(found.walk) == 75
    assert torch.equal((found.a + found.b) % 5, found.labels)
    assert found.time[:6].tolist() == [1, 2, 3, 1, 2, 3]
    assert found.walk[:6].tolist() == [0, 0, 0, 1, 1, 1]
    goes_on = found.walk[1:] == found.walk[:-1]
    assert torch.equal(found.a[1:][goes_on], found.labels[:-1][goes_on])  # a step begins where the one before ended
    assert (found.a[1:] != found.labels[:-1])[~goes_on].any()
    sample = 4  # walk 1, time 2
    assert found.labels[sample] == found.inputs[1, :3].sum() % 5


def test_walks_repeat_from_their_seed_and_wander():
    found, again, other = walks(p=11), walks(p=11), walks(p=11, seed=1)
    assert found == again
    assert torch.equal(found.inputs, again.inputs)
    assert not torch.equal(found.inputs, other.inputs)
    two_back = found.states[:, 0] * 11 + found.inputs[:, 2]  # the first state says nothing of the second step's input
    assert len(two_back.unique()) > 60


def test_a_longer_walk_begins_like_a_shorter_one():
    assert torch.equal(walks(length=5).inputs[:, :3], walks(length=2).inputs)


@pytest.mark.parametrize(
    ("p", "config", "words"),
    [
        (12, {}, "p: 12 is not allowed; p must be a prime"),
        (3, {}, "p: 3 is not allowed"),
        (997, {"length": 2}, "1988018 samples; at most 1048576 are allowed"),
    ],
)
def test_walks_that_cannot_be_are_refused(p, config, words):
    with pytest.raises(HusaiError, match=words):
        walks(p, **config)
