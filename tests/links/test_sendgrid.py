"""The links beside a task: their addresses, when they are pushed, and that they never fail a task."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.links import sendgrid as links
from airflow_provider_sendgrid.links.sendgrid import DeliveredObjectsLink, SendGridExportsLink, console_url
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator
from airflow_provider_sendgrid.provider_info import get_provider_info
from airflow_provider_sendgrid.sensors.sendgrid import SendGridExportSensor
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator

MARKETING = "https://mc.sendgrid.com/contacts/exports"
AMAZON = "https://s3.eu-west-1.amazonaws.com"


class Instance:
    """A task instance that keeps the XComs that are pushed."""

    def __init__(self):
        self.task_id, self.map_index, self.try_number = "task", -1, 1
        self.run_id, self.dag_id = "run", "dag"
        self.xcoms = {}

    def xcom_push(self, key, value):
        self.xcoms[key] = value

    def xcom_pull(self, **_):
        return []


@pytest.fixture
def instance(monkeypatch):
    instance = Instance()
    monkeypatch.setattr(links, "read_xcom", lambda ti_key, key: ti_key.xcoms.get(key))
    return instance


@pytest.fixture
def run(instance):
    """Run an operator, then push its links as Airflow 3 does when a task ends."""

    def execute(operator):
        dag_run = SimpleNamespace(start_date=None)
        context = {"ti": instance, "task": operator, "dag": SimpleNamespace(tasks=[]), "dag_run": dag_run}
        try:
            operator.execute(context)
        finally:
            for link in operator.operator_extra_links:
                instance.xcom_push(link.xcom_key, link.get_link(operator=operator, ti_key=instance))

    return execute


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
def test_objects_link_to_the_console_of_their_cloud(uri, endpoint, expected):
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
def test_other_storage_has_no_console_page(uri, endpoint):
    """Other S3 servers are not in Amazon's console; Azure containers and files have no such page."""
    assert "" == console_url(uri, endpoint)


def test_a_failed_start_task_links_to_the_exports(sendgrid_emulator, run, instance):
    sendgrid_emulator.inject(Fault("status", method="POST", status=401))

    with pytest.raises(AirflowFailException):
        run(SendGridExportContactsOperator(task_id="start"))

    assert MARKETING == instance.xcoms["sendgrid_exports_link"]


def test_a_sensor_links_to_the_exports_of_its_family(sendgrid_emulator, run, instance):
    listed = sendgrid_emulator.add_list("Some", family="legacy")
    export_id = sendgrid_emulator.start_export([listed], family="legacy")

    run(SendGridExportSensor(task_id="wait", export_id=export_id, family="legacy"))

    assert {"sendgrid_exports_link": "https://sendgrid.com/marketing_campaigns/ui/contacts"} == instance.xcoms


@pytest.fixture
def transfer(sendgrid_emulator, s3):
    """A transfer of an export to the test's bucket."""
    export_id = sendgrid_emulator.start_export([sendgrid_emulator.add_list("Some")])
    return SendGridToS3Operator(task_id="store", export_id=export_id, s3_key_prefix=f"s3://{s3.bucket}/a/")


def test_a_transfer_to_amazon_links_to_its_objects(transfer, s3, run, instance, monkeypatch):
    """The server is the test's; only the endpoint is Amazon's."""
    storage_of = transfer._storage

    def storage_with_amazons_endpoint():
        storage = storage_of()
        transfer._endpoint_url = AMAZON
        return storage

    monkeypatch.setattr(transfer, "_storage", storage_with_amazons_endpoint)

    run(transfer)

    console = f"https://console.aws.amazon.com/s3/buckets/{s3.bucket}?prefix=a%2F"
    assert {"sendgrid_exports_link": MARKETING, "sendgrid_delivered_objects_link": console} == instance.xcoms


def test_a_transfer_to_another_s3_server_pushes_no_objects_link(transfer, run, instance):
    run(transfer)

    assert {"sendgrid_exports_link": MARKETING} == instance.xcoms


def test_a_transfer_with_a_wrong_argument_pushes_no_objects_link(transfer, run, instance):
    transfer.export_id = "None"

    with pytest.raises(AirflowFailException):
        run(transfer)

    assert {"sendgrid_exports_link": MARKETING} == instance.xcoms


@pytest.mark.parametrize("operator_class", [SendGridExportContactsOperator, SendGridExportSensor, SendGridToS3Operator])
@pytest.mark.usefixtures("sendgrid_emulator")
def test_a_task_with_an_unknown_family_pushes_no_link(operator_class, run, instance):
    arguments = {
        SendGridExportContactsOperator: {},
        SendGridExportSensor: {"export_id": "6f"},
        SendGridToS3Operator: {"export_id": "6f", "s3_key_prefix": "s3://lake/a/"},
    }
    operator = operator_class(task_id="task", family="other", **arguments[operator_class])

    with pytest.raises(AirflowFailException):
        run(operator)

    assert {} == instance.xcoms


def test_a_task_without_xcoms_pushes_no_link(sendgrid_emulator, run, instance):
    export_id = sendgrid_emulator.start_export()

    run(SendGridExportSensor(task_id="wait", export_id=export_id, do_xcom_push=False))

    assert {} == instance.xcoms


@pytest.mark.usefixtures("sendgrid_emulator")
def test_a_sensor_without_xcoms_pushes_no_link_after_a_deferral(instance):
    """It resumes in a new process."""
    sensor = SendGridExportSensor(task_id="wait", export_id="6f", deferrable=True, do_xcom_push=False)
    event = {"outcome": "ready", "export": {"id": "6f"}}

    sensor.resume_execution("execute_complete", {"event": event}, {"ti": instance, "task": sensor})

    assert () == sensor.operator_extra_links
    assert {} == instance.xcoms


@pytest.mark.usefixtures("sendgrid_emulator")
def test_a_link_of_one_task_is_not_removed_from_another(run):
    """The links of the class stay, which the DAG shows."""
    with pytest.raises(AirflowFailException):
        run(SendGridExportContactsOperator(task_id="task", family="other"))

    assert 1 == len(SendGridExportContactsOperator.operator_extra_links)


class _ComputesLinks(SendGridExportContactsOperator):
    @property
    def operator_extra_links(self):
        """As in operators whose links depend on their arguments."""
        return ()


@pytest.mark.usefixtures("sendgrid_emulator")
def test_a_class_whose_links_are_a_property_starts_its_export(run, instance):
    run(_ComputesLinks(task_id="start"))

    assert MARKETING == instance.xcoms["sendgrid_exports_link"]


def test_an_xcom_that_fails_does_not_fail_the_task(instance, monkeypatch):
    monkeypatch.setattr(links, "read_xcom", None)
    instance.xcom_push = None

    SendGridExportsLink.keep_for({"ti": instance}, "marketing")

    assert "" == SendGridExportsLink().get_link(None, ti_key=None)


def test_all_links_are_registered_with_different_keys():
    """Airflow 2 refuses a DAG whose links are not in the provider's metadata."""
    classes = [SendGridExportsLink, DeliveredObjectsLink]

    assert [f"{link.__module__}.{link.__qualname__}" for link in classes] == get_provider_info()["extra-links"]
    assert 2 == len({link.xcom_key for link in classes}) == len({link.name for link in classes})
