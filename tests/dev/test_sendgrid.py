"""The demo's connection to SendGrid."""

import pytest

from airflow_provider_sendgrid.exports.connection import SendGridConnection
from dev.services.sendgrid import connection_to


@pytest.mark.parametrize("url", ["http://127.0.0.1:8025", "https://api.sendgrid.com"])
def test_the_connection_has_host_and_port(url):
    """Airflow's "Test" button sends port 0 for none, and the stored key is only used with the stored port."""
    connection = connection_to(url, "SG.a.key")
    fields = {name: connection[name] for name in ("host", "port", "password")}

    assert connection["port"]
    assert url == SendGridConnection.from_fields(name="sendgrid_default", **fields).base_url
