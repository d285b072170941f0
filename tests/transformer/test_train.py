import math

import pytest
import torch

from husai.errors import HusaiError
from husai.optimise import cross_entropy
from husai.schedule import trapezoid
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.train import train_transformer


def same_weights(first, second) -> bool:
    return all(torch.equal(first.params[name], second.params[name]) for name in first.params)


def test_schedule_by_hand():
    rates = [trapezoid(step, steps=10, warmup_steps=4, decay_fraction=0.5) for step in range(10)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_exponential_schedule_falls_by_equal_factors_to_one_percent():
    rates = [trapezoid(s, steps=8, warmup_steps=0, decay_fraction=0.5, decay="exponential") for s in range(8)]
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.01**0.25, 0.1, 0.01**0.75])


def test_schedule_without_warm_up_or_decay_is_flat():
    assert [trapezoid(step, steps=3, warmup_steps=0, decay_fraction=0) for step in range(3)] == [1, 1, 1]


def test_streams_of_a_seed_are_unrelated_but_repeatable():
    draws = [torch.randn(4, generator=generator(*key)) for key in [("a", 0), ("a", 0), ("b", 0), ("a", 1), ("a", 0, 0)]]
    assert torch.equal(draws[0], draws[1])
    assert not any(torch.equal(draws[0], other) for other in draws[2:])


