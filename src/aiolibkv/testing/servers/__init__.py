"""Real servers for tests: one process or a cluster, on free ports, with data in a temporary directory."""

from aiolibkv.testing.servers.base import Server, ServerStartError
from aiolibkv.testing.servers.cluster import Cluster, Member
from aiolibkv.testing.servers.consul import ConsulCluster, ConsulServer
from aiolibkv.testing.servers.etcd import EtcdCluster, EtcdServer
from aiolibkv.testing.servers.postgresql import PgBouncer, PostgresServer
from aiolibkv.testing.servers.process import ServerCommandError, ServerMissingError
from aiolibkv.testing.servers.reverse_proxies import EtcdGateway, EtcdGrpcProxy, Haproxy, Nginx, ReverseProxy
from aiolibkv.testing.servers.tls import Certificates
from aiolibkv.testing.servers.zookeeper import ZooKeeperCluster, ZooKeeperServer

__all__ = [
    "Certificates",
    "Cluster",
    "ConsulCluster",
    "ConsulServer",
    "EtcdCluster",
    "EtcdGateway",
    "EtcdGrpcProxy",
    "EtcdServer",
    "Haproxy",
    "Member",
    "Nginx",
    "PgBouncer",
    "PostgresServer",
    "ReverseProxy",
    "Server",
    "ServerCommandError",
    "ServerMissingError",
    "ServerStartError",
    "ZooKeeperCluster",
    "ZooKeeperServer",
]
