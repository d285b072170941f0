"""Fixtures that several test files share."""

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch

from husai.config import ModelConfig, TaskConfig, TransformerConfig, TransformerTrainingConfig
from husai.runs import load_model
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.model import Transformer, init_params

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
