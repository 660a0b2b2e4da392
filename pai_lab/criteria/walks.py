"""Scores by walks: what is kept is a union of whole paths from the input to the output.

pai.prune(model, "phew", 0.98, batch=data.score_batch())     # only the shape of x is read
"""

from itertools import accumulate

import numpy as np
import torch

from pai_lab.catalog import criterion
from pai_lab.criteria.wiring import Wiring
from pai_lab.functional import prunable

WALKS = 4096  # drawn at a time
TRIES = 30  # draws in a row that bring nothing, until there is nothing more to find


@criterion(
    criterion="1 on random walks, P ~ |w|", family="paths", when="before", track="sparse selection",
    paper="Patil and Dovrolis, PHEW", year=2021, needs="input shape", cost="0", defaults={"unit": "weight"},
)  # fmt: skip
def phew(model, batch, mask, *, kept):
    """1 for the `kept` weights that random walks pass, from input to output and from output to input in turn; else 0.

    A walk steps to the next unit in proportion to the kernel's sum of |w|, through one entry of the kernel in
    proportion to its |w| (among those that do not fall on padding), and takes each branch of a skip connection
    alike. Walks start at one input, or output, after the other. All that is kept lies on a whole path.

    The number is met exactly: a walk that would bring too many is passed over, and the last ones prefer the trodden
    paths (or, where nearly all is trodden, what is left). Layers that `mask` does not name are walked and not
    counted. ValueError if the net does what cannot be walked, or if no walks make up `kept`. Cost: 0 FB.
    """
    weights = prunable(model)
    starts = dict(zip(weights, accumulate((w.numel() for w in weights.values()), initial=0), strict=False))
    sizes = np.concatenate([_sizes(w, name, mask) for name, w in weights.items()])
    on = np.concatenate([np.full(w.numel(), mask is not None and n not in mask) for n, w in weights.items()])
    if isinstance(kept, bool) or not isinstance(kept, int) or not 0 <= kept <= np.count_nonzero(~on):
        raise ValueError(f"kept is a number of weights from 0 to {np.count_nonzero(~on)}, got {kept!r}")
    x = (batch[0] if isinstance(batch, list) else batch)[0]
    net = Wiring(model, x.shape[1:], {id(w): starts[name] for name, w in weights.items()})
    visit(net, sizes, on, kept, np.random.default_rng(torch.randint(2**62, ()).item()))
    found = {name: torch.from_numpy(on[start:][: weights[name].numel()]) for name, start in starts.items()}
    return {name: found[name].view(w.shape).to(w.device, torch.float32) for name, w in weights.items()}


def _sizes(weight, name, mask):
    size = weight.detach().abs().float().cpu()
    if mask is not None and name in mask:
        size.masked_fill_(~mask[name].cpu(), 0)
    return size.flatten().numpy()


def visit(net, sizes, on, kept, rng):
    """Turn on `kept` of the flags `on`, walk after walk. When a walk is too long for the room left, the next draw
    gives less weight to what is off; when hardly anything new is found, more."""
    room, odds_of_off, tries = kept, 1.0, 0
    net.load(sizes)
    while room:
        walk, weight = net.walks(WALKS, rng)
        before, (room, too_long) = room, _admit(walk, weight, on, room)
        if too_long:
            room = _squeeze(walk, weight, on, room)
        tries = 0 if room < before else tries + 1
        if tries == TRIES:
            raise ValueError(
                f"no walks from input to output make up exactly {kept} weights: {room} are missing, and each walk "
                "brings more, or none. Keep more (at least a whole path), or fewer if part of the net is not reached"
            )
        if too_long or before - room < WALKS / 50:
            odds_of_off = min(max(odds_of_off * (0.1 if too_long else 10), 1e-12), 1e12)
            net.load(np.where(on, sizes, sizes * np.float32(odds_of_off)))


def _admit(walk, weight, on, room):
    """Turn on what the first walks pass, as many as there is room for: (room left, is there a walk left over)."""
    walk, weight = _fresh(walk, weight, on)
    weight, first = np.unique(weight, return_index=True)
    brings = np.bincount(walk[first]).cumsum()
    fit = np.searchsorted(brings, room, "right")
    on[weight[walk[first] < fit]] = True
    return room - int(brings[fit - 1] if fit else 0), fit < len(brings)


def _squeeze(walk, weight, on, room):
    """Turn on, one by one, the walks that bring some but not too many: the room left."""
    while room:
        walk, weight = _fresh(walk, weight, on)
        walk, weight = np.divmod(np.unique(walk * len(on) + weight), len(on))  # a shared layer is passed twice
        brings = np.bincount(walk)
        fitting = np.flatnonzero((brings > 0) & (brings <= room))
        if not fitting.size:
            break
        on[weight[walk == fitting[0]]] = True
        room -= int(brings[fitting[0]])
    return room


def _fresh(walk, weight, on):
    """The passages over weights that are off, in the order of walks."""
    fresh = np.flatnonzero(~on[weight])
    fresh = fresh[np.argsort(walk[fresh], kind="stable")]
    return walk[fresh], weight[fresh]
