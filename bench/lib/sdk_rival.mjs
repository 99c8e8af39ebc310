// The export that one would put together without kusto_ingest: psql's \copy, gzip, and queued
// ingestion by Microsoft's Node.js SDK.
//
// It is given the better start: SDK loaded, token and ingestion resources fetched, a blob sent. For
// each line {"how", "query", "table"} on standard input it exports once and answers {"seconds", "bytes"};
// the seconds run until the SDK says that the message is in the queue.
//
//   file     \copy | gzip -1 > file, then ingestFromFile
//   stream   \copy | gzip -1, whose output is ingestFromStream's input
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { stat, unlink, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { Transform } from 'node:stream';
import { gzipSync } from 'node:zlib';

const require = createRequire(new URL('../../test/kusto-local/package.json', import.meta.url));
const { KustoConnectionStringBuilder } = require('azure-kusto-data');
const { CompressionType, DataFormat, FileDescriptor, IngestClient, IngestionProperties, StreamDescriptor } =
  require('azure-kusto-ingest');

const { BENCH_WORK, KUSTO_CONTROL_URI, KUSTO_INGEST_URI } = process.env;
const FILE = `${BENCH_WORK}/rival.csv.gz`;

async function token() {
  const answer = await fetch(`${KUSTO_CONTROL_URI}/token`, { method: 'POST', body: '{}' });
  return (await answer.json()).token;
}

const bearer = await token();
const client = new IngestClient(
  KustoConnectionStringBuilder.withTokenProvider(KUSTO_INGEST_URI, async () => bearer),
);

function into(table) {
  return new IngestionProperties({ database: 'bench', table, format: DataFormat.CSV });
}

// psql's client encoding and formats are its defaults, as they would be in a script.
function pipeline(query, output) {
  const child = spawn(
    'bash',
    ['-c', `set -o pipefail; psql -XAtq -v ON_ERROR_STOP=1 -c "$1" | gzip -1 ${output}`, 'bash', `\\copy (${query}) TO STDOUT (FORMAT csv)`],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const ended = once(child, 'close').then(([status]) => {
    if (status !== 0) throw new Error(`psql | gzip ended with status ${status}`);
  });
  return { child, ended };
}

const ways = {
  async file(query, table) {
    await pipeline(query, `> '${FILE}'`).ended;
    const { size } = await stat(FILE);
    await client.ingestFromFile(FILE, into(table));
    await unlink(FILE);
    return size;
  },

  async stream(query, table) {
    const { child, ended } = pipeline(query, '');
    let size = 0;
    const counted = child.stdout.pipe(
      new Transform({
        transform(chunk, encoding, done) {
          size += chunk.length;
          done(null, chunk);
        },
      }),
    );
    await client.ingestFromStream(new StreamDescriptor(counted, null, CompressionType.GZip), into(table));
    await ended;
    return size;
  },
};

await writeFile(FILE, gzipSync('1\n'));
await client.ingestFromFile(new FileDescriptor(FILE), into('Warm'));
console.log('ready');

for await (const line of createInterface({ input: process.stdin })) {
  const { how, query, table } = JSON.parse(line);
  const began = process.hrtime.bigint();
  const bytes = await ways[how](query, table);
  console.log(JSON.stringify({ seconds: Number(process.hrtime.bigint() - began) / 1e9, bytes }));
}
client.close();
