"""SAEs that other libraries saved, as Dictionaries: sparsify's folders and dictionary_learning's. (docs/method.md)

Each format's own library defines what its files compute; here it is computed in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from husai.errors import HusaiError
from husai.sae.dictionary import PART, Dictionary
from husai.sae.formats import (
    DICTIONARY_LEARNING,
    SPARSIFY,
    read_mapping,
    read_weights,
    require_shapes,
    whole_number,
)
from husai.sae.topk import keep_largest

Select = Callable[[Float[Tensor, "n d_sae"]], Float[Tensor, "n d_sae"]]
Tensors = Mapping[str, Tensor]


class Parts(NamedTuple):
    """f = select((x − centre)·W_encᵀ + b_enc), x̂ = f·W_dec + b_dec. architecture: its name here.

    centre: None where the encoder sees x.
    """

    architecture: str
    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, "d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, "d_out"]
    select: Select
    centre: Float[Tensor, "d_in"] | None

    def dictionary(
        self, meta: dict[str, object], W_skip: Float[Tensor, "d_out d_in"] | None = None, *, paired: bool = False
    ) -> Dictionary:
        """paired: it reconstructs another activation than it encodes. W_skip: a linear map of x that is added."""

        def encode(x: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.cat([self._codes(part.float()) for part in x.split(PART)])

        def skip(x: Tensor) -> Tensor:
            assert W_skip is not None
            return x.float() @ W_skip.T

        return Dictionary(
            self.W_dec,
            encode,
            lambda codes: codes @ self.W_dec + self.b_dec,
            {"architecture": self.architecture, **meta},
            skip=None if W_skip is None else skip,
            d_source=self.W_enc.shape[1] if paired else None,
            W_enc=self.W_enc,
        )

    def _codes(self, x: Tensor) -> Tensor:
        return self.select((x if self.centre is None else x - self.centre) @ self.W_enc.T + self.b_enc)


def largest(k: int) -> Select:
    return lambda scores: keep_largest(scores, k)


def above(threshold: Tensor) -> Select:
    """ReLU of what exceeds the threshold (one for all, or one each)."""
    return lambda scores: scores.relu() * (scores.relu() > threshold)


def largest_of_groups(k: int) -> Select:
    """ReLU of the largest in each of k groups of neighbours."""

    def select(scores: Tensor) -> Tensor:
        values, indices = scores.relu().unflatten(-1, (k, -1)).max(-1, keepdim=True)
        grouped = torch.zeros_like(scores).unflatten(-1, (k, -1))
        return grouped.scatter(-1, indices, values).flatten(-2)

    return select


# --- sparsify ---


def load_sparsify(folder: Path) -> Dictionary:
    """A folder of EleutherAI's sparsify: a SparseCoder with TopK or GroupMax, a transcoder too, skip connection or not.

    Settings of its training (multi_topk, normalize_decoder) do not change what it computes. Raises HusaiError for what
    is missing, damaged, contradictory or not known.
    """
    where, path = folder / SPARSIFY.config, folder / SPARSIFY.weights
    config = read_mapping(where)
    d_in, k = whole_number(config, "d_in", where), whole_number(config, "k", where)
    n = config.get("num_latents") or d_in * whole_number(config, "expansion_factor", where)
    n = whole_number({"num_latents": n}, "num_latents", where)
    activation, skips, pairs = config.get("activation", "topk"), config.get("skip_connection"), config.get("transcode")
    if activation not in ("topk", "groupmax") or config.get("signed"):
        found = "signed TopK" if config.get("signed") else repr(activation)
        raise HusaiError(f"{where}: its activation is {found}; allowed are topk and groupmax")
    if k > n or (activation == "groupmax" and n % k):
        divide = " and divide their number" if activation == "groupmax" else ""
        raise HusaiError(f"{where}: 'k' is {k} of {n} latents; it must be at most that{divide}")
    shapes = {"encoder.weight": (n, d_in), "encoder.bias": (n,), "W_dec": (n, d_in), "b_dec": (d_in,)}
    shapes |= {"W_skip": (d_in, d_in)} if skips else {}
    tensors = read_weights(path, list(shapes))
    require_shapes(tensors, shapes, path)
    W_enc, b_enc, W_dec, b_dec, *more = tensors.values()
    select = largest(k) if activation == "topk" else largest_of_groups(k)
    parts = Parts(activation, W_enc, b_enc, W_dec, b_dec, select, None if pairs else b_dec)
    meta: dict[str, object] = {"format": SPARSIFY.name, "k": float(k)}
    return parts.dictionary(meta, more[0] if more else None, paired=bool(pairs))


# --- dictionary_learning ---


def load_dictionary_learning(folder: Path) -> Dictionary:
    """A folder of dictionary_learning (Marks, Karvonen & Mueller): the classes in `CLASSES`.

    As in its `load_dictionary`, decoder norms of an AutoEncoder are folded into its encoder, thresholds decide where a
    class has them, and TopK takes the k largest. Raises HusaiError for what is missing, damaged, contradictory or not known.
    """
    where, path = folder / DICTIONARY_LEARNING.config, folder / DICTIONARY_LEARNING.weights
    trainer = read_mapping(where).get("trainer")
    kind = trainer.get("dict_class") if isinstance(trainer, dict) else None
    if not isinstance(trainer, dict) or kind not in CLASSES:
        allowed = ", ".join(CLASSES)
        raise HusaiError(f"{where}: its trainer.dict_class is {kind!r}; allowed are {allowed}")
    names, assemble = CLASSES[kind]
    tensors = read_weights(path, names)
    if "k" in tensors:
        k = whole_number(trainer, "k", where, int(tensors["k"]))
        if k != int(tensors["k"]):
            raise HusaiError(f"{where}: 'k' is {k}, but {int(tensors['k'])} in {path.name}")
    encoder = tensors["W_enc"].T if "W_enc" in tensors else tensors["encoder.weight"]
    n, d = encoder.shape if encoder.ndim == 2 else (0, 0)
    stated = tuple(trainer.get(key, size) for key, size in (("dict_size", n), ("activation_dim", d)))
    if stated != (n, d):
        raise HusaiError(f"{where}: says {stated[0]} latents of {stated[1]} dimensions; {path.name} holds {n} of {d}")
    require_shapes(tensors, _shapes(names, n, d), path)
    known = {
        "model_name": "lm_name",
        "layer": "layer",
        "submodule_name": "submodule_name",
        "init_seed": "seed",
        "k": "k",
    }
    meta = {name: trainer[key] for name, key in known.items() if trainer.get(key) is not None}
    return assemble(tensors).dictionary({"format": DICTIONARY_LEARNING.name, "dict_class": kind, **meta})


def _shapes(names: Sequence[str], n: int, d: int) -> dict[str, tuple[int, ...]]:
    """Of n latents and d dimensions. nn.Linear keeps its weights as (out, in); of k go one threshold, of JumpReLUs n."""
    matrices = {"encoder.weight": (n, d), "decoder.weight": (d, n), "W_enc": (d, n), "W_dec": (n, d)}
    of_latents = dict.fromkeys(("encoder.bias", "b_enc", "r_mag", "gate_bias", "mag_bias"), (n,))
    of_inputs = dict.fromkeys(("bias", "decoder.bias", "b_dec", "decoder_bias"), (d,))
    others = {"k": (), "threshold": () if "k" in names else (n,)}
    every = matrices | of_latents | of_inputs | others
    return {name: every[name] for name in names}


def _auto_encoder(t: Tensors) -> Parts:
    norms = t["decoder.weight"].norm(dim=0).clamp(min=1e-12)
    W_enc, b_enc = t["encoder.weight"] * norms[:, None], t["encoder.bias"] * norms
    return Parts("relu", W_enc, b_enc, (t["decoder.weight"] / norms).T, t["bias"], torch.relu, t["bias"])


def _auto_encoder_new(t: Tensors) -> Parts:
    linear = (t["encoder.weight"], t["encoder.bias"], t["decoder.weight"].T, t["decoder.bias"])
    return Parts("relu", *linear, torch.relu, None)


def _gated(t: Tensors) -> Parts:
    gain, gate, magnitude = t["r_mag"].exp(), t["gate_bias"], t["mag_bias"]

    def select(scores: Tensor) -> Tensor:
        return (scores * gain + magnitude).relu() * (scores + gate > 0)

    weights = (t["encoder.weight"], torch.zeros_like(gate), t["decoder.weight"].T)
    return Parts("gated", *weights, t["decoder_bias"], select, t["decoder_bias"])


def _jump_relu(t: Tensors) -> Parts:
    return Parts("jumprelu", t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"], above(t["threshold"]), None)


def _top_k(t: Tensors) -> Parts:
    return Parts("topk", *_linear(t), largest(int(t["k"])), t["b_dec"])


def _batch_top_k(t: Tensors) -> Parts:
    return Parts("batchtopk", *_linear(t), above(t["threshold"]), t["b_dec"])


def _matryoshka(t: Tensors) -> Parts:
    weights = (t["W_enc"].T, t["b_enc"], t["W_dec"], t["b_dec"])
    return Parts("matryoshka", *weights, above(t["threshold"]), t["b_dec"])


def _linear(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return t["encoder.weight"], t["encoder.bias"], t["decoder.weight"].T, t["b_dec"]


ENCODER, DECODER = ("encoder.weight", "encoder.bias"), ("decoder.weight",)
MATRICES, SELECTING = ("W_enc", "b_enc", "W_dec", "b_dec"), ("k", "threshold")
CLASSES: dict[Any, tuple[tuple[str, ...], Callable[[Tensors], Parts]]] = {
    "AutoEncoder": ((*ENCODER, *DECODER, "bias"), _auto_encoder),
    "AutoEncoderNew": ((*ENCODER, *DECODER, "decoder.bias"), _auto_encoder_new),
    "AutoEncoderTopK": ((*ENCODER, *DECODER, "b_dec", "k"), _top_k),
    "BatchTopKSAE": ((*ENCODER, *DECODER, "b_dec", *SELECTING), _batch_top_k),
    "GatedAutoEncoder": (("encoder.weight", *DECODER, "decoder_bias", "r_mag", "gate_bias", "mag_bias"), _gated),
    "JumpReluAutoEncoder": ((*MATRICES, "threshold"), _jump_relu),
    "MatryoshkaBatchTopKSAE": ((*MATRICES, *SELECTING), _matryoshka),
}
