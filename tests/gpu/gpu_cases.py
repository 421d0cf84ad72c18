"""The cells and calls of the GPU tests: odd sizes, each value of T, N and H with several others."""

from cases import CELLS, Case

# T in 1, 3, 63, 129; N in 1, 2, 7, 20, 33, 130; H in 1, 17, 64, 200, 333, 650, 1024; C odd. Few are
# large: their float64 reference runs on the CPU.
SIZES = (
    Case(T=1, N=1, C=1, H=1),
    Case(T=3, N=130, C=5, H=17),
    Case(T=129, N=2, C=3, H=64),
    Case(T=63, N=7, C=33, H=17, h0=False),
    Case(T=129, N=33, C=17, H=64, bias=False),
    Case(T=1, N=33, C=7, H=200),
    Case(T=63, N=20, C=65, H=200),
    Case(T=129, N=1, C=9, H=200, h0=False, bias=False),
    Case(T=3, N=20, C=9, H=333),
    Case(T=63, N=1, C=129, H=333),
    Case(T=3, N=7, C=31, H=650, h0=False),
    Case(T=35, N=20, C=101, H=650),
    Case(T=1, N=2, C=63, H=1024),
    Case(T=3, N=130, C=33, H=1024, bias=False),
    Case(T=3, N=1, C=3, H=1024),
)

# Of tests/written_cells.py: product and pointwise functions; statistics of a row; noise; four
# states; a second product. nvcc takes its time for each: benchmarks/gpu/compile_cells.py.
WRITTEN = ("LightGRU", "LayerNormLSTM", "Zoneout", "SLSTM", "MinimalGated")

# Those that are differentiated twice.
TWICE = (*CELLS, "LightGRU")

# Layers, directions, packed rows and dropout, in the sizes that kernels are made for.
STACKS = (
    Case(T=35, N=20, C=31, H=200, L=2, D=2),
    Case(T=20, N=33, C=17, H=64, L=3, dropout=0.4),
    Case(T=30, N=9, C=17, H=72, L=2, D=2, lengths=(30, 30, 21, 8, 8, 7, 3, 1, 1), dropout=0.25),
    Case(T=63, N=3, C=5, H=333, D=2, lengths=(63, 40, 2), h0=False),
)

# Calls that the persistent kernels are for: these must not be refused.
PERSISTENT = (
    Case(T=35, N=20, C=201, H=200),
    Case(T=35, N=20, C=65, H=650),
    Case(T=64, N=1, C=33, H=256),
    Case(T=32, N=8, C=65, H=512),
    Case(T=16, N=8, C=65, H=1024),
    Case(T=16, N=20, C=33, H=200, L=2, D=2),
)

# Kernels that repeat: large enough for many blocks, short enough to run fifty times.
REPEATED = (
    Case(T=129, N=20, C=33, H=200),
    Case(T=63, N=1, C=17, H=333),
    Case(T=35, N=20, C=65, H=650),
    Case(T=20, N=33, C=17, H=64, L=2, D=2, lengths=(*[20] * 11, *[13] * 11, *[2] * 11)),
    Case(T=16, N=7, C=33, H=1024),
)
