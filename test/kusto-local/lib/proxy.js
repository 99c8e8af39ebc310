// The storage endpoints that clients see: one reverse proxy for each account and
// service in front of Azurite. Bodies stream through in both directions. Storage
// faults and the storage log live here, not in Azurite.
import http from 'node:http';
import { once } from 'node:events';
import { pipeline } from 'node:stream/promises';
import { Listener, drain, readBody } from './listener.js';
import { endedAnswer } from './signatures.js';

const HOP_BY_HOP = new Set(['connection', 'keep-alive', 'transfer-encoding', 'upgrade', 'expect']);

export class StorageProxy {
  // onWrite(service, method, path, status) tells of every change that took place.
  constructor(account, service, upstreamPort, context, onWrite) {
    Object.assign(this, { account, service, upstreamPort, onWrite, signatures: context.signatures });
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 64 });
    this.listener = new Listener(service, (request) => this.forward(request), context, {
      streamed: true,
      label: service,
    });
  }

  async listen() {
    await this.listener.listen();
    this.url = this.listener.url;
    return this;
  }

  async close() {
    await this.listener.close();
    this.agent.destroy();
  }

  // Real accounts are named by the host and not by the path. Azurite on an IP
  // address wants the account in the path, so it is added where it is missing.
  upstreamPath(path) {
    const prefix = `/${this.account.name}`;
    return path === prefix || path.startsWith(`${prefix}/`) ? path : prefix + path;
  }

  async forward(request) {
    const { req, method, path, query } = request;
    request.entry.account = this.account.name;
    if (this.signatures.hasEnded(query)) {
      await drain(req);
      return endedAnswer(this.service);
    }
    const upstream = http.request({
      host: '127.0.0.1',
      port: this.upstreamPort,
      method,
      agent: this.agent,
      path: this.upstreamPath(path) + (query ? `?${query}` : ''),
      headers: endToEnd(req.rawHeaders),
    });
    const responded = once(upstream, 'response');
    responded.catch(() => {});
    // An error after the response began shows in the response itself.
    upstream.on('error', () => {});
    if (request.body) upstream.end(request.body);
    else {
      try {
        await pipeline(request.source ?? req, upstream);
      } catch (error) {
        // Azurite may answer and close before it has read the whole body.
        if (req.destroyed && !req.complete) {
          upstream.destroy();
          throw error;
        }
      }
    }
    const [res] = await responded;
    const headers = endToEnd(res.rawHeaders);
    if (method !== 'GET' && method !== 'HEAD') {
      const body = await readBody(res);
      if (res.statusCode < 300) this.onWrite(this.service, method, path, res.statusCode);
      delete headers['content-length'];
      return { status: res.statusCode, headers, body };
    }
    if (method === 'HEAD') {
      res.resume();
      return { status: res.statusCode, headers, body: '' };
    }
    return { status: res.statusCode, headers, body: res };
  }
}

// Repeated headers do not occur in storage traffic; names keep no case.
function endToEnd(rawHeaders) {
  const headers = {};
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i].toLowerCase();
    if (!HOP_BY_HOP.has(name)) headers[name] = rawHeaders[i + 1];
  }
  return headers;
}
