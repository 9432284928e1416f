import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton has no wheel for this platform")


def _report(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.kernel_report", *arguments]
    return subprocess.run(command, env=COMPILING | environment, capture_output=True, text=True, timeout=300)


SINGLE = """
from tools.kernel_report import compile_all
for one in compile_all([80], ["fp32"]):
    assert one.spills == 0 and one.registers > 0
    print(one.kernel)
"""


@needs_triton
def test_kernels_of_single_precision_compile_without_spills(tmp_path):
    environment = COMPILING | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SINGLE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"normalize", "patch_loss", "restore"}


@needs_triton
@pytest.mark.nightly
@pytest.mark.parametrize("capability", [80, 90])
def test_all_kernels_compile_without_spills(tmp_path, capability):
    options = ["--capabilities", str(capability), "--json", str(tmp_path / "report.json")]
    done = _report(*options, TRITON_CACHE_DIR=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "report.json").read_text())
    assert {(row["variant"].split()[0], row["capability"]) for row in rows} == {
        (dtype, capability) for dtype in ("bf16", "fp16", "fp32")
    }
    expected = {"normalize", "patch_loss", "gelu_backward", "norm_backward", "second_layer", "first_sums"}
    expected |= {"restore", "wave_features", "wave_products_gradient", "wave_matrix_gradient"}
    assert expected <= {row["kernel"] for row in rows}
    assert all(row["spills"] == 0 and row["registers"] > 0 for row in rows)


LARGE = """
import torch, triton
import triton.language as tl
from pretrain.kernels.launching import launch, recording
from tools.kernel_report import SHARED, compile_for

@triton.jit
def _large(x, SIZE: tl.constexpr):
    places = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    values = tl.load(x + places)
    tl.store(x + places, tl.dot(values, values))

@triton.jit
def _fused(x):
    value = tl.load(x)
    tl.store(x, tl.fma(value, value, value))

with recording() as launches:
    launch(_large, (1,), torch.empty(1, device="meta", dtype=torch.float16), SIZE=64)
    launch(_fused, (1,), torch.empty(1, device="meta"), enable_fp_fusion=False)
try:
    compile_for(launches[1], "fp32", 80)
except Exception as error:
    print(error)
SHARED[80] = 1024  # a kernel that fills the real limit takes a minute to compile
compile_for(launches[0], "fp16", 80)
"""


@needs_triton
def test_kernels_that_need_too_much_of_a_gpu_or_fuse_what_they_must_not_are_errors(tmp_path):
    program = tmp_path / "large.py"  # Triton reads a kernel's source from its file
    program.write_text(LARGE)
    done = subprocess.run(
        [sys.executable, program], env=COMPILING | {"PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert "kernel large, fp16, sm_80" in done.stderr
    assert "use smaller blocks" in done.stderr
    assert "kernel fused: it rounds products and sums at once" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--capabilities", "75"], {}, "--capabilities 75: choose from 80 and 90"),
        pytest.param([], {"TRITON_INTERPRET": "1"}, "unset it", marks=needs_triton),
    ],
)
def test_what_it_cant_do_is_one_line(arguments, environment, message):
    done = _report(*arguments, **environment)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
