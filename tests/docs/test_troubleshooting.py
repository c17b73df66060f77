"""Each error text on the troubleshooting page is provoked and compared word by word."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import aclosing
from datetime import datetime, timezone

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault
from airflow_provider_sendgrid.exports.export import ContactExport, ExportSelection
from airflow_provider_sendgrid.exports.polling import Outcome, PollResult
from airflow_provider_sendgrid.exports.start_attempt import Attempt
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from airflow_provider_sendgrid.triggers.sendgrid import SendGridExportTrigger
from tests.docs.blocks import blocks_of_kind
from tests.support.network import Proxy


class Trouble:
    """Each method raises one of the errors."""

    def __init__(self, emulator, s3, monkeypatch):
        self.emulator, self.s3, self.monkeypatch = emulator, s3, monkeypatch

    def connect(self, **fields):
        """Replace fields of the connection."""
        known = json.loads(self.emulator.connection_json())
        self.monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", json.dumps(known | fields))

    def ask(self):
        SendGridHook().get_export(SendGridHook().start_export())

    def outage(self):
        self.emulator.inject(Fault("status", status=503))
        SendGridHook().get_lists()

    def refused_arguments(self):
        SendGridHook().start_export(["no-such-list"])

    def missing_plan(self):
        self.emulator.inject(Fault("status", status=400, message="authorization required"))
        SendGridHook().start_export()

    def legacy_without_exports(self):
        self.emulator.inject(Fault("status", status=404, path="/v3/contactdb/exports"))
        SendGridHook(family="legacy").start_export()

    def null_listing(self):
        self.emulator.inject(Fault("null_listing"))
        SendGridHook().get_lists()

    def redirected(self):
        self.emulator.inject(Fault("redirect", location="https://login.example/?from=api"))
        SendGridHook().get_lists()

    def unknown_segment(self):
        SendGridHook().ids_of_segments(["Active last month"])

    def refused_first_api(self):
        self.emulator.inject(Fault("status", status=403, path="/v3/marketing/segments"))
        SendGridHook().ids_of_segments(["Old buyers"])

    def unknown_key(self):
        self.connect(password="SG.unknown.key")
        SendGridHook().get_lists()

    def forbidden(self):
        self.emulator.configure(product="legacy")
        self.ask()

    def unknown_export(self):
        SendGridHook().get_export("no-such-export")

    def rate_limited(self):
        self.emulator.inject(Fault("status", status=429, retry_after=3600))
        SendGridHook().get_lists()

    def no_server(self):
        self.connect(host="http://127.0.0.1:9")
        SendGridHook().get_lists()

    def no_password_for_the_proxy(self):
        with Proxy("407").running() as proxy:
            self.connect(host="https://localhost:9", extra={"proxy": proxy.url})
            SendGridHook().get_lists()

    def unparsable_connection(self):
        self.monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", '{"conn_type": "sendgrid"')
        self.ask()

    def lost(self):
        self.emulator.inject(Fault("lost"))
        SendGridHook().get_lists()

    def login_page(self):
        self.emulator.inject(Fault("html"))
        SendGridHook().get_lists()

    def export_that_is(self, outcome):
        return self.emulator.start_export([self.emulator.add_list("Odd", outcome=outcome)])

    def failed(self):
        SendGridExportSensor(task_id="wait", export_id=self.export_that_is("failure")).execute({})

    def expired(self):
        SendGridExportSensor(task_id="wait", export_id=self.export_that_is("expired")).execute({})

    def never_finished(self):
        """Pending a day after its start, by SendGrid's clock."""
        ahead = [0.0]
        with Emulator(clock=lambda: time.time() + ahead[0]) as emulator:
            self.monkeypatch.setenv("AIRFLOW_CONN_SENDGRID_DEFAULT", emulator.connection_json())
            export_id = emulator.start_export([emulator.add_list("Odd", outcome="stuck")])
            ahead[0] = 24 * 3600.0
            SendGridExportSensor(task_id="wait", export_id=export_id).execute({})

    def without_files(self):
        ready = datetime(2026, 1, 1, tzinfo=timezone.utc)
        export = ContactExport("an-id", "ready", completed_at=ready)
        raise PollResult(export, Outcome.WITHOUT_FILES).error()

    def wait_for(self, export_id):
        SendGridExportSensor(task_id="wait", export_id=export_id).execute({})

    def no_id(self):
        self.wait_for(None)

    def several_ids(self):
        self.wait_for(["an-id"])

    def whole_summary(self):
        self.wait_for({"id": "an-id"})

    def stuck_while_deferred(self):
        """The timeout is over at the trigger's first poll."""
        export_id = self.export_that_is("stuck")

        async def first_event():
            async with aclosing(SendGridExportTrigger(export_id, end_time=time.time()).run()) as events:
                return (await anext(events)).payload

        sensor = SendGridExportSensor(task_id="wait", export_id=export_id, timeout=7200)
        sensor.execute_complete({}, asyncio.run(first_event()))

    def stuck_while_poking(self):
        export_id = self.export_that_is("stuck")
        SendGridExportSensor(task_id="wait", export_id=export_id, poke_interval=0.01, timeout=0.02).execute({})

    def deliver(self, export_id):
        operator = SendGridToS3Operator(
            task_id="store", export_id=export_id, s3_bucket=self.s3.bucket, s3_key_prefix="here/"
        )
        operator.execute({})

    def count_disagrees(self):
        """SendGrid's file lacks its last row."""
        self.emulator.configure(encoding="plain")
        export_id = self.emulator.start_export(file_type="json")
        [file] = self.emulator.export_files(export_id)
        whole = file.read()
        self.emulator.inject(Fault("truncate", listener="files", at=whole.rstrip(b"\n").rindex(b"\n") + 1))
        self.deliver(export_id)

    def no_file(self):
        self.emulator.inject(Fault("status", listener="files", status=503))
        self.deliver(self.emulator.start_export())

    def conflict(self):
        for _ in range(2):
            self.deliver(self.emulator.start_export())

    def fewer_files(self):
        """The manifest names one file more than SendGrid lists."""
        export_id = self.emulator.start_export()
        self.deliver(export_id)
        [key] = [key for key in self.s3.stored_keys() if key.endswith("_manifest.json")]
        manifest = json.loads(self.s3.read(key))
        manifest["entries"].append({"url": f"s3://{self.s3.bucket}/another.csv.gz"})
        self.s3.client.put_object(Bucket=self.s3.bucket, Key=key, Body=json.dumps(manifest))
        self.deliver(export_id)

    def no_bucket(self):
        SendGridToS3Operator(
            task_id="store", export_id=self.emulator.start_export(), s3_key_prefix="s3://no-such-bucket/here/"
        ).execute({})

    def no_credentials(self):
        self.monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT")
        self.monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        self.deliver(self.emulator.start_export())

    def in_doubt(self):
        since = time.time()
        for _ in range(2):
            self.emulator.start_export()
        SendGridHook().start_export_once(ExportSelection(), Attempt(since, is_retry=True))

    def no_list(self):
        SendGridExportContactsOperator(task_id="start", list_ids=[]).execute({})

    def no_connection(self):
        self.monkeypatch.delenv("AIRFLOW_CONN_SENDGRID_DEFAULT")
        SendGridExportContactsOperator(task_id="start").execute({})

    def no_key(self):
        self.connect(password="")
        self.ask()

    def unencrypted(self):
        self.connect(host="http://sendgrid.example")
        self.ask()

    def misspelled_key(self):
        self.connect(extra={"regoin": "eu"})
        self.ask()

    def extra_that_is_no_json(self):
        self.connect(extra="region: eu")
        self.ask()

    def contradiction(self):
        self.connect(host="api.sendgrid.com", extra={"region": "eu"})
        self.ask()

    def no_such_certificates(self):
        self.connect(extra={"verify": "/no/such/file.pem"})
        self.ask()

    def no_such_port(self):
        self.monkeypatch.delenv("https_proxy", raising=False)
        self.monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:99999")
        self.ask()

    def placeholder(self):
        self.connect(password="***")
        self.ask()


