# BenchSubjects: the ways of recording row changes that are compared, each with a table of its own.
#
#   none      no trigger
#   disabled  kusto_capture, and its triggers disabled: what PostgreSQL does for them all the same,
#             which is to copy them, and the changed rows into transition tables; only where asked for
#   empty     the same triggers, enabled, on a function in C that returns at once; only where asked for
#   row       on one that puts a row that is always the same into a table without index; only where asked for
#   capture   kusto_capture
#   plpgsql   what one would write by hand: a trigger for each row, to_jsonb(NEW) into a table
#   pgq       pgq.logutriga, which is in C; left out where the extension is not installed
#
# BENCH_SUBJECTS limits them.
package BenchSubjects;

use strict;
use warnings;

use Exporter qw(import);

our @EXPORT_OK = qw(install subjects empty table title);

my %title = (
	none => 'no trigger',
	disabled => 'kusto_capture, triggers disabled',
	empty => 'an empty trigger, in C',
	row => 'a trigger in C that writes a constant row',
	capture => 'kusto_capture',
	plpgsql => 'PL/pgSQL, to_jsonb(NEW)',
	pgq => 'pgq.logutriga');
my @present;

sub title { my ($subject) = @_; return $title{$subject} }
sub table { my ($subject) = @_; return "bench_$subject" }

# The names of those that can be measured here, the baseline first.
sub subjects { return @present }

# What is there before a run is what was there before the others'.
my %emptying = (
	none => '',
	disabled => '',
	empty => '',
	row => 'TRUNCATE bench_rows',
	capture => 'TRUNCATE kusto.outbox_0, kusto.outbox_1, kusto.outbox_2',
	plpgsql => 'TRUNCATE outbox_jsonb',
	pgq => 'TRUNCATE pgq.event_1_0, pgq.event_1_1, pgq.event_1_2');

# rows: of the table, for updates.
sub empty
{
	my ($server, $subject, $rows) = @_;
	my $table = table($subject);

	# The rows that are there before the run are not to be recorded.
	$server->sql("ALTER TABLE $table DISABLE TRIGGER USER; TRUNCATE $table");
	$server->sql(<<~SQL) if $rows;
		INSERT INTO $table SELECT * FROM source LIMIT $rows;
		VACUUM (ANALYZE) $table
		SQL
	$server->sql("ALTER TABLE $table ENABLE TRIGGER USER") if $subject ne 'disabled';
	$server->sql($emptying{$subject});
	$server->sql('CHECKPOINT');
	return;
}

