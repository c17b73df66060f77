"""The operator that starts an export."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field, replace
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
from airflow_provider_sendgrid.exports import client as client_module
from airflow_provider_sendgrid.exports import start as start_module
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


@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.usefixtures("no_waiting")
def test_what_a_gateway_refuses_is_tried_again_by_airflow(sendgrid_emulator, status):
    """Its page says nothing about the key or the arguments."""
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
def test_an_outage_fails_so_that_airflow_tries_again(sendgrid_emulator, fault, error_class):
    """One start, and an error that is not Airflow's own."""
    sendgrid_emulator.inject(Fault(fault, method="POST"), Fault("status", method="GET"))

    with pytest.raises(error_class) as caught:
        start(durable=False)

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
    with pytest.raises(AirflowFailException, match=expected) as caught:
        start(**arguments)
    assert isinstance(caught.value.__cause__, ValueError)
    assert 0 == sendgrid_emulator.count()


def test_a_single_text_is_no_list_of_ids(sendgrid_emulator):
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
        AirflowFailException, match=rf"{name} (was passed, but rendered to nothing|holds an empty entry)"
    ):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize("rendered", ["None", "{{ none }}", "{{ '' }}", "{{ [] }}", ["{{ none }}"]])
@pytest.mark.parametrize("is_native", [True, False])
def test_a_template_of_nothing_starts_nothing(sendgrid_emulator, rendered, is_native):
    from jinja2 import Environment
    from jinja2.nativetypes import NativeEnvironment

    operator = SendGridExportContactsOperator(task_id="start", list_ids=rendered)
    operator.render_template_fields({}, NativeEnvironment() if is_native else Environment(autoescape=False))

    with pytest.raises(AirflowFailException, match="list_ids"):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


def test_an_argument_that_was_assigned_later_counts_as_passed(sendgrid_emulator):
    operator = SendGridExportContactsOperator(task_id="start")
    operator.list_ids = "{{ none }}"
    operator.render_template_fields({})
    operator.list_ids = None

    with pytest.raises(AirflowFailException, match="list_ids was passed"):
        operator.execute({})
    assert 0 == sendgrid_emulator.count("POST")


def test_one_empty_argument_of_several_starts_nothing(sendgrid_emulator):
    """Fewer contacts than were meant are wrong, too."""
    customers = sendgrid_emulator.list_id("Customers")
    with pytest.raises(AirflowFailException, match="segment_names was passed"):
        start(list_ids=[customers], segment_names=[])
    assert 0 == sendgrid_emulator.count("POST")


def test_a_mapped_task_with_none_starts_nothing(sendgrid_emulator, airflow_version):
    """The mapped value may be None where an upstream task returned nothing."""
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
def test_any_collection_of_ids_will_do(sendgrid_emulator, collect):
    """But for a mapping, which nobody means as a list."""
    customers = sendgrid_emulator.list_id("Customers")
    ids = collect([customers])
    if isinstance(ids, dict):
        with pytest.raises(AirflowFailException, match="list_ids must be a list"):
            start(list_ids=ids)
        return
    [file] = sendgrid_emulator.export_files(start(list_ids=ids))
    assert 500 == file.rows


def test_an_id_that_is_named_twice_is_sent_once(sendgrid_emulator):
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
def test_digits_and_numbers_are_alike_after_native_rendering(sendgrid_emulator, arguments):
    sendgrid_emulator.inject(Fault("status", method="POST", status=400))  # no matter whether there is a list 7
    with pytest.raises(AirflowFailException, match="answered 400"):
        start(**arguments)
    assert 1 == sendgrid_emulator.count("POST")


@pytest.mark.parametrize("name", ["sendgrid_conn_id", "family", "file_type", "durable", "notify_by_email"])
@pytest.mark.parametrize("value", [None, "", [], ["marketing"], {"a": 1}, {"csv"}, "None", b"csv", 1.5], ids=repr)
def test_settings_that_cannot_be_right_are_errors(sendgrid_emulator, name, value):
    with pytest.raises(AirflowFailException, match=name):
        start(**{name: value})
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
    max_tries: dict = field(default_factory=dict)
    clear_number: int = 0
    other_runs: dict = field(default_factory=dict)

    def clear(self, task_id, has_run_ended=True):
        """As Airflow does it: the tries so far plus the task's retries."""
        self.max_tries[task_id, -1] = self.tries[task_id, -1] + self.operators[task_id].retries
        if has_run_ended:
            self.clear_number += 1
            self.started_at = datetime.now(timezone.utc)

    def add(self, task_id, **arguments):
        self.operators[task_id] = SendGridExportContactsOperator(task_id=task_id, **{"retries": 2, **arguments})

    def states(self, dag_id, task_ids):
        return {run: dict.fromkeys(task_ids, "success") for run in self.other_runs}

    def pull(self, task_ids, key, run_id=None):
        if run_id is not None:
            return [self.other_runs[run_id]]
        return [value for place, value in self.xcoms.items() if place[0] in task_ids and place[2] == key]

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
                xcom_pull=self.pull,
                max_tries=self.max_tries.get(own, operator.retries),
                run_id="run",
                dag_id="dag",
                get_task_states=self.states,
            ),
            "task": operator,
            "dag": SimpleNamespace(tasks=list(self.operators.values())),
            "dag_run": SimpleNamespace(start_date=self.started_at, clear_number=self.clear_number),
        }
        if self.has_stores:
            context["task_state_store"] = self.stores.setdefault(own, Store())
        return operator.execute(context)


