"""A kernel that does nothing: where it compiles and starts, others do."""

import triton


@triton.jit
def nothing():
    pass
