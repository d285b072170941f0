"""Seeds that are added to a suite: only they are trained, and nothing else differs from a run of all of them."""

import shutil

import numpy as np
import pandas as pd
import pytest

from husai import cell as cell_module
from husai import reuse, workflow
from husai.cell import run_cell
from husai.config import SuiteConfig
from husai.sae.trainer import Trainer
from husai.sweep.plan import plan

TRAINING = {"steps": 20, "batch_size": 100, "lr": 3e-3, "resample_every": 5}
DOTS = {"planted": {"d_model": 8, "n_atoms": 12, "k": 2, "samples": 400}}
KINDS = {
    "topk": {"architecture": "topk", "d_sae": 16, "k": 2, "k_aux": 2, "dead_steps": 5},
    "relu": {"architecture": "relu", "d_sae": 16, "l1_coefficient": 2.0},
    "batchtopk": {"architecture": "batchtopk", "d_sae": 16, "k": 2},
    "pca": {"architecture": "pca", "d_sae": 4},
}
ANALYSIS = {
    **dict.fromkeys(("null_draws", "wide_null_draws", "curve_null_draws", "aligned_null_draws"), 1),
    **dict.fromkeys(("shifts", "curve_shifts"), 1),
}


def job_of(runs, seeds, kind="topk", *, model=DOTS, curve=(10,), **training):
    entry = {"sae": KINDS[kind], "training": {**TRAINING, **training}}
    given = {"name": "tiny", "model": model, "entries": [entry], "analysis": {**ANALYSIS, "curve": list(curve)}}
    suite = SuiteConfig.parse({**given, "init_seeds": list(seeds), "data_seeds": [10 + seed for seed in seeds]})
    ((job, *_), _) = plan(suite, [None if isinstance(model, dict) else model], runs, deterministic=True)
    return job


def records(job):
    return pd.read_parquet(f"{job.folder}/records.parquet").drop(columns="run_id")


@pytest.fixture
def trained(monkeypatch):
    """The seeds that every step was done of, one entry a training."""
    real, seen = Trainer.advance, []

    def advance(self):
        if self.step == 0:
            seen.append(self.config.init_seeds)
        return real(self)

    monkeypatch.setattr(Trainer, "advance", advance)
    return seen


def compute(runs, seeds, *arguments, **settings):
    job = job_of(runs, seeds, *arguments, **settings)
    run_cell(job)
    return job


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_only_new_seeds_are_trained_and_nothing_differs(kind, tmp_path, trained):
    compute(tmp_path / "a", (0, 1), kind)
    added = compute(tmp_path / "a", (0, 1, 2), kind)
    assert trained == [(0, 1), (2,)]
    whole = compute(tmp_path / "b", (0, 1, 2), kind)
    assert trained[2:] == [(0, 1, 2)]
    pd.testing.assert_frame_equal(records(added), records(whole), check_exact=True)
    for name in ("history.csv", "atoms.parquet"):
        one, other = ((tmp_path / side / added.cell.run_id / name).read_bytes() for side in "ab")
        assert one == other


def test_thresholds_of_batches_differ_by_rounding_alone(tmp_path, trained):
    compute(tmp_path / "a", (0, 1), "batchtopk")
    added = compute(tmp_path / "a", (0, 1, 2), "batchtopk")
    assert trained == [(0, 1), (2,)]
    whole = compute(tmp_path / "b", (0, 1, 2), "batchtopk")
    mine, theirs = records(added), records(whole)
    figures = ["value", "ci_low", "ci_high"]
    pd.testing.assert_frame_equal(mine.drop(columns=figures), theirs.drop(columns=figures))
    np.testing.assert_allclose(mine["value"], theirs["value"], atol=2e-3)


def test_seeds_of_two_runs_in_another_order(tmp_path, trained):
    compute(tmp_path / "a", (0, 1))
    compute(tmp_path / "a", (3, 2))
    mixed = compute(tmp_path / "a", (2, 4, 1, 3))
    assert trained == [(0, 1), (3, 2), (4,)]
    whole = compute(tmp_path / "b", (2, 4, 1, 3))
    pd.testing.assert_frame_equal(records(mixed), records(whole), check_exact=True)


def test_an_analysis_of_known_seeds_trains_nothing(tmp_path, trained):
    compute(tmp_path / "a", (0, 1, 2), curve=(5, 10))
    fewer = compute(tmp_path / "a", (2, 0), curve=(10,))
    assert trained == [(0, 1, 2)]
    pd.testing.assert_frame_equal(
        records(fewer), records(compute(tmp_path / "b", (2, 0), curve=(10,))), check_exact=True
    )
    compute(tmp_path / "a", (0, 2), curve=(3, 10))
    assert trained[2:] == [(0, 2)], "nobody kept the SAEs of step 3"


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_run_gives_no_seeds(damage, tmp_path, trained):
    first = compute(tmp_path, (0, 1))
    (look,) = (tmp_path / first.cell.run_id / "looks").glob("step-000000010.safetensors")
    if damage == "gone":
        look.unlink()
    else:
        content = bytearray(look.read_bytes())
        content[-1] ^= 1
        look.write_bytes(content)
    compute(tmp_path, (0, 1, 2))
    assert trained == [(0, 1), (0, 1, 2)]


