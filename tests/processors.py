"""What some tests need of the processor that they run on."""

import pytest

from text_generation_server import cpu_kernels
from text_generation_server.device import has_bfloat16_units

needs_bfloat16_units = pytest.mark.skipif(not has_bfloat16_units(), reason="this processor has no bfloat16 units")
needs_cpu_kernels = pytest.mark.skipif(cpu_kernels.library() is None, reason="our CPU kernels do not run on this processor")
