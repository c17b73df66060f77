"""The environment variables with which one whole Airflow of any version runs in a folder of its own, fast."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dev.services.ports import LOCALHOST, free_port

ADMIN = "admin"


def random_key(bytes_: int = 32) -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(bytes_)).decode()


@dataclass(frozen=True)
class Place:
    """Where one Airflow lives. Its processes share the keys, else they would not believe one another."""

    version: str
    home: Path
    dags_folder: Path
    port: int = field(default_factory=free_port)
    database_url: str | None = None
    fernet_key: str = field(default_factory=random_key, repr=False)
    secret_key: str = field(default_factory=partial(random_key, 64), repr=False)

    @property
    def is_airflow_2(self) -> bool:
        return is_airflow_2(self.version)

    @property
    def url(self) -> str:
        """Of the pages and the REST API, and in Airflow 3 of the execution API, which tasks talk to."""
        return f"http://{LOCALHOST}:{self.port}"

    @property
    def sql_alchemy_conn(self) -> str:
        return self.database_url or f"sqlite:///{self.home}/airflow.db"


def is_airflow_2(version: str) -> bool:
    """Of versions such as `2.10.5+composer`, too."""
    return int(version.split(".", 1)[0]) == 2


def settings(place: Place) -> dict[str, str]:
    """All AIRFLOW__* variables of one Airflow."""
    of_version = settings_of_2(place) if place.is_airflow_2 else settings_of_3(place)
    return {"AIRFLOW_HOME": str(place.home), **settings_of_all(place), **of_version}


def settings_of_all(place: Place) -> dict[str, str]:
    return {
        "AIRFLOW__CORE__DAGS_FOLDER": str(place.dags_folder),
        "AIRFLOW__CORE__EXECUTOR": executor(place),
        "AIRFLOW__CORE__FERNET_KEY": place.fernet_key,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": place.sql_alchemy_conn,
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def executor(place: Place) -> str:
    """Airflow 2 refuses to run more than one task at once on SQLite."""
    return "SequentialExecutor" if place.is_airflow_2 and place.database_url is None else "LocalExecutor"


def settings_of_2(place: Place) -> dict[str, str]:
    return {
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
        "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__PARSING_PROCESSES": "1",
        "AIRFLOW__WEBSERVER__BASE_URL": place.url,
        "AIRFLOW__WEBSERVER__SECRET_KEY": place.secret_key,
        "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": LOCALHOST,
        "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(place.port),
        "AIRFLOW__WEBSERVER__WORKERS": "1",
    }


def settings_of_3(place: Place) -> dict[str, str]:
    return {
        "AIRFLOW__API__BASE_URL": place.url,
        "AIRFLOW__API__HOST": LOCALHOST,
        "AIRFLOW__API__PORT": str(place.port),
        "AIRFLOW__API__SECRET_KEY": place.secret_key,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": place.secret_key,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{place.url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        # Airflow 3.3 by its defaults may fail the first short deferrable task of a cold start.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }


def child_environment(place: Place, python: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """What Airflow's processes are started with: this shell's variables, but for its own Airflow's."""
    # Airflow 2 looks for its own command on PATH when it starts a task.
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    inherited = {name: value for name, value in os.environ.items() if not is_private_to_the_shell(name)}
    return {**inherited, "PATH": path, **without_proxies_at_home(), **settings(place), **extra}


def is_private_to_the_shell(name: str) -> bool:
    """Connections come from the database alone, so that what is shown works with a database; the key, too."""
    return name.startswith("AIRFLOW_") or name in {
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
        "SENDGRID_API_KEY",
    }


def without_proxies_at_home() -> dict[str, str]:
    excepted = ",".join(filter(None, [os.environ.get("NO_PROXY"), LOCALHOST, "localhost"]))
    return {"NO_PROXY": excepted, "no_proxy": excepted}
