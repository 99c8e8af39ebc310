// The aggregation functions of `summarize`: { type, start, step(state, row), end }
// for one value, { columns, start, step(state, row), end } for several of a record.
import { KustoError } from './errors.js';
import { NUMERIC, asNumber, compile } from './expression.js';
import { toJson, toText } from './types.js';

function argument(args, name) {
  if (args.length !== 1) throw KustoError.semantic(`${name}(): function expects 1 argument(s)`);
  return args[0];
}

// Keeps the extreme value; prefer(a, b) says that a replaces b.
function extreme(name, prefer) {
  return (args) => {
    const arg = argument(args, name);
    const order = arg.type === 'decimal' ? Number : (v) => v;
    return {
      type: arg.type,
      start: () => null,
      step(state, row) {
        const value = arg.run(row);
        if (value === null) return state;
        return state === null || prefer(order(value), order(state)) ? value : state;
      },
      end: (state) => state,
    };
  };
}

function numeric(args, name) {
  const arg = argument(args, name);
  if (!NUMERIC.has(arg.type) && arg.type !== 'timespan') {
    throw KustoError.semantic(`${name}(): argument #1 must be numeric, it is ${arg.type}`);
  }
  return arg;
}

function sum(args) {
  const arg = numeric(args, 'sum');
  const inexact = arg.type === 'real' || arg.type === 'decimal';
  const value = asNumber(arg);
  return {
    type: arg.type === 'int' ? 'long' : arg.type,
    start: () => (inexact ? 0 : 0n),
    step(state, row) {
      const v = value(row);
      return v === null ? state : state + (inexact ? v : BigInt(v));
    },
    end: (state) => (arg.type === 'decimal' ? String(state) : state),
  };
}

function avg(args) {
  const value = asNumber(numeric(args, 'avg'));
  return {
    type: 'real',
    start: () => ({ total: 0, n: 0 }),
    step(state, row) {
      const v = value(row);
      return v === null ? state : { total: state.total + Number(v), n: state.n + 1 };
    },
    end: ({ total, n }) => (n ? total / n : NaN),
  };
}

function collect(name, unique) {
  return (args) => {
    const arg = argument(args, name);
    return {
      type: 'dynamic',
      start: () => [],
      step(state, row) {
        const value = arg.run(row);
        const json = value === null ? null : toJson(arg.type, value);
        if (json !== null && !(unique && state.includes(json))) state.push(json);
        return state;
      },
      end: (state) => `[${state.join(',')}]`,
    };
  };
}

function dcount(args) {
  const arg = argument(args, 'dcount');
  return {
    type: 'long',
    start: () => new Set(),
    step(state, row) {
      const value = arg.run(row);
      if (value !== null) state.add(toText(arg.type, value));
      return state;
    },
    end: (state) => BigInt(state.size),
  };
}

// One value that is not null, and not empty, where there is one;
// learn.microsoft.com/kusto/query/take-any-aggregation-function
function takeAnyValue(args) {
  const arg = argument(args, 'take_any');
  const isBetter = (value, state) => state === null || (state === '' && value !== null);
  return {
    type: arg.type,
    start: () => null,
    step(state, row) {
      const value = arg.run(row);
      return isBetter(value, state) ? value : state;
    },
    end: (state) => state,
  };
}

// What '*' stands for: all columns of the input that are not named otherwise.
function others(columns, named) {
  return columns
    .map(({ name, type }, i) => ({ name, type, run: (row) => row[i] }))
    .filter(({ name }) => !named.includes(name));
}

function returned(nodes, compileOne, columns, named) {
  return nodes.flatMap((node) => {
    if (node.kind === 'star') return others(columns, named);
    const compiled = compileOne(node);
    if (!compiled.column && !compiled.member)
      throw KustoError.semantic('kusto-local knows no name for the result of an expression here');
    return { name: compiled.column ?? compiled.member, ...compiled };
  });
}

function recordFold(picked, step) {
  return {
    columns: picked.map(({ name, type }) => ({ name, type })),
    start: () => null,
    step,
    end: (state) => picked.map((p) => (state === null ? null : p.run(state.row))),
  };
}

// learn.microsoft.com/kusto/query/arg-max-aggregation-function: a null never wins
// against a value; the first of equals stays.
function extremeRecord(name, prefer) {
  return (nodes, compileOne, columns, keys) => {
    if (nodes.length < 2) throw KustoError.semantic(`${name}(): function expects at least 2 argument(s)`);
    const by = compileOne(nodes[0]);
    if (!by.column) throw KustoError.semantic(`kusto-local knows ${name}() of a column only`);
    const order = by.type === 'decimal' ? Number : (v) => v;
    const rest = returned(nodes.slice(1), compileOne, columns, [by.column, ...keys]);
    return recordFold([{ name: by.column, ...by }, ...rest], (state, row) => {
      const value = by.run(row);
      const wins =
        state === null ||
        (value !== null && (state.value === null || prefer(order(value), order(state.value))));
      return wins ? { row, value } : state;
    });
  };
}

function takeAnyRecord(nodes, compileOne, columns, keys) {
  const picked = returned(nodes, compileOne, columns, keys);
  return recordFold(picked, (state, row) => state ?? { row });
}

const RECORDS = {
  arg_max: extremeRecord('arg_max', (a, b) => a > b),
  arg_min: extremeRecord('arg_min', (a, b) => a < b),
  take_any: takeAnyRecord,
};

export const aggregateNames = () => new Set([...Object.keys(AGGREGATES), ...Object.keys(RECORDS)]);

const isRecord = ({ name, args }) =>
  RECORDS[name] && !(name === 'take_any' && args.length === 1 && args[0].kind !== 'star');

// Compiles one item of `summarize`; keys are its compiled group keys.
export function foldOf({ name, expression }, columns, keys, scope) {
  if (expression.kind !== 'call' || !(AGGREGATES[expression.name] || RECORDS[expression.name])) {
    throw KustoError.semantic(
      `'summarize' operator: '${expression.name ?? expression.kind}' is not an aggregate that kusto-local knows`,
    );
  }
  const compileOne = (node) => compile(node, columns, 'summarize', scope);
  if (isRecord(expression)) {
    const named = keys.map((k) => k.column).filter(Boolean);
    const fold = RECORDS[expression.name](expression.args, compileOne, columns, named);
    if (name) fold.columns[0].name = name;
    return fold;
  }
  const fold = AGGREGATES[expression.name](expression.args.map(compileOne));
  return {
    ...fold,
    columns: [{ name: name ?? aggregateName(expression), type: fold.type }],
    end: (state) => [fold.end(state)],
  };
}

const AGGREGATES = {
  count: () => ({ type: 'long', start: () => 0n, step: (n) => n + 1n, end: (n) => n }),
  countif(args) {
    const arg = argument(args, 'countif');
    return {
      type: 'long',
      start: () => 0n,
      step: (n, row) => n + (arg.run(row) === true ? 1n : 0n),
      end: (n) => n,
    };
  },
  sum,
  avg,
  min: extreme('min', (a, b) => a < b),
  max: extreme('max', (a, b) => a > b),
  take_any: takeAnyValue,
  dcount,
  make_list: collect('make_list', false),
  make_set: collect('make_set', true),
};

// The name the service gives an aggregate that has none: count_, sum_x.
function aggregateName({ name, args }) {
  const column = args[0]?.kind === 'column' ? args[0].name : '';
  const prefix = { make_list: 'list', make_set: 'set' }[name] ?? name;
  return name === 'take_any' && column ? column : `${prefix}_${column}`;
}
