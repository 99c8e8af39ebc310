// The data-management loop of queued ingestion: takes messages from the queues,
// batches them, downloads each blob with nothing but the SAS in its message,
// stores the rows, reports, and deletes the blob.
import { randomUUID } from 'node:crypto';
import { ingestionProperties } from './direct.js';
import { IngestionFailure, asFailure } from './failure.js';
import { Loader, loadStream } from './loader.js';
import { maskSecrets, withoutQuery } from './mask.js';
import { MessageError, checkStrictly, decodeMessage, isFromProductUnderTest, normalise } from './message.js';
import { StatusReporter, now } from './status.js';
import { StorageError } from './storage.js';
import { TokenError } from './tokens.js';

// Messages normally ring through the proxy; this finds what came another way.
const FALLBACK_POLL_MS = 2000;

// From so many messages on a batch is ingested in several lanes.
const LARGE_BATCH = 16;
const LANES = 6;

// What the service may say of a message whose ingestIfNotExists found something
// (learn.microsoft.com/azure/data-explorer/error-codes).
const TAG_HITS = {
  Skipped: { status: 'Skipped' },
  code: { status: 'Skipped', errorCode: 'IngestByTagAlreadyExists' },
  failed: {
    status: 'Failed',
    errorCode: 'Skipped_IngestByTagAlreadyExists',
    failureStatus: 'Permanent',
    details: 'An extent with the ingest-by tag exists',
  },
};

export class Ingestion {
  constructor(service) {
    this.service = service;
    this.reporter = new StatusReporter(service);
    this.working = 0;
    this.line = Promise.resolve();
    this.stopped = false;
    this.paused = false;
    this.idleWaiters = [];
    this.clear();
  }

  clear() {
    this.pending = [];
    this.messages = [];
    this.failures = [];
    clearTimeout(this.timer);
    this.timer = null;
  }

  start() {
    this.poller = setInterval(() => this.ring(), FALLBACK_POLL_MS);
    this.poller.unref();
  }

  async stop() {
    this.stopped = true;
    clearInterval(this.poller);
    clearTimeout(this.timer);
    await this.polling;
  }

  // Nothing is taken and nothing is begun; what is in work ends first.
  async pause() {
    this.paused = true;
    await this.polling;
    await this.line;
  }

  resume() {
    this.paused = false;
    this.release();
    this.ring();
  }

  // A message may be waiting.
  ring() {
    this.rung = true;
    if (this.paused) return this.polling;
    this.polling ??= this.poll()
      .catch((error) => {
        if (!this.stopped)
          this.service.journal.violation('internal', `reading the queues broke: ${error.stack}`);
      })
      .finally(() => {
        this.polling = null;
        if (this.rung && !this.stopped && !this.paused) this.ring();
      });
    return this.polling;
  }

  async poll() {
    while (this.rung && !this.stopped && !this.paused) {
      this.rung = false;
      for (const { account, queue } of this.service.queues()) {
        const received = await this.service.storage.receive(account, queue);
        if (received.length) this.rung = true;
        await Promise.all(received.map((message) => this.service.storage.deleteMessage(message)));
        for (const message of received) this.accept(message.text);
      }
    }
  }

  accept(text) {
    const { journal } = this.service;
    let object;
    try {
      object = decodeMessage(text);
    } catch (error) {
      if (!(error instanceof MessageError)) throw error;
      journal.violation('corrupted_message', error.message);
      return;
    }
    const message = normalise(object);
    message.strict = this.service.isStrict(isFromProductUnderTest(message));
    const where = { db: message.database, table: message.table };
    if (message.strict) checkStrictly(object, (finding) => journal.violation('message', finding, where));
    this.messages.push(masked(object));
    if (typeof message.blobPath !== 'string' || !message.database || !message.table || !message.properties) {
      journal.violation(
        'corrupted_message',
        'the message lacks BlobPath, DatabaseName, TableName or AdditionalProperties',
        where,
      );
      return;
    }
    this.enqueue(message);
  }

