"""Any training class of SAELens as an architecture: its own loss and gradients, seed by seed, in the one training loop."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from husai.activations import Normaliser
from husai.config import RegisteredConfig
from husai.errors import HusaiError
from husai.sae.architecture import Architecture, Losses
from husai.sae.params import FOUR, Params, squared_error
from husai.sae.registry import build, find, require_settings
from husai.seeding import generator

CHECKED = 256  # samples of each size on which folding is checked
SIZES = (1.0, 8.0)  # of their coordinates; inputs are normalised, so that 1 is usual
AGREE = 1e-4  # relative difference of codes and reconstructions that rounding makes at most
TRIED = 4  # samples that a class must encode and decode before it is trained
SHARE = 0.98  # of the samples must agree: at a threshold, rounding may decide


class Saved(NamedTuple):
    """sae: the class that SAELens keeps for inference. normaliser: of its inputs, where it could not be folded in."""

    sae: Any
    normaliser: Normaliser | None


class Registered(Architecture[RegisteredConfig]):
    """A class registered with SAELens. Its parameters and buffers are `Params`, by their own names, stacked over seeds.

    What it has none of among W_enc, b_enc and b_dec is empty there; buffers that are not floating numbers are float64.
    Each seed is initialised from a stream of its own, and so is whatever its forward pass draws at a step.
    """

    saelens = "registered"
    in_groups = False  # a seed's place among all says what noise it gets

    def __init__(self, config: RegisteredConfig) -> None:
        """Raises HusaiError if there is no such class, it lacks methods, or has other settings."""
        super().__init__(config)
        self.found = find(config.architecture)
        require_settings(self.found, config)
        self.seeds: tuple[int, ...] = ()
        self.whole: set[str] = set()
        self.module: Any = None
        self.known: tuple[Params, list[Saved]] | None = None

    def start(self, d_in: int, seeds: tuple[int, ...], *, d_target: int | None = None) -> Params:
        """Each seed as its class initialises it. Raises HusaiError for a target, or if there is no W_dec (d_sae, d_in).

        So it does if the class that it is saved as cannot encode and decode.
        """
        if d_target is not None:
            raise HusaiError(f"architecture '{self.config.architecture}': reconstructs its input, and has no target")
        self.seeds = seeds
        modules = [self._make(d_in, seed) for seed in seeds]
        every = [_tensors(module) for module in modules]
        self.whole = {name for name, value in every[0].items() if not value.is_floating_point()}
        shape = (self.config.d_sae, d_in)
        found = tuple(every[0]["W_dec"].shape) if "W_dec" in every[0] else None
        if found != shape:
            raise HusaiError(
                f"architecture '{self.config.architecture}': the dictionary's atoms are its parameter W_dec of shape (d_sae, "
                f"d_in), here {shape}; it has {'none' if found is None else f'one of shape {found}'}"
            )
        stacked = {name: torch.stack([_stored(own[name]) for own in every]) for name in every[0]}
        params = Params.of({name: torch.zeros(len(seeds), 0) for name in FOUR} | stacked)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            sae = self.finished(params, 0).sae
            codes = ran(sae, "encode", torch.randn(TRIED, d_in, generator=generator("sae-try")), self._asked)
            ran(sae, "decode", codes, self._asked)
        return params

    def init(self, params: Params) -> Params:
        """With what a new latent has, for resampling. Raises HusaiError for a class whose latents cannot be replaced."""
        d_sae, d_in = params.W_dec.shape[1:]
        if params.W_enc.shape[1:] != (d_in, d_sae) or params.b_enc.shape[1:] != (d_sae,):
            raise HusaiError(
                f"training.resample_every: {self.config.architecture} has no W_enc of shape (d_in, d_sae) with b_enc of shape "
                "(d_sae,), so its dead latents cannot be pointed elsewhere; set it to null"
            )
        fresh = _tensors(self._make(d_in, 0))
        return params.adding(**{name: _stored(fresh[name]).expand(value.shape) for name, value in params.more.items()})

    def encode(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        saved = zip(self._saved(params), x, strict=True)
        return torch.stack([ran(one.sae.to(part.device), "encode", part, self._asked) for one, part in saved])

    def training_codes(self, params: Params, x: Tensor) -> Float[Tensor, "seeds batch d_sae"]:
        """Those of the class's training pass at step 0, without dead latents."""
        none = torch.zeros(params.W_dec.shape[:2], dtype=torch.bool, device=x.device)
        return self.losses(params, x, step=0, dead=none).codes

    def decode(
        self, params: Params, codes: Float[Tensor, "seeds batch d_sae"], x: Tensor | None = None
    ) -> Float[Tensor, "seeds batch d_in"]:
        """As the finished SAE decodes; x plays no part."""
        saved = zip(self._saved(params), codes, strict=True)
        return torch.stack([ran(one.sae.to(part.device), "decode", part, self._asked) for one, part in saved])

    def losses(
        self,
        params: Params,
        x: Tensor,
        *,
        step: int,
        dead: Bool[Tensor, "seeds d_sae"],
        target: Tensor | None = None,
    ) -> Losses:
        """What the class's `training_forward_pass` gives of every seed.

        terms: its losses by its names, but mse_loss, and `other`: what else there is in the loss it minimises. seen: its
        buffers after the pass. Raises HusaiError if it fails, or gives codes of another shape.
        """
        if target is not None:
            raise HusaiError(f"architecture '{self.config.architecture}': reconstructs its input and nothing else")
        module = self._skeleton(params.W_dec.shape[-1], x.device)
        parts = {name: value.unbind() for name, value in params.items()}
        done = []
        for seed in range(len(x)):
            own = {name: values[seed] for name, values in parts.items()}
            done.append(self._forward(module, own, x[seed], dead[seed], step, seed))
        names = dict.fromkeys(name for one in done for name in one.terms)
        zero = x.new_zeros(())
        return Losses(
            torch.stack([one.mse for one in done]),
            {name: torch.stack([one.terms.get(name, zero) for one in done]) for name in names},
            torch.stack([one.codes for one in done]),
            {name: torch.stack([one.buffers[name] for one in done]) for name in done[0].buffers},
        )

    def settle(self, params: Params, seen: Mapping[str, Tensor]) -> None:
        """Buffers are what the pass left them as."""
        own = dict(params.items())
        for name, value in seen.items():
            own[name].copy_(value)

    def averaged(self, mean: Params, last: Params) -> Params:
        """Buffers of whole numbers, which have no average, as they are."""
        own = dict(last.items())
        return Params.of({name: own[name] if name in self.whole else value for name, value in mean.items()})

    def finished(self, params: Params, seed: int, normaliser: Normaliser | None = None) -> Saved:
        """One seed as the class that SAELens saves it as, on raw activations where `folded` can make it so."""
        module = self._make(params.W_dec.shape[-1], 0)
        with torch.no_grad():
            for name, value in _tensors(module).items():
                value.copy_(dict(params.items())[name][seed].view(value.shape))
            state = {name: value.detach().clone() for name, value in module.state_dict().items()}
            try:
                module.process_state_dict_for_saving_inference(state)
                config = module.cfg.get_inference_sae_cfg_dict()
                plain = _open(state, config)
            except Exception as error:  # whatever its code raises
                raise self._failed("cannot be saved for inference", error) from error
            if normaliser is None or normaliser.idle:
                return Saved(plain, None)
            sae = None if normaliser.each else folded(lambda: _open(state, config), normaliser)
        return Saved(plain, normaliser) if sae is None else Saved(sae, None)

    def _saved(self, params: Params) -> list[Saved]:
        """Every seed for inference, made once for parameters that change no more."""
        if self.known is not None and self.known[0] is params:
            return self.known[1]
        made = [self.finished(params, seed) for seed in range(len(params.W_dec))]
        if not params.W_dec.requires_grad:
            self.known = params, made
        return made

    def _skeleton(self, d_in: int, device: torch.device) -> Any:
        """A module whose tensors are exchanged for each seed's own in every pass."""
        if self.module is None:
            self.module = self._make(d_in, 0).to(device).train()
        return self.module

    def _make(self, d_in: int, seed: int) -> Any:
        """A module as its class initialises it, from the seed's stream alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator("sae-init", seed).initial_seed())
            return build(self.found, self.config, d_in)

    def _coefficients(self, module: Any, step: int, seed: int) -> dict[str, float]:
        """At their warm-up levels, t of n at step t as in SAELens, times the controller's strength."""
        strength, steered = 1.0, isinstance(self.strength, Tensor)
        given = module.get_coefficients()
        if isinstance(self.strength, Tensor):
            strength = float(self.strength[seed])
        if steered and not given:
            raise HusaiError(
                f"training.target_l0: {self.config.architecture} has no coefficients (get_coefficients) to steer"
            )
        found = {}
        for name, one in given.items():
            value, warm_up = one if isinstance(one, tuple) else (one, 0)
            found[name] = value * strength * (min(1.0, step / warm_up) if warm_up else 1.0)
        return found

    def _forward(
        self, module: Any, own: dict[str, Tensor], x: Tensor, dead: Tensor, step: int, seed: int
    ) -> "_Forward":
        """One seed's pass with its own tensors in the module's place, and its own random numbers."""
        from sae_lens.saes.sae import TrainStepInput

        coefficients = self._coefficients(module, step, seed)
        given = TrainStepInput(
            sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=step, is_logging_step=False
        )
        buffers = {name for name, _ in module.named_buffers()}
        likes = _tensors(module)
        tensors = {
            f"sae.{name}": (own[name].detach().clone() if name in buffers else own[name])
            .view(like.shape)
            .to(like.dtype)
            for name, like in likes.items()
        }
        stream = generator("sae-forward", self.seeds[seed] if self.seeds else seed, step)
        try:
            with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
                torch.manual_seed(stream.initial_seed())
                out, after = torch.func.functional_call(_Pass(module), tensors, (given,))
            codes = out.feature_acts.to_dense() if out.feature_acts.is_sparse else out.feature_acts
            mse = squared_error(out.sae_out[None], x[None])[0]
            terms = {name: value.reshape(()) for name, value in out.losses.items() if name != "mse_loss"}
            terms["other"] = out.loss.reshape(()) - mse - sum(terms.values())
        except Exception as error:  # whatever its code raises
            raise self._failed(f"training_forward_pass failed at step {step}", error) from error
        if codes.shape != (len(x), self.config.d_sae):
            raise HusaiError(
                f"architecture '{self.config.architecture}': training_forward_pass gives feature_acts of shape "
                f"{tuple(codes.shape)}; it must be (batch, d_sae), here {(len(x), self.config.d_sae)}"
            )
        return _Forward(mse, terms, codes, {name: _stored(value) for name, value in after.items()})

    @property
    def _asked(self) -> str:
        return f"architecture '{self.config.architecture}' (d_sae {self.config.d_sae}, settings {self.config.settings})"

    def _failed(self, what: str, error: Exception) -> HusaiError:
        return HusaiError(f"architecture '{self.config.architecture}': {what} ({_told(error)})")


