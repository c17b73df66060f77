"""The connection's form in a real browser, with screenshots for the documentation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from airflow_provider_sendgrid.emulator import Emulator
from dev.airflow.instance import AirflowInstance
from dev.demo.stack import EXAMPLE_DAGS
from dev.services.processes import end_on_sigterm
from dev.services.waiting import wait_until
from tests.support.browser import CHROMIUM, browser_page, log_in_to_airflow_2, save_screenshot

CONNECTION_ID = "sendgrid_default"
RESULT = "The API key works; it may export: marketing, legacy."

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser: apt-get install chromium")


@pytest.fixture(scope="module")
def sendgrid():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """Only Airflow's UI, with the "Test" button, which is hidden by default."""
    end_on_sigterm()
    settings = {"AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
    home = tmp_path_factory.mktemp("browser") / "airflow"
    with AirflowInstance(Path(sys.executable), home, EXAMPLE_DAGS, environment=settings) as airflow:
        airflow.migrate()
        pages = next(iter(airflow.components.values()))
        pages.start()
        wait_until("the pages", airflow.api.health, seconds=120, evidence=pages.tail)
        yield airflow


@pytest.fixture(scope="module")
def page():
    with browser_page(1100, 960) as page:
        yield page


def test_the_form_is_filled_saved_and_tested(airflow, sendgrid, page):
    if airflow.config.is_airflow_2:
        fill_test_and_save_in_airflow_2(airflow, sendgrid, page)
    else:
        fill_save_and_test_in_airflow_3(airflow, sendgrid, page)

    stored = airflow.api.request("GET", f"/connections/{CONNECTION_ID}")
    assert ("sendgrid", sendgrid.url) == (stored["conn_type"], stored["host"])
    assert '"region": "global"' in stored["extra"]


def fill_test_and_save_in_airflow_2(airflow, sendgrid, page):
    page.set_viewport_size({"width": 1100, "height": 1400})
    log_in_to_airflow_2(page, airflow.config.url)
    page.goto(f"{airflow.config.url}/connection/add")
    page.wait_for_load_state("networkidle")
    page.fill("#conn_id", CONNECTION_ID)
    page.locator(".select2-selection").click()
    page.locator(".select2-results__option", has_text="SendGrid").click()
    for field in ("login", "schema", "port"):
        expect(page.locator(f"#{field}")).to_be_hidden()
    expect(page.get_by_text("API key", exact=True)).to_be_visible()
    page.fill("#host", sendgrid.url)
    page.fill("#password", sendgrid.api_key)
    page.fill("[id$=sendgrid__region]", "global")
    page.evaluate("window.scrollTo(0, 0)")
    save_screenshot(page, "connection-form-airflow-2")
    page.click("#test-connection")
    page.evaluate("window.scrollTo(0, 0)")
    expect(page.get_by_text(RESULT)).to_be_visible()
    save_screenshot(page, "connection-test-airflow-2")
    page.locator("button[type=submit]", has_text="Save").click()
    expect(page.get_by_text("Added Row")).to_be_visible()


def fill_save_and_test_in_airflow_3(airflow, sendgrid, page):
    page.goto(f"{airflow.config.url}/connections")
    page.get_by_role("button", name="Add Connection").first.click()
    form = page.get_by_role("dialog")
    form.locator("input[name=connection_id]").fill(CONNECTION_ID)
    form.get_by_role("combobox").first.click()
    page.keyboard.type("SendGrid")
    page.keyboard.press("Enter")
    form.locator("input[name=host]").fill(sendgrid.url)
    form.locator("input[name=password]").fill(sendgrid.api_key)
    for field in ("login", "schema", "port"):
        expect(form.locator(f"[name={field}]")).to_have_count(0)
    expect(form.get_by_text("API key", exact=True)).to_be_visible()
    save_screenshot(page, "connection-form-airflow-3")
    form.get_by_text("Extra Fields", exact=True).click()
    form.get_by_role("combobox").nth(1).click()
    expect(page.get_by_role("option", name="eu")).to_be_visible()
    save_screenshot(page, "connection-fields-airflow-3")
    page.get_by_role("option", name="global").click()
    form.get_by_role("button", name="Save").click()
    expect(page.get_by_text("successfully created")).to_be_visible()
    # Airflow 3.3's button sends port 0 for none; then the stored key is not used.
    airflow.api.request("PATCH", f"/connections/{CONNECTION_ID}?update_mask=port", stored_with_port(airflow))
    page.set_viewport_size({"width": 1100, "height": 560})
    page.goto(f"{airflow.config.url}/connections")
    with page.expect_response("**/connections/test") as response_info:
        page.get_by_label("Test Connection").click()
    assert response_info.value.json()["status"] is True
    assert RESULT in response_info.value.json()["message"]
    expect(page.get_by_text("Test Connection Successful")).to_be_visible()
    save_screenshot(page, "connection-test-airflow-3")


def stored_with_port(airflow):
    stored = airflow.api.request("GET", f"/connections/{CONNECTION_ID}")
    return {"connection_id": CONNECTION_ID, "conn_type": stored["conn_type"], "port": 443}
