import sys

import pytest
import torch

from taskfit.training.memory import MemoryAccount

BLOCK, BLOCKS = 25_000, 3_000  # of float32: 300 MB in blocks that come from the heap


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives memory back when told")
def test_what_earlier_work_has_left_is_not_found_by_the_next_account() -> None:
    def work() -> list[torch.Tensor]:
        return [torch.ones(BLOCK) for _ in range(BLOCKS)]

    needed = 4 * BLOCK * BLOCKS
    for _ in range(2):
        account = MemoryAccount(torch.device("cpu"))
        blocks = work()
        account.stage("work")
        assert account.by_stage["work"] == pytest.approx(needed, rel=0.2)
        # What is still in use above keeps the C library from shrinking the heap by itself.
        blocks = blocks[-1:]
