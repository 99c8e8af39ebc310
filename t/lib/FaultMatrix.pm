# FaultMatrix: accidents at the points of src/pg/fault.c, and whether all is well afterwards.
#
#   my $matrix = FaultMatrix->start;                # a cluster of the library with faults, a KustoLocal
#   $matrix->cell('claimed', 'kill', {});
#   $matrix->done;                                  # every point was struck by each of its actions
#
# A cell arms one accident, has a session export rows in a transaction that also writes down what it
# exports, waits for the accident, and for the server when that brings it down; runs the transaction
# again if it has not committed; and then waits until nothing is open. Kusto must have exactly what
# the committed transactions wrote down. Beside it one transaction has rolled back before, and one is
# under way when the accident happens.
package FaultMatrix;

use strict;
use warnings;

use File::Path qw(make_path rmtree);
use KustoCluster qw(wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use constant { DB => KustoCluster::DATABASE, TABLE => 'T' };

# What a cell means by its action, in the words of its tests.
my %accident = (
	error => 'an error',
	exit => 'the end of the process',
	kill => 'kill -9',
	sleep => 'an immediate shutdown');

# Options: name, conf, function (default kusto_ingest), preload (1: the library, and with it the launcher).
sub start
{
	my ($class, %options) = @_;
	my $kusto = KustoLocal->start;
	my $conf = <<~'CONF';
		restart_after_crash = on
		autovacuum = off
		max_wal_senders = 0
		wal_level = minimal
		max_worker_processes = 8
		kusto_ingest.naptime = 200ms
		kusto_ingest.worker_idle_timeout = 0
		kusto_ingest.repost_after = 5s
		include_if_exists = 'fault.conf'
		CONF
	$conf .= "shared_preload_libraries = 'kusto_ingest'\n" if $options{preload};
	my $pg = KustoCluster->start($kusto, faults => 1, name => $options{name}, conf => $conf . ($options{conf} // ''));
	my $self = bless {
		pg => $pg,
		kusto => $kusto,
		function => $options{function} // 'kusto_ingest',
		preload => $options{preload},
		cells => 0,
		began => time,
		struck => {} }, $class;
	$kusto->create_table(DB, TABLE, 'i:int, part:int');
	# What is to be in Kusto, and the operation that brings it there.
	$pg->sql('CREATE TABLE wanted (i int, part int); CREATE TABLE export (i int, operation uuid)');
	$self->{points} = $self->_read_points;
	return $self;
}

sub pg { return $_[0]->{pg} }
sub kusto { return $_[0]->{kusto} }

# { point => [ actions ] } as the library tells it.
sub points { return $_[0]->{points} }

sub _read_points
{
	my ($self) = @_;
	my $error = $self->pg->fails(q(LOAD 'kusto_ingest'; SET kusto_ingest.fault = 'no such point:kill'));
	my ($list) = ($error->{detail} // '') =~ /^The points are: (.*)/ or die "no list of points: $error->{text}";
	return { map { /^([\w-]+):([\w,]+)$/ or die "not a point: $_"; ($1 => [ split /,/, $2 ]) } split / /, $list };
}

# ---- one accident ----

sub _marker_dir { my ($self) = @_; return $self->pg->node->data_dir . '/kusto_ingest_faults' }
sub _marker { my ($self, $point) = @_; return $self->_marker_dir . "/$point.1" }

# Every process knows of the accident, which cannot happen while its mark is there.
sub _load
{
	my ($self, $point, $action, $conf_lines) = @_;
	my $node = $self->pg->node;
	my $fault = "$point:$action";
	my $offset = -s $node->logfile;

	make_path($self->_marker_dir);
	append_to_file($self->_marker($point), '');
	unlink $node->data_dir . '/fault.conf';
	append_to_file($node->data_dir . '/fault.conf', "kusto_ingest.fault = '$fault'\n" . ($conf_lines // ''));
	$node->reload;
	wait_until(sub { $self->_is_loaded($fault, $offset) }, "every process knows of $fault");
	return;
}

sub _is_loaded
{
	my ($self, $fault, $offset) = @_;
	my $state = $self->pg->sql(<<~'SQL');
		SELECT current_setting('kusto_ingest.fault', true), array_to_string(array_agg(pid), ' ')
		FROM pg_stat_activity WHERE backend_type LIKE 'kusto\_ingest %'
		SQL
	my ($setting, $pids) = split /\|/, $state;
	return 0 if ($setting // '') ne $fault;
	my $said = slurp_file($self->pg->node->logfile, $offset);
	return !grep { $said !~ /\[$_\] .*kusto_ingest fault is "\Q$fault\E"/ && -e "/proc/$_" } split / /, $pids // '';
}

# The server has died of it, or is made to, and is there again.
sub _restart
{
	my ($self, $action, $offset, $starts) = @_;
	my $node = $self->pg->node;

	if ($action eq 'sleep')
	{
		$node->stop('immediate');
		$node->start;
	}
	elsif ($action eq 'kill')
	{
		wait_until(sub {
			my @ready = slurp_file($node->logfile, $offset) =~ /database system is ready to accept connections/g;
			return @ready >= $starts;
		}, 'the server restarts after a crash');
	}
	return;
}

# One accident without a cell: code brings it about, once it is armed. True when it has happened, and
# the server is there again.
sub strike
{
	my ($self, $point, $action, $code) = @_;
	my $offset;

	$self->_load($point, $action);
	$offset = -s $self->pg->node->logfile;
	rmtree($self->_marker_dir);
	$code->();
	eval { wait_until(sub { -e $self->_marker($point) }, "$point is passed", 30) } or return 0;
	$self->{struck}{$point}{$action} = 1;
	$self->_restart($action, $offset, 1);
	return 1;
}

# ---- one cell ----

sub _export_sql
{
	my ($self, $i, $scenario) = @_;
	my %arguments = (exactly_once => q('on'), %{ $scenario->{arguments} // {} });
	my $call = $self->pg->ingest_call($scenario->{query} // "SELECT i, part FROM wanted WHERE i = $i", TABLE, %arguments);
	$call =~ s/^kusto_ingest/$self->{function}/;
	return "INSERT INTO wanted SELECT $i, generate_series(1, 3); INSERT INTO export SELECT $i, $call";
}

# scenario: how the point is reached, and what then must be.
#   name        told in the tests' names
#   arguments   of the export, besides exactly_once => 'on'; query: another one
#   conf        lines for postgresql.conf
#   before      code that is called with this and the cell, before the accident is armed; after: when
#               the server is there again; finally: when nothing is open any more
#   act         code that brings about the accident, in the session it gets, instead of the export alone
#   starts      how often the server starts when it crashes, with those that act has brought about (1)
#   alone       no other transaction is under way meanwhile
#   ends        how the operation ends, a regular expression (succeeded)
#   messages    how often a blob is posted, a regular expression (1)
sub cell
{
	my ($self, $point, $action, $scenario) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $pg = $self->pg;
	my $i = ++$self->{cells};
	my $cell = { i => $i, point => $point, action => $action };
	my $name = "$accident{$action} at $point" . ($scenario->{name} ? ", $scenario->{name}" : '');
	my $began = time;
	my $under_way;

	$pg->sql('BEGIN; ' . $self->export_sql(-$i, $scenario) . '; ROLLBACK');
	$self->_load($point, $action, $scenario->{conf});
	$scenario->{before}->($self, $cell) if $scenario->{before};
	unless ($scenario->{alone})
	{
		$under_way = $pg->session;
		$under_way->sql('BEGIN; ' . $self->export_sql(-$i, $scenario));
	}
	my $session = $pg->session;
	my $offset = -s $pg->node->logfile;
	rmtree($self->_marker_dir);
	if ($scenario->{act})
	{
		$scenario->{act}->($self, $cell, $session);
	}
	else
	{
		$session->send($self->export_transaction($i, $scenario));
	}
	my $struck = eval { wait_until(sub { -e $self->_marker($point) }, "$point is passed", 30) };
	ok($struck, "$name: it happens") or diag $@;
	$self->{struck}{$point}{$action} = 1 if $struck;
	$self->_restart($action, $offset, $scenario->{starts} // 1) if $struck;
	$session->receive if defined $session->{mark};
	$_->quit for grep { defined } $session, $under_way;
	$scenario->{after}->($self, $cell) if $scenario->{after};
	$self->_converge($i, $scenario, $name);
	$scenario->{finally}->($self, $cell) if $scenario->{finally};
	note sprintf '%s: %.2f s', $name, time - $began;
	return;
}

# A cell's export, and the transaction of it.
sub export_sql
{
	my ($self, $i, $scenario) = @_;
	my %arguments = (exactly_once => q('on'), %{ $scenario->{arguments} // {} });
	my $query = "SELECT i, part FROM wanted WHERE i = $i" . ($scenario->{where} // '');
	my $call = $self->pg->ingest_call($query, TABLE, %arguments);
	$call =~ s/^kusto_ingest/$self->{function}/;
	return "INSERT INTO wanted SELECT $i, generate_series(1, 3); INSERT INTO export SELECT $i, $call";
}

sub export_transaction
{
	my ($self, $i, $scenario) = @_;
	return 'BEGIN; ' . $self->export_sql($i, $scenario) . '; COMMIT';
}

# The id of its operation; nothing when it has not committed.
sub operation_of { my ($self, $i) = @_; return $self->pg->sql("SELECT operation FROM export WHERE i = $i") }

sub state_of
{
	my ($self, $i) = @_;
	return $self->pg->sql("SELECT o.state FROM kusto.operation o JOIN export e ON e.operation = o.id WHERE e.i = $i");
}

# How often the export's blob has been posted.
sub messages_of
{
	my ($self, $i) = @_;
	my $source = $self->pg->sql("SELECT b.source_id FROM kusto.blob b JOIN export e ON e.operation = b.operation_id WHERE e.i = $i");
	return scalar grep { ($_->{Id} // '') eq $source } @{ $self->kusto->messages };
}

sub _converge
{
	my ($self, $i, $scenario, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $pg = $self->pg;
	my $none_open = 'SELECT count(*) = 0 FROM kusto.operation WHERE finished_at IS NULL';

	# The client's own way out: what has not committed is done again. What has committed goes on by
	# itself when there is a launcher; otherwise when somebody asks for it.
	$pg->sql($self->export_transaction($i, $scenario)) unless $self->operation_of($i);
	$pg->poll($none_open) if $self->{preload};
	my $state = $pg->sql("SELECT kusto_wait(operation, '60 s') FROM export WHERE i = $i");
	my $ends = $scenario->{ends} // 'succeeded';
	like($state, qr/^(?:$ends)$/, "$name: the operation ends as $ends") or diag $self->_open;
	$pg->sql("DELETE FROM wanted WHERE i = $i") if $state ne 'succeeded';

	$pg->poll($none_open, 't', "$name: nothing is open") or diag $self->_open;
	$self->kusto->settle;
	is($self->_in_kusto, $pg->sql('SELECT i, part FROM wanted ORDER BY i, part'), "$name: Kusto has what has committed, once");
	my $messages = $scenario->{messages} // '1';
	like($self->messages_of($i), qr/^(?:$messages)$/, "$name: the blob was posted $messages times");
	$self->_is_quiet($name);
	return;
}

sub _open
{
	my ($self) = @_;
	return $self->pg->sql(<<~'SQL');
		SELECT row_to_json(o) FROM kusto.operation o WHERE finished_at IS NULL
		UNION ALL SELECT row_to_json(b) FROM kusto.blob b WHERE finished_at IS NULL
		UNION ALL SELECT row_to_json(a) FROM pg_stat_activity a WHERE backend_type LIKE 'kusto%'
		SQL
}

sub _in_kusto
{
	my ($self) = @_;
	my @rows = @{ $self->kusto->rows(DB, TABLE) };
	return join "\n", map { "$_->[0]|$_->[1]" } sort { $a->[0] <=> $b->[0] || $a->[1] <=> $b->[1] } @rows;
}

# No process and no lock of ours is left but the launcher and a worker at rest.
sub _is_quiet
{
	my ($self, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $quiet = $self->pg->node->poll_query_until($self->pg->{dbname}, <<~'SQL');
		SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type IN ('kusto_ingest job', 'kusto_ingest worker'))
			AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type LIKE 'kusto%' AND (xact_start IS NOT NULL OR backend_xmin IS NOT NULL))
			AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory'
				AND pid NOT IN (SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest launcher'))
		SQL
	ok($quiet, "$name: no process and no lock is left")
	  or diag $self->pg->sql(q(SELECT row_to_json(a) FROM pg_stat_activity a WHERE backend_type LIKE 'kusto%' UNION ALL SELECT row_to_json(l) FROM pg_locks l WHERE locktype = 'advisory'));
	return;
}

# ---- the whole ----

# Each point has been struck by each of its actions, but those whose name matches except, which are
# another test's.
sub done
{
	my ($self, $except) = @_;
	my @missing;
	for my $point (grep { !/$except/ } sort keys %{ $self->points })
	{
		push @missing, map { "$point:$_" } grep { !$self->{struck}{$point}{$_} } @{ $self->points->{$point} };
	}
	is("@missing", '', 'every accident has happened') unless $ENV{KUSTO_FAULTS_ONLY};
	unlike(slurp_file($self->pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
	$self->kusto->assert_no_violations;
	note sprintf '%d cells in %.0f s', $self->{cells}, time - $self->{began};
	return;
}

1;
