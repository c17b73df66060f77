"""Translates what requests and httpx raise into the exceptions of this package.

Their texts are dropped, because they may contain URLs with a query.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import (
    SendGridAuthError,
    SendGridError,
    SendGridServerError,
    SendGridUnavailableError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.messages import Request
from airflow_provider_sendgrid.exports.sending import SendState, is_known_error

# How urllib3 and httpx report that a proxy refused CONNECT.
_REFUSED_TUNNEL = re.compile(r"(?:Tunnel connection failed: |^)([1-9][0-9]{2})\b")


def error_from_exception(
    error: BaseException,
    request: Request,
    connection: SendGridConnection,
    send_state: SendState,
    response_seconds: float,
) -> SendGridError:
    """The exception for a request without a readable response.

    Args:
        error: raised by the HTTP client, or a timeout.
        request: that failed.
        connection: that it was sent with.
        send_state: whether sending began; cancelled here.
        response_seconds: the time limit of the whole response, for the message.
    """
    operation = f"{request.method} {urlsplit(request.target).path} at {connection.base_url}"
    kind = type(error).__name__
    send_state.cancel()
    if not send_state.may_have_been_accepted(error):
        return _connection_error(error, operation)
    is_start = request.method == "POST"
    if not is_known_error(type(error)):
        return SendGridServerError(
            f"{operation}: the response cannot be read ({kind}). Check the connection's host and proxy: this is not a "
            "response of SendGrid's API.",
            may_have_been_accepted=is_start,
        )
    return SendGridUnavailableError(
        f"{operation}: the connection broke or the response timed out ({kind}, timeout "
        f"{connection.timeout_seconds:g} s, {response_seconds:g} s in all). Check that the host "
        "answers from here, or raise the connection's timeout.",
        may_have_been_accepted=is_start,
    )


def _connection_error(error: BaseException, operation: str) -> SendGridError:
    """The exception for a request that was never sent."""
    kind = type(error).__name__
    refused = _REFUSED_TUNNEL.search(str(error)) if kind == "ProxyError" else None
    if refused is None:
        return SendGridUnavailableError(
            f"{operation}: no connection ({kind}). Check the host, the network's rules, the proxy and its TLS."
        )
    message = f"{operation}: no connection (the proxy refused the tunnel with {refused[1]})."
    if refused[1] == "407":
        refusal = SendGridAuthError(
            f"{message} Check the user and the password in the proxy's URL: in the connection's proxy, or in "
            "HTTPS_PROXY.",
            status_code=407,
        )
        refusal.is_of_proxy = True
        return refusal
    return SendGridUnavailableError(f"{message} Check that the proxy allows this host and port, and reaches it.")
