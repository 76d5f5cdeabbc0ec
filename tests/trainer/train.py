#!/usr/bin/env python3
"""Train a classifier on Fisher's Iris data from a JSON configuration.

    train.py --config FILE

The configuration, with its defaults:

    {
      "model": {"hidden": 8},           units of the hidden layer; 0 is plain softmax regression
      "train": {
        "epochs": 60,                   passes over the training rows
        "batch_size": 16,               rows per step
        "learning_rate": 0.1,           step size; a large one diverges
        "weight_decay": 0.01,           L2 penalty
        "seed": 0,                      of the first weights and of the order of the rows
        "device": "auto",               auto, cpu or cuda (cuda needs PyTorch)
        "epoch_seconds": 0              an epoch lasts at least so long, to watch a run
      },
      "data": "iris.csv",               beside this file
      "output_dir": null                $TAXIWAY_JOB_DIR when null
    }

Exit status: 0 the model is saved; 1 training failed (the loss is no longer finite, say); 2 the configuration is wrong.
"""

import argparse
import csv
import json
import math
import os
import random
import sys
import time
from pathlib import Path

FEATURES = ("sepal_length_cm", "sepal_width_cm", "petal_length_cm", "petal_width_cm")
CLASSES = ("setosa", "versicolor", "virginica")

# Small enough to keep every unit alive, large enough to train: a unit that is off still passes this share.
LEAK = 0.01

# One row in this many is held out, class by class, and never trained on.
TEST_EVERY = 5


class ConfigError(Exception):
    """The configuration cannot be used; every reason is a line."""


class TrainingError(Exception):
    """The configuration was fine, the run was not."""


# ---- configuration ----------------------------------------------------------------------------------------------------


def _whole(low, high):
    def check(value):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            return f"must be a whole number from {low} to {high}"

    return check


def _real(low, open_low=False):
    def check(value):
        bad = isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)
        if bad or value < low or (open_low and value == low):
            return f"must be a number {'above' if open_low else 'of at least'} {low:g}"

    return check


def _one_of(*allowed):
    def check(value):
        if value not in allowed:
            return f"must be one of {', '.join(allowed)}"

    return check


def _path(value):
    if value is not None and (not isinstance(value, str) or not value):
        return "must be a path"


# section -> key -> (default, check); a check answers what is wrong, or nothing.
SECTIONS = {
    "model": {"hidden": (8, _whole(0, 1024))},
    "train": {
        "epochs": (60, _whole(1, 100_000)),
        "batch_size": (16, _whole(1, 150)),
        "learning_rate": (0.1, _real(0, open_low=True)),
        "weight_decay": (0.01, _real(0)),
        "seed": (0, _whole(0, 2**63 - 1)),
        "device": ("auto", _one_of("auto", "cpu", "cuda")),
        "epoch_seconds": (0, _real(0)),
    },
}
TOP = {"data": (None, _path), "output_dir": (None, _path)}


def _fill(given, table, where, problems):
    filled = {}
    for key, (default, check) in table.items():
        filled[key] = given.get(key, default)
        wrong = check(filled[key]) if key in given else None
        if wrong:
            problems.append(f"{where}/{key}: {wrong}, not {json.dumps(given[key])}")
    return filled


def read_config(path):
    """The configuration with every default filled in. Raises ConfigError that names all that is wrong."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: the configuration must be an object")
    problems = []
    config = _fill(given, TOP, "", problems)
    for section, table in SECTIONS.items():
        value = given.get(section, {})
        if not isinstance(value, dict):
            problems.append(f"/{section}: must be an object, not {json.dumps(value)}")
            value = {}
        for key in value:
            if key not in table:
                # A misspelt key would train something else than what was asked for.
                problems.append(f"/{section}/{key}: unknown key; known are {', '.join(table)}")
        config[section] = _fill(value, table, f"/{section}", problems)
    config["data"] = config["data"] or str(Path(__file__).resolve().parent / "iris.csv")
    config["output_dir"] = config["output_dir"] or os.environ.get("TAXIWAY_JOB_DIR")
    if not config["output_dir"]:
        problems.append("/output_dir: missing, and TAXIWAY_JOB_DIR is not set: there is no place for the model")
    if problems:
        raise ConfigError("\n".join(problems))
    return config


# ---- data -------------------------------------------------------------------------------------------------------------


def read_data(path):
    """(training rows, test rows), each row (features, class index)."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [([float(row[f]) for f in FEATURES], CLASSES.index(row["species"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise ConfigError(f"/data: cannot read {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"/data: {path} is not the Iris table that is expected: {error!r}") from error
    train, test = [], []
    for label in range(len(CLASSES)):
        of_class = [row for row in rows if row[1] == label]
        for index, row in enumerate(of_class):
            (test if index % TEST_EVERY == TEST_EVERY - 1 else train).append(row)
    if not train or not test:
        raise ConfigError(f"/data: {path} has too few rows ({len(rows)})")
    return train, test


