"""Instruction sets that the CPU kernels are compiled for."""

import platform

import pytest

from frepro.ops import cpu

# Values of FREPRO_MARCH, and what the kernels then say that they were compiled for.
INSTRUCTION_SETS = {"x86_64": {"x86-64-v3": "AVX2", "x86-64": "SSE2"}}.get(platform.machine(), {})


@pytest.fixture(scope="module", params=["native", *INSTRUCTION_SETS])
def instruction_set(request):
    """Kernels compiled for each instruction set; each is compiled once and found in the user's cache from then on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FREPRO_MARCH", request.param)
        _forget()
        reason = cpu.reason() or ""
        if reason.startswith("this processor lacks"):
            pytest.skip(reason)
        assert not reason
        assert cpu.instruction_set() == INSTRUCTION_SETS.get(request.param, cpu.instruction_set())
        yield
    _forget()


def _forget() -> None:
    """What was compiled for another set: the next call looks at the environment again."""
    cpu.library.cache_clear()
    cpu._reason.cache_clear()
