"""A wrong clock: environment variables that shift the time of a program, by libfaketime."""

from __future__ import annotations

from pathlib import Path

# Debian has one folder for each architecture; Fedora, /usr/lib64/faketime.
LIBRARIES = ("usr/lib/*/faketime/libfaketimeMT.so.1", "usr/lib*/faketime/libfaketimeMT.so.1")
HOW_TO_INSTALL = (
    "libfaketime was not found below /usr/lib. On Debian or Ubuntu: apt-get install libfaketime. "
    "On Fedora: dnf install libfaketime."
)


def shifted_clock(seconds: int, root: Path = Path("/")) -> dict[str, str]:
    """Variables that shift the wall clock of a program and its children; none for 0 seconds.

    The monotonic clock is not shifted, so timeouts and sleeps keep their length.

    Raises:
        RuntimeError: libfaketime is not installed; the message names the package.
    """
    if not seconds:
        return {}
    library = next((path for pattern in LIBRARIES for path in sorted(root.glob(pattern))), None)
    if library is None:
        raise RuntimeError(HOW_TO_INSTALL)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": str(Path(__file__).parent),  # for sitecustomize.py
    }
