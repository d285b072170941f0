"""Where training curves go beside the run folder: Weights & Biases online or offline, TensorBoard, or nowhere.

A run never fails because one of them is absent, unreachable, not logged in or stuck, and never waits for it longer than
`LIMIT`: it says so once and goes on without. (docs/tracking.md)
"""

from husai.tracking.base import LIMIT, NoTracker, Tracker
from husai.tracking.curves import Attempts, Curves, track_results, tracking_of
from husai.tracking.opening import open_tracker

__all__ = ["LIMIT", "Attempts", "Curves", "NoTracker", "Tracker", "open_tracker", "track_results", "tracking_of"]
