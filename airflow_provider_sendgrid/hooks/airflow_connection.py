"""Reads a SendGrid connection from Airflow, and describes its form to Airflow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from airflow_provider_sendgrid._compat import AirflowNotFoundException
from airflow_provider_sendgrid.exceptions import SendGridUnavailableError, redact
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.provider_info import CONNECTION_TYPE


def read_connection(name: str, get_connection: Callable[[str], Any]) -> SendGridConnection:
    """Read and parse an Airflow connection.

    Args:
        name: id of the connection.
        get_connection: Airflow's look-up.

    Raises:
        SendGridUnavailableError: the connection does not exist, or the secrets backend did not return it.
        ValueError: it cannot be parsed, or a setting is wrong.
    """
    found = _find(name, get_connection)
    return SendGridConnection.from_fields(
        name=name,
        password=found.password,
        host=found.host,
        port=found.port,
        schema=found.schema,
        extra=_parse_extra(name, found),
    )


def form_widgets() -> dict[str, Any]:
    """The form's fields for the settings in extra; empty where the packages of Airflow 2's form are not installed."""
    try:
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from wtforms import IntegerField, StringField
        from wtforms.validators import Optional, any_of
    except ImportError:
        return {}
    widgets = {}
    for name, field in CONNECTION_TYPE["conn-fields"].items():
        schema = field["schema"]
        widgets[name] = (IntegerField if "integer" in schema["type"] else StringField)(
            field["label"],
            description=field["description"],
            validators=[Optional(), *([any_of(schema["enum"])] if "enum" in schema else [])],
            widget=BS3TextFieldWidget(),
        )
    return widgets


def _find(name: str, get_connection: Callable[[str], Any]) -> Any:
    variable = f"AIRFLOW_CONN_{name.upper()}"
    try:
        return get_connection(name)
    except AirflowNotFoundException:
        if not os.environ.get(variable):
            raise SendGridUnavailableError(
                f"There is no connection {name!r}, or Airflow's secrets backend did not return it: add one of type "
                "'sendgrid', with the API key as its password, in Airflow or in its secrets backend, or name "
                "another in sendgrid_conn_id. If it exists, look for the secrets backend's error in the log."
            ) from None
        problem = f"the environment variable {variable}"  # Airflow logs the error and searches elsewhere
    except (ValueError, TypeError, AttributeError) as error:
        problem = type(error).__name__
    except Exception as error:
        raise SendGridUnavailableError(
            f"Connection {name!r} could not be read ({type(error).__name__}). Look for the secrets backend's "
            "error in the log, and run the task again."
        ) from error
    raise ValueError(
        f"Connection {name!r} cannot be parsed ({problem}). It must be a JSON object such as "
        '{"conn_type": "sendgrid", "password": "SG.…"}, or a URI whose parts are percent-encoded.'
    )


def _parse_extra(name: str, connection: Any) -> dict[str, Any]:
    """Parse extra. Airflow's `extra_dejson` masks the secrets in it, but reads invalid JSON as empty."""
    try:
        extra = json.loads(connection.extra or "{}", object_pairs_hook=lambda pairs: _refuse_duplicates(name, pairs))
    except _DuplicateKeyError:
        raise
    except (ValueError, RecursionError):
        extra = connection.extra
    if extra is None:
        return {}
    if not isinstance(extra, dict):
        raise ValueError(  # noqa: TRY004 - a setting is wrong, not an argument
            f'Connection {name!r}: extra must be a JSON object, such as {{"region": "eu"}}.'
        )
    connection.extra_dejson  # noqa: B018 - masks
    return extra


class _DuplicateKeyError(ValueError):
    """A JSON object holds a key twice; `json` would take the last value, even null."""


def _refuse_duplicates(name: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKeyError(f"Connection {name!r}: extra has the key {redact(repeated)!r} twice; remove one.")
    return found
