// The tabular operators of the query subset over { columns, rows }, where rows is
// a function that starts an iteration over arrays of typed values.
import { foldOf } from './aggregates.js';
import { join, union } from './combine.js';
import { KustoError } from './errors.js';
import { compile } from './expression.js';
import { CLR_FULL, toText } from './types.js';

// Of the extents that are chosen only, and of the first columns only.
export function tableRelation(table, { chosen = () => true, width = Infinity } = {}) {
  const columns = table.columns.slice(0, width);
  return {
    columns: columns.map((c) => ({ ...c })),
    *rows() {
      for (const extent of table.extents.filter(chosen)) {
        for (let r = 0; r < extent.rows; r += 1) {
          yield columns.map((c, i) => extent.get(i, r, c.type));
        }
      }
    },
  };
}

export function printRelation(items, scope) {
  const compiled = items.map((item, i) => ({
    name: item.name ?? `print_${i}`,
    ...compile(item.expression, [], 'print', scope),
  }));
  return {
    columns: compiled.map(({ name, type }) => ({ name, type })),
    rows: () => [compiled.map((c) => c.run([]))],
  };
}

export function apply(input, operator, scope) {
  return OPERATORS[operator.kind](input, operator, scope);
}

function constantCount(node, where, scope) {
  const value = compile(node, [], where, scope).run([]);
  if (typeof value !== 'bigint' || value < 0n)
    throw KustoError.semantic(`'${where}' operator: the number of rows must be a non-negative integer`);
  return Number(value);
}

function* map(rows, change) {
  for (const row of rows) yield change(row);
}

function* first(rows, n) {
  let left = n;
  if (left <= 0) return;
  for (const row of rows) {
    yield row;
    left -= 1;
    if (left === 0) return;
  }
}

// Names an unnamed item as the service does: the column's own name, else Column1.
function compileItems(items, columns, where, scope) {
  let unnamed = 0;
  return items.map(({ name, expression }) => {
    const compiled = compile(expression, columns, where, scope);
    return { name: name ?? compiled.column ?? compiled.member ?? `Column${++unnamed}`, ...compiled };
  });
}

function shape(compiled) {
  return compiled.map(({ name, type }) => ({ name, type }));
}

function indexOf(columns, name, where) {
  const index = columns.findIndex((c) => c.name === name);
  if (index < 0) throw KustoError.semantic(`'${where}' operator: Failed to resolve column named '${name}'`);
  return index;
}

function keepColumns(input, keep) {
  const kept = input.columns.map((_, i) => i).filter((i) => keep(input.columns[i]));
  return {
    columns: kept.map((i) => input.columns[i]),
    rows: () => map(input.rows(), (row) => kept.map((i) => row[i])),
  };
}

function extend(input, { items }, scope) {
  let columns = input.columns.slice();
  const steps = [];
  for (const item of items) {
    const [compiled] = compileItems([item], columns, 'extend', scope);
    const known = columns.findIndex((c) => c.name === compiled.name);
    const at = known < 0 ? columns.length : known;
    columns = columns.slice();
    columns[at] = { name: compiled.name, type: compiled.type };
    steps.push({ at, run: compiled.run });
  }
  return {
    columns,
    rows: () =>
      map(input.rows(), (row) => {
        const out = row.slice();
        for (const { at, run } of steps) out[at] = run(out);
        return out;
      }),
  };
}

