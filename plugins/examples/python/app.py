"""Refuses jobs whose learning rate is out of range. Copy this folder to begin a plugin of your own.

The manifest, `learning-rate.toml` beside `learning-rate.wasm`:

    [settings]
    max_learning_rate = 0.01
"""

import json
from dataclasses import dataclass

from wit_world import exports
from wit_world.imports import host
from wit_world.imports.types import Context, Job, Problem, Severity
from wit_world.exports.metadata import Description


def wrong(path: str, code: str, message: str, help: str | None = None) -> Problem:
    return Problem(Severity.ERROR, code, path, message, help)


def max_learning_rate(settings: str) -> float:
    """Raises ValueError when the settings name none."""
    limit = json.loads(settings or "{}").get("max_learning_rate")
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit <= 0:
        raise ValueError("max_learning_rate must be a number above 0")
    return limit


class Metadata(exports.Metadata):
    def describe(self) -> Description:
        schema = {
            "type": "object",
            "required": ["max_learning_rate"],
            "properties": {"max_learning_rate": {"type": "number", "exclusiveMinimum": 0}},
        }
        return Description("learning-rate", "0.1.0", "Refuses learning rates out of range", json.dumps(schema), "{}")

    def check_settings(self, settings: str) -> list[Problem]:
        try:
            max_learning_rate(settings)
        except ValueError as error:
            return [wrong("/max_learning_rate", "bad-setting", str(error))]
        return []


class Validate(exports.Validate):
    def validate(self, job: Job, context: Context) -> list[Problem]:
        limit = max_learning_rate(host.settings())
        train = json.loads(job.config).get("train")
        rate = train.get("learning_rate") if isinstance(train, dict) else None
        if rate is None:
            return []
        host.log(host.Level.DEBUG, f"{job.name}: learning rate {rate}")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            return [wrong("/train/learning_rate", "wrong-type", "a learning rate is a number")]
        if not 0 < rate <= limit:
            message = f"a learning rate of {rate} is not within 0 and {limit}"
            return [wrong("/train/learning_rate", "learning-rate-out-of-range", message, f"use at most {limit}")]
        return []
