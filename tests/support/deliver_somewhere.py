"""Delivers one export to a storage of any kind in a process of its own, to be killed or measured: JSON in, JSON out."""

from __future__ import annotations

import json
import resource
import sys
from types import SimpleNamespace

from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from tests.support.destinations import Destination
from tests.support.sendgrid_source import SendGrid


def main(arguments: str) -> None:
    given = json.loads(arguments)
    storage = Destination(**given["destination"]).storage()
    sendgrid = SendGrid(SimpleNamespace(url=given["url"], api_key=given["api_key"]), timeout_seconds=120.0)
    with sendgrid.source(given["export_id"]) as source:
        source.export()
        storage.head("warm-up")
        idle_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        delivery = deliver_export(source, storage, DeliveryOptions(**given["options"]))
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"rows": delivery.rows, "idle_kib": idle_kib, "peak_kib": peak_kib}))


if __name__ == "__main__":
    main(sys.argv[1])
