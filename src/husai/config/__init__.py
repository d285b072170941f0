"""Frozen, typed configs: YAML in, unknown keys refused, content hash out. One dial per idea.

A config is a value: it never changes after it was read, it says everything that determines a result, and its hash is
the identity of the run (`content_hash`). Where things run (device, folders) is not part of a config; where curves go
(`tracking`) and other settings that change no result are in no hash and no file.
"""

from husai.config.architectures import (
    SAE_CONFIGS,
    AbsTopKConfig,
    BatchConfig,
    BatchTopKConfig,
    BlockTopKConfig,
    GatedConfig,
    JumpReLUConfig,
    L1Config,
    MatryoshkaConfig,
    ReLUConfig,
    SAEKind,
    SkipSAEConfig,
    SkipTranscoderConfig,
    TopKConfig,
    TopKSkipSAEConfig,
    TopKSkipTranscoderConfig,
    TopKTranscoderConfig,
    TranscoderConfig,
)
from husai.config.base import Config, content_hash, override
from husai.config.baselines import (
    ArchetypalConfig,
    FittedConfig,
    FrozenConfig,
    ICAConfig,
    KMeansConfig,
    NMFConfig,
    PCAConfig,
    SparsifiedConfig,
)
from husai.config.kind import BaseSAEConfig, KConfig
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
from husai.config.text import read_yaml
from husai.config.tracking import TrackingConfig

__all__ = [
    "SAE_CONFIGS",
    "AbsTopKConfig",
    "AnalysisConfig",
    "AnySAE",
    "ArchetypalConfig",
    "BaseSAEConfig",
    "BatchConfig",
    "BatchTopKConfig",
    "BlockTopKConfig",
    "CirclesConfig",
    "CirclesSource",
    "CompiledConfig",
    "Config",
    "ControlConfig",
    "FittedConfig",
    "FrozenConfig",
    "GatedConfig",
    "ICAConfig",
    "JumpReLUConfig",
    "KConfig",
    "KMeansConfig",
    "L1Config",
    "MatryoshkaConfig",
    "ModelConfig",
    "NMFConfig",
    "OptimiserConfig",
    "PCAConfig",
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
    "SkipSAEConfig",
    "SkipTranscoderConfig",
    "SparsifiedConfig",
    "Subject",
    "SuiteConfig",
    "TaskConfig",
    "TopKConfig",
    "TopKSkipSAEConfig",
    "TopKSkipTranscoderConfig",
    "TopKTranscoderConfig",
    "TrackingConfig",
    "Trainable",
    "TranscoderConfig",
    "TransformerConfig",
    "TransformerTrainingConfig",
    "WalksConfig",
    "content_hash",
    "load_recipe",
    "load_trainable",
    "override",
    "read_yaml",
]
