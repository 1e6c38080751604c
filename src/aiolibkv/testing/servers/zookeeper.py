"""Real ZooKeeper servers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from aiolibkv.testing.servers.cluster import Cluster, Member
from aiolibkv.testing.servers.process import ServerMissingError, exchange, find_program, installation
from aiolibkv.testing.servers.tls import Certificates

_DEBIAN_JARS = Path("/usr/share/java")
# Debian's directory holds several loggers; the first here writes to standard error. Its zookeeper.jar names the others
# by their paths, so those of another version have to come before it.
_NEEDED = (
    "slf4j-simple",
    "slf4j-api",
    "metrics-core",
    "snappy-java",
    "netty-buffer",
    "netty-codec",
    "netty-common",
    "netty-handler",
    "netty-resolver",
    "netty-transport",
    "netty-transport-native-epoll",
    "netty-transport-native-unix-common",
    "zookeeper-jute",
    "zookeeper",
)
_MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"


class ZooKeeperServer(Member):
    """One ZooKeeper server. Its jars come from the Debian package, or from ZOOKEEPER_HOME when that is set.

    Args:
        tls: serve clients over TLS only, and require a certificate of the same authority.
        tick_time: seconds; sessions last between 2 and 20 ticks, unless the next two say otherwise.
        min_session_timeout: seconds.
        max_session_timeout: seconds.
        max_connections: maxClientCnxns, connections from one address; 0 is no limit, None is ZooKeeper's own
            default, 60.
        extended_types: allow nodes with a TTL.
        version: as in "3.9", a version beside the machine's own, which is the Debian package's.
        extra_args: more arguments for java, as in "-Dzookeeper.name=value".
    """

    program = "java"
    packages = "zookeeper"
    port_names: ClassVar[tuple[str, ...]] = ("client", "peer", "election")

    def __init__(
        self,
        *,
        tls: Certificates | None = None,
        tick_time: float = 0.5,
        min_session_timeout: float | None = None,
        max_session_timeout: float | None = None,
        max_connections: int | None = 0,
        extended_types: bool = True,
        version: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve ports and a directory; nothing is started."""
        super().__init__(extra_args=extra_args)
        self._tls = tls
        self._tick_time = tick_time
        self._min_session_timeout = min_session_timeout
        self._max_session_timeout = max_session_timeout
        self._max_connections = max_connections
        self._extended_types = extended_types
        self._version = version
        self._number = 1
        self._members: Sequence[ZooKeeperServer] = (self,)

    async def four_letter_word(self, word: str) -> str:
        """Return what the server says to one of its short commands, as in "srvr" or "mntr".

        Raises:
            OSError: there was no answer.
        """
        tls = self._tls.ssl_context() if self._tls else None
        return (await exchange(self.port, word.encode(), tls=tls)).decode()

    async def mode(self) -> str:
        """Return "standalone", "leader", "follower", or "" when the server does not serve.

        Raises:
            OSError: there was no answer.
        """
        for line in (await self.four_letter_word("srvr")).splitlines():
            name, _, value = line.partition(": ")
            if name == "Mode":
                return value
        return ""

    async def is_leader(self) -> bool:
        """Return whether this server leads its cluster; a single server does."""
        return await self.mode() in {"leader", "standalone"}

    def join(self, number: int, members: Sequence["ZooKeeperServer"]) -> None:
        """Make the server, before its first start, one of the members of a cluster.

        Args:
            number: its number in the cluster, from 1.
            members: all members in the order of their numbers.
        """
        self._number = number
        self._members = members

    def _command(self) -> Sequence[str]:
        config_path = self.directory / "zoo.cfg"
        config_path.write_text("".join(f"{line}\n" for line in self._config()))
        (self.data_directory / "myid").write_text(f"{self._number}\n")
        return [
            find_program(self.program, self.packages),
            # A short-lived server: start fast, stay small.
            "-Xmx128m",
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Dzookeeper.admin.enableServer=false",
            f"-Dzookeeper.extendedTypesEnabled={str(self._extended_types).lower()}",
            "-cp",
            self._class_path(),
            *self._extra_args,
            _MAIN,
            str(config_path),
        ]

    def _class_path(self) -> str:
        home = os.environ.get("ZOOKEEPER_HOME")
        if self._version:
            jars = installation("zookeeper", self._version) / "usr/share/java"
        else:
            jars = Path(home) / "lib" if home else _DEBIAN_JARS
        if not list(jars.glob("zookeeper*.jar")):
            message = (
                f"no ZooKeeper jars in {jars}; Debian packages: {self.packages} (tests/install-servers.sh "
                "installs them), or set ZOOKEEPER_HOME to an unpacked download"
            )
            raise ServerMissingError(message)
        if home and not self._version:
            return f"{jars}/*"
        return ":".join(f"{jars}/{name}.jar" for name in _NEEDED)

    def _config(self) -> Sequence[str]:
        lines = [
            f"tickTime={_milliseconds(self._tick_time)}",
            f"dataDir={self.data_directory}",
            "4lw.commands.whitelist=*",
            "initLimit=20",
            "syncLimit=10",
        ]
        if self._max_connections is not None:
            lines.append(f"maxClientCnxns={self._max_connections}")
        if self._min_session_timeout is not None:
            lines.append(f"minSessionTimeout={_milliseconds(self._min_session_timeout)}")
        if self._max_session_timeout is not None:
            lines.append(f"maxSessionTimeout={_milliseconds(self._max_session_timeout)}")
        if self._tls:
            keys = self.directory / "keystore.pem"
            keys.write_text(self._tls.server_key.read_text() + self._tls.server_cert.read_text())
            lines += [
                f"secureClientPort={self.port}",
                f"secureClientPortAddress={self.host}",
                "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory",
                f"ssl.keyStore.location={keys}",
                "ssl.keyStore.type=PEM",
                f"ssl.trustStore.location={self._tls.ca}",
                "ssl.trustStore.type=PEM",
                "ssl.clientAuth=need",
            ]
        else:
            lines += [f"clientPort={self.port}", f"clientPortAddress={self.host}"]
        if len(self._members) > 1:
            lines += [
                f"server.{number}={member.host}:{member.port_of('peer')}:{member.port_of('election')}"
                for number, member in enumerate(self._members, 1)
            ]
        return lines

    async def _is_ready(self) -> bool:
        return bool(await self.mode())


