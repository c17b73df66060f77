"""The emulator from the command line: `python -m airflow_provider_sendgrid.emulator`.

Knows the options and the output. Must not know anything else.
"""

from __future__ import annotations

import argparse
import signal
import threading

from .audience import FAMILIES, NewAudience
from .emulator import DEFAULT_API_KEY, Emulator
from .recording import RecordedRequest
from .settings import Settings

_LIST = "a list that replaces the default ones; outcome: ready, failure, stuck, expired, unknown:<status>"


def main(arguments: list[str] | None = None) -> None:
    """Run until interrupted."""
    options = _parser().parse_args(arguments)
    interrupted = _interrupt_event()
    with _emulator(options) as emulator:
        for each in options.list:
            for family in FAMILIES:
                emulator.add_list(each.name, contacts=each.contacts, family=family, outcome=each.outcome)
        print(_startup_text(emulator), flush=True)
        interrupted.wait()
    print("closed")


def _emulator(options: argparse.Namespace) -> Emulator:
    limit, window = options.rate_limit
    return Emulator(
        Settings(
            ready_after=options.ready_after,
            url_lifetime=options.url_lifetime,
            rate_limit=limit,
            rate_limit_window=window,
            contacts_per_file=options.max_contacts_per_file,
            bytes_per_second=options.max_bytes_per_second,
            bytes_per_connection=options.max_bytes_per_connection,
        ),
        host=options.host,
        port=options.port,
        files_port=options.files_port,
        api_key=options.api_key,
        seed=options.seed,
        contacts=options.contacts,
        populate=not options.list,
        observe=_print_request if options.verbose else lambda _: None,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_sendgrid.emulator",
        description="SendGrid's contact-export API on this machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8025, help="port of the API; 0 takes a free one")
    add("--files-port", type=int, default=0, help="port of the file storage; 0 takes a free one")
    add("--api-key", default=DEFAULT_API_KEY, help="a key with every scope")
    add("--seed", type=int, default=0, help="determines the contacts")
    add("--contacts", type=int, default=0, help="minimum number of contacts in the account")
    add("--list", type=_list_option, action="append", default=[], metavar="NAME=COUNT[:OUTCOME]", help=_LIST)
    add("--ready-after", type=float, default=3.0, metavar="SECONDS", help="time until an export is ready")
    add("--url-lifetime", type=int, default=300, metavar="SECONDS", help="time until a file URL expires")
    add("--rate-limit", type=_rate_limit, default=(0, 60.0), metavar="LIMIT/SECONDS", help="e.g. 10/60")
    add("--max-contacts-per-file", type=int, default=0, metavar="N", help="contacts per file; 0 = limited by size only")
    add("--max-bytes-per-second", type=int, default=0, metavar="N", help="speed of a file connection; 0 = unlimited")
    add("--max-bytes-per-connection", type=int, default=0, metavar="N", help="close it after so many bytes; 0 = never")
    add("--verbose", action="store_true", help="print a line for each request")
    return parser


def _list_option(text: str) -> NewAudience:
    name, _, rest = text.rpartition("=")
    count, _, outcome = rest.partition(":")
    if not name or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COUNT[:OUTCOME]")
    try:
        return NewAudience(name, int(count), outcome=outcome or "ready")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _rate_limit(text: str) -> tuple[int, float]:
    limit, _, seconds = text.partition("/")
    try:
        return int(limit), float(seconds or 60)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LIMIT/SECONDS") from None


def _startup_text(emulator: Emulator) -> str:
    lists = [
        f"  {family:<10} {each.id!s:<36}  {each.name} ({each.contacts:,} contacts, {each.outcome})"
        for family in FAMILIES
        for each in emulator.lists(family)
    ]
    return "\n".join(
        [
            f"API    {emulator.url}",
            f"files  {emulator.files_url}",
            f"key    {emulator.api_key}",
            f"export AIRFLOW_CONN_SENDGRID_DEFAULT='{emulator.connection_json()}'",
            "lists",
            *lists,
        ]
    )


def _print_request(entry: RecordedRequest) -> None:
    print(
        f"{entry.listener:<5} {entry.status} {entry.method} {entry.path} {entry.headers.get('range', '')}",
        flush=True,
    )


def _interrupt_event() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set."""
    interrupted = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: interrupted.set())
    return interrupted


if __name__ == "__main__":
    main()
