"""Random histories of deliveries: overlapping runs at one prefix, lost responses, kills, retries and damaged files.

`deliver_export`, the downloads and the writing of parts are the real ones. SendGrid and its storage are models, the
destination is in memory, time is virtual, and a run's pools call at once what is submitted. Each try of a task is a
thread that runs from one access to the destination or to SendGrid to the next, and only then another one runs: a
history can change what happens between any two of them, or kill the try there.

`MODEL_HISTORIES=10000` runs more of them (`make model`), `SHRINK=1` looks for the shortest that fails.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import re
import threading
from collections import Counter
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from urllib3 import HTTPHeaderDict, HTTPResponse

from airflow_provider_sendgrid.delivery import export as delivery_module
from airflow_provider_sendgrid.delivery import lookup as lookup_module
from airflow_provider_sendgrid.delivery import queue as queue_module
from airflow_provider_sendgrid.delivery import uploads as uploads_module
from airflow_provider_sendgrid.delivery import verification
from airflow_provider_sendgrid.delivery.export import DeliveryOptions, deliver_export
from airflow_provider_sendgrid.delivery.lookup import FileLookup
from airflow_provider_sendgrid.delivery.object_names import MANIFEST_NAME
from airflow_provider_sendgrid.delivery.publication import Publication
from airflow_provider_sendgrid.exceptions import (
    DestinationError,
    DestinationRefusedError,
    ExportIncompleteError,
    SendGridError,
)
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.files import parallel as fetch_module
from airflow_provider_sendgrid.files.download import DownloadLimits
from airflow_provider_sendgrid.files.source import ExportFiles, file_path
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.storage import base
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo
from tests.support.memory_storage import MemoryStorage

pytestmark = pytest.mark.no_cover  # measuring takes twice the time; other tests cover the same lines

HISTORIES = int(os.environ.get("MODEL_HISTORIES", "100"))
PART_BYTES = 256
SECONDS_OF_AN_ACCESS = 5.0  # signed URLs age: they are requested again after some accesses
LIMITS = DownloadLimits(attempts=3, progress_bytes=64, jitter=lambda: 1.0)
OUR_OBJECT = re.compile(r"[A-Za-z0-9_.-]+-\d{5,}-of-\d{5,}\.(csv|json)(\.gz)?")
FOREIGN = {"notes.txt": b"not ours", "folder/one-00001-of-00001.csv.gz": b"not ours"}


class KilledError(BaseException):
    """The process of a try ended here."""


# SendGrid


@dataclass(frozen=True)
class Export:
    id: str
    plain: dict  # the files' text by the path of their URL
    sent: dict  # what SendGrid's storage sends

    @property
    def rows(self):
        return sum(text.count(b"\n") - 1 for text in self.plain.values())


def new_export(export_id, rows_of_files, is_gzip=True):
    plain = {}
    for number, rows in enumerate(rows_of_files):
        lines = [hashlib.sha256(f"{export_id}/{number}/{row}".encode()).hexdigest() for row in range(rows)]
        plain[f"/{export_id}/part-{number}.csv.gzip"] = "\n".join(["EMAIL", *lines, ""]).encode()
    sent = {path: gzip.compress(text, mtime=0) if is_gzip else text for path, text in plain.items()}
    return Export(export_id, plain, sent)


def made_again(export, path, now):
    """The same text as gzip that differs, as SendGrid may make it for each download."""
    is_gzip = export.sent[path] != export.plain[path]
    return gzip.compress(export.plain[path], mtime=int(now)) if is_gzip else export.plain[path]


EXPORTS = [new_export("one", [2, 12]), new_export("two", [3]), new_export("three", [1, 2, 9], is_gzip=False)]
PATHS = {text: path for export in EXPORTS for path, text in export.plain.items()}


def path_of(content, known={}):  # noqa: B006 - a cache
    """The path of the file whose complete content these stored bytes are; None if there is none."""
    if content not in known:
        try:
            plain = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        except (OSError, EOFError):
            plain = b"damaged"
        known[content] = PATHS.get(plain)
    return known[content]


class Session:
    """SendGrid's file storage, as one try sees it."""

    def __init__(self, active):
        self.active = active

    def get(self, url, headers, **_):
        path, active = file_path(url), self.active
        content, fate = active.export.sent[path], active.access("get", path)
        if fate == "unavailable":
            raise OSError("no connection")
        if fate == "refused":
            return self.response(url, 403, b"<Error><Code>AccessDenied</Code></Error>")
        active.note_get(path)
        if fate == "made again":
            content = made_again(active.export, path, active.machine.now)
        if fate == "damaged" and content[:2] == b"\x1f\x8b":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        if fate == "truncated" and content[:2] == b"\x1f\x8b":
            content = content[: len(content) // 2]
        start, status, extra = 0, 200, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", "")):
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1) + 1
            if start >= len(content):
                return self.response(url, 416, b"")
            status, extra = 206, {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
            content = content[start:end]
        length = len(content)
        if fate == "broken":
            content = content[: length // 2]
        return self.response(url, status, content, {"Content-Length": str(length), "ETag": '"x"', **extra})

    def response(self, url, status, content, headers=None):
        headers = HTTPHeaderDict(headers or {"Content-Length": str(len(content))})
        raw = HTTPResponse(io.BytesIO(content), headers, status, preload_content=False, decode_content=False)
        return SimpleNamespace(
            url=url, status_code=status, headers=headers, raw=raw, is_redirect=False, close=raw.close
        )


# The destination


@dataclass(frozen=True)
class Abilities:
    """What a storage and its credentials allow."""

    conditional_writes: bool = True
    conditional_deletes: bool = True
    can_list: bool = True
    can_delete: bool = True
    can_abort_others: bool = True


class Destination:
    """The storage as one try sees it: each call is a step of the history, and its response may be lost.

    Where it has no conditional writes or deletes, it looks right before it writes, and a history can do something else
    in between: then `is_torn` is set.
    """

    def __init__(self, active, memory, abilities):
        self.active, self.memory, self.abilities = active, memory, abilities
        self.uri = memory.uri

    def put(self, name, content, info, over=ANY_VERSION):
        return self.write(f"put {name}", name, over, lambda: self.memory.put(name, content, info, self.raced(over)))

    def raced(self, over):
        return over if self.abilities.conditional_writes else ANY_VERSION

    def write(self, what, name, over, effect):
        if over != ANY_VERSION and not self.abilities.conditional_writes:
            self.step(f"look before {what}", lambda: self.refuse_if_changed(name, over))
            is_torn = lambda: self.version(name) != over  # noqa: E731
            return self.step(what, effect, torn=is_torn)
        return self.step(what, effect)

    def refuse_if_changed(self, name, over):
        if self.version(name) != over:
            self.memory.put(name, b"", ObjectInfo("", {}), f"not {over}")  # raises

    def version(self, name):
        stored = self.memory.objects.get(name)
        return stored.version if stored else None

    def begin(self, name, info, over=ANY_VERSION):
        upload = self.step(f"begin {name}", lambda: self.memory.begin(name, info, self.raced(over)))
        self.active.uploads.add(upload)
        return DestinationUpload(self, upload, over)

    def read(self, name):
        return self.step(f"read {name}", lambda: self.look_into(name))

    def look_into(self, name):
        if name == MANIFEST_NAME:
            self.active.manifest_read = self.version(name)
        return self.memory.read(name)

    def head(self, name):
        return self.step(f"head {name}", lambda: self.memory.head(name))

    def versions(self, beginning=""):
        return self.step("versions", lambda: self.list(beginning))

    def list(self, beginning):
        if not self.abilities.can_list:
            return None
        self.active.listed = self.active.machine.ours()
        return dict(self.memory.versions(beginning))

    def abort_uploads(self, names):
        return self.step("abort_uploads", lambda: self.abort_others(names))

    def abort_others(self, names):
        return self.memory.abort_uploads(names) if self.abilities.can_abort_others else 0

    def delete(self, name, version=ANY_VERSION):
        if version != ANY_VERSION and not self.abilities.conditional_deletes and self.abilities.can_delete:
            if self.step(f"look before delete {name}", lambda: self.version(name)) != version:
                return
            is_torn = lambda: self.version(name) not in (version, None)  # noqa: E731
            self.step(f"delete {name}", lambda: self.memory.delete(name), torn=is_torn)
            return
        self.step(f"delete {name}", lambda: self.delete_if_allowed(name, version))

    def delete_if_allowed(self, name, version):
        if not self.abilities.can_delete:
            raise DestinationRefusedError(f"delete of {name}: AccessDenied")
        self.memory.delete(name, version)

    def step(self, what, effect, torn=lambda: False):
        fate = self.active.access("look" if what.startswith(("look", "read", "head", "versions")) else "write", what)
        if fate == "unavailable":
            raise DestinationError(f"{what}: no connection.")
        self.active.machine.is_torn |= torn()
        result = effect()
        if fate == "killed after":
            self.active.is_dead = True
            raise KilledError
        if fate == "lost":
            raise DestinationError(f"{what}: no answer.")
        # The storage's own client repeats a request whose response was lost.
        return effect() if fate == "repeated" else result


class DestinationUpload:
    def __init__(self, destination, upload, over):
        self.destination, self.upload, self.over = destination, upload, over
        self.name = upload.name

    def write_part(self, number, part, crc32):
        content = bytes(part)
        self.destination.step(
            f"write_part {self.name} {number}", lambda: self.upload.write_part(number, content, crc32)
        )

    def complete(self):
        self.destination.write(f"complete {self.name}", self.name, self.over, self.upload.complete)

    def abort(self):
        try:
            self.destination.step(f"abort {self.name}", self.upload.abort)
        except DestinationError:
            self.destination.active.uploads.discard(self.upload)  # it may stay open
            raise


# Tasks


@dataclass(frozen=True)
class Spec:
    """What a task is to do."""

    export: Export
    options: DeliveryOptions
    file_index: int | None = None


@dataclass
class Task:
    spec: Spec
    active: Try | None = None
    tries: int = 0
    state: str = "running"


class Try:
    """One try of a task, in its own thread, which runs only when the history lets it."""

    def __init__(self, machine, task):
        self.machine, self.task, self.spec = machine, task, task.spec
        self.export = task.spec.export
        self.stop = StopSignal()
        self.is_dead = False
        self.fate = "done"
        self.kind, self.what = "", "its begin"
        self.outcome = None
        self.uploads = set()
        self.listed = set()
        self.to_be_gone = set()  # what was listed before its manifest was written
        self.deleted_by_others = set()
        self.may_fetch_again = False
        self.manifest_read = None
        self.stored_at_begin = machine.stored_files(task.spec)
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def go_on(self, fate="done"):
        self.fate = fate
        self._go.release()
        self._stopped.acquire()

    def kill(self):
        self.is_dead = True
        self.go_on()
        self._thread.join()

    def access(self, kind, what):
        """Stop before an access, until the history decides how it goes."""
        if self.is_dead:
            raise KilledError
        self.kind, self.what = kind, what
        self._stopped.release()
        self._go.acquire()
        if self.is_dead:
            raise KilledError
        self.machine.now += SECONDS_OF_AN_ACCESS
        return self.fate

    def note_get(self, path):
        stored = self.stored_at_begin.get(path)
        if stored is not None and not self.may_fetch_again and self.machine.is_still_stored(self.spec, stored):
            self.machine.fail(f"fetched {path}, which is stored as {stored[0]}")

    def get_export(self):
        """SendGrid's response with the export's status."""
        fate = self.access("export", "status")
        if fate == "unavailable":
            raise SendGridError("SendGrid is not available")
        urls = [f"https://files.example{path}?X-Amz-Signature={self.machine.now}" for path in self.export.plain]
        if fate == "reordered":
            urls.reverse()
        if fate == "repeated":
            urls = [urls[-1], *urls]
        is_wrong = fate == "another count"
        self.may_fetch_again |= is_wrong  # for its rows disagree
        count = self.export.rows + is_wrong
        return ContactExport(self.export.id, "ready", urls=tuple(urls), contact_count=count)

    def _run(self):
        self._go.acquire()
        try:
            if not self.is_dead:
                self.outcome = self._deliver()
        except (Exception, KilledError) as error:  # noqa: BLE001 - the outcome of the try, whatever it is
            self.outcome = error
        self._stopped.release()

    def _deliver(self):
        def clock():
            return self.machine.now

        source = ExportFiles(
            self.get_export, Session(self), limits=LIMITS, clock=clock, sleep=lambda _: None, stop=self.stop
        )
        storage = Destination(self, self.machine.memory, self.machine.abilities)
        return deliver_export(source, storage, self.spec.options, self.spec.file_index, self.stop)


class CallsAtOnce(Executor):
    """A pool that calls what is submitted at once, in the thread that submits it."""

    def __init__(self, *_, **__):
        pass

    def submit(self, function, /, *arguments, **named):
        future = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(function(*arguments, **named))
        except BaseException as error:  # noqa: BLE001 - raised again by the caller of result()
            future.set_exception(error)
        return future

    def shutdown(self, wait=True, *, cancel_futures=False):
        pass


FATES = {
    "look": ["done"] * 20 + ["unavailable", "killed"],
    "write": ["done"] * 3 + ["lost", "repeated", "repeated", "unavailable", "killed after", "killed"],
    "get": ["done"] * 4
    + ["made again"] * 3
    + ["damaged", "truncated", "broken", "broken", "refused", "unavailable", "killed"],
    "export": ["done", "done", "reordered", "reordered", "repeated", "another count", "unavailable", "killed"],
}


def options_of(**changes):
    options = DeliveryOptions(max_concurrency=1, **changes)
    object.__setattr__(options, "part_bytes", PART_BYTES)  # less than it accepts
    return options


def specs():
    def spec(number, compression, replace, kind, verify):
        export = EXPORTS[number]
        options = options_of(
            compression=compression,
            replace=replace,
            write_manifest=kind != "no manifest",
            verify_row_count=verify,
        )
        file_index = kind % len(export.plain) if isinstance(kind, int) else None
        return Spec(export, options, file_index)

    return st.builds(
        spec,
        st.sampled_from([0, 0, 1, 1, 2]),
        st.sampled_from(["gzip", "gzip", "none"]),
        st.booleans(),
        st.sampled_from(["whole", "whole", "whole", "whole", "no manifest", 0, 1]),
        st.sampled_from([True, True, False]),
    )


class Deliveries(RuleBasedStateMachine):
    """Up to three runs at once, to one prefix."""

    abilities = Abilities()
    most_tasks = 5
    most_active = 3

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.memory = MemoryStorage()
        for name, content in FOREIGN.items():
            self.memory.put(name, content, ObjectInfo("text/plain", {}))
        self.tasks = []
        self.owners = {}  # the task that stored a version of an object
        self.replaced = set()  # objects that a run with replace=True decided to delete, and their versions
        self.listed_as_replaced = set()  # the same for all runs: one without replace takes over what others decided
        self.is_torn = False
        self.to_be_withdrawn = None  # the version of a manifest, and the try that stored over an object of it
        self.error = None
        self.story = []

    def fail(self, text):
        if self.error is None:
            self.error = AssertionError(text + "\n" + "\n".join(self.story))

    # What people and schedulers do

    @rule(spec=specs())
    def start(self, spec):
        if len(self.active()) < self.most_active and len(self.tasks) < self.most_tasks:
            self.tasks.append(Task(spec))
            self.begin_try(self.tasks[-1])

    @rule(which=st.integers(0, 9))
    def retry(self, which):
        """Again, what failed, or was cleared."""
        waiting = [task for task in self.tasks if task.active is None]
        if waiting and len(self.active()) < self.most_active:
            self.begin_try(waiting[which % len(waiting)])

    def begin_try(self, task):
        task.tries += 1
        task.state = "running"
        task.active = Try(self, task)
        self.step(task)

    @rule(which=st.integers(0, 9), count=st.integers(1, 25))
    def go_on(self, which, count):
        task = self.pick(which)
        while task is not None and task.active is not None and count:
            self.step(task)
            count -= 1

    @rule(which=st.integers(0, 9), fate=st.integers(0, 2**16))
    def go_wrong(self, which, fate):
        if (task := self.pick(which)) is not None:
            fates = FATES[task.active.kind]
            self.step(task, fates[fate % len(fates)])

    @rule(which=st.integers(0, 19))
    def stop(self, which):
        """Airflow calls `on_kill`."""
        task = self.pick(which)
        if task is not None and which > 15:
            self.story.append(f"{self.name(task)}: stopped")
            task.active.stop.set()

    def step(self, task, fate="done"):
        active = task.active
        before = dict(self.memory.objects)
        self.story.append(f"{self.name(task)}: {active.what}: {fate}")
        if fate == "killed":
            active.kill()
        else:
            active.go_on(fate)
        self.check(active, before)
        if active.outcome is not None:
            self.end(task)
        if self.error is not None:
            raise self.error

    # What holds after every step

    def check(self, active, before):
        for name in {*before, *self.memory.objects}:
            old, new = before.get(name), self.memory.objects.get(name)
            if new is old:
                continue
            if old is not None:
                self.check_change(active, name, old.version)
            if new is None:
                self.note_deletion(active, name, old.version)
            else:
                self.owners[name, new.version] = active.task
            if name == MANIFEST_NAME and new is not None:
                active.to_be_gone = {each for each in active.listed if each[0] not in self.named()}
                self.listed_as_replaced |= self.replaced_by_manifest()
                self.replaced |= self.replaced_by_manifest() if active.spec.options.replace else set()
        if not self.is_torn and not self.is_being_withdrawn(active, before):
            self.check_manifest()

    def is_being_withdrawn(self, active, before):
        """Whether a try stored over an object that a manifest names, which another run wrote since the try read it.

        It reads the manifest again as its next step, and withdraws it; unless it is killed or fails there. So does a
        try that writes a manifest when another run has just stored over one of its objects.
        """
        version = self.version(MANIFEST_NAME)
        stored = [name for name in self.named() if name in before and self.memory.objects.get(name) is not before[name]]
        if stored and version != active.manifest_read and all(name in self.memory.objects for name in stored):
            self.to_be_withdrawn = (version, active)
        is_written = version is not None and self.memory.objects[MANIFEST_NAME] is not before.get(MANIFEST_NAME)
        if is_written and self.is_stored_over():
            # After it had looked at its objects, and before it wrote the manifest: it looks at them again.
            self.to_be_withdrawn = (version, active)
        if self.to_be_withdrawn is None or self.to_be_withdrawn[0] != version:
            return False
        outcome = self.to_be_withdrawn[1].outcome
        self.is_torn |= isinstance(outcome, BaseException)
        return outcome is None or self.is_torn

    def is_stored_over(self):
        """Whether an object that the manifest names is there with another content."""
        entries = (self.manifest() or {"entries": []})["entries"]
        named = {entry["url"].removeprefix(self.memory.prefix): entry["meta"]["sha256"] for entry in entries}
        there = {name: self.memory.objects[name].content for name in named if name in self.memory.objects}
        return any(hashlib.sha256(content).hexdigest() != named[name] for name, content in there.items())

    def check_change(self, active, name, version):
        if name in FOREIGN:
            self.fail(f"{name} was changed, which is not ours")
            return
        owner = self.owners[name, version].spec.export.id
        is_own = owner == active.export.id or active.spec.options.replace or (name, version) in self.replaced
        if not is_own and not self.is_torn:
            self.fail(f"{active.export.id} with replace=False changed {name} of {owner}")

    def note_deletion(self, active, name, version):
        if name in FOREIGN:
            return
        self.is_torn |= self.may_be_adopted(active, name, version)
        for other in self.active():
            if other.active is not active:
                other.active.deleted_by_others.add(name)

    def may_be_adopted(self, active, name, version):
        """Whether a run deletes an object that no manifest listed as replaced, and another run may just have found it.

        A rollback deletes what its try stored. Another run of the same export may have found that, and be about to
        write its manifest: it looks once more after that, and deletes it. Or it wrote it after the rollback had looked.
        """
        if (name, version) in self.listed_as_replaced or not OUR_OBJECT.fullmatch(name):
            return False
        if self.owners[name, version] is not active.task and not self.is_torn:
            self.fail(f"deleted {name}, which another run stored")
        others = [task.active for task in self.active() if task.active is not active]
        return self.version(MANIFEST_NAME) != active.manifest_read or any(
            other.export is active.export for other in others
        )

    def version(self, name):
        stored = self.memory.objects.get(name)
        return stored.version if stored else None

    def replaced_by_manifest(self):
        replaced = (self.manifest() or {"replaced_versions": {}})["replaced_versions"]
        return {(uri.removeprefix(self.memory.prefix), version) for uri, version in replaced.items()}

    def manifest(self):
        stored = self.memory.objects.get(MANIFEST_NAME)
        manifest = json.loads(stored.content) if stored else {"withdrawn": True}
        return None if manifest.get("withdrawn") else manifest

    def check_manifest(self):
        if (manifest := self.manifest()) is None:
            return
        paths = Counter()
        for entry in manifest["entries"]:
            name, meta = entry["url"].removeprefix(self.memory.prefix), entry["meta"]
            stored = self.memory.objects.get(name)
            if stored is None:
                self.fail(f"the manifest names {name}, which is not there")
                return
            facts = (len(stored.content), hashlib.sha256(stored.content).hexdigest())
            if facts != (meta["content_length"], meta["sha256"]):
                self.fail(f"the manifest gives another size or SHA-256 of {name}")
            paths[path_of(stored.content)] += 1
        export = next(each for each in EXPORTS if each.id == manifest["sendgrid_export"]["id"])
        if paths != Counter(list(export.plain)):
            self.fail(f"the manifest of {export.id} names files {dict(paths)}")

    def ours(self):
        return {(name, stored.version) for name, stored in self.memory.objects.items() if OUR_OBJECT.fullmatch(name)}

    def named(self):
        entries = (self.manifest() or {"entries": []})["entries"]
        return {entry["url"].removeprefix(self.memory.prefix) for entry in entries}

    # What holds when a try ends

    def end(self, task):
        active, outcome = task.active, task.active.outcome
        task.active = None
        self.story.append(f"{self.name(task)}: ended: {outcome!r:.300}")
        if isinstance(outcome, KilledError):
            task.state = "killed"
            return
        left_open = [upload.name for upload in self.memory.uploads.values() if upload in active.uploads]
        if left_open:
            self.fail(f"an upload of {left_open} stays open after {outcome!r}")
        if isinstance(outcome, SendGridError | StoppedError):
            task.state = "failed"
            return
        if isinstance(outcome, BaseException):
            self.fail(f"an unexpected error: {outcome!r}")
            raise self.error from outcome
        task.state = "success"
        self.check_success(active, outcome)

    def check_success(self, active, delivery):
        if self.is_torn:
            return
        spec, objects = active.spec, self.memory.objects
        missing = [file.name for file in delivery.files if file.name not in objects]
        if set(missing) - active.deleted_by_others:
            self.fail(f"delivered {missing}, which are not there")
        there = [file for file in delivery.files if file.name in objects]
        for file in there:
            content = objects[file.name].content
            if (len(content), hashlib.sha256(content).hexdigest()) != (file.size, file.sha256):
                self.fail(f"delivered {file.name}, whose content is another")
        paths = [path_of(objects[file.name].content) for file in there]
        if len(set(paths)) < len(paths) or not set(paths) <= set(spec.export.plain):
            self.fail(f"delivered the files {paths}")
        if spec.file_index is None and len(delivery.files) != len(spec.export.plain):
            self.fail(f"delivered {len(delivery.files)} files")
        if spec.options.replace and delivery.manifest_uri and self.abilities.can_list and self.abilities.can_delete:
            left_over = sorted(name for name, _ in active.to_be_gone & self.ours() if name not in self.named())
            if left_over:
                self.fail(f"replaced, but {left_over} are left")

    # What need not be fetched again

    def stored_files(self, spec):
        """Objects and their versions, by path, that a run finds stored: numbered as pinned, with facts that suffice."""
        order = self.pinned_paths(spec.export)
        ending = ".csv.gz" if spec.options.compression == "gzip" else ".csv"
        found = {}
        for number, path in enumerate(order, 1):
            name = f"{spec.export.id}-{number:05d}-of-{len(order):05d}{ending}"
            stored = self.memory.objects.get(name)
            if stored and path_of(stored.content) == path and self.has_facts(name, stored, spec.options):
                proof = (MANIFEST_NAME, f"_receipts/{spec.export.id}.json", f"_receipts/{name}.json")
                found[path] = (name, [self.memory.objects.get(each) for each in (name, *proof)])
        return found

    def pinned_paths(self, export):
        if len(export.plain) == 1:
            return list(export.plain)
        manifest = self.manifest()
        if manifest and manifest["sendgrid_export"]["id"] == export.id:
            return [facts["path"] for facts in manifest["facts"].values()]
        pin = self.memory.objects.get(f"_receipts/{export.id}.json")
        return json.loads(pin.content)["files"] if pin else []

    def has_facts(self, name, stored, options):
        receipt = self.memory.objects.get(f"_receipts/{name}.json")
        upload = stored.info.metadata["sendgrid-upload"]
        receipts = json.loads(receipt.content)["uploads"] if receipt else {}
        named = (self.manifest() or {"facts": {}})["facts"].get(name, {})
        facts = [stored.info.metadata, receipts.get(upload, {}), named if named.get("upload") == upload else {}]
        wanted = "records" if options.verify_row_count else "sha256"
        return any(wanted in each for each in facts)

    def is_still_stored(self, spec, stored):
        """Whether it is, and whether no other run changed what proves that."""
        name, (content, *_) = stored
        is_to_be_deleted = (name, content.version) in self.replaced_by_manifest()
        return not is_to_be_deleted and stored in self.stored_files(spec).values()

    # What holds after every history

    def teardown(self):
        try:
            if self.error is None:
                self.end_all()
        finally:
            for task in self.active():
                task.active.kill()

    def end_all(self):
        for task in self.active():
            self.run_to_end(task)
        last = Task(Spec(EXPORTS[1], options_of(replace=True)))
        self.tasks.append(last)
        self.begin_try(last)
        self.run_to_end(last)
        if last.state != "success":
            self.fail("a run alone does not succeed")
        self.check_manifest()
        if self.named() != {"two-00001-of-00001.csv.gz"}:
            self.fail(f"the manifest of the last run names {self.named()}")
        left_over = [name for name, _ in self.ours() if name not in self.named()]
        if left_over and self.abilities.can_list and self.abilities.can_delete:
            self.fail(f"after the last run {left_over} are left")
        theirs = re.compile(rf"_receipts/(?!two-){OUR_OBJECT.pattern}\.json")
        receipts = [name for name in self.memory.objects if theirs.fullmatch(name)]
        if receipts and self.abilities.can_list and self.abilities.can_delete:
            self.fail(f"after the last run {receipts} are left")
        if self.error is not None:
            raise self.error

    def run_to_end(self, task):
        for _ in range(2000):
            if task.active is None:
                return
            self.step(task)
        self.fail("a try never ends")
        raise self.error

    def pick(self, which):
        active = self.active()
        return active[which % len(active)] if active else None

    def active(self):
        return [task for task in self.tasks if task.active is not None]

    def name(self, task):
        spec, options = task.spec, task.spec.options
        words = [
            f"{self.tasks.index(task)}.{task.tries} {spec.export.id}",
            options.compression,
            "replace" if options.replace else "keep",
            "whole" if spec.file_index is None else f"file {spec.file_index}",
            *([] if options.write_manifest else ["no manifest"]),
            *([] if options.verify_row_count else ["uncounted"]),
        ]
        return " ".join(words)


class DeliveriesWithoutConditions(Deliveries):
    """Neither writes nor deletes are conditional.

    Where another run stores an object between the check and the write, only these hold: objects of
    others are not changed, no upload stays open, and a later run alone ends well.
    """

    abilities = Abilities(conditional_writes=False, conditional_deletes=False)


class DeliveriesWithFewPermissions(Deliveries):
    """The credentials may neither list nor delete objects, nor end uploads."""

    abilities = Abilities(can_list=False, can_delete=False, can_abort_others=False)


class DeliveriesAlone(DeliveriesWithoutConditions):
    """One run after the other: everything holds without conditional writes."""

    most_active = 1


MACHINES = [Deliveries, DeliveriesWithoutConditions, DeliveriesWithFewPermissions, DeliveriesAlone]
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
    monkeypatch.setattr(base, "MIN_PART_BYTES", PART_BYTES)
    monkeypatch.setattr(fetch_module, "ThreadPoolExecutor", CallsAtOnce)
    for module in (queue_module, uploads_module, verification):
        monkeypatch.setattr(module, "DaemonExecutor", CallsAtOnce)
    monkeypatch.setattr(StopSignal, "call", call_at_once)
    monkeypatch.setattr(StopSignal, "wait", lambda signal, _: signal.raise_if_set())
    level = logging.root.manager.disable
    logging.disable()
    yield
    logging.disable(level)


def call_at_once(signal, function, *_, **__):
    signal.raise_if_set()
    return function()


@pytest.mark.parametrize("machine", MACHINES)
def test_no_history_breaks_the_promise_of_a_manifest(machine):
    run_state_machine_as_test(machine, settings=PROFILE)


# Rules, and what is found if one is broken


class FewDeliveries(Deliveries):
    """Three tasks are enough: an error with them shows soon."""

    most_tasks = 3


def any_manifest_is_overwritten(monkeypatch):
    def put(destination, name, content, info, over=ANY_VERSION):
        return original(destination, name, content, info, ANY_VERSION if name == MANIFEST_NAME else over)

    original = Destination.put
    monkeypatch.setattr(Destination, "put", put)


def files_are_known_by_their_position(monkeypatch):
    monkeypatch.setattr(delivery_module, "pinned_order", lambda _storage, export, _manifest: list(export.paths))
    monkeypatch.setattr(FileLookup, "_is_object_of_file", lambda *_: True)


def deletes_do_not_look_at_versions(monkeypatch):
    original = Destination.delete
    monkeypatch.setattr(Destination, "delete", lambda self, name, _version=ANY_VERSION: original(self, name))


def objects_to_be_deleted_count_as_stored(monkeypatch):
    monkeypatch.setattr(Publication, "may_be_deleted", lambda *_: False)


def only_what_the_manifest_names_is_replaced(monkeypatch):
    monkeypatch.setattr(MemoryStorage, "versions", lambda *_: {})


def receipts_are_not_read(monkeypatch):
    monkeypatch.setattr(lookup_module, "read_receipt", lambda *_: [])


def uploads_are_not_aborted(monkeypatch):
    monkeypatch.setattr(uploads_module, "abort_and_log", lambda *_, **__: None)


def gzip_is_not_verified(monkeypatch):
    def count(*arguments):
        with suppress(ExportIncompleteError):
            original(*arguments)

    original = verification.Verification._gunzip_and_count
    monkeypatch.setattr(verification.Verification, "_gunzip_and_count", count)
    monkeypatch.setattr(verification.Gunzip, "close", lambda _: None)


BROKEN = {
    any_manifest_is_overwritten: "with replace=False changed _manifest.json|the manifest names",
    files_are_known_by_their_position: "the manifest of .* names files|gives another size|delivered",
    only_what_the_manifest_names_is_replaced: "replaced, but .* are left|after the last run .* are left",
    receipts_are_not_read: "fetched .*, which is stored",
    uploads_are_not_aborted: "stays open",
}
if "MODEL_HISTORIES" in os.environ:  # these take thousands of histories
    BROKEN |= {
        deletes_do_not_look_at_versions: "which is not there|deleted .*, which another run stored",
        objects_to_be_deleted_count_as_stored: "which is not there",
        gzip_is_not_verified: "names files|delivered the files",
    }


@pytest.mark.parametrize("break_rule", BROKEN)
def test_the_histories_find_a_broken_rule(break_rule, monkeypatch):
    break_rule(monkeypatch)
    until_found = settings(PROFILE, max_examples=10_000, derandomize=True, phases=[Phase.generate])
    with pytest.raises(AssertionError, match=BROKEN[break_rule]):
        run_state_machine_as_test(FewDeliveries, settings=until_found)
