// The control API: how tests look into the service and steer it. JSON over HTTP,
// without authentication, on a listener of its own.
import http from 'node:http';
import { once } from 'node:events';
import { hashTable } from './canonical.js';
import { changeConfig, makeConfig } from './config.js';
import { KustoError } from './errors.js';
import { readBody } from './listener.js';
import { runQuery } from './query.js';
import { v1Management } from './result.js';
import { toJson, typeNamed } from './types.js';

class BadCall extends Error {}

export class Control {
  constructor(service) {
    this.service = service;
    this.server = http.createServer((req, res) => this.serve(req, res));
    this.server.keepAliveTimeout = 120_000;
  }

  async listen() {
    this.server.listen(0, '127.0.0.1');
    await once(this.server, 'listening');
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  async close() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    this.server.closeAllConnections();
    await closed;
  }

  async serve(req, res) {
    let status = 200;
    let text;
    try {
      const url = new URL(req.url, 'http://control');
      const route = ROUTES[`${req.method} ${url.pathname}`];
      if (!route) throw new BadCall(`no such call: ${req.method} ${url.pathname}`);
      const body = (await readBody(req)).toString('utf8').trim();
      const result = await route(
        this.service,
        body ? JSON.parse(body) : {},
        Object.fromEntries(url.searchParams),
      );
      text = typeof result === 'string' ? result : JSON.stringify(result ?? { ok: true });
    } catch (error) {
      const ours =
        error instanceof BadCall ||
        error instanceof RangeError ||
        error instanceof SyntaxError ||
        error instanceof KustoError;
      status = ours ? 400 : 500;
      text = JSON.stringify({ error: error.message, code: error.code });
      if (!ours) process.stderr.write(`kusto-local: control ${req.method} ${req.url}: ${error.stack}\n`);
    }
    res.writeHead(status, { 'Content-Type': 'application/json; charset=utf-8' });
    res.end(`${text}\n`);
  }
}

function tableIn(service, { db, table }) {
  if (!db || !table) throw new BadCall('db and table are needed');
  return service.store.table(db, table);
}

function rowsJson(table, { limit, offset }) {
  const skip = Number(offset ?? 0);
  const end = limit === undefined ? Infinity : skip + Number(limit);
  const lines = [];
  let n = 0;
  for (const extent of table.extents) {
    for (let r = 0; r < extent.rows && n < end; r += 1, n += 1) {
      if (n < skip) continue;
      lines.push(`[${table.columns.map((c, i) => toJson(c.type, extent.get(i, r, c.type))).join(',')}]`);
    }
  }
  return `{"columns":${JSON.stringify(table.columns)},"count":${table.rowCount},"rows":[${lines.join(',\n')}]}`;
}

function createTable(service, { db, table, columns, schema }) {
  if (!db || !table) throw new BadCall('db and table are needed');
  const list =
    columns ??
    String(schema ?? '')
      .split(',')
      .map((part) => {
        const [name, type] = part.split(':').map((s) => s.trim());
        return { name, type };
      });
  const typed = list.map(({ name, type }) => {
    if (!name || !typeNamed(type ?? '')) throw new BadCall(`not a column: ${name}:${type}`);
    return { name, type: typeNamed(type) };
  });
  service.store.addDatabase(db);
  service.store.createTable(db, table, typed);
}

const ROUTES = {
  'GET /': (s) => s.ready(),
  'GET /violations': (s) => s.journal.listViolations(),
  'POST /violations/reset': (s) => {
    s.journal.violations = [];
  },
  'POST /reset': (s) => s.reset(),
  'GET /config': (s) => s.config,
  'POST /config': (s, body) => {
    changeConfig(s.config, body);
    if (body.hold_ingestion === false) s.ingestion.release();
    return s.config;
  },
  'POST /config/reset': (s) => Object.assign(s.config, makeConfig(s.initialConfig)),
  'POST /faults': (s, body) => ({ ids: s.faults.add(body) }),
  'GET /faults': (s) => s.faults.list(),
  'DELETE /faults': (s) => s.faults.clear(),
  'POST /release': (s, { seqs }) => ({ released: s.faults.held.release(seqs) }),
  'GET /log': (s, _, { service, method, path }) =>
    s.journal.requests.filter(
      (r) =>
        (!service || r.service === service) &&
        (!method || r.method === method) &&
        (!path || new RegExp(path).test(r.path)),
    ),
  'POST /log/reset': (s) => s.journal.resetLog(),
  'GET /databases': (s) => [...s.store.databases.values()].map((d) => d.name),
  'POST /databases': (s, { db }) => {
    s.store.addDatabase(db);
  },
  'GET /tables': (s, _, { db }) =>
    [...s.store.databases.values()]
      .filter((d) => !db || d.name === db)
      .flatMap((d) =>
        [...d.tables.values()].map((t) => ({
          db: d.name,
          table: t.name,
          columns: t.columns,
          rows: t.rowCount,
          extents: t.extents.length,
          mappings: [...t.mappings.keys()],
          policies: Object.fromEntries(t.policies),
        })),
      ),
  'POST /tables': createTable,
  'GET /rows': (s, _, params) => rowsJson(tableIn(s, params), params),
  'GET /hash': (s, _, params) => hashTable(tableIn(s, params)),
  'GET /extents': (s, _, params) =>
    tableIn(s, params).extents.map((e) => ({
      id: e.id,
      rows: e.rows,
      tags: e.tags,
      creationTime: e.creationTime,
      ingestedAt: e.ingestedAt,
    })),
  'GET /messages': (s) => s.ingestion.messages,
  'GET /failures': (s) => s.ingestion.failures,
  'GET /blobs': (s) => s.blobs(),
  'GET /discard': (s) => s.discard.summary(),
  'GET /connections': (s) => s.connections(),
  'POST /settle': async (s) => {
    await s.ingestion.settle();
    return { ok: true, violations: s.journal.violations.length };
  },
  'POST /token': (s, { lifetime = s.config.token_lifetime, kind = 'bearer', aud }) => ({
    token: s.issueToken(kind, lifetime, aud),
  }),
  'POST /tokens/revoke': (s, { kind = null }) => s.tokens.revokeAll(kind),
  'POST /sas/end': (s) => s.signatures.endAll(),
  'POST /down': (s, body) => s.outage.begin(body),
  'POST /up': (s) => s.outage.end(),
  'POST /command': async (s, { db = 'NetDefaultDB', csl = '' }) => {
    const caller = { principal: s.principal, unchecked: true };
    if (csl.trimStart().startsWith('.')) return v1Management(await s.engine.commands.run(db, csl, caller));
    return v1Management(runQuery(s.store, db, csl));
  },
};
