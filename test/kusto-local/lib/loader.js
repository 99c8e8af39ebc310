// CSV bytes → one extent of typed rows, by the table's schema or a mapping. What
// the real service does silently (nulling, truncating) is done as it does it, and
// told to `report`, so that a test can demand that nothing of it happened.
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { CsvError, CsvReader } from './csv.js';
import { plan } from './mapping.js';
import { Extent } from './schema.js';
import { DYNAMIC_LIMIT, STRING_LIMIT, parserOf } from './types.js';

// https://learn.microsoft.com/kusto/ingestion-properties: the service's default.
export const DEFAULT_VALIDATION = { ValidationOptions: 1, ValidationImplications: 1 };

export class Loader {
  // report(kind, message, { column, row }); strict: rules for the product under test.
  constructor(
    table,
    {
      mapping = null,
      validation = DEFAULT_VALIDATION,
      ignoreFirstRecord = false,
      strict = false,
      report = () => {},
      tags,
      creationTime,
      source = '',
    } = {},
  ) {
    Object.assign(this, { table, validation, ignoreFirstRecord, strict, report, source });
    this.extent = new Extent(table.columns, { tags, creationTime });
    this.sources = plan(table, mapping);
    this.fillers = table.columns.map((column, i) =>
      this.filler(column, this.sources[i], this.extent.columns[i]),
    );
    this.expected = mapping ? 1 + Math.max(-1, ...mapping.map((m) => m.ordinal ?? -1)) : table.columns.length;
    this.fields = -1;
    this.rawBytes = 0;
    this.reader = new CsvReader(
      (record) => this.load(record),
      (kind, message) => {
        if (strict) report(kind, message, { row: this.reader.records + 1 });
      },
    );
  }

  push(chunk) {
    this.rawBytes += chunk.length;
    this.reader.push(chunk);
  }

  finish() {
    this.reader.finish();
    // Whoever asked for it appends it to the table in the same turn: rows are visible from now on.
    this.extent.ingestedAt = new Date().toISOString();
    return this.extent;
  }

  load(record) {
    if (this.ignoreFirstRecord && record.number === 1) return;
    if (record.count === 1 && record.isEmpty(0) && !record.quoted(0)) {
      if (this.strict) this.report('empty_line', 'an empty line is no record', { row: record.number });
      return;
    }
    if (this.fields < 0) this.fields = record.count;
    if (
      record.count !== this.fields &&
      Number(this.validation.ValidationOptions) === 1 &&
      Number(this.validation.ValidationImplications) === 0
    ) {
      throw new CsvError(
        'Stream_WrongNumberOfFields',
        `record ${record.number} has ${record.count} fields where the first has ${this.fields}`,
      );
    }
    if (this.strict) this.checkRecord(record);
    for (const fill of this.fillers) fill(record);
    this.extent.rows += 1;
  }

  // Records may end before the table's last columns, which are null then, but all alike.
  checkRecord(record) {
    if (record.count > this.expected) {
      this.report('wrong_field_count', `a record has ${record.count} fields, ${this.expected} are expected`, {
        row: record.number,
      });
    } else if (record.count !== this.fields) {
      this.report('wrong_field_count', `a record has ${record.count} fields, the first has ${this.fields}`, {
        row: record.number,
      });
    }
    if (!record.validUtf8(record.from, record.to)) {
      this.report('invalid_utf8', 'a record is not valid UTF-8', { row: record.number });
    }
  }

  filler({ name, type }, source, column) {
    const parse = parserOf(type);
    const empty = type === 'string' ? '' : null;
    if (!source) return () => column.push(empty);
    if (source.constant !== undefined && source.constant !== null) {
      const value = parse(source.constant) ?? empty;
      return () => column.push(value);
    }
    if (source.transform && source.transform !== 'none') return this.transformer(source, type, column);
    const { ordinal } = source;
    if (type === 'string') return (record) => column.push(this.string(record, ordinal, name));
    return (record) => {
      if (ordinal >= record.count || record.isEmpty(ordinal)) {
        column.push(null);
        return;
      }
      column.push(this.parsed(parse, type, name, record, ordinal));
    };
  }

  string(record, ordinal, name) {
    if (ordinal >= record.count) return '';
    if (this.strict && !record.quoted(ordinal) && !record.isEmpty(ordinal)) {
      this.report('unquoted_string', 'a field of a string column is not quoted', {
        column: name,
        row: record.number,
      });
    }
    const text = record.text(ordinal);
    if (record.size(ordinal) <= STRING_LIMIT) return text;
    const bytes = Buffer.from(text);
    if (bytes.length <= STRING_LIMIT) return text;
    this.report('string_truncated', `a string of ${bytes.length} bytes is cut to 1 MB`, {
      column: name,
      row: record.number,
    });
    return cutUtf8(bytes, STRING_LIMIT);
  }

  parsed(parse, type, name, record, ordinal) {
    const text = record.text(ordinal);
    const where = { column: name, row: record.number };
    if (
      type === 'dynamic' &&
      record.size(ordinal) > DYNAMIC_LIMIT &&
      Buffer.byteLength(text) > DYNAMIC_LIMIT
    ) {
      this.report('dynamic_too_large', 'a dynamic value above 1 MiB becomes null', where);
      return null;
    }
    const value = parse(text);
    if (value !== undefined) return value;
    if (type === 'dynamic') {
      if (this.strict)
        this.report('dynamic_not_json', 'a dynamic value is not JSON and is stored as a string', where);
      return JSON.stringify(text);
    }
    this.report('silent_null', `a value is no ${type} and becomes null`, where);
    return null;
  }

  transformer({ transform, ordinal }, type, column) {
    if (transform === 'sourcelocation') return () => column.push(this.source);
    if (transform === 'sourcelinenumber') {
      const make = type === 'long' ? BigInt : type === 'string' ? String : Number;
      return (record) => column.push(make(record.number));
    }
    const ticksPerUnit = { seconds: 10_000_000, milliseconds: 10_000, microseconds: 10, nanoseconds: 0.01 };
    const unit = ticksPerUnit[transform.slice('datetimefromunix'.length)];
    return (record) => {
      const n = ordinal < record.count ? Number(record.text(ordinal) || NaN) : NaN;
      column.push(Number.isFinite(n) ? 621_355_968_000_000_000n + BigInt(Math.round(n * unit)) : null);
    };
  }
}

function cutUtf8(bytes, limit) {
  let end = limit;
  while (end > 0 && (bytes[end] & 0xc0) === 0x80) end -= 1;
  return bytes.toString('utf8', 0, end);
}

// Runs a stream (gzip if compressed) through the loader; returns the extent.
export async function loadStream(stream, loader, { compressed }) {
  const stages = compressed ? [createGunzip({ chunkSize: 256 * 1024 })] : [];
  await pipeline(stream, ...stages, async (source) => {
    for await (const chunk of source) loader.push(chunk);
  });
  return loader.finish();
}
