"""The tables and functions of a store in a database.

All writes go through one function, which locks the one row of the state until its transaction is on disk. So revisions
become visible in their order, and the log has no gaps: what follows a revision is all that came after it. The log's
last row has the revision: a row that each write changes would leave versions behind that all later writes have to pass,
as long as any transaction of the server is open.

A history ends when the tables are created anew or restored from a backup, and when a server starts or takes over,
since it may have lost writes. The next one begins at the microseconds since 1970 by the server's clock, which are more
than all writes that there ever were; so no revision is given twice, and no cursor into the log that is lost fits the
new one.

Functions are never changed: those of another version of the library have other names, and serve the same tables.
"""

# ruff: noqa: S608 - what is put into statements are only names of tables, made of checked identifiers

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import IntEnum
from string import Template

VERSION = 1
"""Of the tables."""

_FUNCTIONS = 1
"""The number of the functions, in their names; whoever changes one of them counts on."""

KEPT_REVISIONS = 10_000
"""Revisions of the log that are kept for watches that lag behind; those that lag further list again."""

KEPT_BYTES = 64 * 1024 * 1024
"""Bytes of values in the log that are kept."""

KEPT_SECONDS = 600
"""Seconds after which what is in the log may go."""

REVISIONS_LOST = 1_000_000
"""How much further a new history begins when the clock was set back: so many writes may have been lost."""

