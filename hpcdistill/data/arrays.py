"""Types of NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
"""Array of any shape and dtype."""
Numbers = np.ndarray[Any, np.dtype[np.int64]]
"""Numbers of items in a store, int64 [n]."""
