"""The one list of architectures; whatever else SAELens knows is `Registered`."""

from typing import Any

from husai.config import AnySAE, RegisteredConfig
from husai.sae.abstopk import AbsTopK
from husai.sae.archetypal import Archetypal
from husai.sae.architecture import Architecture
from husai.sae.baselines import ICA, NMF, PCA, KMeans
from husai.sae.batchtopk import BatchTopK
from husai.sae.blocktopk import BlockTopK
from husai.sae.frozen import Frozen
from husai.sae.gated import Gated
from husai.sae.jumprelu import JumpReLU
from husai.sae.matryoshka import Matryoshka
from husai.sae.registered import Registered
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
    "blocktopk": BlockTopK,
    "archetypal": Archetypal,
    "frozen": Frozen,
    "pca": PCA,
    "ica": ICA,
    "nmf": NMF,
    "kmeans": KMeans,
}


def architecture_of(config: AnySAE) -> Architecture[Any]:
    """The functions that belong to a config. Raises HusaiError for a class of SAELens that cannot be used."""
    if isinstance(config, RegisteredConfig):
        return Registered(config)
    return ARCHITECTURES[config.architecture](config)
