"""Random histories of starts: workers with wrong clocks, lost responses, kills, retries, clears and parallel runs.

The operator, its records and the flows are the real ones. SendGrid, Airflow's state store and its XComs are models, and
time is virtual. Each try of a task is a thread that runs from one access to SendGrid or to Airflow to the next, and
only then another one runs: a history can change what happens between any two of them, or kill the try there.

`MODEL_HISTORIES=10000` runs more of them (`make model`).
"""

from __future__ import annotations

import json
import logging
import os
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from airflow_provider_sendgrid._compat import AirflowFailException
from airflow_provider_sendgrid.exceptions import ExportInDoubtError, SendGridError, SendGridUnavailableError
from airflow_provider_sendgrid.exports import start as start_module
from airflow_provider_sendgrid.exports import start_search as search_module
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.protocol import Response
from airflow_provider_sendgrid.exports.start_attempt import ConcurrentStarts
from airflow_provider_sendgrid.hooks.sendgrid import SendGridHook
from airflow_provider_sendgrid.operators import sendgrid as operator_module
from airflow_provider_sendgrid.operators import start_record
from airflow_provider_sendgrid.operators.sendgrid import SendGridExportContactsOperator

pytestmark = pytest.mark.no_cover  # measuring takes twice the time; other tests cover the same lines

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "150"))
CONNECTION = SendGridConnection("SG." + "a" * 22 + "." + "b" * 43, base_url="http://127.0.0.1:1")
BEGIN = 1_767_323_045.25
LISTING_LAG_SECONDS = 4.0
LATE_SECONDS = 60.0
# Clocks are at most ten minutes apart.
clocks = st.sampled_from([-300.0, -120.0, -3.0, 0.0, 4.0, 299.0])


class KilledError(BaseException):
    """The process of a try ended here."""


@dataclass
class Export:
    id: str
    created: float
    lists: tuple
    file_type: str
    by: object = None

    def listed(self, now):
        is_ready = now > self.created + 60
        return {
            "id": self.id,
            "status": "ready" if is_ready else "pending",
            "created_at": datetime.fromtimestamp(int(self.created), tz=timezone.utc).isoformat(),
            "lists": [{"ID": each, "Name": "x"} for each in self.lists],
            "segments": [],
            "urls": [f"https://files.example/{self.id}.{self.file_type}.gzip?X-Amz-Signature=s"] if is_ready else [],
        }


class SendGrid:
    """Accepts starts, and lists what was created some seconds ago."""

    def __init__(self):
        self.now = BEGIN
        self.exports = []

    def create(self, lists, file_type, by, delay_seconds=0.0):
        export = Export(f"export-{len(self.exports)}", self.now + delay_seconds, tuple(lists), file_type, by)
        self.exports.append(export)
        return export

    def visible(self):
        return [each for each in self.exports if each.created + LISTING_LAG_SECONDS <= self.now]

    def export(self, export_id):
        return next(each for each in self.exports if each.id == export_id)


@dataclass
class Task:
    """A task instance: what Airflow knows of it, and what its user is promised."""

    run: DagRun
    operator: SendGridExportContactsOperator
    map_index: int
    try_number: int = 0
    max_tries: int = 0
    state: str | None = None
    stored: dict = field(default_factory=dict)
    # One entry for each logical start: a first run, or a clear that requests a new export.
    starts: list = field(default_factory=list)
    active: object = None

    @property
    def key(self):
        return (self.run.run_id, self.operator.task_id, self.map_index)


@dataclass
class LogicalStart:
    task: Task
    export_id: str | None = None
    is_uncertain: bool = False
    is_in_doubt: bool = False


@dataclass
class DagRun:
    run_id: str
    start_date: datetime
    clear_number: int = 0


def new_operators():
    one = {"list_ids": ["customers"], "retries": 2}
    build = SendGridExportContactsOperator
    return [
        build(task_id="csv", **one),
        build(task_id="json", **one, file_type="json"),
        build(task_id="small", **one, max_file_size=7),
        build(task_id="other", list_ids=["newsletter"], retries=2),
        build(task_id="all", retries=2),
    ]


