import math

import pytest
import torch

from husai.config import RecurrentConfig
from husai.errors import HusaiError
from husai.recurrent.train import train_recurrent


def same_weights(first, second) -> bool:
    return all(torch.equal(first.params[name], second.params[name]) for name in first.params)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_training_is_deterministic_and_leaves_the_global_state_alone(cell, small_network):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = train_recurrent(small_network(cell=cell))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    again = train_recurrent(small_network(cell=cell))
    assert same_weights(first.final, again.final)
    assert same_weights(first.best, again.best)
    assert [row.test_loss for row in first.history] == [row.test_loss for row in again.history]


@pytest.mark.parametrize("seed", ["init_seed", "batch_seed"])
def test_each_seed_alone_changes_the_result(seed, small_network):
    assert not same_weights(train_recurrent(small_network()).final, train_recurrent(small_network(**{seed: 1})).final)


def test_the_history_and_the_best_weights(small_network):
    seen = []
    run = train_recurrent(small_network(steps=10), on_evaluation=seen.append)
    assert [row.step for row in seen] == [4, 8, 10]
    assert tuple(seen) == run.history
    best = min(run.history, key=lambda row: row.test_loss)
    assert run.best_step == best.step
    walks = run.best.walks
    logits = run.best.hidden(walks.inputs) @ run.best.params["readout"]
    loss = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), walks.states.flatten())
    assert float(loss) == pytest.approx(best.test_loss)  # on the fixed walks, time 0 included


def test_a_sum_is_learned_and_not_merely_the_last_input(small_network):
    run = train_recurrent(small_network(steps=500, batch_size=64, weight_decay=0.01))
    assert run.history[0].test_accuracy < 0.7
    assert run.history[-1].test_accuracy == 1
    assert run.history[-1].test_loss < 0.1 < math.log(5)


def test_a_loss_that_is_not_finite_ends_training(small_network):
    with pytest.raises(HusaiError, match="the loss is not finite at step"):
        train_recurrent(small_network(lr=1e30))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"walks": {"length": 0}}, "'walks.length': must be greater than or equal to 1, got 0"),
        ({"recurrent": {"d_hidden": 0}}, "'recurrent.d_hidden': must be greater than or equal to 1, got 0"),
        ({"recurrent": {"cell": "rnn"}}, "'recurrent.cell': must be 'gru' or 'lstm', got 'rnn'"),
        ({"walks": {"repeats": 0}}, "'walks.repeats': must be greater than or equal to 1"),
        ({"recurrent": {"width": 3}}, "unknown key 'recurrent.width'"),
        ({"p": "many"}, "'p': "),
    ],
)
def test_configs_that_cannot_be_are_refused(data, words):
    with pytest.raises(HusaiError) as caught:
        RecurrentConfig.parse({"recurrent": {}} | data)
    assert words in str(caught.value)


def test_a_modulus_that_is_not_prime_is_refused(small_network):
    with pytest.raises(HusaiError, match="p: 9 is not allowed; p must be a prime"):
        train_recurrent(small_network(p=9))
