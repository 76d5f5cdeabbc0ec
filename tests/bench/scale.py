#!/usr/bin/env python3
"""Measures what a million waiting jobs cost, and what an idle service does, beside the targets.

- Idle: a fresh service is left alone; what counts is its resident memory and how often any thread of it, or of its spawner,
  woke up.
- A line of 1,000 jobs in one service and of 1,000,000 in another, each behind a running job and filled through POST
  /jobs/batch: submissions to both in turns; position, move and cancel of single jobs from both ends of the long line; first pages of
  GET /jobs; resident memory for each job; and how long a restart takes until requests are answered.

Requests are made beforehand and sent over plain sockets, so that little of what is measured is the client. It ends with 1 when an aim
was missed, after all is shown.
"""

import argparse
import json
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "demo"))
from service import Service, ServiceError  # noqa: E402

SHORT_LINE = 1_000
LONG_LINE = 1_000_000
# The most that a batch may have.
BATCH = 1_000
FILLERS = 4
# Requests of each kind that are measured.
SAMPLES = 500
# Moves to the front, each of which has the next in line armed anew.
FRONTS = 100
# What a user looks at first.
PAGES = ("/jobs", "/jobs?state=queued", "/jobs?state=running", "/jobs?sort=-submitted_at", "/queue")
IDLE_SECONDS = 60
# What a start does on its own account (plugins, the first checks) is over by then.
SETTLE_SECONDS = 5
JOB = {"name": "bench", "command": ["true"], "config": {"train": {"learning_rate": 0.0002, "epochs": 3}}}


def percentile(values, share):
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(seconds):
    return {"p50_ms": statistics.median(seconds) * 1e3, "p99_ms": percentile(seconds, 0.99) * 1e3, "most_ms": max(seconds) * 1e3}


class Wire:
    """One kept connection that takes requests ready made."""

    def __init__(self, service):
        host, port = service.address.rsplit(":", 1)
        self._head = f"Host: {service.address}\r\nAuthorization: Bearer {service.token}\r\n"
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def request(self, method, path, body=None):
        """The bytes of a request below /api/v1."""
        text = b"" if body is None else json.dumps(body).encode()
        kind = "" if body is None else "Content-Type: application/json\r\n"
        return f"{method} /api/v1{path} HTTP/1.1\r\n{self._head}{kind}Content-Length: {len(text)}\r\n\r\n".encode() + text

    def send(self, request, status):
        """The body of the answer, which has to have this status."""
        self._socket.sendall(request)
        line = self._reader.readline()
        length = 0
        while (header := self._reader.readline()) != b"\r\n":
            name, _, value = header.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        body = self._reader.read(length)
        if int(line.split()[1]) != status:
            raise ServiceError(f"{request.split(b' HTTP')[0].decode()} was answered {line.decode().strip()}: {body[:500].decode()}")
        return body

    def timed(self, requests, status):
        """How long each of them took."""
        seconds = []
        for request in requests:
            begun = time.perf_counter()
            self.send(request, status)
            seconds.append(time.perf_counter() - begun)
        return spread(seconds)


def processes(service):
    """The service and its children: its spawner is one."""
    pids = [service.pid]
    for task in Path(f"/proc/{service.pid}/task").iterdir():
        pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids


def status_of(path):
    return dict(line.split(":", 1) for line in path.read_text().splitlines())


def resident_bytes(pids):
    """Resident memory of these processes, and of the first alone."""
    each = [int(status_of(Path(f"/proc/{pid}/status"))["VmRSS"].split()[0]) * 1024 for pid in pids]
    return sum(each), each[0]


