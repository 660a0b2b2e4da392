"""Randomness that leaves no trace: seed torch's global generators for one block, then put them back.

    with seeded(0): layer = torch.nn.Linear(2, 2)
"""

from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed, device="cpu"):
    """Inside the block torch's global generators (the CPU's, and `device`'s if it has its own) start from `seed`;
    afterwards they are as before. ValueError unless `seed` is an integer in [0, 2**63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer from 0 on, got {seed!r}")
    device = torch.device(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.default_generator.manual_seed(seed)
        for one in cuda:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield
