import os

import torch

from husai.store.provenance import provenance


def test_provenance_names_what_a_number_rests_on():
    record = provenance(wall_seconds=1.5)
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "husai", "numpy", "sae-lens", "transformer-lens"} <= set(record["versions"])
    assert record["hardware"]["cpus"] == os.cpu_count()
    assert record["wall_seconds"] == 1.5
    assert record["git_commit"] is None or len(record["git_commit"]) >= 4
