# A connection is made once and used again: by a session for all blobs of all its exports, by the
# worker for all that it posts and asks; by TLS as well.
use strict;
use warnings;

use JSON::PP;
use KustoCluster qw(wait_until);
use KustoLocal;
use List::Util qw(sum0);
use PostgreSQL::Test::Utils;
use Test::More;

my $db = KustoCluster::DATABASE;
my $dir = PostgreSQL::Test::Utils::tempdir();

run_log([ 'openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=local',
	'-addext', 'subjectAltName=IP:127.0.0.1', '-out', "$dir/local.crt", '-keyout', "$dir/local.key" ])
  or die 'openssl failed';

# Connections that each listener has accepted so far.
sub accepted
{
	my ($kusto) = @_;
	my $connections = $kusto->connections;
	return { map { $_ => $connections->{$_}{accepted} } keys %$connections };
}

# Those that are more by now, of listeners whose name fits.
sub more
{
	my ($kusto, $before, $pattern) = @_;
	my $now = accepted($kusto);
	return { map { $_ => $now->{$_} - $before->{$_} } grep { /$pattern/ && $now->{$_} > $before->{$_} } keys %$now };
}

sub one_after_the_other
{
	my ($kusto, $pg, $how) = @_;
	my $call = 'SELECT ' . $pg->ingest_call('SELECT 1 AS i', 'T');
	my $session = $pg->session;
	my $exports = 40;

	# The first one has session and worker get their tokens and resources.
	$pg->succeeds($session->sql($call), "$how: an export");
	my $warm = accepted($kusto);
	$pg->finished($session->sql($call)) for 2 .. $exports;
	is($pg->sql("SELECT count(*) FROM kusto.operations WHERE state = 'succeeded'"), $exports, "$how: all of them succeed");
	is_deeply(more($kusto, $warm, qr/^(?:engine|ingest|login|imds)$/), {}, "$how: nobody asks the service itself again");

	# Each part of an account is asked by one process, one request at a time.
	my $now = $kusto->connections;
	my %many = map { $_ => $now->{$_}{accepted} } grep { /\./ && $now->{$_}{accepted} > 1 } keys %$now;
	is_deeply(\%many, {}, "$how: one connection to each part of an account for all $exports exports");
	for my $part (qw(blob queue table))
	{
		cmp_ok(scalar $kusto->log(service => $part), '>=', $exports, "$how: that many requests to the $part part");
	}
	$session->quit;
	return;
}

# Blocks and commits of the exports go by the window's connections, and no others.
sub blob_after_blob
{
	my ($kusto, $pg, $how) = @_;
	my $session = $pg->session;
	my ($exports, $blobs) = (3, 0);

	$kusto->config(discard => JSON::PP::true);
	$session->sql("SET kusto_ingest.max_blob_size = '3MB'");
	# Text that does not become smaller: each blob has several blocks.
	for my $export (1 .. $exports)
	{
		my $id = $session->sql('SELECT ' . $pg->ingest_call(
				q(SELECT encode(sha512(i::text::bytea), 'base64') AS s FROM generate_series(1, 150000) i), 'Wide'));
		$blobs += $pg->sql("SELECT blobs FROM kusto.operations WHERE id = '$id'");
	}
	cmp_ok($blobs, '>=', 12, "$how: $blobs blobs");
	cmp_ok($kusto->discarded->{blobs}, '>=', $blobs, "$how: all of them were uploaded");
	# The window of four, and what commits a blob or begins the next beside it.
	cmp_ok($kusto->connections->{discard}{accepted}, '<=', 8, "$how: by few connections");
	$session->quit;
	return;
}

for my $how ('http', 'https')
{
	my @tls = $how eq 'https' ? ('--tls-cert', "$dir/local.crt", '--tls-key', "$dir/local.key") : ();
	my $kusto = KustoLocal->start(@tls);
	like($kusto->engine, qr/^$how:/, "$how: the service speaks it");
	my $pg = KustoCluster->start($kusto, name => $how, server => { ca_file => @tls ? "$dir/local.crt" : undef });

	$kusto->create_table($db, 'T', 'i:long');
	one_after_the_other($kusto, $pg, $how);
	blob_after_blob($kusto, $pg, $how);
	$kusto->assert_no_violations("$how: no violation of the protocol");
	$pg->node->stop;
	$kusto->stop;
}

done_testing();
