# Managed streaming: what of a failed streaming request makes kusto_ingest(mode => 'managed') try
# again, queue the rows, or give up. Each row of the table is one call in a session of its own; looked
# at are the typed rows in Kusto, the requests that the service has seen, and what the user was told.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(elapsed literal);
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $path = '^/v1/rest/ingest/';
my $streaming = { service => 'engine', path => $path };
my ($true, $false) = (JSON::PP::true, JSON::PP::false);
my $json_type = { 'Content-Type' => 'application/json' };

my $kusto = KustoLocal->start;
my $db = KustoCluster::DATABASE;
my $pg = KustoCluster->start($kusto, conf => "client_min_messages = notice\nkusto_ingest.worker_idle_timeout = 1h\n");

# Two rows, and as Kusto has them.
my $query = <<~'SQL';
	SELECT 9007199254740993::int8 AS l, E'a "quoted",\nline ünï' AS t, timestamptz '2024-05-25 08:20:03.123456+02' AS d
	UNION ALL SELECT NULL, '', NULL
	SQL
my $columns = 'l:long, t:string, d:datetime';
my @landed = ([ 9007199254740993, qq(a "quoted",\nline \x{fc}n\x{ef}), '2024-05-25T06:20:03.1234560Z' ], [ undef, '', undef ]);

sub nstreamed { return scalar grep { $_->{service} eq 'engine' && $_->{path} =~ $path } $kusto->log }
sub forget_log { return $kusto->_call('POST', '/log/reset') }
sub policy { my ($table, $text) = @_; return $kusto->command($db, ".alter table $table policy streamingingestion $text") }

# An answer in the service's own form. permanent undef: it does not say.
sub answer
{
	my ($status, $code, $type, $message, $permanent, %headers) = @_;
	my %error = (code => $code, message => 'Request failed', '@type' => "Kusto.DataNode.Exceptions.$type", '@message' => $message);
	$error{'@permanent'} = $permanent ? $true : $false if defined $permanent;
	return { status => $status, headers => { %$json_type, %headers }, body => encode_json({ error => \%error }) };
}

sub several
{
	my @answers = map { decode_json($_->{body}) } @_;
	return { %{ $_[0] }, body => encode_json({ OneApiErrors => \@answers }) };
}

my $disabled = 'Streaming ingestion is disabled on the cluster';
my $about_data = 'Bad streaming ingestion request to db.T : The input stream is empty after processing, tip:check stream validity';

