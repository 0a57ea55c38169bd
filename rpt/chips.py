"""What one TPU device can do, from Google Cloud's published figures per chip."""

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


CHIPS = {
    "v4": Chip(275e12, 1228e9, 32e9, 50e9, 3, 4),
    "v5e": Chip(197e12, 819e9, 16e9, 50e9, 2, 16),
    "v5p": Chip(459e12, 2765e9, 95e9, 100e9, 3, 4),
    "v6e": Chip(918e12, 1640e9, 32e9, 112e9, 2, 16),
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
