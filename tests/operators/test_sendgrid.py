"""The operator that starts an export."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace

import pytest

from airflow_provider_sendgrid._compat import HAS_EVENT_TRIGGERS, AirflowFailException
from airflow_provider_sendgrid.emulator import Fault
from airflow_provider_sendgrid.exceptions import (
    ExportInDoubtError,
    SendGridAuthError,
    SendGridBadRequestError,
    SendGridError,
    SendGridNotFoundError,
    SendGridPermissionError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator

pytestmark = pytest.mark.usefixtures("no_waiting")


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
    ("status", "error_class", "requests"),
    [
        (400, SendGridBadRequestError, 1),
        (401, SendGridAuthError, 1),
        (403, SendGridPermissionError, 3),
        (404, SendGridNotFoundError, 1),
    ],
)
@pytest.mark.usefixtures("no_waiting")
def test_what_sendgrid_refuses_fails_without_another_try(sendgrid_emulator, status, error_class, requests):
    """With SendGrid's words, and our error as the cause."""
    sendgrid_emulator.inject(Fault("status", method="POST", status=status, message="this will not do"))

    with pytest.raises(AirflowFailException, match="this will not do") as caught:
        start()

    assert isinstance(caught.value.__cause__, error_class)
    assert requests == sendgrid_emulator.count("POST")


@pytest.mark.parametrize(
    ("fault", "error_class"), [(Fault("status"), SendGridServerError), (Fault("lost"), SendGridUnavailableError)]
)
def test_an_outage_fails_so_that_airflow_tries_again(sendgrid_emulator, fault, error_class):
    """One request, and an error that is not Airflow's own."""
    sendgrid_emulator.inject(fault)

    with pytest.raises(error_class) as caught:
        start()

    assert not isinstance(caught.value, AirflowFailException)
    assert caught.value.may_have_been_accepted
    assert 1 == sendgrid_emulator.count("POST")


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


def test_its_errors_are_sendgrids(sendgrid_emulator):
    sendgrid_emulator.inject(Fault("html", method="POST"))

    with pytest.raises(SendGridError, match="not a JSON object"):
        start()


# --- durable


class Store:
    """A task's state store of Airflow 3.3, which outlives its tries: JSON values, and none of them None."""

    def __init__(self):
        self.kept = {}

    def get(self, key, default=None):
        return json.loads(self.kept[key]) if key in self.kept else default

    def set(self, key, value):
        assert value is not None
        self.kept[key] = json.dumps(value)

    def delete(self, key):
        self.kept.pop(key, None)


@dataclass
class Run:
    """A run of a DAG as its tasks see it: XComs, tries, and on Airflow 3.3 the state stores."""

    has_stores: bool = True
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc) - timedelta(seconds=30))
    operators: dict = field(default_factory=dict)
    xcoms: dict = field(default_factory=dict)
    stores: dict = field(default_factory=dict)
    tries: dict = field(default_factory=dict)

    def add(self, task_id, **arguments):
        self.operators[task_id] = SendGridExportContactsOperator(task_id=task_id, **arguments)

    def execute(self, task_id, map_index=-1, **changes):
        """The next try of a task, which begins without XComs of its own."""
        own = (task_id, map_index)
        self.tries[own] = self.tries.get(own, 0) + 1
        for key in [key for key in self.xcoms if key[:2] == own]:
            del self.xcoms[key]
        operator = self.operators[task_id]
        for name, value in changes.items():
            setattr(operator, name, value)
        context = {
            "ti": SimpleNamespace(
                task_id=task_id,
                map_index=map_index,
                try_number=self.tries[own],
                xcom_push=lambda key, value: self.xcoms.__setitem__((*own, key), json.loads(json.dumps(value))),
                xcom_pull=lambda task_ids, key: [
                    value for place, value in self.xcoms.items() if place[0] in task_ids and place[2] == key
                ],
            ),
            "dag": SimpleNamespace(tasks=list(self.operators.values())),
            "dag_run": SimpleNamespace(start_date=self.started_at),
        }
        if self.has_stores:
            context["task_state_store"] = self.stores.setdefault(own, Store())
        return operator.execute(context)