class _Forward(NamedTuple):
    mse: Tensor
    terms: dict[str, Tensor]
    codes: Tensor
    buffers: dict[str, Tensor]


class _Pass(nn.Module):
    """Calls the training pass, and says what the buffers are after it."""

    def __init__(self, sae: Any) -> None:
        super().__init__()
        self.sae = sae

    def forward(self, given: Any) -> tuple[Any, dict[str, Tensor]]:
        out = self.sae.training_forward_pass(given)
        return out, {name: value.detach().clone() for name, value in self.sae.named_buffers()}


def _tensors(module: Any) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _stored(value: Tensor) -> Tensor:
    """As `Params` has it: with an axis, and floating."""
    value = value.detach().clone()
    value = value if value.is_floating_point() else value.double()
    return value.view(1) if value.ndim == 0 else value


def _told(error: Exception) -> str:
    """On one line."""
    return f"{error.__class__.__name__}: {' '.join(str(error).split())[:300]}"


def ran(sae: Any, what: Literal["encode", "decode"], given: Float[Tensor, "n _"], whose: str) -> Float[Tensor, "n _"]:
    """What an SAE of SAELens makes of samples or codes. Raises HusaiError if it fails or gives another shape.

    whose: what the message begins with.
    """
    width = sae.W_dec.shape[what == "decode"]
    try:
        found = getattr(sae, what)(given)
        shape = tuple(found.shape)
    except Exception as error:  # whatever its code raises
        raise HusaiError(
            f"{whose}: {sae.__class__.__name__}.{what} fails on shape {tuple(given.shape)} ({_told(error)})"
        ) from error
    if shape != (len(given), width):
        raise HusaiError(
            f"{whose}: {sae.__class__.__name__}.{what} gives shape {shape} for {tuple(given.shape)}; it must be "
            f"{(len(given), width)}"
        )
    return found


