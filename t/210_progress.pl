# kusto.progress: what an export has done so far, live, for its own user and for those who monitor;
# whatever else the query's process reports of itself. And the notice at its end.
use strict;
use warnings;

use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => "client_min_messages = notice\n");
$kusto->create_table($db, 'T', 'i:long, t:string');
$kusto->create_table($db, 'One', 'i:long');
$kusto->create_table($db, 'Dates', 'd:datetime');
my $version = $pg->sql('SHOW server_version_num');
my $knows_copy = $version >= 140000;

# ---- the notice at the end ----

sub notices
{
	my ($sql) = @_;
	my $session = $pg->session;
	$session->send($sql);
	my $outcome = $session->receive;
	$session->quit;
	# The lines of psql's own: where in its input, and where in the server's source.
	return $outcome->{err} =~ s/^psql:\S+ |^LOCATION:.*(?:\n|\z)//mgr =~ s/\s+\z//r;
}

like(notices('SELECT ' . $pg->ingest_call('SELECT i, i::text FROM generate_series(1, 1000) i', 'T')),
	qr/\ANOTICE:  00000: exported 1000 rows, 9786 bytes \(\d+ bytes compressed\)\nDETAIL:  1 blob is sent to Kusto when the transaction commits\.\z/,
	'rows, bytes and blobs at the end of an export');
like(notices("SET kusto_ingest.max_blob_size = '1MB'; SELECT "
		. $pg->ingest_call("SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i", 'T')),
	qr/exported 3000 rows, \d+ kB \(\d+ \w+ compressed\)\nDETAIL:  [34] blobs are sent to Kusto/, 'of several blobs');
like(notices('CALL kusto_ingest_and_wait($$SELECT 1 AS i$$, ' . "'$db', 'One')"),
	qr/\ANOTICE:  00000: exported 1 row, 2 bytes /, 'of the procedure');
is(notices('SELECT ' . $pg->ingest_call('SELECT 1 AS i WHERE false', 'T')),
	"NOTICE:  00000: the query returned no rows to export", q(of a query without rows));
is(notices('SELECT ' . $pg->ingest_call('SELECT 1 AS i WHERE false', 'Empty', create_table => 'true')),
	"NOTICE:  00000: the query returned no rows to export\nDETAIL:  The Kusto table is created when the transaction commits.",
	'of a query without rows that makes a table');
like(notices('SELECT ' . $pg->ingest_call("SELECT date '10000-01-01' AS d FROM generate_series(1, 3)", 'Dates', on_type_error => q('null'))),
	qr/\ANOTICE:  00000: some values cannot be held by their Kusto types and were replaced as on_type_error says\nDETAIL:  By column and kind: \{"d": \{"after year 9999": 3\}\}\.\nNOTICE:  00000: exported 3 rows/,
	'of values that were replaced');