_EXPIRED_AT_ONCE = 1000
_TRIMMED_AT_ONCE = 20_000
"""Rows of the log that go in one transaction."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_LONGEST_SCHEMA = 63
_LONGEST_TABLE = 48


class Kind(IntEnum):
    """The steps of an operation. Those up to EMPTY are conditions, which come before what writes."""

    GUARD = 1
    LEASE = 2
    ABSENT = 3
    PRESENT = 4
    AT = 5
    EMPTY = 6
    WRITE = 7
    DELETE = 8
    DELETE_TREE = 9
    BEGIN = 10
    END = 11


class Identifiers:
    """The quoted names of a store's tables and functions.

    Attributes:
        schema: that they are in.
        table: the name, unquoted, that all of them begin with.
        pairs: key, rev (its index), expires (of a key with a ttl), lease, value.
        log: a row for each key changed: rev, key, value (NULL: deleted), at.
        leases: id, ttl, expires. A key with a lease goes with it. ``expires`` has no index, so that a renewal changes
            the row where it is.
        state: the one row, written when the log is trimmed: rev (of then, above which the log has rows), floor (the log
            is whole above it), bytes (of values in the log up to rev), origin (when the server that wrote it was
            started, and the database's directory), xid (of the transaction that wrote it, which is another one in a
            row that was restored), swept.
        writers: for each store its last batch and what became of it.
        apply: the function that writes.
        resolve: the function that tells what became of a batch, or keeps it from being carried out.
        renew: the function that renews leases; it does not lock the state.
        expire: the function that ends a lease that is over.
        sweep: the function that deletes what has expired, and what is too old in the log.
        channel: where writes are announced.
    """

    def __init__(self, schema: str, table: str) -> None:
        """Derive the names.

        Raises:
            ValueError: a name is no identifier, or too long.
        """
        for what, name, longest in (("schema", schema, _LONGEST_SCHEMA), ("table", table, _LONGEST_TABLE)):
            if not _NAME.fullmatch(name) or len(name) > longest:
                raise ValueError(
                    f"postgresql: a {what} is an identifier of at most {longest} letters, digits and _, not {name!r}"
                )
        self.schema: str = f'"{schema}"'
        self.table = table
        self.channel: str = f"{table}_log"
        self.pairs: str = f'"{schema}"."{table}"'
        start = f'"{schema}"."{table}_'
        self.log: str = f'{start}log"'
        self.leases: str = f'{start}leases"'
        self.state: str = f'{start}state"'
        self.writers: str = f'{start}writers"'
        self.apply: str = f'{start}apply_{_FUNCTIONS}"'
        self.resolve: str = f'{start}resolve_{_FUNCTIONS}"'
        self.renew: str = f'{start}renew_{_FUNCTIONS}"'
        self.expire: str = f'{start}expire_{_FUNCTIONS}"'
        self.sweep: str = f'{start}sweep_{_FUNCTIONS}"'

    @property
    def tables(self) -> Sequence[str]:
        """All tables."""
        return (self.pairs, self.log, self.leases, self.state, self.writers)

    @property
    def functions(self) -> Sequence[str]:
        """All functions."""
        return (self.apply, self.resolve, self.renew, self.expire, self.sweep)

    def live(self, row: str = "p") -> str:
        """Return the condition that a row of pairs has not expired."""
        return (
            f"({row}.expires IS NULL OR {row}.expires > statement_timestamp()) AND ({row}.lease IS NULL OR EXISTS"
            f" (SELECT FROM {self.leases} AS l WHERE l.id = {row}.lease AND l.expires > statement_timestamp()))"
        )

    def revision(self, row: str = "s") -> str:
        """Return the revision that there is, as an expression over a row of the state."""
        return f"greatest({row}.rev, (SELECT max(rev) FROM {self.log}))"

    def remaining(self) -> str:
        """Return the seconds until the next key or lease is over, as an expression."""
        return (
            f"extract(epoch FROM least((SELECT min(expires) FROM {self.pairs} WHERE expires IS NOT NULL),"
            f" (SELECT min(expires) FROM {self.leases})) - clock_timestamp())::float8"
        )

    def creation(self) -> str:
        """Return the statements that create what is missing, as one transaction."""
        values = {name: value for name, value in vars(self).items() if isinstance(value, str)}
        values["clock"] = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
        numbers = {
            "version": VERSION,
            "kept_revisions": KEPT_REVISIONS,
            "kept_bytes": KEPT_BYTES,
            "kept_seconds": KEPT_SECONDS,
            "revisions_lost": REVISIONS_LOST,
            "expired_at_once": _EXPIRED_AT_ONCE,
            "trimmed_at_once": _TRIMMED_AT_ONCE,
            **{kind.name: kind.value for kind in Kind},
        }
        return Template(_CREATION).substitute(values, **numbers)


def schema(*, schema: str = "public", table: str = "aiolibkv", role: str | None = None) -> str:
    """Return the statements that an administrator runs where the store's role may not create tables.

    Args:
        schema: the store's option of that name.
        table: likewise.
        role: who is to use them; when not given, only who runs the statements may.

    Raises:
        ValueError: a name that is no identifier.
    """
    names = Identifiers(schema, table)
    statements = f"BEGIN;\nCREATE SCHEMA IF NOT EXISTS {names.schema};\n{names.creation()}"
    if role is not None:
        quoted = '"{}"'.format(role.replace('"', '""'))
        statements += f"GRANT USAGE ON SCHEMA {names.schema} TO {quoted};\n"
        statements += f"GRANT SELECT, INSERT, UPDATE, DELETE ON {', '.join(names.tables)} TO {quoted};\n"
        statements += f"GRANT EXECUTE ON FUNCTION {', '.join(names.functions)} TO {quoted};\n"
    return f"{statements}COMMIT;\n"


_CREATION = """\
SELECT pg_advisory_xact_lock(hashtext('aiolibkv'));

-- A new history begins where a table is lost or damaged; a lease goes with its keys, and they with it.
DO $$body$$
DECLARE
    _name text;
    _columns text;
