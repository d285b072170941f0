"""Stability without a circuit: are atoms tokens? (docs/method.md §Controls)"""

from typing import NamedTuple

import numpy as np

from husai.analysis.nulls import DRAWN_NULLS, sampler
from husai.analysis.planted import atom_recovery
from husai.analysis.stats import (
    Interval,
    seed_interval,
)
from husai.controls.kinds import SEEDS
from husai.measure import Hook, Members
from husai.sae.dictionary import Dictionary
from husai.seeding import generator
from husai.tasks import Task
from husai.truth.controls import token_dictionary


class TokenRecovery(NamedTuple):
    """Are atoms tokens? gt_mcc and firing_f1 over seeds, with one atom a token as the truth; nulls of gt_mcc by name.

    explained: share of the variance that the sum of one vector a token explains.
    """

    explained: float
    gt_mcc: Interval
    firing_f1: Interval
    nulls: dict[str, Interval]


def token_recovery(dictionaries: list[Dictionary], hook: Hook) -> TokenRecovery:
    """How far SAEs have found the tokens of a hook whose samples are a task's grid."""
    assert isinstance(hook.task, Task), "only a grid has tokens"
    tokens = token_dictionary(hook.x, hook.task)
    residual = tokens.x - tokens.codes @ tokens.atoms
    members = Members.of(dictionaries, Hook(hook.x, planted=tokens))
    found = [atom_recovery(atoms, tokens.atoms).gt_mcc for atoms in members.atoms]
    size, nulls = max(members.n_live), {}
    for null in DRAWN_NULLS:
        draw = sampler(null, hook.x)
        drawn = [draw(size, generator(f"tokens-{null}", r)) for r in range(SEEDS)]
        nulls[null] = seed_interval(np.array([atom_recovery(atoms, tokens.atoms).gt_mcc for atoms in drawn]))
    return TokenRecovery(
        explained=float(1 - residual.square().sum() / tokens.x.square().sum()),
        gt_mcc=seed_interval(np.array(found)),
        firing_f1=seed_interval(np.array([firing.firing_f1 for firing in members.firings])),
        nulls=nulls,
    )
