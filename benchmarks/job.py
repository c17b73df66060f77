"""The task of a program, and its measurement.

A program gets its job as JSON on its command line. It imports its libraries and creates its clients first, then
measures only the transfer, children included. Its last line of output is the result.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import requests

BUCKET = "bench"


@dataclass(frozen=True)
class Job:
    """Files to copy to S3.

    Attributes:
        urls: of the files.
        endpoint: URL of the sink.
        authority: path of the certificate authority to trust; None without TLS.
        rows: the number of contacts that ours must find; None to count none.
        options: of the program.
    """

    urls: list[str]
    endpoint: str
    authority: str | None = None
    rows: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def targets(self) -> list[tuple[str, str]]:
        """Each URL with the key of its object."""
        return [(url, f"copied/{number:05}.csv.gz") for number, url in enumerate(self.urls)]

    def s3_client(self, adapt: Callable[[Any], Any] = lambda config: config, **config: Any) -> Any:
        """boto3's client, its config adapted by `adapt`; the credentials are in the environment."""
        import boto3
        from botocore.config import Config

        config = adapt(Config(**config))
        return boto3.client("s3", endpoint_url=self.endpoint, verify=self.authority, config=config)

    def session(self) -> requests.Session:
        import requests

        session = requests.Session()
        session.verify = self.authority or True
        return session


def read_job() -> Job:
    return Job(**json.loads(sys.argv[1]))


def cpu_seconds() -> float:
    """CPU time of this process and its children."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


def measure(transfer: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), cpu_seconds()
    transfer()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """Peak resident memory of this process or of its largest child.

    That of a child includes what it needed before exec, here at least 14 MiB.
    """
    with open("/proc/self/status") as status:  # noqa: PTH123
        line = next(line for line in status if line.startswith("VmHWM:"))
    return 1024 * max(int(line.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