def cpu_seconds(pid):
    """Processor time that a process has used, user and system (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pids):
    """How often each thread gave the processor up, by thread."""
    counts = {}
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = status_of(task / "status")
            counts[task.name, status["Name"].strip()] = int(status["voluntary_ctxt_switches"])
    return counts


def idle(service, seconds):
    """What a service does that nobody asks for anything."""
    time.sleep(SETTLE_SECONDS)
    pids = processes(service)
    before = switches(pids)
    time.sleep(seconds)
    after = switches(pids)
    woke = {f"{name} {tid}": count - before.get((tid, name), 0) for (tid, name), count in after.items()}
    everything, alone = resident_bytes(pids)
    return {
        "seconds": seconds,
        "resident_bytes": everything,
        "service_resident_bytes": alone,
        "threads": len(after),
        "wake_ups": sum(woke.values()),
        "wake_ups_by_thread": {name: count for name, count in woke.items() if count},
    }


def fill(service, jobs):
    """Submits this many jobs in batches over a few connections; answers how long that took."""
    with Wire(service) as wire:
        whole = wire.request("POST", "/jobs/batch", [JOB] * BATCH)
        rest = wire.request("POST", "/jobs/batch", [JOB] * (jobs % BATCH))
    batches = [whole] * (jobs // BATCH) + [rest] * bool(jobs % BATCH)
    errors = []

    def work():
        try:
            with Wire(service) as wire:
                while True:
                    wire.send(batches.pop(), 200)
        except IndexError:
            pass
        except (ServiceError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(FILLERS)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise ServiceError(f"a batch failed: {errors[0]}")
    return time.perf_counter() - begun


def page_ids(wire, query):
    return [job["id"] for job in json.loads(wire.send(wire.request("GET", f"/jobs?{query}"), 200))["items"]]


def block(service, folder):
    """Has a job run until it is let go, so that all others wait."""
    fifo = folder / "blocker"
    os.mkfifo(fifo)
    events = service.events()
    blocker = service.submit(name="blocker", command=["cat", str(fifo)])["id"]
    while (event := next(events))["type"] != "job.running" or event["job_id"] != blocker:
        pass
    events.close()
    fill(service, SHORT_LINE)


def submit_in_turns(short, long):
    """One submission to each of two services at a time, so that whatever else the machine does concerns both alike."""
    seconds = {"short": [], "long": []}
    with Wire(short) as first, Wire(long) as second:
        for _ in range(SAMPLES):
            for key, wire in (("short", first), ("long", second)):
                request = wire.request("POST", "/jobs", JOB)
                begun = time.perf_counter()
                wire.send(request, 201)
                seconds[key].append(time.perf_counter() - begun)
    return {key: spread(values) for key, values in seconds.items()}


def ask(wire, length):
    """What requests take while this many jobs wait."""
    ids = page_ids(wire, "state=queued&limit=1000")
    ids += page_ids(wire, "state=queued&limit=1000&sort=-submitted_at")
    choice = random.Random(length)
    ids = choice.sample(sorted(set(ids)), 2 * SAMPLES)
    stay, leave = ids[:SAMPLES], ids[SAMPLES:]
    result = {"position": wire.timed([wire.request("GET", f"/jobs/{job}") for job in stay], 200)}
    moves = [wire.request("POST", f"/jobs/{job}/move", {"to": {"position": choice.randrange(1, length)}}) for job in stay]
    result["move"] = wire.timed(moves, 200)
    fronts = [wire.request("POST", f"/jobs/{job}/move", {"to": "front"}) for job in stay[:FRONTS]]
    result["move_to_front"] = wire.timed(fronts, 200)
    result["cancel"] = wire.timed([wire.request("POST", f"/jobs/{job}/cancel") for job in leave], 200)
    for path in PAGES:
        result[path] = wire.timed([wire.request("GET", path)] * 50, 200)
    return result


def line(short, long, folder, length):
    """A short line in one service and a long one in the other, each behind a running job."""
    block(short, folder / "short")
    block(long, folder / "long")
    before, began = resident_bytes([long.pid])[0], cpu_seconds(long.pid)
    jobs = length - SHORT_LINE
    announce(f"{jobs:,} jobs in batches")
    seconds = fill(long, jobs)
    used, after = cpu_seconds(long.pid) - began, resident_bytes([long.pid])[0]
    # What was committed last is still on its way from the log into the database.
    time.sleep(SETTLE_SECONDS)
    submit = submit_in_turns(short, long)
    with Wire(long) as wire:
        asked = ask(wire, length)
    return {
        "length": length,
        "submit": submit,
        "submit_long_to_short": submit["long"]["p50_ms"] / submit["short"]["p50_ms"],
        **asked,
        "batch_jobs_per_second": jobs / seconds,
        "batch_cpu_us_per_job": used / jobs * 1e6,
        "bytes_per_job": (after - before) / jobs,
        "resident_bytes": after,
    }


def announce(text):
    print(text, file=sys.stderr, flush=True)


def measure(binary, folder, length, seconds):
    for name in ("idle", "short", "long"):
        (folder / name).mkdir()
    announce(f"an idle service for {seconds} s")
    with Service(binary, folder / "idle") as service:
        result = {"cpus": os.cpu_count(), "idle": idle(service, seconds)}
    announce(f"lines of {SHORT_LINE:,} and {length:,} jobs")
    with Service(binary, folder / "long") as long:
        with Service(binary, folder / "short") as short:
            result["line"] = line(short, long, folder, length)
            # What follows in line is not to run when the running job ends.
            short.reconnect()
            short.request("POST", "/queue/pause")
            (folder / "short" / "blocker").open("w").close()
        # The service closed the connections that nobody used meanwhile.
        long.reconnect()
        waiting = long.get("/queue")["queued"]
    announce("a restart")
    begun = time.perf_counter()
    with Service(binary, folder / "long") as service:
        found = service.get("/queue")["queued"]
        took = time.perf_counter() - begun
        if found != waiting:
            raise ServiceError(f"{waiting} jobs waited before the restart, and {found} after it")
        resident = resident_bytes([service.pid])[0]
        each = (resident - result["idle"]["service_resident_bytes"]) / waiting
        result["restart"] = {"seconds": took, "resident_bytes": resident, "bytes_per_job": each}
        service.request("POST", "/queue/pause")
        (folder / "long" / "blocker").open("w").close()
    return result


def table(result):
    """Returns what is missed."""
    missed = []
    idle, line, restart = result["idle"], result["line"], result["restart"]
    mib = 1 << 20

    def row(label, value, unit, digits=2, most=None, least=None):
        target = f"<= {most:,} {unit}" if most is not None else f">= {least:,} {unit}" if least is not None else ""
        met = (most is None or value <= most) and (least is None or value >= least)
        if not met:
            missed.append(f"{label.strip()}: {target}")
        print(f"  {label:44}{value:>12,.{digits}f} {unit:8}{target:18}{'' if met else 'MISSED'}".rstrip())

    print(f"\nA service that idles for {idle['seconds']} s; a line of {line['length']:,} jobs; {result['cpus']} CPUs\n")
    print(f"  {'':44}{'measured':>12} {'':8}target")
    row("idle: resident, with its spawner", idle["resident_bytes"] / mib, "MiB", 1, most=40)
    row(f"idle: wake-ups of all {idle['threads']} threads", idle["wake_ups"], "", 0, most=0)
    row("batches, fsynced", line["batch_jobs_per_second"], "jobs/s", 0, least=60_000)
    row("  the service's processor time for each job", line["batch_cpu_us_per_job"], "us", 1)
    row(f"submit, p50, {SHORT_LINE:,} in line", line["submit"]["short"]["p50_ms"], "ms")
    row("submit, p50, all in line", line["submit"]["long"]["p50_ms"], "ms")
    row("  the one to the other", line["submit_long_to_short"], "x", most=1.5)
    for key, label in (("position", "a job and its position"), ("move", "move anywhere"), ("cancel", "cancel")):
        row(f"{label}, p50", line[key]["p50_ms"], "ms", most=2)
    row("move to the front, p50", line["move_to_front"]["p50_ms"], "ms")
    for path in PAGES:
        row(f"GET {path}, p50", line[path]["p50_ms"], "ms", most=20)
    row("resident for each job", line["bytes_per_job"], "bytes", 0, most=800)
    row("  after a restart", restart["bytes_per_job"], "bytes", 0, most=800)
    row("restart until requests are answered", restart["seconds"], "s", most=10)
    return missed


def main():
    parser = argparse.ArgumentParser(description="Measure a million waiting jobs, and an idle service.")
    parser.add_argument("--taxiway", type=Path, required=True, metavar="FILE", help="the binary to measure")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where every figure goes")
    parser.add_argument("--jobs", type=int, default=LONG_LINE, metavar="N", help="jobs of the long line (%(default)s)")
    parser.add_argument("--idle", type=int, default=IDLE_SECONDS, metavar="SECONDS", help="how long it is left alone (%(default)s)")
    arguments = parser.parse_args()
    # Beside the figures and not in /tmp, which is memory on many machines: an fsync has to cost what it costs.
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=arguments.json.resolve().parent))
    try:
        result = measure(arguments.taxiway.resolve(), folder, arguments.jobs, arguments.idle)
    except (ServiceError, OSError) as error:
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