@pytest.fixture(params=[True, False], ids=["with a state store", "without"])
def dag_run(request, sendgrid_emulator):
    run = Run(has_stores=request.param)
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    return run


def begun(emulator):
    return [each.id for each in emulator._backend.account.exports()]


def test_another_try_returns_the_same_export(sendgrid_emulator, dag_run):
    """What followed in the first try failed, or its XCom was not written."""
    first = dag_run.execute("start")

    assert dag_run.execute("start") == first
    assert [first] == begun(sendgrid_emulator)


@pytest.mark.parametrize("fault", ["lost", "cut", "broken_json"])
def test_a_lost_answer_does_not_start_another(sendgrid_emulator, dag_run, fault, output_of_all_logs):
    sendgrid_emulator.inject(Fault(fault, method="POST", nth=1))

    assert [dag_run.execute("start")] == begun(sendgrid_emulator)
    assert "An earlier try started the export already" in output_of_all_logs()


def test_a_worker_that_dies_after_the_start_leaves_an_export_that_the_next_try_finds(
    sendgrid_emulator, dag_run, monkeypatch
):
    """Before it could write anything down."""

    class Killed(BaseException):
        pass

    def start_and_die(hook, selection, attempt):
        start_export_once(hook, selection, attempt)
        raise Killed

    start_export_once = SendGridHook.start_export_once
    monkeypatch.setattr(SendGridHook, "start_export_once", start_and_die)
    with pytest.raises(Killed):
        dag_run.execute("start")
    monkeypatch.setattr(SendGridHook, "start_export_once", start_export_once)

    assert [dag_run.execute("start")] == begun(sendgrid_emulator)


def test_what_another_try_wants_otherwise_is_started_anew(sendgrid_emulator):
    """Somebody mended the DAG and cleared the task: the export of the wrong list is of no use."""
    run = Run()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Newsletter")])
    wrong = run.execute("start")

    right = run.execute("start", list_ids=[sendgrid_emulator.list_id("Customers")])

    assert right != wrong
    assert 500 == sendgrid_emulator.export_files(right)[0].rows


@pytest.mark.parametrize("change", [{"file_type": "json"}, {"max_file_size": 7}])
@pytest.mark.usefixtures("sendgrid_emulator")
def test_the_same_contacts_in_another_form_are_another_export(change):
    run = Run()
    run.add("start")
    first = run.execute("start")
    assert run.execute("start", **change) != first


@pytest.mark.parametrize("outcome", ["failure", "expired"])
@pytest.mark.parametrize("has_stores", [True, False])
def test_an_export_that_is_of_no_use_any_more_is_not_returned(sendgrid_emulator, outcome, has_stores):
    run = Run(has_stores)
    run.add("start", list_ids=[sendgrid_emulator.add_list("Odd", outcome=outcome)])
    first = run.execute("start")

    assert run.execute("start") != first


def test_an_export_that_sendgrid_forgot_is_started_anew(sendgrid_emulator):
    run = Run()
    run.add("start")
    first = run.execute("start")
    sendgrid_emulator.inject(Fault("status", path=first, status=404))

    assert run.execute("start") != first


def test_two_tasks_that_rightly_start_the_same_have_one_each(sendgrid_emulator, dag_run):
    """Though the second one's answer is lost before anything was carried out."""
    dag_run.add("again", list_ids=dag_run.operators["start"].list_ids)
    first = dag_run.execute("start")
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    second = dag_run.execute("again")

    assert sorted([first, second]) == sorted(begun(sendgrid_emulator))
    assert first != second


def test_mapped_tasks_that_start_the_same_have_one_each(sendgrid_emulator, dag_run):
    first = dag_run.execute("start", map_index=0)
    sendgrid_emulator.inject(Fault("lost", method="POST", nth=1))

    second = dag_run.execute("start", map_index=1)

    assert sorted([first, second]) == sorted(begun(sendgrid_emulator))
    assert first != second


