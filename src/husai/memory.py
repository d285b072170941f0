"""What cannot fit into this machine is refused before it is asked for."""

import os

from husai.errors import HusaiError

GIB = 2**30


def require_memory(size: int, what: str) -> None:
    """Raises HusaiError if `size` bytes are more than the machine has. what: names the numbers that ask for them."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise HusaiError(
            f"{what} takes at least {size / GIB:.3g} GiB of memory; this machine has {there / GIB:.3g} GiB"
        )