def standardise(train, test):
    """Zero mean and unit variance, measured on the training rows alone."""
    columns = list(zip(*(x for x, _ in train)))
    mean = [sum(c) / len(c) for c in columns]
    scale = [math.sqrt(sum((v - m) ** 2 for v in c) / len(c)) or 1.0 for c, m in zip(columns, mean)]

    def apply(rows):
        return [([(v - m) / s for v, m, s in zip(x, mean, scale)], y) for x, y in rows]

    return apply(train), apply(test), mean, scale


# ---- the model --------------------------------------------------------------------------------------------------------


def first_weights(hidden, rng):
    """Layers of (weights[outputs][inputs], biases[outputs]), the same for both back ends (He et al., 2015)."""
    sizes = [len(FEATURES)] + ([hidden] if hidden else []) + [len(CLASSES)]
    return [
        ([[rng.gauss(0, math.sqrt(2 / inputs)) for _ in range(inputs)] for _ in range(outputs)], [0.0] * outputs)
        for inputs, outputs in zip(sizes, sizes[1:])
    ]


class PythonModel:
    """Leaky-ReLU network with a softmax on top, trained by plain stochastic gradient descent."""

    device = "cpu (pure Python)"

    def __init__(self, layers, learning_rate, weight_decay):
        self.layers = layers
        self.rate = learning_rate
        self.decay = weight_decay

    def _forward(self, x):
        activations = [x]
        for depth, (weights, biases) in enumerate(self.layers):
            z = [sum(w * v for w, v in zip(row, activations[-1])) + b for row, b in zip(weights, biases)]
            last = depth == len(self.layers) - 1
            activations.append(z if last else [v if v > 0 else LEAK * v for v in z])
        return activations

    def step(self, batch):
        """One update from `batch`; answers its summed cross-entropy."""
        loss = 0.0
        sums = [([[0.0] * len(row) for row in weights], [0.0] * len(biases)) for weights, biases in self.layers]
        for x, label in batch:
            activations = self._forward(x)
            top = max(activations[-1])
            powers = [math.exp(v - top) for v in activations[-1]]
            total = sum(powers)
            loss += math.log(total) + top - activations[-1][label]
            delta = [p / total for p in powers]
            delta[label] -= 1.0
            for depth in reversed(range(len(self.layers))):
                inputs = activations[depth]
                for row, d in zip(sums[depth][0], delta):
                    for i, v in enumerate(inputs):
                        row[i] += d * v
                for i, d in enumerate(delta):
                    sums[depth][1][i] += d
                if depth:
                    weights = self.layers[depth][0]
                    delta = [
                        sum(row[i] * d for row, d in zip(weights, delta)) * (1.0 if v > 0 else LEAK)
                        for i, v in enumerate(inputs)
                    ]
        for (weights, biases), (weight_sums, bias_sums) in zip(self.layers, sums):
            for row, row_sums in zip(weights, weight_sums):
                for i, s in enumerate(row_sums):
                    row[i] -= self.rate * (s / len(batch) + self.decay * row[i])
            for i, s in enumerate(bias_sums):
                biases[i] -= self.rate * s / len(batch)
        return loss

    def accuracy(self, rows):
        hits = 0
        for x, label in rows:
            scores = self._forward(x)[-1]
            hits += max(range(len(scores)), key=scores.__getitem__) == label
        return hits / len(rows)

    def weights(self):
        return self.layers


