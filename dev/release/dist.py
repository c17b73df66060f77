"""`make dist`: builds sdist and wheel twice, compares and checks them, and installs the wheel.

    python -m dev.release.dist [--tag v0.1.0]

Both builds use the files tracked by git, in different folders, so that neither untracked files nor paths get in; their
times are those of the last commit. Writes sdist and wheel to `dist/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

from dev import REPOSITORY
from dev.environments.virtualenv import say, uv_environment

DIST = REPOSITORY / "dist"
PACKAGE = "airflow_provider_sendgrid"
PLACEHOLDER = "OWNER"
IN_EVERY_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", f"{PACKAGE}/py.typed")
PROVIDER_SCRIPT = """
import json
from importlib.metadata import entry_points, version
[entry] = [each for each in entry_points(group="apache_airflow_provider") if each.name == "provider_info"]
print(json.dumps({"info": entry.load()(), "version": version("airflow-provider-sendgrid")}))
"""


def main() -> None:
    tag = arguments().tag
    with tempfile.TemporaryDirectory() as folder:
        source = copy_tracked_files(Path(folder) / "source")
        first, second = (build(source, Path(folder) / name) for name in ("first", "second"))
        check_builds_match(first, second)
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(first, DIST)
        say("built twice, with identical bytes:")
        for name, digest in digests(DIST).items():
            say(f"  {digest}  {name}  {(DIST / name).stat().st_size:,} bytes")
        [wheel], [sdist] = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
        version = source_version()
        check_wheel(wheel, version)
        check_sdist(sdist)
        check_tag(tag, version)
        check_publisher(wheel, tag)
        twine_check(wheel, sdist)
        check_installation(wheel, Path(folder) / "empty", version)
    say(f"airflow-provider-sendgrid {version} can be released")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.release.dist", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tag", help="the tag of the release: v and the version")
    return parser.parse_args()


def copy_tracked_files(folder: Path) -> Path:
    for name in filter(None, git("ls-files", "-z").split("\0")):
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def build(source: Path, folder: Path) -> Path:
    """Build sdist and wheel from a copy of the source; return their folder."""
    shutil.copytree(source, folder / "source")
    built = folder / "dist"
    environment = uv_environment(Path(sys.executable)) | {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct").strip()}
    run([uv(), "build", "--quiet", "--out-dir", str(built), str(folder / "source")], environment)
    for file in built.glob(".*"):  # uv writes a .gitignore
        file.unlink()
    return built


def check_builds_match(first: Path, second: Path) -> None:
    if digests(first) != digests(second):
        sys.exit(f"Two builds of the same files differ:\n{digests(first)}\n{digests(second)}")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def source_version() -> str:
    found = re.search(r'(?m)^__version__ = "([^"]+)"$', (REPOSITORY / PACKAGE / "__init__.py").read_text())
    if found is None:
        sys.exit(f"{PACKAGE}/__init__.py has no version")
    return found[1]


def check_wheel(wheel: Path, version: str) -> None:
    """The wheel has every file of the package, its licence and metadata, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    metadata = f"{PACKAGE}-{version}.dist-info"
    tracked = {name for name in git("ls-files", PACKAGE).splitlines() if (REPOSITORY / name).exists()}
    extra = {f"{metadata}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    expect("the wheel", names, tracked | extra)
    say(f"the wheel holds the {len(tracked)} files of the package, py.typed included, and {len(extra)} of metadata")


def check_sdist(sdist: Path) -> None:
    """The sdist has the required files, and none that git does not track."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    known = set(git("ls-files").splitlines()) | {"PKG-INFO"}
    missing = set(IN_EVERY_SDIST) - names
    if missing or names - known:
        sys.exit(f"The sdist lacks {sorted(missing)}; git does not track {sorted(names - known)}")
    say(f"the sdist holds {len(names)} files, all tracked by git")


def check_tag(tag: str | None, version: str) -> None:
    if tag is not None and tag != f"v{version}":
        sys.exit(f"The tag is {tag}, the version {version}: {PACKAGE}/__init__.py and the tag must agree")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    if tag is not None and f"## [{version}]" not in changelog:
        sys.exit(f"CHANGELOG.md has no section of version {version}")


def check_publisher(wheel: Path, tag: str | None) -> None:
    """The wheel's metadata has no placeholder for authors and URLs."""
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    header = archive.read(metadata).decode().partition("\n\n")[0]
    unfilled = [line for line in header.splitlines() if PLACEHOLDER in line]
    if unfilled:
        message = f"Replace {PLACEHOLDER} in pyproject.toml before the first release: {unfilled}"
        sys.exit(message) if tag else say(message)


def twine_check(*files: Path) -> None:
    output = run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)])
    say(f"twine check --strict: {output.count('PASSED')} passed")


def check_installation(wheel: Path, folder: Path, version: str) -> None:
    """The wheel alone, in an empty environment: Airflow can read the provider's metadata without dependencies."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run([uv(), "pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel)])
    found = json.loads(run([str(python), "-I", "-c", PROVIDER_SCRIPT]))
    if (found["version"], found["info"]["package-name"]) != (version, "airflow-provider-sendgrid"):
        sys.exit(f"The installed wheel has the metadata {found}")
    emulator = run([str(python), "-I", "-m", f"{PACKAGE}.emulator", "--help"])
    if "--list" not in emulator:
        sys.exit(f"The installed emulator does not run: {emulator}")
    say("installed alone in an empty environment: the entry point is found, the emulator runs")


def expect(what: str, names: set[str], expected: set[str]) -> None:
    if names != expected:
        sys.exit(f"{what}: missing {sorted(expected - names)}; unexpected {sorted(names - expected)}")


def uv() -> str:
    local = Path(sys.executable).with_name("uv")
    return str(local) if local.exists() else "uv"


def git(*command: str) -> str:
    return run(["git", "-C", str(REPOSITORY), *command])


def run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment or os.environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"Failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