BEGIN
    SELECT name INTO _name
        FROM (VALUES ('$pairs', '{key,rev,expires,lease,value}'::name[]), ('$log', '{rev,key,value,at}'),
            ('$leases', '{id,ttl,expires}'), ('$writers', '{id,batch,outcome,at}'),
            ('$state', '{id,version,rev,floor,bytes,origin,xid,swept}')) AS wanted (name, columns)
        WHERE to_regclass(name) IS NOT NULL
            AND NOT columns <@ ARRAY(SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(name)) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'table % is there and not what the store wants to have in it; give it another name', _name;
    END IF;
    IF to_regclass('$leases') IS NULL AND to_regclass('$pairs') IS NOT NULL THEN
        DELETE FROM $pairs WHERE lease IS NOT NULL;
    ELSIF to_regclass('$leases') IS NOT NULL AND to_regclass('$pairs') IS NULL THEN
        DELETE FROM $leases;
    END IF;
    IF to_regclass('$state') IS NOT NULL THEN
        IF to_regclass('$pairs') IS NULL OR to_regclass('$log') IS NULL OR to_regclass('$leases') IS NULL
            OR (SELECT count(*) FROM $state) > 1
        THEN
            DELETE FROM $state;
        END IF;
    END IF;
    -- What is restored without a transaction, beside writes, has rows of both and no primary key.
    FOR _name, _columns IN
        SELECT name, columns FROM (VALUES ('$pairs', 'key'), ('$log', 'rev, key'), ('$leases', 'id'),
            ('$writers', 'id, batch'), ('$state', 'id')) AS wanted (name, columns)
        WHERE to_regclass(name) IS NOT NULL
            AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass(name) AND indisprimary)
    LOOP
        EXECUTE format(
            'DELETE FROM %1$$s WHERE ctid IN (SELECT ctid FROM (SELECT ctid, row_number() OVER (PARTITION BY %2$$s'
            ' ORDER BY ctid DESC) AS place FROM %1$$s) AS placed WHERE place > 1)', _name, _columns
        );
        EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (%s)', _name, _columns);
    END LOOP;
END $$body$$;

CREATE TABLE IF NOT EXISTS $pairs (
    key text COLLATE "C" PRIMARY KEY, rev bigint NOT NULL, expires timestamptz, lease bigint, value bytea NOT NULL
);
CREATE INDEX IF NOT EXISTS "${table}_expires" ON $pairs (expires) WHERE expires IS NOT NULL;
CREATE INDEX IF NOT EXISTS "${table}_lease" ON $pairs (lease) WHERE lease IS NOT NULL;

CREATE TABLE IF NOT EXISTS $log (
    rev bigint NOT NULL, key text COLLATE "C" NOT NULL, value bytea, at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (rev, key)
);

CREATE TABLE IF NOT EXISTS $leases (
    id bigint PRIMARY KEY, ttl interval NOT NULL, expires timestamptz NOT NULL
) WITH (fillfactor = 20);

CREATE TABLE IF NOT EXISTS $writers (
    id bigint, batch bigint, outcome bigint[], at timestamptz NOT NULL, PRIMARY KEY (id, batch)
);

CREATE TABLE IF NOT EXISTS $state (
    id integer PRIMARY KEY CHECK (id = 1), version integer NOT NULL, rev bigint NOT NULL, floor bigint NOT NULL,
    bytes bigint NOT NULL, origin text NOT NULL, xid bigint NOT NULL, swept timestamptz NOT NULL
) WITH (fillfactor = 10);
WITH begun AS (
    INSERT INTO $state SELECT 1, $version, now, now, 0, '', txid_current() % 4294967296, '-infinity'
        FROM (SELECT $clock AS now) AS begin ON CONFLICT DO NOTHING RETURNING rev
) INSERT INTO $log (rev, key) SELECT rev, '' FROM begun;

-- Ends a lease if it is over, and deletes its keys; returns the new revision. One renewed meanwhile stays.
CREATE OR REPLACE FUNCTION $expire(_lease bigint, _now timestamptz, _rev bigint) RETURNS bigint
LANGUAGE plpgsql AS $$body$$
BEGIN
    DELETE FROM $leases WHERE id = _lease AND expires <= _now;
    IF NOT FOUND AND EXISTS (SELECT FROM $leases WHERE id = _lease) THEN
        RETURN _rev;
    END IF;
    WITH gone AS (DELETE FROM $pairs WHERE lease = _lease RETURNING key)
        INSERT INTO $log (rev, key) SELECT _rev + 1, key FROM gone;
    RETURN CASE WHEN FOUND THEN _rev + 1 ELSE _rev END;
END $$body$$;

-- Deletes what has expired, and what is too old in the log, and writes the state. Its row is locked, and has _rev.
CREATE OR REPLACE FUNCTION $sweep(_state $state, _rev bigint, _now timestamptz) RETURNS $state
LANGUAGE plpgsql AS $$body$$
DECLARE
    _lease bigint;
    _count bigint;
    _floor bigint;
