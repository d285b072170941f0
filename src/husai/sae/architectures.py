"""The one list of architectures."""

from typing import Any

from husai.config import SAEKind
from husai.sae.abstopk import AbsTopK
from husai.sae.architecture import Architecture
from husai.sae.batchtopk import BatchTopK
from husai.sae.gated import Gated
from husai.sae.jumprelu import JumpReLU
from husai.sae.matryoshka import Matryoshka
from husai.sae.relu import ReLU
from husai.sae.topk import TopK
from husai.sae.transcoder import SkipTranscoder, TopKSkipTranscoder, TopKTranscoder, Transcoder

ARCHITECTURES: dict[str, type[Architecture[Any]]] = {
    "topk": TopK,
    "relu": ReLU,
    "jumprelu": JumpReLU,
    "batchtopk": BatchTopK,
    "matryoshka": Matryoshka,
    "gated": Gated,
    "abstopk": AbsTopK,
    "transcoder": Transcoder,
    "skip_transcoder": SkipTranscoder,
    "skip_sae": SkipTranscoder,
    "topk_transcoder": TopKTranscoder,
    "topk_skip_transcoder": TopKSkipTranscoder,
    "topk_skip_sae": TopKSkipTranscoder,
}


def architecture_of(config: SAEKind) -> Architecture[Any]:
    """The functions that belong to a config."""
    return ARCHITECTURES[config.architecture](config)
