"""Functions that torch.compile can fuse, without the compiler where nothing is compiled."""

import subprocess
import sys


def test_neither_the_compiler_nor_matplotlib_is_loaded_before_it_is_needed():
    heavy = {"torch._dynamo", "torch._inductor", "matplotlib", "sympy"}
    code = f"import sys, pretrain.loop.trainer, finetune.evaluate; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
