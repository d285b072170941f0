"""Gradients in low precision: scaled so that they fit, taken of losses in fp32 and in the units of the samples.

Rows P5 to P7 of requirements.md; docs/method.md §Precision.
"""

import contextlib
import importlib.util
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from husai.config import SAETrainingConfig
from husai.config.precision import Dtype
from husai.errors import HusaiError
from husai.sae.architecture import Architecture, Extra, Step, step_of
from husai.sae.params import Params
from husai.sae.resample import rows_of

DTYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
aten = torch.ops.aten
PRODUCTS = {aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}


class WideProducts(TorchDispatchMode):
    """Within, products of fp16 matrices are computed in fp32 and rounded once.

    That is what a processor with fp16 products does, which accumulates in fp32; on a CPU without, torch takes sixty times
    as long as for fp32.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and args[-1].dtype == torch.float16:
            return func(*(value.float() for value in args), **(kwargs or {})).half()
        return func(*args, **(kwargs or {}))


def unit_of(samples: Float[Tensor, "samples d_in"]) -> float:
    """What raw samples are multiplied by in low precision: the power of two that brings their root mean square nearest to 1.

    A power of two rounds nothing. Their mean counts too, for it is there to overflow. 1 for zeros and for NaN, which
    `Normaliser.fit` refuses.
    """
    size = float(samples.double().pow(2).mean().sqrt())
    return 2.0 ** -round(math.log2(size)) if 0 < size < math.inf else 1.0


class Computation:
    """How a training computes its gradients: the architecture's own way, or in low precision, scaled or compiled.

    kept: the factor that gradients still carry when they come out; it is 1 but for the Adam trick, and the optimiser's eps
    carries it too.
    """

    def __init__(self, architecture: Architecture[Any], recipe: SAETrainingConfig, device: str) -> None:
        """Raises HusaiError if the recipe asks for torch.compile and there is no compiler."""
        self.architecture, self.device = architecture, torch.device(device).type
        self.compute, self.scale = DTYPES[recipe.pair[1]], recipe.loss_scale
        self.low, self.compiled = recipe.low_precision, recipe.compile
        self.plain = not self.low and self.scale == 1 and not self.compiled
        self.kept = self.scale if recipe.adam_trick else 1.0
        if self.compiled:
            require_compiler(self.device)
        self.losses = torch.compile(architecture.losses) if self.compiled else architecture.losses

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
        """As `Architecture.gradients`, times `kept`. Products are rounded to the compute dtype, all else is in fp32."""
        if self.plain:
            return self.architecture.gradients(params, x, step=step, dead=dead, target=target, extra=extra)
        with self._products():
            with torch.autocast(self.device, dtype=self.compute, enabled=self.low):
                losses = self.losses(params, x, step=step, dead=dead, target=target).extended(params, extra)
            total = losses.total.sum() * self.scale
            found = torch.autograd.grad(total, list(params), materialize_grads=True)
        rest = self.kept / self.scale
        seen = {name: value.float() if value.is_floating_point() else value for name, value in losses.seen.items()}
        losses = replace(losses, codes=losses.codes.detach().float(), seen=seen)
        return step_of(losses, params, found if rest == 1 else [gradient * rest for gradient in found])

    @contextlib.contextmanager
    def _products(self) -> Iterator[None]:
        wide = self.device == "cpu" and self.compute == torch.float16 and not self.compiled
        with WideProducts() if wide else contextlib.nullcontext():
            yield


def require_compiler(device: str) -> None:
    """Raises HusaiError unless torch.compile has what it needs on this kind of device."""
    if device == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        raise HusaiError(
            "training.compile: torch.compile needs a C++ compiler (g++ or clang++), and none is on the path"
        )
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        raise HusaiError("training.compile: torch.compile needs triton on CUDA, which is not installed")


class Rounding:
    """Parameters that are kept in less than fp32: after each step they become numbers of that kind.

    Rounding alone would lose every update below half a step of the grid. Kahan's compensation, kept in the same dtype, is
    what was lost so far, and comes back with the next update (Zamirai et al. 2020, "Revisiting BFloat16 Training", arXiv
    2010.06192, §3). Each tensor is held in an fp32 container, so that everything else takes it as it is.
    """

    def __init__(self, params: Params, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.lost = params.map(lambda value: torch.zeros_like(value, dtype=dtype, requires_grad=False))
        self.round(params)

    @torch.no_grad()
    def give_back(self, params: Params) -> None:
        """What was lost, in place, before values are replaced by others that follow from them: nothing is lost then."""
        for value, lost in zip(params, self.lost, strict=True):
            value.add_(lost.float())
            lost.zero_()

    @torch.no_grad()
    def restart(self, params: Params, replaced: Bool[Tensor, "seeds d_sae"]) -> None:
        """What a replaced latent lost before no longer counts; its new values become numbers of the kind."""
        for (name, value), lost in zip(params.items(), self.lost, strict=True):
            if (rows := rows_of(name, value, replaced)) is not None:
                rounded = value.to(self.dtype).float()
                lost.copy_(torch.where(rows, value - rounded, lost.float()))
                value.copy_(torch.where(rows, rounded, value))

    @torch.no_grad()
    def round(self, params: Params) -> None:
        """In place."""
        for value, lost in zip(params, self.lost, strict=True):
            whole = value + lost.float()
            value.copy_(whole.to(self.dtype))
            lost.copy_(whole - value)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.lost.items())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, lost in self.lost.items():
            lost.copy_(state[name])
