"""Resampling of dead latents (Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling).

A latent that fires on no training sample is pointed at a sample drawn with probability proportional to its squared
loss; that of a transcoder reads the sample and points at its target. The encoder row gets the mean norm of the live rows
times the architecture's `encoder_scale`: Bricken et al. use 0.2 with ReLU; where latents compete, a weak row would never
win, so it is 1 there. What an architecture has for every latent beside the encoder (a threshold, say) starts afresh.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from husai.sae.architecture import SKIP, Architecture
from husai.sae.params import Params

PART = 8192  # samples encoded at once
ROWS = {"W_enc": lambda dead: dead[:, None, :], "b_enc": lambda dead: dead, "W_dec": lambda dead: dead[..., None]}


def resample_dead(
    params: Params,
    optimiser: torch.optim.Optimizer,
    samples: Float[Tensor, "samples d_in"],
    architecture: Architecture[Any],
    generators: list[torch.Generator],
    *,
    targets: Float[Tensor, "samples d_out"] | None = None,
) -> Bool[Tensor, "seeds d_sae"]:
    """Replace the dead latents of every seed in place, and clear their optimiser moments. Returns which they were.

    targets: what the samples are to become, whose error is drawn from and to which atoms point; None: themselves.
    """
    targets = samples if targets is None else targets
    fresh = architecture.init(params.map(torch.zeros_like)).more
    dead = torch.zeros(params.b_enc.shape, dtype=torch.bool, device=samples.device)
    with torch.no_grad():
        for seed, stream in enumerate(generators):
            alone = params.map(lambda value, seed=seed: value[seed : seed + 1])
            error, fired = [], []
            for part, wanted in zip(samples.split(PART), targets.split(PART), strict=True):
                codes = architecture.encode(alone, part[None])
                error.append((architecture.decode(alone, codes, part[None])[0] - wanted).pow(2).sum(-1))
                fired.append((codes[0] != 0).any(0))
            dead[seed] = ~torch.stack(fired).any(0)
            count = int(dead[seed].sum())
            if count == dead.shape[1]:  # nothing alive to take a scale from: leave it to AuxK
                dead[seed] = False
                continue
            if count == 0:
                continue
            weights = torch.cat(error).pow(2).cpu()
            chosen = torch.multinomial(weights, count, replacement=count > len(weights), generator=stream)
            rows = chosen.to(samples.device)
            atoms = F.normalize(targets[rows] - alone.b_dec, dim=-1)
            size = alone.W_enc[0][:, ~dead[seed]].norm(dim=0).mean() * architecture.encoder_scale
            for name, value in params.more.items():
                if rows_of(name, value, dead) is not None:
                    value[seed, dead[seed]] = fresh[name][seed, dead[seed]]
            reached = architecture.point(params, seed, dead[seed], atoms)
            reading = reached if architecture.config.centred() else F.normalize(samples[rows], dim=-1)
            params.W_enc[seed][:, dead[seed]] = reading.T * size
            params.b_enc[seed, dead[seed]] = 0.0
        _clear_moments(params, optimiser, dead)
    return dead


def rows_of(name: str, value: Tensor, dead: Bool[Tensor, "seeds d_sae"]) -> Bool[Tensor, "seeds ..."] | None:
    """Mask of what belongs to the dead latents in a tensor of `Params`, broadcast to it; None if nothing does."""
    if name in ROWS:
        return ROWS[name](dead)
    own = name not in ("b_dec", SKIP) and value.shape[:2] == dead.shape
    return dead.view(*dead.shape, *[1] * (value.dim() - 2)) if own else None


def _clear_moments(params: Params, optimiser: torch.optim.Optimizer, dead: Bool[Tensor, "seeds d_sae"]) -> None:
    for name, value in params.items():
        if (rows := rows_of(name, value, dead)) is not None:
            clear_moments(optimiser, value, rows)


def clear_moments(optimiser: torch.optim.Optimizer, value: Tensor, rows: Bool[Tensor, "seeds ..."]) -> None:
    """What the optimiser remembers of a tensor's gradients, at a mask that is broadcast to it, becomes 0 in place."""
    state = optimiser.state.get(value, {})
    for moment in ("exp_avg", "exp_avg_sq"):
        if moment in state:
            state[moment].masked_fill_(rows, 0.0)
