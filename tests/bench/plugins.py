#!/usr/bin/env python3
"""Measures what plugins cost, by running the bench of the plugin host (host/crates/plugin-host/benches/call), and shows it
as tables: a call beside its floor and beside other ways to ask a stranger's code, loading many, and what hostile guests do.

Like the other benches it ends with 1 when an aim was missed, after all is shown: its last line names which.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


# What the figures are meant to be.
MOST_TIMES_BARE = 1.5
LEAST_TIMES_PYTHON = 100
MOST_LOAD_MS = 100
MOST_LATE_MS = 100
MOST_DELAY_MS = 25
# Of what the service itself has for a call the allocator keeps some for the next one: no more than what a call may carry out of its
# guest (`plugins.limits.transfer`, 4 MiB), for each call at a time. The memories of eight guests that stayed would be 500 MiB and more.
MOST_KEPT_MIB = 4


def row(label, *cells):
    print(f"  {label:48}" + "".join(f"{cell:>13}" for cell in cells))


def microseconds(value):
    return f"{value:,.0f} us"


def milliseconds(value):
    return f"{value:.1f} ms"


def table(result):
    """Returns what is missed."""
    missed = []

    def target(met, text):
        if not met:
            missed.append(text)
        return f"target {text}: {'met' if met else 'MISSED'}"

    call, load, hostile, refused = result["call"], result["load"], result["hostile"], result["refused"]
    print(f"\nOne validate of {call['config_bytes']:,} bytes, {call['calls']:,} calls in turns\n")
    row("", "p50", "p99")
    for label, key in (
        ("bare wasmtime loop", "bare"),
        ("taxiway, every limit on", "host"),
        ("HTTP on loopback, kept connection", "http"),
        ("Python subprocess", "python"),
    ):
        row(label, microseconds(call[f"{key}_p50_us"]), microseconds(call[f"{key}_p99_us"]))
    times_bare, times_python = call["host_to_bare_p50"], call["python_to_host_p50"]
    row("taxiway / bare", f"{times_bare:.2f} x", "  " + target(times_bare <= MOST_TIMES_BARE, f"at most {MOST_TIMES_BARE} x"))
    row("Python / taxiway", f"{times_python:,.0f} x", "  " + target(times_python >= LEAST_TIMES_PYTHON, f"at least {LEAST_TIMES_PYTHON} x"))
    print(f"\n{load['plugins']} plugins from a warm cache: {load['p50_ms']:.0f} ms (p50), {load['slowest_ms']:.0f} ms at most; "
          + target(load["p50_ms"] < MOST_LOAD_MS, f"under {MOST_LOAD_MS} ms"))
    alone = hostile["alone_slowest_ms"]
    print(f"\nHostile guests, {hostile['at_a_time']} calls at a time, timeout {hostile['timeout_ms']} ms; the slowest call of "
          f"another plugin is {alone:.1f} ms without them\n")
    row("", "ended after", "over it", "others", "memory kept")
    at_once = hostile["at_once"]
    for guest in hostile["guests"] + [at_once]:
        row(
            f"{guest['guest']}: {guest['limit']}"[:48],
            milliseconds(guest["longest_ms"]),
            milliseconds(guest["late_ms"]),
            milliseconds(guest["others_slowest_ms"]),
            f"{guest['memory_kept_mib']:.1f} MiB",
        )
    print(f"\nFiles that do not come into force, dropped into the folder; compile_timeout {refused['compile_timeout_ms']:,} ms\n")
    row("", "refused after", "others", "memory kept")
    for file in refused["files"]:
        row(
            file["file"],
            milliseconds(file["refused_ms"]),
            milliseconds(file["others_slowest_ms"]),
            f"{file['memory_kept_mib']:.1f} MiB",
        )
    latest = max(guest["late_ms"] for guest in hostile["guests"] + [at_once])
    delay = max(beside["others_slowest_ms"] for beside in hostile["guests"] + refused["files"]) - alone
    kept = max(beside["memory_kept_mib"] for beside in hostile["guests"] + refused["files"])
    most, most_of_all = hostile["at_a_time"] * MOST_KEPT_MIB, hostile["at_once_calls"] * MOST_KEPT_MIB
    print(f"\n  over the timeout by {latest:.1f} ms at most; {target(latest <= MOST_LATE_MS, f'at most {MOST_LATE_MS} ms')}")
    print(f"  others delayed by {delay:.1f} ms at most; {target(delay <= MOST_DELAY_MS, f'at most {MOST_DELAY_MS} ms')}")
    print(f"  and by {at_once['others_slowest_ms'] - alone:.1f} ms with {hostile['at_once_calls']} calls of four of them at once, "
          "for which there is no target")
    print(f"  memory kept of eight calls {kept:.1f} MiB at most; {target(kept <= most, f'at most {most} MiB')}")
    print(f"  memory kept of all {hostile['memory_kept_mib']:.1f} MiB; "
          + target(hostile["memory_kept_mib"] <= most_of_all, f"at most {most_of_all} MiB"))
    return missed


def main():
    parser = argparse.ArgumentParser(description="Measure what plugins cost.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where every figure goes")
    parser.add_argument("command", nargs="+", help="the bench, which prints its figures as the last line")
    arguments = parser.parse_args()
    run = subprocess.run(arguments.command, stdout=subprocess.PIPE, text=True)
    if run.returncode != 0:
        print(f"bench: {arguments.command[0]} ended with {run.returncode}", file=sys.stderr)
        return 1
    result = json.loads(run.stdout.splitlines()[-1])
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    missed = table(result)
    print(f"\nEvery figure is in {arguments.json}.")
    if missed:
        print("Missed: " + "; ".join(missed) + ".")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
