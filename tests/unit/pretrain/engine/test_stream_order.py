"""At the end of a backward pass the streams wait for each other, and DeepSpeed's own wait comes back afterwards.

That no wait of the host is left is counted with the real DeepSpeed in tests/unit/tools/test_fake_cuda.py.
"""

import pytest
import torch

from pretrain.engine.stream_order import order_streams


class Stream:
    def __init__(self, name: str, waits: list[tuple[str, str]]) -> None:
        self.name, self.waits = name, waits

    def wait_stream(self, other: "Stream") -> None:
        self.waits.append((self.name, other.name))

    def synchronize(self) -> None:
        self.waits.append(("host", self.name))


class Optimizer:
    def __init__(self, stream: Stream, fails: bool) -> None:
        self.stream, self.fails = stream, fails

    def independent_gradient_partition_epilogue(self) -> None:
        self.stream.synchronize()
        if self.fails:
            raise RuntimeError("gradients are missing")


@pytest.mark.parametrize("fails", [False, True])
def test_streams_wait_for_each_other_and_the_host_again_afterwards(fails, monkeypatch):
    waits: list[tuple[str, str]] = []
    reduction, current = Stream("reduction", waits), Stream("current", waits)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    optimizer = Optimizer(reduction, fails)
    order_streams(optimizer, reduction, reduction)
    if fails:
        with pytest.raises(RuntimeError, match="gradients are missing"):
            optimizer.independent_gradient_partition_epilogue()
    else:
        optimizer.independent_gradient_partition_epilogue()
    assert waits == [("reduction", "current"), ("current", "reduction")]
    reduction.synchronize()
    assert waits[-1] == ("host", "reduction")
