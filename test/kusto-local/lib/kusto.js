// The two HTTP faces of the service, engine and data management: authentication,
// routing, and the forms of replies and errors that both share.
import { randomUUID } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { EngineCommands } from './commands.js';
import { ErrorContext, KustoError } from './errors.js';
import { isProductUnderTest } from './headers.js';
import { authMetadata } from './metadata.js';
import { DataManagementCommands, wrongEndpoint } from './mgmt.js';
import { runQuery } from './query.js';
import { v1Management, v1Query, v2Query } from './result.js';
import { streamIngest } from './streaming.js';
import { maskSecrets } from './mask.js';
import { datetimeFromMs } from './types.js';

const GZIP_FROM = 1024;
const STREAM_PATH = /^\/v1\/rest\/ingest\/([^/]+)\/([^/]+)$/;

class KustoFace {
  constructor(service) {
    this.service = service;
  }

  // Every reply carries the ids that support asks for.
  async handle(request) {
    const clientRequestId = request.headers['x-ms-client-request-id'] ?? `unspecified;${randomUUID()}`;
    const context = { clientRequestId, activityId: randomUUID(), now: datetimeFromMs(Date.now()) };
    let reply;
    try {
      reply = await this.route(request, context);
    } catch (error) {
      if (!(error instanceof KustoError)) throw error;
      request.entry.error = error.code;
      const body = JSON.stringify(error.body(new ErrorContext(clientRequestId, context.activityId)));
      reply = json(body, error.status);
      if (error.status === 401) reply.headers['WWW-Authenticate'] = this.challenge();
    }
    reply.headers = {
      ...reply.headers,
      'x-ms-client-request-id': clientRequestId,
      'x-ms-activity-id': context.activityId,
    };
    return compressed(reply, request.headers);
  }

  challenge() {
    const { urls, client } = this.service;
    return `Bearer authorization_uri="${urls.login}/${client.tenant}"`;
  }

  caller(request) {
    return this.service.authenticate(request.headers.authorization);
  }

  // { db, csl, properties } of mgmt and query; properties may be text or object.
  payload(request) {
    if (!/^application\/json\b/i.test(request.headers['content-type'] ?? '')) {
      throw new KustoError(
        400,
        'BadRequest_UnsupportedContentType',
        `Content-Type '${request.headers['content-type']}' is not application/json`,
      );
    }
    let payload;
    try {
      payload = JSON.parse(request.body.toString('utf8'));
    } catch {
      throw KustoError.badRequest('BadRequest_MalformedRequest', 'The request body is not valid JSON');
    }
    if (typeof payload?.csl !== 'string')
      throw KustoError.badRequest('BadRequest_EmptyQuery', "The request has no 'csl'");
    request.entry.db = payload.db ?? null;
    request.entry.csl = maskSecrets(payload.csl).slice(0, 4000);
    return { db: payload.db ?? 'NetDefaultDB', csl: payload.csl };
  }

  async route(request, context) {
    const { method, path } = request;
    if (method === 'GET' && path === '/v1/rest/auth/metadata') return authMetadata(this.service);
    const run = this.routeFor(method, path);
    if (!run) {
      this.caller(request);
      return {
        status: 404,
        headers: { 'Content-Type': 'text/html' },
        body: '<html><body>404 - Not found</body></html>',
      };
    }
    return run(request, context);
  }
}

export class EngineFace extends KustoFace {
  constructor(service) {
    super(service);
    this.commands = new EngineCommands(service);
  }

  routeFor(method, path) {
    if (method !== 'POST') return null;
    if (path === '/v1/rest/mgmt') return (request, context) => this.manage(request, context);
    if (path === '/v2/rest/query') return (request, context) => this.query(request, context, v2Query);
    if (path === '/v1/rest/query') return (request, context) => this.query(request, context, v1Query);
    const stream = STREAM_PATH.exec(path);
    if (!stream) return null;
    const [database, table] = stream.slice(1).map(decodeURIComponent);
    return async (request) =>
      json(await streamIngest(this.service, this.caller(request), database, table, request));
  }

  async manage(request) {
    const caller = this.caller(request);
    const { db, csl } = this.payload(request);
    const product = isProductUnderTest(request.headers);
    return json(v1Management(await this.commands.run(db, csl, caller, { product })));
  }

  query(request, context, write) {
    const caller = this.caller(request);
    const { db, csl } = this.payload(request);
    if (csl.trimStart().startsWith('.'))
      throw KustoError.syntax('a management command was sent to the query endpoint');
    const { config, store } = this.service;
    this.service.requireRole(caller, 'viewer', 'Read', `database '${db}'`);
    store.database(db);
    const result = runQuery(store, db, csl);
    return json(
      write(result, { ...context, rowLimit: config.query_row_limit, dynamicAsText: config.dynamic_as_text }),
    );
  }
}

export class DataManagementFace extends KustoFace {
  constructor(service) {
    super(service);
    this.commands = new DataManagementCommands(service);
  }

  routeFor(method, path) {
    if (method !== 'POST') return null;
    if (path === '/v1/rest/mgmt') return (request) => this.manage(request);
    if (path !== '/v1/rest/query' && path !== '/v2/rest/query') return null;
    return (request) => {
      this.caller(request);
      this.payload(request);
      throw wrongEndpoint();
    };
  }

  manage(request) {
    const caller = this.caller(request);
    return json(v1Management(this.commands.run(this.payload(request).csl.trim(), caller)));
  }
}

function json(body, status = 200) {
  return { status, headers: { 'Content-Type': 'application/json; charset=utf-8' }, body };
}

function compressed(reply, headers) {
  if (reply.body.length < GZIP_FROM || !/\bgzip\b/.test(headers['accept-encoding'] ?? '')) return reply;
  return {
    ...reply,
    headers: { ...reply.headers, 'Content-Encoding': 'gzip', Vary: 'Accept-Encoding' },
    body: gzipSync(reply.body, { level: 1 }),
  };
}
