#!/usr/bin/env python3
"""The whole story of Taxiway with real output: a service starts, a broken configuration is refused with all its problems,
a rewriter's diff is shown, three training jobs run one after another, and a signed webhook tells of each.

Exit status 0 only if all of that happened.
"""

import argparse
import json
import queue
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import json_patch
from receiver import Receiver, is_signed, new_signing_key
from service import Service, ServiceError

HERE = Path(__file__).resolve().parent
TRAINER = HERE.parent / "trainer" / "train.py"

# Slow enough to watch, fast enough to wait for.
EPOCHS = {"epochs": 60, "epoch_seconds": 0.04}
JOBS = {
    "softmax": {"model": {"hidden": 0}, "train": {**EPOCHS, "learning_rate": 0.1}},
    "mlp": {"model": {"hidden": 8}, "train": {**EPOCHS, "learning_rate": 0.1}},
    "eager": {"model": {"hidden": 0}, "train": {**EPOCHS, "learning_rate": 0.5}},
}
# Each value is wrong, and so is a key.
BROKEN = {"model": {"hidden": "wide"}, "train": {"epochs": 0, "learning_rate": 50, "epoch": 3}}
BROKEN_PATHS = {"/model/hidden", "/train/epochs", "/train/learning_rate", "/train/epoch"}

STORY = ["job.queued", "job.pending", "job.running", "job.completed"]
ENDED = ("job.completed", "job.failed", "job.cancelled")

# Jobs and deliveries take seconds; a demo that takes longer than this hangs.
LIMIT_SECONDS = 300
WEBHOOK_SECONDS = 30


class Checks:
    """What was promised and whether it happened."""

    def __init__(self):
        self.failed = 0

    def __call__(self, happened, promise):
        print(f"    {'ok  ' if happened else 'FAIL'}  {promise}", flush=True)
        self.failed += not happened


def heading(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def configure(folder, receiver, signing_key):
    """Writes the plugins' manifests as a user would drop them in; answers the text of taxiway.toml."""
    key_file = folder / "signing-key"
    key_file.touch(mode=0o600)
    key_file.write_text(signing_key, encoding="utf-8")
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o700)
    for manifest in sorted((HERE / "plugins").glob("*.toml")):
        text = manifest.read_text(encoding="utf-8")
        for name, value in (("RECEIVER", receiver.url), ("SIGNING_KEY_FILE", key_file), ("MODELS", folder / "models")):
            text = text.replace(name, str(value))
        (plugins / manifest.name).write_text(text, encoding="utf-8")
    # A JSON string of plain ASCII is a TOML string too.
    command = json.dumps([sys.executable, str(TRAINER), "--config", "{config_file}"])
    return f"[profiles.iris]\ncommand = {command}\n"


def show_plugins(service, check):
    heading("1. The service and its plugins")
    print(f"    listening on {service.url}")
    # Submissions wait for the first scan of the plugins, and a dry run is one.
    service.request("POST", "/jobs?dry_run=true", {"profile": "iris", "config": {}})
    plugins = service.get("/plugins")["items"]
    for plugin in plugins:
        print(f"    {plugin['name']:14} {plugin['version'] or '':8} {', '.join(plugin['hooks']):10} {plugin['state']}")
    check({p["name"] for p in plugins} == {"config-schema", "defaults", "webhook"}, "three plugins were found in the folder")


def show_refusal(service, check):
    heading("2. A broken configuration is refused, with everything that is wrong")
    print(f"    config: {json.dumps(BROKEN)}")
    status, answer = service.request("POST", "/jobs", {"name": "broken", "profile": "iris", "config": BROKEN})
    problems = answer.get("problems", [])
    print(f"    {status} {answer.get('type')}: {answer.get('detail') or answer.get('title')}")
    for problem in problems:
        print(f"    {problem['plugin']}  {problem['code']:22} {problem['path']:22} {problem['message']}")
    check(status == 422, "it was answered 422")
    check(BROKEN_PATHS <= {p["path"] for p in problems}, f"all {len(BROKEN_PATHS)} problems were named in one answer")
    complete = all(p["plugin"] == "config-schema" and p["code"] and p["message"] for p in problems)
    check(complete, "each problem has plugin, path, code and message")
    check(service.get("/jobs")["items"] == [], "nothing was stored")


def show_submissions(service, check):
    heading("3. Three jobs are submitted; a rewriter fills in what they leave out")
    jobs = {}
    for name, config in JOBS.items():
        job = service.submit(name=name, profile="iris", config=config)
        jobs[job["id"]] = job
        print(f"    201  {job['id']}  {name}")
    first = next(iter(jobs.values()))
    for rewrite in first["rewrites"]:
        print(f"    what {rewrite['plugin']} {rewrite['version']} changed in {first['name']} (RFC 6902):")
        for operation in rewrite["patch"]:
            print(f"      {json.dumps(operation)}")
    explained = True
    for job in jobs.values():
        config = job["submitted_config"]
        for rewrite in job["rewrites"]:
            config = json_patch.apply(config, rewrite["patch"])
        explained = explained and bool(job["rewrites"]) and config == job["config"] != job["submitted_config"]
    check(explained, "the recorded diff leads from the configuration as submitted to the one that runs")
    seeds = {job["config"]["train"].get("seed") for job in jobs.values()}
    check(len(seeds) == len(jobs) and None not in seeds, "each job has a seed of its own")
    return jobs


def draw(name, progress):
    filled = round(20 * progress["fraction"])
    loss = (progress.get("metrics") or {}).get("loss")
    figures = f"{100 * progress['fraction']:4.0f} %" + (f"  loss {loss:.3f}" if loss is not None else "")
    print(f"    {name:8} [{'#' * filled}{'.' * (20 - filled)}] {figures}", flush=True)


