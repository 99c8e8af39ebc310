// Management commands of the engine, as far as the tests and the SDK need them:
// learn.microsoft.com/kusto/management. A command is looked up by its first words.
import { randomUUID } from 'node:crypto';
import { NO_EXTENT, ingestInline, ingestInto } from './direct.js';
import { KustoError } from './errors.js';
import { Parser } from './kql.js';
import { tokenize } from './lexer.js';
import { parseMapping } from './mapping.js';
import { isDataManagementCommand, versionTable, wrongEndpoint } from './mgmt.js';
import { apply } from './operators.js';
import { Scope, runQuery } from './query.js';
import { tableOf } from './result.js';
import { Extent } from './schema.js';
import { STORED_COMMANDS } from './stored.js';
import { asIs, finish, properties } from './syntax.js';
import { datetimeFromMs, parserOf, typeNamed } from './types.js';

const TABLE_SCHEMA = 'TableName, Schema, DatabaseName, Folder, DocString';
const PRINCIPAL_SCHEMA = 'Role, PrincipalType, PrincipalDisplayName, PrincipalObjectId, PrincipalFQN, Notes';
const FAILURE_SCHEMA =
  'OperationId:guid, Database, Table, FailedOn:datetime, IngestionSourcePath, Details, FailureKind, RootActivityId:guid, OperationKind, OriginatesFromUpdatePolicy:bool, ErrorCode, Principal, User, IngestionProperties, NumberOfSources:int, ShouldRetry:bool';
const MAPPING_SCHEMA = 'Name, Kind, Mapping, LastUpdatedOn:datetime, Database, Table';

export class EngineCommands {
  constructor(service) {
    this.service = service;
  }

  // Longest match first; text after the words is the command's own.
  async run(database, csl, caller, { product = false } = {}) {
    const text = csl.trim();
    if (isDataManagementCommand(text)) throw wrongEndpoint();
    const known = COMMANDS.find(({ words }) => words.test(text));
    if (!known)
      throw KustoError.syntax(`The command '${text.slice(0, 60)}' is not one that kusto-local knows`);
    this.service.requireRole(
      caller,
      known.role,
      known.role === 'viewer' ? 'Read' : 'Write',
      `database '${database}'`,
    );
    const { command: own, operators } = splitPipe(text);
    const context = { service: this.service, store: this.service.store, database, caller, product };
    const home = known.cluster ? null : this.service.store.database(database);
    const result = await known.run(own.replace(known.words, ''), { ...context, home });
    const scope = new Scope(context.store, database);
    return operators.reduce((relation, operator) => apply(relation, operator, scope), result);
  }
}

// The result of a .show command can be piped into query operators.
function splitPipe(text) {
  if (!/^\.show\b/i.test(text)) return { command: text, operators: [] };
  const bar = tokenize(text).find((t) => t.kind === 'symbol' && t.value === '|');
  if (!bar) return { command: text, operators: [] };
  return { command: text.slice(0, bar.at), operators: new Parser(text.slice(bar.at)).pipeline() };
}

function command(words, role, run, extra = {}) {
  return { words: asIs(words), role, run, ...extra };
}

// (name:type, …)
function columnList(parser) {
  parser.expect('(');
  const columns = parser.list(() => {
    const name = parser.name();
    parser.expect(':');
    const typeName = parser.name();
    const type = typeNamed(typeName);
    if (!type) throw KustoError.syntax(`'${typeName}' is not a type`);
    return { name, type };
  });
  parser.expect(')');
  return columns;
}

function describe(table, database) {
  return tableOf(TABLE_SCHEMA, [
    [
      table.name,
      JSON.stringify({
        Name: table.name,
        OrderedColumns: table.columns.map((c) => ({ Name: c.name, CslType: c.type })),
      }),
      database,
      table.folder,
      table.docString,
    ],
  ]);
}

function createTable(merge) {
  return (rest, { store, database, home }) => {
    const parser = new Parser(rest);
    const name = parser.name();
    const columns = columnList(parser);
    const options = properties(parser);
    finish(parser);
    const known = home.tables.get(name);
    if (known && merge) known.merge(columns);
    else if (known) return describe(known, database);
    return describe(
      known ??
        store.createTable(database, name, columns, { folder: options.folder, docString: options.docstring }),
      database,
    );
  };
}

function createMapping(replace) {
  return (rest, { store, database }) => {
    const parser = new Parser(rest);
    const table = store.table(database, parser.name());
    parser.expect('ingestion');
    const kind = parser.name().toLowerCase();
    parser.expect('mapping');
    const name = parser.string();
    const text = parser.string();
    properties(parser);
    finish(parser);
    if (kind !== 'csv')
      throw KustoError.badRequest(
        'BadRequest_FormatNotSupported',
        `kusto-local knows csv mappings only, not '${kind}'`,
      );
    if (table.mappings.has(name) && !replace) {
      throw KustoError.badRequest('BadRequest_EntityAlreadyExists', `The mapping '${name}' already exists`);
    }
    const items = parseMapping(text);
    table.mappings.set(name, { name, text, items });
    return tableOf(MAPPING_SCHEMA, [[name, 'Csv', text, datetimeFromMs(Date.now()), database, table.name]]);
  };
}

