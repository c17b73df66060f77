"""The links beside a task: where they lead, when they are there, and that they never get in the way."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.links.sendgrid import DeliveredObjectsLink, SendGridExportsLink, console_url
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.provider_info import get_provider_info
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

MARKETING = "https://mc.sendgrid.com/contacts/exports"
AMAZON = "https://s3.eu-west-1.amazonaws.com"


class Instance:
    """Keeps the XComs that are pushed."""

    def __init__(self):
        self.task_id, self.map_index, self.try_number = "task", -1, 1
        self.kept = {}

    def xcom_push(self, key, value):
        self.kept[key] = value

    def xcom_pull(self, **_):
        return []


@pytest.fixture
def instance():
    return Instance()


@pytest.fixture
def context(instance):
    dag_run = SimpleNamespace(start_date=None)
    return {"ti": instance, "dag": SimpleNamespace(tasks=[]), "dag_run": dag_run}


@pytest.mark.parametrize(
    ("uri", "endpoint", "expected"),
    [
        ("s3://lake/a/b/", AMAZON, "https://console.aws.amazon.com/s3/buckets/lake?prefix=a%2Fb%2F"),
        ("s3://lake/ds=1 &x=2/", AMAZON, "https://console.aws.amazon.com/s3/buckets/lake?prefix=ds%3D1+%26x%3D2%2F"),
        ("s3://lake/", "https://s3.amazonaws.com", "https://console.aws.amazon.com/s3/buckets/lake?prefix="),
        (
            "s3://lake/a/",
            "https://s3.cn-north-1.amazonaws.com.cn",
            "https://console.amazonaws.cn/s3/buckets/lake?prefix=a%2F",
        ),
        (
            "s3://lake/a/",
            "https://s3.us-gov-west-1.amazonaws.com",
            "https://console.amazonaws-us-gov.com/s3/buckets/lake?prefix=a%2F",
        ),
        ("gs://lake/a b/", None, "https://console.cloud.google.com/storage/browser/lake/a%20b/"),
        ("gs://conn@lake/a/", None, "https://console.cloud.google.com/storage/browser/lake/a/"),
    ],
)
def test_objects_are_shown_by_the_console_of_their_cloud(uri, endpoint, expected):
    assert expected == console_url(uri, endpoint)


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [
        ("s3://lake/a/", "http://127.0.0.1:5000"),
        ("s3://lake/a/", "https://minio.example"),
        ("s3://lake/a/", "https://amazonaws.com.example"),
        ("s3://lake/a/", None),
        ("file:///tmp/a/", None),
        ("abfs://container/a/", None),
    ],
)
def test_no_console_is_made_up(uri, endpoint):
    """What is not Amazon's is in no console of Amazon's; Azure's and a file's place have no such page."""
    assert "" == console_url(uri, endpoint)


def test_a_start_leads_to_the_exports_even_where_it_fails(sendgrid_emulator, context, instance):
    sendgrid_emulator.inject(Fault("status", method="POST", status=401))

    with pytest.raises(AirflowFailException):
        SendGridExportContactsOperator(task_id="start").execute(context)

    assert MARKETING == instance.kept["sendgrid_exports_link"]


def test_a_wait_leads_to_the_exports_of_its_family(sendgrid_emulator, context, instance):
    listed = sendgrid_emulator.add_list("Some", family="legacy")
    export_id = sendgrid_emulator.start_export([listed], family="legacy")

    SendGridExportSensor(task_id="wait", export_id=export_id, family="legacy").execute(context)

    assert {"sendgrid_exports_link": "https://sendgrid.com/marketing_campaigns/ui/contacts"} == instance.kept


def test_a_delivery_to_amazon_leads_to_its_objects(sendgrid_emulator, s3, context, instance, monkeypatch):
    """Known before the first byte; the endpoint alone is played here."""
    export_id = sendgrid_emulator.start_export([sendgrid_emulator.add_list("Some")])
    operator = SendGridToS3Operator(task_id="store", export_id=export_id, s3_key_prefix=f"s3://{s3.bucket}/a/")
    into_s3 = operator._storage

    def into_amazon():
        storage = into_s3()
        operator._endpoint_url = AMAZON
        return storage

    monkeypatch.setattr(operator, "_storage", into_amazon)

    operator.execute(context)

    assert (
        f"https://console.aws.amazon.com/s3/buckets/{s3.bucket}?prefix=a%2F"
        == (instance.kept["sendgrid_delivered_objects_link"])
    )
    assert MARKETING == instance.kept["sendgrid_exports_link"]


def test_a_delivery_elsewhere_leads_to_no_console_of_amazons(sendgrid_emulator, s3, context, instance):
    """That is said: an address that is missing would stand in the task's log as an error."""
    export_id = sendgrid_emulator.start_export([sendgrid_emulator.add_list("Some")])

    SendGridToS3Operator(task_id="store", export_id=export_id, s3_key_prefix=f"s3://{s3.bucket}/a/").execute(context)

    assert {"sendgrid_exports_link": MARKETING, "sendgrid_delivered_objects_link": ""} == instance.kept


def test_a_task_that_pushes_no_xcoms_leaves_none(context, instance):
    context["task"] = SimpleNamespace(do_xcom_push=False)

    SendGridExportsLink.keep_for(context, "marketing")

    assert {} == instance.kept


def test_neither_an_xcom_that_cannot_be_pushed_nor_one_that_cannot_be_read_fails_a_task(context, instance):
    instance.xcom_push = None

    SendGridExportsLink.keep_for(context, "marketing")

    assert "" == SendGridExportsLink().get_link(None, ti_key=None)


def test_airflow_knows_every_link_and_every_key_is_another():
    """Airflow 2 refuses a DAG whose links it does not know."""
    links = [SendGridExportsLink, DeliveredObjectsLink]

    assert [f"{link.__module__}.{link.__qualname__}" for link in links] == get_provider_info()["extra-links"]
    assert 2 == len({link.xcom_key for link in links}) == len({link.name for link in links})
