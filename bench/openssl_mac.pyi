from typing import Any

import numpy as np
import numpy.typing as npt

def version() -> str: ...
def verify_jobs(
    parents: npt.NDArray[np.uint8], jobs: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]: ...
