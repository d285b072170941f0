"""Who takes part in the benchmark of SAEs: ours, SAELens, dictionary_learning, sparsify and the floor, on one problem."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from husai.config import SAE_CONFIGS, SAEConfig
from husai.console import say
from husai.sae.params import Params, init_params, squared_error
from husai.sae.trainer import Trainer
from husai.seeding import generator

LR, L1, L0 = 1e-3, 1.0, 1.0
KINDS = ("topk", "batchtopk", "relu", "jumprelu")
PRODUCTS = {"topk": 1, "batchtopk": 1, "relu": 5, "jumprelu": 5}  # the floor: encoder product alone, or all five
DEAD = 1000  # steps without firing after which latents count as dead, with everyone


@dataclass(frozen=True)
class Problem:
    """What is learnt from: samples of `k` active among d_sae planted directions, in batches, on a device."""

    batch: int = 4096
    d_in: int = 128
    d_sae: int = 1024
    k: int = 32
    samples: int = 32768
    device: str = "cpu"


class Contestant(NamedTuple):
    """step: one training step, the drawing of its batch included. error: squared error of a batch as training sees it."""

    step: Callable[[], object]
    error: Callable[[Tensor], float]


@cache
def planted(problem: Problem) -> Tensor:
    """Samples with k of d_sae random directions active, and a little noise."""
    g = generator("benchmark-sae", 0)
    atoms = init_params(problem.d_in, problem.d_sae, (7,)).W_dec[0]
    parts = []
    for _ in range(problem.samples // problem.batch):
        active = torch.rand(problem.batch, problem.d_sae, generator=g).topk(problem.k, dim=-1).indices
        strength = torch.rand(problem.batch, problem.k, generator=g) + 0.5
        parts.append(torch.zeros(problem.batch, problem.d_sae).scatter(1, active, strength) @ atoms)
    x = torch.cat(parts)
    return x + 0.05 * torch.randn(x.shape, generator=g)


def trainer_of(kind: str, problem: Problem, seeds: int = 1) -> Trainer:
    """Ours. ReLU has free decoder norms, as SAELens' has."""
    fields = SAE_CONFIGS[kind].model_fields
    wanted = {"k": problem.k, "dead_steps": DEAD}
    wanted |= {"l1_coefficient": L1, "l1_warmup_steps": 0, "l0_coefficient": L0, "l0_warmup_steps": 0}
    sae = {"architecture": kind, "d_sae": problem.d_sae}
    sae |= {name: value for name, value in wanted.items() if name in fields}
    if kind in ("relu", "jumprelu"):
        sae["decoder_norm"] = "weighted"
    training = {"steps": 10**6, "batch_size": problem.batch, "lr": LR, "warmup_steps": 0, "decay_fraction": 0.0}
    numbers = tuple(range(seeds))
    config = SAEConfig.parse({"sae": sae, "training": training, "init_seeds": numbers, "data_seeds": numbers})
    return Trainer(planted(problem), config, device=problem.device)


def ours(kind: str, problem: Problem) -> Contestant:
    trainer = trainer_of(kind, problem)

    def error(x: Tensor) -> float:
        with torch.no_grad():
            dead = torch.zeros_like(trainer.silent, dtype=torch.bool)
            return float(trainer.architecture.losses(trainer.params, x[None], step=trainer.step, dead=dead).mse)

    return Contestant(trainer.advance, error)


def drawing(kind: str, problem: Problem) -> tuple[Callable[[], Tensor], Params]:
    """The batches our trainer draws, and the parameters it starts from, for a peer."""
    trainer, step = trainer_of(kind, problem), iter(range(10**9))
    return lambda: trainer.batches.at(next(step))[0], trainer.params.map(lambda value: value.detach()[0].clone())


def sae_lens(kind: str, problem: Problem) -> Contestant:
    """The statements of SAETrainer._train_step around the public training_forward_pass."""
    import sae_lens as library
    from sae_lens.saes.sae import TrainStepInput

    draw, start = drawing(kind, problem)
    name = {"topk": "TopK", "batchtopk": "BatchTopK", "relu": "Standard", "jumprelu": "JumpReLU"}[kind]
    settings: dict[str, Any] = {"k": problem.k} if "topk" in kind else {}
    coefficients = {"relu": {"l1": L1}, "jumprelu": {"l0": L0}}.get(kind, {})
    make = getattr(library, f"{name}TrainingSAEConfig")
    config = make(d_in=problem.d_in, d_sae=problem.d_sae, device=problem.device, **settings)
    sae = getattr(library, f"{name}TrainingSAE")(config)
    sae.load_state_dict(dict(start.items()), strict=False)
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR, betas=(0.9, 0.999))
    silent, frequency = torch.zeros(2, problem.d_sae, device=problem.device)

    def forward(x: Tensor) -> Any:
        dead = (silent > DEAD).bool()
        return sae.training_forward_pass(
            TrainStepInput(
                sae_in=x, coefficients=coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False
            )
        )

    def step() -> None:
        out = forward(draw())
        with torch.no_grad():
            firing = out.feature_acts.bool().float()
            fired = firing.sum(-2).bool()
            fired = fired.to_dense() if fired.is_sparse else fired
            silent.add_(1)
            silent[fired] = 0
            frequency.add_(firing.sum(0))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return Contestant(step, lambda x: float(forward(x).losses["mse_loss"].detach()))


