"""Some calls of every path, for compute-sanitizer, under which a whole test run would take hours.

    compute-sanitizer --tool memcheck python tests/gpu/sanitize.py

Every output and gradient is checked, too. RNNEXT_TEST_DEVICE=cpu tries the script itself.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from pathlib import Path

# Each tensor is an allocation of its own, so that memcheck sees what reads past its end.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
sys.path.insert(1, str(Path(__file__).parents[1]))

import torch
from cases import Case, Data, error
from on_device import DEVICE, MATHS, ON_CUDA, PATHS

from rnnext import ops

CASES = (
    Case(T=4, N=20, C=9, H=200),
    Case(T=3, N=3, C=5, H=17, L=2, D=2),
    Case(T=4, N=3, C=5, H=64, D=2, lengths=(4, 2, 1), h0=False),
    Case(T=3, N=2, C=3, H=333, bias=False, L=2, dropout=0.3),
)
CELLS = ("LSTM", "GRU", "LSTM_PROJ")
DTYPES = ("bfloat16", "float32", "float64")
# The newest path first, and of all others something before all of it: time may end.
CALLS = [*itertools.product(CASES, DTYPES, CELLS, reversed(PATHS))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=1e9, help="no call begins after so many")
    end = time.monotonic() + parser.parse_args().seconds
    if ON_CUDA and not torch.cuda.is_available():
        print("needs a GPU")
        return 2
    refused, wrong, done = 0, [], 0
    for case, math, cell, path in CALLS:
        if time.monotonic() > end:
            break
        done += 1
        data = Data(cell, case, device=DEVICE)
        os.environ["RNNEXT_CUDA_PATH"] = path
        try:
            results = data.run(ops.rnn, MATHS[math].dtype)
        except RuntimeError as error_of_path:
            if f"RNNEXT_CUDA_PATH={path}" not in str(error_of_path):
                raise
            refused += 1
            continue
        exact = data.reference()
        worst = max(error(results[name], exact[name]) for name in data.names)
        what = f"{cell} {case} {math} {path}: {worst:.1e}"
        print(what, flush=True)
        if not worst <= 3 * MATHS[math].bound:  # the data are not rounded to bfloat16 first
            wrong.append(what)
    left = len(CALLS) - done
    print(f"{done} calls, {refused} of them refused by the path, {left} left out for time")
    print(f"{len(wrong)} wrong", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
