"""Real Consul servers."""

import json
import ssl
from collections.abc import Mapping, Sequence
from typing import ClassVar

from aiolibkv.testing.servers.cluster import Cluster, Member
from aiolibkv.testing.servers.process import ServerCommandError, find_program, http
from aiolibkv.testing.servers.tls import Certificates


class ConsulServer(Member):
    """One Consul server (not a client agent).

    Args:
        tls: serve clients over TLS only, and require a certificate of the same authority.
        token: the management token; enables access control with everything denied by default.
        session_ttl_min: the shortest TTL of a session in seconds; Consul's own default is 10.
        max_connections: http_max_conns_per_client; Consul's own default is 200.
        dev: start it as `consul agent -dev`, which keeps its data in memory and indents its JSON.
        extra_args: more arguments for `consul agent`.
    """

    program = "consul"
    packages = "consul"
    port_names: ClassVar[tuple[str, ...]] = ("http", "server", "serf")

    def __init__(
        self,
        *,
        tls: Certificates | None = None,
        token: str | None = None,
        session_ttl_min: float | None = None,
        max_connections: int | None = None,
        dev: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve ports and a directory; nothing is started."""
        super().__init__(extra_args=extra_args)
        self._tls = tls
        self._token = token
        self._session_ttl_min = session_ttl_min
        self._max_connections = max_connections
        self._dev = dev
        self.name: str = "n1"
        self._members: Sequence[ConsulServer] = (self,)

    async def api(self, method: str, path: str, body: str = "") -> str:
        """Make a request to this server's HTTP API, with the management token if there is one.

        Args:
            method: "GET", "PUT" or "DELETE".
            path: as in "/v1/status/leader".
            body: the request's body.

        Returns:
            The body of the answer.

        Raises:
            ServerCommandError: the status of the answer was not 200.
            OSError, EOFError: there was no answer.
        """
        headers = {"X-Consul-Token": self._token} if self._token else {}
        status, content = await http(self.port, method, path, body=body, headers=headers, tls=self._client_tls)
        if status != 200:
            message = f"{method} {path}: {status} {content.strip()}"
            raise ServerCommandError(message)
        return content

    async def add_token(self, rules: str) -> str:
        """Make a token with limited rights.

        Args:
            rules: in Consul's language, as in `key_prefix "app/" { policy = "write" }`.

        Returns:
            The token.
        """
        # The policy's name only has to be new.
        count = len(json.loads(await self.api("GET", "/v1/acl/policies")))
        policy = {"Name": f"limited-{count}", "Rules": rules}
        made = json.loads(await self.api("PUT", "/v1/acl/policy", json.dumps(policy)))
        token = {"Policies": [{"ID": made["ID"]}]}
        return str(json.loads(await self.api("PUT", "/v1/acl/token", json.dumps(token)))["SecretID"])

    async def is_leader(self) -> bool:
        """Return whether this server leads its cluster; a single server does."""
        leader = json.loads(await self.api("GET", "/v1/status/leader"))
        return bool(leader == f"{self.host}:{self.port_of('server')}")

    def join(self, name: str, members: Sequence["ConsulServer"]) -> None:
        """Make the server, before its first start, one of the members of a cluster.

        Args:
            name: its name in the cluster.
            members: all members, itself among them.
        """
        self.name = name
        self._members = members

    @property
    def _client_tls(self) -> ssl.SSLContext | None:
        return self._tls.ssl_context() if self._tls else None

    def _command(self) -> Sequence[str]:
        config_path = self.directory / "config.json"
        config_path.write_text(json.dumps(self._config()))
        kind = ["-dev"] if self._dev else []
        program = find_program(self.program, self.packages)
        return [program, "agent", *kind, f"-config-file={config_path}", *self._extra_args]

    def _config(self) -> Mapping[str, object]:
        config: dict[str, object] = {
            "node_name": self.name,
            "bind_addr": self.host,
            "client_addr": self.host,
            "ports": {
                "http": -1 if self._tls else self.port,
                "https": self.port if self._tls else -1,
                "server": self.port_of("server"),
                "serf_lan": self.port_of("serf"),
                "serf_wan": -1,
                "dns": -1,
                "grpc": -1,
            },
            "disable_update_check": True,
        }
        if not self._dev:
            config |= {
                "server": True,
                "bootstrap_expect": len(self._members),
                "retry_join": [f"{member.host}:{member.port_of('serf')}" for member in self._members],
                "retry_interval": "200ms",
                "data_dir": str(self.data_directory),
                "performance": {"raft_multiplier": 1},
            }
        if self._session_ttl_min is not None:
            config["session_ttl_min"] = f"{round(self._session_ttl_min * 1000)}ms"
        if self._max_connections is not None:
            config["limits"] = {"http_max_conns_per_client": self._max_connections}
        if self._token is not None:
            config["acl"] = {"enabled": True, "default_policy": "deny", "tokens": {"master": self._token}}
        if self._tls:
            config |= {
                "ca_file": str(self._tls.ca),
                "cert_file": str(self._tls.server_cert),
                "key_file": str(self._tls.server_key),
                "verify_incoming_https": True,
            }
        return config

    async def _is_ready(self) -> bool:
        # A write that leaves nothing, also when it is carried out after its answer was given up.
        await self.api("DELETE", f"/v1/kv/aiolibkv-ready/{self.name}")
        # Sessions need the health check that a server registers for itself after the election.
        checks = json.loads(await self.api("GET", f"/v1/health/node/{self.name}"))
        return any(check["CheckID"] == "serfHealth" for check in checks)


class ConsulCluster(Cluster[ConsulServer]):
    """A datacenter of Consul servers.

    Args:
        size: how many members.
        tls: as for `ConsulServer`; members talk to each other without.
        token: as for `ConsulServer`.
        session_ttl_min: as for `ConsulServer`.
        max_connections: as for `ConsulServer`.
        extra_args: more arguments for each `consul agent`.
    """

    def __init__(
        self,
        *,
        size: int = 3,
        tls: Certificates | None = None,
        token: str | None = None,
        session_ttl_min: float | None = None,
        max_connections: int | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve ports and directories; nothing is started."""
        servers = [
            ConsulServer(
                tls=tls,
                token=token,
                session_ttl_min=session_ttl_min,
                max_connections=max_connections,
                extra_args=extra_args,
            )
            for _ in range(size)
        ]
        for number, server in enumerate(servers, 1):
            server.join(f"n{number}", servers)
        super().__init__(servers)
