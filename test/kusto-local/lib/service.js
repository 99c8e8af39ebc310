// The whole service: builds the parts, wires them, starts and stops them.
import { randomBytes, randomUUID } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { makeAccount, startAzurite } from './azurite.js';
import { makeConfig } from './config.js';
import { Control } from './control.js';
import { DiscardAccount } from './discard.js';
import { KustoError } from './errors.js';
import { Faults } from './faults.js';
import { Imds } from './imds.js';
import { Ingestion } from './ingestion.js';
import { Journal } from './journal.js';
import { DataManagementFace, EngineFace } from './kusto.js';
import { Listener } from './listener.js';
import { Login } from './login.js';
import { RESOURCE_ID } from './metadata.js';
import { Outage } from './outage.js';
import { StorageProxy } from './proxy.js';
import { Store } from './schema.js';
import { Signatures } from './signatures.js';
import { Storage } from './storage.js';
import { TokenError, Tokens } from './tokens.js';

const ACCOUNT_NAMES = ['acctone01', 'accttwo02'];
const SERVICES = ['blob', 'queue', 'table'];

export class Service {
  // options: { databases, config, tls: {cert, key} | null, stateDir, onStorageExit }
  constructor({ databases = [], config = {}, tls = null, stateDir = null, onStorageExit = () => {} } = {}) {
    this.initialConfig = config;
    this.config = makeConfig(config);
    this.tls = tls;
    this.stateDir = stateDir;
    this.onStorageExit = onStorageExit;
    this.journal = new Journal();
    this.faults = new Faults();
    this.tokens = new Tokens();
    this.signatures = new Signatures();
    this.outage = new Outage(this);
    this.storageGeneration = 0;
    this.store = new Store(['NetDefaultDB', ...databases]);
    // Characters that must be percent-encoded in a form, as real secrets have.
    this.client = {
      tenant: randomUUID(),
      client_id: randomUUID(),
      client_secret: `${randomBytes(12).toString('hex')}~+=&%/${randomBytes(8).toString('hex')}`,
    };
    this.principal = `aadapp=${this.client.client_id};${this.client.tenant}`;
    this.identityHeader = randomUUID();
    this.accounts = ACCOUNT_NAMES.map((name) => layOut(makeAccount(name)));
    this.engine = new EngineFace(this);
    this.dm = new DataManagementFace(this);
    this.ingestion = new Ingestion(this);
    this.urls = {};
  }

  async start() {
    const { journal, faults, tokens, signatures, tls } = this;
    const context = { journal, faults, tokens, signatures, tls };
    const plain = { ...context, tls: null };
    const [login, imds] = [new Login(this), new Imds(this)];
    this.listeners = {
      engine: new Listener('engine', (r) => this.engine.handle(r), context),
      ingest: new Listener('ingest', (r) => this.dm.handle(r), context),
      login: new Listener('login', (r) => login.handle(r), context),
      imds: new Listener('imds', (r) => imds.handle(r), plain),
    };
    this.discard = new DiscardAccount(context);
    this.control = new Control(this);
    this.azurite = await this.spawnStorage();
    this.storage = new Storage(this.azurite.ports);
    this.proxies = this.accounts.flatMap((account) =>
      SERVICES.map(
        (service) =>
          new StorageProxy(account, service, this.azurite.ports[service], context, (...change) =>
            this.onWrite(...change),
          ),
      ),
    );
    await Promise.all(
      [...Object.values(this.listeners), this.discard, this.control, ...this.proxies].map((l) => l.listen()),
    );
    for (const [name, listener] of Object.entries(this.listeners)) this.urls[name] = listener.url;
    for (const proxy of this.proxies) proxy.account.urls[proxy.service] = proxy.url;
    await Promise.all(this.accounts.map((account) => this.createResources(account)));
    this.ingestion.start();
    return this;
  }

  async createResources(account) {
    await Promise.all([
      ...account.containers.map((name) => this.storage.createContainer(account, name)),
      ...[...account.queues, account.failedQueue, account.successQueue].map((name) =>
        this.storage.createQueue(account, name),
      ),
      this.storage.createTable(account, account.statusTable),
    ]);
  }

  spawnStorage() {
    const generation = this.storageGeneration === 0 ? '' : `generation-${this.storageGeneration}`;
    const stateDir = this.stateDir && join(this.stateDir, generation);
    if (stateDir) mkdirSync(stateDir, { recursive: true });
    return startAzurite(this.accounts, { stateDir, onExit: this.onStorageExit });
  }

  // lose: the next start is with nothing.
  async stopStorage({ lose }) {
    this.storage.close();
    await this.azurite.stop();
    this.storageIsEmpty = lose;
    if (lose) this.storageGeneration += 1;
  }

  async startStorage() {
    this.azurite = await this.spawnStorage();
    this.storage = new Storage(this.azurite.ports);
    for (const proxy of this.proxies) proxy.upstreamPort = this.azurite.ports[proxy.service];
    if (this.storageIsEmpty) await Promise.all(this.accounts.map((account) => this.createResources(account)));
  }

  async stop() {
    await this.ingestion.stop();
    const all = [...Object.values(this.listeners), this.discard, this.control, ...this.proxies];
    await Promise.all(all.map((l) => l.close()));
    this.storage.close();
    await this.azurite.stop();
  }