def dictionary_learning(kind: str, problem: Problem) -> Contestant:
    """Its trainers' update()."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers.standard import StandardTrainer  # pyright: ignore[reportMissingImports]
    from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]

    draw, start = drawing(kind, problem)
    common = {
        "steps": 10**6,
        "activation_dim": problem.d_in,
        "dict_size": problem.d_sae,
        "layer": 0,
        "lm_name": "none",
        "lr": LR,
    }
    common |= {"warmup_steps": 0, "device": problem.device}
    if kind == "relu":
        trainer: Any = StandardTrainer(**common, l1_penalty=L1, sparsity_warmup_steps=None)
    else:
        trainer = {"topk": TopKTrainer, "batchtopk": BatchTopKTrainer}[kind](**common, k=problem.k)
    with torch.no_grad():
        trainer.ae.encoder.weight.copy_(start.W_enc.T)
        trainer.ae.decoder.weight.copy_(start.W_dec.T)
    number = iter(range(1, 10**9))  # at step 0 it would set b_dec to a median

    def error(x: Tensor) -> float:
        with torch.no_grad():
            codes = trainer.ae.encode(x) if kind == "relu" else trainer.ae.encode(x, use_threshold=False)
            return float(squared_error(trainer.ae.decode(codes)[None], x[None]))

    return Contestant(lambda: trainer.update(next(number), draw()), error)


def sparsify(kind: str, problem: Problem) -> Contestant:
    """Its SparseCoder, and its trainer's statements around an optimiser step, with Adam."""
    with contextlib.redirect_stdout(io.StringIO()):
        from sparsify import SparseCoder, SparseCoderConfig  # pyright: ignore[reportMissingImports]

    draw, start = drawing(kind, problem)
    coder: Any = SparseCoder(problem.d_in, SparseCoderConfig(num_latents=problem.d_sae, k=problem.k))
    with torch.no_grad():
        coder.encoder.weight.copy_(start.W_enc.T)
        coder.W_dec.copy_(start.W_dec)
    optimiser = torch.optim.Adam(coder.parameters(), lr=LR)
    silent = torch.zeros(problem.d_sae, dtype=torch.long)

    def step() -> None:
        x = draw()
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=silent > 10_000_000)
        (out.fvu + out.auxk_loss).backward()
        silent.add_(len(x))
        silent[out.latent_indices.flatten()] = 0
        coder.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    def error(x: Tensor) -> float:
        with torch.no_grad():
            return float(squared_error(coder(x).sae_out[None], x[None]))

    return Contestant(step, error)


def floor(kind: str, problem: Problem) -> Contestant:
    """The dense products of a step, nothing else."""
    x, W = torch.randn(problem.batch, problem.d_in), torch.randn(problem.d_in, problem.d_sae)
    hidden, back = torch.randn(problem.batch, problem.d_sae), W.T.contiguous()

    def products() -> None:
        torch.mm(x, W)
        if PRODUCTS[kind] == 5:
            torch.mm(hidden, back)
            torch.mm(x, back.T)
            torch.mm(hidden.T, x)
            torch.mm(x.T, hidden)

    return Contestant(products, lambda _: float("nan"))


MAKERS: dict[str, Callable[[str, Problem], Contestant]] = {
    "ours": ours,
    "SAELens": sae_lens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
    "floor": floor,
}
PACKAGES = {"SAELens": "sae-lens", "dictionary_learning": "dictionary-learning", "sparsify": "eai-sparsify"}
MODULES = {"SAELens": "sae_lens", "dictionary_learning": "dictionary_learning", "sparsify": "sparsify"}
HAS = {"dictionary_learning": ("topk", "batchtopk", "relu"), "sparsify": ("topk",)}


def names_for(kind: str) -> list[str]:
    """Who can take part: installed, and with this architecture."""
    names = []
    for name in MAKERS:
        if kind not in HAS.get(name, KINDS):
            continue
        if name in MODULES and find_spec(MODULES[name]) is None:
            say(f"{kind}: {name} is not installed; skipped")
        else:
            names.append(name)
    return names
