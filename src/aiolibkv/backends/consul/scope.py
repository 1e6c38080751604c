"""Where in Consul the keys are: the options of the backend."""

from __future__ import annotations

import json
from typing import ClassVar
from urllib.parse import quote

from aiolibkv.config import Config


class Scope:
    """What is added to each request.

    Attributes:
        root: path of the API, which may lie below a path of what stands before Consul.
        query: parameters that begin with an ampersand; "" when there are none.
        node_query: those of requests about nodes, which are in no namespace.
        fields: of each operation of a transaction, as JSON that begins with a comma.
    """

    options: ClassVar[frozenset[str]] = frozenset({"dc", "namespace", "partition", "http_path"})

    def __init__(self, config: Config) -> None:
        """Read the options.

        Raises:
            ValueError: one cannot be.
        """
        given: dict[str, str] = {}
        for name in self.options & config.options.keys():
            value = config.options[name]
            if not isinstance(value, str) or not value:
                raise ValueError(f"consul: the option {name} is a text that is not empty")
            given[name] = value
        path = given.get("http_path", "").strip("/")
        self.root: str = f"/{quote(path)}/v1/" if path else "/v1/"
        of_nodes = {"dc": given.get("dc"), "partition": given.get("partition")}
        self.node_query: str = _query(of_nodes)
        self.query: str = _query({**of_nodes, "ns": given.get("namespace")})
        fields = {"Namespace": given.get("namespace"), "Partition": given.get("partition")}
        self.fields: str = "".join(f',"{name}":{json.dumps(value)}' for name, value in fields.items() if value)


def _query(parameters: dict[str, str | None]) -> str:
    return "".join(f"&{name}={quote(value, safe='')}" for name, value in parameters.items() if value)