class Try:
    """One attempt of a task on a worker, in its own thread, which runs step by step."""

    def __init__(self, machine, task, clock):
        self.machine, self.task, self.clock = machine, task, clock
        self.is_dead = False
        self.request = None  # what the try is about to send
        self.answer = None
        self.outcome = None
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self):
        self._go.release()
        self._stopped.acquire()

    def kill(self):
        self.is_dead = True
        self.go_on()
        self._thread.join()

    def time(self):
        """By the worker's clock."""
        return self.machine.sendgrid.now + self.clock

    def pause(self):
        """The history may do something else here."""
        if self.is_dead:
            raise KilledError
        self._stopped.release()
        self._go.acquire()
        if self.is_dead:
            raise KilledError

    def _run(self):
        self._go.acquire()
        try:
            if not self.is_dead:
                current.active = self
                self.outcome = execute(self.task.operator, self.context())
        except (Exception, KilledError) as error:  # noqa: BLE001 - the outcome of the try, whatever it is
            self.outcome = error
        self._stopped.release()

    def context(self):
        task, machine = self.task, self.machine
        ti = SimpleNamespace(
            dag_id="dag",
            run_id=task.run.run_id,
            task_id=task.operator.task_id,
            map_index=task.map_index,
            try_number=task.try_number,
            max_tries=task.max_tries,
            xcom_push=self.push,
            xcom_pull=self.pull,
            get_task_states=self.states,
        )
        run = SimpleNamespace(start_date=task.run.start_date, clear_number=task.run.clear_number)
        context = {"ti": ti, "dag": SimpleNamespace(tasks=machine.operators), "dag_run": run, "task": task.operator}
        return context | ({"task_state_store": self} if machine.has_store else {})

    # What the try does with Airflow: its XComs, and its state store.

    def push(self, key, value):
        self.pause()
        self.machine.xcoms[self.task.key, key] = json.loads(json.dumps(value))

    def pull(self, task_ids, key, run_id=None):
        self.pause()
        run_id = run_id or self.task.run.run_id
        return [
            value
            for ((run, task_id, _), name), value in self.machine.xcoms.items()
            if run == run_id and task_id in task_ids and name == key
        ]

    def states(self, dag_id, task_ids):
        self.pause()
        found = {}
        for task in self.machine.tasks:
            name = task.operator.task_id if task.map_index < 0 else f"{task.operator.task_id}_{task.map_index}"
            found.setdefault(task.run.run_id, {})[name] = task.state
        return found

    def get(self, key, default=None):
        self.pause()
        return json.loads(self.task.stored[key]) if key in self.task.stored else default

    def set(self, key, value):
        self.pause()
        self.task.stored[key] = json.dumps(value)

    def delete(self, key):
        self.pause()
        self.task.stored.pop(key, None)


