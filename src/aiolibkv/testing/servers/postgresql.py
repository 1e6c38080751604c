"""Real PostgreSQL servers, and PgBouncer before them."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from aiolibkv.testing.servers.cluster import Member
from aiolibkv.testing.servers.process import NOBODY, find_program, installation, launcher, run_program
from aiolibkv.testing.servers.reverse_proxies import ReverseProxy
from aiolibkv.testing.servers.tls import Certificates

_PACKAGES = "postgresql-15"
_SUPERUSER = "postgres"
_PASSWORDS = "password_encryption=scram-sha-256"
"""What 13 does not do by itself."""
_PSQL = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1")


class PostgresServer(Member):
    """One PostgreSQL server, with a role that is no superuser and that role's own database of the same name.

    Started by root, it runs as the user nobody. What kills or pauses it does so to all its processes at once.

    Args:
        user: name and password of the role.
        version: as in "18", a version beside Debian's own, which is 15.
        settings: as in postgresql.conf; they also hold after `promote()`.
        standby_of: a running server whose changes to follow, with its role and database.
        tls: serve clients over TLS only, and require a certificate of the same authority.
        extra_args: more arguments for postgres.
    """

    program = "postgres"
    packages = _PACKAGES
    port_names: ClassVar[tuple[str, ...]] = ("client",)
    unprivileged = True
    # Without waiting for clients to go, but in good order: what PostgreSQL calls fast.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(
        self,
        *,
        user: tuple[str, str] = ("app", "app-password"),
        version: str | None = None,
        settings: Mapping[str, str] | None = None,
        standby_of: "PostgresServer | None" = None,
        tls: Certificates | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve a port and a directory; nothing is started."""
        super().__init__(extra_args=extra_args)
        self._tls = tls
        self.user: tuple[str, str] = standby_of.user if standby_of else user
        self._version = version
        self._settings = settings or {}
        self._primary = standby_of

    @property
    def database(self) -> str:
        """The name of the role's database."""
        return self.user[0]

    async def sql(self, statement: str, *, database: str | None = None) -> str:
        """Run a statement as superuser.

        Args:
            statement: one or more, in one transaction.
            database: by default the role's own.

        Returns:
            A line for each row, its columns separated by "|".

        Raises:
            ServerCommandError: it failed.
            TimeoutError: it did not end in time.
        """
        return await self._run("psql", *_PSQL, "--dbname", database or self.database, "--command", statement)

    async def dump(self, *arguments: str) -> str:
        """Return a backup of the role's database, as statements that remove what is there and create it again.

        Args:
            arguments: more for pg_dump.

        Raises:
            ServerCommandError: it failed.
            TimeoutError: it did not end in time.
        """
        return await self._run("pg_dump", "--clean", "--if-exists", *arguments, self.database)

    async def restore(self, dump: str) -> None:
        """Carry out what `dump()` has returned, in one transaction.

        Raises:
            ServerCommandError: it failed.
            TimeoutError: it did not end in time.
        """
        await self._run("psql", *_PSQL, "--single-transaction", "--dbname", self.database, given=dump)

    async def is_leader(self) -> bool:
        """Return whether this server takes writes; a standby does when it was promoted."""
        return await self.sql("SELECT pg_is_in_recovery()", database=_SUPERUSER) == "f\n"

    async def promote(self) -> None:
        """Make a standby take writes, and wait until it does."""
        await self.sql("SELECT pg_promote()", database=_SUPERUSER)

    def pause(self) -> None:
        """Freeze all its processes (SIGSTOP): the kernel still accepts connections, nobody answers."""
        super().pause()
        # The first process is frozen and starts no others.
        for pid in self._children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            _wait_for_state(pid, "TZX")

    def resume(self) -> None:
        """Let frozen processes continue (SIGCONT)."""
        for pid in self._children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        super().resume()

    async def kill(self) -> None:
        """End all its processes with SIGKILL at one moment; its data stays."""
        self._kill_now()

    def _kill_now(self) -> None:
        children: Sequence[int] = ()
        if self.running:
            self.pause()
            children = self._children()
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        super()._kill_now()
        for pid in children:
            _wait_for_state(pid, "ZX")

    def _children(self) -> Sequence[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except FileNotFoundError:
            return ()

    def _find(self, program: str) -> str:
        if self._version:
            # A wheel has them elsewhere than Debian's package.
            place = installation("postgresql", self._version)
            directory = next(place.rglob("bin/postgres"), place).parent
        else:
            directory = Path("/usr/lib/postgresql/15/bin")
        return find_program(program, self.packages, directory=directory)

    def _command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "cluster_name": f"port-{self.port}",
            **(self._tls_settings(self._tls) if self._tls else {}),
            **self._settings,
        }
        options = [f"--{_PASSWORDS}", *(f"--{name}={value}" for name, value in settings.items())]
        return [self._find(self.program), "-D", str(self._cluster), *options, *self._extra_args]

    def _tls_settings(self, certificates: Certificates) -> Mapping[str, str]:
        # It takes no key that others may read, and is not the user who made it.
        settings = {
            "ssl_cert_file": certificates.server_cert,
            "ssl_key_file": certificates.server_key,
            "ssl_ca_file": certificates.ca,
        }
        own = {name: self.directory / file.name for name, file in settings.items()}
        for name, file in settings.items():
            shutil.copyfile(file, own[name])
            own[name].chmod(0o600)
            if os.geteuid() == 0:
                os.chown(own[name], NOBODY, NOBODY)
        return {"ssl": "on", **{name: str(file) for name, file in own.items()}}

    @property
    def _cluster(self) -> Path:
        return self.data_directory / "cluster"

    async def _prepare_data(self) -> None:
        if self._cluster.exists():
            return
        made = self.data_directory / "new"
        if self._primary:
            source = ["--host", str(self._primary.directory), "--port", str(self._primary.port)]
            arguments = [*source, "--username", _SUPERUSER, "--pgdata", str(made)]
            arguments += ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
            await self._run_as_owner("pg_basebackup", *arguments)
        else:
            arguments = ["--pgdata", str(made), "--username", _SUPERUSER, "--encoding=UTF8", "--locale=C", "--no-sync"]
            await self._run_as_owner("initdb", *arguments, "--auth=trust")
            # Before anybody can connect: a client that is denied does not come back.
            name, password = self.user
            account = f"CREATE ROLE {name} LOGIN PASSWORD '{password}'\nCREATE DATABASE {name} OWNER {name}\n"
            options = ["exit_on_error=on", "fsync=off", _PASSWORDS]
            single = ["--single", "-D", str(made), *(f"--{option}" for option in options)]
            await self._run_as_owner("postgres", *single, _SUPERUSER, given=account)
            # Whoever reaches the socket in our directory is the tests.
            access = [f"local all,replication {_SUPERUSER} trust"]
            clients = f"all all {self.host}/32 scram-sha-256"
            access.append(f"hostssl {clients} clientcert=verify-ca" if self._tls else f"host {clients}")
            (made / "pg_hba.conf").write_text("".join(f"{line}\n" for line in access))
        made.rename(self._cluster)

    async def _is_ready(self) -> bool:
        return await self.sql("SELECT 1", database=_SUPERUSER) == "1\n"

    async def _run(self, program: str, *arguments: str, given: str = "") -> str:
        place = ["--host", str(self.directory), "--port", str(self.port), "--username", _SUPERUSER]
        return await run_program([self._find(program), *place, *arguments], _environment(), given=given)

    async def _run_as_owner(self, program: str, *arguments: str, given: str = "") -> None:
        command = [*launcher(unprivileged=True), self._find(program), *arguments]
        await run_program(command, _environment(), given=given)