def test_a_start_whose_response_cannot_be_read_is_found(sendgrid_emulator, monkeypatch):
    """Whatever a library raises once the request was sent is not an error of an argument."""
    usual = client_module._Body.add

    def add(body, chunk):
        if body._request.method == "POST":
            raise ValueError("Invalid IPv6 URL")
        usual(body, chunk)

    monkeypatch.setattr(client_module._Body, "add", add)
    assert [start(list_ids=[sendgrid_emulator.list_id("Customers")])] == begun(sendgrid_emulator)


def test_an_unforeseen_error_of_a_start_keeps_its_record(sendgrid_emulator, monkeypatch):
    """The next try finds the export instead of starting another."""
    run = Run()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    usual = SendGridHook.start_export_once

    def start_and_fail(*arguments):
        usual(*arguments)
        raise ValueError("unforeseen")

    with monkeypatch.context() as patched:
        patched.setattr(SendGridHook, "start_export_once", start_and_fail)
        with pytest.raises(SendGridError, match="unforeseen ValueError: unforeseen") as caught:
            run.execute("start")
    assert not isinstance(caught.value, AirflowFailException)
    assert [run.execute("start")] == begun(sendgrid_emulator)


@pytest.mark.usefixtures("airflow_database")
def test_a_connection_that_is_not_found_is_left_to_airflows_retries():
    """The secrets backend may fail for a moment."""
    with pytest.raises(SendGridUnavailableError, match="There is no connection 'nowhere'") as caught:
        start(sendgrid_conn_id="nowhere")
    assert not isinstance(caught.value, AirflowFailException)


@pytest.mark.parametrize("arguments", [{"file_type": "xml"}, {"max_file_size": 0}, {"family": "none"}])
def test_a_wrong_argument_is_refused_before_any_request(sendgrid_emulator, arguments):
    with pytest.raises(AirflowFailException):
        start(**arguments)
    assert sendgrid_emulator.count() == 0


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
    assert "Found the export that an earlier request started" in output_of_all_logs()


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


def test_an_export_that_is_still_listed_is_kept_after_a_404(sendgrid_emulator):
    run = Run()
    run.add("start")
    first = run.execute("start")
    sendgrid_emulator.inject(Fault("status", path=first, status=404))

    assert run.execute("start") == first


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


def test_where_nobody_can_tell_whose_the_export_is_the_task_fails_and_says_so(sendgrid_emulator, dag_run, monkeypatch):
    """Another task starts the same meanwhile and never announces its id; only one of the two was accepted."""
    customers = dag_run.operators["start"].list_ids
    dag_run.add("again", list_ids=customers, file_type="json")
    start_export_once = SendGridHook.start_export_once

    def start_beside_another(hook, selection, attempt):
        def keep(baseline):
            attempt.save_baseline(baseline)
            dag_run.xcoms["start", -1, "sendgrid_export"] = {
                **dag_run.xcoms["again", -1, "sendgrid_export"],
                "task": "start",
                "form": ["csv", "None"],
            }
            sendgrid_emulator.start_export(customers)

        return start_export_once(hook, selection, replace(attempt, save_baseline=keep))

    sendgrid_emulator.configure(ready_after=3600)  # its type does not show
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))
    monkeypatch.setattr(SendGridHook, "start_export_once", start_beside_another)

    with pytest.raises(AirflowFailException, match=r"Other tasks that are starting the same: start\.") as caught:
        dag_run.execute("again")

    assert isinstance(caught.value.__cause__, ExportInDoubtError)
    [export_id] = begun(sendgrid_emulator)
    assert export_id in str(caught.value)


# --- refusals, clears and records


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refused_start_leaves_nothing_to_adopt(sendgrid_emulator, dag_run, status):
    """Others export the same list meanwhile; then somebody mends the cause and clears the task."""
    sendgrid_emulator.inject(Fault("status", method="POST", first=3, status=status))
    with pytest.raises(AirflowFailException):
        dag_run.execute("start")
    assert {} == dag_run.xcoms["start", -1, "sendgrid_export"]
    assert all(not store.kept for store in dag_run.stores.values())
    sendgrid_emulator.clear_faults()
    others = [sendgrid_emulator.start_export(dag_run.operators["start"].list_ids) for _ in range(2)]

    dag_run.clear("start")

    assert dag_run.execute("start") not in others


def test_a_start_that_could_not_look_keeps_the_record_of_the_try_before(sendgrid_emulator):
    """The first try may have started an export; the second was refused before it could look."""
    run = Run()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    sendgrid_emulator.inject(Fault("lost", method="POST"), Fault("status", method="GET", nth=2, status=500))
    sendgrid_emulator.inject(*[Fault("status", method="GET", nth=number, status=500) for number in range(3, 8)])
    with pytest.raises(SendGridUnavailableError):
        run.execute("start")
    sendgrid_emulator.clear_faults()
    sendgrid_emulator.inject(Fault("status", status=401))
    with pytest.raises(AirflowFailException, match="401"):
        run.execute("start")
    sendgrid_emulator.clear_faults()

    assert [run.execute("start")] == begun(sendgrid_emulator)