class ModelClient:
    """Replaces a client: passes each request of a flow to the history."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def run_flow(self, flow):
        active, answer = current.active, None
        try:
            while True:
                request = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
                active.request, active.wakes_at = request, active.machine.sendgrid.now + request.delay_seconds
                active.pause()
                active.request, answer = None, active.answer
        except StopIteration as end:
            return end.value


current = threading.local()


def time_of_worker():
    return current.active.time()


execute = SendGridExportContactsOperator.execute
execute = getattr(execute, "__wrapped__", execute)  # without the log line about calls outside of Airflow

POSTS = [
    "accepted",
    "accepted",
    "lost",
    "lost",
    "late",
    "never",
    "never",
    "no id",
    "refused",
    "refused",
    "forbidden",
    "unsent",
    "busy",
]
GETS = ["answered"] * 8 + ["lost", "broken", "slow", "duplicated"]


class Starts(RuleBasedStateMachine):
    """Up to four tries at once, in up to four runs of one DAG."""

    has_store = True
    numbers = range(5)
    most_tasks = 8

    def __init__(self):
        super().__init__()
        self.sendgrid = SendGrid()
        self.operators = [OPERATORS[number] for number in self.numbers]
        self.runs, self.tasks, self.xcoms = [], [], {}

    # What people and schedulers do

    @rule(
        run=st.integers(0, 3), number=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4]), index=st.integers(-1, 1), clock=clocks
    )
    def start(self, run, number, index, clock):
        """A task starts for the first time, in a new run or beside others."""
        if len(self.active()) == 4 or len(self.tasks) == self.most_tasks:
            return
        if run >= len(self.runs):
            began = datetime.fromtimestamp(self.sendgrid.now + self.scheduler_clock, tz=timezone.utc)
            self.runs.append(DagRun(f"run__{len(self.runs)}", began))
        task = Task(
            self.runs[min(run, len(self.runs) - 1)], self.operators[number % len(self.operators)], index, max_tries=2
        )
        if any(task.key == other.key for other in self.tasks):
            return
        self.tasks.append(task)
        task.starts.append(LogicalStart(task))
        self.begin_try(task, clock)

    scheduler_clock = 0.0

    def begin_try(self, task, clock):
        for key in [key for key in self.xcoms if key[0] == task.key]:
            del self.xcoms[key]
        task.try_number += 1
        task.state = "running"
        task.starts[-1].export_id = None
        task.active = Try(self, task, clock)

    @rule(which=st.integers(0, 7), clock=clocks)
    def retry(self, which, clock):
        waiting = self.with_state("up_for_retry")
        if waiting and len(self.active()) < 4:
            self.lose_what_is_known(waiting[which % len(waiting)])
            self.begin_try(waiting[which % len(waiting)], clock)

    def lose_what_is_known(self, task):
        """Without a store, a try cannot know that the start of the try before was refused for sure."""
        task.starts[-1].is_uncertain |= not self.has_store

    @rule(which=st.integers(0, 7), clock=clocks)
    def clear(self, which, clock):
        ended = self.with_state("success", "failed")
        if not ended or len(self.active()) == 4:
            return
        task = ended[which % len(ended)]
        others = [other for other in self.tasks if other.run is task.run]
        has_run_ended = all(other.state in ("success", "failed") for other in others)
        last = task.starts[-1]
        is_new = self.has_store and (not last.is_uncertain or self.has_id(task))
        task.max_tries = task.try_number + 2
        if has_run_ended:
            task.run.clear_number += 1
            task.run.start_date = datetime.fromtimestamp(self.sendgrid.now + self.scheduler_clock, tz=timezone.utc)
        if is_new or (not self.has_store and task.run.clear_number > 0):
            task.starts.append(LogicalStart(task))
        else:
            self.lose_what_is_known(task)
        self.begin_try(task, clock)

    @rule(lists=st.sampled_from([("customers",), ("customers",), ()]), kind=st.sampled_from(["csv", "json"]))
    def somebody_exports(self, lists, kind):
        """A person or another DAG."""
        if len(self.sendgrid.exports) < 12:
            self.sendgrid.create(lists, kind, "somebody")

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0, 90.0, 400.0]))
    def time_passes(self, seconds):
        self.sendgrid.now += seconds

    # What tries do

    @rule(which=st.integers(0, 3), steps=st.integers(1, 6), post=st.sampled_from(POSTS), get=st.sampled_from(GETS))
    def go_on(self, which, steps, post, get):
        """Only one request of these steps meets what was drawn."""
        task = self.pick(which)
        if task is None:
            return
        for _ in range(steps):
            if task.active is None:
                return
            is_request = task.active.request is not None
            self.step(task, post, get)
            if is_request:
                return

    @rule(which=st.integers(0, 3), post=st.sampled_from(POSTS))
    def finish(self, which, post):
        """A try runs to its end; only its next POST meets what was drawn."""
        if (task := self.pick(which)) is not None:
            self.run_to_end(task, post)

    @rule(which=st.integers(0, 3), is_sent=st.booleans())
    def kill(self, which, is_sent):
        """A worker is killed; a request that it was sending may still arrive."""
        task = self.pick(which)
        if task is None:
            return
        request = task.active.request
        if request is not None and request.method == "POST" and is_sent and task.active.wakes_at <= self.sendgrid.now:
            self.create(task, request, delay_seconds=LATE_SECONDS)
        task.active.kill()
        task.active.outcome = KilledError()
        task.starts[-1].is_uncertain |= not self.has_store or (bool(task.stored) and not self.has_id(task))
        self.end(task)

    def run_to_end(self, task, post="accepted"):
        for _ in range(2000):
            if task.active is None:
                return
            is_post = task.active.request is not None and task.active.request.method == "POST"
            self.step(task, post, "answered")
            post = "accepted" if is_post else post
        raise AssertionError("a try never ends")

    def step(self, task, post, get):
        active = task.active
        if active.request is not None:
            self.sendgrid.now = max(self.sendgrid.now, active.wakes_at)
            active.answer = self.post(task, post) if active.request.method == "POST" else self.get(active, get)
        active.go_on()
        if active.outcome is not None:
            self.end(task)

    def post(self, task, kind):
        start, clock = task.starts[-1], task.active.clock
        if kind in ("lost", "late", "never", "no id"):
            start.is_uncertain = True
        if kind in ("refused", "forbidden", "busy"):
            status = {"refused": 400, "forbidden": 403, "busy": 429}[kind]
            return self.response(clock, {"errors": [{"message": "no"}]}, status)
        if kind == "unsent":
            return SendGridUnavailableError("refused connection")
        if kind in ("lost", "late", "never"):
            if kind != "never":
                self.create(task, task.active.request, LATE_SECONDS if kind == "late" else 0.0)
            return SendGridUnavailableError("the response was lost", may_have_been_accepted=True)
        export = self.create(task, task.active.request)
        return self.response(clock, {"id": export.id} if kind == "accepted" else {"_metadata": {}}, 202)

    def create(self, task, request, delay_seconds=0.0):
        body = request.body
        assert tuple(body.get("list_ids", ())) == tuple(task.operator.list_ids or ()), "more than was asked for"
        return self.sendgrid.create(body.get("list_ids", ()), body["file_type"], task, delay_seconds)

    def get(self, active, kind):
        clock, last = active.clock, active.request.target.rpartition("/")[2]
        if kind == "lost":
            return SendGridUnavailableError("the response was lost")
        if kind == "broken":
            body = b'{"result": null}' if last == "exports" and int(self.sendgrid.now) % 2 else b"<html>"
            return Response(200, {}, body, self.sendgrid.now + clock)
        if last != "exports":
            return self.response(clock, self.sendgrid.export(last).listed(self.sendgrid.now))
        items = [each.listed(self.sendgrid.now) for each in self.sendgrid.visible()][::-1]
        if kind == "duplicated":
            items = [*items[::-1], *items[:1]]
        response = self.response(clock, {"result": items})
        if kind == "slow":
            self.sendgrid.now += 15.0
            return Response(200, response.headers, response.body, self.sendgrid.now + clock)
        return response

    def response(self, clock, payload, status=200):
        date = format_datetime(datetime.fromtimestamp(int(self.sendgrid.now), tz=timezone.utc), usegmt=True)
        return Response(status, {"date": date}, json.dumps(payload).encode(), self.sendgrid.now + clock)

    def end(self, task):
        outcome, start = task.active.outcome, task.starts[-1]
        task.active = None
        if isinstance(outcome, str):
            task.state = "success"
            self.check_success(start, outcome)
            return
        cause = getattr(outcome, "__cause__", None)
        start.is_in_doubt |= isinstance(cause, ExportInDoubtError)
        if isinstance(outcome, AirflowFailException):
            task.state = "failed"
        else:
            assert isinstance(outcome, SendGridError | KilledError), repr(outcome)
            task.state = "up_for_retry" if task.try_number <= task.max_tries else "failed"

    def check_success(self, start, export_id):
        operator, export = start.task.operator, self.sendgrid.export(export_id)
        assert tuple(operator.list_ids or ()) == export.lists, "an export of something else"
        assert operator.file_type == export.file_type or export.by == "somebody", "an export of another type"
        if export.by != "somebody" or start.is_uncertain:
            start.export_id = export_id
            return
        raise AssertionError("took the export of a person, although its own start surely did not happen")

    # What holds after every history

    def teardown(self):
        for task in self.active():
            self.run_to_end(task)
        starts = [start for task in self.tasks for start in task.starts]
        current_starts = [start for start in starts if start is start.task.starts[-1]]
        taken = [start.export_id for start in current_starts if start.export_id]
        assert len(taken) == len(set(taken)), "two tasks have the same export"
        for lists in {tuple(each.list_ids or ()) for each in self.operators}:
            ours = [each for each in self.sendgrid.exports if each.lists == lists and each.by != "somebody"]
            count = sum(tuple(start.task.operator.list_ids or ()) == lists for start in starts)
            assert len(ours) <= count, f"{len(ours)} exports of {lists} for {count} starts"

    def pick(self, which):
        active = self.active()
        return active[which % len(active)] if active else None

    def has_id(self, task):
        return any("id" in json.loads(record) for record in task.stored.values())

    def active(self):
        return [task for task in self.tasks if task.active is not None]

    def with_state(self, *states):
        return [task for task in self.tasks if task.state in states]


class StartsWithoutStore(Starts):
    """Airflow before 3.3: only the run's start and the XComs of other tasks are known."""

    has_store = False
    scheduler_clock = 200.0


