// The proof of the service: Microsoft's own Node SDK, unchanged, queues, streams,
// queries and manages against it, and the typed rows are what was sent.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { after, before, beforeEach, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { Client, KustoConnectionStringBuilder } from 'azure-kusto-data';
import * as ingest from 'azure-kusto-ingest';
import { Running } from './harness.js';

const { IngestClient, IngestionProperties, DataFormat, ReportLevel, ReportMethod } = ingest;
const DB = 'telemetry';
const SCHEMA =
  '(id:long, name:string, seen:datetime, span:timespan, ratio:real, price:decimal, ok:bool, key:guid, bag:dynamic)';
const CSV =
  [
    '1,"plain",2024-05-25T08:20:03.123456Z,1.02:03:04.5,0.1,12.50,true,0e0f6f2a-6a54-4a0e-8a59-0f4f5b2d0002,"{""a"":[1,2]}"',
    '9007199254740993,"with ""quotes"", commas\r\nand lines",2024-01-01,-00:00:01,1e300,-0.000001,false,00000000-0000-4000-8000-000000000001,"[1]"',
    '-5,"",,,,,,,',
  ].join('\r\n') + '\r\n';
const EXPECTED = [
  [
    1,
    'plain',
    '2024-05-25T08:20:03.1234560Z',
    '1.02:03:04.5000000',
    0.1,
    '12.5',
    true,
    '0e0f6f2a-6a54-4a0e-8a59-0f4f5b2d0002',
    { a: [1, 2] },
  ],
  // JSON.parse rounds the long here; its exact text is asserted by itself.
  [
    9007199254740992,
    'with "quotes", commas\r\nand lines',
    '2024-01-01T00:00:00.0000000Z',
    '-00:00:01',
    1e300,
    '-0.000001',
    false,
    '00000000-0000-4000-8000-000000000001',
    [1],
  ],
  [-5, '', null, null, null, null, null, null, null],
];

let service;
let directory;
const clients = [];

before(async () => {
  service = await Running.start('--batching-ms', '20');
  directory = await mkdtemp(join(tmpdir(), 'kusto-local-sdk-'));
});

after(async () => {
  for (const client of clients) client.close();
  await service?.stop();
  await rm(directory, { recursive: true, force: true });
});

beforeEach(async () => {
  await service.post('/reset');
  await service.post('/command', { db: DB, csl: `.create table Events ${SCHEMA}` });
});

// The callback is the SDK's own way to bring a token; MSAL is in sdk-tls.test.js.
function builder(url) {
  return KustoConnectionStringBuilder.withTokenProvider(url, () => service.token());
}

function ingestClient(properties = {}) {
  const client = new IngestClient(
    builder(service.ready.ingest),
    new IngestionProperties({
      database: DB,
      table: 'Events',
      format: DataFormat.CSV,
      ...properties,
    }),
  );
  clients.push(client);
  return client;
}

function dataClient() {
  const client = new Client(builder(service.ready.engine));
  clients.push(client);
  return client;
}

function eventsAsCsv() {
  return new IngestionProperties({ database: DB, table: 'Events', format: DataFormat.CSV });
}

async function expectRows(expected, table = 'Events') {
  await service.post('/settle');
  assert.deepEqual(await service.get('/violations'), []);
  const rows = await service.rows(DB, table);
  const byId = (a, b) => String(a[0]).localeCompare(String(b[0]));
  assert.deepEqual(rows.sort(byId), expected.slice().sort(byId));
}

async function file(name, content) {
  const path = join(directory, name);
  await writeFile(path, content);
  return path;
}

test('queued ingestion from a plain CSV file', async () => {
  await ingestClient().ingestFromFile(await file('plain.csv', CSV));
  await expectRows(EXPECTED);
});

