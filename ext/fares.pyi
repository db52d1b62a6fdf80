from typing import Any

import numpy as np
import numpy.typing as npt

RIDE: np.dtype[Any]
RIDES: np.dtype[Any]
FARE: np.dtype[Any]
RIDE_DONE: np.dtype[Any]
SIZES: dict[str, int]
MAGIC: int
TABLES: list[tuple[str, int]]

class Evaluator:
    def __init__(self, blob: bytes) -> None: ...
    def price(self, rides: npt.NDArray[Any], cards: npt.NDArray[Any], ride: npt.NDArray[Any]) -> npt.NDArray[Any]: ...

def rides_after(rides: npt.NDArray[Any], done: npt.NDArray[Any]) -> None: ...
