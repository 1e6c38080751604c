"""Real etcd servers."""

import json
import os
import ssl
from collections.abc import Sequence
from typing import ClassVar, Literal, TypedDict

from aiolibkv.testing.servers.cluster import Cluster, Member
from aiolibkv.testing.servers.process import find_program, http, installation, run_program
from aiolibkv.testing.servers.tls import Certificates


class _Header(TypedDict):
    member_id: int
    revision: int


class _Status(TypedDict):
    header: _Header
    leader: int


_PACKAGES = "etcd-server etcd-client"


def find_etcd(program: str, version: str | None) -> str:
    """Return the path of one of etcd's programs.

    Args:
        program: "etcd" or "etcdctl".
        version: as for `EtcdServer`.

    Raises:
        ServerMissingError: it is not there.
    """
    directory = installation("etcd", version) / "usr/bin" if version else None
    return find_program(program, _PACKAGES, directory=directory)


class EtcdServer(Member):
    """One etcd server.

    Args:
        tls: serve clients over TLS only, and require a certificate of the same authority.
        auth: name and password of the first user, who may do everything; enables authentication. etcd
            demands the name "root".
        version: as in "3.5", a version beside the machine's own; by default the program in PATH.
        extra_args: more arguments for etcd.
    """

    program = "etcd"
    packages = _PACKAGES
    port_names: ClassVar[tuple[str, ...]] = ("client", "peer")

    def __init__(
        self,
        *,
        tls: Certificates | None = None,
        auth: tuple[str, str] | None = None,
        version: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve ports and a directory; nothing is started."""
        super().__init__(extra_args=extra_args)
        self._tls = tls
        self._auth = auth
        self._version = version
        self.name: str = "n1"
        self._members: Sequence[EtcdServer] = (self,)
        self._cluster_state = "new"

    async def ctl(self, *arguments: str, user: tuple[str, str] | None = None, within: float = 20.0) -> str:
        """Run etcdctl against this server.

        Args:
            arguments: as in a shell, without options for endpoints, TLS and user.
            user: name and password; by default those of the first user, if there is one.
            within: seconds, before scaling.

        Returns:
            What etcdctl printed.

        Raises:
            ServerCommandError: etcdctl failed.
            TimeoutError: it did not end in time.
        """
        login = user or (self._auth if self._is_set_up else None)
        options = [f"--user={':'.join(login)}"] if login else []
        return await self._run_ctl(*options, *arguments, within=within)

    async def add_user(
        self,
        name: str,
        password: str | None,
        *,
        prefix: str = "",
        access: Literal["read", "write", "readwrite"] = "readwrite",
    ) -> None:
        """Add a user with a role of the same name that may use the keys below a prefix.

        Args:
            name: the user's name.
            password: None makes a user who is known by the common name of a certificate only.
            prefix: the first characters of the keys; "" is all keys.
            access: what the user may do with them.
        """
        login = ["--no-password", name] if password is None else [f"{name}:{password}"]
        await self.ctl("user", "add", *login)
        await self.ctl("role", "add", name)
        await self.ctl("role", "grant-permission", "--prefix=true", name, access, prefix)
        await self.ctl("user", "grant-role", name, name)

    async def compact(self) -> int:
        """Drop the history before the present revision.

        Returns:
            That revision.
        """
        revision = int((await self._status())["header"]["revision"])
        await self.ctl("compaction", "--physical", str(revision))
        return revision

    async def metrics(self) -> dict[str, float]:
        """Return what the server counts; names of labelled values include the labels.

        Raises:
            OSError: the server did not answer.
        """
        _, text = await http(self.port, "GET", "/metrics", tls=self._client_tls)
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    async def is_leader(self) -> bool:
        """Return whether this server leads its cluster; a single server does."""
        status = await self._status()
        # A member that knows of no leader leaves the field out.
        return bool(status.get("leader") == status["header"]["member_id"])

    def join(self, name: str, members: Sequence["EtcdServer"], *, running: bool = False) -> None:
        """Make the server, before its first start, one of the members of a cluster.

        Args:
            name: its name in the cluster.
            members: all members, itself among them; the first one sets up authentication.
            running: whether the cluster runs, and was told of the new member.
        """
        self.name = name
        self._members = members
        self._cluster_state = "existing" if running else "new"

    @property
    def peer_url(self) -> str:
        """Where the other members reach this one."""
        return f"http://{self.host}:{self.port_of('peer')}"

    @property
    def _client_tls(self) -> ssl.SSLContext | None:
        return self._tls.ssl_context() if self._tls else None

    @property
    def _scheme(self) -> str:
        return "https" if self._tls else "http"

    def _command(self) -> Sequence[str]:
        url = f"{self._scheme}://{self.endpoint}"
        command = [
            find_etcd(self.program, self._version),
            f"--name={self.name}",
            f"--data-dir={self.data_directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={','.join(f'{member.name}={member.peer_url}' for member in self._members)}",
            f"--initial-cluster-state={self._cluster_state}",
        ]
        if self._tls:
            command += [
                f"--cert-file={self._tls.server_cert}",
                f"--key-file={self._tls.server_key}",
                f"--trusted-ca-file={self._tls.ca}",
                "--client-cert-auth",
            ]
        return [*command, *self._extra_args]

    async def _is_ready(self) -> bool:
        # The answer takes a linearizable read, so a leader is known and has been heard.
        status, text = await http(self.port, "GET", "/health", tls=self._client_tls)
        return status == 200 and json.loads(text)["health"] == "true"

    async def _set_up(self) -> None:
        if self._auth is None or self._members[0] is not self:
            return
        name, password = self._auth
        await self._run_ctl("user", "add", f"{name}:{password}")
        await self._run_ctl("role", "add", "root")
        await self._run_ctl("user", "grant-role", name, "root")
        await self._run_ctl("auth", "enable")

    async def _run_ctl(self, *arguments: str, within: float = 20.0) -> str:
        command = [find_etcd("etcdctl", self._version), f"--endpoints={self._scheme}://{self.endpoint}"]
        if self._tls:
            command += [
                f"--cacert={self._tls.ca}",
                f"--cert={self._tls.client_cert}",
                f"--key={self._tls.client_key}",
            ]
        foreign = {name for name in os.environ if name.startswith("ETCDCTL_")}
        environment = {name: value for name, value in os.environ.items() if name not in foreign}
        environment["ETCDCTL_API"] = "3"
        return await run_program([*command, *arguments], environment, within=within)

    async def _status(self) -> _Status:
        found: list[dict[str, _Status]] = json.loads(await self.ctl("endpoint", "status", "--write-out=json"))
        return found[0]["Status"]


class EtcdCluster(Cluster[EtcdServer]):
    """An etcd cluster.

    Args:
        size: how many members.
        tls: as for `EtcdServer`; members talk to each other without.
        auth: as for `EtcdServer`.
        version: as for `EtcdServer`.
        extra_args: more arguments for each etcd.
    """

    def __init__(
        self,
        *,
        size: int = 3,
        tls: Certificates | None = None,
        auth: tuple[str, str] | None = None,
        version: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve ports and directories; nothing is started."""
        servers = [EtcdServer(tls=tls, auth=auth, version=version, extra_args=extra_args) for _ in range(size)]
        for number, server in enumerate(servers, 1):
            server.join(f"n{number}", servers)
        super().__init__(servers)
