"""A suite → cells → missing cells → results tables.

A cell is finished if its run folder says so or its id stands in the suite's committed records. So an interrupted sweep goes on
where it stopped, on this machine or another, and several may work on one suite at once. (docs/sweeps.md)
"""
