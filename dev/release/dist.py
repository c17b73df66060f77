"""`make dist`: what is to be released, built twice and compared, looked into, and installed where nothing else is.

    python -m dev.release.dist [--tag v0.1.0]

Both builds start from the files that git knows, in two folders, so that neither a forgotten file nor the path of a
folder gets in; their times are those of the last commit. Leaves sdist and wheel in `dist/`.
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

from dev.environment import REPOSITORY, say, uv_environment

DIST = REPOSITORY / "dist"
PACKAGE = "airflow_provider_sendgrid"
PLACEHOLDER = "OWNER"
IN_EVERY_SDIST = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "mkdocs.yml", f"{PACKAGE}/py.typed")
ASK_FOR_THE_PROVIDER = """
import json
from importlib.metadata import entry_points, version
[entry] = [each for each in entry_points(group="apache_airflow_provider") if each.name == "provider_info"]
print(json.dumps({"info": entry.load()(), "version": version("airflow-provider-sendgrid")}))
"""


def main() -> None:
    tag = arguments().tag
    with tempfile.TemporaryDirectory() as folder:
        source = copy_of_what_git_knows(Path(folder) / "source")
        first, second = (build(source, Path(folder) / name) for name in ("one", "another"))
        same_twice(first, second)
        shutil.rmtree(DIST, ignore_errors=True)
        shutil.copytree(first, DIST)
        say("built twice, byte for byte the same:")
        for name, digest in digests(DIST).items():
            say(f"  {digest}  {name}  {(DIST / name).stat().st_size:,} bytes")
        [wheel], [sdist] = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
        version = version_of_the_source()
        check_wheel(wheel, version)
        check_sdist(sdist)
        check_tag(tag, version)
        check_publisher(wheel, tag)
        twine_check(wheel, sdist)
        check_installation(wheel, Path(folder) / "empty", version)
    say(f"airflow-provider-sendgrid {version} is fit to be released")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m dev.release.dist", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tag", help="the tag that is released; must be v and the version")
    return parser.parse_args()


def copy_of_what_git_knows(folder: Path) -> Path:
    for name in filter(None, git("ls-files", "-z").split("\0")):
        if (REPOSITORY / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    return folder


def build(source: Path, folder: Path) -> Path:
    """Builds both from a copy of the source; answers the folder with them."""
    shutil.copytree(source, folder / "source")
    built = folder / "dist"
    environment = uv_environment(Path(sys.executable)) | {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct").strip()}
    run([uv(), "build", "--quiet", "--out-dir", str(built), str(folder / "source")], environment)
    for other in built.glob(".*"):  # uv leaves a .gitignore
        other.unlink()
    return built


def same_twice(first: Path, second: Path) -> None:
    if digests(first) != digests(second):
        sys.exit(f"Two builds of the same files differ:\n{digests(first)}\n{digests(second)}")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def version_of_the_source() -> str:
    """From the one place where it stands."""
    found = re.search(r'(?m)^__version__ = "([^"]+)"$', (REPOSITORY / PACKAGE / "__init__.py").read_text())
    if found is None:
        sys.exit(f"{PACKAGE}/__init__.py names no version")
    return found[1]


def check_wheel(wheel: Path, version: str) -> None:
    """The package alone and all of it, typed, with its licence and its door."""
    names = set(zipfile.ZipFile(wheel).namelist())
    about = f"{PACKAGE}-{version}.dist-info"
    tracked = {name for name in git("ls-files", PACKAGE).splitlines() if (REPOSITORY / name).exists()}
    extra = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    expect("the wheel", names, tracked | extra)
    say(f"the wheel holds the {len(tracked)} files of the package, py.typed among them, and {len(extra)} about it")


def check_sdist(sdist: Path) -> None:
    """All that is tested and read, and nothing that git does not know."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    known = set(git("ls-files").splitlines()) | {"PKG-INFO"}
    missing = set(IN_EVERY_SDIST) - names
    if missing or names - known:
        sys.exit(f"The sdist lacks {sorted(missing)}; git does not know {sorted(names - known)}")
    say(f"the sdist holds {len(names)} files, all known to git")


def check_tag(tag: str | None, version: str) -> None:
    if tag is not None and tag != f"v{version}":
        sys.exit(f"The tag is {tag}, the version {version}: {PACKAGE}/__init__.py or the tag must be mended")
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    if tag is not None and f"## [{version}]" not in changelog:
        sys.exit(f"CHANGELOG.md has no section of version {version}")


def check_publisher(wheel: Path, tag: str | None) -> None:
    """Authors and URLs in the wheel's metadata are real."""
    archive = zipfile.ZipFile(wheel)
    [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    header = archive.read(metadata).decode().partition("\n\n")[0]
    unfilled = [line for line in header.splitlines() if PLACEHOLDER in line]
    if unfilled:
        message = f"Replace {PLACEHOLDER} in pyproject.toml before the first release: {unfilled}"
        sys.exit(message) if tag else say(message)


def twine_check(*files: Path) -> None:
    told = run([sys.executable, "-m", "twine", "check", "--strict", *map(str, files)])
    say(f"twine check --strict: {told.count('PASSED')} passed")


def check_installation(wheel: Path, folder: Path, version: str) -> None:
    """In an environment with nothing in it, the wheel alone: what Airflow reads at its start needs no dependency."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run([uv(), "pip", "install", "--quiet", "--no-deps", "--python", str(python), str(wheel)])
    told = json.loads(run([str(python), "-I", "-c", ASK_FOR_THE_PROVIDER]))
    if (told["version"], told["info"]["package-name"]) != (version, "airflow-provider-sendgrid"):
        sys.exit(f"The installed wheel says of itself: {told}")
    emulator = run([str(python), "-I", "-m", f"{PACKAGE}.emulator", "--help"])
    if "--list" not in emulator:
        sys.exit(f"The installed emulator does not run: {emulator}")
    say("installed alone in an empty environment: the entry point is found, the emulator runs")


def expect(what: str, names: set[str], expected: set[str]) -> None:
    if names != expected:
        sys.exit(f"In {what} are missing: {sorted(expected - names)}; too many: {sorted(names - expected)}")


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else "uv"


def git(*command: str) -> str:
    return run(["git", "-C", str(REPOSITORY), *command])


def run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environment or os.environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"This failed: {' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
