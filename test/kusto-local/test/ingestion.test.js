// Queued ingestion as the product under test does it: what must be stored and
// reported, and each protocol violation that the service must find.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import http from 'node:http';
import { after, before, beforeEach, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { StrictClient } from './client.js';
import { Running } from './harness.js';

const GOOD = '1,"one"\n2,"two"\n';

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

async function kinds() {
  return (await service.get('/violations')).map((v) => v.kind).sort();
}

test('a correct client leaves rows, a status, no blob and no violation', async () => {
  const status = await client.ingest(GOOD);
  assert.equal(status.Status, 'Succeeded');
  assert.match(status.OperationId, /^[0-9a-f-]{36}$/);
  assert.doesNotMatch(status.IngestionSourcePath, /\?/);
  assert.deepEqual(await service.rows('telemetry', 'T'), [
    [1, 'one'],
    [2, 'two'],
  ]);
  assert.deepEqual(await service.get('/blobs'), []);
  assert.deepEqual(await kinds(), []);
});

test('lowerCamelCase messages are as good', async () => {
  const message = client.message(await client.upload(GOOD), GOOD.length);
  const camel = (object) =>
    Object.fromEntries(Object.entries(object).map(([k, v]) => [k[0].toLowerCase() + k.slice(1), v]));
  await client.post({ ...camel(message), ingestionStatusInTable: camel(message.IngestionStatusInTable) });
  await service.post('/settle');
  assert.equal((await client.status(message.Id)).Status, 'Succeeded');
  assert.deepEqual(await kinds(), []);
});

test('the blob stays when it is to be retained', async () => {
  await client.ingest(GOOD, { RetainBlobOnSuccess: true });
  assert.equal((await service.get('/blobs')).length, 1);
});

const MESSAGE_MISTAKES = [
  ['an unknown key', { Surprise: 1 }, /unknown key Surprise/],
  ['a number as text', { RawDataSize: '16' }, /RawDataSize of the message must be a non-negative integer/],
  [
    'an Id that is no uuid',
    { Id: 'x1', IngestionStatusInTable: undefined, ReportMethod: 0 },
    /Id of the message must be a uuid/,
  ],
  ['a report level out of range', { ReportLevel: 7 }, /ReportLevel of the message must be one of/],
  ['no status table', { IngestionStatusInTable: undefined }, /IngestionStatusInTable is missing/],
  ['tags as an array', { properties: { tags: ['a'] } }, /tags of AdditionalProperties must be a string/],
  [
    'tags that are no array',
    { properties: { tags: '{"a":1}' } },
    /tags of AdditionalProperties must hold a JSON array/,
  ],
  ['an unknown property', { properties: { surprise: 'x' } }, /unknown key surprise/],
  [
    'a validation policy as an object',
    { properties: { validationPolicy: { ValidationOptions: 1, ValidationImplications: 0 } } },
    /validationPolicy/,
  ],
  ['a format in capitals', { properties: { format: 'CSV' } }, /format of AdditionalProperties/],
  [
    'a mapping without its kind',
    {
      properties: {
        ingestionMapping:
          '[{"Column":"id","Properties":{"Ordinal":"0"}},{"Column":"name","Properties":{"Ordinal":"1"}}]',
      },
    },
    /without ingestionMappingType/,
  ],
];

for (const [name, fields, finding] of MESSAGE_MISTAKES) {
  test(`violation: ${name}`, async () => {
    await client.ingest(GOOD, fields);
    const found = await service.get('/violations');
    assert.equal(found.length, 1, JSON.stringify(found));
    assert.equal(found[0].kind, 'message');
    assert.match(found[0].message, finding);
  });
}

test('violation: a message that is not base64, or not JSON', async () => {
  await client.post('{"Id":1}');
  await client.post(Buffer.from('not json').toString('base64'));
  await service.post('/settle');
  assert.deepEqual(await kinds(), ['corrupted_message', 'corrupted_message']);
});

test('violation: a wrong RawDataSize', async () => {
  await client.ingest(GOOD, { rawSize: GOOD.length + 1 });
  assert.deepEqual(await kinds(), ['raw_data_size']);
});

test('violation: a gzip blob without .gz is not read', async () => {
  const status = await client.ingest(GOOD, { blob: { name: `t__${randomUUID()}.csv` } });
  assert.equal(status.ErrorCode, 'BadRequest_NoRecordsOrWrongFormat');
  assert.deepEqual(await kinds(), ['gzip_name_mismatch', 'message']);
});

test('violation: a plain blob named .gz is not read', async () => {
  const status = await client.ingest(GOOD, { blob: { bytes: Buffer.from(GOOD) } });
  assert.equal(status.ErrorCode, 'BadRequest_InvalidArchive');
  assert.deepEqual(await kinds(), ['gzip_name_mismatch']);
});

test('a truncated gzip blob is a failure', async () => {
  const status = await client.ingest(GOOD, { blob: { bytes: gzipSync(GOOD.repeat(1000)).subarray(0, 40) } });
  assert.equal(status.ErrorCode, 'BadRequest_InvalidArchive');
  assert.deepEqual(await service.rows('telemetry', 'T'), []);
});

test('violation: a Content-Encoding on the blob', async () => {
  await client.ingest(GOOD, { blob: { headers: { 'x-ms-blob-content-encoding': 'gzip' } } });
  assert.deepEqual(await kinds(), ['blob_content_encoding']);
});

test('violation: a foreign or expired identity token, and nothing is stored', async () => {
  const foreign = await client.ingest(GOOD, {
    properties: { authorizationContext: 'eyJhbGciOiJIUzI1NiJ9.e30.c2ln' },
  });
  assert.equal(foreign.ErrorCode, 'BadRequest_InvalidKustoIdentityToken');
  await service.post('/config', { identity_token_lifetime: -1 });
  const [{ AuthorizationContext: expired }] = await client.manage('.get kusto identity token');
  const late = await client.ingest(GOOD, { properties: { authorizationContext: expired } });
  assert.equal(late.Status, 'Failed');
  assert.deepEqual(await kinds(), ['identity_token', 'identity_token']);
  assert.deepEqual(await service.rows('telemetry', 'T'), []);
});

test('a SAS that was altered or is expired is refused by storage', async () => {
  const url = client.first('TempStorage');
  const altered = await client.put(`${url.replace('?', '/x.csv.gz?').replace(/sig=../, 'sig=AA')}`, 'x');
  assert.equal(altered.status, 403);
  await service.post('/config', { sas_lifetime: -60 });
  await client.connect();
  const expired = await client.put(client.first('TempStorage').replace('?', '/x.csv.gz?'), 'x');
  assert.equal(expired.status, 403);
  assert.equal(expired.headers.get('x-ms-error-code'), 'AuthorizationFailure');
});

test('violation: an unquoted string, but an empty field is allowed', async () => {
  await client.ingest('1,one\n2,""\n3,\n');
  const [violation] = await service.get('/violations');
  assert.equal(violation.kind, 'unquoted_string');
  assert.deepEqual([violation.column, violation.row, violation.count], ['name', 1, 1]);
  assert.deepEqual(await service.rows('telemetry', 'T'), [
    [1, 'one'],
    [2, ''],
    [3, ''],
  ]);
});

test('violation: a value that Kusto would null silently', async () => {
  await client.ingest('x,"one"\n9223372036854775808,"two"\n');
  const [violation] = await service.get('/violations');
  assert.equal(violation.kind, 'silent_null');
  assert.deepEqual([violation.table, violation.column, violation.row, violation.count], ['T', 'id', 1, 2]);
  assert.deepEqual(await service.rows('telemetry', 'T'), [
    [null, 'one'],
    [null, 'two'],
  ]);
});

test('violation: a string above 1 MB is cut', async () => {
  await client.ingest(`1,"${'é'.repeat(600_000)}"\n`);
  assert.deepEqual(await kinds(), ['string_truncated']);
  const [[, text]] = await service.rows('telemetry', 'T');
  assert.equal(Buffer.byteLength(text), 1024 * 1024);
});

test('a varying field count refuses the whole blob under the strict policy', async () => {
  const status = await client.ingest('1,"one"\n2\n');
  assert.equal(status.Status, 'Failed');
  assert.equal(status.ErrorCode, 'Stream_WrongNumberOfFields');
  assert.deepEqual(await service.rows('telemetry', 'T'), []);
  assert.deepEqual(await kinds(), []);
});

test('violation: a constant but wrong field count', async () => {
  await client.ingest('1,"one",2\n');
  assert.deepEqual(await kinds(), ['wrong_field_count']);
});

test('unknown table, database and mapping fail with the codes of the service', async () => {
  const code = async (fields) => (await client.ingest(GOOD, fields)).ErrorCode;
  assert.equal(await code({ TableName: 'Nope' }), 'BadRequest_TableNotExist');
  assert.equal(await code({ DatabaseName: 'nope' }), 'BadRequest_DatabaseNotExist');
  assert.equal(
    await code({ properties: { ingestionMappingReference: 'm', ingestionMappingType: 'Csv' } }),
    'BadRequest_MappingReferenceWasNotFound',
  );
  assert.equal((await service.get('/failures')).length, 3);
  assert.deepEqual(await kinds(), []);
});

test('ingestIfNotExists skips what is there already', async () => {
  const properties = { tags: '["ingest-by:k1"]', ingestIfNotExists: '["k1"]' };
  assert.equal((await client.ingest(GOOD, { properties })).Status, 'Succeeded');
  assert.equal((await client.ingest(GOOD, { properties })).Status, 'Skipped');
  assert.equal((await service.rows('telemetry', 'T')).length, 2);
  assert.deepEqual(await kinds(), []);
});

test('what ingestIfNotExists finds can be reported with a code', async () => {
  const properties = { tags: '["ingest-by:k2"]', ingestIfNotExists: '["k2"]' };
  await client.ingest(GOOD, { properties });
  for (const [tag_hit, status, code] of [
    ['code', 'Skipped', 'IngestByTagAlreadyExists'],
    ['failed', 'Failed', 'Skipped_IngestByTagAlreadyExists'],
  ]) {
    await service.post('/config', { tag_hit });
    const row = await client.ingest(GOOD, { properties });
    assert.equal(row.Status, status);
    assert.equal(row.ErrorCode, code);
  }
  assert.equal((await service.rows('telemetry', 'T')).length, 2);
});

test('duplicate delivery shows unless the ingestion is guarded', async () => {
  await service.post('/config', { duplicate_delivery: true });
  await client.ingest(GOOD);
  assert.equal((await service.rows('telemetry', 'T')).length, 4);
  const guarded = { properties: { tags: '["ingest-by:k"]', ingestIfNotExists: '["k"]' } };
  assert.equal((await client.ingest(GOOD, guarded)).Status, 'Succeeded');
  assert.equal((await service.rows('telemetry', 'T')).length, 6);
});

test('creationTime and tags reach the extent', async () => {
  await client.ingest(GOOD, { properties: { tags: '["drop-by:x"]', creationTime: '2020-01-01T00:00:00Z' } });
  const [extent] = await service.get('/extents?db=telemetry&table=T');
  assert.deepEqual(
    [extent.rows, extent.tags, extent.creationTime],
    [2, ['drop-by:x'], '2020-01-01T00:00:00Z'],
  );
});

test('scripted outcomes: a transient failure, and silence', async () => {
  await service.post('/config', {
    outcomes: [
      {
        match: { table: 'T' },
        times: 1,
        status: 'Failed',
        errorCode: 'General_ThrottledIngestion',
        failureStatus: 'Transient',
        details: 'busy',
      },
      { match: { table: 'T' }, times: 1, silent: true },
    ],
  });
  const failed = await client.ingest(GOOD);
  assert.deepEqual(
    [failed.Status, failed.ErrorCode, failed.FailureStatus],
    ['Failed', 'General_ThrottledIngestion', 'Transient'],
  );
  assert.equal(await client.ingest(GOOD), null);
  assert.equal((await service.rows('telemetry', 'T')).length, 2);
});

test('failures only are reported when only they are asked for', async () => {
  assert.equal(await client.ingest(GOOD, { ReportLevel: 0 }), null);
  assert.equal((await client.ingest(GOOD, { ReportLevel: 0, TableName: 'Nope' })).Status, 'Failed');
  assert.equal(await client.ingest(GOOD, { ReportLevel: 1, TableName: 'Nope' }), null);
});

test('held ingestion waits until it is released', async () => {
  await service.post('/config', { hold_ingestion: true });
  const message = client.message(await client.upload(GOOD), GOOD.length);
  await client.post(message);
  await assert.rejects(service.post('/settle'), /held/);
  assert.equal(await client.status(message.Id), null);
  await service.post('/config', { hold_ingestion: false });
  await service.post('/settle');
  assert.equal((await client.status(message.Id)).Status, 'Succeeded');
});

test('a large batch is ingested whole, and guarded blobs of one key once', async () => {
  await service.post('/config', { hold_ingestion: true });
  for (let i = 0; i < 20; i += 1) {
    const csv = `${i},"n"\n`;
    const message = client.message(await client.upload(csv), csv.length);
    await client.post(message);
    if (i % 5 === 0) await client.post({ ...message, Id: randomUUID() });
  }
  await service.post('/config', { hold_ingestion: false });
  await service.post('/settle');
  const ids = (await service.rows('telemetry', 'T')).map(([id]) => id).sort((a, b) => a - b);
  assert.deepEqual(ids, [...Array(20).keys()]);

  await service.post('/config', { hold_ingestion: true });
  const properties = { tags: '["ingest-by:k"]', ingestIfNotExists: '["k"]' };
  for (let i = 0; i < 20; i += 1)
    await client.post(client.message(await client.upload(GOOD), GOOD.length, { properties }));
  await service.post('/config', { hold_ingestion: false });
  await service.post('/settle');
  assert.equal((await service.rows('telemetry', 'T')).length, 22);
  assert.deepEqual(await kinds(), []);
});

test('the discard account swallows blobs and acknowledges them', async () => {
  await service.post('/config', { discard: true });
  await client.connect();
  const status = await client.ingest(GOOD);
  assert.equal(status.Status, 'Succeeded');
  assert.deepEqual(await service.rows('telemetry', 'T'), []);
  const { bytes, blobs } = await service.get('/discard');
  assert.equal(bytes, gzipSync(GOOD).length);
  assert.equal(blobs, 1);
  assert.deepEqual(await kinds(), []);
});

test('another server can play the discard account', async (t) => {
  const paths = [];
  const other = http.createServer((req, res) => {
    paths.push(new URL(req.url, 'http://other').pathname);
    req.resume().once('end', () => res.writeHead(201).end());
  });
  await once(other.listen(0, '127.0.0.1'), 'listening');
  t.after(() => other.close());
  await service.post('/config', { discard: `http://127.0.0.1:${other.address().port}` });
  await client.connect();
  const status = await client.ingest(GOOD);
  assert.equal(status.Status, 'Succeeded');
  assert.equal(paths.length, 1);
  assert.match(paths[0], /^\/discard\/discard-[01]\//);
  assert.equal((await service.get('/discard')).blobs, 0);
  assert.deepEqual(await service.rows('telemetry', 'T'), []);
  assert.deepEqual(await kinds(), []);
});

test('blobs can go to Azurite itself', async () => {
  await service.post('/config', { direct_blobs: true });
  await client.connect();
  const { accounts } = await service.get('/');
  const [{ StorageRoot }] = client.resources.get('TempStorage');
  assert.ok(accounts.every(({ blob }) => !StorageRoot.startsWith(blob)));
  const status = await client.ingest(GOOD);
  assert.equal(status.Status, 'Succeeded');
  assert.equal((await service.rows('telemetry', 'T')).length, 2);
  assert.deepEqual(await service.get('/log?service=blob'), []);
  assert.deepEqual(await service.get('/blobs'), []);
  assert.deepEqual(await kinds(), []);
});

test('no secret stays in log, messages and violations', async () => {
  await client.ingest(GOOD, { Surprise: 1 });
  const texts = await Promise.all(
    ['/log', '/messages', '/violations', '/failures'].map(async (path) =>
      JSON.stringify(await service.get(path)),
    ),
  );
  const signature = new URL(client.first('TempStorage')).searchParams.get('sig');
  for (const text of texts) {
    assert.doesNotMatch(text, /sig=(?!…)/);
    for (const secret of [
      signature,
      encodeURIComponent(signature),
      client.identity,
      service.ready.client.client_secret,
    ]) {
      assert.ok(!text.includes(secret));
    }
  }
});