class PgBouncer(ReverseProxy):
    """PgBouncer in transaction pooling, for the role of a server.

    Args:
        server: the server behind it.
        settings: as in the section pgbouncer of its configuration.
        extra_args: more arguments for pgbouncer.
    """

    program = "pgbouncer"
    packages = "pgbouncer"
    unprivileged = True

    def __init__(
        self,
        server: PostgresServer,
        *,
        settings: Mapping[str, str] | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve a port and a directory; nothing is started."""
        super().__init__([server.endpoint], extra_args=extra_args)
        self._server = server
        self._settings = settings or {}

    def _command(self) -> Sequence[str]:
        users = self.directory / "users.txt"
        users.write_text('"{}" "{}"\n'.format(*self._server.user))
        settings = {
            "listen_addr": self.host,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            **self._settings,
        }
        lines = ["[databases]", f"* = host={self._server.host} port={self._server.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        config_path = self.directory / "pgbouncer.ini"
        config_path.write_text("".join(f"{line}\n" for line in lines))
        return [find_program(self.program, self.packages), *self._extra_args, str(config_path)]


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


def _wait_for_state(pid: int, states: str) -> None:
    """Wait, for a moment, until a process that is not our child is in one of the states of /proc, or gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in states:
            time.sleep(0.001)
