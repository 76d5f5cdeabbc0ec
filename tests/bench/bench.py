#!/usr/bin/env python3
"""Measures what Taxiway exists for, on the real binary, beside what this machine can do at best in the same run.

- Hand-over: 1,000 jobs that only write two time stamps (stamp.c) wait behind a blocker; from its release on, the gap from
  the end of one to the start of the next is taken from their stamps. The floor is the same gap between the same processes
  started back to back with posix_spawn (floor.c).
- The same with 200 jobs of 20 ms, between which the processors rest, against their own floor; and with 200 jobs that fail.
- The jobs of 20 ms once more while clients read lists of jobs without end: what a busy API costs the line. The floor beside it has no
  readers, who take processor time of their own.
- The same on a GPU: with --nvml, a stand-in for NVIDIA's library, each hand-over reads the GPU once, which the line apart shows.
  What a real driver takes for its answers comes on top.
- Submission: wrk posts jobs, each acknowledged after its fsync, that stay queued behind a blocker; and batches of them. The floor
  is the same with a bare server (submission-floor): HTTP, JSON, and three rows a job behind a group commit.
- A directory and a file in it: what the file system takes for them, since every job has some. After many files were deleted, ext4
  without a journal takes ten times as long for up to six minutes, and hand-over is slower, too. That is waited for, once.

Seven rounds of hand-over and three of submissions; the table shows the medians, --json all of it. It ends with 1 when an aim was
missed, after all is shown. Nothing polls, and nothing but the service runs while the jobs are handed over, readers apart: blocker and
end are FIFOs.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))
from service import Service, ServiceError  # noqa: E402

ROUNDS = 3
# The gap between short jobs is another in each round, without the service too: it goes by which processor the kernel chooses.
HAND_OVER_ROUNDS = 7
JOBS = 1000
# Jobs that take their time, and those that fail.
FEWER_JOBS = 200
PAUSE_MS = 20
# Who reads lists meanwhile, and how many jobs each list has.
READERS = 8
LISTED = 500
CONNECTIONS = 32
# The most that POST /jobs/batch takes.
BATCH = 1000
BATCH_CONNECTIONS = 4
# Directories with a file in each that show what the file system takes.
INODES = 200
# They take 20 to 100 us each; ten times that where much was deleted within the last minutes. ext4 without a journal uses no inode
# again for a minute after its deletion, or six (fs/ext4/ialloc.c, RECENTCY_MIN and RECENTCY_DIRTY), and passes over each such one
# whenever a file is made: a job has six.
SLOW_INODE_US = 200
FORGOTTEN_SECONDS = 370
# Long enough for a steady rate; a second takes about as many submissions as a year of a busy box.
SUBMIT_SECONDS = 3
# A bench that takes longer than this hangs.
LIMIT_SECONDS = 900 + FORGOTTEN_SECONDS
# What each row aims at, as the table shows it, and whether that is met. Where it is an absolute figure, the second part is what it
# was of the floor on the machine that it was set on (42,700/s, 0.33 ms, 129,000/s): others are slower or faster as a whole, so either
# will do.
AIMS = {
    "stamp": ("at most 2 x; p99 at most 8 x", lambda row: row["p50_to_floor"] <= 2 and row["p99_to_floor"] <= 8),
    "pause": ("at most 2 x", lambda row: row["p50_to_floor"] <= 2),
    "submit_32": (
        "at least 20,000/s = 0.47 x of the floor",
        lambda row: row["per_second"] >= 20_000 or row["per_second_to_floor"] >= 0.47,
    ),
    "submit_1": (
        "p50 at most 0.5 ms = 1.5 x of the floor",
        lambda row: row["p50_ms"] <= 0.5 or row["p50_ms_to_floor"] <= 1.5,
    ),
}
AIMS["submit_batch"] = AIMS["submit_batch_minimal"] = (
    "at least 60,000/s = 0.47 x of the floor",
    lambda row: row["per_second"] >= 60_000 or row["per_second_to_floor"] >= 0.47,
)
# The rows of submissions: connections, jobs in each request, and what is preferred of the answers.
SUBMISSIONS = {
    "submit_32": (CONNECTIONS, 1),
    "submit_1": (1, 1),
    "submit_batch": (BATCH_CONNECTIONS, BATCH),
    "submit_batch_minimal": (BATCH_CONNECTIONS, BATCH, "return=minimal"),
}


def percentile(values, share):
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def read_gaps(file, count):
    """Milliseconds from each end to the next start. Raises when jobs overlap or are not there."""
    stamps = [tuple(map(int, line.split())) for line in file.read_text().splitlines()]
    if len(stamps) != count:
        raise ServiceError(f"{len(stamps)} jobs ran, not {count}")
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


def hand_over(service, stamp, folder, count=JOBS, *arguments):
    """One round of `count` jobs in a row."""
    folder.mkdir()
    stamps, ended = folder / "stamps", folder / "ended"
    os.mkfifo(ended)
    blocker = Blocker(service, folder)
    for number in range(count):
        service.submit(name=f"stamp-{number}", command=[str(stamp), str(stamps), *map(str, arguments)])
    # Opens the FIFO for writing when its turn has come, and ends at once: its input is empty.
    last = service.submit(name="last", command=["tee", str(ended)])["id"]
    blocker.release()
    ended.open().read()
    state = wait_for_end(service, last)
    if state != "completed":
        raise ServiceError(f"the last job is {state}")
    return read_gaps(stamps, count)


@contextlib.contextmanager
def readers(service):
    """Lists of jobs are read all the time, one after another by each reader."""
    command = ["wrk", "-c", str(READERS), "-t", "1", "-d", f"{LIMIT_SECONDS}s", "--timeout", "20s"]
    command += ["-H", f"Authorization: Bearer {service.token}", f"{service.url}/api/v1/jobs?limit={LISTED}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        try:
            yield
        finally:
            # It tells then what it has done.
            wrk.send_signal(signal.SIGINT)
            told = wrk.communicate()[0]
    lists = re.search(r"(\d+) requests in", told)
    if not lists or not int(lists[1]) or "Non-2xx" in told or "Socket errors" in told:
        raise ServiceError(f"no lists were read: {told.strip()!r}")


def floor(build, folder, count=JOBS, *arguments):
    """The same without a service."""
    folder.mkdir()
    stamps = folder / "stamps"
    subprocess.run([build / "floor", build / "stamp", stamps, str(count), *map(str, arguments)], check=True)
    return read_gaps(stamps, count)


def inodes(folder):
    """Microseconds for a directory and a file in it."""
    folder.mkdir()
    each = []
    for number in range(INODES):
        began = time.perf_counter()
        (folder / str(number)).mkdir()
        (folder / str(number) / "file").touch()
        each.append((time.perf_counter() - began) * 1e6)
    return {"p50_us": percentile(each, 0.50), "p99_us": percentile(each, 0.99)}


class Disk:
    """The file system near the jobs, which may have to forget first what was deleted there before the bench."""

    def __init__(self):
        self.patience_until = time.monotonic() + FORGOTTEN_SECONDS
        self.probes = 0

    def settle(self, folder):
        """Waits until files are made there as quickly as usual, but not once all would be forgotten. Answers what one took."""
        while True:
            self.probes += 1
            figures = inodes(folder / f"inodes-{self.probes}")
            if figures["p50_us"] <= SLOW_INODE_US or time.monotonic() >= self.patience_until:
                return figures
            announce(f"a directory and a file take {figures['p50_us']:.0f} us; waiting until the disk has forgotten what was deleted lately")
            # Nothing tells of it.
            time.sleep(20)


def submissions(binary, folder, connections, batch=1, prefer=None):
    """One round of submissions to a fresh service, `batch` jobs in each request."""
    folder.mkdir()
    with Service(binary, folder) as service:
        blocker = Blocker(service, folder)
        result = load(service.url, service.token, connections, batch, prefer)
        queued = service.get("/queue")["queued"]
        jobs = result["requests"] * batch
        # The last request of each connection may have been stored after wrk stopped listening.
        if result["errors"] or not jobs <= queued <= jobs + connections * batch:
            raise ServiceError(f"{queued} jobs are queued after {result} with {batch} jobs in each request")
        # The stopped service starts nothing more; then the blocker may end.
        service.stop()
        blocker.release()
    return result


def submissions_floor(binary, folder, connections, batch=1, prefer=None):
    """The same to a server that does nothing with them but store them."""
    folder.mkdir()
    command = [binary, folder / "jobs.db"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline()
            if not line.startswith("listening on "):
                raise ServiceError(f"the floor of submissions did not start: {line.strip()!r}")
            result = load(line.split()[-1], "none", connections, batch, prefer)
        finally:
            server.terminate()
    if result["errors"]:
        raise ServiceError(f"the floor of submissions refused some: {result}")
    return result


def load(url, token, connections, batch, prefer=None):
    """What wrk says of submissions to this server."""
    path = "/jobs" if batch == 1 else "/jobs/batch"
    command = ["wrk", "-c", str(connections), "-t", str(min(connections, 2)), "-d", f"{SUBMIT_SECONDS}s", "--timeout", "20s"]
    command += ["-s", str(HERE / "submit.lua"), f"{url}/api/v1{path}"]
    environment = {**os.environ, "TOKEN": token, "BATCH": str(batch), **({"PREFER": prefer} if prefer else {})}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(run.stdout.splitlines()[-1])
    return {**result, "per_second": result["requests"] * batch / result["seconds"]}


def median_of(rounds):
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


def announce(text):
    print(text, file=sys.stderr, flush=True)


def fake_gpu(library, folder):
    """The environment of a service with one GPU that nobody uses."""
    machine = folder / "gpus.json"
    machine.write_text(json.dumps({"driver_version": "570.86.10", "gpus": [{"uuid": "GPU-fake-0"}]}), encoding="utf-8")
    return {"TAXIWAY_NVML_LIBRARY": str(library), "TAXIWAY_FAKE_NVML": str(machine)}


def measure(binary, folder, nvml, bare):
    build = folder / "build"
    build.mkdir()
    for name in ("stamp", "floor"):
        subprocess.run(["cc", "-O2", "-o", build / name, HERE / f"{name}.c"], check=True)
    rounds = {}

    def record(name, figures):
        rounds.setdefault(name, []).append(figures)

    stamp = build / "stamp"
    disk = Disk()
    service_folder = folder / "hand-over"
    service_folder.mkdir()
    with Service(binary, service_folder) as service:
        for number in range(HAND_OVER_ROUNDS):
            announce(f"round {number + 1} of {HAND_OVER_ROUNDS}: jobs in a row, without the service and with it")
            # Beside the jobs' directories: what was deleted near them is what counts.
            record("inodes", disk.settle(service_folder))
            record("floor", floor(build, folder / f"floor-{number}"))
            record("stamp", hand_over(service, stamp, folder / f"jobs-{number}"))
            record("floor_pause", floor(build, folder / f"floor-pause-{number}", FEWER_JOBS, PAUSE_MS))
            record("pause", hand_over(service, stamp, folder / f"pause-{number}", FEWER_JOBS, PAUSE_MS))
            record("failing", hand_over(service, stamp, folder / f"failing-{number}", FEWER_JOBS, 0, 1))
            with readers(service):
                record("pause_read", hand_over(service, stamp, folder / f"read-{number}", FEWER_JOBS, PAUSE_MS))
    if nvml:
        service_folder = folder / "hand-over-gpu"
        service_folder.mkdir()
        with Service(binary, service_folder, environment=fake_gpu(nvml, service_folder)) as service:
            for number in range(HAND_OVER_ROUNDS):
                announce(f"round {number + 1} of {HAND_OVER_ROUNDS}: jobs in a row on a GPU that is read before each")
                record("inodes", disk.settle(service_folder))
                record("gpu", hand_over(service, stamp, folder / f"gpu-jobs-{number}"))
    for number in range(ROUNDS):
        announce(f"round {number + 1} of {ROUNDS}: submissions over {CONNECTIONS} connections, over one, and in batches")
        for name, load_of in SUBMISSIONS.items():
            record(f"floor_{name}", submissions_floor(bare, folder / f"floor-{name}-{number}", *load_of))
            record(name, submissions(binary, folder / f"{name}-{number}", *load_of))
    medians = {name: median_of(values) for name, values in rounds.items()}
    for name, base in (("stamp", "floor"), ("pause", "floor_pause"), ("pause_read", "floor_pause"), ("failing", "floor"), ("gpu", "floor")):
        for share in ("p50", "p99") if name in rounds else ():
            # Each round beside the floor of its own minute, those on a GPU beside an earlier one; p99, too, is told in p50s of the
            # floor.
            ratios = [row[f"{share}_ms"] / low["p50_ms"] for row, low in zip(rounds[name], rounds[base])]
            medians[name][f"{share}_to_floor"] = statistics.median(ratios)
    for name in SUBMISSIONS:
        for figure in ("per_second", "p50_ms"):
            ratios = [row[figure] / low[figure] for row, low in zip(rounds[name], rounds[f"floor_{name}"])]
            medians[name][f"{figure}_to_floor"] = statistics.median(ratios)
    return {"cpus": os.cpu_count(), "medians": medians, "rounds": rounds}


def table(result):
    """Returns what is missed."""
    m = result["medians"]
    missed = []

    def aim(label, key):
        if key not in AIMS:
            return ""
        text, met = AIMS[key]
        if met(m[key]):
            return f"  {text}"
        missed.append(f"{label}: {text}")
        return f"  {text}: MISSED"

    print(f"\nJobs handed over, one at a time; {HAND_OVER_ROUNDS} rounds, medians; {result['cpus']} CPUs\n")
    print(f"  {'gap, end to start':34}{'p50':>10}{'p99':>10}{'p50/floor':>11}{'p99/floor':>11}  aim")
    hand_overs = (
        (f"{JOBS} jobs, posix_spawn (floor)", "floor"),
        (f"{JOBS} jobs", "stamp"),
        (f"{FEWER_JOBS} jobs of {PAUSE_MS} ms, posix_spawn", "floor_pause"),
        (f"{FEWER_JOBS} jobs of {PAUSE_MS} ms", "pause"),
        (f"the same, {READERS} clients read lists", "pause_read"),
        (f"{FEWER_JOBS} jobs that fail", "failing"),
        (f"{JOBS} jobs, GPU read each time", "gpu"),
    )
    for label, key in hand_overs:
        if key not in m:
            continue
        row = m[key]
        ratios = f"{row['p50_to_floor']:9.2f} x{row['p99_to_floor']:9.2f} x" if "p50_to_floor" in row else ""
        print(f"  {label:34}{row['p50_ms']:7.2f} ms{row['p99_ms']:7.2f} ms{ratios:22}{aim(label, key)}")
    print(f"\n  {f'submission, fsynced; {ROUNDS} rounds':34}{'p50':>10}{'p99':>10}{'jobs/s':>11}{'p50/floor':>11}{'rate/floor':>12}  aim")
    submitted = (
        (f"{CONNECTIONS} connections", "submit_32"),
        ("1 connection", "submit_1"),
        (f"batches of {BATCH}, {BATCH_CONNECTIONS} connections", "submit_batch"),
        ("the same, minimal answers", "submit_batch_minimal"),
    )
    for label, key in submitted:
        low, row = m[f"floor_{key}"], m[key]
        print(f"  {label + ', bare (floor)':34}{low['p50_ms']:7.2f} ms{low['p99_ms']:7.2f} ms{low['per_second']:11,.0f}")
        ratios = f"{row['p50_ms_to_floor']:9.2f} x{row['per_second_to_floor']:10.2f} x"
        print(f"  {label:34}{row['p50_ms']:7.2f} ms{row['p99_ms']:7.2f} ms{row['per_second']:11,.0f}{ratios}{aim(label, key)}")
    print(f"\n  a directory and a file: p50 {m['inodes']['p50_us']:.0f} us, p99 {m['inodes']['p99_us']:.0f} us")
    slowest = max(probe["p50_us"] for probe in result["rounds"]["inodes"])
    if slowest > SLOW_INODE_US:
        print(f"  In a round of hand-over they took {slowest:.0f} us: a job has three times as many, and the gaps above are longer by that.")
    return missed


def main():
    parser = argparse.ArgumentParser(description="Measure hand-over and submission.")
    parser.add_argument("--taxiway", type=Path, required=True, metavar="FILE", help="the binary to measure")
    parser.add_argument("--bare", type=Path, required=True, metavar="FILE", help="taxiway-submission-floor")
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
        result = measure(arguments.taxiway.resolve(), folder, arguments.nvml and arguments.nvml.resolve(), arguments.bare.resolve())
    except (ServiceError, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        for log in sorted(folder.glob("*/service.log")):
            print(f"--- the end of {log.parent.name}/service.log", file=sys.stderr)
            print("\n".join(log.read_text(errors="replace").splitlines()[-20:]), file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missed = table(result)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"\nEvery figure is in {arguments.json}.")
    if missed:
        print("Missed: " + "; ".join(missed) + ".")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