function dropTable(rest, { home }) {
  const parser = new Parser(rest);
  const name = parser.name();
  const ifExists = parser.take('ifexists');
  finish(parser);
  if (!home.tables.delete(name) && !ifExists) throw KustoError.entityNotFound('Table', name);
  return tableOf(
    'TableName, DatabaseName',
    [...home.tables.keys()].map((t) => [t, home.name]),
  );
}

function showTable(rest, context) {
  const { store, database } = context;
  const parser = new Parser(rest);
  const table = store.table(database, parser.name());
  if (parser.token.kind === 'end') {
    return tableOf(
      'AttributeName, AttributeType, ExtentSize:long, CompressionRatio:real, IndexSize:long, IndexSizePercent:real, OriginalSize:long, AttributeId:guid, SharedIndexSize:long, StorageEngineVersion',
      table.columns.map((c) => [c.name, c.type, 0n, 0, 0n, 0, 0n, randomUUID(), 0n, 'V3']),
    );
  }
  const what = parser.operatorName().toLowerCase();
  const run = TABLE_VIEWS[what];
  if (!run) throw KustoError.syntax(`'.show table … ${what}' is not one that kusto-local knows`);
  return run(parser, table, context);
}

const TABLE_VIEWS = {
  cslschema: (_, table, { database }) =>
    tableOf(TABLE_SCHEMA, [
      [table.name, table.cslSchema().replaceAll(', ', ','), database, table.folder, table.docString],
    ]),
  schema(_, table, { database }) {
    const json = JSON.stringify({
      Name: table.name,
      OrderedColumns: table.columns.map((c) => ({ Name: c.name, CslType: c.type })),
    });
    return tableOf(TABLE_SCHEMA, [[table.name, json, database, table.folder, table.docString]]);
  },
  extents: (_, table, { database }) =>
    tableOf(
      'ExtentId:guid, DatabaseName, TableName, RowCount:long, MinCreatedOn:datetime, MaxCreatedOn:datetime, Tags',
      table.extents.map((e) => [
        e.id,
        database,
        table.name,
        BigInt(e.rows),
        instant(e.creationTime),
        instant(e.creationTime),
        e.tags.join('\r\n'),
      ]),
    ),
  details: (_, table, { database }) =>
    tableOf('TableName, DatabaseName, Folder, DocString, TotalExtents:long, TotalRowCount:long', [
      [
        table.name,
        database,
        table.folder,
        table.docString,
        BigInt(table.extents.length),
        BigInt(table.rowCount),
      ],
    ]),
  policy(parser, table, { database }) {
    const name = parser.name();
    return tableOf('PolicyName, EntityName, Policy, ChildEntities, EntityType', [
      [
        name,
        `[${database}].[${table.name}]`,
        table.policies.get(name.toLowerCase()) ?? 'null',
        null,
        'Table',
      ],
    ]);
  },
  ingestion(parser, table, { database }) {
    while (parser.token.kind === 'name') parser.at += 1;
    const wanted = parser.token.kind === 'string' ? parser.string() : null;
    if (wanted && !table.mappings.has(wanted)) throw KustoError.entityNotFound('MappingPersistent', wanted);
    const mappings = [...table.mappings.values()].filter((m) => !wanted || m.name === wanted);
    return tableOf(
      MAPPING_SCHEMA,
      mappings.map((m) => [m.name, 'Csv', m.text, datetimeFromMs(Date.now()), database, table.name]),
    );
  },
};

const instant = (text) => parserOf('datetime')(text) ?? null;

function alterPolicy(rest, { store, database }) {
  const parser = new Parser(rest);
  const table = store.table(database, parser.name());
  parser.expect('policy');
  const name = parser.name().toLowerCase();
  let text;
  if (parser.take('enable')) text = '{"IsEnabled":true}';
  else if (parser.take('disable')) text = '{"IsEnabled":false}';
  else text = parser.string();
  table.policies.set(name, text);
  return tableOf('PolicyName, EntityName, Policy, ChildEntities, EntityType', [
    [name, `[${database}].[${table.name}]`, text, null, 'Table'],
  ]);
}

function deletePolicy(rest, { store, database }) {
  const parser = new Parser(rest);
  const table = store.table(database, parser.name());
  parser.expect('policy');
  table.policies.delete(parser.name().toLowerCase());
  return tableOf('PolicyName, EntityName', []);
}

function showFailures(rest, { service }) {
  const { OperationId: wanted } = properties(new Parser(rest));
  const failures = service.ingestion.failures.filter(
    (f) => !wanted || f.OperationId === wanted.toLowerCase(),
  );
  return tableOf(
    FAILURE_SCHEMA,
    failures.map((f) => [
      f.OperationId,
      f.Database,
      f.Table,
      instant(f.FailedOn),
      f.IngestionSourcePath,
      f.Details,
      f.FailureStatus,
      f.RootActivityId,
      'DataIngestPull',
      false,
      f.ErrorCode,
      f.Principal,
      '',
      '',
      1,
      f.ShouldRetry,
    ]),
  );
}

