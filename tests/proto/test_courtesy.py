"""Who waits for messages lets go on whoever computes; who computes does not."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from text_generation_proto.courtesy import be_courteous, be_ordinary

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")


def policy() -> int:
    return os.sched_getscheduler(0)


def policies() -> tuple[int, int, int]:
    """Of a courteous thread, of one that it starts, and of one that it starts to compute."""
    be_courteous()
    with ThreadPoolExecutor(1) as child, ThreadPoolExecutor(1, initializer=be_ordinary) as device:
        return policy(), child.submit(policy).result(), device.submit(policy).result()


def test_threads_inherit_courtesy_and_may_lay_it_down() -> None:
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(policies).result() == (os.SCHED_BATCH, os.SCHED_BATCH, os.SCHED_OTHER)
    assert policy() == os.SCHED_OTHER, "other threads are not asked"


def test_where_it_is_not_allowed_the_server_starts_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    be_courteous()
    be_ordinary()
