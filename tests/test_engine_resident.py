"""The planned peak is a promise: watched from outside, memory stays below it, and close to it."""

import pytest
from benchmarks import resident

from temporal_vae.engine import processor


def named(case):
    widths, _ = case["network"]
    height, width = case["size"]
    return f"{case['job']}-{len(widths)}-{case['frames']}x{height}x{width}-{case['dtype']}-{case['share']}"


@pytest.mark.slow
@pytest.mark.skipif(processor.host() is None, reason="no kernels for this processor: the peak is an estimate")
@pytest.mark.parametrize("case", resident.CLIPS + resident.PICTURES, ids=named)
def test_resident_memory(case):
    found = resident.measure(case)
    assert found["planned"] <= found["limit"]
    idle = max(0.15 * found["planned"], 40 * 2**20)  # of which the first use of kernels may take less
    assert found["planned"] - idle <= found["found"] <= found["planned"]