SILENT = logging.getLogger("silent")
SILENT.disabled = True


class FewStarts(Starts):
    """Two tasks only: what is wrong with them shows soon."""

    numbers = (0, 4)
    most_tasks = 2


class TwoAlike(FewStarts):
    """Two tasks that start the same; nothing else happens."""

    numbers = (0,)
    retry = clear = kill = somebody_exports = None


class OneStart(FewStarts):
    """One task, which is cleared, and a person who exports the same."""

    numbers = (0,)
    most_tasks = 1
    retry = kill = None


OPERATORS = new_operators()
PROFILE = settings(
    max_examples=HISTORIES,
    derandomize="MODEL_HISTORIES" not in os.environ,  # the quick suite runs the same histories each time
    stateful_step_count=50,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink] if os.environ.get("SHRINK") else [Phase.generate],
)


@pytest.fixture(autouse=True)
def _model(monkeypatch):
    monkeypatch.setattr(SendGridHook, "connection", CONNECTION)
    monkeypatch.setattr(SendGridHook, "client", lambda _hook: ModelClient())
    monkeypatch.setattr(SendGridHook, "_report_start", lambda _hook, export_id, **_: export_id)
    monkeypatch.setattr(operator_module.SendGridExportsLink, "keep_for", lambda *_: None)
    monkeypatch.setattr(start_record, "time", SimpleNamespace(time=time_of_worker))
    monkeypatch.setattr(SendGridExportContactsOperator, "log", SILENT)


