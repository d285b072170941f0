"""Every measure of agreement between seeds, as a table. (docs/method.md §Stability)"""

from husai.report.caveats import heading
from husai.report.results import SuiteResults
from husai.report.settings import PAIRS
from husai.report.text import beside, has, markdown, named


def measures(results: SuiteResults) -> str:
    """A section: cells × measures, each with its highest chance level, one trained on a surrogate included."""
    known = [name for name in PAIRS if any(has(cell, name) for cell in results.cells)]
    if not known:
        return ""
    rows = [
        [*named(cell), *(beside(cell.value(name), results.rungs(cell, name)) for name in known)]
        for cell in results.cells
    ]
    title = f"## Every measure, highest chance level in brackets{heading(results.cells)}"
    return f"{title}\n\n{markdown(['hook', 'SAE', *known], rows)}\n"
