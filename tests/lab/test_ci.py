"""The public CI runs what the Makefile runs, on the same versions."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
JOBS = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "ci.yml").read_text())["jobs"]


def versions_in_the_makefile(name):
    newest = re.search(r"(?m)^NEWEST := (\S+)$", MAKEFILE)[1]
    return re.search(rf"(?m)^{name} := (.+)$", MAKEFILE)[1].replace("$(NEWEST)", newest).split()


@pytest.mark.parametrize(("job", "name"), [("test-airflow", "TEST_VERSIONS"), ("e2e", "E2E_VERSIONS")])
def test_it_runs_on_the_versions_of_the_makefile(job, name):
    assert versions_in_the_makefile(name) == [str(row["airflow"]) for row in JOBS[job]["strategy"]["matrix"]["include"]]


def test_every_command_is_one_of_the_makefile():
    commands = [
        step["run"] for job in JOBS.values() for step in job["steps"] if step.get("run", "").startswith("make ")
    ]
    targets = set(re.findall(r"(?m)^([\w-]+):", MAKEFILE))

    assert {"make test", "make test-airflow", "make e2e"} == {" ".join(each.split()[:2]) for each in commands}
    assert targets >= {each.split()[1] for each in commands}


def test_one_job_stands_for_all():
    assert JOBS.keys() - {"all"} == set(JOBS["all"]["needs"])