class ZooKeeperCluster(Cluster[ZooKeeperServer]):
    """A ZooKeeper ensemble.

    Args:
        size: how many members.
        tls: as for `ZooKeeperServer`; members talk to each other without.
        tick_time: as for `ZooKeeperServer`.
        min_session_timeout: as for `ZooKeeperServer`.
        max_session_timeout: as for `ZooKeeperServer`.
        max_connections: as for `ZooKeeperServer`.
        extended_types: as for `ZooKeeperServer`.
        version: as for `ZooKeeperServer`.
        extra_args: more arguments for each java.
    """

    def __init__(
        self,
        *,
        size: int = 3,
        tls: Certificates | None = None,
        tick_time: float = 0.5,
        min_session_timeout: float | None = None,
        max_session_timeout: float | None = None,
        max_connections: int | None = 0,
        extended_types: bool = True,
        version: str | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve ports and directories; nothing is started."""
        servers = [
            ZooKeeperServer(
                tls=tls,
                tick_time=tick_time,
                min_session_timeout=min_session_timeout,
                max_session_timeout=max_session_timeout,
                max_connections=max_connections,
                extended_types=extended_types,
                version=version,
                extra_args=extra_args,
            )
            for _ in range(size)
        ]
        for number, server in enumerate(servers, 1):
            server.join(number, servers)
        super().__init__(servers)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
