"""A service to test with: its own store and folder, the bundled skills, no other machine."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from sqlalchemy import create_engine, make_url, text
from starlette.testclient import TestClient

from letta_gym.config import resolve
from letta_gym.selection.policy_file import PolicyFile
from letta_gym.service.app import make_app
from letta_gym.service.config import ServeConfig
from letta_gym.service.service import Service
from tests.stores import POSTGRES

TASK = "Merge these three PDF files and number the pages"


def config(folder: Path, **sections: dict[str, Any]) -> ServeConfig:
    """The defaults in ``folder``, without keys, with changes by section."""
    data: dict[str, dict[str, Any]] = {
        "service": {
            "data": str(folder),
            "store": _store_of(folder),
            "policy": None,
            "ui": False,
            "log_level": "error",
        },
        "access": {"keys": False},
        "training": {"folder": str(folder / "training")},
    }
    for name, changes in sections.items():
        data[name] = {**data.get(name, {}), **changes}
    return resolve(ServeConfig, data)


def _store_of(folder: Path) -> str:
    """The store of a folder: a file in it, or a database of its own on PostgreSQL."""
    if POSTGRES is None:
        return str(folder / "store.sqlite")
    name = f"test_{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"
    engine = create_engine(
        make_url(POSTGRES).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        known = text("SELECT 1 FROM pg_database WHERE datname = :name")
        if connection.scalar(known, {"name": name}) is None:
            connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)


@contextmanager
def running(settings: ServeConfig) -> Iterator[TestClient]:
    """A client of a service that has started."""
    with TestClient(make_app(settings), raise_server_exceptions=False) as client:
        yield client


def service_of(client: TestClient) -> Service:
    """The service behind a client."""
    app = client.app
    assert isinstance(app, FastAPI)
    service: Service = app.state.service
    return service


def another_policy(client: TestClient, threshold: float, sharpness: float = 1.0) -> bytes:
    """The baseline with another level of stopping, taken as seriously as ``sharpness`` says."""
    path = Path(service_of(client).registry.all()[-1].path or "")
    file = PolicyFile.load(path)
    tensors = {name: tensor * np.float32(sharpness) for name, tensor in file.tensors.items()}
    tensors["stop_level"][:] = threshold
    header = file.header.model_copy(update={"provenance": {"made by": "a test"}})
    return PolicyFile(header, tensors, file.probes).to_bytes()


def bearer(key: str, **more: str) -> dict[str, str]:
    """Headers of a caller."""
    return {"Authorization": f"Bearer {key}", **more}


@contextmanager
def served(settings: ServeConfig) -> Iterator[str]:
    """Address of a service that listens on a free port of this machine."""
    app = make_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive(), "the server ended before it started"
            assert time.monotonic() < deadline, "the server did not start within 30 s"
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
