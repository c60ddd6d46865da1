"""An empty kernel: if it compiles and starts on a device, so do the others."""

import triton


@triton.jit
def nothing():
    pass
