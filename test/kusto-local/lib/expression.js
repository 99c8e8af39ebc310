// Compiles a scalar expression of the query subset against the columns of its
// input: { type, run(row) }, where a row is an array of typed values.
import { KustoError } from './errors.js';
import { FUNCTIONS } from './functions.js';
import { parserOf, toText, typeNamed } from './types.js';

export const NUMERIC = new Set(['int', 'long', 'real', 'decimal']);

// scope: what names mean that are not columns; see query.js.
export function compile(node, columns, operator, scope) {
  const make = MAKERS[node.kind];
  if (!make)
    throw KustoError.semantic(
      `'${operator}' operator: ${node.kind === 'star' ? "'*'" : 'a query'} is not expected here`,
    );
  return make(node, (child) => compile(child, columns, operator, scope), columns, operator, scope);
}

const MAKERS = {
  literal: (node) => literal(node),
  column(node, _, columns, operator, scope) {
    const index = columns.findIndex((c) => c.name === node.name);
    const scalar = index < 0 ? scope?.scalar(node.name) : null;
    if (scalar) return scalar;
    if (index < 0) {
      throw KustoError.semantic(
        `'${operator}' operator: Failed to resolve column or scalar expression named '${node.name}'`,
      );
    }
    return { type: columns[index].type, run: (row) => row[index], column: node.name };
  },
  call(node, sub, _, operator, scope) {
    if (node.name === 'toscalar') return toScalar(node.args, scope);
    const make = FUNCTIONS[node.name];
    if (!make)
      throw KustoError.query(
        'SEM0260',
        'Semantic',
        'Kusto.Data.Exceptions.SemanticException',
        `Unknown function: '${node.name}'`,
      );
    return make(node.args.map(sub), operator);
  },
  member(node, sub) {
    const [object, key] = [sub(node.object), sub(node.key)];
    return {
      type: 'dynamic',
      member: memberName(node),
      run(row) {
        const text = object.run(row);
        if (text === null) return null;
        const found = JSON.parse(text)?.[toIndex(key, row)];
        return found === undefined || found === null ? null : JSON.stringify(found);
      },
    };
  },
  not(node, sub) {
    const operand = sub(node.operand);
    return boolean((row) => {
      const value = operand.run(row);
      return value === null ? null : !value;
    });
  },
  and(node, sub) {
    const [left, right] = [sub(node.left), sub(node.right)];
    return boolean((row) => left.run(row) === true && right.run(row) === true);
  },
  or(node, sub) {
    const [left, right] = [sub(node.left), sub(node.right)];
    return boolean((row) => left.run(row) === true || right.run(row) === true);
  },
  compare: (node, sub, _, operator) => comparison(node.operator, sub(node.left), sub(node.right), operator),
  in(node, sub, _, operator, scope) {
    const left = sub(node.left);
    const listed = node.items.length === 1 ? scope?.relation(node.items[0]) : null;
    if (listed) return inColumn(left, listed);
    const items = node.items.map(sub);
    return boolean((row) => {
      const value = toText(left.type, left.run(row));
      return items.some((item) => toText(item.type, item.run(row)) === value);
    });
  },
  between(node, sub, _, operator) {
    const left = sub(node.left);
    const low = comparison('>=', left, sub(node.low), operator);
    const high = comparison('<=', left, sub(node.high), operator);
    return boolean((row) => low.run(row) === true && high.run(row) === true);
  },
  text(node, sub) {
    const [left, right] = [sub(node.left), sub(node.right)];
    const test = TEXT_TESTS[node.operator];
    if (!test)
      throw KustoError.querySyntax(`the operator '${node.operator}' is not one that kusto-local knows`);
    return boolean((row) => test(toText(left.type, left.run(row)), toText(right.type, right.run(row))));
  },
  negate(node, sub) {
    const operand = sub(node.operand);
    const run = (row) => {
      const value = operand.run(row);
      if (value === null) return null;
      return operand.type === 'decimal' ? negateText(value) : -value;
    };
    return { type: operand.type, run };
  },
  arithmetic: (node, sub) => arithmetic(node.operator, sub(node.left), sub(node.right)),
};

