# Row changes at random, from many sessions, while workers die and Kusto fails: what arrives, replayed
# in the order of _seq, is what has happened to each table, no more and no less.
#
# KUSTO_TEST_SEED repeats the statements and accidents of a run, though not its interleaving.
use strict;
use warnings;

use ChangeLoad;
use ChangeReplay;
use JSON::PP;
use KustoCluster qw(literal wait_until);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{KUSTO_TEST_SEED} // 1 + (time ^ $$ << 8) % 1_000_000;
note "KUSTO_TEST_SEED=$seed";
my $db = KustoCluster::DATABASE;
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $preload = $seed % 2 ? '' : "shared_preload_libraries = 'kusto_ingest'";
my $interval = (0, 50, 300)[ $seed % 3 ];

my $kusto = KustoLocal->start('--state-dir', PostgreSQL::Test::Utils::tempdir());
my $pg = KustoCluster->start($kusto, conf => <<~"CONF");
	restart_after_crash = on
	max_prepared_transactions = 100
	timezone = 'UTC'
	kusto_ingest.flush_interval = ${interval}ms
	kusto_ingest.repost_after = 1s
	kusto_ingest.status_timeout = 15s
	$preload
	CONF
my $load = ChangeLoad->new($pg, seed => $seed, sessions => 8, rounds => 8, transactions => 45);
$load->create_tables;

# ---- capture ----

# What may be given besides the names. Tree's table in Kusto is made by the worker, and bare's by us.
# Late is captured when it has been changed for a while.
my %options = (
	plain => 'create_table => true',
	bare => 'create_table => false',
	parted => 'create_table => true',
	olds => 'create_table => true, old_values => true',
	nested => 'create_table => true',
	tree => 'create_table => true',
	swapped => 'create_table => true',
	late => 'create_table => true, snapshot => true');
my @tables = ChangeLoad->tables;

sub capture_call
{
	my ($table) = @_;
	return "SELECT kusto_capture('$table', '$db', 'k_$table', $options{$table})";
}

# Runs commands that kusto_capture_views gives, those whose name fits.
sub run_commands
{
	my ($table, $names) = @_;
	my $commands = $pg->sql("SELECT json_agg(command ORDER BY ordinality) FROM kusto_capture_views('$table') WITH ORDINALITY WHERE name ~ '$names'");
	$kusto->command($db, $_) for @{ decode_json($commands) };
	return;
}

for my $table (grep { $_ ne 'late' } @tables)
{
	$pg->sql(capture_call($table));
	run_commands($table, '') if $table ne 'tree';
}

# ---- accidents ----

# Who waits for a lock here ends no prepared transaction that holds it.
sub attempt
{
	my ($sql) = @_;
	return $load->attempt("SET lock_timeout = '300ms'; $sql");
}

sub worker_pid
{
	return attempt("SELECT pid FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker'");
}

sub kill_worker
{
	my $offset = -s $pg->node->logfile;
	# One that has been terminated may be listed still: it ends by itself, and another one comes.
	return $pg->crash_by(sub {
		wait_until(sub {
			my $pid = worker_pid();
			kill 'KILL', $pid if $pid;
			return slurp_file($pg->node->logfile, $offset) =~ /was terminated by signal 9/;
		}, 'a worker is killed');
	});
}

sub streaming_fails
{
	my ($action, $times) = @_;
	return $kusto->fault({ service => 'engine', method => 'POST', path => '/v1/rest/ingest/' }, $action, times => $times);
}

# What waits for a table's lock, which prepared transactions may hold.
sub with_lock
{
	my ($sql) = @_;
	wait_until(sub { $load->resolve(1); defined attempt($sql) }, $sql);
	return;
}

sub add_column
{
	my ($table, $type) = @_;
	return with_lock("ALTER TABLE $table ADD COLUMN more $type");
}

