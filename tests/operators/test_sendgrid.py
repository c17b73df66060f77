"""The operator that starts an export."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid._compat import HAS_EVENT_TRIGGERS, AirflowFailException
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
from tests.support.state_store import StateStore

pytestmark = pytest.mark.usefixtures("no_waiting")


def start(**arguments):
    return SendGridExportContactsOperator(task_id="start", **arguments).execute({})


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_it_returns_the_id_of_the_export(sendgrid_emulator, family):
    """With lists and segments, in both families."""
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


def test_without_lists_and_segments_all_contacts_are_exported(sendgrid_emulator):
    everybody = sum(each.contacts for each in sendgrid_emulator.lists())

    [file] = sendgrid_emulator.export_files(start())

    assert file.rows >= everybody


@pytest.mark.parametrize(
    ("status", "error_class", "requests"),
    [
        (400, SendGridBadRequestError, 1),
        (401, SendGridAuthError, 1),
        (403, SendGridPermissionError, 3),
        (404, SendGridNotFoundError, 1),
    ],
)
@pytest.mark.usefixtures("no_waiting")
def test_a_refusal_by_sendgrid_fails_without_a_retry(sendgrid_emulator, status, error_class, requests):
    """The message is SendGrid's; the cause is the provider's error."""
    sendgrid_emulator.inject(Fault("status", method="POST", status=status, message="this will not do"))

    with pytest.raises(AirflowFailException, match="this will not do") as caught:
        start()

    assert isinstance(caught.value.__cause__, error_class)
    assert requests == sendgrid_emulator.count("POST")


@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.usefixtures("no_waiting")
def test_a_refusal_by_a_proxy_is_retried_by_airflow(sendgrid_emulator, status):
    """The proxy's page says nothing about the key or the arguments."""
    sendgrid_emulator.inject(Fault("html", status=status))

    with pytest.raises(SendGridError) as caught:
        start()

    assert status == caught.value.status_code
    assert 0 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize(
    ("fault", "error_class"), [(Fault("status"), SendGridServerError), (Fault("reset"), SendGridUnavailableError)]
)
def test_an_outage_before_the_start_starts_nothing(sendgrid_emulator, fault, error_class):
    """The list of exports is read first. The error is not Airflow's own, so that the task is retried."""
    sendgrid_emulator.inject(fault)

    with pytest.raises(error_class) as caught:
        start()

    assert not isinstance(caught.value, AirflowFailException)
    assert not caught.value.may_have_been_accepted
    assert 0 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize(
    ("fault", "error_class"), [("status", SendGridServerError), ("lost", SendGridUnavailableError)]
)
def test_an_outage_is_retried_by_airflow(sendgrid_emulator, fault, error_class):
    """One start, and an error that is not Airflow's own."""
    sendgrid_emulator.inject(Fault(fault, method="POST"), Fault("status", method="GET"))

    with pytest.raises(error_class) as caught:
        start(durable=False)

    assert not isinstance(caught.value, AirflowFailException)
    assert caught.value.may_have_been_accepted
    assert 1 == sendgrid_emulator.count("POST")


def test_a_429_is_retried_within_the_task(sendgrid_emulator):
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
def test_wrong_arguments_never_reach_sendgrid(sendgrid_emulator, arguments, expected):
    with pytest.raises(AirflowFailException, match=expected) as caught:
        start(**arguments)
    assert isinstance(caught.value.__cause__, ValueError)
    assert 0 == sendgrid_emulator.count()


def test_a_string_is_not_a_list_of_ids(sendgrid_emulator):
    """Its characters would be taken for ids."""
    with pytest.raises(AirflowFailException, match="list_ids must be a list"):
        start(list_ids="5f1f-uuid")
    assert 0 == sendgrid_emulator.count()


SELECTION = ["list_ids", "segment_ids", "list_names", "segment_names"]
NOTHING = [None, [], (), {}, set(), "", "  ", "None", "[]", b"", [""], [None], ["  "], ["None"], iter(())]


@pytest.mark.parametrize("name", SELECTION)
@pytest.mark.parametrize("rendered", NOTHING, ids=repr)
def test_an_argument_that_renders_to_nothing_starts_nothing(sendgrid_emulator, name, rendered):
    """It must not mean all contacts."""
    operator = SendGridExportContactsOperator(task_id="start", **{name: "{{ lists_of_today }}"})
    setattr(operator, name, rendered)  # as Airflow does it

    with pytest.raises(
        AirflowFailException, match=rf"{name} (was passed, but rendered to nothing|contains an empty entry)"
    ):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize("rendered", ["None", "{{ none }}", "{{ '' }}", "{{ [] }}", ["{{ none }}"]])
