"""Tensors and plain facts in one safetensors file: whole or not there, never pickle.

storage.write(path, {"w": tensor}, {"kind": "note"}); tensors, facts = storage.read(path, "note")
"""

import json
import os
from pathlib import Path


def write(path, tensors, facts):
    """Write tensors and JSON-able `facts` (with a "kind"); a rename at the end makes it all or nothing."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, part, {"pai_lab": json.dumps(facts)})
        part.chmod(0o644)  # safetensors makes it private; a data folder may be shared
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read(path, kind):
    """The tensors and facts of a file that `write` wrote with facts["kind"] == kind.
    FileNotFoundError if there is none; ValueError if it is cut short or holds something else."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("pai_lab", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole {kind} (half-written?): {error}. Delete it and make it anew") from None
    if facts.get("kind") != kind:
        raise ValueError(f"{path} is no {kind}: it holds {facts.get('kind', 'something else')}")
    return tensors, facts