def test_cross_entropy_is_computed_in_float64():
    # Margin 20: log(1 + e^-20) = 2.06e-9, which float32 rounds to 0.
    loss = cross_entropy(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


@pytest.mark.parametrize("layout", ["abe", "husai"])
def test_training_is_deterministic(recipe, layout):
    first, again = (train_transformer(recipe(layout=layout)) for _ in range(2))
    assert same_weights(first.final, again.final)
    assert same_weights(first.best, again.best)
    losses = [[(row.step, row.train_loss, row.test_loss) for row in run.history] for run in (first, again)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("seed", ["init_seed", "split_seed", "batch_seed"])
def test_each_seed_alone_changes_the_result(recipe, seed):
    assert not same_weights(train_transformer(recipe()).final, train_transformer(recipe(**{seed: 1})).final)


def test_pos_scale_makes_the_first_positional_embeddings_larger_and_nothing_else(recipe):
    plain, wide = (init_of(recipe(steps=1, lr=1e-12, pos_scale=scale)) for scale in (1, 5))
    for name, value in plain.items():
        factor = 5 if name == "pos_embed.W_pos" else 1
        torch.testing.assert_close(wide[name], factor * value, rtol=1e-4, atol=1e-6, msg=name)


def init_of(config) -> dict[str, torch.Tensor]:
    """The initial weights, which a step of negligible size leaves as they were."""
    return train_transformer(config).final.params


def test_global_random_state_plays_no_part_and_stays(recipe):
    torch.manual_seed(0)
    first, state = train_transformer(recipe()), torch.get_rng_state()
    torch.manual_seed(1)
    assert same_weights(first.final, train_transformer(recipe()).final)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_full_batch_ignores_the_batch_seed(recipe):
    first, other = (train_transformer(recipe(batch_size=None, batch_seed=seed)) for seed in (0, 1))
    assert same_weights(first.final, other.final)


def test_history_counts_steps_and_whole_epochs(recipe):
    # 121 pairs, half of them trained on: 60 pairs, 3 batches of 20 an epoch.
    rows = train_transformer(recipe(steps=8, log_every=3)).history
    assert [(row.step, row.epoch) for row in rows] == [(3, 1), (6, 2), (8, 2)]


def test_evaluations_are_reported_as_they_are_kept(recipe):
    seen = []
    run = train_transformer(recipe(steps=8, log_every=3), on_evaluation=seen.append)
    assert tuple(seen) == run.history


def test_checkpoints_are_named_by_whole_epochs(recipe):
    seen = {}
    run = train_transformer(recipe(steps=9, checkpoint_epochs=1), on_checkpoint=seen.__setitem__)
    assert list(seen) == ["epoch_1", "epoch_2", "epoch_3"]
    assert same_weights(seen["epoch_3"], run.final)
    assert not same_weights(seen["epoch_1"], seen["epoch_2"])


def test_an_unfinished_epoch_has_no_checkpoint(recipe):
    seen = []
    train_transformer(recipe(steps=8, checkpoint_epochs=1), on_checkpoint=lambda name, _model: seen.append(name))
    assert seen == ["epoch_1", "epoch_2"]


def test_checkpoints_every_second_epoch(recipe):
    seen = {}
    train_transformer(recipe(steps=15, checkpoint_epochs=2), on_checkpoint=seen.__setitem__)
    assert list(seen) == ["epoch_2", "epoch_4"]


def test_best_has_the_lowest_held_out_loss(recipe):
    # A memoriser: its held-out loss falls a little, then rises.
    config = recipe(frac_train=0.3, batch_size=None, steps=200, lr=1e-2, weight_decay=0.0, log_every=1)
    run = train_transformer(config)
    lowest = min(run.history, key=lambda row: row.test_loss)
    assert run.best_step == lowest.step < 200
    assert lowest.test_loss < run.history[-1].test_loss - 1
    task = Task("add", 11)
    train, test = task.split(0.3, generator=generator("model-split", 0))

    def loss(model, rows):
        return float(cross_entropy(model.logits(task)[rows], task.labels[rows]))

    assert loss(run.best, test) == pytest.approx(lowest.test_loss, rel=1e-5)
    assert loss(run.final, test) == pytest.approx(run.history[-1].test_loss, rel=1e-5)
    assert loss(run.final, train) == pytest.approx(run.history[-1].train_loss, rel=1e-3)


def test_accuracies_by_recount(recipe):
    run = train_transformer(recipe(frac_train=0.5, steps=200, lr=1e-2, weight_decay=0.0))
    task = Task("add", 11)
    train, test = task.split(0.5, generator=generator("model-split", 0))
    right = run.final.logits(task).argmax(1) == task.labels
    mirrored = {(int(task.b[i]), int(task.a[i])) for i in train}
    lonely = [i for i in test.tolist() if (int(task.a[i]), int(task.b[i])) not in mirrored]
    assert 0 < len(lonely) < len(test)
    last = run.history[-1]
    assert last.mirror_free_accuracy < last.test_accuracy < last.train_accuracy  # three different numbers
    assert last.train_accuracy == pytest.approx(float(right[train].double().mean()))
    assert last.test_accuracy == pytest.approx(float(right[test].double().mean()))
    assert last.mirror_free_accuracy == pytest.approx(float(right[lonely].double().mean()))


LEARNABLE = {"batch_size": None, "steps": 400, "frac_train": 0.8, "weight_decay": 1.0, "log_every": 400}
CHANCE, HELD_OUT = 1 / 23, 106  # 23² pairs, a fifth of them held out
BOUND = CHANCE + 4 * math.sqrt(CHANCE * (1 - CHANCE) / HELD_OUT)  # four standard deviations above chance: 0.123


@pytest.mark.parametrize("layout", ["abe", "husai"])
def test_shuffled_labels_stay_at_chance_on_held_out_pairs(recipe, layout):
    last = train_transformer(recipe(p=23, layout=layout, shuffle_labels=True, **LEARNABLE)).history[-1]
    assert last.train_accuracy > 0.3  # it did learn something, by heart
    assert last.test_accuracy < BOUND


def test_true_labels_do_not(recipe):
    last = train_transformer(recipe(p=23, **LEARNABLE)).history[-1]
    assert last.test_accuracy > 2 * BOUND


@pytest.mark.parametrize("lr", [1e30, 1e300])
def test_a_loss_that_is_not_finite_ends_training_in_a_sentence(recipe, lr):
    with pytest.raises(HusaiError, match=r"the loss is not finite at step \d+; lower training.lr"):
        train_transformer(recipe(lr=lr))
