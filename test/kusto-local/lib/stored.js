// Commands on what a database stores besides tables: functions and materialized
// views (learn.microsoft.com/kusto/management/functions, .../materialized-views).
import { KustoError } from './errors.js';
import { Parser, parseQuery } from './kql.js';
import { Scope } from './query.js';
import { tableOf } from './result.js';
import { asIs, finish, properties } from './syntax.js';
import { checkDefinition } from './viewrules.js';

const FUNCTION_SCHEMA = 'Name, Parameters, Body, Folder, DocString';
const VIEW_SCHEMA =
  'Name, SourceTable, Query, MaterializedTo:datetime, LastRun:datetime, LastRunResult, IsHealthy:bool, IsEnabled:bool, Folder, DocString, AutoUpdateSchema:bool, EffectiveDateTime:datetime, Lookback:timespan';
const FUNCTION_PROPERTIES = ['docstring', 'folder', 'view', 'skipvalidation'];

function exists(kind, name) {
  return KustoError.badRequest(
    'BadRequest_EntityAlreadyExists',
    `Entity ID '${name}' of kind '${kind}' already exists`,
  );
}

function known(given, allowed, what) {
  for (const key of Object.keys(given)) {
    if (!allowed.some((a) => a.toLowerCase() === key.toLowerCase()))
      throw KustoError.syntax(`${what}: the property '${key}' is not supported`);
  }
  return Object.fromEntries(Object.entries(given).map(([k, v]) => [k.toLowerCase(), v]));
}

// ---- functions ----

const describeFunction = (f) => [
  f.name,
  `(${f.parameters.map((p) => `${p.name}:${p.type}`).join(', ')})`,
  `{${f.text}}`,
  f.folder,
  f.docString,
];

function putFunction(mode) {
  return (rest, { store, database, home }) => {
    const parser = new Parser(rest);
    const ifNotExists = mode === 'create' && parser.take('ifnotexists');
    const options = known(properties(parser), FUNCTION_PROPERTIES, 'function');
    const name = parser.name();
    const parameters = parser.parameters();
    const body = parser.body();
    finish(parser);
    const there = home.functions.get(name);
    if (there && ifNotExists) return tableOf(FUNCTION_SCHEMA, [describeFunction(there)]);
    if (there && mode === 'create') throw exists('Function', name);
    if (!there && mode === 'alter') throw KustoError.entityNotFound('Function', name);
    if (home.views.has(name)) throw exists('MaterializedView', name);
    const made = {
      name,
      parameters,
      body,
      text: body,
      folder: options.folder ?? '',
      docString: options.docstring ?? '',
    };
    if (options.skipvalidation !== true && options.skipvalidation !== 'true') validate(made, store, database);
    home.functions.set(name, made);
    return tableOf(FUNCTION_SCHEMA, [describeFunction(made)]);
  };
}

// The service binds the body with parameters of the given types.
function validate({ parameters, body }, store, database) {
  const bound = new Map(parameters.map(({ name, type }) => [name, { scalar: { type, run: () => null } }]));
  new Scope(store, database, { bound }).run(parseQuery(body));
}

function dropFunction(rest, { home }) {
  const parser = new Parser(rest);
  const name = parser.name();
  const ifExists = parser.take('ifexists');
  finish(parser);
  if (!home.functions.delete(name) && !ifExists) throw KustoError.entityNotFound('Function', name);
  return tableOf(FUNCTION_SCHEMA, [...home.functions.values()].map(describeFunction));
}

// ---- materialized views ----

const describeView = (v) => [
  v.name,
  v.source.name,
  v.text,
  null,
  null,
  'Completed',
  true,
  true,
  v.options.folder ?? '',
  v.options.docstring ?? '',
  v.options.autoupdateschema === true,
  null,
  null,
];

