// The ingestion message of a queue: decoded, checked strictly, and brought to one
// form. The field list is that of learn.microsoft.com/kusto/api/netfx/
// kusto-ingest-client-rest and of the published SDKs.
import { isProductName } from './headers.js';

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
const INSTANT = /^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-]\d{2}:\d{2})?$/;
const BASE64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/;
const ENCODED_LIMIT = 64 * 1024;
const REPORT_LEVELS = ['FailuresOnly', 'None', 'FailuresAndSuccesses'];
const REPORT_METHODS = ['Queue', 'Table', 'QueueAndTable', 'AzureMonitoring'];
const MAPPING_TYPES = new Set(['Csv', 'Json', 'Avro', 'Parquet', 'Orc', 'W3CLogFile']);

export class MessageError extends Error {}

const is = {
  text: (v) => (typeof v === 'string' && v !== '' ? null : 'must be a non-empty string'),
  bool: (v) => (typeof v === 'boolean' ? null : 'must be a boolean'),
  uuid: (v) => (typeof v === 'string' && UUID.test(v) ? null : 'must be a uuid'),
  size: (v) => (Number.isSafeInteger(v) && v >= 0 ? null : 'must be a non-negative integer'),
  instant: (v) => (typeof v === 'string' && INSTANT.test(v) ? null : 'must be an ISO 8601 time'),
  choice: (names) => (v) =>
    names.includes(v) || (Number.isInteger(v) && names[v])
      ? null
      : `must be one of ${names.join(', ')} or its number`,
  object: (v) => (v && typeof v === 'object' && !Array.isArray(v) ? null : 'must be an object'),
  jsonText: (check, what) => (v) => {
    if (typeof v !== 'string') return `must be a string that holds ${what}`;
    try {
      return check(JSON.parse(v)) ? null : `must hold ${what}`;
    } catch {
      return `must hold ${what}, it is not JSON`;
    }
  },
};

const stringArray = is.jsonText(
  (v) => Array.isArray(v) && v.every((s) => typeof s === 'string'),
  'a JSON array of strings',
);
const objectArray = is.jsonText(
  (v) => Array.isArray(v) && v.length > 0 && v.every((o) => o && typeof o === 'object'),
  'a JSON array of objects',
);
const policy = is.jsonText(
  (v) => [0, 1, 2].includes(v?.ValidationOptions) && [0, 1].includes(v?.ValidationImplications),
  'an object with ValidationOptions and ValidationImplications',
);

// PascalCase name → [check, required]
const FIELDS = {
  Id: [is.uuid, true],
  BlobPath: [is.text, true],
  RawDataSize: [is.size, true],
  DatabaseName: [is.text, true],
  TableName: [is.text, true],
  RetainBlobOnSuccess: [is.bool, false],
  FlushImmediately: [is.bool, false],
  IgnoreSizeLimit: [is.bool, false],
  ReportLevel: [is.choice(REPORT_LEVELS), false],
  ReportMethod: [is.choice(REPORT_METHODS), false],
  SourceMessageCreationTime: [is.instant, false],
  ApplicationForTracing: [is.text, false],
  ClientVersionForTracing: [is.text, false],
  IngestionStatusInTable: [is.object, false],
  AdditionalProperties: [is.object, true],
};

const STATUS_FIELDS = {
  TableConnectionString: [is.text, true],
  PartitionKey: [is.text, true],
  RowKey: [is.text, true],
};

// Of these the service knows the lowerCamelCase form only; ValidationPolicy is
// the exception that SDKs write either way.
const PROPERTIES = {
  authorizationContext: [is.text, true],
  format: [(v) => (v === 'csv' ? null : "must be 'csv' in lower case"), true],
  tags: [stringArray, false],
  ingestIfNotExists: [stringArray, false],
  ingestionMapping: [objectArray, false],
  ingestionMappingReference: [is.text, false],
  ingestionMappingType: [(v) => (MAPPING_TYPES.has(v) ? null : 'must be a mapping kind such as Csv'), false],
  validationPolicy: [policy, false],
  ValidationPolicy: [policy, false],
  ignoreFirstRecord: [
    (v) => (typeof v === 'boolean' || v === 'true' || v === 'false' ? null : 'must be a boolean'),
    false,
  ],
  creationTime: [is.instant, false],
  zipPattern: [is.text, false],
};

const camel = (name) => name[0].toLowerCase() + name.slice(1);

// Queue text → object; what is not even that is a corrupted message.
export function decodeMessage(text) {
  if (text.length > ENCODED_LIMIT)
    throw new MessageError(`the message has ${text.length} bytes, 64 KiB are allowed`);
  if (!BASE64.test(text)) throw new MessageError('the message is not base64');
  let object;
  try {
    object = JSON.parse(Buffer.from(text, 'base64').toString('utf8'));
  } catch {
    throw new MessageError('the message is not JSON');
  }
  if (is.object(object)) throw new MessageError('the message is not a JSON object');
  return object;
}

