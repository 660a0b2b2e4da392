"""Scopes: how a budget of kept units is split over the layers, before any score is looked at.

pai.allocate(scores, 0.9, scope="erk")
"""

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import numpy as np

from pai_lab.catalog import find, register


class Layer(NamedTuple):
    """What a scope knows of a layer: how many `units` it has, and the `shape` of its weight (out, in, ...)."""

    units: int
    shape: tuple


def quotas(scope, layers, kept):
    """{layer: share of `kept`} in the order of `layers`, or None where one ranking over all layers decides.

    `scope` is a name, a dict {layer: density}, or a function (layers, kept) -> shares. Shares need not sum to `kept`:
    `apportion` scales them, and gives what does not fit into a full layer to the others. ValueError for shares that
    are none, or densities that do not add up to `kept`."""
    if isinstance(scope, Mapping):
        shares = _of_densities(scope, layers, kept)
    else:
        shares = find("scope", scope).function(layers, kept)
    if shares is None:
        return None
    fine = isinstance(shares, Mapping) and set(shares) == set(layers)
    fine = fine and all(np.isfinite(share) and share >= 0 for share in shares.values())
    if not fine or (kept and not any(shares.values())):
        raise ValueError(f"a scope gives each layer of {list(layers)} a share from 0 on, not all 0; got {shares}")
    return {name: shares[name] or 0 for name in layers} if any(shares.values()) else dict.fromkeys(layers, 1)


def _of_densities(densities, layers, kept):
    if set(densities) != set(layers):
        raise ValueError(f"a dict scope names a density for each of {list(layers)}; got {list(densities)}")
    if wrong := {n: d for n, d in densities.items() if not 0 <= d <= 1}:
        raise ValueError(f"densities lie in [0, 1]; got {wrong}")
    shares, total = {n: densities[n] * layers[n].units for n in layers}, sum(layer.units for layer in layers.values())
    if abs(sum(shares.values()) - kept) > len(layers):  # more than rounding
        raise ValueError(
            f"these densities keep {sum(shares.values()):.0f} of {total} units, and the sparsity asks for {kept}: pass "
            f"sparsity={1 - sum(shares.values()) / total:.10g}"
        )
    return shares


@register("scope", "global", method="one ranking over all layers", family="global")
def one_ranking(layers, kept):
    """No counts per layer: the scores alone decide where the budget goes."""


@register("scope", "layer", method="the same density in each layer", family="uniform")
def uniform(layers, kept):
    return {name: layer.units for name, layer in layers.items()}


@register(
    "scope", "uniform+", method="uniform, but the first convolution dense and 1 in 5 of the last linear layer kept",
    family="uniform", paper="Gale et al., The state of sparsity in deep neural networks", year=2019,
)  # fmt: skip
def uniform_plus(layers, kept):
    """Each of the two only if there is another layer to take the rest. Where they alone exceed the budget nothing is
    published; then every layer has the same density."""
    names = list(layers)
    fixed = {n: layers[n].units for n in names[:1] if len(names) > 1 and len(layers[n].shape) > 2}
    rest = [name for name in names if name not in fixed]
    if _density(layers, rest, kept, fixed) < 0.2 and len(rest) > 1 and len(layers[rest[-1]].shape) == 2:
        last = rest.pop()
        fixed[last] = 0.2 * layers[last].units
    density = _density(layers, rest, kept, fixed)
    if density < 0:
        return uniform(layers, kept)
    return {name: fixed.get(name, density * layers[name].units) for name in names}


def _density(layers, rest, kept, fixed):
    """The density of the layers `rest` if the `fixed` ones have their share of the budget."""
    return (kept - sum(fixed.values())) / sum(layers[name].units for name in rest)


@register(
    "scope", "er", method="density in proportion to (in + out) / (in out)", family="random graph",
    paper="Mocanu et al., Scalable training with adaptive sparse connectivity", year=2018,
)  # fmt: skip
def erdos_renyi(layers, kept):
    return {name: layer.units * sum(layer.shape[:2]) / prod(layer.shape[:2]) for name, layer in layers.items()}


@register(
    "scope", "erk", method="density in proportion to (in + out + kh + kw) / (in out kh kw)", family="random graph",
    paper="Evci et al., RigL", year=2020,
)  # fmt: skip
def erdos_renyi_kernel(layers, kept):
    return {name: layer.units * sum(layer.shape) / prod(layer.shape) for name, layer in layers.items()}


@register(
    "scope", "igq", method="density 1 / (1 + F n), F so that the total is right", family="quota",
    paper="Vysogorets and Kempe, Connectivity matters", year=2023,
)  # fmt: skip
def ideal_gas(layers, kept):
    """A layer of n units keeps n / (1 + F n): small layers stay nearly dense, none is ever full."""
    units = np.array([layer.units for layer in layers.values()], float)
    low, high = -40.0, 40.0  # log F
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (units / (1 + np.exp(middle) * units)).sum() > kept else (low, middle)
    return dict(zip(layers, units / (1 + np.exp(high) * units), strict=True))


@register(
    "scope", "smart", method="density falls with depth as (L-l+1)^2 + (L-l+1); the last linear layer keeps 0.3",
    family="quota", paper="Su et al., Sanity-checking pruning methods", year=2020,
)  # fmt: skip
def smart_ratios(layers, kept):
    """What a full layer cannot hold goes to the next one. Where the last layer's 0.3 alone exceeds the budget nothing
    is published; then it has the density of the whole."""
    names = list(layers)
    last = {n: 0.3 * layers[n].units for n in names[-1:] if len(names) > 1 and len(layers[n].shape) == 2}
    if sum(last.values()) > kept:
        last = {n: layers[n].units * kept / sum(layer.units for layer in layers.values()) for n in last}
    rest = [name for name in names if name not in last]
    weights = {n: layers[n].units * ((len(rest) - i) ** 2 + len(rest) - i) for i, n in enumerate(rest)}
    shares, over, scale = {}, 0.0, (kept - sum(last.values())) / sum(weights.values())
    for name in rest:
        shares[name] = min(scale * weights[name] + over, layers[name].units)
        over += scale * weights[name] - shares[name]
    return shares | last


@register(
    "scope", "balanced", method="the same number of units in each layer", family="quota",
    paper="Gadhikar et al., Why random pruning is all we need to start sparse", year=2023,
)  # fmt: skip
def balanced(layers, kept):
    return dict.fromkeys(layers, 1)