  enqueue(message) {
    this.pending.push(message);
    if (message.flushImmediately) this.flushAfter(0);
    else if (!this.timer) this.flushAfter(this.service.config.batching_ms);
  }

  flushAfter(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), ms);
  }

  release() {
    if (this.pending.length) this.flushAfter(0);
  }

  // Batches go one after the other, as one small cluster would take them.
  flush() {
    this.timer = null;
    if (this.service.config.hold_ingestion || this.stopped || this.paused) return;
    // What comes meanwhile is the next batch: under load they grow.
    if (this.working > 0) return;
    const batch = this.pending;
    this.pending = [];
    if (batch.length === 0) return;
    this.working += batch.length;
    this.line = this.line.then(() => this.ingestBatch(batch));
  }

  async ingestBatch(batch) {
    const seen = new Set();
    const messages = batch.values();
    const lane = async () => {
      for (const message of messages) {
        const source = withoutQuery(message.blobPath);
        // BlobAlreadyReceived_BlobAlreadyFoundInBatch: one copy is used.
        if (!seen.has(source)) {
          seen.add(source);
          await this.ingest(message).catch((error) => {
            this.service.journal.violation('internal', `ingestion broke: ${error.stack}`, {
              db: message.database,
              table: message.table,
            });
          });
        }
        this.working -= 1;
      }
    };
    await Promise.all(Array.from({ length: lanesFor(batch) }, lane));
    this.release();
    this.wakeIdle();
  }

  async ingest(message) {
    const { duplicate_delivery: twice } = this.service.config;
    const identity = { operationId: randomUUID(), activityId: randomUUID() };
    const scripted = this.scriptedOutcome(message);
    const outcome =
      scripted && scripted.status !== 'Succeeded' ? { ...scripted } : await this.attempt(message);
    if (twice && outcome.status === 'Succeeded') await this.attempt(message);
    if (outcome.status === 'Failed') this.rememberFailure(message, outcome, identity);
    if (outcome.status !== 'Failed' && !message.retainBlob) await this.deleteBlob(message);
    if (!scripted?.silent) await this.reporter.report(message, { ...outcome, ...identity });
  }

  // { status, errorCode, failureStatus, details } of one try to ingest.
  async attempt(message) {
    try {
      return await this.ingestBlob(message);
    } catch (error) {
      return asFailure(error);
    }
  }

  async ingestBlob(message) {
    const { service } = this;
    const where = { db: message.database, table: message.table, path: withoutQuery(message.blobPath) };
    this.checkIdentity(message, where);
    if (service.discard.has(message.blobPath, service.config))
      return { status: 'Succeeded' };
    const table = this.target(message);
    const { skip, options } = this.properties(message, table);
    if (skip) return { ...TAG_HITS[service.config.tag_hit] };
    const { strict } = message;
    const report = (kind, text, more) => service.journal.violation(kind, text, { ...where, ...more });
    const extent = await this.loadBlob(message.blobPath, table, {
      ...options,
      strict,
      report,
      rawDataSize: strict ? message.rawDataSize : null,
    });
    table.extents.push(extent);
    return { status: 'Succeeded' };
  }

  checkIdentity(message, where) {
    const { tokens, journal } = this.service;
    try {
      tokens.verify('identity', message.properties.authorizationContext ?? '');
    } catch (error) {
      if (!(error instanceof TokenError)) throw error;
      journal.violation('identity_token', `authorizationContext: ${error.message}`, where);
      throw new IngestionFailure(
        'BadRequest_InvalidKustoIdentityToken',
        'The ingestion message has no valid Kusto identity token',
      );
    }
    if (!this.service.hasRole('ingestor')) {
      throw new IngestionFailure(
        'Forbidden',
        `Principal '${this.service.principal}' is not authorized to ingest into table '${message.table}'`,
      );
    }
  }

  target({ database, table }) {
    const { store } = this.service;
    if (!store.hasDatabase(database))
      throw new IngestionFailure('BadRequest_DatabaseNotExist', `Database '${database}' does not exist`);
    const found = store.findTable(database, table);
    if (!found)
      throw new IngestionFailure(
        'BadRequest_TableNotExist',
        `Table '${table}' could not be found in database '${database}'`,
      );
    return found;
  }

  properties({ properties }, table) {
    const { ingestionMapping, ingestionMappingReference, format } = properties;
    if (format && !/^csv$/i.test(format))
      throw new IngestionFailure(
        'BadRequest_FormatNotSupported',
        `kusto-local ingests csv only, not '${format}'`,
      );
    if (ingestionMapping && ingestionMappingReference) {
      throw new IngestionFailure(
        'BadRequest_DuplicateMapping',
        'Both ingestionMapping and ingestionMappingReference are given',
      );
    }
    if (ingestionMappingReference && !table.mappings.has(ingestionMappingReference)) {
      throw new IngestionFailure(
        'BadRequest_MappingReferenceWasNotFound',
        `The ingestion mapping '${ingestionMappingReference}' was not found for table '${table.name}'`,
      );
    }
    const policy = properties.validationPolicy ?? properties.ValidationPolicy;
    try {
      const plain = {
        ...properties,
        validationPolicy: typeof policy === 'object' ? JSON.stringify(policy) : policy,
      };
      delete plain.ValidationPolicy;
      return ingestionProperties(table, plain);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      throw new IngestionFailure(
        'BadRequest_MalformedIngestionProperty',
        'A property that holds JSON text is not JSON',
      );
    }
  }

  // Downloads with the SAS of the URL alone; the name says whether it is gzip.
  async loadBlob(url, table, { rawDataSize = null, report = () => {}, ...options }) {
    const compressed = /\.gz$/i.test(withoutQuery(url));
    const res = await this.download(url);
    const stream = await sniff(res, compressed, report);
    const loader = new Loader(table, { ...options, report, source: withoutQuery(url) });
    const extent = await loadStream(stream, loader, { compressed });
    if (rawDataSize !== null && rawDataSize !== loader.rawBytes) {
      report('raw_data_size', `RawDataSize is ${rawDataSize}, the data have ${loader.rawBytes} bytes`);
    }
    if (extent.rows === 0)
      throw new IngestionFailure('BadRequest_NoRecordsOrWrongFormat', 'The input stream produced no records');
    return extent;
  }

  async download(url) {
    const target = this.service.resolve('blob', url);
    if (target && this.service.signatures.hasEnded(target.query))
      throw new IngestionFailure('Download_Forbidden', 'Failed to download the blob: its signature is no longer valid');
    if (!target)
      throw new IngestionFailure(
        'BadRequest_InvalidBlobUri',
        `The blob '${withoutQuery(url)}' is in no account of this service`,
      );
    try {
      return await this.service.storage.open('blob', 'GET', `${target.path}?${target.query}`);
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      const code =
        { 404: 'Download_SourceNotFound', 403: 'Download_Forbidden' }[error.status] ??
        'Download_UnknownError';
      throw new IngestionFailure(
        code,
        `Failed to download the blob: ${error.message}`,
        code === 'Download_UnknownError' ? 'Transient' : 'Permanent',
      );
    }
  }

  async deleteBlob(message) {
    const target = this.service.resolve('blob', message.blobPath);
    if (!target) return;
    await this.service.storage.call('blob', 'DELETE', `${target.path}?${target.query}`).catch((error) => {
      this.service.journal.violation(
        'blob_not_deletable',
        `deleting the blob with its SAS failed: ${error.message}`,
        { path: withoutQuery(message.blobPath) },
      );
    });
  }

  scriptedOutcome(message) {
    const rule = this.service.config.outcomes.find(
      ({ match = {}, times = 1 }) =>
        times !== 0 &&
        (match.db === undefined || match.db === message.database) &&
        (match.table === undefined || match.table === message.table) &&
        (match.path === undefined || new RegExp(match.path).test(withoutQuery(message.blobPath))),
    );
    if (!rule) return null;
    rule.times = (rule.times ?? 1) > 0 ? (rule.times ?? 1) - 1 : rule.times;
    const {
      status = 'Succeeded',
      errorCode,
      failureStatus = errorCode ? 'Permanent' : undefined,
      details = '',
      silent = false,
    } = rule;
    return { status, errorCode, failureStatus, details, silent };
  }

  rememberFailure(message, outcome, { operationId, activityId }) {
    this.failures.push({
      OperationId: operationId,
      Database: message.database,
      Table: message.table,
      FailedOn: now(),
      IngestionSourcePath: withoutQuery(message.blobPath),
      Details: outcome.details,
      FailureStatus: outcome.failureStatus,
      RootActivityId: activityId,
      ErrorCode: outcome.errorCode,
      Principal: this.service.principal,
      ShouldRetry: outcome.failureStatus === 'Transient',
    });
  }

  // Resolves when the queues were seen empty and nothing is in work or waiting.
  async settle() {
    for (;;) {
      if (this.paused) throw new RangeError('storage is down, ingestion cannot settle');
      await this.ring();
      while (this.polling) await this.polling;
      if (this.pending.length === 0 && this.working === 0) return;
      if (this.service.config.hold_ingestion && this.working === 0)
        throw new RangeError('ingestion is held, it cannot settle');
      await new Promise((resolve) => this.idleWaiters.push(resolve));
    }
  }

  wakeIdle() {
    const waiters = this.idleWaiters;
    this.idleWaiters = [];
    for (const wake of waiters) wake();
  }

  async drop() {
    this.pending = [];
    clearTimeout(this.timer);
    this.timer = null;
    await this.line;
    this.wakeIdle();
  }
}

