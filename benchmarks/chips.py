"""What one TPU device can do, from Google Cloud's published figures per chip."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """Per device as jax counts them: a TPU7x chip is two devices, every other chip one (v4 and v5p
    with both cores joined)."""

    bf16_flops: float
    hbm_bytes_per_second: float
    hbm_bytes: float

    def roofline_seconds(self, flops: float, bytes_: float) -> tuple[float, str]:
        """The least time, and which of the two bounds it."""
        compute, memory = flops / self.bf16_flops, bytes_ / self.hbm_bytes_per_second
        return max(compute, memory), "compute" if compute >= memory else "HBM"


CHIPS = {
    "v4": Chip(275e12, 1228e9, 32e9),
    "v5e": Chip(197e12, 819e9, 16e9),
    "v5p": Chip(459e12, 2765e9, 95e9),
    "v6e": Chip(918e12, 1640e9, 32e9),
    "tpu7x": Chip(2307e12 / 2, 7380e9 / 2, 192e9 / 2),
}