class TorchModel:
    """The same network and the same updates by PyTorch on `place`, a name of its devices."""

    def __init__(self, torch, place, layers, learning_rate, weight_decay):
        self.torch = torch
        self.place = place
        self.device = f"{place} ({torch.cuda.get_device_name(place) if place == 'cuda' else 'PyTorch'})"
        self.layers = [tuple(torch.tensor(part, device=place, requires_grad=True) for part in layer) for layer in layers]
        groups = [
            {"params": [w for w, _ in self.layers], "weight_decay": weight_decay},
            {"params": [b for _, b in self.layers], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.SGD(groups, lr=learning_rate)

    def _scores(self, rows):
        values = self.torch.tensor([x for x, _ in rows], device=self.place)
        for depth, (weights, biases) in enumerate(self.layers):
            values = values @ weights.T + biases
            if depth < len(self.layers) - 1:
                values = self.torch.nn.functional.leaky_relu(values, LEAK)
        return values, self.torch.tensor([y for _, y in rows], device=self.place)

    def step(self, batch):
        scores, labels = self._scores(batch)
        loss = self.torch.nn.functional.cross_entropy(scores, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.item() * len(batch)

    def accuracy(self, rows):
        with self.torch.no_grad():
            scores, labels = self._scores(rows)
            return (scores.argmax(dim=1) == labels).double().mean().item()

    def weights(self):
        return [(w.tolist(), b.tolist()) for w, b in self.layers]


def build_model(layers, settings):
    """On CUDA where PyTorch and a device are there (and `device` allows it), else in pure Python."""
    torch = None
    if settings["device"] != "cpu":
        try:
            import torch
        except ImportError:
            torch = None
        if torch is not None and not torch.cuda.is_available():
            torch = None
        if torch is None and settings["device"] == "cuda":
            raise TrainingError("train/device is cuda, but PyTorch with a CUDA device cannot be used here")
    if torch is None:
        return PythonModel(layers, settings["learning_rate"], settings["weight_decay"])
    return TorchModel(torch, "cuda", layers, settings["learning_rate"], settings["weight_decay"])


# ---- the run ----------------------------------------------------------------------------------------------------------


def write_json(path, value):
    """Whole or not at all: a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
    os.replace(temporary, path)


def report_progress(step, total_steps, metrics):
    path = os.environ.get("TAXIWAY_PROGRESS_FILE")
    if path:
        write_json(path, {"progress": step / total_steps, "step": step, "total_steps": total_steps, "metrics": metrics})


def train(config):
    """Trains, saves and answers (path of the model, accuracy on the held-out rows)."""
    settings = config["train"]
    output = Path(config["output_dir"])
    try:
        # Before the work, so that hours of training do not end at a missing permission.
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"cannot create the output directory {output}: {error.strerror}") from error
    rows, test_rows = read_data(config["data"])
    rows, test_rows, mean, scale = standardise(rows, test_rows)
    rng = random.Random(settings["seed"])
    model = build_model(first_weights(config["model"]["hidden"], rng), settings)
    size, epochs = settings["batch_size"], settings["epochs"]
    steps_per_epoch = math.ceil(len(rows) / size)
    print(
        f"{len(rows)} training rows, {len(test_rows)} held out, hidden {config['model']['hidden']}, "
        f"learning rate {settings['learning_rate']:g}, seed {settings['seed']}, on {model.device}"
    )
    accuracy = 0.0
    for epoch in range(1, epochs + 1):
        begun = time.monotonic()
        rng.shuffle(rows)
        loss = sum(model.step(rows[at : at + size]) for at in range(0, len(rows), size)) / len(rows)
        if not math.isfinite(loss):
            print(f"epoch {epoch}/{epochs}  loss {loss}", flush=True)
            raise TrainingError(
                f"the loss is {loss} after epoch {epoch}: training diverged; "
                f"lower train/learning_rate (it is {settings['learning_rate']:g})"
            )
        accuracy = model.accuracy(test_rows)
        print(f"epoch {epoch}/{epochs}  loss {loss:.4f}  accuracy {accuracy:.3f}", flush=True)
        time.sleep(max(0.0, settings["epoch_seconds"] - (time.monotonic() - begun)))
        metrics = {"loss": loss, "accuracy": accuracy, "epoch": epoch}
        report_progress(epoch * steps_per_epoch, epochs * steps_per_epoch, metrics)
    path = output / "model.json"
    layers = [{"weights": weights, "biases": biases} for weights, biases in model.weights()]
    write_json(
        path,
        {
            "accuracy": accuracy,
            "loss": loss,
            "features": FEATURES,
            "classes": CLASSES,
            "mean": mean,
            "scale": scale,
            "leak": LEAK,
            "layers": layers,
            "config": config,
            "device": model.device,
        },
    )
    return path, accuracy


def main():
    parser = argparse.ArgumentParser(description="Train a classifier on Fisher's Iris data.")
    parser.add_argument("--config", required=True, metavar="FILE", help="the configuration, JSON")
    arguments = parser.parse_args()
    try:
        path, accuracy = train(read_config(arguments.config))
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"configuration error: {line}", file=sys.stderr)
        return 2
    except (TrainingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"saved {path} (accuracy {accuracy:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
