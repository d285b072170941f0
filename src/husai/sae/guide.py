"""What a recipe adds to the loss as a function of the codes: the probe and the term of time (requirements.md D2)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import SAEConfig, SAETrainingConfig
from husai.errors import HusaiError
from husai.sae.architecture import Architecture, Extra
from husai.sae.known import Beside, Known, KnownOfStore
from husai.sae.params import Params
from husai.sae.resample import clear_moments
from husai.sae.terms import probe, temporal
from husai.seeding import generator
from husai.shards import Store


def known_of(
    x: Tensor | Store, given: Known | None, recipe: SAETrainingConfig, *, fresh: bool
) -> Known | KnownOfStore | None:
    """What the recipe's terms need to know of x; None if it has none.

    Raises HusaiError if that is not known: labels that nobody gave, samples without an order or drawn anew for every batch.
    """
    if not (recipe.probe or recipe.temporal):
        return None
    asked = "probe" if recipe.probe else "temporal"
    if fresh:
        raise HusaiError(f"training.{asked}: samples drawn anew for every batch have neither labels nor order")
    if isinstance(x, Store):
        if recipe.probe and recipe.probe_labels is None:
            raise HusaiError(f"training.probe: on a store, training.probe_labels must name a column of {x.folder}")
        return KnownOfStore.read(x, recipe.probe_labels, ordered=recipe.temporal > 0)
    if recipe.probe_labels is not None:
        raise HusaiError(
            f"training.probe_labels: '{recipe.probe_labels}' names a column of a store; these samples are none"
        )
    known = given or Known()
    for name in ("labels", "before"):
        told, least = getattr(known, name), 0 if name == "labels" else -1
        if told is not None and (len(told) != len(x) or int(told.min()) < least):
            raise HusaiError(
                f"training.{asked}: {name} are {len(told)} for {len(x)} samples, from {int(told.min())}; there must be one a "
                f"sample, from {least}"
            )
    if recipe.probe and known.labels is None:
        raise HusaiError("training.probe: nobody knows labels of these samples; train on a model's grid or on a store")
    if recipe.temporal and known.before is None:
        raise HusaiError(
            "training.temporal: these samples have no order in time; train on a recurrent network's walks, or on a store "
            "with a column 'position'"
        )
    return Known(known.labels if recipe.probe else None, known.before if recipe.temporal else None)


class Probe:
    """A linear classifier of the codes for every seed, from seeded weights of variance 1/d_sae."""

    def __init__(self, config: SAEConfig, classes: int, device: str) -> None:
        d_sae = config.sae.d_sae
        if classes < 2:
            raise HusaiError(f"training.probe: the labels have {classes} value(s); a probe needs at least 2")
        drawn = [torch.randn(d_sae, classes, generator=generator("sae-probe", seed)) for seed in config.init_seeds]
        self.weight = (torch.stack(drawn) / d_sae**0.5).to(device)
        self.bias = torch.zeros(len(drawn), classes, device=device)
        self.leaves = (self.weight.requires_grad_(), self.bias.requires_grad_())

    def loss(
        self, codes: Float[Tensor, "seeds batch d_sae"], labels: Tensor, strength: float, kept: float = 1.0
    ) -> Float[Tensor, "seeds"]:
        """strength · cross-entropy, differentiable in the codes; the probe's own gradients, times `kept`, are left in its
        tensors. All is in fp32, whatever products are computed in."""
        with torch.autocast(codes.device.type, enabled=False):
            codes = codes.to(self.weight)
            own = kept * strength * probe(codes.detach(), *self.leaves, labels)
            self.weight.grad, self.bias.grad = torch.autograd.grad(own.sum(), self.leaves)
            return strength * probe(codes, self.weight.detach(), self.bias.detach(), labels)


class Guide:
    """The terms of one training, and the probe that learns along with the SAEs.

    known: as `known_of` gives it. unit: what samples are multiplied by, so that codes are unit times and squared errors
    unit² times as large; the probe sees codes without it, and learns as if there were none. kept: the factor that
    gradients carry when the optimiser gets them.
    """

    def __init__(
        self,
        config: SAEConfig,
        architecture: Architecture[Any],
        known: Known | KnownOfStore,
        device: str,
        *,
        unit: float = 1.0,
        kept: float = 1.0,
    ) -> None:
        self.unit, self.kept = unit, kept
        self.recipe, self.architecture, self.probe = config.training, architecture, None
        if config.training.probe:
            labels = known.classes if isinstance(known, KnownOfStore) else known.labels
            assert labels is not None
            classes = len(labels) if isinstance(known, KnownOfStore) else int(labels.max()) + 1
            self.probe = Probe(config, classes, device)

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        """What the optimiser moves beside the SAEs."""
        return () if self.probe is None else self.probe.leaves

    def extra(self, beside: Beside) -> Extra:
        """The weighted terms as a function of a batch's parameters and codes."""

        def terms(params: Params, codes: Tensor) -> Mapping[str, Tensor]:
            found = {}
            if self.probe is not None and beside.labels is not None:
                labels = beside.labels.to(codes.device)
                seen = codes.to(self.probe.weight) / self.unit
                found["probe"] = self.unit**2 * self.probe.loss(seen, labels, self.recipe.probe, self.kept)
            if beside.before is not None and beside.follows is not None:
                earlier = self.architecture.training_codes(params, beside.before.to(params.W_enc))
                found["temporal"] = self.recipe.temporal * temporal(codes, earlier, beside.follows.to(codes.device))
            return found

        return terms

    def restart(self, replaced: Bool[Tensor, "seeds d_sae"], optimiser: torch.optim.Optimizer) -> None:
        """What the probe made of a latent that was replaced no longer counts, nor how it was learned."""
        if self.probe is None:
            return
        rows = replaced[..., None]
        with torch.no_grad():
            self.probe.weight.masked_fill_(rows, 0.0)
            clear_moments(optimiser, self.probe.weight, rows)

    def state_dict(self) -> dict[str, Any]:
        return {"leaves": [leaf.detach() for leaf in self.leaves]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for leaf, stored in zip(self.leaves, state["leaves"], strict=True):
                leaf.copy_(stored)
