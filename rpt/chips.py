"""What one TPU device can do, from Google Cloud's published figures per chip.

Sources, read in November 2026: the pages v4, v5e, v5p, v6e and tpu7x of
https://docs.cloud.google.com/tpu/docs, called [docs] below. They give what all links of a chip
carry in both directions together; a link one way is that over twice the number of links.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Per device as jax counts them: a TPU7x chip is two devices, every other chip one (v4 and v5p
    with both cores joined).

    Attributes:
      link_bytes_per_second: one way over one link to a neighbour.
      torus: along how many axes a chip has neighbours: 2 or 3.
      wrap: a slice whose size along an axis is a multiple of this has that axis closed to a ring.
    """

    bf16_flops: float
    hbm_bytes_per_second: float
    hbm_bytes: float
    link_bytes_per_second: float
    torus: int
    wrap: int

    def roofline_seconds(self, flops: float, bytes_: float) -> tuple[float, str]:
        """The least time, and which of the two bounds it."""
        compute, memory = flops / self.bf16_flops, bytes_ / self.hbm_bytes_per_second
        return max(compute, memory), "compute" if compute >= memory else "HBM"


# Memory is the number of [docs] in units of 1e9 bytes: where the page says GiB a chip has 7% more.
# What is closed to a ring: for v4 [docs], multiples of 4; not confirmed there for the others, where
# it is a full axis of a v5e or v6e pod (16), and cubes as in v4.
CHIPS = {
    # [docs] 275 TFLOPs, 32 GiB, 1,200 GBps. The rate of a link was not confirmed.
    "v4": Chip(275e12, 1200e9, 32e9, 50e9, 3, 4),
    # [docs] 197 TFLOPs, 16 GB, 819 GBps; 400 GBps over 4 links.
    "v5e": Chip(197e12, 819e9, 16e9, 50e9, 2, 16),
    # [docs] 459 TFLOPs, 95 GiB, 2,765 GBps; 1,200 GBps over 6 links.
    "v5p": Chip(459e12, 2765e9, 95e9, 100e9, 3, 4),
    # [docs] 918 TFLOPs, 32 GB, 1,638 GBps (page tpu7x; earlier 1,640); 800 GBps over 4 links, where
    # earlier versions of the page had 3,584 Gbps, which is 112e9 for a link.
    "v6e": Chip(918e12, 1638e9, 32e9, 100e9, 2, 16),
    # [docs] of a chip, which is two devices: 2,307 TFLOPs, 192 GiB, 7,380 GBps; 1,200 GBps over 6
    # links. How the two devices share the links is not said there: not confirmed.
    "tpu7x": Chip(2307e12 / 2, 7380e9 / 2, 192e9 / 2, 100e9, 3, 4),
}


def chip_of(topology: str) -> Chip:
    """Of a slice such as 'v5p:4x4x4'.

    Raises:
      ValueError: a generation whose rates are not known.
    """
    generation = topology.partition(":")[0]
    if generation not in CHIPS:
        raise ValueError(
            f"no rates are known for {topology!r}; slices look like v5e:2x4 and the generations "
            f"are {', '.join(CHIPS)}"
        )
    return CHIPS[generation]