// The first column of the first row; learn.microsoft.com/kusto/query/toscalar-function
function toScalar(args, scope) {
  const relation = args.length === 1 ? scope?.relation(args[0]) : null;
  if (!relation) throw KustoError.semantic('toscalar(): a tabular expression is expected');
  const value = once(() => {
    for (const row of relation.rows()) return row[0];
    return null;
  });
  return { type: relation.columns[0].type, run: value, constant: true };
}

function inColumn(left, relation) {
  const [column] = relation.columns;
  const values = once(() => new Set([...relation.rows()].map((row) => toText(column.type, row[0]))));
  return boolean((row) => values().has(toText(left.type, left.run(row))));
}

// Not before it is asked for, and then only once.
export function once(make) {
  let value;
  let made = false;
  return () => {
    if (!made) [value, made] = [make(), true];
    return value;
  };
}

function negateText(text) {
  if (text === '0') return text;
  return text.startsWith('-') ? text.slice(1) : `-${text}`;
}

function boolean(run) {
  return { type: 'bool', run };
}

function literal({ type, text, typed }) {
  const name = typed ? typeNamed(type) : type;
  const constant = (value) => ({ type: name, run: () => value, constant: true });
  if (name === 'string') return constant(text);
  if (typed && /^null$/i.test(text)) return constant(null);
  if (name === 'real' && /^(nan|[+-]?inf)$/i.test(text)) {
    return constant(/nan/i.test(text) ? NaN : text.startsWith('-') ? -Infinity : Infinity);
  }
  const plain = name === 'datetime' || name === 'timespan' || name === 'guid' ? unquote(text) : text;
  const source =
    name === 'long' && plain.startsWith('0x') ? String(BigInt(plain)) : plain.replace(/\.$/, '.0');
  const value = parserOf(name)(source);
  if (value === undefined) throw KustoError.querySyntax(`'${text}' is not a valid ${name} literal`);
  return constant(value);
}

