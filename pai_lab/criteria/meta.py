"""Scores that look ahead: how much does a weight matter after a few steps of training?

pai.prune(model, "prospr", 0.98, batch=[data.score_batch(seed=i) for i in range(4)])
"""

import torch

from pai_lab.catalog import criterion, nearest
from pai_lab.criteria.first_order import cross_entropy
from pai_lab.functional import forward, masked, prunable


def replaced(tensors, new):
    """`tensors` (from `masked`) with others in the place of some: `new` maps the id of a tensor to the one to use."""
    return {name: new.get(id(tensor), tensor) for name, tensor in tensors.items()}


@criterion(
    criterion="|dL(theta_K)/dc|, theta_0 = c * w", family="meta-gradient", when="before", track="sparse selection",
    paper="Alizadeh et al., ProsPr", year=2022, needs="labelled batch", cost="about 3K + 1 FB per sample",
    defaults={"mode": "train", "passes": 2.5},
)  # fmt: skip
def prospr(model, batch, mask, *, steps=3, lr=0.5, momentum=0.9, order="full"):
    """|dL(theta_K)/dc| at c = 1, where theta_0 = c * w and theta_K comes after K = `steps` steps of SGD from it: what
    a factor on the weight does to the loss that training arrives at. With `steps=0` it is SNIP.

    Each step, and the loss at the end, takes the next pair of a list `batch`, K + 1 pairs in the paper; a shorter
    list starts again, a single pair serves every time. `lr` and `momentum` are those of the steps, in which all
    parameters learn. `order="first"` leaves out how the steps' gradients change with c: a third of the time, and
    activations of one step in memory where "full" holds K + 1. ValueError for `steps` below 0 or another `order`.
    Cost: about 3K + 1 FB of a pair's samples (the budget counts its K + 1 forward passes).
    """
    _check(steps, lr, momentum, order)
    pairs = batch if isinstance(batch, list) else [batch]
    tensors = masked(model, mask)
    weights = {name: tensors[name] for name in prunable(model)}
    factors = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items()}
    now = {id(t): t for t in tensors.values() if t.requires_grad}
    now |= {id(w): w.detach() * factors[name] for name, w in weights.items()}
    kept = {} if mask is None else {id(tensors[name]): keep.to(tensors[name]) for name, keep in mask.items()}
    velocity = dict.fromkeys(now, 0)
    for step in range(steps):
        loss = _loss(model, replaced(tensors, now), pairs[step % len(pairs)])
        gradients = _gradients(loss, now, create_graph=order == "full")
        velocity = {k: momentum * velocity[k] + g * kept.get(k, 1) for k, g in gradients.items()}
        now = {k: p - lr * velocity[k] for k, p in now.items()}
    loss = _loss(model, replaced(tensors, now), pairs[steps % len(pairs)])
    return {name: g.abs() for name, g in _gradients(loss, factors).items()}


def _loss(model, tensors, pair):
    x, y = pair
    return cross_entropy(forward(model, tensors, x), y)


def _gradients(loss, of, **options):
    """d loss / d each tensor of a mapping, 0 where it has no part in the loss."""
    found = torch.autograd.grad(loss, list(of.values()), materialize_grads=True, **options)
    return dict(zip(of, found, strict=True))


def _check(steps, lr, momentum, order):
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps is how many steps of training to look ahead, an integer from 0 on; got {steps!r}")
    if not lr > 0 or not 0 <= momentum < 1:
        raise ValueError(f"lr must be above 0 and momentum in [0, 1); got lr={lr!r}, momentum={momentum!r}")
    if order not in ("full", "first"):
        raise nearest("order", order, ("full", "first"))
