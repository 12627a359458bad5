"""The database behind the store: connections, transactions, migrations, and who may see what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
)
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria

from letta_gym.errors import MissingExtraError, StoreError
from letta_gym.library.cache import use_write_ahead_log
from letta_gym.store.models import Base, Scoped, Viewer

T = TypeVar("T")

Clock = Callable[[], float]
"""Gives the time in Unix seconds."""

_MIGRATIONS = Path(__file__).parent / "migrations"
_WAIT_SECONDS = 60.0  # for another writer of SQLite, before giving up
_LOCK = 0x1E77A  # PostgreSQL's advisory lock of the migrations; any number that is ours
_SCOPED = [m.class_ for m in Base.registry.mappers if issubclass(m.class_, Scoped)]


class Database:
    """One database; safe to share between threads, and to open in several processes.

    SQLite is used with a write-ahead log (readers never wait), foreign keys on, and writers that
    wait for each other; ``synchronous`` is NORMAL there, so a commit survives the end of the
    process but the last ones may be lost to a power cut. PostgreSQL is used as it is configured.

    Args:
        url: ``sqlite:///path``, a plain path, or ``postgresql://user:password@host/name``.
        create: make a missing SQLite file; otherwise it is an error.

    Raises:
        StoreError: the URL cannot be used, or the database cannot be reached.
        MissingExtraError: the URL is PostgreSQL's and psycopg is not installed.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        self.url = _parse(url)
        if not create and self.is_sqlite and not Path(str(self.url.database)).is_file():
            raise StoreError(f"there is no store at {self.url.database}; check the path")
        try:
            self.engine = _engine(self.url)
        except ModuleNotFoundError as error:
            raise MissingExtraError("postgres", f"the store {self.shown}") from error
        self._writer = self.engine.execution_options(writes=True)

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite."""
        return self.url.get_backend_name() == "sqlite"

    def once(self, work: Callable[[Session], T]) -> T:
        """Do ``work`` in a transaction; a second time if another writer was quicker.

        ``work`` looks for what it is about to insert, and finds it the second time.
        """
        try:
            with self.write() as session:
                return work(session)
        except IntegrityError:
            with self.write() as session:
                return work(session)

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that is committed at the end, or rolled back on an error."""
        with (
            self._told(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def read(self, viewer: Viewer | None) -> Iterator[Session]:
        """A transaction that reads what ``viewer`` may see; None is the operator, who sees all."""
        with self._told(), Session(self.engine, info={"viewer": viewer}) as session:
            yield session

    def migrate(self) -> None:
        """Bring the tables to this version; several processes may do so at once.

        Raises:
            StoreError: the database is of a later version, or cannot be reached.
        """
        config = alembic_config()
        script = ScriptDirectory.from_config(config)
        with self._told():
            with self.engine.connect() as connection:
                revision = MigrationContext.configure(connection).get_current_revision()
            if revision == script.get_current_head():
                return
            if revision not in {None, *(one.revision for one in script.walk_revisions())}:
                raise StoreError(
                    f"the store {self.shown} has the tables of a later version ({revision}); "
                    "install that version of letta-gym, or use another store"
                )
            with self._writer.begin() as connection:
                if not self.is_sqlite:  # SQLite's writers wait for each other anyway
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, DBAPIError) as error:
            if isinstance(error, OperationalError) or error.connection_invalidated:
                raise StoreError(f"the store {self.shown} cannot be used: {error.orig}") from error
            raise


def alembic_config() -> Config:
    """Alembic's configuration: the migrations that ship with the package."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    return config


def _parse(url: str) -> URL:
    if "://" not in url:
        return URL.create("sqlite", database=str(Path(url).expanduser()))
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except ArgumentError as error:
        raise StoreError(f"{url!r} is not the URL of a database: {error}") from error
    if backend in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StoreError(
            f"the store knows SQLite and PostgreSQL; got {backend!r}. "
            "Pass sqlite:///path, a plain path, or postgresql://user@host/name"
        )
    if parsed.database in (None, "", ":memory:"):
        raise StoreError("the store needs a file; pass sqlite:///path or a plain path")
    return parsed


def _engine(url: URL) -> Engine:
    try:
        if url.get_backend_name() == "postgresql":
            return create_engine(url, pool_size=20, max_overflow=0, pool_pre_ping=True)
        Path(str(url.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(
            url, pool_size=20, max_overflow=0, connect_args={"timeout": _WAIT_SECONDS}
        )
    except (ArgumentError, NoSuchModuleError, OSError) as error:
        raise StoreError(f"the store {url!r} cannot be opened: {error}") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin where _begin_sqlite says so
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    use_write_ahead_log(connection)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at once: one that read first and then wants to write cannot wait.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@event.listens_for(Session, "do_orm_execute")
def _only_what_may_be_seen(state: ORMExecuteState) -> None:
    viewer = state.session.info.get("viewer")
    if viewer is not None and not state.is_column_load and not state.is_relationship_load:
        state.statement = state.statement.options(
            *(
                with_loader_criteria(model, model.visible_to(viewer), include_aliases=True)
                for model in _SCOPED
            )
        )