def watch(service, events, jobs, check):
    heading("4. They run one after another")
    stories = {job_id: [] for job_id in jobs}
    drawn = {job_id: set() for job_id in jobs}
    running, together, positions = set(), 0, None
    # The refused job left no event, and the others' come in order: nothing is asked again and again.
    while not all(story and story[-1] in ENDED for story in stories.values()):
        event = next(events)
        job_id, kind = event.get("job_id"), event["type"]
        # Deliveries tell of a job as well, and come after its end.
        if job_id not in stories or not kind.startswith("job."):
            continue
        if kind == "job.progress":
            progress = service.get(f"/jobs/{job_id}")["progress"]
            quarter = progress and int(4 * progress["fraction"])
            if progress and quarter not in drawn[job_id]:
                drawn[job_id].add(quarter)
                draw(jobs[job_id]["name"], progress)
            continue
        stories[job_id].append(kind)
        print(f"    {jobs[job_id]['name']:8} {kind.removeprefix('job.')}", flush=True)
        if kind in ("job.pending", "job.running"):
            running.add(job_id)
            together = max(together, len(running))
        running -= {job_id} if kind in ENDED else set()
        if positions is None and kind == "job.running":
            positions = [service.get(f"/jobs/{i}")["position"] for i in jobs]
    check(all(story == STORY for story in stories.values()), "each went queued, pending, running, completed")
    check(positions == [None, 1, 2], "while the first ran, the others were first and second in line")
    order = sorted(jobs, key=lambda i: service.get(f"/jobs/{i}")["started_at"])
    check(together == 1 and order == list(jobs), "never two at once, and in the order of their submission")
    check(all(len(quarters) > 1 for quarters in drawn.values()), "each showed its progress while it ran")


def show_models(service, jobs, check):
    heading("5. What they leave behind")
    accuracies = []
    for job_id, submitted in jobs.items():
        job = service.get(f"/jobs/{job_id}")
        model = json.loads((Path(job["config"]["output_dir"]) / "model.json").read_text(encoding="utf-8"))
        accuracies.append(model["accuracy"])
        status, log = service.request("GET", f"/jobs/{job_id}/log")
        gap = (job.get("handover") or {}).get("gap_seconds")
        idle = f"GPU idle before it {1000 * gap:.1f} ms" if gap is not None else ""
        print(f"    {submitted['name']:8} exit {job['exit']['code']}  accuracy {model['accuracy']:.3f}  {idle}")
        print(f"             its log ends: {log.splitlines()[-1] if status == 200 and log else status}")
        check(job["exit"]["code"] == 0 and f"accuracy {model['accuracy']:.3f}" in log, "exit 0, and its log says the same")
    # Whatever seed they had: one in three would be right by chance.
    check(min(accuracies) > 0.8, "each model is right about more than eight in ten flowers that it never saw")


def show_webhooks(receiver, signing_key, jobs, check):
    heading("6. The outside world hears of it")
    told, bodies = {}, []
    while len(told) < len(jobs):
        try:
            headers, body, signed = receiver.requests.get(timeout=WEBHOOK_SECONDS)
        except queue.Empty:
            break
        event = json.loads(body)
        job_id = event["data"]["job"]["id"]
        bodies.append((headers, body))
        print(f"    {headers['webhook-id']}  {event['type']:14} {jobs[job_id]['name']:8} signature {'good' if signed else 'BAD'}")
        if signed and event["type"] == "job.completed":
            told[job_id] = headers["webhook-id"]
    check(set(told) == set(jobs), "a signed webhook came for each job")
    check(len(set(told.values())) == len(jobs), "each delivery has an id of its own")
    forged = any(is_signed(signing_key, headers, body + b" ") for headers, body in bodies)
    check(bool(bodies) and not forged, "a changed body would not have been believed")


def cancel_all(service):
    """Jobs outlive the service: what a failed demo leaves running would too."""
    # The old connection may be in the middle of an answer, or closed for its idleness.
    service.reconnect()
    for job in service.get("/jobs?state=queued,pending,running")["items"]:
        service.request("POST", f"/jobs/{job['id']}/cancel")


def play(binary, folder, check):
    signing_key = new_signing_key()
    with Receiver(signing_key) as receiver:
        with Service(binary, folder, configure(folder, receiver, signing_key)) as service:
            finished = False
            try:
                show_plugins(service, check)
                show_refusal(service, check)
                events = service.events()
                jobs = show_submissions(service, check)
                watch(service, events, jobs, check)
                show_models(service, jobs, check)
                show_webhooks(receiver, signing_key, jobs, check)
                finished = True
            finally:
                if not finished:
                    cancel_all(service)
    check(service.exit_status == 0, "SIGTERM ended the service with status 0")


def main():
    parser = argparse.ArgumentParser(description="Show the whole story of Taxiway.")
    parser.add_argument("--taxiway", type=Path, required=True, metavar="FILE", help="the binary to show")
    arguments = parser.parse_args()

    def give_up(*_):
        raise ServiceError(f"not done after {LIMIT_SECONDS} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_SECONDS)
    folder = Path(tempfile.mkdtemp(prefix="taxiway-demo-"))
    check = Checks()
    try:
        play(arguments.taxiway.resolve(), folder, check)
    except (ServiceError, OSError, LookupError, TypeError, ValueError) as error:
        check(False, f"the story went on: {type(error).__name__}: {error}")
    finally:
        log = folder / "service.log"
        if check.failed and log.exists():
            print("\n--- the service's log", log.read_text(errors="replace"), sep="\n", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{'All of it happened.' if not check.failed else f'{check.failed} of it did not happen.'}")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
