// The service's own storage client: plain HTTP to Azurite, past the proxies, so
// that the service's housekeeping is neither logged nor hit by scripted faults.
import http from 'node:http';
import { once } from 'node:events';
import { readBody } from './listener.js';
import { accountSas } from './sas.js';

const API_VERSION = '2023-11-03';

// Azurite answers in milliseconds; silence must show as an error and not as a hang.
const SILENCE_LIMIT_MS = 60_000;

export class StorageError extends Error {
  constructor(status, code, message) {
    super(`${status} ${code}: ${message}`);
    Object.assign(this, { status, code });
  }
}

export class Storage {
  constructor(ports) {
    this.ports = ports;
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 32 });
    this.adminSas = new Map();
  }

  close() {
    this.agent.destroy();
  }

  // target: a path with query on the named service of Azurite.
  async open(service, method, target, { headers = {}, body } = {}) {
    const bytes = body === undefined ? null : Buffer.from(body);
    const req = http.request({
      host: '127.0.0.1',
      port: this.ports[service],
      method,
      path: target,
      agent: this.agent,
      headers: { 'x-ms-version': API_VERSION, 'Content-Length': bytes?.length ?? 0, ...headers },
    });
    req.setTimeout(SILENCE_LIMIT_MS, () => req.destroy(new Error(`Azurite's ${service} service is silent`)));
    // An error after the response began shows in the response itself.
    req.on('error', () => {});
    req.end(bytes ?? undefined);
    const [res] = await once(req, 'response');
    if (res.statusCode >= 200 && res.statusCode < 300) return res;
    const text = (await readBody(res)).toString('utf8');
    const code = res.headers['x-ms-error-code'] ?? /<Code>([^<]*)/.exec(text)?.[1] ?? 'Unknown';
    throw new StorageError(res.statusCode, code, /<Message>([^<]*)/.exec(text)?.[1] ?? text.slice(0, 500));
  }

  async call(service, method, target, options) {
    const res = await this.open(service, method, target, options);
    return (await readBody(res)).toString('utf8');
  }

  // A call with the account's own rights; query may be empty.
  async admin(account, service, method, path, query = '', options = {}) {
    if (!this.adminSas.has(account.name)) this.adminSas.set(account.name, accountSas(account));
    const sas = this.adminSas.get(account.name);
    return this.call(service, method, `/${account.name}${path}?${query ? `${query}&` : ''}${sas}`, options);
  }

  createContainer(account, name) {
    return this.admin(account, 'blob', 'PUT', `/${name}`, 'restype=container');
  }

  createQueue(account, name) {
    return this.admin(account, 'queue', 'PUT', `/${name}`);
  }

  createTable(account, name) {
    return this.admin(account, 'table', 'POST', '/Tables', '', {
      headers: { 'Content-Type': 'application/json', Accept: 'application/json;odata=nometadata' },
      body: JSON.stringify({ TableName: name }),
    });
  }

  // Azurite marks uncommitted blobs with nothing, so they are what only the
  // longer list has.
  async listBlobs(account, container) {
    const list = async (include) =>
      elements(
        await this.admin(account, 'blob', 'GET', `/${container}`, `restype=container&comp=list${include}`),
        'Blob',
      );
    const [all, committed] = [await list('&include=uncommittedblobs'), await list('')];
    const names = new Set(committed.map((blob) => element(blob, 'Name')));
    return all.map((blob) => ({
      account: account.name,
      container,
      name: element(blob, 'Name'),
      size: Number(element(blob, 'Content-Length') ?? 0),
      committed: names.has(element(blob, 'Name')),
    }));
  }

  deleteBlob(account, container, name) {
    return this.admin(account, 'blob', 'DELETE', `/${container}/${encodeURIComponent(name)}`);
  }

  // Uncommitted blocks cannot be deleted; an empty block list drops them.
  dropBlocks(account, container, name) {
    return this.admin(account, 'blob', 'PUT', `/${container}/${encodeURIComponent(name)}`, 'comp=blocklist', {
      headers: { 'Content-Type': 'application/xml' },
      body: '<?xml version="1.0" encoding="utf-8"?><BlockList></BlockList>',
    });
  }

  async receive(account, queue) {
    const query = 'numofmessages=32&visibilitytimeout=600';
    const xml = await this.admin(account, 'queue', 'GET', `/${queue}/messages`, query);
    return elements(xml, 'QueueMessage').map((message) => ({
      account,
      queue,
      id: element(message, 'MessageId'),
      receipt: element(message, 'PopReceipt'),
      text: element(message, 'MessageText'),
    }));
  }

  deleteMessage({ account, queue, id, receipt }) {
    const query = `popreceipt=${encodeURIComponent(receipt)}`;
    return this.admin(account, 'queue', 'DELETE', `/${queue}/messages/${id}`, query);
  }

  clearQueue(account, queue) {
    return this.admin(account, 'queue', 'DELETE', `/${queue}/messages`);
  }

  putMessage(account, queue, object) {
    const text = Buffer.from(JSON.stringify(object)).toString('base64');
    return this.admin(account, 'queue', 'POST', `/${queue}/messages`, '', {
      headers: { 'Content-Type': 'application/xml' },
      body: `<QueueMessage><MessageText>${text}</MessageText></QueueMessage>`,
    });
  }

  // Insert Or Merge Entity with the SAS that the message carried.
  mergeEntity(path, sas, partitionKey, rowKey, entity) {
    const key = (text) => encodeURIComponent(text.replaceAll("'", "''"));
    const target = `${path}(PartitionKey='${key(partitionKey)}',RowKey='${key(rowKey)}')?${sas}`;
    return this.call('table', 'PATCH', target, {
      headers: { 'Content-Type': 'application/json', Accept: 'application/json;odata=nometadata' },
      body: JSON.stringify(entity),
    });
  }
}

const ENTITIES = { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" };

function elements(xml, name) {
  return [...xml.matchAll(new RegExp(`<${name}>(.*?)</${name}>`, 'gs'))].map((m) => m[1]);
}

function element(xml, name) {
  const found = new RegExp(`<${name}>(.*?)</${name}>`, 's').exec(xml);
  if (!found) return null;
  return found[1].replace(/&(?:#x([0-9a-f]+)|#(\d+)|(\w+));/gi, (all, hex, dec, named) => {
    if (hex) return String.fromCodePoint(parseInt(hex, 16));
    if (dec) return String.fromCodePoint(Number(dec));
    return ENTITIES[named] ?? all;
  });
}