def test_other_settings_and_trainings_without_a_fixed_end_share_nothing(tmp_path, trained):
    compute(tmp_path, (0, 1))
    compute(tmp_path, (0, 1, 2), lr=1e-3)
    compute(tmp_path, (0, 1), stop="hopeless")
    compute(tmp_path, (0, 2), stop="hopeless")
    assert trained == [(0, 1), (0, 1, 2), (0, 1), (0, 2)]
    for seeds in ((0,), (0, 1)):
        compute(tmp_path, seeds, "pca", resample_every=None, batch_size=400)
    assert len(trained) == 4, "what is fitted at once has no steps"


def test_a_seed_of_streamed_samples_trains_alike(tmp_path, trained):
    streamed = {"planted": {**DOTS["planted"], "streamed": True}}
    compute(tmp_path / "a", (0, 1), model=streamed)
    added = compute(tmp_path / "a", (0, 1, 2), model=streamed)
    assert trained == [(0, 1), (2,)]
    whole = compute(tmp_path / "b", (0, 1, 2), model=streamed)
    pd.testing.assert_frame_equal(records(added), records(whole), check_exact=True)


def test_a_seed_trains_alike_on_walks(rotating, tmp_path, trained):
    import torch

    from husai import models

    path = tmp_path / "rotating.safetensors"
    models.save_weights(rotating(length=2).to(torch.float32), path)

    def walked(runs, seeds):
        entry = {"sae": KINDS["topk"], "training": TRAINING}
        given = {"name": "tiny", "model": str(path), "hooks": ["hidden"], "entries": [entry]}
        suite = SuiteConfig.parse(
            {**given, "analysis": {**ANALYSIS, "curve": []}, "init_seeds": list(seeds), "data_seeds": list(seeds)}
        )
        ((job,), _) = plan(suite, [str(path)], runs, deterministic=True)
        run_cell(job)
        return job

    walked(tmp_path / "a", (0,))
    added = walked(tmp_path / "a", (0, 1))
    assert trained == [(0,), (1,)]
    # The state has 19 units, which fill no whole vector of the processor: where the rest falls depends on the stack
    pd.testing.assert_frame_equal(records(added), records(walked(tmp_path / "b", (0, 1))), rtol=1e-6, atol=1e-6)


def killed(monkeypatch, job, step):
    """Compute a cell until a step, and no further."""
    real = Trainer.advance

    def advance(self):
        if self.step == step:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as within:
        within.setattr(Trainer, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            run_cell(job)


def test_checkpoints_go_on_beside_earlier_seeds(tmp_path, monkeypatch):
    compute(tmp_path / "a", (0, 1), checkpoint_every=4)
    job = job_of(tmp_path / "a", (0, 1, 2), checkpoint_every=4)
    killed(monkeypatch, job, 14)
    began = []
    real = Trainer.advance
    monkeypatch.setattr(Trainer, "advance", lambda self: (began.append(self.step), real(self))[1])
    run_cell(job)
    assert began == list(range(12, 20))
    whole = compute(tmp_path / "b", (0, 1, 2), checkpoint_every=4)
    pd.testing.assert_frame_equal(records(job), records(whole), check_exact=True)


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_checkpoints_of_other_earlier_seeds_are_dropped(change, tmp_path, monkeypatch, trained):
    """Between two starts of a run, runs with its seeds may end, or be removed."""
    job = job_of(tmp_path, (0, 1, 2), checkpoint_every=4)
    if change == "fewer":
        first = compute(tmp_path, (0, 1), checkpoint_every=4)
    killed(monkeypatch, job, 14)
    if change == "fewer":
        shutil.rmtree(first.folder)
    else:
        compute(tmp_path, (0, 1), checkpoint_every=4)
    trained.clear()
    run_cell(job)
    assert trained == ([(0, 1, 2)] if change == "fewer" else [(2,)])


def test_a_run_that_was_killed_before_it_was_known_gives_its_seeds(tmp_path, trained, monkeypatch):
    """Nothing happens between the end of a run and its being found."""
    real = workflow.train_sae_run

    def then_killed(*arguments, **settings):
        real(*arguments, **settings)
        raise KeyboardInterrupt

    with monkeypatch.context() as within:
        within.setattr(cell_module, "train_sae_run", then_killed)
        with pytest.raises(KeyboardInterrupt):
            compute(tmp_path, (0, 1))
    compute(tmp_path, (0, 1, 2))
    assert trained == [(0, 1), (2,)]
    assert {path.name for path in (tmp_path / reuse.FAMILIES).iterdir()} == {job_of(tmp_path, (5,)).cell.family}