function showPrincipals(_, { service, caller }) {
  const names = { admin: 'Admin', user: 'User', viewer: 'Viewer', ingestor: 'Ingestor' };
  return tableOf(
    PRINCIPAL_SCHEMA,
    service.config.roles.map((role) => [
      `Database ${names[role]}`,
      'Microsoft Entra app',
      'kusto-local client',
      service.client.client_id,
      caller.principal,
      '',
    ]),
  );
}

// .set, .append, .set-or-append, .set-or-replace T <| query
function fromQuery(mode) {
  return (rest, { store, database, home }) => {
    const at = rest.indexOf('<|');
    if (at < 0) throw KustoError.syntax("'<|' is missing");
    const parser = new Parser(rest.slice(0, at));
    parser.take('async');
    const name = parser.name();
    const props = properties(parser);
    finish(parser);
    const known = home.tables.get(name);
    if (mode === 'set' && known)
      throw KustoError.badRequest('BadRequest_EntityAlreadyExists', `Table '${name}' already exists`);
    if (mode === 'append' && !known) throw KustoError.entityNotFound('Table', name);
    const { columns, rows } = runQuery(store, database, rest.slice(at + 2));
    const table = known ?? store.createTable(database, name, columns);
    const extent = new Extent(table.columns, { tags: props.tags ? JSON.parse(props.tags) : [] });
    for (const row of rows()) {
      table.columns.forEach((c, i) => extent.columns[i].push(row[i] ?? (c.type === 'string' ? '' : null)));
      extent.rows += 1;
    }
    if (mode === 'set-or-replace') table.clear();
    table.extents.push(extent);
    return tableOf(
      'ExtentId:guid, OriginalSize:long, ExtentSize:long, CompressedSize:long, IndexSize:long, RowCount:long',
      [[extent.id, 0n, 0n, 0n, 0n, BigInt(extent.rows)]],
    );
  };
}

// learn.microsoft.com/kusto/management/data-ingestion/clear-schema-cache-command: a row a node.
function clearSchemaCache(rest, { store, database }) {
  const parser = new Parser(rest);
  const table = store.table(database, parser.name());
  for (const word of ['cache', 'streamingingestion', 'schema']) parser.expect(word);
  finish(parser);
  table.cachedColumns = null;
  return tableOf('NodeId, Status', [
    ['Engine000000', 'Succeeded'],
    ['Engine000001', 'Succeeded'],
  ]);
}

const COMMANDS = [
  ...STORED_COMMANDS,
  command('.create-or-alter table', 'user', createMapping(true)),
  command('.create-merge table', 'user', createTable(true)),
  {
    words: /^\.create\s+table(?=\s+(?:\[[^\]]*\]|[\w$]+)\s+ingestion\b)/i,
    role: 'user',
    run: createMapping(false),
  },
  command('.create table', 'user', createTable(false)),
  command('.drop table', 'admin', dropTable),
  {
    words: /^\.clear\s+table(?=\s+(?:\[[^\]]*\]|[\w$]+)\s+cache\b)/i,
    role: 'ingestor',
    run: clearSchemaCache,
  },
  command('.clear table', 'admin', (rest, { store, database }) => {
    const parser = new Parser(rest);
    const table = store.table(database, parser.name());
    parser.expect('data');
    finish(parser);
    table.clear();
    return tableOf('Status', [['Succeeded']]);
  }),
  command('.alter-merge table', 'admin', alterPolicy),
  command('.alter table', 'admin', alterPolicy),
  command('.delete table', 'admin', deletePolicy),
  command('.show tables', 'viewer', (_, { home }) =>
    tableOf(
      'TableName, DatabaseName, Folder, DocString',
      [...home.tables.values()].map((t) => [t.name, home.name, t.folder, t.docString]),
    ),
  ),
  command('.show table', 'viewer', showTable),
  command(
    '.show databases',
    'viewer',
    (_, { store }) =>
      tableOf(
        'DatabaseName, PersistentStorage, Version, IsCurrent:bool, DatabaseAccessMode, PrettyName, ReservedSlot1:bool, DatabaseId:guid',
        [...store.databases.values()].map((d) => [
          d.name,
          '',
          'v1.0',
          false,
          'ReadWrite',
          '',
          null,
          NO_EXTENT,
        ]),
      ),
    { cluster: true },
  ),
  command('.show version', 'viewer', () => versionTable('Engine'), { cluster: true }),
  command('.show ingestion failures', 'viewer', showFailures, { cluster: true }),
  command('.show principal roles', 'viewer', showPrincipals, { cluster: true }),
  {
    words: /^\.show\s+database\s+.*\s+principals\s*;?$/i,
    role: 'viewer',
    run: showPrincipals,
    cluster: true,
  },
  command('.ingest inline into', 'ingestor', ingestInline),
  command('.ingest', 'ingestor', ingestInto),
  command('.set-or-append', 'ingestor', fromQuery('set-or-append')),
  command('.set-or-replace', 'ingestor', fromQuery('set-or-replace')),
  command('.set', 'ingestor', fromQuery('set')),
  command('.append', 'ingestor', fromQuery('append')),
];
