"""Laws that carry a pilot's measurements over to other numbers of workers and groups.

    steps with m times the batch    1 − s (1 − 1/m), with the share of noise s = Bn / (B + Bn)
    ensemble gap of N groups        Δ_N = Δ_G (1 − 1/N) / (1 − 1/G)
    steps after burn-in, N groups   exp(−η Δ_N / λ), with λ = −dL/d ln(step)
    averaging over K ranks          2 (K − 1) (bytes / K / bandwidth + latency)

The first is (1 + Bn/(mB)) / (1 + Bn/B) of McCandlish et al. 2018 (arXiv 1812.06162, Section 2.2), with the noise scale
Bn and the batch B. The second holds for the variance of an average. The third assumes that the share η of the gap is
earned, and converts this loss into steps. The last is a ring allreduce.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcdistill.errors import UserError
from hpcdistill.planning.draws import DRAWS, Draws

EARNED = (0.15, 0.3, 0.5)
"""Least, most probable and largest share η of the ensemble gap that a codistilled model earns: assumed."""

EARNED_IN_ONE_PASS = (-0.4, 0.0, 0.5)
"""The same for a training of at most one pass over the data. There the gap is mostly noise of the optimization, which a
falling learning rate removes without peers."""

FORWARD = 1 / 3
"""Time of a teacher's forward pass, as a share of a student's forward and backward pass: assumed until measured."""


@dataclass(frozen=True)
class Link:
    """Network between ranks."""

    bandwidth: float
    """Bytes per second in one direction."""
    latency: float
    """Seconds of a message."""

    @classmethod
    def parse(cls, text: str) -> Link:
        """Parse `GB/s,µs`, such as 1.25,50.

        Raises:
            UserError: the text is not two numbers, or one is out of range.
        """
        example = "; give bandwidth and latency as GB/s,µs, such as 1.25,50 for 10 Gbit/s Ethernet"
        try:
            bandwidth, latency = (float(word) for word in text.split(","))
        except ValueError:
            raise UserError(f"--link {text} is not two numbers{example}") from None
        if not 1e-6 <= bandwidth <= 1e5:
            raise UserError(f"--link {text}: the bandwidth is {bandwidth:g} GB/s, not 0.000001 to 100,000{example}")
        if not 0.05 <= latency <= 1e7:
            unit = f" ({latency:g} s are {latency * 1e6:g} µs)" if 0 < latency < 0.05 else ""
            raise UserError(f"--link {text}: the latency is {latency:g} µs, not 0.05 to 10,000,000{unit}{example}")
        return cls(bandwidth * 1e9, latency * 1e-6)


ASSUMED_LINK = Link(1.25e9, 50e-6)
"""Network of ranks where nothing was measured and none is given: 10 Gbit/s Ethernet."""


def steps_of_batch(noise_share: Draws, factor: float) -> Draws:
    """Return the steps to a loss with a `factor` times as large batch, relative to those with the pilot's batch.

    Args:
        noise_share: Bn / (B + Bn), in [0, 1].
        factor: m, the quotient of the batches.
    """
    return 1 - noise_share * (1 - 1 / factor)


def gap_of_groups(gap: Draws, measured: int, groups: int) -> Draws:
    """Return the ensemble gap of `groups` groups, from that of `measured` ≥ 2 groups."""
    return gap * (1 - 1 / groups) / (1 - 1 / measured)


def steps_after_burn_in(gap: Draws, slope: Draws, earned: Draws) -> Draws:
    """Return the steps of codistilling groups to a loss, relative to those of one group; both after the burn-in.

    Args:
        gap: ensemble gap Δ of these groups, in nats.
        slope: λ, in nats; where it is not positive, more steps gain nothing, and the ratio is NaN.
        earned: share η of the gap that a codistilled model earns.
    """
    falling = slope > 0
    ratio: Draws = np.where(falling, np.exp(-earned * gap / np.where(falling, slope, 1.0)), np.nan)
    return ratio


def averaging_seconds(ranks: int, size: float, link: Link) -> float:
    """Return the seconds in which a ring averages `size` bytes of gradients over `ranks` ranks."""
    return 2 * (ranks - 1) * (size / ranks / link.bandwidth + link.latency)


def earned_share(rng: np.random.Generator, passes: float) -> Draws:
    """Return draws of η, from a triangular distribution, for a training of `passes` over the data."""
    return rng.triangular(*(EARNED_IN_ONE_PASS if passes <= 1 else EARNED), DRAWS)