function checkFields(object, fields, place, say) {
  const names = new Map(
    Object.keys(fields).flatMap((f) => [
      [f, f],
      [camel(f), f],
    ]),
  );
  const cases = new Set();
  const seen = new Set();
  for (const [key, value] of Object.entries(object)) {
    const field = names.get(key);
    if (!field) {
      say(`${place} has the unknown key ${key}`);
      continue;
    }
    if (seen.has(field)) say(`${place} has ${field} in two spellings`);
    seen.add(field);
    if (key !== camel(key)) cases.add('Pascal');
    else if (fields === FIELDS) cases.add('camel');
    const problem = fields[field][0](value);
    if (problem) say(`${field} of ${place} ${problem}`);
  }
  if (cases.size > 1) say(`${place} mixes PascalCase and lowerCamelCase keys`);
  for (const [field, [, required]] of Object.entries(fields)) {
    if (required && !seen.has(field)) say(`${place} has no ${field}`);
  }
}

// The rules for the product under test; say(text) takes each finding.
export function checkStrictly(object, say) {
  checkFields(object, FIELDS, 'the message', say);
  const message = normalise(object);
  if (message.properties) {
    const known = Object.fromEntries(
      Object.keys(message.properties)
        .filter((k) => !PROPERTIES[k])
        .map((k) => [k, 1]),
    );
    for (const key of Object.keys(known)) say(`AdditionalProperties has the unknown key ${key}`);
    for (const [key, [check, required]] of Object.entries(PROPERTIES)) {
      const value = message.properties[key];
      if (value === undefined) {
        if (required) say(`AdditionalProperties has no ${key}`);
        continue;
      }
      const problem = check(value);
      if (problem) say(`${key} of AdditionalProperties ${problem}`);
    }
    const { ingestionMapping, ingestionMappingReference, ingestionMappingType } = message.properties;
    if (ingestionMapping && ingestionMappingReference) say('both kinds of mapping are given');
    if ((ingestionMapping || ingestionMappingReference) && !ingestionMappingType)
      say('a mapping is given without ingestionMappingType');
  }
  const wantsTable = message.reportMethod === 1 || message.reportMethod === 2;
  if (message.status) checkFields(message.rawStatus, STATUS_FIELDS, 'IngestionStatusInTable', say);
  else if (wantsTable) say('the report goes to a table but IngestionStatusInTable is missing');
  checkBlobName(message.blobPath, say);
}

function checkBlobName(blobPath, say) {
  if (typeof blobPath !== 'string') return;
  const name = blobPath.split('?', 1)[0].split('/').pop();
  if (!/^[A-Za-z0-9._-]+$/.test(name)) say('the blob name has characters beyond [A-Za-z0-9._-]');
  if (!name.endsWith('.csv.gz')) say('the blob name does not end in .csv.gz');
  if (!/[?&]sig=/.test(blobPath)) say('BlobPath has no SAS');
}

function lowerKeys(object) {
  return Object.fromEntries(Object.entries(object).map(([k, v]) => [k.toLowerCase(), v]));
}

function enumeration(value, names, fallback) {
  if (value === null || value === undefined) return fallback;
  if (typeof value === 'number') return value;
  const index = names.findIndex((n) => n.toLowerCase() === String(value).toLowerCase());
  return index < 0 ? Number(value) || fallback : index;
}

const truthy = (v) => v === true || String(v).toLowerCase() === 'true';

// As leniently as the service reads: any case of keys, numbers and booleans as text.
export function normalise(object) {
  const m = lowerKeys(object);
  const status =
    m.ingestionstatusintable && typeof m.ingestionstatusintable === 'object'
      ? lowerKeys(m.ingestionstatusintable)
      : null;
  const size = m.rawdatasize === null || m.rawdatasize === undefined ? null : Number(m.rawdatasize);
  return {
    id: m.id,
    blobPath: m.blobpath,
    rawDataSize: Number.isFinite(size) ? size : null,
    database: m.databasename,
    table: m.tablename,
    retainBlob: truthy(m.retainblobonsuccess),
    flushImmediately: truthy(m.flushimmediately),
    reportLevel: enumeration(m.reportlevel, REPORT_LEVELS, 0),
    reportMethod: enumeration(m.reportmethod, REPORT_METHODS, 0),
    application: m.applicationfortracing ?? '',
    clientVersion: m.clientversionfortracing ?? '',
    rawStatus: m.ingestionstatusintable,
    status: status?.tableconnectionstring
      ? {
          url: status.tableconnectionstring,
          partitionKey: String(status.partitionkey),
          rowKey: String(status.rowkey),
        }
      : null,
    properties: m.additionalproperties ?? null,
  };
}

export function isFromProductUnderTest({ application, clientVersion }) {
  return isProductName(clientVersion, application);
}
