"""TopK SAE with AuxK (Gao et al. 2024, arXiv 2406.04093, §2.3 and appendix A.2)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from husai.config import KConfig
from husai.sae.architecture import Architecture, Losses, Step
from husai.sae.kernels.choice import numba_there, plain_floats
from husai.sae.kernels.step import OneSeed, each_seed
from husai.sae.params import Params, pre_activations, squared_error

K = TypeVar("K", bound=KConfig)


class TopK(Architecture[K]):
    """ReLU of the k largest scores. With free decoder norms, scores and codes carry them."""

    saelens = "topk"

    def scores(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        """What the k largest are chosen by: pre-activations, times the decoder norms if those are free."""
        hidden = pre_activations(params, x, centred=self.config.centred())
        return hidden * params.W_dec.norm(dim=-1)[:, None] if self.config.decoder_norm == "weighted" else hidden

    def select(self, scores: Float[Tensor, "seeds batch d_sae"]) -> Float[Tensor, "seeds batch d_sae"]:
        """Codes of a batch in training."""
        return keep_largest(scores, self.config.k)

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return self.training_codes(params, x)

    def training_codes(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        return self.select(self.scores(params, x))

    def decode(
        self, params: Params, codes: Float[Tensor, "seeds batch d_sae"], x: Tensor | None = None
    ) -> Float[Tensor, "seeds batch d_out"]:
        """x̂ with decoder rows of norm 1: they are kept so, or the codes already carry their norms."""
        if self.config.decoder_norm == "weighted":
            params = params.replace(W_dec=params.W_dec / params.W_dec.norm(dim=-1, keepdim=True))
        return super().decode(params, codes, x)

    def losses(
        self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"], target: Tensor | None = None
    ) -> Losses:
        """Squared error plus AuxK; `step` plays no part."""
        scores = self.scores(params, x)
        codes = self.select(scores)
        wanted, reconstruction = x if target is None else target, self.decode(params, codes, x)
        residual = (wanted - reconstruction).detach()
        each = zip(scores.unbind(), params.W_dec.unbind(), residual.unbind(), dead.unbind(), strict=True)
        auxk = torch.stack([self._auxk(*one) for one in each])
        return Losses(squared_error(reconstruction, wanted), {"auxk": auxk}, codes)

    def fast(self, params: Params, x: Tensor, *, step: int, dead: Bool[Tensor, "seeds d_sae"]) -> Step | None:
        """By the sparse kernels where they apply: decoder rows of norm 1, float32 on the CPU, numba installed."""
        covered = self.config.decoder_norm == "unit" and plain_floats(params, x) and numba_there()
        kernel = self.kernel(params) if covered else None
        if kernel is None:
            return None

        def one(seed: int, alone: Params, made: Params) -> OneSeed:
            done = kernel(alone, x[seed], self.config.k, made)
            auxk = self._add_auxk(alone, x[seed], done.residual, dead[seed], made)
            return replace(done, terms={"auxk": auxk})

        return each_seed(one, params)

    def kernel(self, params: Params) -> Callable[[Params, Tensor, int, Params], OneSeed] | None:
        """The fast twin of the squared error and its gradients; None where there is none."""
        from husai.sae.kernels.topk import sparse_step

        computed = ("scores", "select", "decode", "losses")
        same = all(getattr(type(self), name) is getattr(TopK, name) for name in computed)
        return sparse_step if same and not params.more else None

    def _add_auxk(self, params: Params, x: Tensor, residual: Tensor, dead: Tensor, gradients: Params) -> Tensor:
        """AuxK of one seed, computed on the dead columns alone; its gradients are added to `gradients`."""
        if not dead.any() or self.config.auxk_coefficient == 0:
            return x.new_zeros(())
        parts = (params.W_enc[:, dead], params.b_enc[dead], params.W_dec[dead], params.b_dec)
        W_enc, b_enc, W_dec, b_dec = leaves = [part.clone().requires_grad_() for part in parts]
        scores = torch.addmm(b_enc, x - b_dec, W_enc)
        auxk = self._auxk(scores, W_dec, residual, torch.ones(len(b_enc), dtype=torch.bool))
        to_enc, to_bias, to_dec, to_b_dec = torch.autograd.grad(auxk, leaves)
        gradients.W_enc[:, dead] += to_enc
        gradients.b_enc[dead] += to_bias
        gradients.W_dec[dead] += to_dec
        gradients.b_dec.add_(to_b_dec)
        return auxk.detach()

    def _auxk(self, scores: Tensor, W_dec: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
        """One seed's dead latents reconstruct the residual; scaled down while there are fewer than k_aux of them."""
        count, config = int(dead.sum()), self.config
        if count == 0 or config.auxk_coefficient == 0:
            return scores.new_zeros(())
        wanted = config.k_aux or W_dec.shape[1] // 2
        codes = self.auxiliary(scores[:, dead], min(wanted, count))
        atoms = W_dec[dead]
        if config.decoder_norm == "weighted":
            atoms = atoms / atoms.norm(dim=-1, keepdim=True)
        error = (codes @ atoms - residual).pow(2).sum(-1).mean()
        return config.auxk_coefficient * min(count / wanted, 1.0) * error

    def auxiliary(self, scores: Float[Tensor, "batch n_dead"], k: int) -> Float[Tensor, "batch n_dead"]:
        """Codes of the dead latents."""
        values, indices = scores.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(scores).scatter(-1, indices, values.relu() if self.config.auxk_rectified else values)

    def export(self, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return tensors, {"k": self.config.k, "rescale_acts_by_decoder_norm": False}


def keep_largest(hidden: Float[Tensor, "... d_sae"], k: int) -> Float[Tensor, "... d_sae"]:
    """ReLU of the k largest in each row, 0 elsewhere."""
    values, indices = hidden.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(hidden).scatter(-1, indices, values.relu())
