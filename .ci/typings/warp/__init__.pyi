# Warp's stubs are those of its kernel language, which a Python type checker cannot follow: by them
# arrays have no indices, vectors no operators and wp.tid() is no tuple. Kernels are checked by
# Warp's compiler; what stands around them is checked here, with Warp's own names left open.
from typing import Any

def __getattr__(name: str) -> Any: ...