def test_a_cleared_task_starts_a_new_export(sendgrid_emulator, dag_run):
    first = dag_run.execute("start")
    dag_run.clear("start")

    second = dag_run.execute("start")

    assert {first, second} == set(begun(sendgrid_emulator))
    assert second != first


def test_after_a_clear_the_earlier_export_is_not_taken_for_the_new_one(sendgrid_emulator):
    """The response to the new start is lost, and it was not accepted."""
    run = Run()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    first = run.execute("start")
    run.clear("start")
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    second = run.execute("start")

    assert {first, second} == set(begun(sendgrid_emulator))


@pytest.mark.parametrize("is_killed", [False, True])
def test_after_a_clear_the_earlier_export_counts_as_known_although_it_may_not_be_listed(
    sendgrid_emulator, monkeypatch, is_killed
):
    run = Run()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    first = run.execute("start")
    run.clear("start")
    if is_killed:
        sendgrid_emulator.inject(*[Fault("reset", method="POST", nth=nth) for nth in (1, 2, 3)])
        monkeypatch.setattr(start_module, "_SEARCH_DELAYS", (0.0,))
        with pytest.raises(SendGridError):
            run.execute("start")
    attempts = []

    def note(_hook, _selection, attempt):
        attempts.append(attempt)
        return "found", True

    monkeypatch.setattr(SendGridHook, "start_export_once", note)
    run.execute("start")

    assert first in attempts[0].known_ids
    assert attempts[0].is_retry is is_killed


def test_a_retry_after_a_clear_returns_the_new_export(sendgrid_emulator):
    run = Run()
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    run.execute("start")
    run.clear("start")
    second = run.execute("start")
    assert second == run.execute("start")


def test_a_task_cleared_in_a_running_run_counts_as_a_retry_before_3_3(sendgrid_emulator):
    """Airflow then shows no difference from lowered retries; a second export is the worse mistake."""
    run = Run(has_stores=False)
    run.add("start", list_ids=[sendgrid_emulator.list_id("Customers")])
    first = run.execute("start")
    run.clear("start", has_run_ended=False)
    assert first == run.execute("start")


def test_a_record_of_an_older_version_is_read(sendgrid_emulator):
    """It holds the time by a worker's clock, and no list of what existed before."""
    run = Run()
    customers = sendgrid_emulator.list_id("Customers")
    run.add("start", list_ids=[customers])
    export_id = sendgrid_emulator.start_export([customers])
    store = run.stores["start", -1] = Store()
    wanted = ["sendgrid_default", "marketing", [customers], [], "csv", "None"]
    of = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    store.set("sendgrid_export", {"of": of, "task": "start", "began": time.time() - 5})
    run.tries["start", -1] = 1

    assert export_id == run.execute("start")


def test_another_run_that_exports_the_same_keeps_its_own(sendgrid_emulator, monkeypatch):
    """As in a parallel backfill: it starts between our look at the list and our lost start."""
    customers = [sendgrid_emulator.list_id("Customers")]
    run = Run(other_runs={"other": {"task": "start"}})
    run.add("start", list_ids=customers)
    start_export_once = SendGridHook.start_export_once

    def start_beside_another(hook, selection, attempt):
        def keep(baseline):
            attempt.save_baseline(baseline)
            run.other_runs["other"]["id"] = sendgrid_emulator.start_export(customers)

        return start_export_once(hook, selection, replace(attempt, save_baseline=keep))

    monkeypatch.setattr(SendGridHook, "start_export_once", start_beside_another)
    sendgrid_emulator.inject(Fault("reset", method="POST", nth=1))

    ours = run.execute("start")

    assert {run.other_runs["other"]["id"], ours} == set(begun(sendgrid_emulator))
    assert run.other_runs["other"]["id"] != ours


def test_a_task_that_shall_not_be_durable_starts_another(dag_run):
    dag_run.add("anew", durable=False)
    assert dag_run.execute("anew") != dag_run.execute("anew")


def test_a_task_that_shall_not_be_durable_announces_its_export(dag_run):
    dag_run.add("anew", durable=False, list_ids=dag_run.operators["start"].list_ids)
    first = dag_run.execute("anew")
    assert first == dag_run.xcoms["anew", -1, "sendgrid_export"]["id"]


def test_what_others_learn_holds_no_key_and_no_name_of_a_list(sendgrid_emulator, dag_run):
    export_id = dag_run.execute("start")
    record, _link = dag_run.xcoms.pop(("start", -1, "sendgrid_export")), dag_run.xcoms.popitem()
    assert {} == dag_run.xcoms
    kept = {"of", "form", "run", "task", "max_tries", "began", "since", "clock", "known_ids", "id"}
    assert kept == set(record)
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
    assert 2 == sendgrid_emulator.count("GET", "/v3/marketing/lists")
