"""Creates the environment of the benchmarks: this package, Airflow and the other programs.

The aws command has its own environment, because its pins contradict Airflow's. Without it, that program is missing.

    python3 -m benchmarks.environment .lab/bench --airflow 3.3.1
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from dev.environments.virtualenv import EnvironmentSpec, create, create_venv, say

AWS_FOLDER = "bench-aws"


def make_aws(folder: Path) -> None:
    python = create_venv(folder, Path(sys.executable))
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "awscli"]
    if subprocess.run(command, check=False).returncode != 0:
        say("awscli could not be installed: there is no aws command")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--airflow", required=True, metavar="VERSION")
    options = parser.parse_args()
    make_aws(options.folder.parent / AWS_FOLDER)
    create(EnvironmentSpec(options.folder, options.airflow, group="bench"))


if __name__ == "__main__":
    main()
