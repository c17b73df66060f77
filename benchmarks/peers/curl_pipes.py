"""curl piped into another program: ``curl -T -``, the practical limit, or ``aws s3 cp -``.

The measurement includes the start of the programs, about a second for aws.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.job import BUCKET, measure, read_job

job = read_job()
trust = ["--cacert", job.authority] if job.authority else []


def uploader(key: str) -> list[str]:
    if job.options["into"] == "curl":
        return ["curl", "--silent", "--show-error", "--fail", *trust, "-T", "-", f"{job.endpoint}/{BUCKET}/{key}"]
    return [aws(), "s3", "cp", "-", f"s3://{BUCKET}/{key}", "--endpoint-url", job.endpoint, "--only-show-errors"]


def aws() -> str:
    bench_aws = Path(sys.prefix).parent / "bench-aws" / "bin" / "aws"
    own = Path(sys.prefix) / "bin" / "aws"
    found = next((str(path) for path in (bench_aws, own) if path.exists()), shutil.which("aws"))
    if found is None:
        raise ModuleNotFoundError("there is no aws command")
    return found


def copy() -> None:
    for url, key in job.targets():
        download = ["curl", "--silent", "--show-error", "--fail", *trust, url]
        with subprocess.Popen(download, stdout=subprocess.PIPE) as source:
            subprocess.run(uploader(key), stdin=source.stdout, check=True)
        if source.returncode:
            raise SystemExit(f"curl failed with {source.returncode}")


uploader("")
measure(copy)
