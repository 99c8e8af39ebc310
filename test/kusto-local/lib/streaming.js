// POST /v1/rest/ingest/{database}/{table}: learn.microsoft.com/kusto/api/rest/
// streaming-ingest. Synchronous; no tags, no inline mapping.
import { gunzipSync } from 'node:zlib';
import { CsvError } from './csv.js';
import { KustoError } from './errors.js';
import { asKustoError } from './failure.js';
import { isProductUnderTest } from './headers.js';
import { Loader } from './loader.js';
import { v1Management, tableOf } from './result.js';

const TYPE = 'Kusto.DataNode.Exceptions.StreamingIngestionRequestException';
const RESULT_SCHEMA =
  'ConsumedRecordsCount:long, UpdatePolicyStatus, UpdatePolicyFailureCode, UpdatePolicyFailureReason';

export async function streamIngest(service, caller, database, tableName, request) {
  const { store, config } = service;
  service.requireRole(caller, 'ingestor', 'Ingest', `table '${tableName}'`);
  const table = store.table(database, tableName);
  if (!streamingEnabled(config, table)) {
    throw new KustoError(
      404,
      'NotFound_StreamingIngestionPolicy',
      `Streaming ingestion policy is not enabled for table ${database}.${tableName}`,
      { type: TYPE },
    );
  }
  const params = new URLSearchParams(request.query);
  const format = params.get('streamFormat');
  if (!/^csv$/i.test(format ?? ''))
    throw bad(database, tableName, `format '${format}' is not one that kusto-local knows`);
  const mapping = namedMapping(table, params.get('mappingName'));
  const strict = service.isStrict(isProductUnderTest(request.headers));
  const where = { db: database, table: tableName };
  const report = (kind, message, more) => service.journal.violation(kind, message, { ...where, ...more });
  const options = { mapping, strict, report };

  if (params.get('sourceKind') === 'uri') {
    const url = sourceUri(request.body, database, tableName);
    const extent = await service.ingestion.loadBlob(url, table, options).catch((error) => {
      throw asKustoError(error, TYPE);
    });
    table.extents.push(extent);
    return reply(extent.rows);
  }
  const bytes = plainBody(request, database, tableName, config.streaming_limit);
  try {
    const loader = new Loader(table.asStreamed(config.streaming_schema_cache), options);
    loader.push(bytes);
    const extent = loader.finish();
    if (extent.rows === 0) throw bad(database, tableName, 'The input stream is empty after processing');
    table.extents.push(extent);
    return reply(extent.rows);
  } catch (error) {
    if (error instanceof CsvError) throw bad(database, tableName, `${error.code}: ${error.message}`);
    throw error;
  }
}

function streamingEnabled(config, table) {
  const policy = table.policies.get('streamingingestion');
  return policy ? JSON.parse(policy).IsEnabled === true : config.streaming;
}

function bad(database, table, why) {
  return new KustoError(
    400,
    'BadRequest',
    `Bad streaming ingestion request to ${database}.${table} : ${why}`,
    {
      type: TYPE,
      message: 'Request is invalid and cannot be executed.',
    },
  );
}

function namedMapping(table, name) {
  if (!name) return null;
  const found = table.mappings.get(name);
  if (!found) throw KustoError.entityNotFound('MappingPersistent', name);
  return found.items;
}

function sourceUri(body, database, table) {
  try {
    const object = JSON.parse(body.toString('utf8'));
    const key = Object.keys(object).find((k) => k.toLowerCase() === 'sourceuri');
    if (typeof object[key] === 'string') return object[key];
  } catch {
    // Falls through to the one answer for every malformed body.
  }
  throw bad(database, table, 'the body has no sourceUri');
}

function plainBody({ headers, body }, database, table, limit) {
  const compressed = headers['content-encoding'] === 'gzip';
  if (!compressed && body[0] === 0x1f && body[1] === 0x8b) {
    throw bad(database, table, 'the body is gzip but has no Content-Encoding header');
  }
  let bytes = body;
  if (compressed) {
    try {
      bytes = gunzipSync(body, { maxOutputLength: 64 * 1024 * 1024 });
    } catch (error) {
      if (error.code !== 'ERR_BUFFER_TOO_LARGE') throw bad(database, table, 'the body is not gzip');
      bytes = { length: Infinity };
    }
  }
  if (bytes.length > limit) {
    throw new KustoError(
      413,
      'RequestEntityTooLarge',
      `The request of ${bytes.length} bytes exceeds the limit of ${limit} bytes`,
      {
        type: 'Kusto.DataNode.Exceptions.KustoRequestPayloadTooLargeException',
        message: 'Request payload is too large.',
      },
    );
  }
  return bytes;
}

function reply(rows) {
  return v1Management(tableOf(RESULT_SCHEMA, [[BigInt(rows), 'Inactive', 'Unknown', null]]));
}