@pytest.mark.parametrize("is_native", [True, False])
def test_a_template_that_renders_to_nothing_starts_nothing(sendgrid_emulator, rendered, is_native):
    from jinja2 import Environment
    from jinja2.nativetypes import NativeEnvironment

    operator = SendGridExportContactsOperator(task_id="start", list_ids=rendered)
    operator.render_template_fields({}, NativeEnvironment() if is_native else Environment(autoescape=False))

    with pytest.raises(AirflowFailException, match="list_ids"):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


def test_an_argument_assigned_later_counts_as_passed(sendgrid_emulator):
    operator = SendGridExportContactsOperator(task_id="start")
    operator.list_ids = "{{ none }}"
    operator.render_template_fields({})
    operator.list_ids = None

    with pytest.raises(AirflowFailException, match="list_ids was passed"):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


def test_one_empty_argument_of_several_starts_nothing(sendgrid_emulator):
    """An export of fewer lists than intended would be wrong, too."""
    customers = sendgrid_emulator.list_id("Customers")
    with pytest.raises(AirflowFailException, match="segment_names was passed"):
        start(list_ids=[customers], segment_names=[])
    assert 0 == sendgrid_emulator.count("POST")


def test_a_mapped_task_with_none_starts_nothing(sendgrid_emulator, airflow_version):
    """The mapped value is None if an upstream task returned nothing."""
    with airflow_version.dag("mapped"):
        mapped = SendGridExportContactsOperator.partial(task_id="start").expand(list_ids=[["a"], None])
    operator = mapped.unmap({"list_ids": None})

    with pytest.raises(AirflowFailException, match="list_ids was passed"):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


@pytest.mark.usefixtures("sendgrid_emulator")
def test_the_log_says_that_all_contacts_are_exported(output_of_all_logs):
    start(list_ids=None)
    assert "exporting all contacts" in output_of_all_logs()


@pytest.mark.parametrize(
    "value", [5, 1.5, True, {"a": 1}, [True], [1.5], [b"a"], [["a"]], [{"id": "a"}], "abc", b"abc"], ids=repr
)
def test_an_argument_of_another_type_starts_nothing(sendgrid_emulator, value):
    with pytest.raises(AirflowFailException, match="list_ids must") as caught:
        start(list_ids=value)
    assert isinstance(caught.value.__cause__, TypeError)
    assert 0 == sendgrid_emulator.count()


@pytest.mark.parametrize("collect", [list, tuple, set, iter, dict.fromkeys, lambda ids: dict.fromkeys(ids).keys()])
def test_any_collection_of_ids_is_accepted(sendgrid_emulator, collect):
    """A mapping is refused."""
    customers = sendgrid_emulator.list_id("Customers")
    ids = collect([customers])
    if isinstance(ids, dict):
        with pytest.raises(AirflowFailException, match="list_ids must be a list"):
            start(list_ids=ids)
        return
    [file] = sendgrid_emulator.export_files(start(list_ids=ids))
    assert 500 == file.rows


def test_a_duplicate_id_is_sent_once(sendgrid_emulator):
    customers, news = (sendgrid_emulator.list_id(name) for name in ("Customers", "Newsletter"))
    start(list_ids=[f" {customers} ", news, customers], list_names=["Newsletter"])
    [export] = sendgrid_emulator._backend.account.exports()
    assert [customers, news] == [each.id for each in export.audiences]


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_file_size": "5000"},
        {"max_file_size": 5000},
        {"max_file_size": ""},
        {"max_file_size": "None"},
        {"max_file_size": None},
        {"family": "legacy", "list_ids": ["7"]},
        {"family": "legacy", "list_ids": [7]},
        {"list_ids": [7]},
    ],
    ids=repr,
)
def test_digits_and_numbers_are_equal_after_native_rendering(sendgrid_emulator, arguments):
    sendgrid_emulator.inject(Fault("status", method="POST", status=400))  # no matter whether there is a list 7
    with pytest.raises(AirflowFailException, match="answered 400"):
        start(**arguments)
    assert 1 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize("name", ["sendgrid_conn_id", "family", "file_type", "durable", "notify_by_email"])
@pytest.mark.parametrize("value", [None, "", [], ["marketing"], {"a": 1}, {"csv"}, "None", b"csv", 1.5], ids=repr)
def test_wrong_settings_are_errors(sendgrid_emulator, name, value):
    with pytest.raises(AirflowFailException, match=name):
        start(**{name: value})
    assert 0 == sendgrid_emulator.count()


def test_templates_are_rendered_before_they_are_used(sendgrid_emulator):
    """The constructor does not use their values."""
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


