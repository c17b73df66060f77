"""The operator that starts an export."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator


def start(**arguments):
    return SendGridExportContactsOperator(task_id="start", **arguments).execute({})


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_the_id_it_returns_is_that_of_the_export(sendgrid_emulator, family):
    """Lists and segments together, in both families."""
    export_id = start(
        family=family,
        list_ids=[sendgrid_emulator.list_id("Customers", family)],
        segment_ids=[sendgrid_emulator.segment_id("Customers in Germany", family)],
        file_type="json",
    )

    [file] = sendgrid_emulator.export_files(export_id)
    assert file.rows >= 500
    assert b"{" == file.read()[:1]
    assert 1 == sendgrid_emulator.count("POST")


def test_without_lists_and_segments_it_exports_everybody(sendgrid_emulator):
    everybody = sum(each.contacts for each in sendgrid_emulator.lists())

    [file] = sendgrid_emulator.export_files(start())

    assert file.rows >= everybody


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (400, SendGridBadRequestError),
        (401, SendGridAuthError),
        (403, SendGridPermissionError),
        (404, SendGridNotFoundError),
    ],
)
def test_what_sendgrid_refuses_fails_without_another_try(sendgrid_emulator, status, error_class):
    """With SendGrid's words, and our error as the cause."""
    sendgrid_emulator.inject(Fault("status", method="POST", status=status, message="this will not do"))

    with pytest.raises(AirflowFailException, match="this will not do") as caught:
        start()

    assert isinstance(caught.value.__cause__, error_class)
    assert 1 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize(
    ("fault", "error_class"), [(Fault("status"), SendGridServerError), (Fault("lost"), SendGridUnavailableError)]
)
@pytest.mark.usefixtures("no_waiting")
def test_an_outage_fails_so_that_airflow_tries_again(sendgrid_emulator, fault, error_class):
    """One request, and an error that is not Airflow's own."""
    sendgrid_emulator.inject(fault)

    with pytest.raises(error_class) as caught:
        start()

    assert not isinstance(caught.value, AirflowFailException)
    assert caught.value.may_have_been_accepted
    assert 1 == sendgrid_emulator.count("POST")


@pytest.mark.usefixtures("no_waiting")
def test_a_refused_connection_is_tried_again_at_once(sendgrid_emulator):
    """A 429 was not accepted, so a second request is safe."""
    sendgrid_emulator.inject(Fault("status", method="POST", first=2, status=429))

    assert start()
    assert 3 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"file_type": "xlsx"}, "file_type must be"),
        ({"max_file_size": 0}, "max_file_size must be"),
        ({"family": "modern"}, "family must be"),
        ({"family": "legacy", "list_ids": ["5f1f-uuid"]}, "must be numbers"),
    ],
)
def test_arguments_that_cannot_be_right_never_reach_sendgrid(sendgrid_emulator, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        start(**arguments)
    assert 0 == sendgrid_emulator.count()


def test_a_single_text_is_no_list_of_ids(sendgrid_emulator):
    """Its characters would be taken for ids."""
    with pytest.raises(TypeError, match="list_ids must be a list"):
        start(list_ids="5f1f-uuid")
    assert 0 == sendgrid_emulator.count()


def test_templates_are_rendered_before_anything_looks_at_them(sendgrid_emulator):
    """The constructor takes them as they are."""
    operator = SendGridExportContactsOperator(
        task_id="start",
        list_ids=["{{ lists[0] }}"],
        file_type="{{ file_type }}",
        max_file_size="{{ 7 }}",
        family="{{ family }}",
        sendgrid_conn_id="sendgrid_{{ which }}",
    )
    context = {
        "lists": [sendgrid_emulator.list_id("Customers")],
        "file_type": "json",
        "family": "marketing",
        "which": "default",
    }

    operator.render_template_fields(context)
    [file] = sendgrid_emulator.export_files(operator.execute({}))

    assert (500, True) == (file.rows, file.name.endswith(".json.gzip"))


def test_neither_key_nor_url_is_logged(sendgrid_emulator, output_of_all_logs):
    export_id = start()

    logged = output_of_all_logs()
    assert export_id in logged
    assert sendgrid_emulator.api_key not in logged


@pytest.mark.usefixtures("no_waiting")
def test_its_errors_are_sendgrids(sendgrid_emulator):
    sendgrid_emulator.inject(Fault("html", method="POST"))

    with pytest.raises(SendGridError, match="not a JSON object"):
        start()
