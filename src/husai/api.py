"""The scores as plain functions of SAEs and models, each beside its chance levels."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from husai.activations import Activations, extract
from husai.analysis.fit import evaluate_fit
from husai.analysis.matching import pwmcc
from husai.analysis.nulls import DRAWN_NULLS, NULL_LIMIT, sampler
from husai.analysis.recovery import fourier_overlap
from husai.config import AnalysisConfig
from husai.errors import HusaiError
from husai.measure import Hook, Measurement, Members, measure
from husai.models import Model
from husai.recurrent.model import Recurrent
from husai.resources import reference_names
from husai.runs import LoadedModel, check_gate, load_model
from husai.sae.callables import Array, Function, of_callables
from husai.sae.dictionary import Dictionary
from husai.seeding import generator
from husai.tasks import Task
from husai.transformer.weights import public_models
from husai.truth.planes import find_truth

DRAWS = 5
UNIT = ("pwmcc", "fourier_overlap", "decoder_overlap", "gt_mcc", "true_", "subspace_", "rotation", "spliced_accuracy")
CONTROL = re.compile(r"/(surrogate|permuted)-\d+$")
UNNAMED = "unnamed"  # of a model in memory


@dataclass(frozen=True)
class Score:
    """A score beside its chance levels; `float(score)` is the score itself.

    nulls: mean of each null over a few draws. Read a score by which of them it exceeds. best_is_one: whether a perfect
    dictionary has 1.
    """

    value: float
    nulls: dict[str, float]
    best_is_one: bool = True

    @property
    def adjusted(self) -> dict[str, float | None]:
        """(score − null) / (1 − null) for each null; None for one above .9, where the ratio would mean nothing.

        Empty for scores whose best value is not 1.
        """
        if not self.best_is_one:
            return {}
        return {
            name: None if null > NULL_LIMIT else (self.value - null) / (1 - null) for name, null in self.nulls.items()
        }

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

    def __str__(self) -> str:
        return f"{self.value:.3f} (" + ", ".join(f"{name} {null:.3f}" for name, null in self.nulls.items()) + ")"

    @property
    def band(self) -> str:
        """The rule of thumb of earlier work for raw pwmcc, which the nulls overturn: > .7 high, < .3 low."""
        bands = ((0.7, "high"), (0.4, "moderate"), (0.3, "low-moderate"))
        return next((name for limit, name in bands if self.value > limit), "low")


class Read(NamedTuple):
    """A model read at a hook, and what each SAE encodes to reconstruct that: None for it itself."""

    activations: Activations
    model: Model
    sources: list[Float[Tensor, "samples d_in"] | None]


def read_at(
    model: Model | LoadedModel,
    hook: str | None,
    *saes: Dictionary,
    source_hook: str | None = None,
    names: Sequence[str] = (),
) -> Read:
    """The grid at `hook`, or at the hook that the SAEs say they reconstruct. `model` as a Transformer is taken to add.

    source_hook: what transcoders encode that do not say it. names: of the SAEs, for messages; by default their places. A
    model that fails the gate is measured against all the same, with a warning. Raises HusaiError if the SAEs name another
    hook than `hook` (or source_hook), or different ones, and as `require_trained_on`.
    """
    if isinstance(model, LoadedModel):
        loaded = model
    else:
        loaded = LoadedModel(model, model.walks if isinstance(model, Recurrent) else Task("add", model.p))
    for sae, name in zip(saes, names or [f"SAE {index}" for index in range(len(saes))], strict=True):
        require_trained_on(sae, name, "model_name", loaded.model.name)
    checked, report = check_gate(loaded, allow_unverified=True)
    if not report.passed:
        warnings.warn(f"model {checked.name} is not verified: {report.failures()}", stacklevel=3)
    keys = [(sae, "hook_name_out" if sae.paired else "hook_name") for sae in saes]
    named = {str(sae.meta[key]) for sae, key in keys if sae.meta.get(key)}
    if source_hook is not None and not any(sae.paired for sae in saes):
        raise HusaiError(
            f"source hook {source_hook}: only transcoders have one; these SAEs reconstruct what they encode"
        )
    if hook is None and not named and any(sae.paired for sae in saes):
        raise HusaiError("the transcoder: does not say which hook it reconstructs; name it (--hook, such as mlp_out)")
    wanted = hook or (named.copy().pop() if named else "resid_post")
    activations = extract(checked, loaded.task, wanted)
    if named - {activations.hook}:
        raise HusaiError(f"hook {wanted}: the SAEs were trained on {', '.join(sorted(named))}; compare them there")
    width = activations.x.shape[1]
    for sae in saes:
        if sae.d_out != width:
            raise HusaiError(
                f"hook {wanted}: has {width} dimensions, but the SAE has {sae.d_out}; it belongs to another model"
            )
    return Read(activations, checked, [_source(sae, checked, loaded, source_hook) for sae in saes])


def require_trained_on(sae: Dictionary, name: str, key: str, wanted: str) -> None:
    """Raises HusaiError if an SAE says that it is of another model or hook (`key` of its metadata) than the activations.

    Models are compared by `model_of`. They are refused if both are known and differ: reference models, and public ones that
    TransformerLens lists, under any of their names. Other names are names of folders and files, which say too little, so that
    there is a UserWarning, and nothing for a model without a name.
    """
    stated, what = sae.meta.get(key), key.split("_")[0]
    if not isinstance(stated, str):
        return
    pair = {model_of(stated), model_of(wanted)} if what == "model" else {stated.lower(), wanted.lower()}
    if len(pair) == 1 or (what == "model" and UNNAMED in pair):
        return
    did = "reconstructs" if key == "hook_name_out" else "was trained on"
    said = f"{name}: {did} {what} {stated}, but the activations are of {what} {wanted}"
    known: dict[str, str] = {}
    if what == "model":
        public = {model_of(name): own for name, own in public_models().items()}
        known = {**public, **{one: one for one in reference_names()}}
        if len({known.get(one, one) for one in pair}) == 1:
            return
    if what == "hook" or pair <= {*known}:
        raise HusaiError(said)
    warnings.warn(f"{said}; their names alone do not say whether these are two models", stacklevel=2)


def model_of(name: str) -> str:
    """The model behind a name: add-p113-0 of add-p113-0/surrogate-1, pythia-70m of EleutherAI/pythia-70m; in lower case."""
    return CONTROL.sub("", name).rsplit("/", 1)[-1].lower()


def _source(
    sae: Dictionary, model: Model, loaded: LoadedModel, given: str | None
) -> Float[Tensor, "samples d_in"] | None:
    """What a transcoder encodes, at the given hook or the one that it says; None of an SAE."""
    if not sae.paired:
        return None
    stated = sae.meta.get("hook_name")
    name = given or stated
    if not name:
        raise HusaiError(
            "the transcoder: does not say at which hook it reads; its metadata need a hook_name, or name it (--source-hook)"
        )
    read = extract(model, loaded.task, str(name))
    if given and stated and read.hook != stated:
        raise HusaiError(f"source hook {given}: the transcoder reads {stated}; score it there")
    x = read.x
    if x.shape[1] != sae.d_in:
        raise HusaiError(
            f"hook {name}: has {x.shape[1]} dimensions, but the transcoder reads {sae.d_in}; it belongs to another model"
        )
    return x


def score(
    sae: Dictionary | Sequence[Dictionary] | None = None,
    model: Model | LoadedModel | str | None = None,
    hook: str | None = None,
    *,
    encode: Function | Sequence[Function] | None = None,
    decode: Function | Sequence[Function] | None = None,
    W_dec: Array | Sequence[Array] | None = None,
    signed_codes: bool = False,
    source_hook: str | None = None,
) -> dict[str, Score]:
    """Every score that SAEs have at one hook, by name: fit, recovery and causal figures beside their nulls.

    sae: one dictionary, or several seeds of one kind, whose agreement is then scored too and whose other scores are means.
    In its place encode, decode and W_dec may stand, plain functions of NumPy arrays or torch tensors as `of_callables`
    takes them, each of them one or a list with an entry a seed, and signed_codes: whether codes may be negative. model: what
    `load_model` returned or takes. hook: by default the one that the SAEs were trained on, of functions resid_post.
    source_hook: what a transcoder encodes that does not say it. Raises HusaiError for a hook without truth, if no latent
    fires, if the hooks are not the SAEs', and as `of_callables`. (docs/method.md, docs/bring_your_own.md)
    """
    if model is None:
        raise HusaiError("score: needs a model, what load_model returned or takes, such as 'add-p113-0'")
    given = (encode, decode, W_dec)
    if (sae is None) == all(part is None for part in given):
        raise HusaiError("score: takes SAEs (of load_sae), or encode, decode and W_dec, and not both")
    if sae is not None and signed_codes:
        raise HusaiError("score: signed_codes is said of encode, decode and W_dec; SAEs know it themselves")
    saes = _of_functions(*given, signed_codes) if sae is None else [sae] if isinstance(sae, Dictionary) else list(sae)
    if not saes:
        raise HusaiError("score: the list of SAEs is empty")
    return scores_of(measured(saes, load_model(model) if isinstance(model, str) else model, hook, source_hook))


def _of_functions(encode: Any, decode: Any, W_dec: Any, signed_codes: bool) -> list[Dictionary]:
    """One dictionary a seed. Raises HusaiError if one of the three is missing, or lists are of different lengths."""
    parts = {"encode": encode, "decode": decode, "W_dec": W_dec}
    if missing := [name for name, part in parts.items() if part is None]:
        raise HusaiError(f"score: {', '.join(missing)} is missing; encode, decode and W_dec belong together")
    lists = {name: part for name, part in parts.items() if isinstance(part, list | tuple)}
    if not lists:
        return [of_callables(encode, decode, W_dec, signed_codes=signed_codes)]
    lengths = {name: len(part) if name in lists else "one alone" for name, part in parts.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise HusaiError(f"score: encode, decode and W_dec must be lists of equal length, one entry a seed; got {told}")
    triples = enumerate(zip(encode, decode, W_dec, strict=True))
    return [of_callables(*one, f"SAE {i}", signed_codes=signed_codes) for i, one in triples]


def measured(
    saes: Sequence[Dictionary],
    model: Model | LoadedModel,
    hook: str | None = None,
    source_hook: str | None = None,
    names: Sequence[str] = (),
) -> Measurement:
    """All figures of SAEs at one hook of a model, those of each and those over all. names: as of `read_at`.

    Raises as `score`.
    """
    read = read_at(model, hook, *saes, source_hook=source_hook, names=names)
    find_truth(read.activations)
    if len({source_hook or sae.meta.get("hook_name") if sae.paired else None for sae in saes}) > 1:
        raise HusaiError("score: SAEs that encode different activations (transcoders, say) are scored one by one")
    return measured_at(saes, replace(Hook.of(read.activations, read.model), source=read.sources[0]))


def measured_at(saes: Sequence[Dictionary], where: Hook) -> Measurement:
    """The same on samples that are there already. Raises HusaiError if no latent of an SAE fires."""
    return measure(Members.of(saes, where), where, AnalysisConfig(), final=True)


def scores_of(result: Measurement) -> dict[str, Score]:
    """What was measured over all SAEs, by name."""
    found = {
        row.metric: Score(row.value, {}, row.metric.startswith(UNIT))
        for row in result.rows
        if row.seed is None and not row.null
    }
    for row in result.rows:
        if row.seed is None and row.null and row.metric in found:
            found[row.metric].nulls[row.null] = row.value
    return found


def compute_fourier_overlap(sae: Dictionary, model: Model | LoadedModel, hook: str | None = None) -> Score:
    """Share of the live unit atoms' energy inside the hook's true subspaces, weighted by activation energy.

    model: what `load_model` returned (or a Transformer, taken to add). hook: by default the one the SAE was trained on.
    Nulls: ambient, data, data_points dictionaries of as many atoms. Raises HusaiError for a hook without truth or another
    than the SAE's. (docs/method.md §Recovery)
    """
    activations, _, (source,) = read_at(model, hook, sae)
    truth, fit = find_truth(activations), evaluate_fit(sae, activations.x, source=source)
    atoms = sae.atoms[fit.live]
    nulls = {}
    for null in DRAWN_NULLS:
        draw = sampler(null, activations.x)
        values = [fourier_overlap(draw(len(atoms), generator(f"api-{null}", r)), truth) for r in range(DRAWS)]
        nulls[null] = sum(values) / DRAWS
    return Score(fourier_overlap(atoms, truth, fit.energy[fit.live]), nulls)


def compute_pwmcc(
    sae1: Dictionary, sae2: Dictionary, model: Model | LoadedModel | None = None, hook: str | None = None
) -> Score:
    """Mean signed cosine of the two decoders under their optimal one-to-one matching; |cosine| if codes are signed.

    With a model, only atoms that fire somewhere on its grid count, and the nulls are ambient, data and data_points.
    Without one every atom counts whose decoder row is not 0, only `ambient` can be drawn, and codes are signed only if an SAE
    says so. hook: by default the one the SAEs were trained on. Raises HusaiError for dictionaries without live atoms, or of
    different width. (docs/method.md §Stability)
    """
    first, second = (sae.atoms[sae.W_dec.norm(dim=1) > 0] for sae in (sae1, sae2))
    names = DRAWN_NULLS[:1]
    signed = sae1.signed_codes or sae2.signed_codes
    x = first
    if model is not None:
        read, names = read_at(model, hook, sae1, sae2), DRAWN_NULLS
        x, live = read.activations.x, []
        for sae, source in zip((sae1, sae2), read.sources, strict=True):
            codes = sae.encode(x if source is None else source)
            signed = signed or sae.is_signed(codes)
            live.append(sae.atoms[evaluate_fit(sae, x, codes, source=source).live])
        first, second = live
    nulls = {}
    for null in names:
        draw = sampler(null, x)
        streams = [generator(f"api-{null}", r) for r in range(DRAWS)]
        nulls[null] = sum(pwmcc(draw(len(first), g), draw(len(second), g), abs=signed) for g in streams) / DRAWS
    return Score(pwmcc(first, second, abs=signed), nulls)
