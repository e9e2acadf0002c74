"""An array on the device with a twin on the host."""

import numpy as np
import warp as wp


class Mirror:
    """An array, and host memory through which it is written and read in one copy each.

    On CUDA the host's memory is page-locked: copies from and to pageable memory go through a
    buffer of the driver, in pieces. On the CPU both are the same memory, and nothing is copied.

    Attributes:
        array: the array, zeros at first.
        host: what `upload` sends and `fetch` brings, as NumPy sees it; its memory is used again.
    """

    def __init__(self, shape: int | tuple[int, ...], dtype, device):
        device = wp.get_device(device)
        self.array = self._staged = wp.zeros(shape, dtype=dtype, device=device)
        if device.is_cuda:
            self._staged = wp.zeros(shape, dtype=dtype, device="cpu", pinned=True)
        self.host: np.ndarray = self._staged.numpy()

    def upload(self) -> None:
        """Copies `host` to the device; it is not to be written before the copy is done."""
        if self._staged is not self.array:
            wp.copy(self.array, self._staged)

    def fetch(self) -> np.ndarray:
        """Waits for what was launched before, and returns `host` with the values of `array`."""
        if self._staged is not self.array:
            wp.copy(self._staged, self.array)
            wp.synchronize_stream(self.array.device)
        return self.host
