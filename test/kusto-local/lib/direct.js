// `.ingest inline into` and `.ingest into`: the engine takes the data while the
// command waits (learn.microsoft.com/kusto/management/data-ingestion/ingest-from-storage).
import { randomUUID } from 'node:crypto';
import { KustoError } from './errors.js';
import { asKustoError } from './failure.js';
import { Parser } from './kql.js';
import { DEFAULT_VALIDATION, Loader } from './loader.js';
import { parseMapping } from './mapping.js';
import { tableOf } from './result.js';
import { finish, properties } from './syntax.js';

const INGEST_SCHEMA = 'ExtentId:guid, ItemLoaded, Duration:timespan, HasErrors:bool, OperationId:guid';
export const NO_EXTENT = '00000000-0000-0000-0000-000000000000';

// A URL with a query in a literal that is traced as it stands.
const TRACED_SIGNATURE = /(?<![hH]@?)["']https?:\/\/[^"']*\?/;

// The properties that direct and queued ingestion have in common, as text.
export function ingestionProperties(table, props) {
  const get = (name) => Object.entries(props).find(([k]) => k.toLowerCase() === name.toLowerCase())?.[1];
  const keys = get('ingestIfNotExists');
  const reference = get('ingestionMappingReference') ?? get('csvMappingReference');
  let mapping = null;
  if (get('ingestionMapping')) mapping = parseMapping(get('ingestionMapping'));
  else if (reference) {
    const found = table.mappings.get(reference);
    if (!found) throw KustoError.entityNotFound('MappingPersistent', reference);
    mapping = found.items;
  }
  const ignoreFirst = get('ignoreFirstRecord');
  const policy = get('validationPolicy');
  return {
    skip: keys ? table.hasIngestBy(JSON.parse(keys)) : false,
    options: {
      mapping,
      tags: get('tags') ? JSON.parse(get('tags')) : [],
      creationTime: get('creationTime') ?? null,
      ignoreFirstRecord: ignoreFirst === true || ignoreFirst === 'true',
      validation: policy ? { ...DEFAULT_VALIDATION, ...JSON.parse(policy) } : DEFAULT_VALIDATION,
    },
  };
}

const skipped = () => tableOf(INGEST_SCHEMA, [[NO_EXTENT, '', 0n, false, randomUUID()]]);

// Everything after <| is CSV text, as it stands.
export function ingestInline(rest, { store, database, service }) {
  const at = rest.indexOf('<|');
  if (at < 0) throw KustoError.syntax("'<|' is missing");
  const parser = new Parser(rest.slice(0, at));
  parser.take('table');
  const table = store.table(database, parser.name());
  const props = properties(parser);
  finish(parser);
  const ingest = ingestionProperties(table, props);
  if (ingest.skip) return skipped();
  const report = (kind, message, where) =>
    service.journal.violation(kind, message, { db: database, table: table.name, ...where });
  try {
    const loader = new Loader(table, { ...ingest.options, report });
    loader.push(Buffer.from(rest.slice(at + 2).replace(/^[ \t]*\r?\n|^[ \t]+/, '')));
    const extent = loader.finish();
    table.extents.push(extent);
    return tableOf(INGEST_SCHEMA, [[extent.id, `inproc:${extent.id}`, 0n, false, randomUUID()]]);
  } catch (error) {
    throw asKustoError(error);
  }
}

// All blobs or none.
export async function ingestInto(rest, { store, database, service, product }) {
  const parser = new Parser(rest);
  parser.take('async');
  parser.expect('into');
  parser.take('table');
  const table = store.table(database, parser.name());
  parser.expect('(');
  const urls = parser.list(() => parser.string());
  parser.expect(')');
  const props = properties(parser);
  finish(parser);
  const report = (kind, message, where) =>
    service.journal.violation(kind, message, { db: database, table: table.name, ...where });
  const strict = service.isStrict(product);
  if (strict && TRACED_SIGNATURE.test(rest))
    report('traced_signature', "a URL with a signature is not in an h'…' literal");
  if (!/^csv$/i.test(props.format ?? ''))
    throw KustoError.badRequest(
      'BadRequest_FormatNotSupported',
      `format '${props.format}' is not one that kusto-local knows`,
    );
  const ingest = ingestionProperties(table, props);
  if (ingest.skip) return skipped();
  const operation = randomUUID();
  const extents = [];
  try {
    for (const url of urls)
      extents.push(await service.ingestion.loadBlob(url, table, { ...ingest.options, strict, report }));
  } catch (error) {
    throw asKustoError(error);
  }
  table.extents.push(...extents);
  return tableOf(
    INGEST_SCHEMA,
    extents.map((e, i) => [e.id, urls[i].split('?')[0], 0n, false, operation]),
  );
}
