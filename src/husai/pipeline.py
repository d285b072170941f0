"""The pipeline test in five stages, each judged on its own. Used by `scripts/test_sae_pipeline.py`."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from husai.activations import Activations, extract
from husai.analysis.fit import Fit, evaluate_fit
from husai.analysis.recovery import fourier_overlap
from husai.config import KConfig, SAEConfig
from husai.console import say
from husai.errors import HusaiError
from husai.models import Inputs, Model, logits
from husai.runs import load_model
from husai.sae.dictionary import Dictionary, SAEEnsemble
from husai.sae.history import StepLog, mean_log
from husai.sae.train import TrainedSAEs, train_saes
from husai.sae.weights import load_sae, save_sae
from husai.truth.planes import find_truth

T = TypeVar("T")

MIN_ACCURACY = 0.95
MIN_EV, MAX_DEAD = 0.8, 0.2
MIN_OVERLAP = 0.3
MAX_DIFFERENCE = 1e-6


class StageFailed(Exception):
    """A stage's check did not hold; the message says by how much."""


@dataclass(frozen=True)
class Trained:
    """The SAE of stage 3, and the same SAE before its first step."""

    result: TrainedSAEs
    untrained: SAEEnsemble

    @property
    def dictionary(self) -> Dictionary:
        return self.result.ensemble.member(0)


def require(holds: bool, what: str) -> None:
    if not holds:
        raise StageFailed(what)


def given(value: T | None) -> T:
    """The result of an earlier stage."""
    if value is None:
        raise StageFailed("an earlier stage gave nothing to go on with")
    return value


def check_model(model: Model, task: Inputs) -> None:
    """[1/5] Its accuracy on the whole grid must exceed .95."""
    accuracy = float((logits(model, task).argmax(-1) == task.labels).double().mean())
    say(f"      {model.n_parameters:,} parameters, modulus {model.p}, accuracy {accuracy:.4f}")
    require(accuracy > MIN_ACCURACY, f"accuracy {accuracy:.4f} is not above {MIN_ACCURACY}")


def check_activations(found: Activations, again: Activations) -> None:
    """[2/5] One varying row a grid pair, and the same rows when extracted `again`."""
    say(f"      {found.hook}: shape {tuple(found.x.shape)}, mean {found.x.mean():.4f}, std {found.x.std():.4f}")
    require(len(found.x) == len(found.task.a), f"{len(found.x)} rows for {len(found.task.a)} pairs")
    require(float(found.x.std(0).max()) > 0, "the activations do not vary")
    difference = float((found.x - again.x).abs().max())
    require(difference < 1e-3 * float(found.x.std()), f"extracted twice they differ by {difference:.2g}")


def train_one(activations: Activations, config: SAEConfig) -> Trained:
    """The SAE of the config's first seed, and the same before its first step."""
    before: list[SAEEnsemble] = []

    def keep(_step: int, ensemble: SAEEnsemble) -> bool:
        before.append(ensemble)
        return False

    def tell(rows: list[StepLog]) -> None:
        figures = "loss {loss:.4g}, L0 {l0:.1f}, EV {explained_variance:.4f}, dead {dead:.1%}".format(**mean_log(rows))
        say(f"      step {rows[0].step:>5}/{config.training.steps}: {figures}")

    every = max(1, config.training.steps // 5)
    return Trained(train_saes(activations.x, config, stop=keep, stop_at=(0,), on_log=tell, log_every=every), before[0])


def check_training(activations: Activations, config: SAEConfig, trained: Trained) -> None:
    """[3/5] L0 within k ± k/8 (28 to 36 for k = 32), EV above .8, dead below 20%."""
    fit: Fit = evaluate_fit(trained.dictionary, activations.x)
    say(f"      {trained.result.steps} steps: L0 {fit.l0:.2f}, EV {fit.explained_variance:.4f}, dead {fit.dead:.1%}")
    if isinstance(config.sae, KConfig):
        low, high = config.sae.k * 7 / 8, config.sae.k * 9 / 8
        require(low <= fit.l0 <= high, f"L0 {fit.l0:.2f} is not within {low:g} to {high:g}")
    require(fit.explained_variance > MIN_EV, f"EV {fit.explained_variance:.4f} is not above {MIN_EV}")
    require(fit.dead < MAX_DEAD, f"{fit.dead:.1%} of latents are dead, not below {MAX_DEAD:.0%}")


def check_overlap(activations: Activations, trained: Trained) -> None:
    """[4/5] fourier_overlap above .3 and above the untrained SAE's; a hook without truth fails."""
    truth = find_truth(activations)

    def overlap(dictionary: Dictionary) -> float:
        fit = evaluate_fit(dictionary, activations.x)
        return fourier_overlap(dictionary.atoms[fit.live], truth, fit.energy[fit.live])

    value, untrained = overlap(trained.dictionary), overlap(trained.untrained.member(0))
    say(f"      fourier_overlap {value:.3f}, untrained {untrained:.3f}")
    require(value > MIN_OVERLAP, f"fourier_overlap {value:.3f} is not above {MIN_OVERLAP}")
    require(value > untrained, f"fourier_overlap {value:.3f} is not above the untrained SAE's {untrained:.3f}")


def check_saving(activations: Activations, trained: Trained) -> None:
    """[5/5] Saved and loaded again, codes and reconstructions differ by less than 1e-6 of their scale."""
    with tempfile.TemporaryDirectory() as folder:
        save_sae(trained.result.ensemble, 0, Path(folder) / "sae", {"hook_name": activations.hook})
        loaded = load_sae(Path(folder) / "sae")
    x, original = activations.x[:512], trained.dictionary
    codes = original.encode(x)
    difference = max(
        float((loaded.encode(x) - codes).abs().max() / codes.abs().max()),
        float((loaded.reconstruct(x, codes) - original.reconstruct(x, codes)).abs().max() / x.abs().max()),
    )
    say(f"      largest relative difference {difference:.1e}")
    require(difference < MAX_DIFFERENCE, f"the difference {difference:.1e} is not below {MAX_DIFFERENCE}")


class Board:
    """Runs stages and counts which hold."""

    def __init__(self, total: int) -> None:
        self.total, self.started, self.failed = total, 0, 0

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A stage fails if its body raises StageFailed or HusaiError; the next one is run all the same."""
        self.started += 1
        say(f"[{self.started}/{self.total}] {title}")
        try:
            yield
            say("      passed")
        except (StageFailed, HusaiError) as error:
            say(f"      FAILED: {error}")
            self.failed += 1


def run_pipeline(checkpoint: str, config: SAEConfig, hook: str, layer: int | None = None, op: str | None = None) -> int:
    """All five stages with a summary; returns how many failed.

    A stage whose check fails still hands its result on. Raises HusaiError for a checkpoint that cannot be read.
    """
    loaded = load_model(checkpoint, op)
    model, task = loaded.model, loaded.task
    board = Board(5)
    activations: Activations | None = None
    trained: Trained | None = None
    with board.stage("Load transformer"):
        check_model(model, task)
    with board.stage("Extract activations"):
        activations = extract(model, task, hook, layer=layer)
        check_activations(activations, extract(model, task, hook, layer=layer, batch=1000))
    with board.stage("Train SAE"):
        trained = train_one(given(activations), config)
        check_training(given(activations), config, trained)
    with board.stage("Fourier overlap"):
        check_overlap(given(activations), given(trained))
    with board.stage("Save and load"):
        check_saving(given(activations), given(trained))
    say(f"Tests passed: {board.total - board.failed}/{board.total}")
    say(f"Tests failed: {board.failed}/{board.total}")
    return board.failed
