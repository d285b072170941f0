"""Transcoders: sparse codes of one activation that reconstruct another, with or without a skip connection.

ŷ = f(x)·W_dec + b_dec (Dunefsky et al. 2024, arXiv 2406.11944, §3), and with a skip connection + x·W_skipᵀ, where W_skip
starts at 0 (Paulo et al. 2025, "Transcoders Beat SAEs for Interpretability", arXiv 2501.18823). Losses are those of
ReLU and TopK, with y in the place of x; atoms lie in y's space. The same with y = x is the SAE with a skip connection.
"""

from husai.config import L1Config, TopKSkipSAEConfig, TopKSkipTranscoderConfig, TopKTranscoderConfig
from husai.sae.relu import ReLU
from husai.sae.topk import TopK


class Transcoder(ReLU[L1Config]):
    """ReLU of x·W_enc + b_enc, as SAELens has it; it trains with the L1 penalty of the ReLU SAE."""

    saelens = "transcoder"


class SkipTranscoder(ReLU[L1Config]):
    """The same with a skip connection: a transcoder's or, if it reconstructs its own input, an SAE's."""

    saelens = "skip_transcoder"


class TopKTranscoder(TopK[TopKTranscoderConfig]):
    """The k largest of x·W_enc + b_enc, with AuxK on what is left of y. SAELens has no such class."""

    saelens = "topk_transcoder"


class TopKSkipTranscoder(TopK[TopKSkipTranscoderConfig | TopKSkipSAEConfig]):
    """The same with a skip connection."""

    saelens = "topk_skip_transcoder"
