// The HTTP faces: authentication, wrong hosts, headers, metadata, managed
// identity, and every kind of scripted fault.
import assert from 'node:assert/strict';
import http from 'node:http';
import { after, before, beforeEach, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { StrictClient } from './client.js';
import { Running } from './harness.js';

let service;

before(async () => {
  service = await Running.start();
});

after(() => service?.stop());

beforeEach(() => service.post('/reset'));

const query = (csl, headers) => service.kusto('engine', '/v2/rest/query', { db: 'telemetry', csl }, headers);
const manage = (host, csl, headers) =>
  service.kusto(host, '/v1/rest/mgmt', { db: 'telemetry', csl }, headers);

async function errorOf(response) {
  const { error } = await response.json();
  return [response.status, error.code, error['@permanent']];
}

test('a data-management command at the engine is a syntax error', async () => {
  assert.deepEqual(await errorOf(await manage('engine', '.get ingestion resources')), [
    400,
    'BadRequest_SyntaxError',
    true,
  ]);
  assert.deepEqual(await errorOf(await manage('engine', '.get kusto identity token')), [
    400,
    'BadRequest_SyntaxError',
    true,
  ]);
});

test('an engine command, a query and streaming at the ingest host are refused', async () => {
  assert.deepEqual(await errorOf(await manage('ingest', '.create table X (a:long)')), [
    400,
    'BadRequest_SyntaxError',
    true,
  ]);
  assert.deepEqual(
    await errorOf(await service.kusto('ingest', '/v2/rest/query', { db: 'telemetry', csl: 'print 1' })),
    [400, 'BadRequest_SyntaxError', true],
  );
  const streaming = await service.kusto('ingest', '/v1/rest/ingest/telemetry/T?streamFormat=csv', '1\n');
  assert.equal(streaming.status, 404);
});

test('without a token, with an expired, a foreign or a revoked one: 401', async () => {
  const first = await query('print 1', { Authorization: '' });
  assert.equal(first.status, 401);
  assert.match(first.headers.get('www-authenticate'), /^Bearer authorization_uri="http/);
  for (const token of [
    await service.token(-1),
    'eyJhbGciOiJIUzI1NiJ9.e30.c2ln',
    (await service.post('/token', { kind: 'identity' })).token,
  ]) {
    assert.equal((await query('print 1', { Authorization: `Bearer ${token}` })).status, 401);
  }
  const token = await service.token();
  assert.equal((await query('print 1', { Authorization: `Bearer ${token}` })).status, 200);
  await service.post('/tokens/revoke');
  assert.equal((await query('print 1', { Authorization: `Bearer ${token}` })).status, 401);
  await service.post('/config', { auth: 'none' });
  assert.equal((await query('print 1', { Authorization: '' })).status, 200);
});

test('a missing role is a 403 that names principal and operation', async () => {
  await service.post('/config', { roles: ['viewer'] });
  const response = await manage('ingest', '.get ingestion resources');
  const { error } = await response.json();
  assert.equal(response.status, 403);
  assert.match(
    error['@message'],
    /^Principal 'aadapp=.*' is not authorized to perform operation 'Ingest' on 'any database'/,
  );
  assert.equal((await query('print 1')).status, 200);
});

test('resources: both orders of columns, several accounts, an unknown type', async () => {
  const tables = [];
  for (let i = 0; i < 2; i += 1)
    tables.push(
      (await (await manage('ingest', ".get ingestion resources with (EnableBlobCors='true')")).json())
        .Tables[0],
    );
  assert.deepEqual(tables.map((t) => t.Columns[0].ColumnName).sort(), ['ResourceTypeName', 'StorageRoot']);
  const [{ Columns, Rows }] = tables;
  const type = Columns.findIndex((c) => c.ColumnName === 'ResourceTypeName');
  const count = (name) => Rows.filter((r) => r[type] === name).length;
  assert.deepEqual(
    [
      'TempStorage',
      'SecuredReadyForAggregationQueue',
      'IngestionsStatusTable',
      'KustoLocalUnknownResource',
    ].map(count),
    [4, 4, 2, 2],
  );
});

test('show commands can be piped into query operators', async () => {
  await service.post('/tables', { db: 'telemetry', table: 'A', schema: 'x:long' });
  await service.post('/tables', { db: 'telemetry', table: 'B', schema: 'x:long' });
  const rows = async (csl) => (await (await manage('engine', csl)).json()).Tables[0].Rows;
  assert.deepEqual(await rows(".show tables | where TableName == 'B' | project TableName"), [['B']]);
  assert.deepEqual(await rows(".show table ['A'] cslschema | project Schema"), [['x:long']]);
  assert.deepEqual(
    await rows(".show ingestion failures with (OperationId = '00000000-0000-4000-8000-000000000001')"),
    [],
  );
});

test('uncommitted blocks are seen, and gone after a reset', async () => {
  const client = await new StrictClient(service).connect();
  const url = client.first('TempStorage').replace('?', '/x.csv.gz?comp=block&blockid=AAAA&');
  assert.equal((await client.put(url, 'x')).status, 201);
  assert.deepEqual(
    (await service.get('/blobs')).map((b) => [b.name, b.committed]),
    [['x.csv.gz', false]],
  );
  await service.post('/reset');
  assert.deepEqual(await service.get('/blobs'), []);
});

test('headers that are missing or should not be are violations', async () => {
  await query('print 1', { Accept: 'text/html', 'x-ms-client-request-id': '', 'x-ms-app': '' });
  await query('print 1', { 'x-ms-app': 'kusto_ingest', 'x-ms-client-request-id': 'no uuid' });
  const client = await new StrictClient(service).connect();
  await client.put(client.first('TempStorage').replace('?', '/x.csv.gz?'), 'x', {
    Authorization: 'Bearer x',
  });
  await fetch(`${service.ready.engine}/v1/rest/auth/metadata`, { headers: { Authorization: 'Bearer x' } });
  const kinds = (await service.get('/violations')).map((v) => v.kind).sort();
  assert.deepEqual(kinds, [
    'bad_client_request_id',
    'missing_accept',
    'missing_app',
    'missing_client_request_id',
    'missing_version',
    'token_to_metadata',
    'token_to_storage',
  ]);
});

test('an Expect header is a violation and still served', async () => {
  const request = http.request(`${service.ready.engine}/v2/rest/query`, {
    method: 'POST',
    headers: {
      Expect: '100-continue',
      Accept: 'application/json',
      'x-ms-client-request-id': 'a',
      'x-ms-app': 'a',
      'Content-Type': 'application/json',
    },
  });
  request.on('continue', () => request.end('{"csl":"print 1"}'));
  request.flushHeaders();
  const response = await new Promise((resolve) => request.on('response', resolve));
  response.resume();
  assert.equal(response.statusCode, 401);
  assert.deepEqual(
    (await service.get('/violations')).map((v) => v.kind),
    ['expect_header'],
  );
});

test('metadata in its four modes', async () => {
  const get = async () => fetch(`${service.ready.engine}/v1/rest/auth/metadata`);
  assert.equal((await (await get()).json()).AzureAD.LoginEndpoint, service.ready.login);
  await service.post('/config', { metadata: 'null' });
  assert.deepEqual(await (await get()).json(), { AzureAD: null });
  await service.post('/config', { metadata: 'missing' });
  assert.equal((await get()).status, 404);
  await service.post('/config', { metadata: 'empty' });
  assert.deepEqual(await (await get()).json(), {});
});

function askToken(fields, { tenant = service.ready.client.tenant, raw } = {}) {
  const { client_id: id, client_secret: secret } = service.ready.client;
  const form = {
    grant_type: 'client_credentials',
    client_id: id,
    client_secret: secret,
    scope: `${service.ready.resource}/.default`,
    ...fields,
  };
  return fetch(`${service.ready.login}/${tenant}/oauth2/v2.0/token`, {
    method: 'POST',
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
    body: raw ?? new URLSearchParams(form).toString(),
  });
}

test('the token endpoint: expires_in as number and as string, a usable token', async () => {
  const [first, second] = [await (await askToken()).json(), await (await askToken()).json()];
  assert.deepEqual([typeof first.expires_in, typeof second.expires_in].sort(), ['number', 'string']);
  assert.equal((await query('print 1', { Authorization: `Bearer ${first.access_token}` })).status, 200);
});

test('the token endpoint refuses what is wrong, each in its own way', async () => {
  const code = async (...args) => {
    const response = await askToken(...args);
    const body = await response.json();
    return [response.status, body.error, body.error_codes[0]];
  };
  assert.deepEqual(await code({ client_secret: 'x' }), [401, 'invalid_client', 7000215]);
  assert.deepEqual(await code({ client_id: 'x' }), [400, 'unauthorized_client', 700016]);
  assert.deepEqual(await code({}, { tenant: 'organizations' }), [400, 'invalid_request', 90002]);
  assert.deepEqual(await code({ scope: service.ready.resource }), [400, 'invalid_scope', 70011]);
  assert.deepEqual(await code({ grant_type: 'password' }), [400, 'unsupported_grant_type', 70003]);
  assert.deepEqual(await service.get('/violations'), []);
  const { client_id: id, client_secret: secret } = service.ready.client;
  assert.deepEqual(
    await code({}, { raw: `grant_type=client_credentials&client_id=${id}&client_secret=${secret}&scope=x` }),
    [400, 'invalid_request', 900144],
  );
  assert.deepEqual(
    (await service.get('/violations')).map((v) => v.kind),
    ['token_request_form'],
  );
});

test('managed identity in both forms', async () => {
  const resource = encodeURIComponent(service.ready.resource);
  const vm = `${service.ready.imds}?api-version=2018-02-01&resource=${resource}`;
  assert.equal((await fetch(vm)).status, 400);
  const token = await (await fetch(vm, { headers: { Metadata: 'true' } })).json();
  assert.equal(typeof token.expires_on, 'string');
  assert.equal((await query('print 1', { Authorization: `Bearer ${token.access_token}` })).status, 200);
  const { endpoint, header } = service.ready.app_service_identity;
  const app = `${endpoint}?api-version=2019-08-01&resource=${resource}`;
  assert.equal((await fetch(app)).status, 401);
  assert.equal((await fetch(app, { headers: { 'X-IDENTITY-HEADER': header } })).status, 200);
});

test('fault: a status with headers and body, after a skip, so many times', async () => {
  await service.post('/faults', {
    match: { service: 'engine', path: 'query', body: 'print 1' },
    skip: 1,
    times: 2,
    action: { status: 503, headers: { 'Retry-After': '7' }, body: '<html>busy</html>' },
  });
  const statuses = [];
  for (let i = 0; i < 4; i += 1) statuses.push((await query('print 1')).status);
  assert.deepEqual(statuses, [200, 503, 503, 200]);
  assert.equal((await query('print 2')).status, 200);
  const [rule] = await service.get('/faults');
  assert.deepEqual([rule.matched, rule.fired], [4, 2]);
  await service.control('DELETE', '/faults');
  assert.deepEqual(await service.get('/faults'), []);
});

test('fault: resets, also in the middle of an upload', async () => {
  await service.post('/faults', { match: { service: 'engine', path: 'query' }, action: { reset: true } });
  await assert.rejects(
    query('print 1'),
    (error) => error.cause.code === 'ECONNRESET' || /other side closed/.test(error.cause.message),
  );
  const client = await new StrictClient(service).connect();
  await service.post('/faults', {
    match: { service: 'blob', method: 'PUT' },
    action: { reset_after_bytes: 100_000 },
  });
  const url = client.first('TempStorage').replace('?', '/x.csv.gz?');
  await assert.rejects(client.put(url, Buffer.alloc(4_000_000)));
  assert.deepEqual(await service.get('/blobs'), []);
  assert.equal((await client.put(url, Buffer.alloc(4_000_000))).status, 201);
});

test('fault: a lost reply after the work was done', async () => {
  const client = await new StrictClient(service).connect();
  await service.post('/faults', { match: { service: 'blob', method: 'PUT' }, action: { lose_reply: true } });
  await assert.rejects(client.put(client.first('TempStorage').replace('?', '/x.csv.gz?'), 'x'));
  assert.equal((await service.get('/blobs')).length, 1);
});

test('fault: a black hole answers nothing, a drip answers slowly, a delay late', async () => {
  await service.post('/faults', { match: { service: 'login' }, action: { blackhole: true } });
  const aborted = new AbortController();
  const pending = fetch(`${service.ready.login}/x`, { signal: aborted.signal });
  const winner = await Promise.race([
    pending.then(() => 'answer'),
    new Promise((resolve) => setTimeout(resolve, 150, 'silence')),
  ]);
  assert.equal(winner, 'silence');
  aborted.abort();
  await assert.rejects(pending);

  await service.post('/faults', [
    { match: { service: 'engine', path: 'query' }, action: { drip_ms: 2, drip_bytes: 64 } },
    { match: { service: 'engine', path: 'mgmt' }, action: { delay_ms: 120 } },
  ]);
  const dripped = await (await query('print 1', { 'Accept-Encoding': 'identity' })).json();
  assert.equal(dripped.at(-1).FrameType, 'DataSetCompletion');
  const start = performance.now();
  assert.equal((await manage('engine', '.show version')).status, 200);
  assert.ok(performance.now() - start >= 119);
});

test('fault: answers are held until they are let go of, in any order, or the client leaves', async () => {
  const client = await new StrictClient(service).connect();
  const url = client.first('TempStorage');
  const log = async () => (await service.get('/log?service=blob&method=PUT')).map((e) => [e.seq, e.status]);
  await service.post('/faults', { match: { service: 'blob' }, times: 3, action: { hold: true } });
  const leaving = new AbortController();
  const answered = [];
  const puts = [];
  const heldAre = async (n) => {
    while ((await log()).filter(([, status]) => status === 'held').length < n) await sleep(5);
  };
  for (const name of ['a', 'b', 'c']) {
    const options = name === 'c' ? { signal: leaving.signal } : {};
    const headers = { 'x-ms-version': '2023-11-03', 'x-ms-blob-type': 'BlockBlob' };
    const put = fetch(url.replace('?', `/${name}.csv.gz?`), { method: 'PUT', body: 'x', headers, ...options });
    puts.push(put.then(({ status }) => answered.push([name, status])));
    await heldAre(puts.length);
  }
  // The work is done, and nobody has heard of it.
  assert.equal((await service.get('/blobs')).length, 3);
  assert.deepEqual(answered, []);

  const [a, b, c] = (await log()).map(([seq]) => seq);
  await assert.rejects(service.post('/release', { seqs: [b, 0] }), /no answer is held of request 0/);
  assert.deepEqual(await service.post('/release', { seqs: [b] }), { released: 1 });
  await puts[1];
  assert.deepEqual(answered, [['b', 201]]);
  leaving.abort();
  await assert.rejects(puts[2]);
  while ((await log())[2][1] === 'held') await sleep(5);
  assert.deepEqual(await log(), [
    [a, 'held'],
    [b, 201],
    [c, 'aborted by client'],
  ]);
  assert.deepEqual(await service.post('/release'), { released: 1 });
  await puts[0];
  assert.deepEqual(answered, [
    ['b', 201],
    ['a', 201],
  ]);
  // Such a rule does its work no more often than it is told.
  assert.equal((await client.put(url.replace('?', '/d.csv.gz?'), 'x')).status, 201);
});

test('a reset lets go of what is held', async () => {
  await service.post('/faults', { match: { service: 'imds' }, action: { hold: true } });
  const pending = fetch(service.ready.imds);
  while (!(await service.get('/log')).some((e) => e.status === 'held')) await sleep(5);
  await service.post('/reset');
  assert.equal((await pending).status, 400);
});

test('a fault or a configuration that means nothing is refused', async () => {
  await assert.rejects(
    service.post('/faults', { match: { servce: 'x' }, action: { reset: true } }),
    /unknown match key/,
  );
  await assert.rejects(service.post('/faults', { match: {}, action: { explode: true } }), /unknown action/);
  await assert.rejects(
    service.post('/faults', { match: { service: 'blob', body: 'x' }, action: { reset: true } }),
    /streamed/,
  );
  await assert.rejects(service.post('/config', { tokenlifetime: 1 }), /unknown configuration key/);
  await assert.rejects(service.post('/config', { metadata: 'x' }), /metadata must be one of/);
});

test('the log shows requests in order, with commands and without secrets', async () => {
  await query('print 1');
  await manage('engine', '.show tables');
  const log = (await service.get('/log')).filter((r) => r.service === 'engine');
  assert.deepEqual(
    log.map((r) => [r.method, r.path, r.status, r.csl]),
    [
      ['POST', '/v2/rest/query', 200, 'print 1'],
      ['POST', '/v1/rest/mgmt', 200, '.show tables'],
    ],
  );
  await service.post('/log/reset');
  assert.deepEqual(await service.get('/log'), []);
});

test('replies are compressed for clients that take gzip', async () => {
  const ask = (encoding) =>
    new Promise((resolve, reject) => {
      service.token().then((token) => {
        const request = http.request(
          `${service.ready.engine}/v2/rest/query`,
          {
            method: 'POST',
            headers: {
              Authorization: `Bearer ${token}`,
              Accept: 'application/json',
              'Accept-Encoding': encoding,
              'Content-Type': 'application/json',
              'x-ms-app': 'a',
              'x-ms-client-request-id': 'b',
            },
          },
          resolve,
        );
        request.on('error', reject);
        request.end('{"db":"telemetry","csl":"print 1"}');
      }, reject);
    });
  for (const [encoding, expected] of [
    ['gzip', 'gzip'],
    ['identity', undefined],
  ]) {
    const response = await ask(encoding);
    response.resume();
    assert.equal(response.headers['content-encoding'], expected);
  }
});

async function gone(pid) {
  for (;;) {
    try {
      process.kill(pid, 0);
    } catch {
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test(
  'the service ends when stdin closes, on SIGTERM and on SIGKILL, and Azurite with it',
  { timeout: 30_000 },
  async () => {
    const first = await Running.start();
    assert.equal(await first.stop(), 0);
    await gone(first.ready.storage_pid);
    for (const signal of ['SIGTERM', 'SIGKILL']) {
      const other = await Running.start();
      other.child.kill(signal);
      await other.exited;
      await gone(other.ready.storage_pid);
    }
  },
);
