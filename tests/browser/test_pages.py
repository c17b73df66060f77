"""An export in Airflow's UI, in a real browser: graph, log, links and asset, with screenshots for the documentation."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from airflow_provider_sendgrid.emulator import Emulator, Settings
from dev.airflow.instance import AirflowInstance
from dev.demo.stack import EXAMPLE_DAGS, NO_SCHEDULES, temporary_folder
from dev.services.processes import end_on_sigterm
from dev.services.s3 import amazon_s3
from dev.services.waiting import wait_until
from tests.support.browser import CHROMIUM, browser_page, log_in_to_airflow_2, save_screenshot
from tests.support.clock import FakeClock

DAG_ID = "sendgrid_contacts_to_s3"
SENSOR, DELIVERY = "wait_for_export", "store"
HELD_SECONDS = 7200
# Three parts of a file, each of which takes longer than the interval of progress lines.
CONTACTS = 300_000
BYTES_PER_SECOND = 500_000
OBJECTS = "https://console.aws.amazon.com/s3/buckets/lake?prefix=sendgrid%2Fcontacts%2Frun%3D"
EXPORTS = "https://mc.sendgrid.com/contacts/exports"

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser: apt-get install chromium")


@dataclass
class Run:
    """A run of the example DAG."""

    airflow: Any
    clock: FakeClock
    run_id: str

    @property
    def is_airflow_2(self):
        return self.airflow.config.is_airflow_2

    def state(self, task_id):
        return {task.task_id: task.state for task in self.airflow.api.task_instances(DAG_ID, self.run_id)}.get(task_id)

    def url(self, task_id="", tab=""):
        """The URL of the run, of one of its tasks, or of a tab."""
        dag, run = f"{self.airflow.config.url}/dags/{DAG_ID}", quote(self.run_id, safe="")
        if self.is_airflow_2:
            return f"{dag}/grid?dag_run_id={run}&tab={tab or 'graph'}" + (f"&task_id={task_id}" if task_id else "")
        return f"{dag}/runs/{run}" + (f"/tasks/{task_id}" if task_id else "") + (f"/{tab}" if tab == "details" else "")


@pytest.fixture(scope="module")
def run():
    """Start a run, and wait until its sensor is deferred."""
    end_on_sigterm()
    clock = FakeClock(is_running=True)
    settings = Settings(ready_after=HELD_SECONDS, bytes_per_second=BYTES_PER_SECOND)
    with temporary_folder("pages") as folder:
        dags_folder = folder / "dags"
        dags_folder.mkdir()
        (dags_folder / f"{DAG_ID}.py").symlink_to(EXAMPLE_DAGS / f"{DAG_ID}.py")
        with (
            Emulator(settings, contacts=CONTACTS, clock=clock) as sendgrid,
            amazon_s3("lake", folder) as s3,
            AirflowInstance(
                Path(sys.executable),
                folder / "airflow",
                dags_folder,
                environment={"SENDGRID_EXPORT_BUCKET": s3.bucket, **NO_SCHEDULES},
            ) as airflow,
        ):
            airflow.up({"sendgrid_default": json.loads(sendgrid.connection_json()), "aws_default": s3.connection})
            started = Run(airflow, clock, airflow.trigger(DAG_ID))
            wait_until("the wait deferred", lambda: started.state(SENSOR) == "deferred", seconds=300)
            yield started


@pytest.fixture(scope="module")
def page(run):
    with browser_page(1280, 640) as page:
        if run.is_airflow_2:
            log_in_to_airflow_2(page, run.airflow.config.url)
        yield page


@pytest.fixture(scope="module")
def name(run):
    """The name of a screenshot."""
    return lambda what: f"{what}-airflow-{2 if run.is_airflow_2 else 3}"


def test_the_graph_shows_a_deferred_wait(run, page, name):
    if run.is_airflow_2:  # its page has more above the graph
        page.set_viewport_size({"width": 1280, "height": 860})
    page.goto(run.url())
    if not run.is_airflow_2:
        page.get_by_label("Show Graph (Press g)").click()
    expect(page.get_by_text("deferred").last).to_be_visible()
    expect(page.get_by_text("SendGridToS3Operator").last).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(3_000)  # until the graph is laid out
    save_screenshot(page, name("graph"))
    if not run.is_airflow_2:  # Airflow remembers the view
        page.get_by_label("Show Grid (Press g)").click()


def test_the_log_shows_progress_and_outcome(run, page, name):
    run.clock.advance(HELD_SECONDS)
    assert "success" == run.airflow.wait_for_run(DAG_ID, run.run_id, seconds=600)

    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(run.url(DELIVERY, "logs"))
    expect(page.get_by_text("Delivered SendGrid export").first).to_be_visible(timeout=180_000)
    if run.is_airflow_2:
        page.get_by_text("Wrap", exact=True).click()
    else:
        page.keyboard.press("w")  # wraps lines, too
    page.wait_for_timeout(1_500)
    expect(page.get_by_text("s left").first).to_be_visible()
    save_screenshot(page, name("log"))


def test_the_links_lead_to_the_exports_and_the_objects(run, page, name):
    page.set_viewport_size({"width": 1280, "height": 640})
    page.goto(run.url(DELIVERY, "details"))
    for link, url in (("SendGrid exports", EXPORTS), ("Delivered objects", OBJECTS)):
        found = page.get_by_role("link", name=link)
        expect(found).to_be_visible()
        assert found.get_attribute("href").startswith(url)
    page.wait_for_timeout(1_000)
    save_screenshot(page, name("links"))


def test_the_asset_lists_the_deliveries(run, page):
    """As an event of the run."""
    if run.is_airflow_2:
        pytest.skip("Airflow 2 shows datasets in a graph")
    page.goto(f"{run.airflow.config.url}/assets")
    page.get_by_role("link", name="s3://lake/sendgrid/contacts").first.click()
    expect(page.get_by_role("heading", name="1 Asset Event")).to_be_visible()
    expect(page.get_by_role("link", name=DAG_ID).last).to_be_visible()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(3_000)
    save_screenshot(page, "asset-airflow-3")
