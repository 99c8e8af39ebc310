# The crash matrix of kusto_ingest_async and of steering, as 300_crash_matrix.pl. The library is
# preloaded: what a crash leaves goes on by itself.
use strict;
use warnings;

use FaultMatrix;
use FaultScenarios;
use Test::More;

plan skip_all => 'needs the library with faults, which scripts/test prepares' unless $ENV{KUSTO_FAULTS_POSTGRES};

my $matrix = FaultMatrix->start(function => 'kusto_ingest_async', preload => 1);
FaultScenarios::run($matrix, \&FaultScenarios::exports, \&FaultScenarios::jobs, \&FaultScenarios::launches,
	\&FaultScenarios::steering);
$matrix->done(qr/^(?:ingested-at-once|scan-.*|drain-.*|ring-.*|snapshot-.*|letter-.*|worker-leaving|successor-due|terminated)$/);
done_testing();
