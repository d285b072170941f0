"""What a model makes of one dictionary, read alike from SAEs and from null dictionaries."""

from jaxtyping import Bool, Float
from torch import Tensor

from husai.analysis.causal import ablation, rotation, splice
from husai.analysis.nulls import Coded
from husai.analysis.recovery import Tuning, tuning
from husai.measure.hook import Hook
from husai.sae.dictionary import Dictionary

CAUSES = (
    *("rotation", "ablation", "ablation_removed", "ablation_others"),
    *("spliced_accuracy", "spliced_ce", "ce_recovered"),
)


def cause_of(dictionary: Dictionary, hook: Hook, live: Bool[Tensor, "d_sae"]) -> dict[str, float]:
    """The causal figures of an SAE, on the activations that the model was given; a transcoder's at its target."""
    assert hook.site is not None
    given = hook.site.x if hook.source is None else hook.source
    codes = dictionary.encode(given)
    contributed = codes[:, live] * dictionary.W_dec[live].norm(dim=1)
    return _causes(Coded(dictionary.atoms[live], contributed), dictionary.reconstruct(given, codes), hook)


def cause_of_coded(coded: Coded, hook: Hook) -> dict[str, float]:
    """Those of a null dictionary, which reconstructs from the mean on."""
    assert hook.site is not None
    return _causes(coded, hook.site.x.mean(0) + coded.codes @ coded.atoms, hook)


def rotation_of_coded(coded: Coded, hook: Hook) -> float:
    """Rotation alone, which needs no codes that reconstruct; nan at a hook without planes to turn."""
    return float("nan") if hook.families is None else _rotation(coded, tuning(coded.codes, hook.families), hook)


def _rotation(coded: Coded, tuned: Tuning, hook: Hook) -> float:
    if hook.turning is None or hook.site is None or hook.task is None:
        return float("nan")
    return rotation(coded.codes, coded.atoms, tuned, hook.turning, hook.site, hook.task.group)


def _causes(coded: Coded, reconstruction: Float[Tensor, "samples d"], hook: Hook) -> dict[str, float]:
    site, task, turning = hook.site, hook.task, hook.turning
    assert site is not None
    assert task is not None
    found: dict[str, float] = {}
    if turning is not None and hook.families is not None:
        tuned = tuning(coded.codes, hook.families)
        found["rotation"] = _rotation(coded, tuned, hook)
        removing = ablation(coded.codes, coded.atoms, tuned.k, turning.keys, site, task.group)
        found |= {"ablation": removing.selective, "ablation_removed": removing.removed}
        found["ablation_others"] = removing.others
    spliced = splice(reconstruction, task.labels, site)
    found |= {"spliced_accuracy": spliced.accuracy, "spliced_ce": spliced.ce}
    return found | {"ce_recovered": spliced.recovered}
