"""SAEs of a user, written against SAELens alone: what the tests bring along."""

from dataclasses import dataclass

import sae_lens
import torch
from sae_lens.saes.sae import SAE, SAEConfig, TrainCoefficientConfig, TrainingSAE, TrainingSAEConfig


@dataclass
class LogL1Config(TrainingSAEConfig):
    coefficient: float = 1.0
    warm_up_steps: int = 0

    @classmethod
    def architecture(cls):
        return "log_l1"

    def get_inference_config_class(self):
        return sae_lens.StandardSAEConfig


class LogL1(TrainingSAE[LogL1Config]):
    """ReLU with Σ log(1 + f) for a penalty, on codes after dropout; it counts its passes."""

    def initialize_weights(self):
        super().initialize_weights()
        self.b_enc = torch.nn.Parameter(torch.zeros(self.cfg.d_sae))
        self.register_buffer("passes", torch.tensor(0), persistent=False)

    def encode_with_hidden_pre(self, x):
        hidden = self.process_sae_in(x) @ self.W_enc + self.b_enc
        return hidden.relu(), hidden

    def get_coefficients(self):
        return {"log_l1": TrainCoefficientConfig(self.cfg.coefficient, self.cfg.warm_up_steps)}

    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        self.passes += 1
        kept = torch.nn.functional.dropout(feature_acts, 0.1)
        return {"log_l1": step_input.coefficients["log_l1"] * kept.log1p().sum(-1).mean()}


@dataclass
class CurvedSAEConfig(SAEConfig):
    @classmethod
    def architecture(cls):
        return "curved"


def curved(sae, x):
    return (torch.tanh(x) @ sae.W_enc).relu()


@dataclass
class OddSAEConfig(CurvedSAEConfig):
    @classmethod
    def architecture(cls):
        return "odd"


class CurvedSAE(SAE[CurvedSAEConfig]):
    """Its encoder is no function of x @ W_enc, which SAELens' folding does not know."""

    def encode(self, x):
        return curved(self, x)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec + self.b_dec


class OddSAE(CurvedSAE):
    """Saved, it forgets a latent."""

    def encode(self, x):
        return super().encode(x)[:, 1:]


@dataclass
class CurvedConfig(TrainingSAEConfig):
    @classmethod
    def architecture(cls):
        return "curved"


class Curved(TrainingSAE[CurvedConfig]):
    def encode_with_hidden_pre(self, x):
        return curved(self, x), x

    def get_coefficients(self):
        return {}

    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        return 0.1 * feature_acts.sum(-1).mean()  # a tensor, which SAELens takes too


class Noisy(Curved):
    """It reads its samples through noise."""

    def encode_with_hidden_pre(self, x):
        return super().encode_with_hidden_pre(x + torch.randn_like(x))


class Buffered(Curved):
    """Its encoder and bias are no parameters; the bias counts passes."""

    def initialize_weights(self):
        super().initialize_weights()
        W_enc = self.W_enc.detach().clone()
        del self.W_enc
        self.register_buffer("W_enc", W_enc)
        self.register_buffer("b_enc", torch.zeros(self.cfg.d_sae), persistent=False)

    def calculate_aux_loss(self, step_input, feature_acts, hidden_pre, sae_out):
        self.b_enc += 1
        return super().calculate_aux_loss(step_input, feature_acts, hidden_pre, sae_out)


@dataclass
class OddConfig(CurvedConfig):
    def get_inference_config_class(self):
        return OddSAEConfig


class Odd(Curved):
    pass


class Unfinished(TrainingSAE[CurvedConfig]):
    def encode_with_hidden_pre(self, x):
        return curved(self, x), x


class Failing(Curved):
    def training_forward_pass(self, step_input):
        raise ValueError("out of cheese")


class Wide(Curved):
    def encode_with_hidden_pre(self, x):
        codes = curved(self, x)
        return torch.cat([codes, codes], dim=-1), x

    def decode(self, feature_acts):
        return super().decode(feature_acts[:, : self.cfg.d_sae])


class Tied(Curved):
    def initialize_weights(self):
        super().initialize_weights()
        self.atoms, self.W_dec = self.W_dec, None


class Unregistered(Curved):
    pass


@dataclass
class UnsavableConfig(TrainingSAEConfig):
    @classmethod
    def architecture(cls):
        return "unsavable"


class Unsavable(Curved):
    pass


class NoModule:
    pass


sae_lens.register_sae_training_class("log_l1", LogL1, LogL1Config)
sae_lens.register_sae_class("curved", CurvedSAE, CurvedSAEConfig)
sae_lens.register_sae_training_class("curved", Curved, CurvedConfig)
sae_lens.register_sae_training_class("noisy", Noisy, CurvedConfig)
sae_lens.register_sae_training_class("buffered", Buffered, CurvedConfig)
sae_lens.register_sae_class("odd", OddSAE, OddSAEConfig)
sae_lens.register_sae_training_class("odd", Odd, OddConfig)
sae_lens.register_sae_training_class("unfinished", Unfinished, CurvedConfig)
sae_lens.register_sae_training_class("failing", Failing, CurvedConfig)
sae_lens.register_sae_training_class("wide", Wide, CurvedConfig)
sae_lens.register_sae_training_class("tied", Tied, CurvedConfig)
sae_lens.register_sae_training_class("unsavable", Unsavable, UnsavableConfig)
sae_lens.register_sae_training_class("no_module", NoModule, CurvedConfig)
