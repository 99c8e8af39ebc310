// Outages: what refuses, what comes back, what is lost; signatures and tokens
// that end early; uploads that are read slowly.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { StrictClient } from './client.js';
import { Running } from './harness.js';

const DATA = '1,"one"\n';

let directory;
let service;
let client;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), 'kusto-local-'));
  service = await Running.start('--batching-ms', '5', '--state-dir', directory);
});

after(async () => {
  await service?.stop();
  rmSync(directory, { recursive: true, force: true });
});

beforeEach(async () => {
  await service.post('/reset');
  await service.post('/tables', { db: 'telemetry', table: 'T', schema: 'id:long, name:string' });
  client = await new StrictClient(service).connect();
});

const query = () => service.kusto('engine', '/v2/rest/query', { db: 'telemetry', csl: 'print 1' });
const refused = (error) => error.cause?.code === 'ECONNREFUSED';
const rows = async () => (await service.rows('telemetry', 'T')).length;
const down = (parts, lose = false) => service.post('/down', { parts, lose });
const up = () => service.post('/up');

test('a port that somebody has borrowed meanwhile is waited for', async () => {
  await down(['engine']);
  const borrower = createServer().listen(Number(new URL(service.ready.engine).port), '127.0.0.1');
  await once(borrower, 'listening');
  const coming = up();
  assert.equal(await Promise.race([coming.then(() => 'up'), sleep(300, 'waiting')]), 'waiting');
  borrower.close();
  await coming;
  assert.equal((await query()).status, 200);
});

test('one part refuses connections and comes back at the same port', async () => {
  await down(['engine']);
  await assert.rejects(query(), refused);
  await client.upload(DATA);
  await up();
  assert.equal((await query()).status, 200);
});

test('storage that comes back has what it had', async () => {
  const url = await client.upload(DATA);
  await down(['storage']);
  await assert.rejects(client.upload(DATA), refused);
  await assert.rejects(service.post('/settle'), /storage is down/);
  await up();
  assert.equal((await service.get('/blobs')).length, 1);
  const message = client.message(url, DATA.length);
  await client.post(message);
  await service.post('/settle');
  assert.equal((await client.status(message.Id)).Status, 'Succeeded');
  assert.equal(await rows(), 1);
});

test('storage that has lost everything takes the same signatures', async () => {
  const url = await client.upload(DATA);
  await down(['storage'], true);
  await up();
  assert.deepEqual(await service.get('/blobs'), []);
  const message = client.message(url, DATA.length);
  await client.post(message);
  await service.post('/settle');
  assert.equal((await client.status(message.Id)).ErrorCode, 'Download_SourceNotFound');
  await client.ingest(DATA);
  assert.equal(await rows(), 1);
});

for (const lose of [false, true]) {
  test(`a message that was taken before an outage of the service is ${lose ? 'lost' : 'ingested'}`, async () => {
    await service.post('/config', { hold_ingestion: true });
    await client.post(client.message(await client.upload(DATA), DATA.length));
    while ((await service.get('/messages')).length === 0);
    await down(['service'], lose);
    await assert.rejects(query(), refused);
    await up();
    await service.post('/config', { hold_ingestion: false });
    await service.post('/settle');
    assert.equal(await rows(), lose ? 0 : 1);
  });
}

test('a reset ends an outage; a part that is none is refused', async () => {
  await down(['service']);
  await service.post('/reset');
  assert.equal((await query()).status, 200);
  await assert.rejects(down(['nothing']), /no such part/);
  await assert.rejects(down(['engine'], true), /only storage and service/);
});

test('signatures that have ended are refused, new ones are not', async () => {
  await service.post('/faults', {
    match: { service: 'blob', method: 'PUT' },
    skip: 1,
    action: { end_sas: true },
  });
  const first = await client.upload(DATA);
  await assert.rejects(client.upload(DATA), /403/);
  const message = client.message(first, DATA.length);
  client = await new StrictClient(service).connect();
  await client.upload(DATA);
  await client.post(message);
  await service.post('/settle');
  assert.equal((await service.get('/failures'))[0].ErrorCode, 'Download_Forbidden');
});

test('bearer tokens end with a request, identity tokens do not', async () => {
  const [token, url] = [await service.token(), await client.upload(DATA)];
  await service.post('/faults', { match: { service: 'engine' }, action: { revoke_tokens: true } });
  const answer = await service.kusto('engine', '/v2/rest/query', { db: 'telemetry', csl: 'print 1' }, {
    Authorization: `Bearer ${token}`,
  });
  assert.equal(answer.status, 401);
  const message = client.message(url, DATA.length);
  await client.post(message);
  await service.post('/settle');
  assert.equal((await client.status(message.Id)).Status, 'Succeeded');
});

test('an upload that is read slowly takes its time, and arrives whole', async () => {
  await service.post('/faults', {
    match: { service: 'blob', method: 'PUT' },
    action: { trickle_ms: 30, trickle_bytes: 2 },
  });
  const start = performance.now();
  await client.upload(DATA);
  assert.ok(performance.now() - start >= 100);
  assert.equal((await service.get('/blobs')).length, 1);
});