@pytest.mark.parametrize("machine", [Starts, StartsWithoutStore])
def test_no_history_starts_an_export_twice(machine):
    run_state_machine_as_test(machine, settings=PROFILE)


def test_a_task_waiting_for_its_retry_may_own_an_export():
    """Its announcement was deleted, and the worker died before it could announce again."""
    history = StartsWithoutStore()
    history.start(clock=0.0, index=0, number=0, run=0)
    history.finish(post="accepted", which=0)
    history.start(clock=0.0, index=0, number=1, run=0)
    history.clear(clock=0.0, which=0)
    history.kill(is_sent=False, which=0)
    history.finish(post="late", which=0)
    history.teardown()


def a_refusal_leaves_the_record(monkeypatch):
    monkeypatch.setattr(start_record.StartRecord, "forget", lambda _record: None)


def announcements_are_ignored(monkeypatch):
    monkeypatch.setattr(start_record, "concurrent_starts", lambda *_: ConcurrentStarts())


def a_retry_does_not_look(monkeypatch):
    monkeypatch.setattr(start_module, "_RETRY_SEARCH_DELAYS", ())
    monkeypatch.setattr(start_module, "_IN_DOUBT_DELAYS", ())


def any_export_counts_as_ours(monkeypatch):
    monkeypatch.setattr(search_module, "_has_selection", lambda *_: True)


TWICE = "exports of .* for . starts|two tasks have the same export"
BROKEN = {
    a_refusal_leaves_the_record: (OneStart, "took the export of a person"),
    announcements_are_ignored: (TwoAlike, TWICE),
    a_retry_does_not_look: (FewStarts, TWICE),
    any_export_counts_as_ours: (FewStarts, "an export of something else"),
}


@pytest.mark.parametrize("break_rule", BROKEN)
def test_the_model_finds_each_broken_rule(break_rule, monkeypatch):
    break_rule(monkeypatch)
    shorter = settings(PROFILE, max_examples=10_000, stateful_step_count=20, derandomize=True)
    machine, found = BROKEN[break_rule]
    with pytest.raises(AssertionError, match=found):
        run_state_machine_as_test(machine, settings=shorter)
