"""One file to each storage, by us and by Airflow's own `ObjectStoragePath`, in turn: time, CPU and peak memory.

    make bench-targets TARGETS="--mib 1024 --rounds 2"

S3 and Google Cloud Storage are servers that drop what they get; Azure is azurite and the folder is this disk, which
keep it. So compare what goes to the same place.
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
from benchmarks.servers import REPOSITORY, _server
from dev.services.azurite import azurite
from dev.services.azurite import connection as azure_connection
from dev.services.gcs import CONNECTION as GCS_CONNECTION

MIB = 1024 * 1024
BLOCK_BYTES = 16 * MIB
HOWS = ("ours", "counting", "airflow")
CONNECTION = "the_target"
# Else gcsfs asks Google itself of what kind the bucket is.
GCSFS = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
KINDS = ("file", "s3", "gs", "abfs")


@dataclass(frozen=True)
class Target:
    """Where to, and what a process has to know for it."""

    path: str
    environment: dict[str, str]


@contextmanager
def target(kind: str, folder: Path) -> Iterator[Target]:
    name = f"AIRFLOW_CONN_{CONNECTION.upper()}"
    with ExitStack() as stack:
        if kind == "file":
            yield Target(f"file://{folder}/files", {})
        elif kind == "s3":
            url = f"http://127.0.0.1:{stack.enter_context(_server(['benchmarks.sink']))}"
            extra = {"endpoint_url": url, "region_name": "us-east-1"}
            connection = {"conn_type": "aws", "login": "made-up", "password": "made-up", "extra": extra}
            yield Target(f"s3://{CONNECTION}@bench/in", {name: json.dumps(connection)})
        elif kind == "gs":
            url = f"http://127.0.0.1:{stack.enter_context(_server(['benchmarks.gcs_sink']))}"
            yield Target(
                f"gs://{CONNECTION}@lake/in", {name: json.dumps(GCS_CONNECTION), "STORAGE_EMULATOR_HOST": url, **GCSFS}
            )
        else:
            from azure.storage.blob import BlobServiceClient

            text = stack.enter_context(azurite(folder))
            BlobServiceClient.from_connection_string(text).create_container("lake")
            yield Target(f"abfs://{CONNECTION}@lake/in", {name: json.dumps(azure_connection(text))})


def run(how: str, url: str, place: Target, folder: Path) -> dict[str, float]:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "AWS_"))},
        "AIRFLOW_HOME": str(folder / "airflow"),
        **place.environment,
    }
    job = json.dumps({"how": how, "url": url, "path": place.path})
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
        raise RuntimeError(f"{how} to {place.path} failed:\n{done.stderr[-2000:]}")
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {**told[-2], **told[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=KINDS, action="append")
    given = parser.parse_args()
    folder = REPOSITORY / ".lab" / "bench-targets"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = block(REPOSITORY / ".lab" / "benchmarks" / "content", "gzip", BLOCK_BYTES)
    print(f"{given.mib} MiB of gzip, {given.rounds} rounds; load average {os.getloadavg()[0]:.1f} at the start\n")
    print("| to | | seconds | MB/s | CPU s | peak MiB | above idle, MiB | ratio to Airflow's |")
    print("|---|---|---:|---:|---:|---:|---:|---:|", flush=True)
    with _server(["benchmarks.source", str(content.path)]) as port:
        url = f"http://127.0.0.1:{port}/{given.mib * MIB}/00000.csv.gz"
        for kind in given.only or KINDS:
            with target(kind, folder) as place:
                tell(kind, in_turn(url, place, folder, given.rounds), given.mib)
    shutil.rmtree(folder, ignore_errors=True)
    print(f"\nLoad average {os.getloadavg()[0]:.1f} at the end")


def in_turn(url: str, place: Target, folder: Path, rounds: int) -> dict[str, list[dict[str, float]]]:
    runs: dict[str, list[dict[str, float]]] = {how: [] for how in HOWS}
    for _ in range(rounds):
        for how in HOWS:
            runs[how].append(run(how, url, place, folder))
    return runs


def tell(kind: str, runs: dict[str, list[dict[str, float]]], mib: int) -> None:
    names = {"ours": "ours", "counting": "ours, rows counted", "airflow": "Airflow's ObjectStoragePath"}
    base = median(each["wall"] for each in runs["airflow"])
    for how in HOWS:
        wall, cpu, peak, idle = (median(each[key] for each in runs[how]) for key in ("wall", "cpu", "peak", "idle"))
        cells = f"{wall:.1f} | {mib * MIB / 1e6 / wall:.0f} | {cpu:.1f} | {peak / MIB:.0f} | {(peak - idle) / MIB:.0f}"
        print(f"| {kind} | {names[how]} | {cells} | {base / wall:.1f} |", flush=True)


if __name__ == "__main__":
    main()