# fault: for every streaming request, or so many of them (times). prepare: before the call, with the table and the session.
# ends: streamed, queued, or what the error is like. requests: how many the service sees.
# why: what the notice says of it.
# again: requests of the next call of the session once the fault is over: none when the refusal is
# remembered.
my @rows = (
	# nothing is wrong
	{ name => 'a healthy service', ends => 'streamed', requests => 1 },

	# not this way
	{ name => 'more than 4 MB', query => q(SELECT repeat('x', 1000) AS t FROM generate_series(1, 4200)), columns => 't:string',
		rows => [ map { ['x' x 1000] } 1 .. 4200 ], ends => 'queued', requests => 0 },
	{ name => '413', prepare => sub { $kusto->config(streaming_limit => 20) }, repair => sub { $kusto->config(streaming_limit => 4 * 1024 * 1024) },
		ends => 'queued', why => qr/It was not streamed: .*too large for streaming ingestion/, requests => 1, again => 1 },
	{ name => '413 of a gateway', fault => { status => 413, body => '<html>Request Entity Too Large</html>' }, ends => 'queued', requests => 1, again => 1 },
	{ name => '400, too large by its type', fault => answer(400, 'BadRequest', 'KustoRequestPayloadTooLargeException', 'no', 1),
		ends => 'queued', requests => 1, again => 1 },
	{ name => '404, the table has no policy', prepare => sub { policy($_[0], 'disable') }, repair => sub { policy($_[0], 'enable') },
		ends => 'queued', why => qr/It was not streamed: .*streaming ingestion is not enabled for the table/, requests => 1, again => 0 },
	{ name => '404, streaming is off', prepare => sub { $kusto->config(streaming => $false) }, repair => sub { $kusto->config(streaming => $true) },
		ends => 'queued', requests => 1, again => 0 },
	{ name => '404, nothing said', fault => { status => 404 }, ends => 'queued', why => qr/It was not streamed: .*no streaming ingestion at that URL/, requests => 1, again => 0 },
	{ name => '400, disabled by its code', fault => answer(400, 'BadRequest_StreamingIngestionFunctionalityDisabled', 'X', 'no', 1),
		ends => 'queued', requests => 1, again => 0 },
	{ name => '400, disabled in words', fault => answer(400, 'BadRequest', 'StreamingIngestionRequestException', $disabled, 1),
		ends => 'queued', requests => 1, again => 0 },
	{ name => 'an update policy that does not go with it',
		fault => answer(400, 'UpdatePolicy_Transactional_Not_Allowed_In_Streaming_Ingestion', 'X', 'no', 1), ends => 'queued', why => qr/It was not streamed: .*update policy does not allow streaming/, requests => 1, again => 0 },

	# three tries
	{ name => '429 once', fault => { status => 429 }, times => 1, ends => 'streamed', requests => 2 },
	{ name => '429 twice', fault => answer(429, 'Throttled', 'KustoRequestThrottledException', 'busy', 1), times => 2, ends => 'streamed', requests => 3 },
	{ name => '429 for ever', fault => answer(429, 'Throttled', 'KustoRequestThrottledException', 'busy', 0), ends => 'queued', why => qr/It was not streamed: .*the cluster is too busy/, requests => 3, again => 0 },
	{ name => '400, throttled by its type', fault => answer(400, 'BadRequest', 'KustoRequestThrottledException', 'busy', 1),
		ends => 'queued', requests => 3, again => 0 },
	{ name => '429, Retry-After a second', fault => { status => 429, headers => { 'Retry-After' => '1' } }, times => 1,
		ends => 'streamed', requests => 2, at_least => 1 },
	{ name => '429, Retry-After a minute', fault => { status => 429, headers => { 'Retry-After' => '60' } }, ends => 'queued', requests => 1, again => 0,
		at_most => 10 },
	{ name => '500 once', fault => { status => 500 }, times => 1, ends => 'streamed', requests => 2 },
	{ name => '500 for ever', fault => answer(500, 'General_InternalServerError', 'InternalServerError', 'oops', 0), ends => 'queued', doubtful => 1,
		requests => 3, again => 1 },
	{ name => '503 for ever', fault => { status => 503, body => '<html>busy</html>' }, ends => 'queued', why => qr/It was not streamed: .*Kusto failed/, requests => 3, again => 1 },
	{ name => '504 for ever', fault => { status => 504 }, ends => 'queued', doubtful => 1, requests => 3, again => 1 },
	{ name => '400 that may pass', fault => answer(400, 'General_X', 'X', 'later', 0), ends => 'queued', requests => 3, again => 1 },
	{ name => '400 whose code may pass', fault => answer(400, 'General_InternalServerError', 'X', 'later'), times => 1, ends => 'streamed', requests => 2 },
	{ name => 'a list of errors that may pass', fault => several(answer(400, 'A', 'X', 'first', 0), answer(400, 'B', 'X', 'second', 0)),
		ends => 'queued', requests => 3, again => 1 },
	{ name => 'a lost answer', fault => { lose_reply => $true }, times => 1, ends => 'streamed', requests => 2, copies => 2 },
	{ name => 'lost answers', fault => { lose_reply => $true }, ends => 'queued', doubtful => 1, lost => 1, again => 1 },
	{ name => 'resets', fault => { reset => $true }, ends => 'queued', doubtful => undef, requests => [ 3, 4 ], again => 1 },
	{ name => 'no answer in time', fault => { blackhole => $true }, settings => q(SET kusto_ingest.request_timeout = '1s'), ends => 'queued', why => qr/It was not streamed: .*no answer in time/, doubtful => 1,
		requests => 1, again => 1, at_most => 10 },
	# The query takes away the connection that the session has kept: since 8.22 libcurl looks at one once a second at most, so
	# the request would go into it, hear afterwards that it is closed, and be in doubt.
	{ name => 'an engine that is down', prepare => sub { $kusto->down(['engine']); $_[1]->fails(q(SET kusto_ingest.retry_timeout = '1s'; SELECT kusto_query('print 1'))); $_[1]->sql('RESET kusto_ingest.retry_timeout') },
		repair => sub { $kusto->up }, ends => 'queued', why => qr/It was not streamed: .*could not connect/, warm => 'queued', requests => 0, again => 1 },

	# identity
	{ name => 'a token that is no longer good', fault => { revoke_tokens => $true }, times => 1, ends => 'streamed', requests => 2 },
	{ name => '401 for ever', fault => { status => 401 }, ends => { sqlstate => '28000' }, requests => 2 },
	{ name => '403', prepare => sub { $kusto->config(roles => ['viewer']) }, repair => sub { $kusto->config(roles => [qw(admin user viewer ingestor)]) },
		ends => { sqlstate => '42501', detail => qr/not authorized/, hint => qr/ingestors/ }, requests => 1 },
	{ name => '403, nothing said', fault => { status => 403 }, ends => { sqlstate => '42501', hint => qr/ingestors/ }, requests => 1 },

	# what is not there
	{ name => 'no such table', table => 'Missing', ends => { detail => qr/Missing/, hint => qr/create_table/ }, requests => 1 },
	{ name => 'no such database', database => 'nowhere', ends => { detail => qr/nowhere/, hint => qr/database/ }, requests => 1 },
	{ name => 'no such mapping', arguments => { mapping => q('none') }, ends => { detail => qr/none/, hint => qr/mapping/ }, requests => 1 },

	# the data
	{ name => 'data that cannot be read', fault => answer(400, 'BadRequest', 'StreamingIngestionRequestException', $about_data, 1),
		ends => { message => qr/Kusto cannot take the data/, detail => qr/empty after processing/ }, requests => 1 },
	{ name => 'a wrong number of fields, permanent not said', fault => answer(400, 'Stream_WrongNumberOfFields', 'X', 'fields'),
		ends => { message => qr/Kusto cannot take the data/, detail => qr/Stream_WrongNumberOfFields/ }, requests => 1 },

	# whatever else is permanent
	{ name => 'an unknown permanent 400', fault => answer(400, 'Whatever', 'X', 'odd', 1), ends => { detail => qr/odd/ }, requests => 1 },
	{ name => 'a permanent 500', fault => answer(500, 'Whatever', 'X', 'never', 1), ends => { sqlstate => 'KU003', detail => qr/never/ }, requests => 1 },
	{ name => 'a redirect', fault => { status => 307, headers => { Location => 'http://127.0.0.1:1/' } }, ends => { message => qr/redirect/ }, requests => 1 },
	{ name => 'a 200 of somebody else', fault => { status => 200, body => '<html>hello</html>' }, ends => { sqlstate => 'KU003' }, requests => 1 },
);