function unquote(text) {
  return /^(['"]).*\1$/.test(text) ? text.slice(1, -1) : text;
}

function memberName(node) {
  const last = node.key.kind === 'literal' ? node.key.text : 'key';
  const first =
    node.object.kind === 'column'
      ? node.object.name
      : node.object.kind === 'member'
        ? memberName(node.object)
        : '';
  return first ? `${first}_${last}` : last;
}

function toIndex(key, row) {
  const value = key.run(row);
  return typeof value === 'bigint' ? Number(value) : value;
}

const wordCharacter = '[\\p{L}\\p{N}]';

function hasTerm(text, term) {
  const escaped = term.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
  return (flags) => new RegExp(`(?<!${wordCharacter})${escaped}(?!${wordCharacter})`, `u${flags}`).test(text);
}

const lower = (test) => (a, b) => test(a.toLowerCase(), b.toLowerCase());
const includes = (a, b) => a.includes(b);
const starts = (a, b) => a.startsWith(b);
const ends = (a, b) => a.endsWith(b);

const TEXT_TESTS = {
  has: (a, b) => hasTerm(a, b)('i'),
  has_cs: (a, b) => hasTerm(a, b)(''),
  contains: lower(includes),
  contains_cs: includes,
  startswith: lower(starts),
  startswith_cs: starts,
  endswith: lower(ends),
  endswith_cs: ends,
  matches: (a, b) => new RegExp(b, 'u').test(a),
};

// https://learn.microsoft.com/kusto/query/scalar-data-types/null-values
function comparison(operator, left, right, where) {
  if (operator === '=~' || operator === '!~') {
    const equal = lower((a, b) => a === b);
    return boolean(
      (row) =>
        equal(toText(left.type, left.run(row)), toText(right.type, right.run(row))) === (operator === '=~'),
    );
  }
  const [a, b] = commonForm(left, right, where);
  return boolean((row) => {
    const [x, y] = [a(row), b(row)];
    if (x === null || y === null) {
      if (x === y) return null;
      return operator === '==' ? false : operator === '!=' ? true : null;
    }
    // Loosely, because a long (bigint) may stand against an int or a real.
    switch (operator) {
      case '==':
        return x == y;
      case '!=':
        return x != y;
      case '<':
        return x < y;
      case '<=':
        return x <= y;
      case '>':
        return x > y;
      default:
        return x >= y;
    }
  });
}

function commonForm(left, right, where) {
  if (NUMERIC.has(left.type) && NUMERIC.has(right.type)) {
    if (left.type === 'decimal' && right.type === 'decimal') return [decimalKey(left), decimalKey(right)];
    return [asNumber(left), asNumber(right)];
  }
  if (left.type === right.type) return [left.run, right.run];
  if (left.type === 'dynamic' || right.type === 'dynamic') return [asText(left), asText(right)];
  // A string literal stands for a value of the other side's type where it parses.
  if (right.type === 'string' && right.constant) return [left.run, parsedAs(right, left.type, where)];
  if (left.type === 'string' && left.constant) return [parsedAs(left, right.type, where), right.run];
  throw KustoError.semantic(
    `'${where}' operator: Cannot compare values of types ${left.type} and ${right.type}. Try adding explicit casts`,
  );
}

function parsedAs(side, type, where) {
  const value = parserOf(type)(side.run());
  if (value === undefined || (type !== 'datetime' && type !== 'guid' && type !== 'timespan')) {
    throw KustoError.semantic(
      `'${where}' operator: Cannot compare values of types ${type} and string. Try adding explicit casts`,
    );
  }
  return () => value;
}

export function asNumber({ type, run }) {
  if (type !== 'decimal') return run;
  return (row) => {
    const value = run(row);
    return value === null ? null : Number(value);
  };
}

function asText({ type, run }) {
  return (row) => {
    const value = run(row);
    return value === null ? null : toText(type, value);
  };
}

// Decimals of equal text are equal; their order goes by scaled integers.
function decimalKey({ run }) {
  return (row) => {
    const value = run(row);
    if (value === null) return null;
    const [whole, fraction = ''] = value.split('.');
    return BigInt(whole + fraction.padEnd(40, '0'));
  };
}

function arithmetic(operator, left, right) {
  const type = resultType(operator, left.type, right.type);
  const calculate = type === 'real' || type === 'decimal' ? onNumbers(operator) : onIntegers(operator);
  const [a, b] = [asNumber(left), asNumber(right)];
  return {
    type,
    run(row) {
      const [x, y] = [a(row), b(row)];
      if (x === null || y === null) return null;
      const value = calculate(x, y);
      return type === 'decimal' && value !== null ? String(value) : value;
    },
  };
}

function resultType(operator, left, right) {
  const pair = `${left} ${operator} ${right}`;
  const times = {
    'datetime - datetime': 'timespan',
    'datetime + timespan': 'datetime',
    'datetime - timespan': 'datetime',
    'timespan + timespan': 'timespan',
    'timespan - timespan': 'timespan',
    'timespan / timespan': 'real',
    'timespan * long': 'timespan',
    'long * timespan': 'timespan',
  };
  if (times[pair]) return times[pair];
  if (!NUMERIC.has(left) || !NUMERIC.has(right)) {
    throw KustoError.semantic(`the operator '${operator}' cannot be applied to ${left} and ${right}`);
  }
  if (left === 'decimal' || right === 'decimal') return 'decimal';
  return left === 'real' || right === 'real' ? 'real' : 'long';
}

function onNumbers(operator) {
  return (x, y) => {
    const [a, b] = [Number(x), Number(y)];
    switch (operator) {
      case '+':
        return a + b;
      case '-':
        return a - b;
      case '*':
        return a * b;
      case '/':
        return a / b;
      default:
        return a % b;
    }
  };
}

function onIntegers(operator) {
  return (x, y) => {
    const [a, b] = [BigInt(x), BigInt(y)];
    switch (operator) {
      case '+':
        return a + b;
      case '-':
        return a - b;
      case '*':
        return a * b;
      case '/':
        return b === 0n ? null : a / b;
      default:
        return b === 0n ? null : a % b;
    }
  };
}
