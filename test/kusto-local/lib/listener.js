// One HTTP(S) listener on loopback: checks what every request must have,
// writes the log, carries out scripted faults, and leaves the rest to a handler
// that answers with { status, headers, body }, body being text, bytes or a stream.
import http from 'node:http';
import https from 'node:https';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { Readable } from 'node:stream';
import { checkHeaders } from './headers.js';

const MAX_BUFFERED_BODY = 256 * 1024 * 1024;
const BORROWED_MS = 30_000;

export class Listener {
  // context: { journal, faults, tls }; streamed: the handler reads the body itself.
  constructor(service, handler, context, { streamed = false, label = service } = {}) {
    Object.assign(this, { service, handler, context, streamed, label });
    this.accepted = 0;
    this.open = new Set();
    this.blackHoles = new Set();
    const { tls } = context;
    const serve = (req, res) => this.serve(req, res);
    this.server = tls ? https.createServer(tls, serve) : http.createServer(serve);
    this.scheme = tls ? 'https' : 'http';
    this.server.on('checkContinue', (req, res) => {
      res.writeContinue();
      serve(req, res);
    });
    this.server.on('connection', (socket) => {
      this.accepted += 1;
      this.open.add(socket);
      socket.once('close', () => this.open.delete(socket));
    });
    // Slow and silent clients are part of the tests; only they decide to leave.
    this.server.requestTimeout = 0;
    this.server.keepAliveTimeout = 120_000;
  }

  // After an outage it is the same port again, which somebody's connection may
  // have borrowed meanwhile.
  async listen() {
    for (let deadline = Date.now() + BORROWED_MS; ; await sleep(20)) {
      this.server.listen(this.port ?? 0, '127.0.0.1');
      try {
        await once(this.server, 'listening');
        break;
      } catch (error) {
        if (error.code !== 'EADDRINUSE' || !this.port || Date.now() > deadline) throw error;
      }
    }
    this.port = this.server.address().port;
    this.url = `${this.scheme}://127.0.0.1:${this.port}`;
    return this;
  }

  // A paused socket never learns that its client has left.
  closeBlackHoles() {
    for (const socket of this.blackHoles) socket.destroy();
    this.blackHoles.clear();
  }

  async close() {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const socket of this.open) socket.resetAndDestroy();
    await closed;
  }

  async serve(req, res) {
    const [path, query = ''] = splitTarget(req.url);
    const entry = this.context.journal.request({
      service: this.label,
      method: req.method,
      path: req.url,
      status: null,
    });
    const request = {
      service: this.service,
      method: req.method,
      path,
      query,
      headers: req.headers,
      req,
      entry,
      body: null,
    };
    req.on('error', () => {});
    res.on('error', () => {});
    try {
      checkHeaders(this.service, req, this.context.journal);
      await this.answer(request, res);
    } catch (error) {
      if (req.socket.destroyed) {
        entry.status ??= 'aborted by client';
        return;
      }
      entry.status = 500;
      entry.error = error.message;
      process.stderr.write(`kusto-local: ${this.label} ${req.method} ${path}: ${error.stack}\n`);
      if (!res.headersSent) res.writeHead(500, { 'Content-Type': 'text/plain' });
      res.end('internal error of kusto-local');
    }
  }

  async answer(request, res) {
    const { faults, signatures, tokens } = this.context;
    const early = faults.wantsBody(this.service);
    if (early) request.body = await readBody(request.req);
    const action = faults.take({ ...request, body: request.body?.toString('utf8') });
    if (action?.end_sas) signatures.endAll();
    if (action?.revoke_tokens) tokens.revokeAll('bearer');
    if (action && !(await this.before(action, request))) return;
    if (!this.streamed && !request.body) request.body = await readBody(request.source ?? request.req);

    let reply;
    if (action?.status) {
      await drain(request.req);
      reply = { status: action.status, headers: action.headers ?? {}, body: action.body ?? '' };
    } else {
      reply = await this.handler(request);
    }
    if (action?.lose_reply) {
      if (reply.body instanceof Readable) await drain(reply.body);
      request.entry.status = `${reply.status} lost`;
      request.req.socket.resetAndDestroy();
      return;
    }
    if (action?.hold && !(await faults.held.wait(request))) {
      request.entry.status = 'aborted by client';
      return;
    }
    request.entry.status = reply.status;
    await send(request.req, res, reply, action);
  }

  // The part of a fault that comes before any answer; false: there is none.
  async before(action, request) {
    const { req, entry } = request;
    if (action.delay_ms) await sleep(action.delay_ms);
    if (action.reset) {
      entry.status = 'reset';
      req.socket.resetAndDestroy();
      return false;
    }
    if (action.reset_after_bytes !== undefined) {
      entry.status = `reset after ${action.reset_after_bytes} bytes`;
      await readUpTo(req, action.reset_after_bytes);
      req.socket.resetAndDestroy();
      return false;
    }
    if (action.blackhole) {
      entry.status = 'black hole';
      req.pause();
      req.socket.pause();
      this.blackHoles.add(req.socket);
      return false;
    }
    if (action.trickle_ms) request.source = Readable.from(trickle(req, action));
    return true;
  }
}

function splitTarget(target) {
  const at = target.indexOf('?');
  return at < 0 ? [target] : [target.slice(0, at), target.slice(at + 1)];
}

export async function readBody(req, limit = MAX_BUFFERED_BODY) {
  const chunks = [];
  let length = 0;
  for await (const chunk of req) {
    length += chunk.length;
    if (length > limit) throw new RangeError(`request body above ${limit} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

// Reads so slowly that the client's buffers fill.
async function* trickle(req, { trickle_ms: interval, trickle_bytes: size = 1024 }) {
  for await (const chunk of req) {
    for (let at = 0; at < chunk.length; at += size) {
      await sleep(interval);
      if (req.socket.destroyed) throw new Error('the client has left');
      yield chunk.subarray(at, at + size);
    }
  }
}

async function readUpTo(req, limit) {
  let length = 0;
  if (limit <= 0) return;
  for await (const chunk of req.iterator({ destroyOnReturn: false })) {
    length += chunk.length;
    if (length >= limit) return;
  }
}

export async function drain(stream) {
  if (stream.readableEnded) return;
  for await (const chunk of stream) void chunk;
}

async function send(req, res, { status, headers = {}, body = '' }, action) {
  if (action?.drip_ms) {
    await drip(res, status, headers, body, action);
    return;
  }
  if (body instanceof Readable) {
    res.writeHead(status, headers);
    body.on('error', () => req.socket.destroy());
    body.pipe(res);
    await once(res, 'close');
    return;
  }
  if (req.method === 'HEAD' || status === 204 || status === 304) {
    res.writeHead(status, headers);
    res.end();
    return;
  }
  const bytes = Buffer.from(body);
  res.writeHead(status, { ...headers, 'Content-Length': bytes.length });
  res.end(bytes);
}

async function drip(res, status, headers, body, { drip_ms: interval, drip_bytes: size = 1 }) {
  const bytes = body instanceof Readable ? Buffer.concat(await body.toArray()) : Buffer.from(body);
  res.writeHead(status, { ...headers, 'Content-Length': bytes.length });
  res.flushHeaders();
  for (let at = 0; at < bytes.length && !res.destroyed; at += size) {
    res.write(bytes.subarray(at, at + size));
    await sleep(interval);
  }
  res.end();
}
