"""What people put before their servers: nginx, HAProxy, and etcd's own proxies."""

import socket
from collections.abc import Sequence
from typing import ClassVar

from aiolibkv.testing.servers.base import Server
from aiolibkv.testing.servers.etcd import find_etcd
from aiolibkv.testing.servers.process import find_program


class ReverseProxy(Server):
    """A program that hands on to servers what clients send to it.

    It is ready when it accepts connections; the servers behind it need not run.

    Args:
        endpoints: addresses and ports of the servers behind it.
        extra_args: more arguments for the program.
    """

    port_names: ClassVar[tuple[str, ...]] = ("client",)

    def __init__(self, endpoints: Sequence[str], *, extra_args: Sequence[str] = ()) -> None:
        """Reserve a port and a directory; nothing is started."""
        super().__init__(extra_args=extra_args)
        self._endpoints = tuple(endpoints)

    async def _is_ready(self) -> bool:
        # Only this machine's kernel is asked, so it does not block.
        with socket.create_connection((self.host, self.port)):
            return True


class Nginx(ReverseProxy):
    """nginx with its own limits: 60 s without an answer, 1 MB of a request, 1000 requests of a connection.

    Args:
        endpoints: as for `ReverseProxy`.
        grpc: hand on gRPC (etcd); otherwise HTTP/1.1 (Consul).
        path: what stands before the paths of the servers behind it, as in "/consul/".
        read_timeout: seconds without a byte from the server after which an answer is given up.
        directives: more lines for the location, as in "client_max_body_size 0;".
        extra_args: more arguments for nginx.
    """

    program = "nginx"
    packages = "nginx"

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        grpc: bool = False,
        path: str = "/",
        read_timeout: float = 60.0,
        directives: Sequence[str] = (),
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve a port and a directory; nothing is started."""
        super().__init__(endpoints, extra_args=extra_args)
        self._grpc = grpc
        self._path = path
        self._read_timeout = read_timeout
        self._directives = directives

    def _command(self) -> Sequence[str]:
        module, scheme, protocol = ("grpc", "grpc", " http2") if self._grpc else ("proxy", "http", "")
        places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        servers = [f"        server {endpoint};" for endpoint in self._endpoints]
        lines = [
            "daemon off;",
            # One process: what is killed or paused is all of it.
            "master_process off;",
            f"pid {self.directory}/nginx.pid;",
            "error_log stderr;",
            "events {}",
            "http {",
            "    access_log off;",
            *(f"    {place}_temp_path {self.data_directory}/{place};" for place in places),
            "    upstream servers {",
            *servers,
            "    }",
            "    server {",
            f"        listen {self.endpoint}{protocol};",
            f"        location {self._path} {{",
            f"            {module}_pass {scheme}://servers{'' if self._grpc else '/'};",
            f"            {module}_read_timeout {round(self._read_timeout * 1000)}ms;",
            *(f"            {directive}" for directive in self._directives),
            "        }",
            "    }",
            "}",
        ]
        config_path = self.directory / "nginx.conf"
        config_path.write_text("".join(f"{line}\n" for line in lines))
        program = find_program(self.program, self.packages)
        # nginx would open its log of /var before it reads the configuration.
        return [program, "-e", "stderr", "-p", str(self.directory), "-c", str(config_path), *self._extra_args]


class Haproxy(ReverseProxy):
    """HAProxy, which uses the servers that accept connections in turn, with Debian's time bounds.

    Args:
        endpoints: as for `ReverseProxy`.
        http2: hand on each request of HTTP/2 (etcd); otherwise each connection of TCP.
        idle_timeout: seconds without a byte after which a request, or a connection, is ended.
        extra_args: more arguments for haproxy.
    """

    program = "haproxy"
    packages = "haproxy"

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        http2: bool = False,
        idle_timeout: float = 50.0,
        extra_args: Sequence[str] = (),
    ) -> None:
        """Reserve a port and a directory; nothing is started."""
        super().__init__(endpoints, extra_args=extra_args)
        self._http2 = http2
        self._idle_timeout = idle_timeout

    def _command(self) -> Sequence[str]:
        idle = round(self._idle_timeout * 1000)
        mode, protocol = ("http", " proto h2") if self._http2 else ("tcp", "")
        servers = [
            f"    server s{number} {endpoint}{protocol} check inter 500ms"
            for number, endpoint in enumerate(self._endpoints)
        ]
        lines = [
            "defaults",
            f"    mode {mode}",
            "    timeout connect 5s",
            f"    timeout client {idle}ms",
            f"    timeout server {idle}ms",
            "listen servers",
            f"    bind {self.endpoint}{protocol}",
            "    balance roundrobin",
            *servers,
        ]
        config_path = self.directory / "haproxy.cfg"
        config_path.write_text("".join(f"{line}\n" for line in lines))
        return [find_program(self.program, self.packages), "-db", "-f", str(config_path), *self._extra_args]


class EtcdGateway(ReverseProxy):
    """`etcd gateway`, which hands on TCP.

    Args:
        endpoints: as for `ReverseProxy`.
        version: as for `EtcdServer`.
        extra_args: more arguments for `etcd gateway start`.
    """

    program = "etcd"
    packages = "etcd-server"
    _kind = ("gateway", "start")

    def __init__(self, endpoints: Sequence[str], *, version: str | None = None, extra_args: Sequence[str] = ()) -> None:
        """Reserve a port and a directory; nothing is started."""
        super().__init__(endpoints, extra_args=extra_args)
        self._version = version

    def _command(self) -> Sequence[str]:
        return [
            find_etcd(self.program, self._version),
            *self._kind,
            f"--endpoints={','.join(self._endpoints)}",
            f"--listen-addr={self.endpoint}",
            *self._extra_args,
        ]


class EtcdGrpcProxy(EtcdGateway):
    """`etcd grpc-proxy`, which answers for the servers: it merges watches and leases and caches reads.

    Args:
        endpoints: as for `ReverseProxy`.
        version: as for `EtcdServer`.
        extra_args: more arguments for `etcd grpc-proxy start`.
    """

    _kind = ("grpc-proxy", "start")