function compareValues(a, b) {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

function sorter(keys, columns, where, scope) {
  const compiled = keys.map((k) => ({ ...k, ...compile(k.expression, columns, where, scope) }));
  return (x, y) => {
    for (const { run, type, ascending, nullsFirst } of compiled) {
      let [a, b] = [run(x), run(y)];
      if (a === null || b === null) {
        if (a === b) continue;
        return (a === null) === nullsFirst ? -1 : 1;
      }
      if (type === 'decimal') [a, b] = [Number(a), Number(b)];
      const order = compareValues(a, b);
      if (order) return ascending ? order : -order;
    }
    return 0;
  };
}

function distinct(input, { items }, scope) {
  const compiled = items
    ? compileItems(items, input.columns, 'distinct', scope)
    : input.columns.map((c, i) => ({ ...c, run: (row) => row[i] }));
  return {
    columns: shape(compiled),
    *rows() {
      const seen = new Set();
      for (const row of input.rows()) {
        const out = compiled.map((c) => c.run(row));
        const key = keyOf(out, compiled);
        if (seen.has(key)) continue;
        seen.add(key);
        yield out;
      }
    },
  };
}

export function keyOf(values, compiled) {
  return JSON.stringify(values.map((v, i) => (v === null ? null : toText(compiled[i].type, v))));
}

function summarize(input, { aggregates, by }, scope) {
  const keys = compileItems(by, input.columns, 'summarize', scope);
  const dynamic = keys.find((k) => k.type === 'dynamic');
  if (dynamic) {
    throw KustoError.semantic(
      `'summarize' operator: group key '${dynamic.name}' is of a 'dynamic' type. Please use an explicit cast as grouping by a 'dynamic' type is not supported`,
    );
  }
  const folds = aggregates.map((aggregate) => foldOf(aggregate, input.columns, keys, scope));
  const columns = [...shape(keys), ...folds.flatMap((f) => f.columns)];
  const repeated = columns.find((c, i) => columns.findIndex((other) => other.name === c.name) !== i);
  if (repeated)
    throw KustoError.semantic(
      `'summarize' operator: kusto-local does not know how the service names a second column '${repeated.name}'`,
    );
  return { columns, rows: () => summaries(input, keys, folds) };
}

function* summaries(input, keys, folds) {
  const groups = new Map();
  const start = () => folds.map((f) => f.start());
  if (keys.length === 0) groups.set('[]', { key: [], states: start() });
  for (const row of input.rows()) {
    const key = keys.map((k) => k.run(row));
    const id = keyOf(key, keys);
    let group = groups.get(id);
    if (!group) {
      group = { key, states: start() };
      groups.set(id, group);
    }
    folds.forEach((fold, i) => {
      group.states[i] = fold.step(group.states[i], row);
    });
  }
  for (const { key, states } of groups.values()) yield [...key, ...states.flatMap((s, i) => folds[i].end(s))];
}

const OPERATORS = {
  count: (input) => ({
    columns: [{ name: 'Count', type: 'long' }],
    *rows() {
      let n = 0;
      if (input.count !== undefined) n = input.count;
      else for (const row of input.rows()) n += row ? 1 : 0;
      yield [BigInt(n)];
    },
  }),
  serialize: (input) => input,
  take(input, { n }) {
    const limit = constantCount(n, 'take');
    return { columns: input.columns, rows: () => first(input.rows(), limit) };
  },
  where(input, { test }, scope) {
    const compiled = compile(test, input.columns, 'where', scope);
    if (compiled.type !== 'bool')
      throw KustoError.semantic("'where' operator: the predicate must be of type bool");
    return {
      columns: input.columns,
      *rows() {
        for (const row of input.rows()) if (compiled.run(row) === true) yield row;
      },
    };
  },
  project(input, { items }, scope) {
    const compiled = compileItems(items, input.columns, 'project', scope);
    return {
      columns: shape(compiled),
      rows: () => map(input.rows(), (row) => compiled.map((c) => c.run(row))),
    };
  },
  extend,
  'project-away'(input, { names }) {
    names.forEach((n) => indexOf(input.columns, n, 'project-away'));
    return keepColumns(input, (c) => !names.includes(c.name));
  },
  'project-keep'(input, { names }) {
    names.forEach((n) => indexOf(input.columns, n, 'project-keep'));
    return keepColumns(input, (c) => names.includes(c.name));
  },
  'project-rename'(input, { items }) {
    const columns = input.columns.map((c) => ({ ...c }));
    for (const { name, expression } of items)
      columns[indexOf(columns, expression.name, 'project-rename')].name = name;
    return { columns, rows: input.rows };
  },
  distinct,
  sort(input, { keys }, scope) {
    const compare = sorter(keys, input.columns, 'sort', scope);
    return { columns: input.columns, rows: () => [...input.rows()].sort(compare) };
  },
  top(input, { n, keys }, scope) {
    const limit = constantCount(n, 'top', scope);
    const compare = sorter(keys, input.columns, 'top', scope);
    return { columns: input.columns, rows: () => [...input.rows()].sort(compare).slice(0, limit) };
  },
  summarize,
  join,
  union: (input, { columns, withsource, sources }, scope) =>
    union([{ name: 'union_arg0', ...input }, ...scope.relations(sources)], columns, withsource),
  getschema: (input) => ({
    columns: [
      { name: 'ColumnName', type: 'string' },
      { name: 'ColumnOrdinal', type: 'int' },
      { name: 'DataType', type: 'string' },
      { name: 'ColumnType', type: 'string' },
    ],
    rows: () => input.columns.map((c, i) => [c.name, i, CLR_FULL[c.type], c.type]),
  }),
};
