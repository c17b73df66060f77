"""Requests an export's status in its own process and prints the growth of its memory, for `test_memory.py`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys

from airflow_provider_sendgrid.exceptions import SendGridError
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import AsyncSendGridClient, SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily


def get_export(export_id):
    return protocol.get_export(ExportFamily.MARKETING, export_id, protocol.RetryPolicy(tries=1))


def request(kind: str, connection: SendGridConnection, export_id: str) -> object:
    if kind == "requests":
        with SendGridClient(connection) as client:
            return client.run_flow(get_export(export_id))

    async def on_a_loop():
        async with AsyncSendGridClient(connection) as client:
            return await client.run_flow(get_export(export_id))

    return asyncio.run(on_a_loop())


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(kind: str, url: str, good_id: str, *bad_ids: str) -> None:
    connection = SendGridConnection("SG.a-key", url)
    request(kind, connection, good_id)
    idle_kib, messages = peak_kib(), []
    for bad_id in bad_ids:
        try:
            request(kind, connection, bad_id)
        except SendGridError as error:
            messages.append(str(error))
    print(json.dumps({"grown_kib": peak_kib() - idle_kib, "messages": messages}))


if __name__ == "__main__":
    main(*sys.argv[1:])