# A phrase of each text, and what provokes it.
PROVOKED = {
    "answered 400 (list_ids": Trouble.refused_arguments,
    "answered 400 (authorization": Trouble.missing_plan,
    "answered 401": Trouble.unknown_key,
    "answered 403 (…). One": Trouble.forbidden,
    "Check the id,": Trouble.unknown_export,
    "upgraded in 2025": Trouble.legacy_without_exports,
    "'result' is null": Trouble.null_listing,
    "This is a redirect": Trouble.redirected,
    "Similar names:": Trouble.unknown_segment,
    "could not be read": Trouble.refused_first_api,
    "answered 429": Trouble.rate_limited,
    "answered 503": Trouble.outage,
    "no connection (…)": Trouble.no_server,
    "tunnel with 407": Trouble.no_password_for_the_proxy,
    "cannot be parsed": Trouble.unparsable_connection,
    "the connection broke": Trouble.lost,
    "not a JSON object": Trouble.login_page,
    "'failure'": Trouble.failed,
    "its files are deleted": Trouble.expired,
    "never finished it": Trouble.never_finished,
    "names no files": Trouble.without_files,
    "not an id. Pass": Trouble.no_id,
    "not one id": Trouble.several_ids,
    "is a mapping": Trouble.whole_summary,
    "SendGrid counted": Trouble.count_disagrees,
    "attempts in a row": Trouble.no_file,
    "is 'pending' after": Trouble.stuck_while_deferred,
    "when last seen": Trouble.stuck_while_poking,
    "already exists and is": Trouble.conflict,
    "but SendGrid now lists": Trouble.fewer_files,
    "NoSuchBucket": Trouble.no_bucket,
    "the request to S3 failed": Trouble.no_credentials,
    "it is not certain": Trouble.in_doubt,
    "rendered to nothing": Trouble.no_list,
    "There is no connection": Trouble.no_connection,
    "has no API key": Trouble.no_key,
    "unencrypted": Trouble.unencrypted,
    "did you mean region": Trouble.misspelled_key,
    "must be a JSON object, such as": Trouble.extra_that_is_no_json,
    "but the host": Trouble.contradiction,
    "/no/such/file.pem": Trouble.no_such_certificates,
    "variable HTTPS_PROXY": Trouble.no_such_port,
    "placeholder": Trouble.placeholder,
}
BLOCKS = blocks_of_kind("error")


@pytest.mark.parametrize("phrase", PROVOKED)
@pytest.mark.usefixtures("no_waiting")
def test_the_page_shows_the_text_of_the_error(phrase, sendgrid_emulator, s3, monkeypatch):
    """Dots replace what differs from case to case."""
    [shown] = [block.text.strip() for block in BLOCKS if phrase in block.text]

    with pytest.raises(Exception) as raised:  # noqa: PT011 - its text is compared
        PROVOKED[phrase](Trouble(sendgrid_emulator, s3, monkeypatch))

    assert re.fullmatch(re.escape(shown).replace("…", ".*"), str(raised.value)), str(raised.value)


def test_every_text_is_provoked():
    assert [] == [str(block) for block in BLOCKS if sum(phrase in block.text for phrase in PROVOKED) != 1]
