# The crash matrix of kusto_ingest: an accident at every point between an effect outside of PostgreSQL
# and its record inside; afterwards Kusto has what has committed, once, and nothing hangs. See
# FaultMatrix. The library is not preloaded: what a crash leaves waits for the next call.
use strict;
use warnings;

use FaultMatrix;
use FaultScenarios;
use Test::More;

plan skip_all => 'needs the library with faults, which scripts/test prepares' unless $ENV{KUSTO_FAULTS_POSTGRES};

my $matrix = FaultMatrix->start;
FaultScenarios::run($matrix, \&FaultScenarios::exports, \&FaultScenarios::doubts, \&FaultScenarios::departures);
$matrix->done(qr/^(?:ingested-at-once|scan|drain|ring|snapshot|letter|job|launcher|worker-registered|cancel|retry|purge|waiters)/);
done_testing();
