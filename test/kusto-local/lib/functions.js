// The scalar functions of the query subset. Each takes its compiled arguments and
// gives { type, run(row) }.
import { KustoError } from './errors.js';
import { datetimeFromMs, parserOf, toText } from './types.js';

const fixed = (type, run) => ({ type, run });

function need(args, low, high, name) {
  if (args.length < low || args.length > high) {
    throw KustoError.semantic(
      `${name}(): function expects ${low === high ? low : `${low} to ${high}`} argument(s)`,
    );
  }
}

// A function of one argument that is null where the argument is null.
function unary(type, calculate) {
  return ([arg, ...rest]) => {
    need([arg, ...rest].filter(Boolean), 1, 1, 'function');
    return fixed(typeof type === 'function' ? type(arg.type) : type, (row) => {
      const value = arg.run(row);
      return value === null ? null : calculate(value, arg.type);
    });
  };
}

function test(calculate) {
  return (args, name) => {
    need(args, 1, 1, name);
    const [arg] = args;
    return fixed('bool', (row) => calculate(arg.run(row), arg.type));
  };
}

function cast(type) {
  const parse = parserOf(type);
  return (args) => {
    need(args, 1, 1, `to${type}`);
    const [arg] = args;
    return fixed(type, (row) => {
      const value = arg.run(row);
      if (value === null) return null;
      if (arg.type === type) return value;
      const text = toText(arg.type, value);
      const whole =
        (type === 'long' || type === 'int') && /^-?\d+\.\d+$/.test(text) ? text.split('.')[0] : text;
      return parse(whole) ?? null;
    });
  };
}

const isEmpty = (value, type) => value === null || toText(type, value) === '';

function conditional(args) {
  need(args, 3, 3, 'iff');
  const [when, yes, no] = args;
  return fixed(yes.type, (row) => (when.run(row) === true ? yes.run(row) : no.run(row)));
}

function bin(args) {
  need(args, 2, 2, 'bin');
  const [value, step] = args;
  return fixed(value.type, (row) => {
    const [x, y] = [value.run(row), step.run(row)];
    if (x === null || y === null) return null;
    if (typeof x === 'bigint') {
      const size = BigInt(y);
      const rest = ((x % size) + size) % size;
      return x - rest;
    }
    return Math.floor(x / Number(y)) * Number(y);
  });
}

export const FUNCTIONS = {
  isnull: test((v) => v === null),
  isnotnull: test((v) => v !== null),
  isempty: test(isEmpty),
  isnotempty: test((v, type) => !isEmpty(v, type)),
  isnan: test((v) => Number.isNaN(v)),
  isinf: test((v) => v === Infinity || v === -Infinity),
  isfinite: test((v) => Number.isFinite(v)),
  not: ([arg]) =>
    fixed('bool', (row) => {
      const value = arg.run(row);
      return value === null ? null : !value;
    }),
  strlen: unary('long', (v, type) => BigInt([...toText(type, v)].length)),
  string_size: unary('long', (v, type) => BigInt(Buffer.byteLength(toText(type, v)))),
  estimate_data_size: (args) =>
    fixed('long', (row) =>
      args.reduce((sum, a) => sum + BigInt(Buffer.byteLength(toText(a.type, a.run(row)))), 0n),
    ),
  tostring: ([arg]) => fixed('string', (row) => toText(arg.type, arg.run(row))),
  toint: cast('int'),
  tolong: cast('long'),
  toreal: cast('real'),
  todouble: cast('real'),
  todecimal: cast('decimal'),
  tobool: cast('bool'),
  todatetime: cast('datetime'),
  totimespan: cast('timespan'),
  toguid: cast('guid'),
  todynamic: cast('dynamic'),
  parse_json: cast('dynamic'),
  toupper: unary('string', (v) => v.toUpperCase()),
  tolower: unary('string', (v) => v.toLowerCase()),
  abs: unary(
    (type) => type,
    (v) => (v < 0 ? -v : v),
  ),
  array_length: unary('long', (v) => {
    const parsed = JSON.parse(v);
    return Array.isArray(parsed) ? BigInt(parsed.length) : null;
  }),
  bag_keys: unary('dynamic', (v) => JSON.stringify(Object.keys(JSON.parse(v)))),
  gettype: ([arg]) =>
    fixed('string', (row) => {
      const value = arg.run(row);
      if (value === null) return 'null';
      if (arg.type !== 'dynamic') return arg.type;
      const parsed = JSON.parse(value);
      if (Array.isArray(parsed)) return 'array';
      return {
        object: 'dictionary',
        string: 'string',
        boolean: 'bool',
        number: Number.isInteger(parsed) ? 'long' : 'double',
      }[typeof parsed];
    }),
  strcat: (args) => fixed('string', (row) => args.map((a) => toText(a.type, a.run(row))).join('')),
  substring: (args) =>
    fixed('string', (row) => {
      const from = Number(args[1].run(row));
      const length = args[2] ? Number(args[2].run(row)) : Infinity;
      return toText(args[0].type, args[0].run(row)).slice(from, from + length);
    }),
  coalesce: (args) =>
    fixed(args[0].type, (row) => {
      for (const arg of args) {
        const value = arg.run(row);
        if (!isEmpty(value, arg.type)) return value;
      }
      return args[0].type === 'string' ? '' : null;
    }),
  iff: conditional,
  iif: conditional,
  bin,
  floor: bin,
  round: (args) =>
    fixed('real', (row) => {
      const value = args[0].run(row);
      const scale = 10 ** Number(args[1]?.run(row) ?? 0);
      return value === null ? null : Math.round(Number(value) * scale) / scale;
    }),
  now: () => fixed('datetime', () => datetimeFromMs(Date.now())),
  ago: ([span]) => fixed('datetime', (row) => datetimeFromMs(Date.now()) - span.run(row)),
};