  // The one line on stdout that tests wait for.
  ready() {
    return {
      engine: this.urls.engine,
      ingest: this.urls.ingest,
      login: this.urls.login,
      imds: `${this.urls.imds}/metadata/identity/oauth2/token`,
      app_service_identity: { endpoint: `${this.urls.imds}/msi/token`, header: this.identityHeader },
      control: this.control.url,
      accounts: this.accounts.map(({ name, urls }) => ({ name, ...urls })),
      discard: this.discard.url,
      client: this.client,
      resource: RESOURCE_ID,
      databases: this.store.initial,
      pid: process.pid,
      storage_pid: this.azurite.pid,
    };
  }

  onWrite(service, method, path) {
    if (service === 'queue' && method === 'POST' && path.endsWith('/messages')) this.ingestion.ring();
  }

  *queues() {
    for (const account of this.accounts) for (const queue of account.queues) yield { account, queue };
  }

  // Azurite itself, where clients are given no proxy.
  storageUrl(service) {
    return `http://127.0.0.1:${this.azurite.ports[service]}`;
  }

  // A storage URL as clients know it → path and query on Azurite, or null.
  resolve(service, text) {
    let url;
    try {
      url = new URL(text);
    } catch {
      return null;
    }
    const path = url.pathname.replace(/\/$/, '');
    const query = url.search.slice(1);
    if (url.origin === this.storageUrl(service)) return { path, query };
    const proxy = this.proxies.find((p) => p.service === service && p.url === url.origin);
    return proxy ? { path: proxy.upstreamPath(path), query } : null;
  }

  isStrict(isProduct) {
    return this.config.strict === 'auto' ? isProduct : this.config.strict;
  }

  issueToken(kind, lifetime, aud = RESOURCE_ID) {
    const { client_id: appid, tenant: tid } = this.client;
    return this.tokens.issue(kind, { aud, appid, tid, principal: this.principal }, lifetime);
  }

  authenticate(authorization) {
    if (this.config.auth === 'none') return { principal: this.principal };
    const unauthorized = (why) =>
      new KustoError(401, 'Unauthorized', why, {
        type: 'Kusto.Common.Svc.Exceptions.UnauthorizedException',
        message: 'Unauthorized',
      });
    const [, token] = /^Bearer (\S+)$/.exec(authorization ?? '') ?? [];
    if (!token) throw unauthorized('The request has no bearer token');
    let claims;
    try {
      claims = this.tokens.verify('bearer', token);
    } catch (error) {
      if (error instanceof TokenError) throw unauthorized(`Authentication failed: ${error.message}`);
      throw error;
    }
    const audiences = [RESOURCE_ID, this.urls.engine, this.urls.ingest];
    if (!audiences.includes(claims.aud.replace(/\/$/, '')))
      throw unauthorized(`The token's audience '${claims.aud}' is not this service`);
    return { principal: this.principal };
  }

  hasRole(role) {
    return this.config.roles.includes(role) || this.config.roles.includes('admin');
  }

  requireRole(caller, role, operation, entity) {
    if (!caller.unchecked && !this.hasRole(role))
      throw KustoError.forbidden(caller.principal, operation, entity);
  }

  // All HTTP listeners but the control one.
  faultyListeners() {
    const proxied = this.proxies.map((p) => [`${p.account.name}.${p.service}`, p.listener]);
    return [...Object.entries(this.listeners), ...proxied, ['discard', this.discard.listener]];
  }

  async reset() {
    await this.outage.end();
    this.faults.clear();
    this.faults.held.release();
    for (const [, listener] of this.faultyListeners()) listener.closeBlackHoles();
    Object.assign(this.config, makeConfig(this.initialConfig));
    await this.ingestion.drop();
    await Promise.all(this.accounts.map((account) => this.emptyAccount(account)));
    await this.ingestion.drop();
    this.ingestion.clear();
    this.store.reset();
    this.discard.reset();
    this.journal.reset();
  }

  async emptyAccount(account) {
    const queues = [...account.queues, account.failedQueue, account.successQueue];
    await Promise.all(queues.map((queue) => this.storage.clearQueue(account, queue)));
    for (const container of account.containers) {
      for (const blob of await this.storage.listBlobs(account, container)) {
        if (!blob.committed) await this.storage.dropBlocks(account, container, blob.name);
        await this.storage.deleteBlob(account, container, blob.name);
      }
    }
  }

  async blobs() {
    const lists = await Promise.all(
      this.accounts.flatMap((account) =>
        account.containers.map((container) => this.storage.listBlobs(account, container)),
      ),
    );
    return lists.flat();
  }

  connections() {
    const count = ([name, l]) => [name, { open: l.open.size, accepted: l.accepted }];
    return Object.fromEntries(this.faultyListeners().map(count));
  }
}

function layOut(account) {
  const day = new Date().toISOString().slice(0, 10).replaceAll('-', '');
  const mark = randomBytes(3).toString('hex');
  return {
    ...account,
    urls: {},
    containers: [0, 1].map((n) => `${day}-ingestdata-${mark}-${n}`),
    queues: [0, 1].map((n) => `readyforaggregation-secured-${n}`),
    failedQueue: 'failed-ingestions',
    successQueue: 'successful-ingestions',
    statusTable: `ingestionsstatus${day}`,
  };
}