// A large batch is ingested side by side, or it would get too small a share of the
// storage that clients keep busy; but not where one message decides about another.
function lanesFor(batch) {
  const alone = batch.some(({ properties }) => properties.ingestIfNotExists !== undefined);
  return alone || batch.length < LARGE_BATCH ? 1 : LANES;
}

// Looks at the first bytes: does the name tell the truth about gzip?
async function sniff(res, compressed, report) {
  const first = await new Promise((resolve, reject) => {
    const look = () => {
      const chunk = res.read();
      if (chunk !== null) resolve(chunk);
      else if (res.readableEnded) resolve(null);
    };
    res.once('error', reject);
    res.once('end', () => resolve(null));
    res.on('readable', look);
    look();
  });
  res.removeAllListeners('readable');
  if (first === null || first.length === 0)
    throw new IngestionFailure('BadRequest_EmptyBlob', 'The blob is empty');
  const isGzip = first[0] === 0x1f && first[1] === 0x8b;
  if (isGzip !== compressed) {
    res.destroy();
    report(
      'gzip_name_mismatch',
      isGzip ? 'the blob is gzip but its name does not end in .gz' : 'the blob is named .gz but is not gzip',
    );
    if (isGzip)
      throw new IngestionFailure(
        'BadRequest_NoRecordsOrWrongFormat',
        'The input stream produced no records: wrong format?',
      );
    throw new IngestionFailure(
      'BadRequest_InvalidArchive',
      "Error GZIP header, first magic byte doesn't match",
    );
  }
  res.unshift(first);
  return res;
}

function masked(object) {
  const copy = structuredClone(object);
  for (const [key, value] of Object.entries(copy)) {
    if (/^blobpath$/i.test(key)) copy[key] = maskSecrets(value);
    if (/^ingestionstatusintable$/i.test(key) && value) {
      for (const inner of Object.keys(value)) value[inner] = maskSecrets(value[inner]);
    }
    if (/^additionalproperties$/i.test(key) && value?.authorizationContext) value.authorizationContext = '…';
  }
  return copy;
}
