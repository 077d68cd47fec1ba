"""What each chip can do, as its maker states it."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as its maker states it."""

    flops: float  # dense bfloat16 FLOP/s
    hbm: int  # bytes of memory
    bandwidth: float  # bytes a second from memory
    link: float  # bytes a second one way over one link of a torus, or over all NVLinks to a switch
    torus: int  # axes of the torus, with a link each way along each; 0 is a switch
    domain: int  # chips that links can join: a whole pod, or one server of GPUs
    network: float  # bytes a second a chip one way beyond that: DCN between slices, InfiniBand
    clock: float | None = None  # cycles a second, by which XLA's estimated cycles become seconds
    devices: int = 1  # that JAX shows of one chip; each has its share of flops, hbm and bandwidth


_V5P = Chip(459e12, 95 * 2**30, 2.77e12, 9e10, 3, 8960, 6.25e9, clock=1.75e9)
# flops, hbm, bandwidth, torus, domain: Google Cloud's TPU pages and NVIDIA's data sheets. Links and
# DCN of TPUs: the tables of "How to Scale Your Model" (jax-ml.github.io/scaling-book/tpus); the
# pages state a tenth more for links. NVLink one way is half of the data sheets' 600 and 900 GB/s;
# 200 and 400 Gbit/s of InfiniBand a GPU as in DGX A100 and H100. Clock of v4: arXiv 2304.01433; of
# the others peak FLOP/s over what the matrix units do in a cycle, a power of two: XLA's estimates
# for 8192³, 9.56 M cycles on v5e and 2.98 M on v6e, leave no other. Matched against device_kind.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1.23e12, 4.5e10, 3, 4096, 6.25e9, clock=1.05e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 0.82e12, 4.5e10, 2, 256, 3.125e9, clock=1.5e9),
    "TPU v5p": _V5P,
    "TPU v5": _V5P,
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1.64e12, 9e10, 2, 256, 12.5e9, clock=1.75e9),
    "TPU7x": Chip(2307e12, 192 * 2**30, 7.37e12, 9e10, 3, 9216, 12.5e9, clock=2.2e9, devices=2),
    "A100": Chip(312e12, 80 * 2**30, 2.04e12, 300e9, 0, 8, 25e9),
    "H100": Chip(989e12, 80 * 2**30, 3.35e12, 450e9, 0, 8, 50e9),
    "H200": Chip(989e12, 141 * 10**9, 4.8e12, 450e9, 0, 8, 50e9),
}


def find_chip(kind: str) -> Chip | None:
    """The chip whose name stands in a device kind such as "NVIDIA H100 80GB HBM3"."""
    return next((CHIPS[name] for name in CHIPS if name in kind), None)