BEGIN
    FOR _lease IN SELECT id FROM $leases WHERE expires <= _now ORDER BY expires LIMIT $expired_at_once LOOP
        _state.rev := $expire(_lease, _now, _state.rev);
    END LOOP;
    WITH due AS (SELECT key FROM $pairs WHERE expires <= _now ORDER BY expires LIMIT $expired_at_once),
        gone AS (DELETE FROM $pairs AS p USING due WHERE p.key = due.key RETURNING p.key)
        INSERT INTO $log (rev, key) SELECT _state.rev + row_number() OVER (), key FROM gone;
    GET DIAGNOSTICS _count = ROW_COUNT;
    _state.rev := _state.rev + _count;

    _state.bytes := _state.bytes + (SELECT coalesce(sum(octet_length(value)), 0) FROM $log WHERE rev > _rev);
    _floor := greatest(
        _state.rev - $kept_revisions,
        coalesce(
            (SELECT rev - 1 FROM $log WHERE at >= _now - interval '$kept_seconds seconds' ORDER BY rev LIMIT 1),
            _state.rev
        ),
        CASE WHEN _state.bytes > $kept_bytes THEN (
            SELECT rev FROM (
                SELECT rev, sum(octet_length(value)) OVER (ORDER BY rev) AS size FROM $log
            ) AS sized WHERE size >= _state.bytes - $kept_bytes ORDER BY rev LIMIT 1
        ) END
    );
    -- The last row stays: it has the revision.
    _floor := least(
        _floor, (SELECT max(rev) - 1 FROM $log),
        (SELECT max(rev) FROM (SELECT rev FROM $log ORDER BY rev LIMIT $trimmed_at_once) AS oldest)
    );
    WITH gone AS (DELETE FROM $log WHERE rev <= _floor RETURNING value)
        SELECT coalesce(sum(octet_length(value)), 0) INTO _count FROM gone;
    _state.floor := greatest(_state.floor, _floor);
    _state.bytes := _state.bytes - _count;
    IF date_trunc('hour', _now) <> date_trunc('hour', _state.swept) THEN
        DELETE FROM $writers WHERE at < _now - interval '1 day';
    END IF;
    _state.swept := _now;
    UPDATE $state SET rev = _state.rev, floor = _state.floor, bytes = _state.bytes, origin = _state.origin,
        swept = _state.swept, xid = txid_current() % 4294967296;
    RETURN _state;
END $$body$$;

