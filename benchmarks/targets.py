"""Delivers one file to each storage, by this provider and by Airflow's `ObjectStoragePath`: time, CPU, peak memory.

    make bench-targets TARGETS="--mib 1024 --rounds 2"

The servers of S3 and Google Cloud Storage discard the content; azurite and the folder keep it. So compare only results
for the same storage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.content import block
from benchmarks.servers import start_server
from dev import REPOSITORY, WORK_FOLDER
from dev.services.azurite import azurite
from dev.services.azurite import connection as azure_connection
from dev.services.gcs import CONNECTION as GCS_CONNECTION

MIB = 1024 * 1024
BLOCK_BYTES = 16 * MIB
METHODS = ("ours", "counting", "airflow")
CONNECTION = "the_target"
# Without it, gcsfs sends a request to Google for the type of the bucket.
GCSFS = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
KINDS = ("file", "s3", "gs", "abfs")


@dataclass(frozen=True)
class Target:
    """A storage, and the variables that a process needs for it."""

    path: str
    environment: dict[str, str]


@contextmanager
def target(kind: str, folder: Path) -> Iterator[Target]:
    name = f"AIRFLOW_CONN_{CONNECTION.upper()}"
    with ExitStack() as stack:
        if kind == "file":
            yield Target(f"file://{folder}/files", {})
        elif kind == "s3":
            url = f"http://127.0.0.1:{stack.enter_context(start_server(['benchmarks.s3_sink']))}"
            extra = {"endpoint_url": url, "region_name": "us-east-1"}
            connection = {"conn_type": "aws", "login": "made-up", "password": "made-up", "extra": extra}
            yield Target(f"s3://{CONNECTION}@bench/in", {name: json.dumps(connection)})
        elif kind == "gs":
            url = f"http://127.0.0.1:{stack.enter_context(start_server(['benchmarks.gcs_sink']))}"
            yield Target(
                f"gs://{CONNECTION}@lake/in", {name: json.dumps(GCS_CONNECTION), "STORAGE_EMULATOR_HOST": url, **GCSFS}
            )
        else:
            from azure.storage.blob import BlobServiceClient

            text = stack.enter_context(azurite(folder))
            BlobServiceClient.from_connection_string(text).create_container("lake")
            yield Target(f"abfs://{CONNECTION}@lake/in", {name: json.dumps(azure_connection(text))})


def run(method: str, url: str, destination: Target, folder: Path) -> dict[str, float]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "AWS_"))},
        "AIRFLOW_HOME": str(folder / "airflow"),
        **destination.environment,
    }
    job = json.dumps({"method": method, "url": url, "path": destination.path})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.to_target", job],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    if done.returncode:
        raise RuntimeError(f"{method} to {destination.path} failed:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {**lines[-2], **lines[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=KINDS, action="append")
    options = parser.parse_args()
    folder = WORK_FOLDER / "bench-targets"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = block(WORK_FOLDER / "benchmarks" / "content", "gzip", BLOCK_BYTES)
    print(f"{options.mib} MiB of gzip, {options.rounds} rounds; load average {os.getloadavg()[0]:.1f} at the start\n")
    print("| to | | seconds | MB/s | CPU s | peak MiB | above idle, MiB | ratio to Airflow's |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with start_server(["benchmarks.source", str(content.path)]) as port:
        url = f"http://127.0.0.1:{port}/{options.mib * MIB}/00000.csv.gz"
        for kind in options.only or KINDS:
            with target(kind, folder) as destination:
                print_rows(kind, in_turn(url, destination, folder, options.rounds), options.mib)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\nLoad average {os.getloadavg()[0]:.1f} at the end")


def in_turn(url: str, destination: Target, folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            runs[method].append(run(method, url, destination, folder))
    return runs


def print_rows(kind: str, runs: dict[str, list[dict[str, float]]], mib: int) -> None:
    names = {"ours": "ours", "counting": "ours, rows counted", "airflow": "Airflow's ObjectStoragePath"}
    base = median(each["wall"] for each in runs["airflow"])
    for method in METHODS:
        wall, cpu, peak, idle = (median(each[key] for each in runs[method]) for key in ("wall", "cpu", "peak", "idle"))
        cells = f"{wall:.1f} | {mib * MIB / 1e6 / wall:.0f} | {cpu:.1f} | {peak / MIB:.0f} | {(peak - idle) / MIB:.0f}"
        print(f"| {kind} | {names[method]} | {cells} | {base / wall:.1f} |", flush=True)


if __name__ == "__main__":
    main()
