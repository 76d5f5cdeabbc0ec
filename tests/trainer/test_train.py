"""Tests of train.py as a job sees it: a process, its configuration, its output and its files."""

import json
import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import train

TRAINER = Path(train.__file__).resolve()


class Trainer(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def run_with(self, config, job_dir="job"):
        """Runs the trainer on `config` (a value, or the text of the file) and waits for its end."""
        file = self.folder / "config.json"
        file.write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
        env = {**os.environ, "TAXIWAY_PROGRESS_FILE": str(self.folder / "progress.json")}
        env.pop("TAXIWAY_JOB_DIR", None)
        if job_dir:
            env["TAXIWAY_JOB_DIR"] = str(self.folder / job_dir)
        command = [sys.executable, str(TRAINER), "--config", str(file)]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    def model(self, job_dir="job"):
        return json.loads((self.folder / job_dir / "model.json").read_text(encoding="utf-8"))

    def test_the_data_is_fishers_table(self):
        training, held_out = train.read_data(TRAINER.parent / "iris.csv")
        rows = training + held_out
        self.assertEqual((len(training), len(held_out)), (120, 30))
        # The means of each class, as published with the data.
        published = ([5.006, 3.428, 1.462, 0.246], [5.936, 2.770, 4.260, 1.326], [6.588, 2.974, 5.552, 2.026])
        for label, means in enumerate(published):
            of_class = [x for x, y in rows if y == label]
            self.assertEqual(len(of_class), 50)
            for column, mean in zip(zip(*of_class), means):
                self.assertAlmostEqual(sum(column) / 50, mean, places=3)

    def test_the_defaults_train_a_good_model(self):
        done = self.run_with({})
        self.assertEqual(done.returncode, 0, done.stderr)
        model = self.model()
        self.assertGreater(model["accuracy"], 0.9)
        epochs = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
        self.assertEqual(len(epochs), 60)
        self.assertIn(f"accuracy {model['accuracy']:.3f}", epochs[-1])

    def test_the_saved_model_classifies_a_flower(self):
        self.run_with({})
        model = self.model()
        values = [(v - m) / s for v, m, s in zip([5.1, 3.5, 1.4, 0.2], model["mean"], model["scale"])]
        for depth, layer in enumerate(model["layers"]):
            values = [sum(w * v for w, v in zip(row, values)) + b for row, b in zip(layer["weights"], layer["biases"])]
            if depth < len(model["layers"]) - 1:
                values = [v if v > 0 else model["leak"] * v for v in values]
        self.assertEqual(model["classes"][values.index(max(values))], "setosa")

    def test_the_progress_file_ends_whole_and_at_one(self):
        self.run_with({"train": {"epochs": 3, "batch_size": 50}})
        progress = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
        self.assertEqual((progress["progress"], progress["step"], progress["total_steps"]), (1.0, 9, 9))
        self.assertEqual(set(progress["metrics"]), {"loss", "accuracy", "epoch"})
        left = [p.name for p in self.folder.rglob("*") if p.is_file()]
        self.assertEqual(sorted(left), ["config.json", "model.json", "progress.json"])

    def test_the_seed_decides_the_model(self):
        layers = []
        for seed, job_dir in ((7, "first"), (7, "again"), (8, "other")):
            self.run_with({"train": {"epochs": 2, "seed": seed, "device": "cpu"}}, job_dir)
            layers.append(self.model(job_dir)["layers"])
        self.assertEqual(layers[0], layers[1])
        self.assertNotEqual(layers[0], layers[2])

    def test_softmax_regression_needs_no_hidden_layer(self):
        self.assertEqual(self.run_with({"model": {"hidden": 0}}).returncode, 0)
        self.assertEqual(len(self.model()["layers"]), 1)
        self.assertGreater(self.model()["accuracy"], 0.9)

    def test_a_bad_learning_rate_diverges(self):
        done = self.run_with({"train": {"learning_rate": 50}})
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"loss (nan|inf)\n")
        self.assertIn("lower train/learning_rate", done.stderr)
        self.assertFalse((self.folder / "job" / "model.json").exists())

    def test_every_error_of_a_configuration_is_named(self):
        done = self.run_with({"model": {"hidden": -1}, "train": {"epochs": True, "lr": 1}, "output_dir": 3})
        self.assertEqual(done.returncode, 2)
        for path in ("/model/hidden", "/train/epochs", "/train/lr", "/output_dir"):
            self.assertIn(f"configuration error: {path}: ", done.stderr)

    def test_what_is_no_configuration_is_refused(self):
        for text in ("{", "[]", '{"train": 1}', '{"data": "/no/such/file"}'):
            with self.subTest(text):
                done = self.run_with(text)
                self.assertEqual(done.returncode, 2)
                self.assertIn("configuration error: ", done.stderr)

    def test_without_a_place_for_the_model_it_does_not_train(self):
        done = self.run_with({}, job_dir=None)
        self.assertEqual(done.returncode, 2)
        self.assertIn("TAXIWAY_JOB_DIR", done.stderr)


if __name__ == "__main__":
    unittest.main()
