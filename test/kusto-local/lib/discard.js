// A storage account that swallows blobs at full speed and keeps nothing, so that
// the client's own speed and memory can be measured with gigabytes.
import { randomBytes } from 'node:crypto';
import { Listener } from './listener.js';

const ACCOUNT = 'discard';

export class DiscardAccount {
  constructor(context) {
    this.signature = encodeURIComponent(randomBytes(32).toString('base64'));
    this.listener = new Listener('discard', (request) => this.swallow(request), context, {
      streamed: true,
      label: 'discard',
    });
    this.reset();
  }

  reset() {
    this.bytes = 0;
    this.requests = 0;
    this.blobs = new Set();
  }

  async listen() {
    await this.listener.listen();
    this.url = this.listener.url;
    return this;
  }

  close() {
    return this.listener.close();
  }

  // The account that the configuration names: this one, or another server's.
  base(config) {
    return config.discard === true ? this.url : config.discard;
  }

  has(blobPath, config) {
    return [this.url, this.base(config)].some((url) => url && blobPath.startsWith(`${url}/`));
  }

  resource(container, lifetimeSeconds, config) {
    const se = `${new Date(Date.now() + lifetimeSeconds * 1000).toISOString().slice(0, 19)}Z`;
    return `${this.base(config)}/${ACCOUNT}/${container}?sv=2023-11-03&se=${encodeURIComponent(se)}&sr=c&sp=rwd&sig=${this.signature}`;
  }

  async swallow({ req, method, path, query }) {
    this.requests += 1;
    for await (const chunk of req) this.bytes += chunk.length;
    if (!query.includes(`sig=${this.signature}`)) {
      return {
        status: 403,
        headers: { 'Content-Type': 'application/xml', 'x-ms-error-code': 'AuthenticationFailed' },
        body: '<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code><Message>The SAS was altered.</Message></Error>',
      };
    }
    if (method === 'DELETE') return { status: 202 };
    if (method !== 'PUT') return { status: 404, headers: { 'x-ms-error-code': 'BlobNotFound' } };
    if (!/(^|&)comp=block(&|$)/.test(query)) this.blobs.add(path);
    return { status: 201, headers: { ETag: '"0x1"', 'x-ms-request-server-encrypted': 'true' } };
  }

  summary() {
    return { bytes: this.bytes, requests: this.requests, blobs: this.blobs.size };
  }
}
