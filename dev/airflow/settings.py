"""The environment variables of one local Airflow of any version."""

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
class InstanceConfig:
    """The configuration of one Airflow. Its processes authenticate to each other with the keys."""

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
        """The URL of the UI, the REST API and, in Airflow 3, the execution API."""
        return f"http://{LOCALHOST}:{self.port}"

    @property
    def sql_alchemy_conn(self) -> str:
        return self.database_url or f"sqlite:///{self.home}/airflow.db"


def is_airflow_2(version: str) -> bool:
    """Also for versions such as `2.10.5+composer`."""
    return int(version.split(".", 1)[0]) == 2


def settings(config: InstanceConfig) -> dict[str, str]:
    """All AIRFLOW* variables of one Airflow."""
    version_settings = airflow_2_settings(config) if config.is_airflow_2 else airflow_3_settings(config)
    return {"AIRFLOW_HOME": str(config.home), **common_settings(config), **version_settings}


def common_settings(config: InstanceConfig) -> dict[str, str]:
    return {
        "AIRFLOW__CORE__DAGS_FOLDER": str(config.dags_folder),
        "AIRFLOW__CORE__EXECUTOR": executor(config),
        "AIRFLOW__CORE__FERNET_KEY": config.fernet_key,
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": config.sql_alchemy_conn,
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "AIRFLOW__TRIGGERER__JOB_HEARTBEAT_SEC": "2",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def executor(config: InstanceConfig) -> str:
    """On SQLite, Airflow 2 runs only one task at a time."""
    return "SequentialExecutor" if config.is_airflow_2 and config.database_url is None else "LocalExecutor"


def airflow_2_settings(config: InstanceConfig) -> dict[str, str]:
    return {
        "AIRFLOW__API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth",
        "AIRFLOW__SCHEDULER__DAG_DIR_LIST_INTERVAL": "5",
        "AIRFLOW__SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__PARSING_PROCESSES": "1",
        "AIRFLOW__WEBSERVER__BASE_URL": config.url,
        "AIRFLOW__WEBSERVER__SECRET_KEY": config.secret_key,
        "AIRFLOW__WEBSERVER__WEB_SERVER_HOST": LOCALHOST,
        "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(config.port),
        "AIRFLOW__WEBSERVER__WORKERS": "1",
    }


def airflow_3_settings(config: InstanceConfig) -> dict[str, str]:
    return {
        "AIRFLOW__API__BASE_URL": config.url,
        "AIRFLOW__API__HOST": LOCALHOST,
        "AIRFLOW__API__PORT": str(config.port),
        "AIRFLOW__API__SECRET_KEY": config.secret_key,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": config.secret_key,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{config.url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        # With its defaults, Airflow 3.3 may fail the first short deferrable task after a cold start.
        "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "30",
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
    }


def child_environment(config: InstanceConfig, python: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of Airflow's processes: this shell's, without the settings of another Airflow."""
    # Airflow 2 finds its own command on PATH when it starts a task.
    path = os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)])
    inherited = {name: value for name, value in os.environ.items() if not is_excluded(name)}
    return {**inherited, "PATH": path, **no_proxy_for_localhost(), **settings(config), **extra}


def is_excluded(name: str) -> bool:
    """Connections come from the database only, as in production."""
    return name.startswith("AIRFLOW_") or name in {
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPATH",
        "SENDGRID_API_KEY",
    }


def no_proxy_for_localhost() -> dict[str, str]:
    hosts = ",".join(filter(None, [os.environ.get("NO_PROXY"), LOCALHOST, "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}