sub call_of
{
	my ($row, $table) = @_;
	return $pg->ingest_call($row->{query} // $query, $table, mode => q('managed'), %{ $row->{arguments} // {} },
		$row->{database} ? (database => $row->{database}) : ());
}

# What a statement gave: its output and notices, or its error.
sub perform
{
	my ($session, $sql) = @_;
	$session->send($sql);
	my $outcome = $session->receive;
	return ($outcome->{out}, $outcome->{err}, KustoCluster::parse_error($outcome->{err}));
}

sub requests_are
{
	my ($row) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen = nstreamed();
	my ($from, $to) = $row->{lost} ? (3, 4) : ref $row->{requests} ? @{ $row->{requests} } : ($row->{requests}) x 2;
	return ok($seen >= $from && $seen <= $to, "$row->{name}: $from streaming requests") || diag "$seen were seen";
}

sub lands
{
	my ($row, $table, $id, $said) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $name = $row->{name};
	my $queued = $row->{ends} eq 'queued';
	# each request whose answer was lost had its effect
	my $copies = $row->{copies} // ($row->{lost} ? nstreamed() + 1 : 1);
	my $operation = $pg->succeeds($id, "$name: it succeeds");

	is_deeply([ @$operation{qw(mode blobs rows)} ], [ 'managed', $queued ? 1 : 0, scalar @{ $row->{rows} // \@landed } ], "$name: $row->{ends}");
	$pg->rows_are($table, [ map { @{ $row->{rows} // \@landed } } 1 .. $copies ], "$name: the rows, $copies of each");
	like($said, $queued ? $row->{why} // qr/1 blob is sent/ : qr/The data are in Kusto now/, "$name: so says the notice");
	is($said =~ /Kusto may have ingested the data all the same/ ? 1 : 0, $row->{doubtful} ? 1 : 0, "$name: in doubt or not")
	  unless exists $row->{doubtful} && !defined $row->{doubtful};
	return;
}

sub gives_up
{
	my ($row, $table, $error) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$pg->error_is($error, $row->{ends}, "$row->{name}: it is an error");
	is($pg->sql("SELECT count(*) FROM kusto.operations WHERE table_name = '$table'"), 0, "$row->{name}: and leaves no operation");
	$pg->rows_are($table, [], "$row->{name}: nor rows") if $table =~ /^M/ && $table ne 'Missing';
	return;
}

# The next call, when nothing is wrong any more.
sub goes_on
{
	my ($row, $table, $session) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $remembered = defined $row->{again} && $row->{again} == 0;

	forget_log();
	my $id = $session->sql('SELECT ' . call_of($row, $table));
	my $operation = $pg->succeeds($id, "$row->{name}: the next call succeeds");
	is(nstreamed(), $remembered ? 0 : 1, "$row->{name}: which " . ($remembered ? 'does not ask again' : 'is streamed'));
	is($operation->{blobs}, $remembered ? 1 : 0, "$row->{name}: and is as the record says");
	return;
}

for my $number (0 .. $#rows)
{
	my $row = $rows[$number];
	my $table = $row->{table} // "M$number";
	my $session = $pg->session;

	$kusto->create_table($db, $table, $row->{columns} // $columns) unless $row->{table};
	# token and resources are there: what fails is the streaming
	$kusto->create_table($db, 'Warm', 'i:int');
	$session->sql($row->{settings}) if $row->{settings};
	$session->sql('SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Warm', mode => literal($row->{warm} // 'managed')));
	$row->{prepare}->($table, $session) if $row->{prepare};
	$kusto->fault($streaming, $row->{fault}, times => $row->{times} // -1) if $row->{fault};
	forget_log();
	my ($seconds, $id, $said, $error);
	($seconds) = elapsed(sub { ($id, $said, $error) = perform($session, 'SELECT ' . call_of($row, $table)) });
	requests_are($row);
	$kusto->clear_faults;
	$row->{repair}->($table) if $row->{repair};
	cmp_ok($seconds, '>=', $row->{at_least}, "$row->{name}: waits as it is told") if $row->{at_least};
	cmp_ok($seconds, '<', $row->{at_most}, "$row->{name}: does not wait for long") if $row->{at_most};
	if (ref $row->{ends})
	{
		ok($error, "$row->{name}: the call fails") ? gives_up($row, $table, $error) : diag $said;
	}
	elsif (ok(!$error, "$row->{name}: the call succeeds") || !diag $said)
	{
		lands($row, $table, $id, $said);
	}
	goes_on($row, $table, $session) if defined $row->{again};
	$session->quit;
}

# ---- what is remembered, and for whom ----

$kusto->create_table($db, $_, 'i:int') for qw(Refuses Other);
policy('Refuses', 'disable');
my $session = $pg->session;
my $managed = sub { return $session->sql('SELECT ' . $pg->ingest_call("SELECT $_[1] AS i", $_[0], mode => q('managed'))) };
$managed->('Refuses', 1);
forget_log();
$managed->('Refuses', 2);
is(nstreamed(), 0, 'a table that refuses is not asked again');
$managed->('Other', 1);
is(nstreamed(), 1, 'another one is');
my $newcomer = $pg->session;
$newcomer->sql('SELECT ' . $pg->ingest_call('SELECT 3 AS i', 'Refuses', mode => q('managed')));
is(nstreamed(), 2, 'another session asks for itself');
$newcomer->quit;
my $error = $session->fails('SELECT ' . $pg->ingest_call('SELECT 4 AS i', 'Refuses', mode => q('streaming')));
like($error->{text}, qr/not enabled/, 'mode streaming asks, since it has no other way');
like($error->{hint}, qr/"managed".*policy streamingingestion enable/s, 'and its hint says how to have it');
is(nstreamed(), 3, 'which the service sees');
policy('Refuses', 'enable');
$managed->('Refuses', 5);
is(nstreamed(), 3, 'that it is enabled now is not known yet');
$session->sql('SELECT ' . $pg->ingest_call('SELECT 6 AS i', 'Refuses', mode => q('streaming')));
$managed->('Refuses', 7);
is(nstreamed(), 5, 'until mode streaming succeeds');
$session->quit;
$pg->poll(q(SELECT count(*) = 0 FROM kusto.operations WHERE table_name = 'Refuses' AND state <> 'succeeded'), 't', 'all end well');
$pg->rows_are('Refuses', [ map { [$_] } 1, 2, 3, 5, 6, 7 ], 'and each row is there once');

# ---- a rollback ----

$kusto->create_table($db, 'Undone', 'i:int');
policy('Undone', 'disable');
$pg->sql('BEGIN; SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'Undone', mode => q('managed')) . '; ROLLBACK');
$pg->rows_are('Undone', [], 'what is queued instead is undone by a rollback');

$kusto->settle;
$kusto->assert_no_violations;
done_testing();
