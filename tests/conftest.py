"""Fixtures that several test files share."""

import math
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from husai.config import (
    ModelConfig,
    RecurrentConfig,
    TaskConfig,
    TransformerConfig,
    TransformerTrainingConfig,
    WalksConfig,
)
from husai.recurrent.model import Recurrent
from husai.recurrent.walks import Walks
from husai.runs import load_model
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.model import Transformer, init_params
from husai.truth.fourier import characters

sys.path.append(str(Path(__file__).parent))  # for modules that worker processes import too
torch.set_num_threads(1)  # these models are small, and tests share the machine


@pytest.fixture(scope="session")
def reference() -> Callable[[str], tuple[Transformer, Task]]:
    """Reference model and task by name, each read once."""

    @lru_cache
    def load(name: str) -> tuple[Transformer, Task]:
        model, task, _ = load_model(name)[:3]
        return model, task

    return load


@pytest.fixture(scope="session")
def fresh() -> Callable[..., Transformer]:
    """A small untrained transformer; biases and LayerNorm gains, where the layout has them, are random too."""

    def build(layout: str = "abe", p: int = 11, seed: int = 0) -> Transformer:
        shape = TransformerConfig(layout=layout, d_model=16, n_heads=2, d_mlp=24)
        params = init_params(shape, p, generator=generator("test-init", seed))
        noise = generator("test-noise", seed)
        for name, value in params.items():
            if name.rsplit(".", 1)[-1] in ("w", "b") or ".b_" in name:
                params[name] = value + 0.3 * torch.randn(value.shape, generator=noise)
        return Transformer(params, layout, p, name="fresh")

    return build


@pytest.fixture(scope="session")
def recipe() -> Callable[..., ModelConfig]:
    """A training of a tiny transformer that takes a fraction of a second; keywords set fields of `training`."""

    def build(p: int = 11, layout: str = "abe", **training: object) -> ModelConfig:
        quick = {"batch_size": 20, "steps": 12, "lr": 3e-3, "log_every": 4, "warmup_steps": 2}
        return ModelConfig(
            task=TaskConfig(p=p),
            transformer=TransformerConfig(layout=layout, d_model=16, n_heads=2, d_mlp=24),
            training=TransformerTrainingConfig(**(quick | training)),
        )

    return build


@pytest.fixture(scope="session")
def small_network() -> Callable[..., RecurrentConfig]:
    """A training of a tiny recurrent network that takes a fraction of a second; keywords set fields of `training`."""

    def build(p: int = 5, cell: str = "gru", length: int = 2, **training: object) -> RecurrentConfig:
        quick = {"batch_size": 16, "steps": 12, "lr": 1e-2, "log_every": 4, "warmup_steps": 2}
        shape, walks = {"cell": cell, "d_hidden": 16}, {"length": length}
        return RecurrentConfig.parse({"p": p, "recurrent": shape, "walks": walks, "training": quick | training})

    return build


@pytest.fixture(scope="session")
def rotating() -> Callable[..., Recurrent]:
    """A GRU whose weights are written down: its state rotates by the input in the plane of each key, so its sum is exact.

    Six units a key hold the waves of the state before, as they are and times (1 + .9 cos w_k x)/2 and (1 + .9 sin w_k x)/2,
    all so small that tanh is linear; one more unit is constant. No update gate. With c, s = cos, sin of w_k·previous:
    units c, s, c·(…cos), s·(…cos), c·(…sin), s·(…sin), from which the waves of previous + input are linear.
    """

    def build(p: int = 29, keys: tuple[int, ...] = (1, 8, 12), length: int = 4) -> Recurrent:
        d, size, x = 6 * len(keys) + 1, 1e-4, torch.arange(p)

        def filled(*shape: int, value: float = 0.0) -> torch.Tensor:
            return torch.full(shape, value, dtype=torch.float64)

        reset, candidate, readout = filled(d, p, value=50), filled(d, d), filled(d, p)
        constant, start, waves = filled(d), filled(d), filled(d, 2 * len(keys))
        for i, k in enumerate(keys):
            u = 6 * i
            turn = characters(k, x, p).T
            reset[u + 2 : u + 6] = ((1 + 0.9 * turn) / 2).logit().repeat_interleave(2, dim=0)
            waves[[u + 2, u, u + 5, u + 1], 2 * i] = reset.new_tensor([2, -1, -2, 1]) / 0.9
            waves[[u + 4, u, u + 3, u + 1], 2 * i + 1] = reset.new_tensor([2, -1, 2, -1]) / 0.9
            readout += waves[:, 2 * i : 2 * i + 2] @ turn
            for unit in range(u, u + 6):
                candidate[unit] = waves[:, 2 * i + (unit - u) % 2]
            candidate[u : u + 6 : 2, -1], constant[u : u + 6 : 2] = -1, size  # from zeros, the state is 0
        start[-1] = size
        margin = min(sum(1 - math.cos(2 * math.pi * k * t / p) for k in keys) for t in range(1, p))
        params = {
            "weight_ih_l0": torch.cat([reset, filled(2 * d, p)]),
            "weight_hh_l0": torch.cat([filled(2 * d, d), candidate]),
            "bias_ih_l0": torch.cat([filled(d), filled(d, value=-50), start]),
            "bias_hh_l0": torch.cat([filled(2 * d), constant]),
            "readout": readout * 30 / margin / size,
        }
        return Recurrent(params, "gru", Walks(p, WalksConfig(length=length)), name="rotating")

    return build