def _open(state: Mapping[str, Tensor], config: dict[str, Any]) -> Any:
    """As `sae_lens.SAE.load_from_disk` makes it of what was saved."""
    from sae_lens.registry import get_sae_class

    kind, config_kind = get_sae_class(config["architecture"])
    sae, own = kind(config_kind.from_dict(config)), {name: value.clone() for name, value in state.items()}
    sae.process_state_dict_for_loading(own)
    sae.load_state_dict(own, assign=True)
    return sae.eval()


def folded(opened: Any, normaliser: Normaliser) -> Any:
    """An SAE on raw activations that does what `opened()` does on normalised ones; None if SAELens cannot make one.

    SAELens folds an affine map of the input into what every SAE has (`fold_activation_whitening`); a class whose encoder
    is another may be none the wiser. So both are compared in float64 on samples around the data's mean and along atoms,
    and what does not agree, or has no code anywhere, is not taken.
    """
    plain, sae = opened().to(dtype=torch.float64), opened().to(dtype=torch.float64)
    d_in, mean = sae.W_dec.shape[1], normaliser.mean.double()
    scale = torch.as_tensor(normaliser.scale, dtype=torch.float64).expand(d_in)
    try:
        sae.fold_activation_whitening(mean, scale.diag(), (1 / scale).diag())
        drawn = torch.randn(CHECKED, d_in, generator=generator("sae-fold"), dtype=torch.float64)
        atoms = nn.functional.normalize(plain.W_dec[:CHECKED].double(), dim=-1) * d_in**0.5
        z = torch.cat([*(size * drawn for size in SIZES), atoms])
        expected, codes = plain.encode(z), sae.encode(z / scale + mean)
        pairs = [(expected, codes), (plain.decode(expected), (sae.decode(codes) - mean) * scale)]
    except Exception:  # it cannot be folded, in whatever way it says so
        return None
    if not expected.any() or any(wanted.shape != found.shape for wanted, found in pairs):
        return None
    agree = [(found - wanted).norm(dim=-1) <= AGREE * wanted.norm(dim=-1).clamp(min=1.0) for wanted, found in pairs]
    share = float((agree[0] & agree[1]).double().mean())
    return sae.to(dtype=torch.float32) if share >= SHARE else None