is(notices('SET client_min_messages = warning; SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'One')), '', 'and nothing for those who want none');

# ---- an export that goes on until we let it ----

# The query asks for a lock after each thousand rows: whoever holds it stops it there.
$pg->sql(<<~'SQL');
	CREATE TABLE pause (n int);
	CREATE FUNCTION pause(i int) RETURNS text LANGUAGE plpgsql AS $$
	BEGIN
		IF i % 1000 = 0 THEN
			PERFORM pg_advisory_xact_lock_shared(1, i);
		END IF;
		RETURN repeat(md5(i::text), 32);
	END
	$$;
	CREATE ROLE watcher LOGIN;
	CREATE ROLE monitor LOGIN IN ROLE pg_read_all_stats;
	GRANT USAGE ON SCHEMA kusto TO watcher, monitor;
	GRANT SELECT ON kusto.progress TO watcher, monitor;
	SQL

my $exporter = $pg->session;
my $gate = $pg->session;

# Stops where i is at; already running or not.
sub stop_at { $gate->sql("SELECT pg_advisory_lock(1, $_)") for @_; return }
sub go_on { $gate->sql("SELECT pg_advisory_unlock(1, $_)") for @_; return }

sub waits_in_query
{
	return $pg->poll('SELECT count(*) = 1 FROM pg_locks WHERE NOT granted AND pid = ' . $exporter->pid, 't');
}

sub progress
{
	my ($columns, %options) = @_;
	return $pg->sql("SELECT $columns FROM kusto.progress", %options);
}

SKIP:
{
	unless ($knows_copy)
	{
		is(progress('count(*)'), 0, 'PostgreSQL 13 has no counters of COPY: the view is empty');
		skip 'no progress before PostgreSQL 14', 1;
	}

	$pg->sql("ALTER ROLE postgres SET kusto_ingest.max_blob_size = '1MB'");
	$exporter->quit;
	$exporter = $pg->session;
	stop_at(3000, 6000);
	$exporter->send('SELECT ' . $pg->ingest_call('SELECT i, pause(i) FROM generate_series(1, 6500) i', 'T'));
	waits_in_query();
	is(progress('pid, usename, phase'), $exporter->pid . '|postgres|running the query', 'the export is seen, with its phase');
	my ($rows, $raw, $compressed, $blobs) = split /\|/, progress('rows, raw_bytes, compressed_bytes, blobs');
	cmp_ok($rows, '>', 0, "it tells rows: $rows");
	cmp_ok($rows, '<=', 3000, 'no more than there are');
	cmp_ok($raw, '>', $rows * 1024, "raw bytes: $raw");
	cmp_ok($compressed, '<', $raw, "compressed bytes: $compressed");
	cmp_ok($blobs, '<=', 3, "blobs: $blobs");
	is(progress("elapsed > '0' AND rows_per_second > 0 AND raw_bytes_per_second > rows_per_second"), 't', 'elapsed time and rates');
	is(progress('backend_xmin IS NOT NULL AND backend_xmin_age >= 0'), 't', 'and how old what it holds back is');
	my $id = progress('operation_id');
	like($id, qr/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/, 'under its id');

	is($pg->sql('SELECT command, type, tuples_processed, bytes_processed > 0, bytes_total FROM pg_stat_progress_copy'),
		"COPY TO|CALLBACK|$rows|t|0", 'pg_stat_progress_copy shows a COPY TO');

	is(progress('count(*)', user => 'watcher'), 0, 'another user does not see it');
	is(progress('operation_id', user => 'monitor'), $id, 'who may read all statistics does');
	$pg->sql('CREATE DATABASE beside');
	$pg->sql('CREATE EXTENSION kusto_ingest', dbname => 'beside');
	is(progress('count(*)', dbname => 'beside'), 0, 'it is not seen in another database');

	go_on(3000);
	$pg->poll("SELECT rows > 5000 AND raw_bytes > 5 * 1024 * 1024 FROM kusto.progress", 't',
		'the numbers grow as it goes on');
	go_on(6000);
	is($exporter->receive->{out}, $id, 'the export ends with this id');
	is(progress('count(*)'), 0, 'and is gone from the view');
	$pg->succeeds($id);

	# ---- uploading what is left ----

	$kusto->fault({ service => 'blob', method => 'PUT' }, { blackhole => JSON::PP::true }, skip => 2, times => -1);
	$exporter->send('SELECT ' . $pg->ingest_call("SELECT i, repeat('x', 1000) FROM generate_series(1, 4000) i", 'T'));
	$pg->poll("SELECT phase = 'uploading the rest' AND rows = 4000 AND blobs = 2 AND compressed_bytes > 0 FROM kusto.progress",
		't', 'uploading what is left is a phase of its own; two blobs are complete');
	if ($version >= 170000)
	{
		is(progress('wait_event'), 'KustoUpload', 'with its wait event');
	}
	else
	{
		is(progress('wait_event'), 'Extension', 'with a wait event');
	}
	$pg->sql('SELECT pg_cancel_backend(' . $exporter->pid . ')');
	like($exporter->receive->{err}, qr/57014/, 'it is cancelled');
	is($pg->sql('SELECT count(*) FROM pg_stat_progress_copy'), 0, 'an abort ends its progress');
	$kusto->clear_faults;

	# ---- others report in between ----

	$pg->sql(<<~'SQL');
		CREATE TABLE copied (i int);
		CREATE FUNCTION copies(i int) RETURNS int LANGUAGE plpgsql AS $$
		BEGIN
			IF i % 1000 = 1 THEN
				COPY copied FROM PROGRAM 'echo 1';
			END IF;
			IF i % 1000 = 2 THEN
				BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;
			END IF;
			RETURN i;
		END
		$$;
		SQL
	stop_at(2000);
	$exporter->send('SELECT ' . $pg->ingest_call('SELECT copies(i) AS i, pause(i) FROM generate_series(1, 2500) i', 'T'));
	waits_in_query();
	is(progress('phase, rows BETWEEN 1100 AND 2000'), 'running the query|t',
		'a COPY inside the query, and a subtransaction that aborts, do not end its progress');
	go_on(2000);
	$id = $exporter->receive->{out};
	$pg->succeeds($id);

	# An export inside an export's query: the inner one is seen while it runs, then the outer one again.
	stop_at(5000, 2000);
	my $inner = $pg->ingest_call('SELECT i, pause(i + 3000) FROM generate_series(1, 2100) i', 'T');
	$exporter->send('SELECT ' . $pg->ingest_call(
		"SELECT i, CASE i WHEN 1000 THEN ($inner)::text ELSE pause(i) END FROM generate_series(1, 2500) i", 'T'));
	waits_in_query();
	my $inner_id = progress('operation_id');
	is(progress('count(*)'), 1, 'one row for an export inside an export');
	go_on(5000);
	$pg->poll("SELECT operation_id <> '$inner_id' AND rows > 1000 FROM kusto.progress", 't', 'after the inner one the outer one again');
	go_on(2000);
	$id = $exporter->receive->{out};
	isnt($id, $inner_id, 'each under its own id');
	$pg->succeeds($inner_id);
	$pg->succeeds($id);

	# An export inside a COPY gives the COPY's numbers back.
	$pg->sql('CREATE TABLE target (i int, t text)');
	stop_at(1500);
	$pg->sql(<<~"SQL");
		CREATE FUNCTION export_one() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			IF NEW.i = 700 THEN
				PERFORM kusto_ingest('SELECT 1 AS i', '$db', 'One');
			END IF;
			IF NEW.i = 1500 THEN
				PERFORM pg_advisory_xact_lock_shared(1, 1500);
			END IF;
			RETURN NEW;
		END
		\$\$;
		CREATE TRIGGER export_one BEFORE INSERT ON target FOR EACH ROW EXECUTE FUNCTION export_one();
		SQL
	$exporter->send("COPY target FROM PROGRAM 'seq -f ''%g	x'' 1 2000'");
	waits_in_query();
	is($pg->sql('SELECT command, type, tuples_processed BETWEEN 1400 AND 1500 FROM pg_stat_progress_copy'), 'COPY FROM|PROGRAM|t',
		'a COPY that exports on its way keeps its own progress');
	is(progress('count(*)'), 0, 'which is none of an export');
	go_on(1500);
	is($exporter->receive->{err} =~ /ERROR/, '', 'the COPY ends');
}

$exporter->quit;
$gate->quit;
$kusto->settle;
$kusto->assert_no_violations;
done_testing;
