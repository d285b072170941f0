"""SAEs of a user, written against SAELens alone, for the tests of what is brought along."""

from dataclasses import dataclass

import sae_lens
import torch
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainingSAEConfig, TrainStepInput


@dataclass
class LogL1Config(TrainingSAEConfig):
    coefficient: float = 1.0
    coefficient_warm_up_steps: int = 0

    @classmethod
    def architecture(cls):
        return "log_l1"

    def get_inference_config_class(self):
        return sae_lens.StandardSAEConfig


class LogL1(TrainingSAE[LogL1Config]):
    """ReLU with Σ log(1 + f) for a penalty, codes after dropout, and a count of its passes."""

    def initialize_weights(self):
        super().initialize_weights()
        self.b_enc = torch.nn.Parameter(torch.zeros(self.cfg.d_sae))
        self.register_buffer("passes", torch.tensor(0), persistent=False)

    def encode_with_hidden_pre(self, x):
        hidden = self.process_sae_in(x) @ self.W_enc + self.b_enc
        return hidden.relu(), hidden

    def get_coefficients(self):
        return {"log_l1": TrainCoefficientConfig(self.cfg.coefficient, self.cfg.coefficient_warm_up_steps)}

    def calculate_aux_loss(self, step_input: TrainStepInput, feature_acts, hidden_pre, sae_out):
        self.passes += 1
        kept = torch.nn.functional.dropout(feature_acts, 0.1)
        return {"log_l1": step_input.coefficients["log_l1"] * kept.log1p().sum(-1).mean()}


sae_lens.register_sae_training_class("log_l1", LogL1, LogL1Config)
