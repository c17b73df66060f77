"""What is released is checked as anybody can check it, and published without a password."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import yaml

from dev.release.dist import PLACEHOLDER, check_publisher, check_tag, check_wheel, same_twice, version_of_the_source

REPOSITORY = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "release.yml").read_text())
JOBS = WORKFLOW["jobs"]
TEMPLATES = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def steps(job):
    return [step.get("run") or step["uses"] for step in JOBS[job]["steps"]]


def test_nothing_is_published_that_was_not_tested_and_checked():
    assert JOBS["publish"]["needs"] == "build"
    assert ["make test", "make dist TAG=${{ github.ref_name }}"] == [
        step for step in steps("build") if step.startswith("make ")
    ]


def test_a_tag_alone_publishes():
    triggers = WORKFLOW[True]  # YAML reads `on` as a boolean

    assert {"push": {"tags": ["v*"]}} == triggers


def test_no_password_is_needed_and_no_job_may_more_than_it_does():
    """PyPI trusts the job `publish` in the environment `pypi`; it runs no code of ours."""
    assert {"contents": "read"} == WORKFLOW["permissions"]
    assert {"id-token": "write"} == JOBS["publish"]["permissions"]
    assert "pypi" == JOBS["publish"]["environment"]
    assert [False, False] == [step.startswith("make") for step in steps("publish")]
    assert "secrets." not in (REPOSITORY / ".github" / "workflows" / "release.yml").read_text()


def test_what_is_published_says_where_it_was_built():
    [publish] = [step for step in JOBS["publish"]["steps"] if "pypi-publish" in step["uses"]]

    assert publish["with"]["attestations"] is True
    assert any("attest-build-provenance" in step for step in steps("build"))


def test_the_version_stands_in_one_place():
    version = version_of_the_source()
    others = [REPOSITORY / name for name in ("pyproject.toml", "README.md", "mkdocs.yml", "Makefile")]

    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert [] == [path.name for path in others if f'"{version}"' in path.read_text()]


def test_a_tag_must_be_that_of_the_version():
    with pytest.raises(SystemExit, match="the version"):
        check_tag("v999.0.0", version_of_the_source())


def test_a_version_must_stand_in_the_changelog():
    with pytest.raises(SystemExit, match="no section"):
        check_tag("v999.0.0", "999.0.0")


def test_two_builds_that_differ_are_not_released(tmp_path):
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.whl").write_text(name)

    with pytest.raises(SystemExit, match="differ"):
        same_twice(tmp_path / "one", tmp_path / "another")


def test_a_wheel_that_lacks_a_file_or_has_one_too_many_is_not_released(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tests/test_secret.py", "")

    with pytest.raises(SystemExit, match=r"missing: .*py\.typed.* too many: \['tests/test_secret\.py'\]"):
        check_wheel(wheel, version_of_the_source())


@pytest.mark.parametrize("url", [f"https://example.com/{PLACEHOLDER}/provider", "https://example.com/someone/provider"])
def test_a_release_needs_authors_and_urls(tmp_path, url, capsys):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "a-1.0.dist-info/METADATA", f"Name: a\nProject-URL: Repository, {url}\n\n{PLACEHOLDER} in the README"
        )

    check_publisher(wheel, tag=None)

    assert (PLACEHOLDER in capsys.readouterr().out) == (PLACEHOLDER in url)
    if PLACEHOLDER in url:
        with pytest.raises(SystemExit, match="Project-URL"):
            check_publisher(wheel, tag="v1.0")
    else:
        check_publisher(wheel, tag="v1.0")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_is_one_that_github_takes(template):
    form = yaml.safe_load(template.read_text())

    if template.stem == "config":
        assert {"blank_issues_enabled": True} == form
        return
    assert {"name", "description", "body"} <= form.keys()
    for item in form["body"]:
        assert item["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert "value" in item["attributes"] if item["type"] == "markdown" else {"id"} <= item.keys()


def test_the_changelog_is_kept_as_it_says():
    """Keep a Changelog: what is unreleased first, then versions with their dates, the newest first."""
    heads = re.findall(r"(?m)^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text())
    kinds = re.findall(r"(?m)^### (.+)$", (REPOSITORY / "CHANGELOG.md").read_text())

    assert "[Unreleased]" == heads[0]
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", head) for head in heads[1:])
    assert {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"} >= set(kinds)