# No outage falls into the job that exports the rows which are there: it would give up, and say so.
sub capture_late
{
	with_lock(capture_call('late'));
	wait_until(sub { $load->resolve(1); (attempt("SELECT count(*) FROM kusto.operations WHERE table_name = 'k_late' AND state IN ('pending', 'running')") // 1) eq '0' },
		'the rows of late are exported', 60);
	return;
}

# Two at a time at most, each for a while. What has an end has nothing beside it when it begins.
my @accidents = (
	[ sub { attempt("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'kusto_ingest worker'") } ],
	[ \&kill_worker ],
	[ sub { streaming_fails({ status => 503, body => 'busy' }, 3) } ],
	[ sub { streaming_fails({ status => 429, headers => { 'Retry-After' => '1' }, body => 'throttled' }, 2) } ],
	[ sub { streaming_fails({ reset => $true }, 3) } ],
	[ sub { $kusto->fault({ service => 'queue', method => 'POST' }, { lose_reply => $true }, times => 2) } ],
	[ sub { $kusto->fault({ service => 'blob', method => 'PUT' }, { status => 503 }, times => 3) } ],
	[ sub { $kusto->revoke_tokens('bearer') } ],
	[ sub { $kusto->config(streaming => $false) }, sub { $kusto->config(streaming => $true) } ],
	[ sub { $kusto->down(['storage']) }, sub { $kusto->up } ],
	[ sub { $kusto->down(['service']) }, sub { $kusto->up } ],
	[ sub { add_column('plain', 'integer') } ],
	[ sub { add_column('parted', 'text') } ],
	[ sub { add_column('olds', 'numeric') } ],
	[ sub { add_column('bare', 'text') }, sub { run_commands('bare', '^k_bare$'); with_lock(capture_call('bare')) } ],
	[ \&capture_late, sub { } ]);

srand($seed);
my @order = sort { $a->[0] <=> $b->[0] } map { [ rand, $_ ] } 0 .. $#accidents;
# Lost replies come first, when nothing else keeps changes from being streamed.
my @steps = ([ sub { streaming_fails({ lose_reply => $true }, 3) } ], map { $accidents[ $_->[1] ] } @order);
my (@ends, $struck);

sub accidents
{
	my ($done, $all) = @_;
	my $due = $done * @steps / $all;
	while (($struck // 0) < $due && $struck++ < @steps)
	{
		(shift @ends)->() if @ends > 1 || @ends && $struck % 2;
		my ($begin, $end) = @{ $steps[ $struck - 1 ] };
		# One outage at a time: what ends it ends all.
		(shift @ends)->() while $end && @ends;
		$begin->();
		push @ends, $end if $end;
	}
	my $table = (qw(plain parted olds bare))[ rand 4 ];
	attempt("UPDATE $table SET more = 7, tag = 'more' WHERE id % 10 = ${\int rand 10}");
	return;
}

$load->run(\&accidents);
is($struck, scalar @steps, 'every accident has happened');
$_->() for @ends;
$load->resolve(1);
is_deeply($load->unexpected, {}, 'no statement has failed but by conflicts and the end of the server')
  or diag explain $load->unexpected;
note explain $load->errors;

# ---- it settles ----

$kusto->clear_faults;
is($pg->sql(q(SELECT kusto_flush('60 s'))), 't', 'all changes are streamed or staged')
  or diag $pg->sql('SELECT * FROM kusto.captures');
$pg->poll(q(SELECT count(*) = 0 FROM kusto.operations WHERE finished_at IS NULL), 't', 'what was staged has come to its end');
# Whether a message whose reply was lost has done its work is not always to be known; the rows will tell.
is($pg->sql(q(SELECT string_agg(concat_ws(' ', table_name, source, state, error_message, details), ', ') FROM kusto.operations WHERE state NOT IN ('succeeded', 'unknown'))),
	'', 'nothing of it has failed');
$kusto->settle;
is($pg->sql('SELECT count(*) FROM kusto.dead_letters'), 0, 'nothing was given up');
is($pg->sql(q(SELECT string_agg(concat_ws(' ', table_name, state, lag_rows, last_error), ', ') FROM kusto.captures WHERE state <> 'active' OR lag_rows <> 0 OR last_error IS NOT NULL)),
	'', 'every capture is well and has nothing left');

# ---- replay ----

run_commands($_, '_history$') for 'tree', 'late';
my $replay = ChangeReplay->new($pg, $kusto);
my %kusto_type = (
	integer => 'int', text => 'string', timestamptz => 'datetime', uuid => 'guid', jsonb => 'dynamic',
	float8 => 'real', boolean => 'bool', numeric => 'decimal');
my $repeated = 0;
for my $table (@tables)
{
	my $types = $replay->fetch("${table}_history", "k_${table}_history()");
	is_deeply({ map { $_ => $types->{$_} } ChangeLoad->columns($table) },
		{ map { $_ => $kusto_type{ ChangeLoad->type($table, $_) } } ChangeLoad->columns($table) }, "$table: the columns' types");
	my @problems = $replay->problems($table, history => "${table}_history", key => [ ChangeLoad->key($table) ],
		old_values => $table eq 'olds', snapshot => $table eq 'late');
	is_deeply(\@problems, [], "$table: the history is right") or diag explain \@problems;
	$replay->fetch("${table}_raw", "k_$table");
	my ($times, $different) = $replay->repetitions("${table}_raw");
	is($different, 0, "$table: what came repeatedly came alike");
	$repeated += $times;
	next if $table =~ /^(?:tree|late)$/;
	$replay->fetch("${table}_current", "k_${table}_current()");
	is_deeply([ $replay->state_problems($table, "${table}_current") ], [], "$table: the view of the current rows is right");
}
cmp_ok($repeated, '>', 0, 'a lost reply has had changes sent again');
cmp_ok($pg->sql('SELECT count(DISTINCT txid) FROM audit'), '>', 1000, 'there were enough transactions');
is($pg->sql(q(SELECT count(DISTINCT (relation, op)) FROM audit)), 4 * @tables, 'every kind of change has happened to every table');

# ---- would it be seen? ----

my @mutations = (
	[ 'a change that is missing', 'DELETE FROM replay.H WHERE _seq = (SELECT max(_seq) FROM replay.H WHERE _op = %1$s)' ],
	[ 'a change that has not happened', 'INSERT INTO replay.H SELECT * FROM replay.H WHERE _seq = (SELECT max(_seq) FROM replay.H WHERE _op = %1$s)' ],
	[ 'two changes of a row in the wrong order', q(
		WITH history AS (SELECT _seq, _op, id, count(*) FILTER (WHERE _op = 'truncate') OVER (ORDER BY _seq) AS epoch FROM replay.H),
		two AS (SELECT _seq, lead(_seq) OVER same AS next, lead(_op) OVER same AS next_op FROM history
			WHERE _op <> 'truncate' WINDOW same AS (PARTITION BY epoch, id ORDER BY _seq)),
		pair AS (SELECT * FROM two WHERE next_op = %1$s ORDER BY _seq LIMIT 1)
		UPDATE replay.H h SET _seq = CASE h._seq WHEN pair._seq THEN pair.next ELSE pair._seq END FROM pair WHERE h._seq IN (pair._seq, pair.next)) ],
	[ 'a change of a transaction that was rolled back', q(UPDATE replay.H SET _txid = 3 WHERE _seq = (SELECT min(_seq) FROM replay.H WHERE _op = %1$s)) ],
	[ 'another value', q(UPDATE replay.H SET _row = _row || '{"body": "other"}' WHERE _seq = (SELECT min(_seq) FROM replay.H WHERE _op = %1$s)) ]);
for my $mutation (@mutations)
{
	my ($name, $sql) = @$mutation;
	for my $op (qw(insert update delete))
	{
		my $change = sprintf $sql =~ s/replay\.H\b/replay.olds_history/gr, literal($op);
		my @problems = $replay->problems('olds', history => 'olds_history', key => ['id'], old_values => 1, mutation => $change);
		cmp_ok(scalar @problems, '>', 0, "$name ($op) would be seen");
	}
}

unlike(slurp_file($pg->node->logfile), qr/TRAP|PANIC/, 'no assertion has failed');
$kusto->assert_no_violations;
diag "repeat with KUSTO_TEST_SEED=$seed" unless Test::More->builder->is_passing;
done_testing();
