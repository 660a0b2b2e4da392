"""How fast: the density that is left after a share of the pruning rounds, as pure functions.

exponential(0.01, 0.5) == 0.1; linear(0.01, 0.5) == 0.505
"""

from pai_lab.catalog import find, register


@register("schedule", method="the same factor each round: d^(k/n)", paper="Tanaka et al., SynFlow", year=2020)
def exponential(density, progress):
    """Density after `progress` in (0, 1] of the rounds; each round keeps the same fraction."""
    return density**progress


@register("schedule", method="the same amount each round: 1 - (1 - d) k/n", paper="Tanaka et al., SynFlow", year=2020)
def linear(density, progress):
    """Density after `progress` in (0, 1] of the rounds; each round removes the same number."""
    return 1 - (1 - density) * progress


def sparsities(schedule, sparsity, iterations):
    """The sparsity after each of `iterations` rounds, a list that ends at exactly `sparsity`.
    `schedule` is a name or a function (density, progress) -> density. ValueError if iterations < 1."""
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations must be an integer from 1 on, got {iterations!r}")
    step = find("schedule", schedule).function
    return [1 - step(1 - sparsity, k / iterations) for k in range(1, iterations)] + [sparsity]
