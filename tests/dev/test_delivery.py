"""Counting the contacts of a delivery."""

import io

import pytest

from dev.demo.delivery import Delivery, count_contacts
from dev.services.s3 import S3


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("a.csv.gz", '"EMAIL","NOTES"\r\n"a@example.com","two\nlines"\r\n"b@example.com",""\r\n', 2),
        ("a.csv", '"EMAIL","NOTES"\n', 0),
        ("a.csv", "", 0),
        ("a.json.gz", '{"email": "a@example.com"}\n{"email": "b@example.com"}\n', 2),
    ],
)
def test_contacts_are_rows_and_not_lines(key, text, expected):
    assert expected == count_contacts(key, io.StringIO(text, newline=""))


def test_all_objects_of_a_delivery_have_one_prefix():
    delivery = Delivery(S3("lake"), ["s3://lake/contacts/ds=2026-01-01/e-00001-of-00002.csv.gz"])

    assert delivery.prefix == "contacts/ds=2026-01-01/"


def test_the_real_s3_has_no_credentials_in_its_connection():
    assert S3("lake").connection == {"conn_type": "aws"}
    assert S3("lake", "http://127.0.0.1:1").connection["extra"]["endpoint_url"] == "http://127.0.0.1:1"