// [async] [ifnotexists] materialized-view [with (…)] Name on table T { query }
function parseView(rest, mode) {
  const parser = new Parser(rest);
  const isAsync = mode === 'create' && parser.take('async');
  const ifNotExists = mode === 'create' && parser.take('ifnotexists');
  if (mode === 'create' && parser.operatorName() !== 'materialized-view')
    throw KustoError.syntax("'materialized-view' is expected");
  const given = properties(parser);
  const name = parser.name();
  parser.expect('on');
  const kind = parser.operatorName();
  if (kind !== 'table' && kind !== 'materialized-view')
    throw KustoError.syntax("'on table' or 'on materialized-view' is expected");
  const source = { kind, name: parser.name() };
  const text = parser.body();
  finish(parser);
  return { isAsync, ifNotExists, given, name, source, text };
}

function putView(mode) {
  return (rest, { store, database, home }) => {
    const { isAsync, ifNotExists, given, name, source, text } = parseView(rest, mode);
    const there = home.views.get(name);
    if (there && ifNotExists) return tableOf(VIEW_SCHEMA, [describeView(there)]);
    if (there && mode === 'create') throw exists('MaterializedView', name);
    if (!there && mode === 'alter') throw KustoError.entityNotFound('MaterializedView', name);
    if (home.tables.has(name)) throw exists('Table', name);
    if (home.functions.has(name)) throw exists('Function', name);
    if (source.kind === 'table') store.table(database, source.name);
    else if (!home.views.has(source.name)) throw KustoError.entityNotFound('MaterializedView', source.name);

    const query = parseQuery(text);
    const options = checkDefinition({ query, source, given, isAsync, there, mode, home });
    const view = { name, source, text, query, options, ...coverage(home, source, options, there) };
    // Binds it, so that what is wrong is told now and leaves nothing behind.
    const trial = new Scope(store, database);
    home.views.set(name, view);
    try {
      view.columns = trial.view(name).columns;
    } catch (error) {
      if (there) home.views.set(name, there);
      else home.views.delete(name);
      throw error;
    }
    return tableOf(VIEW_SCHEMA, [describeView(view)]);
  };
}

// Only what is ingested from now on, unless with backfill; and, unless
// autoUpdateSchema says otherwise, with the columns that the table has now.
function coverage(home, source, { backfill, autoupdateschema }, there) {
  const table = home.tables.get(source.name);
  const width = autoupdateschema === true || !table ? Infinity : table.columns.length;
  if (there) return { before: there.before, width };
  return { before: new Set(backfill === true || !table ? [] : table.extents.map((e) => e.id)), width };
}

function dropView(rest, { home }) {
  const parser = new Parser(rest);
  const name = parser.name();
  finish(parser);
  if (!home.views.delete(name)) throw KustoError.entityNotFound('MaterializedView', name);
  return tableOf(VIEW_SCHEMA, [...home.views.values()].map(describeView));
}

function show(collection, kind, schema, describe) {
  return {
    all: (_, { home }) => tableOf(schema, [...home[collection].values()].map(describe)),
    one(rest, { home }) {
      const parser = new Parser(rest);
      const name = parser.name();
      finish(parser);
      if (!home[collection].has(name)) throw KustoError.entityNotFound(kind, name);
      return tableOf(schema, [describe(home[collection].get(name))]);
    },
  };
}

const functions = show('functions', 'Function', FUNCTION_SCHEMA, describeFunction);
const views = show('views', 'MaterializedView', VIEW_SCHEMA, describeView);

const command = (words, role, run) => ({ words: asIs(words), role, run });

export const STORED_COMMANDS = [
  command('.create-or-alter function', 'user', putFunction('create-or-alter')),
  command('.create function', 'user', putFunction('create')),
  command('.alter function', 'user', putFunction('alter')),
  command('.drop function', 'admin', dropFunction),
  command('.show functions', 'viewer', functions.all),
  command('.show function', 'viewer', functions.one),
  command('.create-or-alter materialized-view', 'admin', putView('create-or-alter')),
  {
    words: /^\.create(?=\s+(?:async\s+)?(?:ifnotexists\s+)?materialized-view\b)/i,
    role: 'admin',
    run: putView('create'),
  },
  command('.alter materialized-view', 'admin', putView('alter')),
  command('.drop materialized-view', 'admin', dropView),
  command('.show materialized-views', 'viewer', views.all),
  command('.show materialized-view', 'viewer', views.one),
];
