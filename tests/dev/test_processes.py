"""Ports, waiting and processes."""

import os
import socket
import sys

import psutil
import pytest

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process
from dev.services.waiting import wait_until


def test_a_free_port_can_be_used():
    port = free_port()

    assert not accepts_connections(port)
    with socket.create_server((LOCALHOST, port)):
        assert accepts_connections(port)


def test_wait_until_returns_the_first_true_result():
    answers = iter([None, 0, "ready"])

    assert wait_until("it", lambda: next(answers), seconds=5, pause_seconds=0) == "ready"


def test_a_timeout_shows_the_evidence():
    with pytest.raises(TimeoutError, match=r"(?s)the export ready: not within 0 s.*end of the log"):
        wait_until("the export ready", lambda: None, seconds=0, pause_seconds=0, evidence=lambda: "end of the log")


def is_gone(pid):
    """A zombie counts as gone: its exit code is read by this machine's first process."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def process(tmp_path, code):
    return Process("child", [sys.executable, "-c", code], dict(os.environ), tmp_path / "logs" / "child.log")


def test_a_process_that_exited_by_itself_keeps_its_log(tmp_path):
    child = process(tmp_path, "print('last words')")
    child.start()

    wait_until("child exited", child.has_exited, seconds=10, pause_seconds=0.01)

    assert "last words" in child.tail()
    assert "not running" in child.tail()
    child.stop()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_stopped_process_has_no_children_and_can_restart(tmp_path, end):
    code = (
        "import os, signal, subprocess, sys, time;"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True).pid,"
        "flush=True);"
        "time.sleep(60)"
    )
    child = process(tmp_path, code)
    child.start()
    grandchild = int(wait_until("its pid", child.log.read_text, seconds=10, pause_seconds=0.01))

    getattr(child, end)()

    assert not child.is_running()
    assert not child.has_exited()
    wait_until("grandchild gone", lambda: is_gone(grandchild), seconds=10, pause_seconds=0.01)
    child.start()
    child.kill()
