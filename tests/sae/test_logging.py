"""What a training says as it goes on, how little it costs to say nothing, and where it may end early."""

import csv
import math

import numpy as np
import pytest
import torch

from husai.config import ReLUConfig, SAEConfig, SAETrainingConfig, TopKConfig
from husai.errors import HusaiError
from husai.sae.history import StepLog, mean_timing
from husai.sae.params import Params
from husai.sae.statistics import statistic, statistics
from husai.sae.timing import Clock
from husai.sae.train import train_saes
from husai.sae.trainer import Trainer
from husai.workflow import train_sae_run


def recipe(**training) -> SAEConfig:
    quick = {"steps": 60, "batch_size": 512, "warmup_steps": 5}
    given = SAETrainingConfig(**{**quick, **training})
    return SAEConfig(sae=TopKConfig(d_sae=64, k=3, k_aux=16), training=given, init_seeds=(0, 1), data_seeds=(0, 1))


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.ensemble.params, second.ensemble.params, strict=True))


def test_an_early_exit_is_the_whole_run_broken_off(planted):
    """The schedules are those of all steps: at step 20 of 60 the rate has not begun to fall."""
    short = train_saes(planted.x, recipe(early_exit=20))
    broken = train_saes(planted.x, recipe(), stop=lambda step, _: step == 20, stop_at=(20,))
    assert short.steps == broken.steps == 20
    assert equal(short, broken)
    assert short.history[-1].step == 20
    assert short.history[-1].lr == recipe().training.lr
    assert not equal(short, train_saes(planted.x, recipe(steps=20)))
    assert train_saes(planted.x, recipe(early_exit=90)).steps == 60


def test_logging_can_be_off_and_changes_nothing(planted, monkeypatch):
    calls = []
    log = Trainer.log
    monkeypatch.setattr(Trainer, "log", lambda self, *given: calls.append(self.step) or log(self, *given))
    runs = {every: train_saes(planted.x, recipe(log_every=every)) for every in (None, 0, 1, 25)}
    assert calls == [12, 24, 36, 48, 60, 60, *range(1, 61), 25, 50, 60]
    assert all(equal(run, runs[None]) for run in runs.values())
    assert [row.step for row in runs[0].history] == [60, 60]


def test_nothing_is_evaluated_or_logged_before_the_first_step_unless_asked(planted):
    steps, looks = [], []
    train_saes(
        planted.x,
        recipe(log_every=1),
        on_log=lambda rows: steps.append(rows[0].step),
        stop=lambda s, _: looks.append(s),
    )
    assert steps[0] == 1
    assert looks == []
    train_saes(planted.x, recipe(), stop=lambda s, _: looks.append(s), stop_at=(0,))
    assert looks == [0]


