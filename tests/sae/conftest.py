from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from husai.sae.architecture import Architecture
from husai.sae.params import Params


@pytest.fixture
def sae_lens():
    """Imported in a test, not on collection, so that the test's warning filters apply."""
    import sae_lens

    return sae_lens


def random_params(seeds: int, d_in: int, d_sae: int, *, unit: bool = False) -> Params:
    """Float64 parameters without any special structure; decoder norms between 0.5 and 2, or 1."""
    g = torch.Generator().manual_seed(17)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    W_dec = F.normalize(normal(seeds, d_sae, d_in), dim=-1)
    if not unit:
        W_dec = W_dec * (0.5 + 1.5 * torch.rand(seeds, d_sae, 1, generator=g, dtype=torch.float64))
    return Params(normal(seeds, d_in, d_sae), 0.3 * normal(seeds, d_sae), W_dec, 0.3 * normal(seeds, d_in))


@pytest.fixture
def make_params():
    return random_params


class Planted(NamedTuple):
    """Activations x = z·atoms with 3 of 48 atoms active, and Gaussian noise of the same shape."""

    x: Tensor
    atoms: Tensor
    noise: Tensor


@pytest.fixture(scope="session")
def planted() -> Planted:
    g = torch.Generator().manual_seed(0)
    samples, d_in, count, active = 6144, 32, 48, 3
    atoms = F.normalize(torch.randn(count, d_in, generator=g), dim=-1)
    chosen = torch.stack([torch.randperm(count, generator=g)[:active] for _ in range(samples)])
    magnitudes = torch.rand(samples, active, generator=g) + 0.5
    codes = torch.zeros(samples, count).scatter(1, chosen, magnitudes)
    return Planted(codes @ atoms, atoms, torch.randn(samples, d_in, generator=g))


DEAD = {"none": [], "few": [1, 4], "many": [0, 2, 3, 5, 8, 9]}  # of 10 latents; SAELens' k_aux is d_in // 2 = 3


def _hand_over(architecture: Architecture[Any], own: dict[str, Tensor], module: Any) -> None:
    """Give SAELens' module one seed's parameters."""
    for value in module.parameters():
        value.data = value.data.double()  # SAELens keeps thresholds in float32 otherwise
    tensors, _ = architecture.export(own)
    theirs = {name: value for name, value in tensors.items() if name in module.state_dict()}
    missing, unexpected = module.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert set(missing) <= {"topk_threshold"}


@pytest.fixture
def equals_sae_lens(sae_lens):
    """Checks one training step of three seeds, with no, few and many dead latents, against SAELens' training class."""
    from sae_lens.saes.sae import TrainStepInput

    def check(
        architecture: Architecture[Any],
        theirs: Callable[[], Any],
        terms: dict[str, str],
        *,
        coefficients: dict[str, float] | None = None,
        step: int = 0,
        more: dict[str, Tensor] | None = None,
        idle: tuple[str, ...] = (),
        silent: tuple[str, ...] = (),
    ) -> None:
        """theirs: a fresh SAELens SAE, d_in 6, d_sae 10, float64. terms: our names of loss terms, and SAELens'.

        more: values of what the architecture has beside the four. idle: terms that are 0 without dead latents.
        silent: tensors that get no gradient.
        """
        start = random_params(3, 6, 10, unit=architecture.config.decoder_norm == "unit")
        start = architecture.init(start).adding(**(more or {}))
        x = torch.randn(3, 7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        dead = torch.zeros(3, 10, dtype=torch.bool)
        for mask, which in zip(dead, DEAD.values(), strict=True):
            mask[which] = True

        ours = start.map(lambda value: value.clone().requires_grad_())
        losses = architecture.losses(ours, x, step=step, dead=dead)
        done = architecture.gradients(ours, x, step=step, dead=dead)
        assert set(losses.terms) == set(terms)
        for seed in range(3):
            module = theirs()
            own = {name: value[seed] for name, value in start.items()}
            _hand_over(architecture, own, module)
            given = {"sae_in": x[seed], "coefficients": coefficients or {}, "dead_neuron_mask": dead[seed]}
            out = module.training_forward_pass(TrainStepInput(**given, n_training_steps=step, is_logging_step=False))
            out.loss.backward()
            torch.testing.assert_close(losses.codes[seed], out.feature_acts, rtol=0, atol=1e-12)
            torch.testing.assert_close(losses.mse[seed], out.losses["mse_loss"], rtol=1e-9, atol=0)
            for name, their_name in terms.items():
                assert out.losses[their_name] > 1e-3 or (seed == 0 and name in idle), f"{name} is trivially equal"
                torch.testing.assert_close(
                    losses.terms[name][seed], out.losses[their_name], rtol=1e-9, atol=0, msg=name
                )
            torch.testing.assert_close(losses.total[seed], out.loss, rtol=1e-9, atol=0)
            gradients, _ = architecture.export({name: value[seed] for name, value in done.gradients.items()})
            for name, value in gradients.items():
                if name in silent:
                    assert not value.any()
                    continue
                expected = getattr(module, name).grad
                assert expected.abs().max() > 1e-3, f"the gradient of {name} is trivially equal"
                torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11, msg=name)

    return check
