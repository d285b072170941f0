"""What is measured: SAEs, each encoded once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.analysis.fit import Fit, evaluate_fit
from husai.analysis.matching import Matching
from husai.analysis.planted import FiringRecovery, firing_recovery, match_true
from husai.analysis.stability import Stability, stability
from husai.measure.causes import cause_of
from husai.measure.hook import Hook
from husai.measure.reading import Reading, read
from husai.sae.dictionary import Dictionary


@dataclass(frozen=True)
class Members:
    """Fit, live unit atoms, their codes and reading of every SAE; recovery of planted atoms, where there are any.

    codes: in units of unit atoms. encoders: unit encoder directions of live latents; empty unless all SAEs have such.
    matchings: of true atoms with live ones. firings: how the matched latents fire. causes: what a model makes of it; empty
    where there is none. full: whether readings are complete. signed: whether any one's codes are, so that atoms have no sign.
    """

    fits: list[Fit]
    atoms: list[Float[Tensor, "n_live d"]]
    codes: list[Float[Tensor, "samples n_live"]]
    encoders: list[Float[Tensor, "n_live d_in"]]
    readings: list[Reading]
    matchings: list[Matching]
    firings: list[FiringRecovery]
    causes: list[dict[str, float]]
    full: bool
    signed: bool = False

    @classmethod
    def of(cls, dictionaries: Sequence[Dictionary], hook: Hook, *, full: bool = True, causes: bool = True) -> "Members":
        """full: read all that applies at the hook, which takes longer; else only what each latent is tuned to.

        causes: whether then a model, where there is one, is asked what it makes of the dictionaries.
        """
        signed, found = False, cls([], [], [], [], [], [], [], [], full)
        for dictionary in dictionaries:
            codes = dictionary.encode(hook.encoded)
            signed = signed or dictionary.is_signed(codes)
            fit = evaluate_fit(dictionary, hook.x, codes, source=hook.source)
            found.fits.append(fit)
            found.atoms.append(dictionary.atoms[fit.live])
            found.codes.append(codes[:, fit.live] * dictionary.W_dec[fit.live].norm(dim=1))
            if dictionary.W_enc is not None:
                found.encoders.append(F.normalize(dictionary.W_enc[fit.live].float(), dim=1))
            found.readings.append(read(found.codes[-1], found.atoms[-1], hook, full=full))
            if full and causes and hook.site is not None and fit.live.any():
                found.causes.append(cause_of(dictionary, hook, fit.live))
            if hook.planted is not None and fit.live.any():
                matching = match_true(found.atoms[-1], hook.planted.atoms)
                found.matchings.append(matching)
                found.firings.append(firing_recovery(codes[:, fit.live] != 0, hook.planted.codes > 0, matching))
        encoders = found.encoders if len(found.encoders) == len(found.atoms) else []
        return replace(found, encoders=encoders, signed=signed)

    @property
    def n_live(self) -> tuple[int, ...]:
        return tuple(len(atoms) for atoms in self.atoms)

    @cached_property
    def stability(self) -> Stability:
        """How far the dictionaries agree by what their atoms are; at least two are needed."""
        return stability(self.atoms, self.encoders or None, abs=self.signed)