def test_a_run_without_rows_is_still_saved_and_judged(tmp_path, planted):
    train_sae_run(planted.x, recipe(log_every=0), tmp_path / "run", {}, finish=lambda *_: {})
    with (tmp_path / "run" / "history.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["60", "60"]
    assert (tmp_path / "run" / "health.json").is_file()


def test_nan_is_noticed_even_where_nothing_is_logged(planted):
    with pytest.raises(HusaiError, match="not finite at step 60"):
        train_saes(planted.x, recipe(log_every=0, lr=1e30, clip_norm=None))


def test_time_is_split_into_parts_only_if_asked(tmp_path, planted):
    trained = train_saes(planted.x, recipe(log_timing=True))
    assert all(set(row.timing) == {"ms_data", "ms_gradients", "ms_update", "ms_logging"} for row in trained.history)
    assert all(row.timing["ms_gradients"] > 0 for row in trained.history)
    assert {"ms_data", "ms_logging"} <= trained.history[0].line.keys()
    plain = train_saes(planted.x, recipe())
    assert equal(trained, plain)
    assert all(row.timing == {} and not any("ms_" in name for name in row.line) for row in plain.history)


def test_a_clock_adds_up_laps_and_starts_anew(monkeypatch):
    times = iter([0.0, 1.0, 1.5, 3.5, 4.0, 4.5, 6.5])  # the first is when it is made
    monkeypatch.setattr("husai.sae.timing.time.perf_counter", lambda: next(times))
    clock = Clock("cpu", on=True)
    for part in (None, "data", "update", None, "data", "update"):
        clock.lap(part)
    assert clock.read() == {"ms_data": 500.0, "ms_gradients": 0.0, "ms_update": 2000.0, "ms_logging": 0.0}
    assert clock.read()["ms_data"] == 0.0
    monkeypatch.undo()
    off = Clock("cpu", on=False)
    off.lap("data")
    assert off.read() == {}
    assert off.spent["data"] == 0.0


def test_the_mean_time_weighs_rows_by_their_steps():
    row = StepLog(1, 0, 0, *[0.0] * 11, {}, {"ms_data": 4.0})
    rows = [row, StepLog(**{**vars(row), "step": 4, "timing": {"ms_data": 8.0}})]
    assert mean_timing(rows) == {"ms_data": (1 * 4.0 + 3 * 8.0) / 4}
    assert mean_timing([StepLog(**{**vars(row), "timing": {}})]) == {}


def test_statistics_by_hand():
    found = statistic(torch.tensor([0.0, 3.0, 4.0, 64.0]))
    assert found.norm == math.sqrt(9 + 16 + 4096)
    assert found.mean == 71 / 4
    assert len(found.counts) == 64
    assert found.edges[0] == 0
    assert found.edges[-1] == 64
    assert found.counts.sum() == 4
    assert np.flatnonzero(found.counts).tolist() == [0, 3, 4, 63]


def test_gradients_are_told_without_the_factor_they_carry():
    W = torch.ones(2, 1, 1).requires_grad_()
    W.grad = torch.tensor([[[8.0]], [[-16.0]]])
    params = Params(W, torch.zeros(2, 1), torch.zeros(2, 1, 1), torch.zeros(2, 1))
    found = statistics(params, 8.0)
    assert found["gradients/W_enc/0"].mean == 1
    assert found["gradients/W_enc/1"].mean == -2
    assert found["parameters/W_enc/1"].norm == 1
    assert "gradients/b_enc/0" not in found


def test_statistics_are_taken_only_for_someone(planted, monkeypatch):
    taken = []
    monkeypatch.setattr("husai.sae.train.statistics", lambda *_: taken.append(1) or {})
    train_saes(planted.x, recipe())
    assert taken == []
    steps = []
    train_saes(planted.x, recipe(log_every=20), on_statistics=lambda found, step: steps.append((found, step)))
    assert steps == [({}, 20), ({}, 40), ({}, 60)]


def test_the_sparsity_dial_is_the_architectures_own():
    config = recipe()
    assert config.with_sparsity(5).sae.k == 5
    relu = SAEConfig(sae=ReLUConfig(), training=SAETrainingConfig(checkpoint_every=7))
    assert relu.with_sparsity(0.25).sae.l1_coefficient == 0.25
    assert relu.with_sparsity(0.25).training == relu.training
    with pytest.raises(HusaiError, match=r"sparsity coefficient 100: .*k 100 exceeds d_sae 64"):
        config.with_sparsity(100)
    with pytest.raises(HusaiError, match=r"sparsity coefficient 2\.5: 'k'"):
        config.with_sparsity(2.5)


def test_the_dial_of_a_registered_class_is_a_setting_and_what_has_none_is_refused():
    def of(**sae):
        return SAEConfig.parse({"sae": {"d_sae": 64} | sae})

    def turned(value, settings, **sae):
        return of(architecture="saelens:topk", settings=settings, **sae).with_sparsity(value).sae

    four = turned(8.0, {"k": 4, "rescale_acts_by_decoder_norm": False})
    assert four.settings == {"k": 8, "rescale_acts_by_decoder_norm": False}
    assert isinstance(four.settings["k"], int)
    assert turned(0.5, {"l1_coefficient": 2}).settings == {"l1_coefficient": 0.5}
    assert turned(3, {"k": 4, "width": 2.0}, dial="width").settings == {"k": 4, "width": 3.0}
    with pytest.raises(
        HusaiError, match=r"sparsity coefficient 2\.5: 'sae\.settings\.k' of saelens:topk must be a whole"
    ):
        turned(2.5, {"k": 4})
    with pytest.raises(HusaiError, match=r"sparsity coefficient 5: saelens:topk has no dial of sparsity; name one in"):
        turned(5, {})
    with pytest.raises(HusaiError, match="sparsity coefficient 5: kmeans has no dial of sparsity; its k is fixed"):
        of(architecture="kmeans").with_sparsity(5)
