"""What an architecture is: pure functions of stacked parameters, bound to one config."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import BaseSAEConfig
from husai.sae.params import Params, init_params, reconstruct

C = TypeVar("C", bound=BaseSAEConfig)
Extra = Callable[[Params, Tensor], Mapping[str, Tensor]]  # parameters and codes of a batch to further terms, by name
SKIP = "W_skip"  # (seeds, d_out, d_in), in `Params.more` of architectures with a skip connection

AT_ONCE = 2**21  # codes of a dense batch that are computed together on the CPU


@dataclass(frozen=True)
class Losses:
    """Per-seed losses of one batch.

    mse: mean over batch of the summed squared error. terms: what the architecture adds to it, weighted, by name.
    codes: the batch's latent activations. seen: what `settle` needs to know of the batch, by name; floats are in units of
    codes.
    """

    mse: Float[Tensor, "seeds"]
    terms: Mapping[str, Float[Tensor, "seeds"]]
    codes: Float[Tensor, "seeds batch d_sae"]
    seen: Mapping[str, Tensor] = field(default_factory=dict)

    def extended(self, params: Params, extra: "Extra | None") -> "Losses":
        """With the terms of `extra`, if any."""
        return self if extra is None else replace(self, terms={**self.terms, **extra(params, self.codes)})

    @property
    def penalty(self) -> Float[Tensor, "seeds"]:
        """Sum of all terms."""
        return sum(self.terms.values(), torch.zeros_like(self.mse))

    @property
    def total(self) -> Float[Tensor, "seeds"]:
        """What is minimised."""
        return self.mse + self.penalty


class Step(NamedTuple):
    """Gradients of one batch and what the training loop logs of it.

    fired: which latents were active at all. peak: the largest code. seen: as in `Losses`.
    """

    gradients: Params
    mse: Float[Tensor, "seeds"]
    terms: Mapping[str, Float[Tensor, "seeds"]]
    l0: Float[Tensor, "seeds"]
    fired: Bool[Tensor, "seeds d_sae"]
    peak: Float[Tensor, "seeds"]
    seen: Mapping[str, Tensor] = MappingProxyType({})

    @classmethod
    def joined(cls, steps: "list[Step]") -> "Step":
        """Of stacks of seeds, one after another."""
        gradients = {
            name: torch.cat([dict(s.gradients.items())[name] for s in steps]) for name, _ in steps[0].gradients.items()
        }
        mse, l0, fired, peak = (torch.cat([getattr(s, name) for s in steps]) for name in ("mse", "l0", "fired", "peak"))
        terms, seen = (
            {name: torch.cat([getattr(s, of)[name] for s in steps]) for name in getattr(steps[0], of)}
            for of in ("terms", "seen")
        )
        return cls(Params.of(gradients), mse, terms, l0, fired, peak, seen)


def step_of(losses: Losses, params: Params, gradients: Sequence[Tensor]) -> Step:
    """What the training loop needs of a batch, given the gradients of all parameters in their order."""
    active = losses.codes != 0
    terms = {name: value.detach() for name, value in losses.terms.items()}
    named = dict(zip((name for name, _ in params.items()), gradients, strict=True))
    l0, peak = active.sum(-1).double().mean(-1), losses.codes.detach().abs().amax((1, 2))
    return Step(Params.of(named), losses.mse.detach(), terms, l0, active.any(1), peak, losses.seen)


class Architecture(ABC, Generic[C]):
    """One kind of SAE. Axes as in `Params`; x is normalised.

    saelens: what SAELens calls the folder it is saved as. scaled: its tensors beyond the four that are in units of
    pre-activations; rescaled: those in units of scores, which carry the decoder norms already.
    powers: dials in units of samples, or whose loss term is not in those of a squared error, with the power of a factor on
    the samples that they grow by if every loss is to grow by its square.
    encoder_scale: norm of the encoder row that a resampled latent gets, relative to the live ones. in_groups: whether some of
    the seeds may be computed without the others. strength: what the
    target-L0 controller multiplies the sparsity coefficient by, a number a seed; every penalised architecture applies it.
    """

    saelens: ClassVar[str]
    scaled: ClassVar[tuple[str, ...]] = ()
    rescaled: ClassVar[tuple[str, ...]] = ()
    powers: ClassVar[Mapping[str, int]] = MappingProxyType({})
    encoder_scale: ClassVar[float] = 1.0
    in_groups: ClassVar[bool] = True
    strength: Float[Tensor, "seeds"] | float = 1.0

    def __init__(self, config: C) -> None:
        self.config = config

    def begin(self, samples: Float[Tensor, "samples d_in"], init_seeds: tuple[int, ...]) -> None:
        """What it takes from the (normalised) samples before training; most take nothing. Raises HusaiError."""

    def start(self, d_in: int, seeds: tuple[int, ...], *, d_target: int | None = None) -> Params:
        """Parameters before the first step, drawn from each seed's own stream. d_target: width of a transcoder's target."""
        return self.init(init_params(d_in, self.config.d_sae, seeds, d_target=d_target))

    def init(self, params: Params) -> Params:
        """Freshly drawn parameters, with what this architecture has beside the four; a skip connection starts at 0."""
        if not self.config.skip:
            return params
        seeds, d_in, _ = params.W_enc.shape
        return params.adding(**{SKIP: params.W_dec.new_zeros(seeds, params.W_dec.shape[-1], d_in)})

    @abstractmethod
    def encode(self, params: Params, x: Float[Tensor, "seeds batch d_in"]) -> Float[Tensor, "seeds batch d_sae"]:
        """Latent activations f(x), as a finished SAE computes them."""

    def training_codes(
        self, params: Params, x: Float[Tensor, "seeds batch d_in"]
    ) -> Float[Tensor, "seeds batch d_sae"]:
        """Codes of a batch as `losses` has them, with the same gradients."""
        return self.encode(params, x)

    def decode(
        self,
        params: Params,
        codes: Float[Tensor, "seeds batch d_sae"],
        x: Float[Tensor, "seeds batch d_in"] | None = None,
    ) -> Float[Tensor, "seeds batch d_out"]:
        """Reconstruction from codes and, with x, from what a skip connection makes of it."""
        reconstruction = reconstruct(params, codes)
        return reconstruction if x is None or not self.config.skip else reconstruction + self.skipped(params, x)

    @staticmethod
    def skipped(params: Params, x: Float[Tensor, "seeds batch d_in"]) -> Float[Tensor, "seeds batch d_out"]:
        """What the skip connection adds to a reconstruction."""
        return x @ params.more[SKIP].mT

    @abstractmethod
    def losses(
        self,
        params: Params,
        x: Float[Tensor, "seeds batch d_in"],
        *,
        step: int,
        dead: Bool[Tensor, "seeds d_sae"],
        target: Float[Tensor, "seeds batch d_out"] | None = None,
    ) -> Losses:
        """Losses of a batch at optimiser step `step`, given which latents have been silent for long.

        target: what is to be reconstructed, normalised; None: x itself.
        """

    def gradients(
        self,
        params: Params,
        x: Float[Tensor, "seeds batch d_in"],
        *,
        step: int,
        dead: Bool[Tensor, "seeds d_sae"],
        target: Float[Tensor, "seeds batch d_out"] | None = None,
        extra: Extra | None = None,
    ) -> Step:
        """Gradients of `losses` and the terms of `extra`: by `fast` where it has them, else by autograd."""
        done = self.fast(params, x, step=step, dead=dead) if target is None and extra is None else None
        return self.by_autograd(params, x, step, dead, target, extra) if done is None else done

    def fast(
        self, params: Params, x: Float[Tensor, "seeds batch d_in"], *, step: int, dead: Bool[Tensor, "seeds d_sae"]
    ) -> Step | None:
        """A faster twin of `by_autograd` for samples that are reconstructed themselves; None where there is none."""
        return None

    def by_autograd(
        self,
        params: Params,
        x: Float[Tensor, "seeds batch d_in"],
        step: int,
        dead: Bool[Tensor, "seeds d_sae"],
        target: Float[Tensor, "seeds batch d_out"] | None = None,
        extra: Extra | None = None,
    ) -> Step:
        """On the CPU as many seeds at once as have AT_ONCE codes, one at least: more only crowd each other out of the cache."""
        seeds, grouped = len(x), self.in_groups and x.device.type == "cpu" and extra is None
        at_once = max(1, AT_ONCE // (x.shape[1] * dead.shape[1])) if grouped else seeds
        if at_once >= seeds:
            return self._together(params, x, step, dead, target, extra)
        steps = []
        for start in range(0, seeds, at_once):
            some, group = slice(start, start + at_once), copy(self)
            if isinstance(self.strength, Tensor):
                group.strength = self.strength[some]
            parts = params.map(lambda value, some=some: value.detach()[some].requires_grad_())
            aim = None if target is None else target[some]
            steps.append(group._together(parts, x[some], step, dead[some], aim, None))
        return Step.joined(steps)

    def _together(
        self, params: Params, x: Tensor, step: int, dead: Tensor, target: Tensor | None, extra: Extra | None
    ) -> Step:
        losses = self.losses(params, x, step=step, dead=dead, target=target).extended(params, extra)
        return step_of(losses, params, torch.autograd.grad(losses.total.sum(), list(params), materialize_grads=True))

    def in_units(self, unit: float) -> Self:
        """The same for samples `unit` times as large: of them, and of parameters along, every loss is unit² times as large."""
        dials = {name: getattr(self.config, name) * unit**power for name, power in self.powers.items()}
        moved = copy(self)
        moved.config = self.config.model_copy(update=dials)
        return moved

    def pulled(self, params: Params, gradients: Params) -> Params:
        """Gradients of what is trained, from those of `losses`: they differ where a tensor is derived or fixed."""
        return gradients

    def derived(self, params: Params) -> Params:
        """With the tensors that follow from others computed anew, as they must be after averaging."""
        return params

    def averaged(self, mean: Params, last: Params) -> Params:
        """What stands for the average of parameters over steps, beside the last: with what is derived computed anew."""
        return self.derived(mean)

    def point(
        self, params: Params, seed: int, which: Bool[Tensor, "d_sae"], directions: Float[Tensor, "n d_in"]
    ) -> Float[Tensor, "n d_in"]:
        """Turn some latents' decoder rows along unit directions as well as may be, in place; returns where they point."""
        params.W_dec[seed, which] = directions
        return directions

    def settle(self, params: Params, seen: Mapping[str, Tensor]) -> None:
        """After the update, in place: what keeps parameters where they may be, and what follows the batch."""

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights of one seed and config keys as SAELens has them."""
        return tensors, {}

    def restore(self, tensors: dict[str, Tensor]) -> Params:
        """Parameters of one seed, without a seed axis, from what `export` gives."""
        return Params.of(tensors)
