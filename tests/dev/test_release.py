"""Checks of a release, and the workflow that publishes it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest
import yaml

from dev.release.dist import PLACEHOLDER, check_builds_match, check_publisher, check_tag, check_wheel, source_version

REPOSITORY = Path(__file__).parents[2]
WORKFLOW = yaml.safe_load((REPOSITORY / ".github" / "workflows" / "release.yml").read_text())
JOBS = WORKFLOW["jobs"]
TEMPLATES = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def steps(job):
    return [step.get("run") or step["uses"] for step in JOBS[job]["steps"]]


def test_only_tested_and_checked_builds_are_published():
    assert JOBS["publish"]["needs"] == "build"
    assert ["make test", "make dist TAG=${{ github.ref_name }}"] == [
        step for step in steps("build") if step.startswith("make ")
    ]


def test_only_a_tag_publishes():
    triggers = WORKFLOW[True]  # YAML reads `on` as a boolean

    assert {"push": {"tags": ["v*"]}} == triggers


def test_publishing_needs_no_password_and_few_permissions():
    """PyPI trusts the job `publish` in the environment `pypi`; it runs no code of this repository."""
    assert {"contents": "read"} == WORKFLOW["permissions"]
    assert {"id-token": "write"} == JOBS["publish"]["permissions"]
    assert "pypi" == JOBS["publish"]["environment"]
    assert [False, False] == [step.startswith("make") for step in steps("publish")]
    assert "secrets." not in (REPOSITORY / ".github" / "workflows" / "release.yml").read_text()


def test_releases_have_attestations():
    [publish] = [step for step in JOBS["publish"]["steps"] if "pypi-publish" in step["uses"]]

    assert publish["with"]["attestations"] is True
    assert any("attest-build-provenance" in step for step in steps("build"))


def test_the_version_is_in_one_file_only():
    version = source_version()
    others = [REPOSITORY / name for name in ("pyproject.toml", "README.md", "mkdocs.yml", "Makefile")]

    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert [] == [path.name for path in others if f'"{version}"' in path.read_text()]


def test_a_tag_must_match_the_version():
    with pytest.raises(SystemExit, match="the version"):
        check_tag("v999.0.0", source_version())


def test_the_changelog_must_have_the_version():
    with pytest.raises(SystemExit, match="no section"):
        check_tag("v999.0.0", "999.0.0")


def test_different_builds_are_not_released(tmp_path):
    for name in ("one", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.whl").write_text(name)

    with pytest.raises(SystemExit, match="differ"):
        check_builds_match(tmp_path / "one", tmp_path / "another")


def test_a_wheel_with_missing_or_extra_files_is_not_released(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tests/test_secret.py", "")

    with pytest.raises(SystemExit, match=r"missing .*py\.typed.* unexpected \['tests/test_secret\.py'\]"):
        check_wheel(wheel, source_version())


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
def test_issue_templates_are_valid(template):
    form = yaml.safe_load(template.read_text())

    if template.stem == "config":
        assert {"blank_issues_enabled": True} == form
        return
    assert {"name", "description", "body"} <= form.keys()
    for item in form["body"]:
        assert item["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert "value" in item["attributes"] if item["type"] == "markdown" else {"id"} <= item.keys()


def test_the_changelog_has_the_documented_format():
    """Keep a Changelog: what is unreleased first, then versions with their dates, the newest first."""
    heads = re.findall(r"(?m)^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text())
    kinds = re.findall(r"(?m)^### (.+)$", (REPOSITORY / "CHANGELOG.md").read_text())

    assert "[Unreleased]" == heads[0]
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", head) for head in heads[1:])
    assert {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"} >= set(kinds)
