"""The workflow of CI, pre-commit and Dependabot."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]
MAKEFILE = (REPOSITORY / "Makefile").read_text()
WORKFLOWS = {path.name: path.read_text() for path in sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))}
JOBS = yaml.safe_load(WORKFLOWS["ci.yml"])["jobs"]
HOOKS = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]


def versions_in_the_makefile(name):
    newest = re.search(r"(?m)^NEWEST := (\S+)$", MAKEFILE)[1]
    return re.search(rf"(?m)^{name} := (.+)$", MAKEFILE)[1].replace("$(NEWEST)", newest).split()


@pytest.mark.parametrize(("job", "name"), [("test-airflow", "TEST_VERSIONS"), ("e2e", "E2E_VERSIONS")])
def test_ci_runs_the_versions_of_the_makefile(job, name):
    assert versions_in_the_makefile(name) == [str(row["airflow"]) for row in JOBS[job]["strategy"]["matrix"]["include"]]


def test_ci_runs_commands_of_the_makefile():
    commands = [
        step["run"] for job in JOBS.values() for step in job["steps"] if step.get("run", "").startswith("make ")
    ]
    targets = set(re.findall(r"(?m)^([\w-]+):", MAKEFILE))

    assert {"make test", "make hooks", "make test-airflow", "make e2e"} == {
        " ".join(each.split()[:2]) for each in commands
    }
    assert targets >= {each.split()[1] for each in commands}


def test_classifiers_name_the_required_python_versions():
    classifiers = re.findall(
        r'"Programming Language :: Python :: (3\.\d+)"', (REPOSITORY / "pyproject.toml").read_text()
    )
    optional = re.findall(r"matrix\.python == '(3\.\d+)'", JOBS["test"].get("continue-on-error", ""))
    others = {row["python"] for row in JOBS["test-airflow"]["strategy"]["matrix"]["include"]}

    assert set(classifiers) == (set(JOBS["test"]["strategy"]["matrix"]["python"]) | others) - set(optional)


def test_one_job_needs_all_others():
    assert JOBS.keys() - {"all"} == set(JOBS["all"]["needs"])


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_actions_are_pinned_to_commits(workflow):
    """A tag can be moved to other code; a commit cannot. Dependabot reads the version from the comment."""
    used = re.findall(r"(?m)^ *(?:- )?uses: (.+)$", WORKFLOWS[workflow])

    assert used
    assert [] == [each for each in used if not re.fullmatch(r"[\w-]+/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each)]


def test_workflows_agree_on_the_version_of_an_action():
    used = set(re.findall(r"uses: ([^@\s]+)@(\S+)", "".join(WORKFLOWS.values())))

    assert len(used) == len({action for action, _ in used})


def test_dependabot_updates_actions_and_python_packages():
    config = yaml.safe_load((REPOSITORY / ".github" / "dependabot.yml").read_text())

    assert 2 == config["version"]
    assert ["github-actions", "pip"] == [each["package-ecosystem"] for each in config["updates"]]
    assert all(each["directory"] == "/" and each["schedule"]["interval"] == "weekly" for each in config["updates"])


def test_pre_commit_downloads_nothing():
    """Each hook is a program of the environment, so pre-commit and `make lint` use the same versions."""
    [local] = HOOKS

    assert "local" == local["repo"]
    assert [] == [hook["id"] for hook in local["hooks"] if not hook["entry"].startswith(".venv/bin/")]
    assert {"unsupported"} == {hook["language"] for hook in local["hooks"]}


def test_pre_commit_hooks_come_from_the_lint_group():
    pytest.importorskip("pre_commit")
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    group = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["dependency-groups"]["lint"]
    files = [file for each in group for file in Distribution.from_name(Requirement(each).name).files or []]
    programs = {file.name for file in files if file.parent.name == "bin"}

    assert programs >= {Path(hook["entry"].split()[0]).name for hook in HOOKS[0]["hooks"]}


def test_the_pre_commit_configuration_is_valid():
    pytest.importorskip("pre_commit")
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]

    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    assert 0 == done.returncode, done.stdout + done.stderr


def test_make_test_measures_branches_with_a_floor():
    project = (REPOSITORY / "pyproject.toml").read_text()

    assert re.search(r"(?m)^test:.*\n(?:\t.*\n)*\t.*pytest .*--cov\b", MAKEFILE)
    assert re.search(r"(?m)^branch = true$", project)
    assert re.search(r"(?m)^fail_under = \d+$", project)
