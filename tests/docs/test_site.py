"""The site is built without a warning and without a network, and contains what users look for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from airflow_provider_sendgrid import __version__
from tests.docs.blocks import REPOSITORY

pytestmark = pytest.mark.skipif(find_spec("mkdocstrings") is None, reason="mkdocs is not installed here")
DOCS = REPOSITORY / "docs"
# A request of the build to the network fails.
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built like `make docs`: a warning is an error, a broken link is a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | NO_NETWORK, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return folder


def test_no_page_loads_anything_from_another_host(site):
    """No fonts, scripts or pictures."""
    loaded = re.compile(r"<(?:script|img|link|iframe)[^>]*(?:src|href)=\"?(https?:)?//[^\s>]+")
    found = {page.name: loaded.findall(page.read_text()) for page in site.rglob("*.html")}

    assert len(found) > 10
    assert {} == {name: hosts for name, hosts in found.items() if hosts}


def test_the_navigation_lists_every_page(site):
    start = (site / "index.html").read_text()
    pages = {page.relative_to(DOCS).with_suffix(".html").as_posix() for page in DOCS.rglob("*.md")}

    assert len(pages) > 15
    assert set() == {page for page in pages if f'href="{page}"' not in start} - {"index.html"}, "add it to mkdocs.yml"


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("start.html", ["list_names", "durable", "max_file_size"]),
        ("wait.html", ["poke_interval", "deferrable", "end_time"]),
        ("deliver.html", ["s3_key_prefix", "max_concurrency", "file_index"]),
        ("watch.html", ["segment_id", "since"]),
        ("hook.html", ["get_export", "alist_exports", "contact_count"]),
        ("emulator.html", ["ready_after", "wrong_length", "retry_after", "/_emulator/faults"]),
    ],
)
def test_parameters_are_taken_from_the_docstrings(site, page, words):
    text = (site / "reference" / page).read_text()

    assert [] == [word for word in words if word not in text]


def test_no_docstring_is_shown_in_another_markup(site):
    """Sphinx markup would be shown as text."""
    pages = {page.name: page.read_text() for page in (site / "reference").glob("*.html")}

    assert [] == [name for name, text in pages.items() if re.search(r"={6,}|<p>[^<]*::</p>|:class:|:param", text)]


def test_defaults_are_values(site):
    """Not names of constants."""
    pages = {page.name: page.read_text() for page in (site / "reference").glob("*.html")}

    assert [] == [name for name, text in pages.items() if re.search(r"<code>[^/]*(_DEFAULTS|MARKETING)", text)]
    assert "8388608" in pages["deliver.html"]


def test_every_page_shows_repository_version_and_logo(site):
    """The address is that of pyproject.toml."""
    [address] = re.findall(r'(?m)^Repository = "(.+)"', (REPOSITORY / "pyproject.toml").read_text())
    pages = {page.name: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}

    for shown in (address, f">{__version__}<", "images/logo.svg"):
        assert [] == [name for name, text in pages.items() if shown not in text], shown
