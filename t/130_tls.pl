# TLS: certificates are always verified, against the system's authorities or the server's ca_file.
use strict;
use warnings;

use KustoCluster;
use KustoLocal;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir();

# A certificate that signs itself, for one host name or address.
sub certificate
{
	my ($name, $subject) = @_;
	my @files = ("$dir/$name.crt", "$dir/$name.key");
	run_log([ 'openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', "/CN=$name",
		'-addext', "subjectAltName=$subject", '-out', $files[0], '-keyout', $files[1] ])
	  or die 'openssl failed';
	return @files;
}

sub service_with
{
	my ($cert, $key) = @_;
	return KustoLocal->start('--tls-cert', $cert, '--tls-key', $key);
}

my ($cert, $key) = certificate('local', 'IP:127.0.0.1,DNS:localhost');
my $kusto = service_with($cert, $key);
like($kusto->engine, qr/^https:/, 'the service speaks TLS');
my $pg = KustoCluster->start($kusto, conf => "kusto_ingest.retry_timeout = 0\n",
	server => { ca_file => $cert });

$pg->succeeds($pg->ingest('SELECT i, md5(i::text) AS s FROM generate_series(1, 1000) i', 'Signed',
		create_table => 'true'),
	'an export over TLS with ca_file');
is($kusto->count(KustoCluster::DATABASE, 'Signed'), 1000, 'all rows arrived');
is($pg->sql(q(SELECT bool_and(ok) FROM kusto_test_connection('adx'))), 't', 'every step of the connection test passes');

# ---- an authority that nobody vouches for ----

$pg->connect_to($kusto, name => 'unsigned');
$pg->fails_like(q(SELECT kusto_ingest('SELECT 1', 'db', 'Signed', server => 'unsigned')),
	{ sqlstate => '08001', message => qr/certificate/i, hint => qr/ca_file/ },
	'a certificate that the system does not know is refused');
is($pg->sql(q(SELECT string_agg(DISTINCT ok::text, ',') FROM kusto_test_connection('unsigned') WHERE step = 'resolve')),
	'false', 'the connection test fails where the certificate is looked at');
like($pg->sql(q(SELECT hint FROM kusto_test_connection('unsigned') WHERE NOT ok LIMIT 1)), qr/ca_file/, 'and says what to do');

# ---- somebody else's certificate ----

my ($wrong_cert, $wrong_key) = certificate('wrong', 'DNS:elsewhere.example');
my $impostor = service_with($wrong_cert, $wrong_key);
$pg->connect_to($impostor, name => 'impostor', server => { ca_file => $wrong_cert });
$pg->fails_like(q(SELECT kusto_ingest('SELECT 1', 'db', 'Signed', server => 'impostor')),
	{ sqlstate => '08001', message => qr/certificate|host name|subject/i },
	'a certificate for another host is refused');
is(scalar(grep { $_->{service} ne 'control' } $impostor->log), 0, 'nothing was said to the impostor');

# ---- a bundle that is not there ----

$pg->connect_to($kusto, name => 'bundle', server => { ca_file => "$dir/missing.crt" });
$pg->fails_like(q(SELECT kusto_ingest('SELECT 1', 'db', 'Signed', server => 'bundle')),
	{ message => qr/certificate|CA/i, hint => qr/ca_file/ },
	'a missing CA file is named');

$kusto->assert_no_violations;
$impostor->assert_no_violations;
done_testing();
