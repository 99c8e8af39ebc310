// The store: databases, tables, functions, materialized views, ingestion mappings,
// and the rows in extents, one
// set of typed columns for each extent as the service keeps them.
import { randomUUID } from 'node:crypto';
import { makeColumn } from './column.js';
import { KustoError } from './errors.js';

export class Extent {
  constructor(columns, { tags = [], creationTime = null } = {}) {
    this.id = randomUUID();
    this.tags = tags;
    this.creationTime = creationTime ?? new Date().toISOString();
    this.ingestedAt = new Date().toISOString();
    this.columns = columns.map((c) => makeColumn(c.type));
    this.rows = 0;
  }

  // A string column has no null; one added after this extent was made is empty.
  get(column, row, type) {
    const stored = this.columns[column];
    if (!stored) return type === 'string' ? '' : null;
    return stored.get(row);
  }
}

export class Table {
  constructor(name, columns, { folder = '', docString = '' } = {}) {
    Object.assign(this, { name, columns, folder, docString });
    this.mappings = new Map();
    this.policies = new Map();
    this.extents = [];
    // The columns that streaming ingestion goes by; null: those of now.
    this.cachedColumns = null;
  }

  get rowCount() {
    return this.extents.reduce((sum, e) => sum + e.rows, 0);
  }

  // Columns are only ever added, at the end: the table as it was has fewer of them.
  asStreamed(cached) {
    if (!cached) this.cachedColumns = null;
    else this.cachedColumns ??= this.columns.slice();
    if (!this.cachedColumns) return this;
    return Object.assign(Object.create(Table.prototype), this, { columns: this.cachedColumns });
  }

  columnIndex(name) {
    return this.columns.findIndex((c) => c.name === name);
  }

  // Adds what is missing; a known column of another type is refused.
  merge(columns) {
    for (const { name, type } of columns) {
      const known = this.columns.find((c) => c.name === name);
      if (known && known.type !== type) {
        throw KustoError.badRequest(
          'BadRequest_SchemaMismatch',
          `Column '${name}' has type '${known.type}' and cannot be merged as '${type}'`,
        );
      }
      if (!known) this.columns.push({ name, type });
    }
  }

  hasIngestBy(keys) {
    const wanted = new Set(keys.map((k) => `ingest-by:${k}`));
    return this.extents.some((e) => e.tags.some((t) => wanted.has(t)));
  }

  cslSchema() {
    return this.columns.map((c) => `${quoteIfNeeded(c.name)}:${c.type}`).join(', ');
  }

  clear() {
    this.extents = [];
  }
}

const emptyDatabase = (name) => ({ name, tables: new Map(), functions: new Map(), views: new Map() });

export class Store {
  constructor(databases) {
    this.initial = databases;
    this.reset();
  }

  reset() {
    this.databases = new Map(this.initial.map((name) => [name.toLowerCase(), emptyDatabase(name)]));
  }

  addDatabase(name) {
    const key = name.toLowerCase();
    if (!this.databases.has(key)) this.databases.set(key, emptyDatabase(name));
    return this.databases.get(key);
  }

  hasDatabase(name) {
    return this.databases.has(String(name).toLowerCase());
  }

  database(name) {
    const found = this.databases.get(String(name).toLowerCase());
    if (!found) throw KustoError.entityNotFound('Database', name);
    return found;
  }

  findTable(database, name) {
    return this.databases.get(String(database).toLowerCase())?.tables.get(name) ?? null;
  }

  table(database, name) {
    const found = this.database(database).tables.get(name);
    if (!found) throw KustoError.entityNotFound('Table', name);
    return found;
  }

  createTable(database, name, columns, options) {
    checkColumns(columns);
    const table = new Table(name, columns, options);
    this.database(database).tables.set(name, table);
    return table;
  }
}

function checkColumns(columns) {
  const seen = new Set();
  for (const { name } of columns) {
    if (seen.has(name))
      throw KustoError.badRequest('BadRequest_DuplicateColumn', `Column '${name}' appears more than once`);
    if (name.length > 1024)
      throw KustoError.badRequest(
        'BadRequest_EntityNameIsNotValid',
        'a column name has more than 1024 characters',
      );
    seen.add(name);
  }
}

export function quoteIfNeeded(name) {
  return /^[A-Za-z_]\w*$/.test(name) ? name : `['${name.replace(/[\\']/g, '\\$&')}']`;
}
