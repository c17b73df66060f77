"""What type checkers report to users: right calls pass, wrong ones do not; and the public API is as listed."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections import Counter
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LISTED = HERE / "public_api.txt"
PUBLIC_MODULES = [
    "emulator",
    "exceptions",
    "exports.export",
    "hooks.sendgrid",
    "links.sendgrid",
    "operators.sendgrid",
    "sensors.sendgrid",
    "transfers.sendgrid_to_object_storage",
    "transfers.sendgrid_to_s3",
    "triggers.sendgrid",
]


@pytest.fixture(scope="module")
def errors(airflow_version):
    """What mypy says of both files: file, line and code of each error."""
    if not find_spec("mypy"):
        pytest.skip("mypy is not in this environment")
    if airflow_version.number < (3, 3):
        pytest.skip("written for the newest Airflow's types")
    command = [sys.executable, "-m", "mypy", "--strict", "--show-error-codes", "--no-pretty"]
    done = subprocess.run(
        [*command, HERE / "good.py", HERE / "bad.py"], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return re.findall(r"(\w+\.py):(\d+): error: .*\[([\w-]+)\]", done.stdout)


def test_every_right_call_type_checks(errors):
    assert [] == [each for each in errors if each[0] == "good.py"]


def test_every_wrong_call_is_refused_and_for_its_reason(errors):
    lines = (HERE / "bad.py").read_text().splitlines()
    expected = {
        str(number): line.rpartition("# error: ")[2] for number, line in enumerate(lines, 1) if "# error: " in line
    }

    assert expected == {line: code for file, line, code in errors if file == "bad.py"}
    assert {"bad.py"} >= {file for file, _, _ in errors}


def test_the_public_api_is_as_listed():
    """Users import these names and pass these arguments: a change is meant, and in the changelog."""
    found = [line for module in PUBLIC_MODULES for line in api_of(module)]

    assert not (repeated := [line for line, count in Counter(found).items() if count > 1]), repeated
    if "\n".join(found) + "\n" != LISTED.read_text():
        listed = LISTED.read_text().splitlines()
        new, gone = [line for line in found if line not in listed], [line for line in listed if line not in found]
        pytest.fail(f"{LISTED.name} says otherwise.\nNew: {new}\nGone: {gone}")


def api_of(module_name):
    """A line for each public class, method, property and function that a module defines."""
    module = importlib.import_module(f"airflow_provider_sendgrid.{module_name}")
    for name in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, name)
        is_own = hasattr(module, "__all__") or getattr(value, "__module__", "") == module.__name__
        if name.startswith("_") or not is_own or not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        yield f"{module_name}.{name}{signature(value)}"
        if inspect.isclass(value):
            yield from (f"{module_name}.{name}.{line}" for line in members_of(value))


def members_of(value):
    for name, member in sorted(vars(value).items()):
        if name.startswith("_"):
            continue
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(function):
            yield f"{name}{signature(function)}"
        elif isinstance(member, property) or type(member).__name__ == "cached_property":
            yield name


def signature(value):
    """As it is written; a constructor's, of a class. What is shown differently each time is left out."""
    if inspect.isclass(value) and issubclass(value, Enum):
        return f" = {', '.join(repr(each.value) for each in value)}"
    shown = str(inspect.signature(value.__init__ if inspect.isclass(value) else value))
    shown = re.sub(r"frozenset\(.*?\)| at 0x[0-9a-f]+", "", shown)
    return re.sub(r"(?<=[:>] )'([^']*)'(?=[,)= ]|$)", r"\1", shown)


def write():
    """Write the list again: ``python tests/typing/test_typing.py``."""
    LISTED.write_text("".join(f"{line}\n" for module in PUBLIC_MODULES for line in api_of(module)))


if __name__ == "__main__":
    write()
