"""What a peer is told to do, and what it says when it has done it.

A peer of Python is given its job as JSON on its command line. It makes its imports and clients first, then measures
itself around the transfer alone, children included; so nobody's start counts. Its last line of output is the result.
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
    """Files to bring to S3.

    Attributes:
        urls: where they are.
        endpoint: of the sink.
        authority: path of the certificate authority to trust; None without TLS.
        rows: contacts that ours should find; None where it is not to count them.
        options: the peer's own.
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
        """boto3's client, its config adapted by `adapt`; the credentials stand in the environment."""
        import boto3
        from botocore.config import Config

        config = adapt(Config(**config))
        return boto3.client("s3", endpoint_url=self.endpoint, verify=self.authority, config=config)

    def session(self) -> requests.Session:
        import requests

        session = requests.Session()
        session.verify = self.authority or True
        return session


def job() -> Job:
    return Job(**json.loads(sys.argv[1]))


def cpu_seconds() -> float:
    """Used so far, by this process and its children."""
    each = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


def measure(transfer: Callable[[], object]) -> None:
    wall, cpu = time.perf_counter(), cpu_seconds()
    transfer()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """Resident memory of this process, or of its largest child, at its highest.

    The kernel remembers for a child what it needed before it became another program: here 14 MiB at least.
    """
    with open("/proc/self/status") as status:  # noqa: PTH123
        line = next(line for line in status if line.startswith("VmHWM:"))
    return 1024 * max(int(line.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
