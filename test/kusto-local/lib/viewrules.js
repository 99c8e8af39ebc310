// What the service demands of a materialized view's definition:
// learn.microsoft.com/kusto/management/materialized-views/materialized-view-create
// ("Query parameter", "Properties") and .../materialized-view-alter. What kusto-local
// lets pass the service lets pass, too; where the documentation is silent, it is refused.
import { KustoError } from './errors.js';
import { aggregateNames } from './aggregates.js';

const PROPERTIES = [
  'backfill',
  'effectiveDateTime',
  'updateExtentsCreationTime',
  'lookback',
  'autoUpdateSchema',
  'dimensionTables',
  'folder',
  'docString',
];
const ALTERABLE = ['lookback', 'dimensionTables'];
const BEFORE_SUMMARIZE = new Set([
  'where',
  'extend',
  'project',
  'project-away',
  'project-keep',
  'project-rename',
]);
const RECORDS = new Set(['arg_max', 'arg_min', 'take_any']);
const UNSTABLE = new Set(['now', 'ago', 'rand', 'ingestion_time', 'toscalar', 'cursor_after']);

function refuse(why) {
  return KustoError.badRequest('BadRequest_InvalidMaterializedView', `Materialized view is invalid: ${why}`);
}

function* nodes(node) {
  if (Array.isArray(node)) for (const item of node) yield* nodes(item);
  else if (node && typeof node === 'object') {
    if (node.kind) yield node;
    for (const child of Object.values(node)) yield* nodes(child);
  }
}

// in (Name) may read another table.
const readsMore = ({ kind, items }) =>
  kind === 'subquery' || (kind === 'in' && items.length === 1 && items[0].kind === 'column');

// Gives the options, by their names in lower case.
export function checkDefinition({ query, source, given, isAsync, there, mode, home }) {
  const summarize = checkQuery(query, source, home);
  const options = {};
  for (const [key, value] of Object.entries(given)) {
    if (!PROPERTIES.some((p) => p.toLowerCase() === key.toLowerCase())) throw refuse(`no property '${key}'`);
    options[key.toLowerCase()] = value;
  }
  checkOptions(options, summarize, isAsync, mode, there);
  if (there) {
    const by = (q) => JSON.stringify(q.operators.at(-1).by);
    if (by(there.query) !== by(query)) throw refuse('the group by expressions cannot be altered');
  }
  return there ? { ...there.options, ...options } : options;
}

function checkQuery(query, source, home) {
  if (query.lets.length > 0) throw refuse('kusto-local knows no let statement in a definition');
  const { source: from, operators } = query;
  const reads =
    from.kind === 'name'
      ? from.name
      : from.kind === 'call' && from.name === 'table'
        ? from.args[0]?.text
        : null;
  if (from.database) throw refuse('a cross-database query is not supported');
  if (reads !== source.name) throw refuse(`the query must read '${source.name}' and nothing else`);
  const last = operators.at(-1);
  if (last?.kind !== 'summarize') throw refuse('summarize must be the last operator');
  for (const { kind } of operators.slice(0, -1)) {
    if (!BEFORE_SUMMARIZE.has(kind)) throw refuse(`the operator '${kind}' is not supported`);
  }
  if (last.by.length === 0) throw refuse('summarize needs a group by expression');
  if (last.aggregates.length === 0) throw refuse('summarize needs an aggregation function');
  for (const { expression } of last.aggregates) {
    if (expression.kind !== 'call' || !aggregateNames().has(expression.name))
      throw refuse('composite aggregations are not supported');
  }
  for (const node of nodes(operators)) {
    if (readsMore(node)) throw refuse('the query must read one table only');
    if (node.kind === 'call' && UNSTABLE.has(node.name))
      throw refuse(`the query must not depend on ${node.name}()`);
  }
  if (source.kind === 'materialized-view') {
    const [only, ...more] = home.views.get(source.name).query.operators.at(-1).aggregates;
    const isDeduplication = more.length === 0 && only.expression.name === 'take_any' && isOfAll(only);
    if (!isDeduplication) throw refuse('a view over a view needs a take_any(*) view');
  }
  return last;
}

const isOfAll = ({ expression }) => expression.args.at(-1)?.kind === 'star';

function checkOptions(options, { aggregates }, isAsync, mode, there) {
  const isSingle = aggregates.length === 1 && RECORDS.has(aggregates[0].expression.name);
  const isOn = (name) => options[name] === true || options[name] === 'true';
  if (options.lookback !== undefined && !isSingle)
    throw refuse('lookback is valid only for views of one arg_max, arg_min or take_any');
  if (isOn('autoupdateschema') && !(isSingle && isOfAll(aggregates[0])))
    throw refuse('autoUpdateSchema is valid only for arg_max(…, *), arg_min(…, *) and take_any(*)');
  if (isOn('backfill') && mode === 'create' && !isAsync) throw refuse('backfill needs .create async');
  if (isOn('backfill') && mode !== 'create')
    throw refuse('kusto-local knows backfill with .create async materialized-view only');
  if (options.effectivedatetime !== undefined || options.dimensiontables !== undefined)
    throw refuse('kusto-local knows neither effectiveDateTime nor dimensionTables');
  if (!there && mode !== 'alter') return;
  for (const key of Object.keys(options)) {
    const isAllowed = ALTERABLE.some((p) => p.toLowerCase() === key);
    if (!isAllowed && mode === 'alter') throw refuse(`the property '${key}' cannot be altered`);
  }
}
