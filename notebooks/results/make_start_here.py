"""The measured table behind lesson 00: criteria at initialization x sparsities x five seeds, on small data.

    python notebooks/results/make_start_here.py     # writes start_here.csv; goes on where it was interrupted

digits and mnist1d, and MNIST where PAI_LAB_DATA has it. About 10 minutes on two cores, with MNIST about 30.
"""

import os
from pathlib import Path

import pai_lab as pai

HERE = Path(__file__).parent
METHODS = ["random", "magnitude", "snip", "synflow"]
SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995]
SETTINGS = [
    {"data": "digits", "model": "mlp", "epochs": 20},
    {"data": "mnist1d", "model": "mlp", "epochs": 30},
]
if (Path(os.environ.get("PAI_LAB_DATA", "")) / "MNIST").is_dir():
    SETTINGS.append({"data": "mnist", "model": "lenet_300_100", "epochs": 3, "batch_size": 128})
KEEP = [
    "data", "model", "method", "asked_sparsity", "sparsity", "seed", "epochs", "batch_size", "lr", "optimizer",
    "val_accuracy", "test_accuracy", "test_loss", "weights", "kept", "macs", "sparse_macs", "dense_bytes",
    "bitmap_bytes", "budget_train", "budget_scoring", "initial", "device", "pai_lab", "torch", "python", "processor",
]  # fmt: skip


def points():
    """Every setting, method, sparsity and seed; and the dense network once per seed."""
    for setting in SETTINGS:
        for seed in range(5):
            yield setting | {"method": "random", "sparsity": 0.0, "seed": seed}
            for method in METHODS:
                for sparsity in SPARSITIES:
                    yield setting | {"method": method, "sparsity": sparsity, "seed": seed}


if __name__ == "__main__":
    table = pai.sweep(pai.experiment, list(points()), folder=HERE.parents[1] / "build" / "start_here")
    table = table[KEEP].sort_values(["data", "method", "asked_sparsity", "seed"])
    table.to_csv(HERE / "start_here.csv", index=False, float_format="%.6g")
    print(pai.checklist(table).to_string())
