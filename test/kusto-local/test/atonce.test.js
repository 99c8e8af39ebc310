// Ingestion at once: streaming and `.ingest into`, as the product under test asks
// for them, and what they refuse.
import assert from 'node:assert/strict';
import { after, before, beforeEach, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { StrictClient } from './client.js';
import { Running } from './harness.js';

const GOOD = '1,"one"\n2,"two"\n';
const ROWS = [
  [1, 'one'],
  [2, 'two'],
];

let service;
let client;

before(async () => {
  service = await Running.start('--batching-ms', '5');
});

after(() => service?.stop());

beforeEach(async () => {
  await service.post('/reset');
  await service.post('/tables', { db: 'telemetry', table: 'T', schema: 'id:long, name:string' });
  client = await new StrictClient(service).connect();
});

const kinds = async () => (await service.get('/violations')).map((v) => v.kind).sort();
const rows = () => service.rows('telemetry', 'T');

async function stream(csv, { path = 'telemetry/T', query = 'streamFormat=Csv', headers = {}, body } = {}) {
  return service.kusto('engine', `/v1/rest/ingest/${path}?${query}`, body ?? gzipSync(csv), {
    ...client.headers(await service.token()),
    'Content-Type': 'application/octet-stream',
    'Content-Encoding': 'gzip',
    ...headers,
  });
}

async function command(csl) {
  return service.kusto(
    'engine',
    '/v1/rest/mgmt',
    { db: 'telemetry', csl },
    client.headers(await service.token()),
  );
}

async function errorOf(response) {
  const { error } = await response.json();
  return [response.status, error.code, error['@permanent']];
}

const manage = (csl) => service.post('/command', { db: 'telemetry', csl });
const hidden = (url) => `h"${url}"`;

test('streaming goes by the columns that were cached until the cache is cleared', async () => {
  const more = (csv) => csv.replaceAll('\n', ',1\n');
  const lastColumn = async () => (await rows()).map((row) => row[2]);
  await service.post('/config', { streaming_schema_cache: true });
  assert.equal((await stream(GOOD)).status, 200);
  await manage('.create-merge table T (more: long)');
  assert.equal((await stream(more(GOOD))).status, 200);
  assert.deepEqual(await lastColumn(), [null, null, null, null]);
  assert.deepEqual(await kinds(), ['wrong_field_count']);
  const [table] = (await (await command(".clear table ['T'] cache streamingingestion schema")).json()).Tables;
  assert.deepEqual(
    table.Columns.map((c) => c.ColumnName),
    ['NodeId', 'Status'],
  );
  assert.deepEqual([...new Set(table.Rows.map((row) => row[1]))], ['Succeeded']);
  await stream(more(GOOD));
  assert.deepEqual(await lastColumn(), [null, null, null, null, 1, 1]);
  await manage('.clear table T data');
  assert.deepEqual(await rows(), []);
});

test('a streamed request is in the table when it is answered', async () => {
  const response = await stream(GOOD);
  assert.equal(response.status, 200);
  const [table] = (await response.json()).Tables;
  assert.deepEqual(
    table.Columns.map((c) => c.ColumnName),
    ['ConsumedRecordsCount', 'UpdatePolicyStatus', 'UpdatePolicyFailureCode', 'UpdatePolicyFailureReason'],
  );
  assert.deepEqual(await rows(), ROWS);
  assert.deepEqual(await kinds(), []);
});

test('gzip is what has the header, and nothing else', async () => {
  assert.equal((await stream('', { body: GOOD, headers: { 'Content-Encoding': '' } })).status, 200);
  assert.equal((await stream(GOOD, { headers: { 'Content-Encoding': '' } })).status, 400);
  assert.equal((await stream('', { body: GOOD })).status, 400);
  assert.deepEqual(await rows(), ROWS);
});

test('the limit is of uncompressed data', async () => {
  const line = `1,"${'x'.repeat(1019)}"\n`;
  const full = line.repeat((4 * 1024 * 1024) / line.length);
  assert.equal(full.length, 4 * 1024 * 1024);
  assert.equal((await stream(full)).status, 200);
  assert.deepEqual(await errorOf(await stream(`${full}1,""\n`)), [413, 'RequestEntityTooLarge', true]);
  assert.equal((await rows()).length, full.length / line.length);
});

test('a policy of the table goes before the configuration', async () => {
  await manage('.alter table T policy streamingingestion disable');
  assert.deepEqual(await errorOf(await stream(GOOD)), [404, 'NotFound_StreamingIngestionPolicy', true]);
  await manage('.delete table T policy streamingingestion');
  assert.equal((await stream(GOOD)).status, 200);
  await service.post('/config', { streaming: false });
  assert.equal((await stream(GOOD)).status, 404);
  await manage('.alter table T policy streamingingestion enable');
  assert.equal((await stream(GOOD)).status, 200);
});

test('streaming refuses what cannot be ingested, and stores none of it', async () => {
  assert.deepEqual(await errorOf(await stream('1,"one"\n2,"tw\n')), [400, 'BadRequest', true]);
  assert.deepEqual(await errorOf(await stream('\n')), [400, 'BadRequest', true]);
  assert.deepEqual(await errorOf(await stream(GOOD, { path: 'telemetry/Nope' })), [
    400,
    'BadRequest_EntityNotFound',
    true,
  ]);
  assert.deepEqual(await errorOf(await stream(GOOD, { query: 'streamFormat=Csv&mappingName=nope' })), [
    400,
    'BadRequest_EntityNotFound',
    true,
  ]);
  await service.post('/config', { roles: ['viewer'] });
  assert.equal((await stream(GOOD)).status, 403);
  assert.deepEqual(await rows(), []);
});

test('faults on the path: before the work, and after it', async () => {
  const match = { service: 'engine', path: '/v1/rest/ingest/' };
  await service.post('/faults', [
    { match, action: { status: 429, headers: { 'Retry-After': '1' } } },
    { match, action: { lose_reply: true } },
  ]);
  const throttled = await stream(GOOD);
  assert.equal(throttled.status, 429);
  assert.equal(throttled.headers.get('retry-after'), '1');
  assert.deepEqual(await rows(), []);
  await assert.rejects(stream(GOOD));
  assert.deepEqual(await rows(), ROWS);
  const log = await service.get('/log?path=/v1/rest/ingest/');
  assert.deepEqual(
    log.map((r) => r.path),
    Array(2).fill('/v1/rest/ingest/telemetry/T?streamFormat=Csv'),
  );
});

test('.ingest into takes all blobs', async () => {
  const urls = [await client.upload('1,"one"\n'), await client.upload('2,"two"\n')];
  const response = await command(
    `.ingest into table ['T'] (${urls.map(hidden).join(', ')}) with (format="csv", tags="[\\"drop-by:x\\"]")`,
  );
  assert.equal(response.status, 200);
  const [{ Columns, Rows }] = (await response.json()).Tables;
  assert.deepEqual(
    Columns.map((c) => c.ColumnName),
    ['ExtentId', 'ItemLoaded', 'Duration', 'HasErrors', 'OperationId'],
  );
  assert.equal(Rows.length, 2);
  assert.ok(Rows.every((r) => !r[1].includes('?')));
  assert.deepEqual(await rows(), ROWS);
  const extents = await service.get('/extents?db=telemetry&table=T');
  assert.deepEqual(
    extents.map((e) => e.tags),
    [['drop-by:x'], ['drop-by:x']],
  );
  assert.deepEqual(await kinds(), []);
});

test('.ingest into takes none when one is bad', async () => {
  const good = await client.upload(GOOD);
  const policy = 'validationPolicy="{\\"ValidationOptions\\":1,\\"ValidationImplications\\":0}"';
  const cases = [
    [await client.upload('1,"one"\n2\n'), 'Stream_WrongNumberOfFields'],
    [await client.upload('1,"on\n'), 'Stream_ClosingQuoteMissing'],
    [await client.upload('', { bytes: Buffer.from('x') }), 'BadRequest_InvalidArchive'],
    [good.replace('.csv.gz', 'x.csv.gz'), 'Download_SourceNotFound'],
    [good.replace(/\?.*/, ''), 'Download_Forbidden'],
    ['https://elsewhere.example/c/b.csv.gz?sig=x', 'BadRequest_InvalidBlobUri'],
  ];
  for (const [bad, code] of cases) {
    const csl = `.ingest into table T (${hidden(good)}, ${hidden(bad)}) with (format="csv", ${policy})`;
    assert.deepEqual(await errorOf(await command(csl)), [400, code, true]);
  }
  assert.deepEqual(await rows(), []);
});

test('.ingest into refuses a missing table, mapping, format or role', async () => {
  const url = hidden(await client.upload(GOOD));
  const code = async (csl) => (await errorOf(await command(csl)))[1];
  assert.equal(await code(`.ingest into table Nope (${url}) with (format="csv")`), 'BadRequest_EntityNotFound');
  assert.equal(
    await code(`.ingest into table T (${url}) with (format="csv", ingestionMappingReference="m")`),
    'BadRequest_EntityNotFound',
  );
  assert.equal(await code(`.ingest into table T (${url}) with (format="json")`), 'BadRequest_FormatNotSupported');
  await service.post('/config', { roles: ['viewer'] });
  assert.equal(await code(`.ingest into table T (${url}) with (format="csv")`), 'Forbidden');
  assert.deepEqual(await rows(), []);
});

test('.ingest into is skipped when a tag is there already', async () => {
  const url = hidden(await client.upload(GOOD));
  const csl = `.ingest into table T (${url}) with (format="csv", tags='["ingest-by:k"]', ingestIfNotExists='["k"]')`;
  assert.notEqual((await (await command(csl)).json()).Tables[0].Rows[0][0], '00000000-0000-0000-0000-000000000000');
  assert.equal((await (await command(csl)).json()).Tables[0].Rows[0][0], '00000000-0000-0000-0000-000000000000');
  assert.deepEqual(await rows(), ROWS);
});

test('violation: a signature that is not hidden in the command', async () => {
  await command(`.ingest into table T ("${await client.upload('1,"one"\n')}") with (format="csv")`);
  assert.deepEqual(await kinds(), ['traced_signature']);
});

test('the log does not have the signatures of a command', async () => {
  await command(`.ingest into table T (${hidden(await client.upload(GOOD))}) with (format="csv")`);
  const [entry] = (await service.get('/log?service=engine&path=mgmt')).filter((e) => /ingest into/.test(e.csl));
  assert.match(entry.csl, /sig=…"\)/);
});

test('the last columns may be missing, alike in all records', async () => {
  await service.post('/tables', { db: 'telemetry', table: 'T', schema: 'id:long, name:string, more:long' });
  const expected = ROWS.map((r) => [...r, null]);
  await stream(GOOD);
  assert.deepEqual(await rows(), expected);
  assert.equal((await client.ingest(GOOD)).Status, 'Succeeded');
  assert.deepEqual(await rows(), [...expected, ...expected]);
  await command(`.ingest into table T (${hidden(await client.upload(GOOD))}) with (format="csv")`);
  assert.deepEqual(await rows(), [...expected, ...expected, ...expected]);
  assert.deepEqual(await kinds(), []);
});

test('violation: more fields than columns, or now so many and now so many', async () => {
  await stream('1,"one",3\n');
  assert.deepEqual(await kinds(), ['wrong_field_count']);
  await service.post('/violations/reset');
  await stream('1,"one"\n2\n');
  const [violation] = await service.get('/violations');
  assert.deepEqual([violation.kind, violation.row, violation.count], ['wrong_field_count', 2, 1]);
});
