"""Frozen, typed configs: YAML in, unknown keys refused, content hash out. One dial per idea.

A config is a value: it never changes after it was read, it says everything that determines a result, and its hash is
the identity of the run (`content_hash`). Where things run (device, folders, trackers) is not part of a config.
"""

from husai.config.architectures import (
    SAE_CONFIGS,
    AbsTopKConfig,
    BaseSAEConfig,
    BatchConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    KConfig,
    MatryoshkaConfig,
    ReLUConfig,
    SAEKind,
    TopKConfig,
)
from husai.config.base import Config, content_hash, override, read_yaml
from husai.config.models import (
    CompiledConfig,
    ModelConfig,
    OptimiserConfig,
    Recipe,
    RecurrentConfig,
    RecurrentShape,
    TaskConfig,
    Trainable,
    TransformerConfig,
    TransformerTrainingConfig,
    WalksConfig,
    load_recipe,
    load_trainable,
)
from husai.config.registered import AnySAE, RegisteredConfig
from husai.config.sae import SAEConfig, SAETrainingConfig
from husai.config.samples import CirclesConfig, CirclesSource, ControlConfig, PlantedConfig, PlantedSource
from husai.config.suite import AnalysisConfig, Subject, SuiteConfig

__all__ = [
    "SAE_CONFIGS",
    "AbsTopKConfig",
    "AnalysisConfig",
    "AnySAE",
    "BaseSAEConfig",
    "BatchConfig",
    "BatchTopKConfig",
    "CirclesConfig",
    "CirclesSource",
    "CompiledConfig",
    "Config",
    "ControlConfig",
    "GatedConfig",
    "JumpReLUConfig",
    "KConfig",
    "MatryoshkaConfig",
    "ModelConfig",
    "OptimiserConfig",
    "PlantedConfig",
    "PlantedSource",
    "ReLUConfig",
    "Recipe",
    "RecurrentConfig",
    "RecurrentShape",
    "RegisteredConfig",
    "SAEConfig",
    "SAEKind",
    "SAETrainingConfig",
    "Subject",
    "SuiteConfig",
    "TaskConfig",
    "TopKConfig",
    "Trainable",
    "TransformerConfig",
    "TransformerTrainingConfig",
    "WalksConfig",
    "content_hash",
    "load_recipe",
    "load_trainable",
    "override",
    "read_yaml",
]
