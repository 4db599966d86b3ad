"""Memory for the pixels of one block."""

import numpy as np


class Arena:
    """Memory for one block's pixels, which a process keeps from task to task.

    Fresh memory costs up to 2 ms a MB on virtual machines (page faults down to the host), twice the decoding; memory that was
    used before costs nothing. Each call of `take` ends the life of what the call before it returned.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, dtype=np.uint8)

    def take(self, size: int) -> np.ndarray:
        """uint8 (size,), contents undefined."""
        if self._memory.size < size:
            self._memory = np.empty(0, dtype=np.uint8)  # give this back before taking the larger one
            self._memory = np.empty(size, dtype=np.uint8)
        return self._memory[:size]
