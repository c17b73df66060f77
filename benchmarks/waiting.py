"""Measures the cost of waiting: CPU per minute, requests per minute and memory per waiting export.

    python -m benchmarks.waiting                       5,000 exports on one event loop, two minutes
    python -m benchmarks.waiting --waiters 500 --alone each with its own client and poller

Without Airflow: this is what the provider adds to a triggerer. SendGrid's emulator runs in its own process and counts
the requests. Each wait began an hour ago, so that the poll interval is that of long waits.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from airflow_provider_sendgrid.emulator import Emulator
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.poller_pool import acquire_poller
from airflow_provider_sendgrid.exports.polling import PollSchedule

HOUR = 3600.0


@dataclass(frozen=True)
class Account:
    """An emulator in another process, with exports that never end."""

    url: str
    api_key: str
    export_ids: list[str]

    @property
    def connection(self) -> SendGridConnection:
        return SendGridConnection.from_fields(name="benchmark", password=self.api_key, host=self.url)

    def requests(self) -> int:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/_emulator/requests") as response:
            return len(json.load(response)["requests"])


def main() -> None:
    options = arguments()
    if options.serve:
        serve(options.waiters)
        return
    with account(options.waiters) as sendgrid:
        asyncio.run(measure(sendgrid, options.seconds, options.interval, is_alone=options.alone))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--waiters", type=int, default=5_000)
    parser.add_argument("--seconds", type=float, default=120.0, help="duration of the measurement, once all wait")
    parser.add_argument("--interval", type=float, default=60.0, help="longest time between two polls, in seconds")
    parser.add_argument("--alone", action="store_true", help="without a shared poller")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


async def measure(sendgrid: Account, seconds: float, interval: float, *, is_alone: bool) -> None:
    """Let all exports wait, and print the cost."""
    process = psutil.Process()
    async with AsyncSendGridClient(sendgrid.connection):  # libraries are loaded before the measurement
        gc.collect()
        bytes_before = process.memory_info().rss
        started = time.monotonic()
        tasks = [
            asyncio.ensure_future(wait(sendgrid, export_id, interval, number if is_alone else 0))
            for number, export_id in enumerate(sendgrid.export_ids)
        ]
        await all_polled(sendgrid, tasks, is_alone)
        print(f"all {len(tasks):,} wait after {time.monotonic() - started:.1f} s", flush=True)
        cpu_before, requests_before = cpu_seconds(process), await asyncio.to_thread(sendgrid.requests)
        await asyncio.sleep(seconds)
        gc.collect()
        minutes = seconds / 60
        grown = process.memory_info().rss - bytes_before
        requests = await asyncio.to_thread(sendgrid.requests) - requests_before
        print(f"CPU               {(cpu_seconds(process) - cpu_before) / minutes:8.2f} s per minute")
        print(f"requests          {requests / minutes:8.1f} per minute")
        print(f"memory            {grown / len(tasks) / 1024:8.1f} KiB per waiting export")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def wait(sendgrid: Account, export_id: str, interval: float, key: int) -> None:
    """Wait as a trigger does."""

    def connect() -> AsyncSendGridClient:
        return AsyncSendGridClient(sendgrid.connection)

    async with acquire_poller(key, ExportFamily.MARKETING, connect) as watch:
        began = time.time() - HOUR
        await watch.wait(export_id, PollSchedule(interval), started_at=began, end_time=float("inf"))


async def all_polled(sendgrid: Account, tasks: list[asyncio.Task[None]], is_alone: bool) -> None:
    """Wait until every export was polled once; without sharing, each needs its own request."""
    needed = len(tasks) if is_alone else 1 + len(tasks) // 100
    while await asyncio.to_thread(sendgrid.requests) < needed:  # noqa: ASYNC110 - another process counts them
        await asyncio.sleep(1)
    await asyncio.sleep(2)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def account(waiters: int) -> Iterator[Account]:
    """Run the emulator in another process."""
    command = [sys.executable, "-m", "benchmarks.waiting", "--serve", "--waiters", str(waiters)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield Account(**json.loads(server.stdout.readline()))
        server.stdin.close()


def serve(waiters: int) -> None:
    """Run the emulator until standard input is closed."""
    with Emulator() as emulator:
        stuck = emulator.add_list("Stuck", contacts=0, outcome="stuck")
        export_ids = [emulator.start_export([stuck]) for _ in range(waiters)]
        print(json.dumps({"url": emulator.url, "api_key": emulator.api_key, "export_ids": export_ids}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