def test_an_unexpected_response_is_a_sendgrid_error(sendgrid_emulator):
    sendgrid_emulator.inject(Fault("html", method="POST"))

    with pytest.raises(SendGridError, match="not a JSON object"):
        start()


@pytest.mark.usefixtures("airflow_database")
def test_a_missing_connection_is_retried_by_airflow():
    """The secrets backend may fail for a moment."""
    with pytest.raises(SendGridUnavailableError, match="There is no connection 'nowhere'") as caught:
        start(sendgrid_conn_id="nowhere")
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("arguments", [{"file_type": "xml"}, {"max_file_size": 0}, {"family": "none"}])
def test_a_wrong_argument_is_refused_before_any_request(sendgrid_emulator, arguments):
    with pytest.raises(AirflowFailException):
        start(**arguments)
    assert sendgrid_emulator.count() == 0


# --- marks for triggers that watch for new exports


needs_event_triggers = pytest.mark.skipif(not HAS_EVENT_TRIGGERS, reason="Airflow 2 starts no DAG from a trigger")


@needs_event_triggers
@pytest.mark.usefixtures("sendgrid_emulator")
def test_the_export_is_marked_in_the_stores_of_the_inlets():
    """A trigger that watches one of them then ignores the export."""
    from airflow.sdk import Asset

    watched = Asset("watched")
    stores = {"watched": StateStore(), "other": StateStore()}  # by name: not every Airflow's assets can be keys
    operator = SendGridExportContactsOperator(task_id="start", inlets=[watched])

    export_id = operator.execute({"asset_state_store": _ByName(stores)})

    assert {f"sendgrid_started_{export_id}"} == set(stores["watched"].kept)
    assert {} == stores["other"].kept


@pytest.fixture
def watched():
    """The store of a watched asset, and a start task with a reference to the asset as its inlet."""
    from airflow.sdk import Asset

    stores = {"watched": StateStore()}
    operator = SendGridExportContactsOperator(task_id="start", inlets=[Asset.ref(name="watched")])
    return stores["watched"], lambda: operator.execute({"asset_state_store": _ByName(stores)})


def _error_of_airflow(status_code):
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail={"status_code": status_code}))


@needs_event_triggers
def test_an_asset_that_no_active_dag_uses_does_not_fail_the_start(sendgrid_emulator, watched):
    """Its DAG was removed. Airflow checks assets in inlets before a task runs, but no references to them."""
    store, execute = watched
    store.failures = [_error_of_airflow(404)]

    assert sendgrid_emulator.export_files(execute())


@needs_event_triggers
@pytest.mark.usefixtures("sendgrid_emulator")
def test_an_export_that_cannot_be_marked_for_now_fails_the_task(watched):
    """Otherwise a trigger would fire for it. A retry returns the same export."""
    store, execute = watched
    store.failures = [_error_of_airflow(503)]

    with pytest.raises(Exception, match="503"):
        execute()


@pytest.mark.usefixtures("sendgrid_emulator")
def test_without_asset_stores_no_export_is_marked():
    assert start(inlets=[]) != start(inlets=[])


class _ByName:
    """As in Airflow's context: one store per asset, TypeError for anything else."""

    def __init__(self, stores):
        self.stores = stores

    def __getitem__(self, asset):
        if not hasattr(asset, "name"):
            raise TypeError(asset)
        return self.stores[asset.name]


# --- names


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_names_select_the_same_contacts_as_ids(sendgrid_emulator, family):
    export_id = start(family=family, list_names=["Customers"], segment_names=["Customers in Germany"])
    [file] = sendgrid_emulator.export_files(export_id)
    assert file.rows >= 500


def test_an_unknown_name_fails_without_a_retry(sendgrid_emulator):
    with pytest.raises(AirflowFailException, match=r"No list is named 'customers'\. Similar names: 'Customers'"):
        start(list_names=["customers"])
    assert 0 == sendgrid_emulator.count("POST")


def test_an_ambiguous_name_fails_with_the_ids_of_the_lists(sendgrid_emulator):
    ids = [sendgrid_emulator.add_list("Twice") for _ in range(2)]
    with pytest.raises(AirflowFailException, match=", ".join(ids)):
        start(list_names=["Twice"])


def test_each_page_of_lists_is_read_once(sendgrid_emulator):
    """Each name may be on any page."""
    for number in range(1100):
        sendgrid_emulator.add_list(f"List {number}", contacts=0)
    start(list_names=["List 3", "List 1099", "Customers"])
    assert 2 == sendgrid_emulator.count("GET", "/v3/marketing/lists")
