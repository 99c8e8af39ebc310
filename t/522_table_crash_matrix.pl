# The crash matrix of kusto_ingest_table with parallel workers: an accident at every point where one
# process knows of what another has done, or has uploaded; afterwards Kusto has what has committed, once,
# and nothing hangs. See FaultMatrix.
use strict;
use warnings;

use FaultMatrix;
use FaultScenarios;
use Test::More;

plan skip_all => 'needs the library with faults, which scripts/test prepares' unless $ENV{KUSTO_FAULTS_POSTGRES};

# A cell's query is a table first, which its transaction makes and drops.
my $matrix = FaultMatrix->start(function => 'export_slice', conf => "max_worker_processes = 16\nmax_parallel_workers = 8\n");
$matrix->pg->sql(<<~'SQL');
	CREATE FUNCTION export_slice(query text, database text, table_name text, exactly_once text) RETURNS uuid
	LANGUAGE plpgsql AS $$
	DECLARE
		slice text := 'slice_' || pg_backend_pid();
		id uuid;
	BEGIN
		EXECUTE format('CREATE TABLE %I AS %s', slice, query);
		id := kusto_ingest_table(slice::regclass, database, table_name, exactly_once => exactly_once, parallel => 3);
		EXECUTE format('DROP TABLE %I', slice);
		RETURN id;
	END $$;
	SQL

FaultScenarios::run($matrix, sub {
	return map { [ $_, {} ] } qw(scan-launched scan-uploaded scan-collected blobs-uploaded);
});
$matrix->done(qr/^(?!scan-)/);
done_testing();