-- Carries out operations, each by itself. Their steps come one after the other: its conditions, then what it writes.
-- Returns two numbers for each: the step that was refused, or 0, and its revision, or how many keys it deleted.
CREATE OR REPLACE FUNCTION $apply(
    _writer bigint, _batch bigint, _operations integer[], _kinds integer[], _paths text[], _values bytea[],
    _numbers bigint[], _seconds float8[]
) RETURNS bigint[]
LANGUAGE plpgsql AS $$body$$
DECLARE
    _state $state;
    _swept_rev bigint;
    _last bigint;
    _is_lost boolean;
    _written_by bigint;
    _now timestamptz;
    _origin text;
    _begun bigint;
    _step record;
    _operation integer := 0;
    _refused bigint := 0;
    _number bigint := 0;
    _own bigint;
    _rev bigint;
    _written boolean := false;
    _found record;
    _first text;
    _end text;
    _outcome bigint[] := '{}';
    _paths_told text[] := '{}';
    _revs_told bigint := 0;
    _told text;
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'what was written while this transaction waited would not be seen'
            USING ERRCODE = 'feature_not_supported';
    END IF;
    SELECT * INTO STRICT _state FROM $state FOR UPDATE;
    -- The name of the table's file without its number, which changes when it is rewritten, is the database.
    SELECT xmin::text::bigint, (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint
        || rtrim(pg_relation_filepath(tableoid), '0123456789') INTO _written_by, _origin FROM $state;
    IF EXISTS (SELECT FROM $writers WHERE id = _writer AND batch >= _batch) THEN
        RETURN NULL;
    END IF;
    _now := clock_timestamp();
    _swept_rev := _state.rev;
    _last := (SELECT max(rev) FROM $log);
    _state.rev := greatest(_state.rev, _last);
    _begun := _state.rev;
    _is_lost := _written_by <> _state.xid OR _origin <> _state.origin AND _state.origin <> '' OR _last IS NULL;

    -- What was lost is not to be mistaken for what comes now.
    IF _is_lost THEN
        _state.rev := CASE WHEN $clock > _state.rev THEN $clock ELSE _state.rev + $revisions_lost END;
        _state.floor := _state.rev;
        IF _last IS NULL THEN
            INSERT INTO $log (rev, key) VALUES (_state.rev, '');
        END IF;
    END IF;
    IF _origin <> _state.origin THEN
        -- Renewals may be lost, too.
        UPDATE $leases SET expires = _now + ttl;
        _state.origin := _origin;
    END IF;
    IF _is_lost OR _operations = '{}' OR _state.swept NOT BETWEEN _now - interval '1 second' AND _now THEN
        _state := $sweep(_state, _swept_rev, _now);
    END IF;

    FOR _step IN
        SELECT * FROM unnest(_operations, _kinds, _paths, _values, _numbers, _seconds) WITH ORDINALITY
            AS given (operation, kind, path, value, number, seconds, at)
    LOOP
        IF _step.operation <> _operation THEN
            IF _operation > 0 THEN
                _outcome := array_append(array_append(_outcome, _refused), _number);
            END IF;
            _revs_told := _revs_told + CASE WHEN _own IS NULL THEN 0 ELSE 1 END;
            _operation := _step.operation;
            _refused := 0;
            _number := 0;
            _own := NULL;
        END IF;
        CONTINUE WHEN _refused > 0;

        IF _step.kind = $LEASE THEN
            IF NOT EXISTS (SELECT FROM $leases WHERE id = _step.number AND expires > _now) THEN
                _state.rev := $expire(_step.number, _now, _state.rev);
                IF NOT EXISTS (SELECT FROM $leases WHERE id = _step.number) THEN
                    _refused := _step.at;
                END IF;
            END IF;
        ELSIF _step.kind = $EMPTY THEN
            IF EXISTS (
                SELECT FROM $pairs AS p LEFT JOIN $leases AS l ON l.id = p.lease
                WHERE p.key > _step.path || '/' AND p.key < _step.path || '0'
                    AND (p.expires IS NULL OR p.expires > _now) AND (p.lease IS NULL OR l.expires > _now)
            ) THEN
                _refused := _step.at;
            END IF;
        ELSIF _step.kind < $EMPTY THEN
            SELECT p.rev, p.lease, p.expires <= _now AS is_over, l.expires > _now AS lives INTO _found
                FROM $pairs AS p LEFT JOIN $leases AS l ON l.id = p.lease WHERE p.key = _step.path;
            IF _found.is_over THEN
                DELETE FROM $pairs WHERE key = _step.path;
                _state.rev := _state.rev + 1;
                INSERT INTO $log (rev, key) VALUES (_state.rev, _step.path);
                _found.rev := NULL;
            ELSIF _found.lease IS NOT NULL AND _found.lives IS NOT TRUE THEN
                _rev := $expire(_found.lease, _now, _state.rev);
                IF _rev > _state.rev THEN
                    _state.rev := _rev;
                    _found.rev := NULL;
                END IF;
            END IF;
            IF (CASE _step.kind
                WHEN $ABSENT THEN _found.rev IS NOT NULL
                WHEN $PRESENT THEN _found.rev IS NULL
                ELSE _found.rev IS DISTINCT FROM _step.number
            END) THEN
                _refused := _step.at;
            END IF;
        ELSIF _step.kind = $WRITE THEN
            _own := coalesce(_own, _state.rev + 1);
            _state.rev := _own;
            _number := _own;
            INSERT INTO $pairs AS p (key, rev, expires, lease, value)
                VALUES (_step.path, _own, _now + make_interval(secs => _step.seconds), _step.number, _step.value)
                ON CONFLICT (key) DO UPDATE SET rev = excluded.rev, expires = excluded.expires,
                    lease = excluded.lease, value = excluded.value;
            INSERT INTO $log (rev, key, value) VALUES (_own, _step.path, _step.value);
            _paths_told := _paths_told || _step.path;
        ELSIF _step.kind = $DELETE THEN
            _own := coalesce(_own, _state.rev + 1);
            _state.rev := _own;
            DELETE FROM $pairs WHERE key = _step.path;
            INSERT INTO $log (rev, key) VALUES (_own, _step.path);
            _paths_told := _paths_told || _step.path;
        ELSIF _step.kind = $DELETE_TREE THEN
            _first := CASE _step.path WHEN '' THEN '' ELSE _step.path || '/' END;
            _end := CASE _step.path WHEN '' THEN chr(1114111) ELSE _step.path || '0' END;
            WITH gone AS (
                DELETE FROM $pairs WHERE key > _first AND key < _end
                    AND key <> convert_from(_step.value, 'UTF8')
                    AND NOT starts_with(key, convert_from(_step.value, 'UTF8') || '/')
                    RETURNING key, expires, lease
            ), logged AS (
                INSERT INTO $log (rev, key) SELECT _state.rev + 1, key FROM gone
            ) SELECT count(*) AS all_of_them, count(*) FILTER (
                WHERE (g.expires IS NULL OR g.expires > _now) AND (g.lease IS NULL OR l.expires > _now)
            ) AS live INTO _found FROM gone AS g LEFT JOIN $leases AS l ON l.id = g.lease;
            _number := _found.live;
            IF _found.all_of_them > 0 THEN
                _state.rev := _state.rev + 1;
            END IF;
        ELSIF _step.kind = $BEGIN THEN
            INSERT INTO $leases AS l VALUES (
                _step.number, make_interval(secs => _step.seconds), _now + make_interval(secs => _step.seconds)
            ) ON CONFLICT (id) DO UPDATE SET expires = excluded.expires;
            _written := true;
        ELSE
            UPDATE $leases SET expires = _now WHERE id = _step.number;
            IF FOUND THEN
                _state.rev := $expire(_step.number, _now, _state.rev);
                _written := true;
            END IF;
        END IF;
    END LOOP;
    IF _operation > 0 THEN
        _outcome := array_append(array_append(_outcome, _refused), _number);
    END IF;
    _revs_told := _revs_told + CASE WHEN _own IS NULL THEN 0 ELSE 1 END;

    IF _state.rev > _begun OR _written THEN
        INSERT INTO $writers VALUES (_writer, _batch, _outcome, _now);
        DELETE FROM $writers WHERE id = _writer AND batch = (
            SELECT batch FROM $writers WHERE id = _writer AND batch < _batch ORDER BY batch DESC LIMIT 1
        );
    END IF;
    -- A session that listens and never ends its transaction fills the queue; then nobody could commit.
    IF _state.rev > _begun AND pg_notification_queue_usage() < 0.5 THEN
        -- Who follows none of these keys need not look. Nothing told means that all have to.
        IF _state.rev - _begun > _revs_told THEN
            _told := '';
        ELSE
            _told := array_to_string(_paths_told, E'\\n');
        END IF;
        PERFORM pg_notify('$channel', CASE WHEN octet_length(_told) < 7000 THEN _told ELSE '' END);
    END IF;
    RETURN _outcome;
END $$body$$;

-- Returns what apply did; when it was not carried out, NULL, and from now on it will not be.
CREATE OR REPLACE FUNCTION $resolve(_writer bigint, _batch bigint) RETURNS bigint[]
LANGUAGE plpgsql AS $$body$$
DECLARE
    _outcome bigint[];
BEGIN
    PERFORM FROM $state FOR UPDATE;
    SELECT outcome INTO _outcome FROM $writers WHERE id = _writer AND batch = _batch;
    IF NOT FOUND THEN
        INSERT INTO $writers VALUES (_writer, _batch, NULL, clock_timestamp());
    END IF;
    RETURN _outcome;
END $$body$$;

-- Renews leases and returns those that are not over. One that is being ended meanwhile is waited for.
CREATE OR REPLACE FUNCTION $renew(_leases bigint[]) RETURNS SETOF bigint
LANGUAGE plpgsql AS $$body$$
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    RETURN QUERY UPDATE $leases SET expires = clock_timestamp() + ttl
        WHERE id = ANY (_leases) AND expires > clock_timestamp() RETURNING id;
END $$body$$;
"""
