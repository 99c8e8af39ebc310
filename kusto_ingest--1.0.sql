/* kusto_ingest--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION kusto_ingest" to load this file. \quit

-- Nothing here uses IF NOT EXISTS or OR REPLACE: an object that somebody
-- made beforehand must stop the script, not become part of the extension.

CREATE SCHEMA kusto;
COMMENT ON SCHEMA kusto IS 'kusto_ingest: operations and what became of them';

-- ---------------------------------------------------------------------------
-- Configuration: CREATE SERVER and CREATE USER MAPPING
-- ---------------------------------------------------------------------------

CREATE FUNCTION kusto_fdw_validator(options text[], catalog oid)
RETURNS void
AS 'MODULE_PATHNAME', 'kusto_fdw_validator'
LANGUAGE C STRICT STABLE PARALLEL SAFE;
COMMENT ON FUNCTION kusto_fdw_validator(text[], oid)
IS 'checks the options of servers and user mappings of foreign-data wrapper kusto';

CREATE FOREIGN DATA WRAPPER kusto
	VALIDATOR kusto_fdw_validator;
COMMENT ON FOREIGN DATA WRAPPER kusto
IS 'Azure Data Explorer and Microsoft Fabric Eventhouse clusters';

-- ---------------------------------------------------------------------------
-- Operations
-- ---------------------------------------------------------------------------

CREATE TABLE kusto.operation (
	id uuid PRIMARY KEY,
	owner oid NOT NULL,
	server name NOT NULL,
	database text NOT NULL,
	table_name text NOT NULL,
	mode text NOT NULL CHECK (mode IN ('queued', 'streaming', 'managed', 'direct')),
	source text NOT NULL CHECK (source IN ('query', 'capture')),
	query text,
	options jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(options) = 'object'),
	table_command text,
	state text NOT NULL CHECK (state IN ('pending', 'running', 'staged', 'posting', 'posted',
		'succeeded', 'partially_succeeded', 'failed', 'skipped', 'unknown', 'cancelled')),
	attempts integer NOT NULL DEFAULT 0,
	runs integer NOT NULL DEFAULT 0,
	not_before timestamptz,
	rows bigint,
	raw_bytes bigint,
	compressed_bytes bigint,
	blobs integer,
	type_errors jsonb,
	created_at timestamptz NOT NULL,
	started_at timestamptz,
	staged_at timestamptz,
	posted_at timestamptz,
	finished_at timestamptz,
	error_code text,
	error_message text,
	details text,
	hint text,
	activity_id text,
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL,
	CHECK (query IS NOT NULL OR state NOT IN ('pending', 'running')),
	CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'partially_succeeded', 'failed',
		'skipped', 'unknown', 'cancelled')))
) WITH (fillfactor = 70);
COMMENT ON TABLE kusto.operation IS 'exports to Kusto; read the view kusto.operations instead';
COMMENT ON COLUMN kusto.operation.owner IS 'role that asked, whose user mapping is used';
COMMENT ON COLUMN kusto.operation.attempts IS 'how often posting has begun: once, and once more for each kusto_retry';
COMMENT ON COLUMN kusto.operation.runs IS 'how often a job has begun to run the query; 0 for kusto_ingest, which runs it itself';
COMMENT ON COLUMN kusto.operation.not_before IS 'when a job that is pending may be tried again';
COMMENT ON COLUMN kusto.operation.started_at IS 'when a job began to run the query';
COMMENT ON COLUMN kusto.operation.table_command IS 'management command that the worker runs before it posts';
COMMENT ON COLUMN kusto.operation.type_errors IS 'values that met on_type_error, counted by column and kind';
COMMENT ON COLUMN kusto.operation.system_identifier IS 'cluster that recorded the operation and alone works on it; pg_upgrade makes another cluster, a physical copy is the same';
COMMENT ON COLUMN kusto.operation.database_oid IS 'database that recorded the operation and alone works on it; CREATE DATABASE ... TEMPLATE makes another';

-- Not by state: a claim is a HOT update.
CREATE INDEX operation_open ON kusto.operation (created_at)
	WHERE finished_at IS NULL;
COMMENT ON INDEX kusto.operation_open IS 'what the background worker still has to do';

-- Nearly all open ones are posted, tens of thousands while Kusto gathers its batches, and each
-- commit has the worker look for what is new.  That is worth one update that is not HOT.
CREATE INDEX operation_unposted ON kusto.operation (created_at)
	WHERE finished_at IS NULL AND posted_at IS NULL AND staged_at IS NOT NULL;
COMMENT ON INDEX kusto.operation_unposted IS 'what the background worker is to post';

-- Those open ones that have nothing to do with posting may be thousands.
CREATE INDEX operation_jobs ON kusto.operation (created_at)
	WHERE finished_at IS NULL AND staged_at IS NULL;
COMMENT ON INDEX kusto.operation_jobs IS 'what jobs still have to run';

CREATE INDEX operation_finished ON kusto.operation (finished_at)
	WHERE finished_at IS NOT NULL;
COMMENT ON INDEX kusto.operation_finished IS 'what kusto_purge and kusto_ingest.retention take away';

CREATE TABLE kusto.blob (
	operation_id uuid NOT NULL REFERENCES kusto.operation ON DELETE CASCADE,
	ordinal integer NOT NULL CHECK (ordinal > 0),
	source_id uuid NOT NULL UNIQUE,
	url text NOT NULL CHECK (url NOT LIKE '%?%'),
	rows bigint NOT NULL,
	raw_bytes bigint NOT NULL,
	compressed_bytes bigint NOT NULL,
	state text NOT NULL CHECK (state IN ('staged', 'posting', 'posted',
		'succeeded', 'partially_succeeded', 'failed', 'skipped', 'unknown', 'cancelled')),
	exactly_once boolean NOT NULL,
	post_attempts integer NOT NULL DEFAULT 0,
	status_table text CHECK (status_table NOT LIKE '%?%'),
	error_code text,
	failure_status text,
	details text,
	activity_id text,
	kusto_operation_id text,
	staged_at timestamptz NOT NULL,
	posted_at timestamptz,
	finished_at timestamptz,
	PRIMARY KEY (operation_id, ordinal),
	CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'partially_succeeded', 'failed',
		'skipped', 'unknown', 'cancelled')))
) WITH (fillfactor = 70);
COMMENT ON TABLE kusto.blob IS 'blobs of exports to Kusto; read the view kusto.blobs instead';
COMMENT ON COLUMN kusto.blob.source_id IS 'Kusto''s source id: uuid version 5 of operation and ordinal, the same on every attempt';
COMMENT ON COLUMN kusto.blob.exactly_once IS 'posted with the tag ingest-by:<source id>, so that Kusto skips what it has already';
COMMENT ON COLUMN kusto.blob.url IS 'where the blob is, without its shared access signature';
COMMENT ON COLUMN kusto.blob.status_table IS 'status table that the service reports to, without its shared access signature';

CREATE TABLE kusto.worker (
	only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
	pid integer NOT NULL,
	started_at timestamptz NOT NULL,
	last_error text,
	last_error_at timestamptz,
	CHECK ((last_error IS NULL) = (last_error_at IS NULL))
);
COMMENT ON TABLE kusto.worker IS 'what this database''s background worker tells of itself; read the view kusto.workers instead';

-- ---------------------------------------------------------------------------
-- Row changes
-- ---------------------------------------------------------------------------

-- One number for each statement that changes captured rows, or row where the
-- triggers are for each row; drawn while the rows are locked, so that changes of
-- one row have ascending numbers, whoever makes them.  Column _seq in Kusto is
-- the number times 2^20 plus the place in the statement.
CREATE SEQUENCE kusto.change_number AS bigint;
COMMENT ON SEQUENCE kusto.change_number IS 'puts row changes in order';

CREATE TABLE kusto.capture (
	id integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY CHECK (id > 0),
	relation oid NOT NULL,
	relation_name text NOT NULL,
	owner oid NOT NULL,
	server name NOT NULL,
	database text NOT NULL,
	table_name text NOT NULL,
	columns text[],
	old_values boolean NOT NULL,
	create_table boolean NOT NULL,
	on_type_error text NOT NULL CHECK (on_type_error IN ('error', 'null', 'string')),
	snapshot_operation uuid,
	snapshot_seq bigint,
	created_at timestamptz NOT NULL,
	ended_at timestamptz,
	forgotten_at timestamptz,
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL,
	CHECK (ended_at IS NOT NULL OR forgotten_at IS NULL)
);
COMMENT ON TABLE kusto.capture IS 'tables whose row changes go to Kusto; read the view kusto.captures instead';
COMMENT ON COLUMN kusto.capture.relation IS 'the captured table, for partitions the one that was captured with them';
COMMENT ON COLUMN kusto.capture.relation_name IS 'its name when the capture began';
COMMENT ON COLUMN kusto.capture.owner IS 'owner of the captured table, whose user mapping is used';
COMMENT ON COLUMN kusto.capture.columns IS 'columns that are captured; null: all';
COMMENT ON COLUMN kusto.capture.snapshot_operation IS 'export of the existing rows; changes wait until it is staged';
COMMENT ON COLUMN kusto.capture.snapshot_seq IS '_seq of the existing rows';
COMMENT ON COLUMN kusto.capture.ended_at IS 'when it was given up; what was captured before is still sent';
COMMENT ON COLUMN kusto.capture.forgotten_at IS 'when all of it had been sent; one that knows most columns of a Kusto table is kept, for their order';

COMMENT ON SEQUENCE kusto.capture_id_seq IS 'numbers of captures';

CREATE UNIQUE INDEX capture_target ON kusto.capture (relation, server, database, table_name)
	WHERE ended_at IS NULL;
COMMENT ON INDEX kusto.capture_target IS 'what a trigger belongs to';

-- Which columns the fields of a chunk are; it only ever grows at its end, so
-- that each shape is a beginning of the next, and of the longest of all captures
-- to the same Kusto table.  The same shape may stand here
-- twice, when two sessions found it at the same time.  The check of a foreign key
-- would not see a capture that is newer than the transaction's snapshot.
CREATE TABLE kusto.capture_shape (
	id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
	capture integer NOT NULL,
	shape bigint NOT NULL,
	columns jsonb NOT NULL CHECK (jsonb_typeof(columns) = 'array'),
	created_at timestamptz NOT NULL,
	accepted boolean NOT NULL
);
COMMENT ON TABLE kusto.capture_shape IS 'columns of captured row changes, as the Kusto table must have them';
COMMENT ON COLUMN kusto.capture_shape.shape IS 'hash of the columns; row changes name it';
COMMENT ON COLUMN kusto.capture_shape.columns IS 'name and type in Kusto, and number in PostgreSQL, of each column behind _op, _txid, _seq, _changed_at and _old';
COMMENT ON COLUMN kusto.capture_shape.accepted IS 'the Kusto table has these columns, says whoever has called kusto_capture; or the worker sees to it';
COMMENT ON SEQUENCE kusto.capture_shape_id_seq IS 'tells which of a capture''s shapes is the newest';
CREATE INDEX capture_shape_capture ON kusto.capture_shape (capture);
COMMENT ON INDEX kusto.capture_shape_capture IS 'the shapes of a capture';

-- The outbox: a ring of three tables.  Rows are only ever inserted, and a table
-- is truncated when all of it is in Kusto, so nothing here needs vacuuming,
-- however long a transaction is open.  A row of capture -n is no data but says
-- how far capture n has got.  Most small rows are not in the index, but found by
-- one in the same page (src/pg/outbox_leader.c).

CREATE TABLE kusto.outbox_0 (
	txid xid8 NOT NULL,
	seq bigint NOT NULL,
	shape bigint NOT NULL,
	changed_at timestamptz NOT NULL,
	capture integer NOT NULL,
	rows integer NOT NULL,
	entry "char" NOT NULL DEFAULT 'o',
	data bytea NOT NULL
) USING heap WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false, toast_tuple_target = 8160);
ALTER TABLE kusto.outbox_0 ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE kusto.outbox_0 IS 'row changes that are to be sent to Kusto, as CSV; one of three tables that are written in turn';
COMMENT ON COLUMN kusto.outbox_0.entry IS 'by which entry of the index it is found: o, its own; s, its own, and so are others in its page; n, that of another one in its page';
CREATE INDEX outbox_0_batch ON kusto.outbox_0 (capture, entry, txid, seq) WITH (deduplicate_items = off) WHERE entry <> 'n';
COMMENT ON INDEX kusto.outbox_0_batch IS 'what a capture has to send that was not visible at its last batch';

CREATE TABLE kusto.outbox_1 (
	txid xid8 NOT NULL,
	seq bigint NOT NULL,
	shape bigint NOT NULL,
	changed_at timestamptz NOT NULL,
	capture integer NOT NULL,
	rows integer NOT NULL,
	entry "char" NOT NULL DEFAULT 'o',
	data bytea NOT NULL
) USING heap WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false, toast_tuple_target = 8160);
ALTER TABLE kusto.outbox_1 ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE kusto.outbox_1 IS 'row changes that are to be sent to Kusto, as CSV; one of three tables that are written in turn';
COMMENT ON COLUMN kusto.outbox_1.entry IS 'by which entry of the index it is found: o, its own; s, its own, and so are others in its page; n, that of another one in its page';
CREATE INDEX outbox_1_batch ON kusto.outbox_1 (capture, entry, txid, seq) WITH (deduplicate_items = off) WHERE entry <> 'n';
COMMENT ON INDEX kusto.outbox_1_batch IS 'what a capture has to send that was not visible at its last batch';

CREATE TABLE kusto.outbox_2 (
	txid xid8 NOT NULL,
	seq bigint NOT NULL,
	shape bigint NOT NULL,
	changed_at timestamptz NOT NULL,
	capture integer NOT NULL,
	rows integer NOT NULL,
	entry "char" NOT NULL DEFAULT 'o',
	data bytea NOT NULL
) USING heap WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false, toast_tuple_target = 8160);
ALTER TABLE kusto.outbox_2 ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE kusto.outbox_2 IS 'row changes that are to be sent to Kusto, as CSV; one of three tables that are written in turn';
COMMENT ON COLUMN kusto.outbox_2.entry IS 'by which entry of the index it is found: o, its own; s, its own, and so are others in its page; n, that of another one in its page';
CREATE INDEX outbox_2_batch ON kusto.outbox_2 (capture, entry, txid, seq) WITH (deduplicate_items = off) WHERE entry <> 'n';
COMMENT ON INDEX kusto.outbox_2_batch IS 'what a capture has to send that was not visible at its last batch';

CREATE TABLE kusto.dead_letter (
	id uuid PRIMARY KEY,
	capture integer NOT NULL,
	relation_name text NOT NULL,
	owner oid NOT NULL,
	server name NOT NULL,
	database text NOT NULL,
	table_name text NOT NULL,
	first_seq bigint NOT NULL,
	rows bigint NOT NULL,
	data bytea NOT NULL,
	created_at timestamptz NOT NULL,
	error_code text,
	error_message text NOT NULL,
	details text,
	hint text,
	activity_id text,
	system_identifier bigint NOT NULL,
	database_oid oid NOT NULL
);
ALTER TABLE kusto.dead_letter ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE kusto.dead_letter IS 'row changes that Kusto has refused; read the view kusto.dead_letters instead';
COMMENT ON COLUMN kusto.dead_letter.data IS 'CSV';

-- A publication FOR ALL TABLES has these tables, too.  What the publisher records
-- here is the publisher's to do: a subscriber that has the extension does not take
-- it.  src/pg/functions_replication.c knows what is applied from what a session
-- with session_replication_role = replica does.
CREATE FUNCTION kusto.ignore_replicated()
RETURNS trigger
AS 'MODULE_PATHNAME', 'kusto_ignore_replicated'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto.ignore_replicated() IS 'trigger: leave out what logical replication would apply';
REVOKE ALL ON FUNCTION kusto.ignore_replicated() FROM PUBLIC;

CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.operation
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.operation ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.blob
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.blob ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.worker
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.worker ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.capture
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.capture ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.capture_shape
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.capture_shape ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.outbox_0
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.outbox_0 ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.outbox_1
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.outbox_1 ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.outbox_2
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.outbox_2 ENABLE REPLICA TRIGGER ignore_replicated;
CREATE TRIGGER ignore_replicated BEFORE INSERT OR UPDATE OR DELETE ON kusto.dead_letter
	FOR EACH ROW EXECUTE FUNCTION kusto.ignore_replicated();
ALTER TABLE kusto.dead_letter ENABLE REPLICA TRIGGER ignore_replicated;
COMMENT ON TRIGGER ignore_replicated ON kusto.operation IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.blob IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.worker IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.capture IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.capture_shape IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.outbox_0 IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.outbox_1 IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.outbox_2 IS 'what a publisher has recorded is not for this database to do';
COMMENT ON TRIGGER ignore_replicated ON kusto.dead_letter IS 'what a publisher has recorded is not for this database to do';

-- A reader sees the operations of the roles that it is a member of; monitoring
-- roles see all, but neither the query of others nor what a query that failed
-- in a job has said: that may hold its text and its data.
CREATE VIEW kusto.operations WITH (security_barrier) AS
	SELECT id, pg_catalog.pg_get_userbyid(owner) AS owner, server, database, table_name, mode, source,
		CASE WHEN pg_catalog.pg_has_role(owner, 'USAGE') THEN query END AS query,
		options, state, attempts, runs, rows, raw_bytes, compressed_bytes, blobs,
		CASE WHEN staged_at IS NOT NULL OR pg_catalog.pg_has_role(owner, 'USAGE')
			THEN type_errors END AS type_errors,
		created_at, started_at, staged_at, posted_at, finished_at, error_code,
		CASE WHEN staged_at IS NOT NULL OR pg_catalog.pg_has_role(owner, 'USAGE')
			THEN error_message END AS error_message,
		CASE WHEN staged_at IS NOT NULL OR pg_catalog.pg_has_role(owner, 'USAGE')
			THEN details END AS details,
		CASE WHEN staged_at IS NOT NULL OR pg_catalog.pg_has_role(owner, 'USAGE')
			THEN hint END AS hint,
		activity_id, system_identifier, database_oid
	FROM kusto.operation
	WHERE pg_catalog.pg_has_role(owner, 'USAGE')
		OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE');
COMMENT ON VIEW kusto.operations IS 'exports to Kusto and their outcome, own ones unless the reader monitors all';

CREATE VIEW kusto.blobs WITH (security_barrier) AS
	SELECT b.operation_id, b.ordinal, b.source_id, b.url, b.rows, b.raw_bytes, b.compressed_bytes,
		b.state, b.exactly_once, b.post_attempts, b.error_code, b.failure_status, b.details, b.activity_id,
		b.kusto_operation_id, b.staged_at, b.posted_at, b.finished_at
	FROM kusto.blob b
		JOIN kusto.operation o ON o.id OPERATOR(pg_catalog.=) b.operation_id
	WHERE pg_catalog.pg_has_role(o.owner, 'USAGE')
		OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE');
COMMENT ON VIEW kusto.blobs IS 'the blobs of exports to Kusto and what became of each';

-- What kusto_ingest() and jobs report of themselves (src/pg/progress.c), live.
-- PostgreSQL hides the parameters of other users' processes from all but
-- pg_read_all_stats, and so leaves their rows out.  Before version 14 there is
-- no progress of COPY to ask for, and nobody else uses these parameters.
-- The operands have the very types of pg_catalog's operators, so that no others
-- are taken.
CREATE VIEW kusto.progress AS
	SELECT (pg_catalog.lpad(pg_catalog.to_hex(p.param18), 16, '0')
			|| pg_catalog.lpad(pg_catalog.to_hex(p.param19), 16, '0'))::uuid AS operation_id,
		p.pid,
		pg_catalog.pg_get_userbyid(a.usesysid) AS usename,
		CASE p.param14
			WHEN 1 THEN 'running the query'
			WHEN 2 THEN 'uploading the rest'
			WHEN 3 THEN 'staging'
			WHEN 4 THEN 'waiting for Kusto'
		END AS phase,
		p.param3 AS rows,
		p.param1 AS raw_bytes,
		p.param15 AS compressed_bytes,
		p.param16::integer AS blobs,
		t.elapsed,
		pg_catalog.round(p.param3::double precision / t.seconds) AS rows_per_second,
		pg_catalog.round(p.param1::double precision / t.seconds) AS raw_bytes_per_second,
		a.wait_event,
		a.backend_xmin,
		pg_catalog.age(a.backend_xmin) AS backend_xmin_age
	FROM pg_catalog.pg_stat_get_progress_info(
			CASE WHEN pg_catalog.current_setting('server_version_num')::integer < 140000
				THEN 'VACUUM' ELSE 'COPY' END) p
		CROSS JOIN LATERAL (
			SELECT e.elapsed,
				NULLIF(pg_catalog.date_part('epoch', e.elapsed), double precision '0') AS seconds
			FROM (SELECT pg_catalog.clock_timestamp() - (timestamptz '2000-01-01 00:00:00+00'
				+ p.param17::double precision * interval '1 microsecond') AS elapsed) e) t
		LEFT JOIN LATERAL pg_catalog.pg_stat_get_activity(p.pid) a ON true
	WHERE p.param20 = 7743222078252331056
		AND p.datid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database());
COMMENT ON VIEW kusto.progress IS 'exports that run now in this database, own ones unless the reader monitors all';
COMMENT ON COLUMN kusto.progress.rows IS 'rows that the query has given so far';
COMMENT ON COLUMN kusto.progress.blobs IS 'blobs that are complete in the service''s storage';
COMMENT ON COLUMN kusto.progress.backend_xmin_age IS 'how many transactions ago the oldest one began that VACUUM must keep rows for, for this export''s sake';

-- The worker of this database, whether or not it runs, and the processes of the
-- jobs that the reader may see.  What runs holds an advisory lock
-- (src/pg/worker_start.c, worker_job.c): that needs no privilege to see, and
-- outlives nobody.  What another cluster or database has recorded, before
-- pg_upgrade or CREATE DATABASE ... TEMPLATE copied it, does not wait here.
CREATE VIEW kusto.workers WITH (security_barrier) AS
	WITH held AS (
		SELECT l.pid, l.classid, l.objid, l.objsubid
		FROM pg_catalog.pg_locks l
			JOIN pg_catalog.pg_database d ON d.oid OPERATOR(pg_catalog.=) l.database
		WHERE l.locktype = 'advisory' AND l.mode = 'ExclusiveLock' AND l.granted
			AND d.datname = pg_catalog.current_database()),
	visible AS (
		SELECT id, state, created_at, started_at
		FROM kusto.operation
		WHERE finished_at IS NULL
			AND system_identifier OPERATOR(pg_catalog.=)
				(SELECT c.system_identifier FROM pg_catalog.pg_control_system() c)
			AND database_oid OPERATOR(pg_catalog.=)
				(SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
			AND (pg_catalog.pg_has_role(owner, 'USAGE')
				OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')))
	SELECT h.pid, 'kusto_ingest worker' AS backend_type,
		CASE WHEN h.pid IS NULL THEN 'stopped' ELSE 'running' END AS state,
		CASE WHEN h.pid = w.pid THEN w.started_at END AS started_at,
		NULL::uuid AS operation_id,
		CASE WHEN pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') THEN w.last_error END AS last_error,
		w.last_error_at, v.oldest_unposted_age, v.pending, v.running, v.staged, v.posting, v.posted
	FROM (SELECT pg_catalog.clock_timestamp() - min(created_at) FILTER (WHERE state <> 'posted') AS oldest_unposted_age,
				count(*) FILTER (WHERE state = 'pending') AS pending,
				count(*) FILTER (WHERE state = 'running') AS running,
				count(*) FILTER (WHERE state = 'staged') AS staged,
				count(*) FILTER (WHERE state = 'posting') AS posting,
				count(*) FILTER (WHERE state = 'posted') AS posted
			FROM visible) v
		LEFT JOIN held h ON h.classid = 1263883092 AND h.objid = 2 AND h.objsubid = 19285
		LEFT JOIN kusto.worker w ON true
	UNION ALL
	SELECT h.pid, 'kusto_ingest job', 'running', v.started_at, v.id,
		NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
	FROM held h
		JOIN visible v ON h.objsubid = 19274
			AND h.classid = ('x' || substr(v.id::text, 1, 8))::bit(32)::bigint::oid
			AND h.objid = ('x' || substr(replace(v.id::text, '-', ''), 9, 8))::bit(32)::bigint::oid;
COMMENT ON VIEW kusto.workers IS 'the background worker of this database and its jobs: what runs, what went wrong, what waits';
COMMENT ON COLUMN kusto.workers.last_error IS 'what went wrong last in the worker, or with an export; for monitoring roles';
COMMENT ON COLUMN kusto.workers.oldest_unposted_age IS 'since when the oldest operation that the reader may see waits to be posted';

-- Whose table it was sees its own; monitoring roles see all, but not the data.
CREATE VIEW kusto.dead_letters WITH (security_barrier) AS
	SELECT id, relation_name, pg_catalog.pg_get_userbyid(owner) AS owner, server, database, table_name,
		first_seq, rows, pg_catalog.octet_length(data) AS bytes,
		CASE WHEN pg_catalog.pg_has_role(owner, 'USAGE') THEN data END AS data,
		created_at, error_code, error_message, details, hint, activity_id,
		system_identifier, database_oid
	FROM kusto.dead_letter
	WHERE pg_catalog.pg_has_role(owner, 'USAGE')
		OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE');
COMMENT ON VIEW kusto.dead_letters IS 'row changes that Kusto has refused: kusto_retry(id) sends them again, kusto_cancel(id) gives them up';
COMMENT ON COLUMN kusto.dead_letters.first_seq IS '_seq of the first of them';
COMMENT ON COLUMN kusto.dead_letters.data IS 'CSV in UTF-8, with the columns of the Kusto table; for members of the owner';

-- ---------------------------------------------------------------------------
-- Exporting
-- ---------------------------------------------------------------------------

CREATE FUNCTION kusto_ingest(
	query text,
	database text,
	table_name text,
	server name DEFAULT NULL,
	mode text DEFAULT 'queued',
	mapping text DEFAULT NULL,
	tags text[] DEFAULT NULL,
	ingest_if_not_exists text[] DEFAULT NULL,
	creation_time timestamptz DEFAULT NULL,
	flush_immediately boolean DEFAULT false,
	create_table boolean DEFAULT false,
	on_type_error text DEFAULT 'error',
	exactly_once text DEFAULT 'auto')
RETURNS uuid
AS 'MODULE_PATHNAME', 'kusto_ingest'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_ingest(text, text, text, name, text, text, text[], text[], timestamptz, boolean, boolean, text, text)
IS 'run a query and send its result to a Kusto table when this transaction commits; in the modes streaming, managed and direct at once, which no rollback undoes';

CREATE FUNCTION kusto_ingest_table(
	relation regclass,
	database text,
	table_name text,
	server name DEFAULT NULL,
	mapping text DEFAULT NULL,
	tags text[] DEFAULT NULL,
	ingest_if_not_exists text[] DEFAULT NULL,
	creation_time timestamptz DEFAULT NULL,
	flush_immediately boolean DEFAULT false,
	create_table boolean DEFAULT false,
	on_type_error text DEFAULT 'error',
	exactly_once text DEFAULT 'auto',
	parallel integer DEFAULT NULL)
RETURNS uuid
AS 'MODULE_PATHNAME', 'kusto_ingest_table'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_ingest_table(regclass, text, text, name, text, text[], text[], timestamptz, boolean, boolean, text, text, integer)
IS 'send all rows of a table to a Kusto table when this transaction commits, read by several processes at once';

CREATE FUNCTION kusto_ingest_async(
	query text,
	database text,
	table_name text,
	server name DEFAULT NULL,
	mode text DEFAULT 'queued',
	mapping text DEFAULT NULL,
	tags text[] DEFAULT NULL,
	ingest_if_not_exists text[] DEFAULT NULL,
	creation_time timestamptz DEFAULT NULL,
	flush_immediately boolean DEFAULT false,
	create_table boolean DEFAULT false,
	on_type_error text DEFAULT 'error',
	exactly_once text DEFAULT 'auto')
RETURNS uuid
AS 'MODULE_PATHNAME', 'kusto_ingest_async'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_ingest_async(text, text, text, name, text, text, text[], text[], timestamptz, boolean, boolean, text, text)
IS 'have a background process run a query as the current user after this transaction commits, and send its result to a Kusto table';

CREATE PROCEDURE kusto_ingest_and_wait(
	query text,
	database text,
	table_name text,
	server name DEFAULT NULL,
	mode text DEFAULT 'queued',
	mapping text DEFAULT NULL,
	tags text[] DEFAULT NULL,
	ingest_if_not_exists text[] DEFAULT NULL,
	creation_time timestamptz DEFAULT NULL,
	flush_immediately boolean DEFAULT false,
	create_table boolean DEFAULT false,
	on_type_error text DEFAULT 'error',
	exactly_once text DEFAULT 'auto',
	timeout interval DEFAULT '10 min')
AS 'MODULE_PATHNAME', 'kusto_ingest_and_wait'
LANGUAGE C;
COMMENT ON PROCEDURE kusto_ingest_and_wait(text, text, text, name, text, text, text[], text[], timestamptz, boolean, boolean, text, text, interval)
IS 'send a query''s result to a Kusto table, commit, wait for the outcome, and fail unless the data landed';

CREATE FUNCTION kusto_wait(operation uuid, timeout interval DEFAULT NULL)
RETURNS text
AS 'MODULE_PATHNAME', 'kusto_wait'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_wait(uuid, interval)
IS 'wait until an operation has ended, or for so long; returns its state';

-- ---------------------------------------------------------------------------
-- Steering
-- ---------------------------------------------------------------------------

CREATE FUNCTION kusto_cancel(operation uuid)
RETURNS boolean
AS 'MODULE_PATHNAME', 'kusto_cancel'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_cancel(uuid)
IS 'cancel an operation that has not been posted yet, or give up a dead letter; false when it is too late';

CREATE FUNCTION kusto_retry(operation uuid)
RETURNS boolean
AS 'MODULE_PATHNAME', 'kusto_retry'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_retry(uuid)
IS 'post the blobs of an operation again that did not land, or perhaps did not, or send a dead letter again; false when there is nothing to retry';

CREATE FUNCTION kusto_purge(older_than interval)
RETURNS bigint
AS 'MODULE_PATHNAME', 'kusto_purge'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_purge(interval)
IS 'delete the records of own operations that finished so long ago; returns how many';

CREATE FUNCTION kusto_create_table_command(
	query text,
	table_name text,
	on_type_error text DEFAULT 'error')
RETURNS text
AS 'MODULE_PATHNAME', 'kusto_create_table_command'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_create_table_command(text, text, text)
IS 'the .create-merge table command for the result of a query';

-- ---------------------------------------------------------------------------
-- Capturing row changes
-- ---------------------------------------------------------------------------

CREATE FUNCTION kusto_capture_changes()
RETURNS trigger
AS 'MODULE_PATHNAME', 'kusto_capture_changes'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_capture_changes()
IS 'trigger: record row changes for Kusto; arguments: database, table, server, then option=value';

CREATE FUNCTION kusto_capture(
	relation regclass,
	database text,
	table_name text,
	server name DEFAULT NULL,
	events text[] DEFAULT ARRAY['insert', 'update', 'delete', 'truncate'],
	columns text[] DEFAULT NULL,
	old_values boolean DEFAULT false,
	snapshot boolean DEFAULT false,
	create_table boolean DEFAULT false,
	on_type_error text DEFAULT 'error',
	replicated boolean DEFAULT false)
RETURNS uuid
AS 'MODULE_PATHNAME', 'kusto_capture'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_capture(regclass, text, text, name, text[], text[], boolean, boolean, boolean, text, boolean)
IS 'send every row change of a table to Kusto from now on; with snapshot the existing rows, too, and returns the operation that does that';

CREATE FUNCTION kusto_uncapture(relation regclass, database text DEFAULT NULL, table_name text DEFAULT NULL)
RETURNS void
AS 'MODULE_PATHNAME', 'kusto_uncapture'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_uncapture(regclass, text, text)
IS 'capture no more row changes of a table; those captured before are still sent';

CREATE FUNCTION kusto_flush(timeout interval DEFAULT NULL)
RETURNS boolean
AS 'MODULE_PATHNAME', 'kusto_flush'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_flush(interval)
IS 'have row changes sent that were committed before the call, and wait for that; false when the time is over';

CREATE FUNCTION kusto_capture_views(relation regclass, OUT name text, OUT purpose text, OUT command text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'kusto_capture_views'
LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_capture_views(regclass)
IS 'the commands that make, in Kusto, a view of a captured table''s current rows and one of its history without duplicates';

-- What is captured and how far it has got.  A reader sees the captures of the
-- roles that it is a member of; monitoring roles see all.  The last mark, a row
-- of capture -id, says what has been sent (src/pg/outbox_mark.c); what is not
-- visible in its snapshot has not.
CREATE VIEW kusto.captures WITH (security_barrier) AS
	WITH marks AS (
		SELECT c.id AS capture, k.mark,
			(k.mark ->> text 'snapshot')::pg_snapshot AS sent,
			(k.mark ->> text 'current')::pg_snapshot AS begun,
			(k.mark ->> text 'after_txid')::xid8 AS after_txid,
			(k.mark ->> text 'after_seq')::bigint AS after_seq
		FROM kusto.capture c
			-- One that has a snapshot goes before later ones that have none.
			LEFT JOIN LATERAL (
				SELECT pg_catalog.convert_from(b.data, 'UTF8')::jsonb AS mark
				FROM ((SELECT 1 AS place, o.data
						FROM (SELECT capture, txid, seq, data FROM kusto.outbox_0 WHERE entry = 'o'
							UNION ALL SELECT capture, txid, seq, data FROM kusto.outbox_1 WHERE entry = 'o'
							UNION ALL SELECT capture, txid, seq, data FROM kusto.outbox_2 WHERE entry = 'o') o
						WHERE o.capture = - c.id AND pg_catalog.position(o.data, '"snapshot":'::bytea) > 0
						ORDER BY o.txid DESC, o.seq DESC
						LIMIT 1)
					UNION ALL
					(SELECT 2, o.data
						FROM (SELECT capture, txid, seq, data FROM kusto.outbox_0 WHERE entry = 'o'
							UNION ALL SELECT capture, txid, seq, data FROM kusto.outbox_1 WHERE entry = 'o'
							UNION ALL SELECT capture, txid, seq, data FROM kusto.outbox_2 WHERE entry = 'o') o
						WHERE o.capture = - c.id
						ORDER BY o.txid DESC, o.seq DESC
						LIMIT 1)) b
				ORDER BY b.place
				LIMIT 1) k ON true
		WHERE c.forgotten_at IS NULL),
	-- In one pass over the outbox: most of it is not in its indexes.
	lags AS (
		SELECT o.capture,
			sum(o.rows::bigint)::bigint AS rows,
			sum(pg_catalog.octet_length(o.data)::bigint)::bigint AS bytes,
			min(o.changed_at) AS oldest
		FROM (SELECT capture, txid, seq, changed_at, rows, data FROM kusto.outbox_0
				UNION ALL SELECT capture, txid, seq, changed_at, rows, data FROM kusto.outbox_1
				UNION ALL SELECT capture, txid, seq, changed_at, rows, data FROM kusto.outbox_2) o
			JOIN marks m ON m.capture = o.capture
		WHERE (m.sent IS NULL OR NOT pg_catalog.pg_visible_in_snapshot(o.txid, m.sent))
			AND (m.begun IS NULL OR NOT pg_catalog.pg_visible_in_snapshot(o.txid, m.begun)
				OR o.txid > m.after_txid OR (o.txid = m.after_txid AND o.seq > m.after_seq))
		GROUP BY o.capture)
	SELECT CASE WHEN r.oid IS NOT NULL THEN c.relation::regclass END AS relation,
		c.relation_name,
		pg_catalog.pg_get_userbyid(c.owner) AS owner,
		c.server, c.database, c.table_name, c.columns, c.old_values,
		t.events,
		CASE WHEN r.oid IS NULL THEN 'dropped'
			WHEN t.total = 0 THEN 'missing'
			WHEN t.by_statement AND h.relatives THEN 'by statement'
			WHEN t.firing = t.total THEN 'enabled'
			WHEN t.replica = t.total THEN 'replica only'
			WHEN t.firing = 0 AND t.replica = 0 THEN 'disabled'
			ELSE 'partly disabled'
		END AS triggers,
		CASE WHEN i.foreign_ THEN 'foreign'
			WHEN m.mark ->> text 'snapshot' IS NULL AND c.snapshot_operation IS NOT NULL THEN 'waiting for snapshot'
			WHEN n.accepted = false THEN 'waiting for columns'
			WHEN m.mark ->> text 'error_message' IS NOT NULL THEN 'failing'
			WHEN c.ended_at IS NOT NULL OR r.oid IS NULL THEN 'ending'
			ELSE 'active'
		END AS state,
		coalesce(l.rows, bigint '0') AS lag_rows,
		coalesce(l.bytes, bigint '0') AS lag_bytes,
		pg_catalog.clock_timestamp() - l.oldest AS lag,
		(m.mark ->> text 'batch_at')::timestamptz AS last_batch_at,
		(m.mark ->> text 'batch_rows')::bigint AS last_batch_rows,
		m.mark ->> text 'batch_mode' AS last_batch_mode,
		(m.mark ->> text 'batch_operation')::uuid AS last_batch_operation,
		coalesce((m.mark ->> text 'rows')::bigint, bigint '0') AS sent_rows,
		coalesce((m.mark ->> text 'bytes')::bigint, bigint '0') AS sent_bytes,
		m.mark ->> text 'error_code' AS last_error_code,
		m.mark ->> text 'error_message' AS last_error,
		m.mark ->> text 'details' AS last_error_details,
		m.mark ->> text 'hint' AS last_error_hint,
		(m.mark ->> text 'error_at')::timestamptz AS last_error_at,
		c.snapshot_operation, c.created_at, c.ended_at
	FROM kusto.capture c
		CROSS JOIN LATERAL (
			SELECT c.system_identifier OPERATOR(pg_catalog.<>)
					(SELECT s.system_identifier FROM pg_catalog.pg_control_system() s)
				OR c.database_oid OPERATOR(pg_catalog.<>)
					(SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) AS foreign_,
				pg_catalog.getdatabaseencoding() AS encoding) i
		LEFT JOIN pg_catalog.pg_class r ON r.oid OPERATOR(pg_catalog.=) c.relation
		-- Triggers of this target, made by kusto_capture() or by hand, also those
		-- that partitions have from it.
		CROSS JOIN LATERAL (
			WITH RECURSIVE tree (relid) AS (
				SELECT c.relation
				UNION
				SELECT h.inhrelid
				FROM tree JOIN pg_catalog.pg_inherits h ON h.inhparent OPERATOR(pg_catalog.=) tree.relid)
			SELECT count(*) AS total,
				count(*) FILTER (WHERE g.tgenabled = 'O' OR g.tgenabled = 'A') AS firing,
				count(*) FILTER (WHERE g.tgenabled = 'R') AS replica,
				-- Neither row-level nor for TRUNCATE.
				bool_or(g.tgtype::integer & 33 = 0 AND tree.relid OPERATOR(pg_catalog.=) c.relation) AS by_statement,
				pg_catalog.array_remove(ARRAY[
					CASE WHEN bool_or(g.tgtype::integer & 4 <> 0) THEN 'insert' END,
					CASE WHEN bool_or(g.tgtype::integer & 16 <> 0) THEN 'update' END,
					CASE WHEN bool_or(g.tgtype::integer & 8 <> 0) THEN 'delete' END,
					CASE WHEN bool_or(g.tgtype::integer & 32 <> 0) THEN 'truncate' END], NULL::text) AS events
			FROM tree
				JOIN pg_catalog.pg_trigger g ON g.tgrelid OPERATOR(pg_catalog.=) tree.relid
				CROSS JOIN LATERAL (
					SELECT pg_catalog.convert_to(c.database, i.encoding) || '\x00'::bytea
						|| pg_catalog.convert_to(c.table_name, i.encoding) || '\x00'::bytea AS named) a
				CROSS JOIN LATERAL (
					SELECT a.named || pg_catalog.convert_to(c.server::text, i.encoding) || '\x00'::bytea AS whole) w
				CROSS JOIN LATERAL (
					SELECT pg_catalog.convert_to(c.database || text ';' || c.table_name, i.encoding) AS named,
						pg_catalog.convert_to(c.database || text ';' || c.table_name || text ';' || c.server::text, i.encoding) AS whole) j
			WHERE g.tgfoid OPERATOR(pg_catalog.=) '@extschema@.kusto_capture_changes()'::regprocedure::oid
				AND (tree.relid OPERATOR(pg_catalog.=) c.relation OR g.tgparentid OPERATOR(pg_catalog.<>) oid '0')
				-- The arguments may be written as one.
				AND CASE WHEN g.tgnargs = 1
					THEN g.tgargs = j.named || '\x00'::bytea
						OR pg_catalog.substr(g.tgargs, 1, pg_catalog.octet_length(j.whole) + 1)
							IN (j.whole || '\x00'::bytea, j.whole || ';'::bytea)
					ELSE g.tgargs = a.named
						OR pg_catalog.substr(g.tgargs, 1, pg_catalog.octet_length(w.whole)) = w.whole END) t
		CROSS JOIN LATERAL (
			SELECT r.relispartition OR r.relkind = 'r' AND EXISTS (
				SELECT FROM pg_catalog.pg_inherits h
				WHERE h.inhrelid OPERATOR(pg_catalog.=) c.relation OR h.inhparent OPERATOR(pg_catalog.=) c.relation) AS relatives) h
		LEFT JOIN marks m ON m.capture = c.id
		LEFT JOIN lags l ON l.capture = c.id
		LEFT JOIN LATERAL (
			SELECT bool_or(s.accepted) AS accepted
			FROM kusto.capture_shape s
			WHERE s.capture = c.id AND s.shape = (
				SELECT h.shape FROM kusto.capture_shape h WHERE h.capture = c.id ORDER BY h.id DESC LIMIT 1)) n ON true
	WHERE c.forgotten_at IS NULL
		AND (pg_catalog.pg_has_role(c.owner, 'USAGE')
			OR pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'));
COMMENT ON VIEW kusto.captures IS 'tables whose row changes go to Kusto, how far they have got and what hinders, own ones unless the reader monitors all';
COMMENT ON COLUMN kusto.captures.relation IS 'the captured table; null when it has been dropped';
COMMENT ON COLUMN kusto.captures.relation_name IS 'its name when the capture began';
COMMENT ON COLUMN kusto.captures.owner IS 'role whose user mapping is used: the table''s owner when it was captured';
COMMENT ON COLUMN kusto.captures.columns IS 'columns that are captured; null: all';
COMMENT ON COLUMN kusto.captures.events IS 'what the triggers on the table record';
COMMENT ON COLUMN kusto.captures.triggers IS 'enabled, partly disabled, disabled, replica only, missing, dropped, or by statement: it has become a partition, or an inheritance parent or child since, and kusto_capture() should be called again; session_replication_role = replica stops them all the same, unless replicated';
COMMENT ON COLUMN kusto.captures.state IS 'active; failing: tried again and again, see last_error; waiting for snapshot: until the existing rows are staged; waiting for columns: the Kusto table lacks some, and who has added them calls kusto_capture() again; foreign: recorded by another cluster or database, until kusto_capture() is called here; ending: no more is captured, the rest is sent';
COMMENT ON COLUMN kusto.captures.lag_rows IS 'row changes that are committed and neither streamed nor staged yet';
COMMENT ON COLUMN kusto.captures.lag IS 'since when the oldest of them waits';
COMMENT ON COLUMN kusto.captures.last_batch_mode IS 'streaming, or queued: in Kusto when last_batch_operation has succeeded';
COMMENT ON COLUMN kusto.captures.sent_rows IS 'row changes that were streamed or staged so far';
COMMENT ON COLUMN kusto.captures.last_error IS 'what hinders this capture now; null: nothing';

-- ---------------------------------------------------------------------------
-- Asking Kusto
-- ---------------------------------------------------------------------------

CREATE FUNCTION kusto_query(kql text, database text DEFAULT NULL, server name DEFAULT NULL)
RETURNS SETOF jsonb
AS 'MODULE_PATHNAME', 'kusto_query'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_query(text, text, name)
IS 'run a KQL query, one jsonb object a row';

CREATE FUNCTION kusto_command(kql text, database text DEFAULT NULL, server name DEFAULT NULL)
RETURNS SETOF jsonb
AS 'MODULE_PATHNAME', 'kusto_command'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_command(text, text, name)
IS 'run a management command at once, whatever becomes of this transaction; one jsonb object a row';

CREATE FUNCTION kusto_test_connection(
	server name DEFAULT NULL,
	OUT step text,
	OUT ok boolean,
	OUT milliseconds double precision,
	OUT detail text,
	OUT hint text)
RETURNS SETOF record
AS 'MODULE_PATHNAME', 'kusto_test_connection'
LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION kusto_test_connection(name)
IS 'try each step between here and Kusto, and say what to do about the one that fails';

-- ---------------------------------------------------------------------------
-- Privileges: nobody may do anything until told (README, "Privileges")
-- ---------------------------------------------------------------------------

-- Default privileges may have granted more than PostgreSQL itself does.
REVOKE ALL ON SCHEMA kusto FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA kusto FROM PUBLIC;
-- CREATE SERVER and the like call it without asking.
REVOKE ALL ON FUNCTION kusto_fdw_validator(text[], oid) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_ingest(text, text, text, name, text, text, text[], text[], timestamptz, boolean, boolean, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_ingest_table(regclass, text, text, name, text, text[], text[], timestamptz, boolean, boolean, text, text, integer) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_ingest_async(text, text, text, name, text, text, text[], text[], timestamptz, boolean, boolean, text, text) FROM PUBLIC;
REVOKE ALL ON PROCEDURE kusto_ingest_and_wait(text, text, text, name, text, text, text[], text[], timestamptz, boolean, boolean, text, text, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_wait(uuid, interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_cancel(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_retry(uuid) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_purge(interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_create_table_command(text, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_query(text, text, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_command(text, text, name) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_test_connection(name) FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA kusto FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_capture_changes() FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_capture(regclass, text, text, name, text[], text[], boolean, boolean, boolean, text, boolean) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_uncapture(regclass, text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_flush(interval) FROM PUBLIC;
REVOKE ALL ON FUNCTION kusto_capture_views(regclass) FROM PUBLIC;
