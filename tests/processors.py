"""What some tests need of the processor that they run on."""

import pytest

from text_generation_server.device import has_bfloat16_units

needs_bfloat16_units = pytest.mark.skipif(not has_bfloat16_units(), reason="this processor has no bfloat16 units")
