"""The scan of Mamba's layers, against its definition token by token."""

import pytest
import torch

from text_generation_server.layers.selective_scan import TOKENS_AT_ONCE, selective_scan

WIDTH, STATE_SIZE = 6, 4


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("length", [1, TOKENS_AT_ONCE, 2 * TOKENS_AT_ONCE + 3])
def test_a_scan_is_its_recurrence(num_rows: int, length: int) -> None:
    torch.manual_seed(0)
    hidden, dt, z = (torch.randn(num_rows, WIDTH, length) for _ in range(3))
    write, read = (torch.randn(num_rows, STATE_SIZE, length) for _ in range(2))
    decay, skip, bias = -torch.rand(WIDTH, STATE_SIZE), torch.randn(WIDTH), torch.randn(WIDTH)

    state, expected = torch.zeros(num_rows, WIDTH, STATE_SIZE), []
    for token in range(length):
        step = torch.nn.functional.softplus(dt[..., token] + bias)
        written = step[..., None] * write[:, None, :, token] * hidden[..., token, None]
        state = torch.exp(step[..., None] * decay) * state + written
        scanned = (state * read[:, None, :, token]).sum(-1) + skip * hidden[..., token]
        expected.append(scanned * torch.nn.functional.silu(z[..., token]))

    arguments = {"D": skip, "z": z, "delta_bias": bias, "delta_softplus": True}
    scanned, last = selective_scan(hidden, dt, decay, write, read, return_last_state=True, **arguments)
    torch.testing.assert_close(scanned, torch.stack(expected, -1))
    torch.testing.assert_close(last, state)
    torch.testing.assert_close(selective_scan(hidden, dt, decay, write, read, **arguments), scanned)
