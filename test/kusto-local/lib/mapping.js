// CSV ingestion mappings: learn.microsoft.com/kusto/management/csv-mapping.
import { KustoError } from './errors.js';
import { typeNamed } from './types.js';

const TRANSFORMS = new Set([
  'sourcelocation',
  'sourcelinenumber',
  'datetimefromunixseconds',
  'datetimefromunixmilliseconds',
  'datetimefromunixmicroseconds',
  'datetimefromunixnanoseconds',
]);

function lowerKeys(object) {
  return Object.fromEntries(Object.entries(object ?? {}).map(([k, v]) => [k.toLowerCase(), v]));
}

// JSON text → [{ column, type, ordinal, constant, transform }]
export function parseMapping(text) {
  let items;
  try {
    items = JSON.parse(text);
  } catch {
    throw KustoError.badRequest('BadRequest_InvalidMapping', 'The ingestion mapping is not valid JSON');
  }
  if (!Array.isArray(items) || items.length === 0) {
    throw KustoError.badRequest(
      'BadRequest_InvalidMapping',
      'The ingestion mapping is not a non-empty array',
    );
  }
  return items.map(parseItem);
}

function parseItem(item) {
  const outer = lowerKeys(item);
  const inner = { ...outer, ...lowerKeys(outer.properties) };
  const column = outer.column ?? outer.name;
  const bad = (why) =>
    KustoError.badRequest('BadRequest_InvalidMapping', `The ingestion mapping of column '${column}' ${why}`);
  if (typeof column !== 'string' || !column) throw bad('has no column name');
  const type = outer.datatype ? typeNamed(outer.datatype) : null;
  if (outer.datatype && !type) throw bad(`names the unknown type '${outer.datatype}'`);
  const transform = inner.transform ? String(inner.transform).toLowerCase() : null;
  if (transform && transform !== 'none' && !TRANSFORMS.has(transform))
    throw bad(`names the unknown transform '${inner.transform}'`);
  if (inner.constvalue !== undefined && inner.constvalue !== null) {
    return { column, type, ordinal: null, constant: String(inner.constvalue), transform };
  }
  const ordinal = inner.ordinal === undefined ? null : Number(inner.ordinal);
  if (ordinal !== null && (!Number.isInteger(ordinal) || ordinal < 0)) throw bad('has an invalid ordinal');
  if (ordinal === null && !transform) throw bad('has neither Ordinal nor ConstValue nor Transform');
  return { column, type, ordinal, constant: null, transform };
}

// For each column of the table: where its value comes from, or null. Without a
// mapping the order decides.
export function plan(table, mapping) {
  if (!mapping) return table.columns.map((_, ordinal) => ({ ordinal }));
  const sources = table.columns.map(() => null);
  for (const item of mapping) {
    const index = table.columnIndex(item.column);
    if (index < 0) {
      throw KustoError.badRequest(
        'BadRequest_InvalidMapping',
        `The ingestion mapping names column '${item.column}', which table '${table.name}' does not have`,
      );
    }
    if (item.type && item.type !== table.columns[index].type) {
      throw KustoError.badRequest(
        'BadRequest_InconsistentMapping',
        `The ingestion mapping gives column '${item.column}' the type '${item.type}', the table '${table.columns[index].type}'`,
      );
    }
    sources[index] = item;
  }
  return sources;
}
