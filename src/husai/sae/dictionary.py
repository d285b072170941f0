"""The `Dictionary` every score takes, and the ensemble that training returns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from husai.activations import Normaliser, rescale
from husai.config import AnySAE, RegisteredConfig, SAEConfig
from husai.errors import HusaiError
from husai.sae.architecture import SKIP, Architecture
from husai.sae.architectures import architecture_of
from husai.sae.params import Params
from husai.sae.registered import Registered, ran

PART = 8192  # samples encoded at once


@dataclass(frozen=True)
class Dictionary:
    """One finished SAE as every score sees it, whatever trained it.

    W_dec: (d_sae, d_out). encode: (n, d_in) raw activations to (n, d_sae) codes; decode: from them to (n, d_out), without
    what a skip connection adds. meta: what is known about its making (architecture, hook_name, model_name, seeds, …).
    signed_codes: whether it says that codes may be negative (see `is_signed`). skip: (n, d_in) activations to what a
    skip connection makes of them. d_source: width of what is encoded, of a transcoder, which reconstructs another activation;
    None: what is reconstructed is what is encoded. W_enc: encoder directions as rows; None where an encoder is no matrix.
    """

    W_dec: Float[Tensor, "d_sae d_out"]
    encode: Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_sae"]]
    decode: Callable[[Float[Tensor, "n d_sae"]], Float[Tensor, "n d_out"]]
    meta: dict[str, object] = field(default_factory=dict)
    signed_codes: bool = False
    skip: Callable[[Float[Tensor, "n d_in"]], Float[Tensor, "n d_out"]] | None = None
    d_source: int | None = None
    W_enc: Float[Tensor, "d_sae d_in"] | None = None

    def reconstruct(
        self, x: Float[Tensor, "n d_in"], codes: Float[Tensor, "n d_sae"] | None = None
    ) -> Float[Tensor, "n d_out"]:
        """All that is made of x, a skip connection's part too; `codes` of x save encoding again."""
        decoded = self.decode(self.encode(x) if codes is None else codes)
        return decoded if self.skip is None else decoded + self.skip(x)

    def is_signed(self, codes: Float[Tensor, "n d_sae"]) -> bool:
        """Whether an atom's sign means nothing: codes may be negative, as it says or as those of some samples are."""
        return self.signed_codes or bool((codes < 0).any())

    @property
    def paired(self) -> bool:
        """Whether it reconstructs another activation than the one it encodes."""
        return self.d_source is not None

    @property
    def d_in(self) -> int:
        return self.d_out if self.d_source is None else self.d_source

    @property
    def d_out(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def atoms(self) -> Float[Tensor, "d_sae d_out"]:
        """Unit decoder rows, float32."""
        return F.normalize(self.W_dec.float(), dim=-1)


@dataclass(frozen=True)
class SAEEnsemble:
    """S trained SAEs of one config, on raw activations, with unit decoder rows (but see `finish`).

    constant_norm: whether each sample is scaled to norm √d before it is encoded, and back after it is decoded.
    normaliser: what `params` are used behind, of classes of SAELens, whose parameters stay as they were trained.
    """

    params: Params
    config: AnySAE
    init_seeds: tuple[int, ...]
    data_seeds: tuple[int, ...]
    constant_norm: bool = False
    normaliser: Normaliser | None = None

    def __len__(self) -> int:
        return len(self.init_seeds)

    @property
    def dictionaries(self) -> list[Dictionary]:
        """Every seed as a Dictionary."""
        return [self.member(index) for index in range(len(self))]

    def member(self, index: int, meta: dict[str, object] | None = None) -> Dictionary:
        """One seed as a Dictionary."""
        architecture = architecture_of(self.config)
        seeds = {"init_seed": self.init_seeds[index], "data_seed": self.data_seeds[index]}
        kind: dict[str, object] = {"architecture": self.config.architecture, **dict([self.config.sparsity])}
        known = kind | seeds | (meta or {})
        if isinstance(architecture, Registered):
            saved = architecture.finished(self.params, index, self.normaliser)
            return behind(saved.normaliser, of_sae_lens(saved.sae, known))
        params = self.params.map(lambda value: value[index : index + 1])
        return as_dictionary(params, architecture, known, constant_norm=self.constant_norm)


def as_dictionary(
    params: Params, architecture: Architecture, meta: dict[str, object], *, constant_norm: bool = False
) -> Dictionary:
    """The only seed of stacked parameters as a Dictionary."""

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([architecture.encode(params, part[None])[0] for part in x.split(PART)])

    def decode(codes: Tensor) -> Tensor:
        with torch.no_grad():
            return architecture.decode(params, codes[None])[0]

    def skip(x: Tensor) -> Tensor:
        with torch.no_grad():
            return architecture.skipped(params, x[None])[0]

    config = architecture.config
    d_source = params.W_enc.shape[1] if config.paired else None
    skipped = skip if config.skip else None
    known = (config.signed_codes, skipped, d_source, params.W_enc[0].T)
    made = Dictionary(params.W_dec[0], encode, decode, meta, *known)
    return rescaling(made) if constant_norm else made


def of_sae_lens(sae: Any, meta: dict[str, object]) -> Dictionary:
    """An SAE that SAELens runs, as a Dictionary."""
    with torch.no_grad():
        weights = sae.W_dec.detach().float().clone()
        if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):  # its codes carry the norms already
            weights = F.normalize(weights, dim=-1)

    def encode(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([ran(sae, "encode", part, whose) for part in x.split(PART)]).float()

    def decode(codes: Tensor) -> Tensor:
        with torch.no_grad():
            return ran(sae, "decode", codes, whose).float()

    whose = f"SAE of architecture '{sae.cfg.architecture()}'"
    W_skip: Tensor | None = getattr(sae, "W_skip", None)

    def skip(x: Tensor) -> Tensor:
        assert W_skip is not None
        with torch.no_grad():
            return (x.to(sae.dtype) @ W_skip.mT).float()

    d_source = sae.cfg.d_in if hasattr(sae.cfg, "d_out") else None
    signed = sae.cfg.architecture() == "abstopk"
    encoder: Tensor | None = getattr(sae, "W_enc", None)
    W_enc = None if encoder is None or encoder.ndim != 2 else encoder.detach().float().T
    return Dictionary(weights, encode, decode, meta, signed, None if W_skip is None else skip, d_source, W_enc)


def behind(normaliser: Normaliser | None, inner: Dictionary) -> Dictionary:
    """A dictionary of normalised samples as one of raw samples; its codes stay those of normalised ones."""
    if normaliser is None:
        return inner
    if normaliser.each:
        return rescaling(inner)
    mean, scale = normaliser.mean, normaliser.scale

    def encode(x: Tensor) -> Tensor:
        return inner.encode(normaliser(x))

    def decode(codes: Tensor) -> Tensor:
        return inner.decode(codes) / scale + mean

    W_enc = None if inner.W_enc is None else inner.W_enc * scale
    return replace(inner, W_dec=inner.W_dec / scale, encode=encode, decode=decode, W_enc=W_enc)


def rescaling(inner: Dictionary) -> Dictionary:
    """A dictionary of samples of norm √d as one of raw samples.

    Codes do not say how long a sample was, so `decode` takes that from the samples last encoded, as SAELens'
    `constant_norm_rescale` does, and raises HusaiError if they are of another number.
    """
    sizes: list[Tensor] = []

    def encode(x: Tensor) -> Tensor:
        scaled = rescale(x)
        sizes[:] = [scaled.size]
        return inner.encode(scaled.x)

    def decode(codes: Tensor) -> Tensor:
        if not sizes or len(sizes[0]) != len(codes):
            raise HusaiError(
                f"decode: {len(codes)} codes of an SAE that scales each sample to constant norm, but the samples encoded last "
                f"are {len(sizes[0]) if sizes else 0}; encode the samples whose codes these are"
            )
        return inner.decode(codes) * sizes[0]

    return replace(inner, encode=encode, decode=decode)


def finished(
    params: Params,
    config: SAEConfig,
    source: Normaliser,
    architecture: Architecture,
    target: Normaliser | None = None,
) -> SAEEnsemble:
    """Trained parameters as SAEs on raw activations.

    source: the normaliser of what they encode; target: that of what they reconstruct, None if it is the same.
    """
    if isinstance(config.sae, RegisteredConfig):
        return SAEEnsemble(params, config.sae, config.init_seeds, config.data_seeds, normaliser=source)
    kind, competing, normaliser = config.sae, config.sae.fixed_l0 is not None, target or source
    if competing and isinstance(normaliser.scale, Tensor):  # the norms that selection saw are in its scores already
        kind = kind.model_copy(update={"decoder_norm": "unit"})
    named, centred = (architecture.scaled, architecture.rescaled), kind.centred()
    params = params if centred else sighted(params, source)
    weights = finish(params, normaliser, *named, competing=competing, centred=centred)
    return SAEEnsemble(weights, kind, config.init_seeds, config.data_seeds, normaliser.each)


def sighted(params: Params, source: Normaliser) -> Params:
    """Fold the input's normalisation into an encoder and a skip connection that see x.

    With m and s the input's mean and scale, ((x − m)·s)·W_enc + b_enc = x·(s·W_enc) + (b_enc − (m·s)·W_enc); of W_skip,
    the constant goes to b_dec.
    """
    scale = (source.scale * torch.ones_like(source.mean)).to(params.b_dec)
    shift = source.mean.to(params.b_dec) * scale
    made = params.replace(W_enc=params.W_enc * scale[:, None], b_enc=params.b_enc - shift @ params.W_enc)
    if SKIP not in params.more:
        return made
    W_skip = params.more[SKIP]
    return made.replace(b_dec=params.b_dec - W_skip @ shift).adding(**{SKIP: W_skip * scale})


def finish(
    params: Params,
    normaliser: Normaliser,
    scaled: tuple[str, ...] = (),
    rescaled: tuple[str, ...] = (),
    *,
    competing: bool = False,
    centred: bool = True,
) -> Params:
    """Fold decoder norms and input normalisation into the weights: same reconstructions, unit decoder rows, raw input.

    Both foldings rest on the codes being positively homogeneous: f(c·h) = c·f(h) for c > 0, as ReLU and TopK are; so are
    thresholds and biases, if they grow along: those that `scaled` names with norms and scale, those that `rescaled` names
    with the scale alone (`Architecture`). Codes come out in units of raw activations.

    A scale of its own for every coordinate gives decoder rows of equal norm unequal ones. Where latents compete for a
    place (`competing`), dividing those out would change who wins: rows then keep them, and codes the units of training.

    An encoder that sees x (`centred` is false) is in raw units already (`sighted`), and `normaliser` is the target's.
    """
    norms = params.W_dec.norm(dim=-1).clamp(min=1e-12)
    scale, mean = normaliser.scale, normaliser.mean.to(params.b_dec)
    if isinstance(scale, Tensor):
        scale = scale.to(params.b_dec)
        rows = params.W_dec / scale
        norms = norms if competing else rows.norm(dim=-1).clamp(min=1e-12)
        W_enc = params.W_enc * scale[:, None] if centred else params.W_enc
        factors = dict.fromkeys(scaled, norms) | {SKIP: 1 / scale[:, None]}
        return Params(
            W_enc * norms[:, None],
            params.b_enc * norms,
            rows / norms[..., None],
            params.b_dec / scale + mean,
            {name: value * factors.get(name, 1) for name, value in params.more.items()},
        )
    factors = dict.fromkeys(scaled, norms / scale) | dict.fromkeys((*rescaled, SKIP), 1 / scale)
    return Params(
        (params.W_enc if centred else params.W_enc / scale) * norms[:, None],
        params.b_enc * norms / scale,
        params.W_dec / norms[..., None],
        params.b_dec / scale + mean,
        {name: value * factors.get(name, 1) for name, value in params.more.items()},
    )