test('a long beyond 2^53 keeps every digit', async () => {
  await ingestClient().ingestFromFile(await file('long.csv', CSV));
  await service.post('/settle');
  const text = await (await fetch(`${service.ready.control}/rows?db=${DB}&table=Events`)).text();
  assert.match(text, /\[9007199254740993,/);
});

test('queued ingestion from a gzip file', async () => {
  await ingestClient().ingestFromFile(await file('packed.csv.gz', gzipSync(CSV)));
  await expectRows(EXPECTED);
});

test('queued ingestion from a plain stream', async () => {
  await ingestClient().ingestFromStream(Readable.from([CSV.slice(0, 37), CSV.slice(37)]));
  await expectRows(EXPECTED);
});

test('queued ingestion from a gzip stream', async () => {
  const stream = new ingest.StreamDescriptor(
    Readable.from([gzipSync(CSV)]),
    null,
    ingest.CompressionType.GZIP,
  );
  await ingestClient().ingestFromStream(stream);
  await expectRows(EXPECTED);
});

test('ignoreFirstRecord, tags, ingestIfNotExists and flushImmediately', async () => {
  const properties = {
    ignoreFirstRecord: true,
    additionalTags: ['made-by-sdk'],
    ingestByTags: ['part-1'],
    ingestIfNotExists: '["part-1"]',
    flushImmediately: true,
  };
  const path = await file('header.csv', `id,name,seen,span,ratio,price,ok,key,bag\n${CSV}`);
  await ingestClient(properties).ingestFromFile(path);
  await expectRows(EXPECTED);
  const extents = await service.get(`/extents?db=${DB}&table=Events`);
  assert.deepEqual(
    extents.map((e) => e.tags),
    [['made-by-sdk', 'ingest-by:part-1']],
  );
  await ingestClient(properties).ingestFromFile(path);
  await expectRows(EXPECTED);
});

test('an inline mapping', async () => {
  await service.post('/command', { db: DB, csl: '.create table Small (a:long, b:string, c:string)' });
  const client = ingestClient({
    table: 'Small',
    ingestionMappingColumns: [
      ingest.CsvColumnMapping.withOrdinal('b', 0, 'string'),
      ingest.CsvColumnMapping.withOrdinal('a', 1, 'long'),
      ingest.CsvColumnMapping.withConstantValue('c', 'fixed', 'string'),
    ],
  });
  await client.ingestFromFile(await file('mapped.csv', '"x",7\n"y",8\n'));
  await expectRows(
    [
      [7, 'x', 'fixed'],
      [8, 'y', 'fixed'],
    ],
    'Small',
  );
});

test('a mapping by reference', async () => {
  await service.post('/command', { db: DB, csl: '.create table Small (a:long, b:string)' });
  await dataClient().execute(
    DB,
    `.create table Small ingestion csv mapping "swap" '[{"Column":"a","Properties":{"Ordinal":"1"}},{"Column":"b","Properties":{"Ordinal":"0"}}]'`,
  );
  await ingestClient({ table: 'Small', ingestionMappingReference: 'swap' }).ingestFromFile(
    await file('ref.csv', '"x",7\n'),
  );
  await expectRows([[7, 'x']], 'Small');
});

test('status queues tell of success and of failure', async () => {
  const properties = { reportLevel: ReportLevel.FailuresAndSuccesses, reportMethod: ReportMethod.Queue };
  const good = ingestClient(properties);
  await good.ingestFromFile(await file('good.csv', CSV));
  const bad = ingestClient({ ...properties, table: 'NoSuchTable' });
  await bad.ingestFromFile(await file('bad.csv', CSV));
  await service.post('/settle');
  const queues = new ingest.IngestStatusQueues(good);
  // Asked for one message, the SDK asks each of two queues for none at all.
  const [success] = await queues.success.pop(2);
  assert.equal(success.Table, 'Events');
  assert.ok(success.SucceededOn);
  const [failure] = await queues.failure.pop(2);
  assert.equal(failure.Table, 'NoSuchTable');
  assert.equal(failure.ErrorCode, 'BadRequest_TableNotExist');
  assert.equal(failure.FailureStatus, 'Permanent');
  assert.equal(failure.ShouldRetry, false);
});

test('query, management commands and their results', async () => {
  const client = dataClient();
  await client.execute(DB, `.ingest inline into table Events <|\n${CSV}`);
  const count = await client.execute(DB, 'Events | count');
  assert.deepEqual(count.primaryResults[0].toJSON().data, [{ Count: 3 }]);
  const result = await client.execute(
    DB,
    "Events | where name has 'plain' | project id, seen, span, ratio, price, ok, key, bag",
  );
  const [row] = result.primaryResults[0].toJSON().data;
  assert.equal(row.id, 1);
  assert.deepEqual(row.seen, new Date('2024-05-25T08:20:03.123Z'));
  assert.equal(row.span, ((26 * 60 + 3) * 60 + 4.5) * 1000);
  assert.equal(row.price, '12.5');
  assert.equal(row.ok, true);
  assert.deepEqual(JSON.parse(row.bag), { a: [1, 2] });
  const v1 = await client.executeQueryV1(
    DB,
    'Events | summarize n = count(), top = max(id) by ok | sort by n desc, ok asc',
  );
  assert.equal(v1.primaryResults[0].toJSON().data.length, 3);
  const tables = await client.execute(DB, '.show tables');
  assert.deepEqual(
    tables.primaryResults[0].toJSON().data.map((t) => t.TableName),
    ['Events'],
  );
  assert.deepEqual(await service.get('/violations'), []);
});

test('an unknown table is an error with the code of the service', async () => {
  await assert.rejects(dataClient().execute(DB, 'Nowhere | count'), (error) => {
    assert.equal(error.response.status, 400);
    assert.equal(error.response.data.error.code, 'General_BadRequest');
    assert.match(
      error.response.data.error['@message'],
      /Failed to resolve table or column expression named 'Nowhere'/,
    );
    assert.equal(error.response.data.error['@permanent'], true);
    return true;
  });
});

test('a throttled request is the error that the SDK knows', async () => {
  await service.post('/faults', {
    match: { service: 'engine', path: 'query' },
    action: { status: 429, body: '{}' },
  });
  await assert.rejects(dataClient().execute(DB, 'Events | count'), { name: 'ThrottlingError' });
});

test('streaming ingestion from a stream and from files', async () => {
  const client = new ingest.StreamingIngestClient(builder(service.ready.engine), eventsAsCsv());
  clients.push(client);
  await client.ingestFromStream(Readable.from([Buffer.from(CSV)]));
  await expectRows(EXPECTED);
  await client.ingestFromFile(await file('streamed.csv', CSV));
  await client.ingestFromFile(await file('streamed.csv.gz', gzipSync(CSV)));
  await expectRows([...EXPECTED, ...EXPECTED, ...EXPECTED]);
});

test('streaming ingestion is refused above its limit and when the policy is off', async () => {
  const client = new ingest.StreamingIngestClient(builder(service.ready.engine), eventsAsCsv());
  clients.push(client);
  const large = Buffer.from('1,"x"\n'.repeat(900_000));
  await assert.rejects(
    client.ingestFromStream(Readable.from([large])),
    (error) => error.response.status === 413,
  );
  await service.post('/command', { db: DB, csl: '.alter table Events policy streamingingestion disable' });
  await assert.rejects(
    client.ingestFromStream(Readable.from([Buffer.from(CSV)])),
    (error) => error.response.status === 404,
  );
  await expectRows([]);
});

test('managed streaming streams what is small and queues what is large', async () => {
  const client = new ingest.ManagedStreamingIngestClient(
    builder(service.ready.engine),
    builder(service.ready.ingest),
    eventsAsCsv(),
  );
  clients.push(client);
  await client.ingestFromStream(Readable.from([Buffer.from(CSV)]));
  await expectRows(EXPECTED);
  assert.equal((await service.get('/messages')).length, 0);

  const lines = Array.from({ length: 60_000 }, (_, i) => `${i},"${'x'.repeat(80)}"\n`);
  await client.ingestFromStream(Readable.from(lines.map((line) => Buffer.from(line))));
  await service.post('/settle');
  assert.deepEqual(await service.get('/violations'), []);
  assert.equal((await service.get('/messages')).length, 1);
  const [table] = await service.get('/tables');
  assert.equal(table.rows, EXPECTED.length + lines.length);
});
