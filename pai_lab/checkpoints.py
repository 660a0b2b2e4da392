"""A training on disk: one safetensors file with model, optimizer, mask, random states, and the facts as JSON in its
header; resuming from it gives bit for bit what an uninterrupted training gives.

    pai.train(model, data, epochs=30, checkpoint="run.safetensors")     # run it again after a crash
"""

import os

import torch

from pai_lab import storage
from pai_lab.mask import Mask

KIND = "pai_lab checkpoint"
PROGRESS = ("step", "epoch", "samples", "seconds", "stop", "history")


def write(path, training, config):
    """Save a running training after an epoch, all or nothing."""
    tensors, plain = {f"model.{n}": t.clone() for n, t in training.model.state_dict().items()}, {}
    for number, state in training.optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{key}"] = value.clone()
            else:
                plain[f"{number}.{key}"] = value
    tensors |= {"random.order": training.generator.get_state(), "random.cpu": torch.get_rng_state()}
    device = next(training.model.parameters()).device
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    mask = training.handle.mask if training.handle else None
    tensors |= {f"mask.{n}": t for n, t in (mask or {}).items()}
    facts = {name: getattr(training, name) for name in PROGRESS}
    facts |= {"kind": KIND, "config": config, "optimizer": plain, "mask": list(mask or ())}
    storage.write(path, tensors, facts | {"budget": mask.budget if mask else 0})


def read(path, config, model):
    """(tensors, facts) of a checkpoint that fits the settings and the model; None if there is no file.
    ValueError that shows the difference if it does not fit, or if the file is not whole."""
    if path is None or not os.path.exists(path):
        return None
    tensors, facts = storage.read(path, KIND)
    there = facts["config"]
    if changed := [key for key in config if there.get(key) != config[key]]:
        shown = ", ".join(f"{key}: {there.get(key)!r} there, {config[key]!r} now" for key in changed)
        raise ValueError(f"the checkpoint {path} has other settings ({shown}); delete it or change them back")
    saved = {n: tuple(t.shape) for n, t in _part(tensors, "model.").items()}
    here = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    for name in [*here, *saved]:
        if here.get(name) != saved.get(name):
            raise ValueError(
                f"the checkpoint {path} is of another model: {name} is {saved.get(name)} there, {here.get(name)} here"
            )
    return tensors, facts


def restore_model(saved, model):
    """Load the model's tensors; the mask that was in force, or None."""
    tensors, facts = saved
    model.load_state_dict(_part(tensors, "model."))
    return Mask({n: tensors[f"mask.{n}"] for n in facts["mask"]}, facts["budget"]) if facts["mask"] else None


def restore_optimizer(saved, optimizer):
    """Load the optimizer's state. Hold the mask afterwards: loading drops an optimizer's hooks."""
    tensors, facts = saved
    state = {}
    for name, value in (_part(tensors, "optimizer.") | facts["optimizer"]).items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def restore_progress(saved, training):
    """Load counters, history and random states."""
    tensors, facts = saved
    training.history.extend(facts["history"])
    for name in PROGRESS[:-1]:
        setattr(training, name, facts[name])
    training.generator.set_state(tensors["random.order"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], next(training.model.parameters()).device)


def _part(tensors, prefix):
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
