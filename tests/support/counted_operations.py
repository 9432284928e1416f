"""Runs a few operations on the fake CUDA device and prints what the counter saw: a program of test_fake_cuda.py."""

import json

from tools.fake_cuda import shim

shim.load()
from tools.fake_cuda import runtime  # noqa: E402

runtime.install()
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from launch.planner.machines import MACHINES  # noqa: E402
from tools.fake_cuda.counter import Parts, StepCounter  # noqa: E402
from tools.fake_cuda.mode import FakeCudaMode  # noqa: E402
from tools.fake_cuda.recorder import recording  # noqa: E402
from tools.fake_cuda.report import to_dict  # noqa: E402

ROWS, INPUTS, OUTPUTS = 512, 64, 32


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(INPUTS, OUTPUTS, bias=False)

    def forward(self, x):
        return self.encoder(x).float().sum()


def matmuls(model):
    x = torch.empty(ROWS, INPUTS, device="cuda", dtype=torch.bfloat16)
    model(x[::2].contiguous()).backward()


def waits(model):
    value = torch.zeros(3, device="cuda")
    value[0].item()
    value.tolist()
    value.new_tensor([1.0])
    torch.from_numpy(np.zeros(3)).to("cuda", non_blocking=True)
    torch.cuda.synchronize()


def no_waits(model):
    pinned = torch.empty(8, pin_memory=True)
    pinned[2:].to("cuda", non_blocking=True)
    torch.from_numpy(np.zeros(3)).pin_memory().to("cuda", non_blocking=True)
    torch.zeros(3, device="cuda").add_(1.0).to("cuda")
    torch.cuda.current_stream().wait_stream(torch.cuda.Stream())


def count(function):
    model = Model().to("cuda", torch.bfloat16)
    counter = StepCounter(Parts(model, None), MACHINES["h100"])
    with recording(counter.count.recorder), counter:
        function(model)
    return to_dict(counter.count, MACHINES["h100"], 8)


with FakeCudaMode(allow_non_fake_inputs=True):
    torch.autograd.set_multithreading_enabled(False)
    print(json.dumps({function.__name__: count(function) for function in (matmuls, waits, no_waits)}))
