# BenchExport: exports with kusto_ingest, and what they take: seconds, and processor time of every
# process of the server.
#
# The extension is made anew for each part (each has a Kusto service of its own), and dropped with what
# it has recorded when the part ends. Every export is followed to its end, so nothing of it falls
# into the next measurement.
package BenchExport;

use strict;
use warnings;

use BenchProcess qw(cpu_seconds postmaster_of);
use BenchServer;
use Carp;
use Exporter qw(import);
use JSON::PP;
use Time::HiRes qw(time);

our @EXPORT_OK = qw(install session sink measure export_of outcome has_threads zlib_session literal);

my ($control, $kusto);
my $open = 0;

# The server that was installed: a psql for what is not measured.
sub install
{
	my ($service) = @_;
	$kusto = $service;
	$control = BenchServer->new;
	$control->sql(<<~SQL);
		SET client_min_messages = warning;
		DROP EXTENSION IF EXISTS kusto_ingest CASCADE;
		CREATE EXTENSION kusto_ingest;
		CREATE SERVER adx FOREIGN DATA WRAPPER kusto
			OPTIONS (cluster '$ENV{KUSTO_ENGINE_URI}', ingest_uri '$ENV{KUSTO_INGEST_URI}', database 'bench');
		CREATE USER MAPPING FOR CURRENT_USER SERVER adx
			OPTIONS (auth 'client_secret', tenant '$ENV{KUSTO_TENANT}', client_id '$ENV{KUSTO_CLIENT_ID}',
				client_secret '$ENV{KUSTO_CLIENT_SECRET}')
		SQL
	return $control;
}

# Where blobs go from now on; sessions that have sent one before go on where they were.
#   azurite   real storage
#   discard   nginx, which reads them and keeps nothing
#   keep      nginx, which keeps them as files
#   late      nginx, which answers when late_answers.mjs does
sub sink
{
	my ($to) = @_;
	my %sinks = (azurite => JSON::PP::false, discard => $ENV{SINK_URI}, keep => $ENV{SINK_KEEP_URI}, late => $ENV{SINK_LATE_URI});
	$kusto->call('POST', '/config', { discard => $sinks{$to} // croak("no sink $to"), direct_blobs => JSON::PP::true });
	return;
}

# A session of its own, with these parameters set.
sub session
{
	my (%settings) = @_;
	my $session = BenchServer->new;
	$session->sql("SET client_min_messages = warning; LOAD 'kusto_ingest'");
	$session->sql("SET $_ = '$settings{$_}'") for sort keys %settings;
	return $session;
}

sub has_threads
{
	my ($session) = @_;
	return $session->sql("SELECT count(*) FROM pg_settings WHERE name = 'kusto_ingest.compression_threads'");
}

sub literal { my ($text) = @_; $text =~ s/'/''/g; return "'$text'" }

# A session whose schema zlib has kusto_ingest() out of the library that was built with zlib alone; undef when
# there is none. Nothing of the other library may be called in it.
sub zlib_session
{
	my (%settings) = @_;
	my $library = $ENV{BENCH_ZLIB_LIBRARY} or return undef;
	my $session = BenchServer->new;
	$session->sql(<<~SQL);
		SET client_min_messages = warning;
		DROP SCHEMA IF EXISTS zlib CASCADE;
		CREATE SCHEMA zlib;
		DO \$do\$ BEGIN EXECUTE (
			SELECT replace(replace(pg_get_functiondef(oid), ' public.', ' zlib.'), '\$libdir/kusto_ingest', '$library')
			FROM pg_proc WHERE proname = 'kusto_ingest'); END \$do\$;
		SET search_path = zlib, public
		SQL
	$session->sql("SET $_ = '$settings{$_}'") for sort keys %settings;
	return $session;
}

# The statement that exports a query; further arguments are named.
sub export_of
{
	my ($query, $table, %arguments) = @_;
	my $more = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;
	return 'SELECT kusto_ingest(' . literal($query) . ", 'bench', '$table'$more)";
}

# Runs a statement, which commits at its end. An export is followed to its end afterwards: its processor
# time has the worker's in it. Returns { seconds, cpu, said }.
sub measure
{
	my ($session, $sql, %expected) = @_;
	my $postmaster = postmaster_of($session);
	my $before = cpu_seconds($postmaster);
	my $began = time;
	my $said = $session->sql($sql);
	my $took = time - $began;
	my %run = (seconds => $took, said => $said);
	$run{outcome} = outcome($said, $expected{rows}) if $expected{rows};
	$run{cpu} = cpu_seconds($postmaster) - $before;
	return \%run;
}

# Waits for the end of an operation; all rows must have got there.
sub outcome
{
	my ($operation, $rows, $wanted) = @_;
	$wanted //= 'succeeded';
	my $state = $control->sql("SELECT kusto_wait('$operation', '5 min')");
	my %is;
	@is{qw(rows raw_bytes compressed_bytes blobs posted_at)} = split /\|/, $control->sql(<<~SQL);
		SELECT rows, raw_bytes, compressed_bytes, blobs, extract(epoch FROM posted_at) FROM kusto.operations WHERE id = '$operation'
		SQL
	croak "the operation has ended as $state" unless $state eq $wanted;
	croak "$is{rows} rows were exported instead of $rows" unless $is{rows} == $rows;
	return \%is;
}

END
{
	my $status = $?;
	eval { $control->sql('SET client_min_messages = warning; DROP SCHEMA IF EXISTS zlib CASCADE; DROP EXTENSION kusto_ingest CASCADE') } if $control;
	$? = $status;
}

1;