def test_where_nobody_can_tell_whose_the_export_is_the_task_fails_and_says_so(sendgrid_emulator, dag_run):
    """The other one died while it started the same; one export is there, and two may have begun it."""
    dag_run.add("again", list_ids=dag_run.operators["start"].list_ids)
    export_id = dag_run.execute("start")
    del dag_run.xcoms["start", -1, "sendgrid_export"]["id"]
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    with pytest.raises(AirflowFailException, match=rf"{export_id}.*So may that of start") as caught:
        dag_run.execute("again")

    assert isinstance(caught.value.__cause__, ExportInDoubtError)
    assert 1 == len(begun(sendgrid_emulator))


def test_a_task_that_shall_not_be_durable_starts_another(dag_run):
    dag_run.add("anew", durable=False)
    assert dag_run.execute("anew") != dag_run.execute("anew")
    assert ["sendgrid_exports_link"] == [key for _, _, key in dag_run.xcoms]


def test_what_others_learn_holds_no_key_and_no_name_of_a_list(sendgrid_emulator, dag_run):
    export_id = dag_run.execute("start")
    record, _link = dag_run.xcoms.pop(("start", -1, "sendgrid_export")), dag_run.xcoms.popitem()
    assert {} == dag_run.xcoms
    assert {"of", "task", "began", "id"} == set(record)
    assert ("start", export_id) == (record["task"], record["id"])
    assert sendgrid_emulator.api_key not in json.dumps(record)


# --- word for those who watch for new exports


@pytest.mark.skipif(not HAS_EVENT_TRIGGERS, reason="Airflow 2 starts no DAG from a trigger")
@pytest.mark.usefixtures("sendgrid_emulator")
def test_word_is_left_with_the_assets_among_the_inlets():
    """A trigger that watches for one of them then knows that this export is ours."""
    from airflow.sdk import Asset

    watched = Asset("watched")
    stores = {"watched": Store(), "other": Store()}  # by name: not every Airflow's assets can be keys
    operator = SendGridExportContactsOperator(task_id="start", inlets=[watched])

    export_id = operator.execute({"asset_state_store": _ByName(stores)})

    assert {f"sendgrid_started_{export_id}"} == set(stores["watched"].kept)
    assert {} == stores["other"].kept


@pytest.mark.usefixtures("sendgrid_emulator")
def test_no_word_is_left_where_airflow_keeps_none():
    assert start(inlets=[]) != start(inlets=[])


class _ByName:
    """As in Airflow's context: a store for each asset; TypeError for what is none."""

    def __init__(self, stores):
        self.stores = stores

    def __getitem__(self, asset):
        if not hasattr(asset, "name"):
            raise TypeError(asset)
        return self.stores[asset.name]


# --- names


@pytest.mark.parametrize("family", ["marketing", "legacy"])
def test_names_are_as_good_as_ids(sendgrid_emulator, family):
    export_id = start(family=family, list_names=["Customers"], segment_names=["Customers in Germany"])
    [file] = sendgrid_emulator.export_files(export_id)
    assert file.rows >= 500


def test_an_unknown_name_fails_without_another_try(sendgrid_emulator):
    with pytest.raises(AirflowFailException, match=r"No list is named 'customers'\. The nearest: 'Customers'"):
        start(list_names=["customers"])
    assert 0 == sendgrid_emulator.count("POST")


def test_a_name_of_several_lists_fails_with_their_ids(sendgrid_emulator):
    ids = [sendgrid_emulator.add_list("Twice") for _ in range(2)]
    with pytest.raises(AirflowFailException, match=", ".join(ids)):
        start(list_names=["Twice"])


def test_many_lists_are_looked_up_page_by_page_and_once(sendgrid_emulator):
    """Each name may be on any page."""
    for number in range(1100):
        sendgrid_emulator.add_list(f"List {number}", contacts=0)
    start(list_names=["List 3", "List 1099", "Customers"])
    assert 2 == sendgrid_emulator.count("GET")