# Table source has so many rows. key: the tables have a primary key. only: these subjects.
# usual: those that are measured unless BENCH_SUBJECTS names others.
sub install
{
	my ($server, %options) = @_;
	my $usual = $options{usual} // 'none capture plpgsql pgq';
	my @wanted = @{ $options{only} // [ split ' ', $ENV{BENCH_SUBJECTS} // $usual ] };
	$server->sql(<<~SQL);
		CREATE UNLOGGED TABLE source AS
		SELECT i AS id,
			timestamptz '2024-01-01 00:00:00+00' + i * interval '1.7 seconds' AS at,
			md5(i::text)::uuid AS device,
			sqrt(i) AS value,
			'measurement number ' || i AS note
		FROM generate_series(bigint '1', $options{rows}) i;
		VACUUM (ANALYZE) source
		SQL
	for my $subject (qw(none capture disabled empty row plpgsql pgq))
	{
		next unless grep { $_ eq $subject } @wanted;
		my $table = table($subject);
		$server->sql("CREATE TABLE $table (id bigint, at timestamptz, device uuid, value float8, note text)");
		$server->sql("ALTER TABLE $table ADD PRIMARY KEY (id)") if $options{key};
		next unless __PACKAGE__->can("_install_$subject")->($server, $table);
		push @present, $subject;
	}
	return;
}

sub _install_none { return 1 }

sub _install_extension
{
	my ($server) = @_;
	return if $server->sql("SELECT count(*) FROM pg_extension WHERE extname = 'kusto_ingest'") ne '0';
	$server->sql(<<~SQL);
		CREATE EXTENSION kusto_ingest;
		CREATE SERVER adx FOREIGN DATA WRAPPER kusto
			OPTIONS (cluster '$ENV{KUSTO_ENGINE_URI}', ingest_uri '$ENV{KUSTO_INGEST_URI}', database 'bench');
		CREATE USER MAPPING FOR CURRENT_USER SERVER adx
			OPTIONS (auth 'client_secret', tenant '$ENV{KUSTO_TENANT}', client_id '$ENV{KUSTO_CLIENT_ID}',
				client_secret '$ENV{KUSTO_CLIENT_SECRET}')
		SQL
	return;
}

sub _install_capture
{
	my ($server, $table) = @_;
	_install_extension($server);
	$server->sql("SELECT kusto_capture('$table', 'bench', 'Changes', create_table => true)");
	return 1;
}

sub _install_disabled
{
	my ($server, $table) = @_;
	_install_capture($server, $table);
	$server->sql("ALTER TABLE $table DISABLE TRIGGER USER");
	return 1;
}

# An argument, too: PostgreSQL copies it with the rest of a trigger for each statement.
sub _install_floor
{
	my ($server, $table, $function) = @_;
	my $do = "FOR EACH STATEMENT EXECUTE FUNCTION $function('bench;Changes;adx;create_table=true')";
	$server->sql(<<~SQL);
		CREATE FUNCTION $function() RETURNS trigger
			LANGUAGE c AS '$ENV{BENCH_WORK}/floor_triggers', '$function';
		CREATE TRIGGER bench_floor_insert AFTER INSERT ON $table REFERENCING NEW TABLE AS kusto_new $do;
		CREATE TRIGGER bench_floor_update AFTER UPDATE ON $table
			REFERENCING OLD TABLE AS kusto_old NEW TABLE AS kusto_new $do;
		CREATE TRIGGER bench_floor_delete AFTER DELETE ON $table REFERENCING OLD TABLE AS kusto_old $do;
		CREATE TRIGGER bench_floor_truncate AFTER TRUNCATE ON $table $do
		SQL
	return 1;
}

sub _install_empty
{
	my ($server, $table) = @_;
	return _install_floor($server, $table, 'bench_empty_trigger');
}

sub _install_row
{
	my ($server, $table) = @_;
	$server->sql('CREATE TABLE bench_rows (data text)');
	return _install_floor($server, $table, 'bench_row_trigger');
}

sub _install_plpgsql
{
	my ($server, $table) = @_;
	$server->sql(<<~SQL);
		CREATE TABLE outbox_jsonb (id bigserial PRIMARY KEY, table_name text, op text,
			changed_at timestamptz DEFAULT clock_timestamp(), data jsonb);
		CREATE FUNCTION record_change() RETURNS trigger LANGUAGE plpgsql AS \$\$
		BEGIN
			INSERT INTO outbox_jsonb (table_name, op, data)
			VALUES (TG_TABLE_NAME, TG_OP, to_jsonb(CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END));
			RETURN NULL;
		END \$\$;
		CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON $table
			FOR EACH ROW EXECUTE FUNCTION record_change()
		SQL
	return 1;
}

sub _install_pgq
{
	my ($server, $table) = @_;
	if ($server->sql("SELECT count(*) FROM pg_available_extensions WHERE name = 'pgq'") eq '0')
	{
		print "  pgq.logutriga is left out: there is no extension pgq here\n";
		return 0;
	}
	$server->sql(<<~SQL);
		CREATE EXTENSION pgq;
		SELECT pgq.create_queue('bench');
		CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON $table
			FOR EACH ROW EXECUTE FUNCTION pgq.logutriga('bench')
		SQL
	return 1;
}

1;
