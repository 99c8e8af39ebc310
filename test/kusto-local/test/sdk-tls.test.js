// What the SDK does over TLS only: MSAL refuses a token endpoint without it, and
// so does the status table's client. run-tests makes the certificate and lets
// Node trust it, which must happen before Node starts.
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, before, test } from 'node:test';
import { ClientSecretCredential } from '@azure/identity';
import { Client, KustoConnectionStringBuilder } from 'azure-kusto-data';
import { DataFormat, IngestClient, IngestionProperties, ReportLevel, ReportMethod } from 'azure-kusto-ingest';
import { Running } from './harness.js';

const DB = 'telemetry';
const { KUSTO_LOCAL_TEST_CERT: cert, KUSTO_LOCAL_TEST_KEY: key } = process.env;

let service;
let directory;
let client;

before(async () => {
  assert.ok(cert && key, 'this test is started by run-tests, which makes a certificate');
  service = await Running.start('--tls-cert', cert, '--tls-key', key, '--batching-ms', '20');
  directory = await mkdtemp(join(tmpdir(), 'kusto-local-tls-'));
  await service.post('/command', { db: DB, csl: '.create table Events (id:long, name:string)' });
  client = new IngestClient(
    builder(service.ready.ingest),
    new IngestionProperties({
      database: DB,
      table: 'Events',
      format: DataFormat.CSV,
      reportLevel: ReportLevel.FailuresAndSuccesses,
      reportMethod: ReportMethod.Table,
    }),
  );
});

after(async () => {
  client?.close();
  await service?.stop();
  await rm(directory, { recursive: true, force: true });
});

function builder(url, secret = service.ready.client.client_secret) {
  const { tenant, client_id: id } = service.ready.client;
  const credential = new ClientSecretCredential(tenant, id, secret, {
    authorityHost: service.ready.login,
    disableInstanceDiscovery: true,
  });
  return KustoConnectionStringBuilder.withTokenCredential(url, credential);
}

// Polls as a user of the SDK does; the service has settled, so this is short.
async function finalStatus(result) {
  await service.post('/settle');
  for (;;) {
    const status = await result.getIngestionStatusCollection();
    if (status.Status !== 'Pending') return status;
    await sleep(50);
  }
}

async function file(name, content) {
  const path = join(directory, name);
  await writeFile(path, content);
  return path;
}

test('a client secret gets a token through MSAL and queries with it', async () => {
  const data = new Client(builder(service.ready.engine));
  const result = await data.execute(DB, 'print answer = 6 * 7');
  assert.deepEqual(result.primaryResults[0].toJSON().data, [{ answer: 42 }]);
  data.close();
});

test('a wrong client secret is refused with the code of the identity platform', async () => {
  const data = new Client(builder(service.ready.engine, 'wrong'));
  await assert.rejects(data.execute(DB, 'print 1'), /AADSTS7000215/);
  data.close();
});

test('the status table tells of success', async () => {
  const status = await finalStatus(await client.ingestFromFile(await file('good.csv', '1,"one"\n2,"two"\n')));
  assert.equal(status.Status, 'Succeeded');
  assert.equal(status.Table, 'Events');
  assert.deepEqual(await service.rows(DB, 'Events'), [
    [1, 'one'],
    [2, 'two'],
  ]);
  assert.deepEqual(await service.get('/violations'), []);
});

test('the status table tells of failure', async () => {
  const result = await client.ingestFromFile(
    await file('bad.csv', '1,"one"\n'),
    new IngestionProperties({ table: 'Nowhere' }),
  );
  const status = await finalStatus(result);
  assert.equal(status.Status, 'Failed');
  assert.equal(status.ErrorCode, 'BadRequest_TableNotExist');
  assert.equal(status.FailureStatus, 'Permanent');
  assert.match(status.Details, /Nowhere/);
});
