// The aggregation functions of `summarize`: { type, start, step(state, row), end }.
import { KustoError } from './errors.js';
import { NUMERIC, asNumber } from './expression.js';
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

export const AGGREGATES = {
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
  take_any: extreme('take_any', () => false),
  dcount,
  make_list: collect('make_list', false),
  make_set: collect('make_set', true),
};

// The name the service gives an aggregate that has none: count_, sum_x.
export function aggregateName({ name, args }) {
  const column = args[0]?.kind === 'column' ? args[0].name : '';
  const prefix = { make_list: 'list', make_set: 'set' }[name] ?? name;
  return name === 'take_any' && column ? column : `${prefix}_${column}`;
}
