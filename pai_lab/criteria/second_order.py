"""Scores from the curvature of the training loss, and the update that makes up for what is removed.

mask = pai.prune(model, "grasp", 0.9, batch=data.score_batch(per_class=10))
"""

from functools import reduce

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pai_lab.catalog import criterion, nearest
from pai_lab.criteria.first_order import TRACK, cross_entropy, shares
from pai_lab.functional import fit, forward, in_mode, masked, prunable

MOST_ROWS = 20_000  # weights of a model: each costs a double backward pass
MOST_SQUARED = 5_000  # weights of a layer: 200 MB for its Hessian in float64
TRAINED = {"family": "second order", "when": "after", "needs": "labelled batch", "defaults": {"mode": "eval"}}


# -- the criteria --------------------------------------------------------------------------------------------------
@criterion(
    criterion="w * (H dL/dw)", family="second order", paper="Wang et al., GraSP", year=2020,
    cost="3 to 4 FB per sample", defaults={"mode": "train", "passes": 3}, **TRACK,
)  # fmt: skip
def grasp(model, batch, mask, *, temperature=200):
    """w * (H g), signed: how much gradient flow |g|^2 goes with w, to first order; negative: the flow grows without
    it. L is the cross-entropy of output / temperature, taken temperature-fold: that keeps the ranks, and far from
    the smallest floats. Cost: 3 to 4 FB per sample, 1 more for a list of batches.

    ValueError if temperature is no positive number, or an operation of the model has no second derivative."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")
    tensors = masked(model, mask)
    weights, pairs, flow = {name: tensors[name] for name in prunable(model)}, shares(batch), None

    def loss(x, y, share):
        return cross_entropy(forward(model, tensors, x), y, temperature) * (temperature * share)

    if len(pairs) > 1:  # of one batch, g comes from the same graph as H g
        flow = _total(slopes(loss(*pair), weights.values(), graph=False) for pair in pairs)
    products = _total(hessian_product(loss(*pair), weights.values(), flow) for pair in pairs)
    return {n: w.detach().mul_(p) for (n, w), p in zip(weights.items(), products, strict=True)}  # in our own copy


@criterion(
    criterion="h w^2 / 2, h = diagonal of H", paper="LeCun et al., Optimal brain damage", year=1990,
    cost="fisher: 1 FB per sample", **TRAINED,
)  # fmt: skip
def obd(model, batch, mask, *, curvature="fisher", samples=10):
    """h w^2 / 2: what the loss rises by when w goes, at a minimum of a loss with Hessian diag(h). `curvature`:

    "fisher": mean of each sample's g^2; never negative; 1 FB per sample, one sample at a time. The default.
    "gauss_newton": the same over all labels, weighted by the model's own probabilities, and LeCun's choice; never
    negative; exact where the logits are linear in w; as many B as classes.
    "hutchinson": E[v * Hv] over random signs v; off by the rest of H's row, less with more `samples` (2 to 3 FB each).
    "exact": a double backward pass per weight, up to 20,000 weights.

    Off a minimum the last two can be negative, and stay so: the loss is expected to fall, the weight goes first.
    ValueError for another curvature, too many weights for "exact", and BatchNorm that uses batch statistics in the
    first two, where no sample has a gradient of its own."""
    tensors = masked(model, mask)
    weights = {name: tensors[name] for name in prunable(model)}
    diagonal = hessian_diagonal(model, tensors, list(weights.values()), batch, curvature, samples)
    return {n: w.detach().square() * h / 2 for (n, w), h in zip(weights.items(), diagonal, strict=True)}


@criterion(
    criterion="w^2 / (2 [H^-1]_ww)", paper="Hassibi et al., Optimal brain surgeon", year=1993,
    cost="fisher: 1 FB per sample, and an inverse per layer", **TRAINED,
)  # fmt: skip
def obs(model, batch, mask, *, curvature="fisher", damping=1e-4):
    """w^2 / (2 [H^-1]_ww): what the loss rises by when w goes and the rest of its layer makes up for it as well as
    it can (`obs_update`). H is a layer's Hessian among its kept weights, plus `damping` on the diagonal.

    `curvature` as in `obd`: "fisher", "gauss_newton" or "exact". The first two have at most one rank per sample
    (and class): below the layer's size, damping fills the rest. Layers that the mask does not name are left out.
    Cost: as in `obd`, and n^3 steps for each layer of n weights. ValueError for layers of more than 5,000 weights,
    and if H is not positive definite: "exact" off a minimum, or damping 0."""
    names = [name for name in prunable(model) if mask is None or name in mask]
    weights, hessians = layer_hessians(model, batch, mask, names, curvature, damping)
    scores = {}
    for name, w in weights.items():
        keep = (torch.ones_like(w, dtype=torch.bool) if mask is None else mask[name]).flatten().cpu()
        flat = w.detach().flatten().cpu().double()
        inverse = torch.cholesky_inverse(_factor(name, hessians[name][keep][:, keep]))
        flat[keep] = flat[keep].square() / (2 * inverse.diagonal())
        scores[name] = flat.view(w.shape).to(w)
    return scores


def obs_update(model, batch, mask, *, curvature="fisher", damping=1e-4):
    """What to add to the weights so that the removed ones become 0 and the kept ones make up for it: {name: tensor
    of the weight's shape}, for each layer that loses weights. The model is not changed.

    In each layer on its own the change d minimises d'Hd / 2 with d = -w at the removed places, H as in `obs` at the
    model's weights; a single weight gives Hassibi's -w H^-1 e / [H^-1]_ww. Add, then `mask.apply(model)`. Scored in
    eval mode. Cost and errors as in `obs`."""
    fit(mask, dict(model.named_parameters(remove_duplicate=False)), type(model).__name__)
    losing = [name for name in prunable(model) if name in mask and not mask[name].all()]
    if not losing:
        return {}
    with in_mode(model, False), torch.enable_grad():
        weights, hessians = layer_hessians(model, batch, None, losing, curvature, damping)
    changes = {}
    for name, w in weights.items():
        keep, h = mask[name].flatten().cpu(), hessians[name]
        change = -w.detach().flatten().cpu().double()
        slope = h[keep][:, ~keep] @ change[~keep]  # along the kept weights, once the removed are gone
        change[keep] = -torch.cholesky_solve(slope[:, None], _factor(name, h[keep][:, keep]))[:, 0]
        changes[name] = change.view(w.shape).to(w)
    return changes


# -- products with the Hessian -------------------------------------------------------------------------------------
def slopes(loss, weights, graph=True):
    """The gradients of a scalar, one per tensor of `weights`; with the graph that second derivatives need.
    ValueError if an operation on the way can be differentiated only once."""
    gradients = torch.autograd.grad(loss, list(weights), create_graph=graph, materialize_grads=True)
    nodes, seen = [g.grad_fn for g in gradients if g.grad_fn], set()
    while nodes:  # torch leaves out what it cannot differentiate twice, and says nothing
        node = nodes.pop()
        if node.name().endswith("Error"):
            raise ValueError("the model has an operation marked once_differentiable: it has no second derivative")
        below = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= below
        nodes += below
    return gradients


def hessian_product(loss, weights, vectors=None):
    """H v for the Hessian H of a scalar `loss`: one tensor per weight. `vectors` None: v is the gradient itself.
    Exact, from one forward and two backward passes. ValueError as in `slopes`."""
    weights = list(weights)
    gradients = slopes(loss, weights)
    return push(gradients, weights, vectors or [g.detach() for g in gradients])


def push(gradients, weights, vectors, keep_graph=False):
    """H v from gradients that still have their graph; 0 where they do not depend on a weight."""
    live = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not live:
        return [torch.zeros_like(w) for w in weights]
    outputs, vectors = zip(*live, strict=True)
    return torch.autograd.grad(outputs, weights, vectors, retain_graph=keep_graph, materialize_grads=True)


def hessian_rows(gradient, weight):
    """The rows of the Hessian among one layer's n weights, from its gradient with graph: n tensors (n,)."""
    for k in range(weight.numel()):
        one = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
        one[k] = 1
        yield push([gradient], [weight], [one.view(weight.shape)], keep_graph=True)[0].flatten()


def exact_diagonal(loss, weights):
    """The diagonal of the Hessian of a scalar `loss`, one tensor per weight, by a backward pass per entry."""
    pairs = zip(slopes(loss, weights), weights, strict=True)
    return [torch.stack([row[k] for k, row in enumerate(hessian_rows(g, w))]).view(w.shape) for g, w in pairs]


def hutchinson(loss, weights, samples):
    """Estimate of the same: the mean of v * Hv over `samples` draws of random signs v. One draw is off by a
    variance of the sum of H_kj^2 over all j but k. ValueError unless `samples` is an integer from 1 on."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples must be an integer from 1 on, got {samples!r}")
    gradients, total = slopes(loss, weights), [torch.zeros_like(w) for w in weights]
    for _ in range(samples):
        signs = [torch.randint_like(w, 2) * 2 - 1 for w in weights]
        torch._foreach_addcmul_(total, signs, push(gradients, weights, signs, keep_graph=True), 1 / samples)
    return total


# -- curvature from one sample at a time ---------------------------------------------------------------------------
def own_label(output, y):
    """The loss of one sample, whose squared gradient is the empirical Fisher."""
    return [cross_entropy(output, y)]


def every_label(output, y):
    """One loss for each label, weighted so that the squared gradients sum to the Gauss-Newton diagonal: with
    probabilities p the Hessian of cross-entropy in the logits is the sum of p_c (p - e_c)(p - e_c)' over c."""
    cross_entropy(output, y)  # raises where output or label do not fit
    chance = output.detach().softmax(1) / output[0, 0].numel()
    return (output.log_softmax(1) * chance.sqrt()).flatten()


SQUARES = {"fisher": own_label, "gauss_newton": every_label}
CURVATURES = [*SQUARES, "hutchinson", "exact"]


def sample_gradients(model, tensors, weights, batch, losses=own_label):
    """Gradients, one tuple of tensors per loss of each of the n samples, over sqrt(n): their outer products sum to
    the curvature. `losses`: (output, y) of one sample -> scalars. One sample at a time: as fast as batched
    per-sample gradients of convolutions, and n times smaller. ValueError under batch statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{name!r} takes statistics of the batch, so no sample has a gradient of its own; use mode='eval', "
                "or curvature='hutchinson' or 'exact'"
            )
    for x, y, share in shares(batch):
        for one in zip(x.split(1), y.split(1), strict=True):
            for loss in losses(forward(model, tensors, one[0]), one[1]):
                yield torch.autograd.grad(
                    loss * (share / len(x)) ** 0.5, weights, retain_graph=True, materialize_grads=True
                )


def hessian_diagonal(model, tensors, weights, batch, curvature, samples):
    """The diagonal of a curvature of the mean loss over a batch: one tensor per weight. Errors as in `obd`."""
    if curvature in SQUARES:
        total = [torch.zeros_like(w) for w in weights]
        for gradients in sample_gradients(model, tensors, weights, batch, SQUARES[curvature]):
            torch._foreach_addcmul_(total, gradients, gradients)
        return total
    if curvature == "hutchinson":
        return _total(hutchinson(loss, weights, samples) for loss in _losses(model, tensors, batch))
    _check(curvature, CURVATURES)
    if (size := sum(w.numel() for w in weights)) > MOST_ROWS:
        raise ValueError(
            f"the exact diagonal takes a double backward pass for each of {size:,} weights; at most {MOST_ROWS:,}: "
            "use curvature='gauss_newton' or 'hutchinson'"
        )
    return _total(exact_diagonal(loss, weights) for loss in _losses(model, tensors, batch))


# -- the Hessian of a layer ----------------------------------------------------------------------------------------
def layer_hessians(model, batch, mask, names, curvature, damping):
    """(weights, Hessians): for each layer of `names` its masked weight, and the curvature among its n weights with
    `damping` on the diagonal: (n, n), float64, on the CPU. Errors and cost as in `obs`."""
    _check(curvature, [*SQUARES, "exact"])
    tensors = masked(model, mask)
    weights = {name: tensors[name] for name in names}
    for name, w in weights.items():
        if (n := w.numel()) > MOST_SQUARED:
            raise ValueError(
                f"{name!r} has {n:,} weights: their Hessian would take {8 * n * n / 1e9:.1f} GB. At most "
                f"{MOST_SQUARED:,} go: leave the layer out of the mask (exclude=[{name!r}]), or use 'obd'"
            )
    leaves = list(weights.values())
    if curvature == "exact":
        blocks = _total(_blocks(loss, leaves) for loss in _losses(model, tensors, batch))
    else:
        layers = zip(*sample_gradients(model, tensors, leaves, batch, SQUARES[curvature]), strict=True)
        rows = (torch.stack(layer).flatten(1).cpu().double() for layer in layers)
        blocks = [one.T @ one for one in rows]
    damped = (block.cpu().double() + damping * torch.eye(len(block), dtype=torch.float64) for block in blocks)
    return weights, dict(zip(names, damped, strict=True))


def _blocks(loss, weights):
    pairs = zip(slopes(loss, weights), weights, strict=True)
    return [torch.stack(list(hessian_rows(g, w))) for g, w in pairs]


def _factor(name, hessian):
    """The Cholesky factor. ValueError if the Hessian is not positive definite."""
    factor, wrong = torch.linalg.cholesky_ex(hessian)
    if wrong:
        raise ValueError(f"the Hessian of {name!r} is not positive definite: take more damping, or curvature='fisher'")
    return factor


def _check(curvature, allowed):
    if curvature not in allowed:
        raise nearest("curvature", curvature, allowed)


def _losses(model, tensors, batch):
    return (cross_entropy(forward(model, tensors, x), y) * share for x, y, share in shares(batch))


def _total(parts):
    return reduce(torch._foreach_add, parts)  # not in place: two weights may have one gradient
