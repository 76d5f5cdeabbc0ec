#!/usr/bin/env python3
"""Measures what Taxiway exists for, on the real binary, beside what this machine can do at best in the same run.

- Hand-over: 1,000 jobs that only write two time stamps (stamp.c) wait behind a blocker; from its release on, the gap from
  the end of one to the start of the next is taken from their stamps. The floor is the same gap between the same processes
  started back to back with posix_spawn (floor.c). 200 jobs of 20 ms have a floor of their own: the cores idle in between. Jobs
  that fail (failing.c) have their logs read and their failures classified.
- The same on a GPU: with --nvml, a stand-in for NVIDIA's library, each hand-over reads the GPU once, which the line apart shows.
  What a real driver takes for its answers comes on top.
- Submission: wrk posts jobs, each acknowledged after its fsync, that stay queued behind a blocker.

Three rounds each; the table shows the medians, --json all of it. Nothing polls, and nothing but the service runs while the
jobs are handed over: blocker and end are FIFOs.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))
from service import Service, ServiceError  # noqa: E402

ROUNDS = 3
JOBS = 1000
SLEEPING_JOBS = 200
SLEEP_MS = 20
CONNECTIONS = 32
# Long enough for a steady rate; a second takes about as many submissions as a year of a busy box.
SUBMIT_SECONDS = 3
# A bench that takes longer than this hangs.
LIMIT_SECONDS = 900


def percentile(values, share):
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def read_gaps(file, jobs):
    """Milliseconds from each end to the next start. Raises when jobs overlap or are not there."""
    stamps = [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
    if len(stamps) != jobs:
        raise ServiceError(f"{len(stamps)} jobs ran, not {jobs}")
    gaps = [(start - end) / 1e6 for (_, end), (start, _) in zip(stamps, stamps[1:])]
    if min(gaps) < 0:
        raise ServiceError("two jobs ran at the same time")
    return {
        "p50_ms": percentile(gaps, 0.50),
        "p99_ms": percentile(gaps, 0.99),
        "all_seconds": (stamps[-1][1] - stamps[0][0]) / 1e9,
    }


def wait_for_end(service, job_id):
    """Until the job has ended; answers its state."""
    events = service.events()
    job = service.get(f"/jobs/{job_id}")
    while job["state"] not in ("completed", "failed", "cancelled"):
        while next(events).get("job_id") != job_id:
            pass
        job = service.get(f"/jobs/{job_id}")
    return job["state"]


class Blocker:
    """A job that runs until it is released."""

    def __init__(self, service, folder):
        self.fifo = folder / "blocker"
        os.mkfifo(self.fifo)
        events = service.events()
        self.job_id = service.submit(name="blocker", command=["cat", str(self.fifo)])["id"]
        while True:
            event = next(events)
            if event.get("job_id") == self.job_id and event["type"] == "job.running":
                break
        events.close()

    def release(self):
        self.fifo.open("w").close()
        self.fifo.unlink()


def hand_over(service, program, folder, jobs=JOBS, sleep_ms=0):
    """One round of jobs in a row."""
    folder.mkdir()
    stamps, ended = folder / "stamps", folder / "ended"
    os.mkfifo(ended)
    blocker = Blocker(service, folder)
    for number in range(jobs):
        service.submit(name=f"stamp-{number}", command=[str(program), str(stamps), *sleep_argument(sleep_ms)])
    # Opens the FIFO for writing when its turn has come, and ends at once: its input is empty.
    last = service.submit(name="last", command=["tee", str(ended)])["id"]
    blocker.release()
    ended.open().read()
    state = wait_for_end(service, last)
    if state != "completed":
        raise ServiceError(f"the last job is {state}")
    return read_gaps(stamps, jobs)


def floor(build, folder, jobs=JOBS, sleep_ms=0):
    """The same without a service."""
    folder.mkdir()
    stamps = folder / "stamps"
    subprocess.run([build / "floor", build / "stamp", stamps, str(jobs), *sleep_argument(sleep_ms)], check=True)
    return read_gaps(stamps, jobs)


def sleep_argument(sleep_ms):
    return [str(sleep_ms)] if sleep_ms else []


def submissions(binary, folder, connections):
    """One round of submissions to a fresh service."""
    folder.mkdir()
    with Service(binary, folder) as service:
        blocker = Blocker(service, folder)
        command = ["wrk", "-c", str(connections), "-t", str(min(connections, 2)), "-d", f"{SUBMIT_SECONDS}s"]
        command += ["-s", str(HERE / "submit.lua"), f"{service.url}/api/v1/jobs"]
        run = subprocess.run(command, env={**os.environ, "TOKEN": service.token}, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(run.stdout.splitlines()[-1])
        queued = service.get("/queue")["queued"]
        # The last request of each connection may have been stored after wrk stopped listening.
        if result["errors"] or not result["requests"] <= queued <= result["requests"] + connections:
            raise ServiceError(f"{queued} jobs are queued after {result}")
        # The stopped service starts nothing more; then the blocker may end.
        service.stop()
        blocker.release()
    return {**result, "per_second": result["requests"] / result["seconds"]}


def median_of(rounds):
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def announce(text):
    print(text, file=sys.stderr, flush=True)


def fake_gpu(library, folder):
    """The environment of a service with one GPU that nobody uses."""
    machine = folder / "gpus.json"
    machine.write_text(json.dumps({"driver_version": "570.86.10", "gpus": [{"uuid": "GPU-fake-0"}]}), encoding="utf-8")
    return {"TAXIWAY_NVML_LIBRARY": str(library), "TAXIWAY_FAKE_NVML": str(machine)}


def measure(binary, folder, nvml):
    build = folder / "build"
    build.mkdir()
    for name in ("stamp", "failing", "floor"):
        subprocess.run(["cc", "-O2", "-o", build / name, HERE / f"{name}.c"], check=True)
    names = ("hand_over", "floor", "hand_over_20ms", "floor_20ms", "hand_over_failing", "submit_32", "submit_1")
    rounds = {name: [] for name in (*names, *(["hand_over_gpu"] if nvml else []))}
    service_folder = folder / "hand-over"
    service_folder.mkdir()
    with Service(binary, service_folder) as service:
        for number in range(ROUNDS):
            announce(f"round {number + 1} of {ROUNDS}: {JOBS} jobs in a row, without the service and with it")
            rounds["floor"].append(floor(build, folder / f"floor-{number}"))
            rounds["hand_over"].append(hand_over(service, build / "stamp", folder / f"jobs-{number}"))
            announce(f"round {number + 1} of {ROUNDS}: {SLEEPING_JOBS} jobs of {SLEEP_MS} ms, and {JOBS} that fail")
            sleeping = (SLEEPING_JOBS, SLEEP_MS)
            rounds["floor_20ms"].append(floor(build, folder / f"floor-sleeping-{number}", *sleeping))
            rounds["hand_over_20ms"].append(hand_over(service, build / "stamp", folder / f"sleeping-{number}", *sleeping))
            rounds["hand_over_failing"].append(hand_over(service, build / "failing", folder / f"failing-{number}"))
    if nvml:
        service_folder = folder / "hand-over-gpu"
        service_folder.mkdir()
        with Service(binary, service_folder, environment=fake_gpu(nvml, service_folder)) as service:
            for number in range(ROUNDS):
                announce(f"round {number + 1} of {ROUNDS}: {JOBS} jobs in a row on a GPU that is read before each")
                rounds["hand_over_gpu"].append(hand_over(service, build / "stamp", folder / f"gpu-jobs-{number}"))
    for number in range(ROUNDS):
        announce(f"round {number + 1} of {ROUNDS}: submissions over {CONNECTIONS} connections and over one")
        rounds["submit_32"].append(submissions(binary, folder / f"submit-{number}", CONNECTIONS))
        rounds["submit_1"].append(submissions(binary, folder / f"submit-one-{number}", 1))
    medians = {name: median_of(values) for name, values in rounds.items()}
    for name, its_floor in (("hand_over", "floor"), ("hand_over_20ms", "floor_20ms")):
        pairs = list(zip(rounds[name], rounds[its_floor]))
        for share in ("p50", "p99"):
            medians[name][f"{share}_to_floor"] = statistics.median(h[f"{share}_ms"] / f["p50_ms"] for h, f in pairs)
    return {"cpus": os.cpu_count(), "jobs": JOBS, "medians": medians, "rounds": rounds}


def table(result):
    m = result["medians"]
    print(f"\n{JOBS} jobs handed over, one at a time; {ROUNDS} rounds, medians; {result['cpus']} CPUs\n")
    print(f"  {'gap, end to start':30}{'p50':>10}{'p99':>10}{'all jobs':>11}")
    labels = (
        ("posix_spawn floor", "floor"),
        ("taxiway", "hand_over"),
        ("taxiway, jobs that fail", "hand_over_failing"),
        ("taxiway, GPU read each time", "hand_over_gpu"),
        (f"floor, {SLEEPING_JOBS} jobs of {SLEEP_MS} ms", "floor_20ms"),
        (f"taxiway, {SLEEPING_JOBS} jobs of {SLEEP_MS} ms", "hand_over_20ms"),
    )
    for label, key in labels:
        if key not in m:
            continue
        row = m[key]
        print(f"  {label:30}{row['p50_ms']:7.2f} ms{row['p99_ms']:7.2f} ms{row['all_seconds']:9.2f} s")
    print(f"\n  {'to p50 of the floor':30}{'p50':>10}{'p99':>10}   targets")
    for label, key in (("taxiway", "hand_over"), (f"taxiway, jobs of {SLEEP_MS} ms", "hand_over_20ms")):
        row = m[key]
        print(f"  {label:30}{row['p50_to_floor']:8.2f} x{row['p99_to_floor']:8.2f} x   2 x, 8 x")
    print(f"\n  {'submission, fsynced':30}{'p50':>10}{'p99':>10}{'jobs/s':>11}")
    for label, key in ((f"{CONNECTIONS} connections", "submit_32"), ("1 connection", "submit_1")):
        row = m[key]
        print(f"  {label:30}{row['p50_ms']:7.2f} ms{row['p99_ms']:7.2f} ms{row['per_second']:11,.0f}")


def main():
    parser = argparse.ArgumentParser(description="Measure hand-over and submission.")
    parser.add_argument("--taxiway", type=Path, required=True, metavar="FILE", help="the binary to measure")
    parser.add_argument("--nvml", type=Path, metavar="FILE", help="a stand-in for NVIDIA's library, for hand-over on a GPU")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where every figure goes")
    arguments = parser.parse_args()

    def give_up(*_):
        raise ServiceError(f"not done after {LIMIT_SECONDS} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_SECONDS)
    # Beside the figures and not in /tmp, which is memory on many machines: an fsync has to cost what it costs.
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=arguments.json.resolve().parent))
    try:
        result = measure(arguments.taxiway.resolve(), folder, arguments.nvml and arguments.nvml.resolve())
    except (ServiceError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        for log in sorted(folder.glob("*/service.log")):
            print(f"--- the end of {log.parent.name}/service.log", file=sys.stderr)
            print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table(result)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nEvery figure is in {arguments.json}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
